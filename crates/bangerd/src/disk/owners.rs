//! Who owns what: pure decisions over what was looked at.
//!
//! Whoever makes banger put a new file or directory somewhere names it here.
//! What is not named has no owner, and a reclaim may take it.

use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::look::{Room, Unit};
use super::walk::Facts;
use crate::artifact::stock::{Stock, Stocked};
use crate::artifact::{Shelf, is_boot, is_staging};

/// Whose something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Directory,
    Vm(String),
    /// By its place in the stock.
    Image(usize),
    /// The same.
    Kernel(usize),
    Unfinished,
    Blob,
    Initramfs,
    Packages,
    /// What is known of engines.
    Engines,
    Log,
    OldLog,
    /// Of the image of this name.
    BuildLog(String),
    Database,
    Lock,
    Socket,
    /// What the owner of the daemon wrote.
    Config,
    Leftover,
}

/// The owner of a unit that is none of the directories themselves.
pub(super) fn owner(unit: &Unit, stock: &Stock) -> Owner {
    let found = (unit.rooms.iter())
        .map(|room| owner_in(*room, unit, stock))
        .find(|owner| *owner != Owner::Leftover);
    match found {
        Some(owner) => owner,
        // Nobody connects to one that is left over, and it holds nothing.
        None if unit.top.kind == FileType::Socket => Owner::Socket,
        // It went while it was looked at.
        None if std::fs::symlink_metadata(&unit.place).is_err() => Owner::Unfinished,
        None => Owner::Leftover,
    }
}

fn owner_in(room: Room, unit: &Unit, stock: &Stock) -> Owner {
    let names: Option<Vec<&str>> = unit.path.iter().map(|name| name.to_str()).collect();
    let Some(names) = names else {
        return Owner::Leftover;
    };
    let kept = |all: &[Stocked]| {
        let here = |dir: &PathBuf| dir.file_name() == unit.path.file_name();
        all.iter().position(|stocked| stocked.dirs.iter().any(here))
    };
    // What has the mark and no row is being made or removed, or is swept when
    // the daemon starts again.
    let unfinished = |name: &str| unit.top.is_dir() && (unit.marked || is_staging(name));
    match (room, names.as_slice()) {
        (Room::State | Room::Cache | Room::Run, []) => Owner::Directory,
        (Room::State, ["vms" | "images" | "kernels"])
        | (
            Room::Cache,
            ["oci" | "initramfs" | "apt"] | ["oci", "blobs"] | ["oci", "blobs", "sha256"],
        ) => Owner::Directory,
        (Room::State, ["state.db" | "state.db-wal" | "state.db-shm" | "state.db-journal"]) => {
            Owner::Database
        }
        (Room::State, ["lock"]) => Owner::Lock,
        (Room::State, ["bangerd.log"]) => Owner::Log,
        (Room::State, ["bangerd.log.1"]) => Owner::OldLog,
        (Room::State, ["vms", id]) => match stock.vms.get(*id) {
            Some(name) => Owner::Vm(name.clone()),
            None => Owner::Leftover,
        },
        (Room::State, ["images", name]) => match kept(&stock.images) {
            Some(at) => Owner::Image(at),
            None if unfinished(name) => Owner::Unfinished,
            None => match Shelf::build_of_log(name) {
                Some(image) if !unit.top.is_dir() => Owner::BuildLog(image.to_owned()),
                _ => Owner::Leftover,
            },
        },
        (Room::State, ["kernels", name]) => match kept(&stock.kernels) {
            Some(at) => Owner::Kernel(at),
            None if unfinished(name) => Owner::Unfinished,
            None => Owner::Leftover,
        },
        (Room::Cache, ["oci", "blobs", "sha256", name]) if is_blob(name, &unit.top) => Owner::Blob,
        (Room::Cache, ["initramfs", name]) if is_boot(name) => Owner::Initramfs,
        (Room::Cache, ["apt", "lock"] | ["oci", "blobs", "lock"]) => Owner::Lock,
        (Room::Cache, ["apt", _]) => Owner::Packages,
        (Room::Cache, ["engines"]) => Owner::Engines,
        _ => Owner::Leftover,
    }
}

fn is_blob(name: &str, top: &Facts) -> bool {
    let hex = name.strip_suffix(".part").unwrap_or(name);
    top.kind == FileType::RegularFile
        && hex.len() == 64
        && hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether what has no owner is in a directory that is banger's alone: not in
/// one that somebody named on the command line for more than banger.
pub(super) fn is_ours(unit: &Unit) -> bool {
    let inner = unit.path.iter().count() > 1;
    let own = || {
        let root = unit.place.parent().and_then(Path::file_name);
        let root = root.unwrap_or_default().to_string_lossy();
        root == "banger" || root.starts_with("banger-runtime-")
    };
    !unit.rooms.contains(&Room::Between) && (inner || own())
}

#[cfg(test)]
mod tests {
    use banger_api::disk::DiskKind;

    use super::*;

    fn unit(path: &str, kind: FileType, marked: bool) -> Unit {
        let top = Facts {
            inode: (1, 2),
            links: 1,
            allocated: 0,
            size: 0,
            kind,
            changed: (0, 0),
        };
        Unit {
            rooms: Vec::new(),
            path: path.into(),
            place: Path::new("/nowhere").join(path),
            top,
            files: 1,
            size: 0,
            used: 0,
            shared: 0,
            frees: 0,
            marked,
            whole: true,
        }
    }

    fn stocked(kind: DiskKind, dirs: &[&str]) -> Stocked {
        Stocked {
            kind,
            key: String::new(),
            name: String::new(),
            dirs: dirs.iter().map(PathBuf::from).collect(),
            users: Vec::new(),
            note: None,
        }
    }

    #[test]
    fn everything_that_banger_makes_has_an_owner_and_nothing_else_has() {
        let hex = "0123456789abcdef".repeat(4);
        let mut stock = Stock::default();
        let dirs = ["/s/images/id", "/s/images/kernel-of"];
        stock.images.push(stocked(DiskKind::Image, &dirs));
        stock
            .kernels
            .push(stocked(DiskKind::Kernel, &["/s/kernels/k"]));
        stock.vms.insert(hex.clone(), "box".to_owned());
        let (dir, file) = (FileType::Directory, FileType::RegularFile);
        let (vm, blob) = (format!("vms/{hex}"), format!("oci/blobs/sha256/{hex}"));
        let (part, boot) = (format!("{blob}.part"), format!("initramfs/{hex}"));
        let half = format!("initramfs/.{hex}.77.ThreadId(3)");
        let build = || Owner::BuildLog("app".to_owned());
        for (room, path, kind, owner) in [
            (Room::State, "", dir, Owner::Directory),
            (Room::State, "images", dir, Owner::Directory),
            (Room::State, "vms", FileType::Symlink, Owner::Directory),
            (Room::State, "state.db-wal", file, Owner::Database),
            (Room::State, "lock", file, Owner::Lock),
            (Room::State, "bangerd.log", file, Owner::Log),
            (Room::State, "bangerd.log.1", file, Owner::OldLog),
            (Room::State, &vm, dir, Owner::Vm("box".to_owned())),
            (Room::State, "images/id", dir, Owner::Image(0)),
            (Room::State, "images/kernel-of", dir, Owner::Image(0)),
            (Room::State, "images/.staging-12", dir, Owner::Unfinished),
            (Room::State, "images/app.build.log", file, build()),
            (Room::State, "kernels/k", dir, Owner::Kernel(0)),
            (Room::Cache, &blob, file, Owner::Blob),
            (Room::Cache, &part, file, Owner::Blob),
            (Room::Cache, &boot, file, Owner::Initramfs),
            (Room::Cache, &half, file, Owner::Initramfs),
            (Room::Cache, "apt/lists", dir, Owner::Packages),
            (Room::Cache, "apt/lock", file, Owner::Lock),
            (Room::Cache, "oci/blobs/lock", file, Owner::Lock),
            (Room::Cache, "engines", dir, Owner::Engines),
            (Room::State, "vms/other", dir, Owner::Leftover),
            (Room::State, "images/other", dir, Owner::Leftover),
            (Room::State, "images/app.build.log", dir, Owner::Leftover),
            (Room::State, "kernels/other", dir, Owner::Leftover),
            (Room::State, "engines", dir, Owner::Leftover),
            (Room::Cache, "lock", file, Owner::Leftover),
            (Room::Cache, &blob, dir, Owner::Leftover),
            (
                Room::Cache,
                "oci/blobs/sha256/README",
                file,
                Owner::Leftover,
            ),
            (Room::Cache, "oci/README", file, Owner::Leftover),
            (Room::Cache, "initramfs/README", file, Owner::Leftover),
            (Room::Run, "thing", file, Owner::Leftover),
            (Room::Between, "", dir, Owner::Leftover),
        ] {
            let found = owner_in(room, &unit(path, kind, false), &stock);
            assert_eq!(found, owner, "{room:?} {path}");
        }
        // Published, and the row is about to be written.
        for path in ["images/new", "kernels/new"] {
            let found = owner_in(Room::State, &unit(path, dir, true), &stock);
            assert_eq!(found, Owner::Unfinished, "{path}");
        }
    }

    #[test]
    fn strangers_are_taken_only_out_of_directories_that_are_ours_alone() {
        for (place, path, room, ours) in [
            (
                "/home/me/.local/state/banger/stray",
                "stray",
                Room::State,
                true,
            ),
            ("/tmp/banger-runtime-0/stray", "stray", Room::Run, true),
            ("/srv/named/stray", "stray", Room::State, false),
            ("/srv/named/vms/stray", "vms/stray", Room::State, true),
            (
                "/srv/named/between/stray",
                "between/stray",
                Room::Between,
                false,
            ),
        ] {
            let stray = Unit {
                rooms: vec![room],
                place: place.into(),
                ..unit(path, FileType::RegularFile, false)
            };
            assert_eq!(is_ours(&stray), ours, "{place}");
        }
    }
}
