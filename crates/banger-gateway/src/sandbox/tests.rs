//! What the filter says to each call, and a process that tries.

use std::fs::{File, read_dir};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use banger_sandbox::{filter, landlock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process};
use rustix::thread::set_no_new_privs;

use super::*;

const ALLOW: u32 = 0x7fff_0000;
const DENY: u32 = 0x0005_0001;
/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64.
const MACHINE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else {
    0xc000_00b7
};

/// What the filter answers, by the rules of its language.
fn verdict(machine: u32, call: libc::c_long, arguments: [u64; 6]) -> u32 {
    let program = filter(FREE, &bounded()).unwrap();
    let mut data = (call as u32).to_ne_bytes().to_vec();
    data.extend(machine.to_ne_bytes());
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    let (mut at, mut value) = (0, 0_u32);
    loop {
        let step = &program[at];
        at += 1;
        let mut jump = |yes: bool| at += usize::from(if yes { step.jt } else { step.jf });
        match step.code {
            0x20 => {
                let word = data[step.k as usize..].first_chunk().unwrap();
                value = u32::from_ne_bytes(*word);
            }
            0x54 => value &= step.k,
            0x05 => at += step.k as usize,
            0x15 => jump(value == step.k),
            0x25 => jump(value > step.k),
            0x35 => jump(value >= step.k),
            0x06 => return step.k,
            other => panic!("{other:#x} is not known here"),
        }
    }
}

fn allows(call: libc::c_long, arguments: &[libc::c_int]) -> bool {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = u64::from(from.cast_unsigned());
    }
    match verdict(MACHINE, call, all) {
        ALLOW => true,
        DENY => false,
        other => panic!("{other:#x} for call {call}"),
    }
}

#[test]
fn calls_that_are_not_named_are_denied() {
    for call in 0..700 {
        let bounded = bounded().iter().any(|(named, _)| *named == call);
        if !bounded {
            assert_eq!(allows(call, &[]), FREE.contains(&call), "call {call}");
        }
    }
    // The other numbers of the same machine, and another machine.
    assert!(!allows(libc::SYS_read | 0x4000_0000, &[]));
    assert_ne!(verdict(0x4000_0003, libc::SYS_read, [0; 6]), ALLOW);
}

#[test]
fn what_a_thief_would_use_is_denied() {
    let table = [
        ("open a file", libc::SYS_openat),
        ("open a file", libc::SYS_openat2),
        ("open by handle", libc::SYS_open_by_handle_at),
        ("ring", libc::SYS_io_uring_setup),
        ("run", libc::SYS_execve),
        ("run", libc::SYS_execveat),
        ("split", libc::SYS_clone),
        ("split", libc::SYS_clone3),
        ("trace", libc::SYS_ptrace),
        ("write another's memory", libc::SYS_process_vm_writev),
        ("signal another", libc::SYS_kill),
        ("signal another", libc::SYS_pidfd_send_signal),
        ("take a descriptor", libc::SYS_pidfd_getfd),
        ("load a filter", libc::SYS_bpf),
        ("leave its namespaces", libc::SYS_unshare),
        ("leave its namespaces", libc::SYS_setns),
        ("mount", libc::SYS_mount),
        ("become another", libc::SYS_setuid),
        ("be asked", libc::SYS_listen),
        ("be asked", libc::SYS_bind),
        ("a socket of two ends", libc::SYS_socketpair),
        ("memory as a file", libc::SYS_memfd_create),
        ("secret memory", libc::SYS_memfd_secret),
        ("keys", libc::SYS_keyctl),
        ("loosen the dump flag", libc::SYS_prctl),
        ("faults of its own", libc::SYS_userfaultfd),
        ("performance counters", libc::SYS_perf_event_open),
    ];
    for (what, call) in table {
        assert!(!allows(call, &[]), "{what}: call {call}");
    }
}

#[test]
fn arguments_count_where_calls_are_many_things() {
    use libc::*;
    let socket = |family, kind, protocol| allows(SYS_socket, &[family, kind, protocol]);
    assert!(socket(
        AF_INET,
        SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
        0
    ));
    assert!(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    assert!(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP));
    assert!(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
    assert!(socket(AF_INET6, SOCK_STREAM, 0));
    assert!(socket(AF_INET6, SOCK_DGRAM, 0));
    assert!(!socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    assert!(!socket(AF_INET, SOCK_RAW, IPPROTO_RAW));
    assert!(!socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP));
    assert!(!socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP));
    assert!(!socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6));
    for family in (0..50).filter(|family| ![AF_INET, AF_INET6].contains(family)) {
        for kind in 0..11 {
            assert!(!socket(family, kind, 0), "family {family}, type {kind}");
        }
    }

    let map = |protection, flags| allows(SYS_mmap, &[0, 4096, protection, flags]);
    assert!(map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
    assert!(!map(PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS));
    assert!(!map(PROT_READ, MAP_SHARED));
    assert!(allows(SYS_mprotect, &[0, 4096, PROT_READ]));
    assert!(!allows(SYS_mprotect, &[0, 4096, PROT_READ | PROT_EXEC]));

    let own = rustix::process::getpid().as_raw_nonzero().get();
    assert!(allows(SYS_tgkill, &[own, own, SIGABRT]));
    assert!(!allows(SYS_tgkill, &[own, own, SIGSTOP]));
    assert!(!allows(SYS_tgkill, &[own + 1, own + 1, SIGABRT]));

    assert!(allows(SYS_ioctl, &[3, super::FIONBIO]));
    assert!(!allows(SYS_ioctl, &[3, 0x5412]), "typing into a terminal");
    assert!(allows(SYS_fcntl, &[3, F_DUPFD_CLOEXEC]));
    assert!(!allows(SYS_fcntl, &[3, F_SETOWN]));
    assert!(allows(SYS_setsockopt, &[3, SOL_SOCKET, SO_LINGER]));
    assert!(!allows(SYS_setsockopt, &[3, SOL_SOCKET, SO_ATTACH_FILTER]));
    assert!(!allows(SYS_setsockopt, &[3, SOL_SOCKET, SO_BINDTODEVICE]));
    assert!(!allows(SYS_setsockopt, &[3, IPPROTO_IP, IP_OPTIONS]));
}

/// Set in a child to where it finds a listener of its parent's.
const INSIDE: &str = "BANGER_TEST_SANDBOX";
/// What a child says at its end: one that was replaced by another program, or
/// that had no such test, says nothing.
const HELD: &str = "the sandbox held";

/// Runs one of the tests below in a process of its own.
fn try_inside(test: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg(format!("sandbox::tests::{test}"))
        .env(INSIDE, listener.local_addr().unwrap().to_string())
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let complained = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}{complained}");
    assert!(said.contains(HELD), "{said}{complained}");
}

#[test]
fn a_process_inside_can_do_its_work_and_nothing_else() {
    try_inside("everything_is_tried");
}

#[test]
fn landlock_alone_closes_all_files() {
    if !std::fs::read_to_string("/sys/kernel/security/lsm")
        .is_ok_and(|modules| modules.contains("landlock"))
    {
        println!("skipped: this kernel has no landlock, or does not say so");
        return;
    }
    try_inside("files_are_tried_under_landlock");
}

fn denied<T>(result: std::io::Result<T>, kind: Errno) {
    let error = result.err().expect("this must not work");
    assert_eq!(error.raw_os_error(), Some(kind.raw_os_error()), "{error}");
}

#[test]
#[ignore = "only for a process of its own"]
fn everything_is_tried() {
    let outside = std::env::var(INSIDE).expect("run by another test");
    let null = File::open("/dev/null").unwrap();
    let parent = getppid().unwrap();
    enter().unwrap();

    for path in [
        "/",
        "/etc/passwd",
        "/dev/null",
        "/proc/self/mem",
        "relative",
    ] {
        denied(File::open(path), Errno::PERM);
    }
    denied(File::create("/tmp/made-inside"), Errno::PERM);
    denied(read_dir("/"), Errno::PERM);
    denied(std::fs::remove_file("/tmp/made-inside"), Errno::PERM);
    denied(Err::<(), _>(Command::new("/bin/true").exec()), Errno::PERM);
    assert!(Command::new("/bin/true").spawn().is_err());
    assert!(std::thread::Builder::new().spawn(|| ()).is_err());
    for pid in [parent, getpid()] {
        denied(
            kill_process(pid, Signal::URG).map_err(Into::into),
            Errno::PERM,
        );
    }
    let traced = nix::unistd::Pid::from_raw(parent.as_raw_nonzero().get());
    let refused = Err(nix::errno::Errno::EPERM);
    assert_eq!(
        nix::sys::ptrace::seize(traced, nix::sys::ptrace::Options::empty()),
        refused
    );
    assert_eq!(nix::sys::ptrace::traceme(), refused);
    denied(pidfd(parent), Errno::PERM);
    for (family, kind) in [
        (AddressFamily::PACKET, SocketType::RAW),
        (AddressFamily::PACKET, SocketType::DGRAM),
        (AddressFamily::INET, SocketType::RAW),
        (AddressFamily::NETLINK, SocketType::RAW),
        (AddressFamily::UNIX, SocketType::STREAM),
        (AddressFamily::VSOCK, SocketType::STREAM),
    ] {
        denied(socket(family, kind, None).map_err(Into::into), Errno::PERM);
    }
    denied(
        UnixStream::connect("/run/dbus/system_bus_socket"),
        Errno::PERM,
    );
    denied(TcpListener::bind("127.0.0.1:0"), Errno::PERM);
    denied(UdpSocket::bind("127.0.0.1:0"), Errno::PERM);

    // What the work takes.
    let stream = TcpStream::connect(&outside).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut byte = [0];
    let read = std::io::Read::read(&mut &stream, &mut byte);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);
    let ping = socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP));
    assert_ne!(
        ping.err(),
        Some(Errno::PERM),
        "the host decides, not the filter"
    );
    let mut memory = vec![1_u8; 48 << 20];
    memory.extend(vec![2; 16 << 20]);
    drop(memory);
    drop(null.try_clone().unwrap());
    let caught = std::panic::catch_unwind(|| panic!("with a backtrace of unreadable files"));
    assert!(caught.is_err());
    println!("{HELD}");
}

fn pidfd(pid: Pid) -> std::io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::process::pidfd_open(
        pid,
        rustix::process::PidfdFlags::empty(),
    )?)
}

#[test]
#[ignore = "only for a process of its own"]
fn files_are_tried_under_landlock() {
    std::env::var(INSIDE).expect("run by another test");
    set_no_new_privs(true).unwrap();
    landlock(true).unwrap();
    for path in ["/", "/etc/passwd", "/dev/null"] {
        denied(File::open(path), Errno::ACCESS);
    }
    denied(File::create("/tmp/made-inside"), Errno::ACCESS);
    denied(
        Err::<(), _>(Command::new("/bin/true").exec()),
        Errno::ACCESS,
    );
    println!("{HELD}");
}
