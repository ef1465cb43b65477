//! banger with directories of its own below `target/bench`, kept between runs
//! so that the image is built once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::measure::Run;

/// A banger of our own.
pub(crate) struct House {
    root: PathBuf,
    programs: PathBuf,
    // Socket names have a limit, so they are not below the root.
    run_dir: tempfile::TempDir,
}

impl House {
    /// Opens the house beside the programs of this build.
    pub(crate) fn open() -> Result<Self> {
        let programs = std::env::current_exe()?
            .parent()
            .context("a program has a directory")?
            .to_owned();
        let root = programs
            .parent()
            .context("target/release has a parent")?
            .join("bench");
        fs::create_dir_all(&root)?;
        ensure!(
            programs.join("banger").is_file(),
            "no banger beside {}: make build",
            programs.display()
        );
        let run_dir = tempfile::Builder::new().prefix("bb").tempdir_in("/tmp")?;
        Ok(Self {
            root,
            programs,
            run_dir,
        })
    }

    /// The programs of this build: `target/release`.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// Where banger keeps what it caches.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache/banger")
    }

    /// A banger command in this house.
    pub(crate) fn banger(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("banger"));
        command
            .args(args)
            .env("XDG_STATE_HOME", self.root.join("state"))
            .env("XDG_CONFIG_HOME", self.root.join("config"))
            .env("XDG_CACHE_HOME", self.root.join("cache"))
            .env("XDG_RUNTIME_DIR", self.run_dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Its output, if it succeeded.
    pub(crate) fn output(&self, args: &[&str]) -> Result<Output> {
        let output = self.banger(args).output()?;
        if !output.status.success() {
            bail!(
                "banger {}: {}\n{}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output)
    }

    /// `run --rm -- true` in a network mode, from fork to the end of the command line's process.
    pub(crate) fn run_true(&self, network: &str) -> Result<Run> {
        let begin = Instant::now();
        let line = ["run", "--rm", "--network", network, "--json", "--", "true"];
        let output = self.output(&line)?;
        let wall = begin.elapsed();
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().last().context("--json prints a last line")?;
        let report: Value =
            serde_json::from_str(last).with_context(|| format!("not JSON: {last}"))?;
        let stages = report["timings"]
            .as_array()
            .context("timings are a list")?
            .iter()
            .map(|row| {
                (
                    row["stage"].as_str().unwrap_or("?").to_owned(),
                    row["ms"].as_f64().unwrap_or(0.0),
                )
            })
            .collect();
        Ok(Run { wall, stages })
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> Result<u64> {
        let ping: Value =
            serde_json::from_slice(&self.output(&["daemon", "status", "--json"])?.stdout)?;
        ping["pid"].as_u64().context("a pid")
    }

    /// What the daemon costs when there is nothing to do.
    pub(crate) fn idle(&self) -> Result<String> {
        Ok(format!("idle daemon: {}", at_rest(self.daemon()?)?))
    }
}

/// What a process costs that has nothing to do: memory, and how often it wakes
/// in ten seconds.
pub(crate) fn at_rest(pid: u64) -> Result<String> {
    let switches = || -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            sum += status
                .lines()
                .filter(|line| line.contains("ctxt_switches"))
                .filter_map(|line| line.rsplit(char::is_whitespace).next()?.parse::<u64>().ok())
                .sum::<u64>();
        }
        Ok(sum)
    };
    let before = switches()?;
    // The time is the measure here.
    let _ = rustix::thread::nanosleep(&rustix::time::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    });
    // A thread that ended takes its count along.
    let wakeups = switches()?.saturating_sub(before);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap_or("VmRSS: ?");
    Ok(format!(
        "{}, {wakeups} context switches in 10 s",
        rss.split_whitespace().collect::<Vec<_>>().join(" ")
    ))
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.banger(&["daemon", "stop", "--with-vms"]).output();
    }
}
