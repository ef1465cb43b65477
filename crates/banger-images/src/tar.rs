//! Reading foreign tar archives as a stream of entries, each bounded before it is believed.
//!
//! Owns the buffer between a `Read` and the parser, the limits, and what the parser leaves to
//! its caller: times before 1970 and below a second, header-only kinds, and where an entry's
//! bytes begin. It refuses to unpack anything; paths are handed on as bytes, unresolved.

use std::io::{self, Read, Seek, SeekFrom};

use tar_core::parse::{Limits as CoreLimits, ParseError, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, PaxExtensions};

/// Bytes of metadata (long names, PAX records) that one entry may have.
const METADATA_LIMIT: u32 = 1 << 20;
/// Bytes of a sparse map after its header: as many ranges as the parser takes, each told in full.
const MAP_LIMIT: usize = 512 << 10;
const BLOCK: u64 = 512;
/// Bytes of a path that are shown.
const SHOWN: usize = 400;

/// What an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of one path or link target.
    pub path_bytes: u32,
    /// Bytes of one path component.
    pub name_bytes: usize,
    /// Bytes of all archives together, unpacked, and of the holes of their files.
    pub unpacked_bytes: u64,
    /// Bytes of names, link targets and attributes of the tree that it becomes.
    pub metadata_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 2_000_000,
            path_bytes: 4096,
            name_bytes: 255,
            unpacked_bytes: 128 << 30,
            metadata_bytes: 512 << 20,
        }
    }
}

/// An archive could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading from below failed, or what is below is damaged.
    #[error("cannot read the archive")]
    Io(#[from] io::Error),
    /// The archive is malformed.
    #[error("the archive is damaged at byte {at}")]
    Damaged {
        /// Where in the unpacked stream.
        at: u64,
        /// What the parser says.
        #[source]
        source: ParseError,
    },
    /// It ends inside an entry.
    #[error("the archive ends early, at byte {at}")]
    Cut {
        /// Where in the unpacked stream.
        at: u64,
    },
    /// An entry cannot be taken.
    #[error("entry {entry:?} of the archive: {why}")]
    Entry {
        /// Its path, escaped.
        entry: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than the limits allow.
    #[error("the archive has too many {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
    },
}

/// Seconds and nanoseconds since 1970; seconds may be negative, nanoseconds never are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanos: u32,
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file with content.
    File,
    /// A regular file of this size, of which only some ranges (offset, length) are stored.
    Sparse {
        /// Stored ranges, ascending and disjoint.
        map: Vec<(u64, u64)>,
        /// Size with the holes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry; its content follows in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it stands in the archive.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Permission bits only.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes; values are bytes.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Bytes of content stored in the archive.
    pub stored: u64,
    /// Where they begin in the unpacked stream.
    pub offset: u64,
}

/// A stream that can be moved forward without giving its bytes.
pub trait Skip: Read {
    /// Moves `count` bytes forward; says how many there were, as far as it knows.
    ///
    /// # Errors
    /// When the stream cannot be moved.
    fn skip(&mut self, count: u64) -> io::Result<u64>;
}

/// Skips by reading: for decompressors.
#[derive(Debug)]
pub struct Stream<R>(pub R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Skip for Stream<R> {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(count), &mut io::sink())
    }
}

/// Skips by seeking: for files.
#[derive(Debug)]
pub struct Seeking<R>(pub R);

impl<R: Read> Read for Seeking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read + Seek> Skip for Seeking<R> {
    /// A file can be moved past its end: whoever has it knows its length.
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let ahead = i64::try_from(count)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "impossible size"))?;
        self.0.seek(SeekFrom::Current(ahead)).map(|_| count)
    }
}

/// Reads entries one after another.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    parser: Parser,
    limits: Limits,
    /// Bytes read, of which those before `parsed` are done with; more than one header only
    /// after an over-read.
    buffer: Vec<u8>,
    parsed: usize,
    /// Bytes that the parser asked for in small steps since the last entry: a sparse map's.
    map: usize,
    /// Position in the stream of the first byte that is not done with.
    at: u64,
    /// Content of the current entry that was not read yet, and its padding.
    content: u64,
    padding: u64,
    entries: u64,
    /// Bytes of all holes.
    holes: u64,
}

impl<R: Skip> Reader<R> {
    /// An archive from its first byte.
    pub fn new(input: R, limits: Limits) -> Reader<R> {
        let mut parser = Parser::new(CoreLimits {
            max_metadata_size: METADATA_LIMIT,
            // Checked in `take`, which can name the entry.
            max_path_len: None,
            ..CoreLimits::default()
        });
        // The parser takes times before 1970 for an error. What else it would pass over is
        // checked in `strict_numbers`.
        parser.set_ignore_pax_errors(true);
        Reader {
            input,
            parser,
            limits,
            buffer: Vec::with_capacity(4096),
            parsed: 0,
            map: 0,
            at: 0,
            content: 0,
            padding: 0,
            entries: 0,
            holes: 0,
        }
    }

    /// What may still come, in this archive or the next one of the same image.
    #[must_use]
    pub fn left(&self) -> Limits {
        Limits {
            entries: self.limits.entries.saturating_sub(self.entries),
            unpacked_bytes: self.limits.unpacked_bytes.saturating_sub(self.spent()),
            ..self.limits
        }
    }

    /// Bytes of holes of all files up to here.
    pub(crate) fn holes(&self) -> u64 {
        self.holes
    }

    /// What counts as unpacked up to here.
    fn spent(&self) -> u64 {
        self.at.saturating_add(self.holes)
    }

    /// The next entry, or `None` at the end of the archive.
    ///
    /// # Errors
    /// See [`TarError`]; after one the reader is of no more use.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        loop {
            let at = self.at;
            let (consumed, found) = match self.parser.parse(&self.buffer[self.parsed..]) {
                Ok(ParseEvent::NeedData { min_bytes }) => {
                    if !self.fill(min_bytes)? {
                        return Ok(None);
                    }
                    continue;
                }
                Ok(ParseEvent::End { .. }) => return Ok(None),
                Ok(ParseEvent::GlobalExtensions { consumed, .. }) => (consumed, None),
                Ok(ParseEvent::Entry { consumed, entry }) => {
                    let offset = at + consumed as u64;
                    (consumed, Some(take(&entry, None, offset, &self.limits)?))
                }
                Ok(ParseEvent::SparseEntry {
                    consumed,
                    entry,
                    sparse_map,
                    real_size,
                }) => {
                    let map = sparse_map.iter().map(|s| (s.offset, s.length)).collect();
                    let kind = Some((map, real_size));
                    let offset = at + consumed as u64;
                    (consumed, Some(take(&entry, kind, offset, &self.limits)?))
                }
                Err(source) => return Err(TarError::Damaged { at, source }),
            };
            self.parsed += consumed;
            self.map = 0;
            self.at += consumed as u64;
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(TarError::TooMuch { what: "entries" });
            }
            let stored = found.as_ref().map_or(0, |entry| entry.stored);
            if let Some(EntryKind::Sparse { size, .. }) = found.as_ref().map(|entry| &entry.kind) {
                self.holes = self.holes.saturating_add(size.saturating_sub(stored));
            }
            if self.spent().saturating_add(stored) > self.limits.unpacked_bytes {
                return Err(TarError::TooMuch { what: "bytes" });
            }
            let Some(entry) = found else { continue };
            self.content = entry.stored;
            self.padding = entry.stored.next_multiple_of(BLOCK) - entry.stored;
            return Ok(Some(entry));
        }
    }

    /// Bytes that are read and not done with.
    fn buffered(&self) -> usize {
        self.buffer.len() - self.parsed
    }

    /// Makes the buffer hold at least `wanted` bytes; `false` at a clean end.
    fn fill(&mut self, wanted: usize) -> Result<bool, TarError> {
        self.buffer.drain(..self.parsed);
        self.parsed = 0;
        let have = self.buffer.len();
        // A sparse map that does not end asks again for what is there already. Those who tell
        // where they end ask for it at once.
        let wanted = wanted.max(have + 1);
        let mut target = wanted.next_multiple_of(BLOCK as usize);
        if target - have <= BLOCK as usize {
            // As each time all is parsed again, it becomes half as much again.
            target = target.max(have + self.map / 2 / BLOCK as usize * BLOCK as usize);
            self.map += target - have;
        }
        if self.map > MAP_LIMIT || target > 4 * METADATA_LIMIT as usize {
            return Err(TarError::TooMuch {
                what: "bytes of metadata in one entry",
            });
        }
        let missing = (target - have) as u64;
        (&mut self.input)
            .take(missing)
            .read_to_end(&mut self.buffer)?;
        if self.buffer.len() >= wanted {
            return Ok(true);
        }
        // Some writers leave the closing blocks out; a rest of zeros is one of them.
        if self.buffer.iter().all(|byte| *byte == 0) {
            return Ok(false);
        }
        Err(TarError::Cut {
            at: self.at + self.buffer.len() as u64,
        })
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let mut rest = self.content + self.padding;
        let content = std::mem::take(&mut self.content);
        self.padding = 0;
        let buffered = rest.min(self.buffered() as u64);
        self.parsed += usize::try_from(buffered).expect("it is at most a length");
        self.at += buffered;
        rest -= buffered;
        if rest > 0 {
            let skipped = self.input.skip(rest)?;
            self.at += skipped;
            if buffered + skipped < content {
                return Err(TarError::Cut { at: self.at });
            }
        }
        Ok(())
    }
}

impl<R: Skip> Read for Reader<R> {
    /// Reads the content of the current entry, to its end.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let room =
            usize::try_from(self.content.min(out.len() as u64)).expect("it is at most a length");
        if room == 0 {
            return Ok(0);
        }
        let read = if self.buffered() == 0 {
            self.input.read(&mut out[..room])?
        } else {
            let read = room.min(self.buffered());
            out[..read].copy_from_slice(&self.buffer[self.parsed..][..read]);
            self.parsed += read;
            read
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.content -= read as u64;
        Ok(read)
    }
}

/// A path as it may be shown: escaped, and of a long one the begin and the end.
pub(crate) fn shown(path: &[u8]) -> String {
    let (begin, end) = (SHOWN / 4 * 3, SHOWN / 4);
    if path.len() <= SHOWN {
        return path.escape_ascii().to_string();
    }
    let (begin, end) = (&path[..begin], &path[path.len() - end..]);
    format!("{}...{}", begin.escape_ascii(), end.escape_ascii())
}

fn take(
    parsed: &ParsedEntry<'_>,
    sparse: Option<(Vec<(u64, u64)>, u64)>,
    offset: u64,
    limits: &Limits,
) -> Result<Entry, TarError> {
    let refuse = |why| TarError::Entry {
        entry: shown(&parsed.path),
        why,
    };
    let most = limits.path_bytes as usize;
    let target = parsed.link_target.as_deref().unwrap_or_default();
    if parsed.path.len() > most {
        return Err(refuse("its path is too long"));
    }
    if target.len() > most {
        return Err(refuse("its link target is too long"));
    }
    let pax = strict_numbers(parsed).map_err(refuse)?;
    let target = || {
        parsed
            .link_target
            .as_deref()
            .map(<[u8]>::to_vec)
            .ok_or_else(|| refuse("a link without a target"))
    };
    let device = || {
        let number = |part: Option<u32>| part.ok_or_else(|| refuse("a device without a number"));
        Ok::<_, TarError>((number(parsed.dev_major)?, number(parsed.dev_minor)?))
    };
    let kind = match (parsed.entry_type, sparse) {
        (EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse, Some((map, size))) => {
            EntryKind::Sparse {
                map: checked_map(map, size, parsed.size).map_err(refuse)?,
                size,
            }
        }
        // As very old archives have directories. With content it is a file.
        (EntryType::Regular, None) if parsed.path.ends_with(b"/") && parsed.size == 0 => {
            EntryKind::Directory
        }
        (EntryType::Regular | EntryType::Continuous, None) => EntryKind::File,
        (EntryType::Directory, _) => EntryKind::Directory,
        (EntryType::Symlink, _) => EntryKind::Symlink(target()?),
        (EntryType::Link, _) => EntryKind::HardLink(target()?),
        (EntryType::Char, _) => {
            device().map(|(major, minor)| EntryKind::CharDevice(major, minor))?
        }
        (EntryType::Block, _) => {
            device().map(|(major, minor)| EntryKind::BlockDevice(major, minor))?
        }
        (EntryType::Fifo, _) => EntryKind::Fifo,
        _ => return Err(refuse("of a kind that is not known")),
    };
    // As everywhere: only files have content, whatever the size field of the others says.
    let stored = match kind {
        EntryKind::File | EntryKind::Sparse { .. } => parsed.size,
        _ => 0,
    };
    let mut xattrs = Vec::with_capacity(parsed.xattrs.len());
    for (name, value) in &parsed.xattrs {
        let name =
            std::str::from_utf8(name).map_err(|_| refuse("an attribute name is not UTF-8"))?;
        xattrs.push((name.to_owned(), value.to_vec()));
    }
    // A number above i64 in a header is how GNU tar writes a negative one.
    let mtime = pax.unwrap_or(Time {
        seconds: parsed.mtime.cast_signed(),
        nanos: 0,
    });
    Ok(Entry {
        path: parsed.path.to_vec(),
        kind,
        mode: u16::try_from(parsed.mode & 0o7777).expect("twelve bits"),
        uid: u32::try_from(parsed.uid).map_err(|_| refuse("its owner is out of range"))?,
        gid: u32::try_from(parsed.gid).map_err(|_| refuse("its group is out of range"))?,
        mtime,
        xattrs,
        stored,
        offset,
    })
}

/// The parser is told to pass over bad PAX values because of times; sizes and owners are not
/// passed over here. Gives the PAX time, if there is one.
fn strict_numbers(parsed: &ParsedEntry<'_>) -> Result<Option<Time>, &'static str> {
    let mut time = None;
    for record in PaxExtensions::new(parsed.pax.unwrap_or_default()) {
        let record = record.map_err(|_| "a damaged PAX record")?;
        let value = record.value_bytes();
        match record.key_bytes() {
            b"size" | b"uid" | b"gid" | b"GNU.sparse.realsize" | b"GNU.sparse.size"
                if !is_number(value) =>
            {
                return Err("a damaged number in its PAX record");
            }
            b"mtime" => time = Some(parse_time(value).ok_or("a damaged time")?),
            _ => {}
        }
    }
    Ok(time)
}

fn is_number(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| text.parse::<u64>().is_ok())
}

/// `-1.25` is one and a quarter seconds before 1970: -2 s and 750,000,000 ns.
fn parse_time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let mut nanos: u32 = 0;
    for place in 0..9 {
        let digit = fraction
            .as_bytes()
            .get(place)
            .map_or(0, |digit| digit - b'0');
        nanos = nanos * 10 + u32::from(digit);
    }
    if nanos > 0 && whole.starts_with('-') {
        return Some(Time {
            seconds: seconds.checked_sub(1)?,
            nanos: 1_000_000_000 - nanos,
        });
    }
    Some(Time { seconds, nanos })
}

/// Ranges ascending, disjoint, inside the file, and as long as what is stored.
fn checked_map(
    map: Vec<(u64, u64)>,
    size: u64,
    stored: u64,
) -> Result<Vec<(u64, u64)>, &'static str> {
    let mut end = 0u64;
    let mut sum = 0u64;
    let mut kept = Vec::with_capacity(map.len());
    for (offset, length) in map {
        let stop = offset.checked_add(length).ok_or("a damaged sparse map")?;
        if offset < end || stop > size {
            return Err("a damaged sparse map");
        }
        end = stop;
        sum += length;
        // Writers end the map with an empty range at the file's size.
        if length > 0 {
            kept.push((offset, length));
        }
    }
    if sum != stored {
        return Err("a sparse map that does not fit its content");
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_round_down() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|t| (t.seconds, t.nanos));
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-0.000000001"), Some((-1, 999_999_999)));
        assert_eq!(time("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time("x"), None);
        assert_eq!(time("1.x"), None);
    }

    #[test]
    fn a_sparse_map_is_believed_only_when_it_fits() {
        assert_eq!(
            checked_map(vec![(0, 5), (10, 5), (20, 0)], 20, 10),
            Ok(vec![(0, 5), (10, 5)])
        );
        assert!(checked_map(vec![(0, 5), (4, 5)], 20, 10).is_err());
        assert!(checked_map(vec![(0, 5)], 4, 5).is_err());
        assert!(checked_map(vec![(u64::MAX, 5)], 4, 5).is_err());
        assert!(checked_map(vec![(0, 5)], 20, 6).is_err());
    }
}
