//! The other verbs: lists, shows, changes, waiting, events, completion.

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::{House, Kernel, Root, disk, wait};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_machine_is_shown_listed_watched_and_changed() {
    let house = House::with(Root::Busybox, Kernel::Old);
    let events = house
        .call(["events"])
        .limit(Duration::from_secs(400))
        .start();
    wait::until_true("the stream is open", SOON, || house.daemon_pid().is_some());
    wait::pause(Duration::from_millis(500));
    let done = house.banger("create --name box").ok();
    assert_eq!(done.out(), "box\n", "one name a line, and nothing else");
    shown_and_listed(&house);
    references(&house);
    waiting(&house);
    logs_and_stats(&house);
    renaming(&house);
    growing(&house);
    operations(&house);
    verbs_of_many(&house);
    wait::until_true("events tell of the whole life", SOON, || {
        let text = events.out_so_far();
        ["box", "starting", "running", "stopping", "stopped"]
            .iter()
            .all(|w| text.contains(w))
    });
    println!("{}", events.out_so_far());
    events.ctrl_c();
    let _ = events.wait().expect(130);
}

fn shown_and_listed(house: &House) {
    let vm = house.vm("box");
    let id = vm["id"].as_str().expect("an id");
    assert!(
        id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
    assert_eq!(vm["name"], "box");
    assert_eq!(vm["state"], "running");
    assert_eq!(vm["runtime"]["goal"], "up");
    assert_eq!(vm["runtime"]["engine"], "qemu");
    assert_eq!(vm["spec"]["memory_mib"], 256);
    assert_eq!(vm["spec"]["vcpu_count"], 1);
    assert_eq!(vm["spec"]["network_mode"], "user");
    assert_eq!(vm["spec"]["nat_enabled"], true);
    assert_eq!(vm["spec"]["kernel_name"], "k6.1");
    assert_eq!(vm["spec"]["work_disk_size_bytes"], 512 << 20);
    assert_eq!(vm["runtime"]["guest_ip"], "");
    assert_eq!(
        vm["runtime"]["boot_id"].as_str().map(str::to_owned),
        Some(house.boot_id("box"))
    );
    for field in [
        "acceleration",
        "engine_version",
        "agent_version",
        "kernel_version",
        "vm_dir",
        "system_overlay_path",
    ] {
        assert!(
            vm["runtime"][field].as_str().is_some_and(|t| !t.is_empty()),
            "{field} in {vm}"
        );
    }
    for field in ["created_at", "updated_at", "last_touched_at"] {
        let time = vm[field].as_str().unwrap_or("");
        assert!(time.len() == 20 && time.ends_with('Z'), "{field}: {time}");
    }
    let text = house.banger("show box").ok().out();
    assert!(
        text.contains("box") && text.contains("running") && text.contains(id),
        "{text}"
    );
    let table = house.banger("list").ok().out();
    let head: Vec<&str> = table
        .lines()
        .next()
        .expect("a head")
        .split_whitespace()
        .collect();
    assert_eq!(
        head,
        [
            "ID",
            "NAME",
            "STATE",
            "IMAGE",
            "IP",
            "VCPU",
            "MEM",
            "DISK",
            "WORKSPACE",
            "CREATED"
        ]
    );
    assert!(
        table.contains(&id[..12]) && !table.contains(&id[..13]),
        "ids are cut to 12:\n{table}"
    );
    assert!(!table.contains('\u{1b}'), "no colours without a terminal");
    // The same by other names.
    let rest = |text: String| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        rest(house.banger("vm list").ok().out()),
        rest(table.clone())
    );
    assert_eq!(rest(house.banger("ps").ok().out()), rest(table.clone()));
    assert_eq!(rest(house.banger("ps -a").ok().out()), rest(table));
    assert_eq!(house.banger("list -q").ok().line(), id);
    assert_eq!(house.banger("list --state stopped -q").ok().line(), "");
    assert_eq!(house.banger("list --json").ok().json()["vms"][0]["id"], id);
    assert_eq!(
        house.banger("vm show box --json").ok().json(),
        house.banger("show box --json").ok().json()
    );
    let raw = house.api("GET", "/v1/vms/box", None);
    assert_eq!(raw.status, 200);
    assert_eq!(raw.body["vm"]["id"], id);
    let document = house.api("GET", "/openapi.json", None);
    assert!(
        document.body["paths"]["/v1/vms"].is_object() || document.body["paths"]["/vms"].is_object(),
        "{:?}",
        document.status
    );
    for words in ["image list", "images", "kernel list", "operation list"] {
        let table = house.banger(words).ok().out();
        assert!(table.lines().count() >= 2, "{words}: {table}");
        assert!(
            house
                .banger(&format!("{words} --json"))
                .ok()
                .json()
                .is_object()
        );
        assert!(!house.banger(&format!("{words} -q")).ok().line().is_empty());
    }
    assert_eq!(
        house.banger("image show busybox --json").ok().json()["image"]["managed"],
        false
    );
    assert!(
        house.banger("kernel show k6.1 --json").ok().json()["entry"]["kernel_version"]
            .as_str()
            .is_some_and(|v| v.starts_with("6.1."))
    );
    let version = house.banger("version").ok().out();
    assert!(
        version.starts_with("banger v") && version.contains("bangerd v"),
        "{version}"
    );
    assert!(
        house
            .banger("--version")
            .ok()
            .line()
            .starts_with("banger v")
    );
    let ping = house.banger("daemon status --json").ok().json();
    assert_eq!(ping["pid"].as_u64(), house.daemon_pid().map(u64::from));
}

fn references(house: &House) {
    let id = house.vm("box")["id"].as_str().expect("an id").to_owned();
    let name = |reference: &str| {
        house.call(["show", reference, "--json"]).run().ok().json()["vm"]["name"]
            .as_str()
            .unwrap_or("")
            .to_owned()
    };
    assert_eq!(name(&id), "box");
    assert_eq!(name(&id[..4]), "box");
    let _ = house.call(["show", &id[..3]]).run().expect(3);
    // An exact name wins over a prefix of an id.
    let _ = house
        .call(["create", "--no-start", "--name", &id[..4]])
        .run()
        .ok();
    assert_eq!(name(&id[..4]), id[..4]);
    assert_eq!(name(&id[..5]), "box");
    let _ = house.call(["rm", &id[..4]]).run().ok();
}

fn waiting(house: &House) {
    let _ = house.banger("wait box").ok();
    let _ = house.banger("wait box --for running").ok();
    let _ = house
        .banger("wait box --for stopped --timeout 1s")
        .expect(124);
    let _ = house.banger("wait nosuch --for gone").ok();
    let _ = house.banger("health box").ok();
    let _ = house.banger("ping box").ok();
    let gone = house
        .call(["wait", "box", "--for", "stopped", "--timeout", "60s"])
        .start();
    let _ = house.banger("stop box").ok();
    let _ = gone.wait().ok();
    let _ = house.banger("stop box").ok();
    let _ = house
        .banger("wait box --for healthy --timeout 20s")
        .expect(4);
    let healthy = house.call(["start", "box"]).run().ok();
    assert_eq!(healthy.line(), "box");
    let _ = house.banger("start box").ok();
    let before = house.boot_id("box");
    let _ = house.banger("restart box").ok();
    assert_ne!(house.boot_id("box"), before);
}

fn logs_and_stats(house: &House) {
    let _ = house
        .sh(
            "box",
            "for i in 1 2 3 4 5; do echo line-$i; done > /dev/console",
        )
        .ok();
    wait::until_true("the console is logged", SOON, || {
        house.banger("logs box").ok().out().contains("line-5")
    });
    let tail = house.banger("logs -n 2 box").ok().out();
    assert_eq!(tail.lines().count(), 2, "{tail:?}");
    assert!(
        tail.contains("line-5") && !tail.contains("line-2"),
        "{tail}"
    );
    let follow = house.call(["logs", "-f", "box"]).limit(SOON).start();
    wait::pause(Duration::from_millis(300));
    let _ = house.sh("box", "echo followed > /dev/console").ok();
    follow.wait_for_out("followed", SOON);
    follow.ctrl_c();
    let _ = follow.wait().expect(130);
    let stats = house.banger("stats box --json").ok().json();
    let stats = &stats["stats"];
    assert!(
        stats["rss_bytes"].as_u64().is_some_and(|n| n > 30 << 20),
        "{stats}"
    );
    assert!(
        stats["system_overlay_bytes"]
            .as_u64()
            .is_some_and(|n| n > 0),
        "{stats}"
    );
    assert!(
        stats["metrics_raw"]["network"]["bytes_out"].is_u64(),
        "{stats}"
    );
    assert!(house.banger("stats box").ok().out().contains("REFUSED"));
}

fn renaming(house: &House) {
    let _ = house.banger("rename box crate").ok();
    assert_eq!(house.state_of("box"), "");
    assert_eq!(house.state_of("crate"), "running");
    let _ = house.banger("restart crate").ok();
    assert_eq!(
        house.banger("exec crate -- hostname").ok().line(),
        "crate",
        "the hostname follows at the next start"
    );
    let _ = house.banger("rename crate box").ok();
}

fn growing(house: &House) {
    for flag in [
        "--vcpu 2",
        "--memory 300",
        "--disk-size 1G",
        "--system-overlay-size 1G",
    ] {
        let _ = house
            .banger(&format!("set box {flag}"))
            .expect(4)
            .says("hint: banger stop box");
    }
    let reply = house.api(
        "PATCH",
        "/v1/vms/box",
        Some(&serde_json::json!({"vcpu_count": 2})),
    );
    assert_eq!(reply.code(), "must_be_stopped");
    let _ = house
        .sh("box", "echo kept > /root/kept; echo kept > /srv-kept")
        .ok();
    let _ = house.banger("stop box").ok();
    let _ = house
        .banger("set box --vcpu 2 --memory 320 --disk-size 1G --system-overlay-size 768M")
        .ok();
    let _ = house.banger("set box --disk-size 512M").expect(2);
    let _ = house.banger("start box").ok();
    assert_eq!(house.banger("exec box -- nproc").ok().line(), "2");
    assert_eq!(
        house.sh("box", "cat /root/kept /srv-kept").ok().out(),
        "kept\nkept\n"
    );
    let kilobytes = |at: &str| -> u64 {
        let text = house
            .call(["exec", "box", "--", "df", "-k", at])
            .run()
            .ok()
            .out();
        text.lines()
            .last()
            .and_then(|l| l.split_whitespace().nth(1))
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("{text}"))
    };
    assert!(kilobytes("/root") > 900_000, "{}", kilobytes("/root"));
    assert!(kilobytes("/") > 680_000, "{}", kilobytes("/"));
    let memory: u64 = house
        .sh("box", "awk '/MemTotal/ {print $2}' /proc/meminfo")
        .ok()
        .line()
        .parse()
        .expect("a number");
    assert!(memory > 256 << 10, "{memory}");
    let _ = house.banger("stop box").ok();
    let [overlay, work] = house.disks("box");
    disk::assert_clean(&overlay);
    disk::assert_clean(&work);
    assert_eq!(disk::filesystem_bytes(&work), 1 << 30);
    assert_eq!(disk::filesystem_bytes(&overlay), 768 << 20);
}

fn operations(house: &House) {
    let list = house.banger("operation list --json").ok().json();
    let all = list["operations"].as_array().expect("a list");
    let kinds: BTreeSet<&str> = all.iter().filter_map(|op| op["kind"].as_str()).collect();
    for kind in ["vm.create", "vm.stop", "vm.start", "vm.restart"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    let create = all
        .iter()
        .find(|op| op["kind"] == "vm.create" && op["vm_name"] == "box" && op["success"] == true)
        .expect("the create of box");
    let id = create["id"].as_str().expect("an id");
    assert!(id.len() == 15 && id.starts_with("op-"), "{id}");
    let stages: Vec<&str> = create["timings"]
        .as_array()
        .expect("timings")
        .iter()
        .filter_map(|t| t["stage"].as_str())
        .collect();
    println!("stages of create: {stages:?}");
    for stage in ["start_engine", "boot_kernel", "wait_agent"] {
        assert!(stages.contains(&stage), "{stages:?}");
    }
    let shown = house
        .banger(&format!("operation show {id} --json"))
        .ok()
        .json();
    assert_eq!(shown["operation"]["success"], true);
    // A finished one can still be followed, and stays when cancelled.
    let _ = house.banger(&format!("operation follow {id}")).ok();
    let _ = house.banger(&format!("operation cancel {id}"));
    assert_eq!(
        house
            .banger(&format!("operation show {id} --json"))
            .ok()
            .json()["operation"]["success"],
        true
    );
    // One that runs can be cancelled by another client.
    let create = house.call(["create", "--name", "dropped"]).start();
    let running = || -> Option<String> {
        let list = house.banger("operation list --json").ok().json();
        list["operations"]
            .as_array()?
            .iter()
            .find(|op| op["done"] == false && op["kind"] == "vm.create")?["id"]
            .as_str()
            .map(str::to_owned)
    };
    let id = wait::until("the create runs", SOON, running);
    let _ = house.banger(&format!("operation cancel {id}")).ok();
    let done = create.wait();
    assert_eq!(done.code, 4, "{done}");
    let shown = house
        .banger(&format!("operation show {id} --json"))
        .ok()
        .json();
    assert_eq!(shown["operation"]["cancelled"], true, "{shown}");
    wait::until_true("the cancelled create leaves no VM", SOON, || {
        house.state_of("dropped").is_empty()
    });
}

fn verbs_of_many(house: &House) {
    let _ = house.banger("create --name b --no-start").ok();
    let _ = house.banger("create --name a --no-start").ok();
    assert_eq!(house.state_of("a"), "created");
    // In the order given, duplicates once, the good ones done.
    let done = house.banger("start b a b").ok();
    assert_eq!(done.out(), "b\na\n");
    let done = house.banger("stop a nosuch b").expect(3).says("nosuch");
    assert_eq!(done.out(), "a\nb\n");
    let _ = house.banger("start box").ok();
    let _ = house.banger("rm --unless-running box").expect(4);
    // Prune removes what is at rest only.
    let _ = house.banger("create --name c --no-start").ok();
    let _ = house.banger("prune -f").ok();
    let names: BTreeSet<String> = house
        .vms()
        .iter()
        .filter_map(|vm| vm["name"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(names, BTreeSet::from(["box".to_owned()]));
    let ids = house.banger("list -q").ok().line();
    let done = house.banger("kill box").ok();
    assert_eq!(done.line(), "box");
    let _ = house.banger("kill box").ok();
    let _ = house.banger("start box").ok();
    let _ = house.banger("kill --signal TERM box").ok();
    assert_eq!(house.state_of("box"), "stopped");
    let done = house.call(["vm", "delete", &ids]).run().ok();
    assert_eq!(done.line(), "box");
    let _ = house.banger("wait box --for gone").ok();
    assert!(house.vms().is_empty());
}
