//! Follows an operation to its end: shows its progress, cancels it when asked,
//! and outlives a restart of the daemon.

use banger_api::endpoint::{OPERATION_EVENTS, OperationCancel, OperationShow};
use banger_api::operation::{LogEvent, Operation, OperationResult, PartEvent, StageEvent};

use crate::client::events::Event;
use crate::client::start::Place;
use crate::client::{At, Client};
use crate::failure::Failure;
use crate::interrupt::Cancel;
use crate::show::progress::Progress;

/// How often a stream that broke is opened again.
const TRIES: u32 = 3;

/// Follows an operation that may fail; the failure is the operation's own.
pub(crate) async fn success(
    place: &Place,
    client: &Client,
    id: &str,
    progress: &mut Progress,
    cancel: Cancel,
) -> Result<Operation, Failure> {
    let operation = to_the_end(place, client, id, progress, cancel).await;
    progress.finish();
    let operation = operation?;
    if operation.success {
        Ok(operation)
    } else {
        Err(Failure::of_operation(&operation))
    }
}

/// Follows an operation until it is done, whatever came of it.
pub(crate) async fn to_the_end(
    place: &Place,
    client: &Client,
    id: &str,
    progress: &mut Progress,
    mut cancel: Cancel,
) -> Result<Operation, Failure> {
    let follow = events(place, client, id, progress);
    tokio::pin!(follow);
    tokio::select! {
        done = &mut follow => return done,
        () = cancel.asked() => {}
    }
    // A finished one stays; either way its end is what is waited for.
    client
        .call::<OperationCancel>(&[id], &banger_api::Empty {})
        .await?;
    follow.await
}

async fn events(
    place: &Place,
    client: &Client,
    id: &str,
    progress: &mut Progress,
) -> Result<Operation, Failure> {
    let mut last: Option<String> = None;
    let mut other: Option<Client> = None;
    let mut tries = 0;
    loop {
        let client = other.as_ref().unwrap_or(client);
        let broken = match one_stream(client, id, progress, &mut last).await {
            Ok(Some(operation)) => return Ok(operation),
            Ok(None) => None,
            Err(failure) => Some(failure),
        };
        // The daemon went away, or said all it had: the record knows.
        tries += 1;
        match client.get::<OperationShow>(At::path(&[id])).await {
            Ok(OperationResult { operation }) if operation.done => return Ok(operation),
            Ok(_) if tries <= TRIES => {}
            Err(_) if tries <= TRIES => other = Some(place.reach().await?),
            Ok(_) => return Err(broken.unwrap_or_else(|| not_followed(id))),
            Err(failure) => return Err(failure),
        }
    }
}

fn not_followed(id: &str) -> Failure {
    Failure::new(
        banger_api::error::Code::Internal,
        format!("bangerd does not say how {id} goes on"),
    )
    .hint(format!("banger operation show {id}"))
}

/// One stream of events; the operation when it ended with `done`.
async fn one_stream(
    client: &Client,
    id: &str,
    progress: &mut Progress,
    last: &mut Option<String>,
) -> Result<Option<Operation>, Failure> {
    // What is only for people is not sent to others.
    let watched: &[_] = if progress.shown() {
        &[("watched", "true")]
    } else {
        &[]
    };
    let at = At {
        path: &[id],
        query: watched,
    };
    let mut events = client.events(at, OPERATION_EVENTS, last.as_deref()).await?;
    loop {
        let event = events.next().await;
        *last = events.last_id().map(str::to_owned).or(last.take());
        match event? {
            None => return Ok(None),
            Some(event) => {
                if let Some(operation) = heed(&event, progress) {
                    return Ok(Some(operation));
                }
            }
        }
    }
}

/// Shows one event; the operation when it says that this is the end.
fn heed(event: &Event, progress: &mut Progress) -> Option<Operation> {
    match event.name.as_str() {
        "stage" => {
            if let Some(StageEvent { stage, detail }) = event.read() {
                progress.stage(&stage, &detail);
            }
        }
        "progress" => {
            if let Some(bytes) = event.read() {
                progress.bytes(bytes);
            }
        }
        "part" => {
            if let Some(part) = event.read::<PartEvent>() {
                progress.part(&part);
            }
        }
        "log" => {
            if let Some(LogEvent { line }) = event.read() {
                progress.log(&line);
            }
        }
        "done" => {
            // Some servers send the operation bare, some as the reply has it.
            return event
                .read::<OperationResult>()
                .map(|result| result.operation)
                .or_else(|| event.read::<Operation>());
        }
        _ => {}
    }
    None
}
