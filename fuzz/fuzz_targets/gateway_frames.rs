//! A whole gateway between frames of a guest and servers on the same host.
//! Only in a network namespace of its own, where every address is that host:
//!
//! ```sh
//! unshare -rn sh -c 'ip link set lo up
//!     ip route add local default dev lo table local
//!     BANGER_GATEWAY_OPEN_POLICY=1 cargo +stable fuzz run --sanitizer none gateway_frames'
//! ```
#![no_main]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::OnceLock;

use banger_gateway::gateway::fuzzing::Bench;
use banger_wire::gateway::{GATEWAY, MTU};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/banger-gateway/tests/room/guest.rs"]
mod guest;

use guest::{ACK, ETHERNET, IPV4, SYN, Segment, TCP, piece, read_ipv4, seal, udp};

const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Bytes that a gateway may hold.
const MAX_MEMORY: usize = 64 << 20;

/// Servers that do what the input says.
struct World {
    tcp: TcpListener,
    udp: UdpSocket,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let routes = std::fs::read_to_string("/proc/net/route").expect("a host has routes");
        assert_eq!(
            routes.lines().count(),
            1,
            "this is not a namespace of its own"
        );
        let tcp = TcpListener::bind("0.0.0.0:7").expect("`lo` is up, and we are root here");
        let udp = UdpSocket::bind("0.0.0.0:7").expect("`lo` is up, and we are root here");
        tcp.set_nonblocking(true).expect("a socket can");
        udp.set_nonblocking(true).expect("a socket can");
        World { tcp, udp }
    })
}

/// What is left of the input.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from(self.byte()) << 8 | u16::from(self.byte())
    }

    /// A small number either way, or now and then a large one.
    fn offset(&mut self) -> u32 {
        let byte = i32::from(self.byte().cast_signed());
        let offset = if byte % 7 == 0 { byte << 24 } else { byte / 4 };
        offset.cast_unsigned()
    }
}

fuzz_target!(|data: &[u8]| {
    let world = world();
    let mut script = Script(data);
    let mut bench = Bench::new(Vec::new());
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut connections: [Segment; 4] = std::array::from_fn(|number| Segment {
        from: 1000 + number as u16,
        to: 7,
        seq: 1,
        ack: 0,
        flags: SYN,
        window: 1000,
        options: Vec::new(),
        data: Vec::new(),
    });
    while !script.0.is_empty() {
        let what = script.byte();
        let connection = &mut connections[usize::from(what >> 6)];
        match what % 8 {
            0 => {
                let length = usize::from(script.byte());
                let mut frame = guest::arp();
                frame.truncate(usize::from(what >> 4));
                frame.extend(script.bytes(length));
                bench.send(&frame);
            }
            1 => {
                let (protocol, length) = (script.byte(), usize::from(script.byte()));
                let mut frame = piece(SERVER, protocol, script.bytes(length));
                frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&script.word().to_be_bytes());
                seal(&mut frame);
                bench.send(&frame);
            }
            2 => {
                connection.flags = SYN;
                let length = usize::from(script.byte() % 41);
                connection.options = script.bytes(length).to_vec();
                bench.send(&connection.frame(SERVER));
                connection.options.clear();
            }
            3 | 4 => {
                let mut segment = connection.clone();
                segment.flags = if what % 8 == 3 { ACK } else { script.byte() };
                segment.seq = segment.seq.wrapping_add(script.offset());
                segment.ack = segment.ack.wrapping_add(script.offset());
                segment.window = script.word();
                segment.data = vec![what; usize::from(script.word() % 65_000)];
                let length = usize::from(script.byte() % 12);
                segment.options = script.bytes(length).to_vec();
                bench.send(&segment.frame(SERVER));
            }
            5 => {
                let to = if what >> 6 == 0 { GATEWAY } else { SERVER };
                let length = usize::from(script.byte());
                bench.send(&udp(script.word(), (to, 7), script.bytes(length)));
            }
            6 => {
                streams.extend(world.tcp.accept().map(|(stream, _)| stream));
                if let Some(stream) = streams.last_mut() {
                    let _ = stream.set_nonblocking(true);
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write(&vec![what; usize::from(script.word())]);
                }
                let mut buffer = [0; 4096];
                if let Ok((length, from)) = world.udp.recv_from(&mut buffer) {
                    let _ = world.udp.send_to(&buffer[..length], from);
                }
            }
            _ => drop(streams.pop()),
        }
        bench.work();
        assert!(bench.memory() <= MAX_MEMORY);
        while let Some(frame) = bench.receive() {
            check(frame);
            follow(frame, &mut connections);
        }
    }
    drop(bench);
    // What the kernel has accepted for us belongs to this run.
    while world.tcp.accept().is_ok() {}
});

/// A frame for the guest is whole, and its checksums hold.
fn check(frame: &[u8]) {
    if frame[12..ETHERNET] != [8, 0] {
        assert_eq!(frame.len(), 42, "only answers to ARP are no IPv4");
        return;
    }
    let packet = &frame[ETHERNET..];
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    assert_eq!(total, packet.len());
    assert!(total <= usize::from(MTU));
    let is_fragment = packet[6] & 0x3f != 0 || packet[7] != 0;
    let mut sealed = frame.to_vec();
    seal(&mut sealed);
    assert!(is_fragment || sealed == frame, "a checksum is wrong");
}

/// The connection that a segment is of goes on where it says.
fn follow(frame: &[u8], connections: &mut [Segment]) {
    let Some((_, segment)) = read_ipv4(frame, TCP) else {
        return;
    };
    assert!(segment.len() >= IPV4, "a whole header");
    let long = |at: usize| u32::from_be_bytes(*segment[at..].first_chunk().expect("it is whole"));
    let port = u16::from_be_bytes([segment[2], segment[3]]);
    let header = usize::from(segment[12] >> 4) * 4;
    let length = (segment.len() - header) as u32 + u32::from(segment[13] & SYN != 0);
    if let Some(connection) = connections.iter_mut().find(|known| known.from == port) {
        connection.seq = long(8);
        connection.ack = long(4).wrapping_add(length);
    }
}
