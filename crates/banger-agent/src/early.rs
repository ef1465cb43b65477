//! The first steps of the machine: kernel file systems, drivers, limits. What
//! fails here is said on the console and the boot goes on, since the channel
//! may work all the same. The drivers of a network wait until a boot asks for
//! one.
//!
//! Drivers load in a thread of their own, those of the line to the daemon
//! first: by the time that the daemon has said what to boot, the others are
//! there, and the image is mounted.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::console::say;

/// Where the initramfs has the modules.
const MODULES: &str = "/modules";
/// Those that every boot loads, and those of a network.
const AT_ONCE: &str = "order";
const OF_A_NETWORK: &str = "network";
/// Largest list of modules that is read, bytes.
const MAX_ORDER: u64 = 64 << 10;
/// Open files the agent itself may have: every command takes a few.
const OPEN_FILES: u64 = 64 << 10;
/// Links that programs expect beside the kernel's device nodes.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Milliseconds since the kernel started.
pub(crate) fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Mounts the kernel's file systems and begins to load the drivers; does
/// `then` once they are there.
pub(crate) fn set_up(then: fn()) {
    let loading = std::thread::Builder::new()
        .name("drivers".to_owned())
        .spawn(move || load_drivers(then));
    if loading.is_err() {
        load_drivers(then);
    }
    let nodev = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    for (kind, target, flags) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID),
        ("proc", "/proc", nodev),
        ("sysfs", "/sys", nodev),
        ("cgroup2", "/sys/fs/cgroup", nodev),
    ] {
        let _ = fs::create_dir_all(target);
        let options = (kind == "devtmpfs").then_some(c"mode=0755");
        if let Err(error) = mount(kind, target, kind, flags, options) {
            // The kernel may have mounted /dev by itself.
            if error != rustix::io::Errno::BUSY {
                say(&format!("cannot mount {target}: {error}"));
            }
        }
    }
    for (target, link) in DEVICE_LINKS {
        let _ = rustix::fs::symlink(target, link);
    }
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(crate::exec::OPEN_FILES.1),
    };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        say(&format!("cannot raise the limit of open files: {error}"));
    }
    // Mounts, namespaces and control groups wait for all processors to have
    // been through the scheduler: 10 to 30 ms each with ticks, under 1 ms when
    // the kernel asks the processors instead. Some dozens lie ahead.
    let _ = fs::write("/sys/kernel/rcu_expedited", "1");
}

fn load_drivers(then: fn()) {
    // One that fails is skipped: it may be for a device that this machine does
    // not have.
    for error in load_modules(AT_ONCE) {
        say(&crate::chain(&error));
    }
    then();
}

/// Why a driver is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The list of modules.
    #[error("cannot read the list of modules {0}")]
    List(&'static str, #[source] io::Error),
    /// One of them.
    #[error("cannot load module {0}")]
    Load(String, #[source] io::Error),
}

/// Loads the drivers of a network card.
///
/// # Errors
/// The first that fails.
pub(crate) fn load_network_drivers() -> Result<(), DriverError> {
    load_modules(OF_A_NETWORK)
        .into_iter()
        .next()
        .map_or(Ok(()), Err)
}

/// Forgets the files of the modules, whose memory is worth more.
pub(crate) fn forget_modules() {
    let _ = fs::remove_dir_all(MODULES);
}

/// Loads the modules that a list names; gives what failed.
fn load_modules(list: &'static str) -> Vec<DriverError> {
    let directory = Path::new(MODULES);
    let order = match read_order(&directory.join(list)) {
        Ok(order) => order,
        Err(error) => return vec![DriverError::List(list, error)],
    };
    let load = |name: &str| {
        let loaded = File::open(directory.join(name)).and_then(|module| {
            rustix::system::finit_module(&module, c"", 0).map_err(io::Error::from)
        });
        match loaded {
            Ok(()) => None,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => Some(DriverError::Load(name.to_owned(), error)),
        }
    };
    module_names(&order).filter_map(load).collect()
}

fn read_order(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::open(path)?, MAX_ORDER), &mut text)?;
    Ok(text)
}

/// The file names in a list of modules, one a line.
fn module_names(order: &str) -> impl Iterator<Item = &str> {
    order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_modules_is_kept_and_paths_are_refused() {
        let order = "virtio_ring.ko\nvirtio.ko\n\n  virtio_blk.ko \r\n../evil.ko\n";
        let names: Vec<&str> = module_names(order).collect();
        assert_eq!(names, ["virtio_ring.ko", "virtio.ko", "virtio_blk.ko"]);
    }
}
