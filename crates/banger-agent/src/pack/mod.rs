//! The machine's root as one archive, for an image that is made of it: packed
//! at the end of a stop, when no process of the guest is left.
//!
//! ```text
//! overlay, bare ──┐
//! work disk ──────┼─► walk ─► entries (tar with PAX) ─► frames ─► the daemon
//! container data ─┘    └ what the boot wrote: as the image had it
//! ```
//!
//! Nothing is written inside the guest, so a full disk is no obstacle. The
//! archive is whole when its `exit` frame came, and only then.

mod entry;
mod plan;
mod walk;

use std::io::{self, Write};
use std::path::PathBuf;

use banger_wire::agent::Boot;
use banger_wire::frames::{Channel, Control, HEADER_LEN, header};
use bytes::Bytes;
use rustix::mount::mount_bind;
use tokio::sync::mpsc;

use crate::boot::mounts;
use crate::boot::root::Root;
use crate::chain;
use plan::{Layout, Plan};
use walk::Walk;

/// The root without what is mounted below it.
const BARE: &str = "/mnt/pack";
/// Archive bytes in one frame. Large, since an emulated processor pays for
/// each; and far below what a frame may hold.
const PIECE: usize = 256 << 10;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// Processes of the guest live on: what they write meanwhile would be torn.
    #[error("the guest's processes did not end")]
    Alive,
    /// The view of the root.
    #[error("cannot look at the root")]
    Prepare(#[source] io::Error),
    /// One file of the guest's.
    #[error("cannot {action} /{}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Directories nested deeper than is followed.
    #[error("directories are nested too deep at /{}", .0.display())]
    Deep(PathBuf),
    /// What an archive cannot say.
    #[error("cannot pack /{}: {why}", path.display())]
    Entry { path: PathBuf, why: String },
    /// Nobody takes the archive any more.
    #[error("nobody listens")]
    Unheard,
}

/// Packs the root of this boot for whoever asked, and says how that ended.
/// `quiet` tells that nothing of the guest runs any more.
pub(crate) async fn send(request: &Boot, quiet: bool, to: mpsc::Sender<Bytes>) {
    let (request, pieces) = (request.clone(), to.clone());
    let packed = tokio::task::spawn_blocking(move || {
        if !quiet {
            return Err(PackError::Alive);
        }
        pack(&request, pieces)
    });
    let last = match packed.await {
        Ok(Ok(())) => Control::Exit { exit_code: 0 },
        Ok(Err(PackError::Unheard)) => return,
        Ok(Err(error)) => refused(chain(&error)),
        Err(_) => refused("packing was aborted".to_owned()),
    };
    if to.send(last.frame().to_bytes()).await.is_ok() {
        // Room again: the last frame is on its way, before the line goes.
        let _ = to.reserve().await;
    }
}

fn refused(error: String) -> Control {
    Control::Error {
        error,
        exit_code: None,
    }
}

fn pack(request: &Boot, to: mpsc::Sender<Bytes>) -> Result<(), PackError> {
    std::fs::create_dir_all(BARE).map_err(PackError::Prepare)?;
    // Without what is mounted below: not the kernel's modules, not `/run`.
    mount_bind(mounts::ROOT, BARE).map_err(|error| PackError::Prepare(error.into()))?;
    let layout = Layout {
        bare: Root::open(BARE).map_err(PackError::Prepare)?,
        base: Root::open(mounts::BASE).map_err(PackError::Prepare)?,
        bare_at: BARE.into(),
        base_at: mounts::BASE.into(),
        grafts: mounts::grafts(),
    };
    let plan = Plan::of(request, &layout);
    let mut walk = Walk::new(Pieces::new(to), &layout, &plan);
    walk.all()?;
    walk.finish()
}

/// Cuts what is written into frames.
struct Pieces {
    to: mpsc::Sender<Bytes>,
    /// Room for a frame's header, and its payload so far.
    frame: Vec<u8>,
}

impl Pieces {
    fn new(to: mpsc::Sender<Bytes>) -> Self {
        Self {
            to,
            frame: vec![0; HEADER_LEN],
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let length = self.frame.len() - HEADER_LEN;
        if length == 0 {
            return Ok(());
        }
        let mut frame = std::mem::replace(&mut self.frame, Vec::with_capacity(HEADER_LEN + PIECE));
        self.frame.resize(HEADER_LEN, 0);
        frame[..HEADER_LEN].copy_from_slice(&header(Channel::Stdout, length));
        self.to
            .blocking_send(frame.into())
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEADER_LEN + PIECE - self.frame.len();
        let taken = bytes.len().min(room);
        self.frame.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use banger_wire::frames::Decoder;

    use super::*;

    #[test]
    fn pieces_are_frames_that_hold_every_byte_once() {
        let (to, mut frames) = mpsc::channel(16);
        let bytes: Vec<u8> = (0..u32::try_from(PIECE).unwrap())
            .flat_map(u32::to_le_bytes)
            .collect();
        let mut pieces = Pieces::new(to);
        pieces.write_all(&bytes).unwrap();
        pieces.write_all(b"rest").unwrap();
        pieces.flush().unwrap();
        pieces.flush().unwrap();
        drop(pieces);
        let (mut decoder, mut read, mut count) = (Decoder::new(), Vec::new(), 0);
        while let Some(piece) = frames.blocking_recv() {
            decoder.push(&piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                assert_eq!(frame.channel, Channel::Stdout);
                read.extend_from_slice(&frame.payload);
                count += 1;
            }
        }
        assert_eq!(count, 5);
        assert!(read[..bytes.len()] == bytes && &read[bytes.len()..] == b"rest");
    }

    #[test]
    fn a_reader_that_left_ends_the_writing() {
        let (to, frames) = mpsc::channel(1);
        drop(frames);
        let error = Pieces::new(to).write_all(&vec![0; PIECE]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
