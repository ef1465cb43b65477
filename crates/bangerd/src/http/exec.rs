//! `POST /vms/{vm}/exec`: a connection that becomes a stream of frames.
//!
//! ```text
//! client ── stdin, eof, resize, signal ──► feed ──► guest
//! client ◄─────────── stdout, stderr, exit ── drain ◄── guest
//! ```
//!
//! Both directions hold what they cannot pass on, so who does not read stops
//! who writes. A client that closes either direction has left; the command is
//! hung up. Refuses from a client every frame that is not a client's to send.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use banger_api::UPGRADE;
use banger_api::endpoint::{EXEC, Method};
use banger_api::error::Code;
use banger_api::vm::ExecParams;
use banger_wire::frames::{Channel, Control, Decoder, Frame};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONNECTION, HeaderValue, UPGRADE as UPGRADE_HEADER};
use http::{Request, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::routes::{Call, Routes, read_body};
use crate::daemon::App;
use crate::failure::Failure;
use crate::ports::ExecStream;
use crate::vm::Exec;

/// Bytes moved at once.
const PIECE: usize = 64 << 10;
/// For a client to close its side after the last frame.
const GOODBYE: Duration = Duration::from_secs(10);

pub(super) fn add(routes: Routes) -> Routes {
    routes.raw(Method::Post, EXEC, &[], exec)
}

async fn exec(app: Arc<App>, call: Call<Request<Body>>) -> Result<Response, Failure> {
    let vm = call.reference().to_owned();
    let mut request = call.body;
    let asked = request.headers().get(UPGRADE_HEADER);
    let upgrades =
        asked.is_some_and(|token| token.as_bytes().eq_ignore_ascii_case(UPGRADE.as_bytes()));
    let (true, Some(upgrade)) = (upgrades, request.extensions_mut().remove::<OnUpgrade>()) else {
        return Err(Failure::new(
            Code::BadRequest,
            format!("a command needs a connection that is upgraded to {UPGRADE}"),
        ));
    };
    let params: ExecParams = read_body(request.into_body()).await?;
    let main = params.main;
    let exec = app.vms.exec(&vm, params).await?;
    let closing = app.closing.clone();
    app.streams.spawn(async move {
        let carried = async {
            if let Some((stream, early)) = opened(upgrade).await {
                carry(&stream, early, exec, main).await;
            }
        };
        tokio::select! {
            () = carried => {}
            () = closing.cancelled() => {}
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE_HEADER, HeaderValue::from_static(UPGRADE));
    Ok(response)
}

/// The bare socket, and what the client sent ahead.
async fn opened(upgrade: OnUpgrade) -> Option<(UnixStream, Bytes)> {
    let upgraded: Upgraded = upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<UnixStream>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// Carries frames both ways until the command is over or the client left.
async fn carry(stream: &UnixStream, early: Bytes, exec: Exec, main: bool) {
    let Exec {
        stream: frames,
        hold,
    } = exec;
    match pass(stream, early, frames).await {
        Over::ClientLeft => return,
        Over::Ended => {}
        Over::Lost => {
            let error = match hold.stopped().now_or_never() {
                Some(_) => "not_running: the VM stopped",
                None => "guest_unreachable: the connection to the guest was lost",
            };
            let last = Control::Error {
                error: error.to_owned(),
                exit_code: Some(125),
            };
            if write_all(stream, &last.frame().to_bytes()).await.is_err() {
                return;
            }
        }
    }
    hold.ended();
    if main {
        // The client copies files out before it lets go; then the VM may be
        // one that goes with it, and our side closes when it is gone.
        client_closed(stream).await;
        hold.gone().await;
    } else {
        let _ = shutdown_write(stream);
        // Closing with unread input would look to the client like a reset.
        let _ = tokio::time::timeout(GOODBYE, client_closed(stream)).await;
    }
}

/// Passes frames both ways until one side is over.
async fn pass(stream: &UnixStream, early: Bytes, frames: ExecStream) -> Over {
    tokio::select! {
        over = drain(stream, frames.output) => over,
        error = feed(stream, early, frames.input) => {
            tracing::debug!(%error, "a command's client broke the stream");
            Over::ClientLeft
        }
        // Also while the command takes no input, so that what the client
        // sent before it left does not hide that.
        _ = stream.ready(Interest::PRIORITY) => Over::ClientLeft,
    }
}

/// Why frames no longer flow.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    /// The last frame was passed on.
    Ended,
    /// The guest broke off without one.
    Lost,
    /// Nobody reads.
    ClientLeft,
}

/// Frames of the command to the client, the last one included.
async fn drain(stream: &UnixStream, mut output: mpsc::Receiver<Frame>) -> Over {
    let mut bytes = BytesMut::with_capacity(PIECE);
    while let Some(frame) = output.recv().await {
        let mut last = is_last(&frame);
        frame.encode(&mut bytes);
        // What is ready goes out in one write.
        while !last && bytes.len() < PIECE {
            let Ok(next) = output.try_recv() else { break };
            last = is_last(&next);
            next.encode(&mut bytes);
        }
        if write_all(stream, &bytes).await.is_err() {
            return Over::ClientLeft;
        }
        bytes.clear();
        if last {
            return Over::Ended;
        }
    }
    Over::Lost
}

fn is_last(frame: &Frame) -> bool {
    frame.channel == Channel::Control
        && matches!(
            frame.control(),
            Ok(Control::Exit { .. } | Control::Error { .. })
        )
}

/// Frames of the client to the command; returns why that ended.
async fn feed(stream: &UnixStream, early: Bytes, input: mpsc::Sender<Frame>) -> io::Error {
    let mut decoder = Decoder::new();
    decoder.push(&early);
    let mut piece = vec![0; PIECE];
    loop {
        loop {
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return io::Error::other(error),
            };
            match from_client(&frame) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(why) => return io::Error::other(why),
            }
            // A command that takes no more input may still have output.
            let _ = input.send(frame).await;
        }
        match read(stream, &mut piece).await {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(count) => decoder.push(&piece[..count]),
            Err(error) => return error,
        }
    }
}

/// Whether a client's frame goes to the guest; one of unknown type does not.
fn from_client(frame: &Frame) -> Result<bool, &'static str> {
    match frame.channel {
        Channel::Stdin => Ok(true),
        Channel::Stdout | Channel::Stderr => Err("a client sends no output"),
        Channel::Control => match frame.control() {
            Ok(Control::Eof | Control::Resize { .. } | Control::Signal { .. }) => Ok(true),
            // The first frame of an exec is ours to send.
            Ok(Control::Start { .. }) => Err("a client starts nothing in a stream"),
            Ok(_) => Ok(false),
            Err(_) => Err("a control frame is no message"),
        },
    }
}

/// Returns when the client closed its direction; what it still sends is
/// thrown away.
async fn client_closed(stream: &UnixStream) {
    let mut piece = vec![0; 4096];
    while matches!(read(stream, &mut piece).await, Ok(count) if count > 0) {}
}

fn shutdown_write(stream: &UnixStream) -> io::Result<()> {
    Ok(rustix::net::shutdown(stream, rustix::net::Shutdown::Write)?)
}

async fn read(stream: &UnixStream, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(piece) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client, and the guest's ends of what is passed on for it.
    struct Passing {
        client: UnixStream,
        input: mpsc::Receiver<Frame>,
        output: mpsc::Sender<Frame>,
        over: tokio::task::JoinSet<Over>,
    }

    fn passing() -> Passing {
        let (client, ours) = UnixStream::pair().unwrap();
        let (to_guest, input) = mpsc::channel(1);
        let (output, from_guest) = mpsc::channel(1);
        let frames = ExecStream {
            input: to_guest,
            output: from_guest,
        };
        let mut over = tokio::task::JoinSet::new();
        over.spawn(async move { pass(&ours, Bytes::new(), frames).await });
        Passing {
            client,
            input,
            output,
            over,
        }
    }

    impl Passing {
        async fn over(&mut self) -> Over {
            let limit = Duration::from_secs(10);
            tokio::time::timeout(limit, self.over.join_next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
        }
    }

    #[tokio::test]
    async fn frames_pass_both_ways_until_the_exit_and_no_further() {
        let mut all = passing();
        let hello = Frame::new(Channel::Stdin, "hello");
        write_all(&all.client, &hello.to_bytes()).await.unwrap();
        assert_eq!(all.input.recv().await, Some(hello));
        all.output
            .send(Frame::new(Channel::Stdout, "out"))
            .await
            .unwrap();
        let exit = Control::Exit { exit_code: 3 }.frame();
        all.output.send(exit.clone()).await.unwrap();
        assert_eq!(all.over().await, Over::Ended);
        let mut decoder = Decoder::new();
        let mut piece = [0; 256];
        let count = read(&all.client, &mut piece).await.unwrap();
        decoder.push(&piece[..count]);
        let mut frames = Vec::new();
        loop {
            while let Some(frame) = decoder.next_frame().unwrap() {
                frames.push(frame);
            }
            match read(&all.client, &mut piece).await.unwrap() {
                0 => break,
                count => decoder.push(&piece[..count]),
            }
        }
        assert_eq!(frames, [Frame::new(Channel::Stdout, "out"), exit]);
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_behind_input_nobody_takes() {
        let mut all = passing();
        // One waits in the queue, one with the sender, the rest in the socket.
        for _ in 0..4 {
            let frame = Frame::new(Channel::Stdin, vec![0; 1000]);
            write_all(&all.client, &frame.to_bytes()).await.unwrap();
        }
        drop(all.client);
        let limit = Duration::from_secs(10);
        let over = tokio::time::timeout(limit, all.over.join_next())
            .await
            .unwrap();
        assert_eq!(over.unwrap().unwrap(), Over::ClientLeft);
    }

    #[tokio::test]
    async fn a_client_may_not_start_commands_or_speak_for_the_guest() {
        let start = Control::Start {
            exec: Box::default(),
        }
        .frame();
        for frame in [
            start,
            Frame::new(Channel::Stdout, "x"),
            Frame::new(Channel::Control, "x"),
        ] {
            let mut all = passing();
            write_all(&all.client, &frame.to_bytes()).await.unwrap();
            assert_eq!(all.over().await, Over::ClientLeft, "{frame:?}");
            assert_eq!(all.input.recv().await, None);
        }
    }

    #[tokio::test]
    async fn a_reader_that_stops_stops_the_writer() {
        let all = passing();
        let output = all.output.clone();
        let mut sent = 0;
        let frame = Frame::new(Channel::Stdout, vec![0; 100_000]);
        // A bound far below what would be sent without back-pressure.
        while sent < 1000 {
            let send = output.send(frame.clone());
            if tokio::time::timeout(Duration::from_millis(300), send)
                .await
                .is_err()
            {
                break;
            }
            sent += 1;
        }
        assert!(
            sent < 100,
            "{sent} frames of 100 kB were taken without a reader"
        );
    }

    #[tokio::test]
    async fn a_guest_that_breaks_off_is_told_from_one_that_ends() {
        let mut all = passing();
        drop(all.output);
        let limit = Duration::from_secs(10);
        let over = tokio::time::timeout(limit, all.over.join_next())
            .await
            .unwrap();
        assert_eq!(over.unwrap().unwrap(), Over::Lost);
        assert_eq!(all.input.recv().await, None);
    }
}
