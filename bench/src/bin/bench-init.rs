//! The least that a machine needs to run `true` in an image: what banger is
//! measured against. It loads the same modules, mounts the image below an
//! overlay, runs the command there and resets the machine.
//!
//! It prints `bench-stage NAME SECONDS` (since the kernel's start) on the
//! console, and nothing else.

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

fn machine() {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs_mount(kind, target, kind, MountFlags::empty(), None);
    }
    stage("init");
    let order = fs::read_to_string("/modules/order").expect("the initramfs has modules/order");
    for name in order.lines() {
        let file = fs::File::open(format!("/modules/{name}")).expect("the module is there");
        // A module that is there already, or has no device, is no failure.
        let _ = finit_module(&file, c"", 0);
    }
    stage("modules");
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
