//! The initramfs: the agent as `/init`, the modules this boot needs, nothing else.
//!
//! Owns the archive's bytes, which are the same for the same input, and the name of a cached
//! one. Uncompressed on purpose: the guest would spend longer unpacking than it saves reading.
//!
//! ```text
//! /init  /modules/<name>.ko  /modules/order  /modules/network
//! /dev/console (c 5 1)  /dev /proc /sys /mnt
//! ```
//!
//! `order` and `network` have one file name a line; a module stands after all it depends on.
//! Those in `order` load at once, the channel's first: disks are found while the agent and the
//! daemon say hello. Those in `network`, which need the others, load when the boot is told of a
//! network.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::kernel::{BOOT_MODULES, Tag, hex, read_order};

/// Changes with every change of the archive's shape, so that no cached one is taken for new.
const SHAPE: &str = "banger-initramfs-4";

/// How the machine's devices are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// By ACPI, in memory.
    Mmio,
    /// On a PCI bus.
    Pci,
}

/// How the agent speaks to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// A virtio serial port.
    Serial,
    /// A virtio socket.
    Vsock,
}

/// What a boot needs modules for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootSet {
    /// How devices are found.
    pub transport: Transport,
    /// The channel.
    pub channel: Channel,
    /// Whether there is a network device.
    pub net: bool,
}

/// When a module loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    /// First of those of every boot: the channel's.
    First,
    AtOnce,
    /// When the boot is told of a network.
    WithNetwork,
}

impl BootSet {
    /// When this boot wants a module that is for `tags`, if it does.
    fn wants(self, tags: &[Tag]) -> Option<Load> {
        let load = |tag: &Tag| match tag {
            Tag::Mmio => (self.transport == Transport::Mmio).then_some(Load::First),
            Tag::Pci => (self.transport == Transport::Pci).then_some(Load::First),
            Tag::Serial => (self.channel == Channel::Serial).then_some(Load::First),
            Tag::Vsock => (self.channel == Channel::Vsock).then_some(Load::First),
            Tag::Base => Some(Load::AtOnce),
            Tag::Net => self.net.then_some(Load::WithNetwork),
        };
        // What something needs has the tags of all that need it.
        tags.iter().filter_map(load).min()
    }
}

/// Hash of an agent's program, for [`key`]. Reads all of it: keep the answer.
///
/// # Errors
/// When it cannot be read.
pub fn agent_hash(agent: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(agent)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

/// Names an initramfs by all that goes into it: 64 hex digits, a file name for a cache. Reads
/// one small file.
///
/// # Errors
/// When the kernel's directory has no readable order of modules.
pub fn key(agent_hash: &str, kernel_dir: &Path, set: BootSet) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(SHAPE);
    hash.update("\n");
    hash.update(agent_hash);
    for module in read_order(kernel_dir)? {
        if let Some(load) = set.wants(&module.tags) {
            hash.update(format!("\n{} {} {load:?}", module.name, module.sha256));
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Writes an initramfs to a new file; it is removed when that fails.
///
/// # Errors
/// When the agent or a module cannot be read, or the file not be written.
pub fn build(agent: &Path, kernel_dir: &Path, set: BootSet, out: &Path) -> io::Result<()> {
    let written = write(agent, kernel_dir, set, out);
    if written.is_err() {
        let _ = std::fs::remove_file(out);
    }
    written
}

fn write(agent: &Path, kernel_dir: &Path, set: BootSet, out: &Path) -> io::Result<()> {
    let mut cpio = Cpio {
        out: BufWriter::with_capacity(256 << 10, File::create(out)?),
        inode: 0,
        at: 0,
    };
    for dir in ["dev", "proc", "sys", "mnt", "modules"] {
        cpio.entry(dir, 0o040_755, (0, 0), &[])?;
    }
    cpio.entry("dev/console", 0o020_600, (5, 1), &[])?;
    cpio.entry("init", 0o100_755, (0, 0), &std::fs::read(agent)?)?;
    let [mut first, mut at_once, mut with_network] = [const { String::new() }; 3];
    for module in read_order(kernel_dir)? {
        let Some(wanted) = set.wants(&module.tags) else {
            continue;
        };
        let path = kernel_dir
            .join(BOOT_MODULES)
            .join(format!("{}.ko", module.name));
        cpio.entry(
            &format!("modules/{}.ko", module.name),
            0o100_644,
            (0, 0),
            &std::fs::read(path)?,
        )?;
        let list = match wanted {
            Load::First => &mut first,
            Load::AtOnce => &mut at_once,
            Load::WithNetwork => &mut with_network,
        };
        list.push_str(&module.name);
        list.push_str(".ko\n");
    }
    for (name, list) in [
        ("modules/order", first + &at_once),
        ("modules/network", with_network),
    ] {
        cpio.entry(name, 0o100_644, (0, 0), list.as_bytes())?;
    }
    cpio.entry("TRAILER!!!", 0, (0, 0), &[])?;
    // The kernel wants whole 512-byte blocks of nobody's; most writers pad so.
    cpio.pad(512)?;
    cpio.out.flush()?;
    // It is found by its name from now on, which could outlive a crash that its bytes did not.
    cpio.out.get_ref().sync_all()
}

/// Writes the `newc` format.
struct Cpio<W> {
    out: W,
    inode: u32,
    at: usize,
}

impl<W: Write> Cpio<W> {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::FileTooLarge, "too large for an initramfs")
        })?;
        self.inode += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).expect("names are short"),
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.bytes(header.as_bytes())?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.pad(4)?;
        self.bytes(data)?;
        self.pad(4)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self, to: usize) -> io::Result<()> {
        let missing = self.at.next_multiple_of(to) - self.at;
        self.bytes(&[0; 512][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join(BOOT_MODULES);
        std::fs::create_dir(&modules).unwrap();
        let mut order = String::new();
        for (name, tags) in [
            ("virtio", "mmio,pci,base"),
            ("virtio_mmio", "mmio"),
            ("virtio_net", "net"),
            ("overlay", "base"),
        ] {
            std::fs::write(modules.join(format!("{name}.ko")), name).unwrap();
            order.push_str(&format!("{name} {tags} {}\n", hex(&Sha256::digest(name))));
        }
        std::fs::write(modules.join("order"), order).unwrap();
        std::fs::write(dir.path().join("agent"), b"agent").unwrap();
        dir
    }

    const PLAIN: BootSet = BootSet {
        transport: Transport::Pci,
        channel: Channel::Serial,
        net: false,
    };

    #[test]
    fn the_archive_holds_what_is_wanted_and_is_always_the_same() {
        let dir = kernel_dir();
        let agent = dir.path().join("agent");
        let out = dir.path().join("out");
        build(&agent, dir.path(), PLAIN, &out).unwrap();
        let first = std::fs::read(&out).unwrap();
        build(&agent, dir.path(), PLAIN, &out).unwrap();
        assert!(first == std::fs::read(&out).unwrap());
        let listed = std::process::Command::new("sh")
            .args(["-c", "cpio -t --quiet < \"$0\""])
            .arg(&out)
            .output();
        if let Ok(listed) = listed
            && listed.status.success()
        {
            let names = String::from_utf8(listed.stdout).unwrap();
            let names: Vec<&str> = names.lines().collect();
            assert_eq!(
                names,
                [
                    "dev",
                    "proc",
                    "sys",
                    "mnt",
                    "modules",
                    "dev/console",
                    "init",
                    "modules/virtio.ko",
                    "modules/overlay.ko",
                    "modules/order",
                    "modules/network"
                ]
            );
        }
        let text = String::from_utf8_lossy(&first);
        assert!(text.contains("virtio.ko\noverlay.ko\n"));
    }

    #[test]
    fn the_channels_modules_load_first() {
        let dir = kernel_dir();
        let order = dir.path().join(BOOT_MODULES).join("order");
        let modules = [
            ("virtio", "pci,base,serial"),
            ("virtio_blk", "base"),
            ("virtio_console", "serial"),
            ("vsock", "vsock"),
        ];
        let lines = modules.map(|(name, tags)| {
            let module = dir.path().join(BOOT_MODULES).join(format!("{name}.ko"));
            std::fs::write(module, name).unwrap();
            format!("{name} {tags} {}\n", "0".repeat(64))
        });
        std::fs::write(order, lines.concat()).unwrap();
        let out = dir.path().join("out");
        build(&dir.path().join("agent"), dir.path(), PLAIN, &out).unwrap();
        let text = String::from_utf8_lossy(&std::fs::read(&out).unwrap()).into_owned();
        let list = "virtio.ko\nvirtio_console.ko\nvirtio_blk.ko\n";
        assert!(text.contains(list));
    }

    #[test]
    fn the_networks_modules_are_listed_apart_but_for_those_that_every_boot_needs() {
        let dir = kernel_dir();
        let order = dir.path().join(BOOT_MODULES).join("order");
        let modules = [
            ("virtio", "mmio,net"),
            ("failover", "net"),
            ("virtio_net", "net"),
            ("overlay", "base"),
        ];
        let lines = modules.map(|(name, tags)| {
            let module = dir.path().join(BOOT_MODULES).join(format!("{name}.ko"));
            std::fs::write(module, name).unwrap();
            format!("{name} {tags} {}\n", "0".repeat(64))
        });
        std::fs::write(order, lines.concat()).unwrap();
        let set = BootSet {
            transport: Transport::Mmio,
            channel: Channel::Serial,
            net: true,
        };
        let out = dir.path().join("out");
        build(&dir.path().join("agent"), dir.path(), set, &out).unwrap();
        let text = String::from_utf8_lossy(&std::fs::read(&out).unwrap()).into_owned();
        let after = |list: &str| {
            let at = text.find(list).unwrap() + list.len();
            let file = text[at..].trim_start_matches('\0');
            file[..file.find("0707").unwrap()]
                .trim_end_matches('\0')
                .to_owned()
        };
        assert_eq!(after("modules/order\0"), "virtio.ko\noverlay.ko\n");
        assert_eq!(after("modules/network\0"), "failover.ko\nvirtio_net.ko\n");
        // On PCI nobody but the network needs the first one here.
        let pci = BootSet {
            transport: Transport::Pci,
            ..set
        };
        std::fs::remove_file(&out).unwrap();
        build(&dir.path().join("agent"), dir.path(), pci, &out).unwrap();
        let text = String::from_utf8_lossy(&std::fs::read(&out).unwrap()).into_owned();
        assert!(text.contains("virtio.ko\nfailover.ko\nvirtio_net.ko\n"));
        let agent = agent_hash(&dir.path().join("agent")).unwrap();
        assert_ne!(
            key(&agent, dir.path(), set).unwrap(),
            key(&agent, dir.path(), pci).unwrap(),
            "the same modules, loaded at other times"
        );
    }

    #[test]
    fn the_key_changes_with_every_part_and_with_nothing_else() {
        let dir = kernel_dir();
        let agent = agent_hash(&dir.path().join("agent")).unwrap();
        let plain = key(&agent, dir.path(), PLAIN).unwrap();
        assert_eq!(plain.len(), 64);
        assert_eq!(plain, key(&agent, dir.path(), PLAIN).unwrap());
        assert_ne!(plain, key("other", dir.path(), PLAIN).unwrap());
        assert_ne!(
            plain,
            key(&agent, dir.path(), BootSet { net: true, ..PLAIN }).unwrap()
        );
        let mmio = BootSet {
            transport: Transport::Mmio,
            ..PLAIN
        };
        assert_ne!(plain, key(&agent, dir.path(), mmio).unwrap());
        // This kernel has no module for vsock: the archive is the same.
        let vsock = BootSet {
            channel: Channel::Vsock,
            ..PLAIN
        };
        assert_eq!(plain, key(&agent, dir.path(), vsock).unwrap());
    }
}
