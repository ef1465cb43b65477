//! Launching many processes, in a process of its own: what is counted here
//! belongs to all threads of a test program.

#![allow(unsafe_code, clippy::unwrap_used)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use banger_sys::guest::launch::{FAILURE_LEN, Failure, Launch, Program, Step, launch};
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// How many processes are launched.
const LAUNCHES: usize = 1000;
/// Threads that launch them.
const LAUNCHERS: usize = 4;

/// Mappings that come and go with threads and their memory. A launch that
/// leaked its stack would leave two each.
const MAPPINGS_OF_OTHERS: usize = 100;

/// How often the handler ran in the test's process, and in another.
static HANDLED: AtomicU32 = AtomicU32::new(0);
static ASTRAY: AtomicU32 = AtomicU32::new(0);
static OWN_PID: AtomicI32 = AtomicI32::new(0);

/// Of a signal that by default does nothing, so that children survive it.
extern "C" fn handle(_: libc::c_int) {
    // SAFETY: one system call without memory.
    let here = unsafe { libc::getpid() } == OWN_PID.load(Ordering::Relaxed);
    let counter = if here { &HANDLED } else { &ASTRAY };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What one launch may not change of the process that does it.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    directory: std::path::PathBuf,
    root: std::path::PathBuf,
    session: i32,
    user: u32,
    /// Users, masks of signals.
    status: Vec<String>,
    open_files: (Option<u64>, Option<u64>),
    created_with: u32,
    descriptors: usize,
}

impl Own {
    fn now(room: &std::path::Path) -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let kept = ["SigBlk", "SigIgn", "SigCgt", "Uid", "Gid", "Groups"];
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let file = room.join("file");
        fs::write(&file, b"").unwrap();
        let created_with = fs::metadata(&file).unwrap().permissions().mode();
        fs::remove_file(file).unwrap();
        Self {
            directory: std::env::current_dir().unwrap(),
            root: fs::read_link("/proc/self/root").unwrap(),
            session: session(),
            user: rustix::process::geteuid().as_raw(),
            status: status
                .lines()
                .filter(|line| kept.iter().any(|name| line.starts_with(name)))
                .map(str::to_owned)
                .collect(),
            open_files: (limit.current, limit.maximum),
            created_with,
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

/// The session's number, from the sixth field of `stat`: it is 0 for a leader
/// outside of this PID namespace, which the typed calls have no value for.
fn session() -> i32 {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let after_name = &stat[stat.rfind(')').unwrap() + 1..];
    let field = after_name.split_whitespace().nth(3).unwrap();
    field.parse().unwrap()
}

fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().count()
}

/// One command that runs, one that cannot: neither may change the plan.
fn one(number: usize, null: &OwnedFd) {
    let good = !number.is_multiple_of(3);
    let program = if good { "/bin/true" } else { "/nonexistent" };
    let argv = [
        CString::new(program).unwrap(),
        CString::new(format!("{number}")).unwrap(),
    ];
    let before = argv.clone();
    let steps = [
        Step::NewSession,
        Step::Descriptor {
            from: null.as_fd(),
            to: 0,
        },
        Step::OpenFiles {
            soft: 64,
            hard: 128,
        },
        Step::Directory(c"/"),
    ];
    let launched = launch(&Launch {
        steps: &steps,
        program: Program::Paths(&argv[..1]),
        argv: &argv,
        env: &[],
        namespaces: false,
    })
    .unwrap();
    let mut report = Vec::new();
    File::from(launched.report)
        .read_to_end(&mut report)
        .unwrap();
    let pidfd = WaitId::PidFd(launched.pidfd.as_fd());
    let status = waitid(pidfd, WaitIdOptions::EXITED).unwrap().unwrap();
    let failure = <[u8; FAILURE_LEN]>::try_from(report)
        .ok()
        .map(Failure::decode);
    if good {
        assert_eq!((failure, status.exit_status()), (None, Some(0)));
    } else {
        let errno = libc::ENOENT;
        assert_eq!(failure, Some(Failure { step: None, errno }));
        assert_eq!(status.exit_status(), Some(127));
    }
    assert_eq!(argv, before);
}

#[test]
fn a_thousand_launches_leave_their_process_as_it_was() {
    // A group of its own: signals below go to the group, children and all.
    rustix::process::setpgid(None, None).unwrap();
    OWN_PID.store(
        rustix::process::getpid().as_raw_nonzero().get(),
        Ordering::Relaxed,
    );
    // SAFETY: the handler only adds to atomic numbers.
    unsafe { libc::signal(libc::SIGURG, handle as *const () as libc::sighandler_t) };
    let room = std::env::temp_dir().join(format!("banger-launches-{}", std::process::id()));
    fs::create_dir_all(&room).unwrap();
    std::env::set_current_dir(&room).unwrap();
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    let memory: Vec<u8> = (0..1_usize << 20).map(|byte| (byte * 31) as u8).collect();
    let copy = memory.clone();
    // Once, so that what is made once for all is there.
    storm(LAUNCHERS, &null);
    let before = (Own::now(&room), mappings());

    storm(LAUNCHES, &null);
    one(1, &null);

    assert_eq!(Own::now(&room), before.0);
    assert!(mappings() < before.1 + MAPPINGS_OF_OTHERS);
    assert!(memory == copy, "the memory is the same");
    let none = waitid(WaitId::All, WaitIdOptions::EXITED);
    assert_eq!(none.unwrap_err(), rustix::io::Errno::CHILD);
    assert!(
        HANDLED.load(Ordering::Relaxed) > 0,
        "signals came meanwhile"
    );
    assert_eq!(ASTRAY.load(Ordering::Relaxed), 0, "to the parent's handler");
    fs::remove_dir_all(room).unwrap();
}

/// Launches from several threads at once while others allocate without pause
/// and signals rain: a child that took a lock or ran a handler would hang or
/// write where it must not.
fn storm(launches: usize, null: &OwnedFd) {
    let over = AtomicBool::new(false);
    let left = AtomicU32::new(u32::try_from(launches).unwrap());
    std::thread::scope(|scope| {
        let launchers: Vec<_> = (0..LAUNCHERS)
            .map(|_| {
                scope.spawn(|| {
                    let take = |left: u32| left.checked_sub(1);
                    while let Ok(number) =
                        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    {
                        one(number as usize, null);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut kept = Vec::new();
            while !over.load(Ordering::Relaxed) {
                kept.push(vec![1_u8; 4096 + kept.len()]);
                if kept.len() == 64 {
                    kept.clear();
                }
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // SAFETY: a signal to our own group, where it does nothing.
                unsafe { libc::kill(0, libc::SIGURG) };
                std::thread::yield_now();
            }
        });
        let failed = launchers
            .into_iter()
            .filter_map(|launcher| launcher.join().err())
            .count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0, "every launch did what it should");
    });
}
