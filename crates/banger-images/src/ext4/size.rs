//! How large file systems are: what a tree takes, what disks of which sizes can hold.
//!
//! Owns what the writer crate does not look at: a last block group too short for what it has to
//! hold is left out, as `mke2fs` does, and nothing that does not fit is begun.

use super::{BLOCK, MAX_DISK_BYTES};
use crate::tree::Tree;

/// Bytes of a block group.
pub(super) const GROUP: u64 = 128 << 20;
/// Groups whose bitmaps and inode tables lie together in the first of them.
const SPAN: u64 = 16;
/// The least of a last group that begins such a span, bytes: its bitmaps, an inode table of
/// 6.4 MiB where there is an inode for each [`LEAST_PER_INODE`] bytes, and something to spare.
const LEAST_LEADER: u64 = 8 << 20;
/// The least of any other last group, bytes: copies of the superblock and of the group
/// descriptors of the largest disk, which take nine blocks.
const LEAST_LATER: u64 = 64 << 10;
/// Bytes of a disk for each inode at least. The inode tables of a span lie in the first of its
/// groups, with little else, and the writer does not look whether they fit: one inode for each
/// block would fill that group, and what comes next would lie on top.
pub(super) const LEAST_PER_INODE: u64 = 5120;
/// As `mke2fs` has it.
pub(super) const BYTES_PER_INODE: u64 = 16_384;
/// Blocks of a journal that nobody writes: the fewest there may be.
const READ_ONLY_JOURNAL: u32 = 1024;
/// Copies of the superblock on the largest disk, and blocks that each takes at most.
const COPIES: (u64, u64) = (16, 9);
/// Blocks that are not counted one by one: `lost+found`, and where runs are cut.
const SPARE: u64 = 256;
const MIB: u64 = 1 << 20;

/// Blocks of the journal of a file system of this size, as `mke2fs` has it.
pub(super) fn journal(bytes: u64, read_only: bool) -> u32 {
    if read_only {
        return READ_ONLY_JOURNAL;
    }
    match bytes / BLOCK {
        0..=0x7fff => 1024,
        0x8000..=0x3_ffff => 4096,
        0x4_0000..=0x7_ffff => 8192,
        0x8_0000..=0x3f_ffff => 16_384,
        0x40_0000..=0x7f_ffff => 32_768,
        0x80_0000..=0xff_ffff => 65_536,
        0x100_0000..=0x1ff_ffff => 131_072,
        _ => 262_144,
    }
}

/// What a file system takes of a file of this size: all whole blocks, but no last group which
/// could not hold what it has to.
pub(super) fn usable(bytes: u64) -> u64 {
    let (groups, tail) = (bytes / GROUP, bytes % GROUP);
    match groups {
        1.. if tail < least_tail(groups) => groups * GROUP,
        _ => bytes / BLOCK * BLOCK,
    }
}

/// The least of a group that is the last, by its number.
fn least_tail(number: u64) -> u64 {
    match number.is_multiple_of(SPAN) {
        true => LEAST_LEADER,
        false => LEAST_LATER,
    }
}

/// Rounded up to MiB, and further where a file system would not take all of it.
fn whole(bytes: u64) -> u64 {
    let bytes = bytes.next_multiple_of(MIB);
    match usable(bytes) {
        usable if usable < bytes => usable + least_tail(usable / GROUP).next_multiple_of(MIB),
        _ => bytes,
    }
}

/// Size of an image that holds `tree` with half as much again to spare, at least 1 GiB and at
/// most [`MAX_DISK_BYTES`]. Files that are empty count too.
#[must_use]
pub fn roomy_size(tree: &Tree) -> u64 {
    let (bytes, inodes) = tree.measure();
    let content = (bytes + inodes * 256).max(inodes * LEAST_PER_INODE);
    let roomy = (content + content / 2).max(1 << 30);
    whole(roomy.max(least(bytes, inodes, false))).min(MAX_DISK_BYTES)
}

/// Size of a read-only image that just holds `tree`.
#[must_use]
pub fn snug_size(tree: &Tree) -> u64 {
    let (bytes, inodes) = tree.measure();
    // A journal is always written (4 MiB of holes at this size), and group tables.
    let content = (bytes + inodes * 256).max(inodes * LEAST_PER_INODE);
    let snug = content + content / 20 + (24 << 20);
    whole(snug.max(least(bytes, inodes, true)))
}

/// The least size that certainly holds `tree`: a little less may do.
#[must_use]
pub fn least_size(tree: &Tree, read_only: bool) -> u64 {
    let (bytes, inodes) = tree.measure();
    least(bytes, inodes, read_only)
}

fn least(bytes: u64, inodes: u64, read_only: bool) -> u64 {
    let mut size = whole(bytes.max(inodes * LEAST_PER_INODE));
    // What it takes beside the content grows far slower than the size.
    loop {
        let taken = bytes + beside(size, inodes, read_only);
        if taken <= size && inode_count(inodes, size, read_only).is_some() {
            return size;
        }
        size = whole(taken.max(size + MIB));
    }
}

/// Bytes that a file system of this size needs beside its content.
fn beside(size: u64, inodes: u64, read_only: bool) -> u64 {
    let journal = u64::from(journal(size, read_only));
    let groups = size.div_ceil(GROUP);
    let tables = inode_count(inodes, size, read_only).unwrap_or(size / LEAST_PER_INODE) / 16;
    let blocks = journal + tables + groups * 3 + COPIES.0 * COPIES.1 + SPARE;
    // A quarter at most may be journal.
    (blocks * BLOCK).max(journal * 4 * BLOCK)
}

/// Inodes of a file system of this size: room for new files, or as few as the tree has. `None`
/// when even those do not fit.
pub(super) fn inode_count(inodes: u64, size: u64, read_only: bool) -> Option<u64> {
    let (least, wanted) = if read_only {
        (inodes + 64, inodes + 64)
    } else {
        // One inode per 16 KiB is too few for a tree of small files.
        let roomy = inodes * 2 + 65_536;
        (inodes + 16, roomy.max(size / BYTES_PER_INODE))
    };
    let most = size / LEAST_PER_INODE;
    (least <= most).then(|| wanted.min(most))
}

/// A size as users write it: `700M`, `2G`, or bytes.
#[must_use]
pub fn shown(bytes: u64) -> String {
    match bytes {
        whole if whole.is_multiple_of(1 << 30) => format!("{}G", whole >> 30),
        whole if whole.is_multiple_of(MIB) => format!("{}M", whole >> 20),
        odd => format!("{odd} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_group_without_room_is_left_out_or_made_larger() {
        const SPAN_BYTES: u64 = SPAN * GROUP;
        for (bytes, taken, grown) in [
            (MIB, MIB, MIB),
            (257 * MIB, 257 * MIB, 257 * MIB),
            (3 * GROUP + BLOCK, 3 * GROUP, 3 * GROUP + MIB),
            (SPAN_BYTES, SPAN_BYTES, SPAN_BYTES),
            (SPAN_BYTES + MIB, SPAN_BYTES, SPAN_BYTES + 8 * MIB),
            (
                3 * SPAN_BYTES + 7 * MIB,
                3 * SPAN_BYTES,
                3 * SPAN_BYTES + 8 * MIB,
            ),
            (
                SPAN_BYTES + 8 * MIB,
                SPAN_BYTES + 8 * MIB,
                SPAN_BYTES + 8 * MIB,
            ),
        ] {
            assert_eq!((usable(bytes), whole(bytes)), (taken, grown), "{bytes}");
            assert_eq!(usable(grown), grown);
        }
    }

    #[test]
    fn no_size_is_more_than_the_largest_disk_or_too_small_for_what_it_is_of() {
        for bytes in [0, 1 << 20, 2 << 30, 90 << 30, 120 << 30, 200 << 30] {
            for inodes in [1, 100_000, 2_000_000] {
                let size = least(bytes, inodes, false);
                assert!(size >= bytes + inodes * 256, "{bytes} {inodes} {size}");
                assert!(usable(size) == size);
            }
        }
        assert_eq!(shown(3 << 30), "3G");
        assert_eq!(shown((3 << 30) + MIB), "3073M");
        assert_eq!(shown(4097), "4097 bytes");
    }
}
