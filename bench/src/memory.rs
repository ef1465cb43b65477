//! What a process and its children take of memory at most, told by the kernel.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

/// How often it is looked for children. What one took at most, the kernel remembers as long as
/// it lives.
const LOOK_EVERY: Duration = Duration::from_millis(5);

const ALONE_WITHIN: Duration = Duration::from_secs(30);

/// Bytes, before and at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peak {
    idle: u64,
    /// Most of the process itself, and most of its children together.
    own: u64,
    children: u64,
    /// Most of all of them at one time, what they share counted once.
    together: u64,
}

impl Peak {
    /// More than when idle, as if all had taken most at the same time.
    pub(crate) fn above(&self) -> u64 {
        (self.own + self.children).saturating_sub(self.idle)
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "idle {:.1} MiB, daemon at most {:.1}, its children {:.1}: {:.1} MiB more at most \
             ({:.1} at one time, what is shared counted once)",
            mib(self.idle),
            mib(self.own),
            mib(self.children),
            mib(self.above()),
            mib(self.together.saturating_sub(self.idle)),
        )
    }
}

/// Looks on until it is told to finish.
pub(crate) struct Watch {
    pid: u64,
    idle: u64,
    over: Arc<AtomicBool>,
    looking: JoinHandle<(u64, u64)>,
}

impl Watch {
    pub(crate) fn start(pid: u64) -> Result<Self> {
        // What a daemon asks other programs when it begins is not what is measured.
        let alone = || descendants(pid).is_empty().then_some(());
        let alone = e2e::wait::eventually(ALONE_WITHIN, alone);
        alone.context("the daemon has children when nothing is asked of it")?;
        let idle = field(pid, "status", "VmRSS:").context("a process has memory")?;
        // The most it took begins anew.
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&over);
        let looking = std::thread::spawn(move || look(pid, &done));
        Ok(Self {
            pid,
            idle,
            over,
            looking,
        })
    }

    pub(crate) fn finish(self) -> Result<Peak> {
        self.over.store(true, Ordering::SeqCst);
        let (children, together) = self.looking.join().expect("it does not panic");
        Ok(Peak {
            idle: self.idle,
            own: field(self.pid, "status", "VmHWM:").context("the daemon lives")?,
            children,
            together,
        })
    }
}

fn look(pid: u64, over: &AtomicBool) -> (u64, u64) {
    let (mut most, mut together) = (HashMap::new(), 0);
    while !over.load(Ordering::SeqCst) {
        let below = descendants(pid);
        let mut now = field(pid, "smaps_rollup", "Pss:").unwrap_or(0);
        for child in below {
            if let Some(bytes) = field(child, "status", "VmHWM:") {
                most.insert(child, bytes);
            }
            now += field(child, "smaps_rollup", "Pss:").unwrap_or(0);
        }
        together = now.max(together);
        e2e::wait::pause(LOOK_EVERY);
    }
    (most.values().sum(), together)
}

fn descendants(pid: u64) -> Vec<u64> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u64>().ok()),
            );
        }
    }
    found.remove(0);
    found
}

/// A number of KiB in a file of `/proc`, as bytes.
fn field(pid: u64, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
