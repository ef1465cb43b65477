//! Catalogs and bundles of the daemon itself: what is listed, what a pull of a
//! name does, and what a bad one leaves.

use std::fs;
use std::path::{Path, PathBuf};

use banger_images::bundle::{Made, Manifest, write_image, write_kernel};
use banger_images::{Cancel, Quiet};
use serde_json::{Value, json};

use super::House;
use super::artifacts::{VERSION, kept, kernel_files};
use crate::artifact::host_arch;

/// A house, and where its catalog and bundles are.
pub(super) struct Shop {
    pub(super) house: House,
    place: tempfile::TempDir,
}

impl Shop {
    pub(super) async fn open() -> Self {
        let place = tempfile::tempdir().unwrap();
        let catalog = place.path().join("catalog.json");
        let house = House::configured(|config| config.catalog_path = Some(catalog)).await;
        let shop = Self { house, place };
        shop.offer(&[]);
        shop
    }

    pub(super) fn offer(&self, entries: &[Value]) {
        let text = json!({"version": 1, "entries": entries}).to_string();
        fs::write(self.place.path().join("catalog.json"), text).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A bundle's entry, as it must be to be pulled.
    fn entry(&self, kind: &str, name: &str, made: &Made, file: &Path) -> Value {
        json!({
            "kind": kind,
            "name": name,
            "description": "made here",
            "tarball_url": format!("file://{}", file.display()),
            "tarball_sha256": banger_model::id::hex(&made.sha256),
            "size_bytes": made.size_bytes,
        })
    }

    pub(super) fn kernel(&self) -> Value {
        let from = self.path("from");
        let (kernel, modules) = kernel_files(&from);
        fs::create_dir_all(from.join("boot")).unwrap();
        fs::rename(kernel, from.join(format!("boot/vmlinux-{VERSION}"))).unwrap();
        assert!(modules.starts_with(&from));
        let out = self.path("k.tar.zst");
        let cancel = Cancel::new().unwrap();
        let made = write_kernel(&from, false, &Manifest::default(), &out, &cancel, &Quiet).unwrap();
        self.entry("kernel", "mine", &made, &out)
    }

    pub(super) fn image(&self, kernel: Option<&str>, arch: &str) -> Value {
        let tar = self.path("root.tar");
        let line = ["-cf", tar.to_str().unwrap(), "-C", "/etc", "hostname"];
        let packed = std::process::Command::new("tar")
            .args(line)
            .status()
            .unwrap();
        assert!(packed.success());
        let manifest = Manifest {
            name: "box".to_owned(),
            arch: Some(arch.to_owned()),
            kernel_ref: kernel.map(str::to_owned),
            ..Manifest::default()
        };
        let out = self.path(&format!("{arch}.tar.zst"));
        let _ = fs::remove_file(&out);
        let (tar, size) = (fs::File::open(tar).unwrap(), Some(256 << 20));
        let cancel = Cancel::new().unwrap();
        let made = write_image(tar, &manifest, size, &out, &cancel, &Quiet).unwrap();
        self.entry("image", "box", &made, &out)
    }

    /// The operation that a pull becomes, or the answer that refuses it.
    async fn pull(&self, what: &str, body: Value) -> Value {
        let path = format!("/v1/{what}/pull?wait=60s");
        let answer = self
            .house
            .ask("POST", &path, &body.to_string())
            .await
            .json();
        match &answer["operation"] {
            Value::Null => answer,
            operation => operation.clone(),
        }
    }

    async fn available(&self, what: &str, name: &str) -> Value {
        let list = self.house.get(&format!("/v1/{what}?available=true")).await;
        let entries = list["entries"].as_array().unwrap();
        let found = entries.iter().find(|entry| entry["name"] == name);
        found.unwrap_or_else(|| panic!("{list}")).clone()
    }

    fn kernels(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.house.app.paths.kernels()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

#[tokio::test]
async fn a_kernel_of_the_catalog_is_pulled_by_name_and_marked() {
    let shop = Shop::open().await;
    let entry = shop.kernel();
    let url = entry["tarball_url"].clone();
    shop.offer(&[entry]);
    let listed = shop.available("kernels", "mine").await;
    assert_eq!(
        (&listed["pulled"], &listed["description"]),
        (&json!(false), &json!("made here"))
    );
    assert!(listed.get("tarball_url").is_none(), "clients need not know");
    assert_eq!(
        shop.available("kernels", "debian-cloud").await["pulled"],
        false
    );

    let done = shop.pull("kernels", json!({"name": "mine"})).await;
    assert_eq!(done["success"], true, "{done}");
    let kernel = &done["entry"];
    assert_eq!(
        (&kernel["kernel_version"], &kernel["name"]),
        (&json!(VERSION), &json!("mine"))
    );
    let source = format!("pull:{}", url.as_str().unwrap());
    assert_eq!(kernel["source"], source);
    assert_eq!(shop.available("kernels", "mine").await["pulled"], true);

    let again = shop.pull("kernels", json!({"name": "mine"})).await;
    assert_eq!(again["error"]["code"], "already_exists", "{again}");
    let forced = shop
        .pull("kernels", json!({"name": "mine", "force": true}))
        .await;
    assert_eq!(forced["success"], true, "{forced}");
    // The one that is here has the size that it takes.
    let listed = shop.available("kernels", "mine").await;
    assert_eq!(listed["size_bytes"], kernel["size_bytes"], "{listed}");

    // One that a VM boots stays what it is.
    let house = &shop.house;
    house.world.turn(|knobs| knobs.image_hangs = true);
    let create = json!({"name": "box", "kernel_name": "mine"}).to_string();
    assert_eq!(house.ask("POST", "/v1/vms", &create).await.status, 202);
    let place = house.app.paths.kernels().join("mine");
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&place).unwrap());
    let before = inode();
    let refused = shop
        .pull("kernels", json!({"name": "mine", "force": true}))
        .await;
    let code = [&refused["error"]["code"], &refused["error_code"]];
    assert!(code.contains(&&json!("in_use")), "{refused}");
    assert_eq!((inode(), shop.kernels().len()), (before, 1));
    house.world.turn(|knobs| knobs.image_hangs = false);
    house.ask("DELETE", "/v1/vms/box?wait=30s", "").await;

    let other = json!({"entry": "mine", "name": "other"});
    let other = shop.pull("kernels", other).await;
    assert_eq!(other["entry"]["name"], "other", "{other}");
    assert_eq!(other["entry"]["sha256"], kernel["sha256"], "{other}");
    let again = shop.pull("kernels", json!({"entry": "mine"})).await;
    assert_eq!(again["error"]["code"], "already_exists", "{again}");
    for (body, code) in [
        (json!({"entry": "nosuch", "name": "mine"}), "not_in_catalog"),
        (json!({"entry": "mine", "name": "../x"}), "bad_name"),
        (json!({"entry": "mine", "package": "x"}), "bad_request"),
    ] {
        let refused = shop.pull("kernels", body.clone()).await;
        assert_eq!(refused["error"]["code"], code, "{body}: {refused}");
    }
    let none = shop.pull("kernels", json!({"name": "nosuch"})).await;
    assert_eq!(none["error"]["code"], "not_in_catalog", "{none}");
    let none = shop.pull("kernels", json!({})).await;
    assert_eq!(none["error"]["code"], "bad_request", "{none}");
}

#[tokio::test]
async fn an_image_of_the_catalog_comes_with_its_kernel() {
    let shop = Shop::open().await;
    let image = shop.image(Some("mine"), host_arch());
    // Its kernel is nowhere.
    shop.offer(std::slice::from_ref(&image));
    let lost = shop.pull("images", json!({"ref": "box"})).await;
    assert_eq!(lost["error_code"], "not_in_catalog", "{lost}");
    assert_eq!(kept(&shop.house), [""; 0].map(PathBuf::from));

    shop.offer(&[image, shop.kernel()]);
    let both = tokio::join!(
        shop.pull("images", json!({"ref": "box"})),
        shop.pull("images", json!({"ref": "box"}))
    );
    for done in [both.0, both.1] {
        assert_eq!(done["success"], true, "{done}");
        assert_eq!(done["image"]["kernel_name"], "mine");
        assert_eq!(done["image"]["arch"], host_arch());
    }
    assert_eq!(kept(&shop.house).len(), 1);
    assert_eq!(
        shop.house.get("/v1/kernels/mine").await["entry"]["name"],
        "mine"
    );
    assert_eq!(shop.available("images", "box").await["pulled"], true);
    assert_eq!(
        shop.available("images", "debian-bookworm").await["pulled"],
        false
    );

    let other = json!({"ref": "box", "name": "other", "kernel_ref": "nosuch"});
    let refused = shop.pull("images", other).await;
    assert_eq!(refused["error"]["code"], "not_found", "{refused}");
    let sized = json!({"ref": "box", "name": "other", "size_bytes": 1 << 30});
    let refused = shop.pull("images", sized).await;
    assert_eq!(refused["error"]["code"], "bad_request", "{refused}");
    // A name that is in no catalog is a reference.
    let other = shop.pull("images", json!({"ref": "No such"})).await;
    assert_eq!(other["error"]["code"], "bad_reference", "{other}");
}

#[tokio::test]
async fn a_bad_bundle_fails_its_pull_and_leaves_nothing() {
    let shop = Shop::open().await;
    let kernel = shop.kernel();
    let image = shop.image(None, host_arch());
    let wrong = |entry: &Value| {
        let mut entry = entry.clone();
        entry["tarball_sha256"] = "0".repeat(64).into();
        entry
    };
    let swapped = |entry: &Value, other: &Value| {
        let mut entry = entry.clone();
        for field in ["tarball_url", "tarball_sha256"] {
            entry[field] = other[field].clone();
        }
        entry
    };
    let gone = |entry: &Value| {
        let mut entry = entry.clone();
        entry["tarball_url"] = format!("file://{}", shop.place.path().display()).into();
        entry
    };
    let foreign = shop.image(None, "riscv64");
    for (what, name, entry, code) in [
        ("kernels", "mine", wrong(&kernel), "verify_failed"),
        ("kernels", "mine", swapped(&kernel, &image), "bad_archive"),
        ("kernels", "mine", gone(&kernel), "bad_path"),
        ("images", "box", wrong(&image), "verify_failed"),
        ("images", "box", swapped(&image, &kernel), "bad_archive"),
        ("images", "box", gone(&image), "bad_path"),
        ("images", "box", foreign, "unsupported"),
    ] {
        shop.offer(std::slice::from_ref(&entry));
        let field = if what == "images" { "ref" } else { "name" };
        let failed = shop.pull(what, json!({field: name})).await;
        assert_eq!(failed["error_code"], code, "{entry}: {failed}");
        assert_eq!(kept(&shop.house), [""; 0].map(PathBuf::from), "{entry}");
        assert_eq!(shop.kernels(), [""; 0].map(PathBuf::from), "{entry}");
    }
}

#[tokio::test]
async fn a_bad_catalog_is_told_by_its_file_and_entry() {
    let shop = Shop::open().await;
    shop.offer(&[json!({"name": "half", "tarball_url": "https://x.example/y"})]);
    for path in ["/v1/images?available=true", "/v1/kernels?available"] {
        let answer = shop.house.ask("GET", path, "").await;
        assert_eq!(answer.code(), "bad_path");
        let message = answer.json()["error"]["message"].to_string();
        assert!(
            message.contains("catalog.json") && message.contains("half"),
            "{message}"
        );
    }
    let failed = shop.pull("kernels", json!({"name": "debian-cloud"})).await;
    assert_eq!(failed["error"]["code"], "bad_path", "{failed}");
    // What needs no catalog is as ever.
    assert_eq!(shop.house.get("/v1/images").await["images"], json!([]));
    assert_eq!(
        shop.house.get("/v1/kernels?available=false").await["entries"],
        json!([])
    );
    let answer = shop
        .house
        .ask("GET", "/v1/images?available=maybe", "")
        .await;
    assert_eq!(answer.code(), "bad_request");
}
