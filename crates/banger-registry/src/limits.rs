//! Every bound of a pull in one place, so that tests can shorten the long ones.

use std::time::Duration;

/// What a pull may take. The defaults are for people; tests use shorter times.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// Without one byte of progress, before a transfer counts as failed.
    pub stall: Duration,
    /// Of each manifest and blob, the first included.
    pub tries: u32,
    /// Before the second try; doubles from there.
    pub first_pause: Duration,
    /// The longest pause, a server's `Retry-After` included.
    pub longest_wait: Duration,
    /// A credential helper's whole run.
    pub helper: Duration,
    /// Blobs of one image on the way at once.
    pub parallel: usize,
    /// Bytes of a manifest or index, and of a config.
    pub document: u64,
    /// Layers of an image.
    pub layers: usize,
    /// Bytes of all blobs of an image, as the manifest tells them.
    pub image: u64,
    /// Redirects of one request.
    pub redirects: usize,
    /// Members of an archive; those that docker saves have up to four for each layer.
    pub members: usize,
    /// Bytes of their names and of what links among them lead to.
    pub names: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            tries: 4,
            first_pause: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            helper: Duration::from_secs(10),
            parallel: 4,
            document: 4 << 20,
            layers: 512,
            image: 128 << 30,
            redirects: 10,
            members: 100_000,
            names: 16 << 20,
        }
    }
}
