//! Takes a file or a tree away: the one that was looked at, and nothing else
//! that has its name by now.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, openat, statat, unlinkat};
use rustix::io::Errno;

use super::walk::{DEPTH, ENTER, Facts, names};

/// Why something stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoveError {
    /// Nothing has its name.
    #[error("it is gone")]
    Gone,
    /// Something else has its name, or it was written to.
    #[error("it has changed")]
    Changed,
    /// Another file system is mounted below it.
    #[error("another file system is mounted below it")]
    Mounted,
    /// Deeper than anything of ours.
    #[error("it is too deep")]
    Deep,
    /// The kernel refused; some of it may be gone.
    #[error("it cannot be removed: {0}")]
    Refused(#[from] Errno),
}

/// Removes what has this name in the directory, if it is what `wanted` knows,
/// and tells the bytes that came back. A cut in the middle leaves the rest.
pub(super) fn remove(
    parent: &Path,
    name: &OsStr,
    wanted: impl FnOnce(&Facts) -> bool,
) -> Result<u64, RemoveError> {
    let parent = File::open(parent).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => RemoveError::Gone,
        _ => RemoveError::Refused(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    })?;
    let parent = OwnedFd::from(parent);
    let facts = look(&parent, name)?;
    if !wanted(&facts) {
        return Err(RemoveError::Changed);
    }
    let mut freed = 0;
    one(&parent, name, facts, facts.inode.0, 0, &mut freed)?;
    Ok(freed)
}

fn look(parent: &OwnedFd, name: &OsStr) -> Result<Facts, RemoveError> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Facts::of(&stat)),
        Err(Errno::NOENT) => Err(RemoveError::Gone),
        Err(error) => Err(error.into()),
    }
}

fn one(
    parent: &OwnedFd,
    name: &OsStr,
    facts: Facts,
    device: u64,
    depth: usize,
    freed: &mut u64,
) -> Result<(), RemoveError> {
    let flags = if facts.is_dir() {
        if facts.inode.0 != device {
            return Err(RemoveError::Mounted);
        }
        if depth >= DEPTH {
            return Err(RemoveError::Deep);
        }
        let directory = openat(parent, name, ENTER, Mode::empty())?;
        for inner in names(&directory)? {
            match look(&directory, &inner) {
                Err(RemoveError::Gone) => {}
                found => one(&directory, &inner, found?, device, depth + 1, freed)?,
            }
        }
        AtFlags::REMOVEDIR
    } else {
        AtFlags::empty()
    };
    match unlinkat(parent, name, flags) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if facts.is_dir() || facts.links == 1 {
        *freed += facts.allocated;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), vec![1; 10_000]).unwrap();
        fs::write(place.path().join("kept"), vec![1; 10_000]).unwrap();
        fs::hard_link(place.path().join("kept"), tree.join("linked")).unwrap();
        // Two names of one file, both in the tree: they give it back once.
        fs::hard_link(tree.join("a/b/file"), tree.join("again")).unwrap();
        symlink(place.path(), tree.join("up")).unwrap();
        let before = du(place.path());
        let freed = remove(place.path(), OsStr::new("tree"), |_| true).unwrap();
        assert_eq!(before - du(place.path()), freed);
        assert!(place.path().join("kept").exists() && !tree.exists());
    }

    fn du(path: &Path) -> u64 {
        let done = std::process::Command::new("du")
            .args(["-s", "-B1"])
            .arg(path)
            .output()
            .unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_not_what_was_looked_at_stays() {
        let place = tempfile::tempdir().unwrap();
        let name = OsStr::new("file");
        fs::write(place.path().join(name), "x").unwrap();
        let gone = remove(place.path(), OsStr::new("none"), |_| true);
        assert!(matches!(gone, Err(RemoveError::Gone)), "{gone:?}");
        let changed = remove(place.path(), name, |facts| facts.inode.1 == 0);
        assert!(matches!(changed, Err(RemoveError::Changed)), "{changed:?}");
        assert!(place.path().join(name).exists());
        let nowhere = remove(&place.path().join("none"), name, |_| true);
        assert!(matches!(nowhere, Err(RemoveError::Gone)), "{nowhere:?}");
    }
}
