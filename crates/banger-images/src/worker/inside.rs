//! The process that writes an image: takes its descriptors, gives everything else up, works, says
//! how it went.

use std::fs::File;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use banger_sandbox::{Resource, Rules, SandboxError, own_memory_and_end};
use banger_sys::daemon::take_inherited;

use super::words::{Answer, Content, FIRST, Fault, News, Refused, Task};
use crate::ext4::{MAX_DISK_BYTES, RootFiles};
use crate::oci::{self, Order};
use crate::packed;
use crate::progress::{Cancel, Report};
use crate::tree::{Source, Unpacked};

/// Writable memory it may have, bytes: what the limits of archives allow a tree to take, what
/// the writer may take for it, and a decompressor's window, with room.
const MAX_DATA: u64 = 3 << 30;
/// Longest file it may write, bytes: the largest image, and some.
const MAX_FILE: u64 = MAX_DISK_BYTES + (1 << 30);
/// Bytes are told no more often than this.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Does the task that follows the flag on the command line, with the descriptors that came with
/// it, and says on standard output how that went.
#[must_use]
pub fn work(task: &str) -> ExitCode {
    let answer = match serde_json::from_str(task) {
        Ok(task) => match Given::take(&task) {
            Ok(given) => given.write(&task.order),
            Err(error) => Answer::Refused(Refused::chain(Fault::Host, &*error, 8)),
        },
        Err(error) => Answer::Refused(Refused::chain(Fault::Host, &error, 8)),
    };
    let done = matches!(answer, Answer::Written(_));
    let json = serde_json::to_vec(&answer).expect("an answer is plain JSON");
    match io::stdout()
        .write_all(&json)
        .and_then(|()| io::stdout().flush())
    {
        Ok(()) if done => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What the process has.
struct Given {
    files: RootFiles,
    sources: Sources,
    /// Never thrown: whoever cancels ends this process.
    cancel: Cancel,
}

/// What the image is made of.
enum Sources {
    Layers(Vec<Source>),
    Root(File),
}

impl Given {
    /// Takes the descriptors, and gives everything else up.
    fn take(task: &Task) -> Result<Self, Box<dyn std::error::Error>> {
        let mut numbers = FIRST..;
        let mut next = || {
            let number = numbers.next().expect("there are more than enough numbers");
            take_inherited(number).map(File::from)
        };
        let given = Self {
            files: RootFiles {
                root: next()?,
                seed: next()?,
                spool: next()?,
                unpacked: Unpacked::of(next()?, task.keep_bytes),
            },
            sources: match task.content {
                Content::Layers(count) => {
                    let layers = (0..count).map(|_| next().map(Source::Packed));
                    Sources::Layers(layers.collect::<io::Result<_>>()?)
                }
                Content::Root => Sources::Root(next()?),
            },
            cancel: Cancel::new()?,
        };
        // Where memory is short, this process is what the host can do without best. Without that
        // it goes on.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
        confine()?;
        Ok(given)
    }

    fn write(self, order: &Order) -> Answer {
        let teller = Teller::default();
        let (files, cancel) = (&self.files, &self.cancel);
        let written = match self.sources {
            Sources::Layers(layers) => oci::write(layers, files, order, cancel, &teller),
            Sources::Root(packed) => packed::write(packed, files, order, cancel, &teller),
        };
        match written {
            Ok(written) => Answer::Written(written),
            Err(error) => Answer::Refused(Refused::of(&error)),
        }
    }
}

fn confine() -> Result<(), SandboxError> {
    banger_sandbox::enter(Rules {
        free: FREE,
        bounded: &own_memory_and_end(),
        limits: &[(Resource::Data, MAX_DATA), (Resource::Fsize, MAX_FILE)],
        connect: false,
    })
}

/// Writes progress to standard error.
#[derive(Default)]
struct Teller(Mutex<Option<Instant>>);

impl Teller {
    fn say(&self, news: &News) {
        let mut line = serde_json::to_vec(news).expect("news are plain JSON");
        line.push(b'\n');
        // In one write: a line is never cut.
        let _ = io::stderr().write_all(&line);
    }
}

impl Report for Teller {
    fn stage(&self, stage: &str, detail: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.say(&News::Stage(stage.to_owned(), detail.to_owned()));
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if Some(done) != total && told.is_some_and(|then| now - then < TELL_EVERY) {
            return;
        }
        *told = Some(now);
        self.say(&News::Bytes(done, total));
    }

    /// Layers are merged as one.
    fn part(&self, _: &str, _: u64, _: u64) {}

    fn log(&self, _: &str) {}
}

/// On what is open, on its own memory, and the time.
const FREE: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use rustix::process::{Signal, getppid, kill_process};

    use super::*;

    /// What a process says that got to its end.
    const HELD: &str = "the sandbox held";

    #[test]
    fn a_writer_can_do_nothing_but_read_and_write_what_it_has() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("worker::inside::tests::everything_is_tried")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let complained = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{said}{complained}");
        assert!(said.contains(HELD), "{said}{complained}");
    }

    #[test]
    #[ignore = "only for a process of its own"]
    fn everything_is_tried() {
        fn denied<T>(result: io::Result<T>) {
            let error = result.err().expect("this must not work");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        }
        let file = tempfile::tempfile().unwrap();
        let parent = getppid().unwrap();
        confine().unwrap();
        for path in ["/", "/etc/passwd", "/dev/null", "/proc/self/mem", "here"] {
            denied(File::open(path));
        }
        denied(File::create("/tmp/made-inside"));
        denied(std::fs::remove_file("/tmp/made-inside"));
        denied(std::fs::read_link("/proc/self/exe"));
        assert!(Command::new("/bin/true").spawn().is_err());
        assert!(std::thread::Builder::new().spawn(|| ()).is_err());
        denied(kill_process(parent, Signal::URG).map_err(Into::into));
        denied(TcpStream::connect("127.0.0.1:1"));
        denied(UdpSocket::bind("127.0.0.1:0"));
        denied(UnixStream::connect("/run/dbus/system_bus_socket"));
        // What the work takes.
        let image = ext4_sized(&file);
        assert_eq!(image, 4096);
        drop(vec![1_u8; 64 << 20]);
        assert!(std::panic::catch_unwind(|| panic!("and told")).is_err());
        println!("{HELD}");
    }

    fn ext4_sized(file: &File) -> u64 {
        use std::os::unix::fs::FileExt as _;
        file.set_len(4096).unwrap();
        file.write_all_at(&[1; 512], 1024).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1024).unwrap();
        assert_eq!(byte, [1]);
        rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).unwrap()
    }
}
