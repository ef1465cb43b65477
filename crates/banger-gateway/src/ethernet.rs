//! Ethernet frames of the guest, and the one ARP question it has: where the
//! gateway is. Everything else on the guest's own net is nobody.

use banger_wire::gateway::{GATEWAY, GATEWAY_MAC};

use crate::counters::Dropped;
use crate::line::{ARP, HEADER, IPV4};

/// An ARP packet for Ethernet and IPv4.
const ARP_LENGTH: usize = 28;
/// How such a packet begins: Ethernet, IPv4, lengths of both addresses.
const ARP_BEGIN: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_QUESTION: [u8; 2] = [0, 1];
const ARP_ANSWER: [u8; 2] = [0, 2];

/// What a frame holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// An IPv4 packet, not looked at yet; there may be padding behind it.
    Ipv4(&'a mut [u8]),
    /// A question, and the answer to send to this address.
    Arp([u8; 6], [u8; ARP_LENGTH]),
}

/// Opens a frame of the guest.
pub(crate) fn open(frame: &mut [u8]) -> Result<Frame<'_>, Dropped> {
    let Some((header, payload)) = frame.split_first_chunk_mut::<HEADER>() else {
        return Err(Dropped::Malformed);
    };
    let to = &header[..6];
    if to != GATEWAY_MAC && to != [0xff; 6] {
        return Err(Dropped::ForeignAddress);
    }
    match [header[12], header[13]] {
        IPV4 => Ok(Frame::Ipv4(payload)),
        ARP => arp(payload),
        _ => Err(Dropped::Unsupported),
    }
}

fn arp(packet: &[u8]) -> Result<Frame<'static>, Dropped> {
    let Some(packet) = packet.first_chunk::<ARP_LENGTH>() else {
        return Err(Dropped::Malformed);
    };
    if packet[..6] != ARP_BEGIN || packet[6..8] != ARP_QUESTION {
        return Err(Dropped::Unsupported);
    }
    let (asker, wanted) = (&packet[8..18], &packet[24..28]);
    if wanted != GATEWAY.octets() {
        return Err(Dropped::ForeignAddress);
    }
    let mut answer = [0; ARP_LENGTH];
    answer[..6].copy_from_slice(&ARP_BEGIN);
    answer[6..8].copy_from_slice(&ARP_ANSWER);
    answer[8..14].copy_from_slice(&GATEWAY_MAC);
    answer[14..18].copy_from_slice(&GATEWAY.octets());
    answer[18..28].copy_from_slice(asker);
    let mut mac = [0; 6];
    mac.copy_from_slice(&asker[..6]);
    Ok(Frame::Arp(mac, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn frame(to: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&to[..], &GUEST_MAC, &kind, payload].concat()
    }

    fn question(wanted: [u8; 4]) -> Vec<u8> {
        let begin = [0, 1, 8, 0, 6, 4, 0, 1];
        [&begin[..], &GUEST_MAC, &[10, 0, 2, 15], &[0; 6], &wanted].concat()
    }

    #[test]
    fn the_gateway_says_where_it_is() {
        let mut frame = frame([0xff; 6], ARP, &question([10, 0, 2, 2]));
        let Ok(Frame::Arp(to, answer)) = open(&mut frame) else {
            panic!("no answer");
        };
        assert_eq!(to, GUEST_MAC);
        let begin = [0, 1, 8, 0, 6, 4, 0, 2];
        let expected = [
            &begin[..],
            &GATEWAY_MAC,
            &[10, 0, 2, 2],
            &GUEST_MAC,
            &[10, 0, 2, 15],
        ];
        assert_eq!(answer.to_vec(), expected.concat());
    }

    #[test]
    fn nobody_else_is_there() {
        for wanted in [[10, 0, 2, 3], [10, 0, 2, 15], [8, 8, 8, 8]] {
            let mut frame = frame([0xff; 6], ARP, &question(wanted));
            assert_eq!(open(&mut frame), Err(Dropped::ForeignAddress));
        }
    }

    #[test]
    fn frames_for_others_and_of_other_kinds_are_ignored() {
        let mut short = vec![0; 13];
        assert_eq!(open(&mut short), Err(Dropped::Malformed));
        let mut foreign = frame([2; 6], IPV4, b"packet");
        assert_eq!(open(&mut foreign), Err(Dropped::ForeignAddress));
        let mut ipv6 = frame(GATEWAY_MAC, [0x86, 0xdd], b"packet");
        assert_eq!(open(&mut ipv6), Err(Dropped::Unsupported));
        let mut short_arp = frame(GATEWAY_MAC, ARP, &question([10, 0, 2, 2])[..27]);
        assert_eq!(open(&mut short_arp), Err(Dropped::Malformed));
        let mut ipv4 = frame(GATEWAY_MAC, IPV4, b"packet");
        assert_eq!(open(&mut ipv4), Ok(Frame::Ipv4(&mut b"packet".to_owned())));
    }
}
