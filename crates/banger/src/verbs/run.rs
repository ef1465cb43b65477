//! `run`: one command, a real machine.
//!
//! ```text
//! create --202--> exec (waits in the daemon until the VM runs) --101--> session
//!             \-> events of the create, only where somebody wants them
//! ```
//!
//! The exec is asked for at once, so that nothing of the CLI lies between the
//! guest being ready and the command beginning. When both fail, the create's
//! error is the one that says why. With `--image-command` the image is asked
//! for its command before; the default image, which may be obtained by the
//! create, after.

mod own;

use std::time::{Duration, Instant};

use banger_api::Empty;
use banger_api::endpoint::{ImageShow, OperationCancel, OperationShow, VmCreate, VmDelete, VmShow};
use banger_api::error::Code;
use banger_api::operation::Operation;
use banger_api::vm::{ExecParams, VmCreateParams};
use clap::Args;

use self::own::OwnCommand;
use super::create::{MachineFlags, print_new};
use super::exec::{left, outcome};
use crate::client::start::Place;
use crate::client::upgrade::Duplex;
use crate::client::{At, Client};
use crate::failure::{Failure, NOT_RUN, USAGE};
use crate::interrupt::{Blow, Cancel, Interrupts, guarded};
use crate::process::ProcessFlags;
use crate::session::{self, End, Ended, Streams};
use crate::show::progress::{Lines, Progress};
use crate::show::size::exact;
use crate::show::timings::Timings;
use crate::terminal::Terminals;
use crate::{follow, show};

/// For a last request of somebody who leaves.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Run a command, or a shell, in a fresh VM
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger run                               a root shell
  banger run --rm -- sh -c 'exit 42'       exits 42, leaves no trace
  banger run --name box -d                 a machine for later
  echo hi | banger run --rm -i -- cat      standard input passes with -i
  banger run --image app-1 --image-command what the image was made to run

Exit status: that of the command, 124 after --timeout, 125 where it never ran,
126 and 127 where it cannot be executed or found, 128 + n where signal n ended it.")]
pub(crate) struct Run {
    #[command(flatten)]
    machine: MachineFlags,
    #[command(flatten)]
    process: ProcessFlags,
    /// Create the VM, print its name, leave it running
    #[arg(short, long)]
    detach: bool,
    /// With -d, print the id instead of the name
    #[arg(short, long, requires = "detach")]
    quiet: bool,
    /// Delete the VM at the end
    #[arg(long)]
    rm: bool,
    /// Run the image's own Entrypoint and Cmd, as its User; COMMAND takes the place of Cmd
    #[arg(long)]
    image_command: bool,
    /// Say where the time went
    #[arg(long)]
    timings: bool,
    /// End with a line of JSON on standard error (with -d on standard output)
    #[arg(long)]
    json: bool,
    /// The command and its arguments; a login shell without
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What is known of a run so far.
struct Story {
    started: Instant,
    timings: Timings,
    name: Option<String>,
}

impl Run {
    /// Runs it.
    pub(crate) async fn run(self, place: &Place, started: Instant) -> Result<u8, Failure> {
        self.check()?;
        let mut story = Story {
            started,
            timings: Timings::default(),
            name: None,
        };
        if self.detach {
            return self.detached(place, &mut story).await;
        }
        let streams = self
            .process
            .streams(Terminals::of_this_process(), !self.has_command())?;
        let attached = Attached {
            run: &self,
            place,
            streams,
        };
        let status = match attached.run(&mut story).await {
            Ok(status) => status,
            Err(failure) => {
                failure.print();
                failure.exit
            }
        };
        if self.timings {
            show::note(story.timings.table().trim_end());
        }
        if self.json {
            show::note(&story.timings.summary(story.name.as_deref(), status));
        }
        Ok(status)
    }

    /// What can be refused before anything exists.
    fn check(&self) -> Result<(), Failure> {
        if self.detach && self.rm {
            return Err(
                Failure::usage("run", "-d leaves the VM running, --rm deletes it")
                    .hint("banger create --name x && banger exec x -- CMD"),
            );
        }
        if self.detach && self.has_command() {
            return Err(Failure::usage("run", "-d runs no command")
                .hint("banger create --name x && banger exec x -- CMD"));
        }
        Ok(())
    }

    /// A command runs, and no shell.
    fn has_command(&self) -> bool {
        self.image_command || !self.command.is_empty()
    }

    async fn detached(&self, place: &Place, story: &mut Story) -> Result<u8, Failure> {
        guarded(async |cancel| {
            let client = place.reach().await?;
            story.timings.add("connect", story.started.elapsed());
            let asked = Instant::now();
            let begun = client
                .call::<VmCreate>(&[], &self.machine.params())
                .await?
                .operation;
            story.timings.add("create_request", asked.elapsed());
            let followed = Instant::now();
            let mut progress = Progress::new();
            let done = follow::success(place, &client, &begun.id, &mut progress, cancel).await?;
            story
                .timings
                .add_remote(&done.timings, followed.elapsed(), "wait");
            if self.timings {
                show::note(story.timings.table().trim_end());
            }
            if self.json {
                let name = done
                    .vm_name
                    .as_deref()
                    .or(done.vm.as_ref().map(|vm| vm.name.as_str()));
                show::line(&story.timings.summary(name, 0))?;
                return Ok(0);
            }
            print_new(&done, self.quiet)
        })
        .await
    }

    /// A failure before the command ran, as the exit status has it: a shell's
    /// by kind, a command's 125; wrong usage is wrong usage.
    fn never_ran(&self, failure: Failure) -> Failure {
        if !self.has_command() || failure.code.is_none() {
            return failure;
        }
        failure.exiting(NOT_RUN)
    }
}

/// A run whose command the user waits for.
struct Attached<'a> {
    run: &'a Run,
    place: &'a Place,
    streams: Streams,
}

/// A VM that was asked for.
struct Begun {
    client: Client,
    operation: Operation,
    /// What names it in paths.
    vm: String,
    /// What names it to the user.
    name: String,
    asked: Instant,
    /// The command of its image, where that is wanted and known.
    own: Option<OwnCommand>,
}

impl Attached<'_> {
    async fn run(&self, story: &mut Story) -> Result<u8, Failure> {
        let mut interrupts = Interrupts::listen()?;
        let begun = self.begin(story, &mut interrupts).await?;
        story.name = Some(begun.name.clone());
        let mut progress = Progress::new();
        let opened = self.open(&begun, &mut progress, &mut interrupts).await;
        if opened.is_ok() {
            progress.line(&format!(
                "ready in {:.1} s",
                story.started.elapsed().as_secs_f64()
            ));
        }
        progress.finish();
        let waited = begun.asked.elapsed();
        let duplex = match opened {
            Ok(duplex) => duplex,
            Err(failure) => {
                self.tell_stages(&begun, waited, story).await;
                return Err(self.run.never_ran(failure));
            }
        };
        let running = Instant::now();
        let ended = session::join(duplex, self.streams, &mut interrupts).await;
        let ran = running.elapsed();
        let tearing = Instant::now();
        let end = self.tear_down(&begun, ended, &mut interrupts).await;
        let torn = tearing.elapsed();
        self.tell_stages(&begun, waited, story).await;
        story.timings.add("exec", ran);
        if self.run.rm {
            story.timings.add("teardown", torn);
        } else if show::watched() {
            let name = show::escape(&begun.name);
            show::note(&format!(
                "\"{name}\" still runs; banger stop {name}, or run --rm"
            ));
        }
        outcome(end)
    }

    /// Reaches the daemon and asks for the VM.
    async fn begin(
        &self,
        story: &mut Story,
        interrupts: &mut Interrupts,
    ) -> Result<Begun, Failure> {
        let mut params = VmCreateParams {
            auto_remove: self.run.rm,
            main_follows: true,
            ..self.run.machine.params()
        };
        let reached = tokio::select! {
            reached = self.place.reach() => reached,
            blow = interrupts.next() => return Err(left(blow)),
        };
        let client = reached.map_err(|failure| self.run.never_ran(failure))?;
        story.timings.add("connect", story.started.elapsed());
        let own = tokio::select! {
            own = self.own_command(&client, &mut params) => own,
            blow = interrupts.next() => return Err(left(blow)),
        };
        let own = own.map_err(|failure| self.run.never_ran(failure))?;
        let asked = Instant::now();
        let (reply, blow) = {
            let call = client.call::<VmCreate>(&[], &params);
            tokio::pin!(call);
            tokio::select! {
                reply = &mut call => (reply, None),
                // What was begun can only be undone when it is known.
                blow = interrupts.next() => tokio::select! {
                    reply = &mut call => (reply, Some(blow)),
                    second = interrupts.next() => return Err(left(second)),
                },
            }
        };
        let operation = reply.map_err(|failure| self.refused(failure))?.operation;
        story.timings.add("create_request", asked.elapsed());
        let vm = operation
            .vm_id
            .clone()
            .or_else(|| operation.vm_name.clone())
            .or(self.run.machine.name.clone());
        let name = operation
            .vm_name
            .clone()
            .or(self.run.machine.name.clone())
            .or(vm.clone());
        let begun = Begun {
            client,
            operation,
            vm: vm.unwrap_or_default(),
            name: name.unwrap_or_default(),
            asked: Instant::now(),
            own,
        };
        match blow {
            None => Ok(begun),
            Some(blow) => Err(self.call_off(&begun, blow, interrupts).await),
        }
    }

    /// The command of the image that is named, if it is to run and is here. The
    /// VM is then made from that very image, whatever gets its name meanwhile.
    async fn own_command(
        &self,
        client: &Client,
        params: &mut VmCreateParams,
    ) -> Result<Option<OwnCommand>, Failure> {
        let named = params.image_name.as_mut();
        let Some(name) = named.filter(|_| self.run.image_command) else {
            return Ok(None);
        };
        let image = match client.get::<ImageShow>(At::path(&[name])).await {
            Ok(shown) => shown.image,
            // The create obtains it, or says why not.
            Err(failure) if failure.code == Some(Code::NotFound) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let own = OwnCommand::of(&image, &self.run.command)?;
        *name = image.id;
        Ok(Some(own))
    }

    /// The same of an image that was not known before the VM was made.
    async fn command_of_made(
        &self,
        begun: &Begun,
        progress: &mut Progress,
    ) -> Result<OwnCommand, Failure> {
        let id = &begun.operation.id;
        let operation =
            follow::to_the_end(self.place, &begun.client, id, progress, Cancel::never()).await?;
        if !operation.success {
            return Err(Failure::of_operation(&operation));
        }
        let found = async {
            let client = &begun.client;
            let vm = client.get::<VmShow>(At::path(&[&begun.vm])).await?.vm;
            let path = [vm.image_id.as_str()];
            let image = client.get::<ImageShow>(At::path(&path)).await?.image;
            OwnCommand::of(&image, &self.run.command)
        };
        let found = found.await;
        if found.is_err() && self.run.rm {
            self.delete(begun).await;
        }
        found
    }

    /// A create that the daemon refused to begin.
    fn refused(&self, failure: Failure) -> Failure {
        match failure.code {
            Some(Code::BadRequest | Code::BadName | Code::BadSize) => failure.exiting(USAGE),
            _ => self.run.never_ran(failure),
        }
    }

    /// Opens the exec while the VM comes up.
    async fn open(
        &self,
        begun: &Begun,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<Duplex, Failure> {
        let watched = progress.shown();
        let lines = progress.lines();
        let work = self.boot_and_exec(begun, progress);
        let spec = spec_line(begun, &lines);
        tokio::pin!(work, spec);
        let (mut spec_asked, mut spec_told) = (false, false);
        loop {
            tokio::select! {
                opened = &mut work => {
                    if watched && !spec_told && opened.is_ok() {
                        // There was no record of it when it was asked for.
                        spec_line(begun, &lines).await;
                    }
                    return opened;
                }
                told = &mut spec, if watched && !spec_asked => {
                    (spec_asked, spec_told) = (true, told);
                }
                blow = interrupts.next() => return Err(self.call_off(begun, blow, interrupts).await),
            }
        }
    }

    async fn boot_and_exec(
        &self,
        begun: &Begun,
        progress: &mut Progress,
    ) -> Result<Duplex, Failure> {
        let mut params = self.run.process.params(&self.run.command, self.streams);
        params.main = true;
        let mut watched = progress.shown();
        if self.run.image_command {
            let own = match &begun.own {
                Some(own) => own.clone(),
                None => {
                    let own = self.command_of_made(begun, progress).await?;
                    // All of it was shown.
                    watched = false;
                    own
                }
            };
            own.put_into(&mut params);
        }
        self.follow_and_exec(begun, &params, progress, watched)
            .await
    }

    async fn follow_and_exec(
        &self,
        begun: &Begun,
        params: &ExecParams,
        progress: &mut Progress,
        watched: bool,
    ) -> Result<Duplex, Failure> {
        let id = &begun.operation.id;
        let first = {
            let exec = begun.client.exec(&begun.vm, params);
            let follow =
                follow::to_the_end(self.place, &begun.client, id, progress, Cancel::never());
            tokio::pin!(exec, follow);
            let mut followed = !watched;
            loop {
                tokio::select! {
                    biased;
                    first = &mut exec => break first,
                    done = &mut follow, if !followed => {
                        let operation = done?;
                        if !operation.success {
                            return Err(Failure::of_operation(&operation));
                        }
                        followed = true;
                    }
                }
            }
        };
        let failure = match first {
            Ok(duplex) => return Ok(duplex),
            Err(failure) => failure,
        };
        // Why it failed is more likely the create's story than the exec's.
        let operation =
            follow::to_the_end(self.place, &begun.client, id, progress, Cancel::never()).await?;
        if !operation.success {
            return Err(Failure::of_operation(&operation));
        }
        let too_early = matches!(failure.code, Some(Code::NotFound | Code::NotRunning));
        let last = if too_early {
            begun.client.exec(&begun.vm, params).await
        } else {
            Err(failure)
        };
        if last.is_err() && self.run.rm {
            self.delete(begun).await;
        }
        last
    }

    /// Undoes a create because of an interrupt; a second one leaves at once.
    async fn call_off(&self, begun: &Begun, blow: Blow, interrupts: &mut Interrupts) -> Failure {
        let undo = async {
            let id = begun.operation.id.as_str();
            let cancelled = begun.client.call::<OperationCancel>(&[id], &Empty {}).await;
            if blow == Blow::Hup || cancelled.is_err() {
                return;
            }
            let mut hidden = Progress::hidden();
            let done =
                follow::to_the_end(self.place, &begun.client, id, &mut hidden, Cancel::never())
                    .await;
            // It was ready a moment before: what was interrupted goes.
            if done.is_ok_and(|operation| operation.success) {
                self.delete(begun).await;
            }
        };
        tokio::select! {
            () = undo => left(blow),
            second = interrupts.next() => left(second),
        }
    }

    async fn delete(&self, begun: &Begun) {
        // Gone already is as good; a daemon that went away deletes `--rm` VMs
        // when it is back.
        if let Ok(begun_delete) = begun.client.call::<VmDelete>(&[&begun.vm], &Empty {}).await {
            let id = begun_delete.operation.id;
            let mut hidden = Progress::hidden();
            let _ =
                follow::to_the_end(self.place, &begun.client, &id, &mut hidden, Cancel::never())
                    .await;
        }
    }

    /// After the command: with `--rm` the VM is gone when this returns.
    async fn tear_down(&self, begun: &Begun, ended: Ended, interrupts: &mut Interrupts) -> End {
        let end = ended.end.clone();
        if !self.run.rm {
            return end;
        }
        if let End::Left(_) = end {
            drop(ended);
            let path = [begun.vm.as_str()];
            let delete = begun.client.call::<VmDelete>(&path, &Empty {});
            let _ = tokio::time::timeout(LAST_WORD, delete).await;
            return end;
        }
        tokio::select! {
            gone = ended.see_off() => {
                if !gone {
                    show::warn(&format!("{:?} is not gone yet; the daemon goes on deleting it", begun.name));
                }
                end
            }
            blow = interrupts.next() => End::Left(blow.status()),
        }
    }

    /// Puts the daemon's stages into the story, where they are wanted.
    async fn tell_stages(&self, begun: &Begun, waited: Duration, story: &mut Story) {
        if !self.run.timings && !self.run.json {
            return;
        }
        let shown = begun
            .client
            .get::<OperationShow>(At::path(&[&begun.operation.id]))
            .await;
        let stages = shown
            .map(|shown| shown.operation.timings)
            .unwrap_or_default();
        story.timings.add_remote(&stages, waited, "attach");
    }
}

/// Says what machine this is; false where there is no record of it yet.
async fn spec_line(begun: &Begun, lines: &Lines) -> bool {
    let Ok(shown) = begun.client.get::<VmShow>(At::path(&[&begun.vm])).await else {
        return false;
    };
    let spec = shown.vm.spec;
    lines.line(&format!(
        "spec: {} vcpu | {} MiB | {} disk",
        spec.vcpu_count,
        spec.memory_mib,
        exact(spec.work_disk_size_bytes)
    ));
    true
}
