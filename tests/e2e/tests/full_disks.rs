//! Bundles and promotions that run out of room: told as such, nothing half made, all space given
//! back, and done when there is room again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::toy::{Answer, Gate, Toy, part};
use e2e::{Call, Census, House, Kernel, Live, Small, fixture, skip};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

/// Left free: enough for the daemon's rows, and for no image and no kernel.
const LEFT: u64 = 6 << 20;

/// Where a bundle is served.
const PATH: &str = "/bundle.tar.zst";

/// A house whose catalog has one bundle, which comes through a gate the first time.
struct Shop {
    house: House,
    bundle: Vec<u8>,
    toy: Toy,
    gate: Gate,
}

impl Shop {
    /// `words` make the bundle of a name, in a directory.
    fn open(name: &str, words: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let house = House::new();
        let catalog = house.dir().join("catalog.json");
        let line = format!("catalog_path = \"{}\"\n", catalog.display());
        house.configure(&format!("{line}{}", House::configuration()));
        let dir = house.dir().join("made");
        fs::create_dir(&dir).expect("an own directory");
        let out = dir.join("bundle.tar.zst");
        let mut line: Vec<String> = ["internal", "make-bundle"].map(str::to_owned).into();
        line.extend(words(&dir));
        line.extend(["--name", name, "--json", "-o"].map(str::to_owned));
        line.push(out.display().to_string());
        let mut entry = house
            .call(&line)
            .limit(Duration::from_secs(300))
            .run()
            .ok()
            .json();
        let bundle = fs::read(&out).expect("it was made");
        let gate = Gate::default();
        let (whole, held) = (bundle.clone(), gate.clone());
        let toy = Toy::start(move |asked| -> Option<Answer> {
            let answer = (asked.path == PATH).then(|| part(&whole, asked.from))?;
            Some(match asked.nth {
                0 => answer.held(1 << 16, &held),
                _ => answer,
            })
        });
        entry["tarball_url"] = format!("http://{}{PATH}", toy.at).into();
        let text = json!({"version": 1, "entries": [entry]}).to_string();
        fs::write(&catalog, text).expect("an own file");
        Self {
            house,
            bundle,
            toy,
            gate,
        }
    }

    fn of_image() -> Self {
        Self::open("box", |dir| {
            let script = "mkdir -p root/etc && head -c 24M /dev/urandom > root/etc/noise && \
                tar --owner=0 --group=0 -C root -cf root.tar .";
            let _ = Call::new("sh", ["-ec", script]).within(dir).run().ok();
            let root = dir.join("root.tar").display().to_string();
            ["image", "--size", "256M", "--rootfs-tar", &root]
                .map(str::to_owned)
                .into()
        })
    }

    fn of_kernel() -> Self {
        Self::open("mine", |_| {
            let deb = fixture::kernel_deb(Kernel::Old).display().to_string();
            ["kernel", "--deb", &deb].map(str::to_owned).into()
        })
    }

    fn begin(&self) -> Census {
        let _ = self.house.banger("list").ok();
        self.house.census()
    }

    /// Begins a pull, and fills the disk while it waits.
    fn pull_and_fill(&self, words: &[&str], small: &Small<'_>) -> (Live, PathBuf) {
        let live = self.house.call(words).start();
        self.toy.wait_asked(PATH, 1);
        let filler = small.fill(LEFT);
        self.gate.open();
        (live, filler)
    }

    /// No room: said, with the next step; the operation has the code.
    fn assert_full(&self, live: Live, before: &Census) {
        let done = live.wait().expect(5).says("banger disk --reclaim");
        println!("{}", done.err());
        assert_eq!(self.house.operations()[0]["error_code"], "no_space");
        self.house.assert_as_before(before, SOON);
        assert_eq!(self.house.api("GET", "/v1/ping", None).status, 200);
    }
}

fn assert_given_back(small: &Small<'_>, free: u64) {
    let now = small.free();
    assert!(now + (1 << 20) > free, "{free} bytes were free, {now} are");
}

#[test]
fn a_bundle_that_does_not_fit_unpacked_is_as_if_it_was_never_asked_for() {
    for (shop, pull, gone) in [
        (Shop::of_image(), &["pull", "box"][..], "image rm box"),
        (
            Shop::of_kernel(),
            &["kernel", "pull", "mine"],
            "kernel rm mine",
        ),
    ] {
        let Some(small) = Small::mount(&shop.house, shop.house.dir().join("state"), "1200m") else {
            skip!("this user may not mount");
        };
        let before = shop.begin();
        let (live, filler) = shop.pull_and_fill(pull, &small);
        shop.assert_full(live, &before);
        assert_given_back(&small, LEFT);
        let full = shop.house.call(pull).run().expect(5);
        let state = shop.house.state().display().to_string();
        let _ = full.says(&format!("left in {state} ("));
        fs::remove_file(filler).expect("an own file");
        let _ = shop.house.call(pull).run().ok();
        assert_eq!(shop.toy.asked(PATH).len(), 1, "it was here");
        let _ = shop.house.banger(gone).ok();
        shop.house.assert_as_before(&before, SOON);
    }
}

#[test]
fn a_bundle_that_does_not_fit_the_cache_comes_when_there_is_room() {
    let shop = Shop::of_image();
    let Some(small) = Small::mount(&shop.house, shop.house.cache(), "160m") else {
        skip!("this user may not mount");
    };
    let before = shop.begin();
    let (live, filler) = shop.pull_and_fill(&["pull", "box"], &small);
    shop.assert_full(live, &before);
    fs::remove_file(filler).expect("an own file");
    let _ = shop.house.banger("pull box").ok();
    let asked = shop.toy.asked(PATH);
    assert_eq!(asked.len(), 2, "no try makes room: {asked:?}");
    assert!(asked[1].from < shop.bundle.len(), "{asked:?}");
    let _ = shop.house.banger("image rm box").ok();
    shop.house.assert_as_before(&before, SOON);
}

/// A file system of the host with much in it.
fn large_root(house: &House, megabytes: u64) -> PathBuf {
    let path = house.dir().join("large.ext4");
    let size = format!("{}M", megabytes + 400);
    let words = ["-q", "-F", "-t", "ext4"].map(AsRef::as_ref);
    let words = words.into_iter().chain([path.as_os_str(), size.as_ref()]);
    let _ = Call::new("mke2fs", words).run().ok();
    let file = File::options().write(true).open(&path);
    let file = file.expect("it was made");
    let piece = vec![0xa5; 1 << 20];
    for at in 0..megabytes {
        let at = (200 + at) << 20;
        file.write_all_at(&piece, at).expect("an own file");
    }
    path
}

#[test]
fn a_promotion_that_does_not_fit_or_is_given_up_leaves_the_image_as_it_was() {
    let house = House::new();
    let Some(small) = Small::mount(&house, house.dir().join("state"), "1400m") else {
        skip!("this user may not mount");
    };
    let root = large_root(&house, 1500).display().to_string();
    let words = ["image", "register", "--name", "mine", "--rootfs", &root];
    let _ = house.call(words).run().ok();
    let shown = house.banger("image show mine --json").ok().json();
    let (before, free) = (house.census(), small.free());

    let live = house.call(["image", "promote", "mine"]).start();
    house.wait_stage("copy", SOON);
    live.ctrl_c();
    let _ = live.wait().expect(130);
    house.assert_as_before(&before, SOON);
    assert_given_back(&small, free);

    let done = house.banger("image promote mine").expect(5);
    let _ = done.says("banger disk --reclaim");
    assert_eq!(house.operations()[0]["error_code"], "no_space");
    house.assert_as_before(&before, SOON);
    assert_given_back(&small, free);
    let now = house.banger("image show mine --json").ok().json();
    assert_eq!(now, shown);
    assert_eq!(house.api("GET", "/v1/ping", None).status, 200);
    let _ = house.banger("image rm mine").ok();
}
