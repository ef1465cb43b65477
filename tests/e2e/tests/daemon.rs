//! The daemon as the CLI meets it: completed names, who starts it and who
//! never does, and that there is only ever one.

use std::time::Duration;

use e2e::{Call, House, Kernel, Root};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn words_complete_with_live_names() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name completed --no-start").ok();
    for shell in ["bash", "zsh", "fish"] {
        let script = house.banger(&format!("completion {shell}")).ok().out();
        assert!(script.contains("banger"), "{shell}: {script}");
    }
    if e2e::census::which("bash").is_none() {
        e2e::skip!("no bash here");
    }
    // What bash does when Tab is pressed after the last word.
    let script = r#"
        source <(banger completion bash)
        spec=$(complete -p banger); fn=${spec#*-F }; fn=${fn%% *}
        COMP_WORDS=(banger $1 ""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        COMP_LINE="banger $1 "; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_KEY=9
        $fn banger "" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let complete = |words: &str| {
        let path = format!(
            "{}:{}",
            house.programs().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        house
            .wrap(Call::new("bash", ["-c", script, "bash", words]))
            .env("PATH", path)
            .run()
            .ok()
            .out()
    };
    for words in ["show", "exec", "stop", "vm start", "rm"] {
        assert!(
            complete(words).contains("completed"),
            "{words}: {}",
            complete(words)
        );
    }
    assert!(complete("create --image").contains("bare"));
    assert!(complete("kernel show").contains("k6.1"));
    assert!(complete("image show").contains("bare"));
}

#[test]
fn looking_never_starts_a_daemon() {
    let house = House::new();
    let before: Vec<_> = house.census().files.into_iter().collect();
    for words in [
        "daemon status",
        "daemon stop",
        "daemon logs",
        "doctor",
        "--version",
        "version",
        "--help",
        "completion bash",
    ] {
        let _ = house.banger(words);
        assert!(house.daemon_pid().is_none(), "{words} started a daemon");
    }
    let after: Vec<_> = house.census().files.into_iter().collect();
    assert_eq!(after, before, "doctor and its like change nothing");
    let _ = house.banger("list").ok();
    let pid = house.daemon_pid();
    let _ = house.banger("daemon restart").ok();
    assert!(house.daemon_pid().is_some() && house.daemon_pid() != pid);
    assert!(house.banger("daemon logs").ok().out().contains('{'));
    let status = house.banger("daemon status").ok().out();
    assert!(
        status.contains(&house.socket().display().to_string()),
        "{status}"
    );
}

#[test]
fn daemons_that_race_to_start_are_one() {
    let house = House::new();
    let racers: Vec<_> = (0..8)
        .map(|_| house.call(["list"]).limit(SOON).start())
        .collect();
    for live in racers {
        let _ = live.wait().ok();
    }
    assert_eq!(
        house
            .processes()
            .iter()
            .filter(|p| p.program == "bangerd")
            .count(),
        1
    );
    let info: Value = house.api("GET", "/v1/system", None).body;
    assert_eq!(
        info["pid"].as_u64(),
        house.daemon_pid().map(u64::from),
        "{info}"
    );
}
