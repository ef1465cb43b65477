//! The disk, explained and given back: every byte of banger's directories by
//! what it is there for, and a plan of what nothing references.
//!
//! ```text
//! walk ──► units ── with rows, locks and claims ──► owners ──► report
//!                                                       └────► plan ── shown, asked ──► reclaim
//! ```
//!
//! Only what a plan listed goes. A reclaim looks again, and takes what is on
//! the plan and still is the same and still without an owner; the last look at
//! each thing is its owner's, under its locks. What banger cannot tell: bytes
//! that copies share by reflink count for each of them, as `du` counts them.

mod explain;
mod look;
mod owners;
mod reclaim;
mod remove;
mod walk;

use banger_api::disk::DiskReport;

use crate::artifact::Shelf;
use crate::failure::Failure;
use crate::paths::Paths;
use crate::seam::Seams;

use self::explain::Survey;

/// What is on the disk. Clones are the same.
#[derive(Clone)]
pub(crate) struct Disk {
    paths: Paths,
    shelf: Shelf,
    seams: Seams,
}

impl Disk {
    /// The directories of a daemon.
    pub(crate) fn new(paths: &Paths, shelf: Shelf, seams: Seams) -> Self {
        Self {
            paths: paths.clone(),
            shelf,
            seams,
        }
    }

    /// What is there, and why.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn report(&self) -> Result<DiskReport, Failure> {
        Ok(self.survey(None).await?.report)
    }

    /// Looks at all files first and asks who owns them after, so that what
    /// came in between has its owner.
    async fn survey(&self, cancel: Option<banger_images::Cancel>) -> Result<Survey, Failure> {
        let paths = self.paths.clone();
        let look = blocking(move || Ok(look::look(&paths, cancel))).await?;
        let stock = self.shelf.stock().await?;
        let (paths, shelf) = (self.paths.clone(), self.shelf.clone());
        blocking(move || explain::explain(look, stock, &shelf, &paths)).await
    }
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::internal("the look at the disk broke off", &error)))
}
