//! The agent's routes and their bodies. The daemon is the client.
//!
//! | Route | Request | Answer |
//! |---|---|---|
//! | `POST /boot` | [`Boot`] | [`Booted`], when commands may run; 409 with [`Refusal`] when already booted differently |
//! | `POST /exec` | frames, the first a `start` control | frames, the last `exit` or `error` |
//! | `GET /health` | - | [`Health`] |
//! | `GET /ping` | - | [`Pong`] |
//! | `GET /events` | - | JSON lines of [`Event`], the past ones first, until the stream ends |
//! | `POST /sync` | - | 204 when all written data is on the disks |
//! | `POST /stop` | [`Stop`] | 202 at once; [`Event::Ended`] follows, then the machine resets |
//! | `POST /pack` | [`Stop`] | the end as by `/stop`; frames: `stdout` is a tar of the guest's root, packed when nothing runs any more, the last frame `exit` or `error` |
//! | `POST /ended` | - | 204: the daemon has seen `Ended`, the agent need not wait |
//! | `POST /clock` | [`Clock`] | 204 |
//!
//! Any failure is a JSON [`Refusal`] with status 400 (bad request), 409 (wrong
//! moment), 429 (too many streams) or 500. `/boot` is idempotent: asked again
//! for the boot that was done, it answers as the first time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Concurrent HTTP/2 streams of one connection.
pub const MAX_STREAMS: u32 = 1024;
/// Streams among them that only the daemon's own calls may take.
pub const RESERVED_STREAMS: u32 = 32;
/// HTTP/2 window of one stream, bytes.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 window of the connection, bytes: so large that one unread stream
/// never stops the others.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Largest HTTP/2 frame, bytes.
pub const MAX_FRAME: u32 = 64 << 10;
/// Largest JSON answer of the agent that the daemon reads, bytes.
pub const MAX_ANSWER: usize = 4 << 20;
/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "banger.agent";
/// First word of the console's last line, followed by the JSON of
/// [`Ended`]: how the daemon learns of an end that came while it was away.
pub const ENDED_LINE: &str = "banger-ended";

/// Assemble the root and start the image's init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Hostname: the VM's name.
    pub hostname: String,
    /// Wall clock, nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Seed for the guest's random generator, base16, 32 to 512 bytes.
    pub entropy_hex: String,
    /// The block devices.
    pub disks: Disks,
    /// Environment of the image (OCI `Env`); for commands, not for init.
    #[serde(default)]
    pub image_env: BTreeMap<String, String>,
    /// Working directory of the image, for commands.
    #[serde(default)]
    pub image_cwd: Option<String>,
    /// Mask systemd units that have no function in a VM.
    #[serde(default)]
    pub trim_systemd: bool,
    /// `systemd.machine_id`, 32 hex digits; the same at every start of a VM.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// A command follows at once: hold the image's init back until that
    /// command was spawned, for 5 s at most.
    #[serde(default)]
    pub main_follows: bool,
    /// Fill an empty work disk from the image's `/root`.
    #[serde(default)]
    pub fill_work: bool,
    /// Lines of `/etc/resolv.conf` (nameserver addresses); none: no file is written.
    #[serde(default)]
    pub nameservers: Vec<String>,
    /// The way out of the guest; none: a guest without a network card.
    #[serde(default)]
    pub network: Option<Network>,
}

/// How the guest's only network card is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The guest's own address with the length of its net, such as `10.0.2.15/24`.
    pub address: String,
    /// Where everything outside that net goes.
    pub gateway: String,
    /// Largest IP packet on the card, bytes.
    pub mtu: u32,
}

/// The serials that the daemon gives its drives. An agent may mount the image
/// before it is asked to.
pub mod serial {
    /// Image root, read-only.
    pub const ROOT: &str = "root";
    /// System overlay.
    pub const OVERLAY: &str = "overlay";
    /// Work disk.
    pub const WORK: &str = "work";
    /// Kernel modules, read-only.
    pub const MODULES: &str = "modules";
}

/// Drives by their virtio-blk serial. The agent looks the serial up in
/// `/sys/block/*/serial`; without serials the order is that of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// Image root, read-only ext4.
    pub root: String,
    /// System overlay, read-write ext4.
    pub overlay: String,
    /// Work disk, read-write ext4.
    pub work: String,
    /// Kernel modules, read-only ext4: the tree of `/lib/modules/<version>`.
    #[serde(default)]
    pub modules: Option<String>,
}

/// The root stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booted {
    /// Version of the agent.
    pub agent_version: String,
    /// `uname -r` of the guest.
    pub kernel_version: String,
    /// The guest kernel's boot id, as `/proc/sys/kernel/random/boot_id` prints it.
    pub boot_id: String,
    /// Which init the image has.
    pub init: Init,
    /// What could not be done and does not matter enough to fail.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Milliseconds since the guest kernel's start at which each step ended.
    #[serde(default)]
    pub stages: Vec<(String, u64)>,
    /// Milliseconds that each step took that went on beside those.
    #[serde(default)]
    pub beside: Vec<(String, u64)>,
}

/// The kind of init that runs beside the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// systemd: healthy when it notified `READY=1`.
    Systemd,
    /// sysvinit, or sysvinit with openrc.
    Sysvinit,
    /// openrc-init.
    Openrc,
    /// busybox init.
    Busybox,
    /// Something else found at an init's path.
    Other,
    /// The image has none: the agent's own reaping stub.
    Stub,
}

/// What to run, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; empty for the user's login shell.
    pub argv: Vec<String>,
    /// Variables over those of the image and the defaults.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; else the image's, else the user's home.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group`, `uid:gid`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether standard input will come; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// A PTY of this size instead of pipes.
    #[serde(default)]
    pub tty: Option<WindowSize>,
    /// TERM after this many milliseconds, KILL 10 s later.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// The command that `main_follows` of [`Boot`] announced.
    #[serde(default)]
    pub main: bool,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Answer of `/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The root is assembled: commands run.
    pub booted: bool,
    /// The image's init is up.
    pub healthy: bool,
}

/// Answer of `/ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Version of the agent.
    pub agent_version: String,
    /// Commands that live now.
    pub commands: u32,
}

/// End the machine: commands, init, disks, reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// How long guest processes get between TERM and KILL, and the init to end.
    pub grace_ms: u64,
}

/// The wall clock, after a resume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}

/// News from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The image's init is up.
    Healthy,
    /// The machine is about to reset; disks are clean.
    Ended(Ended),
    /// A type this side does not know.
    #[serde(other)]
    Unknown,
}

/// How the guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What was asked of, or happened to, the init.
    pub reason: EndReason,
    /// Exit code or signal of the init, in words.
    #[serde(default)]
    pub status: String,
    /// Both disks were unmounted clean.
    #[serde(default)]
    pub clean: bool,
}

/// Why the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The daemon asked with `/stop`.
    Stop,
    /// `reboot` inside.
    Reboot,
    /// `poweroff` or `halt` inside.
    Poweroff,
    /// Anything else.
    Crash,
}

/// Why the agent refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A sentence.
    pub error: String,
}
