//! Which init an image has, and how each wants to be asked to end.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use banger_sys::guest::signals;
use banger_wire::agent::Init as Kind;
use rustix::fs::OFlags;

use crate::boot::mounts::ROOT;
use crate::boot::root::Root;

/// Where an init may be, the likeliest first.
const PLACES: [&str; 5] = [
    "sbin/init",
    "etc/init",
    "bin/init",
    "usr/lib/systemd/systemd",
    "lib/systemd/systemd",
];
/// Directories that hold systemd's own libraries.
const SYSTEMD_LIBRARIES: [&str; 5] = [
    "usr/lib/systemd",
    "usr/lib/x86_64-linux-gnu/systemd",
    "usr/lib/aarch64-linux-gnu/systemd",
    "usr/lib64/systemd",
    "lib/systemd",
];
/// How much of an unknown program is searched for what it calls itself, bytes.
const MAX_SEARCHED: u64 = 4 << 20;
/// First systemd that takes every PID namespace for a container.
const SYSTEMD_SEES_NAMESPACES: u32 = 257;

/// An init in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    /// Its path inside the root, by which it is executed.
    pub(crate) path: String,
}

/// Looks for the image's init.
pub(crate) fn find(root: &Root) -> Option<Found> {
    PLACES.iter().find_map(|place| {
        let program = root.open_in(place, OFlags::RDONLY, 0).ok()?;
        let target = resolved(&program);
        let program = File::from(program);
        let about = program.metadata().ok()?;
        if !about.is_file() || about.mode() & 0o111 == 0 {
            return None;
        }
        let kind = by_name(&target).unwrap_or_else(|| by_content(&program));
        // Without a table busybox init asks for shells on terminals that are
        // not there; as the applet beside others nobody meant it as init.
        let is_meant =
            kind != Kind::Busybox || *place == "sbin/init" || root.locate("etc/inittab").is_ok();
        is_meant.then(|| Found {
            kind,
            path: format!("/{place}"),
        })
    })
}

/// Where an opened program really is, inside the root.
fn resolved(program: &OwnedFd) -> String {
    let link = std::fs::read_link(Root::mount_path(program)).unwrap_or_default();
    let path = link.to_string_lossy();
    path.strip_prefix(ROOT).unwrap_or(&path).to_owned()
}

fn by_name(path: &str) -> Option<Kind> {
    match path.rsplit('/').next()? {
        "systemd" => Some(Kind::Systemd),
        "openrc-init" => Some(Kind::Openrc),
        "busybox" | "busybox.static" => Some(Kind::Busybox),
        _ => None,
    }
}

/// What the program calls itself: busybox may be a copy or a hard link of any
/// name, and sysvinit is called `init`.
fn by_content(program: &File) -> Kind {
    let mut start = [0; 4];
    if program.read_exact_at(&mut start, 0).is_err() || start != *b"\x7fELF" {
        return Kind::Other;
    }
    let mut bytes = Vec::new();
    if program.take(MAX_SEARCHED).read_to_end(&mut bytes).is_err() {
        return Kind::Other;
    }
    let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
    if has(b"BusyBox v") {
        Kind::Busybox
    } else if has(b"/run/initctl") || has(b"/dev/initctl") {
        Kind::Sysvinit
    } else if has(b"openrc-shutdown") || has(b"/run/openrc/init.ctl") {
        Kind::Openrc
    } else {
        Kind::Other
    }
}

/// The version of the image's systemd, from the names of its libraries.
pub(crate) fn systemd_version(root: &Root) -> Option<u32> {
    SYSTEMD_LIBRARIES.iter().find_map(|directory| {
        let opened = root
            .open_in(directory, OFlags::RDONLY | OFlags::DIRECTORY, 0)
            .ok()?;
        let entries = rustix::fs::Dir::new(opened).ok()?;
        entries
            .flatten()
            .find_map(|entry| library_version(entry.file_name().to_str().ok()?))
    })
}

/// `libsystemd-shared-257.so` and `libsystemd-core-255.4-1.fc40.so` alike.
fn library_version(name: &str) -> Option<u32> {
    let rest = ["libsystemd-shared-", "libsystemd-core-"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Arguments of the init. systemd gets the settings of the kernel's command
/// line once more: where it believes to be in a container it reads only these.
pub(crate) fn arguments(kind: Kind, machine_id: Option<&str>, command_line: &str) -> Vec<String> {
    if kind != Kind::Systemd {
        return Vec::new();
    }
    let settings = command_line
        .split_ascii_whitespace()
        .filter(|word| word.starts_with("systemd."))
        .filter(|word| machine_id.is_none() || !word.starts_with("systemd.machine_id="))
        .map(str::to_owned);
    let id = machine_id.map(|id| format!("systemd.machine_id={id}"));
    ["--crash-reboot".to_owned()]
        .into_iter()
        .chain(id)
        .chain(settings)
        .collect()
}

/// Environment of the init, which is not the image's.
pub(crate) fn environment(kind: Kind, systemd_version: Option<u32>, notify: &str) -> Vec<String> {
    let mut env = vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        "HOME=/".to_owned(),
        "TERM=linux".to_owned(),
    ];
    if kind == Kind::Systemd {
        env.push(format!("NOTIFY_SOCKET=@{notify}"));
        if systemd_version.is_some_and(|version| version >= SYSTEMD_SEES_NAMESPACES) {
            // Set and empty: told outright that this is no container.
            env.push("container=".to_owned());
        }
    }
    env
}

/// How an init wants to be asked to end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// A signal to it.
    Signal(i32),
    /// The first of these programs that there is, run inside.
    Command(&'static [&'static [&'static str]]),
}

/// How to ask this one.
pub(crate) fn farewell(kind: Kind) -> Farewell {
    match kind {
        // SIGRTMIN+4: power off.
        Kind::Systemd => Farewell::Signal(signals::real_time(4)),
        // SIGUSR2: power off.
        Kind::Busybox => Farewell::Signal(12),
        Kind::Stub | Kind::Other => Farewell::Signal(15),
        Kind::Sysvinit => Farewell::Command(&[
            &["/sbin/poweroff"],
            &["/usr/sbin/poweroff"],
            &["/sbin/init", "0"],
        ]),
        Kind::Openrc => Farewell::Command(&[
            &["/sbin/openrc-shutdown", "-p", "now"],
            &["/usr/bin/openrc-shutdown", "-p", "now"],
            &["/sbin/poweroff"],
        ]),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn image(name: &str, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> (PathBuf, Root) {
        let path = std::env::temp_dir().join(format!("banger-kind-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        for (file, content) in files {
            let file = path.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (link, target) in links {
            let link = path.join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(target, link).unwrap();
        }
        let root = Root::open(path.to_str().unwrap()).unwrap();
        (path, root)
    }

    fn kind_of(name: &str, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Option<Kind> {
        let (path, root) = image(name, files, links);
        let found = find(&root).map(|found| found.kind);
        fs::remove_dir_all(path).unwrap();
        found
    }

    #[test]
    fn each_init_is_known_by_where_its_path_leads_or_what_it_says() {
        let elf = |word: &str| format!("\x7fELF....{word}....").into_bytes();
        let busybox = elf("BusyBox v1.36");
        assert_eq!(
            kind_of(
                "systemd",
                &[("usr/lib/systemd/systemd", &elf(""))],
                &[("sbin/init", "/usr/lib/systemd/systemd")],
            ),
            Some(Kind::Systemd)
        );
        assert_eq!(
            kind_of(
                "busybox",
                &[("bin/busybox", &busybox)],
                &[("sbin/init", "/bin/busybox")]
            ),
            Some(Kind::Busybox)
        );
        assert_eq!(
            kind_of("sysv", &[("sbin/init", &elf("/run/initctl"))], &[]),
            Some(Kind::Sysvinit)
        );
        assert_eq!(
            kind_of(
                "openrc",
                &[("sbin/openrc-init", &elf(""))],
                &[("sbin/init", "openrc-init")]
            ),
            Some(Kind::Openrc)
        );
        assert_eq!(
            kind_of("script", &[("sbin/init", b"#!/bin/sh")], &[]),
            Some(Kind::Other)
        );
    }

    #[test]
    fn an_image_without_an_init_of_its_own_has_none() {
        let busybox: &[u8] = b"\x7fELF BusyBox v1.36";
        assert_eq!(kind_of("applet", &[("bin/init", busybox)], &[]), None);
        assert_eq!(
            kind_of("table", &[("bin/init", busybox), ("etc/inittab", b"")], &[]),
            Some(Kind::Busybox)
        );
        assert_eq!(kind_of("empty", &[("app", b"")], &[]), None);
        assert_eq!(
            kind_of("dangling", &[("app", b"")], &[("sbin/init", "/nowhere")]),
            None
        );
    }

    #[test]
    fn versions_of_systemd_are_read_from_library_names() {
        assert_eq!(library_version("libsystemd-shared-257.so"), Some(257));
        assert_eq!(
            library_version("libsystemd-core-255.4-1.fc40.so"),
            Some(255)
        );
        assert_eq!(library_version("libsystemd.so.0"), None);
        assert_eq!(library_version("libsystemd-shared-.so"), None);
    }

    #[test]
    fn only_a_systemd_that_doubts_is_told_that_it_is_in_no_container() {
        let has_container =
            |kind, version| environment(kind, version, "n").contains(&"container=".to_owned());
        assert!(has_container(Kind::Systemd, Some(257)));
        assert!(!has_container(Kind::Systemd, Some(252)));
        assert!(!has_container(Kind::Systemd, None));
        assert!(!has_container(Kind::Busybox, Some(257)));
    }

    #[test]
    fn systemd_gets_the_kernels_settings_as_arguments() {
        let line = "console=ttyS0 systemd.unit=rescue.target quiet systemd.machine_id=old";
        let arguments = arguments(Kind::Systemd, Some("new"), line);
        assert_eq!(
            arguments,
            [
                "--crash-reboot",
                "systemd.machine_id=new",
                "systemd.unit=rescue.target"
            ]
        );
        assert!(super::arguments(Kind::Sysvinit, Some("new"), line).is_empty());
    }
}
