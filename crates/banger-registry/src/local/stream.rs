//! The bytes of an archive, unpacked where they are packed: forward only, bounded, and cancelled
//! between two reads.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt as _;

use tokio_util::sync::CancellationToken;

/// Read from a file at once where it is unpacked, bytes.
const ROUND: usize = 128 << 10;
/// log2 of the window that zstd may have in memory: its own default.
const WINDOW_LOG: u32 = 27;

/// How bytes are packed, by the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Plain,
    Gzip,
    Zstd,
    /// In a way that is known and not unpacked here: the program that does.
    Foreign(&'static str),
}

impl Codec {
    pub(super) fn of(head: &[u8]) -> Codec {
        match head {
            [0x1f, 0x8b, ..] => Codec::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Codec::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Codec::Foreign("xz"),
            [b'B', b'Z', b'h', ..] => Codec::Foreign("bzip2"),
            _ => Codec::Plain,
        }
    }

    /// Of a file's first bytes.
    pub(super) fn of_file(file: &File) -> io::Result<Codec> {
        let mut head = [0; 6];
        let mut known = 0;
        while known < head.len() {
            match file.read_at(&mut head[known..], known as u64)? {
                0 => break,
                read => known += read,
            }
        }
        Ok(Codec::of(&head[..known]))
    }

    /// What is left when it is unpacked. The foreign are passed on as they are.
    pub(super) fn unpack<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Codec::Plain | Codec::Foreign(_) => Box::new(input),
            Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Codec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

/// A file read by position. Each read tells its length.
pub(super) struct Raw<'a> {
    pub(super) file: &'a File,
    pub(super) cancel: &'a CancellationToken,
    pub(super) tell: &'a dyn Fn(u64),
    pub(super) at: u64,
}

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        (self.tell)(read as u64);
        Ok(read)
    }
}

/// An archive from its first byte on.
pub(super) enum Stream<'a> {
    Plain {
        raw: Raw<'a>,
        /// The file's, when it was opened.
        length: u64,
    },
    Packed {
        unpacked: Box<dyn Read + 'a>,
        cancel: &'a CancellationToken,
        at: u64,
        /// Bytes that may come.
        limit: u64,
    },
}

impl<'a> Stream<'a> {
    pub(super) fn new(raw: Raw<'a>, codec: Codec, length: u64, limit: u64) -> io::Result<Self> {
        if codec == Codec::Plain {
            return Ok(Stream::Plain { raw, length });
        }
        let cancel = raw.cancel;
        Ok(Stream::Packed {
            unpacked: codec.unpack(BufReader::with_capacity(ROUND, raw))?,
            cancel,
            at: 0,
            limit,
        })
    }

    /// Where the next byte comes from.
    pub(super) fn at(&self) -> u64 {
        match self {
            Stream::Plain { raw, .. } => raw.at,
            Stream::Packed { at, .. } => *at,
        }
    }

    /// Moves forward.
    ///
    /// # Errors
    /// `UnexpectedEof` when there is less.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<()> {
        if let Stream::Plain { raw, length } = self {
            let there = raw.at.checked_add(count).filter(|at| at <= length);
            raw.at = there.ok_or(io::ErrorKind::UnexpectedEof)?;
            return Ok(());
        }
        let mut left = count;
        let mut chunk = vec![0; ROUND];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(ROUND).min(ROUND);
            match self.read(&mut chunk[..most])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => left -= read as u64,
            }
        }
        Ok(())
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain { raw, .. } => raw.read(buffer),
            Stream::Packed {
                unpacked,
                cancel,
                at,
                limit,
            } => {
                // What is packed well gives much from one read of the file.
                if cancel.is_cancelled() {
                    return Err(io::Error::other("cancelled"));
                }
                let read = unpacked.read(buffer)?;
                *at += read as u64;
                if at > limit {
                    return Err(io::Error::other(format!(
                        "it unpacks to more than {limit} bytes"
                    )));
                }
                Ok(read)
            }
        }
    }
}
