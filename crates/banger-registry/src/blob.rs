//! One blob from the registry into the cache: tried again, resumed, bounded and verified.
//!
//! Bytes are hashed as they come. A connection that breaks or stalls leaves a part, and the next
//! try, of this pull or of a later one, asks only for the rest. What proves wrong is removed: too
//! long at once, another digest at the end, too short after the last try.

use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::time::timeout;

use crate::cache::{Cache, Claim, Hold, Part};
use crate::document::Descriptor;
use crate::error::{Fault, RegistryError, Tries};
use crate::session::Session;

/// Written and hashed off the runtime's threads in pieces of this size.
const BATCH: usize = 512 << 10;

/// Called with the bytes of an image that are here, and with all of them. Often, and from the
/// task of the pull: be quick.
pub type Progress<'p> = &'p (dyn Fn(u64, u64) + Send + Sync);

/// The progress of all blobs of one image.
pub(crate) struct Tally<'p> {
    total: AtomicU64,
    done: AtomicU64,
    show: Progress<'p>,
}

impl<'p> Tally<'p> {
    pub(crate) fn new(total: u64, show: Progress<'p>) -> Tally<'p> {
        show(0, total);
        Tally {
            total: AtomicU64::new(total),
            done: AtomicU64::new(0),
            show,
        }
    }

    /// There is more to do than was known.
    pub(crate) fn expect(&self, more: u64) {
        self.total.fetch_add(more, Ordering::Relaxed);
        self.tell(self.done.load(Ordering::Relaxed));
    }

    fn tell(&self, done: u64) {
        (self.show)(done, self.total.load(Ordering::Relaxed));
    }
}

/// One blob's share of a tally. It can go back: a part may be dropped.
pub(crate) struct Share<'t, 'p> {
    tally: &'t Tally<'p>,
    mine: u64,
}

impl<'t, 'p> Share<'t, 'p> {
    pub(crate) fn of(tally: &'t Tally<'p>) -> Share<'t, 'p> {
        Share { tally, mine: 0 }
    }

    pub(crate) fn set(&mut self, now: u64) {
        // Wrapping, as a smaller share is added as its negative.
        let change = now.wrapping_sub(self.mine);
        self.mine = now;
        let before = self.tally.done.fetch_add(change, Ordering::Relaxed);
        self.tally.tell(before.wrapping_add(change));
    }
}

/// Gets the blob into the cache, or finds it there, and keeps it from being pruned.
pub(crate) async fn fetch(
    session: &Session<'_>,
    cache: &Cache,
    blob: &Descriptor,
    tally: &Tally<'_>,
) -> Result<Hold, RegistryError> {
    let mut share = Share::of(tally);
    let mut part = match cache.claim(blob.digest).await? {
        Claim::Whole { size, hold } if size == blob.size => {
            share.set(size);
            return Ok(hold);
        }
        Claim::Whole { size, .. } => {
            let why = format!("it has {size} bytes, and the manifest says {}", blob.size);
            return Err(damaged(blob, why));
        }
        Claim::Part(part) => part.resume(blob.size).await?,
    };
    let mut tries = Tries::new(session.limits);
    loop {
        share.set(part.len());
        let (after, fault) = transfer(session, blob, part, &mut share).await?;
        part = after;
        let fault = match fault {
            Some(fault) => fault,
            None if part.digest() == blob.digest => return part.keep().await,
            None => {
                let error = damaged(blob, format!("it is {}", part.digest()));
                if part.inherited() == 0 {
                    part.discard()?;
                    return Err(error);
                }
                // What an earlier pull left may be to blame.
                part = part.restart().await?;
                Fault::passing(error)
            }
        };
        if let Err(error) = tries.pause(fault).await {
            if matches!(error, RegistryError::Damaged { .. }) {
                part.discard()?;
            }
            return Err(error);
        }
    }
}

fn named(blob: &Descriptor) -> String {
    format!("blob {}", blob.digest)
}

pub(crate) fn damaged(blob: &Descriptor, why: String) -> RegistryError {
    RegistryError::Damaged {
        what: named(blob),
        why,
    }
}

/// One try: the part with what came, which is all of the blob unless there is a fault. An error
/// is one of the disk, and leaves the part as it is.
async fn transfer(
    session: &Session<'_>,
    blob: &Descriptor,
    mut part: Part,
    share: &mut Share<'_, '_>,
) -> Result<(Part, Option<Fault>), RegistryError> {
    if part.len() == blob.size {
        return Ok((part, None));
    }
    let what = named(blob);
    let path = format!("blobs/{}", blob.digest);
    let mut response = match session.get(&path, "*/*", part.len(), &what).await {
        Ok(response) => response,
        Err(fault) => return Ok((part, Some(fault))),
    };
    match response.status() {
        // It ends before our part does, so it is not what the part was of.
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let why = format!("the registry has fewer than {} bytes", blob.size);
            let fault = Fault::passing(damaged(blob, why));
            return Ok((part.restart().await?, Some(fault)));
        }
        StatusCode::PARTIAL_CONTENT => {
            let begins = response.headers().get(CONTENT_RANGE);
            if begins.and_then(|value| first_byte(value.to_str().ok()?)) != Some(part.len()) {
                let why = "it answered with other bytes than were asked for".to_owned();
                let fault = Fault::passing(session.unavailable(&what, why, None));
                return Ok((part.restart().await?, Some(fault)));
            }
        }
        // It does not do ranges: all of it comes again.
        _ if part.len() > 0 => part = part.restart().await?,
        _ => {}
    }
    share.set(part.len());
    let too_long = || {
        Fault::from(damaged(
            blob,
            format!("it has more than {} bytes", blob.size),
        ))
    };
    if response
        .content_length()
        .is_some_and(|length| length > blob.size - part.len())
    {
        return Ok((part, Some(too_long())));
    }
    let mut batch = Vec::new();
    let mut held = 0;
    loop {
        let fault = match timeout(session.limits.stall, response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                held += bytes.len();
                let reached = part.len() + held as u64;
                if reached > blob.size {
                    return Ok((part, Some(too_long())));
                }
                batch.push(bytes);
                share.set(reached);
                if reached < blob.size {
                    if held >= BATCH {
                        part = part.append(std::mem::take(&mut batch)).await?;
                        held = 0;
                    }
                    continue;
                }
                None
            }
            Ok(Ok(None)) => {
                let reached = part.len() + held as u64;
                let why = format!("{reached} bytes came instead of {}", blob.size);
                Some(Fault::passing(damaged(blob, why)))
            }
            Ok(Err(cause)) => Some(session.lost(cause, &what)),
            Err(_) => Some(session.stalled(session.limits.stall, &what)),
        };
        return Ok((part.append(batch).await?, fault));
    }
}

/// Of `bytes 100-199/200`.
fn first_byte(range: &str) -> Option<u64> {
    let (first, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}
