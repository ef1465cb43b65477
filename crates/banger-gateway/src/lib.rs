//! The way out of one VM: Ethernet frames of the guest in, ordinary host
//! sockets out, and one policy that says what may leave.
//!
//! ```text
//! engine ─frames─► line ─► ethernet ─► ipv4 ─┬─► tcp ──┐
//!        ◄───────                            ├─► udp ──┤─► host sockets
//!              (reassembly of fragments)     ├─► ping ─┘
//!                                            └─► dns ───► resolvers
//! policy: asked before a flow's socket is made, and again while it is used
//! daemon ─control─► engine's pidfd, resolvers ─► counters, the line
//! ```
//!
//! One thread and one epoll, in [`gateway`]; no timer runs while there is
//! nothing to time. Whatever the guest sends is hostile: every length is
//! checked, every table and queue has a size, and what TCP keeps for flows is
//! taken from one budget.

#![forbid(unsafe_code)]

mod budget;
mod checksum;
pub mod control;
pub mod counters;
mod dns;
mod ethernet;
pub mod gateway;
mod host;
mod icmp;
mod ipv4;
mod line;
mod ping;
pub mod policy;
mod poller;
pub mod reassembly;
pub mod refusals;
mod relay;
pub mod sandbox;
mod slab;
mod tcp;
mod timers;
mod udp;
