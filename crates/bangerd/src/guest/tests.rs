//! The channel's host end against an agent of a few lines over a real socket.

use std::convert::Infallible;
use std::time::Duration;

use banger_wire::agent::{Event, Exec};
use banger_wire::frames::{Channel, Control, Decoder, Frame};
use banger_wire::hello::{Answer, NONCE_LEN, TOKEN_LEN, VERSION};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the agent saw of its clients.
#[derive(Clone)]
struct Seen(mpsc::UnboundedSender<&'static str>);

/// A connection to an agent that answers as its arguments ask.
async fn connected() -> (
    Connection,
    mpsc::UnboundedReceiver<&'static str>,
    tokio::task::JoinSet<()>,
) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (tell, seen) = mpsc::unbounded_channel();
    let mut agent = tokio::task::JoinSet::new();
    agent.spawn(be_agent(theirs, Seen(tell)));
    (Connection::open(ours, [5; 32]).await.unwrap(), seen, agent)
}

async fn be_agent(mut line: UnixStream, seen: Seen) {
    let mut opening = [0; TOKEN_LEN + NONCE_LEN];
    line.read_exact(&mut opening).await.unwrap();
    let nonce = *opening.last_chunk().unwrap();
    line.write_all(
        &Answer {
            version: VERSION,
            boot_id: [1; 16],
            nonce,
        }
        .encode(),
    )
    .await
    .unwrap();
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size((1 << 31) - 1)
        .max_frame_size(64 << 10)
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(
            TokioIo::new(line),
            service_fn(move |request| answer(request, seen.clone())),
        )
        .await;
}

fn full(status: u16, bytes: impl Into<Bytes>) -> Reply {
    Response::builder()
        .status(status)
        .body(Full::new(bytes.into()).boxed_unsync())
        .unwrap()
}

async fn answer(request: Request<Incoming>, seen: Seen) -> Result<Reply, Infallible> {
    Ok(match request.uri().path() {
        "/ping" => full(
            200,
            r#"{"agent_version":"1","commands":3,"later":"unknown"}"#,
        ),
        "/health" => full(200, vec![b' '; banger_wire::agent::MAX_ANSWER + 1]),
        "/sync" => full(204, ""),
        "/stop" => full(409, "{\"error\":\"not booted \\u001b[31m yet\"}"),
        "/clock" => full(500, "<html>"),
        "/ended" => full(429, r#"{"error":"busy"}"#),
        "/boot" => full(200, "nonsense"),
        "/events" => full(
            200,
            "{\"type\":\"healthy\"}\nrubbish\n{\"type\":\"new\"}\n{\"type\":\"ended\",\"reason\":\"reboot\"}\n",
        ),
        _ => exec(request.into_body(), seen).await,
    })
}

/// Runs `cat`: or says a lot without being asked, or nothing.
async fn exec(mut body: Incoming, seen: Seen) -> Reply {
    let mut decoder = Decoder::new();
    let start = loop {
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        decoder.push(&data);
        if let Some(frame) = decoder.next_frame().unwrap() {
            break frame.control().unwrap();
        }
    };
    let Control::Start { exec } = start else {
        panic!("{start:?} is no start")
    };
    if exec.argv == ["refused"] {
        return full(409, r#"{"error":"the machine is not booted yet"}"#);
    }
    let (out, frames) = mpsc::channel::<Bytes>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(frames);
    let stream = tokio_stream::StreamExt::map(stream, |bytes| Ok(hyper::body::Frame::data(bytes)));
    // The agent's commands outlive the answer's head.
    let mut command = tokio::task::JoinSet::new();
    command.spawn(async move {
        if exec.argv == ["flood"] {
            while out
                .send(Frame::new(Channel::Stdout, vec![0; 60_000]).to_bytes())
                .await
                .is_ok()
            {}
        }
        loop {
            while let Some(frame) = decoder.next_frame().unwrap() {
                let reply = match frame.channel {
                    Channel::Stdin => Frame::new(Channel::Stdout, frame.payload),
                    _ => match frame.control().unwrap() {
                        Control::Eof => Control::Exit { exit_code: 7 }.frame(),
                        other => Control::Error {
                            error: format!("{other:?}"),
                            exit_code: None,
                        }
                        .frame(),
                    },
                };
                let _ = out.send(reply.to_bytes()).await;
            }
            match body.frame().await {
                Some(Ok(frame)) => decoder.push(&frame.into_data().unwrap()),
                Some(Err(_)) => {
                    let _ = seen.0.send("reset");
                    return;
                }
                None => {
                    let _ = seen.0.send("end");
                    return;
                }
            }
        }
    });
    command.detach_all();
    Response::new(StreamBody::new(stream).boxed_unsync())
}

fn argv(words: &[&str]) -> Exec {
    Exec {
        argv: words.iter().map(|&word| word.to_owned()).collect(),
        stdin: true,
        ..Exec::default()
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what)
        .await
        .expect("within half a minute")
}

#[tokio::test]
async fn answers_are_read_and_refusals_become_the_apis_codes() {
    let (guest, _seen, _agent) = connected().await;
    assert_eq!(guest.boot_id(), "01010101-0101-0101-0101-010101010101");
    assert_eq!(soon(guest.ping()).await.unwrap().commands, 3);
    soon(guest.sync()).await.unwrap();
    let stop = soon(guest.stop(&Stop { grace_ms: 1 })).await.unwrap_err();
    assert_eq!(
        (stop.code, stop.causes[0].as_str()),
        (Code::GuestFailed, "the agent refused: not booted  [31m yet")
    );
    assert_eq!(
        soon(guest.acknowledge_end()).await.unwrap_err().code,
        Code::TooMany
    );
    assert!(soon(guest.set_clock()).await.unwrap_err().causes[0].contains("500"));
    let exec = soon(guest.exec(argv(&["refused"])))
        .await
        .err()
        .expect("refused");
    assert_eq!(exec.code, Code::NotRunning);
}

#[tokio::test]
async fn an_answer_that_is_too_large_or_nonsense_ends_only_its_call() {
    let (guest, _seen, _agent) = connected().await;
    let large = soon(guest.health()).await.unwrap_err();
    assert!(
        large.code == Code::GuestFailed && large.causes[0].contains("larger than"),
        "{large:?}"
    );
    let mut events = soon(guest.events()).await.unwrap();
    assert_eq!(soon(events.next()).await, Some(Event::Healthy));
    assert_eq!(soon(events.next()).await, Some(Event::Unknown));
    assert!(matches!(soon(events.next()).await, Some(Event::Ended(_))));
    assert_eq!(soon(events.next()).await, None);
    soon(guest.ping()).await.expect("the connection lives");
}

#[tokio::test]
async fn a_hundred_megabytes_pass_through_a_command_unchanged() {
    let (guest, mut seen, _agent) = connected().await;
    let ExecStream { input, mut output } = soon(guest.exec(argv(&["cat"]))).await.unwrap();
    const PIECES: u32 = 1600;
    let piece = |n: u32| -> Bytes {
        (0..65_536u32)
            .map(|at| (at.wrapping_mul(n | 1) >> 7) as u8)
            .collect()
    };
    let write = async {
        for n in 0..PIECES {
            input
                .send(Frame::new(Channel::Stdin, piece(n)))
                .await
                .unwrap();
        }
        input.send(Control::Eof.frame()).await.unwrap();
        // Its reader still reads: letting go of the input loses nothing.
        drop(input);
    };
    let read = async {
        for n in 0..PIECES {
            let frame = output.recv().await.unwrap();
            assert!(
                frame.channel == Channel::Stdout && frame.payload == piece(n),
                "piece {n}"
            );
        }
        assert_eq!(
            output.recv().await.unwrap().control(),
            Ok(Control::Exit { exit_code: 7 })
        );
        assert_eq!(output.recv().await, None);
    };
    soon(async { tokio::join!(write, read) }).await;
    assert_eq!(
        soon(seen.recv()).await,
        Some("end"),
        "the agent saw an end, not a reset"
    );
    soon(async {
        while guest.users.available_permits() != (MAX_STREAMS - RESERVED_STREAMS) as usize {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_is_seen_by_the_agent() {
    let (guest, mut seen, _agent) = connected().await;
    let stream = soon(guest.exec(argv(&["cat"]))).await.unwrap();
    stream
        .input
        .send(Frame::new(Channel::Stdin, "x"))
        .await
        .unwrap();
    drop(stream);
    assert_eq!(soon(seen.recv()).await, Some("reset"));
    soon(guest.ping()).await.expect("nobody else is hurt");
}

#[tokio::test]
async fn streams_that_nobody_reads_stop_nobody_and_the_daemon_keeps_some_for_itself() {
    let (guest, _seen, _agent) = connected().await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(soon(guest.exec(argv(&["flood"]))).await.unwrap());
    }
    while streams.len() < (MAX_STREAMS - RESERVED_STREAMS) as usize {
        streams.push(soon(guest.exec(argv(&["cat"]))).await.unwrap());
    }
    let beyond = soon(guest.exec(argv(&["cat"])))
        .await
        .err()
        .expect("one too many");
    assert_eq!(beyond.code, Code::TooMany);
    assert_eq!(soon(guest.ping()).await.unwrap().commands, 3);
    let last = streams.last_mut().unwrap();
    last.input.send(Control::Eof.frame()).await.unwrap();
    assert_eq!(
        soon(last.output.recv()).await.unwrap().control(),
        Ok(Control::Exit { exit_code: 7 })
    );
}

#[tokio::test]
async fn a_broken_line_is_noticed_by_all_who_wait() {
    let (guest, _seen, mut agent) = connected().await;
    let mut stream = soon(guest.exec(argv(&["cat"]))).await.unwrap();
    agent.shutdown().await;
    soon(guest.lost()).await;
    assert_eq!(
        soon(stream.output.recv()).await,
        None,
        "no exit was ever said"
    );
    assert_eq!(
        soon(guest.ping()).await.unwrap_err().code,
        Code::GuestUnreachable
    );
}

#[tokio::test]
async fn a_connection_that_is_replaced_is_lost() {
    let (guest, _seen, mut agent) = connected().await;
    guest.closer().close();
    soon(guest.lost()).await;
    soon(async { while agent.join_next().await.is_some() {} }).await;
}
