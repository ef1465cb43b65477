//! Whom the host asks for names: the `nameserver` lines of a file, read again
//! whenever it, a link on the way to it, or a directory it lies in changes.
//! Gateways ask from the host, so a resolver on its loopback is as good as any.

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use banger_wire::gateway::MAX_RESOLVERS;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A file of this kind is small; more is not read, bytes.
const LARGEST: u64 = 64 << 10;
/// Links that are followed, as the kernel does.
const MOST_LINKS: usize = 40;

/// The resolvers of a file, as they change.
#[derive(Debug)]
pub(crate) struct Resolvers {
    now: watch::Sender<Vec<IpAddr>>,
    _follower: JoinSet<()>,
}

impl Resolvers {
    /// Follows a file, for as long as this is kept. Must be called within a
    /// runtime.
    pub(crate) fn of(file: &Path) -> Self {
        let now = watch::Sender::new(read(file));
        let mut follower = JoinSet::new();
        follower.spawn(follow(file.to_owned(), now.clone()));
        Self {
            now,
            _follower: follower,
        }
    }

    /// What they are now, and whatever they become.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.now.subscribe()
    }
}

async fn follow(file: PathBuf, now: watch::Sender<Vec<IpAddr>>) {
    loop {
        let queue = match watch(&places(&file)) {
            Ok(queue) => queue,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error,
                    "changes of the host's resolvers are not seen");
                return;
            }
        };
        // Read with the watch in place, so that no change falls between.
        let found = read(&file);
        now.send_if_modified(|now| {
            let differs = *now != found;
            if differs {
                tracing::info!(resolvers = ?found, "the host's resolvers changed");
                *now = found;
            }
            differs
        });
        if changed(&queue).await.is_err() {
            return;
        }
    }
}

/// The resolvers that a file names; none where it cannot be read.
pub(super) fn read(file: &Path) -> Vec<IpAddr> {
    let text = std::fs::File::open(file).and_then(|file| {
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LARGEST), &mut text).map(|_| text)
    });
    parse(&String::from_utf8_lossy(&text.unwrap_or_default()))
}

/// As the C library reads it: the keyword begins its line, and later ones than
/// the third are not asked.
fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .take(MAX_RESOLVERS)
        .collect()
}

/// What to watch: the directory of the file and of each link on the way to it,
/// or the nearest one above that is there, and the file itself, which may be
/// mounted there from elsewhere.
fn places(file: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let mut at = file.to_owned();
    for _ in 0..MOST_LINKS {
        let directory = at.parent().unwrap_or(Path::new("/"));
        let nearest = directory.ancestors().find(|above| above.is_dir());
        places.extend(nearest.map(Path::to_owned));
        match std::fs::read_link(&at) {
            Ok(target) => at = directory.join(target),
            Err(_) => break,
        }
    }
    places.push(at);
    places
}

/// An inotify queue with a watch on each place that is there.
fn watch(places: &[PathBuf]) -> io::Result<AsyncFd<OwnedFd>> {
    let events = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    for place in places {
        match inotify::add_watch(&queue, place, events) {
            // The directory above tells when it comes.
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    register(queue)
}

/// Returns after something happened.
async fn changed(queue: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = queue.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        match Reader::new(queue.get_ref().as_fd(), &mut buffer).next() {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

#[expect(
    deprecated,
    reason = "the safe form is enough: an owned descriptor stays what it is"
)]
fn register(queue: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(queue, tokio::io::Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    fn addresses(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_three_nameserver_lines_count() {
        let text = "# nameserver 9.9.9.9\nsearch a.example\nnameserver 127.0.0.53\n\
                    nameserver\t2001:db8::1 # mine\n nameserver 8.8.8.8\nnameserver fe80::1%eth0\n\
                    nameservers 8.8.4.4\nnameserver\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
        assert_eq!(
            parse(text),
            addresses(&["127.0.0.53", "2001:db8::1", "192.0.2.1"])
        );
        assert_eq!(read(Path::new("/nonexistent")), addresses(&[]));
    }

    async fn becomes(now: &mut watch::Receiver<Vec<IpAddr>>, wanted: &[&str]) {
        let wanted = addresses(wanted);
        let came = now.wait_for(|now| *now == wanted);
        tokio::time::timeout(Duration::from_secs(20), came)
            .await
            .unwrap_or_else(|_| panic!("not {wanted:?}"))
            .unwrap();
    }

    #[tokio::test]
    async fn changes_of_the_file_its_links_and_their_targets_are_seen() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir(at("etc")).unwrap();
        let file = at("etc/resolv.conf");
        let resolvers = Resolvers::of(&file);
        let mut now = resolvers.subscribe();
        assert_eq!(*now.borrow(), addresses(&[]));
        // Made, written in place, replaced.
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        becomes(&mut now, &["192.0.2.1"]).await;
        fs::write(&file, "nameserver 192.0.2.2\n").unwrap();
        becomes(&mut now, &["192.0.2.2"]).await;
        fs::write(at("etc/new"), "nameserver 192.0.2.3\n").unwrap();
        fs::rename(at("etc/new"), &file).unwrap();
        becomes(&mut now, &["192.0.2.3"]).await;
        // A link to what is not there yet, not even its directory.
        symlink("../run/resolve/stub.conf", at("etc/link")).unwrap();
        fs::rename(at("etc/link"), &file).unwrap();
        becomes(&mut now, &[]).await;
        fs::create_dir_all(at("run/resolve")).unwrap();
        fs::write(at("run/resolve/stub.conf"), "nameserver 127.0.0.53\n").unwrap();
        becomes(&mut now, &["127.0.0.53"]).await;
        fs::write(at("run/resolve/new"), "nameserver 127.0.0.54\n").unwrap();
        fs::rename(at("run/resolve/new"), at("run/resolve/stub.conf")).unwrap();
        becomes(&mut now, &["127.0.0.54"]).await;
        fs::remove_file(&file).unwrap();
        becomes(&mut now, &[]).await;
    }
}
