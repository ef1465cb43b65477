//! The line to the guest: one Ethernet frame a datagram, both ways.
//!
//! What the guest does not take at once waits in a queue of [`MAX_QUEUE`];
//! what does not fit is lost. Whoever can hold its data back, as all flows can,
//! asks [`Line::has_room`] first, so the queue is for answers to the guest's
//! own frames, and for the one frame at which the line turned out to be full.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use banger_wire::gateway::{GATEWAY_MAC, MTU};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use crate::counters::{Counters, Dropped};

/// Bytes of frames that may wait for the guest.
pub(crate) const MAX_QUEUE: usize = 2 << 20;
/// Length of an Ethernet header.
pub(crate) const HEADER: usize = 14;
/// Bytes that are asked of the kernel for frames on their way: some of the
/// largest ones, where its limit allows.
const KERNEL_BUFFER: usize = 4 << 20;
/// The longest frame that is looked at: more than any on this line is.
pub(crate) const MAX_FRAME: usize = HEADER + 65_535;

/// Two bytes that say what a frame holds.
pub(crate) const IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const ARP: [u8; 2] = [0x08, 0x06];

/// The gateway's end.
pub(crate) struct Line {
    socket: OwnedFd,
    guest: [u8; 6],
    /// The frame that is being written.
    frame: Box<[u8]>,
    queue: VecDeque<Box<[u8]>>,
    queued: usize,
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A frame of so many bytes.
    Frame(usize),
    /// A frame that was longer than the buffer.
    TooLong,
    /// Nothing more at the moment.
    Nothing,
}

impl Line {
    /// # Errors
    /// A descriptor that is no socket.
    pub(crate) fn new(socket: OwnedFd, guest: [u8; 6]) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&socket)?;
        rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK)?;
        sockopt::set_socket_send_buffer_size(&socket, KERNEL_BUFFER)?;
        let mut frame = vec![0; HEADER + usize::from(MTU)].into_boxed_slice();
        frame[6..12].copy_from_slice(&GATEWAY_MAC);
        Ok(Self {
            socket,
            guest,
            frame,
            queue: VecDeque::new(),
            queued: 0,
        })
    }

    /// Reads one frame.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Received {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, length)) if length > buffer.len() => return Received::TooLong,
                Ok((_, length)) => return Received::Frame(length),
                Err(Errno::INTR) => {}
                // An engine that ended: its pidfd says so, too.
                Err(_) => return Received::Nothing,
            }
        }
    }

    /// Sends an IPv4 packet that `fill` writes, of at most [`MTU`] bytes.
    pub(crate) fn packet<R>(
        &mut self,
        counters: &mut Counters,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        self.frame[..6].copy_from_slice(&self.guest);
        self.frame[12..HEADER].copy_from_slice(&IPV4);
        let filled = fill(&mut self.frame[HEADER..HEADER + length]);
        if self.send(counters, HEADER + length) {
            counters.bytes_in += length as u64;
        }
        filled
    }

    /// Answers an ARP question.
    pub(crate) fn arp(&mut self, counters: &mut Counters, to: [u8; 6], answer: &[u8]) {
        self.frame[..6].copy_from_slice(&to);
        self.frame[12..HEADER].copy_from_slice(&ARP);
        self.frame[HEADER..HEADER + answer.len()].copy_from_slice(answer);
        self.send(counters, HEADER + answer.len());
    }

    /// Sends the frame that was written, or keeps it for later. False if it is
    /// lost.
    fn send(&mut self, counters: &mut Counters, length: usize) -> bool {
        if self.queue.is_empty() {
            match send_frame(&self.socket, &self.frame[..length]) {
                Sent::Gone => return true,
                Sent::Lost => {
                    counters.drop(Dropped::Socket);
                    return false;
                }
                Sent::Full => {}
            }
        }
        if self.queued + length > MAX_QUEUE {
            counters.drop(Dropped::QueueFull);
            return false;
        }
        self.queue.push_back(self.frame[..length].into());
        self.queued += length;
        true
    }

    /// Sends what waits, as far as the guest takes it.
    pub(crate) fn flush(&mut self, counters: &mut Counters) {
        while let Some(frame) = self.queue.front() {
            match send_frame(&self.socket, frame) {
                Sent::Full => return,
                Sent::Gone => {}
                Sent::Lost => counters.drop(Dropped::Socket),
            }
            self.queued -= frame.len();
            self.queue.pop_front();
        }
        // The many places of a long queue are not kept for ever.
        self.queue.shrink_to(64);
    }

    /// Whether the guest takes more, as far as is known.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether frames of so many bytes may be queued.
    pub(crate) fn would_queue(&self, bytes: usize) -> bool {
        self.queued + bytes <= MAX_QUEUE
    }

    /// Bytes that wait.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

enum Sent {
    Gone,
    Full,
    Lost,
}

fn send_frame(socket: &OwnedFd, frame: &[u8]) -> Sent {
    loop {
        match send(socket, frame, SendFlags::NOSIGNAL) {
            Ok(_) => return Sent::Gone,
            Err(Errno::AGAIN) => return Sent::Full,
            Err(Errno::INTR) => {}
            // Out of kernel memory, which nothing would tell the end of; or
            // the engine is gone, which its pidfd tells.
            Err(_) => return Sent::Lost,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// A line, and the engine's end of it.
    pub(crate) fn line() -> (Line, OwnedFd) {
        let (ours, engine) = socketpair(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let line = Line::new(ours, [0x52, 0x54, 0, 1, 2, 3]).unwrap();
        (line, engine)
    }

    /// The next frame at the engine's end.
    pub(crate) fn next_frame(engine: &OwnedFd) -> Option<Vec<u8>> {
        let mut buffer = vec![0; MAX_FRAME + 1];
        match recv(engine, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, length)) => {
                buffer.truncate(length);
                Some(buffer)
            }
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_packet_gets_its_header() {
        let (mut line, engine) = line();
        let mut counters = Counters::default();
        line.packet(&mut counters, 3, |packet| packet.copy_from_slice(b"abc"));
        let frame = next_frame(&engine).unwrap();
        assert_eq!(frame[..6], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[6..12], GATEWAY_MAC);
        assert_eq!(frame[12..], *b"\x08\x00abc");
        assert_eq!(counters.bytes_in, 3);
    }

    #[test]
    fn a_guest_that_does_not_read_is_given_all_that_was_queued_in_order() {
        let (mut line, engine) = line();
        let mut counters = Counters::default();
        let mut sent = 0_u32;
        while counters.snapshot(Default::default()).dropped.is_empty() {
            line.packet(&mut counters, 1000, |packet| {
                packet[..4].copy_from_slice(&sent.to_be_bytes());
            });
            sent += 1;
        }
        assert!(line.queued() <= MAX_QUEUE);
        assert!(line.queued() > MAX_QUEUE - 1100, "{}", line.queued());
        let lost = 1;
        for expected in 0..sent - lost {
            let frame = next_frame(&engine).expect("a frame that was not lost");
            assert_eq!(frame[HEADER..][..4], expected.to_be_bytes());
            line.flush(&mut counters);
        }
        assert!(next_frame(&engine).is_none());
        assert_eq!((line.queued(), line.has_room()), (0, true));
        assert_eq!(counters.bytes_in, u64::from(sent - lost) * 1000);
    }

    #[test]
    fn an_engine_that_is_gone_ends_nothing_here() {
        let (mut line, engine) = line();
        drop(engine);
        let mut counters = Counters::default();
        for _ in 0..3 {
            line.packet(&mut counters, 20, |_| ());
            assert_eq!(line.receive(&mut [0; 64]), Received::Nothing);
        }
        assert!(line.has_room());
    }
}
