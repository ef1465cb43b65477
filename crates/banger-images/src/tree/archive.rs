//! What an archive's entries make of a tree. Everything of an entry is checked before it is
//! believed: its path never leads upwards, its name fits, its attributes fit the file system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};

use super::{Data, Kind, Meta, ReadError, Tree};
use crate::progress::{Cancel, Report};
use crate::tar::{Entry, EntryKind, Limits, Reader, Seeking, TarError, shown};
use crate::xattr;

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
    // Whoever wrote it left the cursor at its end; and who may do little may still move it.
    let mut file = file;
    let total = file.seek(SeekFrom::End(0)).map_err(TarError::Io)?;
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

impl Tree {
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
        if self.take_whiteout(&parts).map_err(refuse)? {
            return Ok(());
        }
        let mut xattrs = BTreeMap::new();
        for (name, value) in entry.xattrs {
            if xattr::is_of_linux(&name) {
                xattrs.insert(name, value);
            }
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
                self.nodes[0].layer = self.layer.number;
                return Ok(());
            }
            return Err(refuse("the root must be a directory"));
        };
        let parent = self
            .make_parents(&above.join("/"), limits)
            .map_err(refuse)?;
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
                let linked = std::str::from_utf8(&target)
                    .ok()
                    .and_then(|target| self.find_no_follow(target))
                    .ok_or_else(|| refuse("a hard link to nothing"))?;
                if matches!(self.kind(linked), Kind::Directory(_)) {
                    return Err(refuse("a hard link to a directory"));
                }
                self.count_metadata(name.len(), limits)?;
                self.link(parent, name, linked);
                self.note_linked(parent, name, linked);
                return Ok(());
            }
        };
        let grown = name.len() + metadata_of(&meta, &kind);
        self.count_metadata(grown, limits)?;
        self.put(parent, name, meta, kind);
        Ok(())
    }

    pub(super) fn count_metadata(&mut self, bytes: usize, limits: &Limits) -> Result<(), TarError> {
        self.metadata_bytes += bytes + 64;
        if self.metadata_bytes > limits.metadata_bytes {
            return Err(TarError::TooMuch {
                what: "bytes of names and attributes",
            });
        }
        Ok(())
    }
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
pub(super) fn checked_parts<'a>(
    path: &'a [u8],
    limits: &Limits,
) -> Result<Vec<&'a str>, &'static str> {
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

pub(super) fn checked_target(target: Vec<u8>) -> Result<String, &'static str> {
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
