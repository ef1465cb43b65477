//! Room that the database has on its disk before it needs it. Who makes room on a full disk by
//! removing a VM has rows to write first.
//!
//! SQLite begins its log (`-wal`) anew once all of it is in the database file, without giving its
//! blocks back, and takes new pages from those that are free in the file. So what is written once
//! and dropped stays as room in both.

use rusqlite::Connection;

/// How much, bytes.
const ROOM: u32 = 1 << 20;
/// Pages in the log at which it is moved into the file: half of the room, as the log grows on
/// while somebody reads.
const MOVED_AT: u32 = ROOM / 4096 / 2;

/// Takes room on the disk. Where there is none left, nothing changes.
pub(crate) fn take(connection: &mut Connection) {
    if let Err(error) = try_take(connection) {
        tracing::warn!(%error, "no room is kept for the database");
    }
}

fn try_take(connection: &mut Connection) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    // Left by a daemon that was cut right here.
    tx.execute("DROP TABLE IF EXISTS room", [])?;
    tx.execute("CREATE TABLE room (bytes BLOB)", [])?;
    tx.execute("INSERT INTO room VALUES (zeroblob(?1))", [ROOM])?;
    // Written by the commit; pages that are freed before it would not be.
    tx.commit()?;
    connection.execute("DROP TABLE room", [])?;
    connection.pragma_update(None, "wal_autocheckpoint", MOVED_AT)
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
        take(&mut writer);
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
        put(&writer, 300);
        let before = blocks(&path);
        put(&writer, 3000);
        assert_eq!(blocks(&path), before);
        assert!(before >= 2 * u64::from(ROOM) / 512, "{before}");

        // A daemon that ends moves its log away; those that follow take the same room again.
        drop(writer);
        let sizes = [(); 3].map(|()| {
            let mut writer = open::writer(&path).unwrap();
            take(&mut writer);
            put(&writer, 3000);
            let taken = blocks(&path);
            let move_away = "PRAGMA wal_checkpoint(TRUNCATE)";
            writer.query_row(move_away, [], |_| Ok(())).unwrap();
            taken
        });
        assert_eq!(sizes[1], sizes[2], "{sizes:?}");
    }
}
