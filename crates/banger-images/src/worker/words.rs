//! What the daemon and the process that writes an image say to each other. The process may have
//! been taken over by the layers it reads: its words are bounded, and mean no more than they say.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::oci::{OciError, Order, Written};
use crate::progress::Report;

/// The argument that makes `bangerd` that process; a [`Task`] follows.
pub(super) const FLAG: &str = "--write-image";
/// The first descriptor: root, seed, spool, unpacked bytes, then the layers or the archive.
pub(super) const FIRST: RawFd = 3;
/// Of a message or cause, characters.
const TEXT_LIMIT: usize = 1000;
/// Causes that are told.
const CAUSE_LIMIT: usize = 8;

/// What is to be done with the descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) content: Content,
    /// Of unpacked bytes.
    pub(super) keep_bytes: u64,
    pub(super) order: Order,
}

/// What the image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Content {
    /// This many layers.
    Layers(usize),
    /// One archive of a whole root.
    Root,
}

impl Task {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a task is plain JSON")
    }
}

/// A line of progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum News {
    Stage(String, String),
    Bytes(u64, Option<u64>),
}

impl News {
    pub(super) fn from_line(line: &str) -> Option<News> {
        serde_json::from_str(line).ok()
    }

    pub(super) fn tell(&self, report: &dyn Report) {
        match self {
            // Only words that it really has.
            News::Stage(stage, _) if stage == "read_layers" => report.stage("read_layers", ""),
            News::Stage(stage, _) if stage == "read_root" => report.stage("read_root", ""),
            News::Stage(stage, _) if stage == "write_image" => report.stage("write_image", ""),
            News::Stage(..) => {}
            News::Bytes(done, total) => report.bytes(*done, *total),
        }
    }
}

/// The last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Written(Written),
    Refused(Refused),
}

impl Answer {
    pub(super) fn from_json(json: &[u8]) -> Option<Answer> {
        serde_json::from_slice(json).ok().map(Answer::bounded)
    }

    fn bounded(self) -> Answer {
        match self {
            Answer::Written(mut written) => {
                written.distro = written.distro.as_deref().map(plain);
                Answer::Written(written)
            }
            Answer::Refused(refused) => Answer::Refused(refused.bounded()),
        }
    }
}

/// Whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The image's.
    Image,
    /// Nobody's: the size that was asked for is too small.
    Size {
        /// One that is not, bytes.
        least: u64,
    },
    /// The disk is full.
    NoSpace,
    /// This host's, or ours.
    Host,
}

/// Why the process did not write an image, with the chain of causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Whose fault it was.
    pub fault: Fault,
    /// What went wrong.
    pub message: String,
    /// Why.
    #[source]
    pub cause: Option<Box<Refused>>,
}

impl Refused {
    pub(super) fn of(error: &OciError) -> Refused {
        let fault = if error.is_no_space() {
            Fault::NoSpace
        } else if let Some(least) = error.needs() {
            Fault::Size { least }
        } else if error.is_of_the_image() {
            Fault::Image
        } else {
            Fault::Host
        };
        Refused::chain(fault, error, CAUSE_LIMIT)
    }

    pub(super) fn chain(fault: Fault, error: &dyn std::error::Error, left: usize) -> Refused {
        let cause = error.source().filter(|_| left > 0);
        Refused {
            fault,
            message: error.to_string(),
            cause: cause.map(|cause| Box::new(Refused::chain(fault, cause, left - 1))),
        }
    }

    fn bounded(self) -> Refused {
        self.bounded_to(CAUSE_LIMIT)
    }

    fn bounded_to(self, left: usize) -> Refused {
        let cause = self.cause.filter(|_| left > 0);
        Refused {
            fault: self.fault,
            message: plain(&self.message),
            cause: cause.map(|cause| Box::new(cause.bounded_to(left - 1))),
        }
    }
}

fn plain(text: &str) -> String {
    let text = text.chars().take(TEXT_LIMIT);
    text.map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_says_is_cut_and_made_plain() {
        let mut refused = Refused {
            fault: Fault::Image,
            message: "\u{1b}[31m".repeat(10_000),
            cause: None,
        };
        for _ in 0..50 {
            refused = Refused {
                fault: Fault::Image,
                message: "outer".to_owned(),
                cause: Some(Box::new(refused)),
            };
        }
        let json = serde_json::to_vec(&Answer::Refused(refused)).unwrap();
        let Some(Answer::Refused(read)) = Answer::from_json(&json) else {
            panic!("it was a refusal");
        };
        let mut chain = vec![&read];
        while let Some(cause) = &chain.last().unwrap().cause {
            chain.push(cause);
        }
        assert_eq!(chain.len(), CAUSE_LIMIT + 1);
        let written = Answer::Written(Written {
            distro: Some(format!("{}\n", "x".repeat(5000))),
            ..Written::default()
        });
        let json = serde_json::to_vec(&written).unwrap();
        let Some(Answer::Written(read)) = Answer::from_json(&json) else {
            panic!("it was written");
        };
        assert_eq!(read.distro.unwrap().chars().count(), TEXT_LIMIT);
        // As deep as it likes: the reader of JSON has a limit of its own.
        let deep = format!(
            "{{\"refused\":{}",
            "{\"fault\":\"image\",\"message\":\"\",\"cause\":".repeat(100_000)
        );
        assert_eq!(Answer::from_json(deep.as_bytes()), None);
    }
}
