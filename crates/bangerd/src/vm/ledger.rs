//! Intend, act, settle; and the way back, newest first.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use banger_engine::machine::{Facts, Machine};
use banger_model::{Holding, Span, VmId};
use banger_store::ledger::{self, Entry};
use serde::{Deserialize, Serialize};

use super::house::House;
use crate::failure::Failure;
use crate::ports::Want;

/// What finds a run again; of the engine's holding.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct RunFacts {
    pub(crate) facts: Facts,
    /// Reset token of the guest channel, hex.
    pub(crate) token: String,
    /// Length of the console when this run began.
    pub(crate) console_from: u64,
}

impl RunFacts {
    pub(crate) fn token(&self) -> Result<[u8; 32], Failure> {
        let bad = || {
            Failure::new(
                banger_api::error::Code::Internal,
                "a reset token is damaged",
            )
        };
        let mut token = [0; 32];
        if self.token.len() != 64 || !self.token.is_ascii() {
            return Err(bad());
        }
        for (byte, at) in token.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&self.token[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(token)
    }
}

impl House {
    /// What a VM holds, oldest first.
    pub(crate) async fn holdings(&self, vm: &VmId) -> Result<Vec<Entry>, Failure> {
        let vm = vm.clone();
        Ok(self.store.read(move |db| ledger::of(db, &vm)).await?)
    }

    /// Where the cgroup of a VM was written down to be.
    pub(crate) async fn written_cgroup(&self, vm: &VmId) -> Result<Option<PathBuf>, Failure> {
        let entries = self.holdings(vm).await?;
        Ok(cgroup_of(&entries))
    }

    /// Writes down what is about to be taken, on the disk, in one commit.
    pub(crate) async fn intend(&self, vm: &VmId, holdings: Vec<Holding>) -> Result<(), Failure> {
        let cgroup = self
            .host
            .cgroup(vm)
            .map(|path| path.to_string_lossy().into_owned());
        let wanted: Vec<Holding> = holdings
            .into_iter()
            .filter(|holding| !self.seams.skips(*holding))
            .collect();
        self.seams.pass("start.intending").await;
        let vm = vm.clone();
        self.store
            .promise(move |tx| {
                for holding in wanted {
                    let facts = cgroup.as_deref().filter(|_| holding == Holding::Cgroup);
                    ledger::intend(tx, &vm, holding, facts)?;
                }
                Ok(())
            })
            .await?;
        self.seams.pass("start.intended").await;
        Ok(())
    }

    /// Takes an intended holding of the host and settles it.
    pub(crate) async fn take(
        &self,
        vm: &VmId,
        holding: Holding,
        want: &Want,
    ) -> Result<(), Failure> {
        self.seams.pass_holding("start", holding, "taking").await;
        self.host.take(vm, holding, want).await?;
        self.seams.pass_holding("start", holding, "taken").await;
        let facts = want
            .cgroup
            .as_ref()
            .filter(|_| holding == Holding::Cgroup)
            .map(|path| path.to_string_lossy().into_owned());
        self.settle(vm, holding, facts).await
    }

    /// Launches the intended engine, the one wanted, and settles it, and beside
    /// it the gateway where its machine has a line. Neither process waits for
    /// the other; the engine is settled last, so that one that counts has its
    /// gateway.
    pub(crate) async fn take_engine(
        &self,
        vm: &VmId,
        machine: &Machine,
        wanted: &str,
        token: [u8; 32],
        line: Option<Arc<OwnedFd>>,
    ) -> Result<RunFacts, Failure> {
        let gateway = async {
            match line {
                Some(line) => self.take_gateway(vm, line).await,
                None => Ok(()),
            }
        };
        let engine = async {
            self.seams
                .pass_holding("start", Holding::Engine, "taking")
                .await;
            let console_from = self.host.length(&machine.console);
            let facts = self.engine.launch(machine, wanted).await?;
            self.seams
                .pass_holding("start", Holding::Engine, "taken")
                .await;
            Ok::<_, Failure>((facts, console_from))
        };
        // Both to their ends: what one of them took is given back by its row.
        let (gateway, engine) = tokio::join!(gateway, engine);
        gateway?;
        let (facts, console_from) = engine?;
        let facts = RunFacts {
            facts,
            token: banger_model::id::hex(&token),
            console_from,
        };
        let text = serde_json::to_string(&facts).expect("facts are plain JSON");
        self.settle(vm, Holding::Engine, Some(text)).await?;
        Ok(facts)
    }

    pub(super) async fn settle(
        &self,
        vm: &VmId,
        holding: Holding,
        facts: Option<String>,
    ) -> Result<(), Failure> {
        let vm = vm.clone();
        self.store
            .write(move |tx| ledger::settle(tx, &vm, holding, facts.as_deref()))
            .await?;
        self.seams.pass_holding("start", holding, "settled").await;
        Ok(())
    }

    /// Gives back what a VM holds, newest first: all of it, what belongs to a
    /// run, or what is in doubt. What is stuck keeps what carries it; the
    /// first failure is returned after everything else was tried.
    pub(crate) async fn give_back(
        &self,
        vm: &VmId,
        work: &'static str,
        which: impl Fn(&Entry) -> bool,
    ) -> Result<(), Failure> {
        let entries = self.holdings(vm).await?;
        let cgroup = cgroup_of(&entries);
        let mut stuck: Vec<Holding> = Vec::new();
        let mut first = None;
        for entry in entries.iter().rev().filter(|entry| which(entry)) {
            let holding = entry.holding;
            if stuck.iter().any(|above| holding.carries(*above)) {
                stuck.push(holding);
                continue;
            }
            self.seams.pass_holding(work, holding, "giving").await;
            let gone = match holding {
                Holding::Engine => {
                    let run_dir = self.places.run(vm);
                    self.engine
                        .sweep(vm.as_str(), &run_dir, cgroup.as_deref())
                        .await
                }
                Holding::Gateway => self.end_gateway(vm, entry.facts.as_deref()).await,
                Holding::Directory
                | Holding::Overlay
                | Holding::WorkDisk
                | Holding::RunDir
                | Holding::Cgroup => self.host.give_back(vm, holding, cgroup.as_deref()).await,
            };
            if let Err(failure) = gone {
                tracing::error!(vm = %vm, holding = holding.name(), error = %failure.sentence(),
                    "a holding cannot be given back");
                stuck.push(holding);
                first.get_or_insert(failure);
                continue;
            }
            self.seams.pass_holding(work, holding, "given").await;
            let owner = vm.clone();
            self.store
                .write(move |tx| ledger::strike(tx, &owner, holding))
                .await?;
            self.seams.pass_holding(work, holding, "struck").await;
        }
        first.map_or(Ok(()), Err)
    }

    /// Gives back what belongs to a run.
    pub(crate) async fn give_back_run(&self, vm: &VmId, work: &'static str) -> Result<(), Failure> {
        self.give_back(vm, work, |entry| entry.holding.span() == Span::Run)
            .await
    }
}

fn cgroup_of(entries: &[Entry]) -> Option<PathBuf> {
    let entry = entries
        .iter()
        .find(|entry| entry.holding == Holding::Cgroup)?;
    entry.facts.as_ref().map(PathBuf::from)
}
