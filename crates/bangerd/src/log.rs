//! The daemon's log: JSON lines in one file and one older.
//!
//! When the file is full it becomes `<name>.1`, which replaces the one
//! before, so the log never takes more than twice its limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Size at which a new file is begun, bytes.
const LIMIT: u64 = 16 << 20;

/// Sends everything that is logged from here on to the file.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn start(path: &Path, level: LevelFilter) -> io::Result<()> {
    let file = Rotating::open(path, LIMIT)?;
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_target(false)
        .with_writer(file);
    // A second daemon in one process is a test; the first log stays.
    let _ = tracing_subscriber::registry()
        .with(level)
        .with(lines)
        .try_init();
    Ok(())
}

struct Rotating {
    path: PathBuf,
    limit: u64,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    length: u64,
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }
}

impl Rotating {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            limit,
            open: Mutex::new(Open::at(path)?),
        })
    }

    fn write_line(&self, line: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.length > 0 && open.length + line.len() as u64 > self.limit {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            // On a disk that refuses this the present file goes on growing,
            // which is better than no log.
            if std::fs::rename(&self.path, older).is_ok() {
                *open = Open::at(&self.path)?;
            }
        }
        open.file.write_all(line)?;
        open.length += line.len() as u64;
        Ok(())
    }
}

/// One event on its way to the file: written at once, so that lines of two
/// threads never mix.
struct Line<'a> {
    log: &'a Rotating,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell when the log itself cannot be written.
        let _ = self.log.write_line(&self.text);
    }
}

impl<'a> MakeWriter<'a> for Rotating {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            log: self,
            text: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_becomes_the_older_one_and_loses_no_line_of_its_own() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.log");
        let log = Rotating::open(&path, 20).unwrap();
        for line in ["first line\n", "second\n", "third line\n"] {
            log.write_line(line.as_bytes()).unwrap();
        }
        let older = std::fs::read_to_string(place.path().join("x.log.1")).unwrap();
        assert_eq!(older, "first line\nsecond\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third line\n");
    }

    #[test]
    fn a_log_that_is_opened_again_is_continued() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.log");
        Rotating::open(&path, 100)
            .unwrap()
            .write_line(b"one\n")
            .unwrap();
        Rotating::open(&path, 100)
            .unwrap()
            .write_line(b"two\n")
            .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
