//! Why the store could not be opened, or a job could not be done.

use std::path::PathBuf;

/// The store cannot be used. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened, or its directory not be written.
    #[error("cannot open {path}")]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rusqlite::Error,
    },
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// It is not what a banger wrote.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A later banger wrote it.
    #[error("{path} has schema {found}, this build knows up to {known}")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest known one.
        known: i64,
    },
    /// A migration failed; nothing of it was kept.
    #[error("cannot migrate {path} to schema {version}")]
    Migrate {
        /// The database.
        path: PathBuf,
        /// The step that failed.
        version: i64,
        /// Why.
        #[source]
        cause: rusqlite::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread for {path}")]
    Thread {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// A job on the store failed; a transaction of it was rolled back.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is another row's.
    #[error("name {0:?} is taken")]
    Taken(String),
    /// A row holds what this build cannot read.
    #[error("row {key} of {table} cannot be read: {what}")]
    Row {
        /// The table.
        table: &'static str,
        /// Key of the row.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// SQLite's refusal.
    #[error("cannot use the state database")]
    Sqlite(#[from] rusqlite::Error),
    /// The threads have ended.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite(error)
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }
}

/// A broken `UNIQUE` of `name` in words of the caller.
pub(crate) fn taken(name: &str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |error| match error.sqlite_error() {
        Some(cause) if cause.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE => {
            StoreError::Taken(name.to_owned())
        }
        _ => StoreError::Sqlite(error),
    }
}
