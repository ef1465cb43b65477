//! `GET /vms/{vm}/logs`: where the console is, or its text, as it grows if
//! asked.
//!
//! Whoever follows waits for the file to change, never looks at it by the
//! clock, and is done when the VM is at rest.

use std::convert::Infallible;
use std::io::{self, Cursor, SeekFrom};
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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};
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

/// Tells the log, or its last lines, as it is at this moment; then, where it
/// is followed, what comes.
async fn tell(
    console: &Path,
    tail: Option<u64>,
    follow: Option<(EventFeed, String)>,
    pieces: &Pieces,
) -> io::Result<()> {
    // Watched before it is read, so that nothing falls between.
    let mut watch = follow.is_some().then(|| watch(console)).flatten();
    let (mut parts, from) = match look(console, tail).await {
        // Emptied while it was read: what it held is in the older one now.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => look(console, tail).await?,
        other => other?,
    };
    let mut at = parts.last().map_or(0, |console| console.end);
    for (index, part) in parts.iter_mut().enumerate().skip(from.0) {
        let begin = if index == from.0 { from.1 } else { 0 };
        part.tell(begin, pieces).await?;
    }
    drop(parts);
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

/// The parts of the log as they are now, and where the telling begins: in
/// which part, at which byte.
async fn look(console: &Path, tail: Option<u64>) -> io::Result<(Vec<Part>, (usize, u64))> {
    let mut parts = Vec::new();
    if let Some(directory) = console.parent() {
        parts.push(Part::engine(&directory.join(ENGINE_LOG)).await?);
    }
    parts.push(Part::file(&older(console)).await?);
    parts.push(Part::file(console).await?);
    let from = match tail {
        Some(lines) => last_lines(&mut parts, lines).await?,
        None => (0, 0),
    };
    Ok((parts, from))
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

/// Something that is read from where one likes.
trait Source: AsyncRead + AsyncSeek + Send + Unpin {}
impl<T: AsyncRead + AsyncSeek + Send + Unpin> Source for T {}

/// One of the texts that the log is made of, as long as it was when it was
/// looked at. The line that one ends within goes on in the next.
struct Part {
    source: Box<dyn Source>,
    end: u64,
}

impl Part {
    fn text(text: Vec<u8>) -> Self {
        Self {
            end: text.len() as u64,
            source: Box::new(Cursor::new(text)),
        }
    }

    /// A file; nothing where there is none.
    async fn file(path: &Path) -> io::Result<Self> {
        let Some(file) = open(path).await? else {
            return Ok(Self::text(Vec::new()));
        };
        Ok(Self {
            end: file.metadata().await?.len(),
            source: Box::new(file),
        })
    }

    /// The engine's last words, marked as its own.
    async fn engine(path: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        if let Some(mut file) = open(path).await? {
            let length = file.metadata().await?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(ENGINE_SHOWN)))
                .await?;
            file.take(ENGINE_SHOWN).read_to_end(&mut text).await?;
        }
        let marked: String = String::from_utf8_lossy(&text)
            .lines()
            .map(|line| format!("engine: {line}\n"))
            .collect();
        Ok(Self::text(marked.into_bytes()))
    }

    async fn tell(&mut self, from: u64, pieces: &Pieces) -> io::Result<()> {
        self.source.seek(SeekFrom::Start(from)).await?;
        let mut left = self.end.saturating_sub(from);
        while left > 0 {
            let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
            let count = self.source.read(&mut piece).await?;
            if count == 0 {
                break;
            }
            piece.truncate(count);
            left -= count as u64;
            send(pieces, piece).await?;
        }
        Ok(())
    }
}

/// Where the last lines of the whole begin. A line that is still being written
/// is one, unless all there is of it is a carriage return.
async fn last_lines(parts: &mut [Part], lines: u64) -> io::Result<(usize, u64)> {
    let mut left = lines;
    if left == 0 {
        return Ok((parts.len(), 0));
    }
    // Within a line, its end included.
    let mut inside = false;
    let mut piece = vec![0; PIECE];
    for (number, part) in parts.iter_mut().enumerate().rev() {
        let mut at = part.end;
        while at > 0 {
            let start = at.saturating_sub(PIECE as u64);
            let length = usize::try_from(at - start).unwrap_or(PIECE);
            part.source.seek(SeekFrom::Start(start)).await?;
            part.source.read_exact(&mut piece[..length]).await?;
            for (index, byte) in piece[..length].iter().enumerate().rev() {
                match byte {
                    b'\n' if inside => {
                        left -= 1;
                        if left == 0 {
                            return Ok((number, start + index as u64 + 1));
                        }
                    }
                    b'\r' => {}
                    _ => inside = true,
                }
            }
            at = start;
        }
    }
    Ok((0, 0))
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
    async fn a_line_that_is_being_written_counts_as_soon_as_something_is_in_it() {
        let place = tempfile::tempdir().unwrap();
        let console = place.path().join("console.log");
        for (text, last_two) in [
            ("a\r\nb\r\nc\r\n", "b\r\nc\r\n"),
            ("a\r\nb\r\nc\r\n\r", "b\r\nc\r\n\r"),
            ("a\r\nb\r\nc\r", "b\r\nc\r"),
            ("a\r\nb\r\nc\r\nd", "c\r\nd"),
            ("a\r\nb\r\n\r\n", "b\r\n\r\n"),
            ("a\nb\n\n\n", "\n\n"),
            ("\r\n", "\r\n"),
            ("\r", "\r"),
        ] {
            std::fs::write(&console, text).unwrap();
            assert_eq!(told(&console, Some(2)).await, last_two, "{text:?}");
        }
    }

    #[tokio::test]
    async fn what_is_written_while_the_last_lines_are_told_is_not_among_them() {
        let mut parts = [Part::text(b"a\nb\nc\nlater\n".to_vec())];
        parts[0].end = 6;
        assert_eq!(last_lines(&mut parts, 2).await.unwrap(), (0, 2));
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(4);
        parts[0].tell(2, &pieces).await.unwrap();
        assert_eq!(waiting.recv().await.unwrap(), "b\nc\n");
    }

    #[tokio::test]
    async fn the_last_lines_go_back_into_the_older_console_and_the_engines_log() {
        let place = tempfile::tempdir().unwrap();
        let console = place.path().join("console.log");
        std::fs::create_dir(place.path().join("run")).unwrap();
        std::fs::write(place.path().join(ENGINE_LOG), "warning\n").unwrap();
        // Emptied in the middle of a line.
        std::fs::write(older(&console), "first\nsec").unwrap();
        std::fs::write(&console, "ond\nthird\n").unwrap();
        let all = "engine: warning\nfirst\nsecond\nthird\n";
        let lines: Vec<&str> = all.split_inclusive('\n').collect();
        for count in 0..=5 {
            let last = lines[lines.len() - count.min(4)..].concat();
            assert_eq!(told(&console, Some(count as u64)).await, last, "{count}");
        }
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
        assert_eq!(told(&console, Some(1)).await, "second\n");
    }
}
