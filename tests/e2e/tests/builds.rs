//! Images made of others: by scripts, and by package managers; and what is left
//! when that goes wrong.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{Call, Census, Done, House, Kernel, Root, Terminal, disk, fixture, skip, wait};

const LONG: Duration = Duration::from_secs(900);
const SOON: Duration = Duration::from_secs(120);

/// A house whose VMs have room for package managers.
fn roomy(root: Root) -> House {
    let house = House::with(root, Kernel::New);
    let text = std::fs::read_to_string(house.config_file()).expect("an own file");
    let text = text
        .replace("memory_mib = 256", "memory_mib = 1024")
        .replace(
            "system_overlay_size = \"512M\"",
            "system_overlay_size = \"4G\"",
        );
    house.configure(&text);
    let _ = house.call(["daemon", "stop"]).run();
    house
}

fn build(house: &House, args: &[&str]) -> Done {
    let words = ["image", "build"].iter().chain(args);
    house.call(words).limit(LONG).run()
}

/// A script in a file of the house.
fn script(house: &House, text: &str) -> String {
    let path = house.dir().join("script");
    std::fs::write(&path, text).expect("an own file");
    path.display().to_string()
}

fn sum(path: &Path) -> String {
    Call::new("sha256sum", [path]).run().ok().out()
}

fn shown(house: &House, image: &str) -> serde_json::Value {
    house
        .call(["image", "show", image, "--json"])
        .run()
        .ok()
        .json()["image"]
        .clone()
}

fn rootfs(house: &House, image: &str) -> PathBuf {
    shown(house, image)["rootfs_path"]
        .as_str()
        .expect("an image has a root")
        .into()
}

/// Runs a shell line in a fresh VM of an image.
fn within(house: &House, image: &str, line: &str) -> Done {
    let call = house.call(["run", "--rm", "--image", image, "--", "sh", "-c", line]);
    call.limit(SOON * 3).run()
}

/// What a file system has at a path, looked at from outside; empty where
/// nothing is.
fn content(root: &Path, path: &str) -> String {
    let request = format!("cat {path}");
    Call::new(
        "debugfs",
        ["-R".as_ref(), request.as_ref(), root.as_os_str()],
    )
    .run()
    .ok()
    .out()
}

fn is_there(root: &Path, path: &str) -> bool {
    let request = format!("stat {path}");
    let done = Call::new(
        "debugfs",
        ["-R".as_ref(), request.as_ref(), root.as_os_str()],
    )
    .run();
    done.out().contains("Inode:")
}

fn assert_nothing_came(house: &House, before: &Census) {
    house.assert_as_before(before, Duration::from_secs(15));
    assert!(house.vms().is_empty());
}

#[test]
fn packages_make_an_image_and_the_one_it_was_made_of_stays_as_it_was() {
    let house = roomy(Root::Bookworm);
    let base = rootfs(&house, "bookworm");
    let sources = content(&base, "/etc/apt/sources.list.d/0000debian.sources")
        + &content(&base, "/etc/apt/sources.list");
    let mirror = sources.split(['/', ' ', '\n']).collect::<Vec<_>>();
    let at = mirror.iter().position(|word| word.starts_with("http"));
    let name = at
        .and_then(|at| mirror.get(at + 2))
        .copied()
        .unwrap_or_default();
    let reached = (name, 80).to_socket_addrs().ok().into_iter().flatten();
    if !reached
        .into_iter()
        .any(|at| TcpStream::connect_timeout(&at, Duration::from_secs(10)).is_ok())
    {
        skip!("the image's mirror {name:?} is not reached from this host");
    }
    let before = sum(&base);
    let done = build(
        &house,
        &[
            "dev",
            "--from",
            "bookworm",
            "--package",
            "bc",
            "--package",
            "iputils-ping",
        ],
    )
    .ok();
    println!("built in {:.0} s", done.took.as_secs_f32());
    assert_eq!(done.line(), "dev");
    assert_eq!(sum(&base), before, "the base was changed");
    assert!(house.vms().is_empty());
    assert_eq!(
        house.build_logs(),
        [""; 0].map(PathBuf::from),
        "a log of a build that went well"
    );
    let image = shown(&house, "dev");
    assert_eq!(image["distro"], "debian bookworm", "{image}");
    assert_eq!(image["managed"], true, "{image}");

    let root = rootfs(&house, "dev");
    disk::assert_clean(&root);
    for path in [
        "/etc/hosts",
        "/etc/machine-id",
        "/etc/resolv.conf",
        "/etc/hostname",
    ] {
        assert_eq!(is_there(&root, path), is_there(&base, path), "{path}");
        assert_eq!(content(&root, path), content(&base, path), "{path}");
    }
    for path in [
        "/usr/sbin/policy-rc.d",
        "/run/banger-build",
        "/tmp/banger-build",
    ] {
        assert!(!is_there(&root, path), "{path}");
    }
    assert_eq!(
        is_there(&root, "/lib/modules"),
        is_there(&base, "/lib/modules")
    );

    let line = "echo 6*7 | bc; getcap /bin/ping || /sbin/getcap /bin/ping; \
        stat -c '%u:%g:%a %n' /etc/shadow /usr/bin/passwd /tmp /root; \
        test $(stat -c %i /usr/bin/perl) = $(stat -c %i /usr/bin/perl5.36.0) && echo one file; \
        dpkg --audit; ls /var/lib/apt/lists; getent hosts localhost | grep -c .";
    let done = within(&house, "dev", line).ok();
    assert_eq!(
        done.out(),
        "42\n/bin/ping cap_net_raw=ep\n0:42:640 /etc/shadow\n0:0:4755 /usr/bin/passwd\n\
         0:0:1777 /tmp\n0:0:700 /root\none file\n1\n",
        "{done}"
    );
}

#[test]
fn a_script_makes_an_image_with_all_that_files_can_be() {
    let house = House::with(Root::Bare, Kernel::New);
    let base = rootfs(&house, "bare");
    let before = sum(&base);
    let text = "#!/bin/sh -e
        cd /root; echo mine > new; rm from-image; mkdir -p /opt/a/b; echo deep > /opt/a/b/file
        ln /opt/a/b/file /opt/twin; ln -s ../nowhere /opt/link; mkfifo /opt/pipe; mknod /opt/null c 1 3
        echo x > /opt/set; chown 1000:50 /opt/set; chmod 4750 /opt/set; touch -d '2001-02-03 04:05:06' /opt/set
        dd if=/dev/zero of=/opt/holes bs=1 count=1 seek=50000000 2>/dev/null; echo end >> /opt/holes
        echo 'with a blank' > '/opt/a name'; mkdir /opt/empty; chmod 1777 /opt/empty
        echo 10.9.8.7 db >> /etc/hosts; echo left > /tmp/left; echo left > /run/left
        rm /bin/usleep; [ \"$DEBIAN_FRONTEND\" = noninteractive ]; [ -z \"$(cat)\" ]; id -u; hostname
    ";
    let words = ["image", "build", "made", "--from", "bare", "--script", "-"];
    let done = house.call(words).input(text).limit(LONG).run().ok();
    println!("built in {:.1} s", done.took.as_secs_f32());
    assert_eq!(sum(&base), before, "the base was changed");
    assert_eq!(house.build_logs(), [""; 0].map(PathBuf::from));
    let root = rootfs(&house, "made");
    disk::assert_clean(&root);
    for path in [
        "/etc/hostname",
        "/etc/resolv.conf",
        "/etc/machine-id",
        "/bin/usleep",
        "/run/left",
        "/tmp/left",
        "/var/lib/docker",
        "/lib/modules",
    ] {
        assert!(!is_there(&root, path), "{path}");
    }
    assert_eq!(content(&root, "/etc/hosts"), "10.9.8.7 db\n");
    let line = "cd /opt; cat /root/new twin 'a name'; ls /root; stat -c '%h %F' twin; readlink link; \
        stat -c '%u:%g:%a:%Y' set; stat -c '%F %t:%T' null; stat -c %F pipe; stat -c '%a %n' empty; \
        stat -c '%s' holes; test $(stat -c %b holes) -lt 1000 && echo sparse; tail -c 4 holes";
    assert_eq!(
        within(&house, "made", line).ok().out(),
        "mine\ndeep\nwith a blank\nnew\n2 regular file\n../nowhere\n1000:50:4750:981173106\n\
         character special file 1:3\nfifo\n1777 empty\n50000005\nsparse\nend\n"
    );
    // Made of one that was made, and as large as asked.
    let path = script(&house, "echo second > /opt/second");
    let _ = build(
        &house,
        &[
            "again", "--from", "made", "--script", &path, "--size", "300M",
        ],
    )
    .ok();
    let root = rootfs(&house, "again");
    disk::assert_clean(&root);
    assert_eq!(disk::filesystem_bytes(&root), 300 << 20);
    assert_eq!(content(&root, "/etc/hosts"), "10.9.8.7 db\n");
    assert_eq!(
        within(&house, "again", "cat /opt/second /opt/twin")
            .ok()
            .out(),
        "second\ndeep\n"
    );
}

#[test]
fn a_build_that_fails_says_why_and_leaves_its_log_alone() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("image list").ok();
    let before = house.census();
    for (text, why) in [
        (
            "echo on its way; echo to the end >&2; exit 7",
            "the script ended with status 7",
        ),
        (
            "echo on its way; poweroff -f; sleep 60",
            "the build VM ended before the script did",
        ),
        (
            "echo on its way; dd if=/dev/zero of=/big bs=1M && echo fits",
            "the script ended with status 1",
        ),
        (
            "#!/no/such/shell\necho on its way",
            "the script ended with status 127",
        ),
    ] {
        let path = script(&house, text);
        let done = build(&house, &["dev", "--from", "bare", "--script", &path]).expect(70);
        let done = done.says(why).says("cannot build \"dev\"");
        let [log] = house.build_logs().try_into().expect("one log");
        let done = done.says(&log.display().to_string());
        if !text.starts_with('#') {
            let kept = std::fs::read_to_string(&log).expect("a log");
            assert!(kept.starts_with("on its way\n"), "{kept}");
            let _ = done.says("on its way");
        }
        let _ = house.banger("image show dev").expect(3);
        assert_nothing_came(&house, &before);
    }
    let done = build(&house, &["dev", "--from", "bare", "--package", "jq"]).expect(2);
    let _ = done.says("os-release").says("--script");
    assert_nothing_came(&house, &before);
    // The name is free, and the next build writes the log anew.
    let path = script(&house, "true");
    let _ = build(&house, &["dev", "--from", "bare", "--script", &path]).ok();
    assert_eq!(house.build_logs(), [""; 0].map(PathBuf::from));
}

#[test]
fn a_build_that_cannot_be_is_refused_before_anything_is_begun() {
    let house = House::with(Root::Bare, Kernel::New);
    let path = script(&house, "true");
    let large = house.dir().join("large");
    std::fs::write(&large, vec![b'#'; (1 << 20) + 1]).expect("an own file");
    let large = large.display().to_string();
    for (args, code, word) in [
        (&["dev", "--from", "bare"][..], 2, "--script"),
        (
            &[
                "dev",
                "--from",
                "bare",
                "--script",
                &path,
                "--package",
                "jq",
            ],
            2,
            "usage",
        ),
        (&["--from", "bare", "--script", &path], 2, "usage"),
        (&["dev", "--from", "bare", "--suite", "trixie"], 2, "usage"),
        (&["dev", "--script", &path], 2, "usage"),
        (
            &["dev", "--from", "bare", "--script", "/no/such"],
            2,
            "/no/such",
        ),
        (&["dev", "--from", "bare", "--script", &large], 2, "1 MiB"),
        (
            &["dev", "--from", "bare", "--package=--root=/"],
            2,
            "package",
        ),
        (&["bare", "--from", "bare", "--script", &path], 4, "bare"),
        (&["dev", "--from", "nosuch", "--script", &path], 3, "nosuch"),
        (
            &["dev", "--from", "bare", "--script", &path, "--size", "0"],
            2,
            "size",
        ),
    ] {
        let done = build(&house, args);
        assert_eq!(done.code, code, "{done}");
        assert!(done.err().contains(word), "{word}: {done}");
    }
    let list = house.banger("operation list --json").ok().json();
    assert_eq!(
        list["operations"].as_array().map_or(0, Vec::len),
        0,
        "{list}"
    );
}

/// A build that runs a script which does not end, begun.
fn hanging(house: &House) -> e2e::Live {
    for log in house.build_logs() {
        std::fs::remove_file(log).expect("an own file");
    }
    let path = script(house, "echo begun; sleep 1000");
    let live = house
        .call(["image", "build", "dev", "--from", "bare", "--script", &path])
        .limit(LONG)
        .start();
    let begun = || {
        let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        house.build_logs().iter().any(|log| text(log) == "begun\n")
    };
    wait::until_true("the script runs", SOON, begun);
    live
}

#[test]
fn ctrl_c_ends_a_build_and_leaves_nothing() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("image list").ok();
    let before = house.census();
    let live = hanging(&house);
    let vms = house.vms();
    assert_eq!(vms[0]["name"], "build-dev", "{vms:?}");
    live.ctrl_c();
    let _ = live.wait().expect(130);
    assert_nothing_came(&house, &before);
    assert_eq!(house.build_logs(), [""; 0].map(PathBuf::from));
    // While it boots, too.
    let path = script(&house, "true");
    let live = house
        .call(["image", "build", "dev", "--from", "bare", "--script", &path])
        .start();
    wait::until_true("an engine runs", SOON, || !house.engines().is_empty());
    live.ctrl_c();
    let _ = live.wait().expect(130);
    assert_nothing_came(&house, &before);
}

#[test]
fn a_terminal_shows_what_a_build_prints_while_it_runs() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("image list").ok();
    let before = house.census();
    let path = script(&house, "echo one of its lines; sleep 1000");
    let terminal = Terminal::open(&house, 100, 30);
    terminal.line(&format!(
        "banger image build dev --from bare --script {path}"
    ));
    terminal.wait_for("\none of its lines\n", SOON);
    terminal.press("C-c");
    // The prompt of the call, and that after it.
    let ended = wait::eventually(SOON, || {
        let shown = terminal.screen();
        (shown.matches("host$").count() == 2).then_some(shown)
    });
    let shown = ended.unwrap_or_else(|| panic!("{}", terminal.screen()));
    assert!(shown.contains("\none of its lines\n"), "{shown}");
    drop(terminal);
    assert_nothing_came(&house, &before);
}

#[test]
fn a_daemon_that_dies_or_ends_takes_its_build_along() {
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("image list").ok();
    let before = house.census();
    let operation = || {
        let list = house.banger("operation list --json").ok().json();
        let list = list["operations"].as_array().cloned().unwrap_or_default();
        let build = list.into_iter().find(|op| op["kind"] == "image.build");
        build.expect("the build is remembered")
    };
    let live = hanging(&house);
    house.kill_daemon();
    // The command line starts the next one, which tells how the build ended.
    let _ = live.wait().expect(70).says("cut by an end of the daemon");
    assert_eq!(operation()["error_code"], "interrupted");
    assert_nothing_came(&house, &before);
    let _ = house.banger("image show dev").expect(3);

    // A daemon that is told to end takes it back itself. The command line asks
    // the next one how it ended.
    let live = hanging(&house);
    let _ = house.banger("daemon stop").ok();
    assert!(house.engines().is_empty(), "its VM goes before the daemon");
    let _ = live.wait().expect(4).says("cancelled");
    assert_nothing_came(&house, &before);
}

/// A repository inside the image, of one package, as its tools make it.
const RPM: &str = r"
mkdir -p /build /srv/repo; cd /build
cat > hello.spec <<'END'
Name: hello-banger
Version: 1
Release: 1
Summary: A greeting
License: MIT
BuildArch: noarch
AutoReqProv: no
%description
A greeting.
%install
mkdir -p %{buildroot}/usr/bin
printf '#!/bin/sh\necho hello\n' > %{buildroot}/usr/bin/hello-banger
chmod 4755 %{buildroot}/usr/bin/hello-banger
%files
/usr/bin/hello-banger
END
rpmbuild --quiet -bb --define '_topdir /build' hello.spec
cp RPMS/noarch/*.rpm /srv/repo; createrepo_c -q /srv/repo; cd /; rm -rf /build
";
const DNF: &str = r"
mkdir -p /etc/yum.repos.d
printf '[own]\nname=own\nbaseurl=file:///srv/repo\ngpgcheck=0\n' > /etc/yum.repos.d/own.repo
rm /etc/os-release; printf 'ID=fedora\nVERSION_ID=40\n' > /etc/os-release
";
const ZYPPER: &str = r"
mkdir -p /etc/zypp/repos.d
printf '[own]\nname=own\nenabled=1\nbaseurl=dir:///srv/repo\ntype=rpm-md\ngpgcheck=0\n' > /etc/zypp/repos.d/own.repo
rm /etc/os-release; printf 'ID=\042opensuse-leap\042\nID_LIKE=\042suse opensuse\042\nVERSION_ID=\04215.6\042\n' > /etc/os-release
";
const PACMAN: &str = r"
mkdir -p /build/usr/bin /srv/repo; cd /build
printf '#!/bin/sh\necho hello\n' > usr/bin/hello-banger; chmod 4755 usr/bin/hello-banger
printf 'pkgname = hello-banger\npkgbase = hello-banger\npkgver = 1-1\npkgdesc = A greeting\narch = any\nsize = 30\n' > .PKGINFO
bsdtar -czf /srv/repo/hello-banger-1-1-any.pkg.tar.gz .PKGINFO usr
repo-add -q /srv/repo/own.db.tar.gz /srv/repo/*.pkg.tar.gz; cd /; rm -rf /build
printf '[options]\nArchitecture = auto\nSigLevel = Never\n[own]\nServer = file:///srv/repo\n' > /etc/pacman.conf
rm /etc/os-release; printf 'ID=arch\n' > /etc/os-release
";

/// As images of these distributions come, and no systemd to wait for at each boot by emulation.
const WITHOUT_INIT: &str = "rm -f /sbin/init /usr/lib/systemd/systemd\n";

fn by_manager(name: &str, scripts: &[&str], distro: &str, command: &str) {
    let house = roomy(Root::Bookworm);
    let file = fixture::packagers_root();
    let words = ["image", "register", "--name", "tools", "--rootfs"].map(AsRef::as_ref);
    let _ = house
        .call(words.into_iter().chain([file.as_os_str()]))
        .run()
        .ok();
    let path = script(
        &house,
        &format!("set -e\n{}{WITHOUT_INIT}", scripts.concat()),
    );
    let _ = build(&house, &["repo", "--from", "tools", "--script", &path]).ok();
    let done = build(
        &house,
        &[name, "--from", "repo", "--package", "hello-banger"],
    )
    .ok();
    println!("{name}: built in {:.0} s", done.took.as_secs_f32());
    assert_eq!(shown(&house, name)["distro"], distro);
    disk::assert_clean(&rootfs(&house, name));
    let line = "hello-banger; stat -c %a /usr/bin/hello-banger";
    assert_eq!(within(&house, name, line).ok().out(), "hello\n4755\n");
    // A package that there is not: its manager's own words.
    let done = build(
        &house,
        &["none", "--from", "repo", "--package", "no-such-package"],
    )
    .expect(70);
    let _ = done.says("no-such-package").says(command);
}

#[test]
fn dnf_installs_packages() {
    by_manager("fedora", &[RPM, DNF], "fedora 40", "install -y");
}

#[test]
fn zypper_installs_packages() {
    by_manager(
        "suse",
        &[RPM, ZYPPER],
        "opensuse-leap 15.6",
        "install --no-recommends",
    );
}

#[test]
fn pacman_installs_packages() {
    by_manager("arch", &[PACMAN], "arch", "pacman -Syu");
}
