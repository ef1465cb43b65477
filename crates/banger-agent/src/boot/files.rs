//! The few files that a boot writes into the root. Whatever a person may have
//! put into them stays; ours is one marked line. What is only for this run is
//! under `/run`.

use std::io;

use banger_wire::agent::{Boot, Init as Kind};
use rustix::fs::{AtFlags, unlinkat};

use super::root::Root;
use super::rtnetlink::Link;
use super::{Warnings, managers};
use crate::init::Found;

/// Largest file of the image that is read to be changed, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Ends the lines that belong to us.
const MARK: &str = "# banger";
/// Keeps what early commands leave in `/tmp` from being swept at boot.
const TMPFILES: &str = "d /tmp 1777 root root -\n";
/// Units that have no function in a machine of ours: there is no terminal to
/// log in on, no disk to check, no first boot.
pub(crate) const MASKS: [&str; 17] = [
    "getty.target",
    "getty@tty1.service",
    "console-getty.service",
    "serial-getty@ttyS0.service",
    "systemd-remount-fs.service",
    "systemd-firstboot.service",
    "systemd-machine-id-commit.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-random-seed.service",
    "systemd-journal-flush.service",
    "systemd-pstore.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "fstrim.timer",
];

/// Writes them; `/run` of the root is our own tmpfs.
pub(super) fn write(
    root: &Root,
    request: &Boot,
    init: Option<&Found>,
    link: Option<&Link>,
    warnings: &mut Warnings,
) {
    let name = &request.hostname;
    let init = init.map(|found| found.kind);
    warnings.note(
        "/etc/hostname",
        root.write("etc/hostname", format!("{name}\n").as_bytes()),
    );
    warnings.note(
        "/etc/hosts",
        update(root, "etc/hosts", |text| hosts(text, name)),
    );
    if !request.nameservers.is_empty() {
        let text = resolv_conf(&request.nameservers);
        warnings.note(
            "/etc/resolv.conf",
            root.write("etc/resolv.conf", text.as_bytes()),
        );
    }
    if let Some(id) = &request.machine_id {
        // Written here, a first boot's presets and a random id never happen.
        warnings.note(
            "/etc/machine-id",
            root.write("etc/machine-id", format!("{id}\n").as_bytes()),
        );
    }
    warnings.note(
        "/run/tmpfiles.d/tmp.conf",
        root.write("run/tmpfiles.d/tmp.conf", TMPFILES.as_bytes()),
    );
    // Elsewhere the directory of units would be taken for a sign of systemd.
    if request.trim_systemd && init == Some(Kind::Systemd) {
        warnings.note("masks", mask(root));
    }
    if let Some(link) = link {
        managers::tell(root, init, link, &request.nameservers, warnings);
    }
    if let Some(directory) = &request.image_cwd {
        warnings.note(directory, root.make_dirs(directory, 0o755));
    }
    // Left in an image by a container engine, it makes programs believe in one.
    warnings.note("/.dockerenv", remove(root, ".dockerenv"));
}

fn update(root: &Root, path: &str, change: impl FnOnce(&str) -> String) -> io::Result<()> {
    let before = match root.read(path, MAX_FILE) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let after = change(&before);
    if after == before {
        Ok(())
    } else {
        root.write(path, after.as_bytes())
    }
}

/// The hosts file with the machine's own name in it.
fn hosts(before: &str, name: &str) -> String {
    let text = without_ours(before);
    let knows = |address: &str| {
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(address) && words.any(|word| word == "localhost")
        })
    };
    let mut ours = String::new();
    if !knows("127.0.0.1") {
        ours.push_str(&format!("127.0.0.1\tlocalhost\t{MARK}\n"));
    }
    if !knows("::1") {
        ours.push_str(&format!(
            "::1\tlocalhost ip6-localhost ip6-loopback\t{MARK}\n"
        ));
    }
    ours.push_str(&format!("127.0.1.1\t{name}\t{MARK}\n"));
    text + &ours
}

/// A hosts file without the lines that a boot put into it.
pub(crate) fn without_ours(text: &str) -> String {
    let theirs = text.lines().filter(|line| !line.ends_with(MARK));
    theirs.flat_map(|line| [line, "\n"]).collect()
}

/// The resolver's configuration that a boot writes.
pub(crate) fn resolv_conf(nameservers: &[String]) -> String {
    nameservers
        .iter()
        .map(|address| format!("nameserver {address}\n"))
        .collect()
}

fn mask(root: &Root) -> io::Result<()> {
    let directory = root.make_dirs("run/systemd/system", 0o755)?;
    for unit in MASKS {
        rustix::fs::symlinkat("/dev/null", &directory, unit)?;
    }
    Ok(())
}

fn remove(root: &Root, name: &str) -> io::Result<()> {
    match unlinkat(root.locate("")?, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persons_lines_in_hosts_stay_and_ours_are_replaced() {
        let first = hosts("", "box");
        assert!(first.contains("127.0.0.1\tlocalhost"));
        assert!(first.contains("127.0.1.1\tbox"));
        let edited = format!("{first}10.0.0.1 db\n");
        let second = hosts(&edited, "web");
        assert!(second.starts_with("10.0.0.1 db\n"));
        assert!(second.contains("\tweb\t") && !second.contains("\tbox\t"));
        assert_eq!(hosts(&second, "web"), second);
    }

    #[test]
    fn an_image_that_knows_localhost_gets_only_its_name() {
        let text = hosts("127.0.0.1 localhost\n::1 localhost ip6-localhost\n", "box");
        assert_eq!(text.lines().filter(|line| line.ends_with(MARK)).count(), 1);
    }

    #[test]
    fn every_mask_names_a_unit() {
        for unit in MASKS {
            assert!(
                [".service", ".target", ".mount", ".timer"]
                    .iter()
                    .any(|end| unit.ends_with(end))
            );
        }
    }
}
