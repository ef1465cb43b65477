//! A host, engines and guests made of memory.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use banger_api::error::Code;
use banger_engine::machine::{Abilities, Acceleration, End, Facts, Machine, Transport};
use banger_model::{Holding, VmId};
use banger_wire::agent::{Boot, Booted, EndReason, Ended, Event, Exec, Health, Init, Pong, Stop};
use banger_wire::frames::Frame;
use banger_wire::gateway::Counters;
use tokio::sync::{mpsc, watch};

use crate::failure::Failure;
use crate::ports::{
    Artifacts, BootImage, BootKernel, Engine, EventStream, ExecStream, Gateway, Gateways, Guest,
    Host, Progress, Running, Usage, Want,
};
use crate::seam::power::Power;

/// What tests may turn.
#[derive(Debug, Clone)]
pub(crate) struct Knobs {
    /// Launches whose agent never says hello.
    pub(crate) mute_launches: u32,
    /// So many of the next hellos are lost on their way.
    pub(crate) lost_hellos: u32,
    pub(crate) sync_hangs: bool,
    pub(crate) stop_ignored: bool,
    pub(crate) ping_hangs: bool,
    pub(crate) launch_fails: Option<Failure>,
    pub(crate) image_fails: Option<Failure>,
    pub(crate) boot_fails: bool,
    pub(crate) image_hangs: bool,
    pub(crate) hello_hangs: bool,
    /// Nothing of the host is taken meanwhile.
    pub(crate) take_hangs: bool,
    pub(crate) kvm: bool,
    pub(crate) console: Vec<String>,
    pub(crate) stuck: Option<Holding>,
    pub(crate) free_bytes: u64,
    pub(crate) available: u64,
    pub(crate) unusable: Option<Failure>,
    /// An image or kernel that is neither here nor obtained.
    pub(crate) unknown: Option<Failure>,
    /// CPU time of every engine so far, microseconds.
    pub(crate) cpu_us: u64,
    /// No gateway's program is there.
    pub(crate) no_gateway: bool,
    /// Gateways that die as soon as they are started.
    pub(crate) short_gateways: u32,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            mute_launches: 0,
            lost_hellos: 0,
            sync_hangs: false,
            stop_ignored: false,
            ping_hangs: false,
            launch_fails: None,
            image_fails: None,
            boot_fails: false,
            image_hangs: false,
            hello_hangs: false,
            take_hangs: false,
            kvm: false,
            console: Vec::new(),
            stuck: None,
            free_bytes: 100 << 30,
            available: 64 << 30,
            unusable: None,
            unknown: None,
            cpu_us: 1000,
            no_gateway: false,
            short_gateways: 0,
        }
    }
}

#[derive(Default)]
pub(crate) struct World {
    state: Mutex<State>,
    /// Moves whenever a knob is turned, and whenever a guest is asked something.
    turned: watch::Sender<u64>,
    resolvers: watch::Sender<Vec<IpAddr>>,
}

#[derive(Default)]
struct State {
    knobs: Knobs,
    things: BTreeSet<(String, Holding)>,
    engines: HashMap<String, Arc<FakeRun>>,
    /// Those that live.
    gateways: HashMap<String, Arc<FakeGateway>>,
    /// Whether the last machine of a VM had a network card.
    cards: HashMap<String, bool>,
    gateway_starts: u32,
    launches: u32,
    boots: Vec<Boot>,
    execs: Vec<(Exec, mpsc::Sender<Frame>)>,
    packs: Vec<mpsc::Sender<Frame>>,
    wishes: Vec<String>,
    trims: u32,
    signals: Vec<String>,
    /// VMs whose cgroup was killed since it was made.
    killed: BTreeSet<String>,
    violations: Vec<String>,
}

impl World {
    pub(crate) fn turn(&self, edit: impl FnOnce(&mut Knobs)) {
        edit(&mut self.state.lock().unwrap().knobs);
        self.turned.send_modify(|count| *count += 1);
    }

    fn knobs(&self) -> Knobs {
        self.state.lock().unwrap().knobs.clone()
    }

    /// Waits as long as a knob says so.
    async fn while_knob(&self, hangs: impl Fn(&Knobs) -> bool) {
        let mut turned = self.turned.subscribe();
        while hangs(&self.knobs()) {
            turned.changed().await.unwrap();
        }
    }

    pub(crate) fn things(&self) -> Vec<(String, Holding)> {
        self.state.lock().unwrap().things.iter().cloned().collect()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.state.lock().unwrap().violations.clone()
    }

    pub(crate) fn launches(&self) -> u32 {
        self.state.lock().unwrap().launches
    }

    pub(crate) fn boots(&self) -> Vec<Boot> {
        self.state.lock().unwrap().boots.clone()
    }

    /// What engine each launch wanted.
    pub(crate) fn wishes(&self) -> Vec<String> {
        self.state.lock().unwrap().wishes.clone()
    }

    /// How often a console was looked at for its size.
    pub(crate) fn trims(&self) -> u32 {
        self.state.lock().unwrap().trims
    }

    pub(crate) fn signals(&self) -> Vec<String> {
        self.state.lock().unwrap().signals.clone()
    }

    /// The command that was sent last, and the end that its output comes from.
    pub(crate) fn last_exec(&self) -> (Exec, mpsc::Sender<Frame>) {
        self.state
            .lock()
            .unwrap()
            .execs
            .pop()
            .expect("a command was sent")
    }

    /// The next command that is sent, and the end that its output comes from.
    pub(crate) async fn next_exec(&self) -> (Exec, mpsc::Sender<Frame>) {
        self.next(|state| state.execs.pop()).await
    }

    /// Where the root comes from that somebody asks a guest for.
    pub(crate) async fn next_pack(&self) -> mpsc::Sender<Frame> {
        self.next(|state| state.packs.pop()).await
    }

    async fn next<T>(&self, take: impl Fn(&mut State) -> Option<T>) -> T {
        let mut turned = self.turned.subscribe();
        loop {
            if let Some(found) = take(&mut self.state.lock().unwrap()) {
                return found;
            }
            turned.changed().await.unwrap();
        }
    }

    pub(crate) fn engine(&self, vm: &str) -> Arc<FakeRun> {
        self.state.lock().unwrap().engines[vm].clone()
    }

    /// The gateway of a VM, where one lives.
    pub(crate) fn gateway(&self, vm: &str) -> Option<Arc<FakeGateway>> {
        self.state.lock().unwrap().gateways.get(vm).cloned()
    }

    pub(crate) fn gateway_starts(&self) -> u32 {
        self.state.lock().unwrap().gateway_starts
    }

    /// A gateway ends by itself, or is killed by a stranger.
    pub(crate) fn end_gateway(&self, vm: &str) {
        let mut state = self.state.lock().unwrap();
        if let Some(gateway) = state.gateways.remove(vm) {
            state.things.remove(&(vm.to_owned(), Holding::Gateway));
            gateway.ended.send_replace(true);
        }
    }

    /// Whether the host's resolvers are these from now on.
    pub(crate) fn resolve_by(&self, resolvers: &[&str]) {
        let addresses = resolvers.iter().map(|one| one.parse().unwrap()).collect();
        self.resolvers.send_replace(addresses);
    }

    /// What is wrong between a VM's engine and its gateway.
    pub(crate) fn unserved(&self, vm: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let mut wrong = Vec::new();
        if let (Some(run), Some(gateway)) = (state.engines.get(vm), state.gateways.get(vm)) {
            if state.cards.get(vm) != Some(&true) {
                wrong.push("a gateway without a network card".to_owned());
            }
            let watched = gateway.engine.lock().unwrap().clone();
            if watched.is_some_and(|watched| watched != run.boot_id) {
                wrong.push("a gateway of another engine".to_owned());
            }
        }
        wrong
    }

    pub(crate) fn engines(&self) -> usize {
        self.state.lock().unwrap().engines.len()
    }

    fn remove(&self, vm: &str, holding: Holding) {
        let mut state = self.state.lock().unwrap();
        for above in Holding::ALL {
            if holding.carries(above) && state.things.contains(&(vm.to_owned(), above)) {
                state
                    .violations
                    .push(format!("{holding:?} was given back under {above:?}"));
            }
        }
        state.things.remove(&(vm.to_owned(), holding));
    }

    fn add(&self, vm: &str, holding: Holding) {
        self.add_over(vm, holding, &Holding::ALL);
    }

    /// As [`World::add`], resting on no others than these.
    fn add_over(&self, vm: &str, holding: Holding, all: &[Holding]) {
        let mut state = self.state.lock().unwrap();
        for below in all.iter().copied() {
            if below.carries(holding) && !state.things.contains(&(vm.to_owned(), below)) {
                state
                    .violations
                    .push(format!("{holding:?} was taken without {below:?}"));
            }
        }
        state.things.insert((vm.to_owned(), holding));
    }
}

pub(crate) struct FakeHost {
    pub(crate) world: Arc<World>,
    pub(crate) power: Arc<Power>,
}

#[async_trait]
impl Host for FakeHost {
    fn cgroup(&self, vm: &VmId) -> Option<PathBuf> {
        Some(Path::new("/cgroup").join(vm.as_str()))
    }

    async fn take(&self, vm: &VmId, holding: Holding, _: &Want) -> Result<(), Failure> {
        self.power.hold().await;
        self.world.while_knob(|knobs| knobs.take_hangs).await;
        self.world.add(vm.as_str(), holding);
        Ok(())
    }

    async fn give_back(
        &self,
        vm: &VmId,
        holding: Holding,
        cgroup: Option<&Path>,
    ) -> Result<(), Failure> {
        self.power.hold().await;
        if self.world.knobs().stuck == Some(holding) {
            return Err(Failure::new(
                Code::Internal,
                format!("{} is stuck", holding.name()),
            ));
        }
        if holding == Holding::Cgroup && cgroup.is_none() {
            return Ok(());
        }
        if holding == Holding::Cgroup {
            self.world.state.lock().unwrap().killed.remove(vm.as_str());
        }
        self.world.remove(vm.as_str(), holding);
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64, Failure> {
        Ok(self.world.knobs().free_bytes)
    }

    fn memory(&self) -> Result<(u64, u64), Failure> {
        Ok((self.world.knobs().available, 64 << 30))
    }

    fn length(&self, _: &Path) -> u64 {
        0
    }

    fn allocated(&self, _: &Path) -> Option<u64> {
        Some(4096)
    }

    fn tail(&self, _: &Path, _: u64, lines: usize) -> Vec<String> {
        let all = self.world.knobs().console;
        all[all.len().saturating_sub(lines)..].to_vec()
    }

    fn written_at(&self, _: &Path) -> Option<i64> {
        Some(crate::operation::now_seconds() + 60)
    }

    fn trim_console(&self, _: &Path) {
        self.world.state.lock().unwrap().trims += 1;
    }
}

pub(crate) struct FakeEngines {
    pub(crate) world: Arc<World>,
    pub(crate) power: Arc<Power>,
}

#[async_trait]
impl Engine for FakeEngines {
    async fn launch(&self, machine: &Machine, wanted: &str) -> Result<Facts, Failure> {
        self.power.hold().await;
        self.world
            .state
            .lock()
            .unwrap()
            .wishes
            .push(wanted.to_owned());
        if let Some(failure) = self.world.knobs().launch_fails {
            return Err(failure);
        }
        // Without a network card there is no gateway to rest on.
        let below = Holding::ALL
            .into_iter()
            .filter(|below| machine.nic.is_some() || *below != Holding::Gateway);
        let below: Vec<Holding> = below.collect();
        self.world.add_over(&machine.id, Holding::Engine, &below);
        let mut state = self.world.state.lock().unwrap();
        if state.engines.contains_key(&machine.id) {
            state.violations.push("two engines of one VM".into());
        }
        // As the kernel does it, whatever the launch says.
        let stillborn = machine.cgroup.is_some() && state.killed.contains(&machine.id);
        state.launches += 1;
        state
            .cards
            .insert(machine.id.clone(), machine.nic.is_some());
        let number = state.launches;
        let mute = state.knobs.mute_launches > 0;
        state.knobs.mute_launches = state.knobs.mute_launches.saturating_sub(1);
        let kvm = state.knobs.kvm;
        let run = FakeRun {
            id: machine.id.clone(),
            boot_id: format!("boot-{number}"),
            mute,
            end: watch::Sender::new(None),
            news: watch::Sender::new(vec![Event::Healthy]),
            line: watch::Sender::new(0),
            full: watch::Sender::default(),
            paused: watch::Sender::new(false),
        };
        if stillborn {
            run.die("killed", false);
        }
        state.engines.insert(machine.id.clone(), Arc::new(run));
        Ok(Facts {
            engine: "fake".into(),
            version: "1".into(),
            acceleration: if kvm {
                Acceleration::Kvm
            } else {
                Acceleration::Tcg
            },
            no_kvm: (!kvm).then(|| "as told".into()),
            pid: number,
            start_ticks: 0,
            host_boot_id: String::new(),
            executable: PathBuf::new(),
            id: machine.id.clone(),
            run_dir: machine.run_dir.clone(),
            cgroup: machine.cgroup.clone(),
            drives: machine
                .drives
                .iter()
                .map(|drive| drive.serial.clone())
                .collect(),
        })
    }

    async fn attach(&self, facts: &Facts) -> Result<Option<Arc<dyn Running>>, Failure> {
        self.power.hold().await;
        let found = self
            .world
            .state
            .lock()
            .unwrap()
            .engines
            .get(&facts.id)
            .cloned();
        Ok(found.filter(|run| run.end.borrow().is_none()).map(|run| {
            Arc::new(Handle {
                full: tokio::sync::Mutex::new(run.full.subscribe()),
                run,
                world: self.world.clone(),
                power: self.power.clone(),
            }) as Arc<dyn Running>
        }))
    }

    async fn sweep(&self, id: &str, _: &Path, cgroup: Option<&Path>) -> Result<(), Failure> {
        self.power.hold().await;
        if self.world.knobs().stuck == Some(Holding::Engine) {
            return Err(Failure::new(Code::Internal, "the engine is stuck"));
        }
        let run = {
            let mut state = self.world.state.lock().unwrap();
            if cgroup.is_some() {
                state.killed.insert(id.to_owned());
            }
            state.engines.remove(id)
        };
        if let Some(run) = run {
            run.die("killed", false);
        }
        self.world.remove(id, Holding::Engine);
        Ok(())
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            pause: true,
            resize_disk: true,
        }
    }

    async fn usable(&self, _: &str) -> Result<(), Failure> {
        self.world.knobs().unusable.map_or(Ok(()), Err)
    }
}

pub(crate) struct FakeGateways {
    pub(crate) world: Arc<World>,
    pub(crate) power: Arc<Power>,
}

#[async_trait]
impl Gateways for FakeGateways {
    fn usable(&self) -> Result<(), Failure> {
        if self.world.knobs().no_gateway {
            return Err(Failure::new(
                Code::NoTool,
                "banger-gateway is not installed",
            ));
        }
        Ok(())
    }

    async fn launch(
        &self,
        vm: &VmId,
        _: &Path,
        line: Arc<OwnedFd>,
    ) -> Result<Arc<dyn Gateway>, Failure> {
        self.power.hold().await;
        self.usable()?;
        let dies = {
            let mut state = self.world.state.lock().unwrap();
            if state.gateways.contains_key(vm.as_str()) {
                state.violations.push("two gateways of one VM".into());
            }
            state.gateway_starts += 1;
            let dies = state.knobs.short_gateways > 0;
            state.knobs.short_gateways = state.knobs.short_gateways.saturating_sub(1);
            let gateway = Arc::new(FakeGateway {
                number: state.gateway_starts,
                vm: vm.to_string(),
                line,
                ended: watch::Sender::new(false),
                engine: Mutex::default(),
                resolvers: Mutex::default(),
            });
            state.gateways.insert(vm.to_string(), gateway);
            dies
        };
        self.world.add(vm.as_str(), Holding::Gateway);
        let gateway = self.world.gateway(vm.as_str()).expect("just started");
        if dies {
            self.world.end_gateway(vm.as_str());
        }
        Ok(self.handle(gateway))
    }

    async fn attach(
        &self,
        vm: &VmId,
        _: &Path,
        _: Option<&str>,
    ) -> Result<Option<Arc<dyn Gateway>>, Failure> {
        self.power.hold().await;
        let found = self.world.gateway(vm.as_str());
        Ok(found.map(|gateway| self.handle(gateway)))
    }

    async fn sweep(&self, vm: &VmId, _: Option<&str>) -> Result<(), Failure> {
        self.power.hold().await;
        if self.world.knobs().stuck == Some(Holding::Gateway) {
            return Err(Failure::new(Code::Internal, "the gateway is stuck"));
        }
        self.world.remove(vm.as_str(), Holding::Gateway);
        self.world.end_gateway(vm.as_str());
        Ok(())
    }

    fn resolvers(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.world.resolvers.subscribe()
    }
}

impl FakeGateways {
    fn handle(&self, gateway: Arc<FakeGateway>) -> Arc<dyn Gateway> {
        Arc::new(GatewayHandle {
            gateway,
            world: self.world.clone(),
            power: self.power.clone(),
        })
    }
}

/// A gateway process.
pub(crate) struct FakeGateway {
    /// Of all that were ever started.
    pub(crate) number: u32,
    vm: String,
    line: Arc<OwnedFd>,
    ended: watch::Sender<bool>,
    /// Boot id of the guest in the engine it must not outlive.
    pub(crate) engine: Mutex<Option<String>>,
    pub(crate) resolvers: Mutex<Vec<IpAddr>>,
}

struct GatewayHandle {
    gateway: Arc<FakeGateway>,
    world: Arc<World>,
    power: Arc<Power>,
}

impl GatewayHandle {
    async fn hears(&self) -> Result<(), Failure> {
        self.power.hold().await;
        if *self.gateway.ended.borrow() {
            return Err(Failure::new(Code::EngineFailed, "no gateway listens"));
        }
        Ok(())
    }
}

#[async_trait]
impl Gateway for GatewayHandle {
    fn facts(&self) -> String {
        format!("{{\"number\":{}}}", self.gateway.number)
    }

    async fn watch_engine(&self, engine: &dyn Running) -> Result<(), Failure> {
        self.hears().await?;
        // An engine of the double is no process: it is known by its use, which
        // ends with it. Asked first: the answer takes the same lock.
        let lives = engine.usage().is_some();
        let state = self.world.state.lock().unwrap();
        let run = state.engines.get(&self.gateway.vm);
        let boot_id = run.map(|run| run.boot_id.clone());
        *self.gateway.engine.lock().unwrap() = boot_id.filter(|_| lives);
        Ok(())
    }

    async fn set_resolvers(&self, addresses: Vec<IpAddr>) -> Result<(), Failure> {
        self.hears().await?;
        *self.gateway.resolvers.lock().unwrap() = addresses;
        Ok(())
    }

    async fn line(&self) -> Result<Arc<OwnedFd>, Failure> {
        self.hears().await?;
        Ok(self.gateway.line.clone())
    }

    async fn counters(&self) -> Result<Counters, Failure> {
        self.hears().await?;
        Ok(Counters {
            bytes_out: u64::from(self.gateway.number),
            ..Counters::default()
        })
    }

    async fn ended(&self) -> String {
        let mut ended = self.gateway.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
        self.power.hold().await;
        "it was killed by SIGKILL".to_owned()
    }
}

/// An engine process and its guest.
pub(crate) struct FakeRun {
    id: String,
    boot_id: String,
    mute: bool,
    end: watch::Sender<Option<End>>,
    news: watch::Sender<Vec<Event>>,
    /// Raised when the connection breaks.
    line: watch::Sender<u32>,
    /// The disk that the host had no room for last.
    full: watch::Sender<String>,
    pub(crate) paused: watch::Sender<bool>,
}

impl FakeRun {
    pub(crate) fn die(&self, reason: &str, by_guest: bool) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(End {
                    by_guest,
                    reason: reason.into(),
                });
            }
            first
        });
    }

    /// The guest ends, and says so before.
    pub(crate) fn end_with_word(&self, reason: EndReason) {
        let ended = Ended {
            reason,
            status: "as told".into(),
            clean: true,
        };
        self.news.send_modify(|news| news.push(Event::Ended(ended)));
        self.die("reset", true);
    }

    /// The guest writes what the host has no room for.
    pub(crate) fn fill_disk(&self, disk: &str) {
        self.full.send_replace(disk.to_owned());
    }

    pub(crate) fn break_line(&self) {
        self.line.send_modify(|line| *line += 1);
    }
}

struct Handle {
    run: Arc<FakeRun>,
    full: tokio::sync::Mutex<watch::Receiver<String>>,
    world: Arc<World>,
    power: Arc<Power>,
}

#[async_trait]
impl Running for Handle {
    async fn guest(&self, _: [u8; 32]) -> Result<Arc<dyn Guest>, Failure> {
        self.power.hold().await;
        self.world.while_knob(|knobs| knobs.hello_hangs).await;
        let lost = {
            let mut state = self.world.state.lock().unwrap();
            let lost = state.knobs.lost_hellos > 0;
            state.knobs.lost_hellos = state.knobs.lost_hellos.saturating_sub(1);
            lost
        };
        if lost || self.run.mute || self.run.end.borrow().is_some() {
            std::future::pending::<()>().await;
        }
        Ok(Arc::new(FakeGuest {
            run: self.run.clone(),
            world: self.world.clone(),
            power: self.power.clone(),
            line: *self.run.line.borrow(),
        }))
    }

    async fn ended(&self) -> End {
        let mut end = self.run.end.subscribe();
        let found = end
            .wait_for(Option::is_some)
            .await
            .unwrap()
            .clone()
            .unwrap();
        self.power.hold().await;
        found
    }

    async fn disk_full(&self) -> String {
        let mut full = self.full.lock().await;
        full.changed().await.unwrap();
        full.borrow_and_update().clone()
    }

    async fn pause(&self) -> Result<(), Failure> {
        self.power.hold().await;
        self.run.paused.send_replace(true);
        Ok(())
    }

    async fn resume(&self) -> Result<(), Failure> {
        self.power.hold().await;
        self.run.paused.send_replace(false);
        Ok(())
    }

    async fn kill(&self, signal: &str) -> Result<(), Failure> {
        self.power.hold().await;
        self.world
            .state
            .lock()
            .unwrap()
            .signals
            .push(signal.to_owned());
        self.run.die(&format!("signal {signal}"), false);
        Ok(())
    }

    fn usage(&self) -> Option<Usage> {
        let lives = self.run.end.borrow().is_none();
        lives.then_some(Usage {
            cpu_us: self.world.knobs().cpu_us,
            rss_bytes: 1 << 20,
            vsz_bytes: 1 << 30,
        })
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        None
    }
}

struct FakeGuest {
    run: Arc<FakeRun>,
    world: Arc<World>,
    power: Arc<Power>,
    line: u32,
}

impl FakeGuest {
    fn broken(&self) -> Failure {
        Failure::new(
            Code::GuestUnreachable,
            format!("the line of {} broke", self.run.id),
        )
    }
}

#[async_trait]
impl Guest for FakeGuest {
    fn boot_id(&self) -> String {
        self.run.boot_id.clone()
    }

    async fn boot(&self, boot: &Boot) -> Result<Booted, Failure> {
        self.power.hold().await;
        if self.world.knobs().boot_fails {
            return Err(Failure::new(Code::GuestFailed, "no disk \"root\""));
        }
        self.world.state.lock().unwrap().boots.push(boot.clone());
        Ok(Booted {
            agent_version: "1".into(),
            kernel_version: "6.1".into(),
            boot_id: self.run.boot_id.clone(),
            init: Init::Stub,
            warnings: Vec::new(),
            stages: vec![
                ("early".into(), 5),
                ("asked".into(), 7),
                ("Ro\not".into(), 9),
            ],
            beside: vec![("Nic driver".into(), 3)],
        })
    }

    async fn health(&self) -> Result<Health, Failure> {
        Ok(Health {
            booted: true,
            healthy: true,
        })
    }

    async fn ping(&self) -> Result<Pong, Failure> {
        self.power.hold().await;
        self.world.while_knob(|knobs| knobs.ping_hangs).await;
        Ok(Pong {
            agent_version: "1".into(),
            commands: 0,
        })
    }

    async fn sync(&self) -> Result<(), Failure> {
        self.power.hold().await;
        self.world.while_knob(|knobs| knobs.sync_hangs).await;
        Ok(())
    }

    async fn stop(&self, _: &Stop) -> Result<(), Failure> {
        self.power.hold().await;
        if !self.world.knobs().stop_ignored {
            self.run.end_with_word(EndReason::Stop);
        }
        Ok(())
    }

    async fn set_clock(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn acknowledge_end(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn events(&self) -> Result<Box<dyn EventStream>, Failure> {
        if *self.run.line.borrow() != self.line {
            return Err(self.broken());
        }
        Ok(Box::new(FakeEvents {
            run: self.run.clone(),
            next: 0,
            line: self.line,
        }))
    }

    async fn exec(&self, exec: Exec) -> Result<ExecStream, Failure> {
        let (input, _) = mpsc::channel(4);
        let (sender, output) = mpsc::channel(4);
        self.world.state.lock().unwrap().execs.push((exec, sender));
        self.world.turned.send_modify(|count| *count += 1);
        Ok(ExecStream { input, output })
    }

    async fn pack(&self, _: &Stop) -> Result<mpsc::Receiver<Frame>, Failure> {
        let (sender, frames) = mpsc::channel(4);
        self.world.state.lock().unwrap().packs.push(sender);
        self.world.turned.send_modify(|count| *count += 1);
        Ok(frames)
    }

    async fn lost(&self) {
        let mut line = self.run.line.subscribe();
        let _ = line.wait_for(|line| *line != self.line).await;
    }
}

struct FakeEvents {
    run: Arc<FakeRun>,
    next: usize,
    line: u32,
}

#[async_trait]
impl EventStream for FakeEvents {
    async fn next(&mut self) -> Option<Event> {
        let mut news = self.run.news.subscribe();
        let mut line = self.run.line.subscribe();
        let mut end = self.run.end.subscribe();
        loop {
            if *line.borrow_and_update() != self.line {
                return None;
            }
            if let Some(event) = news.borrow_and_update().get(self.next).cloned() {
                self.next += 1;
                return Some(event);
            }
            if end.borrow_and_update().is_some() {
                return None;
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = line.changed() => {}
                _ = end.changed() => {}
            }
        }
    }
}

pub(crate) struct FakeArtifacts {
    pub(crate) world: Arc<World>,
}

#[async_trait]
impl Artifacts for FakeArtifacts {
    async fn known(&self, _: Option<&str>, _: Option<&str>) -> Result<(), Failure> {
        self.world.knobs().unknown.map_or(Ok(()), Err)
    }

    async fn image(
        &self,
        reference: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<BootImage, Failure> {
        progress.stage("pull_image", "");
        self.world.while_knob(|knobs| knobs.image_hangs).await;
        if let Some(failure) = self.world.knobs().image_fails {
            return Err(failure);
        }
        let name = reference.unwrap_or("debian-bookworm").to_owned();
        Ok(BootImage {
            id: "image-1".into(),
            name,
            env: vec!["A=b=c".into(), "bare".into()],
            ..BootImage::default()
        })
    }

    async fn kernel(
        &self,
        name: Option<&str>,
        _: &BootImage,
        net: bool,
        _: &dyn Progress,
    ) -> Result<BootKernel, Failure> {
        self.kernel_for_start(name.unwrap_or("6.1"), net).await
    }

    async fn image_for_start(&self, id: &str) -> Result<BootImage, Failure> {
        if let Some(failure) = self.world.knobs().image_fails {
            return Err(failure);
        }
        Ok(BootImage {
            id: id.into(),
            ..BootImage::default()
        })
    }

    async fn kernel_for_start(&self, name: &str, net: bool) -> Result<BootKernel, Failure> {
        Ok(BootKernel {
            name: Some(name.into()),
            vmlinux: "/vmlinux".into(),
            initramfs: if net { "/initramfs-net" } else { "/initramfs" }.into(),
            _hold: None,
            modules: Some("/modules.ext4".into()),
            transport: Transport::Mmio,
        })
    }
}
