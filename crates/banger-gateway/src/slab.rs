//! Numbered places for flows. A place that is used again gets a new number, so
//! that late news about the old flow finds nobody.

/// Where a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Key {
    /// The place.
    pub(crate) index: u32,
    /// How often the place was used before, 24 bits of it.
    pub(crate) generation: u32,
}

/// Bits of a generation that are kept: what fits into a token.
const GENERATIONS: u32 = (1 << 24) - 1;

struct Place<T> {
    generation: u32,
    held: Option<T>,
}

/// The places.
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Holds one more; what it is may depend on where.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                held: None,
            });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        let key = Key {
            index,
            generation: place.generation,
        };
        place.held = Some(make(key));
        key
    }

    /// The one with this number, if it is still there.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        place
            .held
            .as_mut()
            .filter(|_| place.generation == key.generation)
    }

    /// Lets go of one.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get_mut(key)?;
        let place = &mut self.places[key.index as usize];
        place.generation = (place.generation + 1) & GENERATIONS;
        self.free.push(key.index);
        place.held.take()
    }

    /// All that are held.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let key = Key {
                index: index as u32,
                generation: place.generation,
            };
            place.held.as_ref().map(|held| (key, held))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_used_again_does_not_answer_to_its_old_number() {
        let mut slab = Slab::default();
        let first = slab.insert_with(|_| 'a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert_with(|_| 'b');
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn all_that_are_held_are_listed() {
        let mut slab = Slab::default();
        let keys: Vec<Key> = (0..4).map(|n| slab.insert_with(|_| n)).collect();
        slab.remove(keys[1]);
        let held: Vec<i32> = slab.iter().map(|(_, n)| *n).collect();
        assert_eq!(held, [0, 2, 3]);
    }
}
