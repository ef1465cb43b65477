//! Where an image is to come from: a registry, or files of this host.
//!
//! ```text
//! oci-layout:DIR[:TAG]       a directory, as `skopeo copy ... oci:DIR:TAG` and `umoci` make them
//! docker-archive:FILE[:TAG]  a file, as `docker save` makes them
//! anything else              a registry's, as docker spells it
//! ```
//!
//! A path ends at its first colon, as for skopeo, so that what follows may be a whole reference:
//! `docker-archive:/tmp/all.tar:team/app:1`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{RegistryError, plain};
use crate::reference::Reference;

/// As long as the kernel lets a path be.
const PATH_LIMIT: usize = 4096;
/// A whole reference may stand for a tag.
const TAG_LIMIT: usize = 720;
/// Endings of archives that say nothing of what is in them.
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"];

/// Where an image is to come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A registry.
    Registry(Reference),
    /// Files of this host.
    Local(Local),
}

/// An image in files of this host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Local {
    form: Form,
    path: PathBuf,
    tag: Option<String>,
}

/// How images are kept in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// A directory of blobs and an index.
    Layout,
    /// A tar archive, packed or not.
    Archive,
}

impl Form {
    fn scheme(self) -> &'static str {
        match self {
            Form::Layout => "oci-layout",
            Form::Archive => "docker-archive",
        }
    }
}

impl Local {
    /// How the image is kept.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// The directory or file; absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which of its images, where that is said.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What the directory or file is called, without the endings of archives.
    #[must_use]
    pub fn stem(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let stem = match self.form {
            Form::Layout => None,
            Form::Archive => ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)),
        };
        stem.unwrap_or(&name).to_owned()
    }

    /// As it is spelled, without the tag.
    pub(crate) fn place(&self) -> String {
        plain(&format!("{}:{}", self.form.scheme(), self.path.display()))
    }

    /// The same with it.
    pub(crate) fn named(&self) -> String {
        match &self.tag {
            Some(tag) => plain(&format!("{}:{tag}", self.place())),
            None => self.place(),
        }
    }
}

/// Whether an image that is called `spelled` is the one that `wanted` means: by its whole name,
/// by a shorter spelling of that, or by its tag alone.
pub(crate) fn means(wanted: &str, spelled: &str) -> bool {
    if wanted == spelled {
        return true;
    }
    let Ok(reference) = spelled.parse::<Reference>() else {
        return false;
    };
    // Without a colon `spelled` was a bare tag, which is compared as a whole.
    let by_tag = spelled.contains(':') && reference.tag() == Some(wanted);
    by_tag
        || wanted
            .parse::<Reference>()
            .is_ok_and(|wanted| wanted == reference)
}

impl FromStr for Source {
    type Err = RegistryError;

    /// # Errors
    /// [`RegistryError::BadReference`], or [`RegistryError::BadPath`] for a path that is not
    /// absolute.
    fn from_str(text: &str) -> Result<Source, RegistryError> {
        for form in [Form::Layout, Form::Archive] {
            let rest = text
                .strip_prefix(form.scheme())
                .and_then(|rest| rest.strip_prefix(':'));
            if let Some(rest) = rest {
                return local(form, rest, text).map(Source::Local);
            }
        }
        text.parse().map(Source::Registry)
    }
}

fn local(form: Form, rest: &str, text: &str) -> Result<Local, RegistryError> {
    let bad = |why: &str| RegistryError::BadReference {
        value: plain(text),
        why: why.to_owned(),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(bad("it names no file"));
    }
    if path.len() > PATH_LIMIT || path.contains('\0') {
        return Err(bad("no path is like that"));
    }
    if tag.is_some_and(str::is_empty) {
        return Err(bad("there is no tag after the colon"));
    }
    if tag.is_some_and(|tag| tag.len() > TAG_LIMIT || tag.contains(char::is_control)) {
        return Err(bad("no tag is like that"));
    }
    if !Path::new(path).is_absolute() {
        return Err(RegistryError::BadPath {
            path: plain(path).into(),
            why: "it is not an absolute path".to_owned(),
            cause: None,
        });
    }
    Ok(Local {
        form,
        path: path.into(),
        tag: tag.map(str::to_owned),
    })
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.form.scheme(), self.path.display())?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Registry(reference) => reference.fmt(f),
            Source::Local(local) => local.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(text: &str) -> Local {
        match text.parse() {
            Ok(Source::Local(local)) => local,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_path_ends_at_its_first_colon() {
        for (text, form, path, tag, stem) in [
            ("oci-layout:/a/b", Form::Layout, "/a/b", None, "b"),
            (
                "oci-layout:/a/b.tar:1",
                Form::Layout,
                "/a/b.tar",
                Some("1"),
                "b.tar",
            ),
            (
                "docker-archive:/a/b.tar.gz",
                Form::Archive,
                "/a/b.tar.gz",
                None,
                "b",
            ),
            (
                "docker-archive:/a/b:localhost:5000/x/y:1",
                Form::Archive,
                "/a/b",
                Some("localhost:5000/x/y:1"),
                "b",
            ),
            ("docker-archive:/", Form::Archive, "/", None, ""),
        ] {
            let local = local(text);
            assert_eq!(
                (local.form(), local.path()),
                (form, Path::new(path)),
                "{text}"
            );
            assert_eq!((local.tag(), local.stem().as_str()), (tag, stem), "{text}");
            assert_eq!(local.to_string(), text);
        }
        assert!(matches!("oci-layout/x:1".parse(), Ok(Source::Registry(_))));
    }

    #[test]
    fn what_names_no_file_is_refused_and_a_relative_path_is() {
        for text in [
            "oci-layout:",
            "docker-archive::1",
            "oci-layout:/a:",
            "oci-layout:/a:b\n",
        ] {
            let parsed = text.parse::<Source>();
            assert!(
                matches!(parsed, Err(RegistryError::BadReference { .. })),
                "{text:?}"
            );
        }
        for text in ["oci-layout:a/b", "docker-archive:./x.tar:1"] {
            let parsed = text.parse::<Source>();
            assert!(
                matches!(parsed, Err(RegistryError::BadPath { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_image_is_meant_by_its_name_a_short_name_or_its_tag() {
        for (wanted, spelled, meant) in [
            ("1", "1", true),
            ("1", "team/app:1", true),
            ("team/app:1", "docker.io/team/app:1", true),
            ("app", "app:latest", true),
            ("latest", "latest", true),
            ("latest", "other", false),
            ("2", "team/app:1", false),
            ("app:1", "team/app:1", false),
            ("a b", "a b", true),
        ] {
            assert_eq!(means(wanted, spelled), meant, "{wanted} {spelled}");
        }
    }
}
