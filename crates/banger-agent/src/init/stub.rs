//! The init of an image that has none: reaps, and ends when asked, in every
//! way that programs ask an init. Runs as a program of its own, first in the
//! guest's namespace; it is the agent's file under another name.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use banger_sys::guest::signals::{AllBlocked, send_to_all};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// `argv[0]` by which the agent's file runs as the stub.
pub(crate) const NAME: &str = "banger-init";
/// How long processes have between TERM and KILL.
const GRACE: Duration = Duration::from_secs(3);
/// How often processes that nobody reports to us are looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What a signal asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Reap,
    End(RebootCommand),
    Nothing,
}

/// Signals by their traditional meaning for an init.
fn meaning(signal: i32) -> Asked {
    match signal {
        17 => Asked::Reap,
        // SIGTERM: reboot, as busybox has it; the machine's own end too.
        15 => Asked::End(RebootCommand::Restart),
        // SIGUSR1 and SIGUSR2: halt and power off.
        10 => Asked::End(RebootCommand::Halt),
        12 => Asked::End(RebootCommand::PowerOff),
        _ => Asked::Nothing,
    }
}

/// The stub's life.
pub(crate) fn run() -> ! {
    let _ = rustix::thread::set_name(c"init");
    let signals = AllBlocked::block();
    loop {
        let _ = reap();
        match signals.next(None).map_or(Asked::Nothing, meaning) {
            Asked::Reap | Asked::Nothing => {}
            Asked::End(how) => end(signals, how),
        }
    }
}

/// Reaps every dead child; breaks when there is no child at all.
fn reap() -> ControlFlow<()> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return ControlFlow::Continue(()),
            Err(_) => return ControlFlow::Break(()),
        }
    }
}

/// Ends everything and then the namespace; its caller outside sees which way.
fn end(signals: AllBlocked, how: RebootCommand) -> ! {
    let deadline = Instant::now() + GRACE;
    let _ = send_to_all(15);
    let _ = send_to_all(18);
    // Commands from outside are not our children: look for any process.
    while Instant::now() < deadline && (reap().is_continue() || send_to_all(0).is_ok()) {
        if send_to_all(0).is_err() {
            break;
        }
        let _ = signals.next(Some(LOOK));
    }
    let _ = send_to_all(9);
    let _ = reboot(how);
    // Not reached in a namespace: the call ends its first process.
    std::process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_signals_of_an_end_end_it() {
        let ends: Vec<i32> = (1..65)
            .filter(|signal| matches!(meaning(*signal), Asked::End(_)))
            .collect();
        assert_eq!(ends, [10, 12, 15]);
    }
}
