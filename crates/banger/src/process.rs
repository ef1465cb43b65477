//! The command of `run` and `exec`: its flags, and which streams it gets.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_api::error::Code;
use banger_api::vm::ExecParams;
use clap::Args;

use crate::failure::{Failure, NOT_RUN};
use crate::session::Streams;
use crate::show::size::parse_duration;
use crate::terminal::{self, Terminals};

/// Flags of a command in a guest.
#[derive(Debug, Args)]
pub(crate) struct ProcessFlags {
    /// Set a variable, or take it over from here; repeats
    #[arg(short, long, value_name = "K[=V]", value_parser = parse_variable)]
    env: Vec<Variable>,
    /// Directory to run in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User of the guest: name or number, with optional :group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Pass standard input
    #[arg(short)]
    interactive: bool,
    /// With a terminal
    #[arg(short, conflicts_with = "no_tty")]
    tty: bool,
    /// Without a terminal
    #[arg(short = 'T')]
    no_tty: bool,
    /// TERM to the command after this time, KILL 10 s later; exit 124
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// A variable, or the name of one to take over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    name: String,
    value: Option<String>,
}

fn parse_variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("a variable has a name".to_owned());
    }
    Ok(Variable {
        name: name.to_owned(),
        value,
    })
}

impl ProcessFlags {
    /// Which streams the command gets on these terminals. `shell` is a bare
    /// shell, which always takes standard input.
    pub(crate) fn streams(&self, terminals: Terminals, shell: bool) -> Result<Streams, Failure> {
        if self.tty && !terminals.stdin {
            return Err(
                Failure::new(Code::BadRequest, "-t needs a terminal on standard input")
                    .hint("leave -t out, or pass -T")
                    .exiting(NOT_RUN),
            );
        }
        Ok(Streams {
            stdin: self.interactive || terminals.stdin || shell,
            tty: self.tty || (terminals.all() && !self.no_tty),
        })
    }

    /// The request for `command`; an empty one is the login shell.
    pub(crate) fn params(&self, command: &[String], streams: Streams) -> ExecParams {
        let (command, args) = match command.split_first() {
            Some((command, args)) => (command.clone(), args.to_vec()),
            None => (String::new(), Vec::new()),
        };
        let size = if streams.tty { terminal::size() } else { None };
        let term = streams.tty.then(|| std::env::var("TERM").ok()).flatten();
        ExecParams {
            command,
            args,
            cwd: self.workdir.clone(),
            env: self.variables(term, |name| std::env::var(name).ok()),
            user: self.user.clone(),
            stdin: streams.stdin,
            tty: streams.tty,
            cols: size.map(|(cols, _)| cols),
            rows: size.map(|(_, rows)| rows),
            timeout_ms: self
                .timeout
                .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1)),
            main: false,
        }
    }

    /// Variables for the guest: the terminal's kind, then what was asked for.
    /// A variable to take over that is not set here stays unset there.
    fn variables(
        &self,
        term: Option<String>,
        here: impl Fn(&str) -> Option<String>,
    ) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        variables.extend(term.map(|term| ("TERM".to_owned(), term)));
        for variable in &self.env {
            if let Some(value) = variable.value.clone().or_else(|| here(&variable.name)) {
                variables.insert(variable.name.clone(), value);
            }
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: ProcessFlags,
    }

    fn flags(words: &[&str]) -> ProcessFlags {
        Line::parse_from([&["x"], words].concat()).flags
    }

    fn terminals(mask: &str) -> Terminals {
        Terminals {
            stdin: mask.contains('i'),
            stdout: mask.contains('o'),
            stderr: mask.contains('e'),
        }
    }

    #[test]
    fn the_streams_follow_flags_and_terminals() {
        // Flags, terminals, bare shell: standard input, PTY.
        type Case<'a> = (&'a [&'a str], &'a str, bool, (bool, bool));
        let cases: &[Case<'_>] = &[
            (&[], "ioe", false, (true, true)),
            (&["-T"], "ioe", false, (true, false)),
            (&[], "ie", false, (true, false)),
            (&[], "io", false, (true, false)),
            (&[], "i", false, (true, false)),
            (&[], "oe", false, (false, false)),
            (&[], "", false, (false, false)),
            (&["-i"], "", false, (true, false)),
            (&[], "", true, (true, false)),
            (&["-t"], "i", false, (true, true)),
        ];
        for (words, mask, shell, (stdin, tty)) in cases {
            let streams = flags(words).streams(terminals(mask), *shell).unwrap();
            assert_eq!(
                streams,
                Streams {
                    stdin: *stdin,
                    tty: *tty
                },
                "{words:?} {mask:?} {shell}"
            );
        }
    }

    #[test]
    fn a_pty_without_a_terminal_is_refused_with_125() {
        let failure = flags(&["-t"]).streams(terminals("oe"), false).unwrap_err();
        assert_eq!(failure.exit, 125);
        assert!(failure.lines()[1].starts_with("hint: "));
    }

    #[test]
    fn variables_are_set_taken_over_or_left_out() {
        let flags = flags(&[
            "-e", "A=1=2", "-e", "HERE", "-e", "NOT_HERE", "-e", "EMPTY=",
        ]);
        let variables = flags.variables(Some("xterm".into()), |name| {
            (name == "HERE").then(|| "yes".to_owned())
        });
        let expected = [
            ("A", "1=2"),
            ("EMPTY", ""),
            ("HERE", "yes"),
            ("TERM", "xterm"),
        ];
        assert_eq!(
            variables,
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
        assert!(parse_variable("=x").is_err());
    }
}
