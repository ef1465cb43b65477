//! Memory that flows may take. Whoever gets some holds a [`Charge`]; dropping
//! it gives the bytes back, so nothing can be forgotten.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes for all flows together. With the line's queue (2 MiB), fragments
/// (1 MiB) and questions to resolvers (1 MiB) these are 64 MiB.
pub(crate) const FOR_FLOWS: usize = 60 << 20;

/// What is left.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    used: Rc<Cell<usize>>,
}

/// Bytes that somebody holds.
#[derive(Debug)]
pub(crate) struct Charge {
    bytes: usize,
    used: Rc<Cell<usize>>,
}

impl Budget {
    /// Bytes that are taken.
    pub(crate) fn used(&self) -> usize {
        self.used.get()
    }

    /// Takes some, if afterwards no more than `limit` are taken.
    pub(crate) fn take(&self, bytes: usize, limit: usize) -> Option<Charge> {
        let used = self.used.get().checked_add(bytes)?;
        (used <= limit.min(FOR_FLOWS)).then(|| {
            self.used.set(used);
            Charge {
                bytes,
                used: Rc::clone(&self.used),
            }
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.used.set(self.used.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::default();
        let all = budget
            .take(FOR_FLOWS, usize::MAX)
            .expect("nothing is taken");
        assert!(budget.take(1, usize::MAX).is_none());
        drop(all);
        assert_eq!(budget.used(), 0);
        assert!(budget.take(10, 9).is_none(), "over the limit of the asker");
        assert!(budget.take(usize::MAX, usize::MAX).is_none());
        assert_eq!(budget.used(), 0);
    }
}
