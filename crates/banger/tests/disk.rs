//! `disk` and `image cache prune` against a fake daemon.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fake;

use std::sync::Mutex;

use fake::{Answer, Fake, done, error};
use serde_json::{Value, json};

fn row(kind: &str, name: &str, used: u64, more: Value) -> Value {
    let mut row = json!({"kind": kind, "name": name, "files": 2, "size_bytes": used * 2,
        "used_bytes": used, "shared_bytes": 0, "used_by": [], "reclaimable_bytes": 0});
    let fields = row.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    row
}

fn report() -> Value {
    json!({
        "rows": [
            row("vm", "box", 4096, json!({})),
            row("image", "app", 5 << 20, json!({"used_by": [{"kind": "vm", "name": "box"},
                {"kind": "image", "name": "other"}]})),
            row("image", "idle", 3 << 20, json!({"reclaimable_bytes": 3 << 20, "with_images": true,
                "note": "default image"})),
            row("cache", "blobs", 2 << 20, json!({"reclaimable_bytes": 1 << 20, "shared_bytes": 512,
                "used_by": [{"kind": "pull", "name": ""}]})),
            row("leftover", "state/vms/\u{1b}[2J", 4096, json!({"reclaimable_bytes": 4096})),
        ],
        "directories": [{"name": "state", "path": "/s", "used_bytes": 9 << 20,
            "filesystem_total_bytes": 20u64 << 30, "filesystem_free_bytes": 10u64 << 30}],
        "size_bytes": 20 << 20, "used_bytes": 10 << 20, "reclaimable_bytes": (1 << 20) + 4096,
        "reclaimable_with_images_bytes": (4 << 20) + 4096,
        "problems": ["/s/closed: Permission denied"],
    })
}

fn item(kind: &str, name: &str, outcome: &str, more: Value) -> Value {
    let mut item = json!({"kind": kind, "name": name, "bytes": 1 << 20, "identity": "1:2",
        "outcome": outcome});
    let fields = item.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    item
}

/// A daemon whose reclaims end at once.
fn fake() -> Fake {
    let last = Mutex::new(None::<Value>);
    Fake::new(move |request| match request.line().as_str() {
        "GET /v1/system/disk" => Answer::Json(200, report()),
        "POST /v1/images/cache/prune" => Answer::Json(
            200,
            json!({"bytes_freed": 1_288_490_188, "blobs_freed": 14, "cache_dir": "/c/blobs",
                "dry_run": request.body["dry_run"] == true}),
        ),
        "POST /v1/system/disk/reclaim" => {
            let dry_run = request.body["dry_run"] == true;
            let outcome = if dry_run { "planned" } else { "freed" };
            let mut operation = done("");
            let id = if dry_run {
                "op-00000000d1a4"
            } else {
                "op-000000000002"
            };
            operation["operation"]["id"] = id.into();
            let mut items = vec![
                item("image", "idle", outcome, json!({"note": "default image"})),
                item("cache", "blobs/11", outcome, json!({})),
                item("cache", "blobs/22", outcome, json!({})),
            ];
            if !dry_run {
                let why = json!({"reason": "it is in use by vm \"box\""});
                items[0] = item("image", "idle", "skipped", why);
            }
            operation["operation"]["reclaim"] = json!({"dry_run": dry_run, "images": true, "items": items,
                "bytes_planned": 3 << 20, "bytes_freed": if dry_run { 0 } else { 2 << 20 },
                "items_freed": if dry_run { 0 } else { 2 }});
            *last.lock().unwrap() = Some(operation.clone());
            Answer::Json(202, operation)
        }
        line if line.contains("/events") => {
            let operation = last.lock().unwrap().clone();
            Answer::Events(vec![("done", operation.unwrap())])
        }
        line => error(404, "unknown_route", line),
    })
}

#[test]
fn every_row_is_shown_with_a_total_and_what_is_free() {
    let fake = fake();
    let ran = fake.run(&["disk"]);
    assert_eq!(
        ran.out,
        "KIND      NAME               SIZE   USED   SHARED  USED-BY           RECLAIMABLE\n\
         vm        box                8.0K   4.0K   -       -                 -\n\
         image     app                10.0M  5.0M   -       box, image other  -\n\
         image     idle               6.0M   3.0M   -       -                 3.0M with --images, default image\n\
         cache     blobs              4.0M   2.0M   512B    pull              1.0M\n\
         leftover  state/vms/\\x1b[2J  8.0K   4.0K   -       -                 4.0K\n\
         total     -                  20.0M  10.0M  512B    -                 1.0M, 4.0M with --images\n\
         state: 9.0M in /s, 10.0G free\n"
    );
    assert_eq!(
        (ran.status, ran.err.as_str()),
        (
            Some(0),
            "warning: not counted: /s/closed: Permission denied\n"
        )
    );
    let body: Value = serde_json::from_str(&fake.run(&["disk", "--json"]).out).unwrap();
    assert_eq!(body, report());
}

#[test]
fn without_a_terminal_nothing_is_asked_and_nothing_goes() {
    let fake = fake();
    let ran = fake.run(&["disk", "--reclaim"]);
    assert_eq!(ran.status, Some(2));
    assert!(
        ran.err.contains("no terminal") && ran.err.contains("hint: -y"),
        "{}",
        ran.err
    );
    for words in [
        &["disk", "-y"][..],
        &["disk", "--images"],
        &["disk", "--reclaim", "-y", "--dry-run"],
    ] {
        assert_eq!(fake.run(words).status, Some(2), "{words:?}");
    }
    assert_eq!(fake.lines(), [""; 0]);
}

#[test]
fn a_reclaim_says_what_it_freed_and_what_stayed() {
    let fake = fake();
    let ran = fake.run(&["disk", "--reclaim", "--images", "-y"]);
    assert_eq!(
        (ran.status, ran.out.as_str(), ran.err.as_str()),
        (
            Some(0),
            "freed 2.0M (2 items)\n",
            "skipped image idle: it is in use by vm \"box\"\n"
        )
    );
    assert_eq!(
        fake.body("POST /v1/system/disk/reclaim"),
        json!({"images": true})
    );
    let ran = fake.run(&["disk", "--reclaim", "-y", "--json"]);
    let body: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(body["operation"]["reclaim"]["items_freed"], 2);
}

#[test]
fn a_dry_run_shows_the_plan() {
    let fake = fake();
    let ran = fake.run(&["disk", "--reclaim", "--images", "--dry-run"]);
    assert_eq!(
        (ran.status, ran.out.as_str(), ran.err.as_str()),
        (
            Some(0),
            "KIND   NAME   FREES  NOTE\n\
             image  idle   1.0M   default image\n\
             cache  blobs  2.0M   2 items\n\
             would free 3.0M (3 items)\n",
            ""
        )
    );
    let body = fake.body("POST /v1/system/disk/reclaim");
    assert_eq!(body, json!({"images": true, "dry_run": true}));
}

#[test]
fn a_prune_of_the_cache_says_how_much_and_where() {
    let fake = fake();
    let ran = fake.run(&["image", "cache", "prune"]);
    assert_eq!(ran.out, "freed 1.2G across 14 blob(s) in /c/blobs\n");
    assert_eq!(fake.body("POST /v1/images/cache/prune"), json!({}));
    let ran = fake.run(&["image", "cache", "prune", "--dry-run"]);
    assert_eq!(ran.out, "would free 1.2G across 14 blob(s) in /c/blobs\n");
    let ran = fake.run(&["image", "cache", "prune", "--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&ran.out).unwrap()["blobs_freed"],
        14
    );
}
