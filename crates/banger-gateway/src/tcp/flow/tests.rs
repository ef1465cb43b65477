//! What a flow does, deadline for deadline.

mod scene;

use super::super::rings::LARGE;
use super::super::side::MUCH;
use super::super::upstream::reset;
use super::*;
use crate::budget::FOR_FLOWS;
use crate::line::tests::next_frame;
use scene::Scene;

#[test]
fn a_guest_that_confirms_nothing_is_given_up() {
    let mut scene = Scene::half_open(1 << 16);
    scene.reads = false;
    assert!(matches!(scene.run(), Next::Wait(Some(_))));
    assert!(scene.flow.is_half_open());
    assert!(matches!(
        scene.wait(HANDSHAKE - Duration::from_millis(1)),
        Next::Wait(Some(_))
    ));
    assert_eq!(scene.wait(Duration::from_millis(1)), Next::Reset);
}

#[test]
fn a_quiet_connection_rests_without_deadlines_and_wakes_for_either_side() {
    let mut scene = Scene::open();
    scene.guest.socket().send_slice(b"hello").unwrap();
    scene.run();
    assert_eq!(scene.server_hears().unwrap(), b"hello");
    // The acknowledgement, then the rest.
    assert!(matches!(
        scene.wait(Duration::from_millis(20)),
        Next::Wait(Some(_))
    ));
    for round in 0_u8..3 {
        assert!(scene.host.budget.used() > 0);
        assert_eq!(scene.wait(REST_AFTER), Next::Wait(None));
        assert_eq!(scene.host.budget.used(), 0);
        // Nothing to do: it goes on resting.
        assert_eq!(scene.wait(Duration::from_secs(3600)), Next::Wait(None));
        assert_eq!(scene.host.budget.used(), 0);
        if round % 2 == 0 {
            scene.server_says(&[round; 1000]);
            scene.run();
            assert_eq!(scene.guest_hears(), [round; 1000]);
        } else {
            scene.guest.socket().send_slice(&[round; 1000]).unwrap();
            scene.run();
            assert_eq!(scene.server_hears().unwrap(), [round; 1000]);
        }
        scene.wait(Duration::from_millis(20));
    }
    // It can end while it rests, too.
    assert_eq!(scene.wait(REST_AFTER), Next::Wait(None));
    drop(scene.server_is_gone());
    scene.run();
    assert_eq!(scene.guest.socket().state(), State::CloseWait);
}

#[test]
fn what_the_guest_said_last_goes_out_when_the_server_takes_it() {
    for server_ends_first in [true, false] {
        let mut scene = Scene::open();
        if server_ends_first {
            scene.server_ends();
            scene.run();
            assert_eq!(scene.guest.socket().state(), State::CloseWait);
        }
        // Until the server's socket is full and the ring has some.
        let mut said = 0;
        loop {
            let block = vec![said as u8; 1000];
            scene.guest.socket().send_slice(&block).unwrap();
            scene.run();
            said += 1;
            let endpoint = scene.flow.side.endpoint().expect("it is busy");
            if endpoint.socket().recv_queue() > 0 {
                break;
            }
        }
        scene.guest.socket().close();
        scene.wait(Duration::from_millis(20));
        if !server_ends_first {
            scene.server_ends();
            scene.run();
        }
        assert!(scene.flow.is_draining(), "the guest is done with it");
        // Longer than any TCP waits at its end.
        assert!(matches!(
            scene.wait(Duration::from_secs(300)),
            Next::Wait(Some(_))
        ));
        let mut heard = Vec::new();
        let mut last = Next::Again;
        while let Some(data) = scene.server_hears() {
            heard.extend_from_slice(&data);
            last = scene.run();
        }
        assert_eq!(last, Next::Over);
        let expected: Vec<u8> = (0..said).flat_map(|at| vec![at as u8; 1000]).collect();
        assert!(
            heard == expected,
            "{} of {} bytes",
            heard.len(),
            expected.len()
        );
    }
}

#[test]
fn a_server_that_is_not_read_is_not_held_up_by_a_guest_that_is_not_heard() {
    let mut scene = Scene::open();
    // The server reads nothing, so the ring from the guest stays full.
    scene.flow.upstream.write(&vec![0; 1 << 20]);
    scene.guest.socket().send_slice(&[1; 100_000]).unwrap();
    scene.run();
    let endpoint = scene.flow.side.endpoint().expect("it is busy");
    assert!(endpoint.socket().recv_queue() > 0);
    let (mut told, mut heard) = (0, 0);
    while told < 8 * MUCH {
        told += scene.server_says(&[2; 10_000]);
        scene.run();
        heard += scene.guest_hears().len();
        assert_eq!(told, heard);
    }
    let endpoint = scene.flow.side.endpoint().expect("it is busy");
    assert!(
        endpoint.socket().recv_queue() > 0,
        "it was full all the time"
    );
}

#[test]
fn one_that_moves_much_gets_larger_rings_in_each_direction() {
    for from_server in [true, false] {
        let mut scene = Scene::open();
        let mut moved = 0;
        while moved < 4 * MUCH {
            if from_server {
                scene.server_says(&[3; 10_000]);
                scene.run();
                moved += scene.guest_hears().len();
            } else {
                scene.guest.socket().send_slice(&[4; 10_000]).unwrap();
                scene.run();
                moved += scene.server_hears().unwrap().len();
            }
        }
        let endpoint = scene.flow.side.endpoint().expect("it is busy");
        assert_eq!(endpoint.rings, LARGE);
    }
}

#[test]
fn a_guest_that_says_nothing_more_is_given_up_while_it_owes_an_answer() {
    let mut scene = Scene::open();
    scene.server_says(b"are you there?");
    scene.reads = false;
    assert!(matches!(scene.run(), Next::Wait(Some(_))));
    // Its frames stay on the line; retransmissions fill it.
    let mut next = Next::Again;
    for _ in 0..40 {
        next = scene.wait(SILENCE / 30);
        if next == Next::Reset {
            break;
        }
        while next_frame(&scene.engine).is_some() {}
        scene.host.flush();
    }
    assert_eq!(next, Next::Reset);
}

#[test]
fn a_reset_that_waits_for_the_line_does_so_without_deadlines() {
    let mut scene = Scene::open();
    scene.server_says(b"are you there?");
    scene.reads = false;
    scene.run();
    while scene.host.line.has_room() {
        let host = &mut scene.host;
        host.line.packet(&mut host.counters, 60_000, |_| ());
    }
    assert_eq!(scene.wait(SILENCE), Next::ForLine(None));
    while next_frame(&scene.engine).is_some() {}
    scene.host.flush();
    assert_eq!(scene.run(), Next::Reset);
}

#[test]
fn a_full_line_holds_the_server_and_not_the_guest() {
    let mut scene = Scene::open();
    scene.reads = false;
    let mut told = 0;
    let next = loop {
        let sent = scene.server_says(&[9; 100_000]);
        told += sent;
        let next = scene.run();
        if sent == 0 {
            break next;
        }
    };
    // Either the line or the guest's window is full first.
    assert!(matches!(next, Next::ForLine(_) | Next::Wait(Some(_))));
    assert!(
        scene.host.line.queued() <= 70_000,
        "{}",
        scene.host.line.queued()
    );
    scene.reads = true;
    let mut heard = 0;
    while heard < told {
        while let Some(frame) = next_frame(&scene.engine) {
            scene.guest.hears(&frame[14..]);
            scene.host.flush();
        }
        scene.guest.turn(scene.now);
        scene.run();
        heard += scene.guest_hears().len();
    }
}

#[test]
fn resets_go_both_ways() {
    let mut scene = Scene::open();
    scene.guest.socket().abort();
    assert_eq!(scene.run(), Next::Reset);

    let mut scene = Scene::open();
    // Unread data makes the end of a pair a reset.
    scene.guest.socket().send_slice(b"unread").unwrap();
    scene.run();
    scene.server_says(&[5; 5000]);
    reset(scene.server_is_gone());
    assert_eq!(scene.run(), Next::Reset);
    assert_eq!(scene.guest.socket().state(), State::Closed);
    assert_eq!(
        scene.guest.socket().recv_queue(),
        5000,
        "it does not overtake data"
    );
}

#[test]
fn one_that_waits_for_larger_rings_goes_on_when_others_took_them() {
    let mut scene = Scene::open();
    loop {
        scene.server_says(&[6; 50_000]);
        scene.reads = false;
        scene.run();
        if scene.flow.side.is_growing() {
            break;
        }
        scene.reads = true;
        scene.run();
        scene.guest_hears();
    }
    scene.server_says(&[6; 50_000]);
    scene.hear_news();
    scene.reads = true;
    scene.pass_frames();
    assert!(scene.flow.side.is_growing());
    let left = FOR_FLOWS - scene.host.budget.used();
    let _others = scene.host.budget.take(left, FOR_FLOWS).unwrap();
    // There will be no other news than the last acknowledgement.
    scene.flow.pump(&mut scene.host, scene.now).unwrap();
    assert!(!scene.flow.side.is_growing());
    assert!(next_frame(&scene.engine).is_some());
}
