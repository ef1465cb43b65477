//! Images and kernels: built, pulled, imported, registered, and booted
//! without any way to the outside.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use e2e::{Call, House, Kernel, Root, census, disk, fixture, wait};

const LONG: Duration = Duration::from_secs(900);

#[test]
fn a_suite_becomes_an_image_that_boots_offline() {
    for (suite, root, release) in [
        ("bookworm", Root::Bookworm, "12"),
        ("trixie", Root::Trixie, "13"),
    ] {
        // The shared fixture is banger's own product, made by this very verb.
        let file = fixture::root(root);
        disk::assert_clean(&file);
        let house = House::with(root, Kernel::Old);
        if !house.go_offline() {
            println!("this user may not make a network namespace: booted online");
        }
        let done = house
            .call([
                "run",
                "--rm",
                "--memory",
                "512",
                "--",
                "sh",
                "-c",
                ". /etc/os-release; echo $ID $VERSION_ID",
            ])
            .run()
            .ok();
        assert_eq!(done.line(), format!("debian {release}"), "{suite}");
        let tools = "for t in systemctl dbus-daemon ps ip less vi git curl jq tmux; do command -v $t >/dev/null || echo missing $t; done; test -s /etc/ssl/certs/ca-certificates.crt || echo missing certificates";
        let done = house
            .call(["run", "--rm", "--memory", "512", "--", "sh", "-c", tools])
            .run()
            .ok();
        assert_eq!(done.out(), "", "{suite}");
        let owners = house
            .call([
                "run",
                "--rm",
                "--memory",
                "512",
                "--",
                "sh",
                "-c",
                "stat -c '%u:%g:%a %n' /etc/shadow /usr/bin/passwd /bin/su /tmp /root",
            ])
            .run()
            .ok()
            .out();
        assert_eq!(
            owners,
            "0:42:640 /etc/shadow\n0:0:4755 /usr/bin/passwd\n0:0:4755 /bin/su\n0:0:1777 /tmp\n0:0:700 /root\n",
            "{suite}"
        );
    }
}

#[test]
fn an_image_is_built_with_packages_shown_used_and_deleted() {
    let house = House::new();
    let kernel = house.kernel(Kernel::Old);
    let before = house.census();
    let build = house
        .call([
            "image",
            "build",
            "tiny",
            "--suite",
            "bookworm",
            "--package",
            "bc",
        ])
        .limit(LONG)
        .start();
    // A second build of the same name is refused while it runs; a VM of another image is not held up.
    wait::until_true("the build runs", Duration::from_secs(60), || {
        let list = house.banger("operation list --json").ok().json();
        list["operations"].as_array().is_some_and(|l| {
            l.iter()
                .any(|op| op["kind"] == "image.build" && op["done"] == false)
        })
    });
    let image = house.image(Root::Bare);
    let _ = house
        .call([
            "run", "--rm", "--image", &image, "--kernel", &kernel, "--", "true",
        ])
        .run()
        .ok();
    let done = build.wait().ok();
    println!("built in {:.0} s", done.took.as_secs_f32());
    let shown = house.banger("image show tiny --json").ok().json();
    assert_eq!(shown["image"]["managed"], true, "{shown}");
    let file = shown["image"]["rootfs_path"]
        .as_str()
        .expect("a path")
        .to_owned();
    disk::assert_clean(file.as_ref());
    let done = house
        .call([
            "run",
            "--rm",
            "--memory",
            "512",
            "--image",
            "tiny",
            "--",
            "sh",
            "-c",
            "echo 6*7 | bc",
        ])
        .run()
        .ok();
    assert_eq!(done.line(), "42");
    // In use it stays; then it goes with its files.
    let _ = house
        .banger("create --name box --image tiny --no-start")
        .ok();
    let _ = house.banger("image delete tiny").expect(4).says("box");
    let _ = house.banger("rm box").ok();
    let _ = house.banger("image delete tiny").ok();
    let _ = house.banger("image delete bare").ok();
    assert!(
        fixture::root(Root::Bare).exists(),
        "a registered file is its owner's"
    );
    house.assert_as_before(&before, Duration::from_secs(5));
}

#[test]
fn a_build_that_is_interrupted_leaves_nothing_and_can_be_repeated() {
    let house = House::new();
    let _ = house.banger("list").ok();
    let before = house.census();
    for wait_for in ["mmdebstrap", "apt"] {
        let build = house
            .call(["image", "build", "cut", "--suite", "trixie"])
            .limit(LONG)
            .start();
        wait::until_true("a tool of the build runs", Duration::from_secs(120), || {
            house
                .processes()
                .iter()
                .any(|p| p.command.contains(wait_for))
        });
        build.ctrl_c();
        let _ = build.wait().expect(130);
        let _ = house.banger("image show cut").expect(3);
        house.assert_as_before(&before, Duration::from_secs(10));
        assert_eq!(house.build_logs(), Vec::<PathBuf>::new());
    }
    // Killing the daemon is no different.
    let build = house
        .call(["image", "build", "cut", "--suite", "trixie"])
        .limit(LONG)
        .start();
    wait::until_true("a tool of the build runs", Duration::from_secs(120), || {
        house
            .processes()
            .iter()
            .any(|p| p.command.contains("mmdebstrap"))
    });
    house.kill_daemon();
    let _ = build.wait();
    let _ = house.banger("list").ok();
    house.assert_as_before(&before, Duration::from_secs(15));
    let failed = house.banger("image build wrong --suite nosuchsuite");
    let failed = failed.expect(70).says("cannot build \"wrong\": ");
    let log = house.state().join("images/wrong.build.log");
    let whole = format!("the whole log is {}", log.display());
    let _ = failed.says(&whole);
    assert!(fs::metadata(&log).expect("the log").len() > 0);
    let _ = house.banger("image show wrong").expect(3);
}

#[test]
fn kernels_are_pulled_from_debian_by_package() {
    let house = House::new();
    let _ = house.banger("list").ok();
    for kernel in Kernel::ALL {
        let done = house
            .call(["kernel", "pull", &format!("deb:{}", kernel.package())])
            .limit(LONG)
            .run()
            .ok();
        println!("{} in {:.0} s", done.line(), done.took.as_secs_f32());
        assert!(!done.err().contains('\u{1b}'), "no terminal, no colours");
    }
    let list = house.banger("kernel list --json").ok().json();
    let entries = list["entries"].as_array().cloned().unwrap_or_default();
    assert_eq!(entries.len(), 2, "{list}");
    for entry in &entries {
        let name = entry["name"].as_str().expect("a name");
        let source = entry["source"].as_str().expect("a source");
        assert!(
            name.contains("-cloud-amd64") && !name.starts_with("linux-image"),
            "{name}"
        );
        assert!(
            source.starts_with(&format!("deb:linux-image-{name}=")),
            "named after the resolved package: {source}"
        );
        assert_eq!(entry["kernel_version"].as_str(), Some(name));
        let vmlinux =
            std::fs::read(entry["kernel_path"].as_str().expect("a path")).expect("it is there");
        assert_eq!(&vmlinux[..4], b"\x7fELF");
        assert_eq!(entry["sha256"].as_str().map(str::len), Some(64));
    }
    // Again is refused, forced is done.
    let again = format!("kernel pull deb:{}", Kernel::Old.package());
    let _ = house.banger(&again).expect(4).says("hint: ");
    let taken = |house: &House| {
        let list = house.banger("kernel list --json").ok().json();
        let entries = list["entries"].as_array().cloned().unwrap_or_default();
        let old = entries.iter().find(|entry| {
            let version = entry["kernel_version"].as_str();
            version.is_some_and(|version| version.starts_with(Kernel::Old.version()))
        });
        old.expect("it is here")["imported_at"].clone()
    };
    let before = taken(&house);
    let forced = format!("{again} --force");
    let forced: Vec<_> = forced.split(' ').collect();
    let _ = house.call(&forced).limit(LONG).run().ok();
    assert_ne!(taken(&house), before);
    let _ = house
        .call(["kernel", "pull", "deb:linux-image-nosuch-amd64"])
        .limit(LONG)
        .run()
        .expect(3);
    // The newest by version is the default.
    let image = house.image(Root::Bare);
    let release = house
        .call(["run", "--rm", "--image", &image, "--", "uname", "-r"])
        .run()
        .ok()
        .line();
    assert!(release.starts_with(Kernel::New.version()), "{release}");
    let _ = house.call(["kernel", "rm", &release]).run().ok();
    let release = house
        .call(["run", "--rm", "--image", &image, "--", "uname", "-r"])
        .run()
        .ok()
        .line();
    assert!(release.starts_with(Kernel::Old.version()), "{release}");
}

#[test]
fn kernels_are_imported_from_a_directory_and_unusable_ones_refused() {
    let house = House::new();
    let tree = house.dir().join("home/kernel");
    let deb = fixture::kernel_deb(Kernel::New);
    if census::which("dpkg-deb").is_none() {
        e2e::skip!("no dpkg-deb here");
    }
    let _ = Call::new(
        "dpkg-deb",
        ["-x".as_ref(), deb.as_os_str(), tree.as_os_str()],
    )
    .run()
    .ok();
    let _ = house
        .call([
            "kernel".as_ref(),
            "import".as_ref(),
            "fromdir".as_ref(),
            "--from".as_ref(),
            tree.as_os_str(),
        ])
        .run()
        .ok();
    let image = house.image(Root::Bare);
    let release = house
        .call([
            "run", "--rm", "--image", &image, "--kernel", "fromdir", "--", "uname", "-r",
        ])
        .run()
        .ok()
        .line();
    assert!(release.starts_with(Kernel::New.version()), "{release}");
    // Without the driver of its disks a kernel is no use, and is told so by name.
    let script = "find . -name 'virtio_blk.ko*' -delete; find . -name 'modules.dep*' -delete; sed -i '/virtio_blk/d' $(find . -name modules.order) $(find . -name modules.builtin)";
    let _ = Call::new("sh", ["-c", script]).within(&tree).run().ok();
    let before = house.census();
    let _ = house
        .call([
            "kernel".as_ref(),
            "import".as_ref(),
            "lame".as_ref(),
            "--from".as_ref(),
            tree.as_os_str(),
        ])
        .run()
        .expect(2)
        .says("virtio");
    house.assert_as_before(&before, Duration::from_secs(2));
}

#[test]
fn a_registered_file_that_changed_is_not_booted() {
    let house = House::with(Root::Bare, Kernel::Old);
    let copy = house.dir().join("home/copy.ext4");
    let _ = Call::new(
        "cp",
        [
            "--sparse=always".as_ref(),
            fixture::root(Root::Bare).as_os_str(),
            copy.as_os_str(),
        ],
    )
    .run()
    .ok();
    let _ = house
        .call([
            "image".as_ref(),
            "register".as_ref(),
            "--name".as_ref(),
            "copy".as_ref(),
            "--rootfs".as_ref(),
            copy.as_os_str(),
        ])
        .run()
        .ok();
    let _ = house.banger("create --name box --image copy").ok();
    let _ = house.banger("stop box").ok();
    let _ = Call::new(
        "touch",
        ["-d".as_ref(), "2001-01-01".as_ref(), copy.as_os_str()],
    )
    .run()
    .ok();
    let _ = house.banger("start box").expect(4).says("copy");
    assert_eq!(house.vms().len(), 1);
}

#[test]
fn a_promoted_image_boots_without_the_file_it_was_made_of() {
    let house = House::with(Root::Bare, Kernel::Old);
    let copy = house.dir().join("home/copy.ext4");
    std::fs::copy(fixture::root(Root::Bare), &copy).expect("an own file");
    let words = ["image", "register", "--name", "copy", "--rootfs"];
    let words = words.iter().map(AsRef::as_ref).chain([copy.as_os_str()]);
    let _ = house.call(words).run().ok();
    let _ = house.banger("create --name box --image copy").ok();
    let _ = house
        .call(["exec", "box", "--", "sh", "-c", "echo kept > /kept"])
        .run()
        .ok();
    assert_eq!(house.banger("image promote copy").ok().line(), "copy");
    std::fs::remove_file(&copy).expect("an own file");
    // It runs on, and boots from the other file.
    assert_eq!(house.banger("exec box -- cat /kept").ok().line(), "kept");
    let _ = house.banger("restart box").ok();
    assert_eq!(house.banger("exec box -- cat /kept").ok().line(), "kept");
    let _ = house.banger("image promote nosuch").expect(3);
}

#[test]
fn an_image_brings_a_kernel_of_its_own() {
    if census::which("dpkg-deb").is_none() {
        e2e::skip!("no dpkg-deb here");
    }
    let house = House::new();
    let _ = house.banger("list").ok();
    let before = house.census();
    let tree = house.dir().join("home/kernel");
    let deb = fixture::kernel_deb(Kernel::Old);
    let _ = Call::new(
        "dpkg-deb",
        ["-x".as_ref(), deb.as_os_str(), tree.as_os_str()],
    )
    .run()
    .ok();
    let versions = std::fs::read_dir(tree.join("lib/modules")).expect("unpacked above");
    let version = versions
        .flatten()
        .next()
        .expect("a kernel has modules")
        .file_name()
        .into_string()
        .expect("a plain name");
    let kernel = tree.join(format!("boot/vmlinuz-{version}"));
    let modules = tree.join("lib/modules").join(&version);
    let register = |more: &[&std::ffi::OsStr]| {
        let root = fixture::root(Root::Bare);
        let words = ["image", "register", "--name", "own", "--rootfs"];
        let words = words.iter().map(AsRef::as_ref).chain([root.as_os_str()]);
        house.call(words.chain(more.iter().copied())).run()
    };
    let whole = [
        "--kernel".as_ref(),
        kernel.as_os_str(),
        "--modules".as_ref(),
        modules.as_os_str(),
    ];
    let _ = register(&whole).ok();
    // banger keeps what it needs of them.
    std::fs::remove_dir_all(&tree).expect("an own directory");
    let script = "uname -r; ls /lib/modules; modprobe dummy && grep -c ^dummy /proc/modules";
    let done = house
        .call(["run", "--rm", "--image", "own", "--", "sh", "-c", script])
        .run()
        .ok();
    assert_eq!(done.out(), format!("{version}\n{version}\n1\n"));
    assert_eq!(house.banger("kernel list -q").ok().line(), "");
    let _ = house.banger("create --name box --image own").ok();
    assert!(house.vm("box")["spec"]["kernel_name"].is_null());
    let _ = house.banger("restart box").ok();
    // In use it stays as it is.
    let _ = register(&[]).expect(4).says("box");
    let _ = house.banger("image delete own").expect(4).says("box");
    let _ = house.banger("rm box").ok();
    let _ = house.banger("image delete own").ok();
    house.assert_as_before(&before, Duration::from_secs(5));
}

#[test]
fn work_disks_begin_as_the_seed_of_a_registered_image() {
    let house = House::with(Root::Bare, Kernel::Old);
    let script = "mkdir -p top/src holder/root\n\
                  echo mine > top/src/file; chmod 600 top/src/file\n\
                  echo held > holder/root/file\n\
                  for seed in top holder; do\n\
                  PATH=$PATH:/sbin mke2fs -q -t ext4 -d $seed $seed.ext4 256M; done";
    let home = house.dir().join("home");
    let _ = Call::new("sh", ["-ec", script]).within(&home).run().ok();
    for (seed, look, expected) in [
        (
            "top",
            "cat src/file; stat -c '%a %n' src/file; ls -A",
            "mine\n600 src/file\nsrc\n",
        ),
        ("holder", "cat file; ls -A", "held\nfile\n"),
    ] {
        let file = home.join(format!("{seed}.ext4"));
        let root = fixture::root(Root::Bare);
        let words = ["image", "register", "--name", seed, "--rootfs"];
        let words = words.iter().map(AsRef::as_ref).chain([root.as_os_str()]);
        let words = words.chain(["--work-seed".as_ref(), file.as_os_str()]);
        let _ = house.call(words).run().ok();
        let create = format!("create --name {seed} --image {seed}");
        let _ = house.banger(&create).ok();
        let ask = || {
            let call = house.call(["exec", "-w", "/root", seed, "--", "sh", "-c", look]);
            call.run().ok().out().to_owned()
        };
        assert_eq!(ask(), expected);
        let _ = house.banger(&format!("restart {seed}")).ok();
        assert_eq!(ask(), expected, "after another boot");
        let _ = house.banger(&format!("rm -f {seed}")).ok();
        let _ = house.banger(&format!("image rm {seed}")).ok();
    }
}
