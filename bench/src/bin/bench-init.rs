//! The least that a machine needs to run `true` in an image: what banger is
//! measured against. It loads the same modules, mounts the image below an
//! overlay, runs the command there and resets the machine.
//!
//! It prints `bench-stage NAME SECONDS` (since the kernel's start) on the
//! console, and nothing else.
//!
//! With `bench-obey=ADDR` on the kernel's command line it sets the network card
//! up as a guest of banger has it, and asks there for what to measure.

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::chroot;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::time::{ClockId, clock_gettime};

fn stage(name: &str) {
    let now = clock_gettime(ClockId::Boottime);
    let millis = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    println!("bench-stage {name} {}.{:03}", millis / 1000, millis % 1000);
}

fn fs_mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: Option<&CStr>) {
    mount(source, target, kind, flags, data)
        .unwrap_or_else(|cause| panic!("cannot mount {kind} on {target}: {cause}"));
}

/// Loads what a list of the initramfs names.
fn load(list: &str) {
    for name in list.lines() {
        let file = fs::File::open(format!("/modules/{name}")).expect("the module is there");
        // A module that is there already, or has no device, is no failure.
        let _ = finit_module(&file, c"", 0);
    }
}

fn machine() {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs_mount(kind, target, kind, MountFlags::empty(), None);
    }
    stage("init");
    let order = fs::read_to_string("/modules/order").expect("the initramfs has modules/order");
    load(&order);
    stage("modules");
    let arguments = fs::read_to_string("/proc/cmdline").expect("proc is mounted");
    let boss = arguments
        .split_whitespace()
        .find_map(|word| word.strip_prefix("bench-obey="));
    if boss.is_some() {
        let network = fs::read_to_string("/modules/network");
        load(&network.expect("the initramfs has modules/network"));
    }
    fs_mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), None);
    for directory in ["image", "overlay", "root"] {
        fs::create_dir(format!("/mnt/{directory}")).expect("tmpfs takes directories");
    }
    fs_mount(
        "/dev/vda",
        "/mnt/image",
        "ext4",
        MountFlags::RDONLY,
        Some(c"noload"),
    );
    fs_mount(
        "/dev/vdb",
        "/mnt/overlay",
        "ext4",
        MountFlags::empty(),
        None,
    );
    for directory in ["upper", "work"] {
        fs::create_dir_all(format!("/mnt/overlay/{directory}")).expect("the overlay is writable");
    }
    fs_mount(
        "overlay",
        "/mnt/root",
        "overlay",
        MountFlags::empty(),
        Some(c"lowerdir=/mnt/image,upperdir=/mnt/overlay/upper,workdir=/mnt/overlay/work,redirect_dir=on,metacopy=on,index=on,xino=on"),
    );
    stage("root");
    chroot("/mnt/root").expect("the root is a directory");
    std::env::set_current_dir("/").expect("the root is a directory");
    if let Some(boss) = boss {
        // Commands are started with /dev/null.
        fs_mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None);
        let script = format!(
            "ip link set lo up && ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up && \
             ip route add default via 10.0.2.2 && exec /bin/probe obey {boss}"
        );
        let status = Command::new("/bin/sh").args(["-c", &script]).status();
        panic!("whoever should obey said {status:?}");
    }
    let status = Command::new("/bin/true")
        .status()
        .expect("the image has /bin/true");
    assert!(status.success(), "true said {status}");
    stage("command");
}

fn main() {
    if std::panic::catch_unwind(machine).is_err() {
        println!("bench-failed");
    }
    let _ = reboot(RebootCommand::Restart);
}
