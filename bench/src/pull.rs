//! An image from a registry to a file that boots: `banger pull` held against the usual tools,
//! `skopeo copy`, `umoci unpack` and `mke2fs -d`, from the same registry on loopback in one run.
//!
//! The image is a Debian with compilers and interpreters, one gzip layer of about 500 MB, made
//! once and kept below `target/bench`. Each round begins with an empty cache, a daemon that has
//! done nothing yet, and nothing left to write to the disk. Images of many small files follow,
//! which tell how time and memory grow.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::archive::header;
use e2e::{census, wait};

use crate::house::House;
use crate::measure::{Run, Series, goal, median_ratio, ratios};
use crate::memory::{Peak, Watch};

const TOOLS: [&str; 7] = [
    "docker-registry",
    "e2fsck",
    "mke2fs",
    "mmdebstrap",
    "skopeo",
    "sync",
    "umoci",
];
const PACKAGES: &str = "gcc,g++,git,perl,python3,vim";
/// How much faster than the usual tools it is to be, and with how many bytes more than when idle.
const TIMES: f64 = 3.0;
const MEMORY: u64 = 64 << 20;
/// What one file may take more among ten times as many: what is left of the spread.
const GROWTH: f64 = 1.25;
const BEST_OF: usize = 3;
const SMALL_FILES: [usize; 3] = [10_000, 100_000, 1_000_000];

/// Measures all of it so many times and says what came out.
pub(crate) fn section(rounds: usize) -> Result<String> {
    let missing = TOOLS.iter().find(|tool| census::which(tool).is_none());
    if let Some(tool) = missing {
        return Ok(format!("skipped: no {tool}"));
    }
    if !e2e::am_root() {
        return Ok("skipped: only root can unpack images as they are".to_owned());
    }
    let house = House::open()?;
    let place = Place::open(&house)?;
    let registry = Registry::start(&place.dir)?;
    let mut text = String::new();

    let big = place.debian()?;
    let content = fs::metadata(&big)?.len();
    registry.push(&place, "debian", &big)?;
    let (mut ours, mut theirs) = <(Series, Series)>::default();
    let mut peaks = Vec::new();
    for round in 1..=rounds {
        let (run, peak, size) = pull(&house, &registry, "debian")?;
        ours.push(run);
        peaks.push(peak);
        theirs.push(usual(&place, &registry, "debian", size)?);
        eprintln!("round {round}/{rounds}");
    }
    writeln!(
        text,
        "Debian with {PACKAGES}: {:.0} MB in one gzip layer\n",
        content as f64 / 1e6
    )?;
    writeln!(text, "{}", ours.table("banger, ms"))?;
    writeln!(text, "{}", theirs.table("the usual tools, ms"))?;
    let (ours, theirs) = (ours.walls(), theirs.walls());
    writeln!(
        text,
        "{}",
        ratios("the usual tools / banger", &theirs, &ours)
    )?;
    let times = median_ratio(&theirs, &ours);
    let what = format!("at least {TIMES} times faster than the usual tools");
    writeln!(text, "{}\n", goal(&what, times >= TIMES))?;
    for peak in &peaks {
        writeln!(text, "{peak}")?;
    }
    let what = format!("at most {} MiB more than when idle", MEMORY >> 20);
    let met = peaks.iter().all(|peak| peak.above() <= MEMORY);
    writeln!(text, "{}", goal(&what, met))?;

    writeln!(text, "\nimages of many small files")?;
    let mut each = Vec::new();
    for count in SMALL_FILES {
        let name = format!("small-{count}");
        registry.push(&place, &name, &place.small(count)?)?;
        // What the disk does meanwhile is not the number of files': the best of a few.
        let (mut wall, mut peak) = (f64::INFINITY, None);
        for _ in 0..rounds.min(BEST_OF) {
            let (run, most, _) = pull(&house, &registry, &name)?;
            if run.wall.as_secs_f64() < wall {
                (wall, peak) = (run.wall.as_secs_f64(), Some(most));
            }
        }
        let peak = peak.context("there is a round")?;
        each.push((wall / count as f64, peak.above() as f64 / count as f64));
        writeln!(
            text,
            "  {count:>7} files: {wall:>7.2} s, {:>5.1} us a file; {peak}; {:.0} bytes a file",
            wall * 1e6 / count as f64,
            peak.above() as f64 / count as f64
        )?;
        eprintln!("{count} files");
    }
    // What each pull takes, however small, is in the first of them.
    let linear = each.windows(2).all(|pair| {
        let ((time, memory), (next_time, next_memory)) = (pair[0], pair[1]);
        next_time <= time * GROWTH && next_memory <= memory * GROWTH
    });
    let what = "time and memory of a file are no more where there are ten times as many";
    writeln!(text, "{}", goal(what, linear))?;
    Ok(text)
}

/// One pull into an empty cache, by a daemon that has done nothing yet.
fn pull(house: &House, registry: &Registry, name: &str) -> Result<(Run, Peak, u64)> {
    let _ = house.banger(&["image", "rm", "bench-pulled"]).output()?;
    house.output(&["daemon", "stop"])?;
    let blobs = house.cache().join("oci");
    match fs::remove_dir_all(&blobs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    house.output(&["list"])?;
    sync()?;
    let watch = Watch::start(house.daemon()?)?;
    let begin = Instant::now();
    let reference = registry.reference(name);
    house.output(&["pull", &reference, "--name", "bench-pulled"])?;
    let wall = begin.elapsed();
    let peak = watch.finish()?;
    ensure!(
        blobs.is_dir(),
        "what was pulled is not where it is removed from"
    );
    let shown = house.output(&["image", "show", "bench-pulled", "--json"])?;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    let rootfs = shown["image"]["rootfs_path"].as_str().context("a path")?;
    let size = fs::metadata(rootfs)?.len();
    run(Path::new("/"), &["e2fsck", "-fn", rootfs])?;
    house.output(&["image", "rm", "bench-pulled"])?;
    let stages = Vec::new();
    Ok((Run { wall, stages }, peak, size))
}

/// What one does without banger.
fn usual(place: &Place, registry: &Registry, name: &str, size: u64) -> Result<Run> {
    let dir = place.dir.join("usual");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    sync()?;
    let source = format!("docker://{}", registry.reference(name));
    let size = format!("{}k", size / 1024);
    let lines: [&[&str]; 3] = [
        &[
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            "--src-tls-verify=false",
            &source,
            "oci:layout:x",
        ],
        &["umoci", "unpack", "--image", "layout:x", "bundle"],
        &[
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-d",
            "bundle/rootfs",
            "rootfs.ext4",
            &size,
        ],
    ];
    let begin = Instant::now();
    let mut stages = Vec::new();
    for line in lines {
        let stage = Instant::now();
        run(&dir, line)?;
        let ms = stage.elapsed().as_secs_f64() * 1000.0;
        stages.push((line[0].to_owned(), ms));
    }
    let wall = begin.elapsed();
    fs::remove_dir_all(&dir)?;
    Ok(Run { wall, stages })
}

fn run(dir: &Path, line: &[&str]) -> Result<()> {
    let output = Command::new(line[0])
        .args(&line[1..])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line[0]))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{said}", line.join(" "), output.status);
    }
    Ok(())
}

/// What one round has to write must not be what the next one waits for.
fn sync() -> Result<()> {
    run(Path::new("/"), &["sync"])
}

/// Where images are made, and kept from run to run.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn open(house: &House) -> Result<Self> {
        let dir = house.cache().join("../../pull");
        fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        Ok(Self { dir })
    }

    /// A tar file, made where it is missing.
    fn kept(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let (file, new) = (self.dir.join(name), self.dir.join("new.tar"));
        if !file.is_file() {
            eprintln!("making {name}");
            make(&new)?;
            fs::rename(&new, &file)?;
        }
        Ok(file)
    }

    fn debian(&self) -> Result<PathBuf> {
        self.kept("debian.tar", |new| {
            let include = format!("--include={PACKAGES}");
            let new = new.to_str().context("a path is text")?;
            let words = ["mmdebstrap", "--quiet", "--variant=minbase"];
            run(
                &self.dir,
                &[&words[..], &[&include, "bookworm", new]].concat(),
            )
        })
    }

    /// So many files of a line each, a hundred in a directory.
    fn small(&self, count: usize) -> Result<PathBuf> {
        self.kept(&format!("small-{count}.tar"), |new| {
            let mut out = BufWriter::new(File::create(new)?);
            for number in 0..count {
                if number % 100 == 0 {
                    let directory = format!("d/{:03}/{:02}/", number / 10_000, number / 100 % 100);
                    out.write_all(&header(directory.as_bytes(), b'5', 0, b""))?;
                }
                let (top, below) = (number / 10_000, number / 100 % 100);
                let path = format!("d/{top:03}/{below:02}/file-{number}");
                let mut content = [0; 512];
                let line = format!("this is number {number}\n");
                content[..line.len()].copy_from_slice(line.as_bytes());
                out.write_all(&header(path.as_bytes(), b'0', line.len() as u64, b""))?;
                out.write_all(&content)?;
            }
            out.write_all(&[0; 1024])?;
            out.flush().map_err(Into::into)
        })
    }
}

/// Debian's docker-registry on loopback; killed when it is dropped.
struct Registry {
    server: Child,
    at: String,
}

impl Registry {
    fn start(dir: &Path) -> Result<Self> {
        let at = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = dir.join("registry.yml");
        let store = dir.join("registry");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\nhttp:\n  addr: {at}\n",
                store.display()
            ),
        )?;
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { server, at };
        let there = wait::eventually(Duration::from_secs(30), || {
            TcpStream::connect(&registry.at).ok()
        });
        ensure!(there.is_some(), "the registry does not answer");
        Ok(registry)
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}:1", self.at)
    }

    /// Pushes a tar file as the one layer of an image, unless it is there.
    fn push(&self, place: &Place, name: &str, tar: &Path) -> Result<()> {
        let image = place.dir.join("registry/docker/registry/v2/repositories");
        if image.join(name).join("_manifests/tags/1").is_dir() {
            return Ok(());
        }
        let tar = tar.to_str().context("a path is text")?;
        let _ = fs::remove_dir_all(place.dir.join("layout"));
        let target = format!("docker://{}", self.reference(name));
        let lines: [&[&str]; 4] = [
            &["umoci", "init", "--layout", "layout"],
            &["umoci", "new", "--image", "layout:x"],
            &["umoci", "raw", "add-layer", "--image", "layout:x", tar],
            &[
                "skopeo",
                "--insecure-policy",
                "copy",
                "-q",
                "--dest-tls-verify=false",
                "oci:layout:x",
                &target,
            ],
        ];
        for line in lines {
            run(&place.dir, line)?;
        }
        fs::remove_dir_all(place.dir.join("layout"))?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
