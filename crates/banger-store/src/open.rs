//! Looks at the file before it is touched: what is damaged, foreign or newer
//! is named and left as it was.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::error::OpenError;
use crate::migrations::{APPLICATION_ID, migrate, schema_version};

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// A connection that writes, with the newest schema.
pub(crate) fn writer(path: &Path) -> Result<Connection, OpenError> {
    inspect(path)?;
    let open = |cause| OpenError::Open {
        path: path.to_owned(),
        cause,
    };
    let mut connection = Connection::open(path).map_err(open)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(open)?;
    connection
        .pragma_update(None, "synchronous", "NORMAL")
        .map_err(open)?;
    connection
        .pragma_update(None, "foreign_keys", true)
        .map_err(open)?;
    // Another daemon is kept out by its own lock; this covers a backup tool.
    connection
        .busy_timeout(std::time::Duration::from_secs(5))
        .map_err(open)?;
    connection
        .pragma_update(None, "cache_size", -512)
        .map_err(open)?;
    migrate(&mut connection).map_err(|(version, cause)| OpenError::Migrate {
        path: path.to_owned(),
        version,
        cause,
    })?;
    Ok(connection)
}

/// A connection that cannot write.
pub(crate) fn reader(path: &Path) -> Result<Connection, OpenError> {
    let open = |cause| OpenError::Open {
        path: path.to_owned(),
        cause,
    };
    let connection = read_only(path).map_err(open)?;
    connection
        .busy_timeout(std::time::Duration::from_secs(5))
        .map_err(open)?;
    connection
        .pragma_update(None, "cache_size", -512)
        .map_err(open)?;
    Ok(connection)
}

fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
}

/// Whether the file is absent, empty, or a sound database of ours that is not
/// newer than we are.
fn inspect(path: &Path) -> Result<(), OpenError> {
    let damaged = |what: String| OpenError::Damaged {
        path: path.to_owned(),
        what,
    };
    let mut start = [0; 16];
    match fs::File::open(path).and_then(|mut file| read_up_to(&mut file, &mut start)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => {
            return Err(OpenError::Read {
                path: path.to_owned(),
                cause,
            });
        }
        Ok(0) => return Ok(()),
        Ok(_) if &start == MAGIC => {}
        Ok(_) => return Err(damaged("not an SQLite database".into())),
    }
    let beside = Beside::of(path);
    let verdict = examine(path);
    if verdict.is_err() {
        beside.remove_new();
    }
    verdict
}

fn examine(path: &Path) -> Result<(), OpenError> {
    let damaged = |what: String| OpenError::Damaged {
        path: path.to_owned(),
        what,
    };
    let sqlite = |error: rusqlite::Error| damaged(error.to_string());
    let connection = read_only(path).map_err(sqlite)?;
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(sqlite)
    };
    let (found, owner) = (pragma("user_version")?, pragma("application_id")?);
    if owner != APPLICATION_ID && (owner != 0 || found != 0) {
        return Err(damaged("it belongs to another program".into()));
    }
    if found > schema_version() {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: schema_version(),
        });
    }
    if found < 0 {
        return Err(damaged(format!("schema {found}")));
    }
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(sqlite)?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(damaged(verdict))
    }
}

fn read_up_to(file: &mut fs::File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// The files SQLite makes beside a database, even to read it.
struct Beside(Vec<(PathBuf, bool)>);

impl Beside {
    fn of(path: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            let path = PathBuf::from(name);
            let there = path.exists();
            (path, there)
        };
        Self(vec![beside("-wal"), beside("-shm")])
    }

    fn remove_new(self) {
        for (path, there_before) in self.0 {
            if !there_before {
                // What cannot be removed is empty and harms nobody.
                let _ = fs::remove_file(path);
            }
        }
    }
}
