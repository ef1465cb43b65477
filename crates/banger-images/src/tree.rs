//! A file system as a value: what archives merge into and file systems are written from.
//!
//! Owns names, metadata and where each file's bytes are; holds no file content but small texts.
//! Paths of archives are resolved inside the tree (symlinks too), so nothing can lead out of
//! it. Refuses names that are not UTF-8 and attributes that would not fit the file system.

mod archive;
mod directory;
mod layers;
mod measure;
mod unpacked;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use crate::codec::{self, Positioned};
use crate::progress::Cancelled;
use crate::tar::{Limits, TarError, Time};

use archive::checked_parts;
pub use archive::from_tar;
pub use directory::from_dir;
use layers::Layer;
pub use layers::{Wanted, from_layers, from_layers_kept};
pub(crate) use measure::block_ranges;
pub use unpacked::Unpacked;

/// Symlinks followed on the way to one entry.
const LINK_LIMIT: usize = 40;
/// What a directory that no entry names takes of the room for metadata, bytes: about what it
/// takes of memory, since one entry can imply thousands.
const IMPLIED: usize = 192;
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

impl Data {
    /// The bytes of a file without holes.
    ///
    /// # Errors
    /// When they cannot be read, or when it has holes.
    pub(crate) fn reader<'a>(
        &'a self,
        sources: &'a [Source],
    ) -> std::io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Data::Inline(bytes) => Box::new(bytes.as_slice()),
            Data::Host { path, .. } => Box::new(File::open(path)?),
            Data::Span {
                source,
                offset,
                size,
            } => Box::new(sources[*source].bytes_from(*offset)?.take(*size)),
            Data::Sparse { .. } => {
                let why = "it has holes";
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
            }
        })
    }
}

/// What the bytes of a tree's files are read from.
#[derive(Debug)]
pub enum Source {
    /// Offsets are those of the file.
    Plain(File),
    /// However it is compressed, offsets are those of its unpacked bytes.
    Packed(File),
    /// What a packed one unpacked to: offsets are from `base` in the file.
    Kept {
        /// Where it is kept, with others.
        file: Arc<File>,
        /// Its first byte there.
        base: u64,
    },
}

impl Source {
    /// Its bytes from `offset` on. A packed one is unpacked up to there.
    ///
    /// # Errors
    /// Those of [`codec::unpack`].
    pub fn bytes_from(&self, offset: u64) -> std::io::Result<Box<dyn Read + '_>> {
        match self {
            Source::Plain(file) => Ok(Box::new(Positioned { file, at: offset })),
            Source::Kept { file, base } => {
                let at = base + offset;
                Ok(Box::new(Positioned { file, at }))
            }
            Source::Packed(file) => {
                let unpacked = codec::unpack_file(file)?;
                let most = Limits::default().unpacked_bytes;
                let mut unpacked = Box::new(codec::Bounded::new(unpacked, most));
                std::io::copy(&mut (&mut unpacked).take(offset), &mut std::io::sink())?;
                Ok(unpacked)
            }
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
    /// The layer that made it, or last named it.
    layer: u32,
}

/// A way through the tree, component by component.
struct Walk<'p> {
    /// From the root to here.
    trail: Vec<NodeId>,
    /// What is still to go, the next one last.
    todo: Vec<Cow<'p, str>>,
    links_left: usize,
    follow_last: bool,
}

/// Where a walk stopped.
enum Step<'p> {
    End,
    /// This name is not there.
    Missing(Cow<'p, str>),
}

impl<'p> Walk<'p> {
    fn to(path: &'p str, follow_last: bool) -> Self {
        Self {
            trail: vec![NodeId::ROOT],
            todo: components(path).map(Cow::Borrowed).collect(),
            links_left: LINK_LIMIT,
            follow_last,
        }
    }

    fn here(&self) -> NodeId {
        *self.trail.last().expect("the root is never popped")
    }
}

/// The names of a path, the last one first.
fn components(path: &str) -> impl Iterator<Item = &str> {
    let parts = path.rsplit('/');
    parts.filter(|part| !part.is_empty() && *part != ".")
}

/// A whole file system.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
    metadata_bytes: usize,
    layer: Layer,
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
                layer: 0,
            }],
            metadata_bytes: 0,
            layer: Layer::default(),
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
        self.resolve(Walk::to(path, true))
    }

    /// The node at a path whose last component is not followed.
    #[must_use]
    pub fn find_no_follow(&self, path: &str) -> Option<NodeId> {
        self.resolve(Walk::to(path, false))
    }

    fn resolve(&self, mut walk: Walk<'_>) -> Option<NodeId> {
        match self.go(&mut walk) {
            Ok(Step::End) => Some(walk.here()),
            Ok(Step::Missing(_)) | Err(_) => None,
        }
    }

    /// Goes on with a walk to its end, or to a name that is not there.
    fn go<'p>(&self, walk: &mut Walk<'p>) -> Result<Step<'p>, &'static str> {
        while let Some(part) = walk.todo.pop() {
            let Kind::Directory(children) = self.kind(walk.here()) else {
                return Err("below something that is not a directory");
            };
            if part == ".." {
                // The root's parent is the root, as in a chroot.
                if walk.trail.len() > 1 {
                    walk.trail.pop();
                }
                continue;
            }
            let Some(next) = children.get(&*part).copied() else {
                return Ok(Step::Missing(part));
            };
            match self.kind(next) {
                Kind::Symlink(target) if walk.follow_last || !walk.todo.is_empty() => {
                    let left = walk.links_left.checked_sub(1);
                    walk.links_left = left.ok_or("too many symbolic links")?;
                    if target.starts_with('/') {
                        walk.trail.truncate(1);
                    }
                    let parts = components(target).map(|part| Cow::Owned(part.to_owned()));
                    walk.todo.extend(parts);
                }
                _ => walk.trail.push(next),
            }
        }
        Ok(Step::End)
    }

    /// The directory at a path, made where missing, through symlinks on the way: what a link
    /// leads to is made as well, as where `/var/run` leads to a `/run` that nobody packed.
    fn make_parents(&mut self, path: &str, limits: &Limits) -> Result<NodeId, &'static str> {
        let mut walk = Walk::to(path, true);
        while let Step::Missing(name) = self.go(&mut walk)? {
            let here = walk.here();
            self.count_metadata(name.len() + IMPLIED, limits)
                .map_err(|_| "it implies too many directories")?;
            let meta = Meta::root(0o755, self.meta(here).mtime.seconds);
            let made = self.put(here, &name, meta, Kind::Directory(BTreeMap::new()));
            walk.trail.push(made);
        }
        match self.kind(walk.here()) {
            Kind::Directory(_) => Ok(walk.here()),
            _ => Err("below something that is not a directory"),
        }
    }

    /// Puts a node under a name; a directory over a directory keeps what is inside.
    fn put(&mut self, parent: NodeId, name: &str, meta: Meta, kind: Kind) -> NodeId {
        if let Kind::Directory(children) = self.kind(parent)
            && let Some(old) = children.get(name).copied()
            && let (Kind::Directory(_), Kind::Directory(_)) = (self.kind(old), &kind)
        {
            let old_node = &mut self.nodes[old.position()];
            old_node.meta = meta;
            old_node.layer = self.layer.number;
            return old;
        }
        let id = NodeId(u32::try_from(self.nodes.len()).expect("entries are bounded far below"));
        let layer = self.layer.number;
        self.nodes.push(Node { meta, kind, layer });
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
        let limits = Limits::default();
        let parts = checked_parts(path.as_bytes(), &limits)?;
        let (name, above) = parts.split_last().ok_or("the root is there already")?;
        let parent = self.make_parents(&above.join("/"), &limits)?;
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
        sources: &[Source],
        limit: u64,
    ) -> std::io::Result<Option<Vec<u8>>> {
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
                sources[*source]
                    .bytes_from(*offset)?
                    .read_exact(&mut bytes)?;
                Ok(Some(bytes))
            }
            Data::Sparse { .. } => Ok(None),
            Data::Host { path, .. } => std::fs::read(path).map(Some),
        }
    }
}

/// A tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The archive, or an entry of it.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A layer is not the one that the image's config names.
    #[error("layer {number} unpacks to {found}, its config says {named}")]
    Differs {
        /// Counted from 1.
        number: usize,
        /// What it unpacks to.
        found: String,
        /// What it should.
        named: String,
    },
    /// A directory of the host.
    #[error("cannot read the directory")]
    Io(#[from] std::io::Error),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

#[cfg(test)]
mod tests;
