//! The bytes that files are filled with, read where they are.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use mkext4::SparseSeg;

use super::BLOCK;
use crate::progress::{Cancel, Report};
use crate::tree::Data;

/// Stored ranges rounded out to blocks, with the holes between them.
fn block_ranges(map: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &(offset, length) in map {
        let start = offset / BLOCK * BLOCK;
        let end = (offset + length).next_multiple_of(BLOCK).min(size);
        match ranges.last_mut() {
            Some((_, last)) if *last >= start => *last = end.max(*last),
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

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

/// A range of a file, read by position: its cursor is nobody else's.
struct Range<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room =
            usize::try_from(self.left.min(buffer.len() as u64)).expect("it is at most a length");
        let read = self.file.read_at(&mut buffer[..room], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The bytes a file is filled with: for a sparse one its rounded ranges one after another.
pub(super) fn content<'a>(data: &'a Data, sources: &'a [File]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match data {
        Data::Inline(bytes) => Box::new(bytes.as_slice()),
        Data::Span {
            source,
            offset,
            size,
        } => Box::new(Range {
            file: &sources[*source],
            at: *offset,
            left: *size,
        }),
        Data::Host { path, size } => Box::new(File::open(path)?.take(*size)),
        Data::Sparse {
            source,
            offset,
            map,
            size,
        } => Box::new(Pieces {
            file: &sources[*source],
            list: pieces(map, *size, *offset).into_iter(),
            current: None,
        }),
    })
}

/// A piece of a sparse file's content: zeros, or a range of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Zeros(u64),
    Stored { at: u64, left: u64 },
}

/// Everything inside the rounded ranges, in order; `stored` is where the source begins.
fn pieces(map: &[(u64, u64)], size: u64, mut stored: u64) -> Vec<Piece> {
    let mut list = Vec::with_capacity(map.len() * 2);
    let mut rest = map.iter().copied().peekable();
    for (start, end) in block_ranges(map, size) {
        let mut at = start;
        while let Some((offset, length)) = rest.next_if(|(offset, _)| *offset < end) {
            list.push(Piece::Zeros(offset - at));
            list.push(Piece::Stored {
                at: stored,
                left: length,
            });
            stored += length;
            at = offset + length;
        }
        list.push(Piece::Zeros(end - at));
    }
    list
}

/// Reads pieces one after another.
struct Pieces<'a> {
    file: &'a File,
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
                Some(Piece::Stored { at, left }) if *left > 0 => {
                    let count = room(*left);
                    let read = self.file.read_at(&mut buffer[..count], *at)?;
                    *at += read as u64;
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
        content(&data, &[stored])
            .unwrap()
            .read_to_end(&mut filled)
            .unwrap();
        assert!(filled == expected);
    }
}
