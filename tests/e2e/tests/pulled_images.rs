//! Images as other people make them, pushed to a real registry by the usual tools, pulled,
//! compared with what the usual tools unpack, and booted when there is no registry and no
//! network any more.

use std::fs;
use std::path::Path;
use std::time::Duration;

use e2e::registry::of_root;
use e2e::{Call, House, Kernel, Registry, Root, disk, fixture, skip};

/// The registry, and a house with a kernel.
fn street() -> Option<(House, Registry)> {
    let house = House::new();
    let registry = Registry::start(&house.dir().join("registry"), None)?;
    let kernel = house.kernel(Kernel::Old);
    house.configure(&format!(
        "default_kernel_name = \"{kernel}\"\n{}",
        House::configuration()
    ));
    house.stop_daemon();
    Some((house, registry))
}

/// Pulls it as `pulled`, and takes the registry and the network away.
#[track_caller]
fn pull_and_cut(house: &House, registry: Registry, reference: &str) {
    let pulled = house.call(["pull", reference, "--name", "pulled"]);
    let _ = pulled.limit(Duration::from_secs(600)).run().ok();
    disk::assert_clean(&rootfs(house));
    drop(registry);
    assert!(house.go_offline(), "root may make namespaces");
}

fn rootfs(house: &House) -> std::path::PathBuf {
    let shown = house.banger("image show pulled --json").ok().json();
    shown["image"]["rootfs_path"]
        .as_str()
        .expect("a path")
        .into()
}

/// Runs words in a machine of the image that is thrown away.
#[track_caller]
fn run(house: &House, words: &[&str]) -> String {
    let line = [
        "run",
        "--rm",
        "--network",
        "none",
        "--image",
        "pulled",
        "--",
    ];
    let line = line.iter().chain(words);
    house.call(line).run().ok().out()
}

const MISSING: &str = "needs root, docker-registry, skopeo, umoci and htpasswd";

#[test]
fn a_debian_without_an_init_runs_a_command() {
    let Some((house, registry)) = street() else {
        skip!("{MISSING}");
    };
    // As registries have Debian: what would be its init is taken away by a layer above.
    let more = "\nmkdir -p top/usr/sbin\ntouch top/usr/sbin/.wh.init\n\
                tar --create --file top.tar --directory top usr\n\
                umoci raw add-layer --image image:1 top.tar\n";
    let config = "--config.env GREETING=hello --config.cmd bash";
    let script = of_root(&fixture::root(Root::Openrc), config) + more;
    let reference = registry.push("debian", &script);
    pull_and_cut(&house, registry, &reference);
    let look = "echo $GREETING; . /etc/os-release; echo $ID; test ! -e /sbin/init && echo none; \
                dpkg -s bash | grep Status";
    assert_eq!(
        run(&house, &["bash", "-c", look]),
        "hello\ndebian\nnone\nStatus: install ok installed\n"
    );
}

#[test]
fn a_busybox_runs_a_command() {
    let Some((house, registry)) = street() else {
        skip!("{MISSING}");
    };
    let script = of_root(&fixture::root(Root::Busybox), "--config.cmd sh");
    let reference = registry.push("busybox", &script);
    pull_and_cut(&house, registry, &reference);
    assert_eq!(run(&house, &["cat", "/root/from-image"]), "seeded\n");
}

#[test]
fn an_openrc_boots_and_runs_a_command() {
    let Some((house, registry)) = street() else {
        skip!("{MISSING}");
    };
    let script = of_root(&fixture::root(Root::Openrc), "--config.cmd /sbin/init");
    let reference = registry.push("openrc", &script);
    pull_and_cut(&house, registry, &reference);
    let line = "create --name box --network none --image pulled --memory 512";
    let _ = house.banger(line).ok();
    let healthy = ["wait", "box", "--for", "healthy", "--timeout", "290s"];
    let _ = house.call(healthy).run().ok();
    // It is at work: how far an emulated one has come nobody knows.
    let level = house.sh("box", "rc-status -r").ok();
    let levels = ["sysinit", "boot", "default"];
    assert!(levels.contains(&level.line().as_str()), "{level}");
    let _ = house.banger("rm -f box").ok();
}

#[test]
fn an_image_of_one_static_program_runs_it() {
    let Some((house, registry)) = street() else {
        skip!("{MISSING}");
    };
    let reference = registry.push(
        "static",
        "mkdir tree\n\
         cp /bin/busybox tree/busybox\n\
         tar --create --file layer.tar --directory tree busybox\n\
         umoci init --layout image\n\
         umoci new --image image:1\n\
         umoci raw add-layer --image image:1 layer.tar\n\
         umoci config --image image:1 --config.entrypoint /busybox --config.user 65532\n",
    );
    pull_and_cut(&house, registry, &reference);
    assert_eq!(run(&house, &["/busybox", "echo", "alone"]), "alone\n");
    assert_eq!(run(&house, &["/busybox", "ls", "/busybox"]), "/busybox\n");
    // No user has a name there.
    let own = "run --rm --network none --image pulled --image-command -- id -u";
    assert_eq!(house.banger(own).ok().out(), "65532\n");
}

#[test]
fn a_systemd_becomes_healthy_and_runs_a_command() {
    let Some((house, registry)) = street() else {
        skip!("{MISSING}");
    };
    let config = "--config.cmd /sbin/init";
    let script = of_root(&fixture::root(Root::Bookworm), config);
    let reference = registry.push("systemd", &script);
    pull_and_cut(&house, registry, &reference);
    let line = "create --name box --network none --image pulled --memory 512";
    let _ = house.banger(line).ok();
    let healthy = ["wait", "box", "--for", "healthy", "--timeout", "290s"];
    let _ = house.call(healthy).run().ok();
    let says = house.sh("box", "systemctl is-system-running; cat /proc/1/comm");
    assert_eq!(says.out(), "running\nsystemd\n", "{says}");
    let _ = house.banger("rm -f box").ok();
}

/// What is in a directory: name, kind, permissions but of links, owner, links, time but of
/// directories, size, target, content.
const LIST: &str = "list() { (cd \"$1\" && find . -mindepth 1 -path ./lost+found -prune -o \
    -type d -printf '%P d %m %U %G\\n' -o \
    -type l -printf '%P l %U %G %T@ %l\\n' -o \
    -printf '%P %y %m %U %G %n %T@ %s\\n'; find . -xdev -type f -exec sha256sum {} +) | LC_ALL=C sort; }\n";

#[test]
fn a_debian_of_a_private_registry_is_what_umoci_unpacks() {
    let house = House::new();
    let dir = house.dir().join("registry");
    let Some(registry) = Registry::start(&dir, Some(("ada", "s3cret"))) else {
        skip!("{MISSING}");
    };
    let more = "\nmkdir -p top/etc top/usr/bin top/opt/new\n\
                touch top/etc/.wh.fstab top/usr/bin/.wh.perl top/opt/.wh..wh..opq\n\
                echo new > top/opt/new/file\nchmod 6711 top/opt/new/file\n\
                ln -s ../usr top/opt/link\nmknod top/opt/null c 1 3\nmkfifo top/opt/pipe\n\
                tar --create --file top.tar --directory top etc usr opt\n\
                umoci raw add-layer --image image:1 top.tar\n";
    let script = of_root(&fixture::root(Root::Openrc), "") + more;
    let reference = registry.push("debian", &script);
    let _ = house
        .call(["pull", &reference, "--name", "pulled"])
        .run()
        .expect(4)
        .says("refused")
        .says(&format!("docker login {}", registry.at));

    let docker = house.dir().join("home/.docker");
    fs::create_dir_all(&docker).expect("an own directory");
    let secret = Call::new("base64", ["-w0"]).input("ada:s3cret").run().ok();
    let logins = format!(
        "{{\"auths\":{{\"{}\":{{\"auth\":\"{}\"}}}}}}",
        registry.at,
        secret.line()
    );
    fs::write(docker.join("config.json"), logins).expect("an own file");
    let _ = house
        .call(["pull", &reference, "--name", "pulled"])
        .run()
        .ok();
    let rootfs = rootfs(&house);
    disk::assert_clean(&rootfs);
    assert_same(&registry.made_in("debian"), &rootfs);
    let _ = house.banger("image rm pulled").ok();
}

/// Fails unless the file system holds what umoci unpacks of the layout here.
#[track_caller]
fn assert_same(made_in: &Path, rootfs: &Path) {
    let script = format!(
        "{LIST}umoci unpack --image image:1 bundle >/dev/null\nmkdir ours\n\
         mount -o loop,ro {} ours\ntrap 'umount ours' EXIT\n\
         list bundle/rootfs > theirs.txt\nlist ours > ours.txt\nwc -l < theirs.txt\n\
         diff theirs.txt ours.txt | head -40 >&2\ncmp theirs.txt ours.txt\n",
        rootfs.display()
    );
    let words = [
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-ec",
        &script,
    ];
    let done = Call::new("unshare", words).within(made_in).run().ok();
    let lines: usize = done.line().parse().expect("a number");
    assert!(lines > 5000, "{done}");
}
