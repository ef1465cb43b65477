//! Questions of a guest and answers of a resolver, both of any bytes. Only in
//! a network namespace of its own:
//!
//! ```sh
//! unshare -rn sh -c 'ip link set lo up
//!     cargo +stable fuzz run --sanitizer none gateway_dns'
//! ```
#![no_main]

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::OnceLock;

use banger_gateway::gateway::fuzzing::Bench;
use banger_wire::gateway::GATEWAY;
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/banger-gateway/tests/room/guest.rs"]
mod guest;

const GUEST_PORT: u16 = 4000;

/// The resolvers that the gateway knows, the second of which answers.
fn resolvers() -> &'static [UdpSocket; 2] {
    static RESOLVERS: OnceLock<[UdpSocket; 2]> = OnceLock::new();
    RESOLVERS.get_or_init(|| {
        [1, 2].map(|last| {
            let address = (Ipv4Addr::new(127, 0, 0, last), 53);
            let socket = UdpSocket::bind(address).expect("`lo` is up, and we are root here");
            socket.set_nonblocking(true).expect("a socket can");
            socket
        })
    })
}

fuzz_target!(|data: &[u8]| {
    let [first, second] = resolvers();
    let Some((&length, data)) = data.split_first() else {
        return;
    };
    let (question, answers) = data.split_at(usize::from(length).min(data.len()));
    let mut bench = Bench::new(vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()]);
    bench.send(&guest::udp(GUEST_PORT, (GATEWAY, 53), question));
    bench.work();
    let mut buffer = [0; 4096];
    let Ok((length, asker)) = first.recv_from(&mut buffer) else {
        assert!(bench.receive().is_none(), "only questions are answered");
        return;
    };
    assert_eq!(&buffer[..length], question, "it is passed on as it is");
    // The first cannot help, so the second is asked.
    let mut refusal = question.to_vec();
    refusal[2] |= 0x80;
    refusal[3] = refusal[3] & 0xf0 | 5;
    first
        .send_to(&refusal, asker)
        .expect("it asked a moment ago");
    bench.work();
    let (length, asker) = second.recv_from(&mut buffer).expect("the second is asked");
    assert_eq!(&buffer[..length], question);
    // Some answers to other questions, and at last one to this.
    let mut told = None;
    let right = [&question[..2], &[0x80, 0], &question[4..]].concat();
    for answer in answers.chunks(40).chain([&right[..]]) {
        if second.send_to(answer, asker).is_err() {
            break;
        }
        bench.work();
        if let Some(frame) = bench.receive() {
            let (from, datagram) = guest::read_ipv4(frame, guest::UDP).expect("a datagram");
            assert_eq!(from, GATEWAY);
            assert_eq!(datagram[..2], 53_u16.to_be_bytes());
            assert_eq!(datagram[2..4], GUEST_PORT.to_be_bytes());
            assert_eq!(&datagram[8..], answer, "it comes back as it is");
            assert_eq!(answer[..2], question[..2]);
            assert!(told.is_none(), "one answer is enough");
            told = Some(answer.to_vec());
            assert_eq!(bench.memory(), 0, "an answered question is forgotten");
        }
    }
    assert!(told.is_some(), "the guest got an answer");
    while first.recv_from(&mut buffer).is_ok() || second.recv_from(&mut buffer).is_ok() {}
});
