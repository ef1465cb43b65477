//! Fragments from a guest, in any order and with any fields.
#![no_main]

use std::time::{Duration, Instant};

use banger_gateway::reassembly::{MAX_MEMORY, Reassembler};
use libfuzzer_sys::fuzz_target;

/// Packets, each behind a byte for the seconds before it and two for what is
/// special about it.
fn packets(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((&[wait, shape, length], rest)) = data.split_first_chunk() {
        let (bytes, rest) = rest.split_at(usize::from(length).min(rest.len()));
        data = rest;
        let mut packet = bytes.to_vec();
        // Most should get past the first checks.
        if shape & 1 == 0 && packet.len() >= 20 {
            packet[0] = 0x45;
            let total = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&total);
            packet[12..20].fill(1);
            packet[4] = 0;
            packet[9] = 17;
        }
        if shape & 2 != 0 {
            packet.resize(packet.len() + 8 * usize::from(shape), shape);
        }
        all.push((u64::from(wait) / 32, packet));
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let (mut reassembler, mut now) = (Reassembler::new(), Instant::now());
    for (wait, packet) in packets(data) {
        now += Duration::from_secs(wait);
        let whole = reassembler.accept(now, &packet);
        assert!(reassembler.memory() <= MAX_MEMORY);
        if let Some(whole) = whole {
            assert!(!Reassembler::is_fragment(&whole));
            if Reassembler::is_fragment(&packet) {
                let length = u16::from_be_bytes([whole[2], whole[3]]);
                assert_eq!(usize::from(length), whole.len());
            }
        }
    }
    now += Duration::from_secs(60);
    reassembler.expire(now);
    assert_eq!(reassembler.memory(), 0, "nothing is kept for ever");
    assert_eq!(reassembler.next_expiry(), None);
});
