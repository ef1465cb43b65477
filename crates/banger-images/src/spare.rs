//! Room that stays free on the host while something large is written: its guests and the daemon
//! write too.

use std::fs::File;
use std::io;

use crate::ext4::shown;

/// Bytes between two looks.
const LOOK_EVERY: u64 = 64 << 20;

/// A writer that ends before all is full.
#[derive(Debug)]
pub(crate) struct Spare {
    keep: u64,
    /// Bytes written since it was last looked at how many are free.
    unlooked: u64,
}

impl Spare {
    /// Of this many bytes; zero never ends.
    pub(crate) fn of(keep: u64) -> Self {
        Self { keep, unlooked: 0 }
    }

    /// Before so many bytes are written into a file: whether enough is left for all others on
    /// its file system.
    ///
    /// # Errors
    /// `StorageFull` where too little is.
    pub(crate) fn look(&mut self, file: &File, bytes: u64) -> io::Result<()> {
        self.unlooked = self.unlooked.saturating_add(bytes);
        if self.keep == 0 || self.unlooked < LOOK_EVERY {
            return Ok(());
        }
        self.unlooked = 0;
        let found = rustix::fs::fstatvfs(file)?;
        if found.f_bavail.saturating_mul(found.f_frsize) < self.keep {
            let why = format!("No space left but the {} that stay free", shown(self.keep));
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(())
    }
}
