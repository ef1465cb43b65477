//! OCI layouts.

use std::fs;
use std::process::Command;

use banger_registry::{Count, RegistryError, Step};
use serde_json::json;

use crate::room::{
    Layout, Room, assert_layers, attestation, digest, missing, noise, on, run, tagged,
};

#[test]
fn the_only_image_needs_no_tag_and_several_do() {
    let room = Room::new();
    let layout = Layout::new(&room.path("app"));
    let first = layout.image("amd64", &[b"one", b"two", b"one"]);
    layout.index(&[attestation(first.clone()), first.clone()]);
    let pulled = room.pull("oci-layout:app").expect("an image");
    assert_layers(&pulled, &[b"one", b"two", b"one"]);
    assert_eq!(pulled.manifest.digest.to_string(), first["digest"]);

    let second = layout.image("amd64", &[b"three"]);
    layout.index(&[tagged(first.clone(), "1"), tagged(second, "team/app:2")]);
    match room.pull("oci-layout:app") {
        Err(error @ RegistryError::Ambiguous { .. }) => {
            let hint = error.hint().expect("a hint");
            assert!(
                hint.ends_with("where TAG is one of 1, team/app:2"),
                "{hint}"
            );
        }
        other => panic!("{other:?}"),
    }
    for tag in ["2", "team/app:2", "docker.io/team/app:2"] {
        let pulled = room.pull(&format!("oci-layout:app:{tag}"));
        assert_layers(&pulled.expect(tag), &[b"three"]);
    }
    match room.pull("oci-layout:app:3") {
        Err(RegistryError::NoTag { tag, offered, .. }) => {
            assert_eq!((tag.as_str(), offered.len()), ("3", 2));
        }
        other => panic!("{other:?}"),
    }

    // Two names of one image are no choice.
    layout.index(&[tagged(first.clone(), "1"), tagged(first, "latest")]);
    assert!(room.pull("oci-layout:app").is_ok());
}

#[test]
fn the_platform_is_chosen_in_the_index_and_below_it() {
    let mut room = Room::new();
    let layout = Layout::new(&room.path("app"));
    let (arm, amd) = (
        layout.image("arm64", &[b"arm"]),
        layout.image("amd64", &[b"amd"]),
    );
    let entries = [
        attestation(arm.clone()),
        on(arm, "arm64"),
        on(amd.clone(), "amd64"),
    ];
    let nested = layout.nested(&entries);
    for index in [&entries[..], &[tagged(nested.clone(), "1")]] {
        layout.index(index);
        for (architecture, layer) in [("amd64", b"amd"), ("arm64", b"arm")] {
            room.architecture = architecture;
            let pulled = room.pull("oci-layout:app").expect(architecture);
            assert_layers(&pulled, &[layer]);
        }
        room.architecture = "riscv64";
        let none = room.pull("oci-layout:app");
        assert!(
            matches!(none, Err(RegistryError::Unsupported { .. })),
            "{none:?}"
        );
    }
    // Without an index only the config tells.
    layout.index(&[amd]);
    let none = room.pull("oci-layout:app");
    assert!(
        matches!(none, Err(RegistryError::Unsupported { .. })),
        "{none:?}"
    );

    room.architecture = "amd64";
    layout.index(&[layout.nested(&[nested])]);
    let deep = room.pull("oci-layout:app");
    assert!(
        matches!(deep, Err(RegistryError::Unsupported { .. })),
        "{deep:?}"
    );
}

#[test]
fn what_the_cache_has_is_not_read_again_and_bytes_are_told() {
    let room = Room::new();
    let layout = Layout::new(&room.path("app"));
    let large = noise(700_000);
    layout.index(&[layout.image("amd64", &[&large, b"small"])]);
    let told = std::sync::Mutex::new(Vec::new());
    let tell = |step: Step| {
        let Count { done, total } = step.image;
        told.lock().expect("the list").push((done, total));
    };
    let pulled = room.pull_with(
        "oci-layout:app",
        &tell,
        &tokio_util::sync::CancellationToken::new(),
    );
    assert_layers(&pulled.expect("an image"), &[&large, b"small"]);
    let told = told.into_inner().expect("the list");
    let config = told.last().expect("a last").1 - 700_005;
    let all = 700_005 + config;
    assert_eq!(told.last(), Some(&(all, all)));
    assert!(told.is_sorted(), "{told:?}");
    assert!(told.len() > 5, "{told:?}");

    fs::remove_file(layout.blob_path(&large)).expect("a blob");
    assert!(room.pull("oci-layout:app").is_ok());
    room.empty_cache();
    match room.pull("oci-layout:app") {
        Err(RegistryError::BadArchive { why, .. }) => {
            assert!(why.contains(&digest(&large)), "{why}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_layout_that_umoci_made_is_read() {
    if let Some(program) = missing(&["umoci", "skopeo"]) {
        println!("skipped: {program} is not installed");
        return;
    }
    let room = Room::new();
    let umoci = |words: &[&str]| {
        run(Command::new("umoci")
            .args(words)
            .current_dir(room.dir.path()));
    };
    umoci(&["init", "--layout", "app"]);
    umoci(&["new", "--image", "app:1"]);
    room.write("file", b"content");
    umoci(&["insert", "--rootless", "--image", "app:1", "file", "/file"]);
    umoci(&[
        "config",
        "--image",
        "app:1",
        "--config.cmd",
        "sh",
        "--architecture",
        "amd64",
    ]);
    let pulled = room.pull("oci-layout:app:1").expect("an image");
    let digest = run(Command::new("skopeo")
        .args(["inspect", "--format", "{{.Digest}}", "oci:app:1"])
        .current_dir(room.dir.path()));
    let digest = String::from_utf8(digest).expect("text");
    assert_eq!(pulled.manifest.digest.to_string(), digest.trim());
    assert_eq!(pulled.layers.len(), 1);
    let config: serde_json::Value = serde_json::from_slice(&pulled.config_json).expect("JSON");
    assert_eq!(config["config"]["Cmd"], json!(["sh"]));
}
