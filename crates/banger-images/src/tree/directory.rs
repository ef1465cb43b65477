//! A directory of the host as a tree.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::archive::checked_target;
use super::{Data, Kind, Meta, NodeId, ReadError, Tree};
use crate::progress::Cancel;
use crate::tar::{Limits, TarError, shown};

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
            let mut meta = Meta::root(
                u16::try_from(stat.mode() & 0o755).expect("nine bits"),
                stat.mtime(),
            );
            meta.mtime.nanos = u32::try_from(stat.mtime_nsec()).unwrap_or(0);
            tree.count_metadata(name.len(), &Limits::default())?;
            let id = tree.put(parent, &name, meta, kind);
            if stat.is_dir() {
                pending.push((path, id));
            }
        }
    }
    Ok(tree)
}
