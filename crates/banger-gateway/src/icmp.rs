//! ICMP: what the gateway tells the guest about packets that went nowhere, and
//! the echo that it is asked for.

use rustix::io::Errno;

use crate::checksum;
use crate::ipv4;

/// Length of a header.
pub(crate) const HEADER: usize = 8;
pub(crate) const ECHO_ANSWER: u8 = 0;
pub(crate) const ECHO_QUESTION: u8 = 8;
const UNREACHABLE: u8 = 3;
/// Bytes of a payload that an error quotes: ports and sequence number.
pub(crate) const QUOTED: usize = 8;

/// Why a packet went nowhere; the codes of "destination unreachable".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Unreachable {
    Net = 0,
    Host = 1,
    Port = 3,
    /// Closed by the administrator, which here is the policy or a limit.
    Prohibited = 13,
}

impl Unreachable {
    /// What a failed call on a host socket means to the guest.
    pub(crate) fn from_errno(error: Errno) -> Self {
        match error {
            Errno::CONNREFUSED => Self::Port,
            Errno::NETUNREACH | Errno::NETDOWN => Self::Net,
            Errno::ACCESS | Errno::PERM => Self::Prohibited,
            _ => Self::Host,
        }
    }
}

/// An error about a packet of the guest, as ICMP payload of a packet from the
/// gateway. At most 60 bytes of header and eight more are quoted.
pub(crate) fn unreachable(why: Unreachable, packet: &[u8]) -> Vec<u8> {
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 0x0f) * 4);
    let quoted = &packet[..packet.len().min(header.max(ipv4::HEADER) + QUOTED)];
    let mut message = vec![UNREACHABLE, why as u8, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quoted);
    seal(&mut message);
    message
}

/// An echo question of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) ident: u16,
    /// From the sequence number on, to be sent back as it is.
    pub(crate) rest: &'a [u8],
}

/// Reads an echo message of this type.
pub(crate) fn echo(message: &[u8], kind: u8) -> Option<Echo<'_>> {
    if message.len() < HEADER || message[..2] != [kind, 0] {
        return None;
    }
    Some(Echo {
        ident: u16::from_be_bytes([message[4], message[5]]),
        rest: &message[6..],
    })
}

/// Writes an echo message; `rest` begins with its sequence number.
pub(crate) fn write_echo(kind: u8, ident: u16, rest: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(6 + rest.len());
    message.extend_from_slice(&[kind, 0, 0, 0]);
    message.extend_from_slice(&ident.to_be_bytes());
    message.extend_from_slice(rest);
    seal(&mut message);
    message
}

fn seal(message: &mut [u8]) {
    message[2..4].fill(0);
    let sum = checksum::of(message);
    message[2..4].copy_from_slice(&sum);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use smoltcp::wire::Icmpv4Packet;

    use super::*;
    use crate::ipv4::tests::guest_packet;

    #[test]
    fn an_error_quotes_what_the_guest_needs_to_find_its_socket() {
        let packet = guest_packet(
            Ipv4Addr::new(203, 0, 113, 10),
            ipv4::UDP,
            b"porthereand more",
        );
        let message = unreachable(Unreachable::Port, &packet);
        assert_eq!(message[..2], [3, 3]);
        assert_eq!(message[HEADER..], packet[..28]);
        assert!(
            Icmpv4Packet::new_checked(&message[..])
                .unwrap()
                .verify_checksum()
        );
    }

    #[test]
    fn an_echo_comes_back_as_it_was_sent() {
        let question = write_echo(ECHO_QUESTION, 7, b"\x00\x01abc");
        assert!(
            Icmpv4Packet::new_checked(&question[..])
                .unwrap()
                .verify_checksum()
        );
        let echo = echo(&question, ECHO_QUESTION).unwrap();
        assert_eq!((echo.ident, echo.rest), (7, &b"\x00\x01abc"[..]));
        assert_eq!(super::echo(&question, ECHO_ANSWER), None);
        assert_eq!(super::echo(&question[..7], ECHO_QUESTION), None);
    }
}
