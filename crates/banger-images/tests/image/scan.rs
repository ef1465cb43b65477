//! File systems mounted and held against each other, entry by entry: kind, permissions, owner,
//! time, device, link target, what is one file under several names, attributes, content.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything of an entry that a file system shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: String,
    owner: (u32, u32),
    mtime: (i64, i64),
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The first of the names of the same file.
    same_as: Vec<u8>,
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Seen>;

pub(crate) fn scan(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first = HashMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        if stat.is_dir() {
            let below = fs::read_dir(&path).unwrap();
            pending.extend(below.map(|entry| entry.unwrap().path()));
        }
        let seen = Seen {
            kind: kind(&path, &stat),
            owner: (stat.uid(), stat.gid()),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            xattrs: xattrs(&path),
            same_as: name.to_vec(),
        };
        first
            .entry(stat.ino())
            .and_modify(|known: &mut Vec<u8>| {
                if *known > name.to_vec() {
                    *known = name.to_vec();
                }
            })
            .or_insert_with(|| name.to_vec());
        tree.insert(name.to_vec(), seen);
        let place = tree.get_mut(name).unwrap();
        place.same_as = stat.ino().to_be_bytes().to_vec();
    }
    for seen in tree.values_mut() {
        let inode = u64::from_be_bytes(seen.same_as[..].try_into().unwrap());
        seen.same_as = first[&inode].clone();
    }
    tree
}

fn kind(path: &Path, stat: &fs::Metadata) -> String {
    let (found, mode) = (stat.file_type(), stat.mode() & 0o7777);
    let device = |kind| {
        let (major, minor) = (
            rustix::fs::major(stat.rdev()),
            rustix::fs::minor(stat.rdev()),
        );
        format!("{kind} {mode:o} {major}:{minor}")
    };
    if found.is_dir() {
        format!("directory {mode:o}")
    } else if found.is_symlink() {
        format!("symlink {:?}", fs::read_link(path).unwrap())
    } else if found.is_char_device() {
        device("character device")
    } else if found.is_block_device() {
        device("block device")
    } else if found.is_fifo() {
        format!("fifo {mode:o}")
    } else {
        let sum = super::sum(&fs::read(path).unwrap());
        format!("file {mode:o}, {} bytes {sum}", stat.len())
    }
}

pub(crate) fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0);
    let value = |name: &[u8]| {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let mut value = vec![0u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
        value.truncate(length);
        (name, value)
    };
    names.filter(|name| !name.is_empty()).map(value).collect()
}

/// What is not the same here and where umoci unpacked, which began at this second. Times that
/// umoci left to the clock become ours.
pub(crate) fn differing(
    ours: &mut Tree,
    theirs: &mut Tree,
    begun: i64,
    apart: &[&str],
) -> Vec<String> {
    for (path, seen) in theirs.iter_mut() {
        let by_clock = seen.kind.starts_with("directory") && seen.mtime.0 >= begun - 1;
        if by_clock && let Some(ours) = ours.get(path) {
            seen.mtime = ours.mtime;
        }
    }
    // Every ext4 has a place where e2fsck puts what it finds, whatever the image has.
    let is_lost = |path: &[u8]| path == b"lost+found" || path.starts_with(b"lost+found/");
    ours.remove(&b"lost+found"[..]);
    let paths: BTreeSet<_> = ours.keys().chain(theirs.keys()).cloned().collect();
    paths
        .iter()
        .filter(|path| !is_lost(path) && !apart.iter().any(|name| name.as_bytes() == *path))
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .map(|path| {
            let (ours, theirs) = (ours.get(path), theirs.get(path));
            format!(
                "{}:\n  ours  {ours:?}\n  umoci {theirs:?}",
                path.escape_ascii()
            )
        })
        .collect()
}

/// Makes an empty ext4 file system.
pub(crate) fn make_disk(at: &Path, bytes: u64) {
    File::create(at).unwrap().set_len(bytes).unwrap();
    // Inodes of 256 bytes: with the small ones that small disks get, times end in 2038.
    let done = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-I", "256"])
        .arg(at)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// A mounted disk.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(disk: &Path, at: PathBuf, options: &str) -> Mounted {
        fs::create_dir_all(&at).unwrap();
        let done = Command::new("mount")
            .args(["-o", options])
            .args([disk, &at])
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        Mounted(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
