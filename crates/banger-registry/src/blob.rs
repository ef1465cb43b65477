//! One blob from the registry into the cache: tried again, resumed, bounded and verified.
//!
//! Bytes are hashed as they come. A connection that breaks or stalls leaves a part, and the next
//! try, of this pull or of a later one, asks only for the rest. What proves wrong is removed: too
//! long at once, another digest at the end, too short after the last try.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cache::{Cache, Claim, Hold, Part};
use crate::digest::Digest;
use crate::document::Descriptor;
use crate::download::Address;
use crate::error::{Fault, RegistryError, Remedy, Tries, lost, stalled, unavailable};
use crate::limits::Limits;
use crate::session::Session;

/// Written and hashed off the runtime's threads in pieces of this size.
const BATCH: usize = 512 << 10;

/// Called with each step of a pull. Often, and from the task of the pull: be quick.
pub type Progress<'p> = &'p (dyn Fn(Step) + Send + Sync);

/// Bytes that are here, of all there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Here. It can go back: a part may be dropped.
    pub done: u64,
    /// All of them.
    pub total: u64,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// All blobs together, each once.
    pub image: Count,
    /// The config or layer whose bytes moved, where one did.
    pub blob: Option<(Digest, Count)>,
}

/// The progress of all blobs of one image.
pub(crate) struct Tally<'p> {
    total: AtomicU64,
    done: AtomicU64,
    show: Progress<'p>,
}

impl<'p> Tally<'p> {
    pub(crate) fn new(total: u64, show: Progress<'p>) -> Tally<'p> {
        let tally = Tally {
            total: AtomicU64::new(total),
            done: AtomicU64::new(0),
            show,
        };
        tally.tell(0, None);
        tally
    }

    /// There is more to do than was known.
    pub(crate) fn expect(&self, more: u64) {
        self.total.fetch_add(more, Ordering::Relaxed);
        self.tell(self.done.load(Ordering::Relaxed), None);
    }

    fn tell(&self, done: u64, blob: Option<(Digest, Count)>) {
        let total = self.total.load(Ordering::Relaxed);
        (self.show)(Step {
            image: Count { done, total },
            blob,
        });
    }
}

/// One blob's share of a tally.
pub(crate) struct Share<'t, 'p> {
    tally: &'t Tally<'p>,
    /// Which blob, and its bytes.
    blob: Option<(Digest, u64)>,
    mine: u64,
}

impl<'t, 'p> Share<'t, 'p> {
    /// The share of a blob of `size` bytes.
    pub(crate) fn of(tally: &'t Tally<'p>, digest: Digest, size: u64) -> Share<'t, 'p> {
        Share {
            tally,
            blob: Some((digest, size)),
            mine: 0,
        }
    }

    /// The share of what is no blob.
    pub(crate) fn unnamed(tally: &'t Tally<'p>) -> Share<'t, 'p> {
        Share {
            tally,
            blob: None,
            mine: 0,
        }
    }

    pub(crate) fn set(&mut self, now: u64) {
        // Wrapping, as a smaller share is added as its negative.
        let change = now.wrapping_sub(self.mine);
        self.mine = now;
        let before = self.tally.done.fetch_add(change, Ordering::Relaxed);
        let count = |(digest, total)| (digest, Count { done: now, total });
        self.tally
            .tell(before.wrapping_add(change), self.blob.map(count));
    }
}

/// Called with the bytes that are here, which may go back, and with all of them if somebody
/// said how many those are.
pub(crate) type Moved<'m> = &'m mut (dyn FnMut(u64, Option<u64>) + Send);

/// Bytes to fetch, by what they are.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// For messages.
    pub(crate) what: String,
    pub(crate) digest: Digest,
    pub(crate) length: Length,
}

/// How many bytes there are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    Exactly(u64),
    /// Nobody said, but never more.
    AtMost(u64),
}

impl Length {
    fn most(self) -> u64 {
        match self {
            Length::Exactly(size) | Length::AtMost(size) => size,
        }
    }
}

/// Where they come from.
pub(crate) enum Origin<'o> {
    /// Below this path of a repository.
    Repository(&'o Session<'o>, String),
    /// Anywhere.
    Address(&'o Address<'o>),
}

impl Origin<'_> {
    /// A success or 416; everything else is a fault.
    async fn get(&self, from: u64, what: &str) -> Result<Response, Fault> {
        match self {
            Origin::Repository(session, path) => {
                let got = session.get(path, "*/*", from, what).await;
                got.map_err(Fault::of_a_part)
            }
            Origin::Address(address) => address.get(from).await,
        }
    }

    fn limits(&self) -> &Limits {
        match self {
            Origin::Repository(session, _) => session.limits,
            Origin::Address(address) => address.limits,
        }
    }

    fn host(&self) -> &str {
        match self {
            Origin::Repository(session, _) => session.reference.registry(),
            Origin::Address(address) => address.host(),
        }
    }
}

/// Gets the blob into the cache, or finds it there, and keeps it from being pruned.
pub(crate) async fn fetch(
    session: &Session<'_>,
    cache: &Cache,
    blob: &Descriptor,
    tally: &Tally<'_>,
) -> Result<Hold, RegistryError> {
    let mut share = Share::of(tally, blob.digest, blob.size);
    let wanted = Wanted {
        what: named(blob),
        digest: blob.digest,
        length: Length::Exactly(blob.size),
    };
    let origin = Origin::Repository(session, format!("blobs/{}", blob.digest));
    obtain(&origin, cache, &wanted, &mut |now, _| share.set(now)).await
}

/// Gets bytes into the cache, or finds them there, and keeps them from being pruned.
pub(crate) async fn obtain(
    origin: &Origin<'_>,
    cache: &Cache,
    wanted: &Wanted,
    moved: Moved<'_>,
) -> Result<Hold, RegistryError> {
    let said = match wanted.length {
        Length::Exactly(said) => Some(said),
        Length::AtMost(_) => None,
    };
    let mut part = match cache.claim(wanted.digest, said).await? {
        Claim::Whole { size, .. } if said.is_some_and(|said| said != size) => {
            let why = format!("it has {size} bytes, and the manifest says otherwise");
            return Err(spoilt(wanted, why));
        }
        Claim::Whole { size, hold } => {
            moved(size, Some(size));
            return Ok(hold);
        }
        Claim::Part(part) => part.resume(wanted.length.most()).await?,
    };
    // Cut between its last byte and its name.
    if part.len() > 0 && part.digest() == wanted.digest {
        moved(part.len(), Some(part.len()));
        return part.keep().await;
    }
    let mut tries = Tries::new(origin.limits());
    loop {
        moved(part.len(), None);
        let (after, fault) = transfer(origin, wanted, part, moved).await?;
        part = after;
        let fault = match fault {
            Some(fault) => fault,
            None if part.digest() == wanted.digest => return part.keep().await,
            None => {
                let error = spoilt(wanted, format!("it is {}", part.digest()));
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

fn spoilt(wanted: &Wanted, why: String) -> RegistryError {
    RegistryError::Damaged {
        what: wanted.what.clone(),
        why,
    }
}

/// One try: the part with what came, which is all there is unless there is a fault. An error
/// is one of the disk, and leaves the part as it is.
async fn transfer(
    origin: &Origin<'_>,
    wanted: &Wanted,
    mut part: Part,
    moved: Moved<'_>,
) -> Result<(Part, Option<Fault>), RegistryError> {
    let most = wanted.length.most();
    let exactly = matches!(wanted.length, Length::Exactly(_));
    if exactly && part.len() == most {
        return Ok((part, None));
    }
    let (what, stall) = (&wanted.what, origin.limits().stall);
    let mut response = match origin.get(part.len(), what).await {
        Ok(response) => response,
        Err(fault) => return Ok((part, Some(fault))),
    };
    match response.status() {
        // It ends before our part does, so it is not what the part was of.
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let why = match exactly {
                true => format!("the registry has fewer than {most} bytes"),
                false => format!("the server has no more than {} bytes", part.len()),
            };
            let fault = Fault::passing(spoilt(wanted, why));
            return Ok((part.restart().await?, Some(fault)));
        }
        StatusCode::PARTIAL_CONTENT => {
            let begins = response.headers().get(CONTENT_RANGE);
            if begins.and_then(|value| first_byte(value.to_str().ok()?)) != Some(part.len()) {
                let why = "it answered with other bytes than were asked for".to_owned();
                let remedy = Remedy::Operator;
                let fault = Fault::passing(unavailable(origin.host(), what, why, remedy, None));
                return Ok((part.restart().await?, Some(fault)));
            }
        }
        // It does not do ranges: all of it comes again.
        _ if part.len() > 0 => part = part.restart().await?,
        _ => {}
    }
    let declared = response.content_length();
    let total = declared.and_then(|length| length.checked_add(part.len()));
    moved(part.len(), total);
    let too_long = || Fault::from(spoilt(wanted, format!("it has more than {most} bytes")));
    if declared.is_some_and(|length| length > most - part.len()) {
        return Ok((part, Some(too_long())));
    }
    let mut reached = part.len();
    let mut behind = Behind::Rests(part);
    let mut batch = Vec::new();
    let mut held = 0;
    loop {
        let fault = match timeout(stall, response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                held += bytes.len();
                reached += bytes.len() as u64;
                if reached > most {
                    return Ok((behind.part().await?, Some(too_long())));
                }
                batch.push(bytes);
                moved(reached, total);
                if !exactly || reached < most {
                    if held >= BATCH {
                        behind = behind.write(std::mem::take(&mut batch)).await?;
                        held = 0;
                    }
                    continue;
                }
                None
            }
            Ok(Ok(None)) if exactly => {
                let why = format!("{reached} bytes came instead of {most}");
                Some(Fault::passing(spoilt(wanted, why)))
            }
            Ok(Ok(None)) => None,
            Ok(Err(cause)) => Some(lost(origin.host(), what, cause)),
            Err(_) => Some(stalled(origin.host(), what, stall)),
        };
        let part = behind.part().await?;
        return Ok((part.append(batch).await?, fault));
    }
}

/// A part that is written while more of it comes: one batch at a time.
enum Behind {
    Rests(Part),
    Writes(JoinSet<Result<Part, RegistryError>>),
}

impl Behind {
    /// The part, with all that was given to it.
    async fn part(self) -> Result<Part, RegistryError> {
        match self {
            Behind::Rests(part) => Ok(part),
            Behind::Writes(mut writing) => match writing.join_next().await {
                Some(Ok(part)) => part,
                // The runtime ends, and the pull with it.
                Some(Err(_)) | None => Err(RegistryError::Cancelled),
            },
        }
    }

    /// Goes on with another batch as soon as the one before is written.
    async fn write(self, batch: Vec<Bytes>) -> Result<Behind, RegistryError> {
        let part = self.part().await?;
        let mut writing = JoinSet::new();
        writing.spawn(part.append(batch));
        Ok(Behind::Writes(writing))
    }
}

/// Of `bytes 100-199/200`.
fn first_byte(range: &str) -> Option<u64> {
    let (first, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}
