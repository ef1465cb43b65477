//! The schema, as a list of steps that only ever grows. A step that was
//! released is never edited: a later one changes what it made.

use rusqlite::Connection;

/// Each entry is one step; `user_version` counts those done. A table comes
/// with the step of its feature: append here, keep the SQL beside its code.
const STEPS: &[&str] = &[
    crate::vms::TABLE,
    crate::ledger::TABLE,
    crate::operations::TABLE,
    crate::images::TABLE,
    crate::kernels::TABLE,
];

/// Marks the file as banger's, "bngr".
pub(crate) const APPLICATION_ID: i64 = 0x626e_6772;

/// The schema this build knows.
#[must_use]
pub fn schema_version() -> i64 {
    i64::try_from(STEPS.len()).expect("a short list")
}

/// Does the steps that are missing, each in its own transaction. Fails with
/// the version of the step that failed.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), (i64, rusqlite::Error)> {
    let done: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|cause| (0, cause))?;
    for (version, sql) in (1i64..).zip(STEPS).filter(|(version, _)| *version > done) {
        let step = |connection: &mut Connection| {
            let tx = connection.transaction()?;
            tx.execute_batch(sql)?;
            tx.pragma_update(None, "user_version", version)?;
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.commit()
        };
        step(connection).map_err(|cause| (version, cause))?;
    }
    Ok(())
}
