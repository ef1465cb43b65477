//! Bundles fetched: from the web into the cache, or opened where they lie.

use std::fs::File;
use std::sync::Arc;

use banger_api::error::Code;
use banger_images::{Cancel, Report, ext4};
use banger_registry::Client;
use tokio_util::sync::CancellationToken;

use super::cancelled::cancelled;
use super::catalog::Bundle;
use super::flight::was_cancelled;
use super::{Shelf, blocking, failures};
use crate::failure::Failure;

impl Shelf {
    /// The bundle's file, open. Whoever reads it checks what it is; of a
    /// download that has been done once already, and it stays in the cache.
    pub(super) async fn bundle(
        &self,
        bundle: &Bundle,
        cancel: &Cancel,
        report: &Arc<dyn Report>,
    ) -> Result<File, Failure> {
        report.stage("download", &bundle.url);
        if let Some(path) = bundle.path() {
            let path = path.to_owned();
            return blocking(move || {
                let bad = |why: &str| {
                    Failure::new(Code::BadPath, format!("bundle {} {why}", path.display()))
                };
                // Asked first: what is no file may wait for ever to be opened.
                let found = std::fs::metadata(&path)
                    .map_err(|error| bad("cannot be read").caused_by(&error))?;
                if !found.is_file() {
                    return Err(bad("is not a regular file"));
                }
                File::open(&path).map_err(|error| bad("cannot be read").caused_by(&error))
            })
            .await;
        }
        let progress = |done, total| report.bytes(done, total);
        // Whoever cancels drops this future, which is as good.
        let token = CancellationToken::new();
        let download = async {
            let client = Client::new(banger_registry::Config {
                auth_file: None,
                ..banger_registry::Config::default()
            })?;
            let cache = self.layers()?;
            let (url, limit) = (bundle.url.as_str(), ext4::MAX_DISK_BYTES);
            client
                .download(url, bundle.digest, limit, &cache, &progress, &token)
                .await
        };
        tokio::select! {
            biased;
            () = cancelled(cancel.clone()) => Err(was_cancelled()),
            file = download => file.map_err(|error| failures::of_download(&error)),
        }
    }
}
