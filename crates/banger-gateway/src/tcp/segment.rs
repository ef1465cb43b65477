//! TCP segments that belong to no connection: the guest's SYN, of which what
//! matters is remembered, and the resets that answer what nobody expects.

use std::net::{Ipv4Addr, SocketAddrV4};

use banger_wire::gateway::GUEST;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::counters::Counters;
use crate::ipv4;
use crate::line::Line;

/// Header without options.
pub(crate) const HEADER: usize = 20;
const TIME_TO_LIVE: u8 = 64;

/// Which connection: the guest's port and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    pub(crate) guest_port: u16,
    pub(crate) to: SocketAddrV4,
}

/// Reads a segment; its checksum is not looked at, since a guest may leave it
/// to a device that knows nobody will.
pub(crate) fn parse<'a>(header: &ipv4::Header, packet: &'a [u8]) -> Option<(Route, TcpRepr<'a>)> {
    let segment = TcpPacket::new_checked(&packet[header.length..header.total]).ok()?;
    let (from, to) = (header.from.into(), header.to.into());
    let segment = TcpRepr::parse(&segment, &from, &to, &ChecksumCapabilities::ignored()).ok()?;
    let route = Route {
        guest_port: segment.src_port,
        to: SocketAddrV4::new(header.to, segment.dst_port),
    };
    (route.guest_port != 0).then_some((route, segment))
}

/// What the guest said when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Its first sequence number, which is the SYN's.
    pub(crate) sequence: u32,
    pub(crate) max_segment: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    pub(crate) selective_acks: bool,
}

impl Hello {
    /// The SYN of a new connection; anything else is none.
    pub(crate) fn of(segment: &TcpRepr<'_>) -> Option<Self> {
        (segment.control == TcpControl::Syn && segment.ack_number.is_none()).then_some(Self {
            sequence: segment.seq_number.0.cast_unsigned(),
            max_segment: segment.max_seg_size,
            window_scale: segment.window_scale,
            selective_acks: segment.sack_permitted,
        })
    }

    /// The SYN of a connection that goes on at another sequence number.
    pub(crate) fn again(&self, route: Route, sequence: u32) -> Vec<u8> {
        write(
            GUEST,
            *route.to.ip(),
            &TcpRepr {
                control: TcpControl::Syn,
                max_seg_size: self.max_segment,
                window_scale: self.window_scale,
                sack_permitted: self.selective_acks,
                window_len: u16::MAX,
                ..blank(route.guest_port, route.to.port(), sequence)
            },
        )
    }
}

/// A segment of the guest without data.
pub(crate) fn bare_ack(route: Route, sequence: u32, ack: u32, window: u16) -> Vec<u8> {
    write(
        GUEST,
        *route.to.ip(),
        &TcpRepr {
            ack_number: Some(number(ack)),
            window_len: window,
            ..blank(route.guest_port, route.to.port(), sequence)
        },
    )
}

/// Tells the guest that there is no such connection, as a host would that has
/// nobody at that port (RFC 9293, 3.5.2).
pub(crate) fn reset(line: &mut Line, counters: &mut Counters, route: Route, about: &TcpRepr<'_>) {
    if about.control == TcpControl::Rst {
        return;
    }
    let sequence = about.ack_number.map_or(0, |ack| ack.0.cast_unsigned());
    let reset = TcpRepr {
        control: TcpControl::Rst,
        ack_number: about
            .ack_number
            .is_none()
            .then(|| about.seq_number + about.segment_len()),
        ..blank(route.to.port(), route.guest_port, sequence)
    };
    send(line, counters, *route.to.ip(), &reset);
}

/// The reset that ends a connection at known numbers.
pub(crate) fn reset_at(
    line: &mut Line,
    counters: &mut Counters,
    route: Route,
    sequence: u32,
    ack: u32,
) {
    let reset = TcpRepr {
        control: TcpControl::Rst,
        ack_number: Some(number(ack)),
        ..blank(route.to.port(), route.guest_port, sequence)
    };
    send(line, counters, *route.to.ip(), &reset);
}

fn send(line: &mut Line, counters: &mut Counters, from: Ipv4Addr, segment: &TcpRepr<'_>) {
    let packet = write(from, GUEST, segment);
    line.packet(counters, packet.len(), |to| to.copy_from_slice(&packet));
}

pub(crate) fn number(sequence: u32) -> TcpSeqNumber {
    TcpSeqNumber(sequence.cast_signed())
}

fn blank(from_port: u16, to_port: u16, sequence: u32) -> TcpRepr<'static> {
    TcpRepr {
        src_port: from_port,
        dst_port: to_port,
        control: TcpControl::None,
        seq_number: number(sequence),
        ack_number: None,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

fn write(from: Ipv4Addr, to: Ipv4Addr, segment: &TcpRepr<'_>) -> Vec<u8> {
    let header = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Tcp,
        payload_len: segment.buffer_len(),
        hop_limit: TIME_TO_LIVE,
    };
    let mut packet = vec![0; header.buffer_len() + segment.buffer_len()];
    let sums = ChecksumCapabilities::default();
    header.emit(&mut Ipv4Packet::new_unchecked(&mut packet[..]), &sums);
    let mut tcp = TcpPacket::new_unchecked(&mut packet[ipv4::HEADER..]);
    segment.emit(&mut tcp, &from.into(), &to.into(), &sums);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::tests::{line, next_frame};

    const ROUTE: Route = Route {
        guest_port: 40_000,
        to: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 80),
    };

    fn read(packet: &[u8]) -> TcpRepr<'_> {
        let header = ipv4::parse(packet).unwrap();
        let segment = TcpPacket::new_checked(&packet[header.length..]).unwrap();
        let sums = ChecksumCapabilities::default();
        TcpRepr::parse(&segment, &header.from.into(), &header.to.into(), &sums).unwrap()
    }

    #[test]
    fn a_syn_is_remembered_as_it_was() {
        let hello = Hello {
            sequence: 7,
            max_segment: Some(65_480),
            window_scale: Some(7),
            selective_acks: true,
        };
        let packet = hello.again(ROUTE, u32::MAX);
        let header = ipv4::parse(&packet).unwrap();
        let (route, segment) = parse(&header, &packet).unwrap();
        assert_eq!(route, ROUTE);
        let again = Hello::of(&segment).unwrap();
        assert_eq!(
            again,
            Hello {
                sequence: u32::MAX,
                ..hello
            }
        );
        assert_eq!(Hello::of(&read(&bare_ack(ROUTE, 1, 2, 3))), None);
    }

    #[test]
    fn what_nobody_expects_is_reset_and_a_reset_is_not() {
        let (mut line, engine) = line();
        let mut counters = Counters::default();
        let syn = TcpRepr {
            control: TcpControl::Syn,
            ..blank(ROUTE.guest_port, 80, 99)
        };
        reset(&mut line, &mut counters, ROUTE, &syn);
        let frame = next_frame(&engine).unwrap();
        let answer = read(&frame[14..]);
        assert_eq!(answer.control, TcpControl::Rst);
        assert_eq!(answer.ack_number, Some(number(100)));
        assert_eq!(answer.seq_number, number(0));

        let stray = bare_ack(ROUTE, 5, 6, 7);
        reset(&mut line, &mut counters, ROUTE, &read(&stray));
        let frame = next_frame(&engine).unwrap();
        let answer = read(&frame[14..]);
        assert_eq!((answer.seq_number, answer.ack_number), (number(6), None));

        reset(&mut line, &mut counters, ROUTE, &answer);
        assert!(next_frame(&engine).is_none());
    }

    #[test]
    fn ports_of_zero_and_lying_lengths_are_no_segments() {
        let good = bare_ack(ROUTE, 1, 2, 3);
        let header = ipv4::parse(&good).unwrap();
        assert!(parse(&header, &good).is_some());
        for (at, value) in [(20, 0), (32, 0xf0), (32, 0x40)] {
            let mut bad = good.clone();
            bad[at] = value;
            bad[at + 1] = 0;
            assert!(parse(&header, &bad).is_none(), "byte {at}");
        }
    }
}
