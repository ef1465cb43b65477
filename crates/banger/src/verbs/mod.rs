//! The verbs, one file each, and who does which.

pub(crate) mod completion;
pub(crate) mod create;
pub(crate) mod daemon;
pub(crate) mod delete;
pub(crate) mod disk;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod health;
pub(crate) mod image;
pub(crate) mod internal;
pub(crate) mod kernel;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod operation;
pub(crate) mod power;
pub(crate) mod prune;
pub(crate) mod run;
pub(crate) mod set;
pub(crate) mod show;
pub(crate) mod stats;
pub(crate) mod wait;

use std::time::Instant;

use banger_api::kernel::KernelCatalogEntry;
use bytes::Bytes;

use crate::cli::{Cli, Verb, VmVerb};
use crate::client::start::Place;
use crate::failure::Failure;
use crate::show::escape;
use crate::show::size::about;
use crate::show::table::Table;
use crate::version;

/// Does what was asked; the status to exit with.
pub(crate) async fn run(cli: Cli, started: Instant) -> Result<u8, Failure> {
    let place = cli.place();
    match cli.verb {
        Verb::Vm(verb) | Verb::VmGroup { verb } => vm(&place, verb, started).await,
        Verb::Ps(args) => args.run(&place).await,
        Verb::Image { verb } => verb.run(&place).await,
        Verb::Images(args) => args.run(&place).await,
        Verb::Pull(args) => args.run(&place).await,
        Verb::Kernel { verb } => verb.run(&place).await,
        Verb::Operation { verb } => verb.run(&place).await,
        Verb::Daemon { verb } => verb.run(&place).await,
        Verb::Disk(args) => args.run(&place).await,
        Verb::Doctor(args) => args.run(&place).await,
        Verb::Completion(args) => args.run(),
        Verb::Version => versions(&place).await,
        Verb::Internal { verb } => verb.run().await,
    }
}

async fn vm(place: &Place, verb: VmVerb, started: Instant) -> Result<u8, Failure> {
    match verb {
        VmVerb::Run(args) => args.run(place, started).await,
        VmVerb::Create(args) => args.run(place).await,
        VmVerb::Start(args) => args.run(place).await,
        VmVerb::Stop(args) => args.run(place).await,
        VmVerb::Restart(args) => args.run(place).await,
        VmVerb::Kill(args) => args.run(place).await,
        VmVerb::Delete(args) => args.run(place).await,
        VmVerb::List(args) => args.run(place).await,
        VmVerb::Show(args) => args.run(place).await,
        VmVerb::Exec(args) => args.run(place).await,
        VmVerb::Logs(args) => args.run(place).await,
        VmVerb::Wait(args) => args.run(place).await,
        VmVerb::Rename(args) => args.run(place).await,
        VmVerb::Set(args) => args.run(place).await,
        VmVerb::Prune(args) => args.run(place).await,
        VmVerb::Stats(args) => args.run(place).await,
        VmVerb::Events(args) => args.run(place).await,
        VmVerb::Health(args) => args.run(place).await,
        VmVerb::Ping(args) => args.run(place).await,
    }
}

/// `version`: this program, and the daemon where one runs.
async fn versions(place: &Place) -> Result<u8, Failure> {
    crate::show::line(&format!("banger {}", version::LONG))?;
    if let Some(client) = place.look().await? {
        let ping = client
            .get::<banger_api::endpoint::Ping>(crate::client::At::default())
            .await?;
        crate::show::line(&format!(
            "bangerd v{} (commit {}, built {})",
            crate::show::escape(ping.version.as_deref().unwrap_or("?")),
            crate::show::escape(ping.commit.as_deref().unwrap_or("?")),
            crate::show::escape(ping.built_at.as_deref().unwrap_or("?")),
        ))?;
    }
    Ok(0)
}

/// Prints a reply as the daemon wrote it.
fn print_body(body: &Bytes) -> Result<u8, Failure> {
    let text = String::from_utf8_lossy(body);
    crate::show::line(text.trim_end())?;
    Ok(0)
}

/// Prints a table without a newline too many.
fn print_text(text: &str) -> Result<u8, Failure> {
    crate::show::write(text.as_bytes())?;
    Ok(0)
}

/// Prints what can be had by name.
fn print_catalog(
    entries: Vec<KernelCatalogEntry>,
    quiet: bool,
    kernels: bool,
) -> Result<u8, Failure> {
    if quiet {
        let names = entries
            .iter()
            .map(|entry| format!("{}\n", escape(&entry.name)));
        return print_text(&names.collect::<String>());
    }
    let mut head = vec!["NAME", "DISTRO", "ARCH"];
    if kernels {
        head.push("VERSION");
    }
    head.extend(["SIZE", "STATE", "DESCRIPTION"]);
    let mut table = Table::new(head);
    for entry in entries {
        let or_empty = Option::unwrap_or_default;
        let mut row = vec![entry.name, or_empty(entry.distro), or_empty(entry.arch)];
        if kernels {
            row.push(or_empty(entry.kernel_version));
        }
        row.push(entry.size_bytes.map(about).unwrap_or_default());
        row.push(if entry.pulled { "pulled" } else { "available" }.to_owned());
        row.push(or_empty(entry.description));
        table.row(row);
    }
    print_text(&table.render())
}

/// Reads a reply that is also printed as it came.
fn read<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::new(
            banger_api::error::Code::Internal,
            "cannot read the answer of bangerd",
        )
        .because(&error)
    })
}
