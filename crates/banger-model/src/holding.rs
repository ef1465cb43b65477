//! What exists on the host because of one VM, and what rests on what.
//!
//! ```text
//! directory <- overlay, work disk, run directory
//! gateway   -> rests on the run directory
//! engine    -> rests on all of them and on its cgroup
//! ```

/// How long a holding is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// From create to delete.
    Life,
    /// From start to stop.
    Run,
}

/// A kind of thing that a VM holds. There is at most one of each per VM, and
/// its key comes from the VM's id, so that whoever takes, gives back or sweeps
/// means the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holding {
    /// The VM's directory.
    Directory,
    /// Disk for changes of the root filesystem.
    Overlay,
    /// Disk on `/root`.
    WorkDisk,
    /// Directory of one run: sockets, logs.
    RunDir,
    /// Cgroup of the engine, where one can be made.
    Cgroup,
    /// The gateway process with its end of the line; only of a VM whose way
    /// out it is.
    Gateway,
    /// The engine process.
    Engine,
}

impl Holding {
    /// All kinds in the order they are taken.
    pub const ALL: [Self; 7] = [
        Self::Directory,
        Self::Overlay,
        Self::WorkDisk,
        Self::RunDir,
        Self::Cgroup,
        Self::Gateway,
        Self::Engine,
    ];

    /// Those a VM has from create to delete, in the order they are taken.
    pub const LIFE: [Self; 3] = [Self::Directory, Self::Overlay, Self::WorkDisk];

    /// How long it is kept.
    #[must_use]
    pub const fn span(self) -> Span {
        match self {
            Self::Directory | Self::Overlay | Self::WorkDisk => Span::Life,
            Self::RunDir | Self::Cgroup | Self::Gateway | Self::Engine => Span::Run,
        }
    }

    /// Its name in the ledger and in the names of seams.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Overlay => "overlay",
            Self::WorkDisk => "work",
            Self::RunDir => "run",
            Self::Cgroup => "cgroup",
            Self::Gateway => "gateway",
            Self::Engine => "engine",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|holding| holding.name() == name)
    }

    /// The key of this holding of a VM.
    #[must_use]
    pub fn key(self, vm: &crate::VmId) -> String {
        match self {
            Self::Directory => vm.to_string(),
            Self::Overlay => format!("{vm}/overlay.ext4"),
            Self::WorkDisk => format!("{vm}/work.ext4"),
            Self::RunDir => format!("{vm}/run"),
            Self::Gateway => format!("{vm}/gateway"),
            Self::Cgroup | Self::Engine => format!("banger-{}", &vm.as_str()[..32]),
        }
    }

    /// Whether this can only be given back after `other` was.
    #[must_use]
    pub const fn carries(self, other: Self) -> bool {
        use Holding::{Cgroup, Directory, Engine, Gateway, Overlay, RunDir, WorkDisk};
        match (self, other) {
            (Directory, Overlay | WorkDisk | RunDir | Gateway | Engine)
            | (RunDir, Gateway)
            | (Overlay | WorkDisk | RunDir | Cgroup | Gateway, Engine) => true,
            (Directory, Directory | Cgroup)
            | (RunDir, Directory | Overlay | WorkDisk | RunDir | Cgroup)
            | (
                Overlay | WorkDisk | Cgroup | Gateway,
                Directory | Overlay | WorkDisk | RunDir | Cgroup | Gateway,
            )
            | (Engine, Directory | Overlay | WorkDisk | RunDir | Cgroup | Gateway | Engine) => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_another_is_taken_before_it() {
        for (at, below) in Holding::ALL.into_iter().enumerate() {
            for (above_at, above) in Holding::ALL.into_iter().enumerate() {
                if below.carries(above) {
                    assert!(at < above_at, "{below:?} carries {above:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_of_a_life_rests_on_a_run() {
        for run in Holding::ALL.into_iter().filter(|h| h.span() == Span::Run) {
            for life in Holding::LIFE {
                assert!(!run.carries(life));
            }
        }
    }

    #[test]
    fn names_and_keys_are_unique() {
        let vm = crate::VmId::from_random([7; 32]);
        for a in Holding::ALL {
            assert_eq!(Holding::of_name(a.name()), Some(a));
            for b in Holding::ALL.into_iter().filter(|b| *b != a) {
                let same_by_design = matches!(
                    (a, b),
                    (Holding::Cgroup, Holding::Engine) | (Holding::Engine, Holding::Cgroup)
                );
                assert!(same_by_design || a.key(&vm) != b.key(&vm), "{a:?} {b:?}");
            }
        }
    }
}
