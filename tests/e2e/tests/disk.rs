//! The disk: explained as `du` counts it, given back as planned, and whole
//! whenever the daemon dies.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use e2e::{Call, House, Kernel, Live, Root, api, census, disk, skip, wait};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const SOON: Duration = Duration::from_secs(60);

/// Bytes that banger's directories take, as `du` counts them.
fn du(house: &House) -> u64 {
    let dirs = [house.state(), house.cache(), house.runtime()];
    let words = ["-s", "-c", "-B1"].map(PathBuf::from);
    let all = words.into_iter().chain(dirs);
    let out = Call::new("du", all).run().ok().out();
    let total = out.lines().last().expect("a total");
    let bytes = total.split_whitespace().next().expect("bytes");
    bytes.parse().expect("a number")
}

fn report(house: &House) -> Value {
    house.banger("disk --json").ok().json()
}

fn rows(report: &Value) -> &Vec<Value> {
    report["rows"].as_array().expect("rows")
}

fn row(report: &Value, kind: &str, name: &str) -> Value {
    let found = rows(report)
        .iter()
        .find(|row| row["kind"] == kind && row["name"] == name);
    found
        .unwrap_or_else(|| panic!("no {kind} {name} in {report:#}"))
        .clone()
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

/// Rows of what daemon and guests write by themselves.
fn own_bytes(report: &Value) -> u64 {
    let own = ["database", "log", "vm"].map(Value::from);
    let own = rows(report).iter().filter(|row| own.contains(&row["kind"]));
    own.map(|row| bytes(&row["used_bytes"])).sum()
}

/// A report at a moment when nothing moved, and what `du` said then.
fn at_rest(house: &House) -> (Value, u64) {
    wait::until("nothing moves", SOON, || {
        let before = du(house);
        let report = report(house);
        (du(house) == before).then_some((report, before))
    })
}

fn items(operation: &Value) -> Vec<String> {
    let items = operation["reclaim"]["items"].as_array().expect("items");
    let text = |item: &Value, field: &str| item[field].as_str().unwrap_or("").to_owned();
    let all = items.iter();
    all.map(|item| format!("{} {}", text(item, "kind"), text(item, "name")))
        .collect()
}

fn reclaim(house: &House, flags: &str) -> Value {
    let line = format!("disk --reclaim --json {flags}");
    let mut done = house.banger(&line).ok().json();
    done["operation"].take()
}

/// Debian's docker-registry on loopback with `box:1` in it; `None` where that
/// cannot be had here.
fn registry(house: &House) -> Option<(String, Live)> {
    let tools = ["docker-registry", "skopeo", "umoci"];
    if tools.iter().any(|tool| census::which(tool).is_none()) || !e2e::am_root() {
        return None;
    }
    let dir = house.dir().join("registry");
    fs::create_dir_all(&dir).expect("an own directory");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let at = format!("127.0.0.1:{}", port.expect("a free port").port());
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {at}\n",
        dir.join("blobs").display()
    );
    fs::write(&config, text).expect("an own file");
    let server = Call::new("docker-registry", ["serve".as_ref(), config.as_os_str()]).start();
    wait::until_true("the registry answers", SOON, || {
        TcpStream::connect(&at).is_ok()
    });
    let script = format!(
        "umoci init --layout image; umoci new --image image:1; umoci unpack --image image:1 b\n\
         mkdir -p b/rootfs/bin b/rootfs/etc b/rootfs/root\n\
         cp \"$(command -v busybox)\" b/rootfs/bin/busybox\n\
         for name in sh cat dd sync; do ln -s busybox b/rootfs/bin/$name; done\n\
         head -c 3000000 /dev/urandom > b/rootfs/etc/data\n\
         umoci repack --image image:1 b; rm -r b\n\
         skopeo copy -q --dest-tls-verify=false oci:image:1 docker://{at}/box:1"
    );
    let _ = Call::new("sh", ["-ec", &script]).within(&dir).run().ok();
    Some((at, server))
}

#[test]
fn the_disk_is_explained_as_du_counts_it_and_given_back_as_planned() {
    let house = House::with(Root::Bare, Kernel::Old);
    let Some((at, _server)) = registry(&house) else {
        skip!("needs root, docker-registry, skopeo and umoci");
    };
    let _ = house.banger(&format!("pull {at}/box:1 --name used")).ok();
    let _ = house.banger(&format!("pull {at}/box:1 --name idle")).ok();
    let _ = house
        .banger("create --name box --image used --no-start")
        .ok();
    let lost = house.state().join("vms").join("c".repeat(64));
    fs::create_dir(&lost).expect("an own directory");
    fs::write(lost.join("overlay.ext4"), vec![1; 50_000]).expect("an own file");
    fs::write(house.state().join("stray"), vec![1; 50_000]).expect("an own file");

    let (before, counted) = at_rest(&house);
    println!("at rest: {} told, {counted} by du", before["used_bytes"]);
    assert_eq!(bytes(&before["used_bytes"]), counted);
    let sum: u64 = rows(&before)
        .iter()
        .map(|row| bytes(&row["used_bytes"]))
        .sum();
    assert_eq!(sum, counted);
    let user = row(&before, "image", "used")["used_by"][0].clone();
    assert_eq!(user, json!({"kind": "vm", "name": "box"}));
    assert_eq!(row(&before, "kernel", "k6.1")["used_by"][0], user);
    let shown = house.banger("disk").ok().out();
    assert!(
        shown.starts_with("KIND") && shown.contains("with --images"),
        "{shown}"
    );
    // The daemon's own files all have their owner.
    let leftovers: Vec<&str> = (rows(&before).iter())
        .filter(|row| row["kind"] == "leftover")
        .filter_map(|row| row["name"].as_str())
        .collect();
    let lost_name = format!("state/vms/{}", "c".repeat(64));
    assert_eq!(leftovers, ["state/stray", lost_name.as_str()]);

    let plan = reclaim(&house, "--images --dry-run");
    assert_eq!(
        plan["reclaim"]["bytes_planned"],
        before["reclaimable_with_images_bytes"]
    );
    assert!(items(&plan).contains(&"image idle".to_owned()), "{plan:#}");
    for kept in ["image used", "image bare", "kernel k6.1"] {
        assert!(!items(&plan).contains(&kept.to_owned()), "{kept}: {plan:#}");
    }
    let done = reclaim(&house, "--images -y");
    assert_eq!(items(&done), items(&plan));
    let freed = bytes(&done["reclaim"]["bytes_freed"]);
    assert_eq!(freed, bytes(&plan["reclaim"]["bytes_planned"]));
    let (after, now) = at_rest(&house);
    let own = i128::from(own_bytes(&after)) - i128::from(own_bytes(&before));
    println!("freed {freed}; du {counted} to {now}; others wrote {own}");
    assert_eq!(
        i128::from(counted) - i128::from(freed) + own,
        i128::from(now)
    );
    assert_eq!(
        bytes(&after["reclaimable_with_images_bytes"]),
        0,
        "{after:#}"
    );

    // What was in use is there, and what went comes again.
    let _ = house.banger("image show used").ok();
    let _ = house.banger("image show idle").expect(3);
    let _ = house.banger(&format!("pull {at}/box:1 --name idle")).ok();
    let pruned = house.banger("image cache prune").ok().line();
    assert!(pruned.contains("across 2 blob(s) in "), "{pruned}");
    // Without its VM an image can go, and so can the kernel.
    let _ = house.banger("rm box").ok();
    let done = house.banger("disk --reclaim --images -y").ok();
    assert!(done.line().starts_with("freed "), "{done}");
    let left = report(&house);
    for kind in ["vm", "kernel", "leftover"] {
        assert!(
            rows(&left).iter().all(|row| row["kind"] != kind),
            "{kind}: {left:#}"
        );
    }
    let _ = house.banger("image show bare").ok();
}

#[test]
fn a_machine_that_runs_is_counted_and_lives_through_a_reclaim() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name box").ok();
    let write = "dd if=/dev/urandom of=/root/data bs=1M count=20 && sync";
    let _ = house.sh("box", write).ok();
    let told = report(&house);
    let (all, counted) = (bytes(&told["used_bytes"]), du(&house));
    let off = all.abs_diff(counted);
    println!("{all} told, {counted} by du, {off} apart");
    assert!(off * 100 <= counted, "{all} and {counted}");
    assert!(bytes(&row(&told, "vm", "box")["used_bytes"]) > 20 << 20);
    let done = reclaim(&house, "--images -y");
    for kept in ["image bare", "kernel k6.1"] {
        assert!(!items(&done).contains(&kept.to_owned()), "{kept}: {done:#}");
    }
    let read = "cat /root/data | dd bs=1M of=/dev/null";
    let _ = house.sh("box", read).ok();
    let _ = house.banger("stop box").ok();
    let _ = house.banger("start box").ok();
    let _ = house.sh("box", read).ok();
}

/// A registry with one image of two layers that stops in the middle of the
/// second until it is told to go on.
struct Toy {
    at: String,
    gate: Arc<Gate>,
    /// Digests of the config and the layers, hex.
    blobs: Vec<String>,
}

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    news: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().expect("nobody panics with it") = true;
        self.news.notify_all();
    }

    fn pass(&self) {
        let mut open = self.open.lock().expect("nobody panics with it");
        while !*open {
            open = self.news.wait(open).expect("nobody panics with it");
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Toy {
    fn start(dir: &Path) -> Self {
        let layer = |name: &str, bytes: usize| {
            let file = dir.join(name);
            fs::write(&file, vec![b'x'; bytes]).expect("an own file");
            let words = [
                "-C".as_ref(),
                dir.as_os_str(),
                "-cf".as_ref(),
                "-".as_ref(),
                name.as_ref(),
            ];
            Call::new("tar", words).run().ok().stdout
        };
        let layers = [layer("first", 100_000), layer("second", 2_000_000)];
        let config = json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": layers.each_ref().map(|l| format!("sha256:{}", digest(l)))}});
        let config = config.to_string().into_bytes();
        let named = |bytes: &[u8], kind: &str| {
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()})
        };
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": named(&config, "config.v1+json"),
            "layers": layers.each_ref().map(|bytes| named(bytes, "layer.v1.tar"))});
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = listener.local_addr().expect("it is bound").to_string();
        let gate = Arc::<Gate>::default();
        let slow = digest(&layers[1]);
        let content: Vec<Vec<u8>> = [config].into_iter().chain(layers).collect();
        let blobs: Vec<String> = content.iter().map(|bytes| digest(bytes)).collect();
        let serving = Arc::new((manifest.to_string(), content, slow));
        let shared = Arc::clone(&gate);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (serving, gate) = (Arc::clone(&serving), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &serving, &gate));
            }
        });
        Self { at, gate, blobs }
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// One request of a connection.
fn serve(
    mut stream: TcpStream,
    (manifest, blobs, slow): &(String, Vec<Vec<u8>>, String),
    gate: &Gate,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    while !lines.next()?.ok()?.is_empty() {}
    let path = first.split(' ').nth(1)?;
    let found = blobs.iter().find(|blob| path.ends_with(&digest(blob)));
    let (kind, body) = match found {
        Some(blob) => ("application/octet-stream", blob.as_slice()),
        None if path.contains("/manifests/") => (MANIFEST, manifest.as_bytes()),
        None => ("text/plain", &b""[..]),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let (half, rest) = body.split_at(body.len() / 2);
    stream.write_all(half).ok()?;
    if path.ends_with(slow.as_str()) {
        gate.pass();
    }
    stream.write_all(rest).ok()
}

#[test]
fn nothing_of_a_pull_that_runs_is_taken_by_this_daemon_or_another() {
    let house = House::new();
    let toy = Toy::start(house.dir());
    let blob = |name: &str| house.cache().join("oci/blobs/sha256").join(name);
    let pull = ["pull".to_owned(), format!("{}/team/app:1", toy.at)];
    let pull = house.call(&pull).start();
    let [config, first, second] = toy.blobs.as_slice() else {
        panic!("a config and two layers")
    };
    let half = blob(&format!("{second}.part"));
    wait::until_true("half a layer is here", SOON, || {
        let begun = fs::metadata(&half).is_ok_and(|half| half.len() > 0);
        begun && blob(config).exists() && blob(first).exists()
    });
    // What an earlier pull left, whole and half.
    let left = [
        blob(&"a".repeat(64)),
        blob(&format!("{}.part", "b".repeat(64))),
    ];
    let leave = || {
        for path in &left {
            fs::write(path, vec![1; 50_000]).expect("an own file");
        }
    };
    let stay = [blob(config), blob(first), half.clone()];
    let neighbour = House::new();
    neighbour.set_env(
        "XDG_CACHE_HOME",
        &house.dir().join("cache").display().to_string(),
    );
    for (who, line) in [
        (&house, "image cache prune"),
        (&house, "disk --reclaim -y"),
        (&neighbour, "image cache prune"),
        (&neighbour, "disk --reclaim -y"),
    ] {
        leave();
        let done = who.banger(line).ok();
        assert!(
            done.out().contains("(2 items)") || done.out().contains("2 blob(s)"),
            "{done}"
        );
        assert!(stay.iter().all(|path| path.exists()), "{line}: {stay:?}");
        assert!(left.iter().all(|path| !path.exists()), "{line}: {left:?}");
    }
    let told = report(&house);
    assert_eq!(row(&told, "cache", "blobs")["used_by"][0]["kind"], "pull");
    toy.gate.open();
    let done = pull.wait().ok();
    assert_eq!(done.line(), "app-1");
    let file = house.banger("image show app-1 --json").ok().json()["image"]["rootfs_path"].clone();
    disk::assert_clean(Path::new(file.as_str().expect("a path")));
    let pruned = neighbour.banger("image cache prune").ok();
    assert!(pruned.out().contains("3 blob(s)"), "{pruned}");
}

/// A house with these images, which nobody uses, pulled from a toy registry.
fn with_idle(names: &[&str]) -> House {
    let house = House::new();
    let toy = Toy::start(house.dir());
    toy.gate.open();
    for name in names {
        let line = format!("pull {}/team/app:1 --name {name}", toy.at);
        let _ = house.banger(&line).ok();
    }
    house
}

/// Whole images are left, and nothing without an owner; how many.
fn sound(house: &House) -> usize {
    let list = house.banger("image list --json").ok().json();
    let images = list["images"].as_array().expect("images");
    for image in images {
        disk::assert_clean(Path::new(image["rootfs_path"].as_str().expect("a path")));
    }
    let dirs = fs::read_dir(house.state().join("images")).expect("a directory");
    assert_eq!(dirs.count(), images.len());
    let told = report(house);
    for row in rows(&told) {
        assert!(
            row["kind"] != "leftover" && row["kind"] != "unfinished",
            "{row}"
        );
    }
    images.len()
}

#[test]
fn a_daemon_that_dies_in_a_reclaim_leaves_whole_images() {
    for (seam, left) in [("reclaim.removing", 2), ("reclaim.removed", 1)] {
        let house = with_idle(&["one", "two"]);
        house.stop_daemon();
        house.set_env("BANGER_ABORT_AT", seam);
        let done = house.banger("disk --reclaim --images -y");
        assert_eq!(done.code, 70, "{done}");
        house.clear_env();
        house.stop_daemon();
        assert_eq!(sound(&house), left, "{seam}");
        let list = house.banger("operation list --json").ok().json();
        let ended = list["operations"].as_array().expect("operations").iter();
        let mut ended = ended.filter(|operation| operation["kind"] == "disk.reclaim");
        assert_eq!(
            ended.next().expect("it is known")["error_code"],
            "interrupted"
        );
        let again = house.banger("disk --reclaim --images -y").ok();
        assert!(again.line().starts_with("freed "), "{again}");
        assert_eq!(sound(&house), 0);
    }
}

#[test]
fn a_daemon_killed_at_any_time_of_a_reclaim_leaves_whole_images() {
    let house = with_idle(&["a", "b", "c", "d", "e", "f"]);
    let dirs = || {
        let dirs = fs::read_dir(house.state().join("images")).expect("a directory");
        dirs.count()
    };
    let mut lived = Vec::new();
    for round in 0..4 {
        let before = sound(&house);
        let plan = reclaim(&house, "--images --dry-run");
        let body = json!({"images": true, "plan": plan["id"]});
        let path = "/v1/system/disk/reclaim";
        let _ = api::attempt(&house.socket(), "POST", path, Some(&body));
        // At once, and then as soon as something is gone.
        if round % 2 == 1 && before > 0 {
            wait::until_true("an image is gone", SOON, || dirs() < before);
        }
        house.kill_daemon();
        let after = sound(&house);
        assert!(after <= before, "{before} and {after}");
        lived.push(after);
    }
    println!("images after each kill: {lived:?}");
    assert!(lived[3] < 6, "{lived:?}");
}
