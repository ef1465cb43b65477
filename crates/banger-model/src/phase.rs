//! What a VM is (its phase), what was last asked of it (its goal), and the
//! pure functions between them. The supervisor only carries out the answers.
//!
//! ```text
//!   verb ──admit──► goal          phase ──drive(goal)──► action
//!                                   ▲                      │
//!                                   └──observe──  news ◄───┘
//!
//!   Stopped ─► Starting ─► Running ◄─► Paused
//!      ▲           └──────────┴──► Stopping
//!      └──────────────────────────────┘      Stopped ─► Removing ─► no row
//! ```
//!
//! Every function names every pair, so the compiler finds the forgotten one.
//! "Failed" is how the last run ended and not a phase: a failed VM holds
//! nothing of a run and can be started again.

use serde::{Deserialize, Serialize};

macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$vdoc])* $variant,)* }

        impl $type {
            #[doc = concat!("Every ", stringify!($type), ".")]
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in rows and answers.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The one of this name.
            #[must_use]
            pub fn of_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
            }
        }
    };
}

named! {
    /// What a VM is.
    Phase {
        /// Holds nothing of a run.
        Stopped "stopped",
        /// A run is being made, up to the agent's word that commands may run.
        Starting "starting",
        /// Commands run.
        Running "running",
        /// Frozen.
        Paused "paused",
        /// A run is being ended and given back.
        Stopping "stopping",
        /// The VM itself is being given back.
        Removing "removing",
    }
}

named! {
    /// What was last asked of a VM.
    Goal {
        /// To run.
        Up "up",
        /// To be frozen.
        Paused "paused",
        /// To be at rest.
        Down "down",
        /// Not to be.
        Gone "gone",
    }
}

named! {
    /// What clients ask.
    Verb {
        /// Boot, or thaw.
        Start "start",
        /// Halt, then boot.
        Restart "restart",
        /// Halt gracefully.
        Stop "stop",
        /// End the engine.
        Kill "kill",
        /// Freeze.
        Pause "pause",
        /// Thaw.
        Resume "resume",
        /// End the engine, then remove.
        Delete "delete",
    }
}

named! {
    /// The state users see, computed and never stored.
    State {
        /// Never started.
        Created "created",
        /// Booting.
        Starting "starting",
        /// The agent answers.
        Running "running",
        /// Frozen.
        Paused "paused",
        /// Ending, or being deleted.
        Stopping "stopping",
        /// At rest.
        Stopped "stopped",
        /// At rest; the last run ended badly.
        Error "error",
    }
}

named! {
    /// The next thing to do.
    Action {
        /// Nothing: the phase is the goal.
        Rest "rest",
        /// Take what a run holds and bring the guest up; what is there already is kept.
        Boot "boot",
        /// Stop the guest's time.
        Freeze "freeze",
        /// Let it go on.
        Thaw "thaw",
        /// Ask the guest to end, then release the run.
        HaltGuest "halt_guest",
        /// End what lives of the run and give back all it holds.
        ReleaseRun "release_run",
        /// Give back everything, then the row.
        Erase "erase",
    }
}

named! {
    /// What happened.
    News {
        /// The guest's root stands: commands run.
        Ready "ready",
        /// The boot failed, or the run ended badly by itself.
        Failed "failed",
        /// The run ended by itself and cleanly: power-off inside.
        PoweredOff "powered_off",
        /// The guest asked to be booted again.
        Rebooted "rebooted",
        /// The guest is frozen.
        Frozen "frozen",
        /// It goes on.
        Thawed "thawed",
        /// The guest could not write its data to the disks in time and runs on.
        Unsynced "unsynced",
        /// Nothing of the run is left.
        Released "released",
    }
}

/// How the last run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// As asked, by the client or inside the guest.
    Clean,
    /// Badly, and why.
    Error(String),
}

/// How a new goal is pursued from where the VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// As [`drive`] says.
    Plain,
    /// The present run is halted gracefully first, whatever the goal.
    Halt,
    /// The present run is ended by force first.
    Force,
}

/// Why a verb is not for this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Only of a VM that runs.
    NotRunning,
    /// Only of a VM at rest.
    MustBeStopped,
    /// The VM is being deleted.
    BeingDeleted,
}

/// What a verb means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing to do.
    Done,
    /// This goal from now on.
    Pursue(Goal, Turn),
    /// Not now.
    Refused(Refusal),
}

/// Phase and goal together, as the table of verbs sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Rest,
    Starting,
    Running,
    Paused,
    Stopping,
    Removing,
}

fn moment(phase: Phase, goal: Goal) -> Moment {
    use Phase::{Paused, Removing, Running, Starting, Stopped, Stopping};
    match (phase, goal) {
        (Removing, Goal::Up | Goal::Paused | Goal::Down | Goal::Gone)
        | (Stopped | Starting | Running | Paused | Stopping, Goal::Gone) => Moment::Removing,
        (Stopped, Goal::Down) => Moment::Rest,
        (Stopped | Starting, Goal::Up | Goal::Paused) => Moment::Starting,
        (Running, Goal::Up | Goal::Paused) => Moment::Running,
        (Paused, Goal::Up | Goal::Paused) => Moment::Paused,
        (Starting | Running | Paused, Goal::Down)
        | (Stopping, Goal::Up | Goal::Paused | Goal::Down) => Moment::Stopping,
    }
}

/// What a verb means for a VM of this phase and goal.
#[must_use]
pub fn admit(verb: Verb, phase: Phase, goal: Goal) -> Answer {
    use Answer::{Done, Pursue, Refused};
    use Moment::{Paused, Removing, Rest, Running, Starting, Stopping};
    match (verb, moment(phase, goal)) {
        (Verb::Delete, Rest | Starting | Running | Paused | Stopping | Removing) => {
            Pursue(Goal::Gone, Turn::Force)
        }
        (
            Verb::Start | Verb::Restart | Verb::Stop | Verb::Kill | Verb::Pause | Verb::Resume,
            Removing,
        ) => Refused(Refusal::BeingDeleted),

        // A thawing VM is on its way; asking again joins.
        (Verb::Start, Rest | Starting | Paused | Stopping) => Pursue(Goal::Up, Turn::Plain),
        // A frozen goal of a VM that still runs is taken back.
        (Verb::Start | Verb::Resume, Running) => match goal {
            Goal::Up => Done,
            Goal::Paused | Goal::Down | Goal::Gone => Pursue(Goal::Up, Turn::Plain),
        },

        (Verb::Restart, Rest | Starting | Stopping) => Pursue(Goal::Up, Turn::Plain),
        (Verb::Restart, Running | Paused) => Pursue(Goal::Up, Turn::Halt),

        (Verb::Stop | Verb::Kill, Rest) => Done,
        (Verb::Stop, Starting | Running | Paused | Stopping) => Pursue(Goal::Down, Turn::Plain),
        (Verb::Kill, Starting | Running | Paused | Stopping) => Pursue(Goal::Down, Turn::Force),

        (Verb::Pause, Running) => Pursue(Goal::Paused, Turn::Plain),
        (Verb::Pause, Paused) => match goal {
            Goal::Paused => Done,
            Goal::Up | Goal::Down | Goal::Gone => Pursue(Goal::Paused, Turn::Plain),
        },
        (Verb::Resume, Paused) => Pursue(Goal::Up, Turn::Plain),
        (Verb::Pause | Verb::Resume, Rest | Starting | Stopping) => Refused(Refusal::NotRunning),
    }
}

/// Whether the machine's size may change now.
///
/// # Errors
/// [`Refusal`] unless the VM is at rest.
pub fn admit_resize(phase: Phase, goal: Goal) -> Result<(), Refusal> {
    match moment(phase, goal) {
        Moment::Rest => Ok(()),
        Moment::Starting | Moment::Running | Moment::Paused | Moment::Stopping => {
            Err(Refusal::MustBeStopped)
        }
        Moment::Removing => Err(Refusal::BeingDeleted),
    }
}

/// Whether a command may enter the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Now.
    Open,
    /// Not yet.
    Wait,
    /// Not in this run.
    Closed,
}

/// Whether commands, copies and the like may enter the guest now.
#[must_use]
pub fn admit_entry(phase: Phase, goal: Goal) -> Entry {
    match moment(phase, goal) {
        Moment::Starting => Entry::Wait,
        Moment::Running => Entry::Open,
        Moment::Rest | Moment::Paused | Moment::Stopping | Moment::Removing => Entry::Closed,
    }
}

/// The state users see.
#[must_use]
pub fn state(phase: Phase, goal: Goal, last_exit: Option<&Exit>) -> State {
    match moment(phase, goal) {
        Moment::Rest => match last_exit {
            None => State::Created,
            Some(Exit::Clean) => State::Stopped,
            Some(Exit::Error(_)) => State::Error,
        },
        Moment::Starting => State::Starting,
        Moment::Running => State::Running,
        Moment::Paused => State::Paused,
        Moment::Stopping | Moment::Removing => State::Stopping,
    }
}

/// The next thing to do to bring the phase to the goal, and the phase while
/// it is being done. Asked only when nothing else is being done; the answer
/// may be carried out again after it was cut.
#[must_use]
pub fn drive(phase: Phase, goal: Goal) -> (Phase, Action) {
    use Action::{Boot, Erase, Freeze, HaltGuest, ReleaseRun, Rest, Thaw};
    use Phase::{Paused, Removing, Running, Starting, Stopped, Stopping};
    match (phase, goal) {
        (Stopped, Goal::Up | Goal::Paused) | (Starting, Goal::Up | Goal::Paused) => {
            (Starting, Boot)
        }
        (Stopped, Goal::Down) | (Running, Goal::Up) | (Paused, Goal::Paused) => (phase, Rest),
        (Stopped, Goal::Gone) => (Removing, Erase),
        // A stop overtakes a start: nobody wants this boot any more.
        (Starting, Goal::Down | Goal::Gone) => (Stopping, ReleaseRun),
        (Running, Goal::Paused) => (Running, Freeze),
        (Running, Goal::Down) => (Stopping, HaltGuest),
        // A frozen guest cannot sync: thaw, then halt.
        (Paused, Goal::Up | Goal::Down) => (Paused, Thaw),
        (Running | Paused, Goal::Gone) => (Stopping, ReleaseRun),
        (Stopping, Goal::Up | Goal::Paused | Goal::Down | Goal::Gone) => (Stopping, ReleaseRun),
        (Removing, Goal::Up | Goal::Paused | Goal::Down | Goal::Gone) => (Removing, Erase),
    }
}

/// What news make of a VM: its new phase and goal, and where the news end a
/// run, whether well (`Some(true)`) or badly. News that come late change nothing.
#[must_use]
pub fn observe(phase: Phase, goal: Goal, news: News) -> (Phase, Goal, Option<bool>) {
    use Phase::{Paused, Removing, Running, Starting, Stopped, Stopping};
    match (news, phase) {
        (News::Ready, Starting) => (Running, goal, None),
        (News::Failed, Starting | Running | Paused) => (Stopping, at_most_down(goal), Some(false)),
        (News::PoweredOff, Starting | Running | Paused) => {
            (Stopping, at_most_down(goal), Some(true))
        }
        (News::Rebooted, Starting | Running | Paused) => (Stopping, goal, Some(true)),
        (News::Frozen, Running) => (Paused, goal, None),
        (News::Thawed, Paused) => (Running, goal, None),
        (News::Unsynced, Stopping) => match goal {
            Goal::Up | Goal::Paused | Goal::Down => (Running, Goal::Up, None),
            Goal::Gone => (Stopping, Goal::Gone, None),
        },
        (News::Released, Stopping) => (Stopped, goal, None),

        (News::Ready, Stopped | Running | Paused | Stopping | Removing)
        | (News::Failed | News::PoweredOff | News::Rebooted, Stopped | Stopping | Removing)
        | (News::Frozen, Stopped | Starting | Paused | Stopping | Removing)
        | (News::Thawed, Stopped | Starting | Running | Stopping | Removing)
        | (News::Unsynced, Stopped | Starting | Running | Paused | Removing)
        | (News::Released, Stopped | Starting | Running | Paused | Removing) => (phase, goal, None),
    }
}

/// A run that ended by itself is not started again by banger.
fn at_most_down(goal: Goal) -> Goal {
    match goal {
        Goal::Up | Goal::Paused | Goal::Down => Goal::Down,
        Goal::Gone => Goal::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> impl Iterator<Item = (Phase, Goal)> {
        Phase::ALL
            .iter()
            .flat_map(|p| Goal::ALL.iter().map(move |g| (*p, *g)))
    }

    /// What comes of an action that goes well.
    fn well(action: Action) -> Option<News> {
        match action {
            Action::Rest | Action::Erase => None,
            Action::Boot => Some(News::Ready),
            Action::Freeze => Some(News::Frozen),
            Action::Thaw => Some(News::Thawed),
            Action::HaltGuest | Action::ReleaseRun => Some(News::Released),
        }
    }

    #[test]
    fn every_goal_is_reached_from_every_phase() {
        for (start, goal) in pairs() {
            let (mut phase, mut steps) = (start, 0);
            loop {
                let (next, action) = drive(phase, goal);
                match well(action) {
                    None => {
                        let there = match goal {
                            Goal::Up => next == Phase::Running || next == Phase::Removing,
                            Goal::Paused => next == Phase::Paused || next == Phase::Removing,
                            Goal::Down => next == Phase::Stopped || next == Phase::Removing,
                            Goal::Gone => next == Phase::Removing,
                        };
                        assert!(there, "{start:?} to {goal:?} rests in {next:?}");
                        break;
                    }
                    Some(news) => {
                        let (after, kept, _) = observe(next, goal, news);
                        assert_eq!(kept, goal, "what went well changes no goal");
                        assert_ne!(after, phase, "{start:?} to {goal:?} turns in a circle");
                        phase = after;
                    }
                }
                steps += 1;
                assert!(steps < 6, "{start:?} to {goal:?} never ends");
            }
        }
    }

    #[test]
    fn removing_is_never_left_except_by_the_end_of_the_row() {
        for goal in Goal::ALL {
            assert_eq!(
                drive(Phase::Removing, *goal),
                (Phase::Removing, Action::Erase)
            );
            for news in News::ALL {
                assert_eq!(observe(Phase::Removing, *goal, *news).0, Phase::Removing);
            }
        }
    }

    #[test]
    fn news_never_bring_back_what_was_asked_to_be_gone() {
        for (phase, news) in Phase::ALL
            .iter()
            .flat_map(|p| News::ALL.iter().map(move |n| (p, n)))
        {
            assert_eq!(
                observe(*phase, Goal::Gone, *news).1,
                Goal::Gone,
                "{phase:?} {news:?}"
            );
        }
    }

    #[test]
    fn a_run_that_ended_by_itself_is_released_and_not_started_again() {
        for (phase, goal) in pairs() {
            for news in [News::Failed, News::PoweredOff] {
                let (after, then, exit) = observe(phase, goal, news);
                if exit.is_some() {
                    assert_eq!(after, Phase::Stopping);
                    assert!(matches!(then, Goal::Down | Goal::Gone));
                    assert_eq!(exit, Some(news == News::PoweredOff));
                } else {
                    assert_eq!((after, then), (phase, goal));
                }
            }
        }
    }

    #[test]
    fn late_news_change_nothing() {
        for news in News::ALL {
            assert_eq!(
                observe(Phase::Stopped, Goal::Down, *news),
                (Phase::Stopped, Goal::Down, None)
            );
        }
        for news in [
            News::Ready,
            News::Failed,
            News::PoweredOff,
            News::Rebooted,
            News::Frozen,
        ] {
            assert_eq!(
                observe(Phase::Stopping, Goal::Up, news),
                (Phase::Stopping, Goal::Up, None)
            );
        }
    }

    #[test]
    fn verbs_mean_what_the_table_says() {
        use Answer::{Done, Pursue, Refused};
        let rest = (Phase::Stopped, Goal::Down);
        let starting = (Phase::Starting, Goal::Up);
        let running = (Phase::Running, Goal::Up);
        let paused = (Phase::Paused, Goal::Paused);
        let stopping = (Phase::Stopping, Goal::Down);
        let up = Pursue(Goal::Up, Turn::Plain);
        let down = Pursue(Goal::Down, Turn::Plain);
        let refused = Refused(Refusal::NotRunning);
        let table = [
            (Verb::Start, [up, up, Done, up, up]),
            (Verb::Stop, [Done, down, down, down, down]),
            (
                Verb::Restart,
                [
                    up,
                    up,
                    Pursue(Goal::Up, Turn::Halt),
                    Pursue(Goal::Up, Turn::Halt),
                    up,
                ],
            ),
            (
                Verb::Pause,
                [
                    refused,
                    refused,
                    Pursue(Goal::Paused, Turn::Plain),
                    Done,
                    refused,
                ],
            ),
            (Verb::Resume, [refused, refused, Done, up, refused]),
            (
                Verb::Kill,
                [
                    Done,
                    Pursue(Goal::Down, Turn::Force),
                    Pursue(Goal::Down, Turn::Force),
                    Pursue(Goal::Down, Turn::Force),
                    Pursue(Goal::Down, Turn::Force),
                ],
            ),
            (Verb::Delete, [Pursue(Goal::Gone, Turn::Force); 5]),
        ];
        for (verb, answers) in table {
            for (at, answer) in [rest, starting, running, paused, stopping]
                .into_iter()
                .zip(answers)
            {
                assert_eq!(admit(verb, at.0, at.1), answer, "{verb:?} at {at:?}");
            }
        }
    }

    #[test]
    fn only_a_delete_is_heard_while_being_deleted() {
        for (phase, verb) in Phase::ALL
            .iter()
            .flat_map(|p| Verb::ALL.iter().map(move |v| (p, v)))
        {
            let answer = admit(*verb, *phase, Goal::Gone);
            if *verb == Verb::Delete {
                assert_eq!(answer, Answer::Pursue(Goal::Gone, Turn::Force));
            } else {
                assert_eq!(answer, Answer::Refused(Refusal::BeingDeleted));
            }
        }
    }

    #[test]
    fn states_follow_from_phase_goal_and_exit() {
        let bad = Exit::Error("engine died".into());
        assert_eq!(state(Phase::Stopped, Goal::Down, None), State::Created);
        assert_eq!(
            state(Phase::Stopped, Goal::Down, Some(&Exit::Clean)),
            State::Stopped
        );
        assert_eq!(state(Phase::Stopped, Goal::Down, Some(&bad)), State::Error);
        assert_eq!(state(Phase::Stopped, Goal::Up, Some(&bad)), State::Starting);
        assert_eq!(state(Phase::Stopping, Goal::Up, None), State::Stopping);
        assert_eq!(state(Phase::Running, Goal::Gone, None), State::Stopping);
        for (phase, goal) in pairs() {
            let entry = admit_entry(phase, goal);
            let seen = state(phase, goal, None);
            assert_eq!(
                entry == Entry::Open,
                seen == State::Running,
                "{phase:?} {goal:?}"
            );
            assert_eq!(
                entry == Entry::Wait,
                seen == State::Starting,
                "{phase:?} {goal:?}"
            );
            let sizes = admit_resize(phase, goal).is_ok();
            assert_eq!(sizes, seen == State::Created, "{phase:?} {goal:?}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for phase in Phase::ALL {
            assert_eq!(Phase::of_name(phase.name()), Some(*phase));
        }
        for goal in Goal::ALL {
            assert_eq!(Goal::of_name(goal.name()), Some(*goal));
        }
        assert_eq!(Phase::of_name("failed"), None);
    }
}
