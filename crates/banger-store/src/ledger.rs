//! The ledger: what exists on the host because of a VM, written down before it
//! is made and crossed out after it is gone.
//!
//! ```text
//! intend ─► (host) take ─► settle ─► … ─► (host) give back ─► strike
//! ```

use rusqlite::{Connection, Row, Transaction, params};

use banger_model::{Holding, Span, VmId};

use crate::error::StoreError;

pub(crate) const TABLE: &str = "
    CREATE TABLE ledger (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        span TEXT NOT NULL,
        state TEXT NOT NULL,
        facts TEXT,
        UNIQUE (owner, kind)
    ) STRICT;
";

/// A holding as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Order in which holdings were intended.
    pub seq: i64,
    /// The VM.
    pub owner: VmId,
    /// The holding.
    pub holding: Holding,
    /// It is there and whole; otherwise it may be there, whole or in part.
    pub settled: bool,
    /// JSON of what finds it again.
    pub facts: Option<String>,
}

/// Writes down that a holding is about to be taken, and where, when its key
/// alone does not tell. One that is written down already keeps its place and
/// is in doubt again.
///
/// # Errors
/// SQLite's.
pub fn intend(
    tx: &Transaction<'_>,
    owner: &VmId,
    holding: Holding,
    facts: Option<&str>,
) -> Result<(), StoreError> {
    let span = match holding.span() {
        Span::Life => "life",
        Span::Run => "run",
    };
    tx.prepare_cached(
        "INSERT INTO ledger (owner, kind, key, span, state, facts)
         VALUES (?1, ?2, ?3, ?4, 'intended', ?5)
         ON CONFLICT (owner, kind) DO UPDATE SET state='intended', facts=?5",
    )?
    .execute(params![
        owner.as_str(),
        holding.name(),
        holding.key(owner),
        span,
        facts
    ])?;
    Ok(())
}

/// It is there and whole.
///
/// # Errors
/// SQLite's.
pub fn settle(
    tx: &Transaction<'_>,
    owner: &VmId,
    holding: Holding,
    facts: Option<&str>,
) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE ledger SET state='settled', facts=?3 WHERE owner=?1 AND kind=?2")?
        .execute(params![owner.as_str(), holding.name(), facts])?;
    Ok(())
}

/// It is gone.
///
/// # Errors
/// SQLite's.
pub fn strike(tx: &Transaction<'_>, owner: &VmId, holding: Holding) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM ledger WHERE owner=?1 AND kind=?2")?
        .execute(params![owner.as_str(), holding.name()])?;
    Ok(())
}

/// What a VM holds, oldest first.
///
/// # Errors
/// SQLite's, or a row that cannot be read.
pub fn of(db: &Connection, owner: &VmId) -> Result<Vec<Entry>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT seq, owner, kind, state, facts FROM ledger WHERE owner=? ORDER BY seq",
    )?;
    let rows = query.query_map([owner.as_str()], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}

/// What all VMs hold, oldest first.
///
/// # Errors
/// SQLite's, or a row that cannot be read.
pub fn all(db: &Connection) -> Result<Vec<Entry>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT seq, owner, kind, state, facts FROM ledger ORDER BY seq")?;
    let rows = query.query_map([], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}

fn read(row: &Row<'_>) -> Result<Entry, StoreError> {
    let owner: String = row.get("owner")?;
    let kind: String = row.get("kind")?;
    let state: String = row.get("state")?;
    let bad = |what: String| StoreError::Row {
        table: "ledger",
        key: owner.clone(),
        what,
    };
    Ok(Entry {
        seq: row.get("seq")?,
        owner: VmId::parse(&owner).map_err(|error| bad(error.to_string()))?,
        holding: Holding::of_name(&kind).ok_or_else(|| bad(format!("holding {kind:?}")))?,
        settled: match state.as_str() {
            "settled" => true,
            "intended" => false,
            other => return Err(bad(format!("state {other:?}"))),
        },
        facts: row.get("facts")?,
    })
}
