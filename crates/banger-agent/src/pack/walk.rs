//! The walk over the root: every file once, in the order of names.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom as Seeking};

use super::PackError;
use super::entry::{self, Kind};
use super::plan::{Instead, Layout, Plan};

/// Deepest nesting that is followed.
const MAX_DEPTH: u32 = 1024;
/// Ranges of a sparse file that are told apart; one with more is packed whole.
const MAX_RANGES: usize = 16 << 10;
/// From here on a size needs a PAX record, which the writer of sparse files
/// does not make: those are packed whole.
const LARGE: u64 = 8 << 30;
/// Read from a file at once, bytes.
const ROUND: usize = 256 << 10;
const BLOCK: u64 = 512;

pub(super) struct Walk<'p, W> {
    out: W,
    layout: &'p Layout,
    plan: &'p Plan,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
}

impl<'p, W: Write> Walk<'p, W> {
    pub(super) fn new(out: W, layout: &'p Layout, plan: &'p Plan) -> Self {
        Self {
            out,
            layout,
            plan,
            links: HashMap::new(),
            buffer: vec![0; ROUND],
        }
    }

    /// Packs everything.
    pub(super) fn all(&mut self) -> Result<(), PackError> {
        let bare = self.layout.bare_at.clone();
        let name = Path::new("");
        let meta = fs::symlink_metadata(&bare).map_err(at("look at", name))?;
        self.header(&bare, name, &meta, &Kind::Directory)?;
        self.inside(&bare, name, 0)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<(), PackError> {
        self.write(&[0; 2 * BLOCK as usize])?;
        self.out.flush().map_err(|_| PackError::Unheard)
    }

    fn inside(&mut self, from: &Path, name: &Path, depth: u32) -> Result<(), PackError> {
        if depth > MAX_DEPTH {
            return Err(PackError::Deep(name.to_owned()));
        }
        let list = fs::read_dir(from).and_then(|found| {
            let names = found.map(|entry| Ok(entry?.file_name()));
            names.collect::<io::Result<Vec<_>>>()
        });
        let mut list = list.map_err(at("list", name))?;
        // The same content makes the same archive.
        list.sort_unstable();
        for part in list {
            self.one(&from.join(&part), &name.join(&part), depth)?;
        }
        Ok(())
    }

    /// Packs what is at `from` under this name, or what is planned instead.
    fn one(&mut self, from: &Path, name: &Path, depth: u32) -> Result<(), PackError> {
        let plan = self.plan;
        match plan.at(name) {
            None => self.whole(from, name, depth),
            Some(Instead::Nothing) => Ok(()),
            Some(Instead::Base) => {
                let base = self.layout.base_at.join(name);
                if fs::symlink_metadata(&base).is_err() {
                    return Ok(());
                }
                self.whole(&base, name, depth)
            }
            Some(Instead::Graft(source)) => self.whole(source, name, depth),
            Some(Instead::Empty) => {
                let meta = fs::symlink_metadata(from).map_err(at("look at", name))?;
                self.header(from, name, &meta, &Kind::Directory)
            }
            Some(Instead::Text(text)) => {
                let meta = fs::symlink_metadata(from).map_err(at("look at", name))?;
                self.header(from, name, &meta, &Kind::File(text.len() as u64))?;
                self.write(text)?;
                self.pad(text.len() as u64)
            }
        }
    }

    fn whole(&mut self, from: &Path, name: &Path, depth: u32) -> Result<(), PackError> {
        let meta = fs::symlink_metadata(from).map_err(at("look at", name))?;
        let kind = meta.file_type();
        if kind.is_socket() {
            // Of no use without its listener, and no archive can say it.
            return Ok(());
        }
        if meta.nlink() > 1 && !kind.is_dir() {
            let place = (meta.dev(), meta.ino());
            if let Some(first) = self.links.get(&place) {
                let first = first.as_os_str().as_bytes().to_vec();
                return self.header(from, name, &meta, &Kind::Link(&first));
            }
            self.links.insert(place, name.to_owned());
        }
        if kind.is_file() {
            return self.file(from, name, &meta);
        }
        if kind.is_symlink() {
            let target = fs::read_link(from).map_err(at("read", name))?;
            let target = target.as_os_str().as_bytes();
            return self.header(from, name, &meta, &Kind::Symlink(target));
        }
        if kind.is_dir() {
            self.header(from, name, &meta, &Kind::Directory)?;
            return self.inside(from, name, depth + 1);
        }
        let kind = if kind.is_char_device() {
            Kind::CharDevice(meta.rdev())
        } else if kind.is_block_device() {
            Kind::BlockDevice(meta.rdev())
        } else {
            Kind::Fifo
        };
        self.header(from, name, &meta, &kind)
    }

    fn file(&mut self, from: &Path, name: &Path, meta: &Metadata) -> Result<(), PackError> {
        let size = meta.len();
        if size == 0 {
            return self.header(from, name, meta, &Kind::File(0));
        }
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = i32::try_from(flags.bits()).expect("open flags are small numbers");
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(from)
            .map_err(at("open", name))?;
        let sparse = meta.blocks() * BLOCK < size;
        let ranges = match sparse {
            true => data_of(&file, size).map_err(at("look for holes in", name))?,
            false => None,
        };
        let Some(ranges) = ranges else {
            self.header(from, name, meta, &Kind::File(size))?;
            self.copy(&mut file, name, 0, size)?;
            return self.pad(size);
        };
        self.header(from, name, meta, &Kind::Sparse(&ranges, size))?;
        for (offset, length) in &ranges {
            self.copy(&mut file, name, *offset, *length)?;
        }
        self.pad(ranges.iter().map(|(_, length)| length).sum())
    }

    fn copy(
        &mut self,
        file: &mut File,
        name: &Path,
        from: u64,
        mut left: u64,
    ) -> Result<(), PackError> {
        file.seek(SeekFrom::Start(from)).map_err(at("read", name))?;
        while left > 0 {
            let room = usize::try_from(left.min(ROUND as u64)).expect("at most a round");
            let read = file
                .read(&mut self.buffer[..room])
                .map_err(at("read", name))?;
            if read == 0 {
                let cause = io::ErrorKind::UnexpectedEof.into();
                return Err(at("read", name)(cause));
            }
            left -= read as u64;
            self.out
                .write_all(&self.buffer[..read])
                .map_err(|_| PackError::Unheard)?;
        }
        Ok(())
    }

    fn header(
        &mut self,
        from: &Path,
        name: &Path,
        meta: &Metadata,
        kind: &Kind<'_>,
    ) -> Result<(), PackError> {
        let xattrs = match kind {
            // They are the first name's.
            Kind::Link(_) => Vec::new(),
            _ => entry::xattrs(from).map_err(at("read the attributes of", name))?,
        };
        let shown = match name.as_os_str().as_bytes() {
            b"" => b".",
            bytes => bytes,
        };
        let blocks = entry::header(shown, meta, kind, &xattrs).map_err(|why| PackError::Entry {
            path: name.to_owned(),
            why,
        })?;
        self.write(&blocks)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.out.write_all(bytes).map_err(|_| PackError::Unheard)
    }

    /// Fills the last block of a content of this length.
    fn pad(&mut self, length: u64) -> Result<(), PackError> {
        let missing = length.next_multiple_of(BLOCK) - length;
        let zeros = [0; BLOCK as usize];
        self.write(&zeros[..usize::try_from(missing).expect("less than a block")])
    }
}

fn at<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> PackError + 'p {
    move |cause| PackError::File {
        action,
        path: path.to_owned(),
        cause,
    }
}

/// The ranges of a file that are no holes; `None` where telling them apart is
/// not worth it.
fn data_of(file: &File, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut ranges = Vec::new();
    let mut stored = 0;
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(file, Seeking::Data(at)) {
            Ok(begin) => begin,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, Seeking::Hole(begin))?.min(size);
        if begin >= end {
            break;
        }
        ranges.push((begin, end - begin));
        stored += end - begin;
        at = end;
        if ranges.len() > MAX_RANGES || stored >= LARGE {
            return Ok(None);
        }
    }
    Ok((stored < size).then_some(ranges))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
    use std::process::Command;

    use super::*;
    use crate::boot::root::Root;

    #[test]
    fn another_tar_unpacks_what_was_packed() {
        let room = std::env::temp_dir().join(format!("banger-walk-{}", std::process::id()));
        let _ = fs::remove_dir_all(&room);
        let bare = room.join("bare");
        let long = "a-rather-long-name-of-a-directory/".repeat(6);
        for dir in [
            &bare.join(&long),
            &bare.join("etc"),
            &room.join("base"),
            &room.join("home/sub"),
            &bare.join("root"),
        ] {
            fs::create_dir_all(dir).unwrap();
        }
        let old = bare.join(&long).join("file");
        fs::write(&old, b"content").unwrap();
        fs::hard_link(&old, bare.join("second")).unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o4751)).unwrap();
        let time = std::time::UNIX_EPOCH - std::time::Duration::from_millis(1250);
        File::options()
            .write(true)
            .open(&old)
            .unwrap()
            .set_modified(time)
            .unwrap();
        symlink("x".repeat(300), bare.join("link")).unwrap();
        let holes = File::create(bare.join("holes")).unwrap();
        holes.write_all_at(b"middle", 1 << 20).unwrap();
        holes.set_len(4 << 20).unwrap();
        fs::write(room.join("home/sub/mine"), b"").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            bare.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        fs::set_permissions(bare.join("etc"), fs::Permissions::from_mode(0o2775)).unwrap();

        let layout = Layout {
            bare: Root::open(bare.to_str().unwrap()).unwrap(),
            base: Root::open(room.join("base").to_str().unwrap()).unwrap(),
            bare_at: bare.clone(),
            base_at: room.join("base"),
            grafts: vec![("root", room.join("home").to_str().unwrap().to_owned())],
        };
        let request = serde_json::from_value(serde_json::json!({
            "hostname": "x", "clock_unix_ns": 0, "entropy_hex": "",
            "disks": {"root": "", "overlay": "", "work": ""},
        }));
        let plan = Plan::of(&request.unwrap(), &layout);
        let archive = room.join("root.tar");
        let mut walk = Walk::new(File::create(&archive).unwrap(), &layout, &plan);
        walk.all().unwrap();
        walk.finish().unwrap();
        assert!(
            fs::metadata(&archive).unwrap().len() < 1 << 20,
            "holes are not packed"
        );

        let out = room.join("out");
        fs::create_dir(&out).unwrap();
        let tar = Command::new("tar")
            .args(["-xpf", "../root.tar"])
            .current_dir(&out)
            .status();
        assert!(tar.unwrap().success());
        let file = fs::metadata(out.join(&long).join("file")).unwrap();
        assert_eq!(
            (file.mode() & 0o7777, file.mtime(), file.mtime_nsec()),
            (0o4751, -2, 750_000_000)
        );
        assert_eq!(fs::metadata(out.join("second")).unwrap().ino(), file.ino());
        assert_eq!(fs::read(out.join("second")).unwrap(), b"content");
        assert_eq!(
            fs::read_link(out.join("link")).unwrap().as_os_str().len(),
            300
        );
        let holes = fs::read(out.join("holes")).unwrap();
        assert_eq!(
            (holes.len(), &holes[1 << 20..][..6]),
            (4 << 20, &b"middle"[..])
        );
        assert!(out.join("root/sub/mine").is_file());
        assert!(
            fs::symlink_metadata(out.join("pipe"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
        assert_eq!(
            fs::metadata(out.join("etc")).unwrap().mode() & 0o7777,
            0o2775
        );
        fs::remove_dir_all(room).unwrap();
    }
}
