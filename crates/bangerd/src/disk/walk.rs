//! Looks at every file below a directory without following a link, and without
//! minding what comes, goes or cannot be read meanwhile.
//!
//! Directories are entered by descriptor, so that none can be swapped for a
//! link between the look and the step into it. How deep and how many is
//! bounded; what is beyond is told as a problem.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use banger_images::Cancel;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

/// Directories in each other that are entered; each takes a descriptor.
pub(super) const DEPTH: usize = 64;
/// Files that are looked at.
const MOST: u64 = 4_000_000;
/// Problems that are told.
const PROBLEMS: usize = 50;

/// How directories are opened: as what they are, never through a link.
pub(super) const ENTER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What is to know of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// Device and inode.
    pub(super) inode: (u64, u64),
    /// Names it has.
    pub(super) links: u64,
    /// Bytes it takes on the disk.
    pub(super) allocated: u64,
    /// Bytes it holds: of files and links, 0 of everything else.
    pub(super) size: u64,
    /// What it is.
    pub(super) kind: FileType,
    /// Last change: seconds since 1970, and nanoseconds.
    pub(super) changed: (i64, u64),
}

impl Facts {
    /// Out of what the kernel says.
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_sign_loss,
        reason = "the widths and signs of these fields differ between architectures"
    )]
    pub(super) fn of(stat: &Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        Self {
            inode: (stat.st_dev as u64, stat.st_ino as u64),
            links: stat.st_nlink as u64,
            allocated: stat.st_blocks as u64 * 512,
            size: match kind {
                FileType::RegularFile | FileType::Symlink => stat.st_size as u64,
                _ => 0,
            },
            kind,
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }

    /// Whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }
}

/// A walk that begins at several places and meets nothing twice.
pub(super) struct Walk {
    entered: HashSet<(u64, u64)>,
    left: u64,
    cancel: Option<Cancel>,
    /// What could not be looked at.
    pub(super) problems: Vec<(PathBuf, String)>,
}

/// Called with the names that lead from the beginning to a file.
pub(super) type Visit<'v> = &'v mut dyn FnMut(&[OsString], &Facts);

impl Walk {
    /// Ends early, with what it has, once this switch is thrown.
    pub(super) fn new(cancel: Option<Cancel>) -> Self {
        Self {
            entered: HashSet::new(),
            left: MOST,
            cancel,
            problems: Vec::new(),
        }
    }

    /// Visits this directory and all below it, each before what is in it and
    /// in the order of their names. The directory itself may be a link; one
    /// that is not there has nothing.
    pub(super) fn below(&mut self, root: &Path, visit: Visit<'_>) {
        let flags = ENTER.difference(OFlags::NOFOLLOW);
        let opened = rustix::fs::open(root, flags, Mode::empty());
        let found = match &opened {
            Ok(directory) => fstat(directory),
            Err(Errno::NOENT) => return,
            Err(_) => rustix::fs::stat(root),
        };
        if let Ok(stat) = &found {
            let facts = Facts::of(stat);
            if !self.entered.insert(facts.inode) {
                return;
            }
            visit(&[], &facts);
        }
        match opened {
            Ok(directory) => self.enter(root, &directory, &mut Vec::new(), visit),
            Err(error) => self.problem(root, &[], &error.to_string()),
        }
    }

    fn enter(
        &mut self,
        root: &Path,
        directory: &OwnedFd,
        path: &mut Vec<OsString>,
        visit: Visit<'_>,
    ) {
        if path.len() >= DEPTH {
            self.problem(root, path, "too deep");
            return;
        }
        let names = match names(directory) {
            Ok(names) => names,
            Err(error) => {
                self.problem(root, path, &error.to_string());
                return;
            }
        };
        for name in names {
            if self.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
                return;
            }
            if self.left == 0 {
                self.problem(root, path, "too many files: the rest is not counted");
                return;
            }
            self.left -= 1;
            path.push(name);
            self.one(root, directory, path, visit);
            path.pop();
        }
    }

    fn one(
        &mut self,
        root: &Path,
        directory: &OwnedFd,
        path: &mut Vec<OsString>,
        visit: Visit<'_>,
    ) {
        let name = path.last().expect("the caller has just named it").clone();
        let facts = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Facts::of(&stat),
            // Gone since the directory was read.
            Err(Errno::NOENT) => return,
            Err(error) => return self.problem(root, path, &error.to_string()),
        };
        if !facts.is_dir() {
            return visit(path, &facts);
        }
        if !self.entered.insert(facts.inode) {
            return;
        }
        visit(path, &facts);
        match openat(directory, &name, ENTER, Mode::empty()) {
            Ok(inner) => self.enter(root, &inner, path, visit),
            // Gone, or something else has its name now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => self.problem(root, path, &error.to_string()),
        }
    }

    fn problem(&mut self, root: &Path, path: &[OsString], why: &str) {
        if self.problems.len() < PROBLEMS {
            let place = root.join(path.iter().collect::<PathBuf>());
            self.problems.push((place, why.to_owned()));
        }
    }
}

/// The names in a directory, sorted.
pub(super) fn names(directory: impl AsFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn visited(walk: &mut Walk, root: &Path) -> Vec<String> {
        let mut all = Vec::new();
        walk.below(root, &mut |path, _| {
            all.push(path.iter().collect::<PathBuf>().display().to_string());
        });
        all
    }

    #[test]
    fn links_are_seen_and_not_followed_and_nothing_is_met_twice() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        fs::write(place.path().join("outside"), "x").unwrap();
        symlink(place.path(), root.join("a/out")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        symlink(&root, place.path().join("way")).unwrap();
        let mut walk = Walk::new(None);
        let seen = visited(&mut walk, &place.path().join("way"));
        assert_eq!(seen, ["", "a", "a/b", "a/b/file", "a/out", "dangling"]);
        assert_eq!(visited(&mut walk, &root), [""; 0], "it was met before");
        assert_eq!(visited(&mut walk, &place.path().join("none")), [""; 0]);
        assert_eq!(walk.problems, []);
    }

    #[test]
    fn what_vanishes_while_it_is_walked_is_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        for name in ["a", "b", "c/d"] {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "x").unwrap();
        }
        fs::write(root.join("z"), "x").unwrap();
        let mut walk = Walk::new(None);
        let mut seen = Vec::new();
        walk.below(root, &mut |path, _| {
            let path: PathBuf = path.iter().collect();
            // After the root was listed: what comes next is gone, and a
            // directory that was just seen has become a link.
            if path == Path::new("a") {
                fs::remove_dir_all(root.join("b")).unwrap();
                fs::remove_file(root.join("z")).unwrap();
            }
            if path == Path::new("c") {
                fs::remove_dir_all(root.join("c")).unwrap();
                symlink(root.join("a"), root.join("c")).unwrap();
            }
            seen.push(path.display().to_string());
        });
        assert_eq!(seen, ["", "a", "a/file", "c"]);
        assert_eq!(walk.problems, []);
    }

    #[test]
    fn what_is_too_deep_or_may_not_be_read_is_told() {
        let place = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", DEPTH + 5).collect();
        fs::create_dir_all(place.path().join(deep)).unwrap();
        let mut walk = Walk::new(None);
        assert_eq!(visited(&mut walk, place.path()).len(), DEPTH + 1);
        let (path, why) = &walk.problems[0];
        assert!(why == "too deep" && path.ends_with("d/d"), "{path:?} {why}");

        let closed = place.path().join("closed");
        fs::create_dir_all(closed.join("in")).unwrap();
        let mode = |bits| {
            let bits = std::os::unix::fs::PermissionsExt::from_mode(bits);
            fs::set_permissions(&closed, bits).unwrap();
        };
        mode(0o000);
        // Root reads everything; a thread without its powers does not.
        let path = closed.clone();
        let walked = std::thread::spawn(move || {
            if rustix::process::geteuid().is_root() {
                let none = rustix::thread::CapabilitySet::empty();
                let sets = rustix::thread::CapabilitySets {
                    effective: none,
                    permitted: none,
                    inheritable: none,
                };
                rustix::thread::set_capabilities(None, sets).unwrap();
            }
            let mut walk = Walk::new(None);
            (visited(&mut walk, &path), walk.problems)
        });
        let (seen, problems) = walked.join().unwrap();
        mode(0o700);
        assert_eq!(seen, [""], "it counts itself");
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].0, closed);
    }
}
