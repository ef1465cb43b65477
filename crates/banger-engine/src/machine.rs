//! A machine as an engine sees it: plain data, and what is left of a launch.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How virtio devices are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// virtio-mmio, found through ACPI.
    Mmio,
    /// virtio-pci; needs a kernel with `virtio_pci` built in.
    Pci,
}

/// Who runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// The processor.
    Kvm,
    /// The engine, by emulation.
    Tcg,
}

impl Acceleration {
    /// The name users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// virtio-blk serial, at most 20 bytes: how the agent finds it.
    pub serial: String,
    /// A raw file.
    pub path: PathBuf,
    /// Never written.
    pub read_only: bool,
}

/// The network card of a machine.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The engine's end of a datagram socketpair: one Ethernet frame a
    /// datagram. Non-blocking, or a gateway that does not read stops the guest.
    pub line: Arc<OwnedFd>,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet, bytes; the guest is told.
    pub mtu: u16,
}

/// A machine to launch. Paths are absolute.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Id of the VM: 64 hex digits. On the engine's command line, so that a
    /// lost engine is found again.
    pub id: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// ELF kernel.
    pub kernel: PathBuf,
    /// Uncompressed initramfs with the agent.
    pub initramfs: PathBuf,
    /// How devices are attached.
    pub transport: Transport,
    /// Kernel arguments beyond those that the engine itself needs.
    pub arguments: Vec<String>,
    /// In the order the guest sees them.
    pub drives: Vec<Drive>,
    /// The network card, where there is one.
    pub nic: Option<Nic>,
    /// Exists, 0700, this VM's alone: sockets, logs, the lock.
    pub run_dir: PathBuf,
    /// Console of the guest, appended to.
    pub console: PathBuf,
    /// A cgroup of its own, where one could be made.
    pub cgroup: Option<PathBuf>,
}

/// What finds a launched engine again; kept in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `qemu` or `firecracker`.
    pub engine: String,
    /// Its version.
    pub version: String,
    /// Who runs the instructions.
    pub acceleration: Acceleration,
    /// Why not the processor; absent where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_kvm: Option<String>,
    /// Process id, believed only together with what follows.
    pub pid: u32,
    /// Start time of the process, clock ticks after the host's boot.
    pub start_ticks: u64,
    /// Boot id of the host.
    pub host_boot_id: String,
    /// Its executable.
    pub executable: PathBuf,
    /// As in [`Machine`].
    pub id: String,
    /// As in [`Machine`].
    pub run_dir: PathBuf,
    /// As in [`Machine`].
    pub cgroup: Option<PathBuf>,
    /// Serials of the drives, in order: what a resize names.
    pub drives: Vec<String>,
}

/// What an engine can do; asked before use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// Freeze and thaw.
    pub pause: bool,
    /// Tell the guest of a grown disk while it runs.
    pub resize_disk: bool,
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The guest reset or powered off the machine, as opposed to a death of
    /// the engine.
    pub by_guest: bool,
    /// In words: exit status, signal, or what QMP and log said.
    pub reason: String,
}
