//! What a foreign ext4 file says of itself, as far as it has to hold before a guest gets it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Where the superblock begins, and how long it is.
const AT: u64 = 1024;
const LENGTH: usize = 1024;
/// `s_log_block_size` above this (64 KiB) does not exist.
const LARGEST_BLOCK: u32 = 6;
/// In `s_feature_incompat`: block numbers have 64 bits.
const WIDE: u32 = 0x80;

/// What is wrong with a file that should be an ext4 file system which it holds whole; `None`
/// when nothing is.
///
/// # Errors
/// When the file cannot be read.
pub fn defect(file: &File) -> io::Result<Option<&'static str>> {
    let mut block = [0; LENGTH];
    match file.read_exact_at(&mut block, AT) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok(Some("is no ext4 file system"));
        }
        read => read?,
    }
    if block[0x38..0x3a] != [0x53, 0xef] {
        return Ok(Some("is no ext4 file system"));
    }
    let number = |at: usize| {
        u32::from_le_bytes(
            block[at..at + 4]
                .try_into()
                .expect("four bytes of the block"),
        )
    };
    let high = match number(0x60) & WIDE {
        0 => 0,
        _ => u64::from(number(0x150)),
    };
    let blocks = high << 32 | u64::from(number(0x04));
    let block_bytes = 1024u64 << number(0x18).min(LARGEST_BLOCK);
    let held = file.metadata()?.len();
    match block_bytes.checked_mul(blocks) {
        Some(bytes) if bytes <= held => Ok(None),
        _ => Ok(Some("is shorter than its file system")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_must_hold_all_of_its_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ext4");
        super::super::empty(&path, 256 << 20, "root", None, false).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert_eq!(defect(&file).unwrap(), None);
        file.set_len((256 << 20) - 4096).unwrap();
        assert_eq!(
            defect(&file).unwrap(),
            Some("is shorter than its file system")
        );
        file.set_len(256 << 20).unwrap();
        // More blocks than 32 bits can count, where the file system says it counts so.
        let mut features = [0; 4];
        file.read_exact_at(&mut features, 1024 + 0x60).unwrap();
        let wide = (u32::from_le_bytes(features) | WIDE).to_le_bytes();
        file.write_all_at(&wide, 1024 + 0x60).unwrap();
        file.write_all_at(&[1, 0, 0, 0], 1024 + 0x150).unwrap();
        assert_eq!(
            defect(&file).unwrap(),
            Some("is shorter than its file system")
        );
        file.write_all_at(&[0; 2], 1024 + 0x38).unwrap();
        assert_eq!(defect(&file).unwrap(), Some("is no ext4 file system"));
        file.set_len(1500).unwrap();
        assert_eq!(defect(&file).unwrap(), Some("is no ext4 file system"));
    }
}
