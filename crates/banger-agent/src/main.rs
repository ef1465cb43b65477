//! The guest agent: the first process of the guest machine.
//!
//! ```text
//! kernel ─► early: file systems, drivers ─► line to the daemon
//!              /boot: disks, root, the image's init in a namespace of its own
//!              /exec: commands inside        /stop, or the init's end:
//!              everything unmounted ─► daemon told ─► machine reset
//! ```
//!
//! It never exits: whatever goes wrong ends in a reset, which the engine takes
//! for the end of the machine.

#![forbid(unsafe_code)]

mod agent;
mod boot;
mod console;
mod early;
mod edge;
mod exec;
mod init;
mod line;
mod modprobe;
mod pack;
mod serve;
mod stop;

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use banger_wire::agent::{EndReason, Ended};
use rustix::fs::{Mode, OFlags};
use rustix::system::{RebootCommand, reboot};
use tokio_util::task::TaskTracker;

use crate::agent::Agent;
use crate::console::{last_words, say};

fn main() {
    match std::env::args_os().next() {
        Some(name) if name == init::stub::NAME => init::stub::run(),
        Some(name) if name == modprobe::NAME => modprobe::run(),
        _ => {}
    }
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        // Started by hand somewhere: nothing here is safe for that machine.
        return;
    }
    std::panic::set_hook(Box::new(|panic| say(&format!("a task failed: {panic}"))));
    let ended = catch_unwind(AssertUnwindSafe(live)).unwrap_or_else(|_| crashed("panic"));
    last_words(&ended);
    reset();
}

/// The machine's whole life, from drivers to clean disks.
fn live() -> Ended {
    early::set_up(boot::begin);
    let port = match line::open_port() {
        Ok(port) => port,
        Err(error) => return crashed(&chain(&error)),
    };
    boot::stage("channel", early::uptime_ms());
    let null = match rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(null) => null,
        Err(error) => return crashed(&format!("cannot open /dev/null: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return crashed(&format!("cannot start the runtime: {error}")),
    };
    let ended = runtime.block_on(async {
        let agent = Arc::new(Agent::new(null));
        let connections = serve::Connections::new(Arc::clone(&agent));
        let boot_id = boot::identity::boot_id();
        let line_tasks = TaskTracker::new();
        let on_line = Arc::clone(&agent);
        line_tasks.spawn(async move {
            if let Err(error) = line::serve(port, boot_id, &connections).await {
                say(&format!("the line is broken: {}", chain(&error)));
                // Nobody can ask for anything any more.
                on_line.ask_stop(stop::GRACE_WITHOUT_LINE);
            }
        });
        stop::at_the_end(&agent).await
    });
    // A thread may hang in the kernel; the reset does not wait for it.
    runtime.shutdown_background();
    ended
}

fn crashed(status: &str) -> Ended {
    say(status);
    Ended {
        reason: EndReason::Crash,
        status: status.to_owned(),
        clean: false,
    }
}

/// Resets the machine. Where the kernel refuses there is nothing left to do,
/// and pid 1 still must not exit.
fn reset() -> ! {
    loop {
        if let Err(error) = reboot(RebootCommand::Restart) {
            say(&format!("cannot reset: {error}"));
        }
        std::thread::park();
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
