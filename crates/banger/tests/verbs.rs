//! The other verbs against a fake daemon: several VMs, lists, refusals.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};

use fake::{Answer, Fake, ID, Ran, done, error, failed, vm};
use serde_json::{Value, json};

const OTHER: &str = "9c11000000000000000000000000000000000000000000000000000000000002";

/// Two VMs, `web` and `db`; verbs succeed at once, but for the one that fails.
fn two_vms(broken: &'static str) -> Fake {
    Fake::new(move |request| {
        let target = request.target.as_str();
        let named = |name: &str, id: &str| {
            ["", "?unless_running=true"].iter().any(|query| {
                target == format!("/v1/vms/{name}{query}")
                    || target == format!("/v1/vms/{id}{query}")
            })
        };
        match request.method.as_str() {
            "GET" if target == "/v1/vms" => Answer::Json(
                200,
                json!({"vms": [vm(OTHER, "db", "stopped"), vm(ID, "web", "running")]}),
            ),
            "GET" if target == "/v1/images" => Answer::Json(
                200,
                json!({"images": [{"id": "ab".repeat(32), "name": "debian-bookworm", "managed": true,
                    "rootfs_path": "/i", "kernel_path": "", "size_bytes": 412_340_224,
                    "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}]}),
            ),
            "GET" if named("web", ID) || target.ends_with("/3f2a") => {
                Answer::Json(200, json!({"vm": vm(ID, "web", "running")}))
            }
            "GET" if named("db", OTHER) => {
                Answer::Json(200, json!({"vm": vm(OTHER, "db", "stopped")}))
            }
            "GET" => error(404, "not_found", "no such VM"),
            _ => {
                let (name, id) = if target.contains(OTHER) {
                    ("db", OTHER)
                } else {
                    ("web", ID)
                };
                let mut operation = if name == broken {
                    failed(name, "guest_failed", "it broke")
                } else {
                    done(name)
                };
                operation["operation"]["vm_id"] = id.into();
                Answer::Json(202, operation)
            }
        }
    })
}

#[test]
fn several_references_are_resolved_and_duplicates_dropped() {
    let fake = two_vms("");
    let ran = fake.run(&["stop", "web", "db", "web", "3f2a", "--timeout", "2s"]);
    assert_eq!(
        (ran.status, ran.out.as_str(), ran.err.as_str()),
        (Some(0), "web\ndb\n", "")
    );
    let posts: Vec<String> = fake
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("POST"))
        .collect();
    assert_eq!(posts.len(), 2, "{posts:?}");
    assert_eq!(
        fake.body(&format!("POST /v1/vms/{ID}/stop")),
        json!({"timeout_ms": 2000})
    );
}

#[test]
fn the_good_ones_are_done_and_the_first_failure_is_the_status() {
    let fake = two_vms("web");
    let ran = fake.run(&["start", "web", "nosuch", "db"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(70), "db\n"));
    assert_eq!(
        ran.err,
        "error: it broke (op-000000000001)\nhint: banger logs box; banger rm box\n\
         error: no such VM (op-0123456789ab)\n"
    );
}

#[test]
fn one_reference_is_one_request_and_quiet_prints_whole_ids() {
    let fake = two_vms("");
    let ran = fake.run(&["vm", "kill", "-q", "--signal", "term", "web"]);
    assert_eq!((ran.status, ran.out), (Some(0), format!("{ID}\n")));
    assert_eq!(fake.lines(), ["POST /v1/vms/web/kill"]);
    assert_eq!(fake.seen()[0].body, json!({"signal": "TERM"}));
}

#[test]
fn lists_have_a_table_json_and_ids() {
    let fake = two_vms("");
    assert_eq!(
        fake.run(&["list"]).out,
        "ID            NAME  STATE    IMAGE            IP  VCPU  MEM  DISK  WORKSPACE  CREATED\n\
         9c1100000000  db    stopped  debian-bookworm  -   2     2G   8G    -          2026-01-01T00:00:00Z\n\
         3f2a00000000  web   running  debian-bookworm  -   2     2G   8G    -          2026-01-01T00:00:00Z\n"
    );
    assert_eq!(fake.run(&["list", "-q"]).out, format!("{OTHER}\n{ID}\n"));
    let json: Value = serde_json::from_str(&fake.run(&["vm", "list", "--json"]).out).unwrap();
    assert_eq!(
        json["vms"][1],
        vm(ID, "web", "running"),
        "the body as it came"
    );
    assert_eq!(fake.run(&["ps", "-q"]).out, format!("{ID}\n"));
    assert_eq!(
        fake.run(&["ps", "-a", "-q"]).out,
        format!("{OTHER}\n{ID}\n")
    );
    assert_eq!(
        fake.run(&["images"]).out,
        "ID            NAME             KIND     SIZE    KERNEL  ARCH  CREATED\n\
         abababababab  debian-bookworm  managed  393.2M  -       -     2026-01-01T00:00:00Z\n"
    );
    assert!(fake.run(&["show", "web"]).out.contains("state:"));
}

#[test]
fn a_state_to_list_is_asked_of_the_daemon() {
    let fake = Fake::new(|_| Answer::Json(200, json!({"vms": []})));
    assert_eq!(fake.run(&["list", "--state", "running", "-q"]).out, "");
    assert_eq!(fake.lines(), ["GET /v1/vms?state=running"]);
    assert_eq!(fake.run(&["list", "--state", "dancing"]).status, Some(2));
}

#[test]
fn prune_asks_nobody_without_a_terminal() {
    let fake = two_vms("");
    let ran = fake.run(&["prune"]);
    assert_eq!(ran.status, Some(2));
    assert!(
        ran.err.contains("hint: -f\nusage: banger prune"),
        "{}",
        ran.err
    );
    assert!(fake.lines().is_empty());
    let ran = fake.run(&["prune", "-f"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(0), "db\n"));
    assert!(
        fake.lines()
            .contains(&format!("DELETE /v1/vms/{OTHER}?unless_running=true"))
    );
}

#[test]
fn delete_without_a_terminal_does_not_ask() {
    let fake = two_vms("");
    let ran = fake.run(&["rm", "web"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(0), "web\n"));
    assert_eq!(fake.lines(), ["DELETE /v1/vms/web"]);
    assert_eq!(
        fake.run(&["rm", "--unless-running", "db", "web"]).out,
        "db\nweb\n"
    );
}

#[test]
fn wait_ends_when_it_came_when_it_cannot_come_and_when_time_is_up() {
    let looks = AtomicUsize::new(0);
    let fake = Fake::new(move |request| match request.target.as_str() {
        target if target.starts_with("/v1/events") => {
            Answer::Events(vec![("vm", json!({})), ("vm", json!({}))])
        }
        "/v1/vms/late" => Answer::Json(200, json!({"vm": vm(ID, "late", "starting")})),
        "/v1/vms/off" => Answer::Json(200, json!({"vm": vm(OTHER, "off", "stopped")})),
        target if target.ends_with(OTHER) => {
            Answer::Json(200, json!({"vm": vm(OTHER, "off", "stopped")}))
        }
        target if target.ends_with(ID) => {
            let mut starting = vm(ID, "late", "starting");
            starting["runtime"]["goal"] = "up".into();
            let seen = looks.fetch_add(1, Ordering::SeqCst);
            let now = if seen < 2 {
                starting
            } else {
                vm(ID, "late", "running")
            };
            Answer::Json(200, json!({"vm": now}))
        }
        _ => error(404, "not_found", "no such VM"),
    });
    assert_eq!(
        fake.run(&["wait", "--for", "running", "late"]).status,
        Some(0)
    );
    let ran = fake.run(&["wait", "off"]);
    assert_eq!(ran.status, Some(4));
    assert_eq!(
        ran.err,
        "error: \"off\" will not be healthy: it is stopped\n"
    );
    assert_eq!(
        fake.run(&["wait", "--for", "stopped", "off"]).status,
        Some(0)
    );
    assert_eq!(
        fake.run(&["wait", "--for", "gone", "nosuch"]).status,
        Some(0)
    );
    assert_eq!(fake.run(&["wait", "nosuch"]).status, Some(3));
}

#[test]
fn wait_gives_up_with_124() {
    let fake = Fake::new(|request| {
        if request.target.starts_with("/v1/events") {
            std::thread::park_timeout(std::time::Duration::from_secs(20));
            return Answer::Silence;
        }
        let mut starting = vm(ID, "late", "starting");
        starting["runtime"]["goal"] = "up".into();
        Answer::Json(200, json!({"vm": starting}))
    });
    let ran = fake.run(&["wait", "--timeout", "200ms", "late"]);
    assert_eq!(ran.status, Some(124));
    assert_eq!(ran.err, "error: \"late\" took longer than 200ms\n");
}

#[test]
fn logs_in_a_pipe_are_the_bytes_of_the_console() {
    let fake = Fake::new(|_| Answer::Text("a\r\n\u{1b}[31mred\n"));
    assert_eq!(
        fake.run(&["logs", "-f", "-n", "5", "box"]).out,
        "a\r\n\u{1b}[31mred\n"
    );
    assert_eq!(
        fake.lines(),
        ["GET /v1/vms/box/logs?content=true&tail=5&follow=true"]
    );
}

#[test]
fn kernels_and_images_are_asked_for_with_absolute_paths() {
    let fake = Fake::new(|request| match request.target.as_str() {
        "/v1/kernels/pull" => {
            let mut operation = done("");
            operation["operation"]["entry"] = json!({"name": "6.1.0-56-cloud-amd64"});
            Answer::Json(202, operation)
        }
        "/v1/operations/op-000000000001/events" => {
            let mut operation = done("");
            operation["operation"]["entry"] = json!({"name": "6.1.0-56-cloud-amd64"});
            Answer::Events(vec![("done", operation["operation"].clone())])
        }
        "/v1/kernels/import" => Answer::Json(200, json!({"entry": {"name": "mine"}})),
        _ => error(400, "bad_path", "no"),
    });
    let ran = fake.run(&["kernel", "pull", "deb:linux-image-cloud-amd64"]);
    assert_eq!(
        (ran.status, ran.out.as_str()),
        (Some(0), "6.1.0-56-cloud-amd64\n")
    );
    assert_eq!(
        fake.body("POST /v1/kernels/pull"),
        json!({"package": "linux-image-cloud-amd64"})
    );
    for (words, sent) in [
        (&["debian-cloud"][..], json!({"name": "debian-cloud"})),
        (
            &["debian-cloud", "--name", "today", "--force"],
            json!({"entry": "debian-cloud", "name": "today", "force": true}),
        ),
    ] {
        let ran = fake.run(&[&["kernel", "pull"], words].concat());
        assert_eq!(ran.status, Some(0), "{}", ran.err);
        assert_eq!(fake.last("POST /v1/kernels/pull"), sent);
    }
    let mut import = fake.banger(&["kernel", "import", "mine", "--deb", "k.deb"]);
    import.current_dir(fake.home.path());
    assert_eq!(Ran::of(&import.output().unwrap()).out, "mine\n");
    let deb = fake.body("POST /v1/kernels/import")["deb_path"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(deb.starts_with('/') && deb.ends_with("/k.deb"), "{deb}");
    assert_eq!(fake.run(&["kernel", "import", "mine"]).status, Some(2));
    assert_eq!(fake.run(&["kernel", "pull", "deb:"]).status, Some(2));
    assert_eq!(fake.run(&["image", "build"]).status, Some(2));
}

#[test]
fn what_can_be_pulled_is_listed_with_its_size_and_whether_it_is_here() {
    let entries = json!({"entries": [
        {"name": "here", "distro": "debian", "pulled": true, "size_bytes": 1_610_612_736_u64},
        {"name": "there", "pulled": false, "description": "Not yet"},
    ]});
    let fake = Fake::new(move |_| Answer::Json(200, entries.clone()));
    let ran = fake.run(&["image", "list", "--available"]);
    assert_eq!(
        ran.out,
        "NAME   DISTRO  ARCH  SIZE  STATE      DESCRIPTION
here   debian  -     1.5G  pulled     -
there  -       -     -     available  Not yet
",
        "{}",
        ran.err
    );
    let ran = fake.run(&["kernel", "list", "--available"]);
    let row = ran.out.lines().nth(1).unwrap();
    assert!(row.contains("1.5G  pulled"), "{}", ran.out);
}

#[test]
fn a_group_alone_prints_its_help_on_standard_error() {
    let fake = Fake::new(|_| Answer::Silence);
    for group in ["vm", "image", "kernel", "operation", "daemon"] {
        let ran = fake.run(&[group]);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""), "{group}");
        assert!(
            ran.err.contains(&format!("usage: banger {group}")),
            "{group}: {}",
            ran.err
        );
    }
    assert_eq!(fake.run(&[]).status, Some(2));
}

#[test]
fn completion_offers_live_names_and_is_silent_without_a_daemon() {
    let fake = two_vms("");
    let complete = |socket: &std::path::Path| {
        let mut command = fake::banger(fake.home.path(), &["--", "banger", "stop", "w"]);
        command
            .env("BANGER_SOCKET", socket)
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "2")
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "true")
            .env("_CLAP_IFS", "\n");
        Ran::of(&command.output().unwrap())
    };
    let ran = complete(&fake.socket);
    assert_eq!(
        (ran.status, ran.out.trim(), ran.err.as_str()),
        (Some(0), "web", "")
    );
    let ran = complete(&fake.home.path().join("absent"));
    assert_eq!((ran.out.trim(), ran.err.as_str()), ("", ""));
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            fake.run(&["completion", shell]).out.contains("banger"),
            "{shell}"
        );
    }
}
