//! A Debian package from anywhere: its members, control file and data archive.
#![no_main]

use std::io::{self, Cursor, Write};

use banger_images::deb::Deb;
use banger_images::{Cancel, Quiet};
use libfuzzer_sys::fuzz_target;

/// Takes a little, then is full: unpacking much is not what is looked for.
struct Little(usize);

impl Write for Little {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(mut deb) = Deb::open(Cursor::new(data)) {
        let _ = deb.control();
        if let Ok(cancel) = Cancel::new() {
            let _ = deb.spool_data(&mut Little(1 << 20), &cancel, &Quiet);
        }
    }
});
