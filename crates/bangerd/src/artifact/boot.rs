//! What a boot needs beside the kernel: the agent's program, and the initramfs
//! that carries it.
//!
//! An initramfs is cached by the content that goes into it, so a new agent or
//! kernel makes a new one; those of agents and kernels that are gone are pruned.
//! Whoever is about to boot holds a shared lock on its initramfs, and nothing is
//! pruned that cannot be locked alone. Refuses an agent that needs a dynamic
//! loader: there is none in an initramfs.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::error::Code;
use banger_engine::machine::Transport;
use banger_images::initramfs::{self, BootSet, Channel};
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use rustix::process::{Pid, test_kill_process};

use super::space;
use crate::failure::Failure;

/// File name of the agent.
const AGENT: &str = "banger-agent";
/// As much of a program's start as its header and program headers take.
const HEAD: u64 = 64 << 10;

/// The agent and the cache of its initramfs.
#[derive(Debug)]
pub(crate) struct Boots {
    cache: PathBuf,
    hash: Mutex<Option<(Agent, String)>>,
}

/// A file as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Agent {
    path: PathBuf,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Boots {
    /// A cache below this directory.
    pub(crate) fn new(cache: &Path) -> Self {
        Self {
            cache: cache.join("initramfs"),
            hash: Mutex::default(),
        }
    }

    /// The initramfs for a kernel's directory, made if it is missing. Blocks:
    /// microseconds when it is there, some 10 ms otherwise.
    pub(crate) fn initramfs(
        &self,
        kernel_dir: &Path,
        transport: Transport,
        net: bool,
    ) -> Result<Made, Failure> {
        let set = BootSet {
            transport: match transport {
                Transport::Mmio => initramfs::Transport::Mmio,
                Transport::Pci => initramfs::Transport::Pci,
            },
            channel: Channel::Serial,
            net,
        };
        let agent = find_agent()?;
        let cannot = |error: io::Error| {
            let what = format!("cannot make the initramfs of {}", kernel_dir.display());
            space::failed(what, &error)
        };
        let hash = self.hash_of(&agent).map_err(cannot)?;
        let key = initramfs::key(&hash, kernel_dir, set).map_err(cannot)?;
        let path = self.cache.join(&key);
        let mut fresh = false;
        loop {
            if let Some(hold) = hold(&path).map_err(cannot)? {
                let hold = Arc::new(hold);
                return Ok(Made { path, hold, fresh });
            }
            fresh = true;
            fs::create_dir_all(&self.cache).map_err(cannot)?;
            let unique = format!(
                ".{key}.{}.{:?}",
                std::process::id(),
                std::thread::current().id()
            );
            let beside = self.cache.join(unique);
            initramfs::build(&agent, kernel_dir, set, &beside).map_err(cannot)?;
            place(&beside, &path).map_err(cannot)?;
        }
    }

    /// Removes what none of these kernels boots from with the agent of now.
    /// Without an agent nobody can say what that is: then all stays.
    pub(crate) fn prune(&self, kernel_dirs: &[PathBuf]) -> Result<(), Failure> {
        match self.wanted(kernel_dirs)? {
            Some(wanted) => self
                .prune_but(&wanted)
                .map_err(|error| self.cannot_prune(&error)),
            None => Ok(()),
        }
    }

    fn prune_but(&self, wanted: &HashSet<String>) -> io::Result<()> {
        for name in self.names()? {
            let path = self.cache.join(&name);
            // Held until it is removed, so that nobody else begins to use it.
            if let Some(_held) = stale(&path, &name, wanted) {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => tracing::info!(name, "pruned an initramfs"),
                }
            }
        }
        Ok(())
    }

    /// Names of what none of these kernels boots from and nobody holds;
    /// nothing where there is no agent.
    pub(crate) fn stale(&self, kernel_dirs: &[PathBuf]) -> Result<HashSet<String>, Failure> {
        let Some(wanted) = self.wanted(kernel_dirs)? else {
            return Ok(HashSet::new());
        };
        let names = self.names().map_err(|error| self.cannot_prune(&error))?;
        let mut found = HashSet::new();
        for name in names {
            if stale(&self.cache.join(&name), &name, &wanted).is_some() {
                found.insert(name);
            }
        }
        Ok(found)
    }

    /// Removes one of them, if it still is one and this file; the bytes that
    /// came back.
    pub(crate) fn free(
        &self,
        kernel_dirs: &[PathBuf],
        name: &OsStr,
        inode: (u64, u64),
    ) -> Result<Option<u64>, Failure> {
        let (Some(wanted), Some(name)) = (self.wanted(kernel_dirs)?, name.to_str()) else {
            return Ok(None);
        };
        let path = self.cache.join(name);
        let work = || -> io::Result<Option<u64>> {
            let Some(_held) = stale(&path, name, &wanted) else {
                return Ok(None);
            };
            let found = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                found => found?,
            };
            if (found.dev(), found.ino()) != inode {
                return Ok(None);
            }
            fs::remove_file(&path)?;
            let alone = found.nlink() == 1;
            Ok(Some(if alone { found.blocks() * 512 } else { 0 }))
        };
        work().map_err(|error| self.cannot_prune(&error))
    }

    /// Names of all that these kernels may boot from, if there is an agent.
    fn wanted(&self, kernel_dirs: &[PathBuf]) -> Result<Option<HashSet<String>>, Failure> {
        let Ok(agent) = find_agent() else {
            return Ok(None);
        };
        let hash = self.hash_of(&agent);
        let hash = hash.map_err(|error| self.cannot_prune(&error))?;
        Ok(Some(keys(&hash, kernel_dirs)))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.cache) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn cannot_prune(&self, error: &io::Error) -> Failure {
        Failure::internal(format!("cannot prune {}", self.cache.display()), error)
    }

    fn hash_of(&self, path: &Path) -> io::Result<String> {
        let found = fs::metadata(path)?;
        let agent = Agent {
            path: path.to_owned(),
            inode: found.ino(),
            length: found.len(),
            changed: (found.mtime(), found.mtime_nsec()),
        };
        let mut known = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((same, hash)) = &*known
            && *same == agent
        {
            return Ok(hash.clone());
        }
        let hash = initramfs::agent_hash(path)?;
        *known = Some((agent, hash.clone()));
        Ok(hash)
    }
}

/// An initramfs that stays where it is for as long as `hold` lives.
pub(crate) struct Made {
    pub(crate) path: PathBuf,
    pub(crate) hold: Arc<File>,
    /// It was not in the cache.
    pub(crate) fresh: bool,
}

/// Opens and locks a cached file, so that nobody prunes it; `None` where there
/// is none, or where it was pruned in this moment.
fn hold(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    // Where files cannot be locked nothing is pruned either.
    let _ = rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockShared));
    Ok(is_named(&file, path)?.then_some(file))
}

/// Whether an open file still has this name: another may have got it before
/// the file was locked.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let file = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (file.dev(), file.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Holds a cached file that nobody else holds.
fn hold_alone(path: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        // What has the name may be a pipe, and opening that would wait.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .ok()?;
    lock_alone(file, path)
}

/// Locks a file that was opened by this name, if it is alone and still has it.
fn lock_alone(file: File, path: &Path) -> Option<File> {
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    (locked.is_ok() && is_named(&file, path).ok()?).then_some(file)
}

/// What keeps a file from being used while it is removed: of one that nobody
/// wants and nobody holds, or that is half made by a process that is gone.
fn stale(path: &Path, name: &str, wanted: &HashSet<String>) -> Option<Option<File>> {
    match half_made(name) {
        Some(maker) => (!lives(maker)).then_some(None),
        None if !is_key(name) || wanted.contains(name) => None,
        None => hold_alone(path).map(Some),
    }
}

/// Whether a file of the cache has a name that banger gives there.
pub(crate) fn is_boot(name: &str) -> bool {
    is_key(name) || half_made(name).is_some()
}

/// Gives a file its name. Of two that made the same one at once the first
/// stays, which somebody may hold by now.
fn place(beside: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, beside, CWD, path, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => fs::remove_file(beside),
        other => Ok(other?),
    }
}

/// Names of all that these kernels may boot from with this agent.
fn keys(agent_hash: &str, kernel_dirs: &[PathBuf]) -> HashSet<String> {
    let mut keys = HashSet::new();
    for dir in kernel_dirs {
        for transport in [initramfs::Transport::Mmio, initramfs::Transport::Pci] {
            for net in [false, true] {
                let set = BootSet {
                    transport,
                    channel: Channel::Serial,
                    net,
                };
                // A directory that cannot be read boots nothing.
                keys.extend(initramfs::key(agent_hash, dir, set));
            }
        }
    }
    keys
}

fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The process that was making this file, by the file's name.
fn half_made(name: &str) -> Option<i32> {
    let (key, rest) = name.strip_prefix('.')?.split_once('.')?;
    let (maker, _) = rest.split_once('.')?;
    is_key(key).then(|| maker.parse().ok()).flatten()
}

fn lives(pid: i32) -> bool {
    Pid::from_raw(pid)
        .is_some_and(|pid| !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH)))
}

/// Finds the agent's program and checks that a guest can run it.
pub(crate) fn find_agent() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os("BANGER_AGENT").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(named);
        return check(&path).map(|()| path);
    }
    let here = std::env::current_exe().unwrap_or_default();
    choose(&places(&here))
}

/// The first that a guest can run. cargo puts a dynamic one beside a daemon
/// that is being developed: it is passed over where there is a better one.
fn choose(places: &[PathBuf]) -> Result<PathBuf, Failure> {
    let mut first_bad = None;
    for path in places.iter().filter(|path| path.is_file()) {
        match check(path) {
            Ok(()) => return Ok(path.clone()),
            Err(failure) => first_bad = first_bad.or(Some(failure)),
        }
    }
    Err(first_bad.unwrap_or_else(|| {
        Failure::new(Code::NoTool, "the guest agent is not installed").hint(format!(
            "put {AGENT} beside bangerd, or name it in BANGER_AGENT"
        ))
    }))
}

/// Where the agent may be, given where the daemon is: beside it, where
/// installed programs keep theirs, and where cargo puts it.
fn places(daemon: &Path) -> Vec<PathBuf> {
    let Some(directory) = daemon.parent() else {
        return Vec::new();
    };
    let mut places = vec![
        directory.join(AGENT),
        directory.join("../lib/banger").join(AGENT),
    ];
    for target in [
        directory.parent(),
        directory.parent().and_then(Path::parent),
    ] {
        places.extend(target.map(|target| target.join("agent").join(AGENT)));
    }
    places
}

fn check(path: &Path) -> Result<(), Failure> {
    let bad = |why: &str| {
        Failure::new(
            Code::NoTool,
            format!("{} cannot be the guest agent: {why}", path.display()),
        )
    };
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD).read_to_end(&mut head))
        .map_err(|error| bad("it cannot be read").caused_by(&error))?;
    match needs_loader(&head) {
        Some(false) => Ok(()),
        Some(true) => {
            Err(bad("it is not static").hint("build it with -C target-feature=+crt-static"))
        }
        None => Err(bad("it is no 64-bit ELF program")),
    }
}

/// Whether an ELF program has a PT_INTERP; `None` for anything else.
fn needs_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    // 64 bits, little-endian.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(elf.get(at..at.checked_add(length)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let table = usize::try_from(number(32, 8)?).ok()?;
    let (size, count) = (number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let at = table.checked_add(usize::try_from(index * size).ok()?)?;
        if number(at, 4)? == u64::from(PT_INTERP) {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        // This test program is linked dynamically.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs_loader(&own[..64 << 10]), Some(true));
        let mut elf = own[..64 << 10].to_vec();
        elf[56..58].copy_from_slice(&[0, 0]);
        assert_eq!(needs_loader(&elf), Some(false));
        assert_eq!(needs_loader(b"#!/bin/sh\n"), None);
        assert_eq!(needs_loader(b"\x7fELF\x02\x01"), None);
        elf[32..40].copy_from_slice(&[0xff; 8]);
        elf[56..58].copy_from_slice(&[9, 0]);
        assert_eq!(needs_loader(&elf), None);
    }

    #[test]
    fn what_no_kernel_or_agent_is_left_for_is_pruned_but_never_what_is_held() {
        let place = tempfile::tempdir().unwrap();
        let boots = Boots::new(place.path());
        let kernel = place.path().join("kernel");
        fs::create_dir_all(kernel.join("boot-modules")).unwrap();
        fs::create_dir_all(&boots.cache).unwrap();
        fs::write(kernel.join("boot-modules/order"), "").unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let wanted = keys("agent", std::slice::from_ref(&kernel));
        let gone = keys("older agent", std::slice::from_ref(&kernel));
        let [wanted_one, gone_one] = [&wanted, &gone].map(|keys| keys.iter().next().unwrap());
        let held = "0".repeat(64);
        let cut = format!(".{gone_one}.{}.ThreadId(7)", dead.id());
        let made_now = format!(".{gone_one}.{}.ThreadId(7)", std::process::id());
        for name in [wanted_one, gone_one, &held, &cut, &made_now, "README"] {
            fs::write(boots.cache.join(name), "x").unwrap();
        }
        let names = || {
            let entries = fs::read_dir(&boots.cache).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<HashSet<String>>()
        };
        let holding = hold(&boots.cache.join(&held)).unwrap().unwrap();
        boots.prune_but(&wanted).unwrap();
        let mut left: HashSet<String> = [wanted_one, &held, &made_now, "README"]
            .map(str::to_owned)
            .into();
        assert_eq!(names(), left);
        drop(holding);
        boots.prune_but(&wanted).unwrap();
        left.remove(&held);
        assert_eq!(names(), left);
        assert!(hold(&boots.cache.join(&held)).unwrap().is_none());
        Boots::new(&place.path().join("none"))
            .prune_but(&wanted)
            .unwrap();
    }

    #[test]
    fn a_file_that_lost_its_name_before_it_was_locked_is_not_taken_for_the_new_one() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x");
        let open = || File::open(&path).unwrap();
        fs::write(&path, "old").unwrap();
        let old = open();
        // Pruned by another, made anew, and held by who boots from it.
        fs::remove_file(&path).unwrap();
        assert!(lock_alone(old.try_clone().unwrap(), &path).is_none());
        fs::write(&path, "new").unwrap();
        let held = hold(&path).unwrap().unwrap();
        assert!(lock_alone(old, &path).is_none());
        assert!(lock_alone(open(), &path).is_none());
        drop(held);
        assert!(lock_alone(open(), &path).is_some());
    }

    #[test]
    fn the_agent_is_looked_for_beside_the_daemon_first() {
        let places = places(Path::new("/opt/bin/bangerd"));
        assert_eq!(places[0], Path::new("/opt/bin/banger-agent"));
        assert_eq!(places[1], Path::new("/opt/bin/../lib/banger/banger-agent"));
        assert!(places.contains(&PathBuf::from("/opt/agent/banger-agent")));
    }

    #[test]
    fn a_dynamic_agent_is_refused_by_name_and_passed_over_for_a_static_one() {
        let place = tempfile::tempdir().unwrap();
        let dynamic = std::env::current_exe().unwrap();
        let fixed = place.path().join(AGENT);
        let mut elf = fs::read(&dynamic).unwrap();
        elf[56..58].copy_from_slice(&[0, 0]);
        fs::write(&fixed, elf).unwrap();
        assert_eq!(
            choose(&[place.path().join("no"), dynamic.clone(), fixed.clone()]).unwrap(),
            fixed
        );
        assert_eq!(choose(&[dynamic]).unwrap_err().code, Code::NoTool);
        assert!(choose(&[]).unwrap_err().message.contains("not installed"));

        let failure = check(&std::env::current_exe().unwrap()).unwrap_err();
        assert!(
            failure.message.ends_with("it is not static"),
            "{}",
            failure.message
        );
    }
}
