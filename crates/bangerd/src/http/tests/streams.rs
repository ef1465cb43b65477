//! Events, logs and upgraded connections.

use banger_wire::frames::{Channel, Control, Decoder, Frame};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{AGES, House, request};

/// An event of a stream: id, name, data.
type Event = (Option<u64>, String, Value);

struct Events {
    body: Incoming,
    text: String,
}

impl Events {
    async fn open(house: &House, path: &str, last: Option<u64>) -> Self {
        let mut asked = request("GET", path, "");
        if let Some(last) = last {
            asked.headers_mut().insert("last-event-id", last.into());
        }
        let response = house.send(asked).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            text: String::new(),
        }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((one, rest)) = self.text.split_once("\n\n") {
                let event = parse(one);
                self.text = rest.to_owned();
                if let Some(event) = event {
                    return Some(event);
                }
                continue;
            }
            let frame = tokio::time::timeout(AGES, self.body.frame())
                .await
                .unwrap()?;
            self.text += std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap();
        }
    }

    async fn rest(mut self) -> Vec<Event> {
        // Comments keep a stream alive, so the whole of it has a limit too.
        let all = async {
            let mut all = Vec::new();
            while let Some(event) = self.next().await {
                all.push(event);
            }
            all
        };
        tokio::time::timeout(AGES, all).await.unwrap()
    }
}

fn parse(text: &str) -> Option<Event> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(": ")
                .map(str::to_owned)
        })
    };
    let id = field("id").map(|id| id.parse().unwrap());
    Some((
        id,
        field("event")?,
        serde_json::from_str(&field("data")?).unwrap(),
    ))
}

#[tokio::test]
async fn an_operation_tells_its_past_goes_on_and_ends() {
    let house = House::new().await;
    house.world.turn(|knobs| knobs.hello_hangs = true);
    let begun = house
        .ask("POST", "/v1/vms", "{\"name\":\"box\"}")
        .await
        .json();
    let path = format!(
        "/v1/operations/{}/events",
        begun["operation"]["id"].as_str().unwrap()
    );
    let mut events = Events::open(&house, &path, None).await;
    let first = events.next().await.unwrap();
    assert_eq!(first.1, "stage");
    house.world.turn(|knobs| knobs.hello_hangs = false);
    let rest = events.rest().await;
    let (last_id, last, data) = rest.last().unwrap();
    assert_eq!(last, "done");
    assert_eq!(data["operation"]["success"], true, "{data}");
    assert_eq!(data["operation"]["vm"]["name"], "box");
    let stages: Vec<&str> = rest
        .iter()
        .filter_map(|event| event.2["stage"].as_str())
        .collect();
    assert!(stages.contains(&"ready"), "{stages:?}");

    // Whoever comes back hears only what is new.
    let again = Events::open(&house, &path, *last_id).await.rest().await;
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!(again[0].1, "done");
}

#[tokio::test]
async fn a_note_is_for_the_first_who_watches_and_for_nobody_else() {
    let house = House::new().await;
    let mut told = Vec::new();
    for name in ["one", "two"] {
        house.world.turn(|knobs| knobs.hello_hangs = true);
        let body = format!("{{\"name\":\"{name}\"}}");
        let begun = house.ask("POST", "/v1/vms", &body).await.json();
        let id = begun["operation"]["id"].as_str().unwrap().to_owned();
        for query in ["", "?watched=true", "?watched=true"] {
            let path = format!("/v1/operations/{id}/events{query}");
            let mut events = Events::open(&house, &path, None).await;
            loop {
                let (_, kind, data) = events.next().await.unwrap();
                if kind == "log" {
                    told.push((name, query, data["line"].clone()));
                }
                // The engine has been launched by then.
                if data["stage"] == "boot_kernel" {
                    break;
                }
            }
        }
        house.world.turn(|knobs| knobs.hello_hangs = false);
        let done = house.get(&format!("/v1/operations/{id}?wait=30s")).await;
        assert_eq!(done["operation"]["success"], true, "{done}");
    }
    let note = "note: no usable KVM (as told); emulating, 5 to 20 times slower";
    assert_eq!(told, [("one", "?watched=true", note.into())]);
}

#[tokio::test]
async fn a_full_disk_of_the_host_is_an_event() {
    let house = House::new().await;
    let vm = house.running("box").await;
    let mut events = Events::open(&house, "/v1/events?vm=box", None).await;
    let id = vm["id"].as_str().unwrap();
    house.world.engine(id).fill_disk("work");
    loop {
        let (_, kind, data) = events.next().await.unwrap();
        if kind == "health" {
            continue;
        }
        assert_eq!(kind, "disk_full");
        assert_eq!(
            (&data["id"], &data["name"], &data["disk"]),
            (&vm["id"], &"box".into(), &"work".into())
        );
        assert!(data["at"].is_string());
        break;
    }
}

#[tokio::test]
async fn changes_of_vms_are_told_to_who_asked_for_them() {
    let house = House::new().await;
    house.running("one").await;
    house.running("two").await;
    let mut all = Events::open(&house, "/v1/events", None).await;
    let mut one = Events::open(&house, "/v1/events?vm=one", None).await;
    house.ask("POST", "/v1/vms/two/kill?wait=30s", "").await;
    house.ask("POST", "/v1/vms/one/kill?wait=30s", "").await;
    assert_eq!(all.next().await.unwrap().2["name"], "two");
    let (_, kind, data) = one.next().await.unwrap();
    assert_eq!((kind.as_str(), data["name"].as_str()), ("vm", Some("one")));
    let refused = house.ask("GET", "/v1/events?vm=three", "").await;
    assert_eq!(refused.code(), "not_found");

    // The past, for who asks for it.
    let mut past = Events::open(&house, "/v1/events?since=2020-01-01T00:00:00Z&vm=one", None).await;
    assert_eq!(past.next().await.unwrap().2["name"], "one");
}

#[tokio::test]
async fn streams_end_with_the_daemon() {
    let mut house = House::new().await;
    let events = Events::open(&house, "/v1/events", None).await;
    house.ask("POST", "/v1/system/shutdown", "{}").await;
    assert_eq!(events.rest().await, []);
    tokio::time::timeout(AGES, house.daemon.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_console_is_followed_until_its_vm_rests() {
    let house = House::new().await;
    let vm = house.running("box").await;
    let console = vm["runtime"]["log_path"].as_str().unwrap().to_owned();
    let shown = house.get("/v1/vms/box/logs").await;
    assert_eq!(shown["log_path"], console.as_str());
    std::fs::create_dir_all(std::path::Path::new(&console).parent().unwrap()).unwrap();
    std::fs::write(&console, "one\ntwo\n").unwrap();
    let text = house
        .ask("GET", "/v1/vms/box/logs?content=true&tail=1", "")
        .await;
    assert_eq!(text.body, "two\n");

    let response = house
        .send(request("GET", "/v1/vms/box/logs?follow=true&tail=1", ""))
        .await;
    let mut body = response.into_body();
    let mut heard = String::new();
    let mut grown = false;
    while let Some(frame) = tokio::time::timeout(AGES, body.frame()).await.unwrap() {
        heard += std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap();
        if heard == "two\n" && !grown {
            grown = true;
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .open(&console)
                .unwrap();
            std::io::Write::write_all(&mut file, b"three\n").unwrap();
        } else if heard == "two\nthree\n" {
            house.ask("POST", "/v1/vms/box/kill?wait=30s", "").await;
        }
    }
    assert_eq!(heard, "two\nthree\n");
}

/// An upgraded connection, or the error that came instead.
async fn exec(house: &House, vm: &str, body: &str) -> Result<Wire, (u16, Value)> {
    let asked = Request::builder()
        .method("POST")
        .uri(format!("/v1/vms/{vm}/exec"))
        .header("host", "banger")
        .header("connection", "upgrade")
        .header("upgrade", "banger-stream")
        .body(Full::new(body.to_owned().into()))
        .unwrap();
    let response = house.send(asked).await;
    if response.status() != 101 {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        return Err((status, serde_json::from_slice(&body).unwrap()));
    }
    assert_eq!(response.headers()["upgrade"], "banger-stream");
    assert!(response.headers().contains_key("banger-op"));
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let parts = upgraded.downcast::<TokioIo<UnixStream>>().unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&parts.read_buf);
    Ok(Wire {
        stream: parts.io.into_inner(),
        decoder,
    })
}

struct Wire {
    stream: UnixStream,
    decoder: Decoder,
}

impl Wire {
    /// The next frame; `None` when the daemon closed its side.
    async fn next(&mut self) -> Option<Frame> {
        let mut piece = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let read = self.stream.read(&mut piece);
            match tokio::time::timeout(AGES, read).await.unwrap().unwrap() {
                0 => return None,
                count => self.decoder.push(&piece[..count]),
            }
        }
    }
}

#[tokio::test]
async fn a_command_has_its_frames_and_its_end() {
    let house = House::new().await;
    house.running("box").await;
    let mut wire = exec(&house, "box", "{\"command\":\"true\",\"args\":[\"x\"]}")
        .await
        .unwrap();
    let (sent, output) = house.world.last_exec();
    assert_eq!(sent.argv, ["true", "x"]);
    assert_eq!(house.get("/v1/ping").await["idle"], false);
    output
        .send(Frame::new(Channel::Stdout, "out"))
        .await
        .unwrap();
    output
        .send(Control::Exit { exit_code: 7 }.frame())
        .await
        .unwrap();
    assert_eq!(wire.next().await, Some(Frame::new(Channel::Stdout, "out")));
    assert_eq!(
        wire.next().await,
        Some(Control::Exit { exit_code: 7 }.frame())
    );
    assert_eq!(wire.next().await, None);
}

#[tokio::test]
async fn a_command_that_cannot_begin_is_an_error_before_the_upgrade() {
    let house = House::new().await;
    let (status, body) = exec(&house, "no", "{}").await.err().unwrap();
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (404, Some("not_found"))
    );
    house
        .ask(
            "POST",
            "/v1/vms?wait=30s",
            "{\"name\":\"box\",\"no_start\":true}",
        )
        .await;
    let (status, body) = exec(&house, "box", "{}").await.err().unwrap();
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (409, Some("not_running"))
    );
    let (_, body) = exec(&house, "box", "{\"colour\":1}").await.err().unwrap();
    assert_eq!(body["error"]["code"], "bad_request");
}

#[tokio::test]
async fn a_command_whose_guest_breaks_off_ends_with_an_error_frame() {
    let house = House::new().await;
    house.running("box").await;
    let mut wire = exec(&house, "box", "{\"command\":\"true\"}").await.unwrap();
    drop(house.world.last_exec());
    let last = wire.next().await.unwrap();
    assert!(
        matches!(
            last.control(),
            Ok(Control::Error {
                exit_code: Some(125),
                ..
            })
        ),
        "{last:?}"
    );
    assert_eq!(wire.next().await, None);
}

#[tokio::test]
async fn the_main_command_holds_its_vm_until_the_client_lets_go() {
    let house = House::new().await;
    let body = "{\"name\":\"box\",\"auto_remove\":true,\"main_follows\":true}";
    let begun = house.ask("POST", "/v1/vms", body).await.json();
    let id = begun["operation"]["id"].as_str().unwrap().to_owned();
    let events = Events::open(&house, &format!("/v1/operations/{id}/events"), None).await;
    let mut wire = exec(&house, "box", "{\"command\":\"true\",\"main\":true}")
        .await
        .unwrap();
    let (_, output) = house.world.last_exec();
    drop(events);
    output
        .send(Control::Exit { exit_code: 0 }.frame())
        .await
        .unwrap();
    assert_eq!(
        wire.next().await,
        Some(Control::Exit { exit_code: 0 }.frame())
    );
    // Files are copied out now, so the VM is still there.
    assert_eq!(house.get("/v1/vms/box").await["vm"]["state"], "running");
    wire.stream.shutdown().await.unwrap();
    assert_eq!(wire.next().await, None);
    assert_eq!(
        house.ask("GET", "/v1/vms/box", "").await.code(),
        "not_found"
    );
    assert_eq!(house.world.engines(), 0);
}
