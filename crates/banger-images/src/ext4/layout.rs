//! Declares a tree to the writer: names, metadata, attributes, and how much room files need.

use mkext4::{FsBuilder, InodeHandle, SpecialKind};

use super::content::block_segments;
use super::{WriteError, layout_error};
use crate::progress::Cancel;
use crate::tar::Time;
use crate::tree::{Data, Kind, Meta, NodeId, Tree};
use crate::xattr;

/// What an inode's 34 bits of seconds hold.
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;

/// A file that content has to be written for.
pub(super) struct Pending<'a> {
    pub(super) id: NodeId,
    pub(super) handle: InodeHandle,
    pub(super) data: &'a Data,
}

/// Declares the whole tree.
pub(super) fn declare<'a>(
    tree: &'a Tree,
    builder: &mut FsBuilder,
    cancel: &Cancel,
) -> Result<Vec<Pending<'a>>, WriteError> {
    set_root(builder, tree.meta(NodeId::ROOT))?;
    declare_below(tree, (NodeId::ROOT, mkext4::ROOT), builder, cancel)
}

/// Declares one directory of the tree, alone, under a name of its own.
pub(super) fn declare_as<'a>(
    tree: &'a Tree,
    id: NodeId,
    name: &str,
    builder: &mut FsBuilder,
    cancel: &Cancel,
) -> Result<Vec<Pending<'a>>, WriteError> {
    let handle = declare_node(tree, builder, mkext4::ROOT, name, id, &mut Vec::new())?;
    declare_below(tree, (id, handle), builder, cancel)
}

/// Declares what is in a directory: directories first to last, siblings in the order they came
/// in, so that content lies on the disk as it lay in the archive.
fn declare_below<'a>(
    tree: &'a Tree,
    top: (NodeId, InodeHandle),
    builder: &mut FsBuilder,
    cancel: &Cancel,
) -> Result<Vec<Pending<'a>>, WriteError> {
    let mut handles: Vec<Option<InodeHandle>> = vec![None; tree.node_count()];
    let mut files = Vec::new();
    let mut pending = vec![top];
    while let Some((directory, parent)) = pending.pop() {
        cancel.check()?;
        let mut children: Vec<(&str, NodeId)> = tree.children(directory).collect();
        children.sort_by_key(|(_, id)| *id);
        let mut below = Vec::new();
        for (name, id) in children {
            // The writer makes its own; a second one is a damaged image.
            if directory == NodeId::ROOT && name == "lost+found" {
                continue;
            }
            let known = &mut handles[id.position()];
            if let Some(handle) = *known {
                builder
                    .hardlink(parent, name, handle)
                    .map_err(layout_error)?;
                continue;
            }
            let handle = declare_node(tree, builder, parent, name, id, &mut files)?;
            *known = Some(handle);
            if matches!(tree.kind(id), Kind::Directory(_)) {
                below.push((id, handle));
            }
        }
        pending.extend(below.into_iter().rev());
    }
    Ok(files)
}

fn declare_node<'a>(
    tree: &'a Tree,
    builder: &mut FsBuilder,
    parent: InodeHandle,
    name: &str,
    id: NodeId,
    files: &mut Vec<Pending<'a>>,
) -> Result<InodeHandle, WriteError> {
    let meta = writer_meta(tree.meta(id));
    let handle = match tree.kind(id) {
        Kind::Directory(_) => builder.mkdir(parent, name, meta),
        Kind::Symlink(target) => {
            let mut meta = meta;
            meta.mode = 0o777;
            builder.symlink(parent, name, target, meta)
        }
        Kind::CharDevice(major, minor) => {
            let (major, minor) = (*major, *minor);
            builder.mknod(parent, name, meta, SpecialKind::Char { major, minor })
        }
        Kind::BlockDevice(major, minor) => {
            let (major, minor) = (*major, *minor);
            builder.mknod(parent, name, meta, SpecialKind::Block { major, minor })
        }
        Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo),
        Kind::File(data) => {
            let declared = match data {
                Data::Sparse { map, size, .. } => {
                    let segments = block_segments(map, *size);
                    if segments.is_empty() {
                        builder.file(parent, name, meta, 0)
                    } else {
                        builder.file_sparse(parent, name, meta, &segments)
                    }
                }
                _ => builder.file(parent, name, meta, data.size()),
            };
            // An empty file, or one that is all hole, must not be filled.
            if let Ok(handle) = &declared
                && data.stored() > 0
            {
                files.push(Pending {
                    id,
                    handle: *handle,
                    data,
                });
            }
            declared
        }
    }
    .map_err(layout_error)?;
    for (name, value) in &tree.meta(id).xattrs {
        let value = xattr::on_disk(name, value).map_err(|why| WriteError::Layout {
            why: why.to_owned(),
        })?;
        builder
            .set_xattr(handle, name, &value)
            .map_err(layout_error)?;
    }
    Ok(handle)
}

fn set_root(builder: &mut FsBuilder, meta: &Meta) -> Result<(), WriteError> {
    builder
        .set_meta(mkext4::ROOT, writer_meta(meta))
        .map_err(layout_error)?;
    for (name, value) in &meta.xattrs {
        let value = xattr::on_disk(name, value).map_err(|why| WriteError::Layout {
            why: why.to_owned(),
        })?;
        builder
            .set_xattr(mkext4::ROOT, name, &value)
            .map_err(layout_error)?;
    }
    Ok(())
}

fn writer_meta(meta: &Meta) -> mkext4::Meta {
    let Time { seconds, nanos } = meta.mtime;
    let clamped = seconds.clamp(*TIMES.start(), *TIMES.end());
    let nanos = if clamped == seconds { nanos } else { 0 };
    mkext4::Meta::new(meta.mode, meta.uid, meta.gid, (clamped, nanos))
}
