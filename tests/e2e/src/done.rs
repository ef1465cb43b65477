//! A program that has ended, and what a test demands of its end.

use std::time::Duration;

use serde_json::Value;

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Done {
    /// Exit status; minus the signal's number where one killed it.
    pub code: i32,
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its errors and notes.
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub took: Duration,
    /// The command line.
    pub shown: String,
}

impl Done {
    /// Output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Output as text, without space at the ends.
    #[must_use]
    pub fn line(&self) -> String {
        self.out().trim().to_owned()
    }

    /// Errors and notes as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless it ended with this status.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Fails the test unless it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect(0)
    }

    /// Fails the test unless stderr holds the text.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.err().contains(text), "no {text:?} on stderr\n{self}");
        self
    }

    /// Output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("no JSON on stdout: {e}\n{self}"))
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\nstatus: {} after {:.1} s\nstdout: {}\nstderr: {}",
            self.shown,
            self.code,
            self.took.as_secs_f32(),
            shorten(&self.out()),
            self.err()
        )
    }
}

pub(crate) fn shorten(text: &str) -> String {
    if text.len() <= 4000 {
        text.to_owned()
    } else {
        format!("{} bytes", text.len())
    }
}
