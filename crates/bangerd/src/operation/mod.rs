//! Long work: progress, outcome, history.
//!
//! A running operation lives in memory and its row follows at every stage, so
//! that progress outlives a reconnect of the client and a restart of the
//! daemon. A finished one is only its row, which goes lazily after an hour.

mod handle;
mod live;
mod time;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_api::error::Code;
use banger_api::operation::Operation;
use banger_model::OpId;
use banger_store::operations::{self, OpRow};
use banger_store::{Store, StoreError};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::failure::Failure;

pub(crate) use handle::{OpHandle, Outcome};
use live::Live;
pub(crate) use live::{Follow, Numbered, OpEvent};
pub(crate) use time::{now, now_seconds};

/// How long a finished operation stays readable.
const KEPT: Duration = Duration::from_secs(3600);
/// Longest that [`Operations::wait`] holds a caller.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// What an operation works on, as far as it is known when it begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject {
    /// Id and name of a VM.
    pub(crate) vm: Option<(String, String)>,
    /// Id (may be empty) and name of an image.
    pub(crate) image: Option<(String, String)>,
}

/// All operations. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Operations {
    store: Store,
    running: Arc<Mutex<HashMap<String, Arc<Live>>>>,
    noted: Arc<AtomicBool>,
    /// Rung for each that is enlisted.
    enlisted: Arc<Notify>,
}

impl Operations {
    /// The operations of a store.
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            running: Arc::default(),
            noted: Arc::default(),
            enlisted: Arc::default(),
        }
    }

    /// Begins an operation: its row is there when this returns.
    ///
    /// # Errors
    /// When the store or the process has no room.
    pub(crate) async fn begin(
        &self,
        kind: &str,
        subject: Subject,
        op: &OpId,
    ) -> Result<OpHandle, Failure> {
        let handle = self.prepare(kind, subject, op)?;
        let row = handle.row();
        self.store
            .write(move |tx| operations::put(tx, &row))
            .await
            .map_err(Failure::from)?;
        self.enlist(&handle);
        Ok(handle)
    }

    /// An operation whose row the caller writes in a transaction of its own,
    /// and which then is to be [enlisted](Self::enlist).
    pub(crate) fn prepare(
        &self,
        kind: &str,
        subject: Subject,
        op: &OpId,
    ) -> Result<OpHandle, Failure> {
        let (vm_id, vm_name) = subject.vm.unzip();
        let (image_id, image_name) = subject.image.unzip();
        let started_at = now();
        let operation = Operation {
            id: op.to_string(),
            kind: kind.to_owned(),
            vm_id,
            vm_name,
            image_id: image_id.filter(|id| !id.is_empty()),
            image_name,
            updated_at: started_at.clone(),
            started_at,
            ..Operation::default()
        };
        let live = Live::new(operation)
            .map_err(|error| Failure::internal("cannot begin an operation", &error))?;
        Ok(OpHandle::new(self.clone(), Arc::new(live)))
    }

    /// Makes a prepared operation visible, and forgets those of long ago.
    pub(crate) fn enlist(&self, handle: &OpHandle) {
        self.lock()
            .insert(handle.id().to_owned(), handle.live().clone());
        self.enlisted.notify_waiters();
        let ended_before = now_seconds() - i64::try_from(KEPT.as_secs()).expect("an hour");
        self.store
            .post(move |tx| operations::prune(tx, ended_before));
    }

    /// Goes on with an operation that an earlier daemon began.
    pub(crate) fn resume(&self, row: &OpRow) -> Result<OpHandle, Failure> {
        let live = Live::new(read(row)?)
            .map_err(|error| Failure::internal("cannot go on with an operation", &error))?;
        let handle = OpHandle::new(self.clone(), Arc::new(live));
        self.lock().insert(row.id.clone(), handle.live().clone());
        Ok(handle)
    }

    /// The operation of this id.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) async fn get(&self, id: &str) -> Result<Operation, Failure> {
        if let Some(live) = self.live(id) {
            return Ok(live.operation());
        }
        let key = id.to_owned();
        match self
            .store
            .read(move |db| operations::get(db, &key))
            .await
            .map_err(Failure::from)?
        {
            Some(row) => read(&row),
            None => Err(Failure::new(Code::NotFound, format!("no operation {id:?}"))),
        }
    }

    /// All, or those that run, newest first.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn list(&self, only_running: bool) -> Result<Vec<Operation>, Failure> {
        let rows = self
            .store
            .read(move |db| operations::list(db, only_running))
            .await
            .map_err(Failure::from)?;
        let oldest = now_seconds() - i64::try_from(KEPT.as_secs()).expect("an hour");
        rows.iter()
            .filter(|row| row.done_at.is_none_or(|at| at >= oldest))
            .map(|row| {
                self.live(&row.id)
                    .map_or_else(|| read(row), |live| Ok(live.operation()))
            })
            .collect()
    }

    /// Asks an operation to end; it ends `cancelled` when what it did is
    /// undone. A finished one, or one too far to turn back, stays as it is.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) async fn cancel(&self, id: &str) -> Result<Operation, Failure> {
        if let Some(live) = self.live(id) {
            live.cancel();
        }
        self.get(id).await
    }

    /// Past and coming events of an operation, from the one after `after` on.
    /// Whoever holds it counts as following the operation.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) async fn subscribe(&self, id: &str, after: Option<u64>) -> Result<Follow, Failure> {
        match self.live(id) {
            Some(live) => Ok(Follow::new(live, after)),
            None => Ok(Follow::new(
                Arc::new(Live::finished(self.get(id).await?)),
                after,
            )),
        }
    }

    /// The operation when it is done, or as it is after this long (10 min at
    /// most). Whoever waits counts as following it.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) async fn wait(&self, id: &str, limit: Duration) -> Result<Operation, Failure> {
        let deadline = Instant::now() + limit.min(LONGEST_WAIT);
        let live = loop {
            let enlisted = self.enlisted.notified();
            if let Some(live) = self.live(id) {
                break live;
            }
            let found = self.get(id).await?;
            // Its row is there a moment before it is enlisted.
            if found.done || timeout_at(deadline, enlisted).await.is_err() {
                return Ok(found);
            }
        };
        let follow = Follow::new(live, None);
        let _ = timeout_at(deadline, follow.done()).await;
        Ok(follow.operation())
    }

    /// Whether nobody has been given a note yet; from now on somebody has.
    pub(crate) fn first_note(&self) -> bool {
        !self.noted.swap(true, Ordering::Relaxed)
    }

    /// Whether any runs.
    pub(crate) fn any_running(&self) -> bool {
        !self.lock().is_empty()
    }

    fn live(&self, id: &str) -> Option<Arc<Live>> {
        self.lock().get(id).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Live>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation out of its row.
pub(crate) fn read(row: &OpRow) -> Result<Operation, Failure> {
    serde_json::from_str(&row.record).map_err(|error| {
        Failure::internal(
            format!("row of operation {} cannot be read", row.id),
            &error,
        )
    })
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Taken(name) => {
                Self::new(Code::AlreadyExists, format!("{name:?} already exists"))
            }
            error if error.is_full() => {
                Self::new(Code::NoSpace, "no space for the state database").caused_by(error)
            }
            error => Self::internal("cannot use the state database", error),
        }
    }
}
