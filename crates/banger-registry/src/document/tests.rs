//! Documents of every kind that registries hold, and some that they should not.

use serde_json::{Value, json};

use super::*;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn amd64() -> Platform {
    Platform {
        architecture: "amd64".to_owned(),
        variant: None,
    }
}

fn arm64() -> Platform {
    Platform {
        architecture: "arm64".to_owned(),
        variant: Some("v8".to_owned()),
    }
}

fn digest(of: &str) -> String {
    Digest::of(of.as_bytes()).to_string()
}

fn entry(name: &str, os: &str, architecture: &str, variant: Option<&str>) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(name), "size": 7,
        "platform": {"os": os, "architecture": architecture, "variant": variant},
    })
}

fn manifest(config: &str, layers: &[&str]) -> Value {
    let layers: Vec<_> = layers
        .iter()
        .map(|kind| json!({"mediaType": kind, "digest": digest("l"), "size": 9}))
        .collect();
    json!({
        "schemaVersion": 2,
        "config": {"mediaType": config, "digest": digest("c"), "size": 5},
        "layers": layers,
    })
}

fn read(value: &Value, platform: &Platform) -> Result<Document, RegistryError> {
    let bytes = value.to_string();
    parse(bytes.as_bytes(), "x/y:1", platform, &Limits::default())
}

fn chosen(entries: &[Value], platform: &Platform) -> Result<Digest, String> {
    match read(&json!({"schemaVersion": 2, "manifests": entries}), platform) {
        Ok(Document::Elsewhere(descriptor)) => Ok(descriptor.digest),
        Ok(Document::Image(_)) => panic!("an index is no image"),
        Err(RegistryError::Unsupported { why, .. }) => Err(why),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_entry_for_the_platform_is_found_wherever_it_stands() {
    let mut note = entry("note", "linux", "amd64", None);
    note["annotations"] = json!({ATTESTATION: "attestation-manifest"});
    let entries = [
        entry("u", "unknown", "unknown", None),
        note,
        entry("w", "windows", "amd64", None),
        entry("7", "linux", "arm", Some("v7")),
        entry("v3", "linux", "amd64", Some("v3")),
        entry("9", "linux", "arm64", Some("v9")),
        entry("8", "linux", "arm64", Some("v8")),
        entry("a", "linux", "amd64", None),
        entry("second", "linux", "amd64", None),
    ];
    assert_eq!(chosen(&entries, &amd64()), Ok(Digest::of(b"a")));
    assert_eq!(chosen(&entries, &arm64()), Ok(Digest::of(b"8")));
    let bare = [entry("bare", "linux", "arm64", None)];
    assert_eq!(chosen(&bare, &arm64()), Ok(Digest::of(b"bare")));
    let missing = chosen(&entries[..4], &amd64()).expect_err("none fits");
    assert_eq!(
        missing,
        "it is for windows/amd64, linux/arm/v7, not linux/amd64"
    );
    let notes = chosen(&entries[..2], &amd64()).expect_err("none is an image");
    assert_eq!(notes, "it is for no platform");
}

#[test]
fn docker_and_oci_images_are_read() {
    for (config, layer) in [
        (CONFIGS[0], LAYERS[0]),
        (CONFIGS[0], LAYERS[2]),
        (CONFIGS[1], LAYERS[4]),
    ] {
        let value = manifest(config, &[layer, LAYER]);
        let Ok(Document::Image(image)) = read(&value, &amd64()) else {
            panic!("{config} is an image");
        };
        assert_eq!(image.digest, Digest::of(value.to_string().as_bytes()));
        assert_eq!(image.config.digest, Digest::of(b"c"));
        assert_eq!(image.layers.len(), 2);
        assert_eq!(image.layers[0].media_type, layer);
    }
}

#[test]
fn what_is_no_image_is_refused_with_its_kind() {
    let many = vec![LAYER; Limits::default().layers + 1];
    let mut huge = manifest(CONFIGS[0], &[LAYER, LAYER]);
    huge["layers"][0]["size"] = json!(u64::MAX);
    let mut fat = manifest(CONFIGS[0], &[LAYER]);
    fat["config"]["size"] = json!((4 << 20) + 1);
    let mut sha512 = manifest(CONFIGS[0], &[LAYER]);
    sha512["layers"][0]["digest"] = json!("sha512:00");
    for (value, part) in [
        (json!({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
        (json!({"schemaVersion": 3}), "schema 3"),
        (json!({"schemaVersion": 2}), "no config"),
        (
            manifest("application/vnd.cncf.helm.config.v1+json", &[LAYER]),
            "helm",
        ),
        (
            manifest(CONFIGS[0], &["application/wasm"]),
            "application/wasm",
        ),
        (manifest(CONFIGS[0], &[]), "no layers"),
        (manifest(CONFIGS[0], &many), "513 layers"),
        (huge, "18446744073709551615 bytes"),
        (fat, "4194305 bytes"),
        (sha512, "sha512:00"),
    ] {
        match read(&value, &amd64()) {
            Err(RegistryError::Unsupported { why, .. }) => assert!(why.contains(part), "{why}"),
            other => panic!("{part}: {other:?}"),
        }
    }
}

#[test]
fn a_document_of_two_shapes_or_none_is_damaged() {
    let mut both = manifest(CONFIGS[0], &[LAYER]);
    both["manifests"] = json!([entry("a", "linux", "amd64", None)]);
    let mut negative = manifest(CONFIGS[0], &[LAYER]);
    negative["layers"][0]["size"] = json!(-1);
    for value in [both, negative, json!([]), json!("x")] {
        let read = read(&value, &amd64());
        assert!(
            matches!(read, Err(RegistryError::Damaged { .. })),
            "{read:?}"
        );
    }
}

#[test]
fn a_config_for_another_machine_is_refused() {
    let check = |text: &str| check_config(text.as_bytes(), "x/y:1", &amd64());
    check(r#"{"os":"linux","architecture":"amd64","config":{}}"#).expect("ours");
    check(r#"{"os":"linux","architecture":"amd64","variant":"v1"}"#).expect("ours");
    for text in [
        r#"{"os":"linux","architecture":"arm64"}"#,
        r#"{"os":"windows","architecture":"amd64"}"#,
        "{}",
    ] {
        let refused = check(text);
        assert!(
            matches!(refused, Err(RegistryError::Unsupported { .. })),
            "{text}: {refused:?}"
        );
    }
    assert!(matches!(check("no"), Err(RegistryError::Damaged { .. })));
}
