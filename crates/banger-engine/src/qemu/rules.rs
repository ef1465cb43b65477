//! What an engine may touch on the host, as a landlock ruleset: its own
//! installation and the machine's files, and of those only two disks, the
//! console and the run directory for writing. No TCP, no abstract sockets, no
//! signals to anyone else. A kernel without landlock, or with an older one,
//! gives what it has.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};

use crate::machine::{Acceleration, Machine};

/// The newest version whose rights are named here.
const KNOWN: ABI = ABI::V6;

/// The ruleset of a machine's engine; `None` where the kernel has no landlock.
pub(crate) fn ruleset(
    machine: &Machine,
    program: &Path,
    acceleration: Acceleration,
) -> Result<Option<OwnedFd>, landlock::RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = read | AccessFs::Execute;
    let read_file = BitFlags::from(AccessFs::ReadFile);
    let write_file = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let device = write_file | AccessFs::IoctlDev;

    let mut allowed: Vec<(PathBuf, BitFlags<AccessFs>)> = Vec::new();
    for place in ["/usr", "/lib", "/lib32", "/lib64", "/libx32"] {
        allowed.push((place.into(), run));
    }
    // One outside of those brings its libraries and firmware along:
    // <prefix>/bin/<program>.
    if !program.starts_with("/usr") {
        let prefix = program
            .parent()
            .and_then(Path::parent)
            .filter(|prefix| prefix.parent().is_some());
        allowed.push((
            prefix.unwrap_or(program).to_owned(),
            if prefix.is_some() {
                run
            } else {
                read_file | AccessFs::Execute
            },
        ));
    }
    for file in [
        "/etc/ld.so.cache",
        "/etc/ld.so.preload",
        "/dev/urandom",
        "/dev/random",
    ] {
        allowed.push((file.into(), read_file));
    }
    for place in [
        "/sys/devices/system/cpu",
        "/sys/devices/system/node",
        "/sys/kernel/mm",
    ] {
        allowed.push((place.into(), read));
    }
    for file in ["/dev/null", "/dev/zero"] {
        allowed.push((file.into(), write_file));
    }
    if acceleration == Acceleration::Kvm {
        allowed.push(("/dev/kvm".into(), device));
    }
    allowed.push((machine.kernel.clone(), read_file));
    allowed.push((machine.initramfs.clone(), read_file));
    for drive in &machine.drives {
        allowed.push((
            drive.path.clone(),
            if drive.read_only {
                read_file
            } else {
                write_file
            },
        ));
    }
    allowed.push((machine.console.clone(), write_file));
    allowed.push((
        machine.run_dir.clone(),
        write_file
            | AccessFs::ReadDir
            | AccessFs::MakeReg
            | AccessFs::MakeSock
            | AccessFs::RemoveFile,
    ));

    // The default is to do what the kernel knows and leave out the rest.
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for (path, access) in allowed {
        // What is not there needs no rule; the engine will say so if it does.
        let Ok(fd) = PathFd::new(&path) else { continue };
        let access = if path.is_dir() {
            access
        } else {
            access & AccessFs::from_file(KNOWN)
        };
        ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
    }
    Ok(ruleset.into())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::fd::AsFd;

    use banger_sys::engine::spawn::Spawn;

    use super::*;
    use crate::machine::{Drive, Transport};
    use crate::process::{Exit, Process};

    #[tokio::test]
    async fn a_process_under_the_rules_reaches_the_machines_files_and_no_others() {
        let root = std::env::temp_dir().join(format!("banger-rules-{}", std::process::id()));
        fs::create_dir_all(root.join("run")).unwrap();
        for file in ["secret", "kernel", "initramfs", "image", "disk", "console"] {
            fs::write(root.join(file), "x").unwrap();
        }
        let drive = |file: &str, read_only| Drive {
            serial: file.into(),
            path: root.join(file),
            read_only,
        };
        let machine = Machine {
            id: "a".repeat(64),
            vcpus: 1,
            memory_mib: 128,
            kernel: root.join("kernel"),
            initramfs: root.join("initramfs"),
            transport: Transport::Mmio,
            arguments: Vec::new(),
            drives: vec![drive("image", true), drive("disk", false)],
            nic: None,
            run_dir: root.join("run"),
            console: root.join("console"),
            cgroup: None,
        };
        let Some(rules) = ruleset(&machine, Path::new("/bin/sh"), Acceleration::Tcg).unwrap()
        else {
            println!("skipped: this kernel has no landlock");
            return;
        };
        let script = "cd ..
            (: < kernel) && (: < initramfs) && (: < image) || exit 1
            (: > disk) && (: >> console) && (: > run/new) && rm run/new || exit 2
            (: < secret) && exit 3
            (: > image) && exit 4
            (: > kernel) && exit 5
            (: > new) && exit 6
            (: < /etc/passwd) && exit 7
            ls /proc > /dev/null && exit 8
            exit 0";
        let nothing = fs::File::open("/dev/null").unwrap();
        let arguments = ["sh", "-c", script].map(|word| CString::new(word).unwrap());
        let spawn = Spawn {
            program: c"/bin/sh".to_owned(),
            arguments: arguments.to_vec(),
            environment: vec![c"PATH=/usr/bin:/bin".to_owned()],
            directory: CString::new(root.join("run").to_str().unwrap()).unwrap(),
            input: nothing.as_fd(),
            output: nothing.as_fd(),
            keep: Vec::new(),
            cgroup: None,
            ruleset: Some(rules.as_fd()),
            powerless: rustix::process::geteuid().is_root(),
        };
        let started = spawn.start().unwrap().go().unwrap();
        let process = Process::child(started.pid, started.pidfd).unwrap();
        assert_eq!(process.exited().await, Exit::Status(0));
        assert!(fs::read(root.join("disk")).unwrap().is_empty());
        fs::remove_dir_all(&root).unwrap();
    }
}
