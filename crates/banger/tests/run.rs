//! `banger run`: create, exec and what is left, against a fake daemon.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fake;

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fake::{Answer, Fake, Frames, ID, Ran, begun, done, error, failed, upgrade};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const CREATE: &str = "POST /v1/vms";
const OPERATION: &str = "/v1/operations/op-000000000001";

/// A daemon that makes a VM and serves its command by this function.
fn running(talk: impl Fn(Frames) + Clone + Send + Sync + 'static) -> Fake {
    Fake::new(
        move |request| match (request.method.as_str(), request.target.as_str()) {
            ("POST", "/v1/vms") => Answer::Json(202, begun("box")),
            ("GET", OPERATION) => Answer::Json(200, done("box")),
            ("GET", target) if target.ends_with("/events") => {
                Answer::Events(vec![("done", done("box"))])
            }
            ("POST", target) if target.ends_with("/exec") => {
                let talk = talk.clone();
                upgrade(talk)
            }
            _ => panic!("not expected: {}", request.line()),
        },
    )
}

#[test]
fn a_command_runs_in_a_new_vm_and_its_status_is_ours() {
    let fake = running(|mut frames| {
        frames.out(b"Linux\n");
        frames.exit(42);
    });
    let ran = fake.run(&[
        "run", "--name", "box", "--vcpu", "2", "--memory", "1G", "--", "uname", "-a",
    ]);
    assert_eq!(
        (ran.status, ran.out.as_str(), ran.err.as_str()),
        (Some(42), "Linux\n", "")
    );
    assert_eq!(
        fake.body(CREATE),
        json!({"name": "box", "vcpu_count": 2, "memory_mib": 1024, "main_follows": true})
    );
    let exec = fake.body(&format!("POST /v1/vms/{ID}/exec"));
    assert_eq!(
        (&exec["command"], &exec["args"], &exec["main"]),
        (&json!("uname"), &json!(["-a"]), &json!(true))
    );
    // Nobody watches, so nothing but the two requests is made.
    assert_eq!(fake.lines().len(), 2);
}

#[test]
fn with_rm_it_returns_when_the_vm_is_gone() {
    let gone = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&gone);
    let fake = running(move |mut frames| {
        frames.exit(0);
        // Our side closes first; the daemon deletes, then closes its own.
        assert!(frames.next().is_none());
        std::thread::park_timeout(Duration::from_millis(200));
        flag.store(true, Ordering::SeqCst);
    });
    let ran = fake.run(&["run", "--rm", "--", "true"]);
    assert_eq!(ran.status, Some(0));
    assert!(gone.load(Ordering::SeqCst));
    assert_eq!(
        fake.body(CREATE),
        json!({"auto_remove": true, "main_follows": true})
    );
}

#[test]
fn a_bare_shell_takes_standard_input() {
    let fake = running(|mut frames| {
        let script = frames.stdin();
        frames.out(&script);
        frames.exit(5);
    });
    let mut child = fake
        .banger(&["run"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"exit 5\n").unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.status, ran.out.as_str()), (Some(5), "exit 5\n"));
    let exec = fake.body(&format!("POST /v1/vms/{ID}/exec"));
    assert_eq!(
        (&exec["command"], &exec["stdin"], &exec["tty"]),
        (&json!(""), &json!(true), &json!(false))
    );
}

/// A daemon whose create is begun and fails, and whose exec fails with it.
fn failing() -> Fake {
    let message = "\"box\" did not answer within 90 s\n[ 1.0] Kernel \u{1b}panic";
    Fake::new(
        move |request| match (request.method.as_str(), request.target.as_str()) {
            ("POST", "/v1/vms") => Answer::Json(202, begun("box")),
            ("GET", OPERATION) => Answer::Json(200, failed("box", "guest_failed", message)),
            ("GET", _) => Answer::Events(vec![("done", failed("box", "guest_failed", message))]),
            ("POST", target) if target.ends_with("/exec") => {
                error(409, "not_running", "\"box\" is stopped")
            }
            _ => panic!("not expected: {}", request.line()),
        },
    )
}

#[test]
fn the_error_of_the_create_wins_over_that_of_the_exec() {
    let ran = failing().run(&["run", "--", "true"]);
    assert_eq!(ran.status, Some(125));
    assert_eq!(
        ran.err,
        "error: \"box\" did not answer within 90 s (op-000000000001)\n[ 1.0] Kernel \\x1bpanic\n\
         hint: banger logs box; banger rm box\n"
    );
}

#[test]
fn a_shell_that_never_came_exits_by_kind() {
    assert_eq!(failing().run(&["run"]).status, Some(70));
}

#[test]
fn a_refused_create_is_125_for_a_command_and_by_kind_otherwise() {
    let fake = Fake::new(|_| error(503, "no_engine", "no engine found"));
    assert_eq!(fake.run(&["run", "--", "true"]).status, Some(125));
    assert_eq!(fake.run(&["run"]).status, Some(5));
    assert_eq!(fake.run(&["run", "-d"]).status, Some(5));
    assert_eq!(fake.run(&["create"]).status, Some(5));
}

#[test]
fn wrong_usage_is_2_whoever_finds_it() {
    let fake = Fake::new(|_| error(400, "bad_name", "name \"A B\" has a space"));
    assert_eq!(
        fake.run(&["run", "--name", "A B", "--", "true"]).status,
        Some(2)
    );
    let seen = fake.lines().len();
    for arguments in [
        &["run", "--vcpu", "0", "--", "true"][..],
        &["run", "--vcpu", "-1"],
        &["run", "--memory", "1"],
        &["run", "--disk-size", "8"],
        &["run", "--timeout", "soon"],
        &["run", "-e", "=x"],
        &["run", "-d", "--rm"],
        &["run", "-d", "--", "true"],
        &["run", "--nat", "--no-nat"],
        &["run", "--no-such-flag"],
        &["run", "./repo"],
    ] {
        let ran = fake.run(arguments);
        assert_eq!(ran.status, Some(2), "{arguments:?}");
        assert!(ran.err.starts_with("error: "), "{arguments:?}: {}", ran.err);
        assert!(
            ran.err.contains("\nusage: banger run"),
            "{arguments:?}: {}",
            ran.err
        );
    }
    assert_eq!(fake.lines().len(), seen, "nothing was asked of the daemon");
}

#[test]
fn what_cannot_go_together_has_a_hint() {
    let fake = Fake::new(|_| Answer::Silence);
    let ran = fake.run(&["run", "-d", "--", "true"]);
    assert!(
        ran.err
            .contains("hint: banger create --name x && banger exec x -- CMD"),
        "{}",
        ran.err
    );
}

#[test]
fn json_ends_standard_error_with_one_line() {
    let fake = running(|mut frames| frames.exit(3));
    let ran = fake.run(&["run", "--json", "--timings", "--", "false"]);
    assert_eq!(ran.status, Some(3));
    let last: Value = serde_json::from_str(ran.err.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["vm"], &last["exit_code"]),
        (&json!("box"), &json!(3))
    );
    let stages: Vec<&str> = last["timings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|timing| timing["stage"].as_str().unwrap())
        .collect();
    assert_eq!(
        stages,
        ["connect", "create_request", "boot_kernel", "attach", "exec"]
    );
    assert!(ran.err.starts_with("STAGE "), "{}", ran.err);
}

#[test]
fn json_tells_a_failure_too() {
    let ran = failing().run(&["run", "--json", "--", "true"]);
    let last: Value = serde_json::from_str(ran.err.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["vm"], &last["exit_code"]),
        (&json!("box"), &json!(125))
    );
    assert!(ran.err.contains("error: "));
}

#[test]
fn detached_prints_the_name_the_id_or_the_json() {
    let fake = running(|_| panic!("no exec"));
    assert_eq!(fake.run(&["run", "-d"]).out, "box\n");
    assert_eq!(fake.run(&["run", "-d", "-q"]).out, format!("{ID}\n"));
    let json: Value = serde_json::from_str(&fake.run(&["run", "-d", "--json"]).out).unwrap();
    assert_eq!(
        (&json["vm"], &json["exit_code"]),
        (&json!("box"), &json!(0))
    );
    assert_eq!(fake.body(CREATE), json!({}));
    assert_eq!(fake.run(&["create", "--no-start"]).out, "box\n");
}

#[test]
fn ctrl_c_before_ready_cancels_the_create_and_exits_130() {
    let (asked, wait) = mpsc::channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    let fake = Fake::new(
        move |request| match (request.method.as_str(), request.target.as_str()) {
            ("POST", "/v1/vms") => Answer::Json(202, begun("box")),
            ("DELETE", OPERATION) => {
                flag.store(true, Ordering::SeqCst);
                Answer::Json(202, begun("box"))
            }
            ("GET", target) if target.ends_with("/events") => {
                Answer::Events(vec![("done", failed("box", "cancelled", "cancelled"))])
            }
            ("POST", target) if target.ends_with("/exec") => {
                asked.send(()).unwrap();
                std::thread::park_timeout(Duration::from_secs(20));
                Answer::Silence
            }
            _ => panic!("not expected: {}", request.line()),
        },
    );
    let child = fake
        .banger(&["run", "--rm", "--", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait.recv_timeout(Duration::from_secs(10)).unwrap();
    kill_process(
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        Signal::INT,
    )
    .unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.status, ran.err.as_str()), (Some(130), ""));
    assert!(cancelled.load(Ordering::SeqCst));
}

#[test]
fn an_exec_that_came_before_the_vm_had_a_record_is_asked_again() {
    let first = AtomicBool::new(true);
    let fake = Fake::new(
        move |request| match (request.method.as_str(), request.target.as_str()) {
            ("POST", "/v1/vms") => Answer::Json(202, begun("box")),
            ("GET", _) => Answer::Events(vec![("done", done("box"))]),
            _ if first.swap(false, Ordering::SeqCst) => error(404, "not_found", "no VM"),
            _ => upgrade(|mut frames| frames.exit(6)),
        },
    );
    assert_eq!(fake.run(&["run", "--", "true"]).status, Some(6));
}

/// Starts `create`, interrupts it when it is followed, and tells how it ended.
fn interrupted_create(end: &'static str, twice: bool) -> (Fake, Ran) {
    let (followed, wait) = mpsc::channel();
    let (cancelled, cancel) = mpsc::channel();
    let cancel = std::sync::Mutex::new(cancel);
    let fake = Fake::new(
        move |request| match (request.method.as_str(), request.target.as_str()) {
            ("POST", _) => Answer::Json(202, begun("box")),
            ("DELETE", _) => {
                cancelled.send(()).unwrap();
                followed.send(()).unwrap();
                Answer::Json(202, begun("box"))
            }
            _ => {
                followed.send(()).unwrap();
                let _ = cancel.lock().unwrap().recv();
                if twice {
                    std::thread::park_timeout(Duration::from_secs(20));
                }
                Answer::Events(vec![("done", failed("box", end, "it ended"))])
            }
        },
    );
    let child = fake
        .banger(&["create"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    for _ in 0..if twice { 2 } else { 1 } {
        wait.recv_timeout(Duration::from_secs(10)).unwrap();
        kill_process(pid, Signal::INT).unwrap();
    }
    let ran = Ran::of(&child.wait_with_output().unwrap());
    (fake, ran)
}

#[test]
fn ctrl_c_cancels_what_is_followed_and_a_second_one_leaves_it() {
    let (fake, ran) = interrupted_create("cancelled", false);
    assert_eq!((ran.status, ran.err.as_str()), (Some(130), ""));
    assert!(fake.lines().contains(&format!("DELETE {OPERATION}")));
    let (_fake, ran) = interrupted_create("no_space", false);
    assert_eq!(ran.status, Some(130));
    assert!(
        ran.err.starts_with("error: it ended"),
        "another end than the cancel is told"
    );
    let (_fake, ran) = interrupted_create("cancelled", true);
    assert_eq!(ran.status, Some(130));
}

#[test]
fn leaving_a_run_with_rm_asks_for_the_vm_to_go() {
    let fake = Fake::new(
        move |request| match (request.method.as_str(), request.target.as_str()) {
            ("POST", "/v1/vms") => Answer::Json(202, begun("box")),
            ("POST", _) => upgrade(|mut frames| {
                frames.out(b"x");
                while frames.next().is_some() {}
            }),
            _ => Answer::Json(202, begun("box")),
        },
    );
    let mut child = fake
        .banger(&["run", "--rm", "--", "sleep"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    kill_process(
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        Signal::HUP,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(129));
    assert!(fake.lines().contains(&format!("DELETE /v1/vms/{ID}")));
}

/// An image as `GET /images/{image}` has it.
fn image(name: &str, entrypoint: &[&str], cmd: &[&str]) -> Value {
    json!({"image": {
        "id": "cd".repeat(32), "name": name, "managed": true, "rootfs_path": "/r",
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "oci": {"entrypoint": entrypoint, "cmd": cmd, "user": "bob:staff", "working_dir": "/srv"},
    }})
}

/// A daemon with these images, the second of them its default.
fn with_images(named: Value, default: Value) -> Fake {
    Fake::new(
        move |request| match (request.method.as_str(), request.target.as_str()) {
            ("GET", "/v1/images/app") => Answer::Json(200, named.clone()),
            ("GET", "/v1/images/later") => error(404, "not_found", "no image \"later\""),
            ("GET", target) if target == format!("/v1/images/{}", "ab".repeat(32)) => {
                Answer::Json(200, default.clone())
            }
            ("POST", "/v1/vms") => Answer::Json(202, begun("box")),
            ("GET", OPERATION) => Answer::Json(200, done("box")),
            ("GET", target) if target.ends_with("/events") => {
                Answer::Events(vec![("done", done("box"))])
            }
            ("GET", target) if target == format!("/v1/vms/{ID}") => {
                Answer::Json(200, json!({"vm": fake::vm(ID, "box", "running")}))
            }
            ("DELETE", _) => Answer::Json(202, begun("box")),
            ("POST", target) if target.ends_with("/exec") => upgrade(|mut frames| frames.exit(7)),
            _ => panic!("not expected: {}", request.line()),
        },
    )
}

#[test]
fn an_images_own_command_runs_as_its_user_and_arguments_replace_its_cmd() {
    for (flags, command, args, user) in [
        (&[][..], "/bin/serve", json!(["--port", "80"]), "bob:staff"),
        (&["--", "-v"], "/bin/serve", json!(["-v"]), "bob:staff"),
        (
            &["-u", "root", "-w", "/"],
            "/bin/serve",
            json!(["--port", "80"]),
            "root",
        ),
    ] {
        let fake = with_images(
            image("app", &["/bin/serve"], &["--port", "80"]),
            Value::Null,
        );
        let first = ["run", "--image", "app", "--image-command"];
        let ran = fake.run(&[&first, flags].concat());
        assert_eq!(ran.status, Some(7), "{}", ran.err);
        // The image that was looked at, whatever has its name by now.
        assert_eq!(fake.body(CREATE)["image_name"], "cd".repeat(32));
        let exec = fake.body(&format!("POST /v1/vms/{ID}/exec"));
        assert_eq!(
            (
                &exec["command"],
                &exec["args"],
                &exec["user"],
                &exec["stdin"]
            ),
            (&json!(command), &args, &json!(user), &json!(false))
        );
        let workdir = flags.contains(&"-w").then_some("/");
        assert_eq!(exec.get("cwd").and_then(Value::as_str), workdir);
    }
}

#[test]
fn an_image_without_a_command_is_refused_before_there_is_a_vm() {
    let fake = with_images(image("app", &[], &[]), Value::Null);
    let ran = fake.run(&["run", "--rm", "--image", "app", "--image-command"]);
    assert_eq!(ran.status, Some(125));
    assert_eq!(
        ran.err,
        "error: image \"app\" has no command of its own\n\
         hint: name one: banger run --image app -- COMMAND\n"
    );
    assert_eq!(fake.lines(), ["GET /v1/images/app"]);
    let ran = fake.run(&["run", "-d", "--image", "app", "--image-command"]);
    assert_eq!(ran.status, Some(2), "{}", ran.err);
    assert_eq!(fake.lines().len(), 1);
}

#[test]
fn an_image_that_the_create_obtains_is_asked_for_its_command_after() {
    for words in [
        &["run", "--image-command"][..],
        &["run", "--image", "later", "--image-command"],
    ] {
        let fake = with_images(Value::Null, image("later", &[], &["/bin/cat", "x"]));
        let ran = fake.run(words);
        assert_eq!(ran.status, Some(7), "{}", ran.err);
        let exec = fake.body(&format!("POST /v1/vms/{ID}/exec"));
        assert_eq!(
            (&exec["command"], &exec["args"]),
            (&json!("/bin/cat"), &json!(["x"]))
        );
    }
    let fake = with_images(Value::Null, image("later", &[], &[]));
    let ran = fake.run(&["run", "--rm", "--image-command"]);
    assert_eq!(ran.status, Some(125));
    assert!(
        ran.err.contains("\"later\" has no command of its own"),
        "{}",
        ran.err
    );
    assert!(
        fake.lines().contains(&format!("DELETE /v1/vms/{ID}")),
        "{:?}",
        fake.lines()
    );
    assert!(fake.lines().iter().all(|line| !line.ends_with("/exec")));
}
