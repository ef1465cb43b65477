//! The disk: every byte explained, and only what was planned given back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::{Value, json};

use super::House;

fn write(path: &Path, bytes: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, vec![7; bytes]).unwrap();
}

/// What all of banger's directories take, as somebody else counts it.
fn du(house: &House) -> u64 {
    let paths = &house.app.paths;
    let there = [&paths.state, &paths.cache, &paths.run];
    let done = std::process::Command::new("du")
        .args(["-s", "-c", "-B1"])
        .args(there.into_iter().filter(|path| path.exists()))
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let total = text.lines().last().unwrap();
    total.split_whitespace().next().unwrap().parse().unwrap()
}

/// A managed image with a file of this length; what it says of itself.
async fn image(house: &House, digit: &str, name: &str, bytes: usize, more: Value) -> String {
    let id = digit.repeat(64);
    let dir = house.app.paths.images().join(&id);
    write(&dir.join("rootfs.ext4"), bytes);
    let mut record = json!({"id": id, "name": name, "managed": true, "created_at": "", "updated_at": "",
        "rootfs_path": dir.join("rootfs.ext4")});
    let fields = record.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    let row = banger_store::images::ImageRow {
        id: id.clone(),
        name: name.to_owned(),
        record: record.to_string(),
    };
    let store = &house.app.vms.house().store;
    let insert = move |tx: &banger_store::Transaction<'_>| banger_store::images::insert(tx, &row);
    store.write(insert).await.unwrap();
    id
}

async fn kernel(house: &House, name: &str) {
    write(
        &house.app.paths.kernels().join(name).join("vmlinux"),
        30_000,
    );
    let row = banger_store::kernels::KernelRow {
        name: name.to_owned(),
        record: json!({"name": name}).to_string(),
    };
    let store = &house.app.vms.house().store;
    let put = move |tx: &banger_store::Transaction<'_>| banger_store::kernels::put(tx, &row);
    store.write(put).await.unwrap();
}

fn blob(house: &House, name: &str) -> std::path::PathBuf {
    house.app.paths.cache.join("oci/blobs/sha256").join(name)
}

/// A house with something of every kind in it.
async fn furnished() -> House {
    let house = House::new().await;
    let state = house.app.paths.state.clone();
    let vm = house.running("box").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    write(&state.join("vms").join(vm).join("work.ext4"), 50_000);
    house.world.turn(|knobs| knobs.image_hangs = true);
    image(
        &house,
        "a",
        "used",
        100_000,
        json!({"kernel_name": "k-used"}),
    )
    .await;
    image(
        &house,
        "b",
        "idle",
        200_000,
        json!({"kernel_name": "k-idle"}),
    )
    .await;
    let create = json!({"name": "web", "image_name": "used", "kernel_name": "k-vm"}).to_string();
    // Its kernel is not there yet; it only is named.
    kernel(&house, "k-vm").await;
    let begun = house.ask("POST", "/v1/vms", &create).await;
    assert_eq!(begun.status, 202, "{:?}", begun.body);
    kernel(&house, "k-used").await;
    kernel(&house, "k-idle").await;
    let dir = house.app.paths.images();
    write(&dir.join("kernel-0"), 10);
    write(&dir.join(".staging-0/rootfs.ext4"), 9_000);
    write(&dir.join("lost/rootfs.ext4"), 9_000);
    write(&dir.join("cut/unsettled"), 0);
    write(&dir.join("broken.build.log"), 5_000);
    write(&state.join("kernels/lost/deep/vmlinux"), 9_000);
    write(
        &state.join("vms").join("c".repeat(64)).join("work.ext4"),
        9_000,
    );
    write(&state.join("bangerd.log.1"), 6_000);
    write(&state.join("mine.txt"), 6_000);
    for (name, bytes) in [("1", 60_000), ("2", 70_000)] {
        write(&blob(&house, &name.repeat(64)), bytes);
    }
    write(&blob(&house, &format!("{}.part", "3".repeat(64))), 80_000);
    write(&blob(&house, "README"), 5_000);
    write(&house.app.paths.cache.join("apt/lists/all"), 90_000);
    write(&house.app.paths.cache.join("apt/lock"), 0);
    write(&house.app.paths.cache.join("engines/qemu.json"), 100);
    let boot = house.app.paths.cache.join("initramfs").join("d".repeat(64));
    write(&boot, 5_000);
    house
}

type Rows = BTreeMap<(String, String), Value>;

async fn rows(house: &House) -> (Value, Rows) {
    let report = house.get("/v1/system/disk").await;
    let rows = report["rows"].as_array().unwrap().iter().map(|row| {
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        ((text("kind"), text("name")), row.clone())
    });
    let rows = rows.collect();
    (report, rows)
}

fn row<'r>(rows: &'r Rows, kind: &str, name: &str) -> &'r Value {
    rows.get(&(kind.to_owned(), name.to_owned()))
        .unwrap_or_else(|| panic!("no {kind} {name} in {:?}", rows.keys()))
}

async fn reclaim(house: &House, body: Value) -> Value {
    let path = "/v1/system/disk/reclaim?wait=30s";
    let answer = house.ask("POST", path, &body.to_string()).await;
    assert_eq!(answer.status, 202, "{:?}", answer.body);
    let operation = answer.json()["operation"].clone();
    assert_eq!(operation["kind"], "disk.reclaim");
    assert_eq!(operation["success"], true, "{operation}");
    operation
}

/// Items as `kind name outcome`, but for the initramfs: whether one is stale
/// is known only where there is an agent.
fn items(operation: &Value) -> Vec<String> {
    let items = operation["reclaim"]["items"].as_array().unwrap().iter();
    let text = |item: &Value, field: &str| item[field].as_str().unwrap().to_owned();
    items
        .map(|item| {
            ["kind", "name", "outcome"]
                .map(|field| text(item, field))
                .join(" ")
        })
        .filter(|item| !item.contains("initramfs/"))
        .collect()
}

const PLAN: [&str; 11] = [
    "cache apt",
    "cache blobs/1111111111111111111111111111111111111111111111111111111111111111",
    "cache blobs/2222222222222222222222222222222222222222222222222222222222222222",
    "cache blobs/3333333333333333333333333333333333333333333333333333333333333333.part",
    "log bangerd.log.1",
    "log broken.build.log",
    "leftover cache/oci/blobs/sha256/README",
    "leftover state/images/kernel-0",
    "leftover state/images/lost",
    "leftover state/kernels/lost",
    "leftover state/vms/cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
];

fn planned(more: &[&str], outcome: &str) -> Vec<String> {
    let all = more.iter().chain(&PLAN);
    all.map(|item| format!("{item} {outcome}")).collect()
}

#[tokio::test]
async fn every_byte_has_a_row_and_the_sum_is_what_du_says() {
    let house = furnished().await;
    let (report, rows) = rows(&house).await;
    let sum: u64 = rows
        .values()
        .map(|row| row["used_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(report["used_bytes"], sum);
    assert_eq!(sum, du(&house));
    let below: u64 = report["directories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dir| dir["used_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(below, sum);
    assert!(report.get("problems").is_none(), "{report}");

    let user = |kind: &str, name: &str| json!([{"kind": kind, "name": name}]);
    assert_eq!(row(&rows, "image", "used")["used_by"], user("vm", "web"));
    assert_eq!(row(&rows, "kernel", "k-vm")["used_by"], user("vm", "web"));
    assert_eq!(
        row(&rows, "kernel", "k-used")["used_by"],
        user("image", "used")
    );
    for (kind, name) in [
        ("image", "used"),
        ("kernel", "k-vm"),
        ("kernel", "k-used"),
        ("vm", "box"),
    ] {
        assert_eq!(
            row(&rows, kind, name)["reclaimable_bytes"],
            0,
            "{kind} {name}"
        );
    }
    // Only with images: an idle image, and the kernel that it alone names.
    for (kind, name) in [("image", "idle"), ("kernel", "k-idle")] {
        let row = row(&rows, kind, name);
        assert_eq!(row["reclaimable_bytes"], row["used_bytes"], "{row}");
        assert_eq!(row["with_images"], true, "{row}");
    }
    assert_eq!(row(&rows, "vm", "box")["files"], 2);
    assert_eq!(row(&rows, "cache", "blobs")["files"], 3);
    for (kind, name) in [
        ("unfinished", "state/images/.staging-0"),
        ("unfinished", "state/images/cut"),
        ("database", "state.db"),
        ("socket", "run/bangerd.sock"),
        ("cache", "engines"),
        ("directory", "state"),
        // In a directory that is not banger's by its name.
        ("leftover", "state/mine.txt"),
    ] {
        assert_eq!(
            row(&rows, kind, name)["reclaimable_bytes"],
            0,
            "{kind} {name}"
        );
    }
    for (kind, name) in [
        ("cache", "apt"),
        ("log", "bangerd.log.1"),
        ("leftover", "state/kernels/lost"),
    ] {
        let row = row(&rows, kind, name);
        assert_eq!(row["reclaimable_bytes"], row["used_bytes"], "{row}");
    }
    let all: u64 = rows
        .values()
        .map(|row| row["reclaimable_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(report["reclaimable_with_images_bytes"], all);
}

/// What the daemon itself writes meanwhile.
fn own_bytes(rows: &Rows) -> u64 {
    let own = rows.iter().filter(|((kind, _), _)| kind == "database");
    own.map(|(_, row)| row["used_bytes"].as_u64().unwrap())
        .sum()
}

#[tokio::test]
async fn a_reclaim_frees_exactly_what_it_planned() {
    let house = furnished().await;
    let plan = reclaim(&house, json!({"dry_run": true, "images": true})).await;
    assert_eq!(
        items(&plan),
        planned(&["image idle", "kernel k-idle"], "planned")
    );
    let plain = reclaim(&house, json!({"dry_run": true})).await;
    assert_eq!(items(&plain), planned(&[], "planned"));
    let (report, before_rows) = rows(&house).await;
    assert_eq!(
        plan["reclaim"]["bytes_planned"],
        report["reclaimable_with_images_bytes"]
    );
    assert_eq!(
        plain["reclaim"]["bytes_planned"],
        report["reclaimable_bytes"]
    );

    let before = du(&house);
    let done = reclaim(&house, json!({"images": true, "plan": plan["id"]})).await;
    assert_eq!(
        items(&done),
        planned(&["image idle", "kernel k-idle"], "freed")
    );
    let freed = done["reclaim"]["bytes_freed"].as_u64().unwrap();
    assert_eq!(freed, plan["reclaim"]["bytes_planned"].as_u64().unwrap());
    let (report, after_rows) = rows(&house).await;
    let own = own_bytes(&after_rows) as i128 - own_bytes(&before_rows) as i128;
    assert_eq!(
        i128::from(before) - i128::from(freed) + own,
        i128::from(du(&house))
    );
    assert_eq!(report["reclaimable_with_images_bytes"], 0, "{report}");
    assert!(house.app.paths.cache.join("apt/lock").exists());
    let images = house.get("/v1/images").await;
    assert_eq!(images["images"].as_array().unwrap().len(), 1, "{images}");
    let again = reclaim(&house, json!({"images": true})).await;
    assert_eq!(again["reclaim"]["items"], json!([]));
    assert_eq!(again["reclaim"]["bytes_freed"], 0);
}

#[tokio::test]
async fn only_what_the_plan_listed_goes_and_only_if_it_is_still_the_same() {
    let house = furnished().await;
    let plan = reclaim(&house, json!({"dry_run": true, "images": true})).await;
    // One is used now, one is read, one is another by now, one is gone, and
    // one was not on the plan.
    let create = json!({"name": "late", "image_name": "idle", "kernel_name": "k-vm"}).to_string();
    assert_eq!(house.ask("POST", "/v1/vms", &create).await.status, 202);
    let read = File::open(blob(&house, &"1".repeat(64))).unwrap();
    read.lock_shared().unwrap();
    let lost = house.app.paths.images().join("lost");
    fs::rename(&lost, house.place.path().join("elsewhere")).unwrap();
    write(&lost.join("rootfs.ext4"), 9_000);
    fs::remove_file(blob(&house, &"2".repeat(64))).unwrap();
    write(&blob(&house, &"4".repeat(64)), 9_000);
    let packages = File::open(house.app.paths.cache.join("apt/lock")).unwrap();
    packages.lock().unwrap();

    let done = reclaim(&house, json!({"images": true, "plan": plan["id"]})).await;
    let mut reasons = BTreeMap::new();
    for item in done["reclaim"]["items"].as_array().unwrap() {
        if item["outcome"] == "skipped" {
            let name = item["name"]
                .as_str()
                .unwrap()
                .chars()
                .take(12)
                .collect::<String>();
            reasons.insert(name, item["reason"].as_str().unwrap().to_owned());
        }
    }
    let expected = [
        ("apt", "it is in use by a pull, or gone"),
        ("blobs/111111", "it is in use by a pull, or gone"),
        ("blobs/222222", "it is in use by a pull, or gone"),
        ("idle", "it is in use by vm \"late\""),
        ("k-idle", "it is in use by image \"idle\""),
        ("state/images", "it has changed"),
    ];
    let expected = expected.map(|(name, why)| (name.to_owned(), why.to_owned()));
    assert_eq!(reasons, expected.into());
    for path in [
        blob(&house, &"1".repeat(64)),
        blob(&house, &"4".repeat(64)),
        lost,
    ] {
        assert!(path.exists(), "{path:?}");
    }
    let (_, rows) = rows(&house).await;
    assert_eq!(row(&rows, "image", "idle")["reclaimable_bytes"], 0);
    assert_eq!(row(&rows, "cache", "blobs")["used_by"][0]["kind"], "pull");
}

#[tokio::test]
async fn one_clears_at_a_time_and_plans_are_plans() {
    let house = furnished().await;
    let plan = reclaim(&house, json!({"dry_run": true})).await;
    let clearing = house.app.shelf.clear().await.unwrap();
    let reclaim_path = "/v1/system/disk/reclaim?wait=30s";
    for (path, body) in [
        (reclaim_path, "{}"),
        ("/v1/images/cache/prune", "{}"),
        ("/v1/images/cache/prune", r#"{"dry_run":true}"#),
    ] {
        assert_eq!(house.ask("POST", path, body).await.code(), "busy", "{path}");
    }
    reclaim(&house, json!({"dry_run": true})).await;
    drop(clearing);
    let all = house.get("/v1/operations").await["operations"].clone();
    let mut all = all.as_array().unwrap().iter();
    let other = all
        .find(|operation| operation["kind"] == "vm.create")
        .unwrap()["id"]
        .clone();
    for (body, code) in [
        (json!({"plan": "op-000000000000"}), "not_found"),
        (json!({"plan": other}), "bad_request"),
        (json!({"plan": plan["id"], "images": true}), "bad_request"),
        (json!({"dryrun": true}), "bad_request"),
    ] {
        let answer = house.ask("POST", reclaim_path, &body.to_string()).await;
        assert_eq!(answer.code(), code, "{body}");
    }
    let done = reclaim(&house, json!({"plan": plan["id"]})).await;
    let body = json!({"plan": done["id"]}).to_string();
    assert_eq!(
        house.ask("POST", reclaim_path, &body).await.code(),
        "bad_request"
    );
}

#[tokio::test]
async fn a_prune_removes_idle_blobs_and_parts_and_a_dry_one_counts_them() {
    let house = furnished().await;
    let read = File::open(blob(&house, &"2".repeat(64))).unwrap();
    read.lock_shared().unwrap();
    let path = "/v1/images/cache/prune";
    let would = house.ask("POST", path, r#"{"dry_run":true}"#).await.json();
    assert_eq!(
        (&would["blobs_freed"], &would["dry_run"]),
        (&json!(2), &json!(true))
    );
    let before = du(&house);
    let mut done = house.ask("POST", path, "").await.json();
    assert_eq!(done["dry_run"], false);
    done["dry_run"] = true.into();
    assert_eq!(done, would, "as it was told before");
    assert_eq!(before - du(&house), done["bytes_freed"].as_u64().unwrap());
    let cache = done["cache_dir"].as_str().unwrap().to_owned();
    assert!(Path::new(&cache).join("sha256").is_dir());
    assert!(blob(&house, &"2".repeat(64)).exists() && blob(&house, "README").exists());
    fs::remove_dir_all(cache).unwrap();
    let none = house.ask("POST", path, "{}").await.json();
    assert_eq!(none["blobs_freed"], 0);
}

#[tokio::test]
async fn a_socket_that_somebody_left_is_never_taken() {
    let house = House::new().await;
    let other = house.app.paths.run.join("other.sock");
    drop(UnixListener::bind(&other).unwrap());
    let (_, rows) = rows(&house).await;
    assert_eq!(
        row(&rows, "socket", "run/other.sock")["reclaimable_bytes"],
        0
    );
    reclaim(&house, json!({"images": true})).await;
    assert!(other.exists());
}
