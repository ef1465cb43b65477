//! A world, a gateway in it and its guest, for one test.

use std::time::{Duration, Instant};

use crate::room::gateway::Gateway;
use crate::room::guest::PATIENCE;
use crate::room::outside::{ECHO, OUTSIDE, Outside};
use crate::servers::REPORT;
use crate::stack::Stack;

/// The world, the gateway and its guest.
pub(crate) struct Scene {
    _outside: Outside,
    pub(crate) gateway: Gateway,
    pub(crate) guest: Stack,
    /// Memory of the gateway after its first connection, kibibytes.
    pub(crate) resident: usize,
}

/// Kibibytes by which it may grow for a few flows, or for what the allocator
/// keeps of many.
pub(crate) const MORE: usize = 4 << 10;

impl Scene {
    pub(crate) fn set(resolvers: &[&str]) -> Self {
        let outside = Outside::start();
        let (gateway, line) = Gateway::start(resolvers);
        let mut scene = Self {
            _outside: outside,
            gateway,
            guest: Stack::new(line),
            resident: 0,
        };
        // ARP, the first connection, and all pages that come with them.
        scene.echo(b"hello");
        scene.resident = scene.gateway.status("VmRSS");
        scene
    }

    pub(crate) fn echo(&mut self, data: &[u8]) {
        let handle = self.guest.connect((OUTSIDE, ECHO));
        self.guest.say(handle, data);
        self.guest.socket(handle).close();
        assert_eq!(self.guest.hear_all(handle), data);
        self.guest.close(handle);
    }

    /// What a server has to report.
    fn report(&mut self) -> String {
        let handle = self.guest.connect((OUTSIDE, REPORT));
        let text = self.guest.hear_all(handle);
        self.guest.close(handle);
        String::from_utf8(text).unwrap()
    }

    /// Waits until a server reports this.
    pub(crate) fn reports(&mut self, expected: &str) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let report = self.report();
            if report == expected {
                return;
            }
            assert!(Instant::now() < give_up, "{report:?}, not {expected:?}");
            self.guest.idle(Duration::from_millis(50));
        }
    }

    /// Waits until no flow is left.
    pub(crate) fn nothing_is_left(&mut self) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let counters = self.gateway.counters();
            if counters.tcp_flows + counters.half_open + counters.memory_bytes == 0 {
                return;
            }
            assert!(Instant::now() < give_up, "{counters:?}");
            self.guest.idle(Duration::from_millis(50));
        }
    }

    pub(crate) fn is_as_small_as_before(&self) {
        let resident = self.gateway.status("VmRSS");
        assert!(
            resident <= self.resident + MORE,
            "{resident} after {} KiB",
            self.resident
        );
    }

    pub(crate) fn end(mut self) {
        self.nothing_is_left();
        self.gateway.check();
        self.gateway.end();
    }
}

/// A test that runs in a room of its own.
macro_rules! room_test {
    ($name:ident, $scene:ident, $resolvers:expr, $body:block) => {
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            // The harness leaves the program's own name out.
            let (_, name) = path.split_once("::").expect("a path has parts");
            if !$crate::room::inside(name, $crate::room::Maker::Myself, &[]) {
                return;
            }
            let mut $scene = $crate::scene::Scene::set(&$resolvers);
            $body
            $scene.end();
        }
    };
}
pub(crate) use room_test;
