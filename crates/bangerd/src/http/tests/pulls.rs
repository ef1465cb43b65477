//! Images taken from files of the host, with kernels of their own.

use std::fs;
use std::path::{Path, PathBuf};

use banger_registry::Digest;
use serde_json::{Value, json};

use super::House;
use super::artifacts::{VERSION, kernel_files};
use crate::ports::Artifacts;

/// An OCI layout with one image, whose only layer is an empty archive.
pub(super) fn layout(place: &Path) -> PathBuf {
    let dir = place.join("app");
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let content = [0; 1024];
    let layer = blob("application/vnd.oci.image.layer.v1.tar", &content);
    let architecture = crate::artifact::host_arch();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"User": "bob"},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&content).to_string()]},
    });
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut entry = blob(kind, manifest.to_string().as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    dir
}

/// Asks for an image and waits for the operation's end.
pub(super) async fn pull(house: &House, body: Value) -> Value {
    let answer = house
        .ask("POST", "/v1/images/pull?wait=30s", &body.to_string())
        .await;
    assert_eq!(answer.status, 202, "{:?}", answer.body);
    let operation = answer.json()["operation"].clone();
    assert_eq!(operation["done"], true, "{operation}");
    operation
}

fn kept(house: &House) -> usize {
    fs::read_dir(house.app.paths.images()).unwrap().count()
}

#[tokio::test]
async fn an_image_of_a_layout_is_called_by_its_directory_and_tag() {
    let house = House::new().await;
    let dir = layout(house.place.path());
    for (reference, name) in [
        (format!("oci-layout:{}", dir.display()), "app"),
        (format!("oci-layout:{}:1", dir.display()), "app-1"),
    ] {
        let done = pull(&house, json!({"ref": reference})).await;
        assert_eq!(done["success"], true, "{done}");
        let image = &house.get(&format!("/v1/images/{name}")).await["image"];
        assert_eq!(image["name"], name);
        assert_eq!(image["oci"]["reference"], reference.as_str());
        assert_eq!(image["oci"]["user"], "bob");
        let again = json!({"ref": reference}).to_string();
        let again = house.ask("POST", "/v1/images/pull", &again).await;
        assert_eq!(again.code(), "already_exists");
    }
    assert_eq!(kept(&house), 2);
}

#[tokio::test]
async fn what_is_no_image_in_files_is_told_and_leaves_nothing() {
    let house = House::new().await;
    let place = house.place.path().display().to_string();
    let dir = layout(house.place.path());
    for (reference, code) in [
        ("oci-layout:", "bad_reference"),
        ("docker-archive:/x:", "bad_reference"),
        ("oci-layout:app", "bad_path"),
        ("docker-archive:app.tar:1", "bad_path"),
        ("docker-archive:/", "bad_name"),
    ] {
        let body = json!({"ref": reference}).to_string();
        let answer = house.ask("POST", "/v1/images/pull", &body).await;
        assert_eq!(answer.code(), code, "{reference}");
    }
    fs::write(house.place.path().join("text"), "no archive").unwrap();
    for (reference, code) in [
        (format!("oci-layout:{place}/none"), "bad_path"),
        (format!("oci-layout:{place}/text"), "bad_path"),
        (format!("oci-layout:{place}"), "bad_archive"),
        (format!("oci-layout:{place}/app:2"), "not_found"),
        (format!("docker-archive:{place}/app"), "bad_path"),
        (format!("docker-archive:{place}/text"), "bad_archive"),
    ] {
        let done = pull(&house, json!({"ref": reference, "name": "x"})).await;
        assert_eq!(done["error_code"], code, "{done}");
    }
    let blobs = fs::read_dir(dir.join("blobs/sha256")).unwrap();
    for blob in blobs {
        let path = blob.unwrap().path();
        let length = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
    }
    let reference = format!("oci-layout:{place}/app");
    let done = pull(&house, json!({"ref": reference})).await;
    assert_eq!(done["error_code"], "verify_failed", "{done}");
    assert_eq!(kept(&house), 0);
    assert_eq!(house.get("/v1/images").await["images"], json!([]));
}

#[tokio::test]
async fn an_image_that_is_pulled_keeps_the_kernel_it_was_given() {
    let house = House::new().await;
    let place = house.place.path();
    let (kernel, modules) = kernel_files(place);
    let initrd = place.join("initrd");
    fs::write(&initrd, "an initrd").unwrap();
    let reference = format!("oci-layout:{}", layout(place).display());
    let body = json!({"ref": reference, "kernel_path": kernel, "initrd_path": initrd,
        "modules_dir": modules});
    let done = pull(&house, body).await;
    assert_eq!(done["success"], true, "{done}");
    for given in [&kernel, &initrd] {
        fs::remove_file(given).unwrap();
    }
    let image = &house.get("/v1/images/app").await["image"];
    let dir = Path::new(image["artifact_dir"].as_str().unwrap()).join("kernel");
    for (field, file) in [
        ("kernel_path", "vmlinux"),
        ("initrd_path", "initrd.img"),
        ("modules_dir", "modules.ext4"),
    ] {
        assert_eq!(image[field], json!(dir.join(file)), "{image}");
        assert!(dir.join(file).is_file(), "{file}");
    }
    let id = image["id"].as_str().unwrap();
    let boots = house.app.shelf.image_for_start(id).await.unwrap();
    let own = boots.own_kernel.unwrap();
    assert_eq!((own.dir, own.version.as_str()), (dir, VERSION));
    assert_eq!(kept(&house), 1);
    // As after a start: what has a row stays.
    house.app.shelf.recover().await.unwrap();
    assert_eq!(kept(&house), 1);
    let answer = house.ask("DELETE", "/v1/images/app", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(kept(&house), 0);
}

#[tokio::test]
async fn a_kernel_that_cannot_be_used_leaves_no_pulled_image() {
    let house = House::new().await;
    let place = house.place.path();
    let (kernel, modules) = kernel_files(place);
    let text = place.join("text");
    fs::write(&text, "no kernel at all").unwrap();
    let reference = format!("oci-layout:{}", layout(place).display());
    for (boot, code) in [
        (json!({"initrd_path": text}), "bad_request"),
        (json!({"modules_dir": modules}), "bad_request"),
        (
            json!({"kernel_path": kernel, "kernel_ref": "x"}),
            "bad_request",
        ),
        (json!({"kernel_path": "vmlinux"}), "bad_path"),
        (json!({"kernel_path": place.join("none")}), "bad_path"),
        (json!({"kernel_path": place}), "bad_path"),
        (
            json!({"kernel_path": kernel, "modules_dir": text}),
            "bad_path",
        ),
    ] {
        let mut body = boot;
        body["ref"] = reference.as_str().into();
        let answer = house
            .ask("POST", "/v1/images/pull", &body.to_string())
            .await;
        assert_eq!(answer.code(), code, "{body}");
        let body = body.to_string().replace("\"ref\"", "\"name\"");
        let body = body
            .replace(&reference, "built")
            .replace('}', ",\"suite\":\"bookworm\"}");
        if !body.contains("kernel_ref") {
            let answer = house.ask("POST", "/v1/images/build", &body).await;
            assert_eq!(answer.code(), code, "{body}");
        }
    }
    let done = pull(&house, json!({"ref": reference, "kernel_path": text})).await;
    assert_eq!(done["error_code"], "bad_path", "{done}");
    assert_eq!(kept(&house), 0);
    assert_eq!(house.get("/v1/images").await["images"], json!([]));
}

#[tokio::test]
async fn a_layer_that_the_disk_spoilt_in_the_cache_is_read_anew() {
    let house = House::new().await;
    let reference = format!("oci-layout:{}", layout(house.place.path()).display());
    let done = pull(&house, json!({"ref": reference, "name": "before"})).await;
    assert_eq!(done["success"], true, "{done}");
    let cache = house.app.shelf.layers().unwrap();
    let layer = Digest::of(&[0; 1024]);
    assert!(cache.size(layer).unwrap().is_some());
    // Of the same length: only who reads it finds out.
    fs::write(cache.path(layer), [b'x'; 1024]).unwrap();
    let done = pull(&house, json!({"ref": reference, "name": "after"})).await;
    assert_eq!(done["success"], true, "{done}");
    assert_eq!(fs::read(cache.path(layer)).unwrap(), [0; 1024]);
    assert_eq!(kept(&house), 2);
}

#[tokio::test]
async fn a_taken_name_is_told_before_all_else() {
    let house = House::new().await;
    let reference = format!("oci-layout:{}", layout(house.place.path()).display());
    let done = pull(&house, json!({"ref": reference})).await;
    assert_eq!(done["success"], true, "{done}");
    let root = house.place.path().join("none");
    for (path, body) in [
        (
            "/v1/images/pull",
            json!({"ref": reference, "kernel_ref": "nosuch"}),
        ),
        (
            "/v1/images/pull",
            json!({"ref": reference, "kernel_path": root}),
        ),
        (
            "/v1/images/pull",
            json!({"ref": "debian-trixie", "name": "app", "kernel_ref": "nosuch"}),
        ),
        (
            "/v1/images/build",
            json!({"name": "app", "suite": "bookworm", "kernel_path": root}),
        ),
        (
            "/v1/images/register",
            json!({"name": "app", "rootfs_path": root, "kernel_ref": "nosuch"}),
        ),
    ] {
        let answer = house.ask("POST", path, &body.to_string()).await;
        assert_eq!(answer.code(), "already_exists", "{path} {body}");
    }
    // And of a free one the kernel that is not there.
    let body = json!({"ref": "debian-trixie", "kernel_ref": "nosuch"}).to_string();
    let answer = house.ask("POST", "/v1/images/pull", &body).await;
    assert_eq!(answer.code(), "not_found");
}

#[tokio::test]
async fn a_kernel_that_an_image_names_stays_as_long_as_the_image() {
    let house = House::new().await;
    let place = house.place.path();
    let (kernel, modules) = kernel_files(place);
    let from = place.join("kernel");
    fs::create_dir(&from).unwrap();
    let metadata = json!({"kernel": "vmlinux", "modules": "modules"}).to_string();
    fs::write(from.join("metadata.json"), metadata).unwrap();
    fs::rename(kernel, from.join("vmlinux")).unwrap();
    fs::rename(modules, from.join("modules")).unwrap();
    // It does not say what it has built in.
    fs::remove_file(from.join("modules/modules.builtin")).unwrap();
    let body = json!({"name": "mine", "from_dir": from}).to_string();
    let answer = house.ask("POST", "/v1/kernels/import", &body).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let entry = &answer.json()["entry"];
    assert_eq!(entry["kernel_version"], VERSION);
    let warnings = entry["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{entry}");
    assert_eq!(&house.get("/v1/kernels/mine").await["entry"], entry);

    let reference = format!("oci-layout:{}", layout(place).display());
    let done = pull(&house, json!({"ref": reference, "kernel_ref": "mine"})).await;
    assert_eq!(done["success"], true, "{done}");
    let answer = house.ask("DELETE", "/v1/kernels/mine", "").await;
    assert_eq!(answer.code(), "in_use");
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("app"), "{message}");
    assert_eq!(house.ask("DELETE", "/v1/images/app", "").await.status, 200);
    let answer = house.ask("DELETE", "/v1/kernels/mine", "").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
}
