//! The gateways of this host as the daemon asks for them: the program found,
//! `banger-engine`'s processes, errors in the words of the API.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_api::error::Code;
use banger_engine::gateway::{self, ControlError, Facts, Plan};
use banger_model::VmId;
use banger_wire::gateway::Counters;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::resolvers::Resolvers;
use crate::failure::Failure;
use crate::ports::{Gateway, Gateways, Running};

/// File name of the program.
const PROGRAM: &str = "banger-gateway";

/// The gateways of this host.
pub(crate) struct HostGateways {
    resolvers: Resolvers,
    /// Who waits for the ends of our children.
    reapers: TaskTracker,
}

impl HostGateways {
    /// Follows the resolvers that this file names.
    pub(crate) fn new(resolv_conf: &Path) -> Self {
        Self {
            resolvers: Resolvers::of(resolv_conf),
            reapers: TaskTracker::new(),
        }
    }
}

#[async_trait]
impl Gateways for HostGateways {
    fn usable(&self) -> Result<(), Failure> {
        find_gateway().map(drop)
    }

    async fn launch(
        &self,
        vm: &VmId,
        run_dir: &Path,
        line: Arc<OwnedFd>,
    ) -> Result<Arc<dyn Gateway>, Failure> {
        let (id, run_dir) = (vm.to_string(), run_dir.to_owned());
        let resolvers = self.resolvers();
        let reapers = self.reapers.clone();
        // Runs to its end, whoever waits for it.
        let started = tokio::task::spawn_blocking(move || {
            let program = find_gateway()?;
            let resolvers = resolvers.borrow().clone();
            let plan = Plan {
                program: &program,
                id: &id,
                line: line.as_fd(),
                run_dir: &run_dir,
                resolvers: &resolvers,
                environment: &environment(),
            };
            let gateway = gateway::start(&plan).map_err(|error| {
                Failure::new(Code::EngineFailed, "cannot start the gateway").caused_by(&error)
            })?;
            let gateway = Arc::new(gateway);
            let reaped = Arc::clone(&gateway);
            reapers.spawn(async move { drop(reaped.ended().await) });
            Ok(Arc::new(Process(gateway)) as Arc<dyn Gateway>)
        });
        started
            .await
            .unwrap_or_else(|error| Err(Failure::internal("cannot start the gateway", &error)))
    }

    async fn attach(
        &self,
        vm: &VmId,
        run_dir: &Path,
        facts: Option<&str>,
    ) -> Result<Option<Arc<dyn Gateway>>, Failure> {
        let (id, run_dir, facts) = (vm.to_string(), run_dir.to_owned(), read(facts));
        let look = move || gateway::adopt(&id, &run_dir, facts.as_ref());
        let found = tokio::task::spawn_blocking(look).await;
        match found.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(found) => Ok(found.map(|found| Arc::new(Process(Arc::new(found))) as Arc<_>)),
            Err(error) => Err(
                Failure::new(Code::EngineFailed, "cannot take the gateway over").caused_by(&error),
            ),
        }
    }

    async fn sweep(&self, vm: &VmId, facts: Option<&str>) -> Result<(), Failure> {
        let swept = gateway::sweep(vm.as_str(), read(facts).as_ref()).await;
        swept.map_err(|error| {
            Failure::new(Code::EngineFailed, "cannot end the gateway").caused_by(&error)
        })
    }

    fn resolvers(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.resolvers.subscribe()
    }
}

/// Facts that cannot be read find nothing, and then the name has to.
fn read(facts: Option<&str>) -> Option<Facts> {
    serde_json::from_str(facts?).ok()
}

/// A test of real programs may open a gateway that was built to be opened.
fn environment() -> Vec<String> {
    const OPEN: &str = "BANGER_GATEWAY_OPEN_POLICY";
    let value = cfg!(feature = "failpoints")
        .then(|| std::env::var(OPEN).ok())
        .flatten();
    value
        .map(|value| format!("{OPEN}={value}"))
        .into_iter()
        .collect()
}

struct Process(Arc<gateway::Gateway>);

fn unheard(error: ControlError) -> Failure {
    Failure::new(Code::EngineFailed, "the gateway does not obey").caused_by(&error)
}

#[async_trait]
impl Gateway for Process {
    fn facts(&self) -> String {
        serde_json::to_string(self.0.facts()).expect("facts are plain JSON")
    }

    async fn watch_engine(&self, engine: &dyn Running) -> Result<(), Failure> {
        let Some(pidfd) = engine.pidfd() else {
            let error = io::Error::from(io::ErrorKind::NotFound);
            return Err(Failure::internal("the engine cannot be watched", &error));
        };
        let told = self.0.control().watch_engine(pidfd.as_fd()).await;
        told.map_err(unheard)
    }

    async fn set_resolvers(&self, addresses: Vec<IpAddr>) -> Result<(), Failure> {
        let told = self.0.control().set_resolvers(addresses).await;
        told.map_err(unheard)
    }

    async fn line(&self) -> Result<Arc<OwnedFd>, Failure> {
        self.0.control().line().await.map(Arc::new).map_err(unheard)
    }

    async fn counters(&self) -> Result<Counters, Failure> {
        self.0.control().counters().await.map_err(unheard)
    }

    async fn ended(&self) -> String {
        self.0.ended().await
    }
}

/// Finds the gateway's program: the one that `BANGER_GATEWAY` names, else the
/// one beside the daemon, else where installed programs keep theirs.
pub(crate) fn find_gateway() -> Result<PathBuf, Failure> {
    let named = std::env::var_os("BANGER_GATEWAY").filter(|path| !path.is_empty());
    let here = std::env::current_exe().unwrap_or_default();
    choose(named.map(PathBuf::from), &here)
}

fn choose(named: Option<PathBuf>, daemon: &Path) -> Result<PathBuf, Failure> {
    let missing = |what: String| {
        Failure::new(Code::NoTool, what).hint(format!(
            "put {PROGRAM} beside bangerd, name it in BANGER_GATEWAY, or --network none"
        ))
    };
    if let Some(path) = named {
        // The gateway is started from another directory than this one.
        let absolute = std::path::absolute(&path).ok();
        return absolute
            .filter(|path| runs(path))
            .ok_or_else(|| missing(format!("{} is no program", path.display())));
    }
    let directory = daemon.parent().unwrap_or(Path::new("/"));
    [
        directory.join(PROGRAM),
        directory.join("../lib/banger").join(PROGRAM),
    ]
    .into_iter()
    .find(|path| runs(path))
    .ok_or_else(|| missing(format!("{PROGRAM} is not installed")))
}

fn runs(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_gateway_is_the_named_one_or_beside_the_daemon_or_installed() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("bin")).unwrap();
        fs::create_dir_all(at("lib/banger")).unwrap();
        let daemon = at("bin/bangerd");
        let make = |path: &Path, mode| {
            fs::write(path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let failure = choose(None, &daemon).unwrap_err();
        assert_eq!(failure.code, Code::NoTool);
        assert_eq!(failure.message, "banger-gateway is not installed");

        make(&at("lib/banger/banger-gateway"), 0o755);
        let installed = at("bin/../lib/banger/banger-gateway");
        assert_eq!(choose(None, &daemon).unwrap(), installed);
        make(&at("bin/banger-gateway"), 0o644);
        assert_eq!(choose(None, &daemon).unwrap(), installed, "no program");
        make(&at("bin/banger-gateway"), 0o755);
        assert_eq!(choose(None, &daemon).unwrap(), at("bin/banger-gateway"));

        make(&at("mine"), 0o755);
        assert_eq!(choose(Some(at("mine")), &daemon).unwrap(), at("mine"));
        let failure = choose(Some(at("bin")), &daemon).unwrap_err();
        assert!(failure.message.ends_with("bin is no program"));
    }
}
