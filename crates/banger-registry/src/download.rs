//! One file from an address of the web into the cache: by its digest, so that the address may be
//! any, and by the same steps as a blob. No login is sent anywhere.

use std::fs::File;
use std::sync::Arc;

use reqwest::header::{ACCEPT_ENCODING, RANGE};
use reqwest::{Response, StatusCode, Url};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Client;
use crate::blob::{self, Length, Origin, Wanted};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::{Again, Fault, RegistryError, Remedy, lost, plain, stalled, unavailable};
use crate::http::{self, Clear, Clients};
use crate::limits::Limits;

/// A place on the web.
pub(crate) struct Address<'a> {
    url: Url,
    clients: Clients,
    pub(crate) limits: &'a Limits,
}

impl Address<'_> {
    pub(crate) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// What is told of it: without a query, which can hold a signature.
    fn what(&self) -> &str {
        self.url.path()
    }

    pub(crate) async fn get(&self, from: u64) -> Result<Response, Fault> {
        let host = match self.url.port() {
            Some(port) => format!("{}:{port}", self.host()),
            None => self.host().to_owned(),
        };
        // Offsets are those of the file, so nobody may pack it on the way.
        let mut request = self
            .clients
            .to(&host)
            .get(self.url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = match timeout(self.limits.stall, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(cause)) => return Err(lost(self.host(), self.what(), cause)),
            Err(_) => return Err(stalled(self.host(), self.what(), self.limits.stall)),
        };
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let passes = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            );
        let again = match http::retry_after(&response) {
            _ if !passes => Again::Never,
            Some(wait) => Again::After(wait),
            None => Again::Soon,
        };
        let why = format!("it answered {}", status.as_u16());
        let remedy = Remedy::of_status(passes);
        let error = unavailable(self.host(), self.what(), why, remedy, None);
        Err(Fault { error, again })
    }
}

impl Client {
    /// Gets the file of this digest and at most `limit` bytes, from the cache or from an `http:`
    /// or `https:` address, and opens it.
    ///
    /// What began under TLS stays there. `progress` is called with the bytes that are here, and
    /// with all of them where the server tells. Dropping the future is as good as cancelling:
    /// a part stays, and the next download goes on with it.
    ///
    /// # Errors
    /// [`RegistryError`]: `BadReference` for an address that is none, `Unavailable`, `Damaged`
    /// and those of the disk.
    pub async fn download(
        &self,
        address: &str,
        digest: Digest,
        limit: u64,
        cache: &Cache,
        progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<File, RegistryError> {
        let url = Url::parse(address)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| RegistryError::BadReference {
                value: plain(address),
                why: "it is no http or https address".to_owned(),
            })?;
        let address = Address {
            url,
            clients: Clients::new(&Arc::new(Clear::Anybody), &self.limits)?,
            limits: &self.limits,
        };
        let wanted = Wanted {
            what: address.what().to_owned(),
            digest,
            length: Length::AtMost(limit),
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(RegistryError::Cancelled),
            file = obtain_open(&address, cache, &wanted, progress) => file,
        }
    }
}

/// Whoever has the file open keeps it, whatever becomes of its name.
async fn obtain_open(
    address: &Address<'_>,
    cache: &Cache,
    wanted: &Wanted,
    progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
) -> Result<File, RegistryError> {
    let origin = Origin::Address(address);
    let path = cache.path(wanted.digest);
    // It is used as it is here, so whether it is still what it was is seen first.
    cache.checked(wanted.digest).await?;
    // Nobody prunes it until it is open.
    let _held = blob::obtain(&origin, cache, wanted, &mut |now, all| progress(now, all)).await?;
    File::open(&path).map_err(|cause| RegistryError::disk("open", &path, cause))
}
