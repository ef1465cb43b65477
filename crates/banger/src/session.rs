//! A running command: standard streams in frames between the user and the
//! daemon, signals and window sizes to the command, its end back.
//!
//! ```text
//! stdin thread --4 pieces--> feed --frames--> daemon
//! signals, sizes --64-------> feed
//! daemon --frames--> drain --> stdout, stderr
//! ```
//!
//! Both directions move by themselves: a reader that does not read our output
//! stops the guest's, never the user's Ctrl-C.

use std::io::Read;
use std::time::{Duration, Instant};

use banger_wire::frames::{Channel, Control, Decoder, Frame};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::upgrade::Duplex;
use crate::failure::{INTERRUPTED, NOT_RUN};
use crate::interrupt::{Blow, Interrupts};
use crate::terminal::{self, Raw};

/// Bytes moved at once.
const PIECE: usize = 64 << 10;
/// Pieces of standard input that may wait.
const PIECES: usize = 4;
/// Signals and sizes that may wait; more come only from somebody who holds a
/// key down.
const CONTROLS: usize = 64;
/// A second Ctrl-C within this time leaves.
const IMPATIENCE: Duration = Duration::from_secs(2);
/// For the daemon to close its side.
const GOODBYE: Duration = Duration::from_secs(30);

/// Which streams the command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    /// Standard input.
    pub(crate) stdin: bool,
    /// A PTY.
    pub(crate) tty: bool,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The command ended with this status.
    Exited(u8),
    /// The command never ran, or its end is not known.
    Failed {
        /// 125, 126 or 127.
        exit: u8,
        /// Why.
        error: String,
    },
    /// The user left, or the reader of our output did.
    Left(u8),
}

impl End {
    fn lost(error: impl Into<String>) -> Self {
        Self::Failed {
            exit: NOT_RUN,
            error: error.into(),
        }
    }
}

/// A stream of frames after its command has ended.
pub(crate) struct Ended {
    /// How it ended.
    pub(crate) end: End,
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
}

impl Ended {
    /// Closes our side and waits until the daemon closes its own, which is
    /// when an `--rm` VM is gone. False when that did not come in time.
    pub(crate) async fn see_off(mut self) -> bool {
        let _ = self.write.shutdown().await;
        let gone = async {
            let mut rest = [0; 1024];
            while matches!(self.read.read(&mut rest).await, Ok(count) if count > 0) {}
        };
        tokio::time::timeout(GOODBYE, gone).await.is_ok()
    }
}

/// Joins the user to the command until it ends.
pub(crate) async fn join(duplex: Duplex, streams: Streams, interrupts: &mut Interrupts) -> Ended {
    let (mut read, mut write) = duplex.stream.into_split();
    let end = converse(&mut read, &mut write, &duplex.early, streams, interrupts).await;
    Ended { end, read, write }
}

async fn converse(
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    early: &[u8],
    streams: Streams,
    interrupts: &mut Interrupts,
) -> End {
    let _raw = match streams.tty.then(Raw::enter).transpose() {
        Ok(raw) => raw,
        Err(error) => return End::lost(format!("cannot switch the terminal to raw mode: {error}")),
    };
    let mut resized = match streams
        .tty
        .then(|| signal(SignalKind::window_change()))
        .transpose()
    {
        Ok(resized) => resized,
        Err(error) => return End::lost(format!("cannot listen to the terminal's size: {error}")),
    };
    let stdin = streams.stdin.then(read_stdin);
    let (controls, waiting) = mpsc::channel(CONTROLS);
    let feed = feed(write, stdin, waiting);
    let drain = drain(read, early);
    tokio::pin!(feed, drain);
    let mut last_interrupt: Option<Instant> = None;
    loop {
        tokio::select! {
            blow = interrupts.next() => match blow {
                Blow::Int => {
                    let now = Instant::now();
                    if last_interrupt.is_some_and(|before| now.duration_since(before) < IMPATIENCE) {
                        return End::Left(INTERRUPTED);
                    }
                    last_interrupt = Some(now);
                    let _ = controls.try_send(Control::Signal { signal: "INT".to_owned() });
                }
                Blow::Term => {
                    let _ = controls.try_send(Control::Signal { signal: "TERM".to_owned() });
                }
                Blow::Hup => return End::Left(blow.status()),
            },
            () = changed(&mut resized) => {
                if let Some((cols, rows)) = terminal::size() {
                    let _ = controls.try_send(Control::Resize { cols, rows });
                }
            }
            end = &mut drain => return end,
            () = &mut feed => {}
        }
    }
}

async fn changed(resized: &mut Option<tokio::signal::unix::Signal>) {
    let news = match resized {
        Some(resized) => resized.recv().await,
        None => None,
    };
    if news.is_none() {
        std::future::pending().await
    }
}

/// Standard input as pieces, read by a thread of its own: a read of a terminal
/// or a file cannot be taken back, and the process may end while one waits.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match stdin.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // An unreadable standard input ends like an empty one.
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            if sender
                .blocking_send(Bytes::copy_from_slice(&buffer[..count]))
                .is_err()
            {
                return;
            }
        }
    });
    receiver
}

/// Sends what the user has for the command. Never returns: a command that
/// does not read any more may still have much to say.
async fn feed(
    write: &mut OwnedWriteHalf,
    mut stdin: Option<mpsc::Receiver<Bytes>>,
    mut controls: mpsc::Receiver<Control>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(control) = controls.recv() => control.frame(),
            piece = next_piece(&mut stdin) => match piece {
                Some(bytes) => Frame::new(Channel::Stdin, bytes),
                None => {
                    stdin = None;
                    Control::Eof.frame()
                }
            },
        };
        if write.write_all(&frame.to_bytes()).await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn next_piece(stdin: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

/// Writes what the command has for the user, until its last frame.
async fn drain(read: &mut OwnedReadHalf, early: &[u8]) -> End {
    let mut decoder = Decoder::new();
    decoder.push(early);
    let mut stdout = tokio::io::stdout();
    let mut stderr = tokio::io::stderr();
    let mut buffer = BytesMut::with_capacity(4 * PIECE);
    loop {
        loop {
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return End::lost(format!("bangerd broke the stream: {error}")),
            };
            let written = match frame.channel {
                Channel::Stdout => put(&mut stdout, &frame.payload).await,
                Channel::Stderr => {
                    // A closed standard error must not end a command.
                    let _ = put(&mut stderr, &frame.payload).await;
                    Ok(())
                }
                Channel::Control => match frame.control() {
                    Ok(Control::Exit { exit_code }) => {
                        return End::Exited(u8::try_from(exit_code).unwrap_or(u8::MAX));
                    }
                    Ok(Control::Error { error, exit_code }) => {
                        let exit = exit_code
                            .and_then(|code| u8::try_from(code).ok())
                            .unwrap_or(NOT_RUN);
                        return End::Failed { exit, error };
                    }
                    Ok(_) => Ok(()),
                    Err(error) => return End::lost(format!("bangerd broke the stream: {error}")),
                },
                Channel::Stdin => Ok(()),
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    return End::Left(141);
                }
                Err(error) => {
                    return End::lost(format!("cannot write to standard output: {error}"));
                }
            }
        }
        buffer.clear();
        match read.read_buf(&mut buffer).await {
            Ok(0) => {
                return End::lost(
                    "lost the connection to bangerd before the command's end was known",
                );
            }
            Ok(_) => decoder.push(&buffer),
            Err(error) => return End::lost(format!("lost the connection to bangerd: {error}")),
        }
    }
}

/// Writes all of it and waits until it is out: tokio keeps a copy otherwise.
async fn put(out: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(bytes).await?;
    out.flush().await
}
