//! What people do first in a machine with a network: packages, a repository, a
//! download that checks who it talks to.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use e2e::world::{NAME, OUTSIDE};
use e2e::{Call, House, Kernel, Root, World, skip};

const LONG: Duration = Duration::from_secs(600);

fn sh(house: &House, script: &str) -> e2e::Done {
    let call = house.call(["exec", "box", "--", "sh", "-c", script]);
    call.limit(LONG).run()
}

#[test]
fn packages_are_installed_from_the_hosts_mirror() {
    let house = House::with(Root::Bookworm, Kernel::New);
    let _ = house.banger("create --name box --memory 512").ok();
    let sources = "cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -o 'https\\?://[^/ ]*' | head -n 1";
    let mirror = sh(&house, sources).ok().line();
    let (scheme, name) = mirror
        .split_once("://")
        .expect("a Debian image has a mirror");
    let port = if scheme == "https" { 443 } else { 80 };
    let there = (name, port)
        .to_socket_addrs()
        .ok()
        .into_iter()
        .flatten()
        .any(|at| TcpStream::connect_timeout(&at, Duration::from_secs(10)).is_ok());
    if !there {
        skip!("{mirror} is not reached from this host either");
    }
    println!("packages come from {mirror}");
    let update = sh(&house, "apt-get -q update").ok();
    assert!(!update.err().contains("W: "), "{update}");
    let install = "DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends bc";
    let install = sh(&house, install).ok();
    assert_eq!(sh(&house, "echo 6*7 | bc").ok().line(), "42");
    println!(
        "update {:.1} s, install {:.1} s",
        update.took.as_secs_f32(),
        install.took.as_secs_f32()
    );
}

/// A repository as any web server can give it.
fn repository(at: &Path) {
    let script = "git init -q work && cd work && git config user.name x && git config user.email x@x.test \
                  && head -c 3000000 /dev/urandom > noise && echo first > file && git add . && git commit -qm one \
                  && cd .. && git clone -q --bare work served.git && cd served.git && git update-server-info";
    let _ = Call::new("sh", ["-ec", script]).within(at).run().ok();
}

/// A key, and a certificate that only who is told of it believes.
fn certificate(at: &Path) {
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -keyout key.pem -out certificate.pem -subj /CN={NAME} \
         -addext subjectAltName=DNS:{NAME} 2>/dev/null"
    );
    let _ = Call::new("sh", ["-ec", &script]).within(at).run().ok();
}

#[test]
fn a_repository_is_cloned_and_a_server_is_known_by_its_certificate() {
    let house = House::with(Root::Bookworm, Kernel::New);
    let shelf = house.dir().join("shelf");
    std::fs::create_dir_all(&shelf).expect("an own directory");
    repository(&shelf);
    certificate(&shelf);
    let Some(mut world) = World::around(&house, None) else {
        skip!("this user may not make namespaces");
    };
    let http = format!("http={OUTSIDE}:80{}", shelf.display());
    world.serve_outside(&house, &[&world.probe(), "serve", &http], "ready");
    let tls = format!(
        "cd {} && exec openssl s_server -accept {OUTSIDE}:443 -cert certificate.pem -key key.pem -WWW",
        shelf.display()
    );
    world.serve_outside(&house, &["sh", "-c", &tls], "ACCEPT");
    let _ = house.banger("create --name box --memory 512").ok();

    let clone = format!(
        "git clone -q http://{NAME}/served.git cloned && cat cloned/file && cd cloned && git fsck"
    );
    let cloned = sh(&house, &clone).ok();
    assert!(cloned.out().starts_with("first\n"), "{cloned}");
    let noise = |done: e2e::Done| done.out().split(' ').next().unwrap_or_default().to_owned();
    let sum = Call::new("sha256sum", [shelf.join("work/noise")])
        .run()
        .ok();
    let sum = noise(sum);
    assert_eq!(noise(sh(&house, "sha256sum /root/cloned/noise").ok()), sum);

    let _ = house
        .call([
            "exec",
            "-i",
            "box",
            "--",
            "sh",
            "-c",
            "cat > /root/known.pem",
        ])
        .input_file(shelf.join("certificate.pem"))
        .run()
        .ok();
    let fetch = format!(
        "curl -sS --fail --cacert /root/known.pem -o got https://{NAME}/work/noise && sha256sum got"
    );
    assert_eq!(noise(sh(&house, &fetch).ok()), sum);
    // Nobody believes it who was not told of it.
    let stranger = sh(&house, &format!("curl -sS https://{NAME}/work/noise"));
    assert_eq!(stranger.code, 60, "{stranger}");
}
