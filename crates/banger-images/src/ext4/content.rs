//! The bytes that files are filled with, read where they are.

use std::fs::File;
use std::io::{self, Read};

use mkext4::SparseSeg;

use crate::progress::{Cancel, Report};
use crate::tree::{Data, Source, block_ranges};

/// The stored ranges of a file as the writer takes them: whole blocks, with the holes between.
pub(super) fn block_segments(map: &[(u64, u64)], size: u64) -> Vec<SparseSeg> {
    let mut segments = Vec::new();
    let mut at = 0;
    for (start, end) in block_ranges(map, size) {
        if start > at {
            segments.push(SparseSeg::Hole(start - at));
        }
        segments.push(SparseSeg::Data(end - start));
        at = end;
    }
    if size > at {
        segments.push(SparseSeg::Hole(size - at));
    }
    segments
}

pub(super) fn source_order(data: &Data) -> (usize, u64) {
    match data {
        Data::Span { source, offset, .. } | Data::Sparse { source, offset, .. } => {
            (*source, *offset)
        }
        Data::Inline(_) | Data::Host { .. } => (usize::MAX, 0),
    }
}

/// Gives each file's bytes. Packed sources are unpacked once: their files must be asked for in
/// the order of [`source_order`].
pub(super) struct Streams<'a> {
    sources: &'a [Source],
    open: Option<Open<'a>>,
}

/// A packed source that is being read.
struct Open<'a> {
    source: usize,
    at: u64,
    unpacked: Box<dyn Read + 'a>,
}

impl Read for Open<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.unpacked.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<'a> Streams<'a> {
    pub(super) fn over(sources: &'a [Source]) -> Self {
        Self {
            sources,
            open: None,
        }
    }

    /// The bytes a file is filled with: for a sparse one its rounded ranges one after another.
    pub(super) fn content<'s>(&'s mut self, data: &'s Data) -> io::Result<Box<dyn Read + 's>> {
        Ok(match data {
            Data::Inline(bytes) => Box::new(bytes.as_slice()),
            Data::Host { path, size } => Box::new(File::open(path)?.take(*size)),
            Data::Span {
                source,
                offset,
                size,
            } => Box::new(self.stored(*source, *offset)?.take(*size)),
            Data::Sparse {
                source,
                offset,
                map,
                size,
            } => Box::new(Pieces {
                stored: self.stored(*source, *offset)?,
                list: pieces(map, *size).into_iter(),
                current: None,
            }),
        })
    }

    /// What is stored in a source from here on.
    fn stored<'s>(&'s mut self, source: usize, offset: u64) -> io::Result<Box<dyn Read + 's>> {
        let file = match &self.sources[source] {
            plain @ (Source::Plain(_) | Source::Kept { .. }) => return plain.bytes_from(offset),
            packed @ Source::Packed(_) => packed,
        };
        let open = match self.open.take() {
            Some(open) if open.source == source && open.at <= offset => open,
            _ => Open {
                source,
                at: 0,
                unpacked: file.bytes_from(0)?,
            },
        };
        let open = self.open.insert(open);
        let ahead = offset - open.at;
        io::copy(&mut open.take(ahead), &mut io::sink())?;
        Ok(Box::new(open))
    }
}

/// A piece of a sparse file's content: zeros, or a range of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Zeros(u64),
    Stored(u64),
}

/// Everything inside the rounded ranges, in order.
fn pieces(map: &[(u64, u64)], size: u64) -> Vec<Piece> {
    let mut list = Vec::with_capacity(map.len() * 2);
    let mut rest = map.iter().copied().peekable();
    for (start, end) in block_ranges(map, size) {
        let mut at = start;
        while let Some((offset, length)) = rest.next_if(|(offset, _)| *offset < end) {
            list.push(Piece::Zeros(offset - at));
            list.push(Piece::Stored(length));
            at = offset + length;
        }
        list.push(Piece::Zeros(end - at));
    }
    list
}

/// Reads pieces one after another.
struct Pieces<'a> {
    /// The stored ranges, which lie one after another.
    stored: Box<dyn Read + 'a>,
    list: std::vec::IntoIter<Piece>,
    current: Option<Piece>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let room = |left: u64| {
                usize::try_from(left.min(buffer.len() as u64)).expect("it is at most a length")
            };
            match &mut self.current {
                Some(Piece::Zeros(left)) if *left > 0 => {
                    let count = room(*left);
                    buffer[..count].fill(0);
                    *left -= count as u64;
                    return Ok(count);
                }
                Some(Piece::Stored(left)) if *left > 0 => {
                    let count = room(*left);
                    let read = self.stored.read(&mut buffer[..count])?;
                    *left -= read as u64;
                    return Ok(read);
                }
                _ => match self.list.next() {
                    Some(next) => self.current = Some(next),
                    None => return Ok(0),
                },
            }
        }
    }
}

/// Counts what passes, and ends it when cancelled.
pub(super) struct Counted<'a, R> {
    pub(super) inner: R,
    pub(super) done: &'a mut u64,
    pub(super) total: u64,
    pub(super) cancel: &'a Cancel,
    pub(super) report: &'a dyn Report,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel
            .check()
            .map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        let read = self.inner.read(buffer)?;
        *self.done += read as u64;
        self.report
            .bytes((*self.done).min(self.total), Some(self.total));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_ranges_become_whole_blocks_and_zeros_fill_their_edges() {
        let map = [
            (100, 50),
            (4096 * 3 + 1, 10),
            (4096 * 3 + 20, 4096),
            (4096 * 10 - 6, 6),
        ];
        let size = 4096 * 10;
        assert_eq!(
            block_ranges(&map, size),
            [(0, 4096), (4096 * 3, 4096 * 5), (4096 * 9, 4096 * 10)]
        );
        let mut stored = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..50 + 10 + 4096 + 6)
            .map(|i| (i % 250) as u8 + 1)
            .collect();
        io::Write::write_all(&mut stored, &bytes).unwrap();
        let data = Data::Sparse {
            source: 0,
            offset: 0,
            map: map.to_vec(),
            size,
        };
        let mut whole = vec![0u8; usize::try_from(size).unwrap()];
        let mut from = 0;
        for (offset, length) in map {
            let (offset, length) = (offset as usize, length as usize);
            whole[offset..offset + length].copy_from_slice(&bytes[from..from + length]);
            from += length;
        }
        let mut expected = Vec::new();
        for (start, end) in block_ranges(&map, size) {
            expected.extend_from_slice(&whole[start as usize..end as usize]);
        }
        let mut filled = Vec::new();
        let sources = [Source::Plain(stored)];
        Streams::over(&sources)
            .content(&data)
            .unwrap()
            .read_to_end(&mut filled)
            .unwrap();
        assert!(filled == expected);
    }
}
