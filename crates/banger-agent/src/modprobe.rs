//! Modules that the kernel asks for while it works: a firewall's, a file system's, a tunnel's.
//!
//! The kernel runs `/sbin/modprobe` in the agent's own file system, which is the agent's file
//! under another name. It lets the image's own `modprobe` do it, with the image's own
//! configuration; most images for containers have none, and then it does without.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::system::finit_module;

use crate::boot::{identity, mounts};

/// Where the kernel looks, unless it is told otherwise (`/proc/sys/kernel/modprobe`).
pub(crate) const NAME: &str = "/sbin/modprobe";
/// What the usual `modprobe` looks names up in; only `depmod` writes it.
const INDEX: &str = "modules.dep.bin";
/// The agent's file.
const AGENT: &str = "/init";

/// Answers the kernel from here on. The root stands, and has its modules.
///
/// # Errors
/// When the name cannot be made.
pub(crate) fn answer() -> io::Result<()> {
    fs::create_dir_all("/sbin")?;
    Ok(rustix::fs::symlink(AGENT, NAME)?)
}

/// Loads what the kernel asks for: `modprobe -q -- NAME`.
pub(crate) fn run() -> ! {
    let asked: Vec<_> = std::env::args_os().skip(1).collect();
    let inside = rustix::process::chroot(mounts::ROOT).and_then(|()| rustix::process::chdir("/"));
    let name = asked.last().and_then(|name| name.to_str());
    let done = match (inside, name) {
        (Ok(()), Some(name)) => {
            let modules = Path::new("/lib/modules").join(identity::kernel_version());
            // Whether the image's own can be run may be what the kernel asks about.
            if !name.starts_with("binfmt-") && modules.join(INDEX).exists() {
                // Comes back only where it cannot be run.
                let _ = Command::new(NAME).args(&asked).exec();
            }
            load(&modules, name)
        }
        _ => false,
    };
    std::process::exit(i32::from(!done))
}

/// Loads the modules of that name or alias, each after what it needs; whether one is there.
fn load(modules: &Path, name: &str) -> bool {
    let read = |file| fs::read_to_string(modules.join(file)).unwrap_or_default();
    let (needs, aliases) = (read("modules.dep"), read("modules.alias"));
    let mut done = false;
    for files in wanted(&needs, &aliases, name) {
        done |= files
            .iter()
            .try_for_each(|file| insert(&modules.join(file)))
            .is_ok();
    }
    done
}

fn insert(module: &Path) -> io::Result<()> {
    match finit_module(&File::open(module)?, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The files to load for a name, for each module that answers to it: what it needs first.
fn wanted<'a>(needs: &'a str, aliases: &str, name: &str) -> Vec<Vec<&'a str>> {
    let of = |module: &str| {
        needs.lines().find_map(|line| {
            let (file, below) = line.split_once(':')?;
            (module_of(file) == plain(module)).then(|| {
                // The nearest come first there.
                let below: Vec<&str> = below.split_whitespace().collect();
                below.into_iter().rev().chain([file]).collect()
            })
        })
    };
    if let Some(files) = of(name) {
        return vec![files];
    }
    let named = aliases.lines().filter_map(|line| {
        let (alias, module) = line.strip_prefix("alias ")?.split_once(' ')?;
        answers(alias, name).then_some(module.trim())
    });
    named.filter_map(of).collect()
}

/// Whether an alias is this name. Those of devices on a bus have stars anywhere, but the kernel
/// asks for none of them.
fn answers(alias: &str, name: &str) -> bool {
    match alias.strip_suffix('*') {
        Some(begin) => plain(name).starts_with(&plain(begin)),
        None => plain(alias) == plain(name),
    }
}

/// Dashes and underscores are the same.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn module_of(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    plain(file.split(".ko").next().unwrap_or(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: &str = "\
kernel/net/netfilter/nf_tables.ko: kernel/net/netfilter/nfnetlink.ko kernel/lib/libcrc32c.ko
kernel/net/netfilter/nft_chain-nat.ko: kernel/a/near.ko kernel/a/far.ko
kernel/lib/libcrc32c.ko:
";
    const ALIASES: &str = "\
# Aliases extracted from modules themselves.
alias net-pf-16-proto-12 nf_tables
alias nft-chain-2-nat nft_chain_nat
alias char-major-21-* libcrc32c
alias both libcrc32c
alias both nf_tables
alias lost gone
";

    #[test]
    fn a_name_or_an_alias_is_loaded_after_what_it_needs() {
        let tables = [
            "kernel/lib/libcrc32c.ko",
            "kernel/net/netfilter/nfnetlink.ko",
            "kernel/net/netfilter/nf_tables.ko",
        ];
        let nat = [
            "kernel/a/far.ko",
            "kernel/a/near.ko",
            "kernel/net/netfilter/nft_chain-nat.ko",
        ];
        let crc = ["kernel/lib/libcrc32c.ko"];
        for (name, files) in [
            ("nf_tables", vec![&tables[..]]),
            ("nf-tables", vec![&tables[..]]),
            ("net-pf-16-proto-12", vec![&tables[..]]),
            ("nft-chain-2-nat", vec![&nat[..]]),
            ("char-major-21-7", vec![&crc[..]]),
            ("both", vec![&crc[..], &tables[..]]),
            ("char-major-2", vec![]),
            ("lost", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(wanted(NEEDS, ALIASES, name), files, "{name}");
        }
    }

    #[test]
    fn where_there_are_no_modules_none_is_loaded() {
        let empty = tempfile::tempdir().unwrap();
        assert!(!load(empty.path(), "nf_tables"));
    }
}
