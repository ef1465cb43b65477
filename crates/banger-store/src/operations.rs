//! Rows of operations: long work and its outcome, for as long as somebody may
//! ask for it.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::error::StoreError;

pub(crate) const TABLE: &str = "
    CREATE TABLE operations (
        id TEXT PRIMARY KEY,
        seq INTEGER NOT NULL,
        kind TEXT NOT NULL,
        vm_id TEXT,
        done_at INTEGER,
        record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX operations_by_end ON operations (done_at);
";

/// An operation as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpRow {
    /// Its id.
    pub id: String,
    /// What it does: `vm.create`, ...
    pub kind: String,
    /// The VM it works on.
    pub vm_id: Option<String>,
    /// Seconds since 1970; `None` while it runs.
    pub done_at: Option<i64>,
    /// JSON of what clients see.
    pub record: String,
}

/// Adds or replaces an operation; a finished one is never replaced.
///
/// # Errors
/// SQLite's.
pub fn put(tx: &Transaction<'_>, op: &OpRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO operations (id, seq, kind, vm_id, done_at, record)
         VALUES (?1, (SELECT ifnull(max(seq), 0) + 1 FROM operations), ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO UPDATE SET vm_id=?3, done_at=?4, record=?5 WHERE done_at IS NULL",
    )?
    .execute(params![op.id, op.kind, op.vm_id, op.done_at, op.record])?;
    Ok(())
}

/// The operation of this id.
///
/// # Errors
/// SQLite's.
pub fn get(db: &Connection, id: &str) -> Result<Option<OpRow>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT id, kind, vm_id, done_at, record FROM operations WHERE id=?")?;
    Ok(query.query_row([id], read).optional()?)
}

/// All, or only those that run, newest first.
///
/// # Errors
/// SQLite's.
pub fn list(db: &Connection, only_running: bool) -> Result<Vec<OpRow>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT id, kind, vm_id, done_at, record FROM operations
         WHERE NOT ?1 OR done_at IS NULL ORDER BY seq DESC",
    )?;
    let rows = query.query_map([only_running], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets those that ended before this time, seconds since 1970.
///
/// # Errors
/// SQLite's.
pub fn prune(tx: &Transaction<'_>, ended_before: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM operations WHERE done_at < ?")?
        .execute([ended_before])?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<OpRow> {
    Ok(OpRow {
        id: row.get("id")?,
        kind: row.get("kind")?,
        vm_id: row.get("vm_id")?,
        done_at: row.get("done_at")?,
        record: row.get("record")?,
    })
}
