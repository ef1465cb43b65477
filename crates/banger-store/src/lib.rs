//! What banger remembers: one SQLite file, one thread that writes it, one
//! that reads it.
//!
//! ```text
//! callers ──closures──► writer thread ──► state.db (WAL) ◄── reader thread ◄──closures── callers
//! ```
//!
//! A commit is durable against a crash of the daemon as soon as it is made. It
//! is durable against a crash of the host only when it was made by
//! [`Store::promise`], which waits for the disk: for ledger intents and the
//! few other things that must be known before the host changes.
//!
//! This room knows rows, not what they mean: columns named `record` hold JSON
//! of whoever wrote them.

#![forbid(unsafe_code)]

mod error;
pub mod images;
pub mod kernels;
pub mod ledger;
mod look;
mod migrations;
mod open;
pub mod operations;
mod room;
mod threads;
pub mod vms;

pub use error::{OpenError, StoreError};
pub use look::look;
pub use migrations::schema_version;
pub use rusqlite::{Connection, Transaction, params};
pub use threads::Store;
