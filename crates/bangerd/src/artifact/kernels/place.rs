//! How a kernel gets its place: its manifest, its directory, its row.
//!
//! Making one takes minutes, in which a VM may begin to use the one that it is
//! to replace. So who uses that is asked when it is made, and again in the
//! transaction that writes the row; until then the old directory is kept, and
//! gets its place back when it is in use.

use std::fs;
use std::io;
use std::path::Path;

use banger_api::kernel::{KernelEntry, KernelImportParams};
use banger_images::Cancel;
use banger_images::bzimage::Format;
use banger_images::kernel::KernelInfo;
use banger_model::KernelName;
use banger_store::kernels;

use super::super::flight::was_cancelled;
use super::super::publish::{self, Staging};
use super::super::records::KernelRecord;
use super::super::{Claim, Shelf, blocking, space, users};
use super::row;
use crate::failure::Failure;
use crate::operation::now;

/// What is known of a kernel, in its directory.
pub(super) const MANIFEST: &str = "manifest.json";

/// A kernel that is whole and has no place yet.
pub(super) struct Made {
    staging: Staging,
    record: KernelRecord,
}

impl Shelf {
    /// Makes a kernel's directory, puts it in place, and writes its row, unless it was given up
    /// by then.
    pub(super) async fn add(
        &self,
        _claim: Claim,
        cancel: Cancel,
        making: impl FnOnce() -> Result<Made, Failure> + Send + 'static,
    ) -> Result<KernelRecord, Failure> {
        let made = blocking(making).await?;
        // Its name was free, or may be overwritten.
        self.name_is_free(&made.record.entry.name, true).await?;
        let record = self.put_in_place(made, &cancel).await?;
        for warning in &record.entry.warnings {
            tracing::warn!(kernel = record.entry.name, "{warning}");
        }
        tracing::info!(kernel = record.entry.name, "kernel added");
        // It may have replaced another.
        self.prune_soon();
        Ok(record)
    }

    async fn put_in_place(&self, made: Made, cancel: &Cancel) -> Result<KernelRecord, Failure> {
        let Made { staging, record } = made;
        let name = record.entry.name.clone();
        let place = self.0.kernels_dir.join(&name);
        let (to, shown) = (place.clone(), name.clone());
        let publishing = move || staging.publish(&to).map_err(|error| cannot(&shown, &error));
        let replaced = blocking(publishing).await?;
        let (key, row) = (name.clone(), row(&record));
        let written = self.0.store.promise(move |tx| {
            let users = match kernels::get(tx, &key)? {
                Some(_) => users::of_kernel(tx, &key)?,
                None => Vec::new(),
            };
            if users.is_empty() {
                kernels::put(tx, &row)?;
            }
            Ok(users)
        });
        let refused = match cancel.is_cancelled() {
            true => was_cancelled(),
            false => match written.await {
                Ok(users) if users.is_empty() => {
                    publish::settle(vec![place]).await;
                    // Also what was replaced is large.
                    blocking(move || {
                        drop(replaced);
                        Ok(())
                    })
                    .await?;
                    return Ok(record);
                }
                Ok(users) => users::in_use("kernel", &name, &users),
                Err(error) => error.into(),
            },
        };
        match replaced {
            Some(replaced) => {
                let put_back = move || {
                    replaced
                        .put_back(&place)
                        .map_err(|error| cannot(&name, &error))
                };
                blocking(put_back).await?;
            }
            None => publish::discard(vec![place]).await,
        }
        Err(refused)
    }
}

impl Made {
    /// Writes the manifest of a kernel that will be below `parent`.
    pub(super) fn of(
        staging: Staging,
        parent: &Path,
        name: &KernelName,
        source: Option<String>,
        given: Option<&KernelImportParams>,
        info: &KernelInfo,
    ) -> Result<Self, Failure> {
        let place = parent.join(name.as_str());
        let below = |file: &str| Some(place.join(file).display().to_string());
        let record = KernelRecord {
            entry: KernelEntry {
                name: name.to_string(),
                distro: given
                    .and_then(|given| given.distro.clone())
                    .or_else(|| info.distro.clone()),
                arch: given
                    .and_then(|given| given.arch.clone())
                    .or_else(|| Some(info.arch.clone())),
                kernel_version: Some(info.version.clone()),
                sha256: Some(info.sha256.clone()),
                source,
                imported_at: Some(now()),
                kernel_path: below("vmlinux"),
                initrd_path: info.has_initrd.then(|| below("initrd.img")).flatten(),
                modules_dir: info.has_modules.then(|| below("modules.ext4")).flatten(),
                format: Some(
                    match info.format {
                        Format::BzImage => "bzImage",
                        Format::Vmlinux => "vmlinux",
                    }
                    .to_owned(),
                ),
                size_bytes: Some(info.size_bytes),
                warnings: info.warnings.clone(),
            },
            virtio_pci_builtin: info.virtio_pci_builtin,
        };
        let text = serde_json::to_vec_pretty(&record).expect("a record is plain JSON");
        fs::write(staging.path().join(MANIFEST), text)
            .map_err(|error| cannot(name.as_str(), &error))?;
        Ok(Self { staging, record })
    }
}

fn cannot(name: &str, error: &io::Error) -> Failure {
    space::failed(format!("cannot publish kernel \"{name}\""), error)
}

#[cfg(test)]
mod tests {
    use banger_api::error::Code;
    use banger_model::{Goal, Phase};
    use banger_store::vms::{self, VmRow};
    use banger_store::{Store, Transaction};
    use tokio_util::task::TaskTracker;

    use super::super::super::Kind;
    use super::super::begin;
    use super::*;
    use crate::config::Config;
    use crate::paths::Paths;

    fn shelf(place: &Path) -> Shelf {
        let paths = Paths {
            state: place.join("state"),
            config_file: place.join("config.toml"),
            cache: place.join("cache"),
            run: place.join("run"),
            socket: place.join("run/bangerd.sock"),
        };
        paths.make_state().unwrap();
        paths.make_rooms().unwrap();
        let store = Store::open(&paths.database()).unwrap();
        Shelf::new(store, &paths, &Config::default(), TaskTracker::new())
    }

    /// A kernel of this name, known by its version.
    fn made(shelf: &Shelf, version: &str) -> Made {
        let staging = begin(&shelf.0.kernels_dir).unwrap();
        fs::write(staging.path().join("vmlinux"), version).unwrap();
        let record = serde_json::json!({"name": "k", "kernel_version": version});
        Made {
            staging,
            record: serde_json::from_value(record).unwrap(),
        }
    }

    fn begin_to_use(tx: &Transaction<'_>) -> Result<(), banger_store::StoreError> {
        let vm = VmRow {
            id: banger_model::VmId::from_random([7; 32]),
            name: "web".to_owned(),
            phase: Phase::Stopped,
            goal: Goal::Down,
            last_exit: None,
            spec: r#"{"kernel_name":"k"}"#.to_owned(),
            record: "{}".to_owned(),
            created_at: now(),
            updated_at: now(),
        };
        vms::insert(tx, &vm)
    }

    async fn assert_is(shelf: &Shelf, version: &str) {
        let record = shelf.find_kernel("k").await.unwrap();
        assert_eq!(record.version(), version);
        let file = shelf.0.kernels_dir.join("k/vmlinux");
        assert_eq!(fs::read_to_string(file).unwrap(), version);
        let names = fs::read_dir(&shelf.0.kernels_dir).unwrap();
        assert_eq!(names.count(), 1, "and nothing beside it");
        assert!(!shelf.0.kernels_dir.join("k/unsettled").exists());
    }

    #[tokio::test]
    async fn a_kernel_that_a_vm_began_to_use_while_another_was_made_is_not_replaced() {
        let place = tempfile::tempdir().unwrap();
        let shelf = shelf(place.path());
        let cancel = Cancel::new().unwrap();
        shelf
            .put_in_place(made(&shelf, "1"), &cancel)
            .await
            .unwrap();
        shelf
            .put_in_place(made(&shelf, "2"), &cancel)
            .await
            .unwrap();
        assert_is(&shelf, "2").await;

        let (inner, runtime) = (shelf.clone(), tokio::runtime::Handle::current());
        let making = move || {
            let made = made(&inner, "3");
            runtime
                .block_on(inner.0.store.promise(begin_to_use))
                .unwrap();
            Ok(made)
        };
        let claim = shelf.claim(Kind::Kernel, "k").unwrap();
        let failure = shelf.add(claim, cancel.clone(), making).await.unwrap_err();
        assert_eq!(failure.code, Code::InUse, "{failure:?}");
        assert!(failure.message.contains("web"), "{failure:?}");
        assert_is(&shelf, "2").await;

        // The same where it began only after it was asked for.
        let failure = shelf
            .put_in_place(made(&shelf, "4"), &cancel)
            .await
            .unwrap_err();
        assert_eq!(failure.code, Code::InUse, "{failure:?}");
        assert_is(&shelf, "2").await;

        // What is given up when it is whole already is not kept either.
        cancel.cancel();
        let failure = shelf.put_in_place(made(&shelf, "5"), &cancel).await;
        assert_eq!(failure.unwrap_err().code, Code::Cancelled);
        assert_is(&shelf, "2").await;
    }
}
