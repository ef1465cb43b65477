//! What a boot needs beside the kernel: the agent's program, and the initramfs
//! that carries it.
//!
//! An initramfs is cached by the content that goes into it, so a new agent or
//! kernel makes a new one and nothing has to be forgotten. Refuses an agent
//! that needs a dynamic loader: there is none in an initramfs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use banger_api::error::Code;
use banger_engine::machine::Transport;
use banger_images::initramfs::{self, BootSet, Channel};

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
    ) -> Result<PathBuf, Failure> {
        let set = BootSet {
            transport: match transport {
                Transport::Mmio => initramfs::Transport::Mmio,
                Transport::Pci => initramfs::Transport::Pci,
            },
            channel: Channel::Serial,
            net: false,
        };
        let agent = find_agent()?;
        let cannot = |error: io::Error| {
            let code = match error.kind() {
                io::ErrorKind::StorageFull => Code::NoSpace,
                _ => Code::Internal,
            };
            let what = format!("cannot make the initramfs of {}", kernel_dir.display());
            Failure::new(code, what).caused_by(&error)
        };
        let hash = self.hash_of(&agent).map_err(cannot)?;
        let key = initramfs::key(&hash, kernel_dir, set).map_err(cannot)?;
        let path = self.cache.join(&key);
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(&self.cache).map_err(cannot)?;
        // Two that make the same one at once both win.
        let unique = format!(
            ".{key}.{}.{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let beside = self.cache.join(unique);
        initramfs::build(&agent, kernel_dir, set, &beside).map_err(cannot)?;
        fs::rename(&beside, &path).map_err(cannot)?;
        Ok(path)
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
