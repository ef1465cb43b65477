//! Names for the shell's completion, and defaults for help: asked of a daemon
//! that runs anyway, within 150 ms. Without one names are left out, and the
//! defaults are asked of its program.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Duration;

use banger_api::endpoint::{ImageList, KernelList, OperationList, System, VmList};
use banger_api::system::VmDefault;
use clap_complete::env::CompleteEnv;
use clap_complete::{ArgValueCompleter, CompletionCandidate};

use crate::client::start::{self, Place};
use crate::client::{At, Client};
use crate::failure::Failure;

/// More would be felt while typing.
const BUDGET: Duration = Duration::from_millis(150);

/// Answers a shell that asks for completions, and ends the process then.
pub(crate) fn answer_a_shell() {
    CompleteEnv::with_factory(crate::cli::command).complete();
}

/// Names of VMs.
pub(crate) fn vms() -> ArgValueCompleter {
    names(async |client| {
        let list = client.get::<VmList>(At::default()).await?;
        Ok(list
            .vms
            .into_iter()
            .map(|vm| (vm.name, vm.state.name().to_owned()))
            .collect())
    })
}

/// Names of images.
pub(crate) fn images() -> ArgValueCompleter {
    names(async |client| {
        let list = client.get::<ImageList>(At::default()).await?;
        Ok(list
            .images
            .into_iter()
            .map(|image| (image.name, image.distro.unwrap_or_default()))
            .collect())
    })
}

/// Names of kernels.
pub(crate) fn kernels() -> ArgValueCompleter {
    names(async |client| {
        let list = client.get::<KernelList>(At::default()).await?;
        Ok(list
            .entries
            .into_iter()
            .map(|entry| (entry.name, entry.kernel_version.unwrap_or_default()))
            .collect())
    })
}

/// Ids of operations.
pub(crate) fn operations() -> ArgValueCompleter {
    names(async |client| {
        let list = client.get::<OperationList>(At::default()).await?;
        Ok(list
            .operations
            .into_iter()
            .map(|operation| (operation.id, operation.kind))
            .collect())
    })
}

/// Names and what to say of them.
type Names = Vec<(String, String)>;

fn names<F>(list: F) -> ArgValueCompleter
where
    F: AsyncFn(Client) -> Result<Names, Failure> + Copy + Send + Sync + 'static,
{
    ArgValueCompleter::new(move |current: &OsStr| {
        let current = current.to_string_lossy();
        ask(list)
            .unwrap_or_default()
            .into_iter()
            .filter(|(name, _)| name.starts_with(current.as_ref()))
            .map(|(name, help)| {
                let help = crate::show::escape(&help);
                CompletionCandidate::new(name).help((!help.is_empty()).then(|| help.into()))
            })
            .collect::<Vec<_>>()
    })
}

/// What the daemon's program says without becoming a daemon.
fn of_the_program() -> Vec<VmDefault> {
    let said = Command::new(start::program())
        .arg("--defaults-json")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    said.ok()
        .and_then(|said| serde_json::from_slice(&said.stdout).ok())
        .unwrap_or_default()
}

/// Asks a running daemon within the budget; any failure is no answer.
fn ask<T>(question: impl AsyncFnOnce(Client) -> Result<T, Failure>) -> Option<T> {
    let socket = std::env::var_os("BANGER_SOCKET").filter(|socket| !socket.is_empty());
    let place = Place {
        socket: socket.map(Into::into),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        tokio::time::timeout(BUDGET, async {
            let client = place.look().await.ok()??;
            question(client).await.ok()
        })
        .await
        .ok()?
    })
}

/// The defaults of new VMs with their origin, for help: as the daemon has them,
/// else as it would; empty where neither can say.
pub(crate) fn vm_defaults() -> String {
    let system = ask(async |client| client.get::<System>(At::default()).await);
    let defaults = system.map_or_else(of_the_program, |system| system.vm_defaults);
    if defaults.is_empty() {
        return String::new();
    }
    let mut out = String::from("\nVM defaults:\n");
    for default in &defaults {
        let field = default.field.replace('_', "-");
        out.push_str(&format!(
            "  {field:<20} {} ({})\n",
            default.value, default.origin
        ));
    }
    crate::show::escape_lines(&out)
}
