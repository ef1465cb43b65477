//! The power goes out at every seam of a real daemon with real guests: the
//! next daemon finishes or unwinds what was under way, and nothing is left.
//! Taking the intent of any one holding out makes the same check fail.
//!
//! ```text
//! daemon told to abort at a seam ─► verb ─► abort ─► a fresh daemon ─► compare
//! ```

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::{Call, Census, House, Kernel, Root, disk, house, skip, wait};

const SOON: Duration = Duration::from_secs(60);

/// Seams of a start after which an engine that lives is kept.
const KEPT: [&str; 4] = [
    "start.engine.settled",
    "start.hello",
    "start.assembled",
    "start.ready",
];
const RUN_HOLDINGS: [&str; 4] = ["run", "cgroup", "gateway", "engine"];

/// Seams of the programs under test; `None` where they were built without.
fn seams() -> Option<Vec<String>> {
    let done = Call::new(e2e::fixture::programs().join("bangerd"), ["--list-seams"]).run();
    let names: Vec<String> = done
        .out()
        .lines()
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect();
    if done.code != 0 || names.is_empty() {
        return None;
    }
    Some(names)
}

/// Starts a daemon that will abort at the seam; returns its process.
fn arm(house: &House, seam: &str, skipped: Option<&str>) -> u32 {
    // The last one printed is the one a failure is about.
    println!("cutting at {seam}");
    if house.daemon_pid().is_some() {
        house.stop_daemon();
    }
    let mut call = house.call(["list"]).env("BANGER_ABORT_AT", seam);
    if let Some(holding) = skipped {
        call = call.env("BANGER_SKIP_INTEND", holding);
    }
    let done = call.run();
    assert_eq!(done.code, 0, "the armed daemon starts: {done}");
    house.daemon_pid().expect("a daemon")
}

/// Asks for a VM without the CLI, which would start another daemon when this
/// one dies, and waits until it is dead.
fn create_and_die(house: &House, pid: u32, seam: &str) {
    let body = serde_json::json!({"name": "cut"});
    let _ = e2e::api::attempt(&house.socket(), "POST", "/v1/vms", Some(&body));
    wait::until_true(&format!("the power goes at {seam}"), SOON, || is_dead(pid));
}

fn is_dead(pid: u32) -> bool {
    // A dead child of nobody's may stay as a zombie for a moment.
    std::fs::read_link(format!("/proc/{pid}/exe")).is_err()
}

/// Has a daemon recover that aborts at this seam; whether one did. The command
/// line starts another when the first one dies, and that one may find less to
/// do and live: the log tells how many began.
fn recovery_dies(house: &House, seam: &str) -> bool {
    let begun = || {
        let log = std::fs::read_to_string(house.state().join("bangerd.log"));
        log.unwrap_or_default().matches("the daemon starts").count()
    };
    let before = begun();
    let _ = house
        .call(["list"])
        .env("BANGER_ABORT_AT", seam)
        .limit(SOON)
        .run();
    let lives = house.daemon_pid().is_some();
    let died = begun() - before > usize::from(lives);
    if lives {
        house.stop_daemon();
    }
    died
}

/// A clean daemon, once all it found is done.
fn recover(house: &House) {
    let _ = house.call(["list"]).limit(SOON).run().ok();
    wait::until_true("nothing is under way any more", SOON, || {
        let running = house.banger("operation list --json").ok().json();
        let busy = running["operations"]
            .as_array()
            .is_some_and(|l| l.iter().any(|op| op["done"] == false));
        !busy
            && house
                .vms()
                .iter()
                .all(|vm| !matches!(vm["state"].as_str(), Some("starting" | "stopping")))
    });
    // An adopted engine is only believed with its guest.
    for vm in house.vms() {
        if vm["state"] == "running" {
            let _ = house
                .call(["exec", vm["name"].as_str().expect("a name"), "--", "true"])
                .limit(SOON)
                .run()
                .ok();
        }
    }
}

struct Report {
    verb: &'static str,
    cut: Vec<String>,
    unreached: Vec<String>,
    wrong: Vec<String>,
    began: Instant,
}

impl Report {
    fn new(verb: &'static str) -> Self {
        Self {
            verb,
            cut: Vec::new(),
            unreached: Vec::new(),
            wrong: Vec::new(),
            began: Instant::now(),
        }
    }

    fn compare(&mut self, seam: &str, house: &House, before: &Census) {
        let mut differences = Vec::new();
        let same = wait::eventually(Duration::from_secs(5), || {
            differences = house.census().differs_from(before);
            differences.is_empty().then_some(())
        });
        if same.is_none() {
            self.wrong
                .push(format!("{seam}:\n    {}", differences.join("\n    ")));
        }
    }

    /// Fails where a cut left something, or a seam that must be passed was not.
    fn close(self, must_reach: impl Fn(&str) -> bool) {
        println!(
            "{}: cut at {} seams in {:.0} s; never passed: {:?}",
            self.verb,
            self.cut.len(),
            self.began.elapsed().as_secs_f32(),
            self.unreached
        );
        let missed: Vec<_> = self.unreached.iter().filter(|s| must_reach(s)).collect();
        assert!(
            self.wrong.is_empty(),
            "{} of {} cuts of {} left something:\n  {}",
            self.wrong.len(),
            self.cut.len(),
            self.verb,
            self.wrong.join("\n  ")
        );
        assert!(
            missed.is_empty(),
            "seams that {} never passes: {missed:?}",
            self.verb
        );
        assert!(!self.cut.is_empty());
    }
}

fn holding_of(seam: &str) -> Option<&str> {
    let mut parts = seam.split('.');
    let (_, holding, step) = (parts.next()?, parts.next()?, parts.next());
    step.map(|_| holding)
}

fn has_cgroups(house: &House) -> bool {
    let _ = house.banger("run --rm -- true").ok();
    let _ = house.banger("create --name probe").ok();
    let has = !house.census().cgroups.is_empty();
    let _ = house.banger("rm -f probe").ok();
    has
}

#[test]
fn a_create_cut_anywhere_leaves_nothing() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let house = House::with(Root::Bare, Kernel::Old);
    let cgroups = has_cgroups(&house);
    let before = house.census();
    let mut report = Report::new("create");
    for seam in seams
        .iter()
        .filter(|s| s.starts_with("create.") || s.starts_with("start."))
    {
        let pid = arm(&house, seam, None);
        let _ = house.call(["create", "--name", "cut"]).limit(SOON).run();
        if !is_dead(pid) {
            report.unreached.push(seam.clone());
            let _ = house.banger("rm -f cut");
            continue;
        }
        report.cut.push(seam.clone());
        recover(&house);
        let state = house.state_of("cut");
        if !state.is_empty() {
            if !KEPT.contains(&seam.as_str()) {
                report.wrong.push(format!(
                    "{seam}: a create cut before its engine was settled stays, {state}"
                ));
            }
            let _ = house.banger("rm -f cut").ok();
        }
        report.compare(seam, &house, &before);
    }
    report.close(|seam| seam != "create.made" && (cgroups || holding_of(seam) != Some("cgroup")));
}

#[test]
fn a_start_cut_anywhere_leaves_nothing() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let house = House::with(Root::Bare, Kernel::New);
    let cgroups = has_cgroups(&house);
    let _ = house.banger("create --name cut").ok();
    let _ = house.sh("cut", "echo kept > /root/kept; sync").ok();
    let _ = house.banger("stop cut").ok();
    let before = house.census();
    let mut report = Report::new("start");
    let is_of_a_start = |s: &&String| {
        s.starts_with("start.") && holding_of(s).is_none_or(|h| RUN_HOLDINGS.contains(&h))
    };
    for seam in seams.iter().filter(is_of_a_start) {
        let pid = arm(&house, seam, None);
        let _ = house.call(["start", "cut"]).limit(SOON).run();
        if !is_dead(pid) {
            report.unreached.push(seam.clone());
            let _ = house.banger("stop cut");
            continue;
        }
        report.cut.push(seam.clone());
        recover(&house);
        let state = house.state_of("cut");
        if state == "running" {
            if !KEPT.contains(&seam.as_str()) {
                report.wrong.push(format!(
                    "{seam}: a start cut before its engine was settled goes on"
                ));
            }
            assert_eq!(
                house.banger("exec cut -- cat /root/kept").ok().line(),
                "kept"
            );
            let _ = house.banger("stop cut").ok();
        }
        report.compare(seam, &house, &before);
    }
    let _ = house.banger("start cut").ok();
    assert_eq!(
        house.banger("exec cut -- cat /root/kept").ok().line(),
        "kept"
    );
    report.close(|seam| cgroups || holding_of(seam) != Some("cgroup"));
}

#[test]
fn a_stop_cut_anywhere_is_finished_or_undone() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let house = House::with(Root::Bare, Kernel::Old);
    let cgroups = has_cgroups(&house);
    let _ = house.banger("create --name cut").ok();
    let _ = house.banger("stop cut").ok();
    let before = house.census();
    let mut report = Report::new("stop");
    let is_of_a_stop = |s: &&String| {
        s.starts_with("stop.")
            || (s.starts_with("release.")
                && holding_of(s).is_none_or(|h| RUN_HOLDINGS.contains(&h)))
    };
    for (round, seam) in seams.iter().filter(is_of_a_stop).enumerate() {
        let pid = arm(&house, seam, None);
        let start = house.banger("start cut");
        if start.code != 0 {
            // Some of these seams belong to a failed start as well, never to a good one.
            report
                .wrong
                .push(format!("{seam}: no start: {}", start.err()));
            recover(&house);
            continue;
        }
        let _ = house.sh("cut", &format!("echo {round} > /root/round")).ok();
        let _ = house.call(["stop", "cut"]).limit(SOON).run();
        if !is_dead(pid) {
            report.unreached.push(seam.clone());
            continue;
        }
        report.cut.push(seam.clone());
        recover(&house);
        if house.state_of("cut") == "running" {
            let _ = house.banger("stop cut").ok();
        }
        assert_ne!(house.state_of("cut"), "", "{seam}: a stop loses no VM");
        report.compare(seam, &house, &before);
        for file in house.disks("cut") {
            disk::assert_recoverable(&file, house.dir());
        }
    }
    let _ = house.banger("start cut").ok();
    report.close(|seam| (cgroups || holding_of(seam) != Some("cgroup")) && seam != "release.begun");
}

#[test]
fn a_delete_cut_anywhere_is_finished() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("run --rm -- true").ok();
    let before = house.census();
    let mut report = Report::new("delete");
    let is_of_a_delete = |s: &&String| {
        s.starts_with("erase.") && holding_of(s).is_none_or(|h| !RUN_HOLDINGS.contains(&h))
    };
    for seam in seams.iter().filter(is_of_a_delete) {
        let pid = arm(&house, seam, None);
        let _ = house.banger("create --name cut --no-start").ok();
        let _ = house.call(["rm", "cut"]).limit(SOON).run();
        if !is_dead(pid) {
            report.unreached.push(seam.clone());
            let _ = house.banger("rm -f cut");
            continue;
        }
        report.cut.push(seam.clone());
        recover(&house);
        if !house.state_of("cut").is_empty() {
            report
                .wrong
                .push(format!("{seam}: half a delete is not finished"));
            let _ = house.banger("rm -f cut").ok();
        }
        report.compare(seam, &house, &before);
    }
    // Of a machine that runs.
    for seam in seams
        .iter()
        .filter(|s| s.starts_with("release.") && (s.contains(".engine.") || s.contains("begun")))
    {
        let pid = arm(&house, seam, None);
        let _ = house.banger("create --name cut").ok();
        let _ = house.call(["rm", "-f", "cut"]).limit(SOON).run();
        if is_dead(pid) {
            report.cut.push(seam.clone());
        }
        recover(&house);
        if !house.state_of("cut").is_empty() {
            report.wrong.push(format!(
                "{seam}: half a delete of a running VM is not finished"
            ));
            let _ = house.banger("rm -f cut").ok();
        }
        report.compare(seam, &house, &before);
    }
    report.close(|_| true);
}

#[test]
fn a_recovery_cut_anywhere_is_done_by_the_next_one() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let house = House::with(Root::Bare, Kernel::Old);
    let cgroups = has_cgroups(&house);
    let before = house.census();
    let mut report = Report::new("recovery");
    for seam in seams.iter().filter(|s| s.starts_with("recovery.")) {
        // Everything a VM can hold is taken, and its engine is not settled.
        let pid = arm(&house, "start.engine.taken", None);
        create_and_die(&house, pid, "start.engine.taken");
        if recovery_dies(&house, seam) {
            report.cut.push(seam.clone());
        } else {
            report.unreached.push(seam.clone());
        }
        recover(&house);
        if !house.state_of("cut").is_empty() {
            report
                .wrong
                .push(format!("{seam}: the create was not unwound"));
            let _ = house.banger("rm -f cut").ok();
        }
        report.compare(seam, &house, &before);
    }
    report.close(|seam| cgroups || holding_of(seam) != Some("cgroup"));
}

#[test]
fn an_engine_that_died_with_its_daemon_leaves_nothing() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name cut").ok();
    let _ = house.banger("stop cut").ok();
    let before = house.census();
    let mut report = Report::new("recovery of a dead engine");
    let some = |s: &&String| {
        s.starts_with("recovery.") && (holding_of(s).is_none() || s.ends_with(".given"))
    };
    for seam in seams.iter().filter(some) {
        let _ = house.banger("start cut").ok();
        house.kill_daemon();
        for engine in house.engines() {
            house::kill(engine.pid);
        }
        if recovery_dies(&house, seam) {
            report.cut.push(seam.clone());
        } else {
            report.unreached.push(seam.clone());
        }
        recover(&house);
        let state = house.state_of("cut");
        if state != "error" {
            report.wrong.push(format!("{seam}: the state is {state:?}"));
        }
        report.compare(seam, &house, &before);
    }
    report.close(|_| false);
}

#[test]
fn a_replacement_of_a_gateway_cut_anywhere_is_made_up_for() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("list").ok();
    let before = house.census();
    let mut report = Report::new("replacement");
    for seam in seams.iter().filter(|s| s.starts_with("gateway.")) {
        let pid = arm(&house, seam, None);
        let _ = house.banger("create --name cut").ok();
        for gateway in house.gateways() {
            house::kill(gateway.pid);
        }
        wait::until_true(&format!("the power goes at {seam}"), SOON, || is_dead(pid));
        report.cut.push(seam.clone());
        recover(&house);
        let state = house.state_of("cut");
        if state != "running" {
            report.wrong.push(format!("{seam}: the state is {state:?}"));
        }
        // Taken over or lost, after a restart there is one.
        let _ = house.banger("restart cut").ok();
        let gateways = house.gateways().len();
        if gateways != 1 {
            report.wrong.push(format!("{seam}: {gateways} gateways"));
        }
        let _ = house.banger("rm -f cut").ok();
        report.compare(seam, &house, &before);
    }
    report.close(|_| true);
}

#[test]
fn without_the_intent_of_any_holding_something_is_left() {
    let Some(seams) = seams() else {
        skip!("bangerd was built without the feature failpoints")
    };
    let holdings: BTreeSet<&str> = seams
        .iter()
        .filter(|s| s.starts_with("start.") && s.ends_with(".taken"))
        .filter_map(|s| holding_of(s))
        .collect();
    assert!(holdings.len() >= 7, "{holdings:?}");
    let mut unseen = Vec::new();
    for holding in holdings {
        // An engine that has just begun may end by itself when the other end
        // of its line dies with the daemon, and then nobody misses it.
        let tries = if holding == "engine" { 5 } else { 1 };
        if !(0..tries).any(|_| is_missed(holding)) {
            unseen.push(holding.to_owned());
        }
    }
    assert!(
        unseen.is_empty(),
        "nobody would notice if the intent of {unseen:?} were forgotten"
    );
}

/// Whether something is left when the daemon dies after it took a holding that
/// was not written down.
fn is_missed(holding: &str) -> bool {
    let house = House::with(Root::Bare, Kernel::Old);
    if holding == "cgroup" && !has_cgroups(&house) {
        println!("cgroup: none can be made here");
        return true;
    }
    let _ = house.banger("list").ok();
    let before = house.census();
    let pid = arm(&house, &format!("start.{holding}.taken"), Some(holding));
    create_and_die(&house, pid, &format!("start.{holding}.taken"));
    let known = house.census();
    let _ = house.call(["list"]).limit(SOON).run().ok();
    let mut left = Vec::new();
    // What was forgotten may also keep the recovery from ever being done.
    wait::eventually(Duration::from_secs(5), || {
        left = house.census().more_than(&before);
        left.is_empty().then_some(())
    });
    println!("{holding} not written down: {left:?}");
    clean(&house, &known);
    !left.is_empty()
}

/// Removes by hand what banger could not know of; the rest it removes itself.
fn clean(house: &House, known: &Census) {
    for process in house.engines().into_iter().chain(house.gateways()) {
        house::kill(process.pid);
    }
    wait::until_true("engines and gateways are gone", SOON, || {
        house.engines().is_empty() && house.gateways().is_empty()
    });
    for vm in std::fs::read_dir(house.state().join("vms"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let _ = std::fs::remove_dir_all(vm.path());
    }
    for cgroup in known.cgroups.iter().rev() {
        wait::eventually(Duration::from_secs(5), || {
            (std::fs::remove_dir(cgroup).is_ok() || !Path::new(cgroup).exists()).then_some(())
        });
    }
    // A new daemon tries at once what the old one would try again later.
    house.stop_daemon();
    let _ = house.call(["list"]).limit(SOON).run().ok();
    let _ = house.banger("rm -f cut");
}
