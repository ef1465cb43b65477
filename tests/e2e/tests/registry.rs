//! Images pulled from a real registry and from files, and booted.

use std::fs;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{Call, House, Kernel, Live, Root, census, disk, fixture, skip};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Debian's docker-registry on loopback, with an image in it.
struct Registry {
    /// `127.0.0.1:PORT`.
    at: String,
    _server: Live,
}

/// Two layers: the second takes a file of the first away and brings another. The
/// config has a variable, a directory and a command.
const IMAGE: &str = r#"
umoci init --layout image
umoci new --image image:1
umoci unpack --image image:1 first
cd first/rootfs
mkdir -p bin etc root srv tmp usr/lib
cp "$(command -v busybox)" bin/busybox
for name in sh cat ls id env pwd test true stat; do ln -s busybox bin/$name; done
echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd
echo 'bob:x:1000:1000::/srv:/bin/sh' >> etc/passwd
echo 'root:x:0:' > etc/group
echo first > etc/gone
echo seeded > root/from-image
ln root/from-image root/linked
chmod 710 root
printf 'ID=testix\nVERSION_ID=7\n' > usr/lib/os-release
ln -s usr/lib lib
printf '#!/bin/sh\nfor word; do echo "word $word"; done; id -u; pwd\nexit 9\n' > bin/own
chmod 755 bin/own
chown 1000:1000 srv
chmod 4755 bin/busybox
cd ../..
umoci repack --image image:1 first
rm -r first
umoci unpack --image image:1 second
rm second/rootfs/etc/gone
echo second > second/rootfs/lib/new
umoci repack --image image:1 second
rm -r second
umoci config --image image:1 --config.env GREETING=hello --config.workingdir /srv \
    --config.user bob --config.entrypoint /bin/cat --config.cmd /lib/new \
    --config.label org.example.kind=test
umoci config --image image:1 --tag own --config.entrypoint /bin/own --config.entrypoint first \
    --clear config.cmd --config.cmd 'by default'
umoci config --image image:1 --tag bare --clear config.entrypoint --clear config.cmd
"#;

/// A certificate of an authority that nobody knows.
const TLS: &str = r#"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
    -subj /CN=authority -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=registry \
    -keyout key.pem -out request.pem
printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > names
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
    -extfile names -out cert.pem
"#;

/// Looks at all of that in a guest.
const LOOK: &str = "echo $GREETING; pwd; cat /lib/new /root/from-image; test ! -e /etc/gone && echo gone; stat -c '%u:%g %a' /srv /bin/busybox /root; stat -c %h /root/linked";
const SEEN: &str = "hello\n/srv\nsecond\nseeded\ngone\n1000:1000 755\n0:0 4755\n0:0 710\n2\n";

/// Makes the layout `image` in a directory; `None` where that cannot be done.
fn make_image(house: &House) -> Option<PathBuf> {
    for tool in ["skopeo", "umoci"] {
        census::which(tool)?;
    }
    if !e2e::am_root() {
        return None;
    }
    let dir = house.dir().join("registry");
    fs::create_dir_all(&dir).expect("an own directory");
    let _ = Call::new("sh", ["-ec", IMAGE]).within(&dir).run().ok();
    Some(dir)
}

impl Registry {
    /// Starts it and pushes the image as `team/box:1`; `None`, with the reason
    /// said, where that cannot be done here.
    fn start(house: &House) -> Option<Self> {
        Self::start_with(house, "")
    }

    /// The same under TLS, with a certificate of `ca.pem` in its directory.
    fn start_tls(house: &House) -> Option<Self> {
        census::which("openssl")?;
        let dir = house.dir().join("registry");
        fs::create_dir_all(&dir).expect("an own directory");
        let _ = Call::new("sh", ["-ec", TLS]).within(&dir).run().ok();
        let file = |name: &str| dir.join(name).display().to_string();
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        let tls = format!("  tls:\n    certificate: {cert}\n    key: {key}\n");
        Self::start_with(house, &tls)
    }

    fn start_with(house: &House, more: &str) -> Option<Self> {
        census::which("docker-registry")?;
        let dir = make_image(house)?;
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .expect("loopback has a free port")
            .port();
        let at = format!("127.0.0.1:{port}");
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {at}\n{more}",
            dir.join("blobs").display()
        );
        fs::write(&config, text).expect("an own file");
        let server = Call::new("docker-registry", ["serve".as_ref(), config.as_os_str()]).start();
        e2e::wait::until_true("the registry answers", SOON, || {
            std::net::TcpStream::connect(&at).is_ok()
        });
        let target = format!("docker://{at}/team/box:1");
        let push = [
            "copy",
            "-q",
            "--dest-tls-verify=false",
            "oci:image:1",
            &target,
        ];
        let _ = Call::new("skopeo", push).within(&dir).run().ok();
        Some(Self {
            at,
            _server: server,
        })
    }
}

#[test]
fn an_image_of_a_registry_is_pulled_once_and_boots() {
    let house = House::with(Root::Bare, Kernel::Old);
    let Some(registry) = Registry::start(&house) else {
        skip!("needs root, docker-registry, skopeo and umoci");
    };
    let reference = format!("{}/team/box:1", registry.at);
    let before = house.census();
    assert_eq!(
        house.banger(&format!("pull {reference}")).ok().line(),
        "box-1"
    );

    let shown = house.banger("image show box-1 --json").ok().json();
    let image = &shown["image"];
    disk::assert_clean(Path::new(image["rootfs_path"].as_str().expect("a path")));
    let seed = Path::new(image["work_seed_path"].as_str().expect("a home is there"));
    disk::assert_clean(seed);
    assert_eq!(image["managed"], true);
    assert_eq!(image["distro"], "testix 7");
    // The least, and what is asked for.
    let bytes = |image: &Value| {
        let path = Path::new(image["rootfs_path"].as_str().expect("a path"));
        disk::filesystem_bytes(path)
    };
    assert_eq!(bytes(image), 1 << 30);
    let sized = format!("pull {reference} --name sized --size 3G");
    let _ = house.banger(&sized).ok();
    let sized = house.banger("image show sized --json").ok().json();
    assert_eq!(bytes(&sized["image"]), 3 << 30);
    let _ = house.banger("image rm sized").ok();
    let oci = &image["oci"];
    assert_eq!(oci["reference"], reference);
    assert_eq!(oci["platform"], "linux/amd64");
    assert!(
        oci["digest"]
            .as_str()
            .is_some_and(|digest| digest.len() == 71)
    );
    assert_eq!(oci["user"], "bob");
    assert_eq!(oci["entrypoint"][0], "/bin/cat");
    assert_eq!(oci["cmd"][0], "/lib/new");
    assert_eq!(oci["labels"]["org.example.kind"], "test");

    let done = house
        .call(["run", "--rm", "--image", "box-1", "--", "sh", "-c", LOOK])
        .run()
        .ok();
    assert_eq!(done.out(), SEEN);

    // A taken name, and what is not there.
    let _ = house
        .banger(&format!("pull {reference}"))
        .expect(4)
        .says("already exists");
    let _ = house.banger(&format!("pull {reference} --name other")).ok();
    let other = house.banger("image show other --json").ok().json();
    for file in ["rootfs_path", "work_seed_path"] {
        let bytes = |image: &Value| fs::read(image[file].as_str().expect("a path"));
        let (one, two) = (bytes(image), bytes(&other["image"]));
        assert!(one.expect("an image") == two.expect("an image"), "{file}");
    }
    let _ = house
        .banger(&format!("pull {}/team/none:1", registry.at))
        .expect(3)
        .says("team/none");
    let _ = house
        .banger(&format!("pull {}/team/box:2", registry.at))
        .expect(3);
    let _ = house.banger("pull not/A/reference").expect(2);
    let _ = house.banger("pull 127.0.0.1:1/x --name x").expect(5);
    let _ = house.banger("image rm box-1 other").ok();
    house.assert_as_before(&before, SOON);
}

#[test]
fn a_registry_with_tls_on_loopback_is_found_out_and_must_be_trusted() {
    let house = House::new();
    let Some(registry) = Registry::start_tls(&house) else {
        skip!("needs root, docker-registry, skopeo, umoci and openssl");
    };
    let reference = format!("{}/team/box:1", registry.at);
    let _ = house
        .banger(&format!("pull {reference}"))
        .expect(5)
        .says("its certificate is not trusted")
        .says("update-ca-certificates");
    let _ = house.banger("daemon stop").ok();
    let ca = house.dir().join("registry/ca.pem").display().to_string();
    house.set_env("SSL_CERT_FILE", &ca);
    let pulled = house.banger(&format!("pull {reference}")).ok();
    assert_eq!(pulled.line(), "box-1");
}

#[test]
fn an_image_in_files_is_taken_and_boots_offline() {
    let house = House::with(Root::Bare, Kernel::Old);
    let Some(dir) = make_image(&house) else {
        skip!("needs root, skopeo and umoci");
    };
    let copy = "oci:image:1 docker-archive:box.tar:team/box:1";
    let _ = Call::new(
        "sh",
        ["-ec", &format!("skopeo copy -q {copy}; gzip box.tar")],
    )
    .within(&dir)
    .run()
    .ok();
    if !house.go_offline() {
        println!("this host cannot be taken offline");
    }
    let before = house.census();
    let pull = |reference: &str| house.call(["pull", reference]).within(&dir).run();
    assert_eq!(pull("oci-layout:image:1").ok().line(), "image-1");
    assert_eq!(pull("docker-archive:box.tar.gz").ok().line(), "box");

    for (name, reference) in [
        ("image-1", format!("oci-layout:{}/image:1", dir.display())),
        (
            "box",
            format!("docker-archive:{}/box.tar.gz", dir.display()),
        ),
    ] {
        let shown = house
            .banger(&format!("image show {name} --json"))
            .ok()
            .json();
        let image = &shown["image"];
        assert_eq!(image["oci"]["reference"], reference);
        assert_eq!(image["oci"]["user"], "bob");
        disk::assert_clean(Path::new(image["rootfs_path"].as_str().expect("a path")));
        let done = house
            .call(["run", "--rm", "--image", name, "--", "sh", "-c", LOOK])
            .run()
            .ok();
        assert_eq!(done.out(), SEEN);
    }

    let _ = pull("oci-layout:image:2").expect(3).says("oci-layout:");
    let _ = pull("docker-archive:image:2")
        .expect(2)
        .says("no regular file");
    let _ = pull("oci-layout:box.tar.gz:2")
        .expect(2)
        .says("no directory");
    let blobs = dir.join("image/blobs/sha256");
    for blob in fs::read_dir(blobs).expect("blobs") {
        let path = blob.expect("a blob").path();
        fs::write(path, "other").expect("an own file");
    }
    let _ = house.banger("image rm image-1 box").ok();
    let _ = pull("oci-layout:image:1").expect(4).says("damaged");
    house.assert_as_before(&before, SOON);
}

#[test]
fn an_image_runs_what_it_was_made_to_run() {
    let house = House::with(Root::Bare, Kernel::Old);
    let Some(dir) = make_image(&house) else {
        skip!("needs root, skopeo and umoci");
    };
    for tag in ["own", "bare"] {
        let reference = format!("oci-layout:image:{tag}");
        let _ = house.call(["pull", &reference]).within(&dir).run().ok();
    }
    let before = house.census();
    let own = ["run", "--rm", "--image", "image-own", "--image-command"];
    for (more, said) in [
        (&[][..], "word first\nword by default\n1000\n/srv\n"),
        (
            &["--", "a b", "-c"],
            "word first\nword a b\nword -c\n1000\n/srv\n",
        ),
        (
            &["-u", "root", "-w", "/tmp", "--", "x"],
            "word first\nword x\n0\n/tmp\n",
        ),
    ] {
        let done = house.call([&own, more].concat()).run().expect(9);
        assert_eq!(done.out(), said);
    }
    let bare = ["run", "--rm", "--image", "image-bare", "--image-command"];
    let _ = house
        .call(bare)
        .run()
        .expect(125)
        .says("no command of its own");
    house.assert_as_before(&before, SOON);
}

#[test]
fn an_image_that_is_pulled_boots_the_kernel_it_was_given() {
    let house = House::new();
    let Some(dir) = make_image(&house) else {
        skip!("needs root, skopeo and umoci");
    };
    let deb = fixture::kernel_deb(Kernel::Old);
    let _ = Call::new(
        "dpkg-deb",
        ["-x".as_ref(), deb.as_os_str(), "tree".as_ref()],
    )
    .within(&dir)
    .run()
    .ok();
    let versions = fs::read_dir(dir.join("tree/lib/modules")).expect("unpacked above");
    let version = versions.flatten().next().expect("a kernel has modules");
    let version = version.file_name().into_string().expect("a plain name");
    let _ = house.banger("list").ok();
    let before = house.census();
    let kernel = format!("tree/boot/vmlinuz-{version}");
    let modules = format!("tree/lib/modules/{version}");
    let pull = [
        "pull",
        "oci-layout:image:1",
        "--kernel",
        &kernel,
        "--modules",
        &modules,
    ];
    let _ = house.call(pull).within(&dir).run().ok();
    fs::remove_dir_all(dir.join("tree")).expect("an own directory");
    let run = ["run", "--rm", "--image", "image-1", "--", "cat"];
    let done = house
        .call(run.iter().chain(&["/proc/sys/kernel/osrelease"]))
        .run()
        .ok();
    assert_eq!(done.line(), version);
    let _ = house.banger("image rm image-1").ok();
    house.assert_as_before(&before, SOON);
}

/// Whether the catalog's entries that come of a registry are there today.
#[test]
fn images_of_the_catalog_are_where_it_says() {
    const HUB: &str = "registry-1.docker.io:443";
    let file = include_str!("../../../crates/bangerd/src/artifact/catalog/builtin.json");
    let file: Value = serde_json::from_str(file).expect("it is JSON");
    let entries = file["entries"].as_array().expect("a list");
    let recipes = entries.iter().map(|entry| &entry["recipe"]);
    let references: Vec<&str> = recipes
        .map(|recipe| recipe.as_str().expect("text"))
        .filter(|recipe| !recipe.starts_with("suite:") && !recipe.starts_with("deb:"))
        .collect();
    assert!(references.len() > 1, "{references:?}");
    let reached = HUB
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next())
        .and_then(|hub| std::net::TcpStream::connect_timeout(&hub, Duration::from_secs(5)).ok());
    if census::which("skopeo").is_none() || reached.is_none() {
        skip!("needs skopeo and a way to {HUB}");
    }
    for reference in references {
        let _ = Call::new(
            "skopeo",
            ["inspect", "--raw", &format!("docker://{reference}")],
        )
        .run()
        .ok();
    }
}
