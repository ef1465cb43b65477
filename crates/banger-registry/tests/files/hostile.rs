//! Files that lie, lead elsewhere, are too much, or are no files.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;

use banger_registry::{RegistryError, Step, Weight};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::room::{
    Layout, Room, Tar, archive, assert_layers, config, digest, gzip, hex, noise, tagged, zst,
};

/// What kind of error this is, and what it says with its causes.
fn told(error: &RegistryError) -> (&'static str, String) {
    let kind = match error {
        RegistryError::BadPath { .. } => "path",
        RegistryError::BadArchive { .. } => "archive",
        RegistryError::Damaged { .. } => "damaged",
        RegistryError::Unsupported { .. } => "unsupported",
        _ => "other",
    };
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    (kind, text)
}

fn refused(room: &Room, spelled: &str) -> (&'static str, String) {
    match room.pull(spelled) {
        Err(error) => told(&error),
        Ok(pulled) => panic!("{spelled}: {pulled:?}"),
    }
}

/// Holds when each archive is refused, packed and not, and nothing stays of it.
fn assert_refused(room: &Room, cases: &[(&str, Vec<u8>, &str, &str)]) {
    for (name, bytes, kind, part) in cases {
        for (how, bytes) in [("plain", bytes.clone()), ("packed", gzip(bytes))] {
            room.write("x.tar", &bytes);
            room.empty_cache();
            let (found, text) = refused(room, "docker-archive:x.tar");
            assert_eq!(found, *kind, "{name} {how}: {text}");
            assert!(text.contains(part), "{name} {how}: {text}");
            let layers = room.cache.list().expect("a list");
            // A config that is right may stay; docker's is one of these.
            assert!(
                layers.iter().all(|blob| blob.size < 1000),
                "{name} {how}: {layers:?}"
            );
        }
    }
}

fn listing(config: &str, layers: &[&str]) -> Vec<u8> {
    let listed = json!([{"Config": config, "RepoTags": ["a:1"], "Layers": layers}]);
    listed.to_string().into_bytes()
}

#[test]
fn archives_that_are_not_what_they_should_be_are_refused() {
    let room = Room::new();
    let layer = noise(5000);
    let good = || archive("a:1", &[&layer]);
    let bare = |manifest: &[u8]| Tar::default().file("manifest.json", manifest);
    let config = config("amd64", &[&layer]);
    let with = |config: &[u8]| {
        let name = format!("{}.json", hex(config));
        bare(&listing(&name, &["l"]))
            .file(&name, config)
            .file("l", &layer)
    };
    let many: Vec<String> = (0..513).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let no_diffs = br#"{"architecture":"amd64","os":"linux"}"#;
    let odd_diffs = br#"{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["md5:0"]}}"#;
    let none = br#"{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":[]}}"#;
    let long = "a/".repeat(40);
    let cases = [
        (
            "traversal",
            good().file("../../x", b"").end(),
            "archive",
            "../../x leads out",
        ),
        (
            "inner traversal",
            good().file("a/../../x", b"").end(),
            "archive",
            "leads out",
        ),
        (
            "absolute",
            good().file("/etc/x", b"").end(),
            "archive",
            "/etc/x leads out",
        ),
        (
            "link out",
            good().link("a/l", "../../x").end(),
            "archive",
            "a/l leads out",
        ),
        (
            "absolute link",
            good().link("l", "/etc/passwd").end(),
            "archive",
            "l leads out",
        ),
        (
            "hard link out",
            good().hard_link("l", "../x").end(),
            "archive",
            "l leads out",
        ),
        (
            "link to nothing",
            good().link("l", "").end(),
            "archive",
            "without a target",
        ),
        (
            "device",
            good().member("dev", b'3', "", 0, b"").end(),
            "archive",
            "neither file",
        ),
        (
            "pipe",
            good().member("pipe", b'6', "", 0, b"").end(),
            "archive",
            "neither file",
        ),
        (
            "holes",
            good().member("holes", b'S', "", 0, b"").end(),
            "archive",
            "holes",
        ),
        (
            "two manifests",
            good().file("manifest.json", b"[]").end(),
            "archive",
            "twice",
        ),
        (
            "two spellings",
            good().file("./manifest.json", b"[]").end(),
            "archive",
            "twice",
        ),
        (
            "two layers of one name",
            good()
                .file(&format!("{}/layer.tar", hex(&layer)), b"")
                .end(),
            "archive",
            "twice",
        ),
        (
            "no manifest",
            Tar::default().file("x", b"").end(),
            "archive",
            "no manifest.json",
        ),
        (
            "a layout",
            Tar::default().file("index.json", b"").end(),
            "archive",
            "oci-layout:DIR",
        ),
        ("nothing", Vec::new(), "archive", "no manifest.json"),
        ("zeros", vec![0; 10_000], "archive", "no manifest.json"),
        ("no tar", noise(10_000), "archive", "damaged"),
        ("no JSON", bare(b"[").end(), "archive", "its manifest.json"),
        ("no images", bare(b"[]").end(), "archive", "holds no image"),
        (
            "no config",
            bare(&listing("c.json", &["l"])).end(),
            "archive",
            "no c.json",
        ),
        (
            "no layers",
            bare(&listing("c", &[])).end(),
            "unsupported",
            "no layers",
        ),
        (
            "too many layers",
            bare(&listing("c", &many)).end(),
            "unsupported",
            "513 layers",
        ),
        (
            "a config that is a directory",
            bare(&listing("c", &["l"])).directory("c/").end(),
            "archive",
            "c is a directory",
        ),
        (
            "a config elsewhere",
            bare(&listing("../c", &["l"])).end(),
            "archive",
            "../c leads out",
        ),
        (
            "links in a circle",
            bare(&listing("c", &["l"]))
                .link("c", "d")
                .link("d", "c")
                .end(),
            "archive",
            "c is a link that leads nowhere",
        ),
        (
            "a missing layer",
            bare(&listing("c", &["l"])).file("c", &config).end(),
            "archive",
            "no l",
        ),
        (
            "a config of another name",
            bare(&listing(&format!("{}.json", hex(b"x")), &["l"]))
                .file(&format!("{}.json", hex(b"x")), &config)
                .file("l", &layer)
                .end(),
            "damaged",
            "it is sha256:",
        ),
        ("no JSON config", with(b"{").end(), "damaged", "no config"),
        ("no diff ids", with(no_diffs).end(), "archive", "rootfs"),
        ("odd diff ids", with(odd_diffs).end(), "archive", "sha256"),
        (
            "too few diff ids",
            with(none).end(),
            "archive",
            "its config names 0",
        ),
        (
            "another layer",
            bare(&listing("c", &["l"]))
                .file("c", &config)
                .file("l", b"other")
                .end(),
            "damaged",
            "layer l is damaged",
        ),
        (
            "a damaged packed layer",
            bare(&listing("c", &["l"]))
                .file("c", &config)
                .file("l", &gzip(&layer)[..99])
                .end(),
            "archive",
            "ends early",
        ),
        (
            "two layers in one",
            bare(&listing("c", &["l", "m"]))
                .file("c", &crate::room::config("amd64", &[&layer, b"x"]))
                .file("l", &layer)
                .link("m", "l")
                .end(),
            "damaged",
            "cannot be",
        ),
        (
            "of another architecture",
            with(&crate::room::config("arm64", &[&layer])).end(),
            "unsupported",
            "linux/arm64",
        ),
        (
            "a file that is longer than the archive",
            good().member("long", b'0', "", u64::from(u32::MAX), b"").0,
            "archive",
            "ends early",
        ),
        (
            "a cut header",
            good().file(&long, b"").0[..good().0.len() + 100].to_vec(),
            "archive",
            "ends early",
        ),
    ];
    assert_refused(&room, &cases);
}

#[test]
fn an_archive_cut_anywhere_is_refused() {
    let room = Room::new();
    let layer = noise(3000);
    let tar = archive("a:1", &[&layer]).0;
    for bytes in [tar.clone(), gzip(&tar), zst(&tar)] {
        // The whole is good, though its closing blocks are left out.
        room.write("x.tar", &bytes);
        assert_layers(
            &room.pull("docker-archive:x.tar").expect("an image"),
            &[&layer],
        );
        for cut in (1..bytes.len() - 1).step_by(37) {
            room.write("x.tar", &bytes[..cut]);
            room.empty_cache();
            let (kind, text) = refused(&room, "docker-archive:x.tar");
            assert_eq!(kind, "archive", "{cut}: {text}");
        }
    }
}

#[test]
fn archives_that_are_too_much_are_refused() {
    let mut room = Room::new();
    room.limits.document = 4096;
    let padded = |mut json: Vec<u8>| {
        json.resize(5000, b' ');
        json
    };
    let layer = noise(5000);
    let huge_config = padded(config("amd64", &[&layer]));
    let cases = [
        (
            "a huge manifest",
            Tar::default()
                .file("manifest.json", &padded(listing("c", &["l"])))
                .end(),
            "archive",
            "manifest.json has more than 4096 bytes",
        ),
        (
            "a huge config",
            Tar::default()
                .file("manifest.json", &listing("c", &["l"]))
                .file("c", &huge_config)
                .end(),
            "unsupported",
            "its config has 5000 bytes",
        ),
    ];
    assert_refused(&room, &cases);

    // A million members, were they let in.
    let mut tar = archive("a:1", &[&layer]);
    for n in 0..500 {
        tar = tar.file(&format!("{n}"), b"");
    }
    room.limits.members = 400;
    let cases = [(
        "members",
        tar.clone().end(),
        "archive",
        "more than 400 members",
    )];
    assert_refused(&room, &cases);
    room.limits.members = 1000;
    room.limits.names = 1000;
    let cases = [("names", tar.end(), "archive", "too long names")];
    assert_refused(&room, &cases);

    // Much that comes out of little: in the archive, and around it.
    let mut room = Room::new();
    room.limits.image = 100_000;
    let zeros = vec![0; 1 << 20];
    let config = config("amd64", &[&zeros]);
    for layer in [gzip(&zeros), zst(&zeros), zeros.clone()] {
        let tar = Tar::default()
            .file("manifest.json", &listing("c", &["l"]))
            .file("c", &config)
            .file("l", &layer)
            .end();
        room.write("x.tar", &tar);
        let (kind, text) = refused(&room, "docker-archive:x.tar");
        assert_eq!(kind, "unsupported", "{text}");
        assert!(text.contains("more than 100000 bytes"), "{text}");
    }
    let tar = archive("a:1", &[&zeros]).end();
    for bytes in [gzip(&tar), zst(&tar)] {
        room.write("x.tar", &bytes);
        let (kind, text) = refused(&room, "docker-archive:x.tar");
        assert_eq!(kind, "archive", "{text}");
        assert!(text.contains("unpacks to more than 100000 bytes"), "{text}");
    }
}

#[test]
fn what_is_no_regular_file_is_not_opened_as_an_archive() {
    let room = Room::new();
    room.fifo("pipe");
    fs::create_dir(room.path("dir")).expect("a directory");
    symlink("/dev/zero", room.path("device")).expect("a link");
    for (name, why) in [
        ("pipe", "no regular file"),
        ("dir", "no regular file"),
        ("device", "no regular file"),
        ("none", "No such file"),
        ("dir/none/x", "No such file"),
    ] {
        let (kind, text) = refused(&room, &format!("docker-archive:{name}"));
        assert_eq!(kind, "path", "{text}");
        assert!(text.contains(why), "{text}");
    }
    for (bytes, program) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh9", "bzip2")] {
        room.write("x", bytes);
        let (kind, text) = refused(&room, "docker-archive:x");
        assert_eq!(kind, "unsupported", "{text}");
        assert!(text.contains(program), "{text}");
    }
    // What a user names may be a link; only what is in it may not lead out.
    room.write("x.tar", &archive("a:1", &[b"layer"]).end());
    symlink("x.tar", room.path("link")).expect("a link");
    assert!(room.pull("docker-archive:link").is_ok());
}

#[test]
fn layouts_that_are_not_what_they_should_be_are_refused() {
    let layer = noise(5000);
    type Spoil = Box<dyn Fn(&Room, &Layout)>;
    let blob = |spoil: fn(&std::path::Path)| -> Spoil {
        let layer = layer.clone();
        Box::new(move |_, layout| spoil(&layout.blob_path(&layer)))
    };
    let index = |value: Value| -> Spoil {
        Box::new(move |_, layout| {
            fs::write(layout.dir.join("index.json"), value.to_string()).expect("a file");
        })
    };
    let entry = |digest: String, size: u64| {
        index(json!({"manifests": [{"mediaType": "x", "digest": digest, "size": size}]}))
    };
    let file = |name: &'static str, text: &'static str| -> Spoil {
        Box::new(move |_, layout| fs::write(layout.dir.join(name), text).expect("a file"))
    };
    let cases: Vec<(&str, Spoil, &str, &str)> = vec![
        (
            "other bytes",
            blob(|path| fs::write(path, [7; 5000]).expect("a file")),
            "damaged",
            "it is sha256:",
        ),
        (
            "a short blob",
            blob(|path| fs::write(path, [7; 4999]).expect("a file")),
            "damaged",
            "4999 bytes",
        ),
        (
            "a long blob",
            blob(|path| fs::write(path, [7; 5001]).expect("a file")),
            "damaged",
            "5001 bytes",
        ),
        (
            "no blob",
            blob(|path| fs::remove_file(path).expect("a file")),
            "archive",
            "no blob sha256:",
        ),
        (
            "a linked blob",
            blob(|path| {
                fs::rename(path, path.with_extension("x")).expect("a file");
                symlink(path.with_extension("x"), path).expect("a link");
            }),
            "path",
            "symbolic link",
        ),
        (
            "a directory for a blob",
            blob(|path| {
                fs::remove_file(path).expect("a file");
                fs::create_dir(path).expect("a directory");
            }),
            "path",
            "no regular file",
        ),
        (
            "a pipe for a blob",
            {
                let layer = layer.clone();
                Box::new(move |room: &Room, layout: &Layout| {
                    fs::remove_file(layout.blob_path(&layer)).expect("a file");
                    room.fifo(&format!("app/blobs/sha256/{}", hex(&layer)));
                })
            },
            "path",
            "no regular file",
        ),
        (
            "a pipe for the index",
            Box::new(|room, layout| {
                fs::remove_file(layout.dir.join("index.json")).expect("a file");
                room.fifo("app/index.json");
            }),
            "path",
            "no regular file",
        ),
        (
            "linked blobs",
            Box::new(|_, layout| {
                fs::rename(layout.dir.join("blobs"), layout.dir.join("x")).expect("a directory");
                symlink("x", layout.dir.join("blobs")).expect("a link");
            }),
            "path",
            "no directory of blobs",
        ),
        (
            "no mark",
            Box::new(|_, layout| fs::remove_file(layout.dir.join("oci-layout")).expect("a file")),
            "archive",
            "no file oci-layout",
        ),
        (
            "an odd mark",
            file("oci-layout", "{}"),
            "archive",
            "imageLayoutVersion",
        ),
        (
            "a new version",
            file("oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#),
            "unsupported",
            "2.0.0",
        ),
        ("no JSON", file("index.json", "{"), "archive", "index.json"),
        ("no index", file("index.json", "{}"), "archive", "no index"),
        (
            "no images",
            index(json!({"manifests": []})),
            "archive",
            "holds no image",
        ),
        (
            "an odd digest",
            entry("sha256:../../x".to_owned(), 7),
            "unsupported",
            "no sha256 digest",
        ),
        (
            "a huge manifest",
            entry(digest(b"x"), 1 << 40),
            "unsupported",
            "1099511627776 bytes",
        ),
        ("no manifest", entry(digest(b"x"), 1), "archive", "no blob"),
        (
            "a manifest that is none",
            Box::new(|_, layout| layout.index(&[layout.blob("x", b"[]")])),
            "damaged",
            "no manifest",
        ),
        (
            "a huge index",
            Box::new(|_, layout| {
                let file = fs::File::create(layout.dir.join("index.json")).expect("a file");
                file.set_len((4 << 20) + 1).expect("a hole");
            }),
            "unsupported",
            "more than 4194304 bytes",
        ),
    ];
    for (name, spoil, kind, part) in cases {
        let room = Room::new();
        let layout = Layout::new(&room.path("app"));
        layout.index(&[tagged(layout.image("amd64", &[&layer]), "1")]);
        spoil(&room, &layout);
        let (found, text) = refused(&room, "oci-layout:app");
        assert_eq!(found, kind, "{name}: {text}");
        assert!(text.contains(part), "{name}: {text}");
    }
    let room = Room::new();
    room.write("file", b"");
    assert_eq!(refused(&room, "oci-layout:file").0, "path");
    assert_eq!(refused(&room, "oci-layout:none").0, "path");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_found_out() {
    let room = Room::new();
    let layer = noise(2 << 20);
    let layout = Layout::new(&room.path("app"));
    layout.index(&[layout.image("amd64", &[&layer])]);
    room.write("x.tar", &archive("a:1", &[&layer]).end());
    for (spelled, path, end) in [
        ("oci-layout:app", layout.blob_path(&layer), 1),
        ("docker-archive:x.tar", room.path("x.tar"), 100_000),
    ] {
        let spoil = |step: Step| {
            if step.image.done > 300_000 {
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .expect("a file");
                file.seek(SeekFrom::End(-end)).expect("inside");
                file.write_all(&[0xff]).expect("room");
            }
        };
        let spoilt = room.pull_with(spelled, &spoil, &CancellationToken::new());
        assert!(
            matches!(spoilt, Err(RegistryError::Damaged { .. })),
            "{spelled}: {spoilt:?}"
        );
    }
}

#[test]
fn layers_are_asked_room_for_and_leave_some_of_it() {
    let mut room = Room::new();
    let layer = noise(5000);
    room.write("x.tar", &archive("a:1", &[&layer]).end());
    let layout = Layout::new(&room.path("x"));
    layout.index(&[layout.image("amd64", &[&gzip(&layer)])]);
    for (spelled, plain) in [("docker-archive:x.tar", 5000), ("oci-layout:x", 0)] {
        let refuse = |weight: &Weight| Err(format!("{} {}", weight.missing, weight.plain));
        let Err(RegistryError::NoRoom { why }) = room.pull_if(spelled, &refuse) else {
            panic!("{spelled} was let in");
        };
        let (missing, told) = why.split_once(' ').expect("two numbers");
        assert_ne!(missing, "0", "{spelled}");
        assert_eq!(told, plain.to_string(), "{spelled}");
        let kept = room.cache.list().expect("a list");
        assert_eq!(kept, [], "{spelled}: nothing is written before");
    }
    // And what is let in is not let to the end of the disk.
    let cache = room.cache.clone();
    room.cache = cache.clone().sparing(u64::MAX);
    for spelled in ["docker-archive:x.tar", "oci-layout:x"] {
        let full = room.pull(spelled);
        assert!(
            matches!(full, Err(RegistryError::NoSpace { .. })),
            "{full:?}"
        );
        assert_eq!(room.cache.list().expect("a list"), [], "{spelled}");
    }
    room.cache = cache;
    assert_layers(&room.pull("docker-archive:x.tar").expect("room"), &[&layer]);
}

#[test]
fn what_follows_a_member_that_is_a_directory_by_its_name_is_passed_over() {
    let room = Room::new();
    let layer = noise(5000);
    let inner = Tar::default().file("manifest.json", b"not it").end();
    let size = inner.len() as u64;
    let Tar(rest) = archive("a:1", &[&layer]);
    let Tar(mut bytes) = Tar::default().member("odd/", b'0', "", size, &inner);
    bytes.extend(rest);
    room.write("x.tar", &Tar(bytes).end());
    assert_layers(
        &room.pull("docker-archive:x.tar").expect("an image"),
        &[&layer],
    );
}
