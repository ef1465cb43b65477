//! Where a kernel's parts are: in a package's tree, or in a directory of the host.
//!
//! Owns the search only. Paths of a `metadata.json` must stay inside its directory.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::KernelError;
use crate::deb::Control;
use crate::progress::Cancel;
use crate::tree::{self, Kind, NodeId, Source, Tree};

/// The largest kernel or initrd file.
const FILE_LIMIT: u64 = 512 << 20;
const CONFIG_LIMIT: u64 = 4 << 20;

/// A kernel's parts before anything is done to them.
pub(crate) struct Found {
    pub(crate) kernel: Vec<u8>,
    pub(crate) kernel_name: String,
    pub(crate) version: Option<String>,
    pub(crate) initrd: Option<Vec<u8>>,
    pub(crate) config: Option<String>,
    /// The tree that holds the modules, the directory in it, and what its files refer to.
    pub(crate) modules: Option<(Tree, NodeId)>,
    pub(crate) sources: Vec<Source>,
    pub(crate) arch: Option<String>,
    pub(crate) distro: Option<String>,
    pub(crate) package: Option<(String, String)>,
    pub(crate) warnings: Vec<String>,
}

/// `metadata.json`: which file is what.
#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(alias = "kernel_path", alias = "vmlinux", alias = "bzImage")]
    kernel: PathBuf,
    #[serde(default, alias = "initrd_path")]
    initrd: Option<PathBuf>,
    #[serde(default, alias = "modules_dir", alias = "modules_path")]
    modules: Option<PathBuf>,
    #[serde(default, alias = "kernel_version")]
    version: Option<String>,
    #[serde(default)]
    arch: Option<String>,
    #[serde(default)]
    distro: Option<String>,
}

impl Found {
    /// In an unpacked package whose data archive is `spool`.
    pub(super) fn in_package(
        tree: Tree,
        spool: File,
        control: &Control,
        path: &Path,
    ) -> Result<Found, KernelError> {
        let none = |why: &str| KernelError::NoKernel {
            place: path.display().to_string(),
            why: why.to_owned(),
        };
        let boot = tree.find("boot").ok_or_else(|| none("it has no /boot"))?;
        let names: Vec<&str> = tree.children(boot).map(|(name, _)| name).collect();
        let (name, version) =
            newest_kernel(&names).ok_or_else(|| none("it has no /boot/vmlinuz-*"))?;
        let sources = vec![Source::Plain(spool)];
        let read = |path: String, limit| {
            tree.read(&path, &sources, limit)
                .map_err(KernelError::io(format!("read {path} of the package")))
        };
        let kernel = read(format!("boot/{name}"), FILE_LIMIT)?
            .ok_or_else(|| none("its kernel is not a file of reasonable size"))?;
        let config = read(format!("boot/config-{version}"), CONFIG_LIMIT)?
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let modules = [
            format!("lib/modules/{version}"),
            format!("usr/lib/modules/{version}"),
        ]
        .iter()
        .find_map(|path| tree.find(path))
        .filter(|id| matches!(tree.kind(*id), Kind::Directory(_)));
        let warnings = match modules {
            Some(_) => Vec::new(),
            None => vec!["the package has no modules".to_owned()],
        };
        Ok(Found {
            kernel,
            kernel_name: name.to_owned(),
            version: Some(version.to_owned()),
            initrd: None,
            config,
            modules: modules.map(|id| (tree, id)),
            sources,
            arch: control.get("architecture").map(str::to_owned),
            distro: control
                .get("maintainer")
                .filter(|who| who.to_ascii_lowercase().contains("debian"))
                .map(|_| "debian".to_owned()),
            package: control
                .get("package")
                .zip(control.get("version"))
                .map(|(package, version)| (package.to_owned(), version.to_owned())),
            warnings,
        })
    }

    /// In the members of a bundle, whose content is in `data`.
    pub(super) fn in_members(
        tree: Tree,
        data: File,
        version: Option<String>,
        distro: Option<String>,
    ) -> Result<Found, KernelError> {
        let none = |why: &str| KernelError::NoKernel {
            place: "the bundle".to_owned(),
            why: why.to_owned(),
        };
        let sources = vec![Source::Plain(data)];
        let read = |name: &str, limit| {
            tree.read(name, &sources, limit)
                .map_err(KernelError::io(format!("read {name} of the bundle")))
        };
        let name = ["vmlinux", "bzImage"]
            .into_iter()
            .find(|name| tree.find(name).is_some())
            .ok_or_else(|| none("it has no vmlinux"))?;
        let kernel = read(name, FILE_LIMIT)?
            .ok_or_else(|| none(&format!("its {name} is not a file of reasonable size")))?;
        let initrd = match tree.find("initrd.img") {
            Some(_) => Some(
                read("initrd.img", FILE_LIMIT)?
                    .ok_or_else(|| none("its initrd.img is not a file of reasonable size"))?,
            ),
            None => None,
        };
        let config = read("config", CONFIG_LIMIT)?.and_then(|bytes| String::from_utf8(bytes).ok());
        // As everywhere: the directory of one version, or the one above it.
        let modules = tree
            .find("modules")
            .filter(|id| matches!(tree.kind(*id), Kind::Directory(_)))
            .map(|id| {
                let below = tree.children(id).filter(|(name, child)| {
                    is_version(name) && matches!(tree.kind(*child), Kind::Directory(_))
                });
                below
                    .max_by(|(a, _), (b, _)| compare_versions(a, b))
                    .map_or(id, |(_, newest)| newest)
            });
        let warnings = match modules {
            Some(_) => Vec::new(),
            None => vec!["the bundle has no modules".to_owned()],
        };
        Ok(Found {
            kernel,
            kernel_name: name.to_owned(),
            version: version.filter(|version| is_version(version)),
            initrd,
            config,
            modules: modules.map(|id| (tree, id)),
            sources,
            arch: None,
            distro,
            package: None,
            warnings,
        })
    }

    /// In a directory of the host.
    pub(crate) fn in_directory(dir: &Path, cancel: &Cancel) -> Result<Found, KernelError> {
        let mut found = match read_file(&dir.join("metadata.json"), CONFIG_LIMIT) {
            Ok(text) => Found::by_metadata(dir, &text, cancel)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::by_search(dir, cancel)?,
            Err(error) => {
                return Err(KernelError::io(format!(
                    "read metadata.json in {}",
                    dir.display()
                ))(error));
            }
        };
        if found.modules.is_none() {
            found
                .warnings
                .push("the directory has no modules".to_owned());
        }
        Ok(found)
    }

    fn by_metadata(dir: &Path, text: &[u8], cancel: &Cancel) -> Result<Found, KernelError> {
        let bad = |why: String| KernelError::NoKernel {
            place: dir.display().to_string(),
            why,
        };
        let metadata: Metadata =
            serde_json::from_slice(text).map_err(|error| bad(format!("metadata.json: {error}")))?;
        let inside = |path: &Path| {
            let safe = path
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if safe {
                Ok(dir.join(path))
            } else {
                Err(bad(format!(
                    "metadata.json names {}, which is outside",
                    path.display()
                )))
            }
        };
        let kernel_path = inside(&metadata.kernel)?;
        let initrd = metadata.initrd.as_deref().map(inside).transpose()?;
        let modules = metadata.modules.as_deref().map(inside).transpose()?;
        let mut found =
            Found::in_files(&kernel_path, initrd.as_deref(), modules.as_deref(), cancel)?;
        found.version = metadata.version.or(found.version);
        found.arch = metadata.arch;
        found.distro = metadata.distro;
        Ok(found)
    }

    /// In files that somebody named.
    pub(super) fn in_files(
        kernel: &Path,
        initrd: Option<&Path>,
        modules: Option<&Path>,
        cancel: &Cancel,
    ) -> Result<Found, KernelError> {
        // Either the directory of one version, or the one above it.
        let modules = modules.map(|path| {
            let one = is_modules_dir(path);
            let newest = (!one).then(|| newest_dir(path)).flatten();
            newest.unwrap_or_else(|| path.to_owned())
        });
        let mut found = Found::of_files(kernel, initrd, modules.as_deref(), None, cancel)?;
        found.version = modules.as_ref().and_then(|path| {
            let name = path.file_name()?.to_str()?;
            is_version(name).then(|| name.to_owned())
        });
        Ok(found)
    }

    fn by_search(dir: &Path, cancel: &Cancel) -> Result<Found, KernelError> {
        let boot = dir.join("boot");
        let names =
            file_names(&boot).map_err(KernelError::io(format!("read {}", boot.display())))?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|place| newest_dir(&dir.join(place)));
        let version_of_modules = modules
            .as_ref()
            .and_then(|path| path.file_name()?.to_str().map(str::to_owned));
        // The kernel that the newest modules are for, else the newest kernel.
        let fitting = version_of_modules.as_deref().and_then(|version| {
            KERNEL_NAMES
                .iter()
                .map(|lead| format!("{lead}{version}"))
                .find(|name| names.contains(&name.as_str()))
        });
        let (name, version) = match (fitting, newest_kernel(&names)) {
            (Some(name), _) => (name, version_of_modules.clone()),
            (None, Some((name, version))) => (name.to_owned(), Some(version.to_owned())),
            (None, None) => {
                return Err(KernelError::NoKernel {
                    place: dir.display().to_string(),
                    why: "it has neither metadata.json nor boot/vmlinux-* or boot/vmlinuz-*"
                        .to_owned(),
                });
            }
        };
        let initrd = version.as_deref().and_then(|version| {
            [
                format!("initramfs-{version}"),
                format!("initramfs-{version}.img"),
            ]
            .into_iter()
            .find(|name| names.contains(&name.as_str()))
        });
        let config = version
            .as_deref()
            .map(|version| boot.join(format!("config-{version}")));
        let mut found = Found::of_files(
            &boot.join(&name),
            initrd.map(|name| boot.join(name)).as_deref(),
            modules.as_deref(),
            config.as_deref(),
            cancel,
        )?;
        found.version = version_of_modules.or(version);
        Ok(found)
    }

    fn of_files(
        kernel_path: &Path,
        initrd: Option<&Path>,
        modules: Option<&Path>,
        config: Option<&Path>,
        cancel: &Cancel,
    ) -> Result<Found, KernelError> {
        let read = |path: &Path| {
            read_file(path, FILE_LIMIT).map_err(KernelError::io(format!("read {}", path.display())))
        };
        let kernel = read(kernel_path)?;
        let modules = match modules {
            Some(path) => Some((tree::from_dir(path, cancel)?, NodeId::ROOT)),
            None => None,
        };
        Ok(Found {
            kernel,
            kernel_name: kernel_path
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            version: None,
            initrd: initrd.map(read).transpose()?,
            config: config
                .and_then(|path| read_file(path, CONFIG_LIMIT).ok())
                .and_then(|bytes| String::from_utf8(bytes).ok()),
            modules,
            sources: Vec::new(),
            arch: None,
            distro: None,
            package: None,
            warnings: Vec::new(),
        })
    }
}

const KERNEL_NAMES: [&str; 2] = ["vmlinux-", "vmlinuz-"];

/// The newest kernel among file names, unpacked ones first; its name and version.
fn newest_kernel<'a>(names: &[&'a str]) -> Option<(&'a str, &'a str)> {
    names
        .iter()
        .filter_map(|name| {
            let version = KERNEL_NAMES
                .iter()
                .find_map(|lead| name.strip_prefix(lead))?;
            is_version(version).then_some((*name, version))
        })
        .max_by(|(a_name, a), (b_name, b)| compare_versions(a, b).then_with(|| b_name.cmp(a_name)))
}

fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte))
}

/// Compares runs of digits by value and the rest by its bytes: `6.9` is before `6.12`.
pub(crate) fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    fn parts(text: &str) -> Vec<(u64, &str)> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let words = tail
                .bytes()
                .take_while(|byte| !byte.is_ascii_digit())
                .count();
            let (word, tail) = tail.split_at(words);
            parts.push((number.parse().unwrap_or(u64::MAX), word));
            rest = tail;
        }
        parts
    }
    parts(a).cmp(&parts(b)).then_with(|| a.cmp(b))
}

fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    Ok(std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect())
}

fn is_modules_dir(path: &Path) -> bool {
    ["modules.order", "modules.builtin", "modules.dep", "kernel"]
        .iter()
        .any(|name| path.join(name).exists())
}

/// The newest version's directory below `lib/modules`.
fn newest_dir(path: &Path) -> Option<PathBuf> {
    file_names(path)
        .ok()?
        .into_iter()
        .filter(|name| is_version(name) && path.join(name).is_dir())
        .max_by(|a, b| compare_versions(a, b))
        .map(|name| path.join(name))
}

fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    let mut bytes = Vec::new();
    crate::codec::Bounded::new(file, limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_newest_by_numbers() {
        let names = [
            "vmlinuz-6.9.0-1",
            "vmlinuz-6.12.3",
            "vmlinux-6.12.3",
            "config-7.0",
            "vmlinuz-old",
        ];
        assert_eq!(newest_kernel(&names), Some(("vmlinux-6.12.3", "6.12.3")));
        assert_eq!(newest_kernel(&["vmlinuz"]), None);
        assert!(compare_versions("6.1.0-9-x", "6.1.0-10-x").is_lt());
        assert!(compare_versions("6.1.0", "6.1.0-1").is_lt());
    }

    #[test]
    fn metadata_cannot_name_files_outside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("metadata.json"), r#"{"kernel": "../x"}"#).unwrap();
        let cancel = Cancel::new().unwrap();
        let error = Found::in_directory(dir.path(), &cancel).err().unwrap();
        assert!(error.to_string().contains("outside"), "{error}");
    }
}
