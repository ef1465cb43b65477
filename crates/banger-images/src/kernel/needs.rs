//! Modules that a module needs, as the modules themselves say: nobody vouches for that, so every
//! walk meets each module once and ends after so many.

use std::collections::BTreeSet;

/// A walk met more modules than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// What a module of this name needs directly; nothing where it is no module.
type Needs<'n, E> = dyn FnMut(&str) -> Result<Option<Vec<String>>, E> + 'n;

/// All modules below one, and that one last: each after what it needs, except in a circle.
///
/// # Errors
/// Those of `needs`, and [`TooMany`] where there are more than `limit`, which is also how deep
/// this calls itself.
pub(super) fn first<'n, E: From<TooMany>>(
    name: &str,
    limit: usize,
    needs: &'n mut Needs<'n, E>,
) -> Result<Vec<String>, E> {
    let mut walk = Walk {
        limit,
        needs,
        met: BTreeSet::new(),
        order: Vec::new(),
    };
    walk.visit(name)?;
    Ok(walk.order)
}

struct Walk<'a, E> {
    limit: usize,
    needs: &'a mut Needs<'a, E>,
    met: BTreeSet<String>,
    order: Vec<String>,
}

impl<E: From<TooMany>> Walk<'_, E> {
    fn visit(&mut self, name: &str) -> Result<(), E> {
        if !self.met.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(below) = (self.needs)(name)? else {
            return Ok(());
        };
        if self.met.len() > self.limit {
            return Err(TooMany.into());
        }
        for one in below {
            self.visit(&one)?;
        }
        self.order.push(name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each was asked for is not what is told of it.
    fn of(all: impl Fn(usize) -> Option<Vec<usize>>, limit: usize) -> Result<Vec<String>, TooMany> {
        let mut asked = BTreeSet::new();
        first("m0", limit, &mut |name| {
            assert!(asked.insert(name.to_owned()), "{name} is asked for twice");
            let number: usize = name[1..].parse().unwrap();
            let names = |all: Vec<usize>| all.iter().map(|n| format!("m{n}")).collect();
            Ok(all(number).map(names))
        })
    }

    #[test]
    fn what_is_needed_comes_first() {
        let tree = |n| {
            [
                Some(vec![1, 2, 9]),
                Some(vec![3]),
                Some(vec![3]),
                Some(vec![]),
            ]
            .get(n)
            .cloned()
            .flatten()
        };
        assert_eq!(of(tree, 4).unwrap(), ["m3", "m1", "m2", "m0"]);
        assert_eq!(of(|_| None, 4).unwrap(), [""; 0]);
    }

    #[test]
    fn circles_end() {
        assert_eq!(of(|n| Some(vec![n]), 4).unwrap(), ["m0"]);
        assert_eq!(of(|n| Some(vec![1 - n]), 4).unwrap(), ["m1", "m0"]);
        // All need all: as many ways through them as there are orders.
        let all = of(|_| Some((0..30).collect()), 30).unwrap();
        assert_eq!(all.len(), 30);
    }

    #[test]
    fn a_chain_without_end_is_too_many() {
        assert_eq!(of(|n| Some(vec![n + 1]), 64), Err(TooMany));
        assert_eq!(of(|n| Some((0..n + 9).collect()), 64), Err(TooMany));
    }
}
