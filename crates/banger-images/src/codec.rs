//! Decompression by content, bounded: gzip, xz, zstd and plain.
//!
//! The format is taken from the first bytes, never from a name. Memory for windows and
//! dictionaries is limited; how much comes out is limited by [`Bounded`] around the result.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt as _;

/// Memory that an xz or zstd stream may ask for: the largest presets fit.
const MEMORY_LIMIT: u64 = 256 << 20;
/// log2 of the same for zstd's window.
const WINDOW_LOG: u32 = 28;
/// Read from a file at once, bytes.
const ROUND: usize = 128 << 10;

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    Plain,
    /// RFC 1952, one or more members.
    Gzip,
    /// `.xz`, one or more streams.
    Xz,
    /// Zstandard frames.
    Zstd,
}

impl Codec {
    /// Recognises the first six bytes.
    #[must_use]
    pub fn of(head: &[u8]) -> Codec {
        if head.starts_with(&[0x1f, 0x8b]) {
            Codec::Gzip
        } else if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            Codec::Xz
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Codec::Zstd
        } else {
            Codec::Plain
        }
    }
}

/// Unpacks whatever `input` is packed with.
///
/// # Errors
/// When the input cannot be read, or its decompressor cannot be made.
pub fn unpack<'a, R: BufRead + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Codec::of(input.fill_buf()?) {
        Codec::Plain => Box::new(input),
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Codec::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                MEMORY_LIMIT,
                liblzma::stream::CONCATENATED,
            )?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// Unpacks a file from its first byte, wherever its cursor stands.
///
/// # Errors
/// Those of [`unpack`].
pub fn unpack_file(file: &File) -> io::Result<Box<dyn Read + '_>> {
    unpack(BufReader::with_capacity(ROUND, Positioned { file, at: 0 }))
}

/// A file read by position: its cursor may be somebody else's.
#[derive(Debug)]
pub struct Positioned<'a> {
    /// What is read.
    pub file: &'a File,
    /// Where the next byte comes from.
    pub at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads at most so many bytes, and fails where `take` would quietly end.
#[derive(Debug)]
pub struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    /// `limit` bytes of `inner`.
    pub fn new(inner: R, limit: u64) -> Bounded<R> {
        Bounded { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "unpacks to more than is allowed",
                ));
            }
        }
        Ok(read)
    }
}

/// Unpacks bytes in memory, to at most `limit`.
///
/// # Errors
/// When they are damaged or unpack to more.
pub fn unpack_bytes(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    Bounded::new(unpack(packed)?, limit).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn packed(codec: Codec, data: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Plain => data.to_vec(),
            Codec::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Codec::Xz => {
                let mut out = Vec::new();
                liblzma::read::XzEncoder::new(data, 1)
                    .read_to_end(&mut out)
                    .unwrap();
                out
            }
            Codec::Zstd => zstd::stream::encode_all(data, 1).unwrap(),
        }
    }

    #[test]
    fn every_codec_gives_back_its_bytes_and_respects_the_limit() {
        let data: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for codec in [Codec::Plain, Codec::Gzip, Codec::Xz, Codec::Zstd] {
            let bytes = packed(codec, &data);
            assert_eq!(Codec::of(&bytes), codec);
            assert_eq!(unpack_bytes(&bytes, data.len() as u64).unwrap(), data);
            let error = unpack_bytes(&bytes, data.len() as u64 - 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{codec:?}");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error_not_an_end() {
        let data = vec![7u8; 100_000];
        for codec in [Codec::Gzip, Codec::Xz, Codec::Zstd] {
            let bytes = packed(codec, &data);
            assert!(
                unpack_bytes(&bytes[..bytes.len() - 6], 1 << 20).is_err(),
                "{codec:?}"
            );
        }
    }
}
