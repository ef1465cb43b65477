//! Two questions to the kernel: which route has this address, and which
//! addresses does this host have. Netlink answers a question before `send`
//! returns, so nothing here ever waits; what is not there is unknown.
//!
//! Answers are only believed from the kernel, with the number of the question,
//! and about the address that was asked.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname, recv,
    recvfrom, sendto, socket_with,
};

/// Largest packet that the kernel makes of an answer, bytes.
const PACKET: usize = 32 << 10;
/// Packets that are read for one question.
const MAX_PACKETS: usize = 512;
/// Addresses that a host may have. One with more gets no answer.
const MAX_ADDRESSES: usize = 64 << 10;
/// Tries to list addresses while they keep changing.
const TRIES: usize = 3;

// <linux/netlink.h> and <linux/rtnetlink.h>
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTN_UNICAST: u8 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Group of changes of IPv4 addresses.
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
/// Flags of a route that is this host, a broadcast, a multicast or a reject.
/// A unicast route over a loopback device has the first of them.
const RTCF_NOT_OUT: u32 = 0xf000_0000;
const AF_INET: u8 = 2;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct rtmsg`.
const ROUTE_BODY: usize = 12;
/// Bytes of `struct ifaddrmsg`.
const ADDRESS_BODY: usize = 8;

/// The kernel gave no answer that can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unknown;

/// Where a packet to some address would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Out of this host, to one other.
    Out,
    /// To this host, to several, or nowhere.
    NotOut,
}

/// The sockets, and the state of the conversation.
pub(super) struct Kernel {
    questions: OwnedFd,
    /// Our port, to which answers are addressed.
    port: u32,
    /// Number of the last question.
    sequence: u32,
    /// Hears of changed addresses.
    changes: OwnedFd,
    buffer: Vec<u8>,
}

impl Kernel {
    /// Opens both sockets.
    ///
    /// # Errors
    /// Those of the system calls.
    pub(super) fn open() -> io::Result<Self> {
        let questions = socket(0)?;
        let port = SocketAddrNetlink::try_from(getsockname(&questions)?)?.pid();
        Ok(Self {
            questions,
            port,
            sequence: 0,
            changes: socket(RTMGRP_IPV4_IFADDR)?,
            buffer: vec![0; PACKET],
        })
    }

    /// Whether an address came or went since the last time this was asked.
    /// What is unclear counts as a change.
    pub(super) fn addresses_changed(&mut self) -> bool {
        let mut changed = false;
        for _ in 0..MAX_PACKETS {
            match recv(&self.changes, &mut self.buffer[..], RecvFlags::TRUNC) {
                Err(Errno::AGAIN) => return changed,
                // Also ENOBUFS: there were more than the socket holds.
                Ok(_) | Err(_) => changed = true,
            }
        }
        changed
    }

    /// The route to an address, as the kernel would choose it for a socket of
    /// this process now.
    pub(super) fn route(&mut self, to: Ipv4Addr) -> Result<Route, Unknown> {
        let mut question = vec![AF_INET, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        question.extend(8_u16.to_ne_bytes());
        question.extend(RTA_DST.to_ne_bytes());
        question.extend(to.octets());
        self.ask(RTM_GETROUTE, NLM_F_REQUEST, &question)?;
        let packet = self.receive()?;
        let message = self.messages(packet).next().ok_or(Unknown)??;
        match message.kind {
            RTM_NEWROUTE => read_route(message.body, to),
            NLMSG_ERROR => read_error(message.body),
            _ => Err(Unknown),
        }
    }

    /// All addresses of all interfaces.
    pub(super) fn addresses(&mut self) -> Result<HashSet<Ipv4Addr>, Unknown> {
        for _ in 0..TRIES {
            if let Some(all) = self.list_addresses()? {
                return Ok(all);
            }
        }
        Err(Unknown)
    }

    /// The addresses; `None` where they changed while they were told.
    fn list_addresses(&mut self) -> Result<Option<HashSet<Ipv4Addr>>, Unknown> {
        let question = [AF_INET, 0, 0, 0, 0, 0, 0, 0];
        self.ask(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &question)?;
        let (mut all, mut whole) = (HashSet::new(), true);
        for _ in 0..MAX_PACKETS {
            let packet = self.receive()?;
            for message in self.messages(packet) {
                let message = message?;
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    RTM_NEWADDR => all.extend(read_address(message.body)?),
                    NLMSG_DONE => return Ok(whole.then_some(all)),
                    _ => return Err(Unknown),
                }
            }
            if all.len() > MAX_ADDRESSES {
                return Err(Unknown);
            }
        }
        Err(Unknown)
    }

    /// Sends a question, after throwing away what is left of earlier answers.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Unknown> {
        self.forget_answers()?;
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.len()).map_err(|_| Unknown)?;
        let mut question = Vec::with_capacity(HEADER + body.len());
        question.extend(length.to_ne_bytes());
        question.extend(kind.to_ne_bytes());
        question.extend(flags.to_ne_bytes());
        question.extend(self.sequence.to_ne_bytes());
        question.extend(self.port.to_ne_bytes());
        question.extend(body);
        let kernel = SocketAddrNetlink::new(0, 0);
        match sendto(&self.questions, &question, SendFlags::empty(), &kernel) {
            Ok(sent) if sent == question.len() => Ok(()),
            _ => Err(Unknown),
        }
    }

    fn forget_answers(&mut self) -> Result<(), Unknown> {
        for _ in 0..MAX_PACKETS {
            if let Err(Errno::AGAIN) = recv(&self.questions, &mut self.buffer[..], RecvFlags::TRUNC)
            {
                return Ok(());
            }
        }
        Err(Unknown)
    }

    /// Reads one packet of an answer into the buffer; its length.
    fn receive(&mut self) -> Result<usize, Unknown> {
        let (_, length, from) = recvfrom(&self.questions, &mut self.buffer[..], RecvFlags::TRUNC)
            .map_err(|_| Unknown)?;
        let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
        let from_kernel = from.is_some_and(|from| from.pid() == 0);
        if !from_kernel || length > self.buffer.len() {
            return Err(Unknown);
        }
        Ok(length)
    }

    /// Those messages of the packet in the buffer that answer the last question.
    fn messages(&self, length: usize) -> impl Iterator<Item = Result<Message<'_>, Unknown>> {
        Messages(&self.buffer[..length]).filter(|message| match message {
            Ok(message) => message.sequence == self.sequence && message.port == self.port,
            Err(Unknown) => true,
        })
    }
}

/// A bound netlink socket that hears these groups.
fn socket(groups: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        // NETLINK_ROUTE is the protocol 0.
        None,
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// One message of a packet.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    body: &'a [u8],
}

/// The messages of a packet; ends after the first that cannot be read.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Unknown>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let length = u32_at(rest, 0).map_or(0, |length| length as usize);
        if length < HEADER || length > rest.len() {
            return Some(Err(Unknown));
        }
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let message = || {
            Some(Message {
                kind: u16_at(rest, 4)?,
                flags: u16_at(rest, 6)?,
                sequence: u32_at(rest, 8)?,
                port: u32_at(rest, 12)?,
                body: rest.get(HEADER..length)?,
            })
        };
        Some(message().ok_or(Unknown))
    }
}

/// Reads a `struct rtmsg` about the route to an address.
fn read_route(body: &[u8], to: Ipv4Addr) -> Result<Route, Unknown> {
    let (head, attributes) = body.split_first_chunk::<ROUTE_BODY>().ok_or(Unknown)?;
    let flags = u32_at(head, 8).ok_or(Unknown)?;
    let about = address(attributes, RTA_DST);
    if head[0] != AF_INET || head[1] != 32 || about != Some(to) {
        return Err(Unknown);
    }
    if head[7] == RTN_UNICAST && flags & RTCF_NOT_OUT == 0 {
        Ok(Route::Out)
    } else {
        Ok(Route::NotOut)
    }
}

/// Reads the error that a question for a route was answered with: some are
/// what a route of this kind says, the rest is no answer.
fn read_error(body: &[u8]) -> Result<Route, Unknown> {
    let code = u32_at(body, 0).ok_or(Unknown)?.cast_signed();
    // No route; `unreachable`; `prohibit`; `blackhole`.
    [
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::ACCESS,
        Errno::INVAL,
    ]
    .iter()
    .any(|known| code.checked_neg() == Some(known.raw_os_error()))
    .then_some(Route::NotOut)
    .ok_or(Unknown)
}

/// Reads a `struct ifaddrmsg`: the host's side of a line between two, where
/// it has both. `None` for another family, which old kernels tell, too.
fn read_address(body: &[u8]) -> Result<Option<Ipv4Addr>, Unknown> {
    let (head, attributes) = body.split_first_chunk::<ADDRESS_BODY>().ok_or(Unknown)?;
    if head[0] != AF_INET {
        return Ok(None);
    }
    address(attributes, IFA_LOCAL)
        .or_else(|| address(attributes, IFA_ADDRESS))
        .map(Some)
        .ok_or(Unknown)
}

/// The attribute of this kind, if it is an IPv4 address.
fn address(mut attributes: &[u8], wanted: u16) -> Option<Ipv4Addr> {
    while !attributes.is_empty() {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)?;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?));
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests;
