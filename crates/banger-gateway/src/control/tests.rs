//! A daemon's side of the control socket, well behaved and otherwise.

use std::fs::File;
use std::io::{Read, Write};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketType, bind, connect, listen, recv, socket_with,
};
use rustix::pipe::pipe;

use super::*;

/// A control socket in a directory of its own.
struct Room {
    control: Control,
    address: SocketAddrUnix,
    _directory: tempfile::TempDir,
}

fn seqpacket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

impl Room {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(directory.path().join("gateway.sock")).unwrap();
        let listener = seqpacket();
        bind(&listener, &address).unwrap();
        listen(&listener, 64).unwrap();
        Self {
            control: Control::new(listener).unwrap(),
            address,
            _directory: directory,
        }
    }

    fn connect(&mut self) -> OwnedFd {
        let socket = seqpacket();
        connect(&socket, &self.address).unwrap();
        self.serve();
        socket
    }

    fn readable(&self) -> bool {
        let mut polled = [PollFd::new(&self.control, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).unwrap() == 1
    }

    /// As the loop does: while there is something, with answers that say what
    /// was asked.
    fn serve(&mut self) -> Vec<String> {
        let mut asked = Vec::new();
        while self.readable() {
            self.control.serve(|command| {
                let (word, reply) = match command {
                    Command::Engine(pidfd) => {
                        let mut file = File::from(pidfd);
                        file.write_all(b"seen").unwrap();
                        ("engine".to_owned(), Reply::Done)
                    }
                    Command::Resolvers(all) => (format!("{all:?}"), Reply::Done),
                    Command::Counters => {
                        ("counters".to_owned(), Reply::Counters(Counters::default()))
                    }
                    Command::Line => {
                        let (ours, theirs) = pipe().unwrap();
                        File::from(theirs).write_all(b"line").unwrap();
                        ("line".to_owned(), Reply::Line(ours))
                    }
                };
                asked.push(word);
                reply
            });
        }
        asked
    }
}

fn ask(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(8))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(beside.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut beside, flags)
}

/// The next packet: `None` where the gateway closed the connection.
fn answer(socket: &OwnedFd) -> Option<(Answer, Option<OwnedFd>)> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let packet = recvmsg(socket, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC).unwrap();
    let descriptor = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    (packet.bytes > 0).then(|| (Answer::decode(&buffer[..packet.bytes]).unwrap(), descriptor))
}

fn refusal(socket: &OwnedFd) -> String {
    match answer(socket) {
        Some((Answer::Refused { message }, None)) => message,
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn each_request_gets_its_answer_and_descriptors_pass_both_ways() {
    let mut room = Room::new();
    let daemon = room.connect();
    let (pidfd, theirs) = pipe().unwrap();
    ask(&daemon, &Request::Engine.encode(), &[theirs.as_fd()]).unwrap();
    drop(theirs);
    for request in [Request::Counters, Request::Line] {
        ask(&daemon, &request.encode(), &[]).unwrap();
    }
    let addresses: Vec<IpAddr> = (1..=5).map(|last| [192, 0, 2, last].into()).collect();
    let resolvers = Request::Resolvers { addresses };
    ask(&daemon, &resolvers.encode(), &[]).unwrap();
    let asked = room.serve();
    let three = "[192.0.2.1, 192.0.2.2, 192.0.2.3]";
    assert_eq!(asked, ["engine", "counters", "line", three]);

    let mut text = String::new();
    File::from(pidfd).read_to_string(&mut text).unwrap();
    assert_eq!(text, "seen", "the descriptor was the one that was sent");
    assert!(matches!(answer(&daemon), Some((Answer::Done, None))));
    let counters = answer(&daemon);
    assert!(matches!(counters, Some((Answer::Counters(_), None))));
    let Some((Answer::Line, Some(line))) = answer(&daemon) else {
        panic!("the line comes with its answer");
    };
    let mut text = String::new();
    File::from(line).read_to_string(&mut text).unwrap();
    assert_eq!(text, "line");
    assert!(matches!(answer(&daemon), Some((Answer::Done, None))));
    let mut more = [0; 8];
    assert_eq!(
        recv(&daemon, &mut more[..], RecvFlags::empty()),
        Err(Errno::AGAIN)
    );
}

#[test]
fn what_is_wrong_is_refused_and_the_connection_lives_on() {
    let mut room = Room::new();
    let daemon = room.connect();
    let some = File::open("/dev/null").unwrap();
    let some = some.as_fd();
    let engine = Request::Engine.encode();
    let counters = Request::Counters.encode();
    let long = vec![b' '; MAX_MESSAGE + 1];
    let wrong: [(&[u8], usize, &str); 7] = [
        (b"{}", 0, "understood"),
        (b"\xff\xfe", 1, "understood"),
        (&long, 0, "more than"),
        (&engine, 0, "one descriptor"),
        (&engine, 2, "one descriptor"),
        (&engine, 8, "too many"),
        (&counters, 1, "no descriptor"),
    ];
    let before = open_descriptors();
    for (bytes, count, word) in wrong {
        ask(&daemon, bytes, &vec![some; count]).unwrap();
        assert_eq!(room.serve(), Vec::<String>::new(), "{word}");
        let message = refusal(&daemon);
        assert!(message.contains(word), "{message:?} has no {word:?}");
    }
    assert_eq!(open_descriptors(), before, "none is kept");
    ask(&daemon, &counters, &[]).unwrap();
    assert_eq!(room.serve(), ["counters"]);
}

/// Descriptors of this thread's making that are open: others run beside.
fn open_descriptors() -> usize {
    let null = |fd: &str| std::fs::read_link(format!("/proc/self/fd/{fd}"));
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(|entry| null(entry.ok()?.file_name().to_str()?).ok())
        .filter(|path| path.as_os_str() == "/dev/null")
        .count()
}

#[test]
fn a_ninth_connection_is_closed_and_a_place_becomes_free_again() {
    let mut room = Room::new();
    let mut daemons: Vec<OwnedFd> = (0..MAX_CONNECTIONS).map(|_| room.connect()).collect();
    let ninth = room.connect();
    assert!(answer(&ninth).is_none(), "closed at once");
    let last = daemons.pop().unwrap();
    drop(last);
    room.serve();
    let again = room.connect();
    for daemon in daemons.iter().chain([&again]) {
        ask(daemon, &Request::Counters.encode(), &[]).unwrap();
    }
    assert_eq!(room.serve().len(), MAX_CONNECTIONS);
    for daemon in daemons.iter().chain([&again]) {
        assert!(answer(daemon).is_some());
    }
}

#[test]
fn who_asks_without_reading_loses_the_connection_and_nobody_else_does() {
    let mut room = Room::new();
    let (greedy, modest) = (room.connect(), room.connect());
    let request = Request::Counters.encode();
    // Until the gateway has no room for one more answer, and closes.
    let mut asked = 0;
    while ask(&greedy, &request, &[]).is_ok() {
        room.serve();
        asked += 1;
        assert!(asked < 1_000_000, "a socket holds less than that");
    }
    ask(&modest, &request, &[]).unwrap();
    assert_eq!(room.serve(), ["counters"]);
    assert!(answer(&modest).is_some());
}

#[test]
fn a_turn_answers_one_request_of_each_connection() {
    let mut room = Room::new();
    let (eager, other) = (room.connect(), room.connect());
    let request = Request::Counters.encode();
    for _ in 0..5 {
        ask(&eager, &request, &[]).unwrap();
    }
    ask(&other, &request, &[]).unwrap();
    let mut count = 0;
    room.control.serve(|_| {
        count += 1;
        Reply::Done
    });
    assert_eq!(count, 2);
    assert!(room.readable(), "the rest is not forgotten");
    assert_eq!(room.serve().len(), 4);
}

#[test]
fn strangers_are_not_heard() {
    let users = |peer, own| is_heard(Uid::from_raw(peer), Uid::from_raw(own));
    assert!(users(1000, 1000));
    assert!(users(0, 1000), "root");
    assert!(!users(1001, 1000));
    assert!(!users(1000, 0));
}
