//! A private banger: directories, daemon, VMs of one test.
//!
//! ```text
//! /tmp/bgr-XXXXXX/{state,config,cache,run}/banger   what XDG would name
//!                 home                              the rest of a user's life
//! ```
//!
//! The path is short since sockets live below it. Every process started in a
//! house carries the path in its environment, which is how leftovers are
//! known as this house's and no other's.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::api::{self, Reply};
use crate::census::{self, Census, Process};
use crate::done::Done;
use crate::fixture::{self, Kernel, Root};
use crate::run::Call;
use crate::user::User;
use crate::wait;

/// A private banger. Dropped, it stops its daemon and its VMs and fails the
/// test when something stays behind.
pub struct House {
    dir: TempDir,
    programs: PathBuf,
    /// uid and gid of the inhabitant, where it is not the test's own user.
    inhabitant: Option<(u32, u32)>,
    ids: RefCell<BTreeSet<String>>,
    env: RefCell<Vec<(String, String)>>,
}

/// Sizes of guests in the tests: small.
const CONFIG: &str = "\
[vm_defaults]
vcpu = 1
memory_mib = 256
disk_size = \"512M\"
system_overlay_size = \"512M\"
";

impl House {
    /// A house of the user who runs the tests, with small guests as default.
    ///
    /// # Panics
    /// When a directory cannot be made.
    #[must_use]
    pub fn new() -> Self {
        Self::build(fixture::programs(), None)
    }

    /// A house of another user, with programs that user may run.
    ///
    /// # Panics
    /// As [`House::new`].
    #[must_use]
    pub fn of(user: &User) -> Self {
        Self::build(
            user.programs(&fixture::programs()),
            Some((user.uid, user.gid)),
        )
    }

    /// As [`House::new`], without a configuration file.
    #[must_use]
    pub fn bare(user: Option<&User>) -> Self {
        let house = match user {
            Some(user) => Self::of(user),
            None => Self::new(),
        };
        let _ = std::fs::remove_file(house.config_file());
        house
    }

    fn build(programs: PathBuf, inhabitant: Option<(u32, u32)>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bgr-")
            .tempdir_in("/tmp")
            .expect("/tmp is writable");
        let house = Self {
            dir,
            programs,
            inhabitant,
            ids: RefCell::default(),
            env: RefCell::default(),
        };
        for name in ["state", "config/banger", "cache", "run", "home"] {
            std::fs::create_dir_all(house.dir().join(name)).expect("an own directory");
        }
        Call::new(
            "chmod",
            ["0700".as_ref(), house.dir().join("run").as_os_str()],
        )
        .run()
        .ok();
        house.configure(CONFIG);
        if let Some((uid, gid)) = inhabitant {
            Call::new(
                "chown",
                [
                    "-R".as_ref(),
                    format!("{uid}:{gid}").as_ref(),
                    house.dir().as_os_str(),
                ],
            )
            .run()
            .ok();
        }
        house
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where its programs are.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// `<state>`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir().join("state/banger")
    }

    /// `<run>`.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.dir().join("run/banger")
    }

    /// `<cache>`.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.dir().join("cache/banger")
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime().join("bangerd.sock")
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state().join("state.db")
    }

    /// `config.toml`.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir().join("config/banger/config.toml")
    }

    /// Replaces the configuration; the daemon reads it at its next start.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn configure(&self, text: &str) {
        std::fs::write(self.config_file(), text).expect("an own file");
        self.give(&self.config_file());
    }

    /// The configuration every house begins with.
    #[must_use]
    pub fn configuration() -> &'static str {
        CONFIG
    }

    /// Gives a file to who lives here.
    pub fn give(&self, path: &Path) {
        if let Some((uid, gid)) = self.inhabitant {
            let _ = Call::new(
                "chown",
                [
                    "-R".as_ref(),
                    format!("{uid}:{gid}").as_ref(),
                    path.as_os_str(),
                ],
            )
            .run();
        }
    }

    /// Sets a variable for all later calls.
    pub fn set_env(&self, name: &str, value: &str) {
        self.env
            .borrow_mut()
            .push((name.to_owned(), value.to_owned()));
    }

    /// Forgets what [`House::set_env`] set.
    pub fn clear_env(&self) {
        self.env.borrow_mut().clear();
    }

    /// Puts a call into this house: its directories, its user.
    #[must_use]
    pub fn wrap(&self, call: Call) -> Call {
        let at = |name: &str| self.dir().join(name);
        let mut call = call
            .env("XDG_STATE_HOME", at("state"))
            .env("XDG_CONFIG_HOME", at("config"))
            .env("XDG_CACHE_HOME", at("cache"))
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("HOME", at("home"))
            .env("BANGER_E2E_HOUSE", self.dir())
            .env("LC_ALL", "C.UTF-8")
            .env("RUST_BACKTRACE", "1");
        if let Some((uid, gid)) = self.inhabitant {
            call = call.as_user(uid, gid).within(at("home"));
        }
        for (name, value) in self.env.borrow().iter() {
            call = call.env(name, value);
        }
        call
    }

    /// A call of the CLI.
    #[must_use]
    pub fn call<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call {
        self.wrap(Call::new(self.programs.join("banger"), args))
    }

    /// Runs the CLI; words are separated by spaces.
    #[track_caller]
    #[must_use]
    pub fn banger(&self, line: &str) -> Done {
        self.call(line.split_whitespace()).run()
    }

    /// Runs a shell line in a VM.
    #[track_caller]
    #[must_use]
    pub fn sh(&self, vm: &str, script: &str) -> Done {
        self.call(["exec", vm, "--", "sh", "-c", script]).run()
    }

    /// Sends a request to the daemon, which must run.
    #[track_caller]
    #[must_use]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        api::request(&self.socket(), method, path, body)
    }

    /// The record of a VM.
    #[track_caller]
    #[must_use]
    pub fn vm(&self, name: &str) -> Value {
        self.call(["show", name, "--json"]).run().ok().json()["vm"].clone()
    }

    /// The state of a VM; empty when it is not there.
    #[must_use]
    pub fn state_of(&self, name: &str) -> String {
        let done = self.call(["show", name, "--json"]).run();
        if done.code != 0 {
            return String::new();
        }
        done.json()["vm"]["state"].as_str().unwrap_or("").to_owned()
    }

    /// All VMs, those at rest included.
    #[track_caller]
    #[must_use]
    pub fn vms(&self) -> Vec<Value> {
        self.banger("list --json").ok().json()["vms"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// Boot id as the guest says it.
    #[track_caller]
    #[must_use]
    pub fn boot_id(&self, name: &str) -> String {
        self.call(["exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id"])
            .run()
            .ok()
            .line()
    }

    /// System overlay and work disk of a VM.
    #[track_caller]
    #[must_use]
    pub fn disks(&self, name: &str) -> [PathBuf; 2] {
        let vm = self.vm(name);
        ["system_overlay_path", "work_disk_path"].map(|field| {
            PathBuf::from(
                vm["runtime"][field]
                    .as_str()
                    .unwrap_or_else(|| panic!("no {field} in {vm}")),
            )
        })
    }

    /// A file where who lives here may read it.
    fn lend(&self, file: PathBuf) -> PathBuf {
        if self.inhabitant.is_none() {
            return file;
        }
        let name = file.file_name().expect("a file has a name");
        let copy = self.dir().join("home").join(name);
        let words = [
            "--sparse=always".as_ref(),
            file.as_os_str(),
            copy.as_os_str(),
        ];
        let _ = Call::new("cp", words).run().ok();
        self.give(&copy);
        copy
    }

    /// Makes a kernel known here, and returns its name.
    ///
    /// # Panics
    /// When it cannot be had.
    #[track_caller]
    #[must_use]
    pub fn kernel(&self, kernel: Kernel) -> String {
        let name = kernel.name();
        if self.call(["kernel", "show", name]).run().code != 0 {
            let deb = self.lend(fixture::kernel_deb(kernel));
            self.call([
                "kernel".as_ref(),
                "import".as_ref(),
                name.as_ref(),
                "--deb".as_ref(),
                deb.as_os_str(),
            ])
            .run()
            .ok();
        }
        name.to_owned()
    }

    /// Makes a root file system known here, and returns its image's name.
    ///
    /// # Panics
    /// When it cannot be had.
    #[track_caller]
    #[must_use]
    pub fn image(&self, root: Root) -> String {
        let name = root.name();
        if self.call(["image", "show", name]).run().code != 0 {
            let file = self.lend(fixture::root(root));
            self.call([
                "image".as_ref(),
                "register".as_ref(),
                "--name".as_ref(),
                name.as_ref(),
                "--rootfs".as_ref(),
                file.as_os_str(),
            ])
            .run()
            .ok();
        }
        name.to_owned()
    }

    /// A house with one kernel and one root, which are its defaults.
    #[must_use]
    pub fn with(root: Root, kernel: Kernel) -> Self {
        let house = Self::new();
        house.furnish(root, kernel);
        house
    }

    /// Makes one kernel and one root known, and the defaults.
    pub fn furnish(&self, root: Root, kernel: Kernel) {
        self.configure(&format!(
            "default_image_name = \"{}\"\ndefault_kernel_name = \"{}\"\n{CONFIG}",
            root.name(),
            kernel.name()
        ));
        let _ = self.kernel(kernel);
        let _ = self.image(root);
    }

    /// Restarts the daemon in a network namespace with nothing in it: from now
    /// on neither it nor its guests can reach anything. False where this user
    /// may not make one.
    pub fn go_offline(&self) -> bool {
        if self.daemon_pid().is_some() {
            self.stop_daemon();
        }
        let alone: &[&str] = if crate::am_root() {
            &["--net"]
        } else {
            &["--map-current-user", "--net"]
        };
        let cli = self.programs.join("banger");
        let words = alone
            .iter()
            .map(OsStr::new)
            .chain([cli.as_os_str(), OsStr::new("list")]);
        self.wrap(Call::new("unshare", words)).run().code == 0
    }

    /// The daemon's process, asked without starting one.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.processes()
            .into_iter()
            .find(|p| p.program == "bangerd")
            .map(|p| p.pid)
    }

    /// Kills the daemon as a power cut would, and waits until it is gone.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill_daemon(&self) {
        let pid = self.daemon_pid().expect("a daemon runs");
        kill(pid);
        wait::until_true("the daemon is gone", Duration::from_secs(5), || {
            self.daemon_pid() != Some(pid)
        });
    }

    /// Stops the daemon, VMs run on.
    pub fn stop_daemon(&self) {
        let _ = self.banger("daemon stop").ok();
        wait::until_true("the daemon has ended", Duration::from_secs(20), || {
            self.daemon_pid().is_none()
        });
    }

    /// The engine's process of a VM.
    #[must_use]
    pub fn engine_pid(&self, id: &str) -> Option<u32> {
        self.engines()
            .into_iter()
            .find(|p| p.command.contains(id))
            .map(|p| p.pid)
    }

    /// All engines.
    #[must_use]
    pub fn engines(&self) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|p| p.program.starts_with("qemu"))
            .collect()
    }

    /// All gateways.
    #[must_use]
    pub fn gateways(&self) -> Vec<Process> {
        self.ids
            .borrow_mut()
            .extend(census::vm_ids(&self.database()));
        self.processes()
            .into_iter()
            .filter(|p| p.program == "banger-gateway")
            .collect()
    }

    /// All processes of this house.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        census::processes(self.dir(), &self.ids.borrow())
    }

    /// What exists because of this house now.
    #[must_use]
    pub fn census(&self) -> Census {
        self.ids
            .borrow_mut()
            .extend(census::vm_ids(&self.database()));
        let dir = self.dir().display().to_string();
        let processes = self.processes();
        Census {
            processes: processes
                .into_iter()
                .filter(|p| p.program != "bangerd" && p.program != "tmux")
                .map(|p| p.command.replace(&dir, ""))
                .collect(),
            cgroups: census::cgroups(&self.ids.borrow()),
            mounts: census::mounts(self.dir()),
            files: census::files(&self.state())
                .into_iter()
                .chain(census::files(&self.runtime()))
                .collect(),
            rows: census::rows(&self.database()),
        }
    }

    /// As [`House::census`], without what comes and goes with the daemon.
    #[must_use]
    pub fn rest(&self) -> Census {
        let mut census = self.census();
        census
            .files
            .retain(|f| f != "lock" && !f.ends_with(".sock"));
        census
    }

    /// Waits until nothing exists here that did not exist before, and fails
    /// the test otherwise.
    ///
    /// # Panics
    /// When something is left at the deadline.
    #[track_caller]
    pub fn assert_as_before(&self, before: &Census, deadline: Duration) {
        let mut left = Vec::new();
        let done = wait::eventually(deadline, || {
            left = self.census().more_than(before);
            left.is_empty().then_some(())
        });
        assert!(
            done.is_some(),
            "left behind after {deadline:?}:\n  {}",
            left.join("\n  ")
        );
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.state().join("bangerd.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Stops the daemon with its VMs and returns what is left that should not be.
    fn move_out(&self) -> Vec<String> {
        self.clear_env();
        self.ids
            .borrow_mut()
            .extend(census::vm_ids(&self.database()));
        if self.daemon_pid().is_some() || !self.engines().is_empty() {
            if self.daemon_pid().is_none() {
                // Engines without a daemon: a new one takes them over.
                let _ = self
                    .call(["list"])
                    .limit(Duration::from_secs(60))
                    .start()
                    .wait_quietly();
            }
            let _ = self
                .call(["daemon", "stop", "--with-vms"])
                .limit(Duration::from_secs(200))
                .start()
                .wait_quietly();
        }
        let mut left = Vec::new();
        wait::eventually(Duration::from_secs(10), || {
            left = self.leftovers();
            left.is_empty().then_some(())
        });
        for process in self.processes() {
            kill(process.pid);
        }
        left
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .processes()
            .into_iter()
            .map(|p| format!("process {}: {}", p.pid, p.command))
            .collect();
        left.extend(
            census::cgroups(&self.ids.borrow())
                .into_iter()
                .map(|c| format!("cgroup {c}")),
        );
        left.extend(
            census::mounts(self.dir())
                .into_iter()
                .map(|m| format!("mount {m}")),
        );
        left
    }
}

impl Default for House {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ends:\n{}\n---", self.log_tail());
            for vm in std::fs::read_dir(self.state().join("vms"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let logs = [vm.path(), vm.path().join("run")].map(std::fs::read_dir);
                for log in logs.into_iter().flatten().flatten().flatten() {
                    let path = log.path();
                    if path.extension().is_some_and(|e| e == "log") {
                        let text = std::fs::read(&path).unwrap_or_default();
                        let tail =
                            String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..])
                                .into_owned();
                        eprintln!("--- {} ends:\n{tail}\n---", path.display());
                    }
                }
            }
            let _ = self.move_out();
            return;
        }
        let left = self.move_out();
        assert!(
            left.is_empty(),
            "left in the house:\n  {}",
            left.join("\n  ")
        );
    }
}

/// Kills a process of a house.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
