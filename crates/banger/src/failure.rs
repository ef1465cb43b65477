//! Why a command failed, how that is said, and with which status it exits.
//!
//! Everything that fails becomes a [`Failure`]; `main` prints it once. What
//! came from a guest or a file is escaped here, so that it cannot steer the
//! terminal.

use banger_api::error::{Code, Error};
use banger_api::operation::Operation;

use crate::show::{Style, escape_lines, paint_stderr};

/// Wrong usage.
pub(crate) const USAGE: u8 = 2;
/// A condition did not come in time, or a command ran too long.
pub(crate) const TIMED_OUT: u8 = 124;
/// A command never ran, or its end is not known.
pub(crate) const NOT_RUN: u8 = 125;
/// Ended by an interrupt.
pub(crate) const INTERRUPTED: u8 = 130;
/// As a shell reports a death by SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// A command that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// Exit status.
    pub(crate) exit: u8,
    /// Stable name, where the failure has one.
    pub(crate) code: Option<Code>,
    report: Option<Box<Report>>,
}

#[derive(Debug, Clone)]
struct Report {
    message: String,
    causes: Vec<String>,
    op_id: String,
    hint: Option<String>,
    usage: Option<String>,
}

impl Failure {
    /// A failure of this kind, in the CLI's own words.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self::of(Error {
            code,
            message: message.into(),
            hint: None,
            op_id: String::new(),
            causes: Vec::new(),
        })
    }

    /// An error of the API.
    pub(crate) fn of(error: Error) -> Self {
        Self {
            exit: error.code.exit(),
            code: Some(error.code),
            report: Some(Box::new(Report {
                message: error.message,
                causes: error.causes,
                op_id: error.op_id,
                hint: error.hint,
                usage: None,
            })),
        }
    }

    /// An operation that did not do what it should.
    pub(crate) fn of_operation(operation: &Operation) -> Self {
        let code = operation.error_code.unwrap_or(if operation.cancelled {
            Code::Cancelled
        } else {
            Code::Internal
        });
        let message = operation.error.clone().unwrap_or_else(|| {
            let subject = operation
                .vm_name
                .as_deref()
                .or(operation.image_name.as_deref())
                .unwrap_or("it");
            let how = if operation.cancelled {
                "was cancelled"
            } else {
                "failed"
            };
            format!("{} of {subject:?} {how}", operation.kind)
        });
        Self::of(Error {
            code,
            message,
            hint: operation.hint.clone(),
            op_id: operation.id.clone(),
            causes: Vec::new(),
        })
    }

    /// Wrong usage that the parser cannot see; `command` is the path of the
    /// command, like `vm run`.
    pub(crate) fn usage(command: &str, message: impl Into<String>) -> Self {
        let mut failure = Self::new(Code::BadRequest, message);
        if let Some(report) = &mut failure.report {
            report.usage = Some(crate::cli::usage_of(command));
        }
        failure
    }

    /// Nothing is said; the status says it.
    pub(crate) fn silent(exit: u8) -> Self {
        Self {
            exit,
            code: None,
            report: None,
        }
    }

    /// Standard output could not be written. A reader that went away is no
    /// error worth words.
    pub(crate) fn of_output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::silent(BROKEN_PIPE);
        }
        Self::new(Code::Internal, "cannot write to standard output").because(error)
    }

    /// With a cause.
    pub(crate) fn because(mut self, cause: &dyn std::error::Error) -> Self {
        if let Some(report) = &mut self.report {
            let mut next = Some(cause);
            while let Some(error) = next {
                report.causes.push(error.to_string());
                next = error.source();
            }
        }
        self
    }

    /// With a next step, unless it has one.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(report) = &mut self.report {
            report.hint.get_or_insert(hint.into());
        }
        self
    }

    /// With another exit status.
    pub(crate) fn exiting(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// The lines for standard error.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Some(report) = &self.report else {
            return Vec::new();
        };
        let mut text = report.message.clone();
        for cause in &report.causes {
            if !text.ends_with(cause.as_str()) {
                text.push_str(": ");
                text.push_str(cause);
            }
        }
        let text = escape_lines(&text);
        let mut parts = text.trim_end().lines();
        let mut first = format!(
            "{} {}",
            paint_stderr(Style::Bad, "error:"),
            parts.next().unwrap_or("")
        );
        if !report.op_id.is_empty() {
            first.push_str(&format!(" ({})", escape_lines(&report.op_id)));
        }
        let mut lines = vec![first];
        lines.extend(parts.map(str::to_owned));
        if let Some(hint) = &report.hint {
            lines.push(format!(
                "{} {}",
                paint_stderr(Style::Good, "hint:"),
                escape_lines(hint)
            ));
        }
        if let Some(usage) = &report.usage {
            lines.push(format!("usage: {usage}"));
        }
        lines
    }

    /// Says it on standard error.
    pub(crate) fn print(&self) {
        for line in self.lines() {
            crate::show::note(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code) -> Error {
        Error {
            code,
            message: "cannot start \"web\"".into(),
            hint: Some("install qemu".into()),
            op_id: "op-0123456789ab".into(),
            causes: vec!["no engine found".into()],
        }
    }

    #[test]
    fn an_error_names_what_failed_why_which_request_and_what_to_do() {
        assert_eq!(
            Failure::of(error(Code::NoEngine)).lines(),
            [
                "error: cannot start \"web\": no engine found (op-0123456789ab)",
                "hint: install qemu"
            ]
        );
    }

    #[test]
    fn every_kind_has_its_exit_status() {
        let statuses: Vec<u8> = [
            Code::BadSize,
            Code::NotFound,
            Code::InUse,
            Code::NoSpace,
            Code::Interrupted,
        ]
        .map(|code| Failure::of(error(code)).exit)
        .into();
        assert_eq!(statuses, [2, 3, 4, 5, 70]);
    }

    #[test]
    fn a_console_tail_keeps_its_lines_but_not_its_escape_sequences() {
        let mut raw = error(Code::GuestFailed);
        raw.causes.clear();
        raw.message = "\"web\" did not answer\n[ 1.0] \u{1b}[31mpanic\u{7}".into();
        let lines = Failure::of(raw).lines();
        assert_eq!(lines[0], "error: \"web\" did not answer (op-0123456789ab)");
        assert_eq!(lines[1], "[ 1.0] \\x1b[31mpanic\\x07");
    }

    #[test]
    fn a_cause_that_the_message_already_ends_with_is_said_once() {
        let mut raw = error(Code::NoEngine);
        raw.message = "cannot start: no engine found".into();
        assert_eq!(
            Failure::of(raw).lines()[0],
            "error: cannot start: no engine found (op-0123456789ab)"
        );
    }

    #[test]
    fn a_reader_that_went_away_ends_the_command_like_sigpipe() {
        let failure = Failure::of_output(&std::io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.exit, failure.lines().len()), (141, 0));
    }
}
