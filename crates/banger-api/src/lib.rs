//! The contract between the daemon and its clients: types, error codes and
//! the table of endpoints. Server and client are written against the same
//! table, so neither can drift from the other.

#![forbid(unsafe_code)]

pub mod catalog;
pub mod disk;
pub mod endpoint;
pub mod error;
pub mod image;
pub mod kernel;
pub mod operation;
pub mod system;
pub mod vm;

use serde::{Deserialize, Serialize};

/// An answer without content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Empty {}

/// Header that carries the op id of a request in every reply.
pub const OP_HEADER: &str = "banger-op";
/// Upgrade token of streams of frames.
pub const UPGRADE: &str = "banger-stream";
/// Largest request body, bytes.
pub const MAX_BODY: usize = 8 << 20;
