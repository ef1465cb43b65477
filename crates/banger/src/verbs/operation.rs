//! `operation`: long work of the daemon.

use banger_api::Empty;
use banger_api::endpoint::{OperationCancel, OperationList, OperationShow};
use banger_api::operation::{Operation, OperationListResult, OperationResult};
use clap::{Args, Subcommand};

use crate::client::At;
use crate::client::start::Place;
use crate::failure::Failure;
use crate::interrupt::guarded;
use crate::show::escape;
use crate::show::progress::Progress;
use crate::show::size::about;
use crate::show::table::{Table, facts};
use crate::{complete, follow};

/// What one does with operations.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    List(List),
    Show(Show),
    Follow(Follow),
    Cancel(Cancel),
}

/// List operations
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those not done
    #[arg(long)]
    running: bool,
    /// Print the API's answer
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

/// Show an operation
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Operation by id
    #[arg(value_name = "ID", add = complete::operations())]
    id: String,
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

/// Follow an operation to its end; Ctrl-C cancels it
#[derive(Debug, Args)]
pub(crate) struct Follow {
    /// Operation by id
    #[arg(value_name = "ID", add = complete::operations())]
    id: String,
}

/// Cancel an operation
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Operation by id
    #[arg(value_name = "ID", add = complete::operations())]
    id: String,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        match self {
            Self::List(args) => args.run(place).await,
            Self::Show(args) => args.run(place).await,
            Self::Follow(args) => args.run(place).await,
            Self::Cancel(args) => args.run(place).await,
        }
    }
}

impl List {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let query: &[(&str, &str)] = if self.running {
            &[("running", "true")]
        } else {
            &[]
        };
        let body = client
            .body::<OperationList>(At { path: &[], query }, &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        let list: OperationListResult = super::read(&body)?;
        if self.quiet {
            return super::print_text(
                &list
                    .operations
                    .iter()
                    .map(|operation| format!("{}\n", operation.id))
                    .collect::<String>(),
            );
        }
        let mut table = Table::new(["ID", "KIND", "ON", "STAGE", "STATUS", "STARTED"]);
        for operation in &list.operations {
            table.row([
                operation.id.clone(),
                operation.kind.clone(),
                subject(operation),
                operation.stage.clone().unwrap_or_default(),
                status(operation).to_owned(),
                operation.started_at.clone(),
            ]);
        }
        super::print_text(&table.render())
    }
}

fn subject(operation: &Operation) -> String {
    operation
        .vm_name
        .clone()
        .or_else(|| operation.image_name.clone())
        .unwrap_or_default()
}

fn status(operation: &Operation) -> &'static str {
    match (operation.done, operation.success, operation.cancelled) {
        (false, ..) => "running",
        (true, true, _) => "done",
        (true, false, true) => "cancelled",
        (true, false, false) => "failed",
    }
}

impl Show {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let body = client
            .body::<OperationShow>(At::path(&[&self.id]), &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        let OperationResult { operation } = super::read(&body)?;
        let bytes = match (operation.bytes_done, operation.bytes_total) {
            (Some(done), Some(total)) => format!("{} of {}", about(done), about(total)),
            (Some(done), None) => about(done),
            (None, _) => String::new(),
        };
        super::print_text(&facts(&[
            ("id", operation.id.clone()),
            ("kind", operation.kind.clone()),
            ("on", subject(&operation)),
            ("status", status(&operation).to_owned()),
            ("stage", operation.stage.clone().unwrap_or_default()),
            ("detail", operation.detail.clone().unwrap_or_default()),
            ("bytes", bytes),
            ("error", operation.error.clone().unwrap_or_default()),
            (
                "code",
                operation
                    .error_code
                    .map(|code| code.name().to_owned())
                    .unwrap_or_default(),
            ),
            ("hint", operation.hint.clone().unwrap_or_default()),
            (
                "build log",
                operation.build_log_path.clone().unwrap_or_default(),
            ),
            ("started", operation.started_at.clone()),
            ("updated", operation.updated_at.clone()),
        ]))
    }
}

impl Follow {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        guarded(async |cancel| {
            let client = place.reach().await?;
            // Unknown ids are told before anything is followed.
            client.get::<OperationShow>(At::path(&[&self.id])).await?;
            let mut progress = Progress::new();
            follow::success(place, &client, &self.id, &mut progress, cancel).await?;
            Ok(0)
        })
        .await
    }
}

impl Cancel {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let cancelled = client
            .call::<OperationCancel>(&[&self.id], &Empty {})
            .await?;
        crate::show::line(&escape(&cancelled.operation.id))?;
        Ok(0)
    }
}
