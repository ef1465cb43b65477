//! Images taken from files of the host.

use std::fs;
use std::path::{Path, PathBuf};

use banger_registry::Digest;
use serde_json::{Value, json};

use super::House;

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
    let layer = blob("application/vnd.oci.image.layer.v1.tar", &[0; 1024]);
    let architecture = crate::artifact::host_arch();
    let config = json!({"architecture": architecture, "os": "linux", "config": {"User": "bob"}});
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
