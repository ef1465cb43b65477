//! The whole daemon behind its socket, on a world of doubles.

pub(crate) mod artifacts;
mod builds;
mod catalogs;
mod contract;
mod disk;
mod document;
mod edges;
mod pulls;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use banger_store::Store;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::daemon::{App, Daemon, World, engine_settings};
use crate::engine::HostEngine;
use crate::failure::Failure;
use crate::paths::Paths;
use crate::ports::Artifacts;
use crate::seam::Seams;
use crate::seam::power::Power;
use crate::vm::tests::fakes::{self, FakeArtifacts, FakeEngines, FakeGateways, FakeHost};

/// Longer than anything here takes.
const AGES: Duration = Duration::from_secs(30);

/// A daemon that serves.
struct House {
    app: Arc<App>,
    world: Arc<fakes::World>,
    place: tempfile::TempDir,
    daemon: JoinSet<Result<(), Failure>>,
}

impl House {
    async fn new() -> Self {
        Self::build(true, |_| {}).await
    }

    /// Where VMs boot from the daemon's own images and kernels.
    async fn with_own_artifacts() -> Self {
        Self::build(false, |_| {}).await
    }

    /// The same with a configuration of its own.
    async fn configured(edit: impl FnOnce(&mut Config)) -> Self {
        Self::build(false, edit).await
    }

    async fn build(fake_artifacts: bool, edit: impl FnOnce(&mut Config)) -> Self {
        let place = tempfile::tempdir().unwrap();
        let paths = Paths {
            state: place.path().join("state"),
            config_file: place.path().join("config.toml"),
            cache: place.path().join("cache"),
            run: place.path().join("run"),
            socket: place.path().join("run/bangerd.sock"),
        };
        paths.make_state().unwrap();
        paths.make_rooms().unwrap();
        let mut config = Config::default();
        edit(&mut config);
        let store = Store::open(&paths.database()).unwrap();
        let engine = Arc::new(HostEngine::new(engine_settings(place.path(), &config)));
        let world: Arc<fakes::World> = Arc::default();
        let power = Arc::new(Power::new(None));
        let outside = World {
            engine: Arc::new(FakeEngines {
                world: world.clone(),
                power: power.clone(),
            }),
            gateways: Arc::new(FakeGateways {
                world: world.clone(),
                power: power.clone(),
            }),
            host: Arc::new(FakeHost {
                world: world.clone(),
                power: power.clone(),
            }),
            artifacts: fake_artifacts.then(|| {
                let world = world.clone();
                Arc::new(FakeArtifacts { world }) as Arc<dyn Artifacts>
            }),
            seams: Seams { power: Some(power) },
        };
        let built = Daemon::join(paths, config, store, engine, outside);
        let app = Arc::clone(&built.app);
        let door = built.listen().unwrap();
        built.recover().await.unwrap();
        let mut daemon = JoinSet::new();
        daemon.spawn(built.serve(door));
        Self {
            app,
            world,
            place,
            daemon,
        }
    }

    fn socket(&self) -> PathBuf {
        self.app.paths.socket.clone()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.unwrap();
        // The connection goes on for as long as its body is read.
        driver.detach_all();
        response
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let response = self.send(request(method, path, body)).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    /// An answer that must be a success.
    async fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}: {:?}", answer.body);
        answer.json()
    }

    /// A VM that runs.
    async fn running(&self, name: &str) -> Value {
        let body = format!("{{\"name\":\"{name}\"}}");
        let answer = self.ask("POST", "/v1/vms?wait=30s", &body).await;
        let operation = answer.json()["operation"].clone();
        assert_eq!(operation["success"], true, "{operation}");
        operation["vm"].clone()
    }
}

fn request(method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("host", "banger")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap()
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    /// The code of an answer that must be an error, signed like every answer.
    fn code(&self) -> String {
        let error = self.json()["error"].clone();
        let op = self.headers["banger-op"].to_str().unwrap();
        assert_eq!(error["op_id"], op, "{error}");
        assert!(op.len() == 15 && op.starts_with("op-"), "{op}");
        let code = banger_api::error::Code::ALL
            .iter()
            .find(|code| error["code"] == code.name())
            .unwrap_or_else(|| panic!("{error}"));
        assert_eq!(self.status, code.status(), "{error}");
        code.name().to_owned()
    }
}
