//! The policy on a host with interfaces, addresses and routes of every kind.

#![allow(clippy::unwrap_used, reason = "tests")]

mod room;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use banger_gateway::policy::{Policy, Reason, Verdict};
use room::{Maker, ip, try_ip};

const REFUSED: Option<Reason> = None;

/// The policy, and what it said otherwise than it should.
struct Story {
    policy: Policy,
    /// Somewhere on the host that hears on all of its addresses.
    service: UdpSocket,
    asked: usize,
    refusals: usize,
    wrong: Vec<String>,
}

impl Story {
    fn begin() -> Self {
        ip("link set lo up
            link add lan0 type veth peer name far0
            link add lan1 type veth peer name far1
            link set lan0 up
            link set far0 up
            link set lan1 up
            link set far1 up
            addr add 10.77.0.2/24 dev lan0
            addr add 10.88.0.1/24 dev lan1");
        let service = UdpSocket::bind("0.0.0.0:0").unwrap();
        service
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self {
            policy: Policy::open().unwrap(),
            service,
            asked: 0,
            refusals: 0,
            wrong: Vec::new(),
        }
    }

    fn allows(&mut self, to: &str) {
        self.asked += 1;
        let verdict = self.policy.decide(to.parse().unwrap());
        if verdict != Verdict::Allow {
            self.wrong.push(format!("{to}: {verdict:?}"));
        }
    }

    /// With this reason, or any.
    fn refuses(&mut self, to: &str, reason: Option<Reason>) {
        self.asked += 1;
        self.refusals += 1;
        let verdict = self.policy.decide(to.parse().unwrap());
        let right = match (verdict, reason) {
            (Verdict::Refuse(found), Some(reason)) => found == reason,
            (Verdict::Refuse(found), None) => found != Reason::PolicyUnknown,
            (Verdict::Allow, _) => false,
        };
        if !right {
            self.wrong
                .push(format!("{to}: {verdict:?}, not {reason:?}"));
        }
    }

    /// Refused, and rightly: the host itself hears what is sent there.
    fn refuses_the_host(&mut self, to: &str, reason: Reason) {
        let port = self.service.local_addr().unwrap().port();
        let address: Ipv4Addr = to.parse().unwrap();
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let there = SocketAddrV4::new(address, port);
        sender.send_to(to.as_bytes(), there).unwrap();
        let mut heard = [0; 64];
        let length = self.service.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], to.as_bytes());
        self.refuses(to, Some(reason));
    }

    /// All there is to see.
    fn tell(mut self) -> Self {
        use Reason::*;
        // Nothing outside is reachable yet.
        self.refuses("203.0.113.10", Some(Route));
        self.allows("10.77.0.1");
        ip("route add default via 10.77.0.1");
        self.allows("203.0.113.10");
        self.allows("10.88.0.2");

        self.refuses_the_host("127.0.0.1", Loopback);
        self.refuses_the_host("127.7.7.7", Loopback);
        self.refuses_the_host("0.0.0.0", Reserved);
        self.refuses_the_host("10.77.0.2", HostAddress);
        self.refuses_the_host("10.88.0.1", HostAddress);
        self.refuses("10.77.0.255", Some(Route));
        self.refuses("10.88.0.255", Some(Route));
        self.refuses("169.254.169.254", Some(Metadata));
        self.refuses("10.0.2.2", Some(GuestSubnet));
        self.refuses("224.0.0.251", Some(Multicast));
        self.refuses("255.255.255.255", Some(Broadcast));

        // An address that comes and goes.
        self.allows("10.88.0.9");
        ip("addr add 10.88.0.9/24 dev lan1");
        self.refuses_the_host("10.88.0.9", HostAddress);
        ip("addr del 10.88.0.9/24 dev lan1");
        self.allows("10.88.0.9");
        self.allows("192.0.2.77");
        ip("addr add 192.0.2.77/32 dev lo");
        self.refuses_the_host("192.0.2.77", HostAddress);

        // Of a line between two, ours is ours and the other is not.
        ip("addr add 10.66.0.1 peer 10.66.0.2/32 dev lan0");
        self.refuses_the_host("10.66.0.1", HostAddress);
        self.allows("10.66.0.2");

        // An address whose local route is not where routes are looked for, as
        // in a VRF: the kernel would send it out.
        ip("addr add 10.88.0.7/24 dev lan1
            route del local 10.88.0.7 dev lan1 table local");
        self.refuses("10.88.0.7", Some(HostAddress));

        // Routes to the host itself for addresses that no interface has.
        self.allows("10.98.0.1");
        ip("route add local 10.98.0.0/24 dev lo
            route add 10.98.1.0/24 dev lo");
        self.refuses_the_host("10.98.0.1", Route);
        self.refuses_the_host("10.98.1.1", Route);
        ip("rule add pref 5 to 10.98.2.0/24 lookup 77
            route add local default dev lo table 77");
        self.refuses_the_host("10.98.2.1", Route);

        // Routes to nowhere.
        for kind in ["blackhole", "unreachable", "prohibit", "throw"] {
            self.allows("10.99.0.1");
            ip(&format!("route add {kind} 10.99.0.0/24"));
            if kind == "throw" {
                // Means: look on in the next table, where there is nothing.
                self.refuses("10.99.0.1", REFUSED);
            } else {
                self.refuses("10.99.0.1", Some(Route));
            }
            ip(&format!("route del {kind} 10.99.0.0/24"));
        }
        ip("rule add pref 6 to 10.99.1.0/24 prohibit");
        self.refuses("10.99.1.1", Some(Route));

        // More addresses than one answer holds, and more news of them than a
        // socket holds.
        let all = |verb: &str| {
            let line = |at: u32| {
                format!(
                    "addr {verb} 172.20.{}.{}/32 dev lan0\n",
                    at / 250,
                    at % 250 + 1
                )
            };
            (0..3000).map(line).collect::<String>()
        };
        self.allows("172.20.11.200");
        ip(&all("add"));
        for own in ["172.20.0.1", "172.20.5.100", "172.20.11.250"] {
            self.refuses_the_host(own, HostAddress);
        }
        self.allows("172.20.12.1");
        ip(&all("del"));
        self.allows("172.20.11.200");

        ip("link set lan0 down");
        self.refuses("203.0.113.10", Some(Route));
        self.refuses("10.77.0.2", Some(HostAddress));
        self
    }
}

#[test]
fn what_is_the_host_or_leads_nowhere_is_refused() {
    let test = "what_is_the_host_or_leads_nowhere_is_refused";
    if room::inside(test, Maker::Myself, &[]) {
        let story = Story::begin().tell();
        assert_eq!(story.wrong, Vec::<String>::new());
    }
}

#[test]
fn it_is_the_same_for_a_user_who_may_nothing() {
    let test = "it_is_the_same_for_a_user_who_may_nothing";
    if room::inside(test, Maker::Nobody, &[]) {
        let story = Story::begin().tell();
        assert_eq!(story.wrong, Vec::<String>::new());
    }
}

#[test]
fn an_address_in_a_vrf_is_the_hosts_too() {
    let test = "an_address_in_a_vrf_is_the_hosts_too";
    if room::inside(test, Maker::Myself, &[]) {
        let mut story = Story::begin();
        ip("route add default via 10.77.0.1");
        if !try_ip("link add vrf0 type vrf table 10") {
            println!("skipped: this kernel has no VRFs");
            return;
        }
        ip("link set vrf0 up
            link set lan1 master vrf0");
        story.refuses("10.88.0.1", Some(Reason::HostAddress));
        assert_eq!(story.wrong, Vec::<String>::new());
    }
}

/// What the checks above are worth: with the policy open, each of them fails.
#[test]
#[cfg(feature = "open-policy")]
fn with_an_open_policy_every_refusal_is_missed() {
    let test = "with_an_open_policy_every_refusal_is_missed";
    let variables = [("BANGER_GATEWAY_OPEN_POLICY", "1")];
    if room::inside(test, Maker::Myself, &variables) {
        let story = Story::begin().tell();
        assert_eq!(story.wrong.len(), story.refusals, "{:?}", story.wrong);
    }
}

/// And without the feature the variable opens nothing.
#[test]
#[cfg(not(feature = "open-policy"))]
fn the_variable_alone_opens_nothing() {
    let test = "the_variable_alone_opens_nothing";
    let variables = [("BANGER_GATEWAY_OPEN_POLICY", "1")];
    if room::inside(test, Maker::Myself, &variables) {
        let story = Story::begin().tell();
        assert_eq!(story.wrong, Vec::<String>::new());
        assert!(story.asked > story.refusals);
    }
}
