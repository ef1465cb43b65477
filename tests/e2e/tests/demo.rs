//! The first minutes of a stranger: an ordinary user, nothing local, one
//! command; interrupted wherever it can be, and then to its end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::{Call, House, Terminal, User, am_root, fixture, skip, wait};

/// Kernel by apt, image by mmdebstrap, a boot.
const WHOLE: Duration = Duration::from_secs(480);

#[test]
fn the_demo_of_an_ordinary_user_survives_interrupts_and_ends_well() {
    let user = am_root().then(User::make);
    if user.is_none() && !fs::read_to_string("/etc/subuid").is_ok_and(|t| !t.is_empty()) {
        skip!("this user has no subordinate ids (/etc/subuid), which mmdebstrap needs");
    }
    let house = House::bare(user.as_ref());
    let script = house.dir().join("home/demo");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/demo");
    fs::copy(&source, &script).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    house.give(&script);
    let temporary = temporaries(user.as_ref());
    let window = Terminal::open(&house, 110, 40);
    let mut interrupted = BTreeSet::new();
    let mut bytes = 0;
    let began = Instant::now();
    loop {
        assert!(
            began.elapsed() < WHOLE,
            "the demo takes too long; interrupted in {interrupted:?}\n{}",
            window.screen()
        );
        window.clear();
        window.line(&format!(
            "sh {} {}; echo status=$?",
            script.display(),
            house.programs().display()
        ));
        let new = wait::until("a new stage, or the end", WHOLE, || {
            // The line that was typed has the word too, not at its beginning.
            let ended = |line: &str| line.starts_with("status=");
            if window.screen().lines().any(ended) {
                return Some(None);
            }
            let stage = stage(&house, &mut bytes)?;
            (!interrupted.contains(&stage)).then_some(Some(stage))
        });
        let Some(stage) = new else { break };
        println!("{:5.1} s: Ctrl-C in {stage}", began.elapsed().as_secs_f32());
        interrupted.insert(stage.clone());
        window.press("C-c");
        // The shell that ran the script may be gone with it: then the prompt is back without a word.
        wait::until_true("the demo ends on Ctrl-C", Duration::from_secs(30), || {
            let screen = window.screen();
            screen.contains("status=130") || screen.trim_end().ends_with("host$")
        });
        wait::until_true(
            &format!("nothing is left of a run that was interrupted in {stage}"),
            Duration::from_secs(15),
            || {
                let busy: Vec<_> = house
                    .processes()
                    .into_iter()
                    .filter(|p| {
                        ["mmdebstrap", "apt", "qemu", "dpkg", "tar"]
                            .iter()
                            .any(|tool| p.command.contains(tool))
                            && p.program != "bangerd"
                    })
                    .collect();
                busy.is_empty() && house.vms().is_empty()
            },
        );
    }
    let screen = window.screen();
    println!("{:5.1} s: the end\n{screen}", began.elapsed().as_secs_f32());
    assert!(screen.contains("status=0"), "{screen}");
    assert!(
        screen.contains("hello from Debian GNU/Linux 12 (bookworm), kernel 6."),
        "{screen}"
    );
    assert!(
        screen.contains("banger run --name box") && screen.contains("banger --help"),
        "how to go on:\n{screen}"
    );
    assert!(bytes > 0, "progress counts bytes");
    assert!(
        interrupted.len() >= 3,
        "more stages than {interrupted:?} can be interrupted"
    );
    drop(window);
    // The second time everything is local.
    let again = house.call(["run", "--rm", "--", "true"]).run().ok();
    println!(
        "a second run --rm -- true: {:.1} s",
        again.took.as_secs_f32()
    );
    assert!(house.vms().is_empty());
    // Only what the first run had to fetch stays.
    let images = house.banger("image list --json").ok().json();
    assert_eq!(
        images["images"].as_array().map(Vec::len),
        Some(1),
        "{images}"
    );
    assert_eq!(images["images"][0]["name"], "debian-bookworm");
    let kernels = house.banger("kernel list --json").ok().json();
    assert_eq!(
        kernels["entries"].as_array().map(Vec::len),
        Some(1),
        "{kernels}"
    );
    house.stop_daemon();
    let left: Vec<PathBuf> = temporaries(user.as_ref())
        .difference(&temporary)
        .cloned()
        .collect();
    assert!(left.is_empty(), "left in /tmp: {left:?}");
    // Everything is the user's, and nobody else's.
    if let Some(user) = &user {
        let foreign = Call::new(
            "find",
            [
                "/".as_ref(),
                "-xdev".as_ref(),
                "-path".as_ref(),
                "/proc".as_ref(),
                "-prune".as_ref(),
                "-o".as_ref(),
                "-user".as_ref(),
                user.name.as_ref(),
                "-not".as_ref(),
                "-path".as_ref(),
                format!("{}*", house.dir().display()).as_ref(),
                "-not".as_ref(),
                "-path".as_ref(),
                format!("{}*", user.home.display()).as_ref(),
                "-print".as_ref() as &std::ffi::OsStr,
            ],
        )
        .run()
        .out();
        let foreign: Vec<&str> = foreign
            .lines()
            .filter(|l| {
                !l.starts_with("/proc")
                    && !l.starts_with("/var/mail")
                    && !l.starts_with("/var/spool/mail")
            })
            .collect();
        assert!(
            foreign.is_empty(),
            "files of the user outside of the own directories: {foreign:?}"
        );
        let meta = fs::metadata(house.state()).expect("the state directory");
        assert_eq!((meta.uid(), meta.mode() & 0o777), (user.uid, 0o700));
    }
    drop(house);
}

/// The stage of the operation that runs.
fn stage(house: &House, bytes: &mut u64) -> Option<String> {
    if !house.socket().exists() {
        return None;
    }
    let done = house.call(["operation", "list", "--json"]).run();
    if done.code != 0 {
        return None;
    }
    let list = done.json();
    let running: Vec<_> = list["operations"]
        .as_array()?
        .iter()
        .filter(|op| op["done"] == false)
        .collect();
    for op in &running {
        *bytes = (*bytes).max(op["bytes_done"].as_u64().unwrap_or(0));
    }
    // Work that another operation waits for says more than the one that waits.
    let op = running
        .iter()
        .find(|op| op["kind"] != "vm.create")
        .or(running.first())?;
    op["stage"].as_str().map(str::to_owned)
}

/// What there is of this user in /tmp.
fn temporaries(user: Option<&User>) -> BTreeSet<PathBuf> {
    let me = user.map_or_else(|| rustix::process::geteuid().as_raw(), |u| u.uid);
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        // Subordinate ids are far above those of people.
        let mine = meta.uid() == me || meta.uid() >= 100_000;
        let name = entry.file_name().to_string_lossy().into_owned();
        if mine
            && !name.starts_with("bgr-")
            && !name.starts_with('.')
            && user.is_none_or(|u| entry.path() != u.home)
        {
            found.insert(entry.path());
        }
    }
    found
}

#[test]
fn an_ordinary_user_does_everything_without_sudo() {
    let user = am_root().then(User::make);
    let house = match &user {
        Some(user) => House::of(user),
        None => House::new(),
    };
    // Files that this user may read.
    let copy = |from: PathBuf| -> PathBuf {
        let to = house
            .dir()
            .join("home")
            .join(from.file_name().expect("a file"));
        let _ = Call::new(
            "cp",
            ["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()],
        )
        .run()
        .ok();
        house.give(&to);
        to
    };
    let deb = copy(fixture::kernel_deb(e2e::Kernel::Old));
    let root = copy(fixture::root(e2e::Root::Busybox));
    let _ = house
        .call([
            "kernel".as_ref(),
            "import".as_ref(),
            "k".as_ref(),
            "--deb".as_ref(),
            deb.as_os_str(),
        ])
        .run()
        .ok();
    let _ = house
        .call([
            "image".as_ref(),
            "register".as_ref(),
            "--name".as_ref(),
            "r".as_ref(),
            "--rootfs".as_ref(),
            root.as_os_str(),
        ])
        .run()
        .ok();
    let before = house.census();
    let _ = house.banger("create --name box --image r").ok();
    assert_eq!(
        house.banger("exec box -- id -u").ok().line(),
        "0",
        "root inside, whoever is outside"
    );
    if let Some(user) = &user {
        let engine = house.engines().first().expect("an engine").pid;
        let status = fs::read_to_string(format!("/proc/{engine}/status")).expect("a process");
        assert!(
            status
                .lines()
                .any(|l| l.starts_with("Uid:") && l.contains(&user.uid.to_string())),
            "{status}"
        );
        // Another user, root aside, is not let in.
        let anywhere = tempfile::tempdir().expect("/tmp is writable");
        let program = anywhere.path().join("banger");
        fs::copy(house.programs().join("banger"), &program).expect("an own directory");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(anywhere.path(), open).expect("an own directory");
        let other = Call::new(program, ["list"])
            .as_user(65534, 65534)
            .env("BANGER_SOCKET", house.socket())
            .env("HOME", "/nonexistent")
            .run();
        assert_ne!(other.code, 0, "{other}");
    }
    house.kill_daemon();
    assert_eq!(house.state_of("box"), "running");
    let _ = house.banger("stop box").ok();
    for disk in house.disks("box") {
        e2e::disk::assert_clean(&disk);
    }
    let _ = house.banger("start box").ok();
    let _ = house.banger("kill box").ok();
    let _ = house.banger("rm box").ok();
    assert_eq!(
        house
            .call(["run", "--rm", "--image", "r", "--", "sh", "-c", "exit 42"])
            .run()
            .code,
        42
    );
    house.assert_as_before(&before, Duration::from_secs(2));
    // Open descriptors of an engine stay few: nothing of the daemon's leaks in.
    drop(house);
}

/// A build that was cut by a crash: mmdebstrap leaves directories of ids that are only lent to the
/// user, and one that nobody may remove must not keep the daemon from starting.
#[test]
fn a_daemon_removes_what_a_cut_build_left_and_starts_beside_what_it_cannot() {
    if !am_root() {
        skip!("files of other users need root to make them");
    }
    let user = User::make();
    let house = House::bare(Some(&user));
    let _ = house.banger("list").ok();
    let _ = house.banger("daemon stop").ok();
    let lent = fs::read_to_string("/etc/subuid").expect("a user has subordinate ids");
    let lent: u32 = lent
        .lines()
        .find_map(|line| {
            line.strip_prefix(&format!("{}:", user.name))?
                .split(':')
                .next()
        })
        .and_then(|first| first.parse().ok())
        .expect("a range of them");
    let left = |name: &str, owner: u32| {
        let place = house.state().join("images").join(name);
        let deep = place.join(".suite/tmp/var/lib/postgresql");
        fs::create_dir_all(deep.join("data")).expect("root may write there");
        house.give(&place);
        std::os::unix::fs::chown(&deep, Some(owner), Some(owner)).expect("root may give it");
        fs::set_permissions(&deep, fs::Permissions::from_mode(0o700)).expect("its owner's");
        place
    };
    let (own, other) = (
        left(".staging-lent", lent + 100),
        left(".staging-other", 12),
    );
    let _ = house.banger("list").ok();
    assert!(!own.exists(), "{}", house.log_tail());
    assert!(other.exists());
    let log = house.log_tail();
    assert!(log.contains("cannot be removed, and stays"), "{log}");
    let shown = house.banger("disk").ok();
    assert!(shown.out().contains(".staging-other"), "{shown}");
    fs::remove_dir_all(&other).expect("root may remove it");
}
