//! `events`: what happens to VMs, as it happens.

use banger_api::endpoint::EVENTS;
use banger_api::operation::{DiskFullEvent, HealthEvent, VmEvent};
use banger_api::vm::State;
use clap::Args;

use crate::client::At;
use crate::client::events::Event;
use crate::client::start::Place;
use crate::complete;
use crate::failure::Failure;
use crate::interrupt::interruptible;
use crate::show::escape;

/// Print changes of VMs as they happen
#[derive(Debug, Args)]
#[command(name = "events")]
pub(crate) struct EventsOf {
    /// Only these VMs
    #[arg(value_name = "VM", add = complete::vms())]
    vms: Vec<String>,
    /// Begin with what happened since this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl EventsOf {
    /// Prints until the daemon ends, or somebody has seen enough.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        interruptible(self.print(place)).await
    }

    async fn print(&self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let mut query: Vec<(&str, &str)> = self.vms.iter().map(|vm| ("vm", vm.as_str())).collect();
        query.extend(self.since.as_deref().map(|since| ("since", since)));
        let mut events = client
            .events(
                At {
                    path: &[],
                    query: &query,
                },
                EVENTS,
                None,
            )
            .await?;
        while let Some(event) = events.next().await? {
            let line = if self.json {
                json(&event)
            } else {
                text(&event)
            };
            if let Some(line) = line {
                crate::show::write_aside(format!("{line}\n").into_bytes()).await?;
            }
        }
        Ok(0)
    }
}

fn json(event: &Event) -> Option<String> {
    let mut value: serde_json::Value = event.read()?;
    value
        .as_object_mut()?
        .insert("event".to_owned(), event.name.as_str().into());
    Some(value.to_string())
}

fn text(event: &Event) -> Option<String> {
    match event.name.as_str() {
        "vm" => {
            let VmEvent {
                name,
                from,
                to,
                at,
                reason,
                ..
            } = event.read()?;
            let state = |state: Option<State>, absent| state.map_or(absent, State::name);
            let mut line = format!(
                "{at} {name} {} -> {}",
                state(from, "new"),
                state(to, "gone")
            );
            if let Some(reason) = reason {
                line.push_str(&format!(" ({reason})"));
            }
            Some(escape(&line))
        }
        "health" => {
            let HealthEvent {
                name, healthy, at, ..
            } = event.read()?;
            Some(escape(&format!(
                "{at} {name} {}",
                if healthy { "healthy" } else { "unhealthy" }
            )))
        }
        "disk_full" => {
            let DiskFullEvent { name, disk, at, .. } = event.read()?;
            let disk = match disk.as_str() {
                "overlay" => "system overlay",
                "work" => "work disk",
                other => other,
            };
            Some(escape(&format!(
                "{at} {name} disk full: no room on the host for its {disk}"
            )))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            name: "vm".into(),
            data: r#"{"id":"ab","name":"web","from":"running","to":"error","at":"2026-01-01T00:00:00Z","reason":"engine died\nx"}"#.into(),
        };
        assert_eq!(
            text(&event).unwrap(),
            "2026-01-01T00:00:00Z web running -> error (engine died\\x0ax)"
        );
        assert!(json(&event).unwrap().contains(r#""event":"vm""#));
        let event = Event {
            name: "disk_full".into(),
            data: r#"{"id":"ab","name":"web","disk":"work","at":"2026-01-01T00:00:00Z"}"#.into(),
        };
        assert_eq!(
            text(&event).unwrap(),
            "2026-01-01T00:00:00Z web disk full: no room on the host for its work disk"
        );
    }
}
