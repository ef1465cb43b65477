//! How large the buffers of endpoints are: large for few flows that move much,
//! small for many, and never more in all than the budget has.

use banger_wire::gateway::MTU;

use super::segment;
use crate::budget::{Budget, Charge, FOR_FLOWS};
use crate::ipv4;

/// Buffers of an endpoint, bytes.
///
/// What comes from the guest has at most 65,535, since above that the window has a
/// scale, and smoltcp then believes that it offered the SYN's window shifted:
/// a guest that uses it up makes it panic. What goes to the guest has a
/// multiple of a segment's length, so that few are cut where the ring ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rings {
    pub(crate) from_guest: usize,
    pub(crate) to_guest: usize,
}

/// Of flows that move much.
pub(crate) const LARGE: Rings = Rings {
    from_guest: 65_535,
    to_guest: 5 * (MTU as usize - ipv4::HEADER - segment::HEADER),
};
/// Of flows that begin, or have rested.
pub(crate) const SMALL: Rings = Rings {
    from_guest: 32 << 10,
    to_guest: 64 << 10,
};
/// Of all where there are very many.
const LEAST: Rings = Rings {
    from_guest: 8 << 10,
    to_guest: 16 << 10,
};
/// From the largest on, and how much may be taken in all for that to be given.
/// With these 62 flows have large rings; 1024 flows get the least at any time.
const LADDER: [(Rings, usize); 3] = [(LARGE, 24 << 20), (SMALL, 36 << 20), (LEAST, FOR_FLOWS)];
/// What an endpoint takes besides its rings, rounded up.
pub(crate) const OVERHEAD: usize = 4 << 10;

impl Rings {
    /// Takes memory for rings of this size, or of a smaller one where there
    /// are many. What the guest was offered to send cannot be taken back:
    /// `offered` bytes are the least for that direction.
    pub(crate) fn take(self, budget: &Budget, offered: usize) -> Option<(Self, Charge)> {
        LADDER
            .into_iter()
            .filter(|(rings, _)| rings.to_guest <= self.to_guest)
            .find_map(|(rings, limit)| {
                let rings = Self {
                    from_guest: rings.from_guest.max(offered),
                    ..rings
                };
                let charge = budget.take(rings.from_guest + rings.to_guest + OVERHEAD, limit)?;
                Some((rings, charge))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_many_flows_each_gets_less_and_the_last_ones_none() {
        let budget = Budget::default();
        let mut held = Vec::new();
        let mut sizes = Vec::new();
        while let Some((rings, charge)) = LARGE.take(&budget, 0) {
            sizes.push(rings);
            held.push(charge);
        }
        assert!(budget.used() <= FOR_FLOWS);
        assert!(sizes.is_sorted_by_key(|rings| std::cmp::Reverse(rings.to_guest)));
        assert_eq!((sizes[0], sizes[sizes.len() - 1]), (LARGE, LEAST));
    }

    #[test]
    fn all_flows_that_there_may_be_get_something() {
        let budget = Budget::default();
        let all = (0..crate::tcp::MAX_FLOWS).map(|_| SMALL.take(&budget, 0));
        let all: Option<Vec<_>> = all.collect();
        assert!(all.is_some());
    }

    #[test]
    fn what_was_offered_to_the_guest_is_not_taken_back() {
        let budget = Budget::default();
        let (rings, _charge) = SMALL.take(&budget, 60_000).unwrap();
        assert_eq!(rings.from_guest, 60_000);
        assert_eq!(rings.to_guest, SMALL.to_guest);
        assert!(budget.used() >= 60_000 + SMALL.to_guest);
    }
}
