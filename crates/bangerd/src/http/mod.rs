//! The API's edge: one file per resource. It translates requests into calls
//! of use cases and their failures into replies; it decides nothing.

pub(crate) mod connection;
mod events;
mod exec;
mod images;
mod kernels;
mod logs;
mod operations;
mod query;
mod reply;
mod routes;
pub(crate) mod socket;
mod sse;
mod system;
mod vms;

#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod watch;

use std::sync::Arc;

use axum::Router;

use self::routes::Served;
use crate::daemon::App;

/// The contract as a document, the one that is checked in.
const DOCUMENT: &str = include_str!("../../../../docs/openapi.json");

/// Everything the daemon serves, and the list of it.
pub(crate) fn router(app: Arc<App>) -> (Router, Vec<Served>) {
    let routes = routes::Routes::new(app).outside("/openapi.json", DOCUMENT);
    let routes = system::add(routes);
    let routes = images::add(routes);
    let routes = kernels::add(routes);
    let routes = operations::add(routes);
    let routes = vms::add(routes);
    let routes = exec::add(routes);
    let routes = logs::add(routes);
    events::add(routes).finish()
}
