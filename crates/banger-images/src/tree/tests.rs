//! What archives may do to a tree, and what they may not.

use super::*;
use crate::tar::{Entry, EntryKind, Limits, TarError, Time};

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        xattrs: Vec::new(),
        stored: 0,
        offset: 0,
    }
}

fn grow(entries: &[(&str, EntryKind)]) -> Result<Tree, TarError> {
    let mut tree = Tree::new();
    for (path, kind) in entries {
        tree.add_entry(entry(path, kind.clone()), 0, &Limits::default())?;
    }
    Ok(tree)
}

fn link(target: &str) -> EntryKind {
    EntryKind::Symlink(target.as_bytes().to_vec())
}

#[test]
fn an_entry_below_a_symlink_lands_where_it_leads_inside_the_tree() {
    for target in ["usr/lib", "/usr/lib", "../../usr/lib"] {
        let tree = grow(&[
            ("usr/lib/", EntryKind::Directory),
            ("lib", link(target)),
            ("lib/x", EntryKind::File),
        ])
        .unwrap();
        assert!(tree.find("usr/lib/x").is_some(), "{target}");
        assert_eq!(tree.find("/lib/x"), tree.find("usr/lib/x"));
    }
}

#[test]
fn paths_that_lead_out_or_round_are_refused() {
    for bad in [
        vec![("../x", EntryKind::File)],
        vec![("a/../../x", EntryKind::File)],
        vec![("a", link("b")), ("b", link("a")), ("a/x", EntryKind::File)],
        vec![("f", EntryKind::File), ("f/x", EntryKind::File)],
        vec![("h", EntryKind::HardLink(b"nothing".to_vec()))],
        vec![
            ("d", EntryKind::Directory),
            ("h", EntryKind::HardLink(b"d".to_vec())),
        ],
        vec![("h", EntryKind::HardLink(b"../../etc/passwd".to_vec()))],
    ] {
        assert!(grow(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn later_entries_replace_earlier_ones_but_directories_merge() {
    let tree = grow(&[
        ("d/", EntryKind::Directory),
        ("d/kept", EntryKind::File),
        ("d", EntryKind::Directory),
        ("was-file", EntryKind::File),
        ("was-file/", EntryKind::Directory),
        ("was-dir/x", EntryKind::File),
        ("was-dir", link("d")),
    ])
    .unwrap();
    assert!(tree.find("d/kept").is_some());
    assert!(matches!(
        tree.kind(tree.find("was-file").unwrap()),
        Kind::Directory(_)
    ));
    assert!(tree.find("was-dir/x").is_none() && tree.find("was-dir/kept").is_some());
}

#[test]
fn names_must_be_utf_8_and_are_named_when_they_are_not() {
    let mut tree = Tree::new();
    let mut bad = entry("x", EntryKind::File);
    bad.path = b"dir/\xff\xfe".to_vec();
    let error = tree.add_entry(bad, 0, &Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"entry "dir/\\xff\\xfe" of the archive: its name is not UTF-8"#
    );
}

#[test]
fn directories_that_are_only_implied_count() {
    let limits = Limits {
        metadata_bytes: 100_000,
        ..Limits::default()
    };
    let mut tree = Tree::new();
    let deep = ["d"; 100].join("/");
    tree.add_entry(entry(&deep, EntryKind::File), 0, &limits)
        .unwrap();
    // A link that leads nowhere has its target made.
    let mut far = tree.clone();
    let target = link(&["e"; 1000].join("/"));
    far.add_entry(entry("l", target), 0, &limits).unwrap();
    for (tree, path) in [
        (&mut tree, ["f"; 400].join("/")),
        (&mut far, "l/x".to_owned()),
    ] {
        let error = tree.add_entry(entry(&path, EntryKind::File), 0, &limits);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("implies too many directories"), "{error}");
    }
}

#[test]
fn removing_takes_what_is_below() {
    let mut tree = grow(&[("a/b/c", EntryKind::File), ("a/l", link("b"))]).unwrap();
    tree.remove("/a/l");
    assert!(tree.find("a/b/c").is_some() && tree.find_no_follow("a/l").is_none());
    tree.remove("a/b");
    tree.remove("missing/x");
    assert!(tree.find("a/b").is_none());
    assert_eq!(tree.measure().1, 2);
}
