//! The standard streams of one command: output into frames, frames into
//! input, signals to its session. Everything here holds at most a few buffers
//! and waits when the other side does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use banger_sys::guest::signals;
use banger_wire::agent::WindowSize;
use banger_wire::frames::{self, Channel, Control, Decoder, Frame, FrameError, HEADER_LEN};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::spawner::resize;
use crate::edge::Edge;

/// Bytes of one read from a command.
const READ: usize = 64 << 10;
/// Bytes for a command's input that are held while it does not read.
const PENDING: usize = 256 << 10;
/// How long output is awaited from those who outlive the command.
pub(crate) const DRAIN: Duration = Duration::from_millis(50);
/// Bytes after which output of those who outlive the command is cut: more
/// than a pipe holds.
const DRAIN_BYTES: usize = 1 << 20;
/// The character that a terminal takes for the end of input.
const END_OF_INPUT: &[u8] = b"\x04";

/// Whether the command is over, and until when its output is awaited then.
pub(crate) type Over = watch::Receiver<Option<Instant>>;

/// Sends what a command writes, until nobody holds the other end or the
/// command is over and its output read.
///
/// # Errors
/// `()` where the frames have no reader any more.
pub(crate) async fn pump(
    from: &Edge,
    channel: Channel,
    is_terminal: bool,
    mut over: Over,
    to: &mpsc::Sender<Bytes>,
) -> Result<(), ()> {
    let mut after_end = 0;
    loop {
        let mut frame = BytesMut::zeroed(HEADER_LEN + READ);
        let deadline = *over.borrow_and_update();
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        match rustix::io::read(from, &mut frame[HEADER_LEN..]) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                if deadline.is_some() {
                    after_end += count;
                }
                frame[..HEADER_LEN].copy_from_slice(&frames::header(channel, count));
                frame.truncate(HEADER_LEN + count);
                to.send(frame.freeze()).await.map_err(|_| ())?;
                if is_late && after_end > DRAIN_BYTES {
                    return Ok(());
                }
            }
            Err(Errno::INTR) => {}
            // A terminal that nobody has open may be opened again, by login
            // for one, as long as the command lives.
            Err(Errno::IO) if is_terminal && deadline.is_none() => {
                wait(from, deadline, &mut over).await
            }
            Err(Errno::AGAIN) if !is_late => wait(from, deadline, &mut over).await,
            Err(_) => return Ok(()),
        }
    }
}

/// Waits for news of the descriptor or of the command's end.
async fn wait(from: &Edge, deadline: Option<Instant>, over: &mut Over) {
    let limit = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => {
                if over.changed().await.is_err() {
                    std::future::pending::<Infallible>().await;
                }
            }
        }
    };
    tokio::select! {
        _ = from.changed() => {}
        () = limit => {}
    }
}

/// The frames of a request's body.
pub(crate) struct Frames {
    body: Incoming,
    decoder: Decoder,
}

/// Why there are no more frames, when it is not the end of the body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The sender is gone.
    #[error("the stream was lost")]
    Lost,
    /// The sender speaks something else.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Frames {
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            body,
            decoder: Decoder::new(),
        }
    }

    /// The next frame; `None` at the end of the body. May be dropped while
    /// waiting.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(Broken::Lost),
                Some(Ok(piece)) => {
                    if let Ok(data) = piece.into_data() {
                        self.decoder.push(&data);
                    }
                }
            }
        }
    }
}

/// Where a command's input goes.
pub(crate) struct Input {
    /// Pipe or terminal; none once it is closed or was never wanted.
    pub(crate) to: Option<Edge>,
    /// Whether `to` is a terminal.
    pub(crate) is_terminal: bool,
    /// The command's process group.
    pub(crate) group: i32,
}

/// Carries out what the frames say until they end.
///
/// # Errors
/// [`Broken`] where the sender is gone or makes no sense.
pub(crate) async fn feed(frames: &mut Frames, mut input: Input) -> Result<(), Broken> {
    let mut pending = VecDeque::<Bytes>::new();
    let mut held = 0;
    let mut has_ended = false;
    let mut is_over = false;
    loop {
        if let Some(to) = &input.to {
            write(to, &mut pending, input.is_terminal);
        } else {
            pending.clear();
        }
        held = if pending.is_empty() { 0 } else { held };
        if has_ended && pending.is_empty() && !input.is_terminal {
            input.to = None;
        }
        if is_over && pending.is_empty() {
            // A terminal's input stays open: only its command ends it.
            if input.is_terminal {
                std::future::pending::<Infallible>().await;
            }
            return Ok(());
        }
        let frame = tokio::select! {
            () = changed(input.to.as_ref()), if !pending.is_empty() => continue,
            frame = frames.next(), if held < PENDING && !is_over => frame?,
        };
        let Some(frame) = frame else {
            has_ended = true;
            is_over = true;
            continue;
        };
        match frame.channel {
            Channel::Stdin if !has_ended => {
                held += frame.payload.len();
                pending.push_back(frame.payload);
            }
            Channel::Stdin | Channel::Stdout | Channel::Stderr => {}
            Channel::Control => match frame.control()? {
                Control::Eof if input.is_terminal => {
                    pending.push_back(Bytes::from_static(END_OF_INPUT));
                }
                Control::Eof => has_ended = true,
                Control::Resize { cols, rows } => {
                    if let (true, Some(terminal)) = (input.is_terminal, &input.to) {
                        let _ = resize(terminal, WindowSize { cols, rows });
                    }
                }
                Control::Signal { signal } => {
                    if let Some(number) = signal_number(&signal) {
                        let _ = signals::send_to_group(input.group, number);
                    }
                }
                // Not ours to hear, or not known to us.
                Control::Start { .. }
                | Control::Started { .. }
                | Control::Exit { .. }
                | Control::Error { .. }
                | Control::Unknown => {}
            },
        }
    }
}

async fn changed(edge: Option<&Edge>) {
    match edge {
        Some(edge) if edge.changed().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// Writes as much as is taken. What a command does not want any more is
/// dropped, as a pipe to it would have it.
fn write(to: &Edge, pending: &mut VecDeque<Bytes>, is_terminal: bool) {
    while let Some(front) = pending.front_mut() {
        if front.is_empty() {
            pending.pop_front();
            continue;
        }
        match rustix::io::write(to, front) {
            // A terminal that takes nothing more tells it so.
            Ok(0) | Err(Errno::AGAIN) => return,
            Ok(count) => front.advance(count),
            Err(Errno::INTR) => {}
            Err(Errno::IO) if is_terminal => {
                pending.pop_front();
            }
            Err(_) => pending.clear(),
        }
    }
}

/// The number of a signal by its name without `SIG`, or by number.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name = NAMES
        .iter()
        .position(|known| *known == bare)
        .map(|at| at as i32 + 1);
    by_name.or_else(|| bare.parse().ok().filter(|number| (1..=64).contains(number)))
}

/// Sends a signal to every process of a session, known by its leader's pid in
/// the agent's namespace. A process that left the session is not meant.
pub(crate) fn signal_session(session: i32, signal: i32) {
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    let pids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids {
        let _ = signal_member(pid, session, signal);
    }
}

fn signal_member(pid: i32, session: i32, signal: i32) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() != 1) else {
        return Ok(());
    };
    // The pidfd first: the number may be another's by the time of the signal.
    let stat_path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    if session_of(&fs::read_to_string(&stat_path)?) != Some(session) {
        return Ok(());
    }
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    if session_of(&fs::read_to_string(&stat_path)?) == Some(session) {
        signals::send(pidfd.as_fd(), signal)?;
    }
    Ok(())
}

/// The session id in a line of `/proc/<pid>/stat`, whatever the name of the
/// program holds.
fn session_of(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(signal_number("TERM"), Some(15));
        assert_eq!(signal_number("sigint"), Some(2));
        assert_eq!(signal_number("SYS"), Some(31));
        assert_eq!(signal_number("9"), Some(9));
        assert_eq!(signal_number("NONE"), None);
        assert_eq!(signal_number("0"), None);
        assert_eq!(signal_number("65"), None);
    }

    #[test]
    fn the_session_is_read_past_any_program_name() {
        assert_eq!(session_of("12 (a) b) (c) S 1 12 34 0 -1"), Some(34));
        assert_eq!(session_of("12 (sh) S"), None);
    }

    #[tokio::test]
    async fn output_of_a_command_that_is_over_is_read_though_another_holds_the_pipe() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let edge = Edge::new(reader).unwrap();
        rustix::io::write(&writer, b"last words").unwrap();
        let over = watch::Sender::new(Some(Instant::now() + Duration::from_millis(20)));
        let (to, mut frames) = mpsc::channel(4);
        let ended = tokio::time::timeout(
            Duration::from_secs(5),
            pump(&edge, Channel::Stdout, false, over.subscribe(), &to),
        );
        assert_eq!(ended.await.unwrap(), Ok(()));
        drop((to, writer));
        let mut decoder = Decoder::new();
        decoder.push(&frames.recv().await.unwrap());
        assert_eq!(
            &decoder.next_frame().unwrap().unwrap().payload[..],
            b"last words"
        );
        assert!(frames.recv().await.is_none());
    }
}
