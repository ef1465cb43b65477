//! Docker's archives.

use std::fs;
use std::process::Command;

use banger_registry::{Count, Digest, RegistryError, Step};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::room::{
    Layout, Room, Tar, archive, assert_layers, config, gzip, hex, members, missing, noise, run,
    tagged, zst,
};

#[test]
fn an_archive_is_read_packed_or_not_and_its_config_names_it() {
    let room = Room::new();
    let large = noise(700_000);
    let layers: [&[u8]; 3] = [&large, b"small", b"small"];
    // The second of two equal layers has no member of its own.
    let config = config("amd64", &layers);
    let (tar, mut names) = members(&layers[..2]);
    names.push(names[1].clone());
    let manifest = json!([{"Config": "config", "RepoTags": ["team/app:1"], "Layers": names}]);
    let tar = tar
        .file("config", &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end();
    for (name, bytes) in [
        ("plain.tar", tar.clone()),
        ("gzip.tar.gz", gzip(&tar)),
        (
            "two.tgz",
            [gzip(&tar[..100_000]), gzip(&tar[100_000..])].concat(),
        ),
        ("zstd.tar.zst", zst(&tar)),
        ("open.tar", tar[..tar.len() - 1024].to_vec()),
    ] {
        room.write(name, &bytes);
        room.empty_cache();
        let told = std::sync::Mutex::new(Vec::new());
        let tell = |step: Step| {
            let Count { done, total } = step.image;
            told.lock().expect("the list").push((done, total));
        };
        let spelled = format!("docker-archive:{name}");
        let pulled = room.pull_with(&spelled, &tell, &CancellationToken::new());
        let pulled = pulled.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_layers(&pulled, &layers);
        assert_eq!(pulled.config_json, config);
        assert_eq!(pulled.manifest.digest, Digest::of(&config));
        let told = told.into_inner().expect("the list");
        let (done, total) = told.last().expect("progress");
        assert_eq!(done, total, "{name}");
        assert!(
            told.iter().all(|(done, total)| done <= total),
            "{name}: {told:?}"
        );
        assert!(room.pull(&spelled).is_ok(), "{name} again");
    }
}

#[test]
fn layers_may_be_packed_and_may_be_links_to_others() {
    let room = Room::new();
    let layers: [&[u8]; 5] = [b"plain", b"gzip", b"zstd", b"plain", b"plain"];
    let config = config("amd64", &layers);
    let manifest = json!([{
        "Config": "blobs/sha256/".to_owned() + &hex(&config),
        "Layers": ["./a/layer.tar", "b.tar.gz", "blobs/c", "d/layer.tar", "e/layer.tar"],
    }]);
    let tar = Tar::default()
        .directory("./")
        .file("manifest.json", manifest.to_string().as_bytes())
        .link("d/layer.tar", "../e/../a/layer.tar")
        .file("./a/layer.tar", b"plain")
        .hard_link("e/layer.tar", "d/layer.tar")
        .file("blobs/c", &zst(b"zstd"))
        .file("b.tar.gz", &gzip(b"gzip"))
        .file(&format!("blobs/sha256/{}", hex(&config)), &config)
        .end();
    for bytes in [tar.clone(), gzip(&tar)] {
        room.write("x.tar", &bytes);
        room.empty_cache();
        assert_layers(
            &room.pull("docker-archive:x.tar").expect("an image"),
            &layers,
        );
    }
}

#[test]
fn one_of_several_images_is_chosen_by_its_tag() {
    let room = Room::new();
    let mut tar = Tar::default();
    let mut listed = Vec::new();
    for (tags, layer) in [
        (json!(["team/app:1", "team/app:latest"]), "one"),
        (json!(["docker.io/library/other:1"]), "two"),
        (Value::Null, "three"),
    ] {
        let config = config("amd64", &[layer.as_bytes()]);
        let name = format!("{}.json", hex(&config));
        tar = tar.file(&name, &config).file(layer, layer.as_bytes());
        listed.push(json!({"Config": name, "RepoTags": tags, "Layers": [layer]}));
    }
    let listed = Value::Array(listed);
    room.write(
        "x.tar",
        &tar.file("manifest.json", listed.to_string().as_bytes())
            .end(),
    );
    for (tag, layer) in [
        ("team/app:1", "one"),
        ("team/app", "one"),
        ("latest", "one"),
        ("other:1", "two"),
        ("docker.io/library/other:1", "two"),
    ] {
        let pulled = room.pull(&format!("docker-archive:x.tar:{tag}"));
        assert_layers(&pulled.expect(tag), &[layer.as_bytes()]);
    }
    for spelled in ["docker-archive:x.tar", "docker-archive:x.tar:1"] {
        match room.pull(spelled) {
            Err(error @ RegistryError::Ambiguous { .. }) => {
                let hint = error.hint().expect("a hint");
                assert!(
                    hint.contains("team/app:1, team/app:latest, docker.io"),
                    "{hint}"
                );
            }
            other => panic!("{spelled}: {other:?}"),
        }
    }
    let none = room.pull("docker-archive:x.tar:app:2");
    assert!(matches!(none, Err(RegistryError::NoTag { .. })), "{none:?}");
}

#[test]
fn images_without_tags_are_told_apart_by_nobody() {
    let room = Room::new();
    let listed = json!([{"Config": "a", "Layers": ["l"]}, {"Config": "b", "Layers": ["l"]}]);
    let listed = listed.to_string();
    let tar = Tar::default().file("manifest.json", listed.as_bytes());
    room.write("x.tar", &tar.end());
    for (spelled, hint) in [
        (
            "docker-archive:x.tar",
            "give each image a tag where it was made",
        ),
        (
            "docker-archive:x.tar:1",
            &room.path("x.tar").display().to_string(),
        ),
    ] {
        let error = room.pull(spelled).expect_err("none is meant");
        let told = error.hint().expect("a hint");
        assert!(told.ends_with(hint), "{spelled}: {told}");
    }
}

#[test]
fn a_pull_that_is_cancelled_anywhere_leaves_whole_blobs_only() {
    let room = Room::new();
    let layers = [noise(900_000), noise(600_000)];
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let tar = archive("a:1", &layers).end();
    room.write("x.tar", &tar);
    room.write("x.tar.gz", &gzip(&tar));
    let layout = Layout::new(&room.path("layout"));
    layout.index(&[tagged(layout.image("amd64", &layers), "1")]);
    for spelled in [
        "docker-archive:x.tar",
        "docker-archive:x.tar.gz",
        "oci-layout:layout",
    ] {
        let all = std::sync::atomic::AtomicU64::new(0);
        room.empty_cache();
        let count = |step: Step| all.store(step.image.done, std::sync::atomic::Ordering::SeqCst);
        let whole = room.pull_with(spelled, &count, &CancellationToken::new());
        assert_layers(&whole.expect("an image"), &layers);
        let all = all.into_inner();
        for nth in 0..20 {
            room.empty_cache();
            let cancel = CancellationToken::new();
            let stop = |step: Step| {
                if step.image.done >= all * nth / 20 {
                    cancel.cancel();
                }
            };
            let ended = room.pull_with(spelled, &stop, &cancel);
            assert!(
                matches!(ended, Err(RegistryError::Cancelled)),
                "{spelled} {nth}: {ended:?}"
            );
        }
        assert_layers(&room.pull(spelled).expect("an image"), &layers);
    }
}

#[test]
fn an_archive_that_skopeo_made_is_the_image_it_was_made_from() {
    if let Some(program) = missing(&["skopeo", "gzip", "tar"]) {
        println!("skipped: {program} is not installed");
        return;
    }
    let room = Room::new();
    let mut tars = Vec::new();
    for (name, size) in [("large", 3_000_000), ("small", 10)] {
        let tree = room.path(name);
        fs::create_dir_all(&tree).expect("a directory");
        fs::write(tree.join(name), noise(size)).expect("a file");
        tars.push(run(Command::new("tar").arg("-cC").arg(&tree).arg(".")));
    }
    let layers: Vec<&[u8]> = tars.iter().map(Vec::as_slice).collect();
    let layout = Layout::new(&room.path("layout"));
    // The config names the layers unpacked, the manifest packed.
    let configured = config("amd64", &layers);
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let packed: Vec<_> = layers
        .iter()
        .map(|layer| layout.blob(kind, &gzip(layer)))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "layers": packed,
        "config": layout.blob("application/vnd.oci.image.config.v1+json", &configured),
    });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let image = layout.blob(kind, manifest.to_string().as_bytes());
    layout.index(&[tagged(image, "1")]);
    for (to, tag) in [("one.tar", ":team/app:1"), ("two.tar", "")] {
        let _ = run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "oci:layout:1"])
            .arg(format!("docker-archive:{to}{tag}"))
            .current_dir(room.dir.path()));
    }
    let _ = run(Command::new("gzip").arg("-k").arg(room.path("one.tar")));
    for spelled in [
        "one.tar",
        "one.tar:1",
        "one.tar:team/app:1",
        "two.tar",
        "one.tar.gz",
    ] {
        room.empty_cache();
        let pulled = room.pull(&format!("docker-archive:{spelled}"));
        let pulled = pulled.unwrap_or_else(|error| panic!("{spelled}: {error}"));
        assert_layers(&pulled, &layers);
        let config: Value = serde_json::from_slice(&pulled.config_json).expect("JSON");
        assert_eq!(config["config"]["Cmd"], json!(["sh"]));
    }
}
