//! Wrong, large and late requests, and connections that break.

use std::time::Duration;

use banger_api::error::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{AGES, House, request};

#[tokio::test]
async fn wrong_requests_get_their_code_and_change_nothing() {
    let house = House::new().await;
    for (method, path, body, code) in [
        ("GET", "/v1/nope", "", "unknown_route"),
        ("GET", "/ping", "", "unknown_route"),
        ("PUT", "/v1/vms", "", "unknown_route"),
        ("GET", "/v1/vms?color=1", "", "bad_request"),
        ("GET", "/v1/vms?state=odd", "", "bad_request"),
        ("GET", "/v1/vms/%ff", "", "bad_request"),
        ("GET", "/v1/vms/no", "", "not_found"),
        ("POST", "/v1/vms", "{", "bad_request"),
        ("POST", "/v1/vms", "{\"colour\":1}", "bad_request"),
        ("POST", "/v1/vms", "{\"name\":\"Bad_Name\"}", "bad_name"),
        ("POST", "/v1/vms", "{\"vcpu_count\":0}", "bad_size"),
        (
            "POST",
            "/v1/vms?wait=soon",
            "{\"name\":\"late\"}",
            "bad_request",
        ),
        ("POST", "/v1/vms/no/start", "{\"x\":1}", "bad_request"),
        ("POST", "/v1/vms/no/exec", "{}", "bad_request"),
        ("GET", "/v1/operations/op-000000000000", "", "not_found"),
        (
            "GET",
            "/v1/operations/op-000000000000/events",
            "",
            "not_found",
        ),
        ("POST", "/v1/images/register", "{}", "bad_request"),
        (
            "POST",
            "/v1/images/register",
            "{\"rootfs_path\":\"x\"}",
            "bad_path",
        ),
        (
            "POST",
            "/v1/images/register",
            "{\"rootfs_path\":\"/dev/null\"}",
            "bad_path",
        ),
        (
            "POST",
            "/v1/images/register",
            "{\"rootfs_path\":\"/etc/passwd\"}",
            "bad_path",
        ),
        (
            "POST",
            "/v1/images/build",
            "{\"suite\":\"x\",\"name\":\"../x\"}",
            "bad_name",
        ),
        (
            "POST",
            "/v1/images/build",
            "{\"suite\":\"x\",\"size\":\"0\"}",
            "bad_size",
        ),
        (
            "POST",
            "/v1/kernels/pull",
            "{\"name\":\"a/b\",\"package\":\"p\"}",
            "bad_name",
        ),
        (
            "POST",
            "/v1/kernels/import",
            "{\"name\":\"k\"}",
            "bad_request",
        ),
        (
            "POST",
            "/v1/kernels/import",
            "{\"name\":\"k\",\"deb_path\":\"x\"}",
            "bad_path",
        ),
        (
            "POST",
            "/v1/kernels/import",
            "{\"name\":\"k\",\"deb_path\":\"/etc/passwd\"}",
            "bad_archive",
        ),
    ] {
        let answer = house.ask(method, path, body).await;
        assert_eq!(
            answer.code(),
            code,
            "{method} {path} {body}: {:?}",
            answer.body
        );
    }
    assert_eq!(house.get("/v1/vms").await["vms"], serde_json::json!([]));
    assert_eq!(
        house.get("/v1/images").await["images"],
        serde_json::json!([])
    );
    assert_eq!(
        house.get("/v1/operations").await["operations"],
        serde_json::json!([])
    );
    let staging = std::fs::read_dir(house.app.paths.kernels())
        .unwrap()
        .count();
    assert_eq!(staging, 0);
}

#[tokio::test]
async fn every_reply_names_its_request_and_the_daemon() {
    let house = House::new().await;
    let mut ops = Vec::new();
    for path in ["/v1/ping", "/v1/nope", "/openapi.json"] {
        let answer = house.ask("GET", path, "").await;
        let build = answer.headers["banger-daemon"].to_str().unwrap();
        assert_eq!(build, format!("{}+{}", crate::VERSION, crate::COMMIT));
        ops.push(answer.headers["banger-op"].to_str().unwrap().to_owned());
    }
    ops.dedup();
    assert_eq!(ops.len(), 3, "{ops:?}");
}

#[tokio::test]
async fn a_body_or_a_head_above_its_limit_is_refused() {
    let house = House::new().await;
    let body = format!("{{\"name\":\"{}\"}}", "x".repeat(8 << 20));
    assert_eq!(
        house.ask("POST", "/v1/vms", &body).await.code(),
        "too_large"
    );

    let mut stream = UnixStream::connect(house.socket()).await.unwrap();
    let head = format!(
        "GET /v1/ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: {}\r\n\r\n",
        "y".repeat(80 << 10)
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let _ = tokio::time::timeout(AGES, read).await.unwrap();
    let refused = ["HTTP/1.1 431", "HTTP/1.1 400"]
        .iter()
        .any(|line| answer.starts_with(line));
    assert!(answer.is_empty() || refused, "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let house = House::new().await;
    let mut idle = Vec::new();
    for _ in 0..512 {
        idle.push(UnixStream::connect(house.socket()).await.unwrap());
    }
    let answer = house.ask("GET", "/v1/ping", "").await;
    assert_eq!(answer.code(), "too_many");
    idle.clear();
    let again = async {
        while house.ask("GET", "/v1/ping", "").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(AGES, again).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_operation_it_began() {
    let house = House::new().await;
    house.world.turn(|knobs| knobs.hello_hangs = true);
    let mut stream = UnixStream::connect(house.socket()).await.unwrap();
    let body = "{\"name\":\"box\"}";
    let head = format!(
        "POST /v1/vms?wait=5m HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = async {
        while house.get("/v1/operations?running=true").await["operations"] == serde_json::json!([])
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(AGES, begun).await.unwrap();
    drop(stream);
    house.world.turn(|knobs| knobs.hello_hangs = false);
    let id = house.get("/v1/operations").await["operations"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let done = house.get(&format!("/v1/operations/{id}?wait=30s")).await;
    assert_eq!(done["operation"]["success"], true, "{done}");
    assert_eq!(house.get("/v1/vms/box").await["vm"]["state"], "running");
}

#[tokio::test]
async fn a_wait_ends_when_its_time_is_over() {
    let house = House::new().await;
    house.world.turn(|knobs| knobs.hello_hangs = true);
    let answer = house
        .ask("POST", "/v1/vms?wait=50ms", "{\"name\":\"box\"}")
        .await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json()["operation"]["done"], false);
    assert_eq!(
        answer.json()["operation"]["id"],
        answer.headers["banger-op"].to_str().unwrap()
    );
    let id = answer.json()["operation"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let answer = house
        .ask("DELETE", &format!("/v1/operations/{id}?wait=30s"), "")
        .await;
    assert_eq!(
        answer.json()["operation"]["cancelled"],
        true,
        "{}",
        answer.json()
    );
}

#[tokio::test]
async fn a_daemon_that_is_asked_to_end_answers_and_then_is_gone() {
    let mut house = House::new().await;
    house.running("box").await;
    let answer = house.ask("POST", "/v1/system/shutdown", "{}").await;
    assert_eq!(answer.json()["status"], "stopping");
    let ended = tokio::time::timeout(AGES, house.daemon.join_next())
        .await
        .unwrap();
    ended.unwrap().unwrap().unwrap();
    assert!(!house.socket().exists());
    assert_eq!(house.world.engines(), 1, "the VM runs on");
}

#[tokio::test]
async fn with_vms_the_guests_are_stopped_first() {
    let mut house = House::new().await;
    house.running("box").await;
    house
        .ask("POST", "/v1/system/shutdown", "{\"with_vms\":true}")
        .await;
    let ended = tokio::time::timeout(AGES, house.daemon.join_next())
        .await
        .unwrap();
    ended.unwrap().unwrap().unwrap();
    assert_eq!(house.world.engines(), 0);
}

#[tokio::test]
async fn a_socket_that_vanished_is_bound_again_and_one_that_is_stale_replaced() {
    let house = House::new().await;
    for removed in [house.socket(), house.app.paths.run.clone()] {
        if removed.is_dir() {
            std::fs::remove_dir_all(&removed).unwrap();
        } else {
            std::fs::remove_file(&removed).unwrap();
        }
        let back = async {
            while UnixStream::connect(house.socket()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(AGES, back).await.unwrap();
        assert_eq!(house.get("/v1/ping").await["status"], "ok");
    }

    let other = House::new().await;
    std::fs::create_dir_all(&other.app.paths.run).unwrap();
    let mut stale = other.app.paths.clone();
    stale.socket = other.app.paths.run.join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale.socket).unwrap());
    let owner = rustix::process::getuid().as_raw();
    let bound = super::super::socket::Socket::listen(&stale, owner).unwrap();
    let taken = super::super::socket::Socket::listen(&stale, owner);
    assert!(taken.err().unwrap().to_string().contains("another daemon"));
    bound.close();
    std::fs::write(&stale.socket, "a file").unwrap();
    let refused = super::super::socket::Socket::listen(&stale, owner);
    assert!(refused.err().unwrap().to_string().contains("no socket"));
}

#[tokio::test]
async fn a_registered_image_is_updated_until_a_vm_has_it() {
    let house = House::new().await;
    let root = house.place.path().join("root.ext4");
    banger_images::ext4::empty(&root, 256 << 20, "root", None, false).unwrap();
    let body = format!(
        "{{\"name\":\"image-1\",\"rootfs_path\":\"{}\"}}",
        root.display()
    );
    let first = house.ask("POST", "/v1/images/register", &body).await.json();
    let again = house.ask("POST", "/v1/images/register", &body).await.json();
    assert_eq!(first["image"]["id"], again["image"]["id"]);
    let id = first["image"]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        house.get(&format!("/v1/images/{}", &id[..6])).await["image"]["name"],
        "image-1"
    );

    // A changed file is refused at a start, by name.
    use crate::ports::Artifacts;
    house.app.shelf.image_for_start(&id).await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&root).unwrap();
    file.set_len(257 << 20).unwrap();
    let refused = house.app.shelf.image_for_start(&id).await.unwrap_err();
    assert_eq!(refused.code, Code::InUse);
    assert!(refused.message.contains("root.ext4"), "{}", refused.message);

    // A shortened one is no file system any more.
    file.set_len(100 << 20).unwrap();
    let answer = house.ask("POST", "/v1/images/register", &body).await;
    assert_eq!(answer.code(), "bad_path");
    assert_eq!(
        house.ask("DELETE", "/v1/images/image-1", "").await.status,
        200
    );
    assert_eq!(
        house.ask("DELETE", "/v1/images/image-1", "").await.code(),
        "not_found"
    );
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let house = House::new().await;
    let stream = UnixStream::connect(house.socket()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    for _ in 0..3 {
        sender.ready().await.unwrap();
        let response = sender
            .send_request(request("GET", "/v1/ping", ""))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap();
    }
}
