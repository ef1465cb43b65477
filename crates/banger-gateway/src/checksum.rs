//! The Internet checksum (RFC 1071), over two-byte words in any order and so
//! eight bytes at a time: it is the one thing that looks at every byte.

use std::net::Ipv4Addr;

/// A sum under way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// The pseudo header of TCP and UDP.
    pub(crate) fn pseudo_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, length: u16) -> Self {
        let [high, low] = length.to_be_bytes();
        Self::default()
            .with(&from.octets())
            .with(&to.octets())
            .with(&[0, protocol, high, low])
    }

    /// Adds bytes that begin at an even place; at most 4 GiB in all.
    #[must_use]
    pub(crate) fn with(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut total = self.0;
        for word in words {
            let word = u64::from_ne_bytes(*word);
            total += (word & 0xffff_ffff) + (word >> 32);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let last = u64::from_ne_bytes(last);
        Self(total + (last & 0xffff_ffff) + (last >> 32))
    }

    /// The checksum as it stands in a header. Over data that has its checksum
    /// within, zero.
    pub(crate) fn finish(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // Summed as the host reads words, so written the same way.
        (!(sum as u16)).to_ne_bytes()
    }
}

/// The checksum of some bytes.
pub(crate) fn of(bytes: &[u8]) -> [u8; 2] {
    Sum::default().with(bytes).finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::checksum;

    use super::*;

    #[test]
    fn the_example_of_the_standard_holds() {
        let sum = of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum, (!0xddf2_u16).to_be_bytes());
    }

    proptest! {
        #[test]
        fn it_is_the_sum_that_others_compute(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(of(&bytes), (!checksum::data(&bytes)).to_be_bytes());
        }
    }

    #[test]
    fn a_packet_of_all_ones_does_not_overflow() {
        let bytes = [0xff; 65_536];
        assert_eq!(of(&bytes), [0, 0]);
    }
}
