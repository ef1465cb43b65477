//! Layers merged here, held against what `umoci unpack` makes of the same image.
#![allow(clippy::unwrap_used)]

mod image;
mod maker;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use banger_images::ext4::{ImageOptions, InProcess, RootfsWriter as _};
use banger_images::tar::Limits;
use banger_images::tree::{self, Kind, NodeId, ReadError, Source, Tree};
use banger_images::{Cancel, Quiet};
use image::Make::{self, Dir, File as Plain, Hard, Symlink};
use image::{Pack, awkward, has_umoci, layer, packed};
use maker::Tar;
use tar_core::EntryType;

fn sources(layers: &[Vec<Make>], pack: Pack) -> Vec<Source> {
    let file = |(number, entries): (usize, &Vec<Make>)| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&packed(&layer(entries, number as u64), pack))
            .unwrap();
        // Wherever the cursor stands.
        file.seek(std::io::SeekFrom::End(0)).unwrap();
        Source::Packed(file)
    };
    layers.iter().enumerate().map(file).collect()
}

fn merge(sources: &[Source]) -> Result<Tree, ReadError> {
    let cancel = Cancel::new().unwrap();
    tree::from_layers(sources, &Limits::default(), &cancel, &Quiet)
}

/// Everything of a tree that a file system shows, by path: kind, owner, time, links, content.
type Shown = BTreeMap<String, String>;

fn show(tree: &Tree, sources: &[Source]) -> Shown {
    let mut links: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut all = vec![(String::new(), NodeId::ROOT)];
    let mut at = 0;
    while let Some((path, id)) = all.get(at).cloned() {
        at += 1;
        *links.entry(id).or_default() += 1;
        for (name, child) in tree.children(id) {
            all.push((format!("{path}/{name}"), child));
        }
    }
    let one = |(path, id): (String, NodeId)| {
        let meta = tree.meta(id);
        let owner = format!("{}:{}", meta.uid, meta.gid);
        let text = match tree.kind(id) {
            Kind::Directory(_) => format!("dir {:o} {owner}", meta.mode),
            Kind::File(_) => {
                let bytes = tree.read(&path, sources, 1 << 20).unwrap().unwrap();
                let text = String::from_utf8(bytes).unwrap();
                let (mode, links, mtime) = (meta.mode, links[&id], meta.mtime.seconds);
                format!("file {mode:o} {owner} {links} {mtime} {text:?}")
            }
            Kind::Symlink(target) => format!("link {owner} {target}"),
            Kind::CharDevice(major, minor) => {
                format!("char {:o} {owner} {major}:{minor}", meta.mode)
            }
            Kind::BlockDevice(major, minor) => {
                format!("block {:o} {owner} {major}:{minor}", meta.mode)
            }
            Kind::Fifo => format!("fifo {:o} {owner}", meta.mode),
        };
        (path, text)
    };
    all.into_iter().map(one).collect()
}

fn show_directory(root: &Path) -> Shown {
    let mut shown = Shown::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        let owner = format!("{}:{}", stat.uid(), stat.gid());
        let mode = stat.mode() & 0o7777;
        let text = if kind.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            format!("dir {mode:o} {owner}")
        } else if kind.is_file() {
            let text = fs::read_to_string(&path).unwrap();
            let (links, mtime) = (stat.nlink(), stat.mtime());
            format!("file {mode:o} {owner} {links} {mtime} {text:?}")
        } else if kind.is_symlink() {
            format!("link {owner} {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_char_device() {
            let (major, minor) = (stat.rdev() >> 8, stat.rdev() & 0xff);
            format!("char {mode:o} {owner} {major}:{minor}")
        } else {
            format!("fifo {mode:o} {owner}")
        };
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let name = String::from_utf8(name.to_vec()).unwrap();
        let name = if name.is_empty() {
            name
        } else {
            format!("/{name}")
        };
        shown.insert(name, text);
    }
    shown
}

/// What umoci makes of it; `None` where it refuses the image.
fn umoci(layers: &[Vec<Make>]) -> Option<Shown> {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let made = layers.iter().zip(0..);
    let made: Vec<_> = made
        .map(|(entries, number)| layer(entries, number))
        .collect();
    image::umoci(&made, &bundle)
        .is_ok()
        .then(|| show_directory(&bundle.join("rootfs")))
}

#[test]
fn awkward_layers_are_merged_as_umoci_does_however_they_are_packed() {
    if !has_umoci() {
        return;
    }
    for (what, layers) in awkward::stacks() {
        let layers = awkward::with_root(layers);
        let expected = umoci(&layers).unwrap_or_else(|| panic!("umoci refuses: {what}"));
        for pack in [Pack::No, Pack::Gzip, Pack::Zstd] {
            let sources = sources(&layers, pack);
            let merged = merge(&sources).unwrap_or_else(|error| panic!("{what}: {error}"));
            similar_asserts(what, &show(&merged, &sources), &expected);
        }
    }
}

fn similar_asserts(what: &str, ours: &Shown, theirs: &Shown) {
    let differing: Vec<_> = ours
        .keys()
        .chain(theirs.keys())
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .map(|path| {
            format!(
                "{path:?}: {:?}, umoci {:?}",
                ours.get(path),
                theirs.get(path)
            )
        })
        .collect();
    assert!(differing.is_empty(), "{what}: {differing:#?}");
}

/// A layer of names that meet each other often.
fn random_layer(random: &mut impl FnMut(usize) -> usize) -> Vec<Make> {
    const PATHS: [&str; 12] = [
        "a", "b", "c", "a/a", "a/b", "a/c", "b/a", "b/b", "a/a/a", "a/a/b", "b/a/c", "c/a",
    ];
    const GONE: [&str; 12] = [
        ".wh.a",
        ".wh.b",
        ".wh.c",
        "a/.wh.a",
        "a/.wh.b",
        "b/.wh.a",
        "a/.wh..wh..opq",
        "b/.wh..wh..opq",
        "a/a/.wh..wh..opq",
        ".wh..wh..opq",
        "c/.wh.a",
        "a/a/.wh.b",
    ];
    let count = 1 + random(7);
    (0..count)
        .map(|_| {
            let path = PATHS[random(12)];
            match random(20) {
                0..7 => Dir(path, [0o755, 0o700, 0o1777][random(3)]),
                7..12 => Plain(path, ["one", "two", ""][random(3)]),
                12 => Symlink(path, ["a", "b", "/c", "../a"][random(4)]),
                13 => Hard(path, PATHS[random(12)]),
                _ => Plain(GONE[random(12)], ""),
            }
        })
        .collect()
}

#[test]
fn random_layers_are_merged_as_umoci_does() {
    if !has_umoci() {
        return;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        // xorshift64: the same layers in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut compared, mut refused) = (0, 0);
    for case in 0..200 {
        let layers: Vec<Vec<Make>> = (0..2 + random(2))
            .map(|_| random_layer(&mut random))
            .collect();
        let layers = awkward::with_root(layers);
        let (sources, theirs) = (sources(&layers, Pack::No), umoci(&layers));
        match (merge(&sources), theirs) {
            (Ok(tree), Some(theirs)) => {
                similar_asserts(
                    &format!("case {case}: {layers:#?}"),
                    &show(&tree, &sources),
                    &theirs,
                );
                compared += 1;
            }
            (Err(error), Some(_)) => panic!("case {case}: only we refuse: {error}\n{layers:#?}"),
            (_, None) => refused += 1,
        }
    }
    println!("{compared} compared, {refused} refused by umoci");
    assert!(
        compared > 50,
        "{compared} compared, {refused} refused by umoci"
    );
}

#[test]
fn content_of_packed_layers_lands_in_the_image() {
    let layers = vec![
        vec![
            Plain("one", "first"),
            Plain("two", "second"),
            Plain("three", "third"),
        ],
        vec![
            Plain("two", "anew"),
            Plain(".wh.one", ""),
            Hard("four", "three"),
        ],
    ];
    for pack in [Pack::Gzip, Pack::Zstd, Pack::No] {
        let sources = sources(&layers, pack);
        let tree = merge(&sources).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let options = ImageOptions {
            size_bytes: 64 << 20,
            label: None,
            uuid: Some([7; 16]),
            epoch: 1,
            read_only: false,
            sync: false,
        };
        let cancel = Cancel::new().unwrap();
        InProcess
            .write(&tree, &sources, &image, &options, &cancel, &Quiet)
            .unwrap();
        for (name, text) in [("two", "anew"), ("three", "third"), ("four", "third")] {
            let cat = Command::new("/usr/sbin/debugfs")
                .args(["-R", &format!("cat /{name}")])
                .arg(&image)
                .output()
                .unwrap();
            assert_eq!(
                String::from_utf8_lossy(&cat.stdout),
                text,
                "{name}, {pack:?}"
            );
        }
    }
}

#[test]
fn whiteouts_of_nothing_and_more_than_the_limits_are_refused() {
    for bad in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        let sources = sources(&[vec![Dir("d", 0o755)], vec![Plain(bad, "")]], Pack::No);
        let error = merge(&sources).unwrap_err().to_string();
        assert!(error.contains("a whiteout of nothing"), "{bad}: {error}");
    }
    let layers = vec![vec![Plain("a", "12345")], vec![Plain("b", "12345")]];
    let sources = sources(&layers, Pack::Gzip);
    let cancel = Cancel::new().unwrap();
    let few = |entries, unpacked_bytes| {
        let limits = Limits {
            entries,
            unpacked_bytes,
            ..Limits::default()
        };
        tree::from_layers(&sources, &limits, &cancel, &Quiet)
    };
    // Of each layer a header, a block of content, and two of its end.
    let all = 2 * 2048;
    assert!(few(2, all).is_ok(), "as many as there are in all layers");
    assert!(few(1, all).is_err() && few(2, all - 1).is_err(), "together");
}

#[test]
fn many_opaque_marks_cost_no_more_than_what_there_is() {
    // Each mark looked at alone would take 3000 times 3000 steps of a whole subtree.
    let chain = |depth: usize| vec!["d"; depth].join("/");
    let mut tar = Tar::new();
    for depth in 1..300 {
        tar.add(&chain(depth), EntryType::Directory, b"", |_| {});
    }
    for file in 0..3000 {
        let path = format!("{}/{file}", chain(299));
        tar.add(&path, EntryType::Regular, b"", |_| {});
    }
    let mut marks = Tar::new();
    for _ in 0..30 {
        for depth in (1..300).rev() {
            let path = format!("{}/.wh..wh..opq", chain(depth));
            marks.add(&path, EntryType::Regular, b"", |_| {});
        }
    }
    let lower = tar.finish();
    let sources = [
        Source::Packed(lower.try_clone().unwrap()),
        Source::Packed(lower),
        Source::Packed(marks.finish()),
    ];
    let tree = merge(&sources).unwrap();
    assert_eq!(tree.children(NodeId::ROOT).count(), 1);
    assert_eq!(tree.measure().1, 2, "the root and what it has marked");
}

#[test]
fn marks_of_one_directory_look_at_its_children_once() {
    // Each mark looked at alone would take 20,000 times 300,000 steps: hours.
    let mut lower = Tar::new();
    let mut marks = Tar::new();
    for file in 0..300_000 {
        marks.add(&format!("d/{file}"), EntryType::Regular, b"", |_| {});
    }
    lower.add("d/old", EntryType::Regular, b"", |_| {});
    for _ in 0..20_000 {
        marks.add("d/.wh..wh..opq", EntryType::Regular, b"", |_| {});
    }
    let sources = [lower, marks].map(|tar| Source::Packed(tar.finish()));
    let tree = merge(&sources).unwrap();
    assert_eq!(tree.measure().1, 300_002, "all but what was below");
}
