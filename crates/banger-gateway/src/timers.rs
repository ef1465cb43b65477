//! Deadlines of flows. A deadline that moves back costs nothing until its old
//! time has come; one that is given up is gone at once, so that the program
//! sleeps for good when there is nothing left to time.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::poller::Token;

/// All deadlines.
#[derive(Default)]
pub(crate) struct Timers {
    set: BTreeSet<(Instant, Token)>,
}

/// One flow's place among them, kept by the flow.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    set: Option<Instant>,
}

impl Timers {
    /// Sets when a flow wants to be woken. It may be woken earlier, never
    /// later, and says again then what it wants.
    pub(crate) fn set(&mut self, alarm: &mut Alarm, token: Token, at: Option<Instant>) {
        if alarm.set == at || matches!((alarm.set, at), (Some(set), Some(at)) if set < at) {
            return;
        }
        if let Some(old) = alarm.set {
            self.set.remove(&(old, token));
        }
        if let Some(at) = at {
            self.set.insert((at, token));
        }
        alarm.set = at;
    }

    /// When the next one is.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.set.first().map(|(at, _)| *at)
    }

    /// Takes out one whose time has come. Its owner clears the alarm with
    /// [`Alarm::rang`].
    pub(crate) fn due(&mut self, now: Instant) -> Option<Token> {
        let &(at, token) = self.set.first()?;
        (at <= now).then(|| {
            self.set.pop_first();
            token
        })
    }
}

impl Alarm {
    /// The deadline came; none is set any more.
    pub(crate) fn rang(&mut self) {
        self.set = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::poller::Owner;

    const TOKEN: fn() -> Token = || Token::only(Owner::Tcp);

    #[test]
    fn a_deadline_that_moves_back_rings_at_its_old_time_once() {
        let (mut timers, mut alarm) = (Timers::default(), Alarm::default());
        let start = Instant::now();
        let (early, late) = (
            start + Duration::from_secs(1),
            start + Duration::from_secs(5),
        );
        timers.set(&mut alarm, TOKEN(), Some(early));
        timers.set(&mut alarm, TOKEN(), Some(late));
        assert_eq!(timers.next(), Some(early));
        assert_eq!(timers.due(start), None);
        assert_eq!(timers.due(early), Some(TOKEN()));
        alarm.rang();
        timers.set(&mut alarm, TOKEN(), Some(late));
        assert_eq!(timers.due(early), None);
        assert_eq!(timers.due(late), Some(TOKEN()));
    }

    #[test]
    fn a_deadline_that_comes_closer_leaves_no_other_behind() {
        let (mut timers, mut alarm) = (Timers::default(), Alarm::default());
        let start = Instant::now();
        for seconds in (1..100).rev() {
            let at = start + Duration::from_secs(seconds);
            timers.set(&mut alarm, TOKEN(), Some(at));
        }
        assert_eq!(timers.set.len(), 1);
        assert_eq!(timers.next(), Some(start + Duration::from_secs(1)));
    }

    #[test]
    fn what_is_given_up_wakes_nobody() {
        let (mut timers, mut alarm) = (Timers::default(), Alarm::default());
        timers.set(&mut alarm, TOKEN(), Some(Instant::now()));
        timers.set(&mut alarm, TOKEN(), None);
        assert_eq!(timers.next(), None);
    }
}
