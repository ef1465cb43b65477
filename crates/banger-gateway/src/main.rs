//! `banger-gateway`: the way out of one VM.
//!
//! Started by the daemon, with the line to the guest and a listening control
//! socket as open descriptors, and of no use otherwise.

#![forbid(unsafe_code)]

use std::error::Error;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::time::Instant;

use banger_gateway::gateway::{Gateway, Setup};
use banger_gateway::{refusals, sandbox};
use banger_sys::daemon::{keep_heap_small, map_allocations_from, take_inherited};
use banger_wire::gateway::guest_mac;

const HELP: &str = "\
Carries the traffic of one VM. The daemon starts it.

Usage: banger-gateway --vm ID --line FD --control FD [--resolver ADDRESS]...
       banger-gateway --version | --help
";

/// Status of a wrong command line.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match Arguments::parse(lexopt::Parser::from_env()) {
        Ok(Errand::Serve(arguments)) => match serve(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {}", chain(&*error));
                ExitCode::FAILURE
            }
        },
        Ok(Errand::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("error: {error}\n\n{HELP}");
            ExitCode::from(USAGE)
        }
    }
}

/// The whole life of a gateway.
fn serve(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let line = take_inherited(arguments.line)?;
    let control = take_inherited(arguments.control)?;
    keep_heap_small();
    // The rings of flows; also one that lives long holds none of others back.
    map_allocations_from(8 << 10);
    refusals::log_panics();
    let gateway = Gateway::assemble(
        Setup {
            line,
            control,
            guest: arguments.guest,
            resolvers: arguments.resolvers,
        },
        Instant::now(),
    )?;
    sandbox::enter()?;
    Ok(gateway.run()?)
}

enum Errand {
    Serve(Arguments),
    Print(String),
}

struct Arguments {
    line: RawFd,
    control: RawFd,
    guest: [u8; 6],
    resolvers: Vec<IpAddr>,
}

impl Arguments {
    fn parse(mut parser: lexopt::Parser) -> Result<Errand, lexopt::Error> {
        use lexopt::prelude::*;
        let (mut line, mut control, mut guest) = (None, None, None);
        let mut resolvers = Vec::new();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("vm") => {
                    let id = parser.value()?.string()?;
                    let mac = guest_mac(&id);
                    guest = Some(mac.ok_or_else(|| format!("{id:?} is no VM's id"))?);
                }
                Long("line") => line = Some(parser.value()?.parse()?),
                Long("control") => control = Some(parser.value()?.parse()?),
                Long("resolver") => resolvers.push(parser.value()?.parse()?),
                Long("version") => return Ok(Errand::Print(version())),
                Long("help") | Short('h') => return Ok(Errand::Print(HELP.to_owned())),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Errand::Serve(Self {
            line: line.ok_or("--line is missing")?,
            control: control.ok_or("--control is missing")?,
            guest: guest.ok_or("--vm is missing")?,
            resolvers,
        }))
    }
}

fn version() -> String {
    format!(
        "banger-gateway v{} (commit {}, built {})\n",
        env!("CARGO_PKG_VERSION"),
        env!("BANGER_COMMIT"),
        env!("BANGER_BUILT_AT")
    )
}

/// An error with all that caused it.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
