//! `GET /vms/{vm}/logs`: where the console is, or its text, as it grows if
//! asked.
//!
//! Whoever follows waits for the file to change, never looks at it by the
//! clock, and is done when the VM is at rest.

use std::convert::Infallible;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use banger_api::endpoint::{Endpoint, Method, VmLogs};
use banger_api::vm::{State, VmLogsResult};
use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http::header::{CONTENT_TYPE, HeaderValue};
use rustix::fs::inotify::WatchFlags;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::reply;
use super::routes::{Call, Routes};
use super::watch::Watch;
use crate::daemon::App;
use crate::failure::Failure;
use crate::vm::{Event, EventFeed};

/// Bytes read at once.
const PIECE: usize = 64 << 10;
/// Pieces that may wait for a slow client.
const PIECES: usize = 2;
/// The engine's own log, beside the sockets of a run.
const ENGINE_LOG: &str = "run/engine.log";
/// Shown of it, bytes.
const ENGINE_SHOWN: u64 = 64 << 10;

pub(super) fn add(routes: Routes) -> Routes {
    routes.raw(
        Method::Get,
        VmLogs::PATH,
        &["content", "tail", "follow"],
        logs,
    )
}

async fn logs(app: Arc<App>, call: Call<Request<Body>>) -> Result<Response, Failure> {
    let follow = call.query.flag("follow")?;
    let tail = call.query.parsed::<u64>("tail", "a number of lines")?;
    let content = call.query.flag("content")? || follow || tail.is_some();
    let console = app.vms.logs_path(call.reference()).await?;
    if !content {
        let result = VmLogsResult {
            log_path: console.display().to_string(),
        };
        return Ok(reply::json(VmLogs::STATUS, &result));
    }
    // Before the state is read: no change of it is missed.
    let feed = app.vms.events(None);
    let vm = app.vms.show(call.reference()).await?;
    let follow = (follow && is_live(vm.state)).then_some((feed, vm.id));
    let (pieces, mut waiting) = mpsc::channel(PIECES);
    let closing = app.closing.clone();
    app.streams.spawn(async move {
        let told = async {
            if let Err(error) = tell(&console, tail, follow, &pieces).await {
                tracing::debug!(%error, "reading a console ended");
            }
        };
        tokio::select! {
            () = told => {}
            () = pieces.closed() => {}
            () = closing.cancelled() => {}
        }
    });
    let text = stream::poll_fn(move |context| {
        waiting
            .poll_recv(context)
            .map(|piece| piece.map(Ok::<Bytes, Infallible>))
    });
    let mut response = Response::new(Body::from_stream(text));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    Ok(response)
}

fn is_live(state: State) -> bool {
    match state {
        State::Starting | State::Running | State::Paused | State::Stopping => true,
        State::Created | State::Stopped | State::Error => false,
    }
}

type Pieces = mpsc::Sender<Bytes>;

/// A client that left takes no more; that ends the telling.
async fn send(pieces: &Pieces, bytes: impl Into<Bytes>) -> io::Result<()> {
    pieces
        .send(bytes.into())
        .await
        .map_err(|_| io::ErrorKind::BrokenPipe.into())
}

async fn tell(
    console: &Path,
    tail: Option<u64>,
    follow: Option<(EventFeed, String)>,
    pieces: &Pieces,
) -> io::Result<()> {
    if let Some(directory) = console.parent() {
        tell_engine(&directory.join(ENGINE_LOG), pieces).await?;
    }
    if tail.is_none() {
        tell_from(&older(console), 0, pieces).await?;
    }
    let from = match tail {
        Some(lines) => last_lines(console, lines).await?,
        None => 0,
    };
    // Watched before it is read, so that nothing falls between.
    let mut watch = follow.is_some().then(|| watch(console)).flatten();
    let mut at = tell_from(console, from, pieces).await?;
    let Some((mut feed, id)) = follow else {
        return Ok(());
    };
    loop {
        let changed = async {
            match &mut watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let over = tokio::select! {
            () = changed => false,
            over = at_rest(&mut feed, &id) => over,
        };
        if watch.is_none() {
            watch = self::watch(console);
        }
        at = tell_from(console, at, pieces).await?;
        if over {
            return Ok(());
        }
    }
}

fn watch(console: &Path) -> Option<Watch> {
    Watch::new(console, WatchFlags::MODIFY).ok()
}

/// The next change of this VM's state: whether it is at rest now.
async fn at_rest(feed: &mut EventFeed, id: &str) -> bool {
    loop {
        if let Event::Vm(event) = feed.next().await
            && event.id == id
        {
            return event.to.is_none_or(|state| !is_live(state));
        }
    }
}

/// The engine's last words, marked as its own.
async fn tell_engine(path: &Path, pieces: &Pieces) -> io::Result<()> {
    let Some(mut file) = open(path).await? else {
        return Ok(());
    };
    let length = file.metadata().await?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENGINE_SHOWN)))
        .await?;
    let mut text = Vec::new();
    file.take(ENGINE_SHOWN).read_to_end(&mut text).await?;
    let marked: String = String::from_utf8_lossy(&text)
        .lines()
        .map(|line| format!("engine: {line}\n"))
        .collect();
    if marked.is_empty() {
        Ok(())
    } else {
        send(pieces, marked).await
    }
}

/// Tells a file from this byte on to its present end, and where that is. One
/// that became shorter was emptied: it is told from its start.
async fn tell_from(path: &Path, from: u64, pieces: &Pieces) -> io::Result<u64> {
    let Some(mut file) = open(path).await? else {
        return Ok(0);
    };
    let end = file.metadata().await?.len();
    let mut at = if from > end { 0 } else { from };
    file.seek(SeekFrom::Start(at)).await?;
    while at < end {
        let mut piece = vec![0; PIECE.min(usize::try_from(end - at).unwrap_or(PIECE))];
        let count = file.read(&mut piece).await?;
        if count == 0 {
            break;
        }
        piece.truncate(count);
        at += count as u64;
        send(pieces, piece).await?;
    }
    Ok(at)
}

async fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the last lines of a file begin.
async fn last_lines(path: &Path, lines: u64) -> io::Result<u64> {
    let Some(mut file) = open(path).await? else {
        return Ok(0);
    };
    let end = file.metadata().await?.len();
    let (mut at, mut left) = (end, lines);
    let mut piece = vec![0; PIECE];
    if lines == 0 {
        return Ok(end);
    }
    while at > 0 {
        let start = at.saturating_sub(PIECE as u64);
        let length = usize::try_from(at - start).unwrap_or(PIECE);
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut piece[..length]).await?;
        for (index, byte) in piece[..length].iter().enumerate().rev() {
            let after = start + index as u64 + 1;
            // The break that ends the last line begins no line.
            if *byte == b'\n' && after < end {
                left -= 1;
                if left == 0 {
                    return Ok(after);
                }
            }
        }
        at = start;
    }
    Ok(0)
}

fn older(console: &Path) -> PathBuf {
    let mut name = console.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(console: &Path, tail: Option<u64>) -> String {
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(1);
        let read = async {
            let mut text = Vec::new();
            while let Some(piece) = waiting.recv().await {
                text.extend_from_slice(&piece);
            }
            String::from_utf8(text).unwrap()
        };
        let tell = async {
            tell(console, tail, None, &pieces).await.unwrap();
            drop(pieces);
        };
        tokio::join!(tell, read).1
    }

    #[tokio::test]
    async fn the_last_lines_are_found_whatever_the_end_looks_like() {
        let place = tempfile::tempdir().unwrap();
        let console = place.path().join("console.log");
        assert_eq!(told(&console, Some(2)).await, "");
        std::fs::write(&console, "a\nb\nc\n").unwrap();
        assert_eq!(told(&console, Some(2)).await, "b\nc\n");
        assert_eq!(told(&console, Some(0)).await, "");
        assert_eq!(told(&console, Some(9)).await, "a\nb\nc\n");
        std::fs::write(&console, "a\nb\nc").unwrap();
        assert_eq!(told(&console, Some(2)).await, "b\nc");
        let long = format!("{}\n{}\nend\n", "x".repeat(PIECE), "y".repeat(2 * PIECE));
        std::fs::write(&console, &long).unwrap();
        assert_eq!(told(&console, Some(2)).await, long[PIECE + 1..]);
    }

    #[tokio::test]
    async fn the_whole_log_begins_with_the_engine_and_the_older_console() {
        let place = tempfile::tempdir().unwrap();
        let console = place.path().join("console.log");
        std::fs::create_dir(place.path().join("run")).unwrap();
        std::fs::write(place.path().join(ENGINE_LOG), "warning\n").unwrap();
        std::fs::write(older(&console), "first\n").unwrap();
        std::fs::write(&console, "second\n").unwrap();
        assert_eq!(
            told(&console, None).await,
            "engine: warning\nfirst\nsecond\n"
        );
        assert_eq!(told(&console, Some(5)).await, "engine: warning\nsecond\n");
    }
}
