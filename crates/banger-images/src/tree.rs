//! A file system as a value: what archives merge into and file systems are written from.
//!
//! Owns names, metadata and where each file's bytes are; holds no file content but small texts.
//! Paths of archives are resolved inside the tree (symlinks too), so nothing can lead out of
//! it. Refuses names that are not UTF-8 and attributes that would not fit the file system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek as _;
use std::path::{Path, PathBuf};

use crate::progress::{Cancel, Cancelled, Report};
use crate::tar::{Entry, EntryKind, Limits, Reader, Seeking, TarError, Time, shown};
use crate::xattr;

/// Symlinks followed on the way to one entry.
const LINK_LIMIT: usize = 40;
/// Names, targets and attributes of a whole tree.
const METADATA_LIMIT: usize = 512 << 20;

/// A node of a [`Tree`]; the root is `NodeId::ROOT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// Its number: nodes are counted from the root, which is 0.
    #[must_use]
    pub fn position(self) -> usize {
        self.0 as usize
    }
}

/// Owner, permissions, time, attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes by full name, values in the kernel's form.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Meta {
    /// Root's, at a time in seconds.
    #[must_use]
    pub fn root(mode: u16, seconds: i64) -> Meta {
        Meta {
            mode,
            uid: 0,
            gid: 0,
            mtime: Time { seconds, nanos: 0 },
            xattrs: BTreeMap::new(),
        }
    }
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Here.
    Inline(Vec<u8>),
    /// In one of the sources given to the writer, all of it.
    Span {
        /// Which source.
        source: usize,
        /// Its first byte there.
        offset: u64,
        /// Its length.
        size: u64,
    },
    /// In a source, but only these ranges of the file are stored, one after another.
    Sparse {
        /// Which source.
        source: usize,
        /// The first stored byte there.
        offset: u64,
        /// Stored ranges (offset in the file, length), ascending and disjoint.
        map: Vec<(u64, u64)>,
        /// Size with the holes.
        size: u64,
    },
    /// In a file of the host.
    Host {
        /// Its path.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
}

impl Data {
    /// The file's size in bytes, holes counted.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Data::Inline(bytes) => bytes.len() as u64,
            Data::Span { size, .. } | Data::Sparse { size, .. } | Data::Host { size, .. } => *size,
        }
    }

    /// Bytes that have to be written.
    #[must_use]
    pub fn stored(&self) -> u64 {
        match self {
            Data::Sparse { map, .. } => map.iter().map(|(_, length)| length).sum(),
            _ => self.size(),
        }
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Names and what they lead to.
    Directory(BTreeMap<String, NodeId>),
    /// A regular file.
    File(Data),
    /// A symbolic link.
    Symlink(String),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

#[derive(Debug, Clone)]
struct Node {
    meta: Meta,
    kind: Kind,
}

/// A whole file system.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
    metadata_bytes: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}

impl Tree {
    /// An empty root, 0755 root:root.
    #[must_use]
    pub fn new() -> Tree {
        Tree {
            nodes: vec![Node {
                meta: Meta::root(0o755, 0),
                kind: Kind::Directory(BTreeMap::new()),
            }],
            metadata_bytes: 0,
        }
    }

    /// The metadata of a node.
    #[must_use]
    pub fn meta(&self, id: NodeId) -> &Meta {
        &self.nodes[id.position()].meta
    }

    /// What a node is.
    #[must_use]
    pub fn kind(&self, id: NodeId) -> &Kind {
        &self.nodes[id.position()].kind
    }

    /// Names of a directory, sorted; of anything else none.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (&str, NodeId)> {
        let children = match self.kind(id) {
            Kind::Directory(children) => Some(children),
            _ => None,
        };
        children
            .into_iter()
            .flatten()
            .map(|(name, id)| (name.as_str(), *id))
    }

    /// Number of nodes ever made, an upper bound of those that live.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The node at a path, following symlinks, the last one too.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<NodeId> {
        let mut budget = LINK_LIMIT;
        self.resolve(path.as_bytes(), true, &mut budget)
    }

    /// The node at a path whose last component is not followed.
    #[must_use]
    pub fn find_no_follow(&self, path: &str) -> Option<NodeId> {
        let mut budget = LINK_LIMIT;
        self.resolve(path.as_bytes(), false, &mut budget)
    }

    fn resolve(&self, path: &[u8], follow_last: bool, budget: &mut usize) -> Option<NodeId> {
        let mut trail = vec![NodeId::ROOT];
        self.walk(&mut trail, path, follow_last, budget)?;
        trail.last().copied()
    }

    /// Goes down `path` from the end of `trail`, which holds the way from the root.
    fn walk(
        &self,
        trail: &mut Vec<NodeId>,
        path: &[u8],
        follow_last: bool,
        budget: &mut usize,
    ) -> Option<()> {
        if path.starts_with(b"/") {
            trail.truncate(1);
        }
        let parts: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .collect();
        for (at, part) in parts.iter().enumerate() {
            if *part == b".." {
                // The root's parent is the root, as in a chroot.
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let here = *trail.last().expect("the root is never popped");
            let Kind::Directory(children) = self.kind(here) else {
                return None;
            };
            let next = *children.get(std::str::from_utf8(part).ok()?)?;
            match self.kind(next) {
                Kind::Symlink(target) if follow_last || at + 1 < parts.len() => {
                    *budget = budget.checked_sub(1)?;
                    self.walk(trail, target.as_bytes(), true, budget)?;
                }
                _ => trail.push(next),
            }
        }
        Some(())
    }

    /// Adds what an archive's entry makes; a later entry replaces an earlier one.
    ///
    /// # Errors
    /// [`TarError::Entry`] naming what cannot be taken, [`TarError::TooMuch`].
    pub fn add_entry(
        &mut self,
        entry: Entry,
        source: usize,
        limits: &Limits,
    ) -> Result<(), TarError> {
        let path = entry.path;
        let refuse = |why| TarError::Entry {
            entry: shown(&path),
            why,
        };
        let parts = checked_parts(&path, limits).map_err(refuse)?;
        let mut xattrs = BTreeMap::new();
        for (name, value) in entry.xattrs {
            xattrs.insert(name, value);
        }
        xattr::check(&xattrs).map_err(refuse)?;
        let meta = Meta {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs,
        };
        let Some((name, above)) = parts.split_last() else {
            if entry.kind == EntryKind::Directory {
                self.nodes[0].meta = meta;
                return Ok(());
            }
            return Err(refuse("the root must be a directory"));
        };
        let parent = self.make_parents(above).map_err(refuse)?;
        let kind = match entry.kind {
            EntryKind::File => Kind::File(Data::Span {
                source,
                offset: entry.offset,
                size: entry.stored,
            }),
            EntryKind::Sparse { map, size } => Kind::File(Data::Sparse {
                source,
                offset: entry.offset,
                map,
                size,
            }),
            EntryKind::Directory => Kind::Directory(BTreeMap::new()),
            EntryKind::Symlink(target) => Kind::Symlink(checked_target(target).map_err(refuse)?),
            EntryKind::CharDevice(major, minor) => {
                check_device(major, minor).map_err(refuse)?;
                Kind::CharDevice(major, minor)
            }
            EntryKind::BlockDevice(major, minor) => {
                check_device(major, minor).map_err(refuse)?;
                Kind::BlockDevice(major, minor)
            }
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink(target) => {
                checked_parts(&target, limits).map_err(refuse)?;
                let mut budget = LINK_LIMIT;
                let linked = self
                    .resolve(&target, false, &mut budget)
                    .ok_or_else(|| refuse("a hard link to nothing"))?;
                if matches!(self.kind(linked), Kind::Directory(_)) {
                    return Err(refuse("a hard link to a directory"));
                }
                self.count_metadata(name.len())?;
                self.link(parent, name, linked);
                return Ok(());
            }
        };
        let grown = name.len() + metadata_of(&meta, &kind);
        self.count_metadata(grown)?;
        self.put(parent, name, meta, kind);
        Ok(())
    }

    fn count_metadata(&mut self, bytes: usize) -> Result<(), TarError> {
        self.metadata_bytes += bytes + 64;
        if self.metadata_bytes > METADATA_LIMIT {
            return Err(TarError::TooMuch {
                what: "bytes of names and attributes",
            });
        }
        Ok(())
    }

    /// The directory at these parts, made where missing, through symlinks on the way.
    fn make_parents(&mut self, parts: &[&str]) -> Result<NodeId, &'static str> {
        let mut trail = vec![NodeId::ROOT];
        let mut budget = LINK_LIMIT;
        for part in parts {
            let here = *trail.last().expect("the root is never popped");
            let Kind::Directory(children) = self.kind(here) else {
                return Err("below something that is not a directory");
            };
            match children.get(*part).copied() {
                None => {
                    let mtime = self.meta(here).mtime.seconds;
                    trail.push(self.put(
                        here,
                        part,
                        Meta::root(0o755, mtime),
                        Kind::Directory(BTreeMap::new()),
                    ));
                }
                Some(next) => match self.kind(next) {
                    Kind::Directory(_) => trail.push(next),
                    Kind::Symlink(target) => {
                        let target = target.clone();
                        budget = budget.checked_sub(1).ok_or("too many symbolic links")?;
                        self.walk(&mut trail, target.as_bytes(), true, &mut budget)
                            .ok_or("below a symbolic link that leads nowhere")?;
                    }
                    _ => return Err("below something that is not a directory"),
                },
            }
        }
        let here = *trail.last().expect("the root is never popped");
        match self.kind(here) {
            Kind::Directory(_) => Ok(here),
            _ => Err("below something that is not a directory"),
        }
    }

    /// Puts a node under a name; a directory over a directory keeps what is inside.
    fn put(&mut self, parent: NodeId, name: &str, meta: Meta, kind: Kind) -> NodeId {
        if let Kind::Directory(children) = self.kind(parent)
            && let Some(old) = children.get(name).copied()
            && let (Kind::Directory(_), Kind::Directory(_)) = (self.kind(old), &kind)
        {
            self.nodes[old.position()].meta = meta;
            return old;
        }
        let id = NodeId(u32::try_from(self.nodes.len()).expect("entries are bounded far below"));
        self.nodes.push(Node { meta, kind });
        self.link(parent, name, id);
        id
    }

    fn link(&mut self, parent: NodeId, name: &str, id: NodeId) {
        match &mut self.nodes[parent.position()].kind {
            Kind::Directory(children) => {
                children.insert(name.to_owned(), id);
            }
            _ => unreachable!("callers pass directories"),
        }
    }

    /// Writes a small file of our own, with missing parents; what was there is replaced.
    ///
    /// # Errors
    /// A word on why the path cannot be used.
    pub fn write_file(&mut self, path: &str, meta: Meta, bytes: &[u8]) -> Result<(), &'static str> {
        self.make(path, meta, Kind::File(Data::Inline(bytes.to_vec())))
    }

    /// Makes a node of our own, with missing parents; what was there is replaced.
    ///
    /// # Errors
    /// A word on why the path cannot be used.
    pub fn make(&mut self, path: &str, meta: Meta, kind: Kind) -> Result<(), &'static str> {
        let parts = checked_parts(path.as_bytes(), &Limits::default())?;
        let (name, above) = parts.split_last().ok_or("the root is there already")?;
        let parent = self.make_parents(above)?;
        self.put(parent, name, meta, kind);
        Ok(())
    }

    /// Takes a name away, with what is below it; missing is fine. The last component is not
    /// followed.
    pub fn remove(&mut self, path: &str) {
        let (above, name) = path
            .trim_end_matches('/')
            .rsplit_once('/')
            .unwrap_or(("", path));
        if let Some(parent) = self.find(above)
            && let Kind::Directory(children) = &mut self.nodes[parent.position()].kind
        {
            children.remove(name);
        }
    }

    /// Empties a directory; missing is fine.
    pub fn clear(&mut self, path: &str) {
        if let Some(id) = self.find(path)
            && let Kind::Directory(children) = &mut self.nodes[id.position()].kind
        {
            children.clear();
        }
    }

    /// Bytes of a file that is held here or in `sources`, if it is one and at most `limit`.
    ///
    /// # Errors
    /// When its source cannot be read.
    pub fn read(
        &self,
        path: &str,
        sources: &[File],
        limit: u64,
    ) -> std::io::Result<Option<Vec<u8>>> {
        use std::os::unix::fs::FileExt as _;
        let Some(Kind::File(data)) = self.find(path).map(|id| self.kind(id)) else {
            return Ok(None);
        };
        if data.size() > limit {
            return Ok(None);
        }
        match data {
            Data::Inline(bytes) => Ok(Some(bytes.clone())),
            Data::Span {
                source,
                offset,
                size,
            } => {
                let mut bytes = vec![0; usize::try_from(*size).unwrap_or(usize::MAX)];
                sources[*source].read_exact_at(&mut bytes, *offset)?;
                Ok(Some(bytes))
            }
            Data::Sparse { .. } => Ok(None),
            Data::Host { path, .. } => std::fs::read(path).map(Some),
        }
    }

    /// Bytes of all files, hard links once: stored ones, and the number of inodes.
    #[must_use]
    pub fn measure(&self) -> (u64, u64) {
        let mut seen = vec![false; self.nodes.len()];
        let mut pending = vec![NodeId::ROOT];
        let (mut bytes, mut inodes) = (0u64, 0u64);
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut seen[id.position()], true) {
                continue;
            }
            inodes += 1;
            match self.kind(id) {
                Kind::File(data) => bytes += data.stored().next_multiple_of(4096),
                Kind::Directory(children) => {
                    bytes += 4096
                        + children
                            .keys()
                            .map(|name| name.len() as u64 + 12)
                            .sum::<u64>();
                    pending.extend(children.values());
                }
                _ => {}
            }
        }
        (bytes, inodes)
    }
}

/// Reads a whole uncompressed tar file into a tree; file content stays there, as `source`.
///
/// # Errors
/// See [`ReadError`].
pub fn from_tar(
    file: &File,
    source: usize,
    limits: &Limits,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Tree, ReadError> {
    let total = file.metadata().map_err(TarError::Io)?.len();
    // Whoever wrote it left the cursor at its end.
    let mut file = file;
    file.rewind().map_err(TarError::Io)?;
    let input = Seeking(std::io::BufReader::with_capacity(4096, file));
    let mut reader = Reader::new(input, *limits);
    let mut tree = Tree::new();
    let mut count = 0u32;
    while let Some(entry) = reader.next_entry()? {
        cancel.check()?;
        let end = entry.offset + entry.stored;
        if end > total {
            return Err(TarError::Cut { at: total }.into());
        }
        count += 1;
        if count.is_multiple_of(1024) {
            report.bytes(end, Some(total));
        }
        tree.add_entry(entry, source, limits)?;
    }
    report.bytes(total, Some(total));
    Ok(tree)
}

/// Reads a directory of the host into a tree owned by root; symlinks are kept, never followed.
/// Devices and sockets are left out.
///
/// # Errors
/// When something below cannot be read, or has a name that is not UTF-8.
pub fn from_dir(root: &Path, cancel: &Cancel) -> Result<Tree, ReadError> {
    let mut tree = Tree::new();
    let mut pending = vec![(root.to_owned(), NodeId::ROOT)];
    while let Some((path, parent)) = pending.pop() {
        cancel.check()?;
        let mut entries: Vec<_> = std::fs::read_dir(&path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = entry
                .file_name()
                .into_string()
                .map_err(|name| TarError::Entry {
                    entry: shown(name.as_encoded_bytes()),
                    why: "its name is not UTF-8",
                })?;
            let stat = entry.metadata()?;
            let kind = if stat.is_dir() {
                Kind::Directory(BTreeMap::new())
            } else if stat.is_symlink() {
                let target = std::fs::read_link(&path)?.into_os_string();
                let target =
                    checked_target(target.into_encoded_bytes()).map_err(|why| TarError::Entry {
                        entry: shown(path.as_os_str().as_encoded_bytes()),
                        why,
                    })?;
                Kind::Symlink(target)
            } else if stat.is_file() {
                Kind::File(Data::Host {
                    path: path.clone(),
                    size: stat.len(),
                })
            } else {
                continue;
            };
            use std::os::unix::fs::MetadataExt as _;
            let mut meta = Meta::root(
                u16::try_from(stat.mode() & 0o755).expect("nine bits"),
                stat.mtime(),
            );
            meta.mtime.nanos = u32::try_from(stat.mtime_nsec()).unwrap_or(0);
            tree.count_metadata(name.len())?;
            let id = tree.put(parent, &name, meta, kind);
            if stat.is_dir() {
                pending.push((path, id));
            }
        }
    }
    Ok(tree)
}

/// A tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The archive, or an entry of it.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A directory of the host.
    #[error("cannot read the directory")]
    Io(#[from] std::io::Error),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn metadata_of(meta: &Meta, kind: &Kind) -> usize {
    let attributes: usize = meta.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
    attributes
        + match kind {
            Kind::Symlink(target) => target.len(),
            Kind::File(Data::Sparse { map, .. }) => map.len() * 16,
            _ => 0,
        }
}

/// Components of an archive's path: relative or absolute alike, never upwards.
fn checked_parts<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a str>, &'static str> {
    if path.len() > limits.path_bytes as usize {
        return Err("its path is too long");
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("its path leads upwards"),
            _ if part.len() > limits.name_bytes => return Err("its name is too long"),
            _ if part.contains(&0) => return Err("its name has a zero byte"),
            _ => parts.push(std::str::from_utf8(part).map_err(|_| "its name is not UTF-8")?),
        }
    }
    Ok(parts)
}

fn checked_target(target: Vec<u8>) -> Result<String, &'static str> {
    if target.is_empty() || target.len() > 4095 || target.contains(&0) {
        return Err("a symbolic link that cannot be");
    }
    String::from_utf8(target).map_err(|_| "its link target is not UTF-8")
}

fn check_device(major: u32, minor: u32) -> Result<(), &'static str> {
    if major > 0xfff || minor > 0xf_ffff {
        return Err("a device number out of range");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn removing_takes_what_is_below() {
        let mut tree = grow(&[("a/b/c", EntryKind::File), ("a/l", link("b"))]).unwrap();
        tree.remove("/a/l");
        assert!(tree.find("a/b/c").is_some() && tree.find_no_follow("a/l").is_none());
        tree.remove("a/b");
        tree.remove("missing/x");
        assert!(tree.find("a/b").is_none());
        assert_eq!(tree.measure().1, 2);
    }
}
