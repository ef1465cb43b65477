//! The rest of the world: another host at the far end of a veth pair, with
//! services, closed ports, and addresses where nobody is. A process of its
//! own, which is this test program again.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use rustix::net::{SendFlags, send};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::ip;

/// The host that the room is, towards the outside.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The other host.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Routed to the other host, which throws it away.
pub(crate) const SILENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// 198.18.0.0/15 is the other host, too.
pub(crate) const CROWD: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Says what it is told, by TCP and UDP.
pub(crate) const ECHO: u16 = 7;
/// Takes connections and holds the newest of them, reading nothing.
pub(crate) const HOLD: u16 = 9;
/// Talks without end.
pub(crate) const TALK: u16 = 19;
/// Says `before`, one urgent byte, and `behind`, in one breath.
pub(crate) const URGENT: u16 = 20;
/// Nobody listens.
pub(crate) const CLOSED: u16 = 81;
/// Connections that [`HOLD`] holds.
const HELD: usize = 3000;

/// The process; ends with this.
pub(crate) struct Outside {
    child: Child,
    /// Open to the end: the test harness in the process speaks up after a
    /// minute, and would end if nobody could hear that.
    _said: BufReader<ChildStdout>,
}

impl Outside {
    /// Starts it. The test program must have a test `outside`, ignored, that
    /// calls [`serve`].
    pub(crate) fn start() -> Self {
        let program = std::env::current_exe().expect("a test knows its program");
        let mut child = Command::new("unshare")
            .args(["--net", "--"])
            .arg(program)
            .args(["--exact", "outside", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare ran before");
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let mut wait_for = |word: &str| {
            let mut line = String::new();
            while !line.contains(word) {
                line.clear();
                let length = said.read_line(&mut line).expect("it speaks text");
                assert!(length > 0, "the outside ended before it was {word}");
            }
        };
        wait_for("apart");
        ip(&format!(
            "link set lo up
             link add lan0 type veth peer name far0
             link set far0 netns {}
             addr add {HOST}/24 dev lan0
             link set lan0 up
             route add default via {OUTSIDE}",
            child.id()
        ));
        let mut input = child.stdin.take().expect("piped");
        input.write_all(b"go\n").expect("it listens");
        child.stdin = Some(input);
        wait_for("ready");
        Self { child, _said: said }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does: sets its side of the link up when it is told to,
/// serves, and ends with its input.
pub(crate) fn serve() {
    println!("apart");
    let mut input = std::io::stdin();
    input.read_exact(&mut [0; 3]).expect("somebody speaks");
    ip(&format!(
        "link set lo up
         addr add {OUTSIDE}/24 dev far0
         link set far0 up
         route add local {CROWD}/15 dev lo"
    ));
    let most = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, all).expect("up to the maximum is free");
    let listen = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("all is free");
    let (echo, hold, talk) = (listen(ECHO), listen(HOLD), listen(TALK));
    let urgent = listen(URGENT);
    let echo_udp = UdpSocket::bind((OUTSIDE, ECHO)).expect("all is free");
    thread::spawn(move || {
        for mut stream in echo.incoming().flatten() {
            thread::spawn(move || {
                let mut from = stream.try_clone()?;
                std::io::copy(&mut from, &mut stream)
            });
        }
    });
    thread::spawn(move || {
        let mut held = VecDeque::new();
        for stream in hold.incoming().flatten() {
            held.push_back(stream);
            if held.len() > HELD {
                held.pop_front();
            }
        }
    });
    thread::spawn(move || {
        for mut stream in talk.incoming().flatten() {
            thread::spawn(move || while stream.write_all(&[b'.'; 65_536]).is_ok() {});
        }
    });
    thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in urgent.incoming().flatten() {
            let _ = stream.write_all(b"before");
            let _ = send(&stream, b"!", SendFlags::OOB);
            let _ = stream.write_all(b"behind");
            held.push(stream);
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            // Errors are those that guests' ports sent back.
            if let Ok((length, from)) = echo_udp.recv_from(&mut buffer) {
                let _ = echo_udp.send_to(&buffer[..length], from);
            }
        }
    });
    println!("ready");
    let _ = input.read_to_end(&mut Vec::new());
}
