//! The control socket: takes the daemon's connections, reads their requests
//! and gives each its one answer. What a request means is the loop's business.
//!
//! It has an epoll of its own, which the loop watches level-triggered as one
//! descriptor, and does one request of each connection at a time, so that no
//! daemon however eager holds the guest's traffic up. Only the own user and
//! root are listened to.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use banger_wire::gateway::{
    Answer, Counters, MAX_CONNECTIONS, MAX_MESSAGE, MAX_RESOLVERS, Request,
};
use rustix::buffer::spare_capacity;
use rustix::cmsg_space;
use rustix::event::{Timespec, epoll};
use rustix::io::{self, Errno};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, accept_with, recvmsg, sendmsg,
};
use rustix::process::{Uid, getuid};

/// Descriptors that are read beside one message. One is right, never more.
const MAX_DESCRIPTORS: usize = 4;
/// The epoll's number for the listening socket; connections have their place.
const LISTENER: u64 = u64::MAX;

/// A request with what was beside it.
#[derive(Debug)]
pub enum Command {
    /// End with the process behind this pidfd.
    Engine(OwnedFd),
    /// The resolvers from now on, no more than are asked.
    Resolvers(Vec<IpAddr>),
    /// What went through?
    Counters,
    /// The line, please.
    Line,
}

/// What the loop says to a command.
#[derive(Debug)]
pub enum Reply {
    /// As asked.
    Done,
    /// The numbers.
    Counters(Counters),
    /// A copy of the line's descriptor.
    Line(OwnedFd),
    /// Not done; a sentence.
    Refused(String),
}

/// The listening socket and its connections.
pub struct Control {
    epoll: OwnedFd,
    listener: OwnedFd,
    connections: [Option<OwnedFd>; MAX_CONNECTIONS],
    own: Uid,
    /// One byte more than a message may have.
    buffer: Vec<u8>,
}

impl Control {
    /// Serves a listening `SOCK_SEQPACKET` socket.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        io::ioctl_fionbio(&listener, true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // By edges: a connection that cannot be taken for want of descriptors
        // would otherwise keep the loop spinning.
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let number = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, number, events)?;
        Ok(Self {
            epoll,
            listener,
            connections: Default::default(),
            own: getuid(),
            buffer: vec![0; MAX_MESSAGE + 1],
        })
    }

    /// Takes what came: called when the descriptor is readable, and again as
    /// long as it is. One request of each connection is answered.
    pub fn serve(&mut self, mut answer: impl FnMut(Command) -> Reply) {
        let mut events = Vec::with_capacity(MAX_CONNECTIONS + 1);
        let at_once = Timespec::default();
        if epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once)).is_err() {
            return;
        }
        for event in events {
            let number = event.data.u64();
            if number == LISTENER {
                self.accept();
                continue;
            }
            let Some(connection) = usize::try_from(number)
                .ok()
                .and_then(|at| self.connections.get_mut(at))
            else {
                continue;
            };
            let Some(socket) = connection.as_ref() else {
                continue;
            };
            if serve_one(socket.as_fd(), &mut self.buffer, &mut answer).is_none() {
                // The epoll lets go of it, too: there is no other copy.
                *connection = None;
            }
        }
    }

    /// Takes all connections that wait, and closes those that may not be.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let socket = match accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => return,
            };
            let Ok(peer) = socket_peercred(&socket) else {
                continue;
            };
            if !is_heard(peer.uid, self.own) {
                continue;
            }
            let Some(place) = self.connections.iter().position(Option::is_none) else {
                continue;
            };
            let number = epoll::EventData::new_u64(place as u64);
            if epoll::add(&self.epoll, &socket, number, epoll::EventFlags::IN).is_ok() {
                self.connections[place] = Some(socket);
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Whether a peer of this user may ask anything.
fn is_heard(peer: Uid, own: Uid) -> bool {
    peer == own || peer.is_root()
}

/// Reads one request and answers it; `None` where the connection is over.
fn serve_one(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    answer: &mut impl FnMut(Command) -> Reply,
) -> Option<()> {
    let reply = match receive(socket, buffer) {
        Received::Nothing => return Some(()),
        Received::End => return None,
        Received::Command(Ok(command)) => answer(command),
        Received::Command(Err(message)) => Reply::Refused(message),
    };
    send(socket, reply).ok()
}

enum Received {
    Nothing,
    End,
    Command(Result<Command, String>),
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Received {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let packet = match recvmsg(socket, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC) {
        Ok(packet) if packet.bytes == 0 => return Received::End,
        Ok(packet) => packet,
        Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
        Err(_) => return Received::End,
    };
    let descriptors: Vec<OwnedFd> = beside
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if packet.flags.contains(ReturnFlags::CTRUNC) {
        return Received::Command(Err("too many descriptors beside the message".to_owned()));
    }
    Received::Command(command(&buffer[..packet.bytes], descriptors))
}

/// Puts a message and its descriptors together.
fn command(packet: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<Command, String> {
    let request = Request::decode(packet).map_err(|error| error.to_string())?;
    Ok(match (request, descriptors.pop()) {
        (Request::Engine, Some(pidfd)) if descriptors.is_empty() => Command::Engine(pidfd),
        (Request::Engine, _) => {
            return Err("exactly one descriptor belongs beside this message".to_owned());
        }
        (_, Some(_)) => return Err("no descriptor belongs beside this message".to_owned()),
        (Request::Resolvers { mut addresses }, None) => {
            addresses.truncate(MAX_RESOLVERS);
            Command::Resolvers(addresses)
        }
        (Request::Counters, None) => Command::Counters,
        (Request::Line, None) => Command::Line,
    })
}

/// Sends an answer. One that does not fit is not waited for: who asks without
/// reading loses the connection.
fn send(socket: BorrowedFd<'_>, reply: Reply) -> io::Result<()> {
    let (answer, line) = match reply {
        Reply::Done => (Answer::Done, None),
        Reply::Counters(counters) => (Answer::Counters(counters), None),
        Reply::Line(line) => (Answer::Line, Some(line)),
        Reply::Refused(message) => (Answer::Refused { message }, None),
    };
    let descriptors: Vec<BorrowedFd<'_>> = line.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = beside.push(SendAncillaryMessage::ScmRights(&descriptors));
        debug_assert!(fits, "the space is for one descriptor");
    }
    let bytes = answer.encode();
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut beside,
        SendFlags::NOSIGNAL,
    )?;
    debug_assert_eq!(sent, bytes.len(), "a packet goes whole or not at all");
    Ok(())
}

#[cfg(test)]
mod tests;
