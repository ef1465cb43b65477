//! Ways to the host that other stacks leave open.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use crate::room;
use crate::room::guest::{
    ETHERNET, ICMP, IPV4, SYN, Segment, TCP, UDP, ipv4, piece, seal, seal_header, udp,
};
use crate::room::outside::OUTSIDE;
use crate::scene::attack;

/// Longer than a verdict of the policy holds for a flow.
const VERDICT_HOLDS: Duration = Duration::from_millis(1100);

// Packets that other stacks let by: none of them may reach the host.
attack!(no_trick_of_addresses_reaches_the_host, scene, {
    let service = UdpSocket::bind("0.0.0.0:4444").unwrap();
    service.set_nonblocking(true).unwrap();
    let listener = TcpListener::bind("0.0.0.0:4444").unwrap();
    listener.set_nonblocking(true).unwrap();
    room::ip(
        "link add lan1 type veth peer name far1
              link set far1 up
              link set lan1 up
              addr add 10.88.0.1/24 dev lan1
              addr add 192.0.2.9/32 dev lo
              route add local 10.98.0.0/24 dev lo
              route add 10.98.1.0/24 dev lo",
    );
    let host = [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "0.0.0.1",
        "10.77.0.2",
        "10.77.0.255",
        "10.88.0.1",
        "10.88.0.255",
        "192.0.2.9",
        "10.98.0.7",
        "10.98.1.7",
        "10.0.2.2",
        "10.0.2.3",
        "10.0.2.15",
        "255.255.255.255",
        "224.0.0.1",
        "169.254.169.254",
    ];
    let syn = Segment {
        from: 4000,
        to: 4444,
        seq: 1,
        ack: 0,
        flags: SYN,
        window: 1000,
        options: Vec::new(),
        data: Vec::new(),
    };
    // A loose source route through the outside to the host.
    let source_route = |to: Ipv4Addr| {
        let mut options = vec![1, 131, 7, 4];
        options.extend(to.octets());
        options
    };
    for to in host.map(|to| to.parse::<Ipv4Addr>().unwrap()) {
        for from in 1..20 {
            scene.guest.throw(&udp(from, (to, 4444), b"here I am"));
        }
        scene.guest.throw(&syn.frame(to));
        // In two fragments.
        let whole = udp(77, (to, 4444), &[b'f'; 40]);
        for (offset, more, range) in [(0, 0x20, 0..24), (3, 0, 24..48)] {
            let mut frame = piece(to, UDP, &whole[ETHERNET + IPV4..][range]);
            frame[ETHERNET + 6] = more;
            frame[ETHERNET + 7] = offset;
            seal_header(&mut frame);
            scene.guest.throw(&frame);
        }
        for (protocol, inner) in [
            (UDP, udp(78, (OUTSIDE, 4444), b"x")),
            (TCP, syn.frame(OUTSIDE)),
        ] {
            let mut frame = ipv4(OUTSIDE, protocol, &inner[ETHERNET + IPV4..]);
            let options = source_route(to);
            frame.splice(ETHERNET + IPV4..ETHERNET + IPV4, options.iter().copied());
            frame[ETHERNET] = 0x47;
            let total = (frame.len() - ETHERNET) as u16;
            frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&total.to_be_bytes());
            seal(&mut frame);
            scene.guest.throw(&frame);
        }
        // Errors that name the host, about flows that there are not.
        let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
        error.extend(&udp(77, (to, 4444), b"quoted")[ETHERNET..]);
        scene.guest.throw(&ipv4(OUTSIDE, ICMP, &error));
        scene.guest.throw(&ipv4(to, ICMP, &error));
    }
    scene.is_well();
    let heard = service.recv(&mut [0; 100]);
    assert!(heard.is_err(), "the host heard the guest");
    assert!(listener.accept().is_err(), "the host was connected to");
    // The checks are worth something: the host does hear others.
    let other = UdpSocket::bind("0.0.0.0:0").unwrap();
    other.send_to(b"hello", "10.88.0.1:4444").unwrap();
    assert_eq!(service.recv(&mut [0; 100]).unwrap(), 5);
    // A flow that there is, to an address that becomes the host's.
    room::ip(
        "addr del 10.88.0.1/24 dev lan1
              route add 10.88.0.1/32 via 10.77.0.1",
    );
    for _ in 0..3 {
        scene.guest.throw(&udp(
            99,
            (Ipv4Addr::new(10, 88, 0, 1), 4444),
            b"still outside",
        ));
    }
    scene.is_well();
    room::ip(
        "route del 10.88.0.1/32
              addr add 10.88.0.1/24 dev lan1",
    );
    let until = Instant::now() + VERDICT_HOLDS;
    while scene.guest.receive(until).is_some() {}
    for _ in 0..3 {
        scene
            .guest
            .throw(&udp(99, (Ipv4Addr::new(10, 88, 0, 1), 4444), b"inside now"));
    }
    scene.is_well();
    assert!(service.recv(&mut [0; 100]).is_err(), "an old flow leads in");
});
