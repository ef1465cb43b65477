//! Finds QEMU and learns whether it is one we can use. What a program said is
//! remembered under its path, size and time of change, in memory and on disk,
//! so that starting a VM asks nobody.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::choose::ChooseError;

const PROGRAM: &str = "qemu-system-x86_64";
const FILE: &str = "engines.json";
/// The device that carries the agent's line.
const PORT: &str = "virtserialport";
/// Below this the microvm machine lacks what we rely on.
const OLDEST: (u32, u32) = (7, 2);
/// A cache larger than this is not ours.
const LARGEST_CACHE: u64 = 64 << 10;

/// A QEMU that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Real path of the program.
    pub(crate) program: PathBuf,
    /// As it prints it.
    pub(crate) version: String,
    microvm: bool,
    /// It has the device that the agent's line is.
    channel: bool,
    mtime: (i64, i64),
    size: u64,
}

/// What is known about programs.
#[derive(Debug)]
pub(crate) struct Probe {
    file: PathBuf,
    known: Mutex<Vec<Found>>,
}

impl Probe {
    /// With what an earlier daemon learned.
    pub(crate) fn new(cache_dir: &Path) -> Self {
        let file = cache_dir.join(FILE);
        let small = std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() <= LARGEST_CACHE);
        let known = small.then(|| std::fs::read(&file).ok()).flatten();
        let known = known
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            file,
            known: Mutex::new(known),
        }
    }

    /// The QEMU to use. Blocks when a program must be asked.
    pub(crate) fn find(
        &self,
        configured: Option<&Path>,
        path: Option<&OsStr>,
    ) -> Result<Found, ChooseError> {
        let program = match configured {
            Some(program) if program.is_file() => program.to_owned(),
            Some(program) => {
                return Err(ChooseError::NotInstalled {
                    program: program.display().to_string(),
                });
            }
            None => in_path(path).ok_or_else(|| ChooseError::NotInstalled {
                program: PROGRAM.to_owned(),
            })?,
        };
        let unusable = |problem: String| ChooseError::Unusable {
            program: program.clone(),
            problem,
        };
        let real = std::fs::canonicalize(&program)
            .map_err(|error| unusable(format!("cannot be read: {error}")))?;
        let metadata = std::fs::metadata(&real)
            .map_err(|error| unusable(format!("cannot be read: {error}")))?;
        let (mtime, size) = ((metadata.mtime(), metadata.mtime_nsec()), metadata.size());
        let mut known = self
            .known
            .lock()
            .expect("nothing panics while it holds this lock");
        let at = known.iter().position(|found| found.program == real);
        let found = match at {
            Some(at) if known[at].mtime == mtime && known[at].size == size => known[at].clone(),
            _ => {
                let said = ask(&real).map_err(unusable)?;
                let found = Found {
                    program: real,
                    version: said.version,
                    microvm: said.microvm,
                    channel: said.channel,
                    mtime,
                    size,
                };
                at.map(|at| known.remove(at));
                known.push(found.clone());
                self.keep(&known);
                found
            }
        };
        drop(known);
        if parse_version(&found.version).is_none_or(|version| version < OLDEST) {
            return Err(unusable(format!(
                "is version {}, older than 7.2",
                found.version
            )));
        }
        if !found.microvm {
            return Err(unusable("has no microvm machine".to_owned()));
        }
        if !found.channel {
            return Err(unusable(format!("has no {PORT} for the guest's channel")));
        }
        Ok(found)
    }

    fn keep(&self, known: &[Found]) {
        let beside = self.file.with_extension("new");
        let bytes = serde_json::to_vec(known).expect("paths that were read as text, and numbers");
        if let Err(error) =
            std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, &self.file))
        {
            tracing::debug!(%error, "cannot cache what is known about engines");
        }
    }
}

fn in_path(path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(PROGRAM))
        .find(|program| {
            rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok() && program.is_file()
        })
}

/// What a program says of itself.
struct Said {
    version: String,
    microvm: bool,
    channel: bool,
}

/// Version, and whether it has the machine and the device that we use, from
/// the program itself.
fn ask(program: &Path) -> Result<Said, String> {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let output = command
            .output()
            .map_err(|error| format!("cannot be run: {error}"))?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let said = run(&["--version"])?;
    let version = version_in(&said).ok_or("does not say that it is QEMU")?;
    let microvm = run(&["-machine", "help"])?
        .lines()
        .any(|line| line.split(' ').next() == Some("microvm"));
    let channel = run(&["-device", "help"])?
        .lines()
        .any(|line| line.starts_with(&format!("name \"{PORT}\"")));
    Ok(Said {
        version: version.to_owned(),
        microvm,
        channel,
    })
}

/// `QEMU emulator version 7.2.22 (Debian ...)`.
fn version_in(said: &str) -> Option<&str> {
    let version = said
        .lines()
        .next()?
        .strip_prefix("QEMU emulator version ")?
        .split(' ')
        .next()?;
    (version.len() <= 32 && parse_version(version).is_some()).then_some(version)
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const DEVICE: &str = "name \"virtserialport\", bus virtio-serial-bus";

    fn fake(directory: &Path, version: &str, machines: &str, devices: &str) -> PathBuf {
        let program = directory.join(PROGRAM);
        let script = format!(
            "#!/bin/sh\necho asked >> '{}/asked'\ncase \"$1\" in --version) echo '{version}' ;; \
             -machine) echo '{machines}' ;; *) echo '{devices}' ;; esac\n",
            directory.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    #[test]
    fn a_program_is_asked_once_until_it_changes() {
        let directory = std::env::temp_dir().join(format!("banger-probe-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        fake(
            &directory,
            "QEMU emulator version 9.1.0 (x)",
            "microvm  microvm (i386)",
            DEVICE,
        );
        let path = Some(directory.as_os_str());
        let asked = || {
            std::fs::read_to_string(directory.join("asked"))
                .unwrap()
                .lines()
                .count()
        };
        assert_eq!(
            Probe::new(&directory).find(None, path).unwrap().version,
            "9.1.0"
        );
        assert_eq!(asked(), 3);
        assert_eq!(
            Probe::new(&directory).find(None, path).unwrap().version,
            "9.1.0"
        );
        assert_eq!(asked(), 3, "the second daemon asked again");

        let program = fake(
            &directory,
            "QEMU emulator version 5.2.0",
            "microvm  microvm",
            DEVICE,
        );
        let old = Probe::new(&directory).find(None, path).unwrap_err();
        assert!(
            old.to_string()
                .ends_with("is version 5.2.0, older than 7.2"),
            "{old}"
        );
        fake(
            &directory,
            "QEMU emulator version 10.0.20",
            "pc  Standard PC",
            DEVICE,
        );
        let bare = Probe::new(&directory)
            .find(Some(&program), None)
            .unwrap_err();
        assert!(
            bare.to_string().ends_with("has no microvm machine"),
            "{bare}"
        );
        let mute = fake(
            &directory,
            "QEMU emulator version 10.0.2",
            "microvm  microvm",
            "name \"virtconsole\", bus virtio-serial-bus",
        );
        let mute = Probe::new(&directory).find(Some(&mute), None).unwrap_err();
        assert!(
            mute.to_string()
                .ends_with("has no virtserialport for the guest's channel"),
            "{mute}"
        );
        fake(&directory, "something else, longer", "", "");
        assert!(matches!(
            Probe::new(&directory).find(None, path),
            Err(ChooseError::Unusable { .. })
        ));
        std::fs::remove_file(program).unwrap();
        assert!(matches!(
            Probe::new(&directory).find(None, path),
            Err(ChooseError::NotInstalled { .. })
        ));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
