//! The text of a script that an image is built by.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use banger_api::error::Code;

use crate::failure::Failure;

/// Largest script, bytes: the daemon's limit.
const LARGEST: u64 = 1 << 20;

/// Reads it from a file, or from standard input where that is `-`.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    let cannot = |error: io::Error| {
        let what = format!("cannot read the script {}", path.display());
        Failure::new(Code::BadPath, what).because(&error)
    };
    let bytes = if path == Path::new("-") {
        limited(io::stdin().lock())
    } else {
        File::open(path).and_then(limited)
    };
    let bytes = bytes.map_err(cannot)?;
    if bytes.len() as u64 > LARGEST {
        let what = format!("the script {} is larger than 1 MiB", path.display());
        let failure = Failure::new(Code::TooLarge, what);
        return Err(failure.hint("let a small one fetch what is large"));
    }
    String::from_utf8(bytes).map_err(|_| {
        let what = format!("the script {} is not text in UTF-8", path.display());
        Failure::new(Code::BadRequest, what)
    })
}

fn limited(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        assert_eq!(read(&path).unwrap_err().code, Some(Code::BadPath));
        assert_eq!(read(dir.path()).unwrap_err().code, Some(Code::BadPath));
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert_eq!(read(&path).unwrap(), "#!/bin/sh\n");
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read(&path).unwrap_err().code, Some(Code::BadRequest));
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1 << 20);
        std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert_eq!(read(&path).unwrap_err().code, Some(Code::TooLarge));
    }
}
