//! Extended attributes as ext4 stores them: namespaces, access lists, and what fits.
//!
//! Owns the two facts the file system writer does not check for us: access lists have another
//! form on disk than in archives, and an inode has room for only so many bytes of attributes.

use std::collections::BTreeMap;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
/// Beside an inode of 256 bytes with 32 extra ones, after the magic number.
const INODE_ROOM: usize = 256 - 0x80 - 32 - 4;
/// In the one block an inode may have: header and terminator taken off.
const BLOCK_ROOM: usize = 4096 - 32 - 4;

/// Number of the namespace, and the part of the name that is stored.
fn namespace(name: &str) -> Option<(u8, &str)> {
    match name {
        ACCESS => return Some((2, "")),
        DEFAULT => return Some((3, "")),
        _ => {}
    }
    [
        ("user.", 1),
        ("trusted.", 4),
        ("security.", 6),
        ("system.", 7),
    ]
    .iter()
    .find_map(|(prefix, number)| Some((*number, name.strip_prefix(prefix)?)))
    .filter(|(_, suffix)| !suffix.is_empty())
}

/// The value as it goes on disk.
///
/// # Errors
/// When it is an access list that is none.
pub(crate) fn on_disk(name: &str, value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name == ACCESS || name == DEFAULT {
        acl(value)
    } else {
        Ok(value.to_vec())
    }
}

/// Version 2, entries of 8 bytes, to version 1, entries of 4 with an id only where it matters.
fn acl(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    const BROKEN: &str = "a damaged access list";
    let body = value.strip_prefix(&2u32.to_le_bytes()).ok_or(BROKEN)?;
    if body.len() % 8 != 0 {
        return Err(BROKEN);
    }
    let mut out = 1u32.to_le_bytes().to_vec();
    for entry in body.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        out.extend_from_slice(&entry[..4]);
        match tag {
            // ACL_USER, ACL_GROUP
            0x02 | 0x08 => out.extend_from_slice(&entry[4..8]),
            // ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER
            0x01 | 0x04 | 0x10 | 0x20 => {}
            _ => return Err(BROKEN),
        }
    }
    Ok(out)
}

/// Whether an attribute is one that Linux has on a file. Archives of other systems have others,
/// which `umoci` leaves out as well.
pub(crate) fn is_of_linux(name: &str) -> bool {
    ["user.", "trusted.", "security."]
        .iter()
        .any(|namespace| name.starts_with(namespace))
        || matches!(name, ACCESS | DEFAULT)
}

/// Whether they may take a block beside the inode.
pub(crate) fn take_a_block(xattrs: &BTreeMap<String, Vec<u8>>) -> bool {
    let sizes = xattrs
        .iter()
        .map(|(name, value)| 24 + name.len() + value.len());
    sizes.sum::<usize>() > INODE_ROOM - 4
}

/// Whether the writer can store them all, by its own rule: in order, what fits goes beside the
/// inode, and all from the first that does not into one block.
///
/// # Errors
/// A word on why not.
pub(crate) fn check(xattrs: &BTreeMap<String, Vec<u8>>) -> Result<(), &'static str> {
    let mut sizes = Vec::with_capacity(xattrs.len());
    for (name, value) in xattrs {
        let (number, suffix) =
            namespace(name).ok_or("an attribute of a namespace that is not known")?;
        if suffix.len() > 255 || suffix.contains('\0') {
            return Err("an attribute name that cannot be");
        }
        let stored = on_disk(name, value)?.len();
        let size = 16 + suffix.len().next_multiple_of(4) + stored.next_multiple_of(4);
        if stored > BLOCK_ROOM || size > BLOCK_ROOM {
            return Err("an attribute is too large for the file system");
        }
        sizes.push(((number, suffix.len(), suffix), size));
    }
    sizes.sort_unstable();
    let mut room = INODE_ROOM - 4;
    let mut rest = sizes.iter().map(|(_, size)| *size).skip_while(|size| {
        let fits = *size <= room;
        if fits {
            room -= size;
        }
        fits
    });
    if rest.by_ref().sum::<usize>() > BLOCK_ROOM {
        return Err("its attributes are too large for the file system");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(entries: &[(&str, usize)]) -> BTreeMap<String, Vec<u8>> {
        entries
            .iter()
            .map(|(name, len)| ((*name).to_owned(), vec![1; *len]))
            .collect()
    }

    #[test]
    fn what_the_check_lets_through_the_writer_stores_and_nothing_more() {
        for big in (3900..4080).step_by(4) {
            for small in [0, 20, 60] {
                let xattrs = set(&[("user.a", small), ("user.bb", big)]);
                let mut builder =
                    mkext4::FsBuilder::new(mkext4::Options::new(16 << 20, [1; 16], 0)).unwrap();
                for (name, value) in &xattrs {
                    builder.set_xattr(mkext4::ROOT, name, value).unwrap();
                }
                assert_eq!(
                    check(&xattrs).is_ok(),
                    builder.seal().is_ok(),
                    "{small} and {big} bytes"
                );
            }
        }
    }

    #[test]
    fn an_access_list_takes_its_form_on_disk() {
        // user::rwx, user:1000:r--, group::r-x, mask::rwx, other::---
        let mut kernel = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in [
            (1u16, 7u16, u32::MAX),
            (2, 4, 1000),
            (4, 5, u32::MAX),
            (16, 7, u32::MAX),
            (32, 0, u32::MAX),
        ] {
            kernel.extend(tag.to_le_bytes());
            kernel.extend(perm.to_le_bytes());
            kernel.extend(id.to_le_bytes());
        }
        let disk = on_disk(ACCESS, &kernel).unwrap();
        assert_eq!(
            disk,
            [
                1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 5, 0, 16, 0, 7, 0, 32, 0,
                0, 0
            ]
        );
        assert!(on_disk(ACCESS, b"nonsense").is_err());
    }

    #[test]
    fn unknown_namespaces_are_refused() {
        assert!(check(&set(&[("weird.name", 1)])).is_err());
        assert!(check(&set(&[("user.", 1)])).is_err());
        assert!(check(&set(&[("security.capability", 20)])).is_ok());
    }
}
