//! Rows of VMs. Each is written by the supervisor of its VM alone.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use banger_model::{Exit, Goal, Phase, VmId};

use crate::error::{StoreError, taken};

pub(crate) const TABLE: &str = "
    CREATE TABLE vms (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        phase TEXT NOT NULL,
        goal TEXT NOT NULL,
        last_exit TEXT,
        spec TEXT NOT NULL,
        record TEXT NOT NULL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
";

const COLUMNS: &str = "id, name, phase, goal, last_exit, spec, record, created_at, updated_at";

/// A VM as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// Unique.
    pub name: String,
    /// What it is.
    pub phase: Phase,
    /// What was last asked of it.
    pub goal: Goal,
    /// How the last run ended; `None` before the first.
    pub last_exit: Option<Exit>,
    /// JSON of what it was asked to be.
    pub spec: String,
    /// JSON of everything else.
    pub record: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// Adds a VM, and so takes its name.
///
/// # Errors
/// [`StoreError::Taken`] where another VM has the name.
pub fn insert(tx: &Transaction<'_>, vm: &VmRow) -> Result<(), StoreError> {
    tx.prepare_cached(&format!(
        "INSERT INTO vms ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)"
    ))?
    .execute(params![
        vm.id.as_str(),
        vm.name,
        vm.phase.name(),
        vm.goal.name(),
        exit_text(vm.last_exit.as_ref()),
        vm.spec,
        vm.record,
        vm.created_at,
        vm.updated_at
    ])
    .map_err(taken(&vm.name))?;
    Ok(())
}

/// Writes all of a VM that is there; of one that is not there, nothing.
///
/// # Errors
/// [`StoreError::Taken`] where another VM has the new name.
pub fn update(tx: &Transaction<'_>, vm: &VmRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE vms SET name=?2, phase=?3, goal=?4, last_exit=?5, spec=?6, record=?7, updated_at=?8
         WHERE id=?1",
    )?
    .execute(params![
        vm.id.as_str(),
        vm.name,
        vm.phase.name(),
        vm.goal.name(),
        exit_text(vm.last_exit.as_ref()),
        vm.spec,
        vm.record,
        vm.updated_at
    ])
    .map_err(taken(&vm.name))?;
    Ok(())
}

/// Removes a VM; its name is free then.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction<'_>, id: &VmId) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM vms WHERE id=?")?
        .execute([id.as_str()])?;
    Ok(())
}

/// The VM of this id.
///
/// # Errors
/// SQLite's, or a row that cannot be read.
pub fn get(db: &Connection, id: &VmId) -> Result<Option<VmRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM vms WHERE id=?"))?;
    query
        .query_row([id.as_str()], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

/// All VMs, by name.
///
/// # Errors
/// SQLite's, or a row that cannot be read.
pub fn all(db: &Connection) -> Result<Vec<VmRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM vms ORDER BY name"))?;
    let rows = query.query_map([], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}

/// The VMs that a reference may mean: the one of this name or whole id alone,
/// else those whose id begins with it (4 digits or more), by name.
///
/// # Errors
/// SQLite's, or a row that cannot be read.
pub fn find(db: &Connection, reference: &str) -> Result<Vec<VmRow>, StoreError> {
    let mut query =
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM vms WHERE name=?1 OR id=?1"))?;
    if let Some(exact) = query
        .query_row([reference], |row| Ok(read(row)))
        .optional()?
    {
        return Ok(vec![exact?]);
    }
    let prefix = (4..64).contains(&reference.len())
        && reference
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !prefix {
        return Ok(Vec::new());
    }
    let mut query = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM vms WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY name"
    ))?;
    let rows = query.query_map([reference], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}

fn exit_text(exit: Option<&Exit>) -> Option<String> {
    exit.map(|exit| serde_json::to_string(exit).expect("an exit is plain JSON"))
}

fn read(row: &Row<'_>) -> Result<VmRow, StoreError> {
    let id: String = row.get("id")?;
    let bad = |what: String| StoreError::Row {
        table: "vms",
        key: id.clone(),
        what,
    };
    let phase: String = row.get("phase")?;
    let goal: String = row.get("goal")?;
    let exit: Option<String> = row.get("last_exit")?;
    Ok(VmRow {
        id: VmId::parse(&id).map_err(|error| bad(error.to_string()))?,
        name: row.get("name")?,
        phase: Phase::of_name(&phase).ok_or_else(|| bad(format!("phase {phase:?}")))?,
        goal: Goal::of_name(&goal).ok_or_else(|| bad(format!("goal {goal:?}")))?,
        last_exit: exit
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| bad(error.to_string()))?,
        spec: row.get("spec")?,
        record: row.get("record")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}
