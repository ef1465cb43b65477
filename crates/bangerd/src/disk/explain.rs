//! The report on the disk, and the candidates for a reclaim: what follows from
//! who owns what, and from what the caches say that nobody uses now.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::look::{Look, Room, Unit};
use super::owners::{Owner, is_ours, owner};
use super::walk::Facts;
use crate::artifact::Shelf;
use crate::artifact::stock::{Stock, Stocked, idle_packages};
use crate::failure::Failure;
use crate::paths::Paths;
use banger_api::disk::{DiskDirectory, DiskKind, DiskReport, DiskRow, DiskUser};

/// Rows of things without an owner; more are one row, and stay.
const LEFTOVERS: usize = 1000;

/// A thing that may go.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) kind: DiskKind,
    pub(super) name: String,
    /// By what it is known again.
    pub(super) identity: String,
    pub(super) note: Option<String>,
    /// Only when images and kernels go too.
    pub(super) with_images: bool,
    /// What it is made of, in [`Survey::units`].
    pub(super) units: Vec<usize>,
    pub(super) how: How,
}

/// Who takes it away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum How {
    /// The shelf, by its id.
    Image(String),
    /// The shelf, by its name.
    Kernel(String),
    /// Whoever keeps what boots.
    Initramfs,
    /// The cache of blobs.
    Blob,
    /// Under apt's lock, all but that.
    Packages,
    /// As it is, while no image of this name is made.
    BuildLog(String),
    /// As it is; a kernel of this name is not made meanwhile.
    File,
}

/// What was found.
pub(super) struct Survey {
    pub(super) report: DiskReport,
    pub(super) candidates: Vec<Candidate>,
    pub(super) look: Look,
}

/// What the caches say that nobody uses now.
struct Idle {
    blobs: HashSet<String>,
    boots: HashSet<String>,
    boots_with_images: HashSet<String>,
    packages: bool,
}

impl Survey {
    /// What the candidates that `goes` says would give back, one by one: a
    /// file with several names comes back with the last of them.
    pub(super) fn bytes(&self, goes: impl Fn(&Candidate) -> bool) -> Vec<(usize, u64)> {
        let mut owner: HashMap<usize, usize> = HashMap::new();
        let chosen: Vec<usize> = (0..self.candidates.len())
            .filter(|at| goes(&self.candidates[*at]))
            .collect();
        let mut bytes: BTreeMap<usize, u64> = BTreeMap::new();
        for at in chosen {
            let own = bytes.entry(at).or_default();
            for unit in &self.candidates[at].units {
                *own += self.look.units[*unit].frees;
                owner.insert(*unit, at);
            }
        }
        for linked in &self.look.across {
            if let Some(back) = linked.goes_with(|unit| owner.contains_key(&unit)) {
                *bytes.entry(owner[&linked.first()]).or_default() += back;
            }
        }
        bytes.into_iter().collect()
    }
}

/// Finds the owner of everything. Blocks: it tries locks, none for long.
pub(super) fn explain(
    look: Look,
    stock: Stock,
    shelf: &Shelf,
    paths: &Paths,
) -> Result<Survey, Failure> {
    let config = std::fs::canonicalize(&paths.config_file).ok();
    let leads_to_a_room = |unit: &Unit| {
        let mut rooms = look.rooms.iter();
        unit.rooms == [Room::Between] && rooms.any(|(_, place, _)| place.starts_with(&unit.place))
    };
    let owners: Vec<Owner> = (look.units.iter())
        .map(|unit| match leads_to_a_room(unit) {
            true => Owner::Directory,
            false if Some(&unit.place) == config.as_ref() => Owner::Config,
            false => owner(unit, &stock),
        })
        .collect();
    let unused = Unused::of(&stock);
    let idle = Idle {
        blobs: (shelf.idle_blobs()?.iter())
            .map(banger_registry::Cache::name_of)
            .collect(),
        boots: shelf.stale_boots(&stock.kernel_dirs(|_| false))?,
        boots_with_images: shelf.stale_boots(&stock.kernel_dirs(|stocked| unused.has(stocked)))?,
        packages: idle_packages(&paths.cache.join("apt")).is_ok(),
    };
    let candidates = candidates(&look, &owners, &stock, &unused, &idle, shelf);
    let mut survey = Survey {
        report: DiskReport::default(),
        candidates,
        look,
    };
    survey.report = report(&survey, &owners, &stock);
    Ok(survey)
}

/// Images and kernels that no VM uses. A kernel that only such images name is
/// one of them: they go before it.
struct Unused(HashSet<(DiskKind, String)>);

impl Unused {
    fn of(stock: &Stock) -> Self {
        let mut all = Self(HashSet::new());
        for image in stock.images.iter().filter(|image| image.users.is_empty()) {
            all.0.insert((image.kind, image.name.clone()));
        }
        for kernel in &stock.kernels {
            let goes = |user: &DiskUser| {
                user.kind == "image" && all.0.contains(&(DiskKind::Image, user.name.clone()))
            };
            if kernel.users.iter().all(goes) {
                all.0.insert((kernel.kind, kernel.name.clone()));
            }
        }
        all
    }

    fn has(&self, stocked: &Stocked) -> bool {
        self.0.contains(&(stocked.kind, stocked.name.clone()))
    }
}

fn candidates(
    look: &Look,
    owners: &[Owner],
    stock: &Stock,
    unused: &Unused,
    idle: &Idle,
    shelf: &Shelf,
) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut packages: Vec<usize> = Vec::new();
    let mut leftovers = 0;
    for (at, (unit, owner)) in look.units.iter().zip(owners).enumerate() {
        let file = unit.path.file_name().unwrap_or_default().to_string_lossy();
        let one = |kind, name: String, how| Candidate {
            kind,
            name,
            identity: identity(&unit.top, matches!(how, How::File | How::BuildLog(_))),
            note: None,
            with_images: false,
            units: vec![at],
            how,
        };
        let stocked = |stocked: &Stocked, how| Candidate {
            note: stocked.note.clone(),
            with_images: true,
            ..one(stocked.kind, stocked.name.clone(), how)
        };
        match owner {
            Owner::Image(image) if unused.has(&stock.images[*image]) => {
                let image = &stock.images[*image];
                let how = How::Image(image.key.clone());
                // It may have a directory for a kernel of its own.
                match all
                    .iter_mut()
                    .find(|known: &&mut Candidate| known.how == how)
                {
                    Some(known) => known.units.push(at),
                    None => all.push(stocked(image, how)),
                }
            }
            Owner::Kernel(kernel) if unused.has(&stock.kernels[*kernel]) => {
                let kernel = &stock.kernels[*kernel];
                let how = How::Kernel(kernel.key.clone());
                all.push(stocked(kernel, how));
            }
            Owner::Blob if idle.blobs.contains(file.as_ref()) => {
                all.push(one(DiskKind::Cache, format!("blobs/{file}"), How::Blob));
            }
            Owner::Initramfs if idle.boots_with_images.contains(file.as_ref()) => {
                let name = format!("initramfs/{file}");
                all.push(Candidate {
                    with_images: !idle.boots.contains(file.as_ref()),
                    ..one(DiskKind::Cache, name, How::Initramfs)
                });
            }
            Owner::Packages if idle.packages => packages.push(at),
            Owner::OldLog => all.push(one(DiskKind::Log, file.into_owned(), How::File)),
            Owner::BuildLog(image) if !shelf.is_claimed(image) => {
                let how = How::BuildLog(image.clone());
                all.push(one(DiskKind::Log, file.into_owned(), how));
            }
            Owner::Leftover if unit.whole && is_ours(unit) => {
                leftovers += 1;
                if leftovers <= LEFTOVERS {
                    all.push(one(DiskKind::Leftover, leftover_name(unit), How::File));
                }
            }
            _ => {}
        }
    }
    if let Some(first) = packages.first() {
        let parent = look.units[*first].place.parent();
        let top = look
            .units
            .iter()
            .find(|unit| Some(unit.place.as_path()) == parent);
        all.push(Candidate {
            kind: DiskKind::Cache,
            name: PACKAGES.to_owned(),
            identity: top.map_or_else(String::new, |top| identity(&top.top, false)),
            note: None,
            with_images: false,
            units: packages,
            how: How::Packages,
        });
    }
    // Images before the kernels that they name, those before their initramfs.
    all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    all
}

/// The lists of packages, as one thing.
const PACKAGES: &str = "apt";

fn leftover_name(unit: &Unit) -> String {
    let room = unit.rooms.first().map_or("", |room| room.name());
    Path::new(room).join(&unit.path).display().to_string()
}

/// Device and inode, and the last change of what nobody but its maker changes.
pub(super) fn identity(facts: &Facts, with_change: bool) -> String {
    let (device, inode) = facts.inode;
    if with_change {
        let (seconds, nanos) = facts.changed;
        format!("{device:x}:{inode:x}:{seconds}.{nanos}")
    } else {
        format!("{device:x}:{inode:x}")
    }
}

fn report(survey: &Survey, owners: &[Owner], stock: &Stock) -> DiskReport {
    let look = &survey.look;
    let mut back: HashMap<usize, (u64, bool)> = HashMap::new();
    for (at, bytes) in survey.bytes(|_| true) {
        let candidate = &survey.candidates[at];
        // Of one thing in several units the first tells it all.
        let unit = candidate.units[0];
        back.insert(unit, (bytes, candidate.with_images));
    }
    let may_go: HashSet<usize> = (survey.candidates.iter())
        .flat_map(|candidate| candidate.units.iter().copied())
        .collect();
    let mut rows: BTreeMap<(DiskKind, String), DiskRow> = BTreeMap::new();
    let mut leftovers = 0;
    // Images and kernels have a row even where banger keeps no file of them.
    for stocked in stock.images.iter().chain(&stock.kernels) {
        let mut row = row_of(stocked.kind, stocked.name.clone(), stocked.users.clone());
        row.note.clone_from(&stocked.note);
        rows.insert((stocked.kind, stocked.name.clone()), row);
    }
    for (at, (unit, owner)) in look.units.iter().zip(owners).enumerate() {
        let (kind, mut name) = shown(owner, unit, stock);
        if kind == DiskKind::Leftover {
            leftovers += 1;
            if leftovers > LEFTOVERS {
                name = "others".to_owned();
            }
        }
        let row = rows
            .entry((kind, name.clone()))
            .or_insert_with(|| row_of(kind, name, users(owner)));
        row.files += unit.files;
        row.size_bytes += unit.size;
        row.used_bytes += unit.used;
        row.shared_bytes += unit.shared;
        if let Some((bytes, with_images)) = back.get(&at) {
            row.reclaimable_bytes += bytes;
            row.with_images |= with_images;
        }
        match owner {
            _ if may_go.contains(&at) => {}
            Owner::Blob | Owner::Packages => add_user(row, "pull"),
            Owner::Initramfs => add_user(row, "kernel"),
            _ => {}
        }
    }
    let room = |path: &Path| match rustix::fs::statvfs(path) {
        Ok(found) => [found.f_blocks, found.f_bavail].map(|n| n.saturating_mul(found.f_frsize)),
        Err(_) => [0, 0],
    };
    let directories = look.rooms.iter().map(|(name, place, used)| {
        let [total, free] = room(place);
        DiskDirectory {
            name: name.name().to_owned(),
            path: place.display().to_string(),
            used_bytes: *used,
            filesystem_total_bytes: total,
            filesystem_free_bytes: free,
        }
    });
    let all: u64 = survey.bytes(|_| true).iter().map(|(_, bytes)| bytes).sum();
    let plain = survey.bytes(|candidate| !candidate.with_images);
    DiskReport {
        directories: directories.collect(),
        size_bytes: look.units.iter().map(|unit| unit.size).sum(),
        used_bytes: look.units.iter().map(|unit| unit.used).sum(),
        reclaimable_bytes: plain.iter().map(|(_, bytes)| bytes).sum(),
        reclaimable_with_images_bytes: all,
        problems: (look.problems.iter())
            .map(|(place, why)| format!("{}: {why}", place.display()))
            .collect(),
        rows: rows.into_values().collect(),
    }
}

fn row_of(kind: DiskKind, name: String, used_by: Vec<DiskUser>) -> DiskRow {
    DiskRow {
        kind,
        name,
        files: 0,
        size_bytes: 0,
        used_bytes: 0,
        shared_bytes: 0,
        used_by,
        reclaimable_bytes: 0,
        with_images: false,
        note: None,
    }
}

/// The row of something.
fn shown(owner: &Owner, unit: &Unit, stock: &Stock) -> (DiskKind, String) {
    let file = || {
        unit.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    match owner {
        Owner::Directory => {
            let room = Path::new(unit.rooms.first().map_or("", |room| room.name()));
            let name = match unit.rooms.as_slice() {
                [Room::Between] => &unit.path,
                _ => room,
            };
            (DiskKind::Directory, name.display().to_string())
        }
        Owner::Vm(name) => (DiskKind::Vm, name.clone()),
        Owner::Image(at) => (DiskKind::Image, stock.images[*at].name.clone()),
        Owner::Kernel(at) => (DiskKind::Kernel, stock.kernels[*at].name.clone()),
        Owner::Unfinished => (DiskKind::Unfinished, leftover_name(unit)),
        Owner::Blob => (DiskKind::Cache, "blobs".to_owned()),
        Owner::Initramfs => (DiskKind::Cache, "initramfs".to_owned()),
        Owner::Packages => (DiskKind::Cache, PACKAGES.to_owned()),
        Owner::Engines => (DiskKind::Cache, "engines".to_owned()),
        Owner::Log | Owner::OldLog | Owner::BuildLog(_) => (DiskKind::Log, file()),
        Owner::Database => (DiskKind::Database, "state.db".to_owned()),
        Owner::Lock => (DiskKind::Lock, leftover_name(unit)),
        Owner::Socket => (DiskKind::Socket, leftover_name(unit)),
        Owner::Config => (DiskKind::Config, file()),
        Owner::Leftover => (DiskKind::Leftover, leftover_name(unit)),
    }
}

/// What rests on a thing that is no image or kernel.
fn users(owner: &Owner) -> Vec<DiskUser> {
    let daemon = DiskUser {
        kind: "daemon".to_owned(),
        name: String::new(),
    };
    match owner {
        Owner::Log | Owner::Database | Owner::Lock | Owner::Socket | Owner::Config => vec![daemon],
        Owner::Engines | Owner::Directory => vec![daemon],
        Owner::Vm(_)
        | Owner::Image(_)
        | Owner::Kernel(_)
        | Owner::Unfinished
        | Owner::Blob
        | Owner::Initramfs
        | Owner::Packages
        | Owner::OldLog
        | Owner::BuildLog(_)
        | Owner::Leftover => Vec::new(),
    }
}

/// One more kind of user, said once.
fn add_user(row: &mut DiskRow, kind: &str) {
    if row.used_by.iter().all(|user| user.kind != kind) {
        row.used_by.push(DiskUser {
            kind: kind.to_owned(),
            name: String::new(),
        });
    }
}
