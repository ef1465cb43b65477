//! Images and kernels given up at each of their stages: nothing is left but what the cache keeps,
//! and the same command then goes on to its end. A disk that fills while a kernel is unpacked.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::time::Duration;

use e2e::archive::{Entry, gzip, tar};
use e2e::toy::{Image, Toy};
use e2e::{Call, House, Kernel, Root, Small, census, fixture, skip};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
/// A package of Debian's is fetched for this.
const LONG: Duration = Duration::from_secs(180);
/// A log, and the journal of the database.
const SLACK: u64 = 8 << 20;

/// A daemon that pauses there, and so anew.
fn pause_at(house: &House, stage: &str) {
    house.stop_daemon();
    house.set_env("BANGER_PAUSE_AT", stage);
    let _ = house.banger("list").ok();
}

fn go_on(house: &House) {
    house.stop_daemon();
    house.clear_env();
    let _ = house.banger("list").ok();
}

/// Gives a command up at each of these stages.
#[track_caller]
fn give_up_at(house: &House, words: &[&str], stages: &[&str]) {
    let _ = house.banger("list").ok();
    let before = house.census();
    for stage in stages {
        pause_at(house, stage);
        let live = house.call(words).limit(LONG).start();
        house.wait_stage(stage, LONG);
        live.ctrl_c();
        let _ = live.wait().expect(130);
        let all = house.operations();
        // A build has its VM made by another.
        let last = all.iter().find(|one| one["kind"] != "vm.create");
        let last = last.expect("an operation");
        assert_eq!(last["error_code"], "cancelled", "{stage}: {last}");
        house.assert_as_before(&before, SOON);
        let strangers = census::strangers(&house.cache());
        assert!(strangers.is_empty(), "{stage}: {strangers:?}");
    }
    go_on(house);
}

/// The same, and then to its end; what it made goes by `remove`.
#[track_caller]
fn give_up(house: &House, words: &[&str], stages: &[&str], remove: &str) {
    give_up_at(house, words, stages);
    let before = house.census();
    let _ = house.call(words).limit(LONG).run().ok();
    assert_ne!(house.census().more_than(&before), [""; 0], "it came");
    let _ = house.banger(remove).ok();
    house.assert_as_before(&before, SOON);
}

/// A house whose catalog has one bundle, a file of the host, made of these words.
fn with_bundle(kind: &str, name: &str, words: &[&str]) -> House {
    let house = House::new();
    let catalog = house.dir().join("catalog.json");
    let line = format!("catalog_path = \"{}\"\n", catalog.display());
    house.configure(&format!("{line}{}", House::configuration()));
    let out = house.dir().join("bundle.tar.zst");
    let at = out.display().to_string();
    let make = [
        "internal",
        "make-bundle",
        kind,
        "--name",
        name,
        "--json",
        "-o",
        &at,
    ];
    let make = make.iter().chain(words);
    let mut entry: Value = house.call(make).limit(LONG).run().ok().json();
    entry["tarball_url"] = format!("file://{at}").into();
    let text = json!({"version": 1, "entries": [entry]}).to_string();
    fs::write(&catalog, text).expect("an own file");
    house
}

#[test]
fn an_image_is_given_up_at_any_stage() {
    let house = House::new();
    let toy = Toy::start(|_| None);
    let layer = gzip(&tar(&[
        Entry::of("root/", b'5'),
        Entry::file("root/mark", "an image"),
    ]));
    let reference = toy.put("1", Image::of(vec![layer]));
    let pull = ["pull", &reference, "--name", "app"];
    let stages = ["download", "read_layers", "write_image", "publish"];
    give_up(&house, &pull, &stages, "image rm app");

    let root = house.dir().join("root.tar");
    fs::write(&root, tar(&[Entry::file("mark", "bundled")])).expect("an own file");
    let root = root.display().to_string();
    let house = with_bundle("image", "box", &["--size", "256M", "--rootfs-tar", &root]);
    let stages = ["download", "unpack", "publish"];
    give_up(&house, &["pull", "box"], &stages, "image rm box");

    // The user's own file, made the daemon's.
    let rootfs = house.dir().join("own.ext4").display().to_string();
    let size = ["-q", "-F", "-t", "ext4", &rootfs, "64M"];
    let _ = Call::new("mke2fs", size).run().ok();
    let register = ["image", "register", "--name", "own", "--rootfs", &rootfs];
    let _ = house.call(register).run().ok();
    let promote = ["image", "promote", "own"];
    give_up_at(&house, &promote, &["copy", "publish"]);
    let _ = house.call(promote).run().ok();
}

#[test]
fn an_image_of_a_build_vm_is_given_up_after_the_work_in_it() {
    let house = House::with(Root::Bare, Kernel::New);
    let script = house.dir().join("script");
    fs::write(&script, "echo made > /mark\n").expect("an own file");
    let script = script.display().to_string();
    let build = [
        "image", "build", "dev", "--from", "bare", "--script", &script,
    ];
    let stages = ["copy_root", "read_root", "write_image", "publish"];
    give_up(&house, &build, &stages, "image rm dev");
    assert_eq!(house.build_logs(), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn a_kernel_is_given_up_at_any_stage() {
    let deb = fixture::kernel_deb(Kernel::Old).display().to_string();
    let house = with_bundle("kernel", "mine", &["--deb", &deb]);
    let stages = [
        "download",
        "unpack",
        "kernel",
        "modules",
        "modules_image",
        "publish",
    ];
    let pull = ["kernel", "pull", "mine"];
    give_up(&house, &pull, &stages, "kernel rm mine");

    // By its name in the catalog that is built in.
    let pull = ["kernel", "pull", "debian-cloud", "--name", "mine2"];
    let stages = ["package_lists", "resolve", "download", "unpack", "publish"];
    give_up(&house, &pull, &stages, "kernel rm mine2");
}

#[test]
fn a_kernel_of_a_package_that_does_not_fit_is_as_if_it_was_never_asked_for() {
    let house = House::new();
    let Some(small) = Small::mount(&house, house.dir().join("state"), "1200m") else {
        skip!("this user may not mount");
    };
    let pipe = house.dir().join("pipe");
    let _ = Call::new("mkfifo", [pipe.as_os_str()]).run().ok();
    let package = format!("deb:{}", Kernel::Old.package());
    let pull = ["kernel", "pull", &package, "--name", "mine"];
    for stage in ["download", "unpack", "modules_image"] {
        house.set_env("BANGER_PAUSE_UNTIL", &pipe.display().to_string());
        pause_at(&house, stage);
        let (before, free) = (house.census(), small.free());
        let live = house.call(pull).limit(LONG).start();
        house.wait_stage(stage, LONG);
        let filler = small.fill(6 << 20);
        let mut pipe = OpenOptions::new().write(true).open(&pipe).expect("a pipe");
        pipe.write_all(b"go on").expect("somebody reads it");
        let done = live.wait().expect(5).says("banger disk --reclaim");
        println!("{stage}: {}", done.err());
        assert_eq!(house.operations()[0]["error_code"], "no_space", "{stage}");
        fs::remove_file(filler).expect("an own file");
        house.assert_as_before(&before, SOON);
        let now = small.free();
        assert!(now + SLACK > free, "{free} bytes were free, {now} are");
        house.clear_env();
    }
    go_on(&house);
    let _ = house.call(pull).limit(LONG).run().ok();
}
