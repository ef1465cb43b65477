//! The kernel's socket for links, addresses and routes, as far as one card
//! needs it. The messages are few and small, so they are put together here.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// Bytes of one answer that are taken: the kernel fills no more than this.
const ANSWER: usize = 32 << 10;
/// Length of a message's and of an attribute's header, bytes.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// Length of what is fixed in a message about a link, bytes.
const LINK: usize = 16;

/// The kernel's numbers.
mod number {
    pub(super) const ERROR: u16 = 2;
    pub(super) const DONE: u16 = 3;
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const GET_LINK: u16 = 18;
    pub(super) const SET_LINK: u16 = 19;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const NEW_ROUTE: u16 = 24;

    pub(super) const REQUEST: u16 = 0x1;
    pub(super) const ACK: u16 = 0x4;
    pub(super) const DUMP: u16 = 0x300;
    pub(super) const REPLACE: u16 = 0x100;
    pub(super) const CREATE: u16 = 0x400;

    pub(super) const LINK_ADDRESS: u16 = 1;
    pub(super) const LINK_NAME: u16 = 3;
    pub(super) const LINK_MTU: u16 = 4;
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const ADDRESS_LOCAL: u16 = 2;
    pub(super) const ADDRESS_BROADCAST: u16 = 4;
    pub(super) const ROUTE_LINK: u16 = 4;
    pub(super) const ROUTE_GATEWAY: u16 = 5;

    pub(super) const INET: u8 = 2;
    pub(super) const ETHERNET: u16 = 1;
    pub(super) const UP: u32 = 1;
    pub(super) const MAIN_TABLE: u8 = 254;
    pub(super) const STATIC: u8 = 4;
    pub(super) const UNICAST: u8 = 1;
    /// The group that hears of links.
    pub(super) const LINKS: u32 = 1;
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(super) index: u32,
    pub(crate) name: String,
    /// Its address on the wire.
    pub(crate) mac: [u8; 6],
}

/// The socket, for one question at a time.
#[derive(Debug)]
pub(super) struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: open(0)?,
            sequence: 0,
        })
    }

    /// All Ethernet cards, the oldest first.
    pub(super) fn cards(&mut self) -> io::Result<Vec<Link>> {
        let flags = number::REQUEST | number::DUMP;
        let sequence = self.send(Message::new(number::GET_LINK, flags, &[0; LINK]))?;
        let mut cards = Vec::new();
        self.answers(sequence, |kind, body| {
            if kind == number::NEW_LINK {
                cards.extend(parse_card(body));
            }
        })?;
        cards.sort_by_key(|card: &Link| card.index);
        Ok(cards)
    }

    /// Gives a link an address with the length of its net.
    pub(super) fn add_address(
        &mut self,
        link: &Link,
        address: Ipv4Addr,
        length: u8,
    ) -> io::Result<()> {
        let net = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | net);
        let mut fixed = [number::INET, length, 0, 0, 0, 0, 0, 0];
        fixed[4..].copy_from_slice(&link.index.to_ne_bytes());
        let mut message = Message::new(number::NEW_ADDRESS, CHANGE, &fixed);
        message.attribute(number::ADDRESS_LOCAL, &address.octets());
        message.attribute(number::ADDRESS, &address.octets());
        message.attribute(number::ADDRESS_BROADCAST, &broadcast.octets());
        self.ask(message)
    }

    /// Brings a link up, with the largest packet that it may send, bytes.
    pub(super) fn bring_up(&mut self, link: &Link, mtu: u32) -> io::Result<()> {
        let mut fixed = [0; LINK];
        fixed[4..8].copy_from_slice(&link.index.to_ne_bytes());
        // Which flags, and which of them change.
        fixed[8..12].copy_from_slice(&number::UP.to_ne_bytes());
        fixed[12..].copy_from_slice(&number::UP.to_ne_bytes());
        let flags = number::REQUEST | number::ACK;
        let mut message = Message::new(number::SET_LINK, flags, &fixed);
        message.attribute(number::LINK_MTU, &mtu.to_ne_bytes());
        self.ask(message)
    }

    /// Sends everything that has no route of its own to a gateway.
    pub(super) fn add_default_route(&mut self, link: &Link, gateway: Ipv4Addr) -> io::Result<()> {
        let (inet, main) = (number::INET, number::MAIN_TABLE);
        let mut fixed = [inet, 0, 0, 0, main, number::STATIC, 0, number::UNICAST].to_vec();
        fixed.extend(0_u32.to_ne_bytes());
        let mut message = Message::new(number::NEW_ROUTE, CHANGE, &fixed);
        message.attribute(number::ROUTE_GATEWAY, &gateway.octets());
        message.attribute(number::ROUTE_LINK, &link.index.to_ne_bytes());
        self.ask(message)
    }

    fn ask(&mut self, message: Message) -> io::Result<()> {
        let sequence = self.send(message)?;
        self.answers(sequence, |_, _| {})
    }

    fn send(&mut self, message: Message) -> io::Result<u32> {
        self.sequence += 1;
        send(
            &self.socket,
            &message.finish(self.sequence),
            SendFlags::empty(),
        )?;
        Ok(self.sequence)
    }

    /// Takes answers until the last, which may be an error.
    fn answers(&mut self, sequence: u32, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; ANSWER];
        loop {
            let (count, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            for (kind, number, body) in messages(&buffer[..count]) {
                match kind {
                    _ if number != sequence => {}
                    number::DONE => return Ok(()),
                    // An error of zero is what says that all went well.
                    number::ERROR => return failure(body),
                    kind => take(kind, body),
                }
            }
        }
    }
}

/// What makes or replaces something and is answered.
const CHANGE: u16 = number::REQUEST | number::ACK | number::CREATE | number::REPLACE;

/// Wakes when a link appears or changes.
#[derive(Debug)]
pub(super) struct LinkNews(OwnedFd);

impl LinkNews {
    pub(super) fn open() -> io::Result<Self> {
        open(number::LINKS).map(Self)
    }

    /// Takes one piece of news. What it says does not matter; neither does one
    /// that was lost.
    pub(super) fn take(&self) {
        let _ = recv(&self.0, &mut [0; 4096][..], RecvFlags::DONTWAIT);
    }
}

impl AsFd for LinkNews {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// A message that is being put together.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE + value.len()).expect("attributes are a few bytes");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages are some hundred bytes");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Kind, sequence number and body of each message in an answer.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = number_at(bytes, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        let (kind, sequence) = (short_at(bytes, 4)?, number_at(bytes, 8)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// Kind and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short_at(bytes, 0)?);
        let value = bytes.get(ATTRIBUTE..length)?;
        let kind = short_at(bytes, 2)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The card that a message tells of; none where it is another kind of link.
fn parse_card(body: &[u8]) -> Option<Link> {
    if short_at(body, 2)? != number::ETHERNET {
        return None;
    }
    let rest = body.get(LINK..)?;
    let find =
        |wanted| attributes(rest).find_map(|(kind, value)| (kind == wanted).then_some(value));
    let name = find(number::LINK_NAME)?;
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    Some(Link {
        index: number_at(body, 4)?,
        name: String::from_utf8(name.to_vec()).ok()?,
        mac: find(number::LINK_ADDRESS)?.try_into().ok()?,
    })
}

fn failure(body: &[u8]) -> io::Result<()> {
    match number_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn short_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link_message(kind: u16, name: &str, mac: &[u8]) -> Vec<u8> {
        let mut fixed = [0; LINK];
        fixed[2..4].copy_from_slice(&kind.to_ne_bytes());
        fixed[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        let mut message = Message::new(number::NEW_LINK, 0, &fixed);
        message.attribute(number::LINK_NAME, format!("{name}\0").as_bytes());
        message.attribute(number::LINK_MTU, &[0; 4]);
        message.attribute(number::LINK_ADDRESS, mac);
        message.finish(3)
    }

    #[test]
    fn a_card_is_read_from_a_message_and_other_links_are_not() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let mut bytes = link_message(number::ETHERNET, "eth0", &mac);
        bytes.extend(link_message(772, "lo", &[0; 6]));
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].0, read[0].1), (number::NEW_LINK, 3));
        let card = parse_card(read[0].2).unwrap();
        assert_eq!((card.index, card.name.as_str(), card.mac), (7, "eth0", mac));
        assert_eq!(parse_card(read[1].2), None);
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        let whole = link_message(number::ETHERNET, "eth0", &[1; 6]);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
        }
        let (_, _, body) = messages(&whole).next().unwrap();
        // But for what fills it up to the next.
        for length in 0..body.len() - 2 {
            // The last attribute is the one that a card cannot be without.
            assert_eq!(parse_card(&body[..length]), None, "{length}");
        }
    }

    #[test]
    fn an_error_is_the_kernels_number_and_zero_is_none() {
        assert!(failure(&0_i32.to_ne_bytes()).is_ok());
        let error = failure(&(-17_i32).to_ne_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(failure(&[]).is_err());
    }
}
