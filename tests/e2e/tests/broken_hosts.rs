//! Hosts on which banger cannot work, or not as it would like: no engine, a
//! bad configuration, a damaged database, stale sockets, full or read-only
//! disks. Each is named, with a hint and a status, and nothing is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use e2e::{Call, House, Kernel, Root, census, skip, wait};
use serde_json::json;

#[test]
fn a_missing_engine_is_named_with_what_to_do() {
    let house = House::with(Root::Bare, Kernel::Old);
    house.configure(&format!("qemu_bin = \"/nosuch/qemu\"\ndefault_image_name = \"bare\"\ndefault_kernel_name = \"k6.1\"\n{}", House::configuration()));
    let _ = house.banger("daemon stop").ok();
    let _ = house
        .banger("run -- true")
        .expect(125)
        .says("error: ")
        .says("hint: ");
    let done = house
        .banger("create --name box")
        .expect(5)
        .says("engine")
        .says("hint: ")
        .says("install");
    println!("{}", done.err());
    let reply = house.api("POST", "/v1/vms", Some(&json!({"name": "api"})));
    let code = if reply.status == 202 {
        let id = reply.body["operation"]["id"]
            .as_str()
            .expect("an id")
            .to_owned();
        house
            .api("GET", &format!("/v1/operations/{id}?wait=60s"), None)
            .body["operation"]["error_code"]
            .as_str()
            .unwrap_or("")
            .to_owned()
    } else {
        reply.code().to_owned()
    };
    assert_eq!(code, "no_engine");
    let doctor = house.banger("doctor");
    assert_eq!(doctor.code, 5, "{doctor}");
    assert!(doctor.out().contains("FAIL"), "{doctor}");
    // With none on PATH.
    house.configure(&format!(
        "default_image_name = \"bare\"\ndefault_kernel_name = \"k6.1\"\n{}",
        House::configuration()
    ));
    let _ = house.banger("daemon stop").ok();
    let bin = house.dir().join("home/bin");
    fs::create_dir_all(&bin).expect("an own directory");
    for tool in ["sh", "true", "mke2fs", "e2fsck"] {
        if let Some(at) = census::which(tool) {
            std::os::unix::fs::symlink(at, bin.join(tool)).expect("an own directory");
        }
    }
    let done = house
        .call(["create", "--name", "box2"])
        .env("PATH", &bin)
        .run()
        .expect(5)
        .says("hint: ")
        .says("install");
    println!("{}", done.err());
    let _ = house.banger("daemon stop").ok();
    for vm in house.vms() {
        assert_ne!(vm["state"], "running", "{vm}");
        let _ = house
            .call(["rm", vm["name"].as_str().expect("a name")])
            .run()
            .ok();
    }
}

#[test]
fn a_bad_configuration_stops_the_daemon_with_file_line_and_key() {
    let house = House::new();
    for (text, key) in [
        ("log_level = \"info\"\nengine = \"nosuch\"\n", "engine"),
        ("a = 1\nvm_defaults.vcpu = 99\n", "vcpu"),
        ("\nqemu_bin = \"relative/path\"\n", "qemu_bin"),
    ] {
        house.configure(text);
        let done = house.banger("list").expect(5);
        let message = done.err();
        assert!(
            message.contains("config.toml") && message.contains(key) && message.contains('2'),
            "{message}"
        );
        assert!(house.daemon_pid().is_none());
    }
    house.configure("= not toml");
    let _ = house.banger("list").expect(5).says("config.toml");
    // An unknown key is only a warning.
    house.configure("nosuch_key = 1\n");
    let _ = house.banger("list").ok();
}

#[test]
fn a_damaged_or_newer_database_stops_the_daemon_and_stays_as_it_is() {
    let house = House::new();
    let _ = house.banger("list").ok();
    house.stop_daemon();
    let path = house.database();
    let good = fs::read(&path).expect("the database is there");
    let newer = {
        let connection = rusqlite::Connection::open(&path).expect("a database");
        connection
            .pragma_update(None, "user_version", 9999)
            .expect("writable");
        drop(connection);
        fs::read(&path).expect("the database is there")
    };
    // Where its tables are; most of the file is room for more.
    let mut torn = good.clone();
    torn[4096..16 * 4096].fill(0xA5);
    let mut headless = good.clone();
    headless[..100].fill(0);
    for (what, bytes) in [
        ("newer", newer),
        ("headless", headless),
        ("torn", torn),
        ("text", b"hello, this is no database at all\n".to_vec()),
    ] {
        for extra in ["state.db-wal", "state.db-shm"] {
            let _ = fs::remove_file(house.state().join(extra));
        }
        fs::write(&path, &bytes).expect("an own file");
        let done = house.banger("list").expect(5).says("state.db");
        println!("{what}: {}", done.err().trim());
        assert!(house.daemon_pid().is_none());
        assert_eq!(
            fs::read(&path).expect("still there"),
            bytes,
            "{what}: it was changed"
        );
    }
    for extra in ["state.db-wal", "state.db-shm"] {
        let _ = fs::remove_file(house.state().join(extra));
    }
    fs::write(&path, &good).expect("an own file");
    let _ = house.banger("list").ok();
}

#[test]
fn a_stale_socket_and_a_lost_one_are_no_obstacle() {
    let house = House::new();
    let _ = house.banger("list").ok();
    // Left behind by a daemon that was killed.
    house.kill_daemon();
    assert!(house.socket().exists(), "a killed daemon leaves its socket");
    let _ = house.banger("list").ok();
    // A foreign, dead socket in its place.
    house.stop_daemon();
    let _ = fs::remove_file(house.socket());
    drop(std::os::unix::net::UnixListener::bind(house.socket()).expect("an own directory"));
    let _ = house.banger("list").ok();
    // Removed under a daemon that lives: found by its lock, and bound again.
    let pid = house.daemon_pid().expect("a daemon");
    fs::remove_file(house.socket()).expect("an own file");
    let _ = house.banger("list").ok();
    assert_eq!(house.daemon_pid(), Some(pid), "the same daemon");
    wait::until_true("the socket is bound again", Duration::from_secs(10), || {
        let _ = house.banger("list").ok();
        house.socket().exists()
    });
    // The whole runtime directory, as a logout does.
    // The daemon binds its socket again at once, perhaps between the two steps.
    wait::until_true("the directory goes", Duration::from_secs(10), || {
        fs::remove_dir_all(house.runtime()).is_ok()
    });
    let _ = house.banger("list").ok();
    assert_eq!(
        house
            .processes()
            .iter()
            .filter(|p| p.program == "bangerd")
            .count(),
        1
    );
}

#[test]
fn a_runtime_directory_that_others_reach_is_refused() {
    let house = House::new();
    fs::create_dir_all(house.runtime()).expect("an own directory");
    fs::set_permissions(house.runtime(), fs::Permissions::from_mode(0o777))
        .expect("an own directory");
    let _ = house.banger("list").expect(5).says("error: ");
    fs::remove_dir(house.runtime()).expect("nothing in it");
    let elsewhere = house.dir().join("home/elsewhere");
    fs::create_dir(&elsewhere).expect("an own directory");
    std::os::unix::fs::symlink(&elsewhere, house.runtime()).expect("an own directory");
    let _ = house.banger("list").expect(5).says("error: ");
    assert_eq!(
        fs::read_dir(&elsewhere).expect("an own directory").count(),
        0
    );
    fs::remove_file(house.runtime()).expect("an own link");
}

/// A mount that goes away with the test, passed or failed.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: std::path::PathBuf, options: &str) -> Option<Self> {
        let done = Call::new(
            "mount",
            [
                "-t",
                "tmpfs",
                "-o",
                options,
                "tmpfs",
                &at.display().to_string(),
            ],
        )
        .run();
        (done.code == 0).then_some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Call::new("umount", ["--lazy".as_ref(), self.0.as_os_str()]).run();
    }
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    if !e2e::am_root() {
        let house = House::new();
        fs::create_dir_all(house.state()).expect("an own directory");
        fs::set_permissions(house.state(), fs::Permissions::from_mode(0o500))
            .expect("an own directory");
        let _ = house.banger("list").expect(5).says("state");
        fs::set_permissions(house.state(), fs::Permissions::from_mode(0o700))
            .expect("an own directory");
        return;
    }
    // Root may write anywhere but on a read-only mount.
    let house = House::new();
    fs::create_dir_all(house.state()).expect("an own directory");
    let Some(mounted) = Mounted::tmpfs(house.state(), "ro,size=1m") else {
        skip!("this root may not mount")
    };
    let done = house.banger("list");
    let again = house.banger("create --name box");
    drop(mounted);
    let _ = done
        .expect(5)
        .says("error: ")
        .says(&house.state().display().to_string());
    let _ = again.expect(5);
    assert_eq!(
        fs::read_dir(house.state())
            .expect("an own directory")
            .count(),
        0
    );
}

#[test]
fn a_full_disk_is_no_space_and_leaves_nothing_half_made() {
    if !e2e::am_root() {
        skip!("a small file system for the state needs root to mount it");
    }
    let house = House::new();
    fs::create_dir_all(house.state()).expect("an own directory");
    let Some(mounted) = Mounted::tmpfs(house.state(), "size=300m,mode=0700") else {
        skip!("this root may not mount")
    };
    let deb = e2e::fixture::kernel_deb(Kernel::Old);
    let root = e2e::fixture::root(Root::Bare);
    let _ = house
        .call([
            "image".as_ref(),
            "register".as_ref(),
            "--name".as_ref(),
            "bare".as_ref(),
            "--rootfs".as_ref(),
            root.as_os_str(),
        ])
        .run()
        .ok();
    let import = house
        .call([
            "kernel".as_ref(),
            "import".as_ref(),
            "k6.1".as_ref(),
            "--deb".as_ref(),
            deb.as_os_str(),
        ])
        .run();
    let before = house.rest();
    let create = house.banger("create --name box --image bare");
    let run = house.banger("run --rm --image bare -- true");
    // No room for anything at all.
    let fill = house.state().join("fill");
    let _ = Call::new(
        "dd",
        ["if=/dev/zero", &format!("of={}", fill.display()), "bs=1M"],
    )
    .run();
    let packed = house.banger("create --name box --image bare");
    let list = house.banger("list");
    fs::remove_file(&fill).expect("an own file");
    let after = house.rest();
    let alive = house.banger("list --json");
    let _ = house.banger("daemon stop --with-vms");
    wait::until_true("the daemon has ended", Duration::from_secs(20), || {
        house.daemon_pid().is_none()
    });
    drop(mounted);
    println!("import: {}\ncreate: {}", import.err(), create.err());
    // Less than a gigabyte is left from the beginning.
    let _ = create.expect(5).says("error: ").says("free");
    let _ = run.expect(125).says("free");
    assert!(packed.code == 5 || packed.code == 70, "{packed}");
    let _ = list.ok();
    assert_eq!(alive.ok().json()["vms"].as_array().map(Vec::len), Some(0));
    let changed = after.differs_from(&before);
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

#[test]
fn a_guest_whose_host_is_full_meets_errors_runs_on_and_is_told_of() {
    if !e2e::am_root() {
        skip!("a small file system for the state needs root to mount it");
    }
    let house = House::new();
    fs::create_dir_all(house.state()).expect("an own directory");
    let Some(mounted) = Mounted::tmpfs(house.state(), "size=2g,mode=0700") else {
        skip!("this root may not mount")
    };
    house.furnish(Root::Bare, Kernel::Old);
    let create = house.banger("create --name box");
    let events = house
        .call(["events", "box"])
        .limit(Duration::from_secs(300))
        .start();
    wait::pause(Duration::from_millis(500));
    let fill = house.state().join("fill");
    let _ = Call::new(
        "dd",
        ["if=/dev/zero", &format!("of={}", fill.display()), "bs=1M"],
    )
    .run();
    // Little enough to fit into the guest's memory: of more, Linux may hold the writer back for ever
    // once the file system has given up.
    let script = "dd if=/dev/zero of=/root/big bs=1M count=16 conv=fsync";
    let write = house.sh("box", script);
    let told = wait::eventually(Duration::from_secs(30), || {
        events.out_so_far().contains("disk full").then_some(())
    });
    let alive = house.banger("exec box -- echo alive");
    fs::remove_file(&fill).expect("an own file");
    events.ctrl_c();
    let events = events.wait();
    let log = house.log_tail();
    let killed = house.banger("kill box");
    let restart = house.banger("start box");
    let again = house.sh("box", script);
    let _ = house.banger("daemon stop --with-vms");
    wait::until_true("the daemon has ended", Duration::from_secs(60), || {
        house.daemon_pid().is_none()
    });
    drop(mounted);
    let _ = create.ok();
    // An I/O error, or already the read-only file system that comes of one.
    assert_eq!(write.code, 1, "{write}");
    assert!(write.err().contains("dd: "), "{write}");
    assert!(told.is_some(), "{events}");
    assert!(events.out().contains("its work disk"), "{events}");
    assert!(log.contains("no room for what the guest writes"), "{log}");
    assert_eq!(alive.ok().line(), "alive");
    // With room again all is well at the next boot.
    let _ = killed.ok();
    let _ = restart.ok();
    let _ = again.ok();
    let _ = events.expect(130);
}
