//! The steps of a VM's life that take time. Each is a future that the
//! supervisor runs while it goes on listening; what it found comes back as an
//! [`Outcome`], and only the supervisor writes the VM's row.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_api::error::Code;
use banger_engine::machine::{Acceleration, Drive, End, Machine, Nic};
use banger_model::{Holding, Span};
use banger_wire::agent::{Boot, Booted, Disks, Stop, serial};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::house::{House, Live};
use super::ledger::RunFacts;
use super::record::Vm;
use super::watch::console_word;
use crate::failure::Failure;
use crate::network;
use crate::operation::OpHandle;
use crate::ports::{BootImage, BootKernel, Guest, Progress, Running, Want};

/// A step under way.
pub(super) type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Longest that the guest may take to put its data on the disks at a stop.
const SYNC: Duration = Duration::from_secs(120);
/// Longest that an engine may take to end after a signal that it may handle.
const SIGNALLED: Duration = Duration::from_secs(10);
/// How long an engine may take to be gone after its line closed.
const LINE_CLOSED: Duration = Duration::from_secs(2);
/// Lines of the console in an error.
pub(super) const TAIL: usize = 20;
/// How long the first hello may stay without an answer.
const HELLO_AGAIN: Duration = Duration::from_secs(15);
/// How often a silent agent is asked while its guest is being stopped.
const PING: Duration = Duration::from_secs(2);

/// What came of a step.
pub(super) enum Outcome {
    Made(Result<Box<Made>, Failure>),
    Launched(Result<Box<Run>, Failure>),
    Assembled(Result<Box<Assembled>, AssembleError>),
    Frozen(Result<(), Failure>),
    Thawed(Result<(), Failure>),
    Halted(Halted),
    Released(Result<(), Failure>),
    Erased(Result<(), Failure>),
    /// Nobody wants it any more.
    Overtaken,
}

/// What a VM boots from.
pub(super) struct Made {
    pub(super) image: BootImage,
    pub(super) kernel: BootKernel,
}

/// An engine that was launched or adopted.
pub(crate) struct Run {
    pub(crate) running: Arc<dyn Running>,
    pub(crate) facts: RunFacts,
    pub(crate) token: [u8; 32],
    /// When it was launched, or adopted.
    pub(crate) since: Instant,
}

impl Run {
    pub(crate) fn kvm(&self) -> bool {
        self.facts.facts.acceleration == Acceleration::Kvm
    }
}

/// A guest whose root stands.
pub(super) struct Assembled {
    pub(super) guest: Arc<dyn Guest>,
    pub(super) booted: Booted,
}

/// Why a guest did not come up.
pub(super) enum AssembleError {
    /// Its agent never said hello; worth one more try.
    Silent(Failure),
    Failed(Failure),
}

/// How a halt went.
pub(super) enum Halted {
    /// The engine has ended.
    Ended,
    /// The guest does not do it; force is due.
    Unwilling,
    /// Its data could not be written in time; it runs on.
    Unsynced(Failure),
}

/// Switches of a step.
#[derive(Clone, Default)]
pub(super) struct Switches {
    /// Nobody wants it any more.
    pub(super) off: CancellationToken,
    /// A halt is past its last way back.
    pub(super) asked: Arc<AtomicBool>,
}

/// Nobody's ears: progress of a step that no operation asked for.
struct Deaf(banger_images::Cancel);

impl Progress for Deaf {
    fn stage(&self, _: &str, _: &str) {}
    fn bytes(&self, _: u64, _: Option<u64>) {}
    fn part(&self, _: &str, _: u64, _: u64) {}
    fn log(&self, _: &str) {}
    fn cancel(&self) -> banger_images::Cancel {
        self.0.clone()
    }
}

fn ears(op: Option<&OpHandle>) -> Result<Arc<dyn Progress>, Failure> {
    match op {
        Some(op) => Ok(Arc::new(op.clone())),
        None => banger_images::Cancel::new()
            .map(|cancel| Arc::new(Deaf(cancel)) as Arc<dyn Progress>)
            .map_err(|error| Failure::internal("cannot begin a start", &error)),
    }
}

/// Chooses image and kernel, writes down all that will be held, and takes what
/// is held for life.
pub(super) fn make(
    house: Arc<House>,
    vm: Vm,
    op: Option<OpHandle>,
    with_run: bool,
    switches: Switches,
) -> Work {
    Box::pin(async move {
        let progress = match ears(op.as_ref()) {
            Ok(progress) => progress,
            Err(failure) => return Outcome::Made(Err(failure)),
        };
        let chosen = tokio::select! {
            biased;
            () = switches.off.cancelled() => {
                progress.cancel().cancel();
                return Outcome::Overtaken;
            }
            chosen = choose(&house, &vm, &*progress) => chosen,
        };
        let made = match chosen {
            Ok(made) => made,
            Err(failure) => return Outcome::Made(Err(failure)),
        };
        house.seams.pass("create.resolved").await;
        match hold_life(&house, &vm, &made, &*progress, with_run).await {
            Ok(()) => Outcome::Made(Ok(Box::new(made))),
            Err(failure) => Outcome::Made(Err(failure)),
        }
    })
}

async fn choose(house: &House, vm: &Vm, progress: &dyn Progress) -> Result<Made, Failure> {
    let artifacts = &house.artifacts;
    let net = network::has_gateway(&vm.spec.network_mode);
    if vm.record.image_id.is_empty() {
        progress.stage(
            "resolve_image",
            vm.record.wanted_image.as_deref().unwrap_or_default(),
        );
        let image = artifacts
            .image(vm.record.wanted_image.as_deref(), progress)
            .await?;
        let kernel = artifacts
            .kernel(vm.spec.kernel_name.as_deref(), &image, net, progress)
            .await?;
        progress.stage("reserve", &image.name);
        return Ok(Made { image, kernel });
    }
    let image = artifacts.image_for_start(&vm.record.image_id).await?;
    let kernel = match &vm.spec.kernel_name {
        Some(name) => artifacts.kernel_for_start(name, net).await?,
        None => artifacts.kernel(None, &image, net, progress).await?,
    };
    Ok(Made { image, kernel })
}

async fn hold_life(
    house: &House,
    vm: &Vm,
    made: &Made,
    progress: &dyn Progress,
    with_run: bool,
) -> Result<(), Failure> {
    progress.stage("prepare_disks", "");
    let settled: Vec<Holding> = house
        .holdings(&vm.id)
        .await?
        .into_iter()
        .filter(|entry| entry.settled)
        .map(|entry| entry.holding)
        .collect();
    let net = network::has_gateway(&vm.spec.network_mode);
    let wanted: Vec<Holding> = Holding::ALL
        .into_iter()
        .filter(|holding| with_run || holding.span() == Span::Life)
        .filter(|holding| net || *holding != Holding::Gateway)
        .filter(|holding| !settled.contains(holding))
        .collect();
    if !wanted.is_empty() {
        house.intend(&vm.id, wanted).await?;
    }
    let want = want(house, vm, Some(&made.image));
    for holding in Holding::LIFE {
        if settled.contains(&holding) {
            // It may have to grow; nothing to write down for that.
            house.host.take(&vm.id, holding, &want).await?;
        } else {
            house.take(&vm.id, holding, &want).await?;
        }
    }
    Ok(())
}

pub(super) fn want(house: &House, vm: &Vm, image: Option<&BootImage>) -> Want {
    Want {
        overlay_bytes: vm.spec.system_overlay_size_bytes,
        work_bytes: vm.spec.work_disk_size_bytes,
        work_seed: image.and_then(|image| image.work_seed.clone()),
        cgroup: house.host.cgroup(&vm.id),
    }
}

/// Takes what a run holds, gateway and engine last.
pub(super) fn launch(
    house: Arc<House>,
    vm: Vm,
    op: Option<OpHandle>,
    made: Arc<Made>,
    again: bool,
) -> Work {
    Box::pin(async move {
        Outcome::Launched(
            launch_now(&house, &vm, op.as_ref(), &made, again)
                .await
                .map(Box::new),
        )
    })
}

async fn launch_now(
    house: &House,
    vm: &Vm,
    op: Option<&OpHandle>,
    made: &Made,
    again: bool,
) -> Result<Run, Failure> {
    if let Some(op) = op {
        op.stage("start_engine", "");
    }
    let net = network::has_gateway(&vm.spec.network_mode);
    if net {
        house.gateways.usable()?;
    }
    let mut want = want(house, vm, Some(&made.image));
    // A daemon that was started elsewhere would choose another place than the
    // one written down.
    if let Some(written) = house.written_cgroup(&vm.id).await? {
        want.cgroup = Some(written);
    }
    if again {
        // The rows say "in doubt" before the first engine is swept.
        let both = [Holding::Gateway, Holding::Engine];
        let wanted = both.into_iter().skip(usize::from(!net));
        house.intend(&vm.id, wanted.collect()).await?;
        let run_dir = house.places.run(&vm.id);
        house
            .engine
            .sweep(vm.id.as_str(), &run_dir, want.cgroup.as_deref())
            .await?;
        // Whatever is born in a cgroup that was once killed dies at its birth;
        // it is made anew below. Its row holds meanwhile.
        house
            .host
            .give_back(&vm.id, Holding::Cgroup, want.cgroup.as_deref())
            .await?;
        if net {
            // It ends with its engine, and its line has lost the other end.
            house.end_gateway(&vm.id, None).await?;
        }
    }
    let wanted = vm.spec.memory_mib << 20;
    let (available, _) = house.host.memory()?;
    if wanted > available {
        let message = format!(
            "cannot start {:?}: {} MiB asked, {} MiB available",
            vm.name,
            vm.spec.memory_mib,
            available >> 20
        );
        return Err(Failure::new(Code::NoMemory, message).hint("stop a VM, or --memory"));
    }
    house.take(&vm.id, Holding::RunDir, &want).await?;
    house.take(&vm.id, Holding::Cgroup, &want).await?;
    let mut token = [0; 32];
    getrandom::fill(&mut token)
        .map_err(|error| Failure::internal("the host has no random numbers", &error))?;
    let (nic, line) = if net {
        let (engine, gateway) = network::line()?;
        (Some(network::card(&vm.id, engine)), Some(gateway))
    } else {
        (None, None)
    };
    let machine = machine(house, vm, made, &want, nic);
    let facts = house
        .take_engine(&vm.id, &machine, &vm.spec.engine, token, line)
        .await?;
    // The engine has its end of the line now, and nobody else may.
    drop(machine);
    if let (Some(op), Some(why)) = (op, &facts.facts.no_kvm) {
        op.note(&format!(
            "note: no usable KVM ({why}); emulating, 5 to 20 times slower"
        ));
    }
    let attached = house.engine.attach(&facts.facts).await?;
    let running = attached.ok_or_else(|| {
        let tail = tail(house, vm, facts.console_from);
        Failure::new(
            Code::EngineFailed,
            format!("the engine of {:?} ended at once{tail}", vm.name),
        )
    })?;
    if let Some(op) = op {
        op.stage("boot_kernel", "");
    }
    Ok(Run {
        running,
        facts,
        token,
        since: Instant::now(),
    })
}

fn machine(house: &House, vm: &Vm, made: &Made, want: &Want, nic: Option<Nic>) -> Machine {
    let drive = |serial: &str, path, read_only| Drive {
        serial: serial.into(),
        path,
        read_only,
    };
    let mut drives = vec![
        drive(serial::ROOT, made.image.rootfs.clone(), true),
        drive(serial::OVERLAY, house.places.overlay(&vm.id), false),
        drive(serial::WORK, house.places.work(&vm.id), false),
    ];
    drives.extend(
        made.kernel
            .modules
            .clone()
            .map(|path| drive(serial::MODULES, path, true)),
    );
    Machine {
        id: vm.id.to_string(),
        vcpus: vm.spec.vcpu_count,
        memory_mib: vm.spec.memory_mib,
        kernel: made.kernel.vmlinux.clone(),
        initramfs: made.kernel.initramfs.clone(),
        transport: made.kernel.transport,
        arguments: vec![
            format!("systemd.machine_id={}", vm.id.machine_id()),
            // Its rules are files of the image, which most images have not, and then container
            // engines refuse to run anything.
            "apparmor=0".to_owned(),
        ],
        drives,
        nic,
        run_dir: house.places.run(&vm.id),
        console: house.places.console(&vm.id),
        cgroup: want.cgroup.clone(),
    }
}

/// Waits for the agent and has it assemble the root.
pub(super) fn assemble(
    house: Arc<House>,
    vm: Vm,
    op: Option<OpHandle>,
    made: Arc<Made>,
    run: Arc<Run>,
    ready_by: Instant,
    switches: Switches,
) -> Work {
    Box::pin(async move {
        tokio::select! {
            biased;
            () = switches.off.cancelled() => Outcome::Overtaken,
            result = assemble_now(&house, &vm, op.as_ref(), &made, &run, ready_by) => {
                Outcome::Assembled(result.map(Box::new))
            }
        }
    })
}

/// Waits for the agent as long as it takes. A hello that stays without an answer
/// is said again on a new connection, in case that it, or the answer, was lost on
/// the way; after twice the time each, so that a slow guest gets its answer out.
async fn greeted(running: &dyn Running, token: [u8; 32]) -> Result<Arc<dyn Guest>, Failure> {
    let mut patience = HELLO_AGAIN;
    loop {
        if let Ok(guest) = timeout(patience, running.guest(token)).await {
            return guest;
        }
        patience *= 2;
        tracing::info!("no hello yet; asking again for {} s", patience.as_secs());
    }
}

async fn assemble_now(
    house: &House,
    vm: &Vm,
    op: Option<&OpHandle>,
    made: &Made,
    run: &Run,
    ready_by: Instant,
) -> Result<Assembled, AssembleError> {
    let stage = |name: &str| {
        if let Some(op) = op {
            op.stage(name, "");
        }
    };
    let hello_by = (run.since + hello_limit(run.kvm())).min(ready_by);
    // An engine that dies says so at once; nobody waits for its agent then.
    let died = |end: End| {
        let from = run.facts.console_from;
        let tail = tail(house, vm, from);
        let (code, why) = match console_word(house, vm, from) {
            Some(word) => (Code::GuestFailed, printable(&word.status)),
            None => (
                Code::EngineFailed,
                format!("the engine ended: {}", end.reason),
            ),
        };
        let message = format!("{:?} did not come up: {why}{tail}", vm.name);
        AssembleError::Failed(Failure::new(code, message))
    };
    let late = || {
        let tail = tail(house, vm, run.facts.console_from);
        let waited = ready_limit(run.kvm()).as_secs();
        let message = format!("{:?} did not answer within {waited} s{tail}", vm.name);
        Failure::new(Code::GuestFailed, message)
            .hint(format!("banger logs {0}; banger rm {0}", vm.name))
    };
    let guest = tokio::select! {
        biased;
        end = run.running.ended() => return Err(died(end)),
        guest = greeted(&*run.running, run.token) => match guest {
            Ok(guest) => guest,
            // The line closes a moment before an engine that ends is gone.
            Err(failure) => match timeout(LINE_CLOSED, run.running.ended()).await {
                Ok(end) => return Err(died(end)),
                Err(_) => return Err(AssembleError::Silent(failure)),
            },
        },
        () = tokio::time::sleep_until(hello_by) => return Err(AssembleError::Silent(late())),
    };
    house.seams.pass("start.hello").await;
    stage("wait_agent");
    let boot = boot_request(house, vm, made).map_err(AssembleError::Failed)?;
    stage("configure_guest");
    let booted = tokio::select! {
        biased;
        end = run.running.ended() => return Err(died(end)),
        booted = guest.boot(&boot) => booted.map_err(|failure| {
            let tail = tail(house, vm, run.facts.console_from);
            let message = format!("{:?} did not come up: {}{tail}", vm.name, failure.sentence());
            AssembleError::Failed(Failure::new(Code::GuestFailed, message))
        })?,
        () = tokio::time::sleep_until(ready_by) => return Err(AssembleError::Failed(late())),
    };
    if let Some(op) = op {
        op.guest_steps("asked", &booted.stages, &booted.beside);
    }
    for warning in &booted.warnings {
        tracing::warn!(vm = %vm.name, warning = %printable(warning), "the agent warns");
    }
    house.seams.pass("start.assembled").await;
    Ok(Assembled { guest, booted })
}

fn boot_request(house: &House, vm: &Vm, made: &Made) -> Result<Boot, Failure> {
    let mut seed = [0; 64];
    getrandom::fill(&mut seed)
        .map_err(|error| Failure::internal("the host has no random numbers", &error))?;
    let since_1970 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let (network, nameservers) = network::has_gateway(&vm.spec.network_mode)
        .then(network::of_guest)
        .unzip();
    Ok(Boot {
        hostname: vm.name.clone(),
        clock_unix_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
        entropy_hex: banger_model::id::hex(&seed),
        disks: Disks {
            root: serial::ROOT.into(),
            overlay: serial::OVERLAY.into(),
            work: serial::WORK.into(),
            modules: (made.kernel.modules.is_some()).then(|| serial::MODULES.into()),
        },
        image_env: made
            .image
            .env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        image_cwd: made.image.working_dir.clone().filter(|dir| !dir.is_empty()),
        trim_systemd: house.settings.trim_systemd,
        machine_id: Some(vm.id.machine_id().to_owned()),
        main_follows: vm.record.main_follows,
        fill_work: vm.record.unfilled,
        nameservers: nameservers.unwrap_or_default(),
        network,
    })
}

/// Freezes the guest.
pub(super) fn freeze(run: Arc<Run>) -> Work {
    Box::pin(async move { Outcome::Frozen(run.running.pause().await) })
}

/// Lets it go on, with the right time.
pub(super) fn thaw(run: Arc<Run>, guest: Option<Arc<dyn Guest>>) -> Work {
    Box::pin(async move {
        let thawed = run.running.resume().await;
        if let (Ok(()), Some(guest)) = (&thawed, guest) {
            let set = timeout(silence(run.kvm()), guest.set_clock()).await;
            if !matches!(set, Ok(Ok(()))) {
                tracing::warn!("the clock of a thawed guest could not be set");
            }
        }
        Outcome::Thawed(thawed)
    })
}

/// Asks the guest to end: data to the disks, then processes, then the machine.
pub(super) fn halt(
    house: Arc<House>,
    vm: Vm,
    op: Option<OpHandle>,
    run: Arc<Run>,
    live: watch::Receiver<Live>,
    grace: Duration,
    switches: Switches,
) -> Work {
    Box::pin(async move {
        tokio::select! {
            biased;
            () = switches.off.cancelled() => Outcome::Overtaken,
            halted = halt_now(&house, &vm, op.as_ref(), &run, live, grace, &switches.asked) => {
                Outcome::Halted(halted)
            }
        }
    })
}

async fn halt_now(
    house: &House,
    vm: &Vm,
    op: Option<&OpHandle>,
    run: &Run,
    mut live: watch::Receiver<Live>,
    grace: Duration,
    asked: &AtomicBool,
) -> Halted {
    let limit = silence(run.kvm());
    // The line has one user, the run's watcher: whoever connected beside it
    // would take the line from it, and it from them.
    let (guest, synced) = loop {
        let guest = tokio::select! {
            biased;
            _ = run.running.ended() => return Halted::Ended,
            guest = timeout(limit, reached(&mut live)) => match guest {
                Ok(Some(guest)) => guest,
                Ok(None) | Err(_) => return Halted::Unwilling,
            },
        };
        let synced = tokio::select! {
            biased;
            _ = run.running.ended() => return Halted::Ended,
            synced = timeout(SYNC, guest.sync()) => synced,
            () = silent(&*guest, limit) => return Halted::Unwilling,
        };
        if matches!(synced, Ok(Err(_))) {
            // Was it the line? Then its user notices, and connects once more.
            let gone = |now: &Live| !now.guest.as_ref().is_some_and(|it| Arc::ptr_eq(it, &guest));
            let replaced = timeout(LINE_CLOSED, live.wait_for(gone)).await;
            if matches!(replaced, Ok(Ok(_))) {
                continue;
            }
        }
        break (guest, synced);
    };
    match synced {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => {
            tracing::warn!(vm = %vm.name, error = %failure.sentence(), "the guest cannot sync");
            return Halted::Unwilling;
        }
        Err(_) => {
            let message = format!(
                "{:?} could not write its data within {} s",
                vm.name,
                SYNC.as_secs()
            );
            let hint = format!("banger kill {}", vm.name);
            return Halted::Unsynced(Failure::new(Code::Timeout, message).hint(hint));
        }
    }
    house.seams.pass("stop.synced").await;
    if let Some(op) = op {
        op.stage("stop_guest", "");
    }
    asked.store(true, Ordering::SeqCst);
    let stop = Stop {
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    };
    let answer = tokio::select! {
        biased;
        _ = run.running.ended() => return Halted::Ended,
        answer = timeout(limit, guest.stop(&stop)) => answer,
    };
    if !matches!(answer, Ok(Ok(()))) {
        return Halted::Unwilling;
    }
    house.seams.pass("stop.asked").await;
    let halted = tokio::select! {
        biased;
        _ = run.running.ended() => Halted::Ended,
        () = silent(&*guest, limit) => {
            // It may be between its last answer and the reset.
            match timeout(limit, run.running.ended()).await {
                Ok(_) => Halted::Ended,
                Err(_) => Halted::Unwilling,
            }
        }
        () = sleep(grace + SYNC + limit) => Halted::Unwilling,
    };
    house.seams.pass("stop.ended").await;
    halted
}

/// The guest, once the run's watcher has reached it; `None` where there is no
/// watcher any more.
async fn reached(live: &mut watch::Receiver<Live>) -> Option<Arc<dyn Guest>> {
    let found = live.wait_for(|now| now.guest.is_some()).await.ok()?;
    found.guest.clone()
}

/// Returns when the agent has not answered for `limit`.
async fn silent(guest: &dyn Guest, limit: Duration) {
    loop {
        match timeout(limit, guest.ping()).await {
            Ok(Ok(_)) => sleep(PING).await,
            // A broken connection: what follows decides how long that may last.
            Ok(Err(_)) => {
                sleep(limit).await;
                return;
            }
            Err(_) => return,
        }
    }
}

/// Ends what lives of a run and gives all of it back.
pub(super) fn release(
    house: Arc<House>,
    vm: Vm,
    signal: Option<(Arc<Run>, String)>,
    delay: Duration,
    switches: Switches,
) -> Work {
    Box::pin(async move {
        pause(delay, &switches).await;
        house.seams.pass("release.begun").await;
        if let Some((run, signal)) = signal {
            if let Err(failure) = run.running.kill(&signal).await {
                tracing::warn!(vm = %vm.name, error = %failure.sentence(), "cannot signal an engine");
            } else if timeout(SIGNALLED, run.running.ended()).await.is_err() {
                tracing::warn!(vm = %vm.name, %signal, "the engine outlived a signal");
            }
        }
        Outcome::Released(house.give_back_run(&vm.id, "release").await)
    })
}

/// Gives back everything.
pub(super) fn erase(house: Arc<House>, vm: Vm, delay: Duration, switches: Switches) -> Work {
    Box::pin(async move {
        pause(delay, &switches).await;
        house.seams.pass("erase.begun").await;
        Outcome::Erased(house.give_back(&vm.id, "erase", |_| true).await)
    })
}

/// Waits before something stuck is tried again; not when somebody is impatient.
async fn pause(delay: Duration, switches: &Switches) {
    // Even a sleep of nothing waits for the timer's next tick.
    if delay.is_zero() {
        return;
    }
    tokio::select! {
        () = switches.off.cancelled() => {}
        () = sleep(delay) => {}
    }
}

/// How long an agent may be silent before it counts as lost.
pub(crate) fn silence(kvm: bool) -> Duration {
    Duration::from_secs(if kvm { 10 } else { 60 })
}

/// How long a kernel may take to its agent's hello.
pub(super) fn hello_limit(kvm: bool) -> Duration {
    Duration::from_secs(if kvm { 30 } else { 180 })
}

/// How long a whole start may take.
pub(super) fn ready_limit(kvm: bool) -> Duration {
    Duration::from_secs(if kvm { 90 } else { 600 })
}

/// The end of a run's console, as the end of an error.
pub(super) fn tail(house: &House, vm: &Vm, from: u64) -> String {
    let lines = house.host.tail(&house.places.console(&vm.id), from, TAIL);
    lines
        .iter()
        .fold(String::new(), |text, line| text + "\n" + line)
}

/// Guest text without what a terminal would act on, and not too long.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}
