//! A world for one daemon: network namespaces in which everything that a guest
//! may and may not reach is known, and listens.
//!
//! ```text
//!  the host: daemon, gateways, engines           outside
//!  lo    127.0.0.53:53 (names), listeners   ┌──  10.77.0.1, 203.0.113.10
//!  lan0  10.77.0.2/24 ──────────────────────┘    169.254.169.254
//!  lan1  10.88.0.1/24 ─────────────────────────  10.88.0.2
//! ```
//!
//! The host's `/etc` is a copy of its own, so that its resolvers can change.
//! An ordinary user makes all of it in a user namespace, and the daemon runs
//! in one more where it has that user's id again, and no power.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::done::Done;
use crate::fixture;
use crate::house::House;
use crate::run::{Call, Live};
use crate::user::User;
use crate::{am_root, wait};

/// The host's address towards the outside.
pub const HOST: &str = "10.77.0.2";
/// An address outside, of which [`NAME`] is the name.
pub const OUTSIDE: &str = "203.0.113.10";
/// A name that all resolvers of this world know.
pub const NAME: &str = "outside.test";
/// A name for which each resolver has another address.
pub const WHICH: &str = "which.test";
/// Outside: whatever [`World::ask`] may ask for, by TCP and UDP.
pub const SERVICE: u16 = 7;
/// On the host: the same, on all its addresses.
pub const LISTENER: u16 = 8000;
/// On the host: the same, on loopback alone.
pub const LOOPBACK_LISTENER: u16 = 8001;
/// The resolver on the host's loopback, and what it says [`WHICH`] is.
pub const FIRST_RESOLVER: (&str, &str) = ("127.0.0.53", "192.0.2.1");
/// Another one there.
pub const SECOND_RESOLVER: (&str, &str) = ("127.0.0.54", "192.0.2.2");
/// One outside.
pub const THIRD_RESOLVER: (&str, &str) = ("10.77.0.1", "192.0.2.3");
/// Outside, no route goes there, and the router says so.
pub const NO_HOST: &str = "203.0.113.77";

const SOON: Duration = Duration::from_secs(30);

/// The namespaces and the servers in them; gone when dropped, but for what
/// lives in them.
pub struct World {
    /// What makes a command one of the host's root.
    enter: Vec<String>,
    /// What makes the host's root who lives in the house.
    become_user: Vec<String>,
    enter_outside: Vec<String>,
    etc: PathBuf,
    probe: PathBuf,
    /// Namespaces and servers, the newest last.
    living: Vec<Live>,
}

/// How a file is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Another file is renamed over it.
    Rename,
    /// Its bytes are replaced.
    InPlace,
}

impl World {
    /// Makes a world, and moves the daemon of this house into it, whose user
    /// this is. `None` where that user may not make namespaces.
    ///
    /// # Panics
    /// When it can be begun, but not finished.
    #[must_use]
    #[track_caller]
    pub fn around(house: &House, user: Option<&User>) -> Option<Self> {
        let uid = user.map_or(rustix::process::geteuid().as_raw(), |user| user.uid);
        let gid = user.map_or(rustix::process::getegid().as_raw(), |user| user.gid);
        let is_root = user.is_none() && am_root();
        let probe = house.dir().join("probe");
        fs::copy(fixture::probe(), &probe).expect("an own directory");
        house.give(&probe);

        let (mine, theirs): (&[&str], &[&str]) = if is_root {
            (&[], &[])
        } else {
            (
                &["--user", "--map-root-user"],
                &["--user", "--preserve-credentials"],
            )
        };
        let unshare = [&words(&["unshare", "--net", "--mount"])[..], &words(mine)].concat();
        let host = hold(house, &unshare, &probe)?;
        let target = format!("--target={}", host.pid());
        let enter_all = words(&["nsenter", &target, "--mount"]);
        let enter_all = [enter_all, words(theirs)].concat();
        let enter = [&enter_all[..], &words(&["--net"])].concat();
        let apart = [&enter[..], &words(&["--", "unshare", "--net"])].concat();
        let outside = hold(house, &apart, &probe).expect("what was made before can be made in it");
        let far = outside.pid();
        let net = format!("--net=/proc/{far}/ns/net");
        let enter_outside = [enter_all, vec![net]].concat();
        let mut world = Self {
            enter,
            become_user: if is_root {
                Vec::new()
            } else {
                words(&["unshare", "--user"])
                    .into_iter()
                    .chain([format!("--map-user={uid}"), format!("--map-group={gid}")])
                    .chain(words(&["--"]))
                    .collect()
            },
            enter_outside,
            etc: copy_of_etc(house),
            probe,
            living: vec![host, outside],
        };
        world.lay_lines(house, far);
        world.open_services(house);
        world.move_in(house);
        Some(world)
    }

    fn lay_lines(&self, house: &House, far: u32) {
        let script = format!(
            "mount --bind {} /etc
             ip link set lo up
             ip link add lan0 type veth peer name far0
             ip link add lan1 type veth peer name far1
             ip link set far0 netns {far}
             ip link set far1 netns {far}
             ip addr add {HOST}/24 brd + dev lan0
             ip addr add 169.254.7.7/32 dev lan0
             ip addr add 10.88.0.1/24 brd + dev lan1
             ip link set lan0 up
             ip link set lan1 up
             ip route add default via 10.77.0.1
             ip route add local 10.98.0.0/24 dev lo",
            self.etc.display()
        );
        let _ = self.on_host(house, &["sh", "-ec", &script]).run().ok();
        let script = format!(
            "ip link set lo up
             ip addr add {OUTSIDE}/32 dev lo
             ip addr add 169.254.169.254/32 dev lo
             ip addr add 10.77.0.1/24 brd + dev far0
             ip addr add 10.88.0.2/24 brd + dev far1
             ip link set far0 up
             ip link set far1 up
             ip route add unreachable {NO_HOST}/32
             echo 1 > /proc/sys/net/ipv4/ip_forward"
        );
        let _ = self.outside(house, &["sh", "-ec", &script]).run().ok();
    }

    fn open_services(&mut self, house: &House) {
        let names = |(address, which): (&str, &str)| {
            format!("dns={address}:53/{NAME}={OUTSIDE},{WHICH}={which}")
        };
        let on_host = [
            format!("tcp=0.0.0.0:{LISTENER}"),
            format!("udp=0.0.0.0:{LISTENER}"),
            format!("tcp=127.0.0.1:{LOOPBACK_LISTENER}"),
            format!("udp=127.0.0.1:{LOOPBACK_LISTENER}"),
            names(FIRST_RESOLVER),
            names(SECOND_RESOLVER),
        ];
        let outside = [
            format!("tcp=0.0.0.0:{SERVICE}"),
            // A datagram's answer has to come from where the question went.
            format!("udp={OUTSIDE}:{SERVICE}"),
            format!("udp=169.254.169.254:{SERVICE}"),
            names(THIRD_RESOLVER),
        ];
        let serve = |enter: &[String], specs: &[String]| {
            let serve = words(&["--", &self.probe.to_string_lossy(), "serve"]);
            started(house, &[enter, &serve, specs].concat(), "ready")
        };
        let all = [
            serve(&self.enter, &on_host).expect("all is free in a new world"),
            serve(&self.enter_outside, &outside).expect("all is free in a new world"),
        ];
        self.living.extend(all);
    }

    /// Starts the daemon of a house in this world, again if it runs.
    #[track_caller]
    pub fn move_in(&self, house: &House) {
        if house.daemon_pid().is_some() {
            house.stop_daemon();
        }
        let _ = self.banger(house, &["list"]).ok();
    }

    /// The CLI from within, which starts a daemon there if none runs.
    #[track_caller]
    #[must_use]
    pub fn banger(&self, house: &House, args: &[&str]) -> Done {
        let cli = house.programs().join("banger");
        let cli = words(&["--", &cli.to_string_lossy()]);
        let cli = if self.become_user.is_empty() {
            cli
        } else {
            [&words(&["--"])[..], &self.become_user, &cli[1..]].concat()
        };
        let line = [&self.enter[..], &cli, &words(args)].concat();
        house.wrap(Call::new(&line[0], &line[1..])).run()
    }

    /// A command of the host's root.
    #[must_use]
    pub fn on_host(&self, house: &House, args: &[&str]) -> Call {
        Self::within(house, &self.enter, args)
    }

    /// A command outside.
    #[must_use]
    pub fn outside(&self, house: &House, args: &[&str]) -> Call {
        Self::within(house, &self.enter_outside, args)
    }

    fn within(house: &House, enter: &[String], args: &[&str]) -> Call {
        let line = [enter, &words(&["--"]), &words(args)].concat();
        house.wrap(Call::new(&line[0], &line[1..]))
    }

    /// Keeps something running outside as long as this world, which says this
    /// word when it is ready.
    ///
    /// # Panics
    /// When it does not say it.
    #[track_caller]
    pub fn serve_outside(&mut self, house: &House, args: &[&str], word: &str) {
        let line = [&self.enter_outside[..], &words(&["--"]), &words(args)].concat();
        let live = started(house, &line, word);
        self.living
            .push(live.unwrap_or_else(|| panic!("{args:?} does not start")));
    }

    /// What the servers said on their own output, of outside.
    #[must_use]
    pub fn servers_said(&self) -> String {
        self.living.iter().map(Live::out_so_far).collect()
    }

    /// The probe's path on the host.
    #[must_use]
    pub fn probe(&self) -> String {
        self.probe.to_string_lossy().into_owned()
    }

    /// Names a resolver in the host's `/etc/resolv.conf`.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn resolve_by(&self, house: &House, resolver: &str, change: Change) {
        set_resolver(house, &self.etc, resolver, change);
    }

    /// Puts the probe into a guest, as `/root/probe`.
    #[track_caller]
    pub fn equip(&self, house: &House, vm: &str) {
        let script = "cat > /root/probe && chmod 755 /root/probe";
        let _ = house
            .call(["exec", "-i", vm, "--", "sh", "-c", script])
            .input_file(&self.probe)
            .run()
            .ok();
    }

    /// Runs the probe in a guest that was equipped.
    #[must_use]
    pub fn call_probe(&self, house: &House, vm: &str, line: &str) -> Call {
        let start = ["exec", vm, "--", "/root/probe"];
        house.call(start.into_iter().chain(line.split_whitespace()))
    }

    /// As [`World::call_probe`]: what it said.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, house: &House, vm: &str, line: &str) -> String {
        self.call_probe(house, vm, line).run().ok().line()
    }
}

fn words(of: &[&str]) -> Vec<String> {
    of.iter().map(|&word| word.to_owned()).collect()
}

/// New namespaces with somebody in them.
fn hold(house: &House, unshare: &[String], probe: &Path) -> Option<Live> {
    let hold = words(&["--", &probe.to_string_lossy(), "hold"]);
    started(house, &[unshare, &hold[..]].concat(), "up")
}

/// A program that has said a word; `None` where it ended before.
fn started(house: &House, line: &[String], word: &str) -> Option<Live> {
    let call = house.wrap(Call::new(&line[0], &line[1..]));
    let mut live = call.input_held().start();
    let spoke = wait::until("a program speaks or ends", SOON, || {
        let spoke = live.out_so_far().contains(word);
        (spoke || live.has_ended()).then_some(spoke)
    });
    if !spoke {
        println!("{}", live.err_so_far());
    }
    spoke.then_some(live)
}

/// The host's own `/etc`, as far as this user may read it, with a resolver
/// that listens on loopback.
fn copy_of_etc(house: &House) -> PathBuf {
    let etc = house.dir().join("etc");
    let from = ["-dR", "--preserve=mode", "/etc/."].map(AsRef::as_ref);
    fs::create_dir_all(&etc).expect("an own directory");
    house.give(&etc);
    // What cannot be read is not needed either.
    let _ = house
        .wrap(Call::new("cp", from.into_iter().chain([etc.as_os_str()])))
        .run();
    set_resolver(house, &etc, FIRST_RESOLVER.0, Change::Rename);
    etc
}

fn set_resolver(house: &House, etc: &Path, resolver: &str, change: Change) {
    let file = etc.join("resolv.conf");
    let text = format!("# of the tests\nnameserver {resolver}\n");
    match change {
        Change::InPlace => fs::write(&file, text).expect("an own file"),
        Change::Rename => {
            let new = etc.join("resolv.conf.new");
            fs::write(&new, text).expect("an own directory");
            house.give(&new);
            fs::rename(&new, &file).expect("an own directory");
        }
    }
}
