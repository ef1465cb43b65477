//! `daemon`: the daemon itself. Only `restart` may start one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::Empty;
use banger_api::endpoint::{Ping, System};
use banger_api::error::Code;
use banger_api::system::PingResult;
use clap::{Args, Subcommand};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::client::At;
use crate::client::start::{self, Place};
use crate::failure::Failure;
use crate::interrupt::interruptible;
use crate::show::table::facts;
use crate::{paths, show};

/// What `logs` shows without `-n`, bytes from the end.
const TAIL: u64 = 1 << 20;
/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What one does with the daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Status(Status),
    Stop(Stop),
    Restart(Restart),
    Logs(Logs),
}

/// Show the daemon; exit 5 where none runs
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print the API's answer to ping
    #[arg(long)]
    json: bool,
}

/// End the daemon; VMs run on
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Stop the VMs first
    #[arg(long)]
    with_vms: bool,
}

/// End the daemon and start it anew; VMs run on
#[derive(Debug, Args)]
pub(crate) struct Restart {}

/// Print the daemon's log
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        match self {
            Self::Status(args) => args.run(place).await,
            Self::Stop(args) => args.run(place).await,
            Self::Restart(Restart {}) => restart(place).await,
            Self::Logs(args) => interruptible(args.run(place)).await,
        }
    }
}

fn not_running(place: &Place) -> Failure {
    let socket = place
        .socket()
        .map(|socket| socket.display().to_string())
        .unwrap_or_default();
    Failure::new(
        Code::DaemonUnreachable,
        format!("no bangerd listens at {socket}"),
    )
    .hint("banger list starts one")
}

impl Status {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let Some(client) = place.look().await? else {
            return Err(not_running(place));
        };
        let body = client.body::<Ping>(At::default(), &Empty {}).await?;
        if self.json {
            return super::print_body(&body);
        }
        let ping: PingResult = super::read(&body)?;
        let system = client.get::<System>(At::default()).await?;
        let engine = match (&system.engine, &system.acceleration) {
            (Some(engine), Some(acceleration)) => {
                format!("{engine} with {acceleration} ({})", system.engine_reason)
            }
            (Some(engine), None) => format!("{engine} ({})", system.engine_reason),
            (None, _) => format!("none ({})", system.engine_reason),
        };
        super::print_text(&facts(&[
            ("status", ping.status),
            ("pid", ping.pid.to_string()),
            ("version", ping.version.unwrap_or_default()),
            ("commit", ping.commit.unwrap_or_default()),
            ("built", ping.built_at.unwrap_or_default()),
            ("idle", if ping.idle { "yes" } else { "no" }.to_owned()),
            ("socket", client.socket().display().to_string()),
            ("log", system.log_path),
            ("state", system.state_dir),
            ("cache", system.cache_dir),
            ("engine", engine),
        ]))
    }
}

impl Stop {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        match place.look().await? {
            Some(client) => {
                start::end(&client, self.with_vms).await?;
            }
            None => show::note("no bangerd runs"),
        }
        Ok(0)
    }
}

async fn restart(place: &Place) -> Result<u8, Failure> {
    if let Some(client) = place.look().await? {
        start::end(&client, false).await?;
    }
    place.reach().await?;
    Ok(0)
}

impl Logs {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let path = match place.look().await? {
            Some(client) => match client.get::<System>(At::default()).await {
                Ok(system) => PathBuf::from(system.log_path),
                Err(_) => paths::daemon_log()?,
            },
            None => paths::daemon_log()?,
        };
        self.print(&path).await
    }

    async fn print(&self, path: &Path) -> Result<u8, Failure> {
        let cannot = |error: std::io::Error| {
            let code = match error.kind() {
                std::io::ErrorKind::NotFound => Code::NotFound,
                _ => Code::Internal,
            };
            Failure::new(code, format!("cannot read {}", path.display())).because(&error)
        };
        let mut file = tokio::fs::File::open(path).await.map_err(cannot)?;
        let length = file.metadata().await.map_err(cannot)?.len();
        file.seek(std::io::SeekFrom::Start(length.saturating_sub(TAIL)))
            .await
            .map_err(cannot)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).await.map_err(cannot)?;
        show::write(last_lines(&text, self.tail, length > TAIL))?;
        if !self.follow {
            return Ok(0);
        }
        loop {
            text.clear();
            file.read_to_end(&mut text).await.map_err(cannot)?;
            show::write_aside(text.clone()).await?;
            tokio::time::sleep(LOOK).await;
            let now = tokio::fs::metadata(path)
                .await
                .map_or(0, |metadata| metadata.len());
            if now < file.stream_position().await.map_err(cannot)? {
                // It was turned over: the rest of the old one, then the new.
                text.clear();
                file.read_to_end(&mut text).await.map_err(cannot)?;
                show::write(&text)?;
                file = tokio::fs::File::open(path).await.map_err(cannot)?;
            }
        }
    }
}

/// The last `lines` lines, or all whole ones where the beginning was cut.
fn last_lines(text: &[u8], lines: Option<usize>, cut: bool) -> &[u8] {
    let text = if cut {
        let begin = text
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        &text[begin..]
    } else {
        text
    };
    let Some(lines) = lines else { return text };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if lines == 0 || body.is_empty() {
        return &[];
    }
    let ends = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    let begin = ends.map(|(index, _)| index + 1).nth(lines - 1).unwrap_or(0);
    &text[begin..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole_lines() {
        let text = b"rest\none\ntwo\nthree\n";
        assert_eq!(last_lines(text, Some(2), false), b"two\nthree\n");
        assert_eq!(last_lines(text, None, true), b"one\ntwo\nthree\n");
        assert_eq!(last_lines(text, Some(9), false), text);
        assert_eq!(last_lines(text, Some(0), false), b"");
        assert_eq!(last_lines(b"", Some(3), false), b"");
    }
}
