//! Why something of the guest's was not let out, and the lines about it in the
//! log: one JSON object each, at most [`LINES_A_SECOND`] and [`MAX_LOG`] in
//! all, since the guest decides how many there would be. What is not written
//! is still counted.

use std::fmt;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

/// Lines about refusals that are written in one second.
pub const LINES_A_SECOND: u32 = 10;
/// Bytes of such lines in the life of a gateway.
pub const MAX_LOG: usize = 1 << 20;
/// Lines about panics in the life of a gateway.
const MAX_PANICS: usize = 100;
/// Characters of a panic's message that are written.
const MAX_PANIC_MESSAGE: usize = 500;

/// Why something was not let out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// An address of the guest's own net: nobody is there.
    GuestSubnet,
    /// An address that means "this host" or "this network", or a reserved one.
    Reserved,
    /// 127.0.0.0/8.
    Loopback,
    /// 169.254.0.0/16 and other addresses where clouds answer with secrets.
    Metadata,
    /// 224.0.0.0/4.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// An address that the host has at this moment.
    HostAddress,
    /// The host has no route there, or not one that leads out.
    Route,
    /// The host could not be asked.
    PolicyUnknown,
    /// As many TCP connections as there may be.
    TcpLimit,
    /// As many TCP connections being opened as there may be.
    HalfOpenLimit,
    /// As many UDP flows as there may be.
    UdpLimit,
    /// No memory left of what a gateway may take.
    MemoryLimit,
    /// The gateway listens on no such port of its own address.
    GatewayPort,
    /// The host gave no socket.
    Socket,
}

impl Reason {
    /// The word in counters and log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GuestSubnet => "guest_subnet",
            Self::Reserved => "reserved",
            Self::Loopback => "loopback",
            Self::Metadata => "metadata",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::HostAddress => "host_address",
            Self::Route => "route",
            Self::PolicyUnknown => "policy_unknown",
            Self::TcpLimit => "tcp_limit",
            Self::HalfOpenLimit => "half_open_limit",
            Self::UdpLimit => "udp_limit",
            Self::MemoryLimit => "memory_limit",
            Self::GatewayPort => "gateway_port",
            Self::Socket => "socket",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// Where it should have gone.
    pub to: Ipv4Addr,
    /// The port there; 0 for protocols without.
    pub port: u16,
    /// Why it did not.
    pub reason: Reason,
}

/// One line. Everything in it is a word of ours, an address or a number.
#[derive(Serialize)]
struct Line {
    time_unix_ms: u64,
    event: &'static str,
    protocol: &'static str,
    address: Ipv4Addr,
    port: u16,
    reason: &'static str,
    /// Refusals since the line before that have none.
    unlogged: u64,
}

/// The lines about refusals.
pub struct Refusals<W = io::Stderr> {
    to: W,
    /// Bytes that may still be written.
    left: usize,
    /// The second that is being counted, and its lines.
    second: Option<(Instant, u32)>,
    unlogged: u64,
}

impl Refusals {
    /// Lines on standard error.
    #[must_use]
    pub fn on_stderr() -> Self {
        Self::new(io::stderr())
    }
}

impl<W: Write> Refusals<W> {
    /// Lines to a writer, each in one write.
    pub fn new(to: W) -> Self {
        Self {
            to,
            left: MAX_LOG,
            second: None,
            unlogged: 0,
        }
    }

    /// Writes about a refusal, unless there was enough of that.
    pub fn note(&mut self, now: Instant, refusal: Refusal) {
        if !self.take_turn(now) {
            self.unlogged += 1;
            return;
        }
        let line = Line {
            time_unix_ms: unix_ms(),
            event: "refused",
            protocol: refusal.protocol,
            address: refusal.to,
            port: refusal.port,
            reason: refusal.reason.as_str(),
            unlogged: std::mem::take(&mut self.unlogged),
        };
        let mut bytes = serde_json::to_vec(&line).expect("a line has plain fields only");
        bytes.push(b'\n');
        if bytes.len() > self.left {
            self.left = 0;
            bytes = b"{\"event\":\"refusals_unlogged_from_here\"}\n".to_vec();
        } else {
            self.left -= bytes.len();
        }
        // A log that cannot be written must not stop the traffic.
        let _ = self.to.write_all(&bytes);
    }

    /// Whether one more line may be written in this second, and at all.
    fn take_turn(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            return false;
        }
        let (since, lines) = match self.second {
            Some((since, lines)) if now.duration_since(since) < Duration::from_secs(1) => {
                (since, lines)
            }
            _ => (now, 0),
        };
        self.second = Some((since, lines + 1));
        lines < LINES_A_SECOND
    }
}

/// Makes panics write one bounded line each, in place of the text with which
/// the standard library would let a guest that can cause them fill the disk.
pub fn log_panics() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    std::panic::set_hook(Box::new(|panic| {
        if PANICS.fetch_add(1, Ordering::Relaxed) < MAX_PANICS {
            let _ = io::stderr().write_all(panic_line(panic).as_bytes());
        }
    }));
}

fn panic_line(panic: &PanicHookInfo<'_>) -> String {
    let message: String = panic
        .payload_as_str()
        .unwrap_or("of unknown type")
        .chars()
        .take(MAX_PANIC_MESSAGE)
        .collect();
    let place = panic.location().map(ToString::to_string);
    let line = serde_json::json!({
        "time_unix_ms": unix_ms(),
        "event": "panic",
        "message": message,
        "place": place,
    });
    format!("{line}\n")
}

/// Milliseconds since 1970 by the host's clock.
fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSAL: Refusal = Refusal {
        protocol: "tcp",
        to: Ipv4Addr::new(169, 254, 169, 254),
        port: 80,
        reason: Reason::Metadata,
    };

    fn lines(log: &[u8]) -> Vec<serde_json::Value> {
        std::str::from_utf8(log)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_line_says_what_was_refused_and_why() {
        let mut log = Vec::new();
        Refusals::new(&mut log).note(Instant::now(), REFUSAL);
        let [line] = &lines(&log)[..] else {
            panic!("one refusal is one line");
        };
        assert_eq!(line["event"], "refused");
        assert_eq!(line["protocol"], "tcp");
        assert_eq!(line["address"], "169.254.169.254");
        assert_eq!(line["port"], 80);
        assert_eq!(line["reason"], "metadata");
        assert_eq!(line["unlogged"], 0);
        assert!(line["time_unix_ms"].as_u64().unwrap() > 0);
    }

    #[test]
    fn a_second_has_ten_lines_and_the_next_one_tells_of_the_rest() {
        let (mut log, start) = (Vec::new(), Instant::now());
        let mut refusals = Refusals::new(&mut log);
        for ms in [0, 999, 1000] {
            for _ in 0..50 {
                refusals.note(start + Duration::from_millis(ms), REFUSAL);
            }
        }
        let lines = lines(&log);
        assert_eq!(lines.len(), 20);
        assert_eq!(lines[9]["unlogged"], 0);
        assert_eq!(lines[10]["unlogged"], 90);
        assert_eq!(lines[11]["unlogged"], 0);
    }

    #[test]
    fn the_log_ends_at_one_mebibyte_and_says_so_once() {
        let (mut log, start) = (Vec::new(), Instant::now());
        let mut refusals = Refusals::new(&mut log);
        for at in 0..20_000 {
            refusals.note(start + Duration::from_secs(at), REFUSAL);
        }
        assert!(log.len() <= MAX_LOG + 100, "{} bytes", log.len());
        assert!(log.len() > MAX_LOG - 1000, "{} bytes", log.len());
        let ends = lines(&log);
        let ends = ends.iter().filter(|line| line["event"] != "refused");
        assert_eq!(ends.count(), 1);
    }

    /// A disk that is full.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_none_of_the_guests_business() {
        Refusals::new(Full).note(Instant::now(), REFUSAL);
    }
}
