//! A kernel's bundle to what a VM boots from, by the same steps and checks as every other kernel.

use std::fs::File;
use std::path::{Component, Path};

use super::{Archive, BundleError, MANIFEST, Manifest, Sha, plain, pour, through};
use crate::ext4::LEAST_FREE;
use crate::kernel::{self, KernelInfo};
use crate::progress::{Cancel, Report};
use crate::spare::Spare;
use crate::tar::{Entry, EntryKind, Limits, Time};
use crate::tree::{Kind, Tree};

/// Ten times the modules of any kernel.
const ENTRIES: u64 = 100_000;
/// Kernel, initrd and modules unpacked.
const BYTES: u64 = 9 << 30;

/// Unpacks a kernel's bundle into `dest`, as [`kernel::import_dir`] does for a directory. Nothing
/// is left of it when that fails.
///
/// Files, directories and links that stay inside are taken, and other kinds passed over.
///
/// # Errors
/// See [`BundleError`].
pub fn import(
    file: &File,
    expected: Option<&Sha>,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<(KernelInfo, Manifest), BundleError> {
    let limits = Limits {
        entries: ENTRIES,
        unpacked_bytes: BYTES,
        metadata_bytes: 64 << 20,
        ..Limits::default()
    };
    // In the destination, since it is large; without a name, since it is nobody else's.
    let spool = tempfile::tempfile_in(dest).map_err(BundleError::io(format!(
        "make a file in {}",
        dest.display()
    )))?;
    let (manifest, tree) = through(file, expected, limits, cancel, report, |archive| {
        let mut members = Members {
            manifest: None,
            tree: Tree::new(),
            spool: &spool,
            spooled: 0,
            spare: Spare::of(LEAST_FREE),
            limits,
            cancel,
        };
        members.read(archive)?;
        let manifest = members
            .manifest
            .ok_or(BundleError::Missing { what: MANIFEST })?;
        Ok((manifest, members.tree))
    })?;
    let version = manifest.kernel_version.clone();
    let distro = manifest.distro.clone();
    let info = kernel::import_tree(tree, spool, version, distro, dest, cancel, report)?;
    Ok((info, manifest))
}

struct Members<'a> {
    manifest: Option<Manifest>,
    tree: Tree,
    /// Contents, one after another.
    spool: &'a File,
    spooled: u64,
    spare: Spare,
    limits: Limits,
    cancel: &'a Cancel,
}

impl Members<'_> {
    fn read(&mut self, archive: &mut Archive<'_>) -> Result<(), BundleError> {
        while let Some(entry) = archive.next_entry()? {
            self.cancel.check()?;
            let name = plain(&entry.path);
            if name == MANIFEST.as_bytes() {
                if self.manifest.is_some() {
                    return Err(BundleError::member(&entry.path, "is there twice"));
                }
                self.manifest = Some(Manifest::of(archive, &entry)?);
            } else {
                self.take(archive, &entry)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, archive: &mut Archive<'_>, entry: &Entry) -> Result<(), BundleError> {
        let refuse = |why| Err(BundleError::member(&entry.path, why));
        let directory = entry.kind == EntryKind::Directory;
        let Some(parts) = below_root(&entry.path) else {
            return refuse("leads out of it");
        };
        if parts.is_empty() {
            return if directory {
                Ok(())
            } else {
                refuse("is no directory")
            };
        }
        let path = parts.join("/");
        let kind_of = |tree: &Tree, path: &str| {
            let found = tree.find_no_follow(path)?;
            Some(matches!(tree.kind(found), Kind::Directory(_)))
        };
        // Never through a link, even one that stays inside.
        let mut above = (1..parts.len()).map(|count| parts[..count].join("/"));
        if above.any(|above| kind_of(&self.tree, &above) == Some(false)) {
            return refuse("leads through what is no directory");
        }
        match kind_of(&self.tree, &path) {
            Some(true) if directory => return Ok(()),
            Some(_) => return refuse("is there twice"),
            None => {}
        }
        let mut size = 0;
        let kind = match &entry.kind {
            EntryKind::Directory => EntryKind::Directory,
            EntryKind::File | EntryKind::Sparse { .. } => {
                size = pour(
                    archive,
                    entry,
                    self.spool,
                    self.spooled,
                    &mut self.spare,
                    self.cancel,
                )?;
                EntryKind::File
            }
            EntryKind::Symlink(target) if stays_inside(target, parts.len() - 1) => {
                EntryKind::Symlink(target.clone())
            }
            EntryKind::HardLink(target) if stays_inside(target, 0) => {
                EntryKind::HardLink(target.clone())
            }
            EntryKind::Symlink(_) | EntryKind::HardLink(_) => {
                return refuse("is a link that leads out of it");
            }
            EntryKind::CharDevice(..) | EntryKind::BlockDevice(..) | EntryKind::Fifo => {
                return Ok(());
            }
        };
        let taken = Entry {
            path: path.into_bytes(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Vec::new(),
            stored: size,
            offset: self.spooled,
        };
        self.spooled += size;
        Ok(self.tree.add_entry(taken, 0, &self.limits)?)
    }
}

/// The names of a member's path; `None` when it does not stay below the root at every step.
fn below_root(path: &[u8]) -> Option<Vec<&str>> {
    let path = std::str::from_utf8(path).ok()?;
    Path::new(path)
        .components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect()
}

/// Whether a link that lies so deep stays below the root, at every step of its target.
fn stays_inside(target: &[u8], depth: usize) -> bool {
    let Ok(target) = std::str::from_utf8(target) else {
        return false;
    };
    let end = Path::new(target)
        .components()
        .try_fold(depth, |depth, part| match part {
            Component::Normal(_) => Some(depth + 1),
            Component::CurDir => Some(depth),
            Component::ParentDir => depth.checked_sub(1),
            Component::RootDir | Component::Prefix(_) => None,
        });
    end.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_go_up_as_far_as_the_root() {
        for (target, depth, inside) in [
            ("a/b", 0, true),
            ("../a", 1, true),
            ("../../a", 1, false),
            ("/etc", 3, false),
            ("a/../../b", 0, false),
            ("a/../b", 0, true),
        ] {
            assert_eq!(stays_inside(target.as_bytes(), depth), inside, "{target}");
        }
        assert!(!stays_inside(b"a\xff", 0));
    }

    #[test]
    fn a_path_is_plain_names_only() {
        assert_eq!(below_root(b"./a//b/").unwrap(), ["a", "b"]);
        assert_eq!(below_root(b"./").unwrap(), [""; 0]);
        for path in [&b"/a"[..], b"../a", b"a/../b", b"a/..", b"\xff"] {
            assert_eq!(below_root(path), None);
        }
    }
}
