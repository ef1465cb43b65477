//! What went through and what did not, as the daemon asks for it.

use std::collections::BTreeMap;

use banger_wire::gateway as wire;

use crate::refusals::Reason;

/// Why a frame or packet was thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// Lengths, checksums or fields that do not hold.
    Malformed,
    /// Neither ARP nor IPv4, or a protocol that is not spoken.
    Unsupported,
    /// Not from the guest's address, or not for anyone here.
    ForeignAddress,
    /// Of a connection that there is not.
    UnknownFlow,
    /// Fragments that never became a packet.
    Fragments,
    /// The guest does not read what it is given.
    QueueFull,
    /// No memory left of what a gateway may take.
    Memory,
    /// The host's socket did not take it.
    Socket,
    /// Larger than the other side can take.
    TooLarge,
    /// The code that handled it panicked.
    Panic,
}

impl Dropped {
    /// The word in counters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::ForeignAddress => "foreign_address",
            Self::UnknownFlow => "unknown_flow",
            Self::Fragments => "fragments",
            Self::QueueFull => "queue_full",
            Self::Memory => "memory",
            Self::Socket => "socket",
            Self::TooLarge => "too_large",
            Self::Panic => "panic",
        }
    }
}

/// The live numbers of one gateway. All wrap never: a `u64` of bytes outlives
/// the machine.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Bytes of IP packets from the guest.
    pub bytes_out: u64,
    /// Bytes of IP packets for the guest.
    pub bytes_in: u64,
    /// TCP connections that came about.
    pub tcp_opened: u64,
    /// UDP flows that were opened.
    pub udp_opened: u64,
    refused: BTreeMap<Reason, u64>,
    dropped: BTreeMap<Dropped, u64>,
}

/// What there is at this moment. Its owners know it; nobody keeps it twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// TCP connections, without the half-open ones.
    pub tcp_flows: usize,
    /// TCP connections that are being opened.
    pub half_open: usize,
    /// UDP flows.
    pub udp_flows: usize,
    /// Bytes in flows, queues and fragments.
    pub memory_bytes: usize,
}

impl Counters {
    /// One more refusal.
    pub fn refuse(&mut self, reason: Reason) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// One more frame or packet thrown away.
    pub fn drop(&mut self, why: Dropped) {
        self.drop_many(why, 1);
    }

    /// More frames or packets thrown away.
    pub fn drop_many(&mut self, why: Dropped, count: u64) {
        if count > 0 {
            *self.dropped.entry(why).or_default() += count;
        }
    }

    /// The answer to the daemon.
    #[must_use]
    pub fn snapshot(&self, live: Live) -> wire::Counters {
        wire::Counters {
            bytes_out: self.bytes_out,
            bytes_in: self.bytes_in,
            tcp_flows: live.tcp_flows as u64,
            udp_flows: live.udp_flows as u64,
            half_open: live.half_open as u64,
            tcp_opened: self.tcp_opened,
            udp_opened: self.udp_opened,
            memory_bytes: live.memory_bytes as u64,
            refused: by_word(&self.refused, Reason::as_str),
            dropped: by_word(&self.dropped, Dropped::as_str),
        }
    }
}

fn by_word<K: Copy>(
    counts: &BTreeMap<K, u64>,
    word: impl Fn(K) -> &'static str,
) -> BTreeMap<String, u64> {
    counts
        .iter()
        .map(|(&key, &count)| (word(key).to_owned(), count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_what_was_counted_and_no_zeroes() {
        let mut counters = Counters {
            bytes_out: 1500,
            tcp_opened: 2,
            ..Counters::default()
        };
        counters.refuse(Reason::HostAddress);
        counters.refuse(Reason::HostAddress);
        counters.drop(Dropped::QueueFull);
        counters.drop_many(Dropped::Fragments, 0);
        let live = Live {
            tcp_flows: 1,
            half_open: 3,
            udp_flows: 4,
            memory_bytes: 4096,
        };
        let expected = wire::Counters {
            bytes_out: 1500,
            bytes_in: 0,
            tcp_flows: 1,
            udp_flows: 4,
            half_open: 3,
            tcp_opened: 2,
            udp_opened: 0,
            memory_bytes: 4096,
            refused: BTreeMap::from([("host_address".to_owned(), 2)]),
            dropped: BTreeMap::from([("queue_full".to_owned(), 1)]),
        };
        assert_eq!(counters.snapshot(live), expected);
    }
}
