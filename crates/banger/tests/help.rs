//! Help pages as they are shown; a changed one is a decision.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fake;

use std::path::Path;

use fake::{Answer, Fake, Ran, banger};
use serde_json::json;

/// Every command there is, by its words.
const COMMANDS: &[&str] = &[
    "",
    "run",
    "create",
    "start",
    "stop",
    "restart",
    "kill",
    "delete",
    "list",
    "show",
    "exec",
    "logs",
    "wait",
    "rename",
    "set",
    "prune",
    "stats",
    "events",
    "health",
    "ping",
    "ps",
    "vm",
    "image",
    "image list",
    "image show",
    "image delete",
    "image register",
    "image promote",
    "image build",
    "image cache",
    "image cache prune",
    "kernel",
    "kernel list",
    "kernel show",
    "kernel rm",
    "kernel pull",
    "kernel import",
    "disk",
    "operation",
    "operation list",
    "operation show",
    "operation follow",
    "operation cancel",
    "daemon",
    "daemon status",
    "daemon stop",
    "daemon restart",
    "daemon logs",
    "doctor",
    "completion",
    "version",
];

#[test]
fn help_pages() {
    let home = tempfile::tempdir().unwrap();
    let mut pages = String::new();
    for words in COMMANDS {
        let mut arguments: Vec<&str> = words.split_whitespace().collect();
        arguments.push("--help");
        let ran = Ran::of(
            &banger(home.path(), &arguments)
                .env("COLUMNS", "100")
                .output()
                .unwrap(),
        );
        assert_eq!((ran.status, ran.err.as_str()), (Some(0), ""), "{words}");
        pages.push_str(&format!("$ banger {}\n{}\n", arguments.join(" "), ran.out));
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    insta::with_settings!({ snapshot_path => here, prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("help", pages);
    });
}

#[test]
fn no_page_names_what_is_not_there_yet() {
    let home = tempfile::tempdir().unwrap();
    let all = Ran::of(&banger(home.path(), &["vm", "--help"]).output().unwrap()).out
        + &Ran::of(&banger(home.path(), &["--help"]).output().unwrap()).out
        + &Ran::of(&banger(home.path(), &["run", "--help"]).output().unwrap()).out;
    for word in [
        "workspace",
        "session",
        "forward",
        "ssh",
        "publish",
        "snapshot",
        "pause",
        "--branch",
    ] {
        assert!(!all.contains(word), "{word}");
    }
}

#[test]
fn defaults_of_vms_are_told_where_a_daemon_runs() {
    let fake = Fake::new(|_| {
        Answer::Json(
            200,
            json!({"pid": 1, "socket": "", "state_dir": "", "cache_dir": "", "run_dir": "", "log_path": "",
                "engine_reason": "", "vm_defaults": [{"field": "memory_mib", "value": "2048", "origin": "builtin"}]}),
        )
    });
    let ran = fake.run(&["create", "--help"]);
    assert!(
        ran.out
            .ends_with("VM defaults:\n  memory-mib           2048 (builtin)\n"),
        "{}",
        ran.out
    );
    assert!(!fake.run(&["stop", "--help"]).out.contains("VM defaults"));
}

#[test]
fn the_version_names_commit_and_build_time() {
    let home = tempfile::tempdir().unwrap();
    for argument in ["--version", "version"] {
        let out = Ran::of(&banger(home.path(), &[argument]).output().unwrap()).out;
        let rest = out
            .strip_prefix(concat!("banger v", env!("CARGO_PKG_VERSION"), " (commit "))
            .unwrap();
        let (commit, built) = rest.split_once(", built ").unwrap();
        assert!(!commit.is_empty());
        assert!(
            built.ends_with("Z)\n") && built.len() == "2026-04-28T20:45:50Z)\n".len(),
            "{built}"
        );
    }
}
