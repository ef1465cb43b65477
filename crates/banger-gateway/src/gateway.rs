//! The loop: one thread that waits in one place and gives everything that
//! comes to its owner.
//!
//! ```text
//!      ┌──────────────► wait ◄── the next deadline, if there is one at all
//!      │                  │
//!      │   sockets ─ control ─ engine's end
//!      │                  │
//!      │   frames of the guest, some at a time
//!      │                  │
//!      │   deadlines, and those who waited for the line
//!      │                  │
//!      └── flows on which something happened move what they can
//! ```
//!
//! News come once. Whoever stops before the end of something remembers that,
//! and the loop does not wait while anybody remembers.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{io, mem};

use banger_wire::gateway::{GATEWAY, GUEST};

use crate::control::{Command, Control, Reply};
use crate::counters::{Dropped, Live};
use crate::dns::Dns;
use crate::ethernet::{self, Frame};
use crate::host::{DNS_PORT, Host, Resolvers};
use crate::icmp::Unreachable;
use crate::ipv4;
use crate::line::{Line, MAX_FRAME, Received};
use crate::ping::Ping;
use crate::policy::Policy;
use crate::poller::{News, Owner, Token, Watch};
use crate::reassembly::Reassembler;
use crate::refusals::Reason;
use crate::tcp::Tcp;
use crate::timers::Alarm;
use crate::udp::{self, Udp};

/// Time that a gateway lives without knowing its engine.
const ALONE: Duration = Duration::from_secs(10);
/// Frames of the guest that are taken before flows have their turn.
const FRAMES_A_TURN: usize = 32;

/// What a gateway is started with.
pub struct Setup {
    /// Its end of the line to the guest.
    pub line: OwnedFd,
    /// The listening control socket.
    pub control: OwnedFd,
    /// The guest's hardware address.
    pub guest: [u8; 6],
    /// The host's resolvers, as far as they are known yet.
    pub resolvers: Vec<IpAddr>,
}

/// The gateway of one VM.
pub struct Gateway {
    host: Host,
    control: Control,
    tcp: Tcp,
    udp: Udp,
    ping: Ping,
    dns: Dns,
    reassembler: Reassembler,
    fragments: Alarm,
    engine: Option<OwnedFd>,
    alone: Alarm,
    /// There may be more frames on the line.
    frames: bool,
    frame: Box<[u8]>,
    news: Vec<News>,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Next,
    Last,
}

impl Gateway {
    /// Opens all that is needed; from now on only sockets of flows are opened.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn assemble(setup: Setup, now: Instant) -> io::Result<Self> {
        let line = Line::new(setup.line, setup.guest)?;
        let mut host = Host::new(line, Policy::open()?, setup.resolvers)?;
        let watch = |fd, owner, what| host.poller.watch(fd, Token::only(owner), what);
        watch(host.line.as_fd(), Owner::Line, Watch::Reading)?;
        let control = Control::new(setup.control)?;
        watch(control.as_fd(), Owner::Control, Watch::Level)?;
        let mut alone = Alarm::default();
        host.timers
            .set(&mut alone, Token::only(Owner::Engine), Some(now + ALONE));
        Ok(Self {
            host,
            control,
            tcp: Tcp::default(),
            udp: Udp::new(),
            ping: Ping::new(),
            dns: Dns::default(),
            reassembler: Reassembler::new(),
            fragments: Alarm::default(),
            engine: None,
            alone,
            frames: true,
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            news: Vec::new(),
        })
    }

    /// Serves the guest until the engine ends.
    ///
    /// # Errors
    /// Those of waiting for news.
    pub fn run(mut self) -> io::Result<()> {
        while self.turn()? == Turn::Next {}
        Ok(())
    }

    fn turn(&mut self) -> io::Result<Turn> {
        let before = Instant::now();
        let until = if self.has_work() {
            Some(before)
        } else {
            self.host.timers.next()
        };
        self.host.poller.wait(before, until, &mut self.news)?;
        let now = Instant::now();
        let news = mem::take(&mut self.news);
        for piece in &news {
            if self.hear(now, piece) == Turn::Last {
                return Ok(Turn::Last);
            }
        }
        self.news = news;
        self.read_frames(now);
        while let Some(token) = self.host.timers.due(now) {
            if self.due(now, token) == Turn::Last {
                return Ok(Turn::Last);
            }
        }
        self.free_the_line(now);
        self.tcp.settle(&mut self.host, now);
        self.udp.settle(&mut self.host, now);
        self.ping.settle(&mut self.host, now);
        self.host.flush();
        Ok(Turn::Next)
    }

    /// Whether something is left to do that nobody will tell of.
    fn has_work(&self) -> bool {
        self.frames
            || self.tcp.has_work()
            || self.udp.has_work()
            || self.ping.has_work()
            || (self.host.line.has_room() && !self.host.waiting.is_empty())
    }

    fn hear(&mut self, now: Instant, news: &News) -> Turn {
        let host = &mut self.host;
        match news.token.owner {
            // That it can be written is found out by trying, in each turn.
            Owner::Line => self.frames |= news.readable,
            Owner::Control => self.serve(),
            Owner::Engine => return Turn::Last,
            Owner::Tcp => self.tcp.hear(host, now, news),
            Owner::Udp => self.udp.hear(news),
            Owner::Ping => self.ping.hear(news),
            Owner::Dns => self.dns.hear(host, now, news),
            Owner::Fragments => {}
        }
        Turn::Next
    }

    fn due(&mut self, now: Instant, token: Token) -> Turn {
        let host = &mut self.host;
        match token.owner {
            Owner::Engine => return Turn::Last,
            Owner::Tcp => self.tcp.due(host, now, token.key),
            Owner::Udp => self.udp.due(host, now, token.key),
            Owner::Ping => self.ping.due(host, now, token.key),
            Owner::Dns => self.dns.due(host, now, token.key),
            Owner::Fragments => {
                self.fragments.rang();
                self.reassembler.expire(now);
                self.look_after_fragments();
            }
            Owner::Line | Owner::Control => {}
        }
        Turn::Next
    }

    /// Sends what was queued, and then lets those go on who wait for that, the
    /// longest waiting first, until the line is full again.
    fn free_the_line(&mut self, now: Instant) {
        let host = &mut self.host;
        host.flush();
        for _ in 0..host.waiting.len() {
            if !host.line.has_room() {
                return;
            }
            let Some(token) = host.waiting.pop_front() else {
                return;
            };
            match token.owner {
                Owner::Tcp => self.tcp.line_is_free(host, now, token.key),
                Owner::Udp => self.udp.line_is_free(token.key),
                Owner::Ping => self.ping.line_is_free(token.key),
                Owner::Line | Owner::Control | Owner::Engine | Owner::Dns | Owner::Fragments => {}
            }
        }
    }

    fn read_frames(&mut self, now: Instant) {
        if !self.frames {
            return;
        }
        let mut buffer = mem::take(&mut self.frame);
        for _ in 0..FRAMES_A_TURN {
            match self.host.line.receive(&mut buffer) {
                Received::Frame(length) => self.frame(now, &mut buffer[..length]),
                Received::TooLong => self.host.drop(Dropped::TooLarge),
                Received::Nothing => {
                    self.frames = false;
                    break;
                }
            }
        }
        self.frame = buffer;
    }

    fn frame(&mut self, now: Instant, frame: &mut [u8]) {
        match ethernet::open(frame) {
            Ok(Frame::Ipv4(packet)) => self.packet(now, packet),
            Ok(Frame::Arp(to, answer)) => {
                let host = &mut self.host;
                host.line.arp(&mut host.counters, to, &answer);
            }
            Err(why) => self.host.drop(why),
        }
    }

    /// A packet as it came.
    fn packet(&mut self, now: Instant, packet: &mut [u8]) {
        let header = match ipv4::parse(packet) {
            Ok(header) => header,
            Err(why) => return self.host.drop(why),
        };
        if header.from != GUEST {
            return self.host.drop(Dropped::ForeignAddress);
        }
        self.host.counters.bytes_out += header.total as u64;
        let packet = &mut packet[..header.total];
        if !Reassembler::is_fragment(packet) {
            return self.whole(now, &header, packet);
        }
        let whole = self.reassembler.accept(now, packet);
        self.look_after_fragments();
        if let Some(mut whole) = whole {
            match ipv4::parse(&whole) {
                Ok(header) => self.whole(now, &header, &mut whole),
                Err(why) => self.host.drop(why),
            }
        }
    }

    fn look_after_fragments(&mut self) {
        let given_up = self.reassembler.take_given_up();
        self.host.counters.drop_many(Dropped::Fragments, given_up);
        let at = self.reassembler.next_expiry();
        let token = Token::only(Owner::Fragments);
        self.host.timers.set(&mut self.fragments, token, at);
    }

    /// A packet in one piece.
    fn whole(&mut self, now: Instant, header: &ipv4::Header, packet: &mut [u8]) {
        let host = &mut self.host;
        match header.protocol {
            ipv4::TCP => self.tcp.packet(host, now, header, packet),
            ipv4::UDP => self.datagram(now, header, packet),
            ipv4::ICMP => self.ping.packet(host, now, header, packet),
            _ => host.drop(Dropped::Unsupported),
        }
    }

    fn datagram(&mut self, now: Instant, header: &ipv4::Header, packet: &[u8]) {
        let host = &mut self.host;
        let Some(datagram) = udp::parse(header, packet) else {
            return host.drop(Dropped::Malformed);
        };
        let port = datagram.to.port();
        if header.to != GATEWAY {
            self.udp.datagram(host, now, &datagram, packet);
        } else if port == DNS_PORT {
            self.dns
                .question(host, now, datagram.guest_port, datagram.data);
        } else {
            host.refuse(now, "udp", header.to, port, Reason::GatewayPort);
            host.give_error(Unreachable::Port, packet);
        }
    }

    /// Does what the daemon asks.
    fn serve(&mut self) {
        let (tcp_flows, half_open) = self.tcp.count();
        let live = Live {
            tcp_flows: tcp_flows - half_open,
            half_open,
            udp_flows: self.udp.count(),
            memory_bytes: self.host.budget.used()
                + self.host.line.queued()
                + self.reassembler.memory()
                + self.dns.memory(),
        };
        let Self {
            host,
            control,
            engine,
            alone,
            ..
        } = self;
        control.serve(|command| match command {
            Command::Engine(pidfd) => match follow(host, engine, alone, pidfd) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Refused(format!("cannot wait for this descriptor: {error}")),
            },
            Command::Resolvers(addresses) => {
                host.resolvers = Resolvers::new(addresses);
                Reply::Done
            }
            Command::Counters => Reply::Counters(host.counters.snapshot(live)),
            Command::Line => match host.line.as_fd().try_clone_to_owned() {
                Ok(line) => Reply::Line(line),
                Err(error) => Reply::Refused(format!("cannot copy the line: {error}")),
            },
        });
    }
}

/// Ends with this process from now on.
fn follow(
    host: &mut Host,
    engine: &mut Option<OwnedFd>,
    alone: &mut Alarm,
    pidfd: OwnedFd,
) -> io::Result<()> {
    let token = Token::only(Owner::Engine);
    host.poller.watch(&pidfd, token, Watch::Level)?;
    if let Some(old) = engine.replace(pidfd) {
        // The daemon may hold the old one open, too: closing it here would not
        // end the watch.
        host.poller.forget(&old)?;
    }
    host.timers.set(alone, token, None);
    Ok(())
}
