//! Finds the daemon, or starts it.
//!
//! ```text
//! own path -> path in <state>/lock -> start bangerd, read one line from it
//! ```
//!
//! Several commands may race to start it; all but one of the daemons give up
//! in favour of the first, and every command ends up at that one.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use banger_api::endpoint::{Ping, Shutdown};
use banger_api::error::{Code, Error};
use banger_api::system::{PingResult, ShutdownParams};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;

use super::{At, Client};
use crate::failure::Failure;
use crate::{paths, show, version};

/// The daemon's program.
const PROGRAM: &str = "bangerd";
/// Names another program as the daemon.
const PROGRAM_VARIABLE: &str = "BANGER_DAEMON";
/// For the socket of a new daemon to listen.
const LISTEN: Duration = Duration::from_secs(5);
/// Between two tries to reach the daemon that won the race.
const RETRY: Duration = Duration::from_millis(20);
/// For an old daemon to end after it said so.
const END: Duration = Duration::from_secs(10);
/// How often the search for a daemon begins again.
const DYING: u32 = 5;
/// A silence worth explaining.
const SILENCE: Duration = Duration::from_secs(1);
/// What a daemon may say while it starts, bytes.
const MAX_WORDS: u64 = 64 << 10;

/// Where to look for the daemon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// Socket that the user named.
    pub(crate) socket: Option<PathBuf>,
}

impl Place {
    /// The daemon, started if need be, of this build if that can be had.
    pub(crate) async fn reach(&self) -> Result<Client, Failure> {
        let socket = self.socket()?;
        let (client, ping) = find_alive(&socket).await?;
        if version::same(ping.version.as_deref(), ping.commit.as_deref()) {
            return Ok(client);
        }
        let theirs = ping.version.as_deref().unwrap_or("unknown");
        let commit = ping.commit.as_deref().unwrap_or("unknown");
        if !ping.idle {
            show::warn(&format!(
                "bangerd is another build ({theirs}, commit {commit}) and busy; later: banger daemon restart"
            ));
            return Ok(client);
        }
        end(&client, false).await?;
        let (client, ping) = find_alive(&socket).await?;
        if !version::same(ping.version.as_deref(), ping.commit.as_deref()) {
            show::warn("bangerd is another build than banger; install both from one build");
        }
        Ok(client)
    }

    /// The daemon if one listens; never starts one.
    pub(crate) async fn look(&self) -> Result<Option<Client>, Failure> {
        match find(&self.socket()?).await {
            Some((socket, stream)) => Client::of(socket, stream).await.map(Some),
            None => Ok(None),
        }
    }

    /// Where the daemon should listen.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        match &self.socket {
            Some(socket) => paths::absolute(socket).map(PathBuf::from),
            None => paths::personal_socket(),
        }
    }
}

/// Asks the daemon to end and waits until it has. VMs run on unless
/// `with_vms`.
pub(crate) async fn end(client: &Client, with_vms: bool) -> Result<PingResult, Failure> {
    let ping = client.get::<Ping>(At::default()).await?;
    let process = i32::try_from(ping.pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .and_then(|pid| {
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
        });
    client
        .call::<Shutdown>(&[], &ShutdownParams { with_vms })
        .await?;
    let Some(process) = process else {
        return Ok(ping);
    };
    // Stopping guests takes as long as it takes; an end without them is quick.
    let limit = if with_vms { None } else { Some(END) };
    if !tokio::task::spawn_blocking(move || ended_within(&process, limit))
        .await
        .unwrap_or(true)
    {
        return Err(Failure::new(
            Code::Timeout,
            format!(
                "bangerd (pid {}) did not end within {} s",
                ping.pid,
                END.as_secs()
            ),
        ));
    }
    Ok(ping)
}

/// Whether a process ended within the time; a pidfd is readable from then on.
fn ended_within(process: &OwnedFd, limit: Option<Duration>) -> bool {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        let mut wanted = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut wanted, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(ready) => return ready > 0,
            Err(_) => return true,
        }
    }
}

/// Pings a daemon that may still recover, and says so when it takes a while.
async fn patient_ping(client: &Client) -> Result<PingResult, Failure> {
    let ping = client.get::<Ping>(At::default());
    tokio::pin!(ping);
    match tokio::time::timeout(SILENCE, &mut ping).await {
        Ok(answer) => answer,
        Err(_) => {
            if show::watched() {
                show::note("waiting for bangerd to recover");
            }
            ping.await
        }
    }
}

/// A socket that answers: the one asked for, else the one in the lock.
async fn find(socket: &Path) -> Option<(PathBuf, UnixStream)> {
    if let Ok(stream) = super::connect(socket).await {
        return Some((socket.to_owned(), stream));
    }
    let note = paths::lock_note()?;
    if note.socket == socket || !note.socket.is_absolute() {
        return None;
    }
    let stream = super::connect(&note.socket).await.ok()?;
    Some((note.socket, stream))
}

/// A daemon that answers. One that was just killed may still take a
/// connection, which then breaks; so the search begins again.
async fn find_alive(socket: &Path) -> Result<(Client, PingResult), Failure> {
    let mut tries = 0;
    loop {
        let client = find_or_start(socket).await?;
        match patient_ping(&client).await {
            Ok(ping) => return Ok((client, ping)),
            Err(failure) if failure.code == Some(Code::DaemonUnreachable) && tries < DYING => {
                tries += 1;
                tokio::time::sleep(RETRY).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

async fn find_or_start(socket: &Path) -> Result<Client, Failure> {
    if let Some((found, stream)) = find(socket).await {
        return Client::of(found, stream).await;
    }
    let deadline = Instant::now() + LISTEN;
    let found = match tokio::time::timeout(LISTEN, start(socket)).await {
        Ok(Ok(())) => retry(socket, deadline).await.ok_or_else(|| {
            unreachable(format!(
                "bangerd started, but nothing listens at {}",
                socket.display()
            ))
        }),
        Ok(Err(failure)) => {
            // Another command's daemon may be the reason, and about to listen.
            let lost_the_race = matches!(
                failure.code,
                Some(Code::Busy | Code::InUse | Code::AlreadyExists)
            );
            let until = if lost_the_race {
                deadline
            } else {
                Instant::now()
            };
            retry(socket, until).await.ok_or(failure)
        }
        Err(_) => Err(unreachable(format!(
            "bangerd did not listen within {} s",
            LISTEN.as_secs()
        ))),
    };
    let (found, stream) = found?;
    Client::of(found, stream).await
}

/// Looks again until the deadline, at least once.
async fn retry(socket: &Path, deadline: Instant) -> Option<(PathBuf, UnixStream)> {
    loop {
        if let Some(found) = find(socket).await {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Starts a daemon and waits for its line: `ready`, or its error.
async fn start(socket: &Path) -> Result<(), Failure> {
    let program = program();
    let cannot = |error: &dyn std::error::Error| {
        unreachable(format!("cannot start {}", program.display())).because(error)
    };
    let (line_reader, line_writer) = pipe().map_err(|error| cannot(&error))?;
    let (words_reader, words_writer) = pipe().map_err(|error| cannot(&error))?;
    let mut command = Command::new(&program);
    let number = banger_sys::cli::start_in_own_session(&mut command, line_writer);
    command
        .arg("--socket")
        .arg(socket)
        .arg("--startup-fd")
        .arg(number.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(words_writer));
    let mut command = tokio::process::Command::from(command);
    let spawned = command.spawn();
    // The command holds the writing ends; with it gone, only the daemon does.
    drop(command);
    let mut daemon = spawned.map_err(|error| {
        let failure = cannot(&error);
        if error.kind() == io::ErrorKind::NotFound {
            return failure.hint("install bangerd beside banger, or on PATH");
        }
        failure
    })?;
    let mut line = String::new();
    let mut words = Vec::new();
    let mut line_reader = Receiver::from_owned_fd(line_reader)
        .map_err(|error| cannot(&error))?
        .take(MAX_WORDS);
    let mut words_reader = Receiver::from_owned_fd(words_reader)
        .map_err(|error| cannot(&error))?
        .take(MAX_WORDS);
    {
        // Both ends must be read, or a daemon with much to say would block.
        let listening = async {
            let mut piece = [0; 512];
            while !line.ends_with('\n') {
                match line_reader.read(&mut piece).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => line.push_str(&String::from_utf8_lossy(&piece[..count])),
                }
            }
        };
        let wording = words_reader.read_to_end(&mut words);
        tokio::pin!(listening, wording);
        tokio::select! {
            biased;
            () = &mut listening => {}
            _ = &mut wording => listening.await,
        }
    }
    let said = line.trim();
    if said == "ready" {
        return Ok(());
    }
    // It has told why it ends: whoever reads that finds it gone.
    let _ = tokio::time::timeout(SILENCE, daemon.wait()).await;
    if let Ok(error) = serde_json::from_str::<Error>(said) {
        let code = error.code;
        let mut failure = Failure::of(error).exiting(Code::DaemonUnreachable.exit());
        failure.code = Some(code);
        return Err(failure);
    }
    // It has closed its end and so is ending: what it says last is the reason.
    let _ = tokio::time::timeout(SILENCE, words_reader.read_to_end(&mut words)).await;
    let words = String::from_utf8_lossy(&words);
    let words = if words.trim().is_empty() {
        said
    } else {
        words.trim()
    };
    let why = if words.is_empty() {
        "it ended without a word"
    } else {
        words
    };
    Err(unreachable(format!("cannot start {}: {why}", program.display())).hint("banger doctor"))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

fn unreachable(message: String) -> Failure {
    Failure::new(Code::DaemonUnreachable, message)
}

/// The daemon's program: named by the environment, beside this one, or on
/// PATH.
pub(crate) fn program() -> PathBuf {
    if let Some(named) = std::env::var_os(PROGRAM_VARIABLE).filter(|value| !value.is_empty()) {
        return if named.as_encoded_bytes().contains(&b'/') {
            std::path::absolute(&named).unwrap_or_else(|_| named.into())
        } else {
            named.into()
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join(PROGRAM)));
    match beside {
        Some(path) if path.exists() => path,
        _ => PathBuf::from(OsString::from(PROGRAM)),
    }
}
