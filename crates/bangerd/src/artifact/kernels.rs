//! Kernels: fetched as Debian packages, imported from the host's files,
//! listed, removed.

mod obtain;
mod place;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::error::Code;
use banger_api::kernel::{KernelEntry, KernelImportParams};
use banger_engine::machine::Transport;
use banger_images::apt::{Apt, AptError, Resolved};
use banger_images::kernel;
use banger_images::{Cancel, Report};
use banger_model::KernelName;
use banger_store::kernels::{self, KernelRow};
use banger_store::{Connection, StoreError, images};

use self::place::{MANIFEST, Made};
use super::catalog::Bundle;
use super::images::cannot_sweep;
use super::publish::{self, Staging};
use super::records::{self, KernelRecord, newer};
use super::{
    Kind, Shelf, Unseen, blocking, cancelled, failures, host_arch, space, users, was_cancelled,
};
use crate::failure::Failure;
use crate::ports::{BootKernel, OwnKernel, Progress};

/// Begins a reference to a Debian package.
const DEB: &str = "deb:";

/// A kernel to fetch, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewKernel {
    from: Whence,
    /// That of the package when absent.
    name: Option<KernelName>,
    force: bool,
    /// One that is there already will do.
    reuse: bool,
}

/// Whence a kernel comes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whence {
    Package(String),
    /// Always with a name.
    Bundle(Bundle),
}

impl NewKernel {
    /// Two requests of one key are the same request.
    fn key(&self) -> String {
        format!(
            "{:?}\n{:?}\n{}{}",
            self.from, self.name, self.force, self.reuse
        )
    }
}

/// What a kernel boots from, before it is looked at.
struct Parts {
    name: Option<String>,
    dir: PathBuf,
    vmlinux: PathBuf,
    modules: Option<PathBuf>,
    transport: Transport,
    /// What to do where it is gone.
    hint: String,
}

fn default_package() -> String {
    format!("linux-image-cloud-{}", host_arch())
}

fn parse_name(name: &str) -> Result<KernelName, Failure> {
    KernelName::parse(name).map_err(|error| Failure::new(Code::BadName, error.to_string()))
}

impl Shelf {
    /// Every kernel, by name.
    pub(crate) async fn kernels(&self) -> Result<Vec<KernelEntry>, Failure> {
        Ok(self
            .kernel_records()
            .await?
            .into_iter()
            .map(|record| record.entry)
            .collect())
    }

    async fn kernel_records(&self) -> Result<Vec<KernelRecord>, Failure> {
        let rows = self.0.store.read(kernels::list).await?;
        rows.iter().map(read).collect()
    }

    /// The kernel of this name.
    pub(crate) async fn kernel_shown(&self, name: &str) -> Result<KernelEntry, Failure> {
        Ok(self.find_kernel(name).await?.entry)
    }

    pub(super) async fn find_kernel(&self, name: &str) -> Result<KernelRecord, Failure> {
        let key = name.to_owned();
        match self.0.store.read(move |db| kernels::get(db, &key)).await? {
            Some(row) => read(&row),
            None => {
                let shown: String = name.chars().take(80).collect();
                Err(Failure::new(Code::NotFound, format!("no kernel {shown:?}"))
                    .hint("banger kernel list"))
            }
        }
    }

    /// The newest kernel that this host can boot.
    pub(super) async fn newest_kernel(&self) -> Result<Option<KernelRecord>, Failure> {
        let mut records = self.kernel_records().await?;
        records.retain(|record| {
            record
                .entry
                .arch
                .as_deref()
                .is_none_or(|arch| arch == host_arch())
        });
        Ok(records
            .into_iter()
            .max_by(|left, right| newer(left.version(), right.version())))
    }

    pub(super) async fn boot_kernel(
        &self,
        record: KernelRecord,
        net: bool,
    ) -> Result<BootKernel, Failure> {
        let name = &record.entry.name;
        let parts = Parts {
            dir: self.0.kernels_dir.join(name),
            vmlinux: record.vmlinux(),
            modules: record.entry.modules_dir.as_ref().map(PathBuf::from),
            transport: record.transport(),
            hint: format!("banger kernel rm {name}, then pull or import it again"),
            name: Some(name.clone()),
        };
        self.boot_parts(parts, net).await
    }

    /// The kernel that an image brought.
    pub(super) async fn boot_own(
        &self,
        image: &str,
        own: &OwnKernel,
        net: bool,
    ) -> Result<BootKernel, Failure> {
        let parts = Parts {
            vmlinux: own.dir.join("vmlinux"),
            modules: own.has_modules.then(|| own.dir.join("modules.ext4")),
            transport: records::transport(own.virtio_pci_builtin),
            hint: format!("banger image delete {image}, then register it again"),
            dir: own.dir.clone(),
            name: None,
        };
        self.boot_parts(parts, net).await
    }

    async fn boot_parts(&self, parts: Parts, net: bool) -> Result<BootKernel, Failure> {
        let shelf = self.clone();
        let (kernel, fresh) = blocking(move || {
            if !parts.vmlinux.is_file() {
                let what = format!("{} is gone", parts.vmlinux.display());
                return Err(Failure::new(Code::NotFound, what).hint(parts.hint));
            }
            let made = shelf.0.boots.initramfs(&parts.dir, parts.transport, net)?;
            let kernel = BootKernel {
                name: parts.name,
                vmlinux: parts.vmlinux,
                initramfs: made.path,
                _hold: Some(made.hold),
                modules: parts.modules,
                transport: parts.transport,
            };
            Ok((kernel, made.fresh))
        })
        .await?;
        if fresh {
            // A new agent or kernel: others may have had their day.
            self.prune_soon();
        }
        Ok(kernel)
    }

    /// Removes, beside everything else, the initramfs of kernels and agents
    /// that are gone.
    pub(super) fn prune_soon(&self) {
        let shelf = self.clone();
        self.0.tasks.spawn(async move {
            if let Err(failure) = shelf.prune().await {
                tracing::warn!(error = failure.sentence(), "the cache was not pruned");
            }
        });
    }

    async fn prune(&self) -> Result<(), Failure> {
        // Whoever clears has told what goes, and that is all that goes then.
        let _alone = self.0.pruning.lock().await;
        let mut dirs = Vec::new();
        for record in self.kernel_records().await? {
            dirs.push(self.0.kernels_dir.join(record.entry.name));
        }
        for row in self.0.store.read(images::list).await? {
            dirs.extend(records::image(&row)?.own_kernel.map(|own| own.dir));
        }
        let shelf = self.clone();
        blocking(move || shelf.0.boots.prune(&dirs)).await
    }

    /// Refuses a pull that cannot succeed, before anything is begun.
    pub(crate) async fn can_pull(&self, wanted: &NewKernel) -> Result<(), Failure> {
        if let Some(name) = &wanted.name {
            self.name_is_free(name.as_str(), wanted.force).await?;
        }
        space::enough(&self.0.kernels_dir, &self.0.state)
    }

    /// Fetches a kernel, or joins who fetches the same.
    pub(crate) async fn pull_kernel(
        &self,
        wanted: NewKernel,
        progress: &dyn Progress,
    ) -> Result<KernelEntry, Failure> {
        Ok(self.fetch(wanted, progress).await?.entry)
    }

    pub(super) async fn obtain_default_kernel(
        &self,
        progress: &dyn Progress,
    ) -> Result<KernelRecord, Failure> {
        space::enough(&self.0.kernels_dir, &self.0.state)?;
        self.fetch(
            NewKernel {
                from: Whence::Package(default_package()),
                name: None,
                force: false,
                reuse: true,
            },
            progress,
        )
        .await
    }

    async fn fetch(
        &self,
        wanted: NewKernel,
        progress: &dyn Progress,
    ) -> Result<KernelRecord, Failure> {
        let key = wanted.key();
        let shelf = self.clone();
        self.0
            .kernel_flights
            .join(&key, progress, |cancel, report| {
                shelf.pull(wanted, cancel, report)
            })
            .await
    }

    async fn pull(
        self,
        wanted: NewKernel,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<KernelRecord, Failure> {
        match wanted.from.clone() {
            Whence::Package(package) => self.pull_package(wanted, package, cancel, report).await,
            Whence::Bundle(bundle) => self.pull_bundle(wanted, bundle, cancel, report).await,
        }
    }

    /// Resolves, refuses a taken name, and only then downloads.
    async fn pull_package(
        self,
        wanted: NewKernel,
        package: String,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<KernelRecord, Failure> {
        // One at a time takes a thread: those that wait for apt's lock would take all.
        let turn = tokio::select! {
            biased;
            () = cancelled(cancel.clone()) => return Err(was_cancelled()),
            turn = Arc::clone(&self.0.apt).lock_owned() => turn,
        };
        let state = self.0.cache.join("apt");
        let (asked, switch, told) = (package.clone(), cancel.clone(), Arc::clone(&report));
        let (mut apt, mut resolved) = blocking(move || {
            let work = || -> Result<(Apt, Resolved), AptError> {
                let apt = Apt::open(&state, &switch)?;
                let resolved = apt.resolve(&asked, &switch, &*told)?;
                Ok((apt, resolved))
            };
            work().map_err(|error| failures::of_apt(&error))
        })
        .await?;
        let mut old_lists = true;
        let (name, claim, download, file) = loop {
            let name = match &wanted.name {
                Some(name) => name.clone(),
                None => parse_name(kernel::name_of_package(&resolved.package))?,
            };
            let claim = self.claim(Kind::Kernel, name.as_str())?;
            if wanted.reuse
                && let Ok(record) = self.find_kernel(name.as_str()).await
            {
                return Ok(record);
            }
            self.name_is_free(name.as_str(), wanted.force).await?;
            let (parent, package) = (self.0.kernels_dir.clone(), package.clone());
            let (switch, told) = (cancel.clone(), Arc::clone(&report));
            let (again, fetched) = blocking(move || {
                let download = begin(&parent)?;
                let fetched = match apt.fetch(&resolved, download.path(), &switch, &*told) {
                    // The archive has moved on: what new lists have may be called otherwise.
                    Err(AptError::Unreachable { .. }) if old_lists => apt
                        .update(&switch, &*told)
                        .and_then(|()| apt.resolve(&package, &switch, &*told))
                        .map(Err),
                    fetched => fetched.map(|fetched| Ok((download, fetched.path))),
                };
                Ok((apt, fetched.map_err(|error| failures::of_apt(&error))?))
            })
            .await?;
            match fetched {
                Ok((download, file)) => break (name, claim, download, file),
                Err(newer) => (apt, resolved, old_lists) = (again, newer, false),
            }
        };
        // Others may use apt while this one unpacks.
        drop(turn);
        let (parent, switch) = (self.0.kernels_dir.clone(), cancel.clone());
        self.add(claim, cancel, move || {
            let staging = begin(&parent)?;
            let info = kernel::import_deb(&file, staging.path(), &switch, &*report)
                .map_err(|error| failures::of_kernel(&error))?;
            drop(download);
            let source = info
                .package
                .as_ref()
                .map(|(name, version)| format!("{DEB}{name}={version}"));
            report.stage("publish", name.as_str());
            Made::of(staging, &parent, &name, source, None, &info)
        })
        .await
    }

    /// Takes a kernel from the host's files.
    pub(crate) async fn import_kernel(
        &self,
        params: KernelImportParams,
    ) -> Result<KernelEntry, Failure> {
        let name = parse_name(&params.name)?;
        let path = match (&params.from_dir, &params.deb_path) {
            (Some(path), None) | (None, Some(path)) => PathBuf::from(path),
            _ => {
                return Err(Failure::new(
                    Code::BadRequest,
                    "a kernel comes from a directory or from a .deb: name one of them",
                )
                .hint("--from DIR, or --deb FILE"));
            }
        };
        if !path.is_absolute() {
            return Err(Failure::new(
                Code::BadPath,
                format!("{} is not absolute", path.display()),
            ));
        }
        self.name_is_free(name.as_str(), false).await?;
        space::enough(&self.0.kernels_dir, &self.0.state)?;
        let key = format!("import\n{params:?}");
        let shelf = self.clone();
        let progress = Unseen::new()?;
        // In a flight, so that a client's leaving ends it cleanly.
        let work = |cancel: Cancel, report: Arc<dyn Report>| async move {
            let claim = shelf.claim(Kind::Kernel, name.as_str())?;
            shelf.name_is_free(name.as_str(), false).await?;
            let (parent, switch) = (shelf.0.kernels_dir.clone(), cancel.clone());
            let making = move || {
                let staging = begin(&parent)?;
                let import = if params.deb_path.is_some() {
                    kernel::import_deb(&path, staging.path(), &switch, &*report)
                } else {
                    kernel::import_dir(&path, staging.path(), &switch, &*report)
                };
                let info = import.map_err(|error| {
                    let mut failure = failures::of_kernel(&error);
                    failure.message =
                        format!("cannot import {}: {}", path.display(), failure.message);
                    failure
                })?;
                let source = Some(format!("import:{}", path.display()));
                Made::of(staging, &parent, &name, source, Some(&params), &info)
            };
            shelf.add(claim, cancel, making).await
        };
        Ok(self
            .0
            .kernel_flights
            .join(&key, &progress, work)
            .await?
            .entry)
    }

    async fn name_is_free(&self, name: &str, force: bool) -> Result<(), Failure> {
        let key = name.to_owned();
        let (found, users) = self
            .0
            .store
            .read(move |db| {
                Ok((
                    kernels::get(db, &key)?.is_some(),
                    users::of_kernel(db, &key)?,
                ))
            })
            .await?;
        match (found, force) {
            (false, _) => Ok(()),
            (true, true) if users.is_empty() => Ok(()),
            (true, true) => Err(users::in_use("kernel", name, &users)),
            (true, false) => Err(Failure::new(
                Code::AlreadyExists,
                format!("kernel {name:?} already exists"),
            )
            .hint(format!("banger kernel rm {name}, or another --name"))),
        }
    }

    /// Removes a kernel that no VM boots and no image names.
    pub(crate) async fn delete_kernel(&self, name: &str) -> Result<(), Failure> {
        self.remove_kernel(name, users::resting_on_kernel).await
    }

    /// Removes a kernel that nothing uses: `users` tells kinds and names.
    pub(super) async fn remove_kernel(
        &self,
        name: &str,
        users: impl FnOnce(&Connection, &str) -> Result<Vec<(&'static str, String)>, StoreError>
        + Send
        + 'static,
    ) -> Result<(), Failure> {
        let name = self.find_kernel(name).await?.entry.name;
        let _claim = self.claim(Kind::Kernel, &name)?;
        let place = self.0.kernels_dir.join(&name);
        publish::unsettle(vec![place.clone()]).await?;
        let key = name.clone();
        let users = self
            .0
            .store
            .promise(move |tx| {
                let users = users(tx, &key)?;
                if users.is_empty() {
                    kernels::delete(tx, &key)?;
                }
                Ok(users)
            })
            .await?;
        if !users.is_empty() {
            publish::settle(vec![place]).await;
            return Err(users::in_use_by("kernel", &name, &users));
        }
        publish::discard(vec![place]).await;
        self.prune_soon();
        tracing::info!(kernel = name, "kernel removed");
        Ok(())
    }

    pub(super) async fn recover_kernels(&self) -> Result<(), Failure> {
        let known: Vec<String> = self
            .0
            .store
            .read(kernels::list)
            .await?
            .into_iter()
            .map(|row| row.name)
            .collect();
        let parent = self.0.kernels_dir.clone();
        let unsure = blocking(move || {
            publish::sweep(&parent, |name| known.iter().any(|known| known == name))
                .map_err(|error| cannot_sweep(&parent, &error))
        })
        .await?;
        for name in unsure {
            // Cut while it was replaced: the directory is the newer one.
            let place = self.0.kernels_dir.join(&name);
            let manifest = fs::read_to_string(place.join(MANIFEST)).unwrap_or_default();
            if let Ok(record) = records::read::<KernelRecord>("kernel", &name, &manifest) {
                let row = row(&record);
                self.0
                    .store
                    .promise(move |tx| kernels::put(tx, &row))
                    .await?;
            }
            publish::settle(vec![place]).await;
        }
        Ok(())
    }
}

fn begin(parent: &Path) -> Result<Staging, Failure> {
    Staging::new(parent).map_err(|error| {
        let what = format!("cannot make a directory in {}", parent.display());
        space::failed(what, &error)
    })
}

fn read(row: &KernelRow) -> Result<KernelRecord, Failure> {
    records::read("kernel", &row.name, &row.record)
}

fn row(record: &KernelRecord) -> KernelRow {
    KernelRow {
        name: record.entry.name.clone(),
        record: serde_json::to_string(record).expect("a record is plain JSON"),
    }
}
