//! Layers of an OCI image merged into one tree.
//!
//! A layer's whiteouts take away what lower layers brought, never what the layer itself brings,
//! in whatever order its entries stand. So every node knows the layer that named it last; names
//! that lead to an older node by a hard link are kept apart.
//!
//! The form of whiteouts is that of the OCI image specification, "Layer Filesystem Changeset".

use std::collections::HashSet;
use std::io::{self, BufReader, Read};

use sha2::{Digest as _, Sha256};

use super::unpacked::Unpacked;
use super::{Kind, NodeId, ReadError, Source, Tree};
use crate::codec::Bounded;
use crate::kernel::hex;
use crate::progress::{Cancel, Report};
use crate::tar::{Limits, Reader, Stream, TarError};

/// Before the name of what is taken away.
const WHITEOUT: &str = ".wh.";
/// Takes away all that lower layers have in its directory.
const OPAQUE: &str = ".wh..wh..opq";
/// Other notes of AUFS, which are not part of the image.
const NOTES: &str = ".wh..wh.";
/// Read from a compressed layer at once, bytes.
const ROUND: usize = 128 << 10;

/// What is known of the layer that is being added.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    /// 0 for archives that are no layers: there whiteouts are ordinary names.
    pub(super) number: u32,
    /// Names of this layer that lead to nodes of lower ones.
    linked: HashSet<(NodeId, String)>,
    /// Directories with nothing of lower layers, or nothing but the way to what this one has.
    cleared: HashSet<NodeId>,
}

/// Merges layers, the lowest first, into a tree whose sources they are. The limits are for all
/// of them together.
///
/// # Errors
/// See [`ReadError`].
pub fn from_layers(
    layers: &[Source],
    limits: &Limits,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Tree, ReadError> {
    let mut tree = Tree::new();
    let mut left = *limits;
    for (source, layer) in layers.iter().enumerate() {
        let bytes = layer.bytes_from(0).map_err(TarError::Io)?;
        left = tree.add_layer(source, bytes, &left, cancel, report)?.0;
    }
    Ok(tree)
}

/// What layers have to be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What each unpacks to, where that is known.
    pub diff_ids: Option<&'a [String]>,
    /// All of them together.
    pub limits: &'a Limits,
}

/// The same, and keeps what was unpacked as far as there is room for it. Gives the sources that
/// content is then read from.
///
/// # Errors
/// See [`ReadError`].
pub fn from_layers_kept(
    layers: Vec<Source>,
    unpacked: &Unpacked,
    wanted: &Wanted<'_>,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<(Tree, Vec<Source>), ReadError> {
    let mut tree = Tree::new();
    let mut left = *wanted.limits;
    let mut room = unpacked.room();
    let mut sources = Vec::with_capacity(layers.len());
    for (source, layer) in layers.into_iter().enumerate() {
        let mut keeping = room.begin(&layer);
        let bytes = layer.bytes_from(0).map_err(TarError::Io)?;
        let found;
        (left, found) = tree.add_layer(source, keeping.beside(bytes), &left, cancel, report)?;
        if let Some(named) = wanted.diff_ids.and_then(|ids| ids.get(source))
            && *named != found
        {
            return Err(ReadError::Differs {
                number: source + 1,
                found,
                named: named.clone(),
            });
        }
        sources.push(keeping.finish(layer));
    }
    Ok((tree, sources))
}

impl Tree {
    /// Merges a layer into what is below it. Gives the limits for those above, and what it
    /// unpacks to.
    fn add_layer(
        &mut self,
        source: usize,
        unpacked: Box<dyn Read + '_>,
        limits: &Limits,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<(Limits, String), ReadError> {
        self.begin_layer();
        let mut hashed = Hashed {
            inner: Bounded::new(unpacked, limits.unpacked_bytes),
            hash: Sha256::new(),
            read: 0,
        };
        let input = Stream(BufReader::with_capacity(ROUND, &mut hashed));
        let mut reader = Reader::new(input, *limits);
        let mut count = 0u32;
        while let Some(entry) = reader.next_entry()? {
            count += 1;
            if count.is_multiple_of(256) {
                cancel.check()?;
                report.bytes(entry.offset, None);
            }
            self.add_entry(entry, source, limits)?;
        }
        let mut left = reader.left();
        let holes = reader.holes();
        drop(reader);
        // The digest is of what follows the archive's end too.
        let mut buffer = vec![0; ROUND];
        loop {
            cancel.check()?;
            match hashed.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Io(error).into()),
            }
        }
        let spent = hashed.read.saturating_add(holes);
        left.unpacked_bytes = limits.unpacked_bytes.saturating_sub(spent);
        Ok((left, format!("sha256:{}", hex(&hashed.hash.finalize()))))
    }

    /// What is added from here on is another layer's.
    fn begin_layer(&mut self) {
        self.layer = Layer {
            number: self.layer.number + 1,
            ..Layer::default()
        };
    }

    /// A name of this layer leads to this node by a hard link.
    pub(super) fn note_linked(&mut self, parent: NodeId, name: &str, id: NodeId) {
        if self.nodes[id.position()].layer != self.layer.number {
            self.layer.linked.insert((parent, name.to_owned()));
        }
    }

    /// Does what a whiteout says; false for any other entry.
    pub(super) fn take_whiteout(&mut self, parts: &[&str]) -> Result<bool, &'static str> {
        let Some((name, above)) = parts.split_last() else {
            return Ok(false);
        };
        if self.layer.number == 0 || !name.starts_with(WHITEOUT) {
            return Ok(false);
        }
        let gone = &name[WHITEOUT.len()..];
        if *name != OPAQUE && !name.starts_with(NOTES) && matches!(gone, "" | "." | "..") {
            return Err("a whiteout of nothing");
        }
        // A whiteout makes no directories: where there are none, there is nothing to take.
        let Some(parent) = self.find(&above.join("/")) else {
            return Ok(true);
        };
        if *name == OPAQUE {
            self.clear_older(parent);
        } else if !name.starts_with(NOTES) {
            self.remove_older(parent, gone);
        }
        Ok(true)
    }

    /// Takes away what lower layers have under a name.
    fn remove_older(&mut self, parent: NodeId, name: &str) {
        let Kind::Directory(children) = self.kind(parent) else {
            return;
        };
        let Some(id) = children.get(name).copied() else {
            return;
        };
        if matches!(self.kind(id), Kind::Directory(_)) {
            self.clear_older(id);
        }
        if !self.stays(parent, name, id)
            && let Kind::Directory(children) = &mut self.nodes[parent.position()].kind
        {
            children.remove(name);
        }
    }

    /// Takes away what lower layers have below a directory; what lies on the way to something
    /// of this layer stays. Each directory is looked at once in a layer, however often and in
    /// however many directories above it is named.
    fn clear_older(&mut self, directory: NodeId) {
        if self.layer.cleared.contains(&directory) {
            return;
        }
        let mut found = vec![directory];
        let mut next = 0;
        // Those above stand before those below. No recursion: links make trees deeper than
        // paths are long.
        while let Some(id) = found.get(next).copied() {
            next += 1;
            let below = self.children(id).map(|(_, child)| child);
            let below = below.filter(|child| {
                matches!(self.kind(*child), Kind::Directory(_))
                    && !self.layer.cleared.contains(child)
            });
            found.extend(below.collect::<Vec<_>>());
        }
        for id in found.into_iter().rev() {
            if !self.layer.cleared.insert(id) {
                continue;
            }
            let gone: Vec<String> = self
                .children(id)
                .filter(|(name, child)| !self.stays(id, name, *child))
                .map(|(name, _)| name.to_owned())
                .collect();
            if let Kind::Directory(children) = &mut self.nodes[id.position()].kind {
                for name in gone {
                    children.remove(&name);
                }
            }
        }
    }

    /// Whether a name is this layer's, or leads to something of this layer. What is below it
    /// must have been cleared.
    fn stays(&self, parent: NodeId, name: &str, id: NodeId) -> bool {
        let node = &self.nodes[id.position()];
        node.layer == self.layer.number
            || matches!(&node.kind, Kind::Directory(children) if !children.is_empty())
            || self.layer.linked.contains(&(parent, name.to_owned()))
    }
}

/// Hashes what is read.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
    read: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.read += read as u64;
        Ok(read)
    }
}
