//! The tree of commands, and how wrong usage is answered.
//!
//! Every VM verb exists twice, as `banger vm VERB` and as `banger VERB`. The
//! parser's messages are brought into our own form: `error:`, `hint:`,
//! `usage:`, exit 2.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::client::start::Place;
use crate::failure::USAGE;
use crate::verbs::{self, daemon, image, internal, kernel, operation};
use crate::{show, version};

/// Shape of every help page.
const HELP: &str = "{about-with-newline}\nusage: {usage}\n\n{all-args}{after-help}";

/// Linux sandboxes: one command boots a real microVM and runs a command in it
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version = version::LONG,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:
  banger run                          a root shell in a fresh machine
  banger run --rm -- uname -r         run one command, leave no trace
  banger create --name box            a machine whose disks survive
  banger exec box -- make test        its exit status is yours"
)]
pub(crate) struct Cli {
    /// Socket of the daemon
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "BANGER_SOCKET",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Cli {
    /// Where the daemon is to be found.
    pub(crate) fn place(&self) -> Place {
        Place {
            socket: self
                .socket
                .clone()
                .filter(|socket| !socket.as_os_str().is_empty()),
        }
    }
}

/// Everything at the top.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[command(flatten)]
    Vm(VmVerb),
    /// Virtual machines; every verb also works without `vm`
    #[command(name = "vm", subcommand_required = true, arg_required_else_help = true)]
    VmGroup {
        #[command(subcommand)]
        verb: VmVerb,
    },
    /// List VMs that are not at rest
    Ps(verbs::list::Ps),
    /// Root filesystems
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Image {
        #[command(subcommand)]
        verb: image::Verb,
    },
    /// List images
    Images(image::List),
    /// Fetch an image by its name in the catalog, or from a registry
    Pull(image::Pull),
    /// Kernels
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Kernel {
        #[command(subcommand)]
        verb: kernel::Verb,
    },
    /// Long work of the daemon
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Operation {
        #[command(subcommand)]
        verb: operation::Verb,
    },
    /// The daemon itself
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Daemon {
        #[command(subcommand)]
        verb: daemon::Verb,
    },
    /// Show what takes room on the disk, or give it back
    Disk(verbs::disk::Disk),
    /// Look for what is missing on this host
    Doctor(verbs::doctor::Doctor),
    /// Print the completion script of a shell
    Completion(verbs::completion::Completion),
    /// Print versions
    Version,
    /// For who maintains banger or a catalog
    #[command(hide = true, subcommand_required = true, arg_required_else_help = true)]
    Internal {
        #[command(subcommand)]
        verb: internal::Verb,
    },
}

/// Everything one does with VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    Run(verbs::run::Run),
    Create(verbs::create::Create),
    Start(verbs::power::Start),
    Stop(verbs::power::Stop),
    Restart(verbs::power::Restart),
    Kill(verbs::power::Kill),
    #[command(visible_alias = "rm")]
    Delete(verbs::delete::Delete),
    List(verbs::list::List),
    Show(verbs::show::Show),
    Exec(verbs::exec::Exec),
    Logs(verbs::logs::Logs),
    Wait(verbs::wait::Wait),
    Rename(verbs::set::Rename),
    Set(verbs::set::Set),
    Prune(verbs::prune::Prune),
    Stats(verbs::stats::Stats),
    Events(verbs::events::EventsOf),
    Health(verbs::health::Health),
    Ping(verbs::health::Ping),
}

/// The tree, dressed.
pub(crate) fn command() -> Command {
    dress(Cli::command())
}

fn dress(command: Command) -> Command {
    command
        .help_template(HELP)
        .mut_subcommands(dress)
        .disable_help_subcommand(true)
}

/// Parses the arguments of this process. Help, versions and wrong usage are
/// answered here; the error is the status to exit with.
pub(crate) fn parse() -> Result<Cli, u8> {
    let mut command = command();
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    let error = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    Err(match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = tidy_help(&error.render().to_string());
            let defaults = if makes_a_vm(&text) {
                crate::complete::vm_defaults()
            } else {
                String::new()
            };
            match show::write(format!("{text}{defaults}").as_bytes()) {
                Ok(()) => 0,
                Err(failure) => failure.exit,
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            show::note(tidy_help(&error.render().to_string()).trim_end());
            USAGE
        }
        _ => {
            let mut lines = wrong_usage(&error.render().to_string());
            if !lines.iter().any(|line| line.starts_with("usage: ")) {
                lines.push(format!(
                    "usage: {}",
                    usage_of(&path_of(std::env::args().skip(1)))
                ));
            }
            for line in lines {
                show::note(&line);
            }
            USAGE
        }
    })
}

/// Help of `run` and `create`, where the defaults of new VMs matter.
fn makes_a_vm(help: &str) -> bool {
    [
        "banger run ",
        "banger create ",
        "banger vm run ",
        "banger vm create ",
    ]
    .iter()
    .any(|command| {
        help.lines()
            .any(|line| line.starts_with(&format!("usage: {command}")))
    })
}

fn tidy_help(text: &str) -> String {
    let mut out: String = text
        .trim_end()
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    while out.contains("\n\n\n") {
        out = out.replace("\n\n\n", "\n\n");
    }
    out
}

/// The parser's words in our form.
fn wrong_usage(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let inner = line.trim_start();
        if inner.is_empty() || inner.starts_with("For more information") {
            continue;
        }
        let line = if let Some(usage) = inner.strip_prefix("Usage: ") {
            format!("usage: {usage}")
        } else if let Some(tip) = inner.strip_prefix("tip: ") {
            format!("hint: {tip}")
        } else {
            show::escape(line)
        };
        let line = match (line.strip_prefix("error: "), line.strip_prefix("hint: ")) {
            (Some(rest), _) => format!("{} {rest}", show::paint_stderr(show::Style::Bad, "error:")),
            (_, Some(rest)) => format!("{} {rest}", show::paint_stderr(show::Style::Good, "hint:")),
            (None, None) => line,
        };
        lines.push(line);
    }
    lines
}

/// The command that these arguments name, as far as they name one.
fn path_of(arguments: impl Iterator<Item = String>) -> String {
    let tree = command();
    let mut found = &tree;
    let mut path = Vec::new();
    for word in arguments.filter(|word| !word.starts_with('-')) {
        match found.find_subcommand(&word) {
            Some(next) => {
                path.push(next.get_name().to_owned());
                found = next;
            }
            // The value of a flag may come before the command.
            None if path.is_empty() => {}
            None => break,
        }
    }
    path.join(" ")
}

/// Usage of a command by its path, like `vm run`, without the word `usage`.
pub(crate) fn usage_of(path: &str) -> String {
    let mut command = command();
    command.build();
    let mut found = &mut command;
    for word in path.split_whitespace() {
        found = found
            .find_subcommand_mut(word)
            .expect("callers name commands of the tree");
    }
    let usage = found.render_usage().to_string();
    usage.trim_start_matches("Usage: ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_vm_verb_works_with_and_without_vm() {
        let tree = command();
        let group = tree.find_subcommand("vm").unwrap();
        for verb in group.get_subcommands() {
            assert!(
                tree.find_subcommand(verb.get_name()).is_some(),
                "{}",
                verb.get_name()
            );
        }
        assert!(tree.find_subcommand("rm").is_some());
    }

    #[test]
    fn wrong_usage_has_an_error_a_hint_and_the_usage() {
        let error = command()
            .try_get_matches_from(["banger", "create", "--vcpus", "2"])
            .unwrap_err();
        let lines = wrong_usage(&error.render().to_string());
        assert!(
            lines[0].starts_with("error: unexpected argument '--vcpus'"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("hint: "), "{lines:?}");
        assert!(lines[2].starts_with("usage: banger create"), "{lines:?}");
    }

    #[test]
    fn usage_names_the_whole_command() {
        assert!(
            usage_of("run").starts_with("banger run "),
            "{}",
            usage_of("run")
        );
        assert!(usage_of("image build").starts_with("banger image build "));
    }

    #[test]
    fn arguments_lead_to_the_command_they_name() {
        let path = |words: &[&str]| path_of(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(
            path(&["--socket", "/s", "vm", "run", "--vcpu", "0"]),
            "vm run"
        );
        assert_eq!(path(&["rm", "box"]), "delete");
        assert_eq!(path(&[]), "");
    }

    #[test]
    fn what_comes_later_is_wrong_usage_now() {
        for words in [
            &["banger", "run", "./repo"][..],
            &["banger", "run", "--publish", "80:80"],
            &["banger", "ssh", "box"],
            &["banger", "pause", "box"],
            &["banger", "cp", "a", "box:b"],
        ] {
            assert!(command().try_get_matches_from(words).is_err(), "{words:?}");
        }
    }
}
