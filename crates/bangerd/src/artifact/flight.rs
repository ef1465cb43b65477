//! Work that several want at once and that is done once: two obtains of one
//! thing share one download.
//!
//! A waiter may leave; the work is cancelled when all have left. It runs in a
//! task of its own, so nobody's leaving can cut it between two steps.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use banger_api::error::Code;
use banger_images::{Cancel, Report};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;

use super::cancelled::cancelled;
use crate::failure::Failure;
use crate::ports::Progress;
use crate::seam;

/// News a slow waiter may be behind; then it misses some.
const NEWS: usize = 512;
/// Bytes are told no more often than this.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// All work of one kind that is under way.
pub(crate) struct Flights<T> {
    flying: Arc<Mutex<HashMap<String, Arc<Flight<T>>>>>,
    tasks: TaskTracker,
}

struct Flight<T> {
    /// Held only together with the map's lock.
    waiters: Mutex<usize>,
    teller: Arc<Teller>,
    outcome: watch::Sender<Option<Result<T, Failure>>>,
    cancel: Cancel,
}

impl<T> Flight<T> {
    fn tell_stage(&self, progress: &dyn Progress) {
        if let Some(stage) = &*lock(&self.teller.stage) {
            stage.tell(progress);
        }
    }
}

#[derive(Debug, Clone)]
enum News {
    Stage(String, String),
    Bytes(u64, Option<u64>),
    Part(String, u64, u64),
    Log(String),
}

impl News {
    fn tell(&self, progress: &dyn Progress) {
        match self {
            Self::Stage(stage, detail) => progress.stage(stage, detail),
            Self::Bytes(done, total) => progress.bytes(*done, *total),
            Self::Part(part, done, total) => progress.part(part, *done, *total),
            Self::Log(line) => progress.log(line),
        }
    }
}

/// Passes what the work reports on to whoever waits.
struct Teller {
    news: broadcast::Sender<News>,
    /// For who joins later.
    stage: Mutex<Option<News>>,
    /// When the bytes of all, and of each part, were told last.
    told: Mutex<HashMap<Option<String>, Instant>>,
    cancel: Cancel,
}

impl Teller {
    /// Whether it is time to tell of a part, or of all.
    fn is_due(&self, part: Option<&str>) -> bool {
        let mut told = lock(&self.told);
        let now = Instant::now();
        match told.get_mut(&part.map(str::to_owned)) {
            Some(then) if now - *then < TELL_EVERY => return false,
            Some(then) => *then = now,
            None => drop(told.insert(part.map(str::to_owned), now)),
        }
        true
    }
}

impl Report for Teller {
    fn stage(&self, stage: &str, detail: &str) {
        let news = News::Stage(stage.to_owned(), detail.to_owned());
        *lock(&self.stage) = Some(news.clone());
        lock(&self.told).clear();
        let _ = self.news.send(news);
        seam::pause(stage, &self.cancel);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        if self.is_due(None) || Some(done) == total {
            let _ = self.news.send(News::Bytes(done, total));
        }
    }

    fn part(&self, part: &str, done: u64, total: u64) {
        if self.is_due(Some(part)) || done == total {
            let _ = self.news.send(News::Part(part.to_owned(), done, total));
        }
    }

    fn log(&self, line: &str) {
        let _ = self.news.send(News::Log(line.to_owned()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Nothing under way. Work is spawned into `tasks`.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self {
            flying: Arc::default(),
            tasks,
        }
    }

    /// Cancels all of it, whoever waits.
    pub(crate) fn cancel_all(&self) {
        for flight in lock(&self.flying).values() {
            flight.cancel.cancel();
        }
    }

    /// Joins the work of this key, or begins it, and waits for its outcome.
    ///
    /// # Errors
    /// The work's, or `cancelled` when this waiter's progress was.
    pub(crate) async fn join<Work, Doing>(
        &self,
        key: &str,
        progress: &dyn Progress,
        work: Work,
    ) -> Result<T, Failure>
    where
        Work: FnOnce(Cancel, Arc<dyn Report>) -> Doing,
        Doing: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let (mut seat, mut news) = self.board(key, work)?;
        seat.flight.tell_stage(progress);
        let mut outcome = seat.flight.outcome.subscribe();
        let mut stop = std::pin::pin!(cancelled(progress.cancel()));
        let mut leaving = false;
        loop {
            tokio::select! {
                done = outcome.wait_for(Option::is_some) => {
                    let done = match done {
                        Ok(done) => (*done).clone(),
                        Err(_) => None,
                    };
                    loop {
                        match news.try_recv() {
                            Ok(last) => last.tell(progress),
                            Err(TryRecvError::Lagged(_)) => {}
                            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        }
                    }
                    return done.unwrap_or_else(|| {
                        Err(Failure::new(Code::Internal, "the work ended without an outcome"))
                    });
                }
                one = news.recv() => match one {
                    Ok(one) => one.tell(progress),
                    // Its own flight keeps the sender, so some were missed, and the stage with
                    // them as it may be.
                    Err(_) => seat.flight.tell_stage(progress),
                },
                () = &mut stop, if !leaving => {
                    if !seat.leave() {
                        return Err(was_cancelled());
                    }
                    // The last one sees the work off, so that what comes
                    // next finds nothing half done in its way.
                    leaving = true;
                }
            }
        }
    }

    fn board<Work, Doing>(
        &self,
        key: &str,
        work: Work,
    ) -> Result<(Seat<T>, broadcast::Receiver<News>), Failure>
    where
        Work: FnOnce(Cancel, Arc<dyn Report>) -> Doing,
        Doing: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let mut flying = lock(&self.flying);
        let seat = |flight: &Arc<Flight<T>>| {
            *lock(&flight.waiters) += 1;
            let seat = Seat {
                key: key.to_owned(),
                flight: Arc::clone(flight),
                flying: Arc::clone(&self.flying),
                taken: true,
            };
            (seat, flight.teller.news.subscribe())
        };
        if let Some(flight) = flying.get(key) {
            return Ok(seat(flight));
        }
        let cancel = Cancel::new()
            .map_err(|error| Failure::internal("cannot begin: out of descriptors", &error))?;
        let teller = Arc::new(Teller {
            news: broadcast::Sender::new(NEWS),
            stage: Mutex::default(),
            told: Mutex::default(),
            cancel: cancel.clone(),
        });
        let flight = Arc::new(Flight {
            waiters: Mutex::new(0),
            teller: Arc::clone(&teller),
            outcome: watch::Sender::new(None),
            cancel: cancel.clone(),
        });
        let boarded = seat(&flight);
        flying.insert(key.to_owned(), Arc::clone(&flight));
        let given_up = cancel.clone();
        let doing = work(cancel, teller);
        let (all, key) = (Arc::clone(&self.flying), key.to_owned());
        self.tasks.spawn(async move {
            // Also when the work panics nobody waits for ever.
            let landing = Landing { all, key, flight };
            let outcome = match doing.await {
                // Whatever it says that it met: it was made to end.
                Err(failure) if given_up.is_cancelled() => {
                    tracing::debug!(error = failure.sentence(), "given up");
                    Err(was_cancelled())
                }
                outcome => outcome,
            };
            landing.flight.outcome.send_replace(Some(outcome));
        });
        Ok(boarded)
    }
}

/// The failure of what its caller gave up.
pub(crate) fn was_cancelled() -> Failure {
    Failure::new(Code::Cancelled, "cancelled")
}

fn take_off<T>(all: &Mutex<HashMap<String, Arc<Flight<T>>>>, key: &str, flight: &Arc<Flight<T>>) {
    let mut flying = lock(all);
    if flying
        .get(key)
        .is_some_and(|found| Arc::ptr_eq(found, flight))
    {
        flying.remove(key);
    }
}

/// Removes the flight at its end, and gives it an outcome if it has none.
struct Landing<T> {
    all: Arc<Mutex<HashMap<String, Arc<Flight<T>>>>>,
    key: String,
    flight: Arc<Flight<T>>,
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        take_off(&self.all, &self.key, &self.flight);
        self.flight.outcome.send_if_modified(|outcome| {
            let missing = outcome.is_none();
            if missing {
                *outcome = Some(Err(Failure::new(Code::Internal, "the work broke off")));
            }
            missing
        });
    }
}

/// One waiter's place.
struct Seat<T> {
    key: String,
    flight: Arc<Flight<T>>,
    flying: Arc<Mutex<HashMap<String, Arc<Flight<T>>>>>,
    /// It was not left yet.
    taken: bool,
}

impl<T> Seat<T> {
    /// Ends the work if nobody else waits for it any more; whether that was
    /// so. Of two that leave at once it is so for one.
    fn leave(&mut self) -> bool {
        let mut flying = lock(&self.flying);
        if !std::mem::replace(&mut self.taken, false) {
            return false;
        }
        let mut waiters = lock(&self.flight.waiters);
        *waiters -= 1;
        if *waiters > 0 {
            return false;
        }
        self.flight.cancel.cancel();
        // Who comes now begins anew.
        if flying
            .get(&self.key)
            .is_some_and(|found| Arc::ptr_eq(found, &self.flight))
        {
            flying.remove(&self.key);
        }
        true
    }
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// A waiter that notes what it hears.
    struct Waiter {
        heard: Mutex<Vec<String>>,
        cancel: Cancel,
    }

    impl Waiter {
        fn new() -> Self {
            Self {
                heard: Mutex::default(),
                cancel: Cancel::new().unwrap(),
            }
        }
    }

    impl Progress for Waiter {
        fn stage(&self, stage: &str, _: &str) {
            lock(&self.heard).push(stage.to_owned());
        }
        fn bytes(&self, _: u64, _: Option<u64>) {}
        fn part(&self, part: &str, done: u64, total: u64) {
            lock(&self.heard).push(format!("{part}: {done}/{total}"));
        }
        fn log(&self, line: &str) {
            lock(&self.heard).push(line.to_owned());
        }
        fn cancel(&self) -> Cancel {
            self.cancel.clone()
        }
    }

    #[tokio::test]
    async fn two_that_want_the_same_share_the_work_and_its_news() {
        let flights = Flights::<u32>::new(TaskTracker::new());
        let (one, two) = (Waiter::new(), Waiter::new());
        let begun = AtomicUsize::new(0);
        let (go, wait) = oneshot::channel::<()>();
        let wait = Mutex::new(Some(wait));
        let work = |_: Cancel, report: Arc<dyn Report>| {
            begun.fetch_add(1, Ordering::SeqCst);
            let wait = lock(&wait).take().unwrap();
            async move {
                report.stage("download", "");
                wait.await.unwrap();
                report.log("nearly");
                Ok(7)
            }
        };
        let go = async {
            tokio::task::yield_now().await;
            go.send(()).unwrap();
        };
        let (first, second, ()) = tokio::join!(
            flights.join("k", &one, work),
            flights.join("k", &two, work),
            go
        );
        assert_eq!((first, second), (Ok(7), Ok(7)));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert_eq!(*lock(&one.heard), ["download", "nearly"]);
        assert_eq!(*lock(&two.heard), ["download", "nearly"]);
    }

    #[tokio::test]
    async fn one_waiter_may_leave_and_the_last_one_ends_the_work() {
        let tasks = TaskTracker::new();
        let flights = Flights::<u32>::new(tasks.clone());
        let (one, two) = (Waiter::new(), Waiter::new());
        let (tell, mut told) = oneshot::channel();
        let tell = Mutex::new(Some(tell));
        let work = |cancel: Cancel, _: Arc<dyn Report>| {
            let tell = lock(&tell).take().unwrap();
            async move {
                cancelled(cancel).await;
                tell.send(()).unwrap();
                Err(was_cancelled())
            }
        };
        let first = flights.join("k", &one, work);
        let second = flights.join("k", &two, work);
        let leave = async {
            one.cancel.cancel();
        };
        let still = async {
            let (first, ()) = tokio::join!(first, leave);
            assert!(told_nothing(&mut told), "the work goes on for the other");
            assert_eq!(first.unwrap_err().code, Code::Cancelled);
            two.cancel.cancel();
        };
        let (second, ()) = tokio::join!(second, still);
        assert_eq!(second.unwrap_err().code, Code::Cancelled);
        tokio::time::timeout(Duration::from_secs(5), told)
            .await
            .unwrap()
            .unwrap();
        assert!(lock(&flights.flying).is_empty());
    }

    #[tokio::test]
    async fn a_waiter_that_missed_some_hears_the_rest() {
        let flights = Flights::<u32>::new(TaskTracker::new());
        let one = Waiter::new();
        let (go, wait) = oneshot::channel::<()>();
        let work = |_: Cancel, report: Arc<dyn Report>| async move {
            report.stage("early", "");
            for line in 0..3 * NEWS {
                report.log(&line.to_string());
            }
            report.stage("late", "");
            wait.await.unwrap();
            for line in 0..3 * NEWS {
                report.log(&line.to_string());
            }
            report.log("last");
            Ok(7)
        };
        let heard = |word: &str| lock(&one.heard).iter().any(|heard| heard == word);
        let go = async {
            while !heard("late") {
                tokio::task::yield_now().await;
            }
            go.send(()).unwrap();
        };
        let both = async { tokio::join!(flights.join("k", &one, work), go) };
        let limit = Duration::from_secs(20);
        let (done, ()) = tokio::time::timeout(limit, both)
            .await
            .expect("it is told while the work goes on");
        assert_eq!(done, Ok(7));
        assert!(heard("last"), "and when it ends");
    }

    fn told_nothing(told: &mut oneshot::Receiver<()>) -> bool {
        told.try_recv().is_err()
    }

    #[tokio::test]
    async fn a_cancelled_work_is_over_when_its_last_waiter_returns() {
        let flights = Flights::<u32>::new(TaskTracker::new());
        let one = Waiter::new();
        let unwound = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&unwound);
        let work = |cancel: Cancel, _: Arc<dyn Report>| async move {
            cancelled(cancel).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen.store(1, Ordering::SeqCst);
            Err(was_cancelled())
        };
        let leave = async { one.cancel.cancel() };
        let (outcome, ()) = tokio::join!(flights.join("k", &one, work), leave);
        assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
        assert_eq!(unwound.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn of_two_last_waiters_that_leave_at_once_one_sees_the_work_off() {
        let flights = Flights::<u32>::new(TaskTracker::new());
        let work = |cancel: Cancel, _: Arc<dyn Report>| async move {
            cancelled(cancel).await;
            Err(was_cancelled())
        };
        let (mut one, _news) = flights.board("k", work).unwrap();
        let (mut two, _news) = flights.board("k", work).unwrap();
        // Neither is out of the door when the other goes.
        let last = [one.leave(), two.leave()];
        assert_eq!(last, [false, true]);
        assert!(one.flight.cancel.is_cancelled());
        drop((one, two));
        assert!(lock(&flights.flying).is_empty());
    }

    #[tokio::test]
    async fn what_fails_because_it_was_given_up_is_cancelled_whatever_it_says() {
        let flights = Flights::<u32>::new(TaskTracker::new());
        let one = Waiter::new();
        let work = |cancel: Cancel, _: Arc<dyn Report>| async move {
            cancelled(cancel).await;
            Err(Failure::new(Code::BadPath, "cannot use x: it ends early"))
        };
        let leave = async { one.cancel.cancel() };
        let (outcome, ()) = tokio::join!(flights.join("k", &one, work), leave);
        assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
    }

    #[tokio::test]
    async fn work_that_panics_fails_its_waiters() {
        let flights = Flights::<u32>::new(TaskTracker::new());
        let work = |_: Cancel, _: Arc<dyn Report>| async { panic!("as tests do") };
        let outcome = flights.join("k", &Waiter::new(), work).await;
        assert_eq!(outcome.unwrap_err().code, Code::Internal);
    }
}
