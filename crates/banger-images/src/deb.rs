//! Reading a `.deb`: an `ar` of a control and a data archive, each packed in its own way.
//!
//! Owns the outer container and the control file; the data archive is handed on as a stream or
//! spooled. Everything is bounded: a package may come from anywhere. Nothing of it is run.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use crate::codec::{Bounded, unpack};
use crate::progress::{Cancel, Cancelled, Report};
use crate::tar::{EntryKind, Limits, Reader, Stream, TarError};

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER: u64 = 60;
/// Members looked at; a package has three.
const MEMBER_LIMIT: usize = 16;
/// The control archive, unpacked.
const CONTROL_LIMIT: u64 = 16 << 20;
/// The control file.
const CONTROL_FILE_LIMIT: u64 = 1 << 20;
/// The data archive, unpacked.
const DATA_LIMIT: u64 = 4 << 30;

/// A package could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// Reading failed, or what is packed inside is damaged.
    #[error("cannot read the package")]
    Io(#[from] io::Error),
    /// It is not what it should be.
    #[error("not a Debian package: {0}")]
    NotADeb(&'static str),
    /// One of its archives.
    #[error("the package is damaged")]
    Tar(#[from] TarError),
    /// The caller cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Where a member lies in the file.
#[derive(Debug, Clone, Copy)]
struct Member {
    offset: u64,
    size: u64,
}

/// An opened package.
#[derive(Debug)]
pub struct Deb<R> {
    file: R,
    control: Member,
    data: Member,
}

/// The fields of a control file, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Control(BTreeMap<String, String>);

impl Control {
    /// A field's value, continued lines joined by newlines.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&str> {
        self.0.get(&field.to_ascii_lowercase()).map(String::as_str)
    }

    /// Reads one paragraph of `Field: value` lines.
    #[must_use]
    pub fn parse(text: &str) -> Control {
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        let mut last: Option<String> = None;
        for line in text.lines() {
            if line.trim().is_empty() {
                if fields.is_empty() {
                    continue;
                }
                break;
            }
            if line.starts_with('#') {
                continue;
            }
            if line.starts_with([' ', '\t']) {
                if let Some(value) = last.as_ref().and_then(|name| fields.get_mut(name)) {
                    value.push('\n');
                    value.push_str(line.trim());
                }
            } else if let Some((name, value)) = line.split_once(':') {
                let name = name.trim().to_ascii_lowercase();
                fields.insert(name.clone(), value.trim().to_owned());
                last = Some(name);
            }
        }
        Control(fields)
    }
}

impl<R: Read + Seek> Deb<R> {
    /// Finds the two archives.
    ///
    /// # Errors
    /// See [`DebError`].
    pub fn open(mut file: R) -> Result<Deb<R>, DebError> {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let mut magic = [0; 8];
        if file.read_exact(&mut magic).is_err() || magic != *MAGIC {
            return Err(DebError::NotADeb("it is no ar archive"));
        }
        let (mut control, mut data) = (None, None);
        let mut at = MAGIC.len() as u64;
        for _ in 0..MEMBER_LIMIT {
            if at + HEADER > length {
                break;
            }
            let mut header = [0; HEADER as usize];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut header)?;
            let (name, size) =
                parse_header(&header).ok_or(DebError::NotADeb("a damaged member"))?;
            let offset = at + HEADER;
            let end = offset
                .checked_add(size)
                .filter(|end| *end <= length)
                .ok_or(DebError::NotADeb("it is cut off"))?;
            let member = Some(Member { offset, size });
            match name {
                name if name.starts_with("control.tar") && control.is_none() => control = member,
                name if name.starts_with("data.tar") && data.is_none() => data = member,
                _ => {}
            }
            at = end + end % 2;
        }
        Ok(Deb {
            file,
            control: control.ok_or(DebError::NotADeb("it has no control archive"))?,
            data: data.ok_or(DebError::NotADeb("it has no data archive"))?,
        })
    }

    /// The control file.
    ///
    /// # Errors
    /// See [`DebError`].
    pub fn control(&mut self) -> Result<Control, DebError> {
        let stream = Bounded::new(self.member(self.control)?, CONTROL_LIMIT);
        let mut reader = Reader::new(Stream(stream), Limits::default());
        while let Some(entry) = reader.next_entry()? {
            let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
            if name == b"control" && entry.kind == EntryKind::File {
                let mut text = Vec::new();
                Bounded::new(&mut reader, CONTROL_FILE_LIMIT).read_to_end(&mut text)?;
                return Ok(Control::parse(&String::from_utf8_lossy(&text)));
            }
        }
        Err(DebError::NotADeb("it has no control file"))
    }

    /// Writes the data archive, unpacked, to `out`; its length is returned.
    ///
    /// # Errors
    /// See [`DebError`].
    pub fn spool_data(
        &mut self,
        out: &mut impl Write,
        cancel: &Cancel,
        report: &dyn Report,
    ) -> Result<u64, DebError> {
        let mut stream = Bounded::new(self.member(self.data)?, DATA_LIMIT);
        let mut buffer = vec![0; 256 << 10];
        let mut done = 0;
        loop {
            cancel.check()?;
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(done);
            }
            out.write_all(&buffer[..read])?;
            done += read as u64;
            report.bytes(done, None);
        }
    }

    fn member(&mut self, member: Member) -> io::Result<Box<dyn Read + '_>> {
        self.file.seek(SeekFrom::Start(member.offset))?;
        unpack(BufReader::with_capacity(
            64 << 10,
            (&mut self.file).take(member.size),
        ))
    }
}

/// Name and size of a member.
fn parse_header(header: &[u8; HEADER as usize]) -> Option<(&str, u64)> {
    if header[58..] != *b"`\n" {
        return None;
    }
    let name = std::str::from_utf8(&header[..16]).ok()?.trim_end();
    let size = std::str::from_utf8(&header[48..58]).ok()?.trim_end();
    if size.starts_with('+') {
        return None;
    }
    Some((name.strip_suffix('/').unwrap_or(name), size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, data) in members {
            out.extend(
                format!(
                    "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                    0,
                    0,
                    0,
                    100_644,
                    data.len()
                )
                .bytes(),
            );
            out.extend_from_slice(data);
            if data.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    #[test]
    fn a_file_that_is_no_package_is_told_apart() {
        for (bytes, why) in [
            (b"".to_vec(), "it is no ar archive"),
            (b"hello world".to_vec(), "it is no ar archive"),
            (
                ar(&[("debian-binary", b"2.0\n")]),
                "it has no control archive",
            ),
            (ar(&[("control.tar", b"")]), "it has no data archive"),
        ] {
            match Deb::open(Cursor::new(bytes)) {
                Err(DebError::NotADeb(text)) => assert_eq!(text, why),
                other => panic!("{other:?}"),
            }
        }
        let mut cut = ar(&[("control.tar", b"x"), ("data.tar", &[0; 600])]);
        cut.truncate(cut.len() - 100);
        assert!(matches!(
            Deb::open(Cursor::new(cut)),
            Err(DebError::NotADeb("it is cut off"))
        ));
    }

    #[test]
    fn a_control_file_is_fields_and_continued_lines() {
        let control =
            Control::parse("Package: a\nDescription: short\n long\n .\nVersion:1\n\nPackage: b\n");
        assert_eq!(control.get("PACKAGE"), Some("a"));
        assert_eq!(control.get("Description"), Some("short\nlong\n."));
        assert_eq!(control.get("version"), Some("1"));
    }
}
