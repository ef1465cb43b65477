//! Layers that are awkward by their size or range: names, times, holes, how many they are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use super::Entry;
use super::awkward::stack;

/// Names, and seconds and nanoseconds since 1970.
pub(crate) const TIMES: [(&str, i64, u32); 12] = [
    ("1901-the-first", -0x8000_0000, 0),
    ("1901", -0x7fff_ffff, 999_999_999),
    ("1969", -1, 0),
    ("1969-nearly", -1, 999_999_999),
    ("1970", 0, 0),
    ("1970-soon", 0, 1),
    ("2038-the-last", 0x7fff_ffff, 5),
    ("2038-after", 0x8000_0000, 123_456_789),
    ("2100", 4_102_444_800, 0),
    ("2106", 0xffff_ffff, 1),
    ("2400", 13_569_465_600, 500_000_000),
    ("2446-the-last", 0x3_7fff_ffff, 0),
];

pub(crate) fn names() -> Vec<Vec<u8>> {
    // As deep as a name is still a path for who looks from outside.
    let deep = vec!["d".repeat(254); 15].join("/");
    let odd = [
        "new\nline",
        "tab\ttab",
        "back\\slash",
        "\\012",
        "quote\"'`$(x)",
        " lead",
        "trail ",
        "\u{1f980}\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}",
        "e\u{301}",
        "\u{e9}",
        "\u{7f}\u{1}\u{1b}[2J",
        "-rf",
        "~",
        "...",
        ".wh",
        "\u{feff}",
        "\u{202e}gnp",
        "*",
        "a=b",
        "%41",
    ];
    let mut entries = vec![
        Entry::file("n".repeat(255), "255 bytes"),
        Entry::file("\u{1f980}".repeat(63), "252 bytes of 63 letters"),
        Entry::file(format!("{deep}/end"), "deep"),
        Entry::link("to-the-end", b'1', format!("{deep}/end")),
        Entry::link("far", b'2', "t/".repeat(2047)),
        Entry::link("short", b'2', "s".repeat(59)),
        Entry::link("longer", b'2', "s".repeat(60)),
        Entry::dir("many"),
    ];
    entries.extend(odd.map(|name| Entry::file(name, name)));
    entries.extend(odd.map(|name| Entry::file(format!("many/{name}/{name}"), name)));
    // More names than blocks of a directory without an index hold well.
    entries.extend((0..5000).map(|n| Entry::file(format!("many/file-{n}"), [n as u8])));
    stack(vec![
        entries,
        vec![
            Entry::file("many/.wh.file-17", ""),
            Entry::file(format!("{}/.wh.end", deep), ""),
        ],
    ])
}

/// Files, directories, links and pipes of those times.
pub(crate) fn times() -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    for (name, seconds, nanos) in TIMES {
        entries.push(Entry::file(name, "x").at(seconds, nanos));
        entries.push(Entry::dir(format!("d-{name}")).at(seconds, nanos));
        entries.push(Entry::link(format!("l-{name}"), b'2', name).at(seconds, nanos));
        entries.push(Entry::node(format!("p-{name}"), b'6', 0, 0).at(seconds, nanos));
    }
    // A child that comes later changes nothing of its parent.
    let later = vec![
        Entry::file("d-1970/child", "x"),
        Entry::file("d-2100/.wh.none", ""),
    ];
    stack(vec![entries, later])
}

/// A layer made by GNU tar of one file with large holes.
pub(crate) fn holey(dir: &Path, options: &[&str], seconds: &str) -> Vec<u8> {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("dir")).unwrap();
    for (name, size) in [
        ("dir/holes", 64 << 20),
        ("all-hole", 32 << 20),
        ("tail", 70_000),
    ] {
        let file = File::create(tree.join(name)).unwrap();
        file.set_len(size).unwrap();
        if name != "all-hole" {
            file.write_all_at(b"in the first block", 100).unwrap();
        }
        if name == "dir/holes" {
            // More ranges than fit into one header, the last one to the very end.
            for at in 1..60u64 {
                file.write_all_at(&[at as u8; 5000], at * 1_000_000)
                    .unwrap();
            }
            file.write_all_at(b"end", size - 3).unwrap();
        }
    }
    let out = dir.join("layer.tar");
    let done = Command::new("tar")
        .args(options)
        .args(["--sort=name", "--numeric-owner", "--owner=12", "--group=34"])
        .arg(format!("--mtime=@{seconds}"))
        .arg("-cf")
        .arg(&out)
        .arg("-C")
        .arg(&tree)
        .arg(".")
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    fs::read(out).unwrap()
}

pub(crate) fn many() -> Vec<Vec<u8>> {
    let layer = |number: usize| {
        let mut entries = vec![
            Entry::file("every", format!("{number}")),
            Entry::file(format!("dir/{number}"), "x").at(number as i64, 0),
        ];
        match number % 7 {
            1 => entries.push(Entry::file(format!("dir/.wh.{}", number - 1), "")),
            2 => entries.push(Entry::link(format!("hard-{number}"), b'1', "every")),
            3 => entries.push(Entry::link(format!("late-{number}"), b'1', "hard-2")),
            4 => entries.clear(),
            5 => entries.insert(0, Entry::dir("dir").mode(0o700 + number as u32 % 8)),
            6 if number > 100 => entries.push(Entry::file("dir/.wh..wh..opq", "")),
            _ => {}
        }
        entries
    };
    stack((0..127).map(layer).collect())
}

/// What e2fsck once found on some builder's disk.
pub(crate) fn found() -> Vec<Vec<u8>> {
    stack(vec![vec![
        Entry::dir("lost+found").mode(0o755).owner(5, 5),
        Entry::file("lost+found/#12", "found"),
        Entry::link("kept", b'1', "lost+found/#12"),
        Entry::dir("home/lost+found").mode(0o711),
        Entry::file("home/lost+found/x", "x"),
    ]])
}
