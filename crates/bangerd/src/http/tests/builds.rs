//! Builds in VMs, on doubles: what is sent into the guest, what comes out, and
//! that the VM is gone whatever happens.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::{Arc, Mutex};

use banger_api::error::Code;
use banger_images::{Cancel, Report};
use banger_wire::agent::Exec;
use banger_wire::frames::{Channel, Control, Frame};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{AGES, House};
use crate::build::in_vms;
use crate::failure::Failure;
use crate::ports::{BuildJob, BuildWork};

/// Keeps stages and log lines.
#[derive(Default)]
struct Kept(Mutex<Vec<String>>);

impl Report for Kept {
    fn stage(&self, stage: &str, _: &str) {
        let mut kept = self.0.lock().unwrap();
        if kept.last().is_none_or(|last| last != stage) {
            kept.push(stage.to_owned());
        }
    }

    fn bytes(&self, _: u64, _: Option<u64>) {}
    fn part(&self, _: &str, _: u64, _: u64) {}

    fn log(&self, line: &str) {
        self.0.lock().unwrap().push(format!("| {line}"));
    }
}

struct Build {
    cancel: Cancel,
    kept: Arc<Kept>,
    into: File,
    done: JoinHandle<Result<(), Failure>>,
}

impl Build {
    fn begin(house: &House, work: BuildWork, docker: bool) -> Self {
        let job = BuildJob {
            name: "dev".to_owned(),
            from: "base".to_owned(),
            least_disk: None,
            docker,
            work,
        };
        let (cancel, kept) = (Cancel::new().unwrap(), Arc::new(Kept::default()));
        let into = tempfile::tempfile().unwrap();
        let (builder, stop) = (in_vms(&house.app.vms), cancel.clone());
        let (report, file) = (kept.clone(), into.try_clone().unwrap());
        let work = async move { builder.build(&job, stop, &*report, file).await };
        let tracker = tokio_util::task::TaskTracker::new();
        Self {
            cancel,
            kept,
            into,
            done: tracker.spawn(work),
        }
    }

    async fn end(self, house: &House) -> (Result<(), Failure>, Vec<String>, Vec<u8>) {
        let done = tokio::time::timeout(AGES, self.done)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            house.get("/v1/vms").await["vms"],
            json!([]),
            "the VM is gone"
        );
        assert_eq!(house.world.things(), [], "and all that it held");
        let (mut file, mut bytes) = (self.into, Vec::new());
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let kept = self.kept.0.lock().unwrap().clone();
        (done, kept, bytes)
    }
}

async fn say(to: &mpsc::Sender<Frame>, channel: Channel, text: &'static str) {
    to.send(Frame::new(channel, text.as_bytes())).await.unwrap();
}

async fn exit(to: mpsc::Sender<Frame>, exit_code: i32) {
    to.send(Control::Exit { exit_code }.frame()).await.unwrap();
}

fn words(exec: &Exec) -> String {
    exec.argv.join(" ")
}

fn script() -> BuildWork {
    BuildWork::Script("true".to_owned())
}

#[tokio::test]
async fn a_script_runs_and_the_root_comes_out() {
    let house = House::new().await;
    let build = Build::begin(&house, script(), false);
    let (exec, out) = house.world.next_exec().await;
    assert!(
        exec.stdin && exec.user.as_deref() == Some("0:0"),
        "{exec:?}"
    );
    assert_eq!(exec.env["DEBIAN_FRONTEND"], "noninteractive");
    let vms = house.get("/v1/vms").await;
    assert_eq!(vms["vms"][0]["name"], "build-dev", "{vms}");
    say(&out, Channel::Stdout, "hel").await;
    say(&out, Channel::Stderr, "aside\n").await;
    say(&out, Channel::Stdout, "lo\n").await;
    exit(out, 0).await;
    let root = house.world.next_pack().await;
    say(&root, Channel::Stdout, "the ").await;
    say(&root, Channel::Stdout, "root").await;
    exit(root, 0).await;
    let (done, kept, bytes) = build.end(&house).await;
    done.unwrap();
    assert_eq!(
        kept,
        [
            "boot_vm",
            "wait_init",
            "run_script",
            "| aside",
            "| hello",
            "copy_root"
        ]
    );
    assert_eq!(bytes, b"the root");
}

#[tokio::test]
async fn packages_are_asked_for_as_the_distribution_does() {
    let house = House::new().await;
    let packages = BuildWork::Packages(vec!["jq".to_owned()]);
    let build = Build::begin(&house, packages, true);
    let (_, out) = house.world.next_exec().await;
    say(&out, Channel::Stdout, "ID=alpine\nVERSION_ID=3.20\n").await;
    exit(out, 0).await;
    let (exec, out) = house.world.next_exec().await;
    assert_eq!(words(&exec), "apk add --no-cache jq docker");
    exit(out, 0).await;
    let (exec, out) = house.world.next_exec().await;
    assert!(words(&exec).contains("rc-update add docker"), "{exec:?}");
    exit(out, 4).await;
    let (done, kept, _) = build.end(&house).await;
    let failure = done.unwrap_err();
    assert_eq!(
        (failure.code, failure.message.contains("status 4")),
        (Code::BuildFailed, true)
    );
    assert_eq!(
        kept,
        [
            "boot_vm",
            "wait_init",
            "install_packages",
            "| + apk add --no-cache jq docker"
        ]
    );
}

#[tokio::test]
async fn whatever_goes_wrong_the_vm_is_gone() {
    let house = House::new().await;
    // The script itself.
    let build = Build::begin(&house, script(), false);
    let (_, out) = house.world.next_exec().await;
    exit(out, 3).await;
    let failure = build.end(&house).await.0.unwrap_err();
    assert_eq!(failure.message, "the script ended with status 3");
    // A guest that breaks off, with its script and with its root.
    let build = Build::begin(&house, script(), false);
    drop(house.world.next_exec().await);
    let failure = build.end(&house).await.0.unwrap_err();
    assert_eq!(
        failure.message,
        "the connection to the build VM was lost before the script ended"
    );
    let pack = async |last: Option<Control>| {
        let build = Build::begin(&house, script(), false);
        let (_, out) = house.world.next_exec().await;
        exit(out, 0).await;
        let root = house.world.next_pack().await;
        say(&root, Channel::Stdout, "half").await;
        if let Some(last) = last {
            root.send(last.frame()).await.unwrap();
        }
        drop(root);
        build.end(&house).await.0.unwrap_err()
    };
    let failure = pack(None).await;
    assert_eq!(failure.code, Code::BuildFailed);
    let refused = Control::Error {
        error: "cannot read /x\u{1b}".to_owned(),
        exit_code: None,
    };
    assert_eq!(
        pack(Some(refused)).await.message,
        "cannot copy the root: cannot read /x"
    );
    // A distribution that nobody knows.
    let build = Build::begin(&house, BuildWork::Packages(Vec::new()), true);
    let (_, out) = house.world.next_exec().await;
    exit(out, 0).await;
    let failure = build.end(&house).await.0.unwrap_err();
    assert_eq!(failure.code, Code::Unsupported);
    // A guest that does not come up.
    house.world.turn(|knobs| knobs.boot_fails = true);
    let failure = Build::begin(&house, script(), false)
        .end(&house)
        .await
        .0
        .unwrap_err();
    assert_eq!(failure.code, Code::GuestFailed);
    assert!(
        failure.message.starts_with("the build VM did not start: "),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_cancelled_build_is_gone_wherever_it_was() {
    let house = House::new().await;
    let build = Build::begin(&house, script(), false);
    let running = house.world.next_exec().await;
    build.cancel.cancel();
    assert_eq!(build.end(&house).await.0.unwrap_err().code, Code::Cancelled);
    drop(running);
    house.world.turn(|knobs| knobs.hello_hangs = true);
    let build = Build::begin(&house, script(), false);
    build.cancel.cancel();
    assert_eq!(build.end(&house).await.0.unwrap_err().code, Code::Cancelled);
}

#[tokio::test]
async fn a_vm_of_the_same_name_is_left_alone() {
    let house = House::new().await;
    house.running("build-dev").await;
    let build = Build::begin(&house, script(), false);
    let (_, out) = house.world.next_exec().await;
    let vms = house.get("/v1/vms").await;
    assert_eq!(vms["vms"].as_array().unwrap().len(), 2, "{vms}");
    exit(out, 1).await;
    let done = tokio::time::timeout(AGES, build.done)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(done.unwrap_err().code, Code::BuildFailed);
    let vms = house.get("/v1/vms").await;
    assert_eq!(vms["vms"][0]["name"], "build-dev", "{vms}");
    house.ask("DELETE", "/v1/vms/build-dev?wait=30s", "").await;
}
