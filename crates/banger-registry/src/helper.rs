//! One run of a docker credential helper: `docker-credential-NAME get`, the registry on its
//! standard input, JSON on its standard output.
//!
//! A helper may ask a keyring, a cloud or a person, so it gets a time limit. At the limit, or
//! when the pull goes away, its whole process group is killed: the thing that hangs is often
//! a child of a script. What it prints on success is a secret and is in no error.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::auth::Credential;
use crate::error::{RegistryError, plain};

/// Identity tokens of clouds are a few KiB.
const OUTPUT_LIMIT: u64 = 256 << 10;
/// What helpers of every make print when they know no login.
const NOTHING: &str = "credentials not found";

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Asks helper `name` for the login of `server`; `None` when it knows none. `search` replaces
/// `PATH` when it is given.
pub(crate) async fn ask(
    name: &str,
    server: &str,
    limit: Duration,
    search: Option<&OsStr>,
) -> Result<Option<Credential>, RegistryError> {
    let program = format!("docker-credential-{}", plain(name));
    let failed = |why: String| RegistryError::Helper {
        program: program.clone(),
        why,
    };
    // A path would name a program outside of PATH.
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(legal) {
        return Err(failed("has no legal name".to_owned()));
    }
    let mut command = Command::new(&program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(search) = search {
        command.env("PATH", search);
    }
    let child = command.spawn().map_err(|cause| {
        failed(match cause.kind() {
            io::ErrorKind::NotFound => "is not installed".to_owned(),
            _ => format!("cannot be started: {cause}"),
        })
    })?;
    let (success, output) = tokio::time::timeout(limit, converse(child, server))
        .await
        .map_err(|_| failed(format!("did not answer within {} s", limit.as_secs_f32())))?
        .map_err(|cause| failed(format!("cannot be talked to: {cause}")))?;
    if output.len() as u64 > OUTPUT_LIMIT {
        return Err(failed("answered too much".to_owned()));
    }
    if !success {
        let said = String::from_utf8_lossy(&output);
        return match said.to_ascii_lowercase().contains(NOTHING) {
            true => Ok(None),
            false => Err(failed(format!("failed: {}", plain(&said)))),
        };
    }
    let reply: Reply =
        serde_json::from_slice(&output).map_err(|_| failed("did not answer in JSON".to_owned()))?;
    Ok(match (reply.username.as_str(), reply.secret.is_empty()) {
        (_, true) => None,
        ("<token>", false) => Some(Credential::Identity(reply.secret)),
        (_, false) => Some(Credential::Login {
            user: reply.username,
            password: reply.secret,
        }),
    })
}

/// Kills the group of a helper that was not waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // The leader is not reaped yet, so the number is still its group's.
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

async fn converse(mut child: Child, server: &str) -> io::Result<(bool, Vec<u8>)> {
    // Declared after the child, so dropped before it, and before it is reaped.
    let mut group = Group(
        child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw),
    );
    let mut input = child.stdin.take().expect("stdin is piped");
    let output = child.stdout.take().expect("stdout is piped");
    match input.write_all(server.as_bytes()).await {
        // It may answer without reading.
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => return Err(cause),
        _ => drop(input),
    }
    let mut said = Vec::new();
    output.take(OUTPUT_LIMIT + 1).read_to_end(&mut said).await?;
    if said.len() as u64 > OUTPUT_LIMIT {
        // It may be blocked in its next write: there is nothing to wait for.
        return Ok((false, said));
    }
    let status = child.wait().await?;
    group.0 = None;
    Ok((status.success(), said))
}
