//! Frames and packets that are not what they say.

use std::time::Instant;

use banger_wire::gateway::GATEWAY;

use crate::room::guest::{
    ACK, ETHERNET, FIN, IPV4, PATIENCE, PSH, RST, Random, SYN, Segment, UDP, arp, ipv4, piece,
    ping, read_ipv4, seal, seal_header, udp,
};
use crate::room::outside::{ECHO, HOST, OUTSIDE};
use crate::scene::attack;

/// Frames that are as they should be, of every kind that is understood.
fn good_frames(random: &mut Random) -> Vec<Vec<u8>> {
    let segment = |flags, options: &[u8], data: &[u8]| Segment {
        from: 1000,
        to: ECHO,
        seq: 77,
        ack: 78,
        flags,
        window: 1000,
        options: options.to_vec(),
        data: data.to_vec(),
    };
    let mut first = udp(1, (OUTSIDE, ECHO), &random.bytes(200));
    first[ETHERNET + 6] = 0x20;
    seal(&mut first);
    let mut later = ipv4(OUTSIDE, UDP, &random.bytes(64));
    later[ETHERNET + 7] = 26;
    seal(&mut later);
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x00\x00\x01\x00\x01";
    vec![
        arp(),
        ping(GATEWAY, 1, 1, b"ping"),
        ping(OUTSIDE, 1, 1, &random.bytes(1400)),
        udp(1, (OUTSIDE, ECHO), b"echo"),
        udp(2, (GATEWAY, 53), question),
        udp(3, (HOST, 53), b"refused"),
        segment(SYN, &[2, 4, 5, 180, 3, 3, 7, 4, 2], b"").frame(OUTSIDE),
        segment(SYN, &[2, 4, 5, 180], b"").frame(GATEWAY),
        segment(ACK | PSH, &[], b"data").frame(OUTSIDE),
        segment(FIN | ACK, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], b"").frame(OUTSIDE),
        segment(RST, &[], b"").frame(OUTSIDE),
        ipv4(OUTSIDE, 47, b"tunnel"),
        first,
        later,
    ]
}

/// Changes some of a frame's bytes, its length, or both.
pub(crate) fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..=random.below(6) {
        let at = random.below(frame.len().max(1));
        match random.below(8) {
            0 => frame.truncate(at),
            1 => frame.extend(random.bytes(at)),
            2 => {
                let piece = frame[at.min(frame.len())..].to_vec();
                frame.extend(piece);
            }
            3 if at < frame.len() => frame[at] ^= 1 << random.below(8),
            4 if at < frame.len() => frame[at] = *random.of(&[0, 0x7f, 0x80, 0xff]),
            // Headers are where the numbers are.
            5.. if frame.len() > 60 => frame[12 + random.below(48)] = random.next() as u8,
            _ => {}
        }
        frame.truncate(65_000);
    }
    if random.below(2) == 0 {
        seal(frame);
    }
}

attack!(random_and_mutated_frames_do_no_harm, scene, {
    let mut random = Random::seeded(0x0051_eed1);
    let good = good_frames(&mut random);
    for _ in 0..10_000 {
        let length = random.below(200);
        scene.guest.throw(&random.bytes(length));
    }
    for _ in 0..40_000 {
        let mut frame = random.of(&good).clone();
        mutate(&mut random, &mut frame);
        scene.guest.throw(&frame);
    }
    // The empty frame, and the largest that the line takes.
    for length in [
        0,
        1,
        ETHERNET - 1,
        ETHERNET,
        65_534,
        65_549,
        65_550,
        100_000,
    ] {
        scene.guest.throw(&vec![8; length]);
    }
});

attack!(lengths_that_lie_are_not_believed, scene, {
    let mut random = Random::seeded(0x0051_eed7);
    for frame in good_frames(&mut random) {
        // Every length of the frame, and every value of its length fields.
        for length in 0..frame.len().min(120) {
            scene.guest.throw(&frame[..length]);
        }
        for at in [0, 2, 3, 6, 7, 20, 24, 25, 32, 33, 34, 35] {
            for value in [
                0, 1, 4, 5, 7, 8, 0x0f, 0x44, 0x46, 0x4f, 0x50, 0x7f, 0x80, 0xf0, 0xff,
            ] {
                let mut lie = frame.clone();
                if let Some(byte) = lie.get_mut(ETHERNET + at) {
                    *byte = value;
                }
                scene.guest.throw(&lie);
                seal(&mut lie);
                scene.guest.throw(&lie);
            }
        }
    }
});

attack!(fragments_that_overlap_lie_or_never_end_do_no_harm, scene, {
    let mut random = Random::seeded(0x0051_eed6);
    let fragment = |id: u16, offset: u16, more: bool, payload: &[u8]| {
        let mut frame = piece(OUTSIDE, UDP, payload);
        let packet = &mut frame[ETHERNET..];
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let word = offset & 0x1fff | u16::from(more) << 13;
        packet[6..8].copy_from_slice(&word.to_be_bytes());
        seal_header(&mut frame);
        frame
    };
    // Never end: whole packets' worth of pieces without the last.
    for id in 0..300 {
        for offset in (0..8000).step_by(185) {
            scene.guest.throw(&fragment(id, offset, true, &[0; 1480]));
        }
    }
    scene.gateway.check();
    // Claim 64 KiB with eight bytes.
    for id in 0..5000 {
        scene.guest.throw(&fragment(id, 8180, false, &[0; 8]));
        scene
            .guest
            .throw(&fragment(id, 8191, random.below(2) == 0, &[0; 16]));
    }
    // Overlap, in all ways there are.
    for _ in 0..20_000 {
        let id = random.below(40) as u16;
        let offset = random.below(40) as u16;
        let length = 1 + random.below(100);
        let payload = random.bytes(length);
        let more = random.below(3) > 0;
        scene.guest.throw(&fragment(id, offset, more, &payload));
    }
    // What is honest still passes, in any order, while all that is held.
    let data: Vec<u8> = random.bytes(30_000);
    let whole = udp(4000, (OUTSIDE, ECHO), &data);
    let payload = &whole[ETHERNET + IPV4..];
    let mut pieces: Vec<_> = payload
        .chunks(1480)
        .enumerate()
        .map(|(at, part)| {
            let more = (at + 1) * 1480 < payload.len();
            fragment(50_000, (at * 185) as u16, more, part)
        })
        .collect();
    pieces.reverse();
    for frame in &pieces {
        scene.guest.throw(frame);
    }
    let heard = scene.guest.find(Instant::now() + PATIENCE, |frame| {
        let (from, payload) = read_ipv4(frame, UDP)?;
        (from == OUTSIDE && payload.get(2..4)? == 4000_u16.to_be_bytes())
            .then(|| payload[8..].to_vec())
    });
    assert!(
        heard.is_some_and(|heard| heard == data),
        "the echo is whole"
    );
});
