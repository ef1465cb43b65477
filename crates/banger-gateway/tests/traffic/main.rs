//! The real program and an honest guest: what goes in comes out, ends come
//! through as they were meant, and nothing is left behind.

#![allow(clippy::unwrap_used, reason = "tests")]

mod datagrams;
#[path = "../room/mod.rs"]
mod room;
mod scene;
mod servers;
mod stack;

use std::time::{Duration, Instant};

use room::Maker;
use room::gateway::Gateway;
use room::guest::PATIENCE;
use room::outside::{CLOSED, ECHO, OUTSIDE, SILENT};
use scene::{MORE, Scene, room_test};
use servers::{FIRST, GO, LATE, PUSH, RESETS, SINK, Tally, WITNESS, bytes};
use smoltcp::socket::tcp::State;
use stack::{Handle, Stack, WINDOW};

/// The other host, started by the tests.
#[test]
#[ignore = "only for a process of its own"]
fn outside() {
    servers::start();
    room::outside::serve();
}

room_test!(
    a_closed_port_refuses_and_a_silent_host_does_not,
    scene,
    [],
    {
        let refused = scene.guest.dial((OUTSIDE, CLOSED), WINDOW);
        let silent = scene.guest.dial((SILENT, CLOSED), WINDOW);
        scene.guest.until("refused", |guest| {
            guest.socket(refused).state() == State::Closed
        });
        scene.guest.idle(Duration::from_millis(300));
        assert_eq!(scene.guest.socket(silent).state(), State::SynSent);
        let counters = scene.gateway.counters();
        assert_eq!((counters.tcp_flows, counters.half_open), (0, 1));
        // The host's own news of it, at once instead of in a minute.
        room::ip(&format!("route add unreachable {SILENT}/32"));
        scene.guest.forget(silent);
        let unreachable = scene.guest.dial((SILENT, CLOSED), WINDOW);
        scene.guest.until("refused", |guest| {
            guest.socket(unreachable).state() == State::Closed
        });
        let (gateway, line) = Gateway::start(&[]);
        (scene.gateway, scene.guest) = (gateway, Stack::new(line));
    }
);

room_test!(
    a_guest_that_ends_its_side_still_hears_the_answer,
    scene,
    [],
    {
        let handle = scene.guest.connect((OUTSIDE, SINK));
        let data = bytes(0, 3_000_000);
        scene.guest.say(handle, &data);
        scene.guest.socket(handle).close();
        let answer = scene.guest.hear_all(handle);
        assert_eq!(String::from_utf8(answer).unwrap(), "3000000 bytes, 0 wrong");
        scene.guest.close(handle);
        // The end alone, and the end with the first data.
        for length in [0, 1] {
            let handle = scene.guest.connect((OUTSIDE, SINK));
            scene
                .guest
                .socket(handle)
                .send_slice(&bytes(0, length))
                .unwrap();
            scene.guest.socket(handle).close();
            let answer = scene.guest.hear_all(handle);
            let expected = format!("{length} bytes, 0 wrong");
            assert_eq!(String::from_utf8(answer).unwrap(), expected);
            scene.guest.close(handle);
        }
    }
);

room_test!(a_server_that_ends_first_still_hears_the_rest, scene, [], {
    let handle = scene.guest.connect((OUTSIDE, FIRST));
    let heard = scene.guest.hear_all(handle);
    assert!(heard == bytes(0, 1 << 20));
    assert_eq!(scene.guest.socket(handle).state(), State::CloseWait);
    scene.guest.say(handle, &bytes(0, 2_000_000));
    scene.guest.close(handle);
    scene.reports("2000000 bytes, 0 wrong");
});

room_test!(a_reset_of_either_side_is_one_for_the_other, scene, [], {
    let handle = scene.guest.connect((OUTSIDE, RESETS));
    scene.guest.say(handle, b"x");
    let mut tally = Tally::default();
    let well = scene.guest.hear(handle, |data| tally.add(data));
    assert!(!well, "a reset is no orderly end");
    assert_eq!(
        tally.says(),
        "10000 bytes, 0 wrong",
        "it does not overtake data"
    );
    scene.guest.forget(handle);

    let handle = scene.guest.connect((OUTSIDE, WITNESS));
    scene.guest.say(handle, b"x");
    scene.guest.idle(Duration::from_millis(50));
    scene.guest.socket(handle).abort();
    scene.reports("ConnectionReset");
    scene.guest.forget(handle);
});

/// Asks for so many bytes.
fn push(guest: &mut Stack, length: usize, window: usize) -> Handle {
    let handle = guest.dial((OUTSIDE, PUSH), window);
    guest.until("connected", |guest| guest.socket(handle).may_send());
    guest.say(handle, format!("{length:12}").as_bytes());
    handle
}

room_test!(
    a_slow_reader_costs_bounded_memory_and_loses_nothing,
    scene,
    [],
    {
        let length = 100_000_000;
        let handle = push(&mut scene.guest, length, 64 << 10);
        // Until nothing more comes: the window is closed.
        let mut queued = 0;
        scene.guest.until("stopped", |guest| {
            let before = std::mem::replace(&mut queued, guest.socket(handle).recv_queue());
            queued == 64 << 10 && before == queued
        });
        scene.guest.idle(Duration::from_secs(2));
        let counters = scene.gateway.counters();
        assert!(counters.memory_bytes <= 1 << 20, "{counters:?}");
        scene.is_as_small_as_before();
        let mut tally = Tally::default();
        let well = scene.guest.hear(handle, |data| tally.add(data));
        assert!(well, "{}: {:?}", tally.says(), scene.gateway.log());
        assert_eq!(tally.says(), format!("{length} bytes, 0 wrong"));
        scene.guest.close(handle);
        assert!(scene.gateway.status("VmHWM") <= scene.resident + MORE);
    }
);

room_test!(
    a_slow_server_costs_bounded_memory_and_loses_nothing,
    scene,
    [],
    {
        let handle = scene.guest.connect((OUTSIDE, LATE));
        let length = 60_000_000;
        let mut said = 0;
        // Until nothing more is taken.
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_secs(2) {
            let block = bytes(said, 100_000);
            let sent = scene.guest.socket(handle).send_slice(&block).unwrap();
            if sent > 0 {
                since = Instant::now();
            }
            said += sent;
            assert!(said < length, "nobody holds all that");
            scene.guest.idle(Duration::from_millis(1));
        }
        let counters = scene.gateway.counters();
        assert!(counters.memory_bytes <= 1 << 20, "{counters:?}");
        let go = scene.guest.connect((OUTSIDE, GO));
        scene.guest.close(go);
        while said < length {
            let block = bytes(said, 100_000.min(length - said));
            scene.guest.say(handle, &block);
            said += block.len();
        }
        scene.guest.socket(handle).close();
        let answer = scene.guest.hear_all(handle);
        assert_eq!(
            String::from_utf8(answer).unwrap(),
            format!("{length} bytes, 0 wrong")
        );
        scene.guest.close(handle);
        assert!(scene.gateway.status("VmHWM") <= scene.resident + MORE);
    }
);

room_test!(a_guest_that_began_again_may_use_its_old_ports, scene, [], {
    // It forgets a connection, as one does that was reset, and dials anew.
    for _ in 0..3 {
        let old = scene.guest.connect((OUTSIDE, WITNESS));
        scene.guest.forget(old);
        scene.guest.same_port_again();
        let new = scene.guest.connect((OUTSIDE, SINK));
        scene.guest.close(new);
        scene.guest.same_port_again();
        let old = scene.guest.connect((OUTSIDE, WITNESS));
        scene.guest.forget(old);
        scene.guest.same_port_again();
        let again = scene.guest.connect((OUTSIDE, WITNESS));
        scene.reports("ConnectionReset");
        scene.guest.close(again);
    }
});

room_test!(ten_thousand_short_connections_leave_nothing, scene, [], {
    scene.nothing_is_left();
    let descriptors = scene.gateway.descriptors();
    for round in 0..400 {
        let handles: Vec<Handle> = (0..25)
            .map(|_| scene.guest.dial((OUTSIDE, ECHO), 4096))
            .collect();
        for (at, handle) in handles.into_iter().enumerate() {
            let word = format!("{round} {at}");
            scene
                .guest
                .until("connected", |guest| guest.socket(handle).may_send());
            scene.guest.say(handle, word.as_bytes());
            scene.guest.socket(handle).close();
            let mut heard = Vec::new();
            let well = scene
                .guest
                .hear(handle, |data| heard.extend_from_slice(data));
            assert!(
                well,
                "{word}: {:?} {}",
                scene.gateway.counters(),
                scene.gateway.log()
            );
            assert_eq!(heard, word.as_bytes());
            scene.guest.close(handle);
        }
    }
    scene.nothing_is_left();
    assert_eq!(scene.gateway.descriptors(), descriptors);
    let counters = scene.gateway.counters();
    assert!(counters.tcp_opened >= 10_000, "{counters:?}");
    scene.is_as_small_as_before();
});

room_test!(
    two_hundred_downloads_at_once_keep_to_the_budget,
    scene,
    [],
    {
        let length = 1_500_000;
        let mut tallies: Vec<(Handle, Tally)> = (0..200)
            .map(|_| (push(&mut scene.guest, length, 128 << 10), Tally::default()))
            .collect();
        let mut most = 0;
        scene.guest.until("stopped", |guest| {
            let all = tallies.iter();
            all.clone()
                .all(|(handle, _)| guest.socket(*handle).recv_queue() > 100 << 10)
        });
        while !tallies.is_empty() {
            most = most.max(scene.gateway.counters().memory_bytes);
            let guest = &mut scene.guest;
            guest.idle(Duration::from_millis(5));
            tallies.retain_mut(|(handle, tally)| {
                let socket = guest.socket(*handle);
                while socket.can_recv() {
                    socket
                        .recv(|data| {
                            tally.add(data);
                            (data.len(), ())
                        })
                        .unwrap();
                }
                if socket.may_recv() {
                    return true;
                }
                assert_eq!(tally.says(), format!("{length} bytes, 0 wrong"));
                guest.close(*handle);
                false
            });
        }
        println!("at most {most} bytes for 200 downloads");
        assert!(most <= 64 << 20);
        scene.nothing_is_left();
        scene.is_as_small_as_before();
    }
);

room_test!(
    a_connection_that_rests_takes_no_memory_and_goes_on,
    scene,
    [],
    {
        let handle = scene.guest.connect((OUTSIDE, ECHO));
        let talk = |scene: &mut Scene, data: &[u8]| {
            scene.guest.say(handle, data);
            let mut heard = Vec::new();
            while heard.len() < data.len() {
                scene
                    .guest
                    .until("heard from", |guest| guest.socket(handle).can_recv());
                let socket = scene.guest.socket(handle);
                socket
                    .recv(|data| {
                        heard.extend_from_slice(data);
                        (data.len(), ())
                    })
                    .unwrap();
            }
            assert!(heard == data);
        };
        for length in [1, 200_000, 17] {
            talk(&mut scene, &bytes(length, length));
            let give_up = Instant::now() + PATIENCE;
            while scene.gateway.counters().memory_bytes > 0 {
                assert!(Instant::now() < give_up, "it never rests");
                scene.guest.idle(Duration::from_millis(100));
            }
            assert_eq!(scene.gateway.counters().tcp_flows, 1);
        }
        // Nothing to time: it does not wake up any more, once it has gone to sleep after its
        // last answer.
        let give_up = Instant::now() + PATIENCE;
        let mut before = scene.gateway.status("voluntary_ctxt_switches");
        loop {
            scene.guest.idle(Duration::from_millis(200));
            let now = scene.gateway.status("voluntary_ctxt_switches");
            if now == before {
                break;
            }
            assert!(Instant::now() < give_up, "it never sleeps");
            before = now;
        }
        scene.guest.idle(Duration::from_secs(3));
        assert_eq!(scene.gateway.status("voluntary_ctxt_switches"), before);
        scene.is_as_small_as_before();
        talk(&mut scene, b"still here");
        scene.guest.close(handle);
    }
);

room_test!(
    a_new_gateway_on_the_same_line_serves_the_same_guest,
    scene,
    [],
    {
        let old = scene.guest.connect((OUTSIDE, ECHO));
        scene.gateway.replace();
        // What it says now, or what was under way, is of no connection.
        let _ = scene.guest.socket(old).send_slice(b"hello?");
        scene
            .guest
            .until("reset", |guest| guest.socket(old).state() == State::Closed);
        scene.echo(b"hello again");
    }
);

#[test]
fn a_gateway_that_hears_of_no_engine_ends_by_itself() {
    let name = "a_gateway_that_hears_of_no_engine_ends_by_itself";
    if !room::inside(name, Maker::Myself, &[]) {
        return;
    }
    let (mut gateway, _guest) = Gateway::start_alone(&[]);
    let start = Instant::now();
    gateway.ends_within(PATIENCE);
    assert!(
        start.elapsed() > Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}
