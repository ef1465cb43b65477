//! The bare engine: the command line of a real VM of banger's, with another
//! initramfs and without the line to the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::house::House;
use crate::measure::Run;

/// A machine to boot again and again, with fresh disks each time.
pub(crate) struct Bare {
    /// The command line it was made from.
    pub(crate) original: Vec<String>,
    /// The command line that runs.
    pub(crate) argv: Vec<String>,
    directory: PathBuf,
    /// Fresh disk, and where the machine expects its copy.
    disks: Vec<(PathBuf, PathBuf)>,
}

impl Bare {
    /// Takes the command line of a VM of this house.
    pub(crate) fn like(house: &House) -> Result<Self> {
        let directory = house.cache().join("../../bare");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let directory = directory.canonicalize()?;

        // Its disks before they were ever mounted, its command line when it runs.
        let name = "bench-like";
        let _ = house.banger(&["rm", "-f", name]).output()?;
        house.output(&["create", "--no-start", "--name", name, "--network", "none"])?;
        let shown: serde_json::Value =
            serde_json::from_slice(&house.output(&["show", name, "--json"])?.stdout)?;
        let runtime = &shown["vm"]["runtime"];
        let id = shown["vm"]["id"]
            .as_str()
            .context("a VM has an id")?
            .to_owned();
        let mut disks = Vec::new();
        for key in ["system_overlay_path", "work_disk_path"] {
            let path = PathBuf::from(runtime[key].as_str().context("a VM has disks")?);
            let file = path.file_name().context("a disk has a name")?;
            let (fresh, used) = (directory.join("fresh").join(file), directory.join(file));
            fs::create_dir_all(directory.join("fresh"))?;
            sparse_copy(&path, &fresh)?;
            disks.push((fresh, used));
        }
        house.output(&["start", name])?;
        let original = engine_of(&id)?;
        house.output(&["rm", "-f", name])?;

        let initrd = value_after(&original, "-initrd")?;
        let bare_initrd = directory.join("initramfs.cpio");
        replace_init(
            Path::new(initrd),
            &house
                .programs()
                .parent()
                .context("target")?
                .join("agent/bench-init"),
            &bare_initrd,
        )?;
        let argv = rewrite(&original, &directory, &bare_initrd, &disks);
        Ok(Self {
            original,
            argv,
            directory,
            disks,
        })
    }

    /// Boots it to the end of the command and the reset.
    pub(crate) fn run(&self) -> Result<Run> {
        for (fresh, used) in &self.disks {
            sparse_copy(fresh, used)?;
        }
        let console = self.directory.join("console.log");
        let _ = fs::remove_file(&console);
        let begin = Instant::now();
        let output = Command::new(&self.argv[0])
            .args(&self.argv[1..])
            .stdin(Stdio::null())
            .output()
            .context("cannot start the bare engine")?;
        let wall = begin.elapsed();
        let text = fs::read_to_string(&console).unwrap_or_default();
        ensure!(
            output.status.success() && text.contains("bench-stage command"),
            "the bare engine ended with {}: {}\n{text}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let stages = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("bench-stage ")?.split_once(' '))
            .filter_map(|(name, seconds)| {
                Some((name.to_owned(), seconds.parse::<f64>().ok()? * 1000.0))
            })
            .collect();
        Ok(Run { wall, stages })
    }
}

/// The command line of the engine that runs this VM.
pub(crate) fn engine_of(id: &str) -> Result<Vec<String>> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path().join("cmdline");
        let Ok(bytes) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.contains("qemu-system") && text.contains(id) {
            return Ok(text
                .trim_end_matches('\0')
                .split('\0')
                .map(str::to_owned)
                .collect());
        }
    }
    anyhow::bail!("no engine runs VM {id}")
}

pub(crate) fn value_after<'a>(argv: &'a [String], flag: &str) -> Result<&'a str> {
    let at = argv
        .iter()
        .position(|word| word == flag)
        .with_context(|| format!("no {flag}"))?;
    argv.get(at + 1)
        .map(String::as_str)
        .with_context(|| format!("{flag} has no value"))
}

/// Leaves out what belongs to the channel and to QMP, and points files at our
/// own. Everything else stays as it is.
pub(crate) fn rewrite(
    original: &[String],
    directory: &Path,
    initrd: &Path,
    disks: &[(PathBuf, PathBuf)],
) -> Vec<String> {
    let mut argv = vec![original[0].clone()];
    let mut words = original[1..].iter();
    while let Some(word) = words.next() {
        let takes_value = word.starts_with('-')
            && words
                .as_slice()
                .first()
                .is_some_and(|next| !next.starts_with('-'));
        let value = if takes_value {
            words.next().cloned()
        } else {
            None
        };
        let channel = value.as_deref().is_some_and(|value| {
            value.contains("fd=")
                || value.starts_with("virtserialport")
                || value.starts_with("chardev=qmp")
                || word == "-mon"
        });
        if channel {
            continue;
        }
        argv.push(word.clone());
        let Some(mut value) = value else { continue };
        if word == "-initrd" {
            value = initrd.display().to_string();
        }
        for (_, used) in disks {
            let name = used
                .file_name()
                .expect("a disk has a name")
                .to_string_lossy();
            value = with_file(&value, &name, used);
        }
        value = with_file(&value, "console.log", &directory.join("console.log"));
        argv.push(value);
    }
    argv
}

/// Replaces the path that ends in `/name` in a comma-separated option.
fn with_file(value: &str, name: &str, path: &Path) -> String {
    let tail = format!("/{name}");
    value
        .split(',')
        .map(|part| match part.split_once('=') {
            Some((key, file)) if file.ends_with(&tail) => format!("{key}={}", path.display()),
            _ => part.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

/// Copies a sparse file with its holes. Not timed.
pub(crate) fn sparse_copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .arg("--sparse=always")
        .arg(from)
        .arg(to)
        .status()?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

/// The same cpio with another `/init`: newc entries are a 110-byte header of
/// hex fields, the name and the data, each padded to four bytes.
pub(crate) fn replace_init(from: &Path, init: &Path, to: &Path) -> Result<()> {
    let archive = fs::read(from)?;
    let new_init = fs::read(init).with_context(|| format!("no {}", init.display()))?;
    let mut out = Vec::with_capacity(archive.len());
    let mut at = 0;
    let pad = |length: usize| length.next_multiple_of(4);
    let mut replaced = false;
    while archive.get(at..at + 6) == Some(b"070701") {
        let header = std::str::from_utf8(&archive[at..at + 110])?;
        let field =
            |index: usize| usize::from_str_radix(&header[6 + index * 8..14 + index * 8], 16);
        let (size, name_len) = (field(6)?, field(11)?);
        let data_at = at + pad(110 + name_len);
        let end = data_at + pad(size);
        let name = &archive[at + 110..at + 110 + name_len - 1];
        if name == b"init" || name == b"/init" {
            let mut header = header.to_owned();
            header.replace_range(54..62, &format!("{:08X}", new_init.len()));
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(&archive[at + 110..data_at]);
            out.extend_from_slice(&new_init);
            out.resize(pad(out.len()), 0);
            replaced = true;
        } else {
            out.extend_from_slice(&archive[at..end]);
        }
        at = end;
    }
    ensure!(replaced, "{} has no /init", from.display());
    fs::write(to, out)?;
    Ok(())
}
