//! QEMU's own way out: the machine of a real VM of banger's with `-netdev user`
//! in place of the line to a gateway, and packets as large as QEMU offers them.
//! Nobody can call its guest, so it asks for its commands.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{House, Live, World, wait};

use crate::bare::{replace_init, rewrite, value_after};

/// Where the guest asks.
const POST: &str = "203.0.113.10:9";
/// A boot, or the longest measurement, on a slow machine.
const LONG: Duration = Duration::from_secs(600);

/// What the machine is made from.
pub(crate) struct Twin {
    /// Command line of the VM that it is like.
    pub(crate) original: Vec<String>,
    /// Where its own files are.
    pub(crate) directory: PathBuf,
    /// Each disk of the VM, and the copy in its place.
    pub(crate) disks: Vec<(PathBuf, PathBuf)>,
}

/// A machine that runs.
pub(crate) struct Slirp {
    post: Live,
    engine: Live,
    /// Its command line, for people to compare.
    pub(crate) argv: Vec<String>,
    /// Lines that the post printed before the answer that is waited for.
    heard: usize,
}

impl Slirp {
    /// Boots it beside the VM that it is like. The copies of its disks have the
    /// probe as `/bin/probe`.
    pub(crate) fn boot(house: &House, world: &World, twin: &Twin, init: &Path) -> Result<Self> {
        let (original, directory) = (&twin.original[..], &twin.directory);
        let initrd = directory.join("initramfs.cpio");
        replace_init(Path::new(value_after(original, "-initrd")?), init, &initrd)?;
        let mut argv = rewrite(original, directory, &initrd, &twin.disks);
        let mut replaced = 0;
        for word in &mut argv {
            if word.starts_with("dgram,id=n0") {
                *word = "user,id=n0".to_owned();
                replaced += 1;
            } else if word.starts_with("virtio-net-") {
                let offered = word
                    .split(',')
                    .filter(|part| !part.starts_with("host_mtu="));
                *word = offered.collect::<Vec<_>>().join(",");
                replaced += 1;
            } else if word.contains("root=") || word.contains("console=") {
                word.push_str(&format!(" bench-obey={POST}"));
                replaced += 1;
            }
        }
        ensure!(
            replaced == 3,
            "another command line than expected: {argv:?}"
        );

        let probe = world.probe();
        let post = world
            .outside(house, &[&probe, "post", POST])
            .input_held()
            .start();
        post.wait_for_out("ready", LONG);
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut engine = world.on_host(house, &words).start();
        wait::until_true("the guest asks for commands", LONG, || {
            engine.has_ended() || post.out_so_far().contains("there")
        });
        ensure!(
            !engine.has_ended(),
            "the guest behind QEMU's own network ended: {}",
            std::fs::read_to_string(directory.join("console.log")).unwrap_or_default()
        );
        Ok(Self {
            post,
            engine,
            argv,
            heard: 2,
        })
    }

    /// Runs the probe there: what it said.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String> {
        self.post.write(format!("{line}\n").as_bytes());
        let answer = wait::until("the guest answers", LONG, || {
            if self.engine.has_ended() {
                return Some("-1 the engine has ended".to_owned());
            }
            let all = self.post.out_so_far();
            let mut whole = all
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            whole.nth(self.heard).map(|line| line.trim().to_owned())
        });
        self.heard += 1;
        let (status, said) = answer.split_once(' ').context("a status and words")?;
        ensure!(status == "0", "{line}: {said}");
        Ok(said.to_owned())
    }
}
