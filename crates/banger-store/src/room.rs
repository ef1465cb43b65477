//! Room that the database has on its disk before it needs it. Who makes room on a full disk by
//! removing a VM has rows to write first.
//!
//! SQLite begins its log (`-wal`) anew once all of it is in the database file, without giving its
//! blocks back, and takes new pages from those that are free in the file. So the log gets its
//! blocks beforehand, and the file has free pages: blocks behind its end would not stay, as it is
//! cut to its length each time the log is moved into it. On a file system that writes nothing in
//! place (btrfs, ZFS) none of this helps.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::fs::{FallocateFlags, fallocate};

/// Free pages of the file, bytes.
const FILE: u32 = 1 << 20;
/// The log, bytes: it is moved into the file at 1000 pages of 4 KiB, and grows on while somebody
/// reads.
const LOG: u64 = 5 << 20;

/// Takes room on the disk. Where there is none left, nothing changes.
pub(crate) fn take(connection: &mut Connection, path: &Path) {
    if let Err(error) = in_file(connection) {
        tracing::warn!(%error, "no room is kept for the database");
    }
    if let Err(error) = in_log(path) {
        tracing::debug!(%error, "room for the log of the database is written");
        if let Err(error) = by_writing(connection) {
            tracing::warn!(%error, "no room is kept for the log of the database");
        }
    }
}

fn in_file(connection: &mut Connection) -> rusqlite::Result<()> {
    // Left by a daemon that was cut below.
    connection.execute("DROP TABLE IF EXISTS room", [])?;
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0));
    let free = number("freelist_count")?.saturating_mul(number("page_size")?);
    // Some of it may be in use by now, and some comes back.
    if free >= FILE / 2 {
        return Ok(());
    }
    write(connection)?;
    // Into the file while there is room for it, and the log is short again.
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))
}

/// Where blocks cannot be had beforehand: as much as is written once stays.
fn by_writing(connection: &mut Connection) -> rusqlite::Result<()> {
    write(connection)?;
    connection.pragma_update(None, "wal_autocheckpoint", FILE / 4096 / 2)
}

fn write(connection: &mut Connection) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    tx.execute("CREATE TABLE room (bytes BLOB)", [])?;
    tx.execute("INSERT INTO room VALUES (zeroblob(?1))", [FILE])?;
    // Written by the commit; pages that are freed before it would not be.
    tx.commit()?;
    connection.execute("DROP TABLE room", []).map(drop)
}

/// The log is nobody's but SQLite's, and it locks other files: opening it here takes no lock
/// away.
fn in_log(path: &Path) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    let log = OpenOptions::new().write(true).open(PathBuf::from(name))?;
    fallocate(&log, FallocateFlags::KEEP_SIZE, 0, LOG)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use super::*;
    use crate::open;

    fn blocks(path: &Path) -> u64 {
        let one = |end: &str| {
            let name = format!("{}{end}", path.display());
            std::fs::metadata(name).map_or(0, |found| found.blocks())
        };
        one("") + one("-wal") + one("-shm")
    }

    #[test]
    fn what_is_written_afterwards_needs_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let mut writer = open::writer(&path).unwrap();
        let left = "CREATE TABLE room (left TEXT)";
        writer.execute(left, []).unwrap();
        take(&mut writer, &path);
        let tables = "SELECT count(*) FROM sqlite_master WHERE name = 'room'";
        let tables: i64 = writer.query_row(tables, [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 0);
        let put = |writer: &Connection, count: i64| {
            for at in 0..count {
                let text = "x".repeat(2000);
                let row = (at % 100, text);
                let put = "INSERT OR REPLACE INTO note (id, text) VALUES (?1, ?2)";
                writer.execute(put, row).unwrap();
            }
        };
        let make = "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)";
        writer.execute(make, []).unwrap();
        let before = blocks(&path);
        put(&writer, 3000);
        assert_eq!(blocks(&path), before);
        assert!(before >= (u64::from(FILE) + LOG) / 512, "{before}");

        // A daemon that ends moves its log away; those that follow take the same room again.
        drop(writer);
        let sizes = [(); 3].map(|()| {
            let mut writer = open::writer(&path).unwrap();
            take(&mut writer, &path);
            put(&writer, 3000);
            let taken = blocks(&path);
            let move_away = "PRAGMA wal_checkpoint(TRUNCATE)";
            writer.query_row(move_away, [], |_| Ok(())).unwrap();
            taken
        });
        assert_eq!(sizes[1], sizes[2], "{sizes:?}");
    }
}
