//! A host, the world, a gateway and its guest, for one attack.

use std::time::{Duration, Instant};

use crate::room::gateway::Gateway;
use crate::room::guest::{Guest, PATIENCE};
use crate::room::outside::{ECHO, OUTSIDE, Outside};

/// A test that runs in a room of its own, and ends with a gateway that is well.
macro_rules! attack {
    ($name:ident, $scene:ident, $body:block) => {
        #[test]
        fn $name() {
            // Without the name of this program, as tests are called.
            let path = concat!(module_path!(), "::", stringify!($name));
            let (_, path) = path.split_once("::").unwrap();
            if crate::room::inside(path, crate::room::Maker::Myself, &[]) {
                let mut $scene = crate::scene::Scene::set();
                $body
                $scene.end();
            }
        }
    };
}
pub(crate) use attack;

/// The host, the world, the gateway and its guest.
pub(crate) struct Scene {
    _outside: Outside,
    pub(crate) gateway: Gateway,
    pub(crate) guest: Guest,
}

impl Scene {
    pub(crate) fn set() -> Self {
        println!("debug assertions: {}", cfg!(debug_assertions));
        let outside = Outside::start();
        // Nobody answers within 3 s: that is an answer.
        std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1").unwrap();
        // Root of this host may ping.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        let (gateway, guest) = Gateway::start(&[]);
        let mut scene = Self {
            _outside: outside,
            gateway,
            guest,
        };
        scene.works_within(PATIENCE);
        scene
    }

    /// New connections work, at the latest after this time.
    pub(crate) fn works_within(&mut self, time: Duration) {
        let until = Instant::now() + time;
        self.guest.drain();
        self.tries(until, "TCP", |guest, until| {
            guest.echoes((OUTSIDE, ECHO), until)
        });
        self.tries(until, "UDP", |guest, until| {
            guest.udp_echoes((OUTSIDE, ECHO), until)
        });
    }

    /// Tries again and again, as a program in the guest would, with a little
    /// time between.
    fn tries(&mut self, until: Instant, what: &str, works: impl Fn(&mut Guest, Instant) -> bool) {
        while !works(
            &mut self.guest,
            until.min(Instant::now() + Duration::from_secs(1)),
        ) {
            assert!(
                Instant::now() < until,
                "{what} is dead: {:?}",
                self.gateway.counters()
            );
            let pause = Instant::now() + Duration::from_millis(20);
            while self.guest.receive(pause).is_some() {}
        }
    }

    /// After an attack.
    pub(crate) fn is_well(&mut self) {
        self.works_within(PATIENCE);
        self.gateway.check();
    }

    pub(crate) fn end(mut self) {
        self.is_well();
        self.gateway.end();
    }
}
