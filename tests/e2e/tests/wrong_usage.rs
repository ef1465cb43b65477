//! Whatever is asked wrongly, or cannot be done here, says so with its code,
//! its hint and its status, and changes nothing.

use e2e::{House, Kernel, Root};
use serde_json::json;

struct Wrong {
    args: &'static str,
    exit: i32,
    /// Texts that stderr must hold.
    says: &'static [&'static str],
}

const fn wrong(args: &'static str, exit: i32, says: &'static [&'static str]) -> Wrong {
    Wrong { args, exit, says }
}

/// What a command line can get wrong.
#[rustfmt::skip]
const TABLE: &[Wrong] = &[
    wrong("", 2, &["usage: banger"]),
    wrong("vm", 2, &["usage: banger vm"]),
    wrong("image", 2, &["usage: banger image"]),
    wrong("kernel", 2, &["usage: banger kernel"]),
    wrong("operation", 2, &["usage: banger operation"]),
    wrong("daemon", 2, &["usage: banger daemon"]),
    wrong("nosuch", 2, &["error: ", "usage: banger"]),
    wrong("create --nosuch", 2, &["error: ", "--nosuch", "usage: banger"]),
    wrong("run -p 80:80 -- true", 2, &["usage: banger"]),
    wrong("run --publish 80:80 -- true", 2, &["usage: banger"]),
    wrong("ssh box", 2, &["usage: banger"]),
    wrong("cp a box:b", 2, &["usage: banger"]),
    wrong("pause box", 2, &["usage: banger"]),
    wrong("show", 2, &["usage: banger"]),
    wrong("create --name UPPER", 2, &["error: ", "UPPER"]),
    wrong("create --name -dash", 2, &["error: "]),
    wrong("create --name dash-", 2, &["error: ", "dash-"]),
    wrong("create --name under_score", 2, &["error: ", "under_score"]),
    wrong("create --name ../up", 2, &["error: ", "../up"]),
    wrong("create --name aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 2, &["error: "]),
    wrong("create --name fine --vcpu 0", 2, &["error: "]),
    wrong("create --name fine --vcpu 33", 2, &["error: "]),
    wrong("create --name fine --vcpu two", 2, &["error: "]),
    wrong("create --name fine --memory 64", 2, &["error: "]),
    wrong("create --name fine --memory 99999G", 2, &["error: "]),
    wrong("create --name fine --memory 1.5G", 2, &["error: "]),
    wrong("create --name fine --disk-size 8", 2, &["error: ", "hint: ", "8G"]),
    wrong("create --name fine --disk-size 8T", 2, &["error: "]),
    wrong("create --name fine --disk-size 0", 2, &["error: "]),
    wrong("create --name fine --disk-size -1G", 2, &["error: "]),
    wrong("create --name fine --disk-size 129G", 2, &["error: "]),
    wrong("create --name fine --system-overlay-size 12", 2, &["error: ", "hint: ", "12G"]),
    wrong("create --name fine --image nosuch", 3, &["error: ", "nosuch"]),
    wrong("create --name fine --kernel nosuch", 3, &["error: ", "nosuch"]),
    wrong("create --name fine --engine firecracker", 2, &["error: ", "firecracker"]),
    wrong("create --name fine --no-nat", 2, &["error: ", "user", "hint: --network none"]),
    wrong("run --network user --no-nat -- true", 2, &["error: ", "hint: --network none"]),
    wrong("create --name fine --network none --nat", 2, &["error: ", "none"]),
    wrong("create --name fine --network bridge", 2, &["error: ", "bridge"]),
    wrong("create --name fine --network nosuch", 2, &["error: ", "usage: banger"]),
    wrong("create --name taken", 4, &["error: VM \"taken\" already exists", "hint: banger "]),
    wrong("run --name taken -- true", 125, &["already exists"]),
    wrong("run --image nosuch -- true", 125, &["nosuch"]),
    wrong("show nosuch", 3, &["error: ", "nosuch"]),
    wrong("start nosuch", 3, &["error: ", "nosuch"]),
    wrong("stop nosuch", 3, &["error: ", "nosuch"]),
    wrong("kill nosuch", 3, &["nosuch"]),
    wrong("kill --signal HUP taken", 2, &["error: "]),
    wrong("rm nosuch", 3, &["nosuch"]),
    wrong("restart nosuch", 3, &["nosuch"]),
    wrong("rename nosuch other", 3, &["nosuch"]),
    wrong("rename taken Not-A-Name", 2, &["Not-A-Name"]),
    wrong("rename taken other", 4, &["other"]),
    wrong("set taken", 2, &["error: "]),
    wrong("set taken --vcpu 64", 2, &["error: "]),
    wrong("set taken --disk-size 256M", 2, &["error: "]),
    wrong("logs nosuch", 3, &["nosuch"]),
    wrong("stats nosuch", 3, &["nosuch"]),
    wrong("health nosuch", 3, &["nosuch"]),
    wrong("ping nosuch", 3, &["nosuch"]),
    wrong("health taken", 4, &["taken", "hint: "]),
    wrong("wait nosuch", 3, &["nosuch"]),
    wrong("wait taken --for lunch", 2, &["error: "]),
    wrong("exec taken -- true", 125, &["error: ", "taken", "hint: ", "start taken"]),
    wrong("exec nosuch -- true", 125, &["error: ", "nosuch"]),
    wrong("prune", 2, &["hint: ", "-f"]),
    wrong("image show nosuch", 3, &["nosuch"]),
    wrong("image delete nosuch", 3, &["nosuch"]),
    wrong("image delete bare", 4, &["bare"]),
    wrong("image register --name bare --rootfs /etc/passwd", 4, &["bare"]),
    wrong("image register --name other --rootfs /nosuch", 2, &["/nosuch"]),
    wrong("image register --name other --rootfs /etc/passwd", 2, &["/etc/passwd"]),
    wrong("image register --name Bad/Name --rootfs /nosuch", 2, &["error: "]),
    wrong("image register --name other --rootfs /etc/passwd --kernel-ref k6.1 --kernel /nosuch", 2, &["usage: banger"]),
    wrong("image register --name other --rootfs /etc/passwd --modules /nosuch", 2, &["--kernel", "usage: banger"]),
    wrong("image build other --suite ../../etc", 2, &["error: "]),
    wrong("image build other", 2, &["error: "]),
    wrong("kernel show nosuch", 3, &["nosuch"]),
    wrong("kernel rm nosuch", 3, &["nosuch"]),
    wrong("kernel rm k6.1", 4, &["k6.1"]),
    wrong("kernel import other --deb /etc/passwd", 2, &["/etc/passwd"]),
    wrong("kernel import other --deb /nosuch", 2, &["/nosuch"]),
    wrong("kernel import other --from /etc", 2, &["/etc"]),
    wrong("kernel import ..x --deb /nosuch", 2, &["error: "]),
    wrong("pull localhost:1/no:such --platform linux/s390x", 2, &["error: "]),
    wrong("pull UPPER/case", 2, &["error: ", "UPPER"]),
    wrong("pull oci-layout:/nosuch", 2, &["/nosuch"]),
    wrong("pull docker-archive:/nosuch", 2, &["/nosuch"]),
    wrong("pull docker-archive:/etc/passwd", 2, &["/etc/passwd"]),
    wrong("image build new --from nosuch --script /etc/passwd", 3, &["nosuch"]),
    wrong("image build new --from bare", 2, &["error: ", "--script"]),
    wrong("image build new --from bare --script /nosuch", 2, &["/nosuch"]),
    wrong("image build bare --from bare --package jq", 4, &["bare"]),
    wrong("image promote nosuch", 3, &["nosuch"]),
    wrong("run --image-command=yes", 2, &["usage: banger"]),
    wrong("kernel pull nosuch", 3, &["error: ", "nosuch", "hint: banger kernel list --available"]),
    wrong("operation show op-000000000000", 3, &["op-000000000000"]),
    wrong("operation cancel nosuch", 3, &["nosuch"]),
];

#[test]
fn wrong_usage_is_named_and_changes_nothing() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name taken --no-start").ok();
    let _ = house.banger("create --name other --no-start").ok();
    let before = house.rest();
    let mut wrongs = Vec::new();
    for case in TABLE {
        let done = house.banger(case.args);
        let text = done.err();
        if done.code != case.exit
            || case.says.iter().any(|s| !text.contains(s))
            || !done.stdout.is_empty()
        {
            wrongs.push(format!(
                "expected {} and {:?}:\n{done}",
                case.exit, case.says
            ));
        }
        for hint in text.lines().filter_map(|l| l.strip_prefix("hint: ")) {
            if let Err(why) = hint_exists(&house, hint) {
                wrongs.push(format!("{}: {why}: hint: {hint}", case.args));
            }
        }
        let changed = house.rest().differs_from(&before);
        if !changed.is_empty() {
            wrongs.push(format!(
                "{} changed:\n  {}",
                case.args,
                changed.join("\n  ")
            ));
        }
    }
    assert!(
        wrongs.is_empty(),
        "{} of {} wrong:\n\n{}",
        wrongs.len(),
        TABLE.len(),
        wrongs.join("\n\n")
    );
}

/// Commands named by a hint exist.
fn hint_exists(house: &House, hint: &str) -> Result<(), String> {
    for part in hint.split([';', ',', '`']).map(str::trim) {
        let Some(line) = part
            .strip_prefix("banger ")
            .or_else(|| part.split("sudo banger ").nth(1))
        else {
            continue;
        };
        let verbs: Vec<&str> = line
            .split(' ')
            .take_while(|w| w.chars().all(|c| c.is_ascii_lowercase()))
            .take(2)
            .collect();
        let one = house
            .call(verbs.iter().take(1).copied().chain(["--help"]))
            .run();
        if one.code != 0 {
            return Err(format!("no such command as banger {}", verbs.join(" ")));
        }
    }
    Ok(())
}

#[test]
fn the_interface_answers_wrong_requests_with_their_codes() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name taken --no-start").ok();
    let before = house.rest();
    let cases = [
        ("GET", "/v1/nosuch", None, 404, "unknown_route"),
        ("GET", "/nosuch", None, 404, "unknown_route"),
        ("GET", "/v1/vms/nosuch", None, 404, "not_found"),
        ("GET", "/v1/vms/%2e%2e", None, 404, "not_found"),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "UPPER"})),
            400,
            "bad_name",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "nosuch_field": 1})),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": 7})),
            400,
            "bad_request",
        ),
        ("POST", "/v1/vms", Some(json!([])), 400, "bad_request"),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "vcpu_count": 0})),
            400,
            "bad_size",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "vcpu_count": 33})),
            400,
            "bad_size",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "memory_mib": -5})),
            400,
            "bad_size",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "memory_mib": 127})),
            400,
            "bad_size",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "work_disk_size": "8"})),
            400,
            "bad_size",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "system_overlay_size": "129G"})),
            400,
            "bad_size",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "image_name": "nosuch"})),
            404,
            "not_found",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "kernel_name": "nosuch"})),
            404,
            "not_found",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "engine": "firecracker"})),
            400,
            "unsupported",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "engine": "nosuch"})),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "x", "network_mode": "bridge"})),
            400,
            "unsupported",
        ),
        (
            "POST",
            "/v1/vms",
            Some(json!({"name": "taken"})),
            409,
            "already_exists",
        ),
        (
            "PATCH",
            "/v1/vms/taken",
            Some(json!({"work_disk_size": "256M"})),
            400,
            "bad_size",
        ),
        (
            "PATCH",
            "/v1/vms/taken",
            Some(json!({"name": "-"})),
            400,
            "bad_name",
        ),
        (
            "POST",
            "/v1/vms/taken/kill",
            Some(json!({"signal": "HUP"})),
            400,
            "bad_request",
        ),
        ("GET", "/v1/vms/taken/health", None, 409, "not_running"),
        ("GET", "/v1/vms/taken/ping", None, 409, "not_running"),
        ("DELETE", "/v1/images/bare", None, 409, "in_use"),
        ("DELETE", "/v1/kernels/k6.1", None, 409, "in_use"),
        (
            "POST",
            "/v1/images/register",
            Some(json!({"name": "y", "rootfs_path": "relative"})),
            400,
            "bad_path",
        ),
        (
            "POST",
            "/v1/images/register",
            Some(json!({"name": "y", "rootfs_path": "/etc/passwd"})),
            400,
            "",
        ),
        (
            "POST",
            "/v1/kernels/import",
            Some(json!({"name": "y", "deb_path": "/etc/passwd"})),
            400,
            "bad_archive",
        ),
        (
            "POST",
            "/v1/kernels/import",
            Some(json!({"name": "y", "deb_path": "/nosuch"})),
            400,
            "bad_path",
        ),
        (
            "GET",
            "/v1/operations/op-000000000000",
            None,
            404,
            "not_found",
        ),
    ];
    let mut wrongs = Vec::new();
    for (method, path, body, status, code) in cases {
        let mut reply = house.api(method, path, body.as_ref());
        if reply.status != status || (!code.is_empty() && reply.code() != code) {
            wrongs.push(format!(
                "{method} {path} {body:?}: {} {}, expected {status} {code}",
                reply.status, reply.body
            ));
        }
        let error = reply.body["error"].take();
        if error["message"].as_str().unwrap_or("").is_empty()
            || !error["op_id"].as_str().unwrap_or("").starts_with("op-")
        {
            wrongs.push(format!("{method} {path}: no message or op id in {error}"));
        }
        if !reply.headers.contains("banger-op: op-") {
            wrongs.push(format!("{method} {path}: no Banger-Op header"));
        }
    }
    // Refused means that nothing was begun.
    let list = house.banger("operation list --json").ok().json();
    if list["operations"].as_array().map_or(0, Vec::len) != 1 {
        wrongs.push(format!(
            "more was begun than the create of \"taken\": {list}"
        ));
    }
    let changed = house.rest().differs_from(&before);
    wrongs.extend(changed.into_iter().map(|what| format!("changed: {what}")));
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
}
