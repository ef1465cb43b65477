//! Builds on a host whose disk fills up in the middle: `no_space`, nothing half-made, and all of
//! the room back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{House, Kernel, Root, Small, skip, wait};

const LONG: Duration = Duration::from_secs(600);
/// A log, and the journal of the database.
const SLACK: u64 = 8 << 20;

fn furnished() -> House {
    let house = House::new();
    fs::create_dir_all(house.state()).expect("an own directory");
    house
}

/// What is kept of images, logs aside.
fn kept(house: &House) -> Vec<PathBuf> {
    let images = fs::read_dir(house.state().join("images")).expect("the daemon's");
    let paths = images.map(|entry| entry.expect("the daemon's").path());
    paths
        .filter(|path| path.extension().is_none_or(|end| end != "log"))
        .collect()
}

fn log(house: &House) -> PathBuf {
    house.state().join("images/dev.build.log")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn stage(house: &House) -> String {
    let list = house.api("GET", "/v1/operations", None).body;
    let operations = list["operations"].as_array().cloned().unwrap_or_default();
    let build = operations
        .iter()
        .find(|one| one["kind"] == "image.build" && one["done"] == false);
    build
        .and_then(|build| build["stage"].as_str())
        .unwrap_or_default()
        .to_owned()
}

/// Builds with a script, on a host that is filled when `now` says so.
fn a_build_that_runs_out_of_room(script: &str, now: impl Fn(&House) -> bool, why: &[&str]) {
    if !e2e::am_root() {
        skip!("a small file system for the state needs root to mount it");
    }
    let house = furnished();
    let Some(small) = Small::mount(&house, house.state(), "1800m") else {
        skip!("this root may not mount")
    };
    house.furnish(Root::Bare, Kernel::Old);
    let before = house.census();
    let _ = house.banger("create --name box --no-start").ok();
    let free = small.free();
    let path = house.dir().join("script");
    fs::write(&path, script).expect("an own file");
    let path = path.display().to_string();
    let words = ["image", "build", "dev", "--from", "bare", "--script", &path];
    let live = house.call(words).limit(LONG).start();
    wait::until_true("it is time to fill the disk", LONG, || now(&house));
    let filler = small.fill_up();
    let done = live.wait().expect(5).says("cannot build \"dev\"");
    // Who makes room needs none.
    let _ = house.banger("rm box").ok();
    let done = done.says("banger disk --reclaim");
    println!("{}", done.err());
    assert!(
        why.iter().any(|why| done.err().contains(why)),
        "none of {why:?}: {done}"
    );
    fs::remove_file(filler).expect("an own file");
    let _ = house.banger("image show dev").expect(3);
    house.assert_as_before(&before, Duration::from_secs(20));
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
    let now = small.free();
    assert!(now + SLACK > free, "{free} were free, {now} are");

    // With room again the same build is well.
    fs::write(&path, "touch /built").expect("an own file");
    let _ = house.call(words).limit(LONG).run().ok();
    let _ = house.banger("image rm dev").ok();
}

#[test]
fn a_host_that_fills_up_under_a_build_vm_ends_its_build() {
    // It goes on whatever its writes meet, and would end well.
    let script = "echo begun
        for i in $(seq 40); do dd if=/dev/zero of=/big$i bs=1M count=8 conv=fsync; done
        rm -f /big*; exit 0";
    let begun = |house: &House| text(&log(house)).contains("begun");
    let why = ["the host has no room for what the build VM writes"];
    a_build_that_runs_out_of_room(script, begun, &why);
}

#[test]
fn a_host_that_fills_up_while_a_root_is_copied_ends_its_build() {
    let script = "dd if=/dev/zero of=/big bs=1M count=300 conv=fsync";
    let copying = |house: &House| stage(house) == "copy_root";
    let why = [
        "no room for the guest's root",
        "cannot keep the guest's root",
        // Its last writes, as services end.
        "the host has no room for what the build VM writes",
    ];
    a_build_that_runs_out_of_room(script, copying, &why);
}

#[test]
fn a_disk_that_fills_up_during_a_build_is_no_space_and_gets_all_of_it_back() {
    if !e2e::am_root() {
        skip!("a small file system for the state needs root to mount it");
    }
    let house = furnished();
    let Some(small) = Small::mount(&house, house.state(), "1400m") else {
        skip!("this root may not mount")
    };
    let _ = house.banger("list").ok();
    let free = small.free();
    let words = ["image", "build", "--suite", "bookworm"];
    let build = house.call(words).limit(LONG).start();
    wait::until_true("packages are unpacked", Duration::from_secs(300), || {
        small.free() + (100 << 20) < free
    });
    let filler = small.fill_up();
    let done = build.wait();
    fs::remove_file(filler).expect("an own file");
    let _ = done.expect(5).says("no space");
    assert_eq!(kept(&house), [""; 0].map(PathBuf::from));
    assert_eq!(house.banger("image list -q").ok().line(), "");
    let now = small.free();
    assert!(now + SLACK > free, "{free} were free, {now} are");
}
