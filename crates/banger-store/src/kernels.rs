//! Rows of kernels.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::error::StoreError;

pub(crate) const TABLE: &str = "
    CREATE TABLE kernels (
        name TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// A kernel as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRow {
    /// Unique.
    pub name: String,
    /// JSON of everything else.
    pub record: String,
}

/// Adds a kernel, and so takes its name.
///
/// # Errors
/// [`StoreError::Taken`] where another kernel has the name.
pub fn insert(tx: &Transaction<'_>, kernel: &KernelRow) -> Result<(), StoreError> {
    if get(tx, &kernel.name)?.is_some() {
        return Err(StoreError::Taken(kernel.name.clone()));
    }
    put(tx, kernel)
}

/// Adds a kernel or replaces the one of its name.
///
/// # Errors
/// SQLite's.
pub fn put(tx: &Transaction<'_>, kernel: &KernelRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO kernels (name, record) VALUES (?1,?2) ON CONFLICT (name) DO UPDATE SET record=?2",
    )?
    .execute(params![kernel.name, kernel.record])?;
    Ok(())
}

/// Forgets a kernel; `false` where there was none.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction<'_>, name: &str) -> Result<bool, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM kernels WHERE name=?")?
        .execute([name])?
        > 0)
}

/// The kernel of this name.
///
/// # Errors
/// SQLite's.
pub fn get(db: &Connection, name: &str) -> Result<Option<KernelRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT name, record FROM kernels WHERE name=?")?;
    Ok(query.query_row([name], read).optional()?)
}

/// All, sorted by name.
///
/// # Errors
/// SQLite's.
pub fn list(db: &Connection) -> Result<Vec<KernelRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT name, record FROM kernels ORDER BY name")?;
    let rows = query.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<KernelRow> {
    Ok(KernelRow {
        name: row.get("name")?,
        record: row.get("record")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_replaced_only_when_asked() {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(TABLE).unwrap();
        let tx = db.transaction().unwrap();
        let row = |record: &str| KernelRow {
            name: "6.1".into(),
            record: record.into(),
        };
        insert(&tx, &row("old")).unwrap();
        assert!(matches!(insert(&tx, &row("new")), Err(StoreError::Taken(name)) if name == "6.1"));
        assert_eq!(get(&tx, "6.1").unwrap(), Some(row("old")));
        put(&tx, &row("new")).unwrap();
        assert_eq!(list(&tx).unwrap(), [row("new")]);
        assert!(delete(&tx, "6.1").unwrap());
        assert!(!delete(&tx, "6.1").unwrap());
    }
}
