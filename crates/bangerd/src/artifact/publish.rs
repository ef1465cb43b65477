//! How images and kernels appear whole or not at all, whenever the power is
//! cut.
//!
//! ```text
//! .staging-<hex>/ ── files, "unsettled", fsync ── rename ──► <name>/ ── row ── "unsettled" removed
//! removal:             "unsettled" ── row gone ── rename ──► .staging-<hex>/ ── gone
//! ```
//!
//! A directory with the mark and no row never appeared, or was being removed:
//! it goes at the next start, as all that is being filled or emptied. Nothing
//! else is ever taken for a leftover.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use banger_images::suite;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::blocking;
use crate::failure::Failure;

/// Begins the name of a directory that is being filled, or emptied.
const STAGING: &str = ".staging-";
/// The mark of a directory that counts only if it has a row.
const UNSETTLED: &str = "unsettled";

/// A directory that counts for nothing; removed when dropped unpublished.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    published: bool,
}

impl Staging {
    /// A new directory below `parent`, on the file system where its content
    /// will stay.
    pub(crate) fn new(parent: &Path) -> io::Result<Self> {
        let path = unused(parent)?;
        fs::create_dir(&path)?;
        Ok(Self {
            path,
            published: false,
        })
    }

    /// What was in place, out of it. The files of a directory go in no order,
    /// the mark maybe first: it is by its name that what a cut leaves of them
    /// is known.
    fn taken(place: &Path) -> io::Result<Self> {
        let path = unused(parent_of(place))?;
        renameat_with(CWD, place, CWD, &path, RenameFlags::NOREPLACE)?;
        let taken = Self {
            path,
            published: false,
        };
        sync_parent(place)?;
        Ok(taken)
    }

    /// Removes it, and says so where that fails; what stays is swept at the next start.
    fn remove(mut self) -> io::Result<()> {
        self.published = true;
        fs::remove_dir_all(&self.path)
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory its place, all of it on the disk. The caller then
    /// writes the row and calls [`settle`]. A directory that is there and has
    /// no row is replaced; the caller knows that it has none, or that its row
    /// is about to be replaced too. What was replaced goes when it is dropped.
    pub(crate) fn publish(mut self, place: &Path) -> io::Result<Option<Replaced>> {
        File::create(self.path.join(UNSETTLED))?;
        sync_all(&self.path)?;
        let replaced = match renameat_with(CWD, &self.path, CWD, place, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.published = true;
                None
            }
            Err(rustix::io::Errno::EXIST) => {
                renameat_with(CWD, &self.path, CWD, place, RenameFlags::EXCHANGE)?;
                Some(Replaced(self))
            }
            Err(error) => return Err(error.into()),
        };
        sync_parent(place)?;
        Ok(replaced)
    }
}

/// A directory that another one has the place of; removed when dropped.
#[derive(Debug)]
pub(crate) struct Replaced(Staging);

impl Replaced {
    /// Gives it its place again, and removes the other one.
    pub(crate) fn put_back(self, place: &Path) -> io::Result<()> {
        renameat_with(CWD, self.0.path(), CWD, place, RenameFlags::EXCHANGE)?;
        sync_parent(place)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "left for the next start");
        }
    }
}

/// The row is written: these directories count.
pub(crate) async fn settle(places: Vec<PathBuf>) {
    on_thread(places, unmark).await;
}

/// Before a row is removed: without it these directories will be leftovers.
pub(crate) async fn unsettle(places: Vec<PathBuf>) -> Result<(), Failure> {
    blocking(move || {
        places.iter().try_for_each(|place| {
            mark(place).map_err(|error| {
                Failure::internal(format!("cannot write to {}", place.display()), &error)
            })
        })
    })
    .await
}

/// Removes directories that no row speaks of.
pub(crate) async fn discard(places: Vec<PathBuf>) {
    on_thread(places, |place| match Staging::taken(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %place.display(), %error, "left for the next start");
        }
        taken => drop(taken),
    })
    .await;
}

async fn on_thread(places: Vec<PathBuf>, work: impl Fn(&Path) + Send + 'static) {
    let work = move || {
        places.iter().for_each(|place| work(place));
        Ok(())
    };
    if let Err(failure) = blocking(work).await {
        tracing::warn!(error = failure.sentence(), "left for the next start");
    }
}

fn unmark(place: &Path) {
    // With its row the mark means nothing; the next start removes it too.
    let _ = fs::remove_file(place.join(UNSETTLED));
}

fn mark(place: &Path) -> io::Result<()> {
    match File::create(place.join(UNSETTLED)) {
        Ok(_) => File::open(place)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what was cut: directories that were being filled, and unsettled
/// ones without a row. Tells the names of unsettled ones that have one.
pub(crate) fn sweep(parent: &Path, has_row: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let unsettled = || entry.path().join(UNSETTLED).exists();
        if name.starts_with(STAGING) || (!has_row(name) && unsettled()) {
            // Also this may be cut.
            let removed = match name.starts_with(STAGING) {
                true => suite::remove(&entry.path()),
                false => Staging::taken(&entry.path()).and_then(Staging::remove),
            };
            let path = entry.path();
            match removed {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed what was left unfinished");
                }
                // No reason to serve nobody: it has no row, and takes room only.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot be removed, and stays");
                }
            }
        } else if unsettled() {
            kept.push(name.to_owned());
        }
    }
    Ok(kept)
}

/// Whether a directory entry is something unfinished of ours, for doctor.
pub(crate) fn is_staging(name: &str) -> bool {
    name.starts_with(STAGING)
}

/// Whether a file says of the directory it is in that this counts only if it
/// has a row.
pub(crate) fn is_mark(name: &std::ffi::OsStr) -> bool {
    name == UNSETTLED
}

fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

fn sync_parent(place: &Path) -> io::Result<()> {
    File::open(parent_of(place))?.sync_all()
}

fn parent_of(place: &Path) -> &Path {
    place.parent().unwrap_or(Path::new("/"))
}

/// A name below `parent` that nothing has.
fn unused(parent: &Path) -> io::Result<PathBuf> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(parent.join(format!("{STAGING}{}", banger_model::id::hex(&bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(place: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(place)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn stage(place: &Path, content: &str) -> Staging {
        let staging = Staging::new(place).unwrap();
        fs::write(staging.path().join("content"), content).unwrap();
        staging
    }

    #[test]
    fn a_dropped_staging_directory_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        drop(stage(place.path(), "x"));
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn what_is_published_without_a_row_goes_and_with_a_row_stays() {
        let place = tempfile::tempdir().unwrap();
        for name in ["cut", "whole", "settled"] {
            stage(place.path(), name)
                .publish(&place.path().join(name))
                .unwrap();
        }
        unmark(&place.path().join("settled"));
        std::mem::forget(stage(place.path(), "power cut"));
        fs::create_dir(place.path().join("foreign")).unwrap();
        let unsure = sweep(place.path(), |name| name == "whole").unwrap();
        assert_eq!(unsure, ["whole"]);
        assert_eq!(names(place.path()), ["foreign", "settled", "whole"]);
    }

    #[test]
    fn a_removal_cut_before_its_row_is_gone_removes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a");
        stage(place.path(), "x").publish(&path).unwrap();
        unmark(&path);
        mark(&path).unwrap();
        assert_eq!(sweep(place.path(), |_| true).unwrap(), ["a"]);
        assert_eq!(sweep(place.path(), |_| false).unwrap(), [""; 0]);
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn publishing_over_an_older_directory_replaces_it_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a");
        stage(place.path(), "old").publish(&path).unwrap();
        stage(place.path(), "new").publish(&path).unwrap();
        assert_eq!(fs::read_to_string(path.join("content")).unwrap(), "new");
        assert_eq!(names(place.path()), ["a"]);
    }

    #[test]
    fn a_removal_cut_after_its_mark_went_is_ended_by_the_next_start() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a");
        stage(place.path(), "x").publish(&path).unwrap();
        let taken = Staging::taken(&path).unwrap();
        // The files of a directory go in no order.
        fs::remove_file(taken.path().join(UNSETTLED)).unwrap();
        std::mem::forget(taken);
        assert_eq!(sweep(place.path(), |_| false).unwrap(), [""; 0]);
        assert!(names(place.path()).is_empty());
    }

    #[tokio::test]
    async fn what_is_discarded_is_gone_and_what_is_gone_is_no_matter() {
        let place = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| place.path().join(name));
        for path in [&one, &two] {
            stage(place.path(), "x").publish(path).unwrap();
        }
        discard(vec![one.clone(), place.path().join("none")]).await;
        assert_eq!(names(place.path()), ["two"]);
    }

    #[test]
    fn what_was_replaced_can_have_its_place_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a");
        assert!(stage(place.path(), "old").publish(&path).unwrap().is_none());
        let old = stage(place.path(), "new").publish(&path).unwrap();
        assert_eq!(fs::read_to_string(path.join("content")).unwrap(), "new");
        old.unwrap().put_back(&path).unwrap();
        assert_eq!(fs::read_to_string(path.join("content")).unwrap(), "old");
        assert_eq!(names(place.path()), ["a"]);
    }
}
