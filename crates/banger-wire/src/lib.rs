//! The contract between the daemon and the agent in its guest, and the frames
//! that carry standard streams. Types and codecs only: no I/O, no clock.
//!
//! One ordered byte stream joins daemon and agent. A connection on it begins
//! with a [`hello`] that throws away whatever an earlier connection left in
//! the line; after it both sides speak HTTP/2 with prior knowledge, the daemon
//! as client. The routes and bodies are in [`agent`]; bodies of exec are
//! [`frames`] in both directions.

#![forbid(unsafe_code)]

pub mod agent;
pub mod frames;
pub mod hello;
