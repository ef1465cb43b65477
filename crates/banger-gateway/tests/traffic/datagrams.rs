//! What is no TCP: UDP, pings and names, the last by TCP, too.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use banger_wire::gateway::{Answer, GATEWAY, Request};
use smoltcp::socket::tcp::State;

use crate::room;
use crate::room::guest::{
    ETHERNET, ICMP, IPV4, PATIENCE, UDP, piece, ping, read_ipv4, seal_header, udp,
};
use crate::room::outside::{CLOSED, ECHO, OUTSIDE};
use crate::scene::{Scene, room_test};
use crate::servers::bytes;
use crate::stack::{Stack, WINDOW};

/// The data of a datagram that comes to this port, whole.
fn datagram(guest: &mut Stack, port: u16, length: usize) -> Vec<u8> {
    let mut pieces: Vec<(usize, Vec<u8>)> = Vec::new();
    let came = guest.line().find(Instant::now() + PATIENCE, |frame| {
        let (_, payload) = read_ipv4(frame, UDP)?;
        let word = u16::from_be_bytes([frame[ETHERNET + 6], frame[ETHERNET + 7]]);
        let offset = usize::from(word & 0x1fff) * 8;
        if offset == 0 && payload[2..4] != port.to_be_bytes() {
            return None;
        }
        pieces.push((offset, payload.to_vec()));
        let have: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
        (have == length + 8).then_some(())
    });
    assert!(
        came.is_some(),
        "{} pieces of a datagram for {port}",
        pieces.len()
    );
    pieces.sort();
    let whole: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
    whole[8..].to_vec()
}

room_test!(datagrams_of_all_sizes_come_back, scene, [], {
    for (port, length) in (5000..).zip([0, 1, 1473, 9000, 30_000, 65_492, 65_493, 65_507]) {
        let data = bytes(0, length);
        let whole = udp(port, (OUTSIDE, ECHO), &data);
        let payload = &whole[ETHERNET + IPV4..];
        let room = 65_496;
        if payload.len() <= room {
            scene.guest.line().send(&whole);
        } else {
            for (at, part) in payload.chunks(room).enumerate() {
                let mut frame = piece(OUTSIDE, UDP, part);
                let more = (at + 1) * room < payload.len();
                let word = (at * room / 8) as u16 | u16::from(more) << 13;
                frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&word.to_be_bytes());
                seal_header(&mut frame);
                scene.guest.line().send(&frame);
            }
        }
        assert!(
            datagram(&mut scene.guest, port, length) == data,
            "{length} bytes"
        );
    }
    let counters = scene.gateway.counters();
    assert_eq!((counters.udp_flows, counters.udp_opened), (8, 8));
});

/// The ICMP message that comes next: type, code and the port that it is about.
fn complaint(guest: &mut Stack) -> (u8, u8, u16) {
    let found = guest.line().find(Instant::now() + PATIENCE, |frame| {
        let (_, message) = read_ipv4(frame, ICMP)?;
        let quoted = message.get(8 + IPV4..)?;
        Some((
            message[0],
            message[1],
            u16::from_be_bytes([quoted[0], quoted[1]]),
        ))
    });
    found.expect("a complaint")
}

room_test!(what_nobody_wants_is_told_so, scene, [], {
    // Nobody listens there; the second one brings the news of the first.
    scene
        .guest
        .line()
        .send(&udp(5000, (OUTSIDE, CLOSED), b"hello"));
    assert_eq!(complaint(&mut scene.guest), (3, 3, 5000));
    scene
        .guest
        .line()
        .send(&udp(5001, (GATEWAY, CLOSED), b"hello"));
    assert_eq!(complaint(&mut scene.guest), (3, 3, 5001));
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    scene
        .guest
        .line()
        .send(&udp(5002, (metadata, 80), b"hello"));
    assert_eq!(complaint(&mut scene.guest), (3, 13, 5002));
    for to in [(metadata, 80), (GATEWAY, 80)] {
        let handle = scene.guest.dial(to, WINDOW);
        scene.guest.until("refused", |guest| {
            guest.socket(handle).state() == State::Closed
        });
    }
    let refused = scene.gateway.counters().refused;
    assert_eq!(refused.get("metadata"), Some(&2), "{refused:?}");
    assert_eq!(refused.get("gateway_port"), Some(&2), "{refused:?}");
});

room_test!(the_gateway_and_others_answer_pings, scene, [], {
    let answer = |scene: &mut Scene, to: Ipv4Addr, data: &[u8]| {
        scene.guest.line().send(&ping(to, 77, 3, data));
        let found = scene.guest.line().find(Instant::now() + PATIENCE, |frame| {
            let (from, message) = read_ipv4(frame, ICMP)?;
            (from == to || message[0] == 3).then(|| message.to_vec())
        });
        found.expect("an answer")
    };
    let heard = answer(&mut scene, GATEWAY, b"gateway");
    assert_eq!((heard[0], &heard[4..]), (0, &b"\0\x4d\0\x03gateway"[..]));
    // As the kernel has it: nobody may.
    let heard = answer(&mut scene, OUTSIDE, b"closed");
    assert_eq!((heard[0], heard[1]), (3, 13));
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    let heard = answer(&mut scene, OUTSIDE, &bytes(0, 4000));
    assert_eq!((heard[0], &heard[4..8]), (0, &b"\0\x4d\0\x03"[..]));
    assert!(heard[8..] == bytes(0, 4000));
});

/// A question for a name of one label.
fn question(number: u16, label: &str) -> Vec<u8> {
    let mut message = number.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8]);
    message.extend(label.as_bytes());
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Asks by UDP; the answer.
fn ask(scene: &mut Scene, number: u16, label: &str) -> Vec<u8> {
    let port = scene.guest.line().port();
    let message = question(number, label);
    scene.guest.line().send(&udp(port, (GATEWAY, 53), &message));
    let found = scene.guest.line().find(Instant::now() + PATIENCE, |frame| {
        let (from, payload) = read_ipv4(frame, UDP)?;
        let ours = from == GATEWAY && payload[..4] == [[0, 53], port.to_be_bytes()].concat();
        ours.then(|| payload[8..].to_vec())
    });
    let answer = found.expect("an answer");
    assert_eq!(answer[..2], number.to_be_bytes());
    assert_eq!(
        answer[12..message.len()],
        message[12..],
        "the same question"
    );
    answer
}

const RESOLVER: &str = "10.77.0.1";

room_test!(names_are_asked_by_udp_and_tcp, scene, [RESOLVER], {
    for number in 1..50 {
        assert_eq!(
            ask(&mut scene, number, &format!("name-{number}"))[3] & 15,
            0
        );
    }
    assert_eq!(ask(&mut scene, 50, "long").len(), 40_000);
    assert_eq!(
        ask(&mut scene, 51, "refuse")[3] & 15,
        5,
        "what the last one says is told"
    );
    let handle = scene.guest.connect((GATEWAY, 53));
    let message = question(7, &"x".repeat(60));
    let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    scene.guest.say(handle, &framed);
    scene.guest.say(handle, &framed);
    scene.guest.socket(handle).close();
    let answers = scene.guest.hear_all(handle);
    assert_eq!(answers.len(), 2 * framed.len());
    assert_eq!(answers[4] & 0x80, 0x80);
    scene.guest.close(handle);
});

room_test!(
    a_resolver_that_fails_is_followed_by_the_next,
    scene,
    ["203.0.113.66", RESOLVER],
    {
        // The first one says nothing for two seconds; then it is not asked first.
        assert_eq!(ask(&mut scene, 1, "a")[3] & 15, 0);
        let before = Instant::now();
        for number in 2..10 {
            assert_eq!(ask(&mut scene, number, "b")[3] & 15, 0);
        }
        assert!(
            before.elapsed() < Duration::from_secs(2),
            "the one that answers is preferred"
        );
        // From here on: one that is closed by the host's own routes, then ours.
        room::ip("route add prohibit 203.0.113.67/32");
        let addresses = vec!["203.0.113.67".parse().unwrap(), RESOLVER.parse().unwrap()];
        let done = scene.gateway.ask(&Request::Resolvers { addresses }, None);
        assert_eq!(done, Answer::Done);
        let handle = scene.guest.connect((GATEWAY, 53));
        scene.guest.close(handle);
        assert_eq!(ask(&mut scene, 11, "c")[3] & 15, 0);
        // And none at all.
        let addresses = Vec::new();
        assert_eq!(
            scene.gateway.ask(&Request::Resolvers { addresses }, None),
            Answer::Done
        );
        assert_eq!(ask(&mut scene, 12, "d")[3] & 15, 2);
        let handle = scene.guest.dial((GATEWAY, 53), WINDOW);
        scene.guest.until("refused", |guest| {
            guest.socket(handle).state() == State::Closed
        });
    }
);
