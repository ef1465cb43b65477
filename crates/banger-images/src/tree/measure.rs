//! How much room a tree takes in a file system.

use super::{Data, Kind, NodeId, Tree};
use crate::xattr;

const BLOCK: u64 = 4096;
/// Bytes of a directory's block that names may take, its checksum taken off.
const NAMES: u64 = BLOCK - 12;
/// Bytes of the longest name in a directory: what may be left unused at the end of a block.
const LONGEST: u64 = 264;
/// Link targets up to here lie in the inode.
const SHORT_TARGET: usize = 59;
/// Pieces of a file up to here are told in its inode; others take blocks, each of this many.
const PIECES: (u64, u64) = (3, 300);
/// The longest piece of a file, bytes.
const PIECE: u64 = 128 << 20;

/// Memory of the writer for an inode, whatever it is of, bytes.
const INODE: u64 = 640;
/// The same for a name besides its letters, and for a range of a sparse file.
const NAME: u64 = 32;
const RANGE: u64 = 80;

/// Stored ranges rounded out to blocks, those that touch made one.
pub(crate) fn block_ranges(map: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &(offset, length) in map {
        let start = offset / BLOCK * BLOCK;
        let end = (offset + length).next_multiple_of(BLOCK).min(size);
        match ranges.last_mut() {
            Some((_, last)) if *last >= start => *last = end.max(*last),
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

/// What a file system of a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Bytes of the blocks of all files, hard links once, of directories, and of what does not
    /// fit into inodes.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Bytes of memory, about, that the writer has for it when all is laid out: every block that
    /// is no file's content, every inode, and names and attributes.
    pub(crate) memory: u64,
}

impl Tree {
    /// Bytes of the blocks of all files, hard links once, of directories, and of what does not
    /// fit into inodes; and the number of inodes.
    #[must_use]
    pub fn measure(&self) -> (u64, u64) {
        self.measure_from(NodeId::ROOT)
    }

    /// The same of one directory and what is below it.
    #[must_use]
    pub fn measure_from(&self, top: NodeId) -> (u64, u64) {
        let found = self.measured(top);
        (found.bytes, found.inodes)
    }

    pub(crate) fn measured(&self, top: NodeId) -> Measure {
        let mut seen = vec![false; self.nodes.len()];
        let mut pending = vec![top];
        let mut sum = Measure::default();
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut seen[id.position()], true) {
                continue;
            }
            let xattrs = &self.meta(id).xattrs;
            let attributes = xattrs
                .iter()
                .map(|(name, value)| name.len() + value.len() + 64);
            sum.inodes += 1;
            sum.memory += INODE + attributes.sum::<usize>() as u64;
            let mut blocks = 0;
            if xattr::take_a_block(xattrs) {
                blocks += BLOCK;
            }
            match self.kind(id) {
                Kind::File(data) => {
                    let (stored, ranges, told) = of_file(data);
                    sum.bytes += stored;
                    sum.memory += ranges * RANGE;
                    blocks += told;
                }
                Kind::Directory(children) => {
                    let names = children.keys().map(|name| name.len() as u64);
                    sum.memory += names.clone().map(|name| name + NAME).sum::<u64>();
                    blocks += of_directory(names);
                    pending.extend(children.values());
                }
                Kind::Symlink(target) if target.len() > SHORT_TARGET => blocks += BLOCK,
                _ => {}
            }
            sum.bytes += blocks;
            sum.memory += blocks;
        }
        sum
    }
}

/// Bytes of its content's blocks, its ranges, and bytes of the blocks that tell those.
fn of_file(data: &Data) -> (u64, u64, u64) {
    let (stored, ranges) = match data {
        Data::Sparse { map, size, .. } => {
            let ranges = block_ranges(map, *size);
            let blocks = |(start, end): &(u64, u64)| (end - start).next_multiple_of(BLOCK);
            (ranges.iter().map(blocks).sum(), ranges.len() as u64)
        }
        _ => (data.size().next_multiple_of(BLOCK), 1),
    };
    // Long ones are cut, by what lies at the begin of groups too.
    let pieces = ranges + 2 * (stored / PIECE);
    let told = match pieces > PIECES.0 {
        true => pieces / PIECES.1 + 2,
        false => 0,
    };
    (stored, ranges, told * BLOCK)
}

/// Of a directory with names of these lengths.
fn of_directory(names: impl Iterator<Item = u64>) -> u64 {
    let names: u64 = names.map(|name| (name + 8).next_multiple_of(4)).sum();
    // With its own name and that above it.
    if names + 24 <= NAMES {
        return BLOCK;
    }
    let leaves = names.div_ceil(NAMES - LONGEST);
    (1 + leaves + leaves.div_ceil(500)) * BLOCK
}
