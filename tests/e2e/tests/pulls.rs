//! Pulls that meet each other, are given up, are cut, or run out of room: what has come stays in
//! the cache and comes only once, and nothing else is left.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::archive::{Entry, gzip, tar};
use e2e::toy::{Gate, Image, Toy, digest};
use e2e::{Call, Census, House, Live, Small, Terminal, disk, skip, wait};

const SOON: Duration = Duration::from_secs(60);
/// Enough to be met in the middle of it.
const LARGE: usize = 64 << 20;

/// Bytes that no two places share, and that do not pack.
fn noise(count: usize) -> Vec<u8> {
    let words = (0..count.div_ceil(8) as u64).map(|n| {
        let n = (n ^ 0x5555).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (n ^ (n >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    });
    words.flat_map(u64::to_le_bytes).take(count).collect()
}

/// Of a large layer and a small one.
fn image() -> Image {
    Image::of(vec![
        tar(&[Entry::file("large", noise(LARGE))]),
        gzip(&tar(&[Entry::file("small", "small")])),
    ])
}

/// A registry with this image, which holds the answer to one path after so many bytes, once.
fn holding(image: &Image, path: &str, after: usize) -> (Toy, Gate, String) {
    let gate = Gate::default();
    let (whole, held, path) = (image.clone(), gate.clone(), path.to_owned());
    let toy = Toy::start(move |asked| {
        let first = asked.path == path && asked.nth == 0;
        first.then(|| whole.serve(asked).held(after, &held))
    });
    let reference = toy.put("1", image.clone());
    (toy, gate, reference)
}

fn pull(house: &House, reference: &str) -> Live {
    house.call(["pull", reference, "--name", "pulled"]).start()
}

#[track_caller]
fn wait_pulls(house: &House, count: usize) {
    wait::until_true("pulls are under way", SOON, || {
        house.under_way().len() == count
    });
}

fn begun() -> (House, Census) {
    let house = House::new();
    let _ = house.banger("list").ok();
    let before = house.census();
    (house, before)
}

/// Blobs and parts of the cache: name and size.
fn blobs(house: &House) -> Vec<(String, u64)> {
    let blobs = fs::read_dir(house.cache().join("oci/blobs/sha256"));
    let blobs = blobs.into_iter().flatten().flatten();
    let one = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("a name is text");
        (name, entry.metadata().map_or(0, |found| found.len()))
    };
    let mut found: Vec<_> = blobs.map(one).collect();
    found.sort();
    found
}

fn is_part(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|end| end == "part")
}

fn part_bytes(house: &House) -> Option<u64> {
    let mut parts = blobs(house).into_iter().filter(|(name, _)| is_part(name));
    parts.next().map(|(_, size)| size)
}

#[test]
fn two_pulls_of_one_image_are_one_download() {
    let (house, before) = begun();
    let image = image();
    let (toy, gate, reference) = holding(&image, &image.layer_path(0), 1 << 20);
    let one = pull(&house, &reference);
    let two = pull(&house, &reference);
    wait_pulls(&house, 2);
    toy.wait_asked(&image.layer_path(0), 1);
    gate.open();
    let (one, two) = (one.wait().ok(), two.wait().ok());
    assert_eq!((one.line(), two.line()), ("pulled".into(), "pulled".into()));
    for path in [
        "/v2/team/app/manifests/1",
        &image.layer_path(0),
        &image.layer_path(1),
    ] {
        assert_eq!(toy.asked(path).len(), 1, "{path}");
    }
    let list = house.banger("image list --json").ok().json();
    assert_eq!(list["images"].as_array().map(Vec::len), Some(1), "{list}");

    // Another name is another image of the same blobs, and the same to the last byte.
    let again = house.call(["pull", &reference, "--name", "other"]);
    assert_eq!(again.run().ok().line(), "other");
    assert_eq!(toy.asked(&image.layer_path(0)).len(), 1);
    let [one, two] = ["pulled", "other"].map(|name| {
        let shown = house
            .call(["image", "show", name, "--json"])
            .run()
            .ok()
            .json();
        PathBuf::from(shown["image"]["rootfs_path"].as_str().expect("a path"))
    });
    let _ = Call::new("cmp", [one, two]).run().ok();
    let _ = house.banger("image rm pulled other").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn a_terminal_shows_the_bytes_of_each_layer_and_of_all() {
    let (house, before) = begun();
    let image = image();
    let path = image.layer_path(0);
    let (_toy, gate, reference) = holding(&image, &path, LARGE / 4);
    let terminal = Terminal::open(&house, 100, 30);
    terminal.line(&format!("banger pull {reference} --name pulled"));
    // Some of it; how much is told a few times a second.
    let here = " of 64.0M (";
    let digest = path.rsplit(':').next().expect("a digest");
    let shown = wait::eventually(SOON, || {
        let shown = terminal.screen();
        (shown.matches(here).count() == 2).then_some(shown)
    });
    let shown = shown.unwrap_or_else(|| panic!("{}", terminal.screen()));
    let mut lines = shown.lines().map(str::trim);
    let layer = lines.find(|line| line.starts_with(&digest[..12]));
    assert!(layer.is_some_and(|line| line.contains(here)), "{shown}");

    gate.open();
    let shown = terminal.wait_for("\npulled\n", SOON);
    assert!(!shown.contains(here), "{shown}");
    assert!(!shown.contains(&digest[..12]), "{shown}");
    let _ = house.banger("image rm pulled").ok();
    drop(terminal);
    house.assert_as_before(&before, SOON);
}

#[test]
fn who_gives_up_leaves_the_others_their_pull() {
    let (house, before) = begun();
    let image = image();
    let (toy, gate, reference) = holding(&image, &image.layer_path(0), 1 << 20);
    let first = pull(&house, &reference);
    wait_pulls(&house, 1);
    let second = pull(&house, &reference);
    wait_pulls(&house, 2);
    // Who began it goes.
    first.ctrl_c();
    let _ = first.wait().expect(130);
    wait_pulls(&house, 1);
    gate.open();
    assert_eq!(second.wait().ok().line(), "pulled");
    assert_eq!(toy.asked(&image.layer_path(0)).len(), 1);
    let _ = house.banger("image rm pulled").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn one_image_under_two_names_is_one_download_whoever_gives_up() {
    let (house, before) = begun();
    let image = image();
    let layer = image.layer_path(0);
    let (toy, gate, reference) = holding(&image, &layer, LARGE / 2);
    let first = pull(&house, &reference);
    wait::until_true("much of it is here", SOON, || {
        part_bytes(&house).is_some_and(|bytes| bytes as usize > LARGE / 4)
    });
    let second = house.call(["pull", &reference, "--name", "other"]).start();
    toy.wait_asked("/v2/team/app/manifests/1", 2);
    // Who downloads goes, and the other one, which waited, goes on with it.
    first.ctrl_c();
    let _ = first.wait().expect(130);
    assert_eq!(second.wait().ok().line(), "other");
    gate.open();
    let asked = toy.asked(&layer);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].from > LARGE / 4, "only the rest comes: {asked:?}");
    assert_eq!(toy.asked(&image.layer_path(1)).len(), 1);
    let list = house.banger("image list --json").ok().json();
    assert_eq!(list["images"].as_array().map(Vec::len), Some(1), "{list}");
    let _ = house.banger("image rm other").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn as_many_layers_as_an_image_may_have_come_where_a_login_may_open_few_files() {
    let house = House::new();
    let layer = |n: usize| gzip(&tar(&[Entry::file(format!("file-{n}"), n.to_string())]));
    let image = Image::of((0..512).map(layer).collect());
    let toy = Toy::start(|_| None);
    let reference = toy.put("1", image);
    let banger = house.programs().join("banger");
    // Of this the daemon is started.
    let mut words: Vec<&OsStr> = vec!["--nofile=200:".as_ref(), banger.as_os_str()];
    words.extend(["pull", &reference, "--name", "pulled"].map(OsStr::new));
    let done = house.wrap(Call::new("prlimit", words)).run().ok();
    assert_eq!(done.line(), "pulled");
    assert_eq!(blobs(&house).len(), 513, "layers and config");
    let daemon = house.daemon_pid().expect("it runs");
    let limits = fs::read_to_string(format!("/proc/{daemon}/limits")).expect("it runs");
    let open = limits.lines().find(|line| line.starts_with("Max open"));
    let soft = open.and_then(|line| line.split_whitespace().nth(3));
    assert_ne!(soft, Some("200"), "{limits}");
}

#[test]
fn a_large_image_gets_half_as_much_again_and_a_size_that_holds_it_is_its_size() {
    let (house, before) = begun();
    const CONTENT: u64 = 800 << 20;
    // Packs well, so that it comes at once.
    let content = noise(1 << 12).repeat((CONTENT >> 12) as usize);
    let toy = Toy::start(|_| None);
    let reference = toy.put(
        "1",
        Image::of(vec![gzip(&tar(&[Entry::file("f", content)]))]),
    );
    let size = |name: &str| {
        let words = ["image", "show", name, "--json"];
        let shown = house.call(words).run().ok().json();
        let path = shown["image"]["rootfs_path"].as_str().expect("a path");
        disk::filesystem_bytes(Path::new(path))
    };
    assert_eq!(pull(&house, &reference).wait().ok().line(), "pulled");
    let roomy = size("pulled");
    let (least, most) = (CONTENT * 3 / 2, CONTENT * 8 / 5);
    assert!(least <= roomy && roomy < most, "{roomy} bytes");

    let sized = ["pull", &reference, "--name", "sized", "--size"];
    let with = |size| house.call(sized.iter().chain(&[size]));
    let _ = with("1G").run().ok();
    assert_eq!(size("sized"), 1 << 30);
    let _ = house.banger("image rm sized pulled").ok();
    // What cannot hold it leaves nothing.
    let done = with("512M").run().expect(2);
    let _ = done.says("do not fit into 512M").says("hint: --size ");
    house.assert_as_before(&before, SOON);
}

#[test]
fn a_pull_that_is_given_up_goes_on_where_it_was() {
    let (house, before) = begun();
    let image = image();
    let manifest = "/v2/team/app/manifests/1".to_owned();
    // Nothing is known yet; nothing has come of the layer; half of it has.
    for (path, after) in [
        (manifest, 10),
        (image.layer_path(0), 0),
        (image.layer_path(0), LARGE / 2),
    ] {
        let _ = fs::remove_dir_all(house.cache().join("oci/blobs"));
        let (toy, gate, reference) = holding(&image, &path, after);
        let live = pull(&house, &reference);
        toy.wait_asked(&path, 1);
        let is_layer = path == image.layer_path(0);
        if is_layer && after > 0 {
            wait::until_true("half of it is here", SOON, || {
                part_bytes(&house).is_some_and(|bytes| bytes as usize > after / 2)
            });
        }
        live.ctrl_c();
        let _ = live.wait().expect(130);
        house.assert_as_before(&before, SOON);
        let kept = part_bytes(&house).unwrap_or(0);
        assert_eq!(kept > 0, is_layer && after > 0, "{:?}", blobs(&house));

        assert_eq!(pull(&house, &reference).wait().ok().line(), "pulled");
        gate.open();
        let asked = toy.asked(&image.layer_path(0));
        let last = asked.last().expect("it was asked for");
        assert_eq!(last.from as u64, kept, "only the rest comes again");
        assert!(blobs(&house).iter().all(|(name, _)| !is_part(name)));
        let _ = house.banger("image rm pulled").ok();
        house.assert_as_before(&before, SOON);
    }
}

#[test]
fn a_pull_that_is_given_up_while_it_is_unpacked_leaves_its_blobs() {
    let (house, before) = begun();
    // Packs well (gzip looks 32 KiB back), so that it comes at once and takes long to unpack.
    let long = gzip(&tar(&[Entry::file(
        "long",
        noise(1 << 12).repeat(64 << 10),
    )]));
    let image = Image::of(vec![long]);
    let toy = Toy::start(|_| None);
    let reference = toy.put("1", image.clone());
    for stage in ["read_layers", "write_image"] {
        let live = pull(&house, &reference);
        house.wait_stage(stage, SOON);
        live.ctrl_c();
        let _ = live.wait().expect(130);
        house.assert_as_before(&before, SOON);
        assert_eq!(blobs(&house).len(), 2, "config and layer");
    }
    assert_eq!(toy.asked(&image.layer_path(0)).len(), 1);

    // The daemon dies there.
    let live = pull(&house, &reference);
    house.wait_stage("write_image", SOON);
    house.kill_daemon();
    let _ = live.wait();
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, SOON);
    assert_eq!(pull(&house, &reference).wait().ok().line(), "pulled");
    assert_eq!(toy.asked(&image.layer_path(0)).len(), 1, "it was here");
    let _ = house.banger("image rm pulled").ok();
}

#[test]
fn files_that_are_given_up_while_they_are_read_leave_only_whole_blobs() {
    let (house, before) = begun();
    let layer = tar(&[Entry::file("large", noise(4 * LARGE))]);
    let small = tar(&[Entry::file("small", "small")]);
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest(&small), digest(&layer)]},
    })
    .to_string();
    let manifest = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["s.tar","l.tar"]}]"#;
    let archive = house.dir().join("archive.tar");
    let entries = [
        Entry::file("manifest.json", manifest),
        Entry::file("c.json", config),
        Entry::file("s.tar", small),
        Entry::file("l.tar", layer),
    ];
    fs::write(&archive, tar(&entries)).expect("an own file");
    let reference = format!("docker-archive:{}", archive.display());
    let live = pull(&house, &reference);
    house.wait_stage("read_files", SOON);
    live.ctrl_c();
    let _ = live.wait().expect(130);
    house.assert_as_before(&before, SOON);
    let kept = blobs(&house);
    assert!(kept.len() < 3, "it was given up in time: {kept:?}");
    assert!(!kept.iter().any(|(name, _)| is_part(name)), "{kept:?}");
    assert_eq!(pull(&house, &reference).wait().ok().line(), "pulled");
    let _ = house.banger("image rm pulled").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn a_daemon_that_dies_in_a_download_goes_on_with_it_when_asked_again() {
    let (house, before) = begun();
    let image = image();
    let (toy, gate, reference) = holding(&image, &image.layer_path(0), LARGE / 2);
    let live = pull(&house, &reference);
    wait::until_true("much of it is here", SOON, || {
        part_bytes(&house).is_some_and(|bytes| bytes as usize > LARGE / 4)
    });
    house.kill_daemon();
    let done = live.wait();
    assert_ne!(done.code, 0, "{done}");
    let kept = part_bytes(&house).expect("a part stays");
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, SOON);
    assert_eq!(pull(&house, &reference).wait().ok().line(), "pulled");
    gate.open();
    let asked = toy.asked(&image.layer_path(0));
    assert_eq!(asked.last().map(|last| last.from as u64), Some(kept));
    let _ = house.banger("image rm pulled").ok();
}

#[test]
fn a_disk_that_fills_while_an_image_is_written_is_as_free_as_before() {
    let house = House::new();
    let Some(small) = Small::mount(&house, house.dir().join("state"), "1200m") else {
        skip!("this user may not mount");
    };
    let _ = house.banger("list").ok();
    let before = house.census();
    let long = gzip(&tar(&[Entry::file(
        "long",
        noise(1 << 12).repeat(25 << 10),
    )]));
    let image = Image::of(vec![long]);
    let (toy, gate, reference) = holding(&image, &image.layer_path(0), 10);
    let live = pull(&house, &reference);
    toy.wait_asked(&image.layer_path(0), 1);
    let filler = small.fill(40 << 20);
    let free = small.free();
    gate.open();
    let done = live
        .wait()
        .expect(5)
        .says("No space left")
        .says("banger disk --reclaim");
    println!("{}", done.err());
    house.assert_as_before(&before, SOON);
    let now = small.free();
    assert!(now + (1 << 20) > free, "{free} bytes were free, {now} are");
    assert_eq!(house.api("GET", "/v1/ping", None).status, 200);

    fs::remove_file(filler).expect("an own file");
    assert_eq!(pull(&house, &reference).wait().ok().line(), "pulled");
    assert_eq!(
        toy.asked(&image.layer_path(0)).len(),
        1,
        "the layer was here"
    );
    let _ = house.banger("image rm pulled").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn a_full_cache_is_told_before_or_when_it_fills() {
    let house = House::new();
    let Some(small) = Small::mount(&house, house.cache(), "160m") else {
        skip!("this user may not mount");
    };
    let _ = house.banger("list").ok();
    let before = house.census();
    let image = image();
    let layer = image.layer_path(0);
    let (toy, gate, reference) = holding(&image, &layer, 1 << 20);

    // Known from the manifest: nothing is fetched.
    let filler = small.fill(32 << 20);
    let done = pull(&house, &reference).wait().expect(5);
    let done = done
        .says("the image needs about")
        .says("banger disk --reclaim");
    println!("{}", done.err());
    assert_eq!(toy.asked(&layer).len(), 0);
    house.assert_as_before(&before, SOON);
    fs::remove_file(&filler).expect("an own file");

    // While it comes.
    let live = pull(&house, &reference);
    toy.wait_asked(&layer, 1);
    let filler = small.fill(16 << 20);
    gate.open();
    let _ = live
        .wait()
        .expect(5)
        .says("no space left")
        .says("banger disk --reclaim");
    assert_eq!(toy.asked(&layer).len(), 1, "no try makes room");
    house.assert_as_before(&before, SOON);

    let kept = part_bytes(&house).expect("what came is kept");
    fs::remove_file(&filler).expect("an own file");
    assert_eq!(pull(&house, &reference).wait().ok().line(), "pulled");
    assert_eq!(toy.asked(&layer)[1].from as u64, kept);
    let _ = house.banger("image rm pulled").ok();
    house.assert_as_before(&before, SOON);
}
