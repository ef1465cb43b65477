//! `disk`: what takes room and why, and giving it back after asking.

use std::collections::BTreeMap;

use banger_api::Empty;
use banger_api::disk::{
    DiskKind, DiskReclaimParams, DiskReport, DiskRow, DiskUser, ReclaimItem, ReclaimOutcome,
    ReclaimReport,
};
use banger_api::endpoint::{Disk as DiskEndpoint, DiskReclaim};
use banger_api::operation::OperationResult;
use clap::Args;

use crate::client::start::Place;
use crate::client::{At, Client};
use crate::failure::{Failure, USAGE};
use crate::interrupt::{Cancel, guarded};
use crate::show::progress::Progress;
use crate::show::size::about;
use crate::show::table::Table;
use crate::show::{escape, note};
use crate::{ask, follow};

/// Skipped items that are said one by one.
const SKIPS: usize = 20;

/// Show what takes room on the disk, or give back what nothing references
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger disk                        every byte by what it is there for
  banger disk --reclaim              show what can go, ask, remove it
  banger disk --reclaim --images -y  also images and kernels that no VM uses

A file with several names counts once. Bytes that copies share by reflink count
for each copy.")]
pub(crate) struct Disk {
    /// Remove what nothing references: downloaded layers, package lists, old logs, leftovers
    #[arg(long)]
    reclaim: bool,
    /// Also remove images and kernels that no VM uses
    #[arg(long, requires = "reclaim")]
    images: bool,
    /// Do not ask
    #[arg(short, long, requires = "reclaim")]
    yes: bool,
    /// Only show what would go
    #[arg(long, requires = "reclaim", conflicts_with = "yes")]
    dry_run: bool,
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

impl Disk {
    /// Shows, or reclaims.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        if !self.reclaim {
            return self.show(&place.reach().await?).await;
        }
        if !self.yes && !self.dry_run && !ask::possible() {
            let why = "a reclaim asks first, and there is no terminal";
            return Err(Failure::usage("disk", why).hint("-y"));
        }
        let client = place.reach().await?;
        let mut params = DiskReclaimParams {
            dry_run: !self.yes,
            images: self.images,
            plan: None,
        };
        if !self.yes {
            // Nothing to undo, and a question to come: Ctrl-C just ends this.
            let plan = operate(place, &client, &params, Cancel::never()).await?;
            if self.dry_run {
                return self.print(&plan);
            }
            let report = report(&plan)?;
            if report.items.is_empty() {
                note("nothing to reclaim");
                return Ok(0);
            }
            note(plan_table(report).trim_end());
            let (items, bytes) = (
                count(report.items.len() as u64),
                about(report.bytes_planned),
            );
            if !ask::yes(&format!("remove {items} to free {bytes}?"))? {
                return Err(Failure::silent(USAGE));
            }
            params.dry_run = false;
            params.plan = Some(plan.operation.id);
        }
        let work = async |cancel| operate(place, &client, &params, cancel).await;
        self.print(&guarded(work).await?)
    }

    async fn show(&self, client: &Client) -> Result<u8, Failure> {
        let body = client
            .body::<DiskEndpoint>(At::default(), &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        let report: DiskReport = super::read(&body)?;
        let mut table = Table::new([
            "KIND",
            "NAME",
            "SIZE",
            "USED",
            "SHARED",
            "USED-BY",
            "RECLAIMABLE",
        ]);
        for row in &report.rows {
            table.row([
                row.kind.name().to_owned(),
                row.name.clone(),
                about(row.size_bytes),
                about(row.used_bytes),
                some(row.shared_bytes),
                users(&row.used_by),
                reclaimable(row),
            ]);
        }
        table.row([
            "total".to_owned(),
            String::new(),
            about(report.size_bytes),
            about(report.used_bytes),
            some(report.rows.iter().map(|row| row.shared_bytes).sum()),
            String::new(),
            total(&report),
        ]);
        super::print_text(&table.render())?;
        for problem in &report.problems {
            note(&escape(&format!("warning: not counted: {problem}")));
        }
        for directory in &report.directories {
            crate::show::line(&escape(&format!(
                "{}: {} in {}, {} free",
                directory.name,
                about(directory.used_bytes),
                directory.path,
                about(directory.filesystem_free_bytes)
            )))?;
        }
        Ok(0)
    }

    /// What came of it.
    fn print(&self, done: &OperationResult) -> Result<u8, Failure> {
        if self.json {
            let text = serde_json::to_string(done).expect("an operation is plain JSON");
            crate::show::line(&text)?;
            return Ok(0);
        }
        let report = report(done)?;
        if report.dry_run {
            super::print_text(&plan_table(report))?;
            let items = count(report.items.len() as u64);
            crate::show::line(&format!(
                "would free {} ({items})",
                about(report.bytes_planned)
            ))?;
        } else {
            say_skipped(report);
            let items = count(report.items_freed);
            crate::show::line(&format!("freed {} ({items})", about(report.bytes_freed)))?;
        }
        if report.left_out > 0 {
            note(&format!("{} more can go: again", report.left_out));
        }
        Ok(0)
    }
}

async fn operate(
    place: &Place,
    client: &Client,
    params: &DiskReclaimParams,
    cancel: Cancel,
) -> Result<OperationResult, Failure> {
    let begun = client.call::<DiskReclaim>(&[], params).await?.operation;
    let mut progress = Progress::new();
    let operation = follow::success(place, client, &begun.id, &mut progress, cancel).await?;
    Ok(OperationResult { operation })
}

fn report(done: &OperationResult) -> Result<&ReclaimReport, Failure> {
    done.operation.reclaim.as_ref().ok_or_else(|| {
        let message = format!("{} does not say what it did", done.operation.id);
        Failure::new(banger_api::error::Code::Internal, message)
    })
}

/// What goes: images, kernels, logs and leftovers one by one, of what is
/// cached how much of each sort.
fn plan_table(plan: &ReclaimReport) -> String {
    let mut table = Table::new(["KIND", "NAME", "FREES", "NOTE"]);
    let mut sorts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let single = |table: &mut Table, item: &ReclaimItem| {
        table.row([
            item.kind.name().to_owned(),
            item.name.clone(),
            about(item.bytes),
            item.note.clone().unwrap_or_default(),
        ]);
    };
    let (cached, others): (Vec<_>, Vec<_>) =
        (plan.items.iter()).partition(|item| item.kind == DiskKind::Cache);
    for item in others {
        single(&mut table, item);
    }
    for item in cached {
        let sort = item.name.split('/').next().unwrap_or_default();
        let (items, bytes) = sorts.entry(sort).or_default();
        *items += 1;
        *bytes += item.bytes;
    }
    for (sort, (items, bytes)) in sorts {
        let kind = DiskKind::Cache.name().to_owned();
        table.row([kind, sort.to_owned(), about(bytes), count(items)]);
    }
    table.render()
}

fn say_skipped(report: &ReclaimReport) {
    let skipped = |item: &&ReclaimItem| item.outcome == ReclaimOutcome::Skipped;
    for item in report.items.iter().filter(skipped).take(SKIPS) {
        let why = item.reason.as_deref().unwrap_or("it stays");
        let line = format!("skipped {} {}: {why}", item.kind.name(), item.name);
        note(&escape(&line));
    }
    let all = report.items.iter().filter(skipped).count();
    if all > SKIPS {
        note(&format!("skipped {} more", all - SKIPS));
    }
}

fn count(items: u64) -> String {
    let end = if items == 1 { "" } else { "s" };
    format!("{items} item{end}")
}

/// A size that says nothing when it is none.
fn some(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => about(bytes),
    }
}

fn reclaimable(row: &DiskRow) -> String {
    let mut text = some(row.reclaimable_bytes);
    if row.with_images && row.reclaimable_bytes > 0 {
        text.push_str(" with --images");
    }
    if let Some(note) = &row.note {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(note);
    }
    text
}

fn total(report: &DiskReport) -> String {
    let (plain, all) = (
        report.reclaimable_bytes,
        report.reclaimable_with_images_bytes,
    );
    if all > plain {
        return format!("{}, {} with --images", about(plain), about(all));
    }
    some(plain)
}

/// Names of VMs alone, of everything else with what it is.
fn users(users: &[DiskUser]) -> String {
    let word = |user: &DiskUser| match (user.kind.as_str(), user.name.as_str()) {
        ("vm", name) => name.to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, name) => format!("{kind} {name}"),
    };
    let words: Vec<String> = users.iter().map(word).collect();
    words.join(", ")
}
