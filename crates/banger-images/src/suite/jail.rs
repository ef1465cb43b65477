//! The namespaces in which mmdebstrap runs, so that no mount and no process outlives it.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::SuiteError;
use crate::process::{Run, RunError, find_program};
use crate::progress::Cancel;

/// Between TERM and KILL: mounts and processes end with the namespaces, so little is enough.
const JAIL_GRACE: Duration = Duration::from_millis(300);

/// Arguments of `unshare` with which an ordinary user is root, and has all ids lent to them.
const MAPPED: [&str; 3] = ["--user", "--map-root-user", "--map-auto"];

/// How mmdebstrap is kept apart: which namespaces this user can have.
pub(super) struct Jail {
    /// Arguments of `unshare`; empty where there are no namespaces to be had.
    wrapper: Vec<&'static str>,
}

impl Jail {
    pub(super) fn probe(cancel: &Cancel) -> Result<Jail, SuiteError> {
        for program in ["mmdebstrap", "unshare", "tar"] {
            if find_program(program).is_none() {
                return Err(RunError::Missing {
                    program: program.to_owned(),
                }
                .into());
            }
        }
        const COMMON: [&str; 5] = [
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
        ];
        if rustix::process::geteuid().is_root() {
            let jail = Jail {
                wrapper: COMMON.to_vec(),
            };
            // In a container that may not mount, mmdebstrap makes do without.
            return match jail.try_out(cancel)? {
                None => Ok(jail),
                Some(_) => Ok(Jail {
                    wrapper: Vec::new(),
                }),
            };
        }
        if find_program("newuidmap").is_none() || find_program("newgidmap").is_none() {
            return Err(SuiteError::NoTool {
                what:
                    "newuidmap is not installed, which building an image as an ordinary user needs"
                        .to_owned(),
                hint: "sudo apt install uidmap",
            });
        }
        for file in ["/etc/subuid", "/etc/subgid"] {
            if !has_range(file) {
                return Err(SuiteError::NoTool {
                    what: format!("{file} has no range of ids for this user"),
                    hint: "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \"$USER\"",
                });
            }
        }
        let wrapper = MAPPED.into_iter().chain(COMMON).collect();
        let jail = Jail { wrapper };
        match jail.try_out(cancel)? {
            None => Ok(jail),
            Some(why) => Err(SuiteError::NoTool {
                what: format!("this user cannot make user namespaces: {why}"),
                hint: "allow user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces), or build as root",
            }),
        }
    }

    /// `None` when the namespaces can be had, else what was said.
    fn try_out(&self, cancel: &Cancel) -> Result<Option<String>, SuiteError> {
        let mut run = Run::new("unshare", cancel)?;
        run.command().args(&self.wrapper).args(["--", "true"]);
        let finished = run.quietly()?;
        Ok((!finished.status.success()).then_some(finished.tail))
    }

    pub(super) fn run<'a>(&self, program: &str, cancel: &'a Cancel) -> Result<Run<'a>, RunError> {
        if self.wrapper.is_empty() {
            return Run::new(program, cancel);
        }
        let mut run = Run::new("unshare", cancel)?;
        run.command().args(&self.wrapper).arg("--").arg(program);
        Ok(run.grace(JAIL_GRACE))
    }
}

/// Removes a directory in which mmdebstrap worked. Directories in it may belong to ids that are
/// only lent to this user, who then needs a namespace to remove what is in them.
///
/// # Errors
/// Why it is still there, or some of it.
pub fn remove(work: &Path) -> io::Result<()> {
    let Err(error) = std::fs::remove_dir_all(work) else {
        return Ok(());
    };
    let lent = error.kind() == io::ErrorKind::PermissionDenied;
    if !lent || rustix::process::geteuid().is_root() {
        return Err(error);
    }
    let cancel = Cancel::new()?;
    let Ok(mut run) = Run::new("unshare", &cancel) else {
        return Err(error);
    };
    run.command()
        .args(MAPPED)
        .args(["--", "rm", "-rf", "--"])
        .arg(work);
    match run.quietly() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(io::Error::new(error.kind(), done.tail)),
        Err(_) => Err(error),
    }
}

/// Whether a file of subordinate ids has a usable range for this user, by name or number.
fn has_range(file: &str) -> bool {
    let uid = rustix::process::getuid().as_raw();
    let name = user_name(uid);
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let (Some(who), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        let ours = name.as_deref() == Some(who) || who == uid.to_string();
        ours && count
            .trim()
            .parse::<u64>()
            .is_ok_and(|count| count >= 65_535)
    })
}

fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    // A directory service's users are not in the file.
    found.or_else(|| std::env::var("USER").ok())
}
