//! Copies a tree with all that makes its files what they are: owners, modes,
//! times, extended attributes, hard links, devices. Used on trees that nobody
//! else writes meanwhile.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, UTIME_OMIT, XattrFlags, chmodat, lgetxattr,
    llistxattr, lsetxattr, mknodat, utimensat,
};

/// Deepest nesting that is followed.
const MAX_DEPTH: u32 = 256;
/// Largest extended attribute, and list of their names, bytes: the kernel's.
const MAX_XATTR: usize = 64 << 10;

/// Copies what is in `from` into the existing directory `to`.
pub(crate) fn tree(from: &Path, to: &Path) -> io::Result<()> {
    Copy {
        links: HashMap::new(),
    }
    .inside(from, to, 0)
}

struct Copy {
    /// First copy of each file that has several names.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn inside(&mut self, from: &Path, to: &Path, depth: u32) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("directories are nested too deep"));
        }
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            self.one(&from.join(&name), &to.join(&name), depth)?;
        }
        Ok(())
    }

    fn one(&mut self, from: &Path, to: &Path, depth: u32) -> io::Result<()> {
        let model = fs::symlink_metadata(from)?;
        let kind = model.file_type();
        if model.nlink() > 1 && !kind.is_dir() {
            let place = (model.dev(), model.ino());
            if let Some(first) = self.links.get(&place) {
                return fs::hard_link(first, to);
            }
            self.links.insert(place, to.to_owned());
        }
        if kind.is_dir() {
            fs::create_dir(to)?;
            self.inside(from, to, depth + 1)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(from)?, to)?;
        } else if kind.is_file() {
            io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?;
        } else {
            let node = if kind.is_block_device() {
                FileType::BlockDevice
            } else if kind.is_char_device() {
                FileType::CharacterDevice
            } else if kind.is_fifo() {
                FileType::Fifo
            } else {
                // A socket is of no use without its listener.
                return Ok(());
            };
            mknodat(CWD, to, node, Mode::RUSR | Mode::WUSR, model.rdev())?;
        }
        dress(from, to, &model)
    }
}

/// Gives the copy the model's owner, mode, attributes and time. Mode after
/// owner, since a change of owner takes set-id bits away; time last.
fn dress(from: &Path, to: &Path, model: &Metadata) -> io::Result<()> {
    lchown(to, Some(model.uid()), Some(model.gid()))?;
    if !model.file_type().is_symlink() {
        chmodat(
            CWD,
            to,
            Mode::from_raw_mode(model.mode() & 0o7777),
            AtFlags::empty(),
        )?;
    }
    copy_xattrs(from, to)?;
    let time = Timespec {
        tv_sec: model.mtime(),
        tv_nsec: model.mtime_nsec() as _,
    };
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: time,
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy_xattrs(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match llistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0_u8; MAX_XATTR];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        let length = lgetxattr(from, name, &mut value[..])?;
        lsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_is_copied_with_modes_times_and_links() {
        let base = std::env::temp_dir().join(format!("banger-copy-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("dir")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("dir/file"), b"content").unwrap();
        fs::hard_link(from.join("dir/file"), from.join("second")).unwrap();
        fs::set_permissions(from.join("dir/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        fs::set_permissions(from.join("dir"), fs::Permissions::from_mode(0o1711)).unwrap();
        tree(&from, &to).unwrap();
        let file = fs::metadata(to.join("dir/file")).unwrap();
        assert_eq!(file.mode() & 0o7777, 0o4750);
        assert_eq!(
            file.mtime(),
            fs::metadata(from.join("dir/file")).unwrap().mtime()
        );
        assert_eq!(fs::read(to.join("second")).unwrap(), b"content");
        assert_eq!(fs::metadata(to.join("second")).unwrap().ino(), file.ino());
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        assert_eq!(
            fs::metadata(to.join("dir")).unwrap().mode() & 0o7777,
            0o1711
        );
        fs::remove_dir_all(base).unwrap();
    }
}
