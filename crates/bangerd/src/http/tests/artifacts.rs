//! Images and kernels of the daemon itself: what a VM may name, and kernels
//! that images bring along.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_api::error::Code;
use banger_api::image::ImageBuildParams;
use banger_images::{Cancel, Report};
use serde_json::{Value, json};

use super::House;
use crate::artifact::{NewBuild, Unseen};
use crate::failure::Failure;
use crate::ports::{Artifacts, BuildJob, Builder};

pub(super) const VERSION: &str = "6.9.1-x";

/// A kernel that is one by its first bytes, and the modules a VM needs.
pub(crate) fn kernel_files(place: &Path) -> (PathBuf, PathBuf) {
    let modules = place.join("lib/modules").join(VERSION);
    fs::create_dir_all(modules.join("kernel")).unwrap();
    for module in [
        "virtio_blk",
        "ext4",
        "overlay",
        "virtio_console",
        "virtio_mmio",
    ] {
        let file = modules.join(format!("kernel/{module}.ko"));
        fs::write(file, b"not really").unwrap();
    }
    fs::write(modules.join("modules.builtin"), "kernel/x.ko\n").unwrap();
    let kernel = place.join("my-vmlinux");
    let mut elf = b"\x7fELF\x02\x01\x01\0".to_vec();
    elf.resize(64, 0);
    elf[18] = 0x3e;
    elf.extend_from_slice(format!("Linux version {VERSION} \0").as_bytes());
    fs::write(&kernel, elf).unwrap();
    (kernel, modules)
}

fn root_file(place: &Path) -> PathBuf {
    let root = place.join("root.ext4");
    banger_images::ext4::empty(&root, 256 << 20, "root", None, false).unwrap();
    root
}

/// What banger keeps of images, without the content.
pub(super) fn kept(house: &House) -> Vec<PathBuf> {
    let entries = fs::read_dir(house.app.paths.images()).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

async fn register(house: &House, body: &Value) -> super::Answer {
    house
        .ask("POST", "/v1/images/register", &body.to_string())
        .await
}

#[tokio::test]
async fn a_vm_of_an_unknown_image_or_kernel_is_refused_before_anything_is_begun() {
    let house = House::with_own_artifacts().await;
    let root = root_file(house.place.path());
    for (name, kernel) in [("mine", None), ("lost", Some("gone"))] {
        let mut record = json!({"name": name, "rootfs_path": root});
        if let Some(kernel) = kernel {
            // Registered while the kernel was there.
            let answer = register(&house, &record).await.json();
            let id = answer["image"]["id"].as_str().unwrap().to_owned();
            let store = &house.app.vms.house().store;
            let edit = move |tx: &banger_store::Transaction<'_>| {
                let row = banger_store::images::by_name(tx, name)?.unwrap();
                let record =
                    row.record
                        .replacen('{', &format!("{{\"kernel_name\":\"{kernel}\","), 1);
                banger_store::images::update(tx, &id, &record)
            };
            assert!(store.write(edit).await.unwrap());
        } else {
            record["name"] = name.into();
            assert_eq!(register(&house, &record).await.status, 200);
        }
    }
    for (body, named) in [
        (json!({"name": "box", "image_name": "nosuch"}), "nosuch"),
        (json!({"name": "box", "kernel_name": "nosuch"}), "nosuch"),
        (
            json!({"name": "box", "image_name": "mine", "kernel_name": "no"}),
            "no",
        ),
        (json!({"name": "box", "image_name": "lost"}), "gone"),
    ] {
        let answer = house.ask("POST", "/v1/vms", &body.to_string()).await;
        assert_eq!(answer.code(), "not_found", "{body}");
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains(named), "{body}: {message}");
    }
    assert_eq!(house.get("/v1/vms").await["vms"], json!([]));
    assert_eq!(house.get("/v1/operations").await["operations"], json!([]));
    // What first use obtains is as good as there, however it is named.
    let shelf = &house.app.shelf;
    for image in [None, Some("debian-bookworm"), Some("mine")] {
        shelf.known(image, None).await.unwrap();
    }
}

#[tokio::test]
async fn an_image_keeps_the_kernel_it_was_given_until_it_gets_another() {
    let house = House::new().await;
    let place = house.place.path();
    let (kernel, modules) = kernel_files(place);
    let body = json!({"name": "own", "rootfs_path": root_file(place), "kernel_path": kernel,
        "modules_dir": modules});
    let shown = register(&house, &body).await.json();
    let image = &shown["image"];
    assert_eq!(
        image["kernel_path"],
        json!(kernel),
        "as it was given: {shown}"
    );
    assert_eq!(
        (&image["modules_dir"], &image["managed"]),
        (&json!(modules), &json!(false))
    );
    assert_eq!(house.get("/v1/kernels").await["entries"], json!([]));
    let [first] = kept(&house).try_into().unwrap();
    for file in ["vmlinux", "modules.ext4", "boot-modules/order"] {
        assert!(first.join(file).is_file(), "{file}");
    }
    // The files given may go; a boot takes what is kept.
    let id = image["id"].as_str().unwrap().to_owned();
    let boots = house.app.shelf.image_for_start(&id).await.unwrap();
    let own = boots.own_kernel.unwrap();
    assert_eq!(
        (own.dir.clone(), own.version.as_str()),
        (first.clone(), VERSION)
    );
    assert!(own.has_modules && !own.virtio_pci_builtin);
    house.app.shelf.known(Some("own"), None).await.unwrap();

    // Another kernel takes its place, and so does none.
    let mut bare = body.clone();
    bare.as_object_mut().unwrap().remove("modules_dir");
    assert_eq!(
        register(&house, &bare).await.json()["image"]["id"],
        json!(id)
    );
    let [second] = kept(&house).try_into().unwrap();
    assert!(second != first && !second.join("modules.ext4").exists());
    bare.as_object_mut().unwrap().remove("kernel_path");
    assert_eq!(
        register(&house, &bare).await.json()["image"]["kernel_path"],
        ""
    );
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));

    // In use nothing of it changes, and what was made for the change is gone.
    assert_eq!(register(&house, &body).await.status, 200);
    let before = kept(&house);
    // However it was named.
    for name in ["own", &id[..6]] {
        house.world.turn(|knobs| knobs.image_hangs = true);
        let create = json!({"name": "box", "image_name": name}).to_string();
        assert_eq!(house.ask("POST", "/v1/vms", &create).await.status, 202);
        assert_eq!(register(&house, &body).await.code(), "in_use", "{name}");
        assert_eq!(
            house.ask("DELETE", "/v1/images/own", "").await.code(),
            "in_use",
            "{name}"
        );
        assert_eq!(kept(&house), before);
        assert!(!before[0].join("unsettled").exists());
        house.world.turn(|knobs| knobs.image_hangs = false);
        house.ask("DELETE", "/v1/vms/box?wait=30s", "").await;
    }
    assert_eq!(house.ask("DELETE", "/v1/images/own", "").await.status, 200);
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
}

#[tokio::test]
async fn a_promoted_image_is_bangers_own_and_the_same_image() {
    let house = House::new().await;
    let place = house.place.path();
    let (kernel, modules) = kernel_files(place);
    let (root, seed) = (root_file(place), place.join("seed.ext4"));
    banger_images::ext4::empty(&seed, 256 << 20, "work", None, false).unwrap();
    let body = json!({"name": "own", "rootfs_path": root, "kernel_path": kernel,
        "modules_dir": modules, "work_seed_path": seed});
    let id = register(&house, &body).await.json()["image"]["id"].clone();
    let promote = "/v1/images/own/promote?wait=30s";
    let content = fs::read(&root).unwrap();

    // Not what it was when it was registered.
    fs::write(&seed, "changed").unwrap();
    let answer = house.ask("POST", promote, "").await;
    assert_eq!(answer.code(), "in_use");
    assert_eq!(kept(&house).len(), 1, "its kernel alone");
    fs::remove_file(&seed).unwrap();
    banger_images::ext4::empty(&seed, 256 << 20, "work", None, false).unwrap();
    assert_eq!(register(&house, &body).await.status, 200);

    let done = house.ask("POST", promote, "").await.json();
    let operation = &done["operation"];
    assert_eq!(operation["success"], true, "{done}");
    let image = &operation["image"];
    assert_eq!((&image["id"], &image["managed"]), (&id, &json!(true)));
    let dir = house.app.paths.images().join(id.as_str().unwrap());
    assert_eq!(image["artifact_dir"], json!(dir));
    assert_eq!(image["rootfs_path"], json!(dir.join("rootfs.ext4")));
    assert_eq!(image["work_seed_path"], json!(dir.join("work-seed.ext4")));
    assert!(!dir.join("unsettled").exists());
    for named in ["kernel_path", "modules_dir"] {
        let path = image[named].as_str().unwrap();
        assert!(Path::new(path).starts_with(house.app.paths.images()) && Path::new(path).exists());
    }
    // What it was made of may go.
    for file in [&root, &seed, &kernel] {
        fs::remove_file(file).unwrap();
    }
    assert!(fs::read(dir.join("rootfs.ext4")).unwrap() == content);
    let shelf = &house.app.shelf;
    let boots = shelf.image_for_start(id.as_str().unwrap()).await.unwrap();
    assert!(boots.own_kernel.is_some() && boots.work_seed.is_some());

    // Once is enough, and it cannot be registered over.
    let again = house.ask("POST", promote, "").await.json();
    assert_eq!(again["operation"]["success"], true);
    assert_eq!(again["operation"]["image"], *image);
    let body = json!({"name": "own", "rootfs_path": root_file(place)});
    assert_eq!(register(&house, &body).await.code(), "already_exists");
    shelf.recover().await.unwrap();
    assert_eq!(kept(&house).len(), 2, "image and kernel");
    assert_eq!(house.ask("DELETE", "/v1/images/own", "").await.status, 200);
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
}

#[tokio::test]
async fn a_promotion_cut_before_its_row_leaves_the_image_as_it_was() {
    let house = House::new().await;
    let body = json!({"name": "own", "rootfs_path": root_file(house.place.path())});
    let shown = register(&house, &body).await.json();
    let id = shown["image"]["id"].as_str().unwrap();
    let dir = house.app.paths.images().join(id);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("unsettled"), "").unwrap();
    fs::write(dir.join("rootfs.ext4"), "half").unwrap();
    house.app.shelf.recover().await.unwrap();
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
    assert_eq!(house.get("/v1/images/own").await, shown);
}

#[tokio::test]
async fn a_kernel_that_cannot_be_used_leaves_no_image() {
    let house = House::new().await;
    let place = house.place.path();
    let (kernel, modules) = kernel_files(place);
    let root = root_file(place);
    let text = place.join("text");
    fs::write(&text, "no kernel at all").unwrap();
    let with = |more: Value| {
        let mut body = json!({"name": "own", "rootfs_path": root});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let lame = place.join("lame");
    fs::create_dir_all(lame.join("kernel")).unwrap();
    fs::write(lame.join("modules.builtin"), "kernel/x.ko\n").unwrap();
    for (body, code) in [
        (json!({"kernel_path": "relative"}), "bad_path"),
        (json!({"kernel_path": "/nosuch"}), "bad_path"),
        (json!({"kernel_path": text}), "bad_path"),
        (
            json!({"kernel_path": kernel, "modules_dir": text}),
            "bad_path",
        ),
        (
            json!({"kernel_path": kernel, "initrd_path": "/nosuch"}),
            "bad_path",
        ),
        (
            json!({"kernel_path": kernel, "modules_dir": lame}),
            "unsupported",
        ),
        (json!({"modules_dir": modules}), "bad_request"),
        (json!({"initrd_path": text}), "bad_request"),
        (
            json!({"kernel_path": kernel, "kernel_ref": "k"}),
            "bad_request",
        ),
        (json!({"kernel_ref": "nosuch"}), "not_found"),
    ] {
        let answer = register(&house, &with(body.clone())).await;
        assert_eq!(answer.code(), code, "{body}: {:?}", answer.body);
    }
    assert_eq!(house.get("/v1/images").await["images"], json!([]));
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
}

#[tokio::test]
async fn a_kernel_whose_image_was_cut_is_swept_and_one_with_its_image_stays() {
    let house = House::new().await;
    let place = house.place.path();
    let (kernel, _) = kernel_files(place);
    let body = json!({"name": "own", "rootfs_path": root_file(place), "kernel_path": kernel});
    assert_eq!(register(&house, &body).await.status, 200);
    let [kept_one] = kept(&house).try_into().unwrap();
    // Cut before the row was written, and just after it.
    let cut = house.app.paths.images().join("kernel-cut");
    fs::create_dir(&cut).unwrap();
    for place in [&cut, &kept_one] {
        fs::write(place.join("unsettled"), "").unwrap();
    }
    house.app.shelf.recover().await.unwrap();
    assert_eq!(kept(&house), std::slice::from_ref(&kept_one));
    assert!(!kept_one.join("unsettled").exists());
    let lost = house.app.shelf.image_shown("nosuch").await.unwrap_err();
    assert_eq!(lost.code, Code::NotFound);
}

/// Fails as it was told to.
struct FakeBuilder(Failure);

#[async_trait]
impl Builder for FakeBuilder {
    async fn build(
        &self,
        job: &BuildJob,
        _: Cancel,
        report: &dyn Report,
        mut into: File,
    ) -> Result<(), Failure> {
        report.log(&format!("making {}", job.name));
        into.write_all(b"half").unwrap();
        Err(self.0.clone())
    }
}

async fn derive(house: &House, name: &str, code: Code) -> Failure {
    let wanted = NewBuild::of(&ImageBuildParams {
        name: Some(name.to_owned()),
        from_image: Some("base".to_owned()),
        script: Some("true".to_owned()),
        ..ImageBuildParams::default()
    });
    let builder = Arc::new(FakeBuilder(Failure::new(code, "that went wrong")));
    let unseen = Unseen::new().unwrap();
    let made = house
        .app
        .shelf
        .build_image(wanted.unwrap(), builder, &unseen);
    made.await.unwrap_err()
}

#[tokio::test]
async fn a_build_that_fails_leaves_its_log_and_a_cancelled_one_nothing() {
    let house = House::with_own_artifacts().await;
    let body = json!({"name": "base", "rootfs_path": root_file(house.place.path())});
    assert_eq!(register(&house, &body).await.status, 200);
    let log = house.app.paths.images().join("made.build.log");
    for (code, lines) in [(Code::BuildFailed, "\nmaking made"), (Code::NoSpace, "")] {
        let failure = derive(&house, "made", code).await;
        assert_eq!(failure.code, code);
        let expected = format!("cannot build \"made\": that went wrong{lines}");
        assert_eq!(failure.sentence(), expected);
        assert!(failure.hint.unwrap().contains(log.to_str().unwrap()));
        assert_eq!(kept(&house), std::slice::from_ref(&log));
        assert_eq!(fs::read_to_string(&log).unwrap(), "making made\n");
    }
    assert_eq!(
        derive(&house, "made", Code::Cancelled).await.code,
        Code::Cancelled
    );
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
    assert_eq!(
        derive(&house, "base", Code::BuildFailed).await.code,
        Code::AlreadyExists
    );
}

#[tokio::test]
async fn an_image_that_is_promoted_while_it_is_deleted_leaves_nothing() {
    let house = House::with_own_artifacts().await;
    let body = json!({"name": "mine", "rootfs_path": root_file(house.place.path())});
    let image = register(&house, &body).await.json()["image"].clone();
    let shelf = &house.app.shelf;
    // It has asked what the image is, and is not answered before we are: it has no claim yet.
    let (answer, answered) = std::sync::mpsc::channel::<()>();
    let mut held = std::pin::pin!(house.app.vms.house().store.read(move |_| {
        let _ = answered.recv();
        Ok(())
    }));
    let mut deleting = std::pin::pin!(shelf.delete_image("mine"));
    assert!(futures_util::poll!(&mut held).is_pending());
    assert!(futures_util::poll!(&mut deleting).is_pending());
    drop(answer);
    let id = image["id"].as_str().unwrap();
    let promoted = shelf.promote(id, &Unseen::new().unwrap()).await.unwrap();
    assert!(promoted.managed);
    assert_eq!(kept(&house).len(), 1);
    let gone = deleting.await.unwrap();
    assert_eq!(gone.id, id);
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
}
