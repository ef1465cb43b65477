//! The two threads that own the connections, and the queues that feed them.
//!
//! Refuses: any SQL of its own.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot};

use crate::error::{OpenError, StoreError};
use crate::{open, room};

/// Jobs that may wait: many more than there are VMs with something to write.
const QUEUE: usize = 1024;

type WriteJob = Box<dyn FnOnce(&mut Connection) + Send>;
type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

/// A handle to the store. Clones are the same store; the threads end with the
/// last one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writes: mpsc::Sender<WriteJob>,
    reads: mpsc::Sender<ReadJob>,
}

/// What a commit waits for.
#[derive(Clone, Copy)]
enum Sync {
    /// Nothing: the log of the database orders it.
    Ordered,
    /// The disk.
    Durable,
}

impl Store {
    /// Opens or makes the database, brings its schema up to date and starts
    /// the threads. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`OpenError`]; a damaged or newer file is left unchanged.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut writer = open::writer(path)?;
        // Before anybody reads: what it writes is gone again then.
        room::take(&mut writer, path);
        let reader = open::reader(path)?;
        let thread = |cause| OpenError::Thread {
            path: path.to_owned(),
            cause,
        };
        let (writes, mut jobs) = mpsc::channel::<WriteJob>(QUEUE);
        std::thread::Builder::new()
            .name("store-write".into())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut writer);
                }
            })
            .map_err(thread)?;
        let (reads, mut jobs) = mpsc::channel::<ReadJob>(QUEUE);
        std::thread::Builder::new()
            .name("store-read".into())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&reader);
                }
            })
            .map_err(thread)?;
        Ok(Self {
            inner: Arc::new(Inner { writes, reads }),
        })
    }

    /// Runs a job in one transaction and commits it; a job that fails is
    /// rolled back. It runs to its end even when the caller goes away.
    ///
    /// # Errors
    /// The job's, or that of the commit.
    pub async fn write<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.submit(Sync::Ordered, job).await
    }

    /// As [`Store::write`], and returns only when the commit is on the disk.
    ///
    /// # Errors
    /// The job's, or that of the commit.
    pub async fn promise<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.submit(Sync::Durable, job).await
    }

    /// Moves the log into the database file, so that one file holds all: for
    /// an orderly end. What fails is done by the next open.
    pub async fn checkpoint(&self) {
        let (reply, answer) = oneshot::channel();
        let job: WriteJob = Box::new(move |connection| {
            let moved = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            if let Err(error) = moved {
                tracing::warn!(%error, "the log of the database stays beside it");
            }
            let _ = reply.send(());
        });
        if self.inner.writes.send(job).await.is_ok() {
            let _ = answer.await;
        }
    }

    async fn submit<T, F>(&self, sync: Sync, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: WriteJob = Box::new(move |connection| {
            // The caller may be gone; the work is done all the same.
            let _ = reply.send(transact(connection, sync, job));
        });
        self.inner
            .writes
            .send(job)
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs a job in a transaction, in its turn, without waiting for it: for
    /// what may be lost, like progress. It is dropped when the queue is full.
    pub fn post<F>(&self, job: F)
    where
        F: FnOnce(&Transaction<'_>) -> Result<(), StoreError> + Send + 'static,
    {
        let job: WriteJob = Box::new(move |connection| {
            if let Err(error) = transact(connection, Sync::Ordered, job) {
                tracing::warn!(%error, "a note could not be stored");
            }
        });
        if self.inner.writes.try_send(job).is_err() {
            tracing::warn!("a note was dropped: the store is busy or closed");
        }
    }

    /// Runs a job that only reads. It sees every commit made before.
    ///
    /// # Errors
    /// The job's.
    pub async fn read<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: ReadJob = Box::new(move |connection| {
            let _ = reply.send(job(connection));
        });
        self.inner
            .reads
            .send(job)
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn transact<T>(
    connection: &mut Connection,
    sync: Sync,
    job: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match sync {
        Sync::Ordered => commit(connection, job),
        Sync::Durable => {
            // Cannot be changed inside a transaction.
            connection.pragma_update(None, "synchronous", "FULL")?;
            let result = commit(connection, job);
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            result
        }
    }
}

fn commit<T>(
    connection: &mut Connection,
    job: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let value = job(&tx)?;
    tx.commit()?;
    Ok(value)
}
