//! Whether the processor can run guests, and why not. A device that opens is
//! not enough: some hosts offer a KVM that interprets, on which stock kernels
//! die.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use banger_sys::engine::kvm::{self, Refused};

const DEVICE: &str = "/dev/kvm";

/// What the environment says about KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvmSetting {
    /// Nothing: look.
    #[default]
    Look,
    /// Use it although the CPU shows no virtualization.
    Force,
    /// As if there were none.
    Off,
}

impl KvmSetting {
    /// From the value of `BANGER_KVM`; anything but `force` and `off` is
    /// nothing.
    #[must_use]
    pub fn from_value(value: Option<&str>) -> Self {
        match value {
            Some("force") => Self::Force,
            Some("off") => Self::Off,
            _ => Self::Look,
        }
    }
}

/// Why KVM is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKvm {
    /// Asked for.
    #[error("BANGER_KVM=off")]
    Hidden,
    /// Neither flag in `/proc/cpuinfo`.
    #[error("no hardware virtualization (CPU shows neither vmx nor svm)")]
    NoVirtualization,
    /// The module is not loaded, or a container hides it.
    #[error("/dev/kvm does not exist")]
    NoDevice,
    /// Not in the group that may.
    #[error("no permission to open /dev/kvm")]
    NoPermission,
    /// It opens, or not, and does not work.
    #[error("/dev/kvm cannot {step}: {cause}")]
    Broken {
        /// What it could not.
        step: &'static str,
        /// The system's word for it.
        cause: String,
    },
}

impl NoKvm {
    /// What the user may do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoPermission => Some(
                "add yourself to the group of /dev/kvm: sudo usermod -aG kvm $USER, then log in again",
            ),
            Self::NoDevice => Some("load the module: sudo modprobe kvm_intel, or kvm_amd"),
            Self::Hidden | Self::NoVirtualization | Self::Broken { .. } => None,
        }
    }
}

/// Looks whether KVM can be used.
///
/// # Errors
/// [`NoKvm`] with the first reason against it.
pub fn usable(setting: KvmSetting) -> Result<(), NoKvm> {
    match setting {
        KvmSetting::Off => return Err(NoKvm::Hidden),
        KvmSetting::Look if !shows_virtualization() => return Err(NoKvm::NoVirtualization),
        KvmSetting::Look | KvmSetting::Force => {}
    }
    kvm::probe(Path::new(DEVICE)).map_err(|refused| reason(&refused))
}

fn reason(refused: &Refused) -> NoKvm {
    let broken = |step, cause: &io::Error| NoKvm::Broken {
        step,
        cause: cause.to_string(),
    };
    match refused {
        Refused::Open(error) => match error.kind() {
            io::ErrorKind::NotFound => NoKvm::NoDevice,
            io::ErrorKind::PermissionDenied => NoKvm::NoPermission,
            _ => broken("be opened", error),
        },
        Refused::Version(version) => NoKvm::Broken {
            step: "speak version 12",
            cause: format!("it says {version}"),
        },
        Refused::Vm(error) => broken("make a VM", error),
        Refused::Vcpu(error) => broken("make a vCPU", error),
    }
}

/// Asked once: a processor does not change, and the file is long where there
/// are many.
fn shows_virtualization() -> bool {
    static SHOWS: OnceLock<bool> = OnceLock::new();
    *SHOWS.get_or_init(|| {
        // Only x86 tells by a flag.
        !cfg!(target_arch = "x86_64")
            || std::fs::read_to_string("/proc/cpuinfo")
                .is_ok_and(|text| flags_show_virtualization(&text))
    })
}

fn flags_show_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .is_some_and(|flags| {
            flags
                .split_ascii_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_flags_count_as_virtualization() {
        assert!(flags_show_virtualization(
            "processor : 0\nflags\t\t: fpu svm sse\n"
        ));
        assert!(flags_show_virtualization(
            "flags\t\t: fpu vmx\nbugs\t\t: x\n"
        ));
        assert!(!flags_show_virtualization(
            "flags\t\t: fpu svm_lock\nvmx flags\t: vnmi\nmodel name: vmx\n"
        ));
        assert!(!flags_show_virtualization(""));
    }

    #[test]
    fn off_hides_kvm_whatever_the_host_has() {
        assert_eq!(usable(KvmSetting::Off), Err(NoKvm::Hidden));
        assert_eq!(KvmSetting::from_value(Some("off")), KvmSetting::Off);
        assert_eq!(KvmSetting::from_value(Some("1")), KvmSetting::Look);
    }

    #[test]
    fn a_host_without_the_flags_says_so_even_where_the_device_opens() {
        if !shows_virtualization() {
            let reason = usable(KvmSetting::Look).unwrap_err();
            assert_eq!(
                reason.to_string(),
                "no hardware virtualization (CPU shows neither vmx nor svm)"
            );
        }
    }
}
