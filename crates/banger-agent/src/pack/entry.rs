//! What an archive says of one file: its header, with PAX records for what an
//! old header has no room for.

use std::ffi::CStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr, llistxattr_query};
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, SparseEntry};

/// Largest extended attribute, and list of their names, bytes: the kernel's.
const MAX_XATTR: usize = 64 << 10;

/// What a file is.
pub(super) enum Kind<'a> {
    Directory,
    /// This many bytes follow.
    File(u64),
    /// Of a file of this size, these ranges (offset, length) follow.
    Sparse(&'a [(u64, u64)], u64),
    Symlink(&'a [u8]),
    /// Another name of this earlier one.
    Link(&'a [u8]),
    CharDevice(u64),
    BlockDevice(u64),
    Fifo,
}

/// An extended attribute.
type Xattr = (String, Vec<u8>);

/// The header blocks of a file. The error is a sentence.
pub(super) fn header(
    name: &[u8],
    meta: &Metadata,
    kind: &Kind<'_>,
    xattrs: &[Xattr],
) -> Result<Vec<u8>, String> {
    let text = |error: tar_core::HeaderError| error.to_string();
    let mut entry = EntryBuilder::new_ustar();
    entry.path(name);
    entry.mode(meta.mode() & 0o7777).map_err(text)?;
    entry.uid(meta.uid().into()).map_err(text)?;
    entry.gid(meta.gid().into()).map_err(text)?;
    let seconds = u64::try_from(meta.mtime()).unwrap_or(0);
    entry.mtime(seconds).map_err(text)?;
    if meta.mtime_nsec() != 0 || meta.mtime() < 0 {
        entry.add_pax("mtime", time(meta.mtime(), meta.mtime_nsec()));
    }
    for (key, value) in xattrs {
        entry.add_pax(&format!("SCHILY.xattr.{key}"), value);
    }
    let (kind, size) = match kind {
        Kind::Directory => (EntryType::Directory, 0),
        Kind::File(size) => (EntryType::Regular, *size),
        Kind::Sparse(ranges, size) => {
            let stored = ranges.iter().map(|(_, length)| length).sum();
            let range = |(offset, length): &(u64, u64)| SparseEntry {
                offset: *offset,
                length: *length,
            };
            // As other writers do: an empty range where the file ends.
            let end = std::iter::once((*size, 0));
            let map: Vec<_> = ranges
                .iter()
                .copied()
                .chain(end)
                .map(|r| range(&r))
                .collect();
            entry.sparse(&map, *size);
            (EntryType::Regular, stored)
        }
        Kind::Symlink(target) => {
            entry.link_name(target);
            (EntryType::Symlink, 0)
        }
        Kind::Link(target) => {
            entry.link_name(target);
            (EntryType::Link, 0)
        }
        Kind::CharDevice(number) | Kind::BlockDevice(number) => {
            let (major, minor) = (rustix::fs::major(*number), rustix::fs::minor(*number));
            entry.device(major, minor).map_err(text)?;
            let kind = match kind {
                Kind::CharDevice(_) => EntryType::Char,
                _ => EntryType::Block,
            };
            (kind, 0)
        }
        Kind::Fifo => (EntryType::Fifo, 0),
    };
    entry.entry_type(kind).size(size).map_err(text)?;
    Ok(entry.finish_bytes())
}

/// A time as PAX writes it: a decimal number of seconds.
fn time(seconds: i64, nanos: i64) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (sign, all) = (if all < 0 { "-" } else { "" }, all.unsigned_abs());
    format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000)
}

/// The extended attributes of a file, access lists and capabilities among
/// them; none where the file system has none.
pub(super) fn xattrs(path: &Path) -> io::Result<Vec<Xattr>> {
    // Most files have none, and one call says so.
    match llistxattr_query(path) {
        Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut names = vec![0_u8; MAX_XATTR];
    let length = llistxattr(path, &mut names[..])?;
    let mut all = Vec::new();
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        let mut value = vec![0_u8; MAX_XATTR];
        let length = lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        // The record's name would end there.
        let name = name.to_str().ok().filter(|name| !name.contains('='));
        let name = name.ok_or(io::ErrorKind::InvalidData)?;
        all.push((name.to_owned(), value));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal_numbers_on_both_sides_of_1970() {
        assert_eq!(time(12, 500_000_000), "12.500000000");
        assert_eq!(time(-2, 750_000_000), "-1.250000000");
        assert_eq!(time(-1, 999_999_999), "-0.000000001");
        assert_eq!(time(-1, 0), "-1.000000000");
    }

    #[test]
    fn attributes_are_read_with_their_values() {
        let path = std::env::temp_dir().join(format!("banger-xattrs-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        assert_eq!(xattrs(&path).unwrap(), []);
        let set = |name, value: &[u8]| {
            rustix::fs::lsetxattr(&path, name, value, rustix::fs::XattrFlags::empty())
        };
        match set("user.one", b"1\0\xff") {
            Ok(()) => {
                set("user.two", b"").unwrap();
                let mut read = xattrs(&path).unwrap();
                read.sort();
                let expected = [
                    ("user.one".to_owned(), b"1\0\xff".to_vec()),
                    ("user.two".to_owned(), Vec::new()),
                ];
                assert_eq!(read, expected);
            }
            Err(error) => eprintln!("SKIPPED: no attributes in {}: {error}", path.display()),
        }
        std::fs::remove_file(path).unwrap();
    }
}
