//! What a user names: an image reference, spelled as for docker.
//!
//! The grammar is that of `oci-spec`. Here the length is bounded first, digests are held to
//! sha256, and a short name gets docker's meaning: `debian:12` is
//! `docker.io/library/debian:12`.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference as Spelling;

use crate::digest::Digest;
use crate::error::{RegistryError, plain};

/// Registry (255), repository (255), tag (128), digest (71) and what separates them.
const LENGTH_LIMIT: usize = 720;
/// A DNS name and a port.
const REGISTRY_LIMIT: usize = 255;

/// An image in a registry, by tag or by digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as users and docker's `config.json` name it: `docker.io`, `ghcr.io`,
    /// `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Where that registry answers, as host or host:port.
    #[must_use]
    pub fn host(&self) -> &str {
        match self.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        }
    }

    /// The path in the registry, `library/` included.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, when the reference has one; `latest` when it has neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which goes before a tag.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The last part of a manifest's address.
    pub(crate) fn manifest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = RegistryError;

    /// # Errors
    /// [`RegistryError::BadReference`], naming the value.
    fn from_str(text: &str) -> Result<Reference, RegistryError> {
        let bad = |why: String| RegistryError::BadReference {
            value: plain(text),
            why,
        };
        if text.len() > LENGTH_LIMIT {
            return Err(bad(format!("longer than {LENGTH_LIMIT} bytes")));
        }
        let spelling = Spelling::try_from(text).map_err(|cause| bad(cause.to_string()))?;
        let digest = spelling
            .digest()
            .map(|digest| {
                digest
                    .parse()
                    .map_err(|_| bad("the digest is not sha256 in lower case".to_owned()))
            })
            .transpose()?;
        // The grammar takes capitals where a registry could be, and then finds none there.
        if spelling
            .repository()
            .contains(|c: char| c.is_ascii_uppercase())
        {
            return Err(bad("a repository has no capitals".to_owned()));
        }
        if spelling.registry().len() > REGISTRY_LIMIT {
            return Err(bad(format!(
                "the registry is longer than {REGISTRY_LIMIT} bytes"
            )));
        }
        if let Some((_, port)) = spelling.registry().split_once(':')
            && !port.parse::<u16>().is_ok_and(|port| port != 0)
        {
            return Err(bad(format!("{port} is not a port")));
        }
        Ok(Reference {
            // Names of hosts have no case; keys of logins are compared as text.
            registry: spelling.registry().to_ascii_lowercase(),
            repository: spelling.repository().to_owned(),
            tag: spelling.tag().map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_mean_what_they_mean_to_docker() {
        let at = format!("ghcr.io/a/b@sha256:{HEX}");
        let both = format!("ghcr.io/a/b:1@sha256:{HEX}");
        for (text, registry, repository, manifest) in [
            ("debian", "docker.io", "library/debian", "latest"),
            ("debian:12", "docker.io", "library/debian", "12"),
            ("grafana/loki", "docker.io", "grafana/loki", "latest"),
            ("index.docker.io/a/b:1", "docker.io", "a/b", "1"),
            ("localhost/x", "localhost", "x", "latest"),
            ("localhost:5000/x:y", "localhost:5000", "x", "y"),
            (
                "Host.Example:8080/name",
                "host.example:8080",
                "name",
                "latest",
            ),
            (&at, "ghcr.io", "a/b", &at[12..]),
            (&both, "ghcr.io", "a/b", &at[12..]),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.registry(), registry, "{text}");
            assert_eq!(reference.repository(), repository, "{text}");
            assert_eq!(reference.manifest(), manifest, "{text}");
            let again: Reference = reference.to_string().parse().expect("its own spelling");
            assert_eq!(again, reference, "{text}");
        }
        let hub: Reference = "debian".parse().expect("a name");
        assert_eq!(hub.host(), "registry-1.docker.io");
    }

    #[test]
    fn a_bad_reference_is_named_in_the_error() {
        let long = format!("{}:1", "a".repeat(LENGTH_LIMIT));
        let upper = format!("a@sha256:{}", HEX.to_uppercase());
        let other = format!("a@sha512:{HEX}{HEX}");
        for text in [
            "",
            ":tag",
            "UPPER/case",
            "a b",
            "a:b:c",
            "../etc/passwd",
            "host:0/x",
            "host:99999/x",
            "https://ghcr.io/a/b",
            "a\n",
            "a@sha256:12",
            &long,
            &upper,
            &other,
        ] {
            match text.parse::<Reference>() {
                Err(RegistryError::BadReference { value, .. }) => {
                    assert_eq!(value, plain(text));
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }
}
