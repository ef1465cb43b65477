//! The machine's end, asked for or not: the guest's processes gone, disks
//! clean, the daemon told. The reset itself is its caller's.
//!
//! ```text
//! /stop ─► commands TERM, KILL ─► init asked, killed ─┐
//! the init's own end ─────────────────────────────────┴► trim ─► unmount
//!    ─► both disks open alone ─► told ─► (reset)
//! ```
//!
//! `/pack` is a stop after which, before anything is unmounted, the root is
//! packed for whoever asked.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use banger_wire::agent::{EndReason, Ended, Event};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::agent::Agent;
use crate::boot::mounts;
use crate::console::say;
use crate::exec::signal_session;
use crate::init::InitEnd;
use crate::pack;

/// Grace of a stop that nobody can ask for any more.
pub(crate) const GRACE_WITHOUT_LINE: Duration = Duration::from_secs(10);
/// How long a killed namespace may take to be gone.
const KILLED: Duration = Duration::from_secs(10);
/// How long the last output of commands may take to be sent.
const LAST_OUTPUT: Duration = Duration::from_millis(200);
/// How long to wait for a boot that is under way.
const BOOT: Duration = Duration::from_secs(30);
/// How long a mount may stay busy.
const BUSY: Duration = Duration::from_secs(5);
/// The kernel gives a mount namespace back some time after its last process,
/// and tells nobody when: hence asking again.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// How long the daemon has to say that it saw the end.
const SEEN: Duration = Duration::from_secs(1);
/// How long discards may take.
const TRIM: Duration = Duration::from_secs(2);
/// Bytes of one discard request.
const TRIM_STEP: u64 = 4 << 30;

/// Waits for the end, brings it about, and tells the daemon.
pub(crate) async fn at_the_end(agent: &Arc<Agent>) -> Ended {
    let mut quiet = false;
    let (reason, status) = tokio::select! {
        grace = agent.stop_asked() => {
            agent.close();
            let end = end_guest(agent, grace).await;
            quiet = end.is_some();
            (EndReason::Stop, end.map_or_else(|| "not booted".to_owned(), InitEnd::words))
        }
        end = async { agent.booted().await.init.ended().await } => {
            agent.close();
            (end.reason(), end.words())
        }
    };
    if timeout(KILLED, agent.commands_over()).await.is_err() {
        say("commands outlive their namespace");
    }
    if let Some(guest) = agent.guest() {
        guest.init.spawner.close();
    }
    // What the kernel asked for modules is outside of the guest's namespace, and may hang on what
    // is unmounted next.
    let _ = banger_sys::guest::signals::send_to_all(9);
    let _ = timeout(LAST_OUTPUT, agent.outputs_over()).await;
    if let (Some(guest), Some(to)) = (agent.guest(), agent.take_pack()) {
        pack::send(&guest.request, quiet, to).await;
    }
    let clean = put_disks_away().await;
    let ended = Ended {
        reason,
        status,
        clean,
    };
    agent.tell(Event::Ended(ended.clone()));
    if agent.is_heard() {
        let _ = timeout(SEEN, agent.end_seen.notified()).await;
    }
    ended
}

/// Ends commands and init within the grace; half of it is the commands'.
async fn end_guest(agent: &Arc<Agent>, grace: Duration) -> Option<InitEnd> {
    let _ = timeout(BOOT, agent.boot_over()).await;
    let guest = agent.guest()?;
    // Written while the processes are still busy ending, not only after.
    let syncing = tokio::task::spawn_blocking(rustix::fs::sync);
    let deadline = Instant::now() + grace;
    let signal_commands = |signal| {
        for session in agent.sessions() {
            signal_session(session, signal);
        }
    };
    signal_commands(15);
    if timeout(grace / 2, agent.commands_over()).await.is_err() {
        signal_commands(9);
    }
    let end = guest.init.ended();
    let is_asked = timeout_at(deadline, guest.init.ask_to_end(agent))
        .await
        .unwrap_or(false);
    let ended = match is_asked {
        true => timeout_at(deadline, end).await.ok(),
        false => None,
    };
    let ended = match ended {
        Some(ended) => Some(ended),
        None => {
            guest.init.kill();
            timeout(KILLED, guest.init.ended()).await.ok()
        }
    };
    let _ = timeout(KILLED, syncing).await;
    ended
}

/// One mount of the agent's own.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    point: String,
    source: String,
}

/// The mounts below `/mnt` in the order they were made.
fn parse_mounts(mountinfo: &str) -> Vec<Mounted> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        let source = after.split(' ').nth(1)?;
        point.starts_with("/mnt/").then(|| Mounted {
            point: point.replace("\\040", " "),
            source: source.to_owned(),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Unmounts everything and makes sure of it; true when both disks are clean.
async fn put_disks_away() -> bool {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = parse_mounts(&mountinfo);
    let disks: Vec<String> = mounted
        .iter()
        .filter(|mount| [mounts::OVERLAY, mounts::WORK].contains(&mount.point.as_str()))
        .map(|mount| mount.source.clone())
        .collect();
    let trimmed = tokio::task::spawn_blocking(|| {
        for disk in [mounts::OVERLAY, mounts::WORK] {
            trim(disk);
        }
    });
    let _ = timeout(TRIM * 2, trimmed).await;
    for mount in mounted.iter().rev() {
        if let Err(error) = unmount_patiently(&mount.point).await {
            say(&format!("cannot unmount {}: {error}", mount.point));
        }
    }
    let mut clean = true;
    for disk in &disks {
        clean &= is_free(disk).await || freeze(disk);
    }
    let _ = tokio::task::spawn_blocking(rustix::fs::sync).await;
    clean
}

/// Tells the device what is free, as far as time allows.
fn trim(point: &str) {
    let Ok(directory) = fs::File::open(point) else {
        return;
    };
    let Ok(about) = rustix::fs::statvfs(point) else {
        return;
    };
    let size = about.f_blocks * about.f_frsize;
    let deadline = std::time::Instant::now() + TRIM;
    let mut start = 0;
    while start < size && std::time::Instant::now() < deadline {
        if banger_sys::guest::device::trim(directory.as_fd(), start, TRIM_STEP).is_err() {
            return;
        }
        start += TRIM_STEP;
    }
}

async fn unmount_patiently(point: &str) -> rustix::io::Result<()> {
    let deadline = Instant::now() + BUSY;
    loop {
        let path = point.to_owned();
        let done = tokio::task::spawn_blocking(move || unmount(path, UnmountFlags::NOFOLLOW)).await;
        match done.unwrap_or(Err(rustix::io::Errno::IO)) {
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => sleep(ASK_AGAIN).await,
            other => return other,
        }
    }
}

/// Whether nobody has the disk mounted any more: only then is it clean.
async fn is_free(disk: &str) -> bool {
    let deadline = Instant::now() + BUSY;
    loop {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::open(disk, flags, Mode::empty()) {
            Ok(_) => return true,
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => sleep(ASK_AGAIN).await,
            Err(error) => {
                say(&format!("{disk} is not free: {error}"));
                return false;
            }
        }
    }
}

/// Makes a disk that stays busy read-only, which leaves it clean as well.
fn freeze(disk: &str) -> bool {
    let frozen = mount(disk, mounts::WORK, "ext4", MountFlags::empty(), None)
        .and_then(|()| mount_remount(mounts::WORK, MountFlags::RDONLY, ""));
    let _ = unmount(mounts::WORK, UnmountFlags::DETACH);
    match frozen {
        Ok(()) => true,
        Err(error) => {
            say(&format!("{disk} cannot be made read-only: {error}"));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_read_with_their_devices() {
        let text = "1 1 0:2 / / rw - rootfs rootfs rw\n\
            22 1 254:16 / /mnt/overlay rw,relatime - ext4 /dev/vdb rw\n\
            23 1 0:30 / /mnt/root rw shared:1 - overlay overlay rw,lowerdir=/mnt/base\n\
            24 23 254:32 /root /mnt/root/a\\040b rw - ext4 /dev/vdc rw\n\
            bad line\n";
        let mounted = parse_mounts(text);
        let points: Vec<&str> = mounted.iter().map(|mount| mount.point.as_str()).collect();
        assert_eq!(points, ["/mnt/overlay", "/mnt/root", "/mnt/root/a b"]);
        assert_eq!(mounted[0].source, "/dev/vdb");
        assert_eq!(mounted[2].source, "/dev/vdc");
    }
}
