//! Which engine a machine gets, and why. Looks at the host; starts nothing
//! but, once per installed program, a question for its version.

use std::path::PathBuf;

use crate::kvm::{KvmSetting, NoKvm};
use crate::machine::Acceleration;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// The first that fits.
    #[default]
    Auto,
    /// QEMU, with KVM or without.
    Qemu,
    /// Firecracker.
    Firecracker,
}

impl Wish {
    /// From its name in flags and config.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "auto" => Self::Auto,
            "qemu" => Self::Qemu,
            "firecracker" => Self::Firecracker,
            _ => return None,
        })
    }
}

/// Where engines are, and where what was learned about them is kept.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The daemon's default: what is looked for before anybody asks.
    pub wish: Wish,
    /// Instead of looking in `PATH`.
    pub qemu_bin: Option<PathBuf>,
    /// `BANGER_KVM`.
    pub kvm: KvmSetting,
    /// Exists; small files in it are ours and may vanish.
    pub cache_dir: PathBuf,
}

/// An engine that can be launched now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// `qemu` or `firecracker`.
    pub engine: &'static str,
    /// Its version.
    pub version: String,
    /// Its program.
    pub program: PathBuf,
    /// Who will run the guest's instructions.
    pub acceleration: Acceleration,
    /// Why not the processor; absent where it will.
    pub no_kvm: Option<NoKvm>,
    /// Why this engine, in a sentence without a full stop.
    pub reason: String,
}

/// Why there is no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// A known engine that this build cannot drive.
    #[error("engine {0} is not in this build")]
    Unsupported(&'static str),
    /// No QEMU in `PATH`.
    #[error("no usable engine: {program} is not installed")]
    NotInstalled {
        /// What was looked for.
        program: String,
    },
    /// There is one that cannot be used.
    #[error("no usable engine: {} {problem}", program.display())]
    Unusable {
        /// Which.
        program: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl ChooseError {
    /// The next step.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported(_) => Some("use engine auto or qemu".to_owned()),
            Self::NotInstalled { .. } => Some("sudo apt install qemu-system-x86".to_owned()),
            Self::Unusable { .. } => Some("install QEMU 7.2 or newer, or set qemu_bin".to_owned()),
        }
    }
}
