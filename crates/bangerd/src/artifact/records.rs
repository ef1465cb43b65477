//! What is remembered of an image and of a kernel: what clients see, and what
//! only a start needs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_api::image::Image;
use banger_api::kernel::KernelEntry;
use banger_engine::machine::Transport;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::ports::OwnKernel;
use banger_api::error::Code;
use banger_store::images::ImageRow;

/// `image.json` of a managed image, and the row of every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// As clients see it.
    #[serde(flatten)]
    pub(crate) image: Image,
    /// The root file as it was registered; absent for managed images, whose
    /// files nobody else writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rootfs: Option<FileMark>,
    /// The same of the work seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) work_seed: Option<FileMark>,
    /// The kernel that was given with it, made ready to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) own_kernel: Option<OwnKernel>,
}

impl ImageRecord {
    /// The directories that banger keeps for it, below `images`: that of a
    /// managed image, and that of a kernel which has one of its own.
    pub(crate) fn kept(&self, images: &Path) -> Vec<PathBuf> {
        let own = self.own_kernel.as_ref().map(|own| own.dir.clone());
        let own = own.filter(|dir| dir.parent() == Some(images));
        let managed = self.image.managed.then(|| images.join(&self.image.id));
        managed.into_iter().chain(own).collect()
    }
}

/// Reads the row of an image.
pub(crate) fn image(row: &ImageRow) -> Result<ImageRecord, Failure> {
    read("image", &row.name, &row.record)
}

/// By what a changed file is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileMark {
    /// Bytes.
    pub(crate) length: u64,
    /// Last change of the content: seconds since 1970, and nanoseconds.
    pub(crate) modified: (i64, i64),
}

impl FileMark {
    /// The file as it is now.
    pub(crate) fn of(path: &Path) -> std::io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self {
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// `manifest.json` of a kernel, and its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelRecord {
    /// As clients see it.
    #[serde(flatten)]
    pub(crate) entry: KernelEntry,
    /// The PCI transport is built in.
    #[serde(default)]
    pub(crate) virtio_pci_builtin: bool,
}

impl KernelRecord {
    /// The transport that boots it soonest.
    pub(crate) fn transport(&self) -> Transport {
        transport(self.virtio_pci_builtin)
    }

    /// Its `vmlinux`.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        PathBuf::from(self.entry.kernel_path.as_deref().unwrap_or_default())
    }

    /// What orders kernels by age: the version.
    pub(crate) fn version(&self) -> &str {
        self.entry
            .kernel_version
            .as_deref()
            .unwrap_or(&self.entry.name)
    }
}

/// The transport that boots a kernel soonest.
pub(crate) fn transport(virtio_pci_builtin: bool) -> Transport {
    if virtio_pci_builtin {
        Transport::Pci
    } else {
        Transport::Mmio
    }
}

/// Reads a row's JSON.
pub(crate) fn read<T: DeserializeOwned>(what: &str, key: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("the record of {what} {key} cannot be read"),
        )
        .caused_by(&error)
    })
}

/// Orders versions: digits by value, the rest as text, as people expect.
pub(crate) fn newer(left: &str, right: &str) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        let (one, other) = (piece(&mut left), piece(&mut right));
        let order = match (one, other) {
            (Piece::End, Piece::End) => return Ordering::Equal,
            (Piece::Number(one), Piece::Number(other)) => {
                one.len().cmp(&other.len()).then_with(|| one.cmp(other))
            }
            (Piece::Text(one), Piece::Text(other)) => one.cmp(other),
            // What ends is older, and so is a word where the other counts on.
            (Piece::End, _) | (Piece::Text(_), Piece::Number(_)) => Ordering::Less,
            (_, Piece::End) | (Piece::Number(_), Piece::Text(_)) => Ordering::Greater,
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

enum Piece<'a> {
    Number(&'a [u8]),
    Text(&'a [u8]),
    End,
}

fn piece<'a>(rest: &mut &'a [u8]) -> Piece<'a> {
    let Some(first) = rest.first() else {
        return Piece::End;
    };
    let number = first.is_ascii_digit();
    let length = rest
        .iter()
        .take_while(|byte| byte.is_ascii_digit() == number)
        .count();
    let (piece, after) = rest.split_at(length);
    *rest = after;
    if number {
        let zeros = piece.iter().take_while(|digit| **digit == b'0').count();
        Piece::Number(&piece[zeros..])
    } else {
        Piece::Text(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let mut versions = [
            "6.12.9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-9-cloud-amd64",
            "5.10",
            "6.12.117+deb12-cloud-amd64",
        ];
        versions.sort_by(|left, right| newer(left, right));
        assert_eq!(
            versions,
            [
                "5.10",
                "6.1.0-9-cloud-amd64",
                "6.1.0-56-cloud-amd64",
                "6.12.9-cloud-amd64",
                "6.12.117+deb12-cloud-amd64",
            ]
        );
        assert_eq!(newer("6.01", "6.1"), std::cmp::Ordering::Equal);
    }

    #[test]
    fn a_record_keeps_what_clients_see_at_its_top() {
        let record = ImageRecord {
            image: Image {
                id: "a".into(),
                name: "b".into(),
                ..Image::default()
            },
            rootfs: Some(FileMark {
                length: 7,
                modified: (1, 2),
            }),
            work_seed: None,
            own_kernel: Some(OwnKernel {
                dir: "/state/images/k".into(),
                version: "6.1".into(),
                virtio_pci_builtin: true,
                has_modules: true,
            }),
        };
        let text = serde_json::to_string(&record).unwrap();
        let image: Image = serde_json::from_str(&text).unwrap();
        assert_eq!(image, record.image);
        assert_eq!(read::<ImageRecord>("image", "a", &text).unwrap(), record);
    }
}
