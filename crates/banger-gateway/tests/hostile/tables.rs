//! Floods that want every place in every table.

use std::net::Ipv4Addr;
use std::time::Duration;

use banger_wire::gateway::GATEWAY;

use crate::room::guest::{PATIENCE, Random, SYN, Segment, ping, udp};
use crate::room::outside::{CLOSED, CROWD, ECHO, HOLD, HOST, OUTSIDE, SILENT};
use crate::scene::attack;

/// Time in which half-open connections are given up, with room: a guest has
/// 10 s to confirm one, and in these tests the host's kernel gives servers 3 s.
const HALF_OPEN_LIFE: Duration = Duration::from_secs(40);

attack!(
    a_flood_of_handshakes_leaves_room_for_others_after_it,
    scene,
    {
        let mut random = Random::seeded(0x0051_eed3);
        let mut descriptors = 0;
        for (to, port, life) in [
            (OUTSIDE, CLOSED, PATIENCE),
            (OUTSIDE, HOLD, HALF_OPEN_LIFE),
            (SILENT, 80, HALF_OPEN_LIFE),
            (HOST, 22, PATIENCE),
        ] {
            for from in 1..=10_000_u16 {
                let segment = Segment {
                    from,
                    to: port,
                    seq: random.next() as u32,
                    ack: 0,
                    flags: SYN,
                    window: 64_000,
                    options: vec![2, 4, 5, 180],
                    data: Vec::new(),
                };
                scene.guest.throw(&segment.frame(to));
            }
            descriptors = descriptors.max(scene.gateway.descriptors());
            let counters = scene.gateway.counters();
            assert!(counters.half_open <= 256, "{counters:?}");
            assert!(counters.tcp_flows <= 1024, "{counters:?}");
            scene.works_within(life);
            scene.gateway.check();
        }
        println!("at most {descriptors} descriptors were seen");
        assert!(descriptors > 100, "the flood was none");
        let counters = scene.gateway.counters();
        assert!(
            counters.refused.get("host_address") >= Some(&10_000),
            "{counters:?}"
        );
    }
);

attack!(
    datagrams_to_ten_thousand_places_push_out_the_oldest_flows_only,
    scene,
    {
        for (from, number) in (0..10_000_u16).map(|number| (number % 7 + 1, number)) {
            let to = Ipv4Addr::from_bits(CROWD.to_bits() + u32::from(number) + 1);
            // Nobody there hears it, and the kernel there says so sometimes.
            scene.guest.throw(&udp(from, (to, 5000), &[b'.'; 300]));
            if number % 1000 == 0 {
                let counters = scene.gateway.counters();
                assert!(counters.udp_flows <= 512, "{counters:?}");
            }
        }
        let counters = scene.gateway.counters();
        assert!(counters.udp_opened > 9_000, "{counters:?}");
        // And from as many ports to one place that answers.
        for from in 1..=3000 {
            scene.guest.throw(&udp(from, (OUTSIDE, ECHO), b"echo"));
        }
    }
);

attack!(
    pings_that_nobody_reads_the_answers_of_cost_a_bounded_queue,
    scene,
    {
        for number in 0..15_000_u16 {
            scene
                .guest
                .send(&ping(GATEWAY, number % 3, number, &[b'p'; 1400]));
        }
        for id in 0..300 {
            scene.guest.send(&ping(OUTSIDE, id, 1, &[b'p'; 1400]));
            scene.guest.send(&ping(SILENT, id, 1, &[b'p'; 60_000]));
        }
        let counters = scene.gateway.counters();
        assert!(
            counters.dropped.get("queue_full") > Some(&5000),
            "{counters:?}"
        );
        scene.gateway.check();
    }
);
