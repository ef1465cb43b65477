//! What the daemon says to a gateway over its control socket, and the
//! addresses both of them and the agent agree on.
//!
//! The socket is a `SOCK_SEQPACKET` in the VM's run directory: one JSON message
//! a packet, at most [`MAX_MESSAGE`] bytes, descriptors beside it. Each
//! [`Request`] gets exactly one [`Answer`], in order.
//!
//! | request | beside it | answer | beside it |
//! |---|---|---|---|
//! | [`Request::Engine`] | the engine's pidfd | [`Answer::Done`] | - |
//! | [`Request::Resolvers`] | - | [`Answer::Done`] | - |
//! | [`Request::Counters`] | - | [`Answer::Counters`] | - |
//! | [`Request::Line`] | - | [`Answer::Line`] | the gateway's end of the line |
//!
//! What cannot be done is [`Answer::Refused`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message, bytes.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Connections that a gateway serves at a time; one more is closed at once.
pub const MAX_CONNECTIONS: usize = 8;
/// Resolvers that are asked; later ones are left out.
pub const MAX_RESOLVERS: usize = 3;

/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway as the guest sees it, which is its resolver, too.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Length of the net that both are in.
pub const PREFIX_LENGTH: u8 = 24;
/// Largest IP packet on the line, bytes.
pub const MTU: u16 = 65_520;
/// The gateway's hardware address.
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];

/// The guest's hardware address: the same at every start of a VM, from the
/// first six hex digits of its id. `None` where the id begins otherwise.
#[must_use]
pub fn guest_mac(vm: &str) -> Option<[u8; 6]> {
    let mut mac = [0x52, 0x54, 0x00, 0, 0, 0];
    for (byte, digits) in mac[3..].iter_mut().zip(vm.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    (vm.len() >= 6).then_some(mac)
}

/// What the daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// End when the process behind the pidfd beside this message ends.
    Engine,
    /// Relay the guest's names to these, in place of all that were said before.
    Resolvers {
        /// In the order in which they are asked, at most [`MAX_RESOLVERS`] of
        /// them; none: every question is answered with SERVFAIL.
        addresses: Vec<IpAddr>,
    },
    /// What went through and what did not.
    Counters,
    /// The gateway's end of the line, for a daemon that came back without it.
    Line,
}

/// What the gateway says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// As asked.
    Done,
    /// To [`Request::Counters`].
    Counters(Counters),
    /// To [`Request::Line`]: the descriptor is beside this message.
    Line,
    /// Not done.
    Refused {
        /// Why, a sentence.
        message: String,
    },
}

/// Traffic of one gateway since it started. A gateway that was replaced begins
/// again at zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Bytes of IP packets that the guest sent.
    pub bytes_out: u64,
    /// Bytes of IP packets that the guest was given.
    pub bytes_in: u64,
    /// TCP connections there are now, without the half-open ones.
    pub tcp_flows: u64,
    /// UDP flows there are now.
    pub udp_flows: u64,
    /// TCP connections that are being opened now.
    pub half_open: u64,
    /// TCP connections that came about.
    pub tcp_opened: u64,
    /// UDP flows that were opened.
    pub udp_opened: u64,
    /// Bytes that flows, queues and fragments hold now.
    pub memory_bytes: u64,
    /// Connections, flows and packets that were not let out, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Frames and packets that were thrown away, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// A message that is none.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Over [`MAX_MESSAGE`].
    #[error("message of {length} bytes, more than {MAX_MESSAGE}")]
    Oversize {
        /// Bytes that it has.
        length: usize,
    },
    /// Not JSON of a type this side knows.
    #[error("message that cannot be understood")]
    Foreign(#[source] serde_json::Error),
}

impl Request {
    /// The message as it goes into one packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a request has no map and no foreign type")
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(packet: &[u8]) -> Result<Self, MessageError> {
        decode(packet)
    }
}

impl Answer {
    /// The message as it goes into one packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("the keys of all maps are strings")
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(packet: &[u8]) -> Result<Self, MessageError> {
        decode(packet)
    }
}

fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, MessageError> {
    if packet.len() > MAX_MESSAGE {
        let length = packet.len();
        return Err(MessageError::Oversize { length });
    }
    serde_json::from_slice(packet).map_err(MessageError::Foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_they_were_written() {
        let resolvers = Request::Resolvers {
            addresses: vec!["127.0.0.53".parse().unwrap(), "::1".parse().unwrap()],
        };
        for request in [Request::Engine, resolvers, Request::Counters, Request::Line] {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
        let counters = Counters {
            bytes_out: u64::MAX,
            refused: BTreeMap::from([("host_address".to_owned(), 3)]),
            ..Counters::default()
        };
        let refused = Answer::Refused {
            message: "no descriptor".to_owned(),
        };
        for answer in [
            Answer::Done,
            Answer::Counters(counters),
            Answer::Line,
            refused,
        ] {
            assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        }
    }

    #[test]
    fn the_words_of_the_contract_stay() {
        let said = |request: Request| String::from_utf8(request.encode()).unwrap();
        assert_eq!(said(Request::Engine), r#"{"type":"engine"}"#);
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(
            said(Request::Resolvers { addresses }),
            r#"{"type":"resolvers","addresses":["192.0.2.1"]}"#
        );
        assert_eq!(
            Answer::decode(br#"{"type":"counters","bytes_in":7,"new":[1]}"#).unwrap(),
            Answer::Counters(Counters {
                bytes_in: 7,
                ..Counters::default()
            }),
            "what one side does not know is left out"
        );
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for packet in [&b""[..], b"{}", b"[]", br#"{"type":"dance"}"#, b"\xff"] {
            assert!(matches!(
                Request::decode(packet),
                Err(MessageError::Foreign(_))
            ));
        }
        let long = [b' '; MAX_MESSAGE + 1];
        assert!(matches!(
            Request::decode(&long),
            Err(MessageError::Oversize { length }) if length == MAX_MESSAGE + 1
        ));
    }

    #[test]
    fn a_guest_keeps_its_hardware_address() {
        let id = "0a1b2cffffffffff";
        assert_eq!(guest_mac(id), Some([0x52, 0x54, 0x00, 0x0a, 0x1b, 0x2c]));
        for bad in ["", "0a1b2", "0a1bxx"] {
            assert_eq!(guest_mac(bad), None, "{bad:?}");
        }
    }
}
