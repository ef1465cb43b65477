//! `completion`: the script that makes a shell ask us.

use banger_api::error::Code;
use clap::{Args, ValueEnum};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use crate::failure::Failure;

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(banger completion bash)
  banger completion fish > ~/.config/fish/completions/banger.fish")]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Shells that can ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    /// Prints it.
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let completer: &dyn EnvCompleter = match self.shell {
            Shell::Bash => &Bash,
            Shell::Zsh => &Zsh,
            Shell::Fish => &Fish,
        };
        let mut script = Vec::new();
        completer
            .write_registration("COMPLETE", "banger", "banger", "banger", &mut script)
            .map_err(|error| {
                Failure::new(Code::Internal, "cannot write the script").because(&error)
            })?;
        super::print_text(&String::from_utf8_lossy(&script))
    }
}
