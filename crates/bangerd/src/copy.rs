//! Copies of disk files: extents are shared where the file system can do that,
//! else only what holds data is copied and holes stay holes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Copied at once, bytes.
const PIECE: u64 = 1 << 20;

/// Copies a disk to a new file, which is its owner's alone whoever may read the
/// first. Nothing is left of it when that fails: half a disk is none.
pub(crate) fn disk(from: &Path, to: &Path) -> io::Result<()> {
    disk_telling(from, to, &mut |_| Ok(()))
}

/// The same, telling of every piece how long it was, bytes; an error ends it.
pub(crate) fn disk_telling(
    from: &Path,
    to: &Path,
    told: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let source = File::open(from)?;
    let copy = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let copied = match ioctl_ficlone(&copy, &source) {
        Ok(()) => Ok(()),
        // Another file system, or one that shares nothing.
        Err(_) => extents(&source, &copy, told),
    };
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

fn extents(
    source: &File,
    copy: &File,
    told: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    let mut piece = vec![0; usize::try_from(PIECE).expect("a MiB")];
    let mut at = 0;
    while at < length {
        let begin = match seek(source, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(begin))?.min(length);
        at = begin;
        while at < end {
            let wanted = usize::try_from(PIECE.min(end - at)).expect("a MiB at most");
            let part = &mut piece[..wanted];
            source.read_exact_at(part, at)?;
            copy.write_all_at(part, at)?;
            at += wanted as u64;
            told(wanted as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// A file of 64 MiB with data at its start, in its middle and at its end.
    fn sparse(place: &Path) {
        let file = File::create(place).unwrap();
        file.set_len(64 << 20).unwrap();
        for (at, byte) in [(0, 1), (20 << 20, 2), ((64 << 20) - 100, 3)] {
            file.write_all_at(&[byte; 100], at).unwrap();
        }
        file.sync_all().unwrap();
    }

    #[test]
    fn a_copy_has_the_same_content_and_the_same_holes() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("seed"), place.path().join("work"));
        sparse(&from);
        fs::set_permissions(&from, fs::Permissions::from_mode(0o444)).unwrap();
        disk(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        let found = fs::metadata(&to).unwrap();
        assert_eq!(found.mode() & 0o777, 0o600);
        assert!(found.blocks() * 512 < 1 << 20, "{}", found.blocks());
        // Where extents are shared nobody asked for this until now.
        let (seed, again) = (File::open(&from).unwrap(), place.path().join("again"));
        let copy = File::create_new(&again).unwrap();
        extents(&seed, &copy, &mut |_| Ok(())).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&again).unwrap());
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_disk_without_data_and_one_without_holes_are_copied_whole() {
        let place = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("hole", None),
            ("data", Some(vec![7; (3 << 20) + 5])),
            ("empty", Some(Vec::new())),
        ] {
            let from = place.path().join(name);
            match &bytes {
                Some(bytes) => fs::write(&from, bytes).unwrap(),
                None => File::create(&from).unwrap().set_len(5 << 20).unwrap(),
            }
            let to = place.path().join(format!("{name}-copy"));
            disk(&from, &to).unwrap();
            assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_copy_never_takes_the_place_of_a_disk_that_is_there() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("seed"), place.path().join("work"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        assert!(disk(&from, &to).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"old");
        assert!(disk(&place.path().join("none"), &place.path().join("x")).is_err());
        assert!(!place.path().join("x").exists());
    }
}
