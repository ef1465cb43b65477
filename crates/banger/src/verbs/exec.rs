//! `exec`: a command in a VM that exists; its exit status is ours.

use banger_api::error::Code;
use clap::Args;

use crate::client::start::Place;
use crate::complete;
use crate::failure::{Failure, NOT_RUN};
use crate::interrupt::{Blow, Interrupts};
use crate::process::ProcessFlags;
use crate::session::{self, End};
use crate::terminal::Terminals;

/// Run a command in a VM
#[derive(Debug, Args)]
#[command(
    override_usage = "banger exec [OPTIONS] <VM> -- <COMMAND>...",
    after_help = "Examples:
  banger exec box -- make test
  banger exec -u www-data -w /srv box -- ls -l
  tar c . | banger exec -i box -- tar x -C /srv
  banger exec --timeout 5m box -- ./slow

Exit status: that of the command, 124 after --timeout, 125 where it never ran,
126 and 127 where it cannot be executed or found, 128 + n where signal n ended it."
)]
pub(crate) struct Exec {
    #[command(flatten)]
    process: ProcessFlags,
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// Runs it; whatever fails before is 125.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        match self.attempt(place).await {
            Ok(end) => outcome(end),
            Err(failure) if failure.code.is_some() => Err(failure.exiting(NOT_RUN)),
            Err(failure) => Err(failure),
        }
    }

    async fn attempt(&self, place: &Place) -> Result<End, Failure> {
        let streams = self.process.streams(Terminals::of_this_process(), false)?;
        let params = self.process.params(&self.command, streams);
        let mut interrupts = Interrupts::listen()?;
        let open = async {
            let client = place.reach().await?;
            client.exec(&self.vm, &params).await
        };
        let duplex = tokio::select! {
            duplex = open => duplex?,
            // Nothing runs yet, so there is nobody to pass it to.
            blow = interrupts.next() => return Err(left(blow)),
        };
        Ok(session::join(duplex, streams, &mut interrupts).await.end)
    }
}

/// Leaving before anything ran.
pub(crate) fn left(blow: Blow) -> Failure {
    Failure::silent(blow.status())
}

/// What the end of a session is as the end of a command of ours.
pub(crate) fn outcome(end: End) -> Result<u8, Failure> {
    match end {
        End::Exited(status) | End::Left(status) => Ok(status),
        End::Failed { exit, error } => Err(failed(&error).exiting(exit)),
    }
}

/// The daemon puts the code of its own errors before the text; the guest's
/// have none.
fn failed(error: &str) -> Failure {
    for code in Code::ALL {
        let rest = error
            .strip_prefix(code.name())
            .and_then(|rest| rest.strip_prefix(": "));
        if let Some(rest) = rest {
            return Failure::new(*code, rest);
        }
    }
    Failure::new(Code::GuestUnreachable, error)
}
