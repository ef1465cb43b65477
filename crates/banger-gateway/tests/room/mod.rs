//! A host of one's own for a test: the test runs again, alone, in a new user
//! and network namespace, where it may set up links, addresses and routes.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod gateway;
pub(crate) mod guest;
pub(crate) mod outside;

use std::io::Write;
use std::process::{Command, Stdio};

/// Set inside a room to who made it.
const INSIDE: &str = "BANGER_TEST_ROOM";

/// Who makes the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// Whoever runs the tests.
    Myself,
    /// A user who may nothing; only root can be somebody else.
    Nobody,
}

/// Whether this is the inside of a room. Outside it makes one, runs the test
/// of this name there, with these variables, and passes its failure on.
pub(crate) fn inside(test: &str, maker: Maker, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = ["unshare", "--user", "--map-root-user", "--net", "--"];
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
    ];
    let mut line = Vec::new();
    if maker == Maker::Nobody {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can be somebody else");
            return false;
        }
        line.extend(nobody);
    }
    line.extend(unshare);
    let enter = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).arg(program).args(arguments);
        // Whoever runs the tests may have it open for others.
        command.env("BANGER_GATEWAY_OPEN_POLICY", "0");
        command.envs(variables.iter().copied()).env(INSIDE, "1");
        command.stdin(Stdio::null()).output()
    };
    let test_program = std::env::current_exe().expect("a test knows its program");
    let test_program = test_program.to_str().expect("its path is plain");
    for needed in [&["true"][..], &["ip", "link"], &[test_program, "--list"]] {
        match enter(needed[0], &needed[1..]) {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                println!("skipped: no room where `{}` runs: {why}", needed.join(" "));
                return false;
            }
            Err(error) => {
                println!("skipped: no `{}` here: {error}", line[0]);
                return false;
            }
        }
    }
    let run = enter(test_program, &["--exact", test, "--nocapture"]);
    let run = run.expect("it ran a moment ago");
    let said = String::from_utf8_lossy(&run.stdout);
    let complained = String::from_utf8_lossy(&run.stderr);
    println!("{said}{complained}");
    assert!(run.status.success(), "the test failed inside its room");
    assert!(said.contains("1 passed"), "{test} is no test");
    false
}

/// Lines for ip(8), all of which must do.
pub(crate) fn ip(lines: &str) {
    assert!(try_ip(lines), "ip refused one of: {lines}");
}

/// Lines for ip(8), done as far as they go: whether all did.
pub(crate) fn try_ip(lines: &str) -> bool {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("ip ran before");
    let mut input = ip.stdin.take().expect("it is piped");
    for line in lines.lines() {
        writeln!(input, "{}", line.trim()).expect("ip reads all lines");
    }
    drop(input);
    ip.wait().expect("it is a child").success()
}
