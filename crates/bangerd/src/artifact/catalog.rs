//! The catalog: images and kernels that can be had by name, and whence.
//!
//! Built in, and over it the owner's own file, read anew each time: an entry
//! there takes the place of the built-in ones of its name. A file with one bad
//! entry is refused whole, naming the entry, since half a catalog would quietly
//! obtain other things than its owner wrote down.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use banger_api::catalog as file;
use banger_api::error::Code;
use banger_api::kernel::KernelCatalogEntry;
use banger_model::{ImageName, KernelName};
use banger_registry::{Digest, Reference};

use super::{Kind, host_arch};
use crate::failure::Failure;

const BUILTIN: &str = include_str!("catalog/builtin.json");
/// Largest file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Of each text of an entry, bytes.
const MAX_TEXT: usize = 2048;

/// All entries, the owner's before the built-in ones.
#[derive(Debug, Clone)]
pub(crate) struct Catalog(Vec<Entry>);

/// Something that can be had.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    kind: Kind,
    /// As clients see it, not knowing what is here.
    pub(super) about: KernelCatalogEntry,
    pub(super) origin: Origin,
}

/// Whence an entry is had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A bundle.
    Bundle(Bundle),
    /// The packages of a Debian suite.
    Suite(String),
    /// A Debian package.
    Deb(String),
    /// A registry; spelled as it was written.
    Reference(String),
}

/// A bundle, by its address and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// `https:`, `http:` or `file:`.
    pub(super) url: String,
    /// Of the whole file.
    pub(super) digest: Digest,
}

impl Catalog {
    /// What is built in and what the owner's file has.
    ///
    /// # Errors
    /// `bad_path`, naming the file and what is wrong in it.
    pub(super) fn load(own: Option<&Path>) -> Result<Self, Failure> {
        let mut all = match own {
            Some(path) => read(path).map_err(|why| bad(path, &why))?,
            None => Vec::new(),
        };
        let builtin = parse(BUILTIN).expect("the built-in catalog is tested");
        let hidden = |entry: &Entry| {
            all.iter()
                .any(|own| own.kind == entry.kind && own.about.name == entry.about.name)
        };
        let shown: Vec<Entry> = builtin.into_iter().filter(|entry| !hidden(entry)).collect();
        all.extend(shown);
        Ok(Self(all))
    }

    /// The entry of this name that is for this host.
    ///
    /// # Errors
    /// `unsupported` where there are only some for other hosts.
    pub(super) fn find(&self, kind: Kind, name: &str) -> Result<Option<&Entry>, Failure> {
        let mut named = self
            .0
            .iter()
            .filter(|entry| entry.kind == kind && entry.about.name == name)
            .peekable();
        let Some(first) = named.peek().copied() else {
            return Ok(None);
        };
        match named.find(|entry| entry.fits()) {
            Some(entry) => Ok(Some(entry)),
            None => Err(Failure::new(
                Code::Unsupported,
                format!(
                    "{} {name:?} of the catalog is for {}, and this host is {}",
                    kind.word(),
                    first.about.arch.as_deref().unwrap_or_default(),
                    host_arch()
                ),
            )),
        }
    }

    /// What this host can have, by name; `here` knows the names that are here,
    /// and the bytes of some.
    pub(super) fn available(
        &self,
        kind: Kind,
        here: impl Fn(&str) -> Option<Option<u64>>,
    ) -> Vec<KernelCatalogEntry> {
        let fitting = self
            .0
            .iter()
            .filter(|entry| entry.kind == kind && entry.fits());
        let mut list: Vec<_> = fitting
            .map(|entry| {
                let here = here(&entry.about.name);
                KernelCatalogEntry {
                    pulled: here.is_some(),
                    size_bytes: here.flatten().or(entry.about.size_bytes),
                    ..entry.about.clone()
                }
            })
            .collect();
        list.sort_by(|one, other| one.name.cmp(&other.name));
        list
    }
}

impl Entry {
    fn fits(&self) -> bool {
        self.about
            .arch
            .as_deref()
            .is_none_or(|arch| arch == host_arch())
    }
}

fn bad(path: &Path, why: &str) -> Failure {
    let what = format!("cannot use the catalog {}: {why}", path.display());
    Failure::new(Code::BadPath, what).hint("mend it, or change catalog_path in config.toml")
}

fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    if text.len() as u64 > MAX_FILE {
        return Err("it is larger than 4 MiB".to_owned());
    }
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let document: file::Catalog = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if document.version != file::VERSION {
        return Err(format!(
            "its version is {}, and only {} is known",
            document.version,
            file::VERSION
        ));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(document.entries.len());
    for (index, value) in document.entries.into_iter().enumerate() {
        let name = value["name"].as_str().unwrap_or_default();
        let name: String = name.chars().take(80).collect();
        let named = |why: String| format!("entry {} ({name:?}): {why}", index + 1);
        let raw: file::Entry =
            serde_json::from_value(value).map_err(|error| named(error.to_string()))?;
        let entry = Entry::of(raw).map_err(named)?;
        let same = |other: &&Entry| {
            let (one, other_arch) = (&entry.about.arch, &other.about.arch);
            other.kind == entry.kind
                && other.about.name == entry.about.name
                && (one.is_none() || other_arch.is_none() || one == other_arch)
        };
        if entries.iter().any(|other| same(&other)) {
            let kind = entry.kind.word();
            return Err(named(format!("there is another {kind} of this name")));
        }
        entries.push(entry);
    }
    Ok(entries)
}

impl Entry {
    fn of(raw: file::Entry) -> Result<Self, String> {
        let texts = [
            ("name", Some(&raw.name)),
            ("distro", raw.distro.as_ref()),
            ("arch", raw.arch.as_ref()),
            ("kernel_version", raw.kernel_version.as_ref()),
            ("kernel_ref", raw.kernel_ref.as_ref()),
            ("description", raw.description.as_ref()),
            ("recipe", raw.recipe.as_ref()),
            ("tarball_url", raw.tarball_url.as_ref()),
        ];
        for (field, text) in texts {
            let text = text.map_or("", String::as_str);
            if text.len() > MAX_TEXT {
                return Err(format!("{field} has more than {MAX_TEXT} bytes"));
            }
            if text.chars().any(char::is_control) {
                return Err(format!("{field} has control characters"));
            }
        }
        let origin = Origin::of(&raw)?;
        let implied = match &origin {
            Origin::Suite(_) | Origin::Reference(_) => Some(Kind::Image),
            Origin::Deb(_) => Some(Kind::Kernel),
            Origin::Bundle(_) => None,
        };
        let said = match raw.kind.as_deref() {
            None => None,
            Some("image") => Some(Kind::Image),
            Some("kernel") => Some(Kind::Kernel),
            Some(_) => return Err("kind is neither image nor kernel".to_owned()),
        };
        let kind = match (said, implied) {
            (Some(said), Some(implied)) if said != implied => {
                return Err(format!(
                    "it says that it is of kind {}, and its recipe is of kind {}",
                    said.word(),
                    implied.word()
                ));
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            // Both are there only for kernels.
            (None, None) if raw.kernel_version.is_some() => Kind::Kernel,
            (None, None) => Kind::Image,
        };
        let kernel = |name: &str| KernelName::parse(name).map_err(|error| error.to_string());
        match kind {
            Kind::Image => drop(ImageName::parse(&raw.name).map_err(|error| error.to_string())?),
            Kind::Kernel => drop(kernel(&raw.name)?),
        }
        if let Some(wanted) = &raw.kernel_ref {
            if kind == Kind::Kernel {
                return Err("kernel_ref is of images only".to_owned());
            }
            kernel(wanted).map_err(|why| format!("kernel_ref: {why}"))?;
        }
        Ok(Self {
            kind,
            about: KernelCatalogEntry {
                name: raw.name,
                distro: raw.distro,
                arch: raw.arch.map(|arch| debian_arch(&arch).to_owned()),
                kernel_version: raw.kernel_version,
                size_bytes: raw.size_bytes,
                description: raw.description,
                pulled: false,
                kernel_ref: raw.kernel_ref,
            },
            origin,
        })
    }
}

impl Origin {
    fn of(raw: &file::Entry) -> Result<Self, String> {
        let recipe = match (&raw.recipe, &raw.tarball_url, &raw.tarball_sha256) {
            (None, None, None) => {
                return Err("it has neither tarball_url nor recipe".to_owned());
            }
            (None, None, Some(_)) => return Err("tarball_url is missing".to_owned()),
            (None, Some(_), None) => return Err("tarball_sha256 is missing".to_owned()),
            (None, Some(url), Some(sha256)) => return Bundle::of(url, sha256).map(Self::Bundle),
            (Some(recipe), None, None) => recipe,
            (Some(_), ..) => return Err("it has a tarball and a recipe".to_owned()),
        };
        let word = |text: &str| {
            let begins = text.starts_with(|first: char| first.is_ascii_alphanumeric());
            let goes_on = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._:~".contains(&byte);
            begins && text.bytes().all(goes_on)
        };
        if let Some(suite) = recipe.strip_prefix("suite:") {
            return match word(suite) {
                true => Ok(Self::Suite(suite.to_owned())),
                false => Err(format!("recipe: {suite:?} is no suite")),
            };
        }
        if let Some(package) = recipe.strip_prefix("deb:") {
            return match word(package) {
                true => Ok(Self::Deb(package.to_owned())),
                false => Err(format!("recipe: {package:?} is no package")),
            };
        }
        match recipe.parse::<Reference>() {
            Ok(_) => Ok(Self::Reference(recipe.clone())),
            Err(error) => Err(format!("recipe: {error}")),
        }
    }
}

impl Bundle {
    fn of(url: &str, sha256: &str) -> Result<Self, String> {
        let rest = ["https://", "http://", "file://"]
            .iter()
            .find_map(|scheme| url.strip_prefix(scheme))
            .ok_or("tarball_url begins with none of https://, http:// and file:///")?;
        let authority = rest.split('/').next().unwrap_or_default();
        if url.starts_with("file:") != authority.is_empty() {
            return Err("tarball_url has no host, or a file's has one".to_owned());
        }
        // It is kept with what is pulled, and shown.
        if authority.contains('@') {
            return Err("tarball_url has a login in it".to_owned());
        }
        let digest = format!(
            "sha256:{}",
            sha256.trim_start_matches("sha256:").to_lowercase()
        );
        Ok(Self {
            url: url.to_owned(),
            digest: digest
                .parse()
                .map_err(|_| "tarball_sha256 is not 64 hex digits")?,
        })
    }

    /// The file of this host that it is.
    pub(super) fn path(&self) -> Option<&Path> {
        self.url.strip_prefix("file://").map(Path::new)
    }
}

/// As Debian names what the kernel and others name in their ways.
fn debian_arch(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(entries: &[Value]) -> Result<Vec<Entry>, String> {
        parse(&json!({"version": 1, "entries": entries}).to_string())
    }

    fn bundle(name: &str) -> Value {
        let sha256 = "a".repeat(64);
        json!({"name": name, "tarball_url": "https://x.example/b.tar.zst", "tarball_sha256": sha256})
    }

    fn with(mut entry: Value, field: &str, value: Value) -> Value {
        entry[field] = value;
        entry
    }

    #[test]
    fn what_is_built_in_is_sound_and_has_the_defaults() {
        let catalog = Catalog::load(None).unwrap();
        let kind = |kind, name| {
            catalog
                .find(kind, name)
                .unwrap()
                .map(|entry| entry.origin.clone())
        };
        let suite = Some(Origin::Suite("bookworm".to_owned()));
        assert_eq!(kind(Kind::Image, "debian-bookworm"), suite);
        assert_eq!(kind(Kind::Kernel, "debian-bookworm"), None);
        let deb = Some(Origin::Deb(format!("linux-image-cloud-{}", host_arch())));
        assert_eq!(kind(Kind::Kernel, "debian-cloud"), deb);
        let kernels = catalog.available(Kind::Kernel, |name| {
            (name == "debian-cloud").then_some(Some(7))
        });
        assert_eq!(kernels.len(), 1, "only this host's");
        let images = catalog.available(Kind::Image, |_| None);
        let size = |name| {
            let entry = images.iter().find(|entry| entry.name == name);
            entry.and_then(|entry| entry.size_bytes)
        };
        // What was measured is told, and nothing that was not.
        assert!(size("debian-bookworm").is_some() && size("debian-trixie").is_some());
        assert_eq!(size("fedora"), None);
        assert_eq!((kernels[0].pulled, kernels[0].size_bytes), (true, Some(7)));
    }

    #[test]
    fn every_entry_that_is_built_in_is_one_that_can_be_had() {
        let all = parse(BUILTIN).unwrap();
        assert!(!all.is_empty());
        for entry in all {
            let name = &entry.about.name;
            assert!(
                entry.about.description.is_some() && entry.about.distro.is_some(),
                "{name}"
            );
            match (entry.kind, &entry.origin) {
                // Debootstrap's own list of what there is.
                (Kind::Image, Origin::Suite(suite)) => {
                    assert_eq!(*name, format!("debian-{suite}"));
                    assert!(["bookworm", "trixie"].contains(&suite.as_str()), "{suite}");
                }
                (Kind::Kernel, Origin::Deb(package)) => {
                    let arch = entry.about.arch.as_deref().unwrap_or_default();
                    assert_eq!(*package, format!("linux-image-cloud-{arch}"));
                }
                (Kind::Image, Origin::Reference(text)) => {
                    let reference: Reference = text.parse().unwrap();
                    assert_eq!(reference.registry(), "docker.io", "{text}");
                    assert!(reference.tag().is_some(), "{text}");
                    assert_eq!(reference.to_string(), *text, "it is spelled out");
                }
                (kind, origin) => panic!("{kind:?} {name} comes of {origin:?}"),
            }
        }
    }

    #[test]
    fn the_kind_of_an_entry_is_said_or_shows() {
        let kinds = |entries: &[Value]| -> Vec<Kind> {
            of(entries)
                .unwrap()
                .iter()
                .map(|entry| entry.kind)
                .collect()
        };
        let versioned = with(bundle("a"), "kernel_version", "6.1".into());
        let said = with(versioned.clone(), "kind", "image".into());
        let recipe = |text: &str| json!({"name": "r", "recipe": text});
        for (entry, kind) in [
            (bundle("a"), Kind::Image),
            (versioned, Kind::Kernel),
            (said, Kind::Image),
            (with(bundle("A"), "kind", "kernel".into()), Kind::Kernel),
            (recipe("suite:trixie"), Kind::Image),
            (recipe("deb:linux-image-amd64"), Kind::Kernel),
            (recipe("docker.io/library/alpine:3"), Kind::Image),
        ] {
            assert_eq!(kinds(std::slice::from_ref(&entry)), [kind], "{entry}");
        }
    }

    #[test]
    fn a_bad_entry_is_named_with_what_is_wrong() {
        let sha = |text: &str| with(bundle("a"), "tarball_sha256", text.into());
        let url = |text: &str| with(bundle("a"), "tarball_url", text.into());
        let recipe = |text: &str| json!({"name": "a", "recipe": text});
        for (entry, why) in [
            (json!({"name": "a"}), "neither tarball_url nor recipe"),
            (
                json!({"name": "a", "tarball_url": "https://x/y"}),
                "tarball_sha256 is missing",
            ),
            (
                json!({"name": "a", "tarball_sha256": "x"}),
                "tarball_url is missing",
            ),
            (
                with(bundle("a"), "recipe", "alpine".into()),
                "a tarball and a recipe",
            ),
            (sha("abc"), "64 hex digits"),
            (url("ftp://x/y"), "begins with none"),
            (url("/x/y"), "begins with none"),
            (url("https:///y"), "no host"),
            (url("file://host/y"), "no host"),
            (url("https://me:secret@x/y"), "has a login"),
            (recipe("suite:../x"), "no suite"),
            (recipe("deb:-o"), "no package"),
            (recipe("not/A/reference"), "reference"),
            (
                with(recipe("deb:x"), "kind", "image".into()),
                "its recipe is of kind kernel",
            ),
            (
                with(bundle("a"), "kind", "disk".into()),
                "neither image nor kernel",
            ),
            (with(bundle("a"), "size_bytes", "1".into()), "invalid type"),
            (bundle("No!"), "No!"),
            (with(bundle("a"), "kernel_ref", "../x".into()), "kernel_ref"),
            (
                with(bundle("a"), "distro", "a\u{1b}[2J".into()),
                "control characters",
            ),
            (
                with(bundle("a"), "description", "x".repeat(3000).into()),
                "more than 2048",
            ),
        ] {
            let error = of(&[bundle("good"), entry.clone()]).unwrap_err();
            assert!(error.starts_with("entry 2 ("), "{error}");
            assert!(error.contains(why), "{entry}: {error}");
        }
        for (text, why) in [
            (r#"{"version":2,"entries":[]}"#, "only 1 is known"),
            (r#"{"entries":[]}"#, "version"),
            ("[]", "invalid"),
            ("", "EOF"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_stands_once_for_each_architecture_of_a_kind() {
        let arch = |text: &str| with(bundle("a"), "arch", text.into());
        let kernel = with(bundle("a"), "kind", "kernel".into());
        assert_eq!(
            of(&[arch("amd64"), arch("aarch64"), kernel]).unwrap().len(),
            3
        );
        for pair in [
            [bundle("a"), bundle("a")],
            [bundle("a"), arch("amd64")],
            [arch("x86_64"), arch("amd64")],
        ] {
            let error = of(&pair).unwrap_err();
            assert!(error.contains("another image of this name"), "{error}");
        }
    }

    #[test]
    fn the_owners_file_adds_replaces_and_is_named_when_it_is_bad() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("c.json");
        let other = if host_arch() == "amd64" {
            "arm64"
        } else {
            "amd64"
        };
        let own = [
            bundle("mine"),
            json!({"name": "alpine", "recipe": "reg.example/alpine:1"}),
            with(bundle("foreign"), "arch", other.into()),
        ];
        std::fs::write(&path, json!({"version": 1, "entries": own}).to_string()).unwrap();
        let catalog = Catalog::load(Some(&path)).unwrap();
        let list = catalog.available(Kind::Image, |_| None);
        let names: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        assert!(names.is_sorted() && names.contains(&"mine") && names.contains(&"debian-bookworm"));
        assert!(!names.contains(&"foreign"));
        assert_eq!(names.iter().filter(|name| **name == "alpine").count(), 1);
        let alpine = catalog.find(Kind::Image, "alpine").unwrap().unwrap();
        assert_eq!(
            alpine.origin,
            Origin::Reference("reg.example/alpine:1".to_owned())
        );
        let failure = catalog.find(Kind::Image, "foreign").unwrap_err();
        assert_eq!(failure.code, Code::Unsupported);
        assert!(failure.message.contains(other), "{}", failure.message);

        for text in ["{", "[]"] {
            std::fs::write(&path, text).unwrap();
            let failure = Catalog::load(Some(&path)).unwrap_err();
            assert_eq!(failure.code, Code::BadPath);
            assert!(failure.message.contains("c.json"), "{}", failure.message);
        }
        for bad in [place.path().join("none"), place.path().to_owned()] {
            assert_eq!(Catalog::load(Some(&bad)).unwrap_err().code, Code::BadPath);
        }
    }
}
