//! The guest's console on disk, kept small: above a limit the file is copied
//! beside itself and emptied, while the engine goes on appending to it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A console is copied and emptied above this, bytes.
pub const LIMIT: u64 = 16 << 20;

/// Where the older part is: the same name with `.1`.
#[must_use]
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Copies and empties the file where it is larger than `limit` bytes; true
/// when it was. What comes between copy and truncation is lost. The writer
/// must append, or it would leave a hole. Blocks while it copies.
///
/// # Errors
/// Of the file system; the file is whole then.
pub fn keep_small(path: &Path, limit: u64) -> io::Result<bool> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length <= limit {
        return Ok(false);
    }
    let older = older(path);
    let mut beside = older.clone().into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut from = OpenOptions::new().read(true).write(true).open(path)?;
    // A guest that writes as fast as we copy gets no more than its limit.
    from.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut to = fs::File::create(&beside)?;
    io::copy(&mut (&mut from).take(limit), &mut to)?;
    fs::rename(&beside, &older)?;
    from.set_len(0)?;
    Ok(true)
}

/// The last `most` bytes of a file, from the beginning of a line where there
/// is one, as text in which control characters are harmless. Empty where it
/// cannot be read.
#[must_use]
pub fn tail(path: &Path, most: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        if length > most
            && let Some(end) = bytes.iter().position(|&byte| byte == b'\n')
        {
            bytes.drain(..=end);
        }
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .chars()
        .filter(|&c| c != '\r')
        .map(|c| {
            if c.is_control() && c != '\n' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_console_is_emptied_and_its_writer_goes_on_at_the_start() {
        let directory = std::env::temp_dir().join(format!("banger-console-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("console.log");
        let mut writer = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        writer.write_all(&[b'x'; 100]).unwrap();
        assert!(!keep_small(&path, 100).unwrap());
        writer.write_all(b"the end\n").unwrap();
        assert!(keep_small(&path, 100).unwrap());
        writer.write_all(b"new\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\n");
        let kept = fs::read(older(&path)).unwrap();
        assert!(kept.len() == 100 && kept.ends_with(b"the end\n"));
        assert!(!keep_small(&directory.join("none"), 100).unwrap());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_tail_begins_with_a_line_and_holds_no_escape() {
        let path = std::env::temp_dir().join(format!("banger-tail-{}", std::process::id()));
        fs::write(&path, b"first line\r\nsecond \x1b[31mred\r\nthird\n").unwrap();
        assert_eq!(
            tail(&path, 25),
            "second \u{fffd}[31mred\nthird\n".to_owned()
        );
        assert_eq!(tail(&path, 1000).lines().count(), 3);
        fs::remove_file(&path).unwrap();
        assert_eq!(tail(&path, 10), "");
    }
}
