//! Whole IPv4 packets out of the guest's fragments.
//!
//! The guest decides what comes, so nothing of a fragment is believed: pieces
//! are kept as they come, and the numbers in them allot no memory. Pieces that
//! overlap condemn their packet, as RFC 5722 has it for IPv6: what later code
//! looks at must not depend on who wins. At most [`MAX_PACKETS`] are under way
//! and [`MAX_MEMORY`] is held; the oldest gives way. After [`PATIENCE`] an
//! unfinished one is given up.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Packets that are being put together at a time.
pub const MAX_PACKETS: usize = 64;
/// Bytes that their pieces may take, with what keeping a piece costs.
pub const MAX_MEMORY: usize = 1 << 20;
/// Time that a packet has from its first fragment to its last.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that keeping a piece costs besides its own.
const PIECE: usize = 96;
/// Bytes that keeping a packet costs besides its pieces.
const PACKET: usize = 256;
/// Largest IPv4 packet, bytes.
const MAX_LENGTH: usize = 65_535;
/// Bytes of a header without options.
const MIN_HEADER: usize = 20;

/// What makes fragments belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    id: u16,
}

/// One fragment, with fields that hold.
struct Fragment<'a> {
    key: Key,
    header: &'a [u8],
    /// Where in the packet's payload this begins, bytes.
    offset: usize,
    payload: &'a [u8],
    last: bool,
}

/// A packet that is being put together.
struct Partial {
    since: Instant,
    /// The first fragment's header, options included.
    header: Option<Vec<u8>>,
    pieces: BTreeMap<usize, Vec<u8>>,
    /// Length of the payload, once the last piece is there.
    length: Option<usize>,
    /// Bytes of payload that are there.
    have: usize,
    /// Pieces overlapped: whatever comes, this will be no packet.
    condemned: bool,
}

/// All that is being put together.
#[derive(Default)]
pub struct Reassembler {
    partial: HashMap<Key, Partial>,
    memory: usize,
    given_up: u64,
}

impl Reassembler {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an IPv4 packet is a fragment of a larger one.
    #[must_use]
    pub fn is_fragment(packet: &[u8]) -> bool {
        packet
            .get(6..8)
            .is_some_and(|word| (u16::from_be_bytes([word[0], word[1]]) & 0x3fff) != 0)
    }

    /// Takes an IPv4 packet with its header; answers with the whole one when
    /// this completes it. One that is no fragment is whole as it is.
    pub fn accept(&mut self, now: Instant, packet: &[u8]) -> Option<Vec<u8>> {
        self.expire(now);
        let fragment = match Fragment::parse(packet) {
            Ok(Some(fragment)) => fragment,
            Ok(None) => return Some(packet.to_vec()),
            Err(Lie) => {
                self.given_up += 1;
                return None;
            }
        };
        let key = fragment.key;
        self.make_room(
            key,
            fragment.payload.len() + fragment.header.len() + PIECE + PACKET,
        );
        let partial = self.partial.entry(key).or_insert_with(|| {
            self.memory += PACKET;
            Partial::begin(now)
        });
        let before = partial.memory();
        partial.add(&fragment);
        self.memory = self.memory - before + partial.memory();
        if !partial.is_whole() {
            return None;
        }
        let whole = self.remove(key)?.join();
        self.given_up += u64::from(whole.is_none());
        whole
    }

    /// Gives up what had its time.
    pub fn expire(&mut self, now: Instant) {
        let old: Vec<Key> = self
            .partial
            .iter()
            .filter(|(_, partial)| now.duration_since(partial.since) >= PATIENCE)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            self.give_up(key);
        }
    }

    /// When something must be given up next.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.partial.values().map(|partial| partial.since).min();
        oldest.map(|since| since + PATIENCE)
    }

    /// Bytes held now, never more than [`MAX_MEMORY`].
    #[must_use]
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Packets and fragments given up since this was last asked.
    pub fn take_given_up(&mut self) -> u64 {
        std::mem::take(&mut self.given_up)
    }

    /// Lets the oldest packets go until this much more may be kept for one.
    fn make_room(&mut self, key: Key, bytes: usize) {
        while self.memory + bytes > MAX_MEMORY
            || (self.partial.len() >= MAX_PACKETS && !self.partial.contains_key(&key))
        {
            let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.since);
            let Some((&oldest, _)) = oldest else { return };
            self.give_up(oldest);
        }
    }

    fn give_up(&mut self, key: Key) {
        self.given_up += u64::from(self.remove(key).is_some());
    }

    fn remove(&mut self, key: Key) -> Option<Partial> {
        let partial = self.partial.remove(&key)?;
        self.memory -= partial.memory() + PACKET;
        Some(partial)
    }
}

impl Partial {
    fn begin(now: Instant) -> Self {
        Self {
            since: now,
            header: None,
            pieces: BTreeMap::new(),
            length: None,
            have: 0,
            condemned: false,
        }
    }

    /// Bytes that header and pieces take.
    fn memory(&self) -> usize {
        let header = self.header.as_ref().map_or(0, Vec::len);
        self.have + header + self.pieces.len() * PIECE
    }

    fn add(&mut self, fragment: &Fragment<'_>) {
        if self.condemned {
            return;
        }
        if !self.fits(fragment) {
            // Kept as a mark, so that its other pieces do not begin it anew.
            *self = Self {
                condemned: true,
                ..Self::begin(self.since)
            };
            return;
        }
        if fragment.offset == 0 {
            self.header = Some(fragment.header.to_vec());
        }
        if fragment.last {
            self.length = Some(fragment.end());
        }
        self.have += fragment.payload.len();
        self.pieces
            .insert(fragment.offset, fragment.payload.to_vec());
    }

    /// Whether a piece lies in a gap between the others, and before the end.
    fn fits(&self, fragment: &Fragment<'_>) -> bool {
        let (start, end) = (fragment.offset, fragment.end());
        let before = self.pieces.range(..=start).next_back();
        let after = self.pieces.range(start..).next();
        let clear = before.is_none_or(|(at, piece)| at + piece.len() <= start)
            && after.is_none_or(|(&at, _)| end <= at);
        let in_length = match self.length {
            Some(length) => end <= length && !fragment.last,
            None => true,
        };
        // Nothing may lie behind the last piece, either.
        let ends_all = !fragment.last || after.is_none();
        clear && in_length && ends_all
    }

    /// Pieces never overlap: as many bytes as the whole has are the whole.
    fn is_whole(&self) -> bool {
        self.length == Some(self.have)
    }

    /// The packet; `None` where header and payload are too long together.
    fn join(self) -> Option<Vec<u8>> {
        let mut packet = self.header?;
        let length = packet.len() + self.have;
        if length > MAX_LENGTH {
            return None;
        }
        packet.reserve_exact(self.have);
        for piece in self.pieces.values() {
            packet.extend_from_slice(piece);
        }
        let header = packet.len() - self.have;
        packet[2..4].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
        packet[6..8].fill(0);
        packet[10..12].fill(0);
        let sum = checksum(&packet[..header]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        Some(packet)
    }
}

/// Fields that contradict each other or the packet.
struct Lie;

impl<'a> Fragment<'a> {
    /// Reads a packet; `None` where it is no fragment.
    fn parse(packet: &'a [u8]) -> Result<Option<Self>, Lie> {
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let address =
            |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        if packet.len() < MIN_HEADER || packet[0] >> 4 != 4 {
            return Err(Lie);
        }
        let header = usize::from(packet[0] & 0xf) * 4;
        let total = usize::from(word(2));
        if header < MIN_HEADER || total < header || total > packet.len() {
            return Err(Lie);
        }
        if !Reassembler::is_fragment(packet) {
            return Ok(None);
        }
        let fragment = Self {
            key: Key {
                from: address(12),
                to: address(16),
                protocol: packet[9],
                id: word(4),
            },
            header: &packet[..header],
            offset: usize::from(word(6) & 0x1fff) * 8,
            payload: &packet[header..total],
            last: word(6) & 0x2000 == 0,
        };
        let uneven = !fragment.last && !fragment.payload.len().is_multiple_of(8);
        let too_long = MIN_HEADER + fragment.end() > MAX_LENGTH;
        if uneven || too_long || fragment.payload.is_empty() {
            return Err(Lie);
        }
        Ok(Some(fragment))
    }

    /// Where this ends in the packet's payload, bytes.
    fn end(&self) -> usize {
        self.offset + self.payload.len()
    }
}

/// The internet checksum of a header.
fn checksum(header: &[u8]) -> u16 {
    let mut sum = header
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests;
