//! Gives back what nothing references: plans, and does only what was planned.
//!
//! A plan is the outcome of a dry run, kept with its operation. Its items are
//! known again by kind, name and identity; what is not found again so, or has
//! an owner by now, is skipped and said. Everything is taken away by its
//! owner: images and kernels by the shelf, with its claims and rules, what is
//! cached under the locks of its readers.
//!
//! ```text
//! look ─ each item: seam ─ its owner's own last look and removal ─ seam ─ next
//! ```
//!
//! A cut between two items, or in one, leaves whole images: what the shelf
//! began to remove goes at the next start, the rest is listed again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use banger_api::disk::{DiskKind, DiskReclaimParams, ReclaimItem, ReclaimOutcome, ReclaimReport};
use banger_api::error::Code;
use banger_api::operation::Operation;

use super::explain::{Candidate, How, Survey, identity};
use super::look::Unit;
use super::remove::{RemoveError, remove};
use super::walk::{Facts, Walk};
use super::{Disk, blocking};
use crate::artifact::stock::{Clearing, idle_packages};
use crate::failure::Failure;
use crate::operation::Operations;
use crate::ports::Progress;

/// Items of one reclaim. A plan is a row of the database, and is sent whole.
const MOST: usize = 5000;

/// A reclaim, checked.
pub(crate) struct NewReclaim {
    dry_run: bool,
    images: bool,
    /// What may go at most.
    plan: Option<Vec<ReclaimItem>>,
    /// Held to the end, unless nothing is to be touched.
    _clearing: Option<Clearing>,
}

impl Disk {
    /// Checks what a client asks for, and takes the right to clear.
    ///
    /// # Errors
    /// `busy` while something else is cleared, `not_found` or `bad_request`
    /// where the plan is none.
    pub(crate) async fn new_reclaim(
        &self,
        params: DiskReclaimParams,
        operations: &Operations,
    ) -> Result<NewReclaim, Failure> {
        let plan = match &params.plan {
            Some(id) => Some(planned(&operations.get(id).await?, params.images)?),
            None => None,
        };
        Ok(NewReclaim {
            dry_run: params.dry_run,
            images: params.images,
            plan,
            _clearing: match params.dry_run {
                true => None,
                false => Some(self.shelf.clear().await?),
            },
        })
    }

    /// Does it, or only plans.
    ///
    /// # Errors
    /// `cancelled` between two items, or when it cannot look at all.
    pub(crate) async fn reclaim(
        &self,
        wanted: NewReclaim,
        progress: &dyn Progress,
    ) -> Result<ReclaimReport, Failure> {
        progress.stage("look", "");
        let cancel = progress.cancel();
        let survey = self.survey(Some(cancel.clone())).await?;
        let mut report = plan(&survey, &wanted);
        let was_cancelled = |report: &ReclaimReport| {
            let all = report.items.len();
            let message = format!("cancelled; {} of {all} items are gone", report.items_freed);
            Failure::new(Code::Cancelled, message)
        };
        if cancel.is_cancelled() {
            return Err(was_cancelled(&report));
        }
        if wanted.dry_run {
            return Ok(report);
        }
        let found: HashMap<_, _> = (survey.candidates.iter())
            .map(|candidate| ((candidate.kind, candidate.name.as_str()), candidate))
            .collect();
        for at in 0..report.items.len() {
            let item = &report.items[at];
            if item.outcome == ReclaimOutcome::Skipped {
                continue;
            }
            if cancel.is_cancelled() {
                return Err(was_cancelled(&report));
            }
            progress.stage("reclaim", &format!("{} {}", item.kind.name(), item.name));
            progress.bytes(report.bytes_freed, Some(report.bytes_planned));
            let candidate = found[&(item.kind, item.name.as_str())];
            self.seams.pass("reclaim.removing").await;
            let gone = self.free(candidate, &survey).await;
            self.seams.pass("reclaim.removed").await;
            let item = &mut report.items[at];
            match gone {
                Ok(bytes) => {
                    tracing::debug!(
                        kind = item.kind.name(),
                        name = item.name,
                        bytes,
                        "reclaimed"
                    );
                    item.outcome = ReclaimOutcome::Freed;
                    report.bytes_freed += bytes;
                    report.items_freed += 1;
                }
                Err(why) => skip(item, &why),
            }
        }
        progress.bytes(report.bytes_freed, Some(report.bytes_planned));
        let (items, bytes) = (report.items_freed, report.bytes_freed);
        tracing::info!(items, bytes, "the disk was reclaimed");
        Ok(report)
    }

    /// Takes one thing away, and tells the bytes that came back, or why it
    /// stays.
    async fn free(&self, candidate: &Candidate, survey: &Survey) -> Result<u64, String> {
        let unit = &survey.look.units[candidate.units[0]];
        let (name, inode) = (unit.path.file_name().unwrap_or_default(), unit.top.inode);
        let said = |failure: Failure| failure.sentence();
        match &candidate.how {
            How::Image(id) => {
                let same = self.same(candidate, survey).await?;
                self.shelf.delete_image(id).await.map_err(said)?;
                same.gone().await
            }
            How::Kernel(name) => {
                let same = self.same(candidate, survey).await?;
                self.shelf.delete_idle_kernel(name).await.map_err(said)?;
                same.gone().await
            }
            How::Initramfs => {
                let (shelf, name) = (self.shelf.clone(), name.to_owned());
                // By now, not as planned: a kernel may have stayed.
                let stock = self.shelf.stock().await.map_err(said)?;
                let dirs = stock.kernel_dirs(|_| false);
                blocking(move || shelf.free_boot(&dirs, &name, inode))
                    .await
                    .map_err(said)?
                    .ok_or_else(|| "it is in use, or gone".to_owned())
            }
            How::Blob => {
                let (shelf, name) = (self.shelf.clone(), name.to_string_lossy().into_owned());
                let blobs = blocking(move || shelf.free_blob(&name, inode)).await;
                (blobs.map_err(said)?).ok_or_else(|| "a pull uses it, or it is gone".to_owned())
            }
            How::Packages => {
                let dir = unit.place.parent().unwrap_or(Path::new("/")).to_owned();
                let names = candidate.units.iter();
                let names = names.filter_map(|unit| survey.look.units[*unit].place.file_name());
                let names: Vec<_> = names.map(OsStr::to_owned).collect();
                off_thread(move || free_packages(&dir, &names)).await
            }
            How::BuildLog(image) => {
                let claim = self.shelf.claim_image(image).map_err(said)?;
                let freed = self.free_file(unit).await;
                drop(claim);
                freed
            }
            How::File => {
                // In the directory of kernels a name may get an owner.
                let claim = match unit.path.starts_with("kernels") {
                    true => Some(self.shelf.claim_kernel(&name.to_string_lossy())),
                    false => None,
                };
                let claim = claim.transpose().map_err(said)?;
                let freed = self.free_file(unit).await;
                drop(claim);
                freed
            }
        }
    }

    /// What a thing takes, if it still is what was looked at: one of its name
    /// that was pulled again is another.
    async fn same(&self, candidate: &Candidate, survey: &Survey) -> Result<Same, String> {
        let units = candidate.units.iter().map(|at| &survey.look.units[*at]);
        let dirs: Vec<_> = units
            .map(|unit| (unit.place.clone(), unit.top.inode))
            .collect();
        off_thread(move || {
            for (place, inode) in &dirs {
                match rustix::fs::lstat(place) {
                    Ok(stat) if Facts::of(&stat).inode == *inode => {}
                    Ok(_) => return Err(RemoveError::Changed.to_string()),
                    Err(_) => return Err(RemoveError::Gone.to_string()),
                }
            }
            let bytes = size_of(dirs.iter().map(|(place, _)| place));
            Ok(Same { dirs, bytes })
        })
        .await
    }

    async fn free_file(&self, unit: &Unit) -> Result<u64, String> {
        let (place, top) = (unit.place.clone(), unit.top);
        off_thread(move || {
            let parent = place.parent().unwrap_or(Path::new("/"));
            let name = place.file_name().unwrap_or_default();
            let same = identity(&top, true);
            remove(parent, name, |facts| identity(facts, true) == same)
                .map_err(|error| error.to_string())
        })
        .await
    }
}

/// Directories of a thing that is about to go.
struct Same {
    /// Where they are, and their inodes.
    dirs: Vec<(PathBuf, (u64, u64))>,
    /// What would come back.
    bytes: u64,
}

impl Same {
    /// The bytes that came back. What the shelf cannot remove it leaves to the
    /// next start under another name, so that is looked for.
    async fn gone(self) -> Result<u64, String> {
        off_thread(move || {
            let left: Vec<_> = (self.dirs.iter())
                .filter_map(|(place, inode)| named_now(place, *inode))
                .collect();
            Ok(self.bytes.saturating_sub(size_of(&left)))
        })
        .await
    }
}

/// Where a directory is that was here, if it still is beside it.
fn named_now(place: &Path, inode: (u64, u64)) -> Option<PathBuf> {
    let beside = std::fs::read_dir(place.parent()?).ok()?;
    beside
        .flatten()
        .map(|entry| entry.path())
        .find(|path| rustix::fs::lstat(path).is_ok_and(|stat| Facts::of(&stat).inode == inode))
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

/// The items of a dry run of the same kind.
fn planned(operation: &Operation, images: bool) -> Result<Vec<ReclaimItem>, Failure> {
    let no_plan = |why: &str| {
        Failure::new(Code::BadRequest, format!("{} {why}", operation.id))
            .hint("banger disk --reclaim")
    };
    match &operation.reclaim {
        Some(plan) if !plan.dry_run => Err(no_plan("is a reclaim and no plan of one")),
        Some(plan) if plan.images != images => Err(no_plan("is a plan of another reclaim")),
        Some(plan) => Ok(plan.items.clone()),
        None => Err(no_plan("is no plan of a reclaim")),
    }
}

/// What goes, of what was found and, where there is a plan, is on it.
fn plan(survey: &Survey, wanted: &NewReclaim) -> ReclaimReport {
    let bytes: HashMap<usize, u64> = survey
        .bytes(|candidate| wanted.images || !candidate.with_images)
        .into_iter()
        .collect();
    // What gives nothing back is not worth its loss.
    let mut found: Vec<(usize, ReclaimItem)> = (bytes.iter())
        .filter(|(_, bytes)| **bytes > 0)
        .map(|(at, bytes)| (*at, item(&survey.candidates[*at], *bytes)))
        .collect();
    found.sort_by_key(|(at, _)| *at);
    let mut found: Vec<ReclaimItem> = found.into_iter().map(|(_, item)| item).collect();
    let mut left_out = 0;
    let items = match &wanted.plan {
        None => {
            left_out = found.len().saturating_sub(MOST) as u64;
            found.truncate(MOST);
            found
        }
        Some(plan) => {
            let now: HashMap<_, _> = (found.into_iter())
                .map(|item| ((item.kind, item.name.clone()), item))
                .collect();
            (plan.iter())
                .map(|item| again(item, now.get(&(item.kind, item.name.clone())), survey))
                .collect()
        }
    };
    let going = items
        .iter()
        .filter(|item| item.outcome == ReclaimOutcome::Planned);
    ReclaimReport {
        dry_run: wanted.dry_run,
        images: wanted.images,
        bytes_planned: going.map(|item| item.bytes).sum(),
        items,
        left_out,
        ..ReclaimReport::default()
    }
}

fn item(candidate: &Candidate, bytes: u64) -> ReclaimItem {
    ReclaimItem {
        kind: candidate.kind,
        name: candidate.name.clone(),
        bytes,
        identity: candidate.identity.clone(),
        note: candidate.note.clone(),
        outcome: ReclaimOutcome::Planned,
        reason: None,
    }
}

/// An item of an earlier plan as it is now.
fn again(item: &ReclaimItem, now: Option<&ReclaimItem>, survey: &Survey) -> ReclaimItem {
    let mut item = item.clone();
    match now {
        Some(now) if now.identity == item.identity => item.bytes = now.bytes,
        Some(_) => skip(&mut item, &RemoveError::Changed.to_string()),
        None => {
            let why = used_by(&item, survey);
            skip(&mut item, &why);
        }
    }
    item
}

/// Why what was on a plan can go no more.
fn used_by(item: &ReclaimItem, survey: &Survey) -> String {
    let name = match item.kind {
        DiskKind::Cache => item.name.split('/').next().unwrap_or_default(),
        _ => &item.name,
    };
    let row = (survey.report.rows.iter()).find(|row| row.kind == item.kind && row.name == name);
    let Some(row) = row else {
        return RemoveError::Gone.to_string();
    };
    match row.used_by.first() {
        Some(user) if user.name.is_empty() => format!("it is in use by a {}, or gone", user.kind),
        Some(user) => format!("it is in use by {} {:?}", user.kind, user.name),
        None => "it has changed or is in use".to_owned(),
    }
}

fn skip(item: &mut ReclaimItem, why: &str) {
    tracing::debug!(
        kind = item.kind.name(),
        name = item.name,
        why,
        "not reclaimed"
    );
    item.outcome = ReclaimOutcome::Skipped;
    item.reason = Some(why.to_owned());
}

/// What would come back if these directories went now.
fn size_of<'p>(places: impl IntoIterator<Item = &'p PathBuf>) -> u64 {
    let mut bytes = 0;
    let mut linked: HashMap<(u64, u64), u64> = HashMap::new();
    let mut walk = Walk::new(None);
    for place in places {
        walk.below(place, &mut |_, facts| {
            if facts.is_dir() || facts.links == 1 {
                bytes += facts.allocated;
                return;
            }
            let met = linked.entry(facts.inode).or_default();
            *met += 1;
            if *met == facts.links {
                bytes += facts.allocated;
            }
        });
    }
    bytes
}

/// Removes these files of apt's directory while nobody uses it.
fn free_packages(dir: &Path, names: &[std::ffi::OsString]) -> Result<u64, String> {
    let Ok(_lock) = idle_packages(dir) else {
        return Err("a kernel is being fetched".to_owned());
    };
    let mut freed = 0;
    // First what says that the lists are fresh.
    let mut names: Vec<_> = names.iter().collect();
    names.sort_by_key(|name| *name != "updated");
    for name in names {
        match remove(dir, name, |_| true) {
            Ok(bytes) => freed += bytes,
            Err(RemoveError::Gone) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_left_under_another_name_did_not_come_back() {
        let place = tempfile::tempdir().unwrap();
        let dirs = ["one", "two"].map(|name| {
            let dir = place.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("file"), vec![1; 40_000]).unwrap();
            let inode = Facts::of(&rustix::fs::lstat(&dir).unwrap()).inode;
            (dir, inode)
        });
        let one = size_of([&dirs[0].0]);
        let bytes = size_of(dirs.iter().map(|(dir, _)| dir));
        assert!(one >= 40_000 && bytes > one, "{one} {bytes}");
        std::fs::remove_dir_all(&dirs[0].0).unwrap();
        std::fs::rename(&dirs[1].0, place.path().join("left")).unwrap();
        let dirs = dirs.to_vec();
        assert_eq!(Same { dirs, bytes }.gone().await, Ok(one));
    }
}
