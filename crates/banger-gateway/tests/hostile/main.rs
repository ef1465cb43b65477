//! The real program against guests that mean harm: frames straight into its
//! line, on a host of the test's own, with another host outside. Whatever was
//! thrown at it, it lives, has not panicked, has kept to its memory, and works
//! for the next connection.

#![allow(clippy::unwrap_used, reason = "tests")]

mod flows;
mod frames;
#[path = "../room/mod.rs"]
mod room;
mod scene;
mod tables;
mod tricks;

/// The other host, started by the tests.
#[test]
#[ignore = "only for a process of its own"]
fn outside() {
    room::outside::serve();
}
