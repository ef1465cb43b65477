//! Watches one run: its engine's end, its agent's news, and the connection to
//! it, which is made again whenever it is lost.

use std::sync::Arc;
use std::time::Duration;

use banger_api::error::Code;
use banger_api::operation::DiskFullEvent;
use banger_engine::machine::End;
use banger_model::{Goal, News};
use banger_wire::agent::{ENDED_LINE, EndReason, Ended, Event};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::events::Event as NewsOfVm;
use super::house::House;
use super::record::Vm;
use super::supervisor::{Note, Supervisor};
use super::works::{self, Run};
use crate::failure::Failure;
use crate::operation::{now, now_seconds};
use crate::ports::{EventStream, Guest};

/// First and longest pause between two tries to reach an agent.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long news may follow the end of their engine.
const STRAGGLERS: Duration = Duration::from_millis(300);
/// Longest from an agent's last word to the end of its engine.
const RESET: Duration = Duration::from_secs(10);
/// A disk that stays full is told of no more often.
const STILL_FULL: Duration = Duration::from_secs(60);
/// A run shorter than this that reboots itself is a crash, seconds.
const SHORTEST_RUN: i64 = 10;

/// News of a run.
pub(crate) enum RunNews {
    /// There is a connection to the agent.
    Connected(Arc<dyn Guest>),
    /// There is none any more.
    Lost,
    /// The image's init is up.
    Healthy,
    /// The host had no room for a write to this disk.
    DiskFull(String),
    /// What is wrong with the guest's way out; `None`: nothing any more.
    Network(Option<String>),
    /// The engine has ended, and what the agent said of it before.
    Ended { end: End, last_word: Option<Ended> },
}

impl Supervisor {
    /// Watches the present run from now on.
    pub(super) fn watch_run(&mut self, guest: Option<Arc<dyn Guest>>) {
        let Some(run) = self.run.clone() else { return };
        if let Some(guest) = &guest {
            let guest = guest.clone();
            self.presence
                .live
                .send_modify(|live| live.guest = Some(guest));
        }
        let number = self.run_number;
        let watcher = Watcher {
            run: run.clone(),
            number,
            queue: self.presence.queue.clone(),
        };
        self.tasks.spawn(watcher.watch(guest));
        let queue = self.presence.queue.clone();
        self.tasks.spawn(watch_disks(run.clone(), number, queue));
        let measurer = super::stats::Measurer {
            house: self.house.clone(),
            presence: Arc::downgrade(&self.presence),
            vm: self.vm.id.clone(),
            running: run.running.clone(),
        };
        self.tasks.spawn(measurer.measure());
    }

    pub(super) async fn hear_news(&mut self, run: u64, news: RunNews) {
        if run != self.run_number {
            return;
        }
        match news {
            RunNews::Connected(guest) => {
                let boot_id = guest.boot_id();
                if self.vm.record.boot_id.as_deref() != Some(&*boot_id) {
                    tracing::warn!(vm = %self.vm.name, "an agent of another boot answers");
                }
                self.presence
                    .live
                    .send_modify(|live| live.guest = Some(guest));
            }
            RunNews::Lost => {
                tracing::info!(vm = %self.vm.name, "no connection to the agent any more");
                self.presence.live.send_modify(|live| live.guest = None);
            }
            RunNews::Healthy => self.set_healthy(true),
            RunNews::DiskFull(disk) => {
                let (id, name) = (self.vm.id.to_string(), self.vm.name.clone());
                let disk = works::printable(&disk);
                tracing::warn!(vm = %name, disk, "the host has no room for what the guest writes");
                let full = disk.clone();
                self.presence
                    .live
                    .send_modify(|live| live.full = Some(full));
                let at = now();
                self.house
                    .events
                    .publish(NewsOfVm::DiskFull(DiskFullEvent { id, name, disk, at }));
            }
            RunNews::Network(trouble) => self.set_network(trouble).await,
            RunNews::Ended { end, last_word } => {
                let Some(run) = self.run.clone() else { return };
                let from = run.facts.console_from;
                let last_word = last_word.or_else(|| console_word(&self.house, &self.vm, from));
                // From the moment commands could run; of an adopted run only
                // the wall clock knows it.
                let lived = match self.ready_at {
                    Some(at) => i64::try_from(at.elapsed().as_secs()).unwrap_or(i64::MAX),
                    None => {
                        let since = self.vm.record.running_since;
                        since.map_or(0, |since| now_seconds() - since)
                    }
                };
                let (news, why) = judge(&self.vm, last_word.as_ref(), &end.reason, lived);
                let why = why.map(|why| why + &works::tail(&self.house, &self.vm, from));
                let said = match &why {
                    Some(why) => why.clone(),
                    None => "the guest ended it".to_owned(),
                };
                tracing::info!(vm = %self.vm.name, engine = end.reason, said, "a run ended by itself");
                self.presence
                    .live
                    .send_modify(|live| live.ended = Some(said));
                if let Some(why) = &why {
                    self.failed = Some(Failure::new(Code::EngineFailed, why.clone()));
                }
                self.observe(news, why).await;
            }
        }
    }
}

/// What the end of a run means, and why it was bad where it was.
pub(crate) fn judge(
    vm: &Vm,
    last_word: Option<&Ended>,
    engine: &str,
    lived: i64,
) -> (News, Option<String>) {
    let Some(ended) = last_word else {
        return (News::Failed, Some(format!("the engine ended: {engine}")));
    };
    match ended.reason {
        EndReason::Stop | EndReason::Poweroff => (News::PoweredOff, None),
        EndReason::Reboot if vm.spec.auto_remove || vm.goal != Goal::Up => (News::PoweredOff, None),
        EndReason::Reboot if lived < SHORTEST_RUN => {
            let why = format!("the guest rebooted after {lived} s, too soon to boot it again");
            (News::Failed, Some(why))
        }
        EndReason::Reboot => (News::Rebooted, None),
        EndReason::Crash => {
            let why = format!(
                "the guest's init ended: {}",
                works::printable(&ended.status)
            );
            (News::Failed, Some(why))
        }
    }
}

/// What the agent wrote on the console last, for a daemon that was away.
pub(crate) fn console_word(house: &House, vm: &Vm, from: u64) -> Option<Ended> {
    let lines = house.host.tail(&house.places.console(&vm.id), from, 3);
    lines.iter().rev().find_map(|line| {
        let (_, json) = line.split_once(ENDED_LINE)?;
        serde_json::from_str(json.trim()).ok()
    })
}

/// Tells of writes that the host has no room for. A guest that writes on meets
/// that again and again, so it is told once in a while.
async fn watch_disks(run: Arc<Run>, number: u64, queue: mpsc::Sender<Note>) {
    let all = async {
        loop {
            let news = RunNews::DiskFull(run.running.disk_full().await);
            let _ = queue.send(Note::News { run: number, news }).await;
            sleep(STILL_FULL).await;
        }
    };
    tokio::select! {
        () = all => {}
        _ = run.running.ended() => {}
    }
}

struct Watcher {
    run: Arc<Run>,
    number: u64,
    queue: mpsc::Sender<Note>,
}

impl Watcher {
    async fn watch(self, mut guest: Option<Arc<dyn Guest>>) {
        let mut pause = RECONNECT.0;
        loop {
            let connected = match guest.take() {
                Some(guest) => guest,
                None => {
                    let found = tokio::select! {
                        biased;
                        end = self.run.running.ended() => return self.ended(end, None).await,
                        found = self.run.running.guest(self.run.token) => found,
                    };
                    let Ok(found) = found else {
                        sleep(pause).await;
                        pause = (pause * 2).min(RECONNECT.1);
                        continue;
                    };
                    self.tell(RunNews::Connected(found.clone())).await;
                    found
                }
            };
            pause = RECONNECT.0;
            let events = tokio::select! {
                biased;
                end = self.run.running.ended() => return self.ended(end, None).await,
                events = connected.events() => events,
            };
            if let Ok(mut events) = events
                && let Some((end, last_word)) = self.follow(&*connected, &mut *events).await
            {
                return self.ended(end, last_word).await;
            }
            self.tell(RunNews::Lost).await;
            drop(connected);
            sleep(pause).await;
        }
    }

    /// Hears the agent until the engine ends (that end, and the agent's last
    /// word), or the connection does (`None`).
    async fn follow(
        &self,
        guest: &dyn Guest,
        events: &mut dyn EventStream,
    ) -> Option<(End, Option<Ended>)> {
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                end = self.run.running.ended() => {
                    let last_word = timeout(STRAGGLERS, last_word(events)).await.ok().flatten();
                    return Some((end, last_word));
                }
                () = guest.lost() => return None,
            };
            match event? {
                Event::Healthy => self.tell(RunNews::Healthy).await,
                Event::Unknown => {}
                Event::Ended(ended) => {
                    let _ = timeout(STRAGGLERS, guest.acknowledge_end()).await;
                    let end = match timeout(RESET, self.run.running.ended()).await {
                        Ok(end) => end,
                        Err(_) => {
                            let _ = self.run.running.kill("KILL").await;
                            self.run.running.ended().await
                        }
                    };
                    return Some((end, Some(ended)));
                }
            }
        }
    }

    async fn ended(&self, end: End, last_word: Option<Ended>) {
        self.tell(RunNews::Ended { end, last_word }).await;
    }

    async fn tell(&self, news: RunNews) {
        // A supervisor that left has no use for it.
        let _ = self
            .queue
            .send(Note::News {
                run: self.number,
                news,
            })
            .await;
    }
}

async fn last_word(events: &mut dyn EventStream) -> Option<Ended> {
    loop {
        if let Event::Ended(ended) = events.next().await? {
            return Some(ended);
        }
    }
}
