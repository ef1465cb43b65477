//! The image's root seen from outside. Every path of the image is resolved
//! inside it: an absolute link in the image means the image, never the
//! agent's own files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

/// A root directory, held open.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Takes the directory at `path` of the agent's own as a root.
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// Opens `path` inside the root.
    pub(crate) fn open_in(&self, path: &str, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let path = path.trim_start_matches('/');
        let path = if path.is_empty() { "." } else { path };
        // O_NONBLOCK: the image may have a FIFO there.
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(
            &self.fd,
            path,
            flags,
            Mode::from_raw_mode(mode),
            resolve,
        )?)
    }

    /// A reference to `path` that can be looked at, not read.
    pub(crate) fn locate(&self, path: &str) -> io::Result<OwnedFd> {
        let path = path.trim_start_matches('/');
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(
            &self.fd,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )?)
    }

    /// The directory at `path`, made with its parents where absent.
    pub(crate) fn make_dirs(&self, path: &str, mode: u32) -> io::Result<OwnedFd> {
        let mut done = PathBuf::new();
        let mut at = self.locate("")?;
        for part in Path::new(path).components() {
            let Component::Normal(name) = part else {
                continue;
            };
            done.push(name);
            let text = done.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
            at = match self.locate(text) {
                Ok(next) => next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    mkdirat(&at, name, Mode::from_raw_mode(mode))?;
                    self.locate(text)?
                }
                Err(error) => return Err(error),
            };
            if !is_directory(&at)? {
                return Err(io::ErrorKind::NotADirectory.into());
            }
        }
        Ok(at)
    }

    /// At most `limit` bytes of the regular file at `path`.
    pub(crate) fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = File::from(self.open_in(path, OFlags::RDONLY, 0)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the file at `path`, through links, making the directories that a
    /// dangling link or the path itself wants.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let opened = match self.open_in(path, flags, 0o644) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_parent_of(path)?;
                self.open_in(path, flags, 0o644)
            }
            other => other,
        };
        let mut file = File::from(opened?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        file.write_all(bytes)
    }

    fn make_parent_of(&self, path: &str) -> io::Result<()> {
        let path = Path::new(path);
        let parent = path
            .parent()
            .and_then(Path::to_str)
            .ok_or(io::ErrorKind::InvalidFilename)?;
        let directory = self.make_dirs(parent, 0o755)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let target = match readlinkat(&directory, name, Vec::new()) {
            Ok(target) => target.into_string().map_err(io::Error::other)?,
            Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // One link deep: a chain of dangling links is nobody's habit.
        let target = Path::new(parent).join(target);
        if let Some(parent) = target.parent().and_then(Path::to_str) {
            self.make_dirs(&normal(parent), 0o755)?;
        }
        Ok(())
    }

    /// The path by which the kernel's mount call finds an opened place.
    pub(crate) fn mount_path(place: &OwnedFd) -> String {
        format!("/proc/self/fd/{}", place.as_raw_fd())
    }
}

/// The path without `..`, as the root itself would resolve it.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn is_directory(place: &OwnedFd) -> io::Result<bool> {
    let kind = rustix::fs::FileType::from_raw_mode(fstat(place)?.st_mode);
    Ok(kind == rustix::fs::FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn room(name: &str) -> (PathBuf, Root) {
        let path = std::env::temp_dir().join(format!("banger-root-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let root = Root::open(path.to_str().unwrap()).unwrap();
        (path, root)
    }

    #[test]
    fn absolute_links_and_dots_stay_inside_the_root() {
        let (path, root) = room("links");
        fs::create_dir_all(path.join("usr/lib")).unwrap();
        symlink("/usr/lib", path.join("lib")).unwrap();
        symlink(
            "../../../../run/resolve/stub.conf",
            path.join("resolv.conf"),
        )
        .unwrap();
        root.make_dirs("lib/modules/6.1", 0o755).unwrap();
        assert!(path.join("usr/lib/modules/6.1").is_dir());
        root.write("resolv.conf", b"nameserver").unwrap();
        assert_eq!(
            fs::read(path.join("run/resolve/stub.conf")).unwrap(),
            b"nameserver"
        );
        assert_eq!(root.read("/../../resolv.conf", 4).unwrap(), b"name");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_is_no_file_is_not_written_and_what_is_no_directory_not_entered() {
        let (path, root) = room("kinds");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        fs::write(path.join("file"), b"x").unwrap();
        assert!(root.write("fifo", b"x").is_err());
        assert!(root.read("fifo", 1).is_err());
        assert!(root.make_dirs("file/below", 0o755).is_err());
        assert!(root.make_dirs("file", 0o755).is_err());
        fs::remove_dir_all(path).unwrap();
    }
}
