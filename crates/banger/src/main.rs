//! The banger command line: parse, ask the daemon, show.
//!
//! It decides nothing about VMs. One current-thread runtime, started after
//! parsing, so that a command reaches the daemon within milliseconds.

#![forbid(unsafe_code)]

mod ask;
mod cli;
mod client;
mod complete;
mod failure;
mod follow;
mod interrupt;
mod many;
mod paths;
mod process;
mod session;
mod show;
mod terminal;
mod verbs;
mod version;

use std::process::ExitCode;
use std::time::Instant;

use banger_api::error::Code;

use crate::failure::Failure;

fn main() -> ExitCode {
    let started = Instant::now();
    complete::answer_a_shell();
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(status) => return ExitCode::from(status),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let status = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(verbs::run(cli, started));
            // A thread may still wait for a terminal's next key.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::new(Code::Internal, "cannot start the runtime").because(&error)),
    };
    match status {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit)
        }
    }
}
