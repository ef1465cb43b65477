//! QEMU's microvm machine: launched confined, known again by what it cannot
//! lose, spoken to through two sockets that we bound for it.
//!
//! ```text
//! run directory
//! ├── engine.lock   held open by the engine for its whole life
//! ├── engine.log    what it printed in this run
//! ├── agent.sock    the channel's line
//! └── control.sock  QMP
//! ```

mod argv;
pub(crate) mod probe;
pub mod qmp;
mod rules;

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use banger_sys::engine::spawn::{Spawn, StartError, Started};

use crate::any::LaunchError;
use crate::choose::Choice;
use crate::machine::Machine;
use crate::process::Identity;
use crate::sockets;

/// Held by an engine from before its first instruction to its end.
pub(crate) const LOCK: &str = "engine.lock";
/// What an engine printed.
pub(crate) const LOG: &str = "engine.log";
/// The channel's line.
pub(crate) const CHANNEL: &str = "agent.sock";
/// QMP.
pub(crate) const CONTROL: &str = "control.sock";

pub(crate) use argv::{drive_index, drive_name};

/// Starts the process and returns when it is QEMU. Blocks for milliseconds.
pub(crate) fn start(
    machine: &Machine,
    choice: &Choice,
    tsc_khz: Option<u64>,
) -> Result<Started, LaunchError> {
    let run_dir = &machine.run_dir;
    let failed = |what: &'static str| move |cause: io::Error| LaunchError::Prepare { what, cause };
    let lock = private()
        .open(run_dir.join(LOCK))
        .map_err(failed("open the lock of the engine"))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(LaunchError::Lives),
        Err(error) => return Err(failed("lock the run directory")(error.into())),
    }
    let log = private()
        .open(run_dir.join(LOG))
        .map_err(failed("open the log of the engine"))?;
    log.set_len(0)
        .map_err(failed("empty the log of the engine"))?;
    // Made here, so that it is there and private whatever the engine does.
    let console = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&machine.console);
    drop(console.map_err(failed("open the console log"))?);
    let channel =
        sockets::listen(run_dir, CHANNEL).map_err(failed("bind the socket of the channel"))?;
    let control = sockets::listen(run_dir, CONTROL).map_err(failed("bind the control socket"))?;
    let nothing = File::open("/dev/null").map_err(failed("open /dev/null"))?;
    let cgroup = machine
        .cgroup
        .as_ref()
        .map(File::open)
        .transpose()
        .map_err(failed("open the cgroup"))?;
    let ruleset = rules::ruleset(machine, &choice.program, choice.acceleration)
        .map_err(|error| failed("make the landlock ruleset")(io::Error::other(error)))?;

    let words = argv::arguments(machine, choice.acceleration, tsc_khz);
    let arguments = [choice.program.as_os_str()]
        .into_iter()
        .chain(words.iter().map(AsRef::as_ref))
        .map(c_string);
    // In the order of the numbers that the command line names.
    let mut keep = vec![channel.as_fd(), control.as_fd(), lock.as_fd()];
    keep.extend(machine.nic.as_ref().map(|nic| nic.line.as_fd()));
    let spawn = Spawn {
        program: c_string(choice.program.as_os_str())?,
        arguments: arguments.collect::<Result<_, _>>()?,
        environment: vec![c"PATH=/usr/bin:/bin".to_owned()],
        directory: c_string(run_dir.as_os_str())?,
        input: nothing.as_fd(),
        output: log.as_fd(),
        keep,
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        ruleset: ruleset.as_ref().map(AsFd::as_fd),
        powerless: rustix::process::geteuid().is_root(),
    };
    let held = spawn.start().map_err(LaunchError::from)?;
    held.go().map_err(LaunchError::from)
}

/// Whether this is the engine of a VM, by its command line.
pub(crate) fn is_engine_of(identity: &Identity, id: &str) -> bool {
    identity.has_pair(argv::NAME_OPTION, &argv::name(id))
}

/// Whether its program calls itself QEMU: an editor or a `ps` with the same
/// words on its command line does not.
pub(crate) fn is_qemu(identity: &Identity) -> bool {
    let name = identity.executable.as_deref().and_then(Path::file_name);
    name.is_some_and(|name| name.to_string_lossy().contains("qemu"))
}

/// Opens for appending what only the owner may read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

fn c_string(text: &OsStr) -> Result<CString, LaunchError> {
    CString::new(text.as_bytes()).map_err(|error| LaunchError::Prepare {
        what: "write its command line",
        cause: error.into(),
    })
}

impl From<StartError> for LaunchError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Clone(cause) => Self::Prepare {
                what: "make a process",
                cause,
            },
            StartError::Cgroup(cause) => Self::Prepare {
                what: "put the engine into its cgroup",
                cause,
            },
            StartError::Child(stage, cause) => Self::Child {
                what: stage.words(),
                cause,
            },
        }
    }
}
