//! The engine's end of a line, and a guest on it that is as good or as bad as
//! a test wants it: packets by hand, and a TCP client just big enough to get
//! through a handshake.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use banger_wire::gateway::{GATEWAY_MAC, GUEST};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// How long a gateway may take for anything that does not wait for a timer of
/// its own. A busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers that are the same at every run.
pub(crate) struct Random(u64);

impl Random {
    /// Prints its seed, so that a failure can be had again.
    pub(crate) fn seeded(seed: u64) -> Self {
        println!("seed {seed:#x}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// One of these.
    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// The internet checksum of some bytes, with the sum of a pseudo header.
fn checksum(pseudo: u32, bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from));
    let mut sum = pseudo + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame of the guest's with an IPv4 packet in it, all checksums right.
pub(crate) fn ipv4(to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = piece(to, protocol, payload);
    seal(&mut frame);
    frame
}

/// The same, with a payload that is left as it is.
pub(crate) fn piece(to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = GATEWAY_MAC.to_vec();
    frame.extend([0x52, 0x54, 0x00, 0x0a, 0x1b, 0x2c, 0x08, 0x00]);
    let length = (IPV4 + payload.len()) as u16;
    frame.extend([0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
    frame.extend(GUEST.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    seal_header(&mut frame);
    frame
}

/// Makes the checksum of an IPv4 header without options right.
pub(crate) fn seal_header(frame: &mut [u8]) {
    let header = &mut frame[ETHERNET..ETHERNET + IPV4];
    header[10..12].fill(0);
    let sum = checksum(0, header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Makes the checksums of a frame right, as far as it has what they are in.
pub(crate) fn seal(frame: &mut [u8]) {
    let Some(packet) = frame.get_mut(ETHERNET..) else {
        return;
    };
    if packet.len() < IPV4 {
        return;
    }
    let header = usize::from(packet[0] & 0xf) * 4;
    if header < IPV4 || header > packet.len() {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum(0, &packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let protocol = packet[9];
    let at = match protocol {
        ICMP => 2,
        UDP => 6,
        TCP => 16,
        _ => return,
    };
    let addresses = packet[12..20].chunks(2);
    let mut pseudo: u32 = addresses
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let payload = &mut packet[header..];
    pseudo += u32::from(protocol) + payload.len() as u32;
    if protocol == ICMP {
        pseudo = 0;
    }
    if let Some(field) = payload.get_mut(at..at + 2) {
        field.fill(0);
        let sum = checksum(pseudo, payload);
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A segment of TCP, the checksum left to [`ipv4`].
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Segment {
    pub(crate) fn frame(&self, to: Ipv4Addr) -> Vec<u8> {
        let mut bytes = self.from.to_be_bytes().to_vec();
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        let words = 5 + self.options.len().div_ceil(4);
        bytes.extend([(words as u8) << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.resize(words * 4, 0);
        bytes.extend(&self.data);
        ipv4(to, TCP, &bytes)
    }

    /// Reads a frame for the guest; where it came from, too.
    fn read(frame: &[u8]) -> Option<(Ipv4Addr, Self)> {
        let (from, payload) = read_ipv4(frame, TCP)?;
        let word = |at: usize| Some(u16::from_be_bytes(*payload.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?));
        let header = usize::from(payload.get(12)? >> 4) * 4;
        let segment = Self {
            from: word(0)?,
            to: word(2)?,
            seq: long(4)?,
            ack: long(8)?,
            flags: *payload.get(13)?,
            window: word(14)?,
            options: payload.get(20..header)?.to_vec(),
            data: payload.get(header..)?.to_vec(),
        };
        Some((from, segment))
    }
}

/// Who sent a frame with this protocol, and its payload.
pub(crate) fn read_ipv4(frame: &[u8], protocol: u8) -> Option<(Ipv4Addr, &[u8])> {
    let packet = frame.get(ETHERNET..)?;
    let header = usize::from(packet.first()? & 0xf) * 4;
    let from: [u8; 4] = *packet.get(12..)?.first_chunk()?;
    let ours = frame[12..ETHERNET] == [8, 0] && packet[9] == protocol;
    ours.then_some((from.into(), packet.get(header..)?))
}

pub(crate) fn udp(from: u16, to: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = from.to_be_bytes().to_vec();
    bytes.extend(to.1.to_be_bytes());
    bytes.extend(((8 + data.len()) as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    ipv4(to.0, UDP, &bytes)
}

pub(crate) fn ping(to: Ipv4Addr, id: u16, number: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.extend(data);
    ipv4(to, ICMP, &bytes)
}

/// The guest's own question for the gateway's hardware address.
pub(crate) fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    let own = [0x52, 0x54, 0x00, 0x0a, 0x1b, 0x2c];
    frame.extend(own);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(own);
    frame.extend(GUEST.octets());
    frame.extend([0; 6]);
    frame.extend(banger_wire::gateway::GATEWAY.octets());
    frame
}

/// The engine's end of a line.
pub(crate) struct Guest {
    line: OwnedFd,
    /// The next port that was not used yet.
    port: u16,
    buffer: Vec<u8>,
}

impl Guest {
    pub(crate) fn new(line: OwnedFd) -> Self {
        Self {
            line,
            port: 20_000,
            buffer: vec![0; 70_000],
        }
    }

    /// A port that this guest has not used for long.
    pub(crate) fn port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap_or(20_000);
        self.port
    }

    /// Sends a frame, waiting until the gateway has read enough others.
    pub(crate) fn send(&self, frame: &[u8]) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match send(&self.line, frame, SendFlags::NOSIGNAL) {
                Ok(_) => return,
                Err(Errno::AGAIN) => {
                    assert!(
                        self.wait(PollFlags::OUT, give_up),
                        "the gateway does not read"
                    );
                }
                Err(error) => panic!("a frame of {} bytes: {error}", frame.len()),
            }
        }
    }

    /// The next frame, if one comes until then.
    pub(crate) fn receive(&mut self, until: Instant) -> Option<&[u8]> {
        loop {
            match recv(&self.line, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((_, length)) => return Some(&self.buffer[..length]),
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::IN, until) {
                        return None;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Throws away what has come so far; how many frames.
    pub(crate) fn drain(&mut self) -> usize {
        let now = Instant::now();
        let mut count = 0;
        while self.receive(now).is_some() {
            count += 1;
        }
        count
    }

    /// Sends a frame and throws away what comes.
    pub(crate) fn throw(&mut self, frame: &[u8]) {
        self.send(frame);
        self.drain();
    }

    fn wait(&self, what: PollFlags, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("patience is short");
        let mut polled = [PollFd::new(&self.line, what)];
        poll(&mut polled, Some(&left)).is_ok_and(|ready| ready > 0)
    }

    /// The next packet that `pick` takes, until then.
    pub(crate) fn find<T>(
        &mut self,
        until: Instant,
        mut pick: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        loop {
            if let Some(found) = pick(self.receive(until)?) {
                return Some(found);
            }
        }
    }

    /// Opens a connection; `None` where it is refused or nobody answers until
    /// then.
    pub(crate) fn connect(&mut self, to: (Ipv4Addr, u16), until: Instant) -> Option<Connection> {
        let from = self.port();
        let seq = u32::from(from) << 12;
        let mut segment = Segment {
            from,
            to: to.1,
            seq,
            ack: 0,
            flags: SYN,
            window: 64_000,
            // Largest segment 1460, window scale 7.
            options: vec![2, 4, 5, 180, 3, 3, 7, 1],
            data: Vec::new(),
        };
        self.send(&segment.frame(to.0));
        let answer = self.find(until, |frame| {
            let (address, answer) = Segment::read(frame)?;
            ((address, answer.from, answer.to) == (to.0, to.1, from)).then_some(answer)
        })?;
        if answer.flags & RST != 0 {
            return None;
        }
        assert_eq!(answer.flags, SYN | ACK);
        assert_eq!(answer.ack, seq.wrapping_add(1));
        segment.flags = ACK;
        segment.seq = answer.ack;
        segment.ack = answer.seq.wrapping_add(1);
        segment.options.clear();
        self.send(&segment.frame(to.0));
        Some(Connection { to: to.0, segment })
    }

    /// Whether a connection to a service that echoes works until then, and
    /// does until it is closed.
    pub(crate) fn echoes(&mut self, to: (Ipv4Addr, u16), until: Instant) -> bool {
        let Some(mut connection) = self.connect(to, until) else {
            return false;
        };
        let said = format!("hello from port {}", connection.segment.from);
        connection.say(self, said.as_bytes());
        let mut heard: Vec<u8> = Vec::new();
        while heard.len() < said.len() {
            let Some(answer) = connection.hear(self, until) else {
                return false;
            };
            if answer.flags & RST != 0 {
                return false;
            }
            if answer.seq == connection.segment.ack {
                heard.extend(&answer.data);
                connection.segment.ack = answer.seq.wrapping_add(answer.data.len() as u32);
            }
        }
        connection.reset(self);
        heard == said.as_bytes()
    }

    /// Whether a datagram to a service that echoes comes back until then.
    pub(crate) fn udp_echoes(&mut self, to: (Ipv4Addr, u16), until: Instant) -> bool {
        let from = self.port();
        let said = format!("hello from port {from}");
        self.send(&udp(from, to, said.as_bytes()));
        let heard = self.find(until, |frame| {
            let (address, payload) = read_ipv4(frame, UDP)?;
            let ours = address == to.0 && payload.get(2..4)? == from.to_be_bytes();
            ours.then(|| payload[8..].to_vec())
        });
        heard.is_some_and(|heard| heard == said.as_bytes())
    }
}

/// A connection that was opened.
pub(crate) struct Connection {
    pub(crate) to: Ipv4Addr,
    /// What its next segment looks like, without data.
    pub(crate) segment: Segment,
}

impl Connection {
    /// Sends data, once.
    pub(crate) fn say(&mut self, guest: &Guest, data: &[u8]) {
        let segment = Segment {
            flags: ACK | PSH,
            data: data.to_vec(),
            ..self.segment.clone()
        };
        guest.send(&segment.frame(self.to));
        self.segment.seq = self.segment.seq.wrapping_add(data.len() as u32);
    }

    /// The next segment of this connection.
    pub(crate) fn hear(&self, guest: &mut Guest, until: Instant) -> Option<Segment> {
        let (port, from) = (self.segment.from, self.segment.to);
        guest.find(until, |frame| {
            let (_, segment) = Segment::read(frame)?;
            ((segment.to, segment.from) == (port, from)).then_some(segment)
        })
    }

    /// Ends it at once.
    pub(crate) fn reset(self, guest: &Guest) {
        let segment = Segment {
            flags: RST | ACK,
            ..self.segment
        };
        guest.send(&segment.frame(self.to));
    }
}
