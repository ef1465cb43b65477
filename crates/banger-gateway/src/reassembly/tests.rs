//! Fragments in and out of order, and those that lie.

use proptest::prelude::*;

use super::*;

const FROM: [u8; 4] = [10, 0, 2, 15];
const TO: [u8; 4] = [192, 0, 2, 1];

/// A fragment of the packet `id`: where its payload begins, in units of 8
/// bytes, and whether more follow.
fn fragment(id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; MIN_HEADER];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&((MIN_HEADER + payload.len()) as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&FROM);
    packet[16..20].copy_from_slice(&TO);
    packet.extend(payload);
    let sum = checksum(&packet[..MIN_HEADER]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A packet and its fragments of at most `size` bytes of payload.
fn cut(id: u16, payload: &[u8], size: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let count = payload.len().div_ceil(size);
    let pieces = payload.chunks(size).enumerate();
    let pieces = pieces.map(|(at, piece)| {
        let offset = (at * size / 8) as u16;
        fragment(id, offset, at + 1 < count, piece)
    });
    (fragment(id, 0, false, payload), pieces.collect())
}

fn numbers(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 8) as u8).collect()
}

#[test]
fn fragments_in_any_order_become_the_packet_they_were_cut_from() {
    let (whole, pieces) = cut(7, &numbers(24), 8);
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let (mut reassembler, now) = (Reassembler::new(), Instant::now());
        assert_eq!(reassembler.accept(now, &pieces[order[0]]), None);
        assert_eq!(reassembler.accept(now, &pieces[order[1]]), None);
        let got = reassembler.accept(now, &pieces[order[2]]);
        assert_eq!(got.as_ref(), Some(&whole), "{order:?}");
        assert_eq!(reassembler.memory(), 0);
        assert_eq!(reassembler.take_given_up(), 0);
    }
}

#[test]
fn a_packet_that_is_no_fragment_is_whole() {
    let mut packet = fragment(1, 0, false, b"whole");
    // "Do not fragment" is not a fragment.
    packet[6] = 0x40;
    assert!(!Reassembler::is_fragment(&packet));
    let got = Reassembler::new().accept(Instant::now(), &packet);
    assert_eq!(got, Some(packet));
}

#[test]
fn the_largest_packet_passes_and_one_byte_more_does_not() {
    let now = Instant::now();
    for (length, passes) in [(MAX_LENGTH - MIN_HEADER, true), (MAX_LENGTH, false)] {
        let payload = numbers(length);
        let mut reassembler = Reassembler::new();
        let count = length.div_ceil(1480);
        let mut got = None;
        for (at, piece) in payload.chunks(1480).enumerate() {
            let offset = (at * 1480 / 8) as u16;
            got = reassembler.accept(now, &fragment(1, offset, at + 1 < count, piece));
        }
        assert_eq!(got.is_some(), passes, "{length} bytes");
    }
}

#[test]
fn options_of_the_first_fragment_count_for_the_length() {
    let now = Instant::now();
    let with_options = |payload: &[u8]| {
        let mut first = fragment(1, 0, true, payload);
        first.splice(MIN_HEADER..MIN_HEADER, [1; 40]);
        first[0] = 0x4f;
        let total = first.len() as u16;
        first[2..4].copy_from_slice(&total.to_be_bytes());
        first
    };
    let mut reassembler = Reassembler::new();
    assert_eq!(reassembler.accept(now, &with_options(&[1; 8])), None);
    let got = reassembler
        .accept(now, &fragment(1, 1, false, &[2; 3]))
        .unwrap();
    assert_eq!(got.len(), 60 + 11);
    assert_eq!(got[20..60], [1; 40]);
    assert_eq!(checksum(&got[..60]), 0, "the checksum holds");
    // Without options this would just fit.
    let payload = vec![0; MAX_LENGTH - MIN_HEADER - 65_504];
    assert_eq!(
        reassembler.accept(now, &with_options(&[1; 65_504 / 2])),
        None
    );
    let half = fragment(1, 65_504 / 16, true, &[1; 65_504 / 2]);
    assert_eq!(reassembler.accept(now, &half), None);
    let end = fragment(1, 65_504 / 8, false, &payload);
    assert_eq!(reassembler.accept(now, &end), None);
    assert_eq!(reassembler.take_given_up(), 1);
    assert_eq!(reassembler.memory(), 0);
}

#[test]
fn overlaps_condemn_the_packet_and_its_later_pieces() {
    let now = Instant::now();
    let base = [(0, 16), (4, 16)];
    for (offset, length) in [(0, 8), (0, 16), (1, 8), (1, 32), (3, 16), (5, 8), (0, 80)] {
        let mut reassembler = Reassembler::new();
        for (offset, length) in base {
            let piece = fragment(3, offset, true, &numbers(length));
            assert_eq!(reassembler.accept(now, &piece), None);
        }
        let bad = fragment(3, offset, true, &numbers(length));
        assert_eq!(reassembler.accept(now, &bad), None);
        for (offset, more, length) in [(0, true, 16), (2, true, 16), (4, true, 16), (6, false, 8)] {
            let piece = fragment(3, offset, more, &numbers(length));
            let got = reassembler.accept(now, &piece);
            assert_eq!(got, None, "piece of {length} at {offset}");
        }
        assert_eq!(reassembler.memory(), PACKET, "only the mark is kept");
        reassembler.expire(now + PATIENCE);
        assert_eq!(reassembler.take_given_up(), 1);
        assert_eq!(reassembler.memory(), 0);
    }
}

#[test]
fn two_ends_or_pieces_behind_the_end_condemn_too() {
    let now = Instant::now();
    let stories = [
        [
            fragment(1, 2, false, &[0; 8]),
            fragment(1, 4, true, &[0; 8]),
        ],
        [
            fragment(1, 4, true, &[0; 8]),
            fragment(1, 2, false, &[0; 8]),
        ],
        [
            fragment(1, 2, false, &[0; 8]),
            fragment(1, 1, false, &[0; 8]),
        ],
        [
            fragment(1, 2, false, &[0; 8]),
            fragment(1, 1, true, &[0; 16]),
        ],
    ];
    for story in stories {
        let mut reassembler = Reassembler::new();
        for piece in &story {
            assert_eq!(reassembler.accept(now, piece), None);
        }
        assert!(
            reassembler
                .partial
                .values()
                .all(|partial| partial.condemned)
        );
    }
}

#[test]
fn fragments_that_lie_are_not_kept() {
    let now = Instant::now();
    let good = fragment(1, 1, true, &[0; 16]);
    let changed = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    let lies = [
        ("version", changed(0, 0x65)),
        ("short header", changed(0, 0x44)),
        ("long header", changed(0, 0x4f)),
        ("longer than it is", changed(3, 37)),
        ("shorter than its header", changed(3, 19)),
        ("not a multiple of eight", changed(3, 35)),
        ("empty", changed(3, 20)),
        ("behind the end of all packets", changed(6, 0x3f)),
        ("half a header", good[..19].to_vec()),
        ("nothing", Vec::new()),
    ];
    for (what, mut lie) in lies {
        if what.starts_with("behind") {
            lie[7] = 0xff;
        }
        let mut reassembler = Reassembler::new();
        assert_eq!(reassembler.accept(now, &lie), None, "{what}");
        assert_eq!(reassembler.memory(), 0, "{what}");
        assert_eq!(reassembler.take_given_up(), 1, "{what}");
    }
    let mut reassembler = Reassembler::new();
    assert_eq!(reassembler.accept(now, &good), None);
    assert!(reassembler.memory() > 0, "the good one is kept");
}

#[test]
fn bytes_behind_the_stated_length_are_padding() {
    let (whole, mut pieces) = cut(7, &numbers(20), 8);
    for piece in &mut pieces {
        piece.extend([0xee; 9]);
    }
    let (mut reassembler, now) = (Reassembler::new(), Instant::now());
    let got: Vec<_> = pieces
        .iter()
        .filter_map(|piece| reassembler.accept(now, piece))
        .collect();
    assert_eq!(got, [whole]);
}

#[test]
fn packets_with_the_same_id_of_other_flows_are_kept_apart() {
    let (mut reassembler, now) = (Reassembler::new(), Instant::now());
    let first = fragment(1, 0, true, &[1; 8]);
    let last = fragment(1, 1, false, &[1; 8]);
    assert_eq!(reassembler.accept(now, &first), None);
    for at in [9, 15, 19] {
        let mut other = last.clone();
        other[at] ^= 1;
        assert_eq!(reassembler.accept(now, &other), None, "byte {at}");
    }
    assert!(reassembler.accept(now, &last).is_some());
}

#[test]
fn what_never_ends_is_given_up_after_its_time() {
    let (mut reassembler, now) = (Reassembler::new(), Instant::now());
    assert_eq!(reassembler.next_expiry(), None);
    let (first, last) = (
        fragment(1, 0, true, &[0; 8]),
        fragment(1, 1, false, &[0; 8]),
    );
    assert_eq!(reassembler.accept(now, &first), None);
    assert_eq!(reassembler.next_expiry(), Some(now + PATIENCE));
    let just_before = now + PATIENCE - Duration::from_millis(1);
    // A later piece does not buy more time.
    assert_eq!(
        reassembler.accept(just_before, &fragment(1, 2, true, &[0; 8])),
        None
    );
    assert_eq!(reassembler.accept(now + PATIENCE, &last), None);
    assert_eq!(reassembler.take_given_up(), 1);
}

#[test]
fn a_flood_holds_no_more_than_the_limits_and_the_newest_still_passes() {
    let (mut reassembler, start) = (Reassembler::new(), Instant::now());
    for id in 0..2000_u16 {
        let now = start + Duration::from_micros(u64::from(id));
        let offset = (id % 2) * 4000;
        let piece = fragment(id, offset, true, &[0; 32_000]);
        assert_eq!(reassembler.accept(now, &piece), None);
        assert!(reassembler.memory() <= MAX_MEMORY);
    }
    let now = start + Duration::from_secs(1);
    for id in 0..2000 {
        assert_eq!(
            reassembler.accept(now, &fragment(id, 0, true, &[0; 8])),
            None
        );
        assert!(reassembler.partial.len() <= MAX_PACKETS);
    }
    let (whole, pieces) = cut(5000, &numbers(60_000), 1480);
    let now = start + Duration::from_secs(2);
    let got: Vec<_> = pieces
        .iter()
        .filter_map(|piece| reassembler.accept(now, piece))
        .collect();
    assert_eq!(got, [whole]);
}

#[test]
fn tiny_pieces_are_charged_for_what_keeping_them_costs() {
    let (mut reassembler, now) = (Reassembler::new(), Instant::now());
    for id in 0..4 {
        for offset in 0..4000 {
            let piece = fragment(id, offset * 2, true, &[0; 8]);
            assert_eq!(reassembler.accept(now, &piece), None);
            assert!(reassembler.memory() <= MAX_MEMORY);
        }
    }
    assert!(reassembler.memory() > 8 * PIECE);
}

proptest! {
    #[test]
    fn what_comes_out_was_put_in(
        length in 1_usize..4000,
        units in 1_usize..60,
        order in any::<u64>(),
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20),
    ) {
        let (whole, mut pieces) = cut(9, &numbers(length), units * 8);
        // A shuffle that proptest can repeat.
        let count = pieces.len();
        for at in 0..count {
            pieces.swap(at, (order.rotate_left(at as u32 % 64) % count as u64) as usize);
        }
        let (mut reassembler, now) = (Reassembler::new(), Instant::now());
        let mut noise = noise.iter();
        let mut got = Vec::new();
        for piece in &pieces {
            if let Some(noise) = noise.next() {
                let _ = reassembler.accept(now, noise);
            }
            got.extend(reassembler.accept(now, piece));
        }
        if pieces.len() == 1 {
            prop_assert_eq!(&got[0], &pieces[0]);
        } else {
            prop_assert_eq!(got, [whole]);
        }
    }

    #[test]
    fn memory_is_the_sum_of_what_is_kept(
        story in prop::collection::vec((0_u16..4, 0_u16..12, any::<bool>(), 1_usize..5, 0_u64..40), 0..80),
    ) {
        let (mut reassembler, start) = (Reassembler::new(), Instant::now());
        let mut seconds = 0;
        for (id, offset, more, eights, wait) in story {
            seconds += wait / 8;
            let now = start + Duration::from_secs(seconds);
            let _ = reassembler.accept(now, &fragment(id, offset, more, &vec![0; eights * 8]));
            let kept = reassembler.partial.values().map(|partial| {
                let pieces: usize = partial.pieces.values().map(|piece| piece.len() + PIECE).sum();
                pieces + partial.header.as_ref().map_or(0, Vec::len) + PACKET
            });
            prop_assert_eq!(reassembler.memory(), kept.sum::<usize>());
        }
    }
}
