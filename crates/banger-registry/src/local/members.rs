//! What an archive holds: its members by name, and where their bytes are.
//!
//! Nothing is unpacked by a member's name, and still an archive whose names or links lead out of
//! it, or that has two members of one name, is refused: other programs would read another image
//! from it.

use std::collections::HashMap;
use std::io::{self, Read as _};

use tar_core::parse::{Limits as CoreLimits, ParseError, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, PaxExtensions};

use super::stream::Stream;
use crate::error::plain;
use crate::limits::Limits;

/// Bytes of metadata (long names, PAX records) that one member may have.
const METADATA_LIMIT: u32 = 1 << 20;
/// Bytes of a name or of what a link leads to.
const NAME_LIMIT: u32 = 4096;
/// Bytes held of an archive at once: the metadata of one member, several times over.
const BUFFER_LIMIT: usize = 4 * METADATA_LIMIT as usize;
const BLOCK: u64 = 512;
/// Links from one to the next.
const HOPS: usize = 16;
/// The member that says which images there are.
const MANIFEST: &[u8] = b"manifest.json";

/// Why an archive could not be indexed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file, or what unpacks it.
    Io(io::Error),
    /// The archive.
    Bad(String),
}

impl From<io::Error> for Fault {
    fn from(cause: io::Error) -> Fault {
        Fault::Io(cause)
    }
}

/// The members of an archive.
#[derive(Debug, Default)]
pub(super) struct Members {
    named: HashMap<Vec<u8>, Member>,
    /// The content of `manifest.json`.
    pub(super) manifest: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Member {
    File(Extent),
    /// Another member's name.
    Link(Vec<u8>),
    Directory,
}

/// Where a member's bytes are in the unpacked archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Members {
    /// Reads all headers of an archive, to its end.
    pub(super) fn index(stream: &mut Stream<'_>, limits: &Limits) -> Result<Members, Fault> {
        let mut parser = Parser::new(CoreLimits {
            max_metadata_size: METADATA_LIMIT,
            max_path_len: Some(NAME_LIMIT),
            ..CoreLimits::default()
        });
        // It takes times before 1970 for an error; sizes are looked at in `member`.
        parser.set_ignore_pax_errors(true);
        let mut members = Members::default();
        let mut buffer = Vec::new();
        let (mut count, mut names) = (0, 0);
        loop {
            let at = stream.at() - buffer.len() as u64;
            let (consumed, found) = match parser.parse(&buffer) {
                Ok(ParseEvent::NeedData { min_bytes }) => {
                    if !fill(stream, &mut buffer, min_bytes)? {
                        return Ok(members);
                    }
                    continue;
                }
                Ok(ParseEvent::End { .. }) => return Ok(members),
                Ok(ParseEvent::GlobalExtensions { consumed, .. }) => (consumed, None),
                Ok(ParseEvent::Entry { consumed, entry }) => {
                    let found = member(&entry, at + consumed as u64)?;
                    (consumed, Some((found, stored(&entry))))
                }
                Ok(ParseEvent::SparseEntry { entry, .. }) => {
                    return Err(refused(&entry.path, "has holes"));
                }
                Err(cause) => return Err(damaged(at, &cause)),
            };
            buffer.drain(..consumed);
            count += 1;
            if count > limits.members {
                let most = limits.members;
                return Err(Fault::Bad(format!("it has more than {most} members")));
            }
            let Some(((name, member), content)) = found else {
                continue;
            };
            names += name.len() + member.names();
            if names > limits.names {
                return Err(Fault::Bad("its members have too long names".to_owned()));
            }
            let manifest = name == MANIFEST && matches!(member, Member::File(_));
            members.add(name, member)?;
            if manifest && content <= limits.document {
                members.manifest = Some(content_of(stream, &mut buffer, content)?);
                skip(
                    stream,
                    &mut buffer,
                    content.next_multiple_of(BLOCK) - content,
                )?;
            } else if manifest {
                let most = limits.document;
                return Err(Fault::Bad(format!(
                    "its manifest.json has more than {most} bytes"
                )));
            } else {
                let padded = content.checked_next_multiple_of(BLOCK);
                let padded = padded.ok_or_else(|| Fault::Bad("it is damaged".to_owned()))?;
                skip(stream, &mut buffer, padded)?;
            }
        }
    }

    fn add(&mut self, name: Vec<u8>, member: Member) -> Result<(), Fault> {
        // The archive's own directory.
        if name.is_empty() {
            return match member {
                Member::Directory => Ok(()),
                Member::File(_) | Member::Link(_) => {
                    Err(Fault::Bad("a member has no name".to_owned()))
                }
            };
        }
        match (self.named.get(&name), &member) {
            (None, _) | (Some(Member::Directory), Member::Directory) => {
                self.named.insert(name, member);
                Ok(())
            }
            _ => Err(refused(&name, "is in it twice")),
        }
    }

    /// Where the content of a member is; links lead to other members.
    pub(super) fn find(&self, name: &str) -> Result<Extent, String> {
        let shown = plain(name);
        let mut name = path(name.as_bytes()).map_err(|why| format!("{shown} {why}"))?;
        for _ in 0..HOPS {
            match self.named.get(&name) {
                Some(Member::File(extent)) => return Ok(*extent),
                Some(Member::Link(target)) => name.clone_from(target),
                Some(Member::Directory) => return Err(format!("{shown} is a directory")),
                None => return Err(format!("it has no {shown}")),
            }
        }
        Err(format!("{shown} is a link that leads nowhere"))
    }

    /// Whether there is a member of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.named.contains_key(name.as_bytes())
    }
}

impl Member {
    fn names(&self) -> usize {
        match self {
            Member::Link(target) => target.len(),
            Member::File(_) | Member::Directory => 0,
        }
    }
}

fn refused(name: &[u8], why: &str) -> Fault {
    let name = plain(&String::from_utf8_lossy(name));
    Fault::Bad(format!("its member {name} {why}"))
}

fn damaged(at: u64, cause: &ParseError) -> Fault {
    let cause = plain(&cause.to_string());
    Fault::Bad(format!("it is damaged at byte {at}: {cause}"))
}

fn member(entry: &ParsedEntry<'_>, offset: u64) -> Result<(Vec<u8>, Member), Fault> {
    let refuse = |why| refused(&entry.path, why);
    for record in PaxExtensions::new(entry.pax.unwrap_or_default()) {
        let record = record.map_err(|_| refuse("has a damaged PAX record"))?;
        let number = std::str::from_utf8(record.value_bytes()).map(str::parse::<u64>);
        if record.key_bytes() == b"size" && !matches!(number, Ok(Ok(_))) {
            return Err(refuse("has a damaged size"));
        }
    }
    let name = path(&entry.path).map_err(refuse)?;
    let target = || {
        let target = entry.link_target.as_deref().unwrap_or_default();
        match target {
            [] => Err(refuse("is a link without a target")),
            target => Ok(target),
        }
    };
    let member = match entry.entry_type {
        EntryType::Directory => Member::Directory,
        EntryType::Regular if entry.path.ends_with(b"/") => Member::Directory,
        EntryType::Regular | EntryType::Continuous => Member::File(Extent {
            offset,
            size: entry.size,
        }),
        EntryType::Link => Member::Link(path(target()?).map_err(refuse)?),
        EntryType::Symlink => {
            let mut from: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
            from.pop();
            Member::Link(step(from, target()?).map_err(refuse)?)
        }
        _ => return Err(refuse("is neither file nor directory")),
    };
    Ok((name, member))
}

/// Bytes that follow a member's header. What is a directory by its name alone may have some.
fn stored(entry: &ParsedEntry<'_>) -> u64 {
    match entry.entry_type {
        EntryType::Regular | EntryType::Continuous => entry.size,
        _ => 0,
    }
}

/// A member's name without what means nothing.
fn path(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err("leads out of it");
    }
    step(Vec::new(), name)
}

/// Where `path` leads from a directory of the archive.
fn step<'p>(mut from: Vec<&'p [u8]>, path: &'p [u8]) -> Result<Vec<u8>, &'static str> {
    if path.starts_with(b"/") {
        return Err("leads out of it");
    }
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(from.pop().ok_or("leads out of it")?),
            part => from.push(part),
        }
    }
    Ok(from.join(&b'/'))
}

/// Makes the buffer hold at least `wanted` bytes; `false` at a clean end.
fn fill(stream: &mut Stream<'_>, buffer: &mut Vec<u8>, wanted: usize) -> Result<bool, Fault> {
    // The parser may ask again for what is there already.
    let wanted = wanted.max(buffer.len() + 1).next_multiple_of(512);
    if wanted > BUFFER_LIMIT {
        return Err(Fault::Bad("a member has too much metadata".to_owned()));
    }
    // And it reads all of it again: with twice as much each time, that is not often.
    let room = wanted.max(2 * buffer.len()).min(BUFFER_LIMIT);
    let missing = (room - buffer.len()) as u64;
    stream.take(missing).read_to_end(buffer)?;
    if buffer.len() >= wanted {
        return Ok(true);
    }
    // Some writers leave the closing blocks out; a rest of zeros is one of them.
    match buffer.iter().all(|byte| *byte == 0) {
        true => Ok(false),
        false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

fn skip(stream: &mut Stream<'_>, buffer: &mut Vec<u8>, count: u64) -> io::Result<()> {
    let buffered = usize::try_from(count)
        .unwrap_or(usize::MAX)
        .min(buffer.len());
    buffer.drain(..buffered);
    stream.skip(count - buffered as u64)
}

fn content_of(stream: &mut Stream<'_>, buffer: &mut Vec<u8>, size: u64) -> io::Result<Vec<u8>> {
    let buffered = usize::try_from(size)
        .unwrap_or(usize::MAX)
        .min(buffer.len());
    let mut content: Vec<u8> = buffer.drain(..buffered).collect();
    stream
        .take(size - buffered as u64)
        .read_to_end(&mut content)?;
    match content.len() as u64 == size {
        true => Ok(content),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio_util::sync::CancellationToken;

    use super::super::stream::{Codec, Raw};
    use super::*;

    /// Fills a buffer from so many bytes for a parser that never has enough; how often it was
    /// asked, and how it ended.
    fn fills(length: usize) -> (usize, Result<bool, Fault>) {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&vec![1; length]).expect("room");
        let cancel = CancellationToken::new();
        let raw = Raw {
            file: &file,
            cancel: &cancel,
            tell: &|_| {},
            at: 0,
        };
        let length = length as u64;
        let mut stream = Stream::new(raw, Codec::Plain, length, length).expect("a stream");
        let (mut buffer, mut times) = (Vec::new(), 0);
        loop {
            times += 1;
            match fill(&mut stream, &mut buffer, 0) {
                Ok(true) => assert!(buffer.len() <= BUFFER_LIMIT),
                other => return (times, other),
            }
        }
    }

    #[test]
    fn a_parser_that_always_wants_more_gets_it_a_few_times_and_not_for_ever() {
        let (times, end) = fills(8 * METADATA_LIMIT as usize);
        assert!(times < 20, "{times}");
        assert!(
            matches!(&end, Err(Fault::Bad(why)) if why.contains("too much metadata")),
            "{end:?}"
        );
        let (times, end) = fills(700);
        assert_eq!(times, 2);
        assert!(matches!(end, Err(Fault::Io(_))), "{end:?}");
    }

    #[test]
    fn names_and_links_stay_inside() {
        for (name, normal) in [
            ("./a/b", Ok("a/b")),
            ("a//b/", Ok("a/b")),
            (".", Ok("")),
            ("a/../b", Err("leads out of it")),
            ("../a", Err("leads out of it")),
            ("/a", Err("leads out of it")),
        ] {
            let normal = normal.map(|name| name.as_bytes().to_vec());
            assert_eq!(path(name.as_bytes()), normal, "{name}");
        }
        for (target, leads) in [
            ("../x/layer.tar", Ok("x/layer.tar")),
            ("layer.tar", Ok("one/layer.tar")),
            ("../../x", Err("leads out of it")),
            ("/etc/passwd", Err("leads out of it")),
        ] {
            let leads = leads.map(|name| name.as_bytes().to_vec());
            assert_eq!(step(vec![b"one"], target.as_bytes()), leads, "{target}");
        }
    }
}
