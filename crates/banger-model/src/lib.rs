//! What banger decides, without doing any of it: names, sizes, ids, phases
//! and goals, holdings. No I/O, no clock, no await, no randomness.

#![forbid(unsafe_code)]

pub mod holding;
pub mod id;
pub mod name;
pub mod phase;
pub mod size;
pub mod words;

pub use holding::{Holding, Span};
pub use id::{OpId, VmId};
pub use name::{ImageName, KernelName, VmName};
pub use phase::{Action, Answer, Exit, Goal, News, Phase, Refusal, State, Turn, Verb};
pub use size::Size;
