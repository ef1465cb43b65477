//! `wait`: until a VM is what it should be.
//!
//! The events are opened before the VM is looked at, so no change is lost
//! between; each event only says that it is time to look again.

use std::time::Duration;

use banger_api::endpoint::{EVENTS, VmHealth, VmShow};
use banger_api::error::Code;
use banger_api::vm::{State, VmRecord};
use clap::{Args, ValueEnum};

use super::delete::at_rest;
use crate::client::start::Place;
use crate::client::{At, Client};
use crate::complete;
use crate::failure::{Failure, TIMED_OUT};
use crate::interrupt::interruptible;
use crate::show::size::parse_duration;

/// Wait until a VM is running, healthy, stopped or gone
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger wait box
  banger wait --for stopped --timeout 1m box")]
pub(crate) struct Wait {
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// What to wait for
    #[arg(
        long = "for",
        value_enum,
        value_name = "WHAT",
        default_value = "healthy"
    )]
    what: What,
    /// Give up after this time, exit 124
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// What a VM should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Running,
    Healthy,
    Stopped,
    Gone,
}

impl Wait {
    /// Waits.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        interruptible(self.until_timeout(place)).await
    }

    async fn until_timeout(&self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let wait = self.until(&client);
        match self.timeout {
            None => wait.await,
            Some(limit) => tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| {
                let limit = humantime::format_duration(limit);
                Err(Failure::new(
                    Code::Timeout,
                    format!("{:?} took longer than {limit}", self.vm),
                )
                .exiting(TIMED_OUT))
            }),
        }
    }

    async fn until(&self, client: &Client) -> Result<u8, Failure> {
        // Looked up once: a name may move to another VM meanwhile.
        let id = match client.get::<VmShow>(At::path(&[&self.vm])).await {
            Ok(shown) => shown.vm.id,
            Err(failure) if self.what == What::Gone && failure.code == Some(Code::NotFound) => {
                return Ok(0);
            }
            Err(failure) => return Err(failure),
        };
        loop {
            let mut events = client
                .events(
                    At {
                        path: &[],
                        query: &[("vm", &id)],
                    },
                    EVENTS,
                    None,
                )
                .await;
            loop {
                if self.reached(client, &id).await? {
                    return Ok(0);
                }
                match &mut events {
                    Ok(events) => {
                        // The stream ends with the daemon; then look anew.
                        if events.next().await?.is_none() {
                            break;
                        }
                    }
                    // The VM went between two looks, and the next look says so.
                    Err(failure) => return Err(failure.clone()),
                }
            }
        }
    }

    /// Whether it is what it should be; an error where it cannot be any more.
    async fn reached(&self, client: &Client, id: &str) -> Result<bool, Failure> {
        let vm = match client.get::<VmShow>(At::path(&[id])).await {
            Ok(shown) => shown.vm,
            Err(failure) if failure.code == Some(Code::NotFound) => {
                return if self.what == What::Gone {
                    Ok(true)
                } else {
                    Err(self.never("it is gone"))
                };
            }
            Err(failure) => return Err(failure),
        };
        match self.judge(&vm) {
            Judgement::Yes => Ok(true),
            Judgement::NotYet => Ok(false),
            Judgement::Never(why) => Err(self.never(&why)),
            Judgement::AskHealth => match client.get::<VmHealth>(At::path(&[id])).await {
                Ok(health) => Ok(health.healthy),
                // It changed between the two questions; an event follows.
                Err(failure) if failure.code == Some(Code::NotRunning) => Ok(false),
                Err(failure) => Err(failure),
            },
        }
    }

    fn judge(&self, vm: &VmRecord) -> Judgement {
        let coming = vm.runtime.goal == "up";
        match self.what {
            What::Gone => Judgement::NotYet,
            What::Stopped if at_rest(vm.state) && vm.state != State::Error => Judgement::Yes,
            What::Running if vm.state == State::Running => Judgement::Yes,
            What::Healthy if vm.state == State::Running => Judgement::AskHealth,
            What::Stopped if vm.state != State::Error => Judgement::NotYet,
            What::Running | What::Healthy if coming && vm.state != State::Error => {
                Judgement::NotYet
            }
            _ => Judgement::Never(match &vm.runtime.last_error {
                Some(error) if vm.state == State::Error => format!("it is in error: {error}"),
                _ => format!("it is {}", vm.state.name()),
            }),
        }
    }

    fn never(&self, why: &str) -> Failure {
        let what = match self.what {
            What::Running => "running",
            What::Healthy => "healthy",
            What::Stopped => "stopped",
            What::Gone => "gone",
        };
        Failure::new(
            Code::NotRunning,
            format!("{:?} will not be {what}: {why}", self.vm),
        )
    }
}

enum Judgement {
    Yes,
    NotYet,
    AskHealth,
    Never(String),
}
