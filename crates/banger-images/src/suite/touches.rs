//! What a root of mmdebstrap is told apart by, and the last touches that make an image of it.

use super::mmdebstrap::DPKG_OPTIONS;
use crate::deb::Control;
use crate::ext4;
use crate::sources::Entry;
use crate::tree::{Kind, Meta, Source, Tree};

/// An installed package.
pub(super) struct Package {
    pub(super) name: String,
    pub(super) arch: String,
    /// `name:arch=version`.
    pub(super) line: String,
}

/// Installed packages, sorted.
pub(super) fn package_list(status: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = status
        .split("\n\n")
        .filter_map(|paragraph| {
            let control = Control::parse(paragraph);
            if !control.get("status")?.ends_with(" installed") {
                return None;
            }
            let (name, version) = (control.get("package")?, control.get("version")?);
            let arch = control.get("architecture")?;
            Some(Package {
                name: name.to_owned(),
                arch: arch.to_owned(),
                line: format!("{name}:{arch}={version}"),
            })
        })
        .collect();
    packages.sort_by(|a, b| a.line.cmp(&b.line));
    packages
}

/// The architecture of dpkg itself is the image's.
pub(super) fn native_arch(tree: &Tree, packages: &[Package]) -> String {
    let dpkg = packages.iter().find(|package| package.name == "dpkg");
    dpkg.map_or_else(
        || {
            if tree.find("lib64").is_some() {
                "amd64".to_owned()
            } else {
                "unknown".to_owned()
            }
        },
        |package| package.arch.clone(),
    )
}

/// Takes out what is the build's or the host's, and puts in what the image needs to go on.
pub(super) fn finish(
    tree: &mut Tree,
    entries: &[Entry],
    sources: &[Source],
) -> Result<(), &'static str> {
    let now = i64::from(ext4::now());
    for path in [
        "etc/hostname",
        "etc/resolv.conf",
        "etc/apt/sources.list",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "var/cache/debconf/config.dat-old",
        "var/cache/debconf/templates.dat-old",
        "var/lib/dpkg/status-old",
        "var/lib/dpkg/available-old",
        "var/cache/ldconfig/aux-cache",
    ] {
        tree.remove(path);
    }
    for path in [
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log/apt",
        "tmp",
        "var/tmp",
        "run",
    ] {
        tree.clear(path);
    }
    for path in [
        "var/log/dpkg.log",
        "var/log/alternatives.log",
        "var/log/bootstrap.log",
    ] {
        tree.remove(path);
    }
    for path in [
        "var/cache/apt/archives/partial",
        "var/lib/apt/lists/partial",
    ] {
        tree.make(
            path,
            Meta::root(0o755, now),
            Kind::Directory(Default::default()),
        )?;
    }
    // Empty, not missing: systemd then takes one per machine and calls nothing a first boot.
    tree.write_file("etc/machine-id", Meta::root(0o444, now), b"")?;
    let excludes = DPKG_OPTIONS.join("\n") + "\n";
    tree.write_file(
        "etc/dpkg/dpkg.cfg.d/50-no-documentation",
        Meta::root(0o644, now),
        excludes.as_bytes(),
    )?;
    // The keys are in the image by apt's own dependency; the host's paths may not be.
    let keyring = tree
        .find("usr/share/keyrings/debian-archive-keyring.gpg")
        .is_some();
    let mut list = String::new();
    for entry in entries {
        let mut entry = entry.without_credentials();
        let in_image = entry
            .signed_by
            .as_deref()
            .is_some_and(|path| path.starts_with('/') && tree.find(path).is_some());
        if !in_image {
            entry.signed_by =
                keyring.then(|| "/usr/share/keyrings/debian-archive-keyring.gpg".to_owned());
        }
        // Files and mirror lists of the host are not there.
        if !entry.uri.starts_with("http") {
            let archive = if entry.is_security() {
                "debian-security"
            } else {
                "debian"
            };
            entry.uri = format!("http://deb.debian.org/{archive}");
        }
        list.push_str(&entry.line());
        list.push('\n');
    }
    tree.write_file(
        "etc/apt/sources.list",
        Meta::root(0o644, now),
        list.as_bytes(),
    )?;
    if tree
        .read("etc/hosts", sources, 1 << 16)
        .ok()
        .flatten()
        .is_none()
    {
        tree.write_file(
            "etc/hosts",
            Meta::root(0o644, now),
            b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        )?;
    }
    Ok(())
}
