//! Bytes whose loss, doubling or exchange shows: a pattern whose length is a
//! prime, so that no buffer's size divides it.

use std::io::{self, Read, Write};

/// Length of the pattern, bytes.
const PERIOD: usize = 65_521;

/// Two periods, so that a whole one can be taken from any place.
fn pattern() -> Vec<u8> {
    let byte = |at: usize| (at % PERIOD).wrapping_mul(2_654_435_761).to_be_bytes()[4];
    (0..2 * PERIOD).map(byte).collect()
}

/// Writes so many bytes of it.
pub(crate) fn pour(to: &mut impl Write, bytes: u64) -> io::Result<()> {
    let pattern = pattern();
    let (mut left, mut at) = (bytes, 0);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(PERIOD).min(PERIOD);
        to.write_all(&pattern[at..at + length])?;
        at = (at + length) % PERIOD;
        left -= length as u64;
    }
    Ok(())
}

/// Reads to the end: how many bytes came, and whether they were the right ones.
/// An error is an end, too, and said.
pub(crate) fn drain(from: &mut impl Read) -> (u64, String) {
    let pattern = pattern();
    let mut buffer = vec![0; PERIOD];
    let (mut count, mut at, mut good) = (0, 0, true);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return (count, if good { "ok" } else { "damaged" }.to_owned()),
            Ok(length) => {
                good &= buffer[..length] == pattern[at..at + length];
                at = (at + length) % PERIOD;
                count += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (count, crate::word(&error)),
        }
    }
}

/// The first bytes of it.
pub(crate) fn piece(length: usize) -> Vec<u8> {
    let mut piece = Vec::with_capacity(length);
    pour(&mut piece, length as u64).expect("memory takes all");
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_poured_is_recognised_and_nothing_else() {
        let whole = piece(200_000);
        assert_eq!(drain(&mut &whole[..]), (200_000, "ok".to_owned()));
        let mut other = whole.clone();
        other.swap(70_000, 70_001);
        assert_eq!(drain(&mut &other[..]).1, "damaged");
        other = whole;
        other.drain(100_000..100_001);
        assert_eq!(drain(&mut &other[..]), (199_999, "damaged".to_owned()));
    }
}
