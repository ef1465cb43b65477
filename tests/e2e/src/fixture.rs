//! Slow things, made once: kernels and root file systems.
//!
//! Each is kept in `target/e2e-cache/<name>-<hash of its recipe>`, made under
//! a file lock beside that path and renamed into it, so that tests and runs
//! share it and a cut run leaves nothing half-made. A recipe that changes has
//! another hash; the old result stays until the directory is removed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::am_root;
use crate::house::House;
use crate::run::Call;

/// A kernel package of Debian bookworm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The distribution's own, 6.1.
    Old,
    /// The newer one, 6.12.
    New,
}

impl Kernel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Old, Self::New];

    /// Name of the kernel in a house.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Old => "k6.1",
            Self::New => "k6.12",
        }
    }

    /// What `uname -r` begins with.
    #[must_use]
    pub fn version(self) -> &'static str {
        match self {
            Self::Old => "6.1.",
            Self::New => "6.12.",
        }
    }

    /// The package that always leads to the newest of its line.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Old => "linux-image-cloud-amd64",
            Self::New => "linux-image-6.12-cloud-amd64",
        }
    }
}

/// A root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// One static busybox and no init.
    Bare,
    /// The same, with busybox as init.
    Busybox,
    /// Debian with sysvinit and openrc.
    Openrc,
    /// Debian 12 with systemd, as banger builds it.
    Bookworm,
    /// Debian 13 with systemd, as banger builds it.
    Trixie,
}

impl Root {
    /// All.
    pub const ALL: [Self; 5] = [
        Self::Bare,
        Self::Busybox,
        Self::Openrc,
        Self::Bookworm,
        Self::Trixie,
    ];

    /// Name of the image in a house.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Busybox => "busybox",
            Self::Openrc => "openrc",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Whether its init is systemd.
    #[must_use]
    pub fn has_systemd(self) -> bool {
        matches!(self, Self::Bookworm | Self::Trixie)
    }
}

/// Where cargo puts the programs of the profile that this one was built with:
/// above a test's own file, beside that of a program.
fn built() -> PathBuf {
    let this = std::env::current_exe().expect("a process has a file");
    let dir = this.parent().expect("a file has a directory");
    let dir = match dir.file_name() {
        Some(name) if name == "deps" => dir.parent().expect("target/debug/deps"),
        _ => dir,
    };
    dir.to_owned()
}

/// The directory of the built programs: that of this build, or
/// `BANGER_TEST_PROGRAMS`.
///
/// # Panics
/// When a program is not there.
#[must_use]
pub fn programs() -> PathBuf {
    let dir = std::env::var_os("BANGER_TEST_PROGRAMS").map_or_else(built, PathBuf::from);
    for name in ["banger", "bangerd", "banger-agent", "banger-gateway"] {
        assert!(
            dir.join(name).is_file(),
            "no {name} in {}; 'make test' builds it",
            dir.display()
        );
    }
    dir
}

/// `target/e2e-cache`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn cache() -> PathBuf {
    let built = built();
    let dir = built.with_file_name("e2e-cache");
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
    dir
}

/// Notes that a test cannot run here.
pub fn note_skip(test: &str, reason: &str) {
    let thread = std::thread::current();
    let line = format!(
        "SKIPPED {test}::{}: {reason}\n",
        thread.name().unwrap_or("?")
    );
    eprint!("{line}");
    if let Ok(mut file) = File::options()
        .append(true)
        .create(true)
        .open(cache().join("skipped.txt"))
    {
        let _ = file.write_all(line.as_bytes());
    }
}

/// The directory that the recipe makes; `make` fills an empty one where it is
/// not there yet.
pub(crate) fn cached(name: &str, recipe: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let digest = Sha256::digest(recipe.as_bytes());
    let hash: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    let at = cache().join(format!("{name}-{hash}"));
    if at.is_dir() {
        return at;
    }
    let lock = File::create(cache().join(format!("{name}-{hash}.lock"))).expect("an own directory");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock on an own file");
    if !at.is_dir() {
        let beside = cache().join(format!("{name}-{hash}.new"));
        let _ = fs::remove_dir_all(&beside);
        fs::create_dir_all(&beside).expect("an own directory");
        make(&beside);
        fs::rename(&beside, &at).expect("an own directory");
    }
    at
}

/// The package file of a kernel, fetched and verified by apt with lists of
/// its own, so that neither root nor `apt-get update` is needed.
///
/// # Panics
/// When it cannot be fetched.
#[must_use]
pub fn kernel_deb(kernel: Kernel) -> PathBuf {
    let package = kernel.package();
    let dir = cached(kernel.name(), &format!("deb 1 {package}"), |dir| {
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub)).expect("an own directory");
        }
        let options: Vec<String> = [
            format!("Dir::State::Lists={}/lists", dir.display()),
            format!("Dir::Cache={}", dir.display()),
            "Dir::Etc::SourceParts=/etc/apt/sources.list.d".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ]
        .into_iter()
        .flat_map(|o| ["-o".to_owned(), o])
        .collect();
        let apt = |program: &str, words: &[&str]| {
            let args = options
                .iter()
                .map(String::as_str)
                .chain(words.iter().copied());
            Call::new(program, args)
                .within(dir)
                .limit(Duration::from_secs(300))
                .run()
        };
        // An entry that is not Debian's may fail; what counts comes next.
        let _ = apt("apt-get", &["-qq", "update"]);
        let depends = apt("apt-cache", &["depends", package]).ok().out();
        let real = depends
            .lines()
            .filter_map(|l| l.trim().strip_prefix("Depends: "))
            .find(|p| p.starts_with("linux-image-"))
            .unwrap_or_else(|| panic!("{package} leads to no kernel: {depends}"))
            .to_owned();
        let _ = apt("apt-get", &["-qq", "download", &real]).ok();
        for sub in ["lists", "archives"] {
            let _ = fs::remove_dir_all(dir.join(sub));
        }
    });
    let files = fs::read_dir(&dir).expect("made above").flatten();
    files
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .expect("made above")
}

/// The ext4 file of a root.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn root(root: Root) -> PathBuf {
    let dir = match root {
        Root::Bare => cached("bare", &format!("{BARE} {PASSWD}"), |dir| {
            busybox_root(dir, false)
        }),
        Root::Busybox => cached("busybox", &format!("{BARE} {PASSWD} {INITTAB}"), |dir| {
            busybox_root(dir, true)
        }),
        Root::Openrc => cached("openrc", &OPENRC.join(" "), openrc_root),
        Root::Bookworm => cached("bookworm", &suite_recipe("bookworm"), |dir| {
            suite_root(dir, "bookworm", &[]);
        }),
        Root::Trixie => cached("trixie", &suite_recipe("trixie"), |dir| {
            suite_root(dir, "trixie", &[]);
        }),
    };
    dir.join("rootfs.ext4")
}

/// The program that the network tests run at both ends of a connection: a
/// static one, which a guest without any library runs.
///
/// # Panics
/// When it cannot be compiled.
#[must_use]
pub fn probe() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/probe");
    let mut files: Vec<_> = fs::read_dir(&sources)
        .expect("the sources are there")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let text = |file| fs::read_to_string(file).unwrap_or_default();
    let recipe: String = files.iter().map(text).collect();
    // Its one program must be static; procedural macros cannot be, so that a
    // flag of all of cargo's crates would not do.
    let flags = [
        "--edition=2024",
        "-Copt-level=2",
        "-Cstrip=symbols",
        "-Ctarget-feature=+crt-static",
        "-o",
        "probe",
    ];
    let dir = cached("probe", &format!("{flags:?} {recipe}"), |dir| {
        let main = sources.join("main.rs");
        let line = flags.iter().map(AsRef::as_ref).chain([main.as_os_str()]);
        let _ = Call::new("rustc", line).within(dir).run().ok();
    });
    dir.join("probe")
}

const BARE: &str = "busybox 1";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000:Bob:/home/bob:/bin/sh\n";
const GROUP: &str = "root:x:0:\nbob:x:1000:\nstaff:x:50:bob\n";
const INITTAB: &str = "::sysinit:/bin/mkdir -p /run/lock\n::once:/bin/touch /run/init-was-here\n::shutdown:/bin/touch /root/shutdown-was-here\n";

/// Programs of busybox that would be taken for the image's init.
const INITS: [&str; 6] = [
    "init",
    "linuxrc",
    "runsvdir",
    "runit",
    "runsv",
    "openrc-init",
];

fn busybox_root(dir: &Path, with_init: bool) {
    let tree = dir.join("tree");
    for sub in [
        "bin", "sbin", "usr/bin", "usr/sbin", "etc", "root", "home/bob", "tmp", "var", "dev",
        "proc", "sys", "run",
    ] {
        fs::create_dir_all(tree.join(sub)).expect("an own directory");
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))
        .expect("Debian's busybox-static is installed");
    let applets = Call::new("/bin/busybox", ["--list"]).run().ok().out();
    for applet in applets
        .lines()
        .filter(|a| !INITS.contains(a) && *a != "busybox")
    {
        std::os::unix::fs::symlink("/bin/busybox", tree.join("bin").join(applet))
            .expect("an own directory");
    }
    fs::write(tree.join("etc/passwd"), PASSWD).expect("an own file");
    fs::write(tree.join("etc/group"), GROUP).expect("an own file");
    fs::write(tree.join("root/from-image"), "seeded\n").expect("an own file");
    if with_init {
        std::os::unix::fs::symlink("/bin/busybox", tree.join("sbin/init"))
            .expect("an own directory");
        fs::write(tree.join("etc/inittab"), INITTAB).expect("an own file");
    }
    make_ext4(&tree, &dir.join("rootfs.ext4"), "24M");
    let _ = fs::remove_dir_all(&tree);
}

/// Writes a tree to ext4 with root as owner, whoever runs the tests.
fn make_ext4(tree: &Path, file: &Path, size: &str) {
    let words = ["-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d"];
    let make = ["mke2fs"]
        .iter()
        .chain(words.iter())
        .map(AsRef::as_ref)
        .chain([tree.as_os_str(), file.as_os_str(), size.as_ref()]);
    // In a user namespace the own files are root's.
    let wrap = if am_root() {
        vec!["env"]
    } else {
        vec!["unshare", "--map-root-user"]
    };
    let line: Vec<_> = wrap.iter().map(AsRef::as_ref).chain(make).collect();
    let _ = Call::new(line[0], &line[1..]).run().ok();
}

const OPENRC: [&str; 11] = [
    "--variant=minbase",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--include=sysvinit-core,openrc,procps,initscripts",
    // There are no such terminals in a guest; their respawning is only noise.
    "--customize-hook=sed -i '/getty/s/^/#/' \"$1/etc/inittab\"",
    // Checks and mounts of disks that are no guest's: each script costs an
    // emulated processor a second at every boot.
    "--customize-hook=cd \"$1/etc/runlevels\" && rm -f default/bootlogs sysinit/bootmisc.sh \
     sysinit/brightness sysinit/check* sysinit/hwclock.sh sysinit/mount* sysinit/urandom",
    // What is in no runlevel is still asked what it needs, at every boot and every end.
    "--customize-hook=cd \"$1/etc/init.d\" && rm -f agetty bootlogs bootmisc.sh brightness check* \
     hwclock.sh mount* single urandom",
    "--customize-hook=rm -rf \"$1/var/cache/apt\"/*.bin \"$1/var/lib/apt/lists\"/*",
    "--quiet",
    "bookworm",
];

fn openrc_root(dir: &Path) {
    let tar = dir.join("root.tar");
    let line: Vec<_> = OPENRC
        .iter()
        .map(AsRef::as_ref)
        .chain([tar.as_os_str()])
        .collect();
    let _ = Call::new("mmdebstrap", &line)
        .limit(Duration::from_secs(900))
        .run()
        .ok();
    let script = "mkdir tree && tar -xf root.tar -C tree --exclude='./dev/*' --numeric-owner && \
                  mke2fs -q -t ext4 -m 0 -O ^has_journal -d tree rootfs.ext4 500M && rm -rf tree root.tar";
    let wrap: &[&str] = if am_root() {
        &["env"]
    } else {
        &["unshare", "--map-auto", "--map-root-user"]
    };
    let _ = Call::new(
        wrap[0],
        wrap[1..].iter().copied().chain(["sh", "-ec", script]),
    )
    .within(dir)
    .run()
    .ok();
}

/// The image is what banger makes of a suite, so the recipe is banger's code
/// that says what goes in and writes it.
fn suite_recipe(suite: &str) -> String {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/banger-images/src");
    let mut recipe = suite.to_owned();
    for room in ["suite", "tar", "tree", "ext4", "xattr"] {
        let mut files = vec![sources.join(format!("{room}.rs"))];
        let more = fs::read_dir(sources.join(room)).into_iter().flatten();
        files.extend(more.flatten().map(|entry| entry.path()));
        files.sort();
        let text = |file| fs::read_to_string(file).unwrap_or_default();
        recipe.extend(files.iter().map(text));
    }
    recipe
}

fn suite_root(dir: &Path, suite: &str, packages: &[&str]) {
    let house = House::new();
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    let build = house
        .call(
            ["image", "build", "built", "--suite", suite]
                .into_iter()
                .chain(packages),
        )
        .limit(Duration::from_secs(900))
        .run()
        .ok();
    drop(build);
    let image = house
        .call(["image", "show", "built", "--json"])
        .run()
        .ok()
        .json();
    let made = image["image"]["rootfs_path"]
        .as_str()
        .expect("an image has a root")
        .to_owned();
    let _ = Call::new(
        "cp",
        [
            "--sparse=always".as_ref(),
            made.as_ref(),
            dir.join("rootfs.ext4").as_os_str(),
        ],
    )
    .run()
    .ok();
}

/// Debian 12 whose own network manager asks for an address on every card, and
/// has the device manager without which it would wait for ever: as after
/// `systemctl enable systemd-networkd`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn networkd_root() -> PathBuf {
    let changes = [NETWORKD, WANTS_ONLINE, NETWORKD_UNITS].concat();
    let recipe = format!("{} udev {changes}", suite_recipe("bookworm"));
    let dir = cached("networkd", &recipe, |dir| {
        suite_root(dir, "bookworm", &["udev"]);
        fs::write(dir.join("all.network"), NETWORKD).expect("an own directory");
        fs::write(dir.join("wants-online.service"), WANTS_ONLINE).expect("an own directory");
        let _ = Call::new("debugfs", ["-w", "-f", "-", "rootfs.ext4"])
            .within(dir)
            .input(NETWORKD_UNITS)
            .run()
            .ok();
    });
    dir.join("rootfs.ext4")
}

/// Debian 12 with the package managers of other distributions, and what makes
/// packages for them.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn packagers_root() -> PathBuf {
    let recipe = format!("{} {PACKAGERS:?}", suite_recipe("bookworm"));
    let dir = cached("packagers", &recipe, |dir| {
        suite_root(dir, "bookworm", &PACKAGERS);
    });
    dir.join("rootfs.ext4")
}

const PACKAGERS: [&str; 7] = [
    "createrepo-c",
    "dnf",
    "libarchive-tools",
    "makepkg",
    "pacman-package-manager",
    "rpm",
    "zypper",
];

const NETWORKD: &str = "[Match]\nName=*\n[Network]\nDHCP=yes\n";
/// Somebody for whom the boot waits until the network is there.
const WANTS_ONLINE: &str = "[Unit]\nWants=network-online.target\nAfter=network-online.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n";
// `write` takes a name in the present directory only.
const NETWORKD_UNITS: &str = "\
cd /etc/systemd/network
write all.network 00-all.network
cd /etc/systemd/system
symlink multi-user.target.wants/systemd-networkd.service /lib/systemd/system/systemd-networkd.service
symlink dbus-org.freedesktop.network1.service /lib/systemd/system/systemd-networkd.service
mkdir sockets.target.wants
symlink sockets.target.wants/systemd-networkd.socket /lib/systemd/system/systemd-networkd.socket
mkdir network-online.target.wants
symlink network-online.target.wants/systemd-networkd-wait-online.service /lib/systemd/system/systemd-networkd-wait-online.service
symlink multi-user.target.wants/wants-online.service /etc/systemd/system/wants-online.service
write wants-online.service wants-online.service
";
