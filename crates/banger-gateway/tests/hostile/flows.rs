//! Connections that are real, with guests or servers that are not nice.

use std::time::Instant;

use banger_wire::gateway::GATEWAY;

use crate::frames::mutate;
use crate::room::guest::{ACK, PATIENCE, PSH, Random, Segment, ping, udp};
use crate::room::outside::{ECHO, HOLD, OUTSIDE, TALK, URGENT};
use crate::scene::attack;

attack!(mutated_segments_after_real_handshakes_do_no_harm, scene, {
    let mut random = Random::seeded(0x0051_eed2);
    let mut handshakes = 0;
    for turn in 0..120 {
        let port = *random.of(&[ECHO, ECHO, HOLD, TALK]);
        let until = Instant::now() + PATIENCE;
        let Some(mut connection) = scene.guest.connect((OUTSIDE, port), until) else {
            continue;
        };
        handshakes += 1;
        for _ in 0..100 {
            // What the gateway says is followed now and then, so that the
            // connection goes on instead of being stuck at its first byte.
            if let Some(heard) = connection.hear(&mut scene.guest, Instant::now()) {
                let next = heard.seq.wrapping_add(heard.data.len() as u32);
                connection.segment.ack = next;
                connection.segment.seq = heard.ack;
            }
            let segment = mutated_segment(&mut random, &connection.segment);
            let mut frame = segment.frame(connection.to);
            if random.below(8) == 0 {
                mutate(&mut random, &mut frame);
            }
            scene.guest.send(&frame);
        }
        if turn % 3 > 0 {
            connection.reset(&scene.guest);
        }
        scene.guest.drain();
        if turn % 50 == 0 {
            scene.gateway.check();
        }
    }
    assert!(handshakes > 110, "only {handshakes} handshakes");
});

/// A segment near the one that should come next.
fn mutated_segment(random: &mut Random, next: &Segment) -> Segment {
    let mut segment = next.clone();
    let near = |random: &mut Random, number: u32| match random.below(6) {
        0 => number,
        1 => number.wrapping_add(random.below(70_000) as u32),
        2 => number.wrapping_sub(random.below(70_000) as u32),
        3 => number.wrapping_add(1 << 31),
        4 => number.wrapping_add(*random.of(&[1, u32::MAX, 65_535, 65_536])),
        _ => random.next() as u32,
    };
    segment.flags = ACK;
    if random.below(2) == 0 {
        segment.seq = near(random, segment.seq);
    }
    if random.below(2) == 0 {
        segment.ack = near(random, segment.ack);
    }
    if random.below(3) == 0 {
        segment.window = *random.of(&[0, 1, 2, 100, 1460, 32_768, 65_535]);
    }
    if random.below(4) == 0 {
        segment.flags = random.next() as u8;
    }
    if random.below(3) > 0 {
        let length = *random.of(&[0, 1, 2, 3, 100, 536, 1459, 1460, 1461, 9000, 32_768, 64_000]);
        segment.data = vec![random.next() as u8; length];
        segment.flags |= PSH;
    }
    match random.below(8) {
        // Selective acknowledgements of anything.
        0 => {
            let blocks = 1 + random.below(4);
            segment.options = vec![1, 1, 5, (2 + blocks * 8) as u8];
            segment.options.extend(random.bytes(blocks * 8));
        }
        1 => {
            let length = random.below(41);
            segment.options = random.bytes(length);
        }
        // A second handshake's options.
        2 => segment.options = vec![2, 4, 0, random.below(255) as u8, 3, 3, 14, 0],
        _ => {}
    }
    segment
}

attack!(a_guest_that_never_reads_stops_only_itself, scene, {
    let until = Instant::now() + PATIENCE;
    let mut connections = Vec::new();
    for _ in 0..200 {
        let connection = scene.guest.connect((OUTSIDE, TALK), until);
        connections.push(connection.expect("the other host talks to all"));
    }
    // All of them talk, and everything else is asked, too; nothing is read.
    for turn in 0..50 {
        for connection in &mut connections {
            connection.say(&scene.guest, b"more");
        }
        for from in 1..20 {
            scene.guest.send(&udp(from, (OUTSIDE, ECHO), &[b'.'; 9000]));
        }
        scene.guest.send(&ping(GATEWAY, 1, turn, &[b'p'; 60_000]));
    }
    scene.gateway.check();
    let counters = scene.gateway.counters();
    assert_eq!(counters.tcp_flows, 200, "{counters:?}");
    assert!(scene.guest.drain() > 10, "something waited");
    for connection in connections {
        connection.reset(&scene.guest);
        scene.guest.drain();
    }
});

// Servers talk and the guest takes nothing, on as many connections as there
// may be, some of which had moved enough to be given more memory.
attack!(a_thousand_full_connections_keep_to_the_memory, scene, {
    let mut connections = Vec::new();
    let until = Instant::now() + PATIENCE * 3;
    while let Some(mut connection) = scene.guest.connect((OUTSIDE, TALK), until) {
        let mut heard = 0;
        while connections.len() < 80 && heard < 300_000 {
            let segment = connection.hear(&mut scene.guest, until).expect("it talks");
            if segment.seq == connection.segment.ack {
                heard += segment.data.len();
                connection.segment.ack = segment.seq.wrapping_add(segment.data.len() as u32);
                connection.say(&scene.guest, b"");
            }
        }
        // What the guest sends is held, too, where it has a gap before it.
        connection.segment.seq = connection.segment.seq.wrapping_add(1);
        connection.say(&scene.guest, &[b'g'; 7000]);
        connections.push(connection);
    }
    let counters = scene.gateway.counters();
    assert!(
        connections.len() >= 1000,
        "{} connections; {counters:?}",
        connections.len()
    );
    assert!(counters.refused.contains_key("tcp_limit"), "{counters:?}");
    assert!(counters.memory_bytes > 40 << 20, "{counters:?}");
    scene.gateway.check();
    for connection in connections {
        connection.reset(&scene.guest);
        scene.guest.drain();
    }
});

attack!(nothing_is_left_of_flows_that_ended, scene, {
    let before = scene.gateway.descriptors();
    assert!(before > 0, "they can be counted");
    for _ in 0..500 {
        let until = Instant::now() + PATIENCE;
        assert!(scene.guest.echoes((OUTSIDE, ECHO), until));
    }
    let until = Instant::now() + PATIENCE;
    while scene.gateway.counters().tcp_flows > 0 {
        assert!(Instant::now() < until, "{:?}", scene.gateway.counters());
    }
    assert!(scene.gateway.descriptors() <= before, "they are given back");
    assert_eq!(scene.gateway.counters().half_open, 0);
});

// Reading stops at the place of an urgent byte, and nobody tells of what is
// behind it.
attack!(what_a_server_says_behind_an_urgent_byte_arrives, scene, {
    for _ in 0..20 {
        let until = Instant::now() + PATIENCE;
        let mut connection = scene.guest.connect((OUTSIDE, URGENT), until).unwrap();
        let mut heard = Vec::new();
        while heard.len() < b"beforebehind".len() {
            let segment = connection
                .hear(&mut scene.guest, until)
                .expect("what is behind");
            if segment.seq == connection.segment.ack {
                connection.segment.ack = segment.seq.wrapping_add(segment.data.len() as u32);
                heard.extend(segment.data);
                connection.say(&scene.guest, b"");
            }
        }
        connection.reset(&scene.guest);
    }
});
