//! Images made of others: a throw-away VM of the image, in which a script runs
//! or packages are installed, and whose root becomes the new image.
//!
//! ```text
//! boot_vm ─► wait_init ─► run_script │ install_packages ─► copy_root
//!    VM that removes itself, with a way out                  guest ended, its root as a tar
//! ```
//!
//! Owns the VM's short life and what is said in it. What becomes of the tar,
//! and the log's file, are the shelf's.

mod lines;

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_api::error::Code;
use banger_api::vm::{ExecParams, VmCreateParams};
use banger_images::distribution::Distribution;
use banger_images::{Cancel, Report};
use banger_wire::frames::{Channel, Control, Frame};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::artifact::{cancelled, space, was_cancelled};
use crate::failure::Failure;
use crate::ports::{BuildJob, BuildWork, Builder};
use crate::vm::{Exec, Lent, Vms, printable};
use lines::Lines;

/// Begins the name of a VM that builds.
const PREFIX: &str = "build-";
/// Longest name of a VM.
const VM_NAME: usize = 63;
/// How long an init may take to be up before the work begins without it: with
/// a processor of its own, and by emulation.
const INIT: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];
/// How long services get to end, likewise.
const GRACE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(90)];
/// How long the guest may be silent while its root is packed, likewise.
const STALL: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(240)];
/// Status of a command that was killed.
const KILLED: i32 = 128 + 9;
/// How long a guest takes from the end of its commands to its own, likewise.
const RESET: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];
/// How long after a connection broke off the guest's end is known.
const BROKEN_OFF: Duration = Duration::from_secs(2);
/// Largest archive that is taken, bytes: all a disk may hold, and the headers.
const ARCHIVE: u64 = 132 << 30;
/// Bytes of it after which the host is asked how much room is left.
const LOOK: usize = 16 << 20;
/// Pieces of the archive that wait for the disk.
const PIECES: usize = 4;
/// Bytes of a script in one frame.
const PIECE: usize = 64 << 10;
/// Largest text that is read from a command of ours, bytes.
const ANSWER: usize = 64 << 10;
/// Takes a program from its standard input and becomes it. Under `/run`, which
/// is no part of the image; where nothing may be executed there, under `/tmp`,
/// whose content is none either.
const RUN_SCRIPT: &str = "f=/run/banger-build; (umask 077; cat >$f) && chmod 0700 $f && \
     { [ -x $f ] || { mv $f /tmp/banger-build && f=/tmp/banger-build; }; } && exec $f </dev/null";
/// What a distribution says of itself.
const OS_RELEASE: &str =
    "cat /etc/os-release 2>/dev/null || cat /usr/lib/os-release 2>/dev/null || true";

/// Builds in VMs.
pub(crate) struct BuildVms(pub(crate) Vms);

#[async_trait]
impl Builder for BuildVms {
    async fn build(
        &self,
        job: &BuildJob,
        cancel: Cancel,
        report: &dyn Report,
        into: File,
    ) -> Result<(), Failure> {
        let lent = self.boot(job, cancel.clone(), report).await?;
        let work = Work {
            lent: &lent,
            report,
        };
        // A guest that goes on after a write that failed may end well, with half of its files.
        let done = tokio::select! {
            biased;
            () = cancelled(cancel) => Err(was_cancelled()),
            disk = lent.full() => Err(no_room(&disk)),
            done = work.all(job, into) => done,
        };
        lent.give_back().await;
        done
    }
}

impl BuildVms {
    async fn boot(
        &self,
        job: &BuildJob,
        cancel: Cancel,
        report: &dyn Report,
    ) -> Result<Lent, Failure> {
        let name = vm_name(&job.name);
        report.stage("boot_vm", &name);
        let default = self.0.house().settings.overlay_bytes;
        let least = job.least_disk.filter(|least| least.bytes() > default);
        let overlay = least.map(|least| least.to_string());
        let params = |name| VmCreateParams {
            name,
            image_name: Some(job.from.clone()),
            // Whatever the default is: packages come from somewhere.
            network_mode: Some("user".to_owned()),
            system_overlay_size: overlay.clone(),
            ..VmCreateParams::default()
        };
        let tell = |stage: &str| report.stage("boot_vm", &format!("{name} {stage}"));
        let lent = self
            .0
            .lend(params(Some(name.clone())), cancel.clone(), tell)
            .await;
        match lent {
            // Somebody's own machine is called like this.
            Err(failure) if failure.code == Code::AlreadyExists => {
                self.0.lend(params(None), cancel, tell).await
            }
            lent => lent,
        }
        .map_err(|failure| match failure.code {
            Code::Cancelled => failure,
            _ => Failure {
                message: format!("the build VM did not start: {}", failure.message),
                ..failure
            },
        })
    }
}

/// The machine's name: what a name of an image may have and that of a machine
/// may not becomes a dash.
fn vm_name(image: &str) -> String {
    let mut name = format!("{PREFIX}{image}").replace(['.', '_'], "-");
    name.truncate(VM_NAME);
    name.trim_end_matches('-').to_owned()
}

fn no_room(disk: &str) -> Failure {
    let why = format!("the host has no room for what the build VM writes to its {disk} disk");
    Failure::new(Code::NoSpace, why)
}

/// What is done in a VM that runs.
struct Work<'a> {
    lent: &'a Lent,
    report: &'a dyn Report,
}

impl Work<'_> {
    async fn all(&self, job: &BuildJob, into: File) -> Result<(), Failure> {
        self.report.stage("wait_init", "");
        let limit = self.limit(INIT);
        if !self.lent.healthy(limit).await {
            let waited = limit.as_secs();
            let line = format!("note: the image's init is not up after {waited} s; going on");
            self.report.log(&line);
        }
        match &job.work {
            BuildWork::Packages(packages) => self.install(packages, job.docker).await?,
            BuildWork::Script(script) => {
                if job.docker {
                    self.install(&[], true).await?;
                }
                self.report.stage("run_script", "");
                self.script(script).await?;
            }
        }
        self.copy_root(into).await
    }

    fn limit(&self, limits: [Duration; 2]) -> Duration {
        limits[usize::from(!self.lent.kvm())]
    }

    async fn install(&self, packages: &[String], docker: bool) -> Result<(), Failure> {
        let distribution = self.distribution().await?;
        let steps = distribution.install(packages, docker).map_err(|error| {
            Failure::new(Code::Unsupported, error.to_string()).hint("--script FILE")
        })?;
        self.report.stage("install_packages", &distribution.label());
        for step in steps {
            // Lines of shell are ours, and long.
            let shown = match &step[..] {
                [sh, c, _, _, words @ ..] if sh == "sh" && c == "-c" => words.join(" "),
                words => words.join(" "),
            };
            if !shown.is_empty() {
                self.report.log(&format!("+ {shown}"));
            }
            let end = self
                .run(&step, None, &mut |line| self.report.log(line))
                .await?;
            end.well(if shown.is_empty() {
                "preparing packages"
            } else {
                &shown
            })?;
        }
        Ok(())
    }

    async fn distribution(&self) -> Result<Distribution, Failure> {
        let command = ["sh", "-c", OS_RELEASE].map(str::to_owned);
        let mut text = String::new();
        let mut take = |line: &str| {
            if text.len() < ANSWER {
                text.push_str(line);
                text.push('\n');
            }
        };
        self.run(&command, None, &mut take).await?.well("sh")?;
        Distribution::parse(&text).ok_or_else(|| {
            let why = "the image does not say what distribution it is: /etc/os-release names none";
            Failure::new(Code::Unsupported, why).hint("--script FILE")
        })
    }

    async fn script(&self, script: &str) -> Result<(), Failure> {
        let command = ["sh", "-c", RUN_SCRIPT].map(str::to_owned);
        let mut log = |line: &str| self.report.log(line);
        let end = self.run(&command, Some(script), &mut log).await?;
        end.well("the script")
    }

    /// Runs a command to its end, its lines to `take`.
    async fn run(
        &self,
        command: &[String],
        input: Option<&str>,
        take: &mut (dyn FnMut(&str) + Send),
    ) -> Result<End, Failure> {
        let (program, arguments) = command.split_first().expect("a command has a program");
        let quiet = [
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
        ];
        let params = ExecParams {
            command: program.clone(),
            args: arguments.to_vec(),
            env: quiet
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            user: Some("0:0".to_owned()),
            stdin: input.is_some(),
            ..ExecParams::default()
        };
        let Exec { stream, hold } = self.lent.exec(params).await?;
        let to = stream.input;
        let feed = async {
            for piece in input.unwrap_or_default().as_bytes().chunks(PIECE) {
                let piece = Bytes::copy_from_slice(piece);
                // A command that does not read has its reasons.
                if to.send(Frame::new(Channel::Stdin, piece)).await.is_err() {
                    return;
                }
            }
            if input.is_some() {
                let _ = to.send(Control::Eof.frame()).await;
            }
        };
        let (end, ()) = tokio::join!(listen(stream.output, take), feed);
        // A guest that ends kills its commands, and is gone a moment later. One that breaks off is
        // gone already, as a rule.
        let limit = match end {
            End::Exit(KILLED) => self.limit(RESET),
            End::Lost => BROKEN_OFF,
            _ => return Ok(end),
        };
        match timeout(limit, hold.stopped()).await {
            Ok(why) => Ok(End::Gone(why)),
            Err(_) => Ok(end),
        }
    }

    /// Ends the guest and writes its root into a file.
    async fn copy_root(&self, into: File) -> Result<(), Failure> {
        self.report.stage("copy_root", "");
        let mut frames = self.lent.pack(self.limit(GRACE)).await?;
        let (to_disk, pieces) = mpsc::channel::<Bytes>(PIECES);
        let writer = tokio::task::spawn_blocking(move || write_all(into, pieces));
        // Services end first, in which time nothing comes.
        let mut patience = self.limit(GRACE) * 2 + self.limit(STALL);
        let mut taken = 0;
        let end = loop {
            let frame = match timeout(patience, frames.recv()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => break Err("the guest ended before its root was copied".to_owned()),
                Err(_) => break Err(format!("the guest was silent for {} s", patience.as_secs())),
            };
            patience = self.limit(STALL);
            match frame.channel {
                Channel::Stdout => {
                    taken += frame.payload.len() as u64;
                    if taken > ARCHIVE {
                        break Err("the guest's root is larger than 128G".to_owned());
                    }
                    self.report.bytes(taken, None);
                    if to_disk.send(frame.payload).await.is_err() {
                        // The writer says why.
                        break Ok(());
                    }
                }
                Channel::Control => match frame.control() {
                    Ok(Control::Exit { exit_code: 0 }) => break Ok(()),
                    Ok(Control::Error { error, .. }) => break Err(printable(&error)),
                    _ => {}
                },
                Channel::Stdin | Channel::Stderr => {}
            }
        };
        drop(to_disk);
        let written = writer
            .await
            .unwrap_or_else(|error| Err(unkept(&io::Error::other(error))));
        written?;
        end.map_err(|why| Failure::new(Code::BuildFailed, format!("cannot copy the root: {why}")))
    }
}

/// Writes what comes, as long as the host keeps room for its other guests.
fn write_all(mut into: File, mut pieces: mpsc::Receiver<Bytes>) -> Result<(), Failure> {
    let mut unasked = LOOK;
    while let Some(piece) = pieces.blocking_recv() {
        unasked += piece.len();
        if unasked >= LOOK {
            unasked = 0;
            if !space::enough_beside(&into) {
                let why = "no room for the guest's root: less than 1G is left on the host";
                return Err(Failure::new(Code::NoSpace, why));
            }
        }
        into.write_all(&piece).map_err(|error| unkept(&error))?;
    }
    Ok(())
}

fn unkept(error: &io::Error) -> Failure {
    space::failed("cannot keep the guest's root".to_owned(), error)
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Exit(i32),
    /// It was never run: why.
    Refused(String),
    /// The connection to its guest broke off before it.
    Lost,
    /// Its guest ended before it: why, where it did so by itself.
    Gone(Option<String>),
}

impl End {
    /// Fails unless it did well. `what` was run.
    fn well(self, what: &str) -> Result<(), Failure> {
        let why = match self {
            End::Exit(0) => return Ok(()),
            End::Exit(status) => format!("{what} ended with status {status}"),
            End::Refused(why) => format!("cannot run {what}: {why}"),
            End::Lost => format!("the connection to the build VM was lost before {what} ended"),
            End::Gone(None) => format!("the build VM ended before {what} did"),
            End::Gone(Some(why)) => format!("the build VM ended before {what} did: {why}"),
        };
        Err(Failure::new(Code::BuildFailed, why))
    }
}

/// Takes a command's output, line by line, until it is over.
async fn listen(mut output: mpsc::Receiver<Frame>, take: &mut (dyn FnMut(&str) + Send)) -> End {
    let (mut out, mut err) = (Lines::default(), Lines::default());
    let end = loop {
        let Some(frame) = output.recv().await else {
            break End::Lost;
        };
        match frame.channel {
            Channel::Stdout => out.push(&frame.payload, take),
            Channel::Stderr => err.push(&frame.payload, take),
            Channel::Control => match frame.control() {
                Ok(Control::Exit { exit_code }) => break End::Exit(exit_code),
                Ok(Control::Error { error, .. }) => break End::Refused(printable(&error)),
                _ => {}
            },
            Channel::Stdin => {}
        }
    };
    out.finish(take);
    err.finish(take);
    end
}

/// The builder of these VMs.
pub(crate) fn in_vms(vms: &Vms) -> Arc<dyn Builder> {
    Arc::new(BuildVms(vms.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_vm_is_named_after_its_image_as_far_as_a_vm_may_be() {
        assert_eq!(vm_name("dev_tools-1.2"), "build-dev-tools-1-2");
        let long = vm_name(&"x".repeat(128));
        assert_eq!(long.len(), VM_NAME);
        assert!(banger_model::VmName::parse(&long).is_ok());
        assert!(banger_model::VmName::parse(&vm_name("a..")).is_ok());
    }

    #[tokio::test]
    async fn a_command_is_over_with_its_last_frame_or_with_its_guest() {
        let hear = async |frames: Vec<Frame>| {
            let (to, output) = mpsc::channel(8);
            for frame in frames {
                to.send(frame).await.unwrap();
            }
            drop(to);
            let mut lines = Vec::new();
            let end = listen(output, &mut |line| lines.push(line.to_owned())).await;
            (end, lines)
        };
        let out = |text: &'static str| Frame::new(Channel::Stdout, text.as_bytes());
        let (end, lines) = hear(vec![
            out("one\ntw"),
            out("o"),
            Control::Exit { exit_code: 3 }.frame(),
        ])
        .await;
        assert_eq!(
            (end, lines),
            (End::Exit(3), vec!["one".to_owned(), "two".to_owned()])
        );
        assert_eq!(
            hear(vec![out("x")]).await,
            (End::Lost, vec!["x".to_owned()])
        );
        let failure = End::Exit(3).well("the script").unwrap_err();
        assert_eq!(
            (failure.code, &*failure.message),
            (Code::BuildFailed, "the script ended with status 3")
        );
    }
}
