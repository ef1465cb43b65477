//! What is in banger's directories, in units: the smallest things that have an
//! owner of their own and that go whole or stay whole.
//!
//! The directories, called rooms here, may be one directory, or in each other:
//! the environment and the command line say where they are. Each file counts
//! once, in the first unit that has a name of it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use banger_images::Cancel;

use super::walk::{Facts, Walk};
use crate::artifact::is_mark;
use crate::paths::Paths;

/// One of banger's directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Database, disks, images, kernels.
    State,
    /// What can be made again.
    Cache,
    /// The socket.
    Run,
    /// No room, but on the way to one that is in another.
    Between,
}

impl Room {
    /// Its name for users.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Cache => "cache",
            Self::Run => "run",
            Self::Between => "",
        }
    }

    /// How many names below the room lead to the unit of a file.
    fn unit_depth(self, path: &[OsString]) -> usize {
        let name = |at: usize| path.get(at).and_then(|name| name.to_str());
        match (self, name(0), name(1), name(2)) {
            (Self::State, Some("vms" | "images" | "kernels"), _, _)
            | (Self::Cache, Some("initramfs" | "apt"), _, _) => 2,
            (Self::Cache, Some("oci"), Some("blobs"), Some("sha256")) => 4,
            (Self::Cache, Some("oci"), Some("blobs"), _) => 3,
            (Self::Cache, Some("oci"), _, _) => 2,
            (Self::State | Self::Cache | Self::Run | Self::Between, _, _, _) => 1,
        }
    }
}

/// What goes whole or stays whole.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    /// The rooms that it may be of: those that are one directory.
    pub(super) rooms: Vec<Room>,
    /// Where it is below them; empty for the rooms themselves.
    pub(super) path: PathBuf,
    /// Where it is.
    pub(super) place: PathBuf,
    /// Its file, or the directory it begins with.
    pub(super) top: Facts,
    /// Files and directories.
    pub(super) files: u64,
    /// Lengths of files.
    pub(super) size: u64,
    /// Bytes on the disk.
    pub(super) used: u64,
    /// Of files that have names elsewhere.
    pub(super) shared: u64,
    /// Bytes that come back when it alone goes.
    pub(super) frees: u64,
    /// It has a file that says that it counts only with a row.
    pub(super) marked: bool,
    /// All of it is on one file system and could be looked at.
    pub(super) whole: bool,
}

/// A file with several names.
#[derive(Debug, Clone)]
pub(super) struct Linked {
    facts: Facts,
    /// The unit of each name that was met.
    units: Vec<usize>,
}

impl Linked {
    /// Whether nothing of it is left when these units go, and bytes are.
    pub(super) fn goes_with(&self, goes: impl Fn(usize) -> bool) -> Option<u64> {
        let all = self.units.len() as u64 == self.facts.links;
        (all && self.units.iter().all(|unit| goes(*unit))).then_some(self.facts.allocated)
    }

    /// The unit that it counts in.
    pub(super) fn first(&self) -> usize {
        self.units[0]
    }

    fn several(&self) -> bool {
        self.units.iter().any(|unit| *unit != self.units[0])
    }
}

/// Everything, looked at once.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Sorted by where they are.
    pub(super) units: Vec<Unit>,
    /// Files that several units have names of.
    pub(super) across: Vec<Linked>,
    /// What could not be looked at.
    pub(super) problems: Vec<(PathBuf, String)>,
    /// The directories, as they are reached: name, place, bytes below.
    pub(super) rooms: Vec<(Room, PathBuf, u64)>,
}

/// Looks at all rooms. Blocks.
pub(super) fn look(paths: &Paths, cancel: Option<Cancel>) -> Look {
    let places = [
        (Room::State, &paths.state),
        (Room::Cache, &paths.cache),
        (Room::Run, &paths.run),
    ];
    let places = places.map(|(room, path)| {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        (room, real)
    });
    let mut walk = Walk::new(cancel);
    let mut builder = Builder::new(&places);
    for (room, place) in &places {
        let before = builder.used;
        builder.root = place.clone();
        walk.below(place, &mut |path, facts| builder.add(path, facts));
        builder
            .look
            .rooms
            .push((*room, place.clone(), builder.used - before));
    }
    builder.finish(walk.problems)
}

struct Builder<'p> {
    places: &'p [(Room, PathBuf); 3],
    root: PathBuf,
    look: Look,
    used: u64,
    by_place: HashMap<PathBuf, usize>,
    linked: HashMap<(u64, u64), Linked>,
}

impl<'p> Builder<'p> {
    fn new(places: &'p [(Room, PathBuf); 3]) -> Self {
        Self {
            places,
            root: PathBuf::new(),
            look: Look::default(),
            used: 0,
            by_place: HashMap::new(),
            linked: HashMap::new(),
        }
    }

    fn add(&mut self, path: &[OsString], facts: &Facts) {
        let at = self.unit(path, facts);
        let unit = &mut self.look.units[at];
        unit.files += 1;
        let (name, above) = (path.last(), path.len().saturating_sub(1));
        unit.marked |= name.is_some_and(|name| is_mark(name))
            && unit.place == self.root.join(path[..above].iter().collect::<PathBuf>());
        // Of files some file systems tell the device of a layer below.
        unit.whole &= !facts.is_dir() || facts.inode.0 == unit.top.inode.0;
        if facts.is_dir() || facts.links == 1 {
            unit.size += facts.size;
            unit.used += facts.allocated;
            unit.frees += facts.allocated;
            self.used += facts.allocated;
            return;
        }
        let linked = self.linked.entry(facts.inode).or_insert_with(|| {
            unit.size += facts.size;
            unit.used += facts.allocated;
            self.used += facts.allocated;
            Linked {
                facts: *facts,
                units: Vec::new(),
            }
        });
        linked.units.push(at);
    }

    /// The unit of a file, a new one where it is the first.
    fn unit(&mut self, path: &[OsString], facts: &Facts) -> usize {
        // The innermost room around it.
        let full = self.root.join(path.iter().collect::<PathBuf>());
        let base = (self.places.iter())
            .map(|(_, place)| place)
            .filter(|place| full.starts_with(place))
            .max_by_key(|place| place.as_os_str().len())
            .unwrap_or(&self.root)
            .clone();
        let rooms: Vec<Room> = (self.places.iter())
            .filter(|(_, place)| *place == base)
            .map(|(room, _)| *room)
            .collect();
        let below: Vec<OsString> = full
            .strip_prefix(&base)
            .unwrap_or(Path::new(""))
            .iter()
            .map(ToOwned::to_owned)
            .collect();
        let on_the_way = |place: &Path| {
            place != base && self.places.iter().any(|(_, room)| room.starts_with(place))
        };
        let mut rooms = rooms;
        let mut depth = (rooms.iter())
            .map(|room| room.unit_depth(&below))
            .max()
            .unwrap_or(1)
            .min(below.len());
        // Directories between a room and one that is in it are no one's to
        // take, nor is what is beside that room in them.
        for steps in 1..=below.len() {
            let place = base.join(below[..steps].iter().collect::<PathBuf>());
            if !on_the_way(&place) {
                if rooms == [Room::Between] {
                    depth = steps;
                }
                break;
            }
            rooms = vec![Room::Between];
            depth = steps;
        }
        let path: PathBuf = below[..depth].iter().collect();
        let place = base.join(&path);
        if let Some(known) = self.by_place.get(&place) {
            return *known;
        }
        let at = self.look.units.len();
        self.by_place.insert(place.clone(), at);
        self.look.units.push(Unit {
            rooms,
            path,
            place,
            top: *facts,
            files: 0,
            size: 0,
            used: 0,
            shared: 0,
            frees: 0,
            marked: false,
            whole: true,
        });
        at
    }

    fn finish(mut self, problems: Vec<(PathBuf, String)>) -> Look {
        for linked in self.linked.into_values() {
            let bytes = linked.facts.allocated;
            let elsewhere = linked.several() || linked.goes_with(|_| true).is_none();
            let mut units = linked.units.clone();
            units.sort_unstable();
            units.dedup();
            for unit in &units {
                let unit = &mut self.look.units[*unit];
                if elsewhere {
                    unit.shared += bytes;
                } else {
                    unit.frees += bytes;
                }
            }
            if linked.several() {
                self.look.across.push(linked);
            }
        }
        self.look.across.sort_by_key(|linked| linked.facts.inode);
        for (place, _) in &problems {
            for unit in &mut self.look.units {
                unit.whole &= !place.starts_with(&unit.place);
            }
        }
        self.look.problems = problems;
        self.look
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    fn paths(place: &Path) -> Paths {
        Paths {
            state: place.join("state"),
            config_file: place.join("config.toml"),
            cache: place.join("cache"),
            run: place.join("run"),
            socket: place.join("run/bangerd.sock"),
        }
    }

    fn du(paths: &[&Path]) -> u64 {
        let there = paths.iter().filter(|path| path.exists());
        let done = std::process::Command::new("du")
            .args(["-s", "-c", "-B1", "-D"])
            .args(there)
            .output()
            .unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        let total = text.lines().last().unwrap();
        total.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn write(path: &Path, bytes: usize) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![7; bytes]).unwrap();
    }

    fn unit<'l>(look: &'l Look, path: &str) -> &'l Unit {
        let found = look.units.iter().find(|unit| unit.path == Path::new(path));
        found.unwrap_or_else(|| panic!("no {path}"))
    }

    #[test]
    fn the_sum_of_all_units_is_what_du_says() {
        let place = tempfile::tempdir().unwrap();
        let paths = paths(place.path());
        let state = |path: &str| paths.state.join(path);
        write(&state("vms/one/work.ext4"), 100_000);
        write(&state("vms/two/work.ext4"), 5_000);
        write(&state("images/app/rootfs.ext4"), 70_000);
        write(&paths.cache.join("oci/blobs/sha256/ab"), 300_000);
        write(&paths.run.join("thing"), 10);
        // Sparse, with a hole of a GiB.
        let sparse = File::create(state("vms/one/overlay.ext4")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        // Names of one file: twice in a unit, in two units, and outside.
        fs::hard_link(state("vms/one/work.ext4"), state("vms/one/again")).unwrap();
        fs::hard_link(state("vms/two/work.ext4"), state("vms/one/of-two")).unwrap();
        fs::hard_link(state("images/app/rootfs.ext4"), place.path().join("mine")).unwrap();
        symlink(place.path(), state("vms/one/link")).unwrap();
        symlink("nowhere", state("dangling")).unwrap();
        let look = look(&paths, None);
        let sum: u64 = look.units.iter().map(|unit| unit.used).sum();
        assert_eq!(sum, du(&[&paths.state, &paths.cache, &paths.run]));
        assert_eq!(look.problems, []);

        let (one, two) = (unit(&look, "vms/one"), unit(&look, "vms/two"));
        assert!(one.size > 1 << 30 && one.used < 200_000, "{one:?}");
        assert!(
            one.shared > 0 && one.shared == two.shared,
            "{one:?} {two:?}"
        );
        assert!(two.used < two.shared, "it counts in the first");
        assert_eq!(one.frees + two.shared, one.used);
        let [across] = look.across.as_slice() else {
            panic!("{:?}", look.across)
        };
        assert_eq!(across.goes_with(|_| true), Some(two.shared));
        assert_eq!(across.goes_with(|at| at == across.first()), None);
        let app = unit(&look, "images/app");
        assert_eq!(app.frees + app.shared, app.used, "another name is outside");
        let rooms: u64 = look.rooms.iter().map(|(_, _, used)| used).sum();
        assert_eq!(rooms, sum);
    }

    #[test]
    fn rooms_may_be_one_directory_or_in_each_other() {
        let place = tempfile::tempdir().unwrap();
        let one = Paths {
            cache: place.path().join("state"),
            run: place.path().join("state"),
            ..paths(place.path())
        };
        write(&one.state.join("vms/one/work.ext4"), 5_000);
        write(&one.state.join("oci/blobs/sha256/ab"), 5_000);
        let found = look(&one, None);
        assert_eq!(unit(&found, "vms/one").rooms.len(), 3);
        assert_eq!(unit(&found, "oci/blobs/sha256/ab").files, 1);
        let sum: u64 = found.units.iter().map(|unit| unit.used).sum();
        assert_eq!(sum, du(&[&one.state]));

        let nested = Paths {
            cache: place.path().join("state/some/where"),
            ..paths(place.path())
        };
        write(&nested.cache.join("oci/blobs/sha256/cd"), 5_000);
        write(&nested.state.join("some/mine/a"), 5_000);
        let found = look(&nested, None);
        assert_eq!(unit(&found, "oci/blobs/sha256/cd").rooms, [Room::Cache]);
        for between in ["some", "some/mine"] {
            assert_eq!(unit(&found, between).rooms, [Room::Between], "{between}");
        }
        assert_eq!(unit(&found, "vms/one").rooms, [Room::State]);
        let sum: u64 = found.units.iter().map(|unit| unit.used).sum();
        assert_eq!(sum, du(&[&nested.state, &nested.cache, &nested.run]));
    }
}
