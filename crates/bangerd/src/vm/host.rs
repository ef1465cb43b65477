//! The real host: directories, disks, cgroups, memory and free space.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use banger_api::error::Code;
use banger_engine::cgroup::{self, Cgroups};
use banger_engine::console;
use banger_images::ext4;
use banger_model::{Holding, VmId};

use super::record::Places;
use crate::artifact::space;
use crate::copy;
use crate::failure::Failure;
use crate::ports::{Host, Want};

/// Read from the end of a console to find its last lines, bytes.
const TAIL: u64 = 64 << 10;

/// This machine.
pub(crate) struct RealHost {
    state_dir: PathBuf,
    places: Places,
    /// Where cgroups can be made, if anywhere.
    cgroups: Option<Cgroups>,
}

impl RealHost {
    /// Looks at this machine once.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            places: Places::below(state_dir),
            cgroups: Cgroups::find(state_dir),
        }
    }
}

#[async_trait]
impl Host for RealHost {
    fn cgroup(&self, vm: &VmId) -> Option<PathBuf> {
        self.cgroups.as_ref().map(|cgroups| cgroups.of(vm.as_str()))
    }

    async fn take(&self, vm: &VmId, holding: Holding, want: &Want) -> Result<(), Failure> {
        let (places, vm, want) = (self.places.clone(), vm.clone(), want.clone());
        blocking(move || match holding {
            Holding::Directory => make_dir(&places.dir(&vm)),
            Holding::Overlay => {
                make_disk(&places.overlay(&vm), want.overlay_bytes, "overlay", None)
            }
            Holding::WorkDisk => make_disk(
                &places.work(&vm),
                want.work_bytes,
                "work",
                want.work_seed.as_deref(),
            ),
            Holding::RunDir => make_dir(&places.run(&vm)),
            Holding::Cgroup => match &want.cgroup {
                Some(path) => cgroup::make(path).map_err(|error| no_cgroup(&error)),
                None => Ok(()),
            },
            Holding::Gateway | Holding::Engine => Ok(()),
        })
        .await
    }

    async fn give_back(
        &self,
        vm: &VmId,
        holding: Holding,
        cgroup: Option<&Path>,
    ) -> Result<(), Failure> {
        let (places, vm) = (self.places.clone(), vm.clone());
        let cgroup = cgroup.map(Path::to_owned);
        blocking(move || match holding {
            Holding::Directory => remove_home(&places, &vm),
            Holding::Overlay => remove_file(&places.overlay(&vm)),
            Holding::WorkDisk => remove_file(&places.work(&vm)),
            Holding::RunDir => remove_dir(&places.run(&vm)),
            Holding::Cgroup => match cgroup.as_deref() {
                Some(path) => cgroup::remove(path).map_err(|error| no_cgroup(&error)),
                None => Ok(()),
            },
            Holding::Gateway | Holding::Engine => Ok(()),
        })
        .await
    }

    fn free_bytes(&self) -> Result<u64, Failure> {
        let space = rustix::fs::statvfs(&self.state_dir).map_err(|error| {
            let what = format!("cannot see the free space of {}", self.state_dir.display());
            Failure::internal(what, &io::Error::from(error))
        })?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn memory(&self) -> Result<(u64, u64), Failure> {
        let text = fs::read_to_string("/proc/meminfo")
            .map_err(|error| Failure::internal("cannot read /proc/meminfo", &error))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line
                .trim_start_matches(':')
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()?;
            Some(kib << 10)
        };
        let total = field("MemTotal").unwrap_or(u64::MAX);
        Ok((field("MemAvailable").unwrap_or(total), total))
    }

    fn length(&self, path: &Path) -> u64 {
        fs::metadata(path).map_or(0, |data| data.len())
    }

    fn allocated(&self, path: &Path) -> Option<u64> {
        fs::metadata(path).ok().map(|data| data.blocks() * 512)
    }

    fn tail(&self, path: &Path, from: u64, lines: usize) -> Vec<String> {
        last_lines(path, from, lines).unwrap_or_default()
    }

    fn written_at(&self, path: &Path) -> Option<i64> {
        fs::metadata(path).ok().map(|data| data.mtime())
    }

    fn trim_console(&self, path: &Path) {
        if let Err(error) = console::keep_small(path, console::LIMIT) {
            tracing::warn!(path = %path.display(), %error, "a console grows beyond its limit");
        }
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::internal("a step on the host panicked", &error)))
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| failed("make", path, error))
}

fn make_disk(path: &Path, bytes: u64, label: &str, seed: Option<&Path>) -> Result<(), Failure> {
    if let Ok(data) = fs::metadata(path) {
        if data.len() < bytes {
            ext4::grow_file(path, bytes).map_err(|error| failed("grow", path, error))?;
        }
        return Ok(());
    }
    match seed {
        Some(seed) => {
            copy::disk(seed, path).map_err(|error| failed("copy the work seed to", path, error))?;
            if fs::metadata(path).is_ok_and(|data| data.len() < bytes) {
                ext4::grow_file(path, bytes).map_err(|error| failed("grow", path, error))?;
            }
            Ok(())
        }
        None => ext4::empty(path, bytes, label, None, false).map_err(|error| {
            let code = if error.is_no_space() {
                Code::NoSpace
            } else {
                Code::Internal
            };
            Failure::new(code, format!("cannot make {}", path.display())).caused_by(&error)
        }),
    }
}

fn remove_file(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

/// The directory of a VM, and the logs in it that are no holding of their own.
/// Whatever else is left in it has a row that is not given back yet, or is not
/// ours: then the directory stays, and says so.
fn remove_home(places: &Places, vm: &VmId) -> Result<(), Failure> {
    let log = places.console(vm);
    remove_file(&log)?;
    remove_file(&console::older(&log))?;
    match fs::remove_dir(places.dir(vm)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", &places.dir(vm), error))
        }
        _ => Ok(()),
    }
}

fn remove_dir(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

fn no_cgroup(error: &cgroup::CgroupError) -> Failure {
    Failure::new(Code::Internal, error.to_string()).caused_by(error)
}

fn failed(what: &str, path: &Path, error: io::Error) -> Failure {
    space::failed(format!("cannot {what} {}", path.display()), &error)
}

fn last_lines(path: &Path, from: u64, lines: usize) -> io::Result<Vec<String>> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let from = if from > length { 0 } else { from };
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL))))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let kept: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars()
                .filter(|c| !c.is_control())
                .take(500)
                .collect::<String>()
        })
        .filter(|line| !line.is_empty())
        .collect();
    Ok(kept[kept.len().saturating_sub(lines)..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_of_this_run_and_harms_no_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        fs::write(&path, "old run\nsecond\r\n\x1b[31mthird\x07\n\n").unwrap();
        assert_eq!(last_lines(&path, 8, 20).unwrap(), ["second", "[31mthird"]);
        assert_eq!(last_lines(&path, 8, 1).unwrap(), ["[31mthird"]);
        // A console that was emptied since is read whole.
        assert_eq!(last_lines(&path, 9999, 20).unwrap()[0], "old run");
    }

    #[tokio::test]
    async fn a_work_disk_begins_as_the_seed_and_has_its_own_size() {
        let dir = tempfile::tempdir().unwrap();
        let host = RealHost::new(dir.path());
        let vm = VmId::from_random([1; 32]);
        let seed = dir.path().join("seed.ext4");
        ext4::empty(&seed, 256 << 20, "seed", None, false).unwrap();
        let want = Want {
            work_bytes: 512 << 20,
            work_seed: Some(seed.clone()),
            ..Want::default()
        };
        for holding in [Holding::Directory, Holding::WorkDisk] {
            host.take(&vm, holding, &want).await.unwrap();
        }
        let work = host.places.work(&vm);
        assert_eq!(host.length(&work), 512 << 20);
        assert!(host.allocated(&work).unwrap() < 32 << 20);
        let read = |path: &Path| {
            let mut bytes = vec![0; 1 << 20];
            fs::File::open(path)
                .unwrap()
                .read_exact(&mut bytes)
                .unwrap();
            bytes
        };
        assert!(read(&work) == read(&seed));
    }

    #[tokio::test]
    async fn what_is_taken_twice_is_kept_and_what_is_gone_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let host = RealHost::new(dir.path());
        let vm = VmId::from_random([1; 32]);
        let mut want = Want {
            overlay_bytes: 256 << 20,
            work_bytes: 256 << 20,
            ..Want::default()
        };
        for holding in [
            Holding::Directory,
            Holding::Overlay,
            Holding::WorkDisk,
            Holding::RunDir,
        ] {
            host.take(&vm, holding, &want).await.unwrap();
            host.take(&vm, holding, &want).await.unwrap();
        }
        want.overlay_bytes = 512 << 20;
        host.take(&vm, Holding::Overlay, &want).await.unwrap();
        assert_eq!(host.length(&host.places.overlay(&vm)), 512 << 20);
        assert!(host.allocated(&host.places.overlay(&vm)).unwrap() < 32 << 20);
        for holding in Holding::ALL.into_iter().rev() {
            host.give_back(&vm, holding, None).await.unwrap();
            host.give_back(&vm, holding, None).await.unwrap();
        }
        assert!(!host.places.dir(&vm).exists());
    }
}
