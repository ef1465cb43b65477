//! TCP of the guest: which segment belongs to which flow, how many flows there
//! may be, and what the guest is told where there is none.
//!
//! How a flow comes about is in [`opening`], what it does in [`flow`].

mod dial;
mod endpoint;
mod flow;
#[cfg(test)]
mod guest;
mod opening;
mod rings;
mod segment;
mod side;
mod upstream;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use self::dial::Dial;
use self::flow::{Flow, Next};
use self::segment::{Hello, Route};
use self::side::NoMemory;
use crate::counters::Dropped;
use crate::host::Host;
use crate::ipv4;
use crate::poller::{News, Owner, Token};
use crate::slab::{Key, Slab};
use crate::timers::Alarm;

/// Flows at a time.
pub(crate) const MAX_FLOWS: usize = 1024;
/// Those of them that are being opened.
pub(crate) const MAX_HALF_OPEN: usize = 256;
/// What a place in the table holds.
struct Entry {
    route: Route,
    stage: Stage,
    alarm: Alarm,
    /// Counted as half-open.
    half_open: bool,
    /// Among those to be looked at.
    touched: bool,
    /// Among those that wait for the line.
    waiting: bool,
}

enum Stage {
    Dialling {
        dial: Dial,
        hello: Hello,
        quote: Vec<u8>,
    },
    Open(Flow),
    /// While something else is being made of it.
    Between,
}

/// All flows.
#[derive(Default)]
pub(crate) struct Tcp {
    entries: Slab<Entry>,
    by_route: HashMap<Route, Key>,
    half_open: usize,
    /// Flows on which something happened since they were last looked at.
    touched: VecDeque<Key>,
    seeds: RandomState,
    opened: u64,
}

impl Tcp {
    /// Flows, and those of them that are half-open.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.entries.len(), self.half_open)
    }

    /// A packet of the guest.
    pub(crate) fn packet(
        &mut self,
        host: &mut Host,
        now: Instant,
        header: &ipv4::Header,
        packet: &mut [u8],
    ) {
        let Some((route, segment)) = segment::parse(header, packet) else {
            host.drop(Dropped::Malformed);
            return;
        };
        let hello = Hello::of(&segment);
        let known = self.by_route.get(&route).copied();
        match (known, hello) {
            (Some(key), Some(hello)) if self.is_new(key, &hello) => {
                // A guest that began again knows nothing of the old one.
                self.remove(host, key, End::Reset);
                self.open(host, now, route, hello, &segment, packet);
            }
            // Said again because we have not answered yet.
            (Some(_), Some(_)) => {}
            (Some(key), None) => self.take(host, now, key, header, packet),
            (None, Some(hello)) => self.open(host, now, route, hello, &segment, packet),
            (None, None) => {
                host.drop(Dropped::UnknownFlow);
                segment::reset(&mut host.line, &mut host.counters, route, &segment);
            }
        }
    }

    /// Whether a SYN is of another connection than the one it seems to be of.
    fn is_new(&mut self, key: Key, hello: &Hello) -> bool {
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        match &entry.stage {
            Stage::Dialling { hello: known, .. } => known.sequence != hello.sequence,
            Stage::Open(flow) => flow.hello().sequence != hello.sequence,
            Stage::Between => false,
        }
    }

    /// A segment of a flow.
    fn take(
        &mut self,
        host: &mut Host,
        now: Instant,
        key: Key,
        header: &ipv4::Header,
        packet: &mut [u8],
    ) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        // A guest that gave up while we dial says so, if at all, by silence.
        let Stage::Open(flow) = &mut entry.stage else {
            host.drop(Dropped::UnknownFlow);
            return;
        };
        match guarded(|| flow.take(host, now, header, packet)) {
            Some(Ok(())) => self.touch(key),
            Some(Err(NoMemory)) => self.out_of_memory(host, key),
            None => self.panicked(host, key),
        }
    }

    /// News of a flow's socket.
    pub(crate) fn hear(&mut self, host: &mut Host, now: Instant, news: &News) {
        let key = news.token.key;
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        match &mut entry.stage {
            Stage::Open(flow) => {
                flow.hear(news);
                self.touch(key);
            }
            Stage::Dialling { .. } => self.look(host, now, key),
            Stage::Between => {}
        }
    }

    /// A flow's time has come.
    pub(crate) fn due(&mut self, host: &mut Host, now: Instant, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.alarm.rang();
        match &entry.stage {
            Stage::Dialling { .. } => self.look(host, now, key),
            Stage::Open(_) | Stage::Between => self.touch(key),
        }
    }

    /// The line has room for a flow that waited.
    pub(crate) fn line_is_free(&mut self, host: &mut Host, now: Instant, key: Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.waiting = false;
            self.pump(host, now, key);
        }
    }

    fn look(&mut self, host: &mut Host, now: Instant, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let stage = std::mem::replace(&mut entry.stage, Stage::Between);
        if let Stage::Dialling { dial, hello, quote } = stage {
            let outcome = dial.look(host, token(key), now);
            self.dialled(host, now, key, hello, quote, outcome);
        }
    }

    fn touch(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(key)
            && !entry.touched
        {
            entry.touched = true;
            self.touched.push_back(key);
        }
    }

    /// Whether flows are to be looked at.
    pub(crate) fn has_work(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Lets each flow on which something happened do what it can.
    pub(crate) fn settle(&mut self, host: &mut Host, now: Instant) {
        for _ in 0..self.touched.len() {
            let Some(key) = self.touched.pop_front() else {
                return;
            };
            if let Some(entry) = self.entries.get_mut(key) {
                entry.touched = false;
            }
            self.pump(host, now, key);
        }
    }

    fn pump(&mut self, host: &mut Host, now: Instant, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let Stage::Open(flow) = &mut entry.stage else {
            return;
        };
        let next = guarded(|| {
            let next = flow.pump(host, now);
            (next, flow.is_half_open(), flow.is_draining())
        });
        let Some((next, half_open, draining)) = next else {
            return self.panicked(host, key);
        };
        if entry.half_open && !half_open {
            entry.half_open = false;
            self.half_open -= 1;
        }
        if draining {
            // The guest is done with it and may use its port again.
            let route = entry.route;
            if self.by_route.get(&route) == Some(&key) {
                self.by_route.remove(&route);
            }
        }
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        match next {
            Ok(Next::Wait(until)) => host.timers.set(&mut entry.alarm, token(key), until),
            Ok(Next::ForLine(until)) => {
                host.timers.set(&mut entry.alarm, token(key), until);
                if !entry.waiting {
                    entry.waiting = true;
                    host.waiting.push_back(token(key));
                }
            }
            Ok(Next::Again) => self.touch(key),
            Ok(Next::Over) => self.remove(host, key, End::Quiet),
            Ok(Next::Reset) => self.remove(host, key, End::Reset),
            Err(NoMemory) => self.out_of_memory(host, key),
        }
    }

    fn out_of_memory(&mut self, host: &mut Host, key: Key) {
        host.drop(Dropped::Memory);
        self.remove(host, key, End::Cut);
    }

    fn panicked(&mut self, host: &mut Host, key: Key) {
        host.drop(Dropped::Panic);
        self.remove(host, key, End::Reset);
    }

    /// Takes a flow out of the table.
    fn remove(&mut self, host: &mut Host, key: Key, end: End) {
        let Some(mut entry) = self.entries.remove(key) else {
            return;
        };
        host.timers.set(&mut entry.alarm, token(key), None);
        if entry.waiting {
            host.waits_no_more(token(key));
        }
        if self.by_route.get(&entry.route) == Some(&key) {
            self.by_route.remove(&entry.route);
        }
        self.half_open -= usize::from(entry.half_open);
        match (entry.stage, end) {
            (Stage::Open(flow), End::Reset) => flow.reset(),
            (Stage::Open(flow), End::Cut) => flow.cut(host),
            (Stage::Dialling { dial, .. }, _) => dial.cancel(),
            (Stage::Open(_), End::Quiet) | (Stage::Between, _) => {}
        }
    }
}

/// How a flow leaves the table.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Everybody knows.
    Quiet,
    /// The server is told by a reset.
    Reset,
    /// Both sides are.
    Cut,
}

fn token(key: Key) -> Token {
    Token {
        owner: Owner::Tcp,
        key,
    }
}

/// A fault in the code of one flow ends that flow, not the others.
fn guarded<R>(work: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
