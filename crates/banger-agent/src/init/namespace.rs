//! Making the namespace of the init: the order of its mounts, which file it
//! executes, and the hand-over to the spawner of commands.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use banger_sys::guest::launch::{FAILURE_LEN, Failure, Launch, Launched, Program, Step, launch};
use banger_wire::agent::{Boot, Init as Kind};
use flags::{BIND, MOVE, NODEV, NOEXEC, NOSUID, PRIVATE, REC, SHARED};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{Mode, OFlags};

use super::{Found, InitError, Started, kind, stub};
use crate::boot::mounts;
use crate::boot::root::Root;
use crate::console::say;
use crate::exec::spawner::Spawner;

/// Name of the abstract socket that `READY=1` comes to: a path would keep the
/// root busy at the end.
const NOTIFY: &str = "banger/notify";
/// The agent's own control group, and the parent of those of commands.
const AGENT_GROUP: &str = "/sys/fs/cgroup/banger/agent";
/// Parent of the control groups of commands.
pub(crate) const EXEC_GROUP: &str = "/sys/fs/cgroup/banger/exec";

/// The kernel's numbers for mount flags.
mod flags {
    use rustix::mount::{MountFlags, MountPropagationFlags};

    pub(super) const NOSUID: u64 = MountFlags::NOSUID.bits() as u64;
    pub(super) const NODEV: u64 = MountFlags::NODEV.bits() as u64;
    pub(super) const NOEXEC: u64 = MountFlags::NOEXEC.bits() as u64;
    pub(super) const BIND: u64 = MountFlags::BIND.bits() as u64;
    pub(super) const REC: u64 = MountPropagationFlags::REC.bits() as u64;
    pub(super) const PRIVATE: u64 = MountPropagationFlags::PRIVATE.bits() as u64;
    pub(super) const SHARED: u64 = MountPropagationFlags::SHARED.bits() as u64;
    pub(super) const MOVE: u64 = 0x2000;
}

/// Makes the namespace and leaves its first process at the gate. Blocks for
/// some milliseconds.
pub(crate) fn start(
    request: &Boot,
    root: &Root,
    found: Option<&Found>,
) -> Result<Started, InitError> {
    let kind = found.map_or(Kind::Stub, |found| found.kind);
    let notify = SocketAddr::from_abstract_name(NOTIFY)
        .and_then(|name| UnixDatagram::bind_addr(&name))
        .map_err(|error| InitError::Prepare("the notification socket", error))?;

    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let name = found.map_or(stub::NAME, |found| found.path.as_str());
    let arguments = kind::arguments(kind, request.machine_id.as_deref(), &command_line);
    let argv = c_strings([name.to_owned()].into_iter().chain(arguments));
    let version = (kind == Kind::Systemd)
        .then(|| kind::systemd_version(root))
        .flatten();
    let env = c_strings(kind::environment(kind, version, NOTIFY));
    let paths = c_strings(found.map(|found| found.path.clone()));
    let own_file = File::open("/proc/self/exe")
        .map_err(|error| InitError::Prepare("the agent's own file", error))?;
    let program = match found {
        Some(_) => Program::Paths(&paths),
        None => Program::File(own_file.as_fd()),
    };

    let event = || {
        eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| InitError::Prepare("an event", error.into()))
    };
    let (standing, gate) = (event()?, event()?);
    let group = OpenOptions::new()
        .write(true)
        .open("/sys/fs/cgroup/cgroup.procs")
        .map_err(|error| InitError::Prepare("the root control group", error))?;
    let console = console()?;
    let one = 1_u64.to_ne_bytes();
    let mut steps = vec![
        Step::Write {
            to: group.as_fd(),
            bytes: b"0",
        },
        Step::NewSession,
        Step::Descriptor {
            from: console.as_fd(),
            to: 0,
        },
        Step::Descriptor {
            from: console.as_fd(),
            to: 1,
        },
        Step::Descriptor {
            from: console.as_fd(),
            to: 2,
        },
        Step::OpenFiles {
            soft: crate::exec::OPEN_FILES.0,
            hard: crate::exec::OPEN_FILES.1,
        },
    ];
    steps.extend(mount_steps());
    steps.push(Step::Write {
        to: standing.as_fd(),
        bytes: &one,
    });
    steps.push(Step::AwaitEvent(gate.as_fd()));

    let plan = Launch {
        steps: &steps,
        program,
        argv: &argv,
        env: &env,
        namespaces: true,
    };
    let Launched { pid, pidfd, report } = launch(&plan).map_err(InitError::Clone)?;
    wait_until_standing(&standing, &report, &steps)?;
    let enter = |error: io::Error| InitError::Enter(error);
    let mount_namespace = File::open(format!("/proc/{pid}/ns/mnt")).map_err(enter)?;
    let pid_namespace = File::open(format!("/proc/{pid}/ns/pid")).map_err(enter)?;
    let spawner = Spawner::start(mount_namespace.into(), pid_namespace.into()).map_err(enter)?;
    Ok(Started {
        kind,
        pidfd,
        report,
        gate,
        notify,
        spawner,
        main_follows: request.main_follows,
    })
}

/// The console as the init's standard streams; not its controlling terminal.
fn console() -> Result<OwnedFd, InitError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/console", flags, Mode::empty())
        .or_else(|_| rustix::fs::open("/dev/null", flags, Mode::empty()))
        .map_err(|error| InitError::Prepare("the console", error.into()))
}

fn c_strings(strings: impl IntoIterator<Item = String>) -> Vec<CString> {
    strings
        .into_iter()
        .filter_map(|string| CString::new(string).ok())
        .collect()
}

/// The namespace's mounts, in the agent's terms until the root has moved.
fn mount_steps() -> Vec<Step<'static>> {
    let step = |source, target, kind, flags, data| Step::Mount {
        source,
        target,
        kind,
        flags,
        data,
    };
    let new = |kind: &'static CStr, target, flags, data| {
        step(Some(kind), target, Some(kind), flags, data)
    };
    let quiet = NOSUID | NODEV | NOEXEC;
    vec![
        // Nothing of this may travel back to the agent.
        step(None, c"/", None, REC | PRIVATE, None),
        new(c"proc", c"/mnt/root/proc", quiet, None),
        new(c"sysfs", c"/mnt/root/sys", quiet, None),
        new(
            c"cgroup2",
            c"/mnt/root/sys/fs/cgroup",
            quiet,
            Some(c"nsdelegate,memory_recursiveprot"),
        ),
        step(Some(c"/dev"), c"/mnt/root/dev", None, BIND, None),
        new(
            c"devpts",
            c"/mnt/root/dev/pts",
            NOSUID | NOEXEC,
            Some(c"gid=5,mode=620,ptmxmode=666"),
        ),
        new(
            c"tmpfs",
            c"/mnt/root/dev/shm",
            NOSUID | NODEV,
            Some(c"mode=1777"),
        ),
        // The guest's copies of what only the agent needs.
        Step::Detach(c"/mnt/modules"),
        Step::Detach(c"/mnt/work"),
        Step::Detach(c"/mnt/overlay"),
        Step::Detach(c"/mnt/base"),
        Step::Detach(c"/sys"),
        Step::Detach(c"/proc"),
        Step::Detach(c"/dev"),
        Step::Directory(c"/mnt/root"),
        step(Some(c"."), c"/", None, MOVE, None),
        Step::Root(c"."),
        Step::Directory(c"/"),
        // systemd leaves this out where it believes to be in a container.
        step(None, c"/", None, REC | SHARED, None),
    ]
}

fn wait_until_standing(
    standing: &OwnedFd,
    report: &OwnedFd,
    steps: &[Step<'_>],
) -> Result<(), InitError> {
    let mut either = [
        PollFd::new(standing, PollFlags::IN),
        PollFd::new(report, PollFlags::IN),
    ];
    loop {
        match poll(&mut either, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(InitError::Enter(error.into())),
        }
    }
    if either[0].revents().contains(PollFlags::IN) {
        return Ok(());
    }
    let mut bytes = [0; FAILURE_LEN];
    let read = rustix::io::read(report, &mut bytes).map_err(|e| InitError::Enter(e.into()))?;
    let failure = Failure::decode(bytes);
    let step = match failure.step.and_then(|index| steps.get(index)) {
        Some(step) if read == FAILURE_LEN => format!("{step:?}"),
        _ => "its process ended".to_owned(),
    };
    Err(InitError::SetUp {
        step,
        cause: io::Error::from_raw_os_error(failure.errno),
    })
}

/// Makes the agent's control group and the parent of those of commands, and
/// the directories of the node file system that both sides share. Without the
/// groups everything runs, in the root group.
pub(crate) fn make_groups() {
    for path in [AGENT_GROUP, EXEC_GROUP] {
        if let Err(error) = fs::create_dir_all(path) {
            say(&format!("cannot make control group {path}: {error}"));
        }
    }
    if let Err(error) = fs::write(format!("{AGENT_GROUP}/cgroup.procs"), "0") {
        say(&format!(
            "cannot enter control group {AGENT_GROUP}: {error}"
        ));
    }
    for (path, mode) in [("/dev/pts", 0o755), ("/dev/shm", 0o1777)] {
        // The node file system is one for agent and guest.
        if let Err(error) = fs::create_dir_all(path) {
            say(&format!("cannot make {path}: {error}"));
        }
        let _ = rustix::fs::chmod(path, Mode::from_raw_mode(mode));
    }
    debug_assert!(mounts::ROOT == "/mnt/root", "the mount steps spell it out");
}
