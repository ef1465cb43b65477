//! Rows of images.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::error::{StoreError, taken};

pub(crate) const TABLE: &str = "
    CREATE TABLE images (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// An image as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// 64 hex digits.
    pub id: String,
    /// Unique.
    pub name: String,
    /// JSON of everything else.
    pub record: String,
}

/// Adds an image, and so takes its name.
///
/// # Errors
/// [`StoreError::Taken`] where another image has the name.
pub fn insert(tx: &Transaction<'_>, image: &ImageRow) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO images (id, name, record) VALUES (?,?,?)")?
        .execute(params![image.id, image.name, image.record])
        .map_err(taken(&image.name))?;
    Ok(())
}

/// Writes the record of an image that is there; `false` where it is not.
///
/// # Errors
/// SQLite's.
pub fn update(tx: &Transaction<'_>, id: &str, record: &str) -> Result<bool, StoreError> {
    let changed = tx
        .prepare_cached("UPDATE images SET record=? WHERE id=?")?
        .execute(params![record, id])?;
    Ok(changed > 0)
}

/// Forgets an image; `false` where there was none.
///
/// # Errors
/// SQLite's.
pub fn delete(tx: &Transaction<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM images WHERE id=?")?
        .execute([id])?
        > 0)
}

/// The image of this id.
///
/// # Errors
/// SQLite's.
pub fn get(db: &Connection, id: &str) -> Result<Option<ImageRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT id, name, record FROM images WHERE id=?")?;
    Ok(query.query_row([id], read).optional()?)
}

/// The image of this name.
///
/// # Errors
/// SQLite's.
pub fn by_name(db: &Connection, name: &str) -> Result<Option<ImageRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT id, name, record FROM images WHERE name=?")?;
    Ok(query.query_row([name], read).optional()?)
}

/// All, sorted by name.
///
/// # Errors
/// SQLite's.
pub fn list(db: &Connection) -> Result<Vec<ImageRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT id, name, record FROM images ORDER BY name")?;
    let rows = query.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    Ok(ImageRow {
        id: row.get("id")?,
        name: row.get("name")?,
        record: row.get("record")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_by_id_and_by_name_and_its_name_is_unique() {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(TABLE).unwrap();
        let tx = db.transaction().unwrap();
        let row = |id: &str, name: &str| ImageRow {
            id: id.into(),
            name: name.into(),
            record: "{}".into(),
        };
        insert(&tx, &row("2", "b")).unwrap();
        insert(&tx, &row("1", "c")).unwrap();
        assert!(matches!(insert(&tx, &row("3", "b")), Err(StoreError::Taken(name)) if name == "b"));
        assert_eq!(list(&tx).unwrap(), [row("2", "b"), row("1", "c")]);
        assert_eq!(by_name(&tx, "c").unwrap(), get(&tx, "1").unwrap());
        assert!(update(&tx, "1", "[]").unwrap());
        assert_eq!(get(&tx, "1").unwrap().unwrap().record, "[]");
        assert!(!update(&tx, "9", "[]").unwrap());
        assert!(delete(&tx, "2").unwrap() && by_name(&tx, "b").unwrap().is_none());
    }
}
