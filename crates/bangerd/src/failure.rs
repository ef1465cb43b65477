//! Why a use case failed, in the words of the API: what the HTTP edge sends
//! and what an operation records. Rooms below keep their own errors; here
//! they become one of the stable codes.

use banger_api::error::{Code, Error};

/// What gives room back.
const ROOM: &str = "banger disk --reclaim";

/// A use case that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// Stable name.
    pub(crate) code: Code,
    /// What was being done, and to what.
    pub(crate) message: String,
    /// The next step, where there is one.
    pub(crate) hint: Option<String>,
    /// Outer to inner.
    pub(crate) causes: Vec<String>,
}

impl Failure {
    /// A failure of this code. Where room is missing, the next step is known.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: (code == Code::NoSpace).then(|| ROOM.to_owned()),
            causes: Vec::new(),
        }
    }

    /// With a next step.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the chain of an error as causes.
    pub(crate) fn caused_by(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            self.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// A defect of ours.
    pub(crate) fn internal(what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::new(Code::Internal, what).caused_by(error)
    }

    /// Message and causes in one line, as people read it.
    pub(crate) fn sentence(&self) -> String {
        let mut text = self.message.clone();
        for cause in &self.causes {
            text.push_str(": ");
            text.push_str(cause);
        }
        text
    }

    /// As the API sends it.
    pub(crate) fn to_api(&self, op_id: &str) -> Error {
        Error {
            code: self.code,
            message: self.message.clone(),
            hint: self.hint.clone(),
            op_id: op_id.to_owned(),
            causes: self.causes.clone(),
        }
    }
}
