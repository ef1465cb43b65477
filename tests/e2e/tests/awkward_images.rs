//! Awkward images by way of a real registry: what banger makes of them is what `umoci unpack`
//! makes of the same layers, entry by entry.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/banger-images/tests/image/mod.rs"]
mod image;

use std::ffi::OsStr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use e2e::{Call, House, Registry, skip};
use image::scan::{Mounted, differing, make_disk, scan};
use image::{Pack, awkward, large};

/// Room for what umoci unpacks of one image.
const ROOM: u64 = 1 << 30;

/// Stacks of layers, each with the paths that umoci gets wrong.
type Stacks = Vec<(&'static str, Vec<Vec<u8>>, &'static [&'static str])>;

#[test]
fn awkward_images_of_a_registry_are_what_umoci_makes_of_them() {
    let house = House::new();
    let place = house.dir().join("registry");
    let Some(registry) = Registry::start(&place, None).filter(|_| image::has_umoci()) else {
        skip!("needs docker-registry, skopeo, umoci and root");
    };
    let mut stacks: Stacks = Vec::new();
    for (what, layers) in awkward::stacks() {
        let layers = awkward::with_root(layers);
        let numbered = layers.iter().zip(0..);
        let bytes = numbered.map(|(entries, number)| image::layer(entries, number));
        stacks.push((what, bytes.collect(), &[]));
    }
    // Umoci's reader takes a value of no bytes for no attribute.
    stacks.push(("permissions", awkward::permissions(), &["empty"]));
    stacks.push(("names", large::names(), &[]));
    stacks.push(("127 layers", large::many(), &[]));
    stacks.push(("lost+found", large::found(), &[]));
    for (number, (what, layers, apart)) in stacks.iter().enumerate() {
        assert_alike(&house, &registry, (number, what), layers, apart);
    }
}

#[test]
fn awkward_images_that_want_a_login_are_what_umoci_makes_of_them() {
    let house = House::new();
    let place = house.dir().join("registry");
    let login = Some(("ada", "s3cret"));
    let Some(registry) = Registry::start(&place, login).filter(|_| image::has_umoci()) else {
        skip!("needs docker-registry, skopeo, umoci and root");
    };
    registry.log_in(&house);
    house.set_env("BANGER_LOG_LEVEL", "debug");
    let holes = tempfile::tempdir().unwrap();
    let sparse = ["-S", "--format=pax", "--sparse-version=1.0"];
    let holes = large::holey(holes.path(), &sparse, "1.5");
    // Umoci's nanoseconds in 64 bits end in 2262.
    let far = large::TIMES.iter().filter(|time| time.1 > 9_000_000_000);
    let far = far.flat_map(|time| ["", "d-", "l-", "p-"].map(|kind| format!("{kind}{}", time.0)));
    let far: Vec<String> = far.collect();
    let far: Vec<&str> = far.iter().map(String::as_str).collect();
    for (number, (what, layers, apart)) in [
        ("access lists", awkward::access_lists(), &[][..]),
        ("devices", awkward::devices(), &[]),
        ("times", large::times(), &far),
        ("holes", vec![holes], &[]),
    ]
    .iter()
    .enumerate()
    {
        assert_alike(&house, &registry, (number, what), layers, apart);
    }
    // The password, and the form that it is sent in, stay where they were.
    let (state, cache) = (house.state(), house.dir().join("cache"));
    let words = ["-rlaF", "-e", "s3cret", "-e", "YWRhOnMzY3JldA"].map(OsStr::new);
    let places = [state.as_os_str(), cache.as_os_str()];
    let found = Call::new("grep", [&words[..], &places].concat()).run();
    assert_eq!(found.code, 1, "{found}");
}

/// Pushes these layers, pulls them, and holds the root filesystem against what umoci unpacks.
fn assert_alike(
    house: &House,
    registry: &Registry,
    (number, what): (usize, &str),
    layers: &[Vec<u8>],
    apart: &[&str],
) {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let pack = [Pack::Gzip, Pack::Zstd, Pack::No][number % 3];
    image::layout(&layout, layers, pack);
    let copy = format!(
        "cp -r {} image\numoci tag --image image:x 1\n",
        layout.display()
    );
    let reference = registry.push(&format!("awkward-{number}"), &copy);
    let _ = house
        .call(["pull", &reference, "--name", "awkward"])
        .run()
        .ok();
    let shown = house.banger("image show awkward --json").ok().json();
    let rootfs = shown["image"]["rootfs_path"].as_str().unwrap().to_owned();
    e2e::disk::assert_clean(Path::new(&rootfs));

    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let begun = i64::try_from(begun.as_secs()).unwrap();
    let disk = dir.path().join("disk");
    make_disk(&disk, ROOM);
    let room = Mounted::new(&disk, dir.path().join("u"), "loop");
    let bundle = room.0.join("b");
    image::umoci(layers, &bundle).unwrap_or_else(|said| panic!("{what}: {said}"));
    let mut theirs = scan(&bundle.join("rootfs"));
    let ours = Mounted::new(Path::new(&rootfs), dir.path().join("i"), "loop,ro");
    let mut seen = scan(&ours.0);
    assert!(seen.len() > 2, "{what}: {seen:?}");
    let differing = differing(&mut seen, &mut theirs, begun, apart);
    assert!(
        differing.is_empty(),
        "{what}: {} differ\n{}",
        differing.len(),
        differing.join("\n")
    );
    drop(ours);
    let _ = house.banger("image rm awkward").ok();
}
