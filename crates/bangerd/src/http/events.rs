//! `/events`: news of VMs.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use banger_api::endpoint::{EVENTS, Method};
use futures_util::stream;
use http::Request;

use super::query::bad;
use super::routes::{Call, Routes};
use super::sse::{self, Event};
use crate::daemon::App;
use crate::failure::Failure;
use crate::vm;

/// VMs that one client may ask about by name.
const MOST: usize = 64;

pub(super) fn add(routes: Routes) -> Routes {
    routes.raw(Method::Get, EVENTS, &["vm", "since"], events)
}

async fn events(app: Arc<App>, call: Call<Request<Body>>) -> Result<Response, Failure> {
    let since = call.query.get("since").map(whole_seconds).transpose()?;
    // Listen first: what happens while the names are looked up is not missed.
    let feed = app.vms.events(since.as_deref());
    let mut wanted = Vec::new();
    for reference in call.query.all("vm").take(MOST) {
        wanted.push(app.vms.show(reference).await?.id);
    }
    let events = stream::unfold((feed, wanted), async |(mut feed, wanted)| {
        loop {
            let event = feed.next().await;
            if wanted.is_empty() || wanted.iter().any(|id| id == event.vm_id()) {
                return Some((shown(&event), (feed, wanted)));
            }
        }
    });
    Ok(sse::reply(app.closing.clone(), events))
}

fn shown(event: &vm::Event) -> Event {
    match event {
        vm::Event::Vm(event) => Event::new(None, "vm", event),
        vm::Event::Health(event) => Event::new(None, "health", event),
        vm::Event::DiskFull(event) => Event::new(None, "disk_full", event),
    }
}

/// The form in which events carry their times, so that texts compare.
fn whole_seconds(since: &str) -> Result<String, Failure> {
    let time: jiff::Timestamp = since
        .parse()
        .map_err(|_| bad("since", since, "a time like 2026-04-28T20:45:50Z"))?;
    let whole = jiff::Timestamp::from_second(time.as_second())
        .map_err(|_| bad("since", since, "a time of this era"))?;
    Ok(whole.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_in_any_zone_and_cut_to_seconds() {
        assert_eq!(
            whole_seconds("2026-04-28T22:45:50.7+02:00").unwrap(),
            "2026-04-28T20:45:50Z"
        );
        assert!(whole_seconds("yesterday").is_err());
    }
}
