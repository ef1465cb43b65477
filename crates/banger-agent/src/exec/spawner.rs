//! The one thread that lives in the guest's namespaces and starts processes
//! there. It reads the guest's user database as the guest sees it and opens
//! PTYs from the guest's own devpts. The kernel lets it start no threads.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use banger_sys::guest::launch::{Failure, Launch, Launched, Program, Step, enter, launch};
use banger_wire::agent::{Exec, WindowSize};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::users::{self, UserError};
use super::{OPEN_FILES, env};
use crate::edge::watched;
use crate::init::{exec_outcome, wait_for_child};

/// Largest user database that is read, bytes.
const MAX_DATABASE: u64 = 8 << 20;
/// Bytes that a pipe to or from a command holds.
const PIPE: usize = 256 << 10;
/// Group of terminals, by which `devpts` was mounted.
const TTY_GROUP: u32 = 5;
/// Exit code of a command that could not be started for other reasons than
/// its program.
pub(crate) const CANNOT: i32 = 125;
/// Exit code where the program is there and does not execute.
const NOT_EXECUTABLE: i32 = 126;
/// Exit code where there is no program.
const NOT_FOUND: i32 = 127;

/// A command to start, with what it takes from the machine.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) exec: Exec,
    pub(crate) image_env: BTreeMap<String, String>,
    pub(crate) image_cwd: Option<String>,
    pub(crate) machine: String,
    /// `/dev/null`.
    pub(crate) null: OwnedFd,
    /// Opened `cgroup.procs` of the command's own group.
    pub(crate) group: Option<OwnedFd>,
}

/// A process whose program is about to run.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// In the agent's PID namespace; leads a session of its own.
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) report: OwnedFd,
    pub(crate) ends: Ends,
    program: String,
    directory: String,
    directory_step: usize,
}

/// The agent's ends of the standard streams.
#[derive(Debug)]
pub(crate) enum Ends {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(OwnedFd),
}

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error(transparent)]
    User(#[from] UserError),
    #[error("an argument or variable holds a NUL byte or a variable's name a '='")]
    Text,
    #[error("cannot make the command's {0}")]
    Make(&'static str, #[source] io::Error),
    #[error("the machine is stopping")]
    Stopping,
    #[error("cannot start a process")]
    Clone(#[source] io::Error),
}

impl Spawned {
    /// What a failure before the program's first instruction means: a sentence
    /// and an exit code.
    pub(crate) fn explain(&self, failure: Failure) -> (String, i32) {
        let cause = io::Error::from_raw_os_error(failure.errno);
        match failure.step {
            Some(step) if step == self.directory_step => (
                format!("cannot enter directory {:?}: {cause}", self.directory),
                CANNOT,
            ),
            Some(_) => (format!("cannot set the process up: {cause}"), CANNOT),
            None => {
                let missing = matches!(
                    cause.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                );
                let code = if missing { NOT_FOUND } else { NOT_EXECUTABLE };
                (format!("cannot execute {:?}: {cause}", self.program), code)
            }
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    jobs: Arc<Mutex<Option<mpsc::Sender<Job>>>>,
}

impl Spawner {
    /// Starts the thread and waits until it has entered the namespaces.
    ///
    /// # Errors
    /// That of starting it or of entering.
    pub(crate) fn start(mount: OwnedFd, pid: OwnedFd) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tell, entered) = mpsc::channel();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                let result = enter(mount.as_fd(), pid.as_fd());
                // Held open they would keep the namespaces alive at the end.
                drop((mount, pid));
                let is_inside = result.is_ok();
                let _ = tell.send(result);
                while let (true, Ok(job)) = (is_inside, queue.recv()) {
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            })?;
        entered.recv().map_err(io::Error::other)??;
        Ok(Self {
            jobs: Arc::new(Mutex::new(Some(jobs))),
        })
    }

    /// Starts a command.
    pub(crate) async fn spawn(&self, order: Order) -> Result<Spawned, SpawnError> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(spawn(&order));
        });
        let jobs = self
            .jobs
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone();
        jobs.and_then(|jobs| jobs.send(job).ok())
            .ok_or(SpawnError::Stopping)?;
        result.await.map_err(|_| SpawnError::Stopping)?
    }

    /// Runs the first of these programs that there is, its output nowhere;
    /// true once it runs. It is awaited in `tasks`.
    pub(crate) async fn run_aside(
        &self,
        programs: &'static [&'static [&'static str]],
        null: &OwnedFd,
        tasks: &TaskTracker,
    ) -> bool {
        for argv in programs {
            let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
            let Ok(null) = null.try_clone() else {
                return false;
            };
            let order = Order {
                exec: Exec {
                    argv,
                    cwd: Some("/".to_owned()),
                    ..Exec::default()
                },
                image_env: BTreeMap::new(),
                image_cwd: None,
                machine: String::new(),
                null,
                group: None,
            };
            let Ok(spawned) = self.spawn(order).await else {
                return false;
            };
            let Ok(pidfd) = watched(spawned.pidfd) else {
                return false;
            };
            // Without its readers the program would be killed by SIGPIPE.
            let ends = spawned.ends;
            tasks.spawn(async move {
                let _ = wait_for_child(&pidfd).await;
                drop(ends);
            });
            if exec_outcome(spawned.report).await.is_none() {
                return true;
            }
        }
        false
    }

    /// Lets the thread leave; what it has not begun is refused.
    pub(crate) fn close(&self) {
        self.jobs
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
    }
}

/// Runs on the thread.
fn spawn(order: &Order) -> Result<Spawned, SpawnError> {
    let exec = &order.exec;
    let user = users::find(
        exec.user.as_deref(),
        &database("/etc/passwd"),
        &database("/etc/group"),
    )?;
    let shell = shell(&user.shell);
    let variables = env::variables(
        &order.image_env,
        &user,
        shell,
        &order.machine,
        exec.tty.is_some(),
        &exec.env,
    );
    let environment = environment(&variables)?;
    let path = variables.get("PATH").map_or("", String::as_str);
    let (program, candidates, argv) = match exec.argv.split_first() {
        Some((program, _)) => (
            program.clone(),
            env::candidates(program, path),
            exec.argv.clone(),
        ),
        None => {
            let name = shell.rsplit('/').next().unwrap_or("sh");
            (
                shell.to_owned(),
                vec![shell.to_owned()],
                vec![format!("-{name}")],
            )
        }
    };
    let candidates = c_strings(&candidates)?;
    let argv = c_strings(&argv)?;
    let directory = match exec.cwd.as_ref().or(order.image_cwd.as_ref()) {
        Some(directory) => directory.clone(),
        None if Path::new(&user.home).is_dir() => user.home.clone(),
        None => "/".to_owned(),
    };
    let c_directory = CString::new(directory.as_str()).map_err(|_| SpawnError::Text)?;
    let streams = match exec.tty {
        Some(size) => terminal(size, user.uid)?,
        None => pipes(exec.stdin, &order.null)?,
    };

    let mut steps = Vec::new();
    if let Some(group) = &order.group {
        steps.push(Step::Write {
            to: group.as_fd(),
            bytes: b"0",
        });
    }
    steps.push(Step::NewSession);
    if exec.tty.is_some() {
        steps.push(Step::ControllingTerminal(streams.child[0].as_fd()));
    }
    for (from, to) in streams.child.iter().zip(0..) {
        steps.push(Step::Descriptor {
            from: from.as_fd(),
            to,
        });
    }
    steps.push(Step::OpenFiles {
        soft: OPEN_FILES.0,
        hard: OPEN_FILES.1,
    });
    steps.push(Step::User {
        uid: user.uid,
        gid: user.gid,
        groups: &user.groups,
    });
    let directory_step = steps.len();
    steps.push(Step::Directory(&c_directory));
    let plan = Launch {
        steps: &steps,
        program: Program::Paths(&candidates),
        argv: &argv,
        env: &environment,
        namespaces: false,
    };
    let Launched { pid, pidfd, report } = launch(&plan).map_err(|error| {
        // So the kernel says that the namespace has lost its init.
        let is_over = error.kind() == io::ErrorKind::OutOfMemory;
        if is_over {
            SpawnError::Stopping
        } else {
            SpawnError::Clone(error)
        }
    })?;
    Ok(Spawned {
        pid,
        pidfd,
        report,
        ends: streams.ours,
        program,
        directory,
        directory_step,
    })
}

/// A user database of the guest; empty where it is absent or no plain file.
fn database(path: &str) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_DATABASE).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The user's shell, or the likeliest one that there is.
fn shell(wanted: &str) -> &str {
    let places = [wanted, "/bin/bash", "/bin/sh"];
    places
        .into_iter()
        .find(|place| Path::new(place).is_file())
        .unwrap_or("/bin/sh")
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, SpawnError> {
    strings
        .iter()
        .map(|text| CString::new(text.as_str()).map_err(|_| SpawnError::Text))
        .collect()
}

fn environment(variables: &BTreeMap<String, String>) -> Result<Vec<CString>, SpawnError> {
    let pair = |(name, value): (&String, &String)| {
        if name.is_empty() || name.contains('=') {
            return Err(SpawnError::Text);
        }
        CString::new(format!("{name}={value}")).map_err(|_| SpawnError::Text)
    };
    variables.iter().map(pair).collect()
}

/// Both sides of the standard streams.
struct Streams {
    ours: Ends,
    /// Standard input, output, error.
    child: [OwnedFd; 3],
}

fn pipes(with_stdin: bool, null: &OwnedFd) -> Result<Streams, SpawnError> {
    let make = || {
        let ends = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| SpawnError::Make("pipes", error.into()))?;
        // Fewer switches between agent and command; a smaller one works too.
        let _ = fcntl_setpipe_size(&ends.0, PIPE);
        Ok::<_, SpawnError>(ends)
    };
    let (stdin_child, stdin) = if with_stdin {
        let (child, ours) = make()?;
        (child, Some(ours))
    } else {
        let null = null
            .try_clone()
            .map_err(|error| SpawnError::Make("standard input", error))?;
        (null, None)
    };
    let (stdout, stdout_child) = make()?;
    let (stderr, stderr_child) = make()?;
    Ok(Streams {
        ours: Ends::Pipes {
            stdin,
            stdout,
            stderr,
        },
        child: [stdin_child, stdout_child, stderr_child],
    })
}

fn terminal(size: WindowSize, uid: u32) -> Result<Streams, SpawnError> {
    let make = || -> io::Result<Streams> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        unlockpt(&ours)?;
        resize(&ours, size)?;
        let child = ioctl_tiocgptpeer(&ours, flags)?;
        // The kernel gives it to us; its user may want to open it by name.
        let (owner, group) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(TTY_GROUP),
        );
        rustix::fs::fchown(&child, Some(owner), Some(group))?;
        let child = [child.try_clone()?, child.try_clone()?, child];
        Ok(Streams {
            ours: Ends::Terminal(ours),
            child,
        })
    };
    make().map_err(|error| SpawnError::Make("terminal", error))
}

/// Sets the size of a terminal.
pub(crate) fn resize(terminal: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
