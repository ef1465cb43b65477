//! The contracts of the daemon with the agent in its guest and with that guest's
//! gateway, and the frames that carry standard streams. Types and codecs only:
//! no I/O, no clock.
//!
//! One ordered byte stream joins daemon and agent. A connection on it begins
//! with a [`hello`] that throws away whatever an earlier connection left in
//! the line; after it both sides speak HTTP/2 with prior knowledge, the daemon
//! as client. The routes and bodies are in [`agent`]; bodies of exec are
//! [`frames`] in both directions. What the gateway is told is in [`gateway`].

#![forbid(unsafe_code)]

pub mod agent;
pub mod frames;
pub mod gateway;
pub mod hello;
