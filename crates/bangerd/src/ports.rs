//! What the daemon asks of the world. One real implementation each, and one
//! double for the tests that cut the power.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_engine::machine::{Abilities, End, Facts, Machine, Transport};
use banger_images::{Cancel, Report};
use banger_model::{Holding, Size, VmId};
use banger_wire::agent::{Boot, Booted, Event, Exec, Health, Pong, Stop};
use banger_wire::frames::Frame;
use banger_wire::gateway::Counters;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::failure::Failure;

/// Starts and finds engines.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Starts an engine: the one named, or with `auto` the first that fits.
    /// Returns once the process runs; the guest may not.
    async fn launch(&self, machine: &Machine, wanted: &str) -> Result<Facts, Failure>;

    /// Takes over an engine that was launched before; `None` when it is gone.
    async fn attach(&self, facts: &Facts) -> Result<Option<Arc<dyn Running>>, Failure>;

    /// Ends whatever was launched for this VM, known or not, and returns when
    /// nothing of it lives: by cgroup where there is one, else by what holds
    /// the lock of the run directory. Nothing there counts as done.
    async fn sweep(&self, id: &str, run_dir: &Path, cgroup: Option<&Path>) -> Result<(), Failure>;

    /// What engines of this host can do.
    fn abilities(&self) -> Abilities;

    /// Whether a launch can be tried at all, asked before anything is made:
    /// `no_engine` or `unsupported` where not. `wanted` is `auto` or a name.
    async fn usable(&self, wanted: &str) -> Result<(), Failure> {
        let _ = wanted;
        Ok(())
    }
}

/// An engine that lives, or lived a moment ago.
#[async_trait]
pub(crate) trait Running: Send + Sync {
    /// Waits for the agent's hello on the channel and opens a connection to
    /// it. Called again after the connection broke.
    async fn guest(&self, token: [u8; 32]) -> Result<Arc<dyn Guest>, Failure>;

    /// Returns when the engine has ended, at once when it already has. Many
    /// may wait.
    async fn ended(&self) -> End;

    /// The next disk, by its serial, whose write found no room on the host;
    /// the guest was told of an I/O error. One answer for all the writes since
    /// the last, and none after the end. One may wait.
    async fn disk_full(&self) -> String;

    /// Freezes the guest.
    async fn pause(&self) -> Result<(), Failure>;

    /// Thaws it.
    async fn resume(&self) -> Result<(), Failure>;

    /// Sends a signal (`TERM INT KILL`) to the engine.
    async fn kill(&self, signal: &str) -> Result<(), Failure>;

    /// CPU time in microseconds, resident and virtual bytes; `None` when gone.
    fn usage(&self) -> Option<Usage>;

    /// A descriptor of its process, for those who must not outlive it. `None`
    /// of an engine that is no process.
    fn pidfd(&self) -> Option<OwnedFd>;
}

/// Starts and finds gateways, the way out of guests in network mode `user`.
#[async_trait]
pub(crate) trait Gateways: Send + Sync {
    /// Whether one can be started at all: `no_tool` where not.
    fn usable(&self) -> Result<(), Failure>;

    /// Starts one at this end of a line. Returns once the process runs.
    async fn launch(
        &self,
        vm: &VmId,
        run_dir: &Path,
        line: Arc<OwnedFd>,
    ) -> Result<Arc<dyn Gateway>, Failure>;

    /// Takes over one that was launched before, by its facts or by what it
    /// calls itself; `None` when there is none.
    async fn attach(
        &self,
        vm: &VmId,
        run_dir: &Path,
        facts: Option<&str>,
    ) -> Result<Option<Arc<dyn Gateway>>, Failure>;

    /// Ends every gateway of this VM, known or not, and returns when none
    /// lives. Nothing there counts as done.
    async fn sweep(&self, vm: &VmId, facts: Option<&str>) -> Result<(), Failure>;

    /// Whom the host asks for names, now and whenever that changes.
    fn resolvers(&self) -> watch::Receiver<Vec<IpAddr>>;
}

/// A gateway that lives, or lived a moment ago.
#[async_trait]
pub(crate) trait Gateway: Send + Sync {
    /// What finds it again: JSON, for the ledger.
    fn facts(&self) -> String;

    /// Tells it of the engine that it must not outlive. May be told again.
    async fn watch_engine(&self, engine: &dyn Running) -> Result<(), Failure>;

    /// Tells it whom to ask for names.
    async fn set_resolvers(&self, addresses: Vec<IpAddr>) -> Result<(), Failure>;

    /// Its end of the line, for a daemon that came back without it.
    async fn line(&self) -> Result<Arc<OwnedFd>, Failure>;

    /// What went through since it started, and what did not.
    async fn counters(&self) -> Result<Counters, Failure>;

    /// Returns when it has ended, with how it did, in words. Many may wait.
    async fn ended(&self) -> String;
}

/// Use of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time, microseconds.
    pub(crate) cpu_us: u64,
    /// Resident bytes.
    pub(crate) rss_bytes: u64,
    /// Virtual bytes.
    pub(crate) vsz_bytes: u64,
}

/// A live connection to the agent of one guest. Dropping it closes it.
#[async_trait]
pub(crate) trait Guest: Send + Sync {
    /// Boot id of the guest's kernel, from the hello.
    fn boot_id(&self) -> String;

    /// Assembles the root. Idempotent.
    async fn boot(&self, boot: &Boot) -> Result<Booted, Failure>;

    /// The agent's own idea of its health.
    async fn health(&self) -> Result<Health, Failure>;

    /// The agent answers.
    async fn ping(&self) -> Result<Pong, Failure>;

    /// All written data is on the disks.
    async fn sync(&self) -> Result<(), Failure>;

    /// Ends the guest; it resets the machine.
    async fn stop(&self, stop: &Stop) -> Result<(), Failure>;

    /// Sets the guest's clock to now.
    async fn set_clock(&self) -> Result<(), Failure>;

    /// Tells the agent that its `Ended` was seen.
    async fn acknowledge_end(&self) -> Result<(), Failure>;

    /// News, past ones first; `None` at the end of the connection.
    async fn events(&self) -> Result<Box<dyn EventStream>, Failure>;

    /// Runs a command. Frames go in by the sender and come out by the
    /// receiver; dropping both loses the client, and the agent hangs it up.
    async fn exec(&self, exec: Exec) -> Result<ExecStream, Failure>;

    /// Ends the guest and gives its root on the way: frames, whose `stdout` is
    /// a tar. The last is an `exit` where that is whole, or an `error`.
    async fn pack(&self, stop: &Stop) -> Result<mpsc::Receiver<Frame>, Failure>;

    /// Returns when the connection is lost.
    async fn lost(&self);
}

/// News of one guest.
#[async_trait]
pub(crate) trait EventStream: Send {
    /// The next event; `None` when the connection ended.
    async fn next(&mut self) -> Option<Event>;
}

/// Both directions of a running command. The queues are short: who does not
/// read stops who writes.
pub(crate) struct ExecStream {
    /// To the command: stdin frames and controls.
    pub(crate) input: mpsc::Sender<Frame>,
    /// From it; the last is an `exit` or `error` control.
    pub(crate) output: mpsc::Receiver<Frame>,
}

/// The host's files and resources, as VMs hold them.
#[async_trait]
pub(crate) trait Host: Send + Sync {
    /// Where the cgroup of a VM would be; `None` where none can be made.
    fn cgroup(&self, vm: &VmId) -> Option<PathBuf>;

    /// Makes a holding, or keeps what an earlier try made; a disk that is too
    /// short grows. [`Holding::Gateway`] and [`Holding::Engine`] are not the
    /// host's.
    async fn take(&self, vm: &VmId, holding: Holding, want: &Want) -> Result<(), Failure>;

    /// Removes a holding. Already gone counts as done.
    async fn give_back(
        &self,
        vm: &VmId,
        holding: Holding,
        cgroup: Option<&Path>,
    ) -> Result<(), Failure>;

    /// Free bytes of the state's file system.
    fn free_bytes(&self) -> Result<u64, Failure>;

    /// Memory of the host: available now, and in all. Bytes.
    fn memory(&self) -> Result<(u64, u64), Failure>;

    /// Length of a file; 0 where there is none.
    fn length(&self, path: &Path) -> u64;

    /// Bytes that a file takes on the disk.
    fn allocated(&self, path: &Path) -> Option<u64>;

    /// The last lines of a file from `from` on, at most this many, oldest
    /// first; control characters are gone. A shorter file is read from its start.
    fn tail(&self, path: &Path, from: u64, lines: usize) -> Vec<String>;

    /// When a file was last written, seconds since 1970.
    fn written_at(&self, path: &Path) -> Option<i64>;

    /// Copies a console that grew too long aside and empties it.
    fn trim_console(&self, path: &Path);
}

/// What a holding is made from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Want {
    /// Size of the system overlay, bytes.
    pub(crate) overlay_bytes: u64,
    /// Size of the work disk, bytes.
    pub(crate) work_bytes: u64,
    /// ext4 the work disk begins as.
    pub(crate) work_seed: Option<PathBuf>,
    /// Where the cgroup goes.
    pub(crate) cgroup: Option<PathBuf>,
}

/// Images and kernels, as a boot needs them.
#[async_trait]
pub(crate) trait Artifacts: Send + Sync {
    /// Refuses, before anything is made, an image or a kernel that is neither
    /// here nor one that its first use obtains.
    async fn known(&self, image: Option<&str>, kernel: Option<&str>) -> Result<(), Failure>;

    /// The image of this name or id, else the default one, obtained where it
    /// is missing. Progress goes to the operation.
    async fn image(
        &self,
        reference: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<BootImage, Failure>;

    /// The kernel of this name, else the image's own or the one it names, the
    /// configured, the newest local, or the default one, obtained where there
    /// is none. `net` where the machine has a network card.
    async fn kernel(
        &self,
        name: Option<&str>,
        image: &BootImage,
        net: bool,
        progress: &dyn Progress,
    ) -> Result<BootKernel, Failure>;

    /// An image by id, for a start; fails `in_use` when its file has changed.
    async fn image_for_start(&self, id: &str) -> Result<BootImage, Failure>;

    /// A kernel by name, for a start; `net` where the machine has a network
    /// card.
    async fn kernel_for_start(&self, name: &str, net: bool) -> Result<BootKernel, Failure>;
}

/// Machines in which images are made of others.
#[async_trait]
pub(crate) trait Builder: Send + Sync {
    /// Boots a machine of its own for this job, does the job in it as root,
    /// and writes its root as a tar into a file. The machine is gone when this
    /// returns; when it is dropped before, it goes a while later.
    async fn build(
        &self,
        job: &BuildJob,
        cancel: Cancel,
        report: &dyn Report,
        into: File,
    ) -> Result<(), Failure>;
}

/// What is done to an image to make another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuildJob {
    /// Name of the image to be.
    pub(crate) name: String,
    /// The image it is made of, by name or id.
    pub(crate) from: String,
    /// Least size of the machine's system disk.
    pub(crate) least_disk: Option<Size>,
    /// Docker is added first.
    pub(crate) docker: bool,
    /// What else.
    pub(crate) work: BuildWork,
}

/// What is done in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BuildWork {
    /// A program, by its text.
    Script(String),
    /// Packages of the distribution are installed.
    Packages(Vec<String>),
}

/// Where stages, bytes and log lines of long work go.
pub(crate) trait Progress: Send + Sync {
    /// A stage begins.
    fn stage(&self, stage: &str, detail: &str);
    /// Bytes of the present stage.
    fn bytes(&self, done: u64, total: Option<u64>);
    /// Bytes of a part of the present stage, such as a layer, and all of that part's.
    fn part(&self, part: &str, done: u64, total: u64);
    /// A line of log.
    fn log(&self, line: &str);
    /// Ends when the work should stop.
    fn cancel(&self) -> Cancel;
}

/// An image, ready to boot.
#[derive(Debug, Clone, Default)]
pub(crate) struct BootImage {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Read-only ext4.
    pub(crate) rootfs: PathBuf,
    /// ext4 of `/root`.
    pub(crate) work_seed: Option<PathBuf>,
    /// Kernel it asks for.
    pub(crate) kernel_name: Option<String>,
    /// Kernel that it brought along; then it asks for none.
    pub(crate) own_kernel: Option<OwnKernel>,
    /// `K=V` of the image.
    pub(crate) env: Vec<String>,
    /// Working directory of the image.
    pub(crate) working_dir: Option<String>,
}

/// A kernel that came with an image: no name of its own, and not in the list
/// of kernels. It stays for as long as a VM has the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnKernel {
    /// Its directory, as that of any kernel.
    pub(crate) dir: PathBuf,
    /// What `uname -r` says.
    pub(crate) version: String,
    /// The PCI transport is built in.
    pub(crate) virtio_pci_builtin: bool,
    /// It has a modules image.
    pub(crate) has_modules: bool,
}

/// A kernel, ready to boot.
#[derive(Debug, Clone)]
pub(crate) struct BootKernel {
    /// Its name; absent where it is the image's own.
    pub(crate) name: Option<String>,
    /// ELF.
    pub(crate) vmlinux: PathBuf,
    /// The daemon's own, with the agent.
    pub(crate) initramfs: PathBuf,
    /// Keeps the initramfs where it is for as long as this lives.
    pub(crate) _hold: Option<Arc<File>>,
    /// Modules image, read-only ext4.
    pub(crate) modules: Option<PathBuf>,
    /// How its devices are attached.
    pub(crate) transport: Transport,
}
