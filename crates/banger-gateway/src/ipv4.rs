//! IPv4 packets: the guest's are checked, ours are written, and cut into
//! fragments where they are longer than the line takes.

use std::net::Ipv4Addr;

use banger_wire::gateway::{GUEST, MTU};

use crate::checksum;
use crate::counters::{Counters, Dropped};
use crate::line::Line;

/// Length of a header without options, as ours are.
pub(crate) const HEADER: usize = 20;
/// Largest payload of any packet.
pub(crate) const MAX_PAYLOAD: usize = 65_535 - HEADER;
/// Protocols.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

const TIME_TO_LIVE: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

/// The fields of a header that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    /// Where the payload begins.
    pub(crate) length: usize,
    /// Where it ends.
    pub(crate) total: usize,
}

/// Checks a packet of the guest. What is behind its end is padding.
pub(crate) fn parse(packet: &[u8]) -> Result<Header, Dropped> {
    let Some(fixed) = packet.first_chunk::<HEADER>() else {
        return Err(Dropped::Malformed);
    };
    let length = usize::from(fixed[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let lies = fixed[0] >> 4 != 4
        || length < HEADER
        || total < length
        || packet.len() < total
        || checksum::of(&packet[..length]) != [0, 0];
    if lies {
        return Err(Dropped::Malformed);
    }
    let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
    Ok(Header {
        from: address(12),
        to: address(16),
        protocol: fixed[9],
        length,
        total,
    })
}

/// Writes a header. `fragment` are its flags and offset, in one word.
fn write_header(
    header: &mut [u8],
    from: Ipv4Addr,
    protocol: u8,
    total: usize,
    id: u16,
    fragment: u16,
) {
    header[0] = 0x45;
    header[1] = 0;
    header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[8] = TIME_TO_LIVE;
    header[9] = protocol;
    header[10..12].fill(0);
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&GUEST.octets());
    let sum = checksum::of(&header[..HEADER]);
    header[10..12].copy_from_slice(&sum);
}

/// Sends packets to the guest.
#[derive(Default)]
pub(crate) struct Sender {
    /// Of the next packet that is cut.
    id: u16,
}

impl Sender {
    /// Sends a payload of at most [`MAX_PAYLOAD`] bytes, in one packet or in
    /// as many fragments as it takes; all of them or none.
    pub(crate) fn send(
        &mut self,
        line: &mut Line,
        counters: &mut Counters,
        from: Ipv4Addr,
        protocol: u8,
        payload: &[u8],
    ) {
        let room = usize::from(MTU) - HEADER;
        if payload.len() > MAX_PAYLOAD {
            counters.drop(Dropped::TooLarge);
            return;
        }
        if payload.len() <= room {
            let total = HEADER + payload.len();
            line.packet(counters, total, |packet| {
                write_header(packet, from, protocol, total, 0, DONT_FRAGMENT);
                packet[HEADER..].copy_from_slice(payload);
            });
            return;
        }
        // A part of them would be of no use to anyone.
        if !line.would_queue(payload.len() + 256) {
            counters.drop(Dropped::QueueFull);
            return;
        }
        self.id = self.id.wrapping_add(1);
        // Offsets are told in units of eight bytes.
        let step = room & !7;
        for (at, piece) in payload.chunks(step).enumerate() {
            let offset = (at * step / 8) as u16;
            let more = (at + 1) * step < payload.len();
            let fragment = offset | if more { MORE_FRAGMENTS } else { 0 };
            let total = HEADER + piece.len();
            line.packet(counters, total, |packet| {
                write_header(packet, from, protocol, total, self.id, fragment);
                packet[HEADER..].copy_from_slice(piece);
            });
        }
    }
}

/// A header as the guest would have written it, for an error about a packet
/// that is not at hand any more.
pub(crate) fn guest_header(to: Ipv4Addr, protocol: u8, payload: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    write_header(
        &mut header,
        GUEST,
        protocol,
        HEADER + payload,
        0,
        DONT_FRAGMENT,
    );
    header[16..20].copy_from_slice(&to.octets());
    header[10..12].fill(0);
    let sum = checksum::of(&header);
    header[10..12].copy_from_slice(&sum);
    header
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use super::*;
    use crate::line::tests::{line, next_frame};
    use crate::reassembly::Reassembler;

    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    /// A packet of the guest.
    pub(crate) fn guest_packet(to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = guest_header(to, protocol, payload.len());
        [&header[..], payload].concat()
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let packet = guest_packet(OUTSIDE, UDP, b"payload");
        let header = parse(&packet).unwrap();
        let expected = Header {
            from: GUEST,
            to: OUTSIDE,
            protocol: UDP,
            length: 20,
            total: 27,
        };
        assert_eq!(header, expected);
        let padded = [&packet[..], &[0; 30]].concat();
        assert_eq!(parse(&padded), Ok(expected));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let good = guest_packet(OUTSIDE, UDP, b"payload");
        assert!(parse(&good[..19]).is_err());
        assert!(parse(&good[..26]).is_err(), "shorter than it says");
        for (at, value) in [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 19), (9, TCP), (10, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(parse(&bad), Err(Dropped::Malformed), "byte {at}");
        }
    }

    #[test]
    fn what_is_longer_than_the_line_takes_comes_in_fragments() {
        let (mut line, engine) = line();
        let (mut counters, mut sender) = (Counters::default(), Sender::default());
        for length in [65_500, 65_501, MAX_PAYLOAD] {
            let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            sender.send(&mut line, &mut counters, OUTSIDE, UDP, &payload);
            let mut reassembler = Reassembler::new();
            let (mut whole, mut frames) = (None, 0);
            while let Some(frame) = next_frame(&engine) {
                let header = parse(&frame[14..]).unwrap();
                assert!(header.total <= usize::from(MTU));
                assert_eq!((header.from, header.to), (OUTSIDE, GUEST));
                whole = reassembler.accept(Instant::now(), &frame[14..]);
                frames += 1;
            }
            assert_eq!(frames, if length > 65_500 { 2 } else { 1 });
            let whole = whole.expect("all fragments came");
            assert_eq!(whole[HEADER..], payload[..], "{length}");
        }
        let one_more = vec![0; MAX_PAYLOAD + 1];
        sender.send(&mut line, &mut counters, OUTSIDE, UDP, &one_more);
        assert!(next_frame(&engine).is_none());
    }
}
