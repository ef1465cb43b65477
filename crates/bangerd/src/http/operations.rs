//! `/operations`: long work, and its events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use banger_api::Empty;
use banger_api::endpoint::{
    Method, OPERATION_EVENTS, OperationCancel, OperationList, OperationShow,
};
use banger_api::operation::{Operation, OperationListResult, OperationResult};
use futures_util::stream;
use http::Request;

use super::query::{Query, bad};
use super::routes::{Call, Routes};
use super::sse::{self, Event};
use crate::daemon::App;
use crate::failure::Failure;
use crate::operation::{Numbered, OpEvent, Operations};

/// The parameter of whoever waits for the end.
pub(super) const WAIT: &str = "wait";
/// The parameter of whoever shows events to a person as they come.
const WATCHED: &str = "watched";
/// Longest that a reply is held.
const LONGEST: Duration = Duration::from_secs(600);

pub(super) fn add(routes: Routes) -> Routes {
    routes
        .on::<OperationList, _, _>(&["running"], list)
        .on::<OperationShow, _, _>(&[WAIT], show)
        .on::<OperationCancel, _, _>(&[WAIT], cancel)
        .raw(Method::Get, OPERATION_EVENTS, &[WATCHED], events)
}

/// The reply to a request that began an operation: at once, or when it is
/// done where the client waits. The client's leaving changes nothing for it.
pub(super) async fn accepted(
    app: &App,
    query: &Query,
    operation: Operation,
) -> Result<OperationResult, Failure> {
    let Some(limit) = wait_of(query)? else {
        return Ok(OperationResult { operation });
    };
    let done = tokio::select! {
        done = app.operations.wait(&operation.id, limit) => done?,
        () = app.closing.cancelled() => app.operations.get(&operation.id).await?,
    };
    Ok(OperationResult { operation: done })
}

/// How long the client waits for the end, if it does.
pub(super) fn wait_of(query: &Query) -> Result<Option<Duration>, Failure> {
    let Some(text) = query.get(WAIT) else {
        return Ok(None);
    };
    match humantime::parse_duration(text) {
        Ok(limit) if limit <= LONGEST => Ok(Some(limit)),
        _ => Err(bad(WAIT, text, "a duration like 30s, at most 10m")),
    }
}

async fn list(app: Arc<App>, call: Call<Empty>) -> Result<OperationListResult, Failure> {
    let only_running = call.query.flag("running")?;
    Ok(OperationListResult {
        operations: app.operations.list(only_running).await?,
    })
}

async fn show(app: Arc<App>, call: Call<Empty>) -> Result<OperationResult, Failure> {
    let operation = app.operations.get(call.reference()).await?;
    accepted(&app, &call.query, operation).await
}

async fn cancel(app: Arc<App>, call: Call<Empty>) -> Result<OperationResult, Failure> {
    let operation = app.operations.cancel(call.reference()).await?;
    accepted(&app, &call.query, operation).await
}

async fn events(app: Arc<App>, call: Call<Request<Body>>) -> Result<Response, Failure> {
    let after = sse::last_event_id(&call.body)?;
    let watched = call.query.flag(WATCHED)?;
    let follow = app.operations.subscribe(call.reference(), after).await?;
    let notes = watched.then(|| app.operations.clone());
    let events = stream::unfold((follow, notes), async |(mut follow, notes)| {
        loop {
            let next = follow.next().await?;
            let note = matches!(next.event, OpEvent::Note(_));
            if !note || notes.as_ref().is_some_and(Operations::first_note) {
                return Some((event(next), (follow, notes)));
            }
        }
    });
    Ok(sse::reply(app.closing.clone(), events))
}

fn event(numbered: Numbered) -> Event {
    let id = Some(numbered.id);
    match numbered.event {
        OpEvent::Stage(stage) => Event::new(id, "stage", &stage),
        OpEvent::Progress(progress) => Event::new(id, "progress", &progress),
        OpEvent::Part(part) => Event::new(id, "part", &part),
        OpEvent::Log(log) | OpEvent::Note(log) => Event::new(id, "log", &log),
        OpEvent::Done(operation) => Event::new(
            id,
            "done",
            &OperationResult {
                operation: *operation,
            },
        ),
    }
}
