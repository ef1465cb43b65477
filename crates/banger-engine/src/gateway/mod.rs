//! The gateway beside an engine: the process that carries the traffic of one
//! guest. Starts it on a line, finds it again after a restart of the daemon,
//! and ends it for certain. What it does with the traffic is its own affair.
//!
//! ```text
//! run directory
//! ├── gateway.sock  its control socket, bound here and inherited
//! └── gateway.log   what it printed in this run
//! ```
//!
//! It is known by process id and start time together with its executable and
//! the VM's id on its command line. It holds no lock and sits in no cgroup of
//! the VM: one of which nobody wrote anything down ends by itself within
//! seconds, since nobody told it of an engine.

mod control;

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_sys::engine::spawn::{Spawn, StartError};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::live::signal_name;
use crate::process::{self, Exit, Identity, Process};
use crate::sockets;
use crate::watch;

pub use control::{Control, ControlError};

/// What a gateway printed.
const LOG: &str = "gateway.log";
/// Its control socket.
const CONTROL: &str = "gateway.sock";
/// Descriptor of its end of the line.
const LINE_FD: &str = "3";
/// Descriptor of the control socket.
const CONTROL_FD: &str = "4";
/// File name of the program.
const PROGRAM: &str = "banger-gateway";
/// What a killed gateway may take to be gone.
const LEAVE: Duration = Duration::from_secs(30);

/// Why a gateway could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Before there was a child, or after it was one.
    #[error("cannot {what}")]
    Prepare {
        /// The verb.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The child ended before it was the gateway.
    #[error("the gateway's process cannot {what}")]
    Child {
        /// The verb.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It was killed and stays.
    #[error("gateway {pid} did not end within {} s of SIGKILL", LEAVE.as_secs())]
    Stuck {
        /// Its process.
        pid: u32,
    },
}

/// What finds a gateway again; kept in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Process id, believed only together with what follows.
    pub pid: u32,
    /// Start time of the process, clock ticks after the host's boot.
    pub start_ticks: u64,
    /// Boot id of the host.
    pub host_boot_id: String,
    /// Its executable.
    pub executable: PathBuf,
}

/// What a gateway is started with.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Absolute path.
    pub program: &'a Path,
    /// Id of the VM: 64 hex digits.
    pub id: &'a str,
    /// Its end of the line.
    pub line: BorrowedFd<'a>,
    /// Exists, 0700, this VM's alone.
    pub run_dir: &'a Path,
    /// Whom the guest's questions go to, in order.
    pub resolvers: &'a [IpAddr],
    /// `K=V` beyond `PATH`.
    pub environment: &'a [String],
}

/// A gateway that lives, or lived a moment ago.
#[derive(Debug)]
pub struct Gateway {
    facts: Facts,
    process: Arc<Process>,
    control: Control,
}

/// Both ends of a new line: the engine's, then the gateway's. One Ethernet
/// frame is one datagram, and whoever holds an end keeps it usable for the
/// next gateway.
///
/// # Errors
/// When there is no descriptor left.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    // Non-blocking at both ends: an engine that waits for its gateway freezes
    // the guest.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

/// Starts a gateway and returns when the process is its program. Blocks for
/// milliseconds; must be called within a runtime. Somebody has to wait for its
/// [end](Gateway::ended), or a dead one stays a zombie.
///
/// # Errors
/// [`GatewayError`]; nothing lives then.
pub fn start(plan: &Plan<'_>) -> Result<Gateway, GatewayError> {
    let failed = |what| move |cause| GatewayError::Prepare { what, cause };
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(plan.run_dir.join(LOG))
        .map_err(failed("open the log of the gateway"))?;
    let control = sockets::listen_packets(plan.run_dir, CONTROL)
        .map_err(failed("bind the control socket of the gateway"))?;
    let nothing = File::open("/dev/null").map_err(failed("open /dev/null"))?;
    let environment = std::iter::once("PATH=/usr/bin:/bin".to_owned())
        .chain(plan.environment.iter().cloned())
        .map(|pair| c_string(OsStr::new(&pair)));
    let spawn = Spawn {
        program: c_string(plan.program.as_os_str())?,
        arguments: arguments(plan)?,
        environment: environment.collect::<Result<_, _>>()?,
        directory: c"/".to_owned(),
        input: nothing.as_fd(),
        output: log.as_fd(),
        // In the order of the numbers that the command line names.
        keep: vec![plan.line, control.as_fd()],
        cgroup: None,
        // It confines itself, once it has what it needs.
        ruleset: None,
        powerless: rustix::process::geteuid().is_root(),
    };
    let started = spawn.start().and_then(|held| held.go())?;
    let child = started
        .pidfd
        .try_clone()
        .map_err(failed("hold the gateway"))?;
    let known = Process::child(started.pid, started.pidfd)
        .map(|process| (process, process::executable(started.pid)));
    let (process, executable) = match known {
        Ok(known) => known,
        Err(cause) => {
            // Nobody would ever know it.
            let _ = process::signal_through(&child, Signal::KILL);
            return Err(failed("watch the gateway")(cause));
        }
    };
    let facts = Facts {
        pid: process.pid(),
        start_ticks: process.start_ticks(),
        host_boot_id: process::host_boot_id().to_owned(),
        // Of one that ended already, or hides itself, nothing can be read.
        executable: executable.unwrap_or_else(|_| plan.program.to_owned()),
    };
    Ok(Gateway::new(facts, process, plan.run_dir))
}

/// The gateway of a VM that was started before, by whomever: the one that the
/// facts name, else the one that calls itself so. `None` when none lives.
///
/// # Errors
/// Of the system; it may live.
pub fn adopt(id: &str, run_dir: &Path, facts: Option<&Facts>) -> io::Result<Option<Gateway>> {
    if let Some(facts) = facts
        && let Some(process) = known(id, facts)?
    {
        return Ok(Some(Gateway::new(facts.clone(), process, run_dir)));
    }
    // A daemon that ended between a start and its note of it.
    for pid in find(id)? {
        let Some(stat) = process::Stat::read(pid).ok() else {
            continue;
        };
        let is_it = |identity: &Identity| is_gateway_of(identity, id);
        if let Some(process) = Process::adopt(pid, stat.start_ticks, is_it)? {
            let facts = Facts {
                pid,
                start_ticks: stat.start_ticks,
                host_boot_id: process::host_boot_id().to_owned(),
                executable: process::executable(pid).unwrap_or_else(|_| PROGRAM.into()),
            };
            return Ok(Some(Gateway::new(facts, process, run_dir)));
        }
    }
    Ok(None)
}

/// Ends every gateway of a VM, known or not, and returns when it is gone.
/// None there counts as done.
///
/// # Errors
/// [`GatewayError`]; one may live then.
pub async fn sweep(id: &str, facts: Option<&Facts>) -> Result<(), GatewayError> {
    let failed = |what| move |cause| GatewayError::Prepare { what, cause };
    if let Some(facts) = facts
        && let Some(process) = known(id, facts).map_err(failed("find the gateway"))?
    {
        process
            .signal(Signal::KILL)
            .map_err(failed("end the gateway"))?;
        if tokio::time::timeout(LEAVE, process.exited()).await.is_err() {
            return Err(GatewayError::Stuck { pid: facts.pid });
        }
    }
    let vm = id.to_owned();
    let found = tokio::task::spawn_blocking(move || find(&vm)).await;
    let found = found
        .map_err(io::Error::other)
        .and_then(|found| found)
        .map_err(failed("look for gateways"))?;
    for pid in found {
        let Some(pidfd) = process::open(pid).map_err(failed("hold the gateway"))? else {
            continue;
        };
        // Looked at again through the pidfd's life: the number may have passed
        // to another process since.
        if !is_own_gateway_of(pid, id) {
            continue;
        }
        tracing::info!(vm = id, pid, "ending a gateway that is left");
        process::signal_through(&pidfd, Signal::KILL).map_err(failed("end the gateway"))?;
        let pidfd = watch::readable(pidfd).map_err(failed("watch the gateway"))?;
        match tokio::time::timeout(LEAVE, pidfd.readable()).await {
            Ok(ended) => drop(ended.map_err(failed("watch the gateway"))?),
            Err(_) => return Err(GatewayError::Stuck { pid }),
        }
    }
    Ok(())
}

impl Gateway {
    fn new(facts: Facts, process: Process, run_dir: &Path) -> Self {
        Self {
            facts,
            process: Arc::new(process),
            control: Control::of(run_dir, CONTROL),
        }
    }

    /// What finds it again.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Returns when it has ended, with how it did, in words. Many may wait.
    pub async fn ended(&self) -> String {
        match self.process.exited().await {
            Exit::Status(status) => format!("it ended with status {status}"),
            Exit::Signal(signal) => format!("it was killed by {}", signal_name(signal)),
            Exit::Unseen => "it ended".to_owned(),
        }
    }
}

fn arguments(plan: &Plan<'_>) -> Result<Vec<CString>, GatewayError> {
    let mut words = vec![c_string(plan.program.as_os_str())?];
    let fixed = ["--vm", plan.id, "--line", LINE_FD, "--control", CONTROL_FD];
    for word in fixed {
        words.push(c_string(OsStr::new(word))?);
    }
    for resolver in plan.resolvers {
        words.push(c"--resolver".to_owned());
        words.push(c_string(OsStr::new(&resolver.to_string()))?);
    }
    Ok(words)
}

/// The process that the facts name, if it still is this VM's gateway.
fn known(id: &str, facts: &Facts) -> io::Result<Option<Process>> {
    if facts.host_boot_id != process::host_boot_id() {
        return Ok(None);
    }
    let is_it = |identity: &Identity| {
        let same = identity.executable.as_deref() == Some(&facts.executable);
        (same || is_gateway(identity)) && names(identity, id)
    };
    Process::adopt(facts.pid, facts.start_ticks, is_it)
}

/// Every process of ours that calls itself this VM's gateway.
fn find(id: &str) -> io::Result<Vec<u32>> {
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|&pid| is_own_gateway_of(pid, id)).collect())
}

fn is_own_gateway_of(pid: u32, id: &str) -> bool {
    Identity::read(pid).is_some_and(|identity| is_gateway_of(&identity, id))
        && real_uid(pid) == Some(rustix::process::getuid().as_raw())
}

fn is_gateway_of(identity: &Identity, id: &str) -> bool {
    is_gateway(identity) && names(identity, id)
}

/// By its executable. A gateway forbids all who are not root to read what it
/// runs; then its own word has to do.
fn is_gateway(identity: &Identity) -> bool {
    let word = identity.arguments.first().map_or(&[][..], Vec::as_slice);
    let program = identity
        .executable
        .as_deref()
        .unwrap_or(Path::new(OsStr::from_bytes(word)));
    program
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains(PROGRAM))
}

/// Whether its command line is the one that [`start`] writes for this VM.
fn names(identity: &Identity, id: &str) -> bool {
    identity.has_pair("--vm", id)
        && identity.has_pair("--line", LINE_FD)
        && identity.has_pair("--control", CONTROL_FD)
}

/// Who runs it. The owner of its directory in `/proc` does not tell: of a
/// process that forbids to be read that is root.
fn real_uid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn c_string(text: &OsStr) -> Result<CString, GatewayError> {
    CString::new(text.as_bytes()).map_err(|error| GatewayError::Prepare {
        what: "write the gateway's command line",
        cause: error.into(),
    })
}

impl From<StartError> for GatewayError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Clone(cause) | StartError::Cgroup(cause) => Self::Prepare {
                what: "make a process",
                cause,
            },
            StartError::Child(stage, cause) => Self::Child {
                what: stage.words(),
                cause,
            },
        }
    }
}

#[cfg(test)]
mod tests;
