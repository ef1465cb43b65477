//! From a reference to the manifest of the image for this platform: one document, or an index
//! and one of its entries. Every byte that was asked for by digest is checked against it.

use std::str::FromStr as _;

use crate::digest::Digest;
use crate::document::{self, Document, ImageManifest, Platform};
use crate::error::{Fault, RegistryError, Tries};
use crate::session::Session;

/// Kinds that are understood; a registry that has only schema 1 then says so.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
                      application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
/// In which a registry tells the digest of what a tag means.
const DIGEST_HEADER: &str = "docker-content-digest";

/// What is asked for, as far as it is known beforehand.
struct Wanted {
    /// The tag or digest in the address.
    name: String,
    digest: Option<Digest>,
    size: Option<u64>,
}

/// Fetches the manifest that a reference means on `platform`.
pub(crate) async fn resolve(
    session: &Session<'_>,
    platform: &Platform,
) -> Result<ImageManifest, RegistryError> {
    let reference = session.reference;
    let mut wanted = Wanted {
        name: reference.manifest(),
        digest: reference.digest(),
        size: None,
    };
    let what = named(session);
    // The entry of an index is an image; an index of indexes has no use here.
    for _ in 0..2 {
        let bytes = fetch(session, &wanted, &what).await?;
        match document::parse(&bytes, &what, platform, session.limits)? {
            Document::Image(image) => return Ok(image),
            Document::Elsewhere(entry) => {
                wanted = Wanted {
                    name: entry.digest.to_string(),
                    digest: Some(entry.digest),
                    size: Some(entry.size),
                };
            }
        }
    }
    Err(RegistryError::Unsupported {
        what,
        why: "its index leads to another index".to_owned(),
    })
}

/// The image as people name it, without its registry.
pub(crate) fn named(session: &Session<'_>) -> String {
    let reference = session.reference;
    let separator = if reference.digest().is_some() {
        '@'
    } else {
        ':'
    };
    format!(
        "{}{separator}{}",
        reference.repository(),
        reference.manifest()
    )
}

async fn fetch(
    session: &Session<'_>,
    wanted: &Wanted,
    what: &str,
) -> Result<Vec<u8>, RegistryError> {
    let mut tries = Tries::new(session.limits);
    loop {
        match fetch_once(session, wanted, what).await {
            Ok(bytes) => return Ok(bytes),
            Err(fault) => tries.pause(fault).await?,
        }
    }
}

async fn fetch_once(session: &Session<'_>, wanted: &Wanted, what: &str) -> Result<Vec<u8>, Fault> {
    let path = format!("manifests/{}", wanted.name);
    let mut response = session.get(&path, ACCEPT, 0, what).await?;
    // A tag can mean anything, but what came must be what the registry says it sent.
    let told = response
        .headers()
        .get(DIGEST_HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| Digest::from_str(text).ok());
    let limit = session.limits.document;
    let Some(bytes) = session.body(&mut response, limit, what).await? else {
        return Err(RegistryError::Unsupported {
            what: what.to_owned(),
            why: format!("its manifest has more than {limit} bytes"),
        }
        .into());
    };
    let damaged = |why: String| RegistryError::Damaged {
        what: format!("the manifest of {what}"),
        why,
    };
    if let Some(size) = wanted.size
        && size != bytes.len() as u64
    {
        return Err(damaged(format!("{} bytes came instead of {size}", bytes.len())).into());
    }
    let found = Digest::of(&bytes);
    match wanted.digest.or(told) {
        Some(expected) if expected != found => {
            Err(damaged(format!("it is {found} instead of {expected}")).into())
        }
        _ => Ok(bytes),
    }
}
