//! The modules that booting needs, lean and in the order they load in.
//!
//! Owns `dest/boot-modules/`: one `<name>.ko` each and `order`, whose lines are
//!
//! ```text
//! virtio_blk base 0a1b...    name, what it is for (commas between), sha256 of the file
//! ```
//!
//! A module stands after all it depends on. What is built in needs no file and has none.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::builtin::Builtin;
use super::stage::Staged;
use super::{KernelError, hex, needs, write_new};
use crate::modules::strip;
use crate::progress::Cancel;

/// The directory in a kernel's directory.
pub const BOOT_MODULES: &str = "boot-modules";
/// The file in it that lists the modules.
pub const ORDER: &str = "order";
/// More modules than any part of a boot could ever need.
pub(super) const COUNT_LIMIT: usize = 128;

/// What a boot module is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// Every boot: disks, file systems, randomness, memory.
    Base,
    /// Devices found by ACPI.
    Mmio,
    /// Devices on a PCI bus.
    Pci,
    /// The channel over a serial port.
    Serial,
    /// The channel over vsock.
    Vsock,
    /// Network.
    Net,
}

impl Tag {
    const ALL: [(Tag, &'static str); 6] = [
        (Tag::Base, "base"),
        (Tag::Mmio, "mmio"),
        (Tag::Pci, "pci"),
        (Tag::Serial, "serial"),
        (Tag::Vsock, "vsock"),
        (Tag::Net, "net"),
    ];

    fn word(self) -> &'static str {
        Tag::ALL
            .iter()
            .find(|(tag, _)| *tag == self)
            .map_or("", |(_, word)| word)
    }

    fn of_word(word: &str) -> Option<Tag> {
        Tag::ALL
            .iter()
            .find(|(_, known)| *known == word)
            .map(|(tag, _)| *tag)
    }
}

/// Roots of the boot set: what for, the module, its option. In the order they are wanted.
const ROOTS: [(Tag, &str); 10] = [
    (Tag::Mmio, "virtio_mmio"),
    (Tag::Pci, "virtio_pci"),
    (Tag::Base, "virtio_blk"),
    (Tag::Serial, "virtio_console"),
    (Tag::Vsock, "vmw_vsock_virtio_transport"),
    (Tag::Base, "ext4"),
    (Tag::Base, "overlay"),
    (Tag::Net, "virtio_net"),
    (Tag::Base, "virtio_rng"),
    (Tag::Base, "virtio_balloon"),
];

/// One line of `order`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootModule {
    /// With underscores; its file is `<name>.ko`.
    pub name: String,
    /// What needs it.
    pub tags: Vec<Tag>,
    /// Of the file, in hex.
    pub sha256: String,
}

/// Reads the order of a kernel's boot modules.
///
/// # Errors
/// When the file cannot be read, or holds something else.
pub fn read_order(kernel_dir: &Path) -> io::Result<Vec<BootModule>> {
    let path = kernel_dir.join(BOOT_MODULES).join(ORDER);
    let text = std::fs::read_to_string(path)?;
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            let (name, tags, sha256) = (words.next()?, words.next()?, words.next()?);
            let name_fits = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_+".contains(&byte));
            (name_fits && sha256.len() == 64).then_some(BootModule {
                name: name.to_owned(),
                tags: tags.split(',').map(Tag::of_word).collect::<Option<_>>()?,
                sha256: sha256.to_owned(),
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "a damaged order of boot modules",
            )
        })
}

/// Writes the boot modules of a staged kernel.
pub(super) fn write(
    dest: &Path,
    staged: &Staged,
    known: &Builtin,
    cancel: &Cancel,
) -> Result<(), KernelError> {
    let dir = dest.join(BOOT_MODULES);
    std::fs::create_dir(&dir).map_err(KernelError::io(format!("make {}", dir.display())))?;
    let mut plan = Plan {
        staged,
        known,
        cancel,
        aliases: None,
    };
    let mut order: Vec<(String, Vec<Tag>)> = Vec::new();
    for (tag, root) in ROOTS {
        for name in needs::first(root, COUNT_LIMIT, &mut |name| plan.needs(name))? {
            match order.iter_mut().find(|(known, _)| *known == name) {
                Some((_, tags)) if tags.contains(&tag) => {}
                Some((_, tags)) => tags.push(tag),
                None => order.push((name, vec![tag])),
            }
        }
    }
    let mut lines = String::new();
    for (name, tags) in &order {
        cancel.check()?;
        let Some(module) = staged.read(name)? else {
            continue;
        };
        // One that cannot be stripped loads as it is, only slower.
        let lean = strip(&module).unwrap_or(module);
        write_new(&dir.join(format!("{name}.ko")), &lean)?;
        let tags: Vec<&str> = tags.iter().map(|tag| tag.word()).collect();
        let sum = hex(&Sha256::digest(&lean));
        lines.push_str(&format!("{name} {} {sum}\n", tags.join(",")));
    }
    write_new(&dir.join(ORDER), lines.as_bytes())
}

struct Plan<'a> {
    staged: &'a Staged,
    known: &'a Builtin,
    cancel: &'a Cancel,
    /// Which modules answer to an alias; read only when something asks.
    aliases: Option<BTreeMap<String, Vec<String>>>,
}

impl Plan<'_> {
    /// What a module is to be loaded after; `None` of what is built in or is not there.
    fn needs(&mut self, name: &str) -> Result<Option<Vec<String>>, KernelError> {
        self.cancel.check()?;
        if self.known.has(name, "") == Some(true) {
            return Ok(None);
        }
        let Some(info) = self.staged.info(name)? else {
            return Ok(None);
        };
        let mut needs = Vec::new();
        for before in &info.soft_before {
            needs.extend(self.provider(before)?);
        }
        needs.extend(info.depends);
        Ok(Some(needs))
    }

    /// The module that a soft dependency means: one of that name, else the plainest of those
    /// that answer to it.
    fn provider(&mut self, wanted: &str) -> Result<Option<String>, KernelError> {
        let name = wanted.replace('-', "_");
        if self.known.has(&name, "") == Some(true) {
            return Ok(None);
        }
        if self.staged.by_name.contains_key(&name) {
            return Ok(Some(name));
        }
        if self.aliases.is_none() {
            let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for name in self.staged.by_name.keys() {
                self.cancel.check()?;
                for alias in self.staged.info(name)?.unwrap_or_default().aliases {
                    aliases.entry(alias).or_default().push(name.clone());
                }
            }
            self.aliases = Some(aliases);
        }
        let providers = self
            .aliases
            .as_ref()
            .and_then(|aliases| aliases.get(wanted));
        Ok(providers.and_then(|names| {
            names
                .iter()
                .find(|name| name.ends_with("_generic"))
                .or_else(|| names.first())
                .cloned()
        }))
    }
}
