//! Bundles and catalogs: made, served on loopback, listed, pulled, booted
//! without any way to the outside; and what becomes of bad ones.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::archive::{Entry, gzip, tar};
use e2e::toy::{Image, Toy};
use e2e::{Call, House, Kernel, disk, fixture, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// Files of a directory on loopback, whole or from an offset on.
struct Web {
    at: String,
    requests: Arc<AtomicUsize>,
    /// Where the last request wanted to begin.
    begun_at: Arc<AtomicUsize>,
    /// Sent of each answer before the connection is held still.
    held_after: Arc<Mutex<Option<usize>>>,
}

impl Web {
    fn serve(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let at = listener.local_addr().expect("it is bound").to_string();
        let web = Self {
            at,
            requests: Arc::default(),
            begun_at: Arc::default(),
            held_after: Arc::default(),
        };
        let (dir, requests) = (dir.to_owned(), Arc::clone(&web.requests));
        let (held, begun_at) = (Arc::clone(&web.held_after), Arc::clone(&web.begun_at));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                requests.fetch_add(1, Ordering::SeqCst);
                let (dir, held, begun_at) = (dir.clone(), Arc::clone(&held), Arc::clone(&begun_at));
                std::thread::spawn(move || drop(answer(stream, &dir, &held, &begun_at)));
            }
        });
        web
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.at)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn hold_after(&self, bytes: Option<usize>) {
        *self.held_after.lock().expect("nobody panics with it") = bytes;
    }
}

fn answer(
    stream: TcpStream,
    dir: &Path,
    held: &Mutex<Option<usize>>,
    begun_at: &AtomicUsize,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let name = first
        .split(' ')
        .nth(1)
        .unwrap_or("/")
        .trim_start_matches('/');
    let mut from = 0;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap_or(0);
        }
    }
    begun_at.store(from, Ordering::SeqCst);
    let mut stream = stream;
    let Ok(bytes) = fs::read(dir.join(name)) else {
        return write!(stream, "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    };
    let rest = &bytes[from.min(bytes.len())..];
    let status = match from {
        0 => "200 OK".to_owned(),
        _ => format!(
            "206 Part\r\nContent-Range: bytes {from}-{}/{}",
            bytes.len() - 1,
            bytes.len()
        ),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        rest.len()
    )?;
    let hold = *held.lock().expect("nobody panics with it");
    match hold {
        Some(bytes) => {
            stream.write_all(&rest[..bytes.min(rest.len())])?;
            // Until the other side has had enough.
            std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
        }
        None => stream.write_all(rest),
    }
}

/// A root of one static busybox, and enough else that a transfer takes more
/// than one step, as a tar archive.
fn small_root(dir: &Path) -> PathBuf {
    let script = "mkdir -p root/bin root/etc root/root root/tmp root/proc root/sys root/dev root/run && \
        cp \"$(command -v busybox)\" root/bin/busybox && \
        for name in sh cat ls uname true; do ln -s busybox root/bin/$name; done && \
        echo 'root:x:0:0:root:/root:/bin/sh' > root/etc/passwd && \
        echo 'root:x:0:' > root/etc/group && echo bundled > root/etc/mark && \
        head -c 3M /dev/urandom > root/etc/noise && \
        tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C root -czf root.tar.gz .";
    let _ = Call::new("sh", ["-ec", script]).within(dir).run().ok();
    dir.join("root.tar.gz")
}

fn make(house: &House, words: &[&str]) -> Value {
    let line = ["internal", "make-bundle"]
        .iter()
        .chain(words)
        .chain(&["--json"]);
    house
        .call(line)
        .limit(Duration::from_secs(300))
        .run()
        .ok()
        .json()
}

fn write_catalog(house: &House, entries: &[Value]) {
    let path = house.dir().join("catalog.json");
    let text = json!({"version": 1, "entries": entries}).to_string();
    fs::write(&path, text).expect("an own file");
}

/// A house that looks for its catalog in its own directory.
fn house_with_catalog() -> House {
    let house = House::new();
    let catalog = house.dir().join("catalog.json");
    let line = format!("catalog_path = \"{}\"\n", catalog.display());
    house.configure(&format!("{line}{}", House::configuration()));
    write_catalog(&house, &[]);
    house
}

fn with(mut entry: Value, field: &str, value: impl Into<Value>) -> Value {
    entry[field] = value.into();
    entry
}

#[test]
fn bundles_are_made_served_listed_pulled_and_boot_offline() {
    let house = house_with_catalog();
    let dir = house.dir().join("made");
    fs::create_dir(&dir).expect("an own directory");
    let root = small_root(&dir);
    let path = |name: &str| dir.join(name).display().to_string();
    let root = root.display().to_string();
    let image = |out: &str| {
        let words = [
            "image",
            "--name",
            "box",
            "--distro",
            "busybox",
            "--kernel-ref",
            "mine",
            "--size",
            "256M",
            "--rootfs-tar",
            &root,
            "-o",
            out,
        ];
        make(&house, &words)
    };
    let made = image(&path("box.tar.zst"));
    let again = image(&path("again.tar.zst"));
    assert_eq!(made["tarball_sha256"], again["tarball_sha256"]);
    let deb = fixture::kernel_deb(Kernel::Old).display().to_string();
    let kernel = make(
        &house,
        &[
            "kernel",
            "--name",
            "mine",
            "--deb",
            &deb,
            "-o",
            &path("k.tar.zst"),
        ],
    );
    assert!(
        kernel["kernel_version"]
            .as_str()
            .is_some_and(|v| v.starts_with("6.1."))
    );

    let web = Web::serve(&dir);
    let described = with(made, "description", "One program");
    let registry = Toy::start(|_| None);
    let files = [Entry::of("etc", b'5'), Entry::file("etc/mark", "layered")];
    let recipe = registry.put("1", Image::of(vec![gzip(&tar(&files))]));
    let app = json!({"name": "app", "recipe": recipe});
    let named = json!({"name": "named", "recipe": recipe, "kernel_ref": "mine"});
    write_catalog(
        &house,
        &[
            with(described, "tarball_url", web.url("box.tar.zst")),
            with(kernel, "tarball_url", web.url("k.tar.zst")),
            app,
            named,
        ],
    );
    let _ = house.banger("list").ok();
    let before = house.census();
    let list = house.banger("image list --available").ok().out();
    let row = list
        .lines()
        .find(|line| line.starts_with("box "))
        .expect("it is listed");
    assert!(
        row.contains("available") && row.ends_with("One program"),
        "{list}"
    );
    let size = |list: &str| {
        let column = list.find("SIZE").expect("it has a head");
        let row = list.lines().find(|line| line.starts_with("box "));
        let rest = &row.expect("it is listed")[column..];
        rest.split("  ").next().unwrap_or_default().to_owned()
    };
    let fetched = size(&list);
    assert!(fetched.ends_with('M'), "that of the bundle: {list}");
    assert!(list.contains("debian-bookworm"), "{list}");
    let list = house.banger("kernel list --available --json").ok().json();
    let entries = list["entries"].as_array().expect("a list");
    let mine = entries.iter().find(|entry| entry["name"] == "mine");
    assert_eq!(mine.expect("it is listed")["pulled"], false);

    // An entry may be a reference, alone or with a kernel that comes along.
    for (name, kernel) in [("app", Value::Null), ("named", "mine".into())] {
        assert_eq!(house.banger(&format!("pull {name}")).ok().line(), name);
        let shown = house.banger(&format!("image show {name} --json"));
        let shown = shown.ok().json();
        assert_eq!(shown["image"]["kernel_name"], kernel, "{shown}");
        assert_eq!(shown["image"]["oci"]["reference"], recipe, "{shown}");
    }
    let _ = house.banger("kernel rm mine").expect(4).says("named");
    let _ = house.banger("image rm app named").ok();
    let _ = house.banger("kernel rm mine").ok();
    house.assert_as_before(&before, SOON);

    // The image's kernel comes along.
    assert_eq!(house.banger("pull box").ok().line(), "box");
    let shown = house.banger("image show box --json").ok().json();
    assert_eq!(shown["image"]["kernel_name"], "mine");
    disk::assert_clean(Path::new(
        shown["image"]["rootfs_path"].as_str().expect("a path"),
    ));
    let shown = house.banger("kernel show mine --json").ok().json();
    assert_eq!(
        shown["entry"]["source"],
        format!("pull:{}", web.url("k.tar.zst"))
    );
    let list = house.banger("image list --available").ok().out();
    assert!(
        list.lines()
            .any(|l| l.starts_with("box ") && l.contains(" pulled ")),
        "{list}"
    );
    let taken = size(&list);
    assert!(taken.ends_with('M') && taken != fetched, "{list}");
    let all = house.banger("image list").ok().out();
    assert!(all.contains(&taken), "as it is listed itself: {all}");
    let _ = house.banger("pull box").expect(4).says("already exists");
    let _ = house
        .banger("kernel pull mine")
        .expect(4)
        .says("already exists");
    let _ = house
        .banger("kernel pull none")
        .expect(3)
        .says("--available");

    // What was fetched once is not fetched again, under whatever name.
    let asked = web.requests();
    assert_eq!(house.banger("pull box --name other").ok().line(), "other");
    let again = house.banger("kernel pull mine --name today").ok();
    assert_eq!(again.line(), "today");
    let _ = house.banger("kernel rm today").ok();
    assert_eq!(web.requests(), asked);

    if !house.go_offline() {
        println!("this user may not make a network namespace: booted online");
    }
    let look = [
        "run",
        "--rm",
        "--image",
        "box",
        "--",
        "sh",
        "-c",
        "cat /etc/mark; uname -r",
    ];
    let out = house.call(look).run().ok().out();
    assert!(out.starts_with("bundled\n6.1."), "{out}");
    let _ = house.banger("image rm box other").ok();
    let _ = house.banger("kernel rm mine").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn bad_catalogs_and_bundles_are_told_and_leave_nothing() {
    let house = house_with_catalog();
    let dir = house.dir().join("made");
    fs::create_dir(&dir).expect("an own directory");
    let root = small_root(&dir).display().to_string();
    let out = dir.join("box.tar.zst").display().to_string();
    let words = [
        "image",
        "--name",
        "box",
        "--size",
        "256M",
        "--rootfs-tar",
        &root,
        "-o",
        &out,
    ];
    let made = make(&house, &words);
    let web = Web::serve(&dir);
    let good = with(made, "tarball_url", web.url("box.tar.zst"));
    let mut whole = Vec::new();
    let mut file = fs::File::open(&out).expect("it was made");
    file.read_to_end(&mut whole).expect("an own file");
    fs::write(dir.join("short.tar.zst"), &whole[..whole.len() / 2]).expect("an own file");
    fs::write(dir.join("other.tar.zst"), b"no bundle").expect("an own file");
    let _ = house.banger("list").ok();
    let before = house.census();

    let named =
        |name: &str, url: String| with(with(good.clone(), "name", name), "tarball_url", url);
    let other = "76b0bc1e02aa49bb4d52a0a5d2f6ed67d1d0ba3a5ca9c0fa23d4b2bf3dcb8d5e";
    write_catalog(
        &house,
        &[
            named("short", web.url("short.tar.zst")),
            named("gone", web.url("gone.tar.zst")),
            named(
                "file",
                format!("file://{}", dir.join("short.tar.zst").display()),
            ),
            with(
                named("wrong", web.url("box.tar.zst")),
                "tarball_sha256",
                other,
            ),
            with(
                named("lost", web.url("box.tar.zst")),
                "kernel_ref",
                "nosuch",
            ),
            with(named("foreign", web.url("box.tar.zst")), "arch", "riscv64"),
            good.clone(),
        ],
    );
    let _ = house.banger("pull short").expect(4).says("damaged");
    let _ = house.banger("pull file").expect(4).says("damaged");
    let _ = house.banger("pull wrong").expect(4).says("damaged");
    let _ = house.banger("pull gone").expect(5).says("404");
    let _ = house.banger("pull lost").expect(3).says("nosuch");
    let _ = house.banger("pull foreign").expect(2).says("riscv64");
    let _ = house.banger("pull box --size 1G").expect(2).says("--size");

    // A download that hangs is cancelled, and goes on where it was.
    web.hold_after(Some(whole.len() / 2));
    let pull = house.call(["pull", "box"]).start();
    wait::until_true("bytes come", SOON, || {
        let blobs = fs::read_dir(house.cache().join("oci/blobs/sha256"));
        let grows = |blob: fs::DirEntry| blob.metadata().is_ok_and(|meta| meta.len() > 0);
        blobs.is_ok_and(|all| all.flatten().any(grows))
    });
    pull.ctrl_c();
    let _ = pull.wait().expect(130);
    web.hold_after(None);
    assert_eq!(house.banger("pull box").ok().line(), "box");
    assert!(web.begun_at.load(Ordering::SeqCst) > 0, "it went on");
    let _ = house.banger("image rm box").ok();
    house.assert_as_before(&before, SOON);

    // One bad entry spoils the catalog, and is named; images by reference are as ever.
    write_catalog(
        &house,
        &[good, json!({"name": "bad", "tarball_url": web.url("x")})],
    );
    let _ = house
        .banger("pull box")
        .expect(2)
        .says("entry 2 (\"bad\"): tarball_sha256");
    let _ = house
        .banger("image list --available")
        .expect(2)
        .says("catalog.json");
    let _ = house.banger("kernel list").ok();
    let _ = house.banger("pull 127.0.0.1:1/x --name x").expect(5);

    // Making: a taken output, nothing to read, and no kernel.
    let _ = house
        .call(["internal", "make-bundle"].iter().chain(&words))
        .run()
        .expect(4);
    let empty = house.dir().join("empty.tar.zst").display().to_string();
    let words = [
        "internal",
        "make-bundle",
        "image",
        "--name",
        "e",
        "--rootfs-tar",
        "-",
        "-o",
        &empty,
    ];
    let _ = house.call(words).input("").run().expect(2).says("empty");
    let from = dir.display().to_string();
    let words = [
        "internal",
        "make-bundle",
        "kernel",
        "--name",
        "k",
        "--from",
        &from,
        "-o",
        &empty,
    ];
    let _ = house.call(words).run().expect(2);
    assert!(!Path::new(&empty).exists(), "of nothing comes nothing");
}
