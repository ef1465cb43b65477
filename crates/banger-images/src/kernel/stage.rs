//! The modules as plain files: unpacked beside the destination, indexed as the guest's tools
//! expect, and known by name.
//!
//! Owns `dest/.stage`, which is gone when the import ends. Symlinks of the source are left out
//! (they lead to build trees), and so are its indexes: those are made anew, since the files
//! they speak of have other names now.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use super::found::Found;
use super::needs::TooMany;
use super::{KernelError, needs};
use crate::codec::{Bounded, unpack};
use crate::modules::{ModInfo, modinfo, name_of_file};
use crate::process::{Run, RunError};
use crate::progress::{Cancel, Report};
use crate::tree::{Data, Kind, NodeId, Source, Tree};

/// The directory below the destination.
pub(super) const STAGE: &str = ".stage";
const MODULE_LIMIT: u64 = 256 << 20;
const ALL_LIMIT: u64 = 8 << 30;
/// Deeper than any kernel's tree.
const DEPTH_LIMIT: usize = 32;
/// More modules than any needs.
const NEEDS_LIMIT: usize = 256;

/// The staged modules of one version.
pub(super) struct Staged {
    root: PathBuf,
    /// `lib/modules/<version>` in the stage.
    pub(super) dir: PathBuf,
    /// Number of modules.
    pub(super) count: usize,
    /// Path of each module below `dir`, by name.
    pub(super) by_name: BTreeMap<String, PathBuf>,
    /// `modules.builtin`, if there is one.
    pub(super) builtin: Option<String>,
    pub(super) warnings: Vec<String>,
}

impl Staged {
    /// A module's bytes.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, KernelError> {
        let Some(path) = self.by_name.get(name) else {
            return Ok(None);
        };
        let path = self.dir.join(path);
        std::fs::read(&path)
            .map(Some)
            .map_err(KernelError::io(format!("read {}", path.display())))
    }

    /// What a module says of itself; `None` when there is none of that name, or it is broken.
    pub(super) fn info(&self, name: &str) -> Result<Option<ModInfo>, KernelError> {
        Ok(self.read(name)?.and_then(|bytes| modinfo(&bytes).ok()))
    }

    /// Takes the stage away.
    pub(super) fn remove(self) -> Result<(), KernelError> {
        std::fs::remove_dir_all(&self.root)
            .map_err(KernelError::io(format!("remove {}", self.root.display())))
    }
}

/// Unpacks and indexes a kernel's modules.
pub(super) fn stage(
    found: &Found,
    version: &str,
    dest: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Staged, KernelError> {
    let root = dest.join(STAGE);
    let dir = root.join("lib/modules").join(version);
    std::fs::create_dir_all(&dir).map_err(KernelError::io(format!("make {}", dir.display())))?;
    let mut staged = Staged {
        root,
        dir,
        count: 0,
        by_name: BTreeMap::new(),
        builtin: None,
        warnings: Vec::new(),
    };
    let Some((tree, modules)) = &found.modules else {
        return Ok(staged);
    };
    let mut copier = Copier {
        tree,
        sources: &found.sources,
        staged: &mut staged,
        left: ALL_LIMIT,
        total: tree.measure().0,
        done: 0,
        cancel,
        report,
    };
    copier.copy(*modules, Path::new(""), 0)?;
    let builtin = staged.dir.join("modules.builtin");
    staged.builtin = std::fs::read_to_string(builtin).ok();
    if staged.count > 0 {
        index(&mut staged, version, cancel, report)?;
    }
    Ok(staged)
}

/// Indexes that are made anew: `modules.builtin*` and `modules.order` are the kernel's own.
pub(crate) fn is_index(name: &str) -> bool {
    name.starts_with("modules.")
        && !matches!(
            name,
            "modules.order" | "modules.builtin" | "modules.builtin.modinfo"
        )
}

struct Copier<'a> {
    tree: &'a Tree,
    sources: &'a [Source],
    staged: &'a mut Staged,
    left: u64,
    total: u64,
    done: u64,
    cancel: &'a Cancel,
    report: &'a dyn Report,
}

impl Copier<'_> {
    fn copy(&mut self, node: NodeId, path: &Path, depth: usize) -> Result<(), KernelError> {
        for (name, child) in self.tree.children(node) {
            self.cancel.check()?;
            match self.tree.kind(child) {
                Kind::Directory(_) if depth < DEPTH_LIMIT => {
                    let path = path.join(name);
                    let made = self.staged.dir.join(&path);
                    std::fs::create_dir(&made)
                        .map_err(KernelError::io(format!("make {}", made.display())))?;
                    self.copy(child, &path, depth + 1)?;
                }
                Kind::File(data) if depth > 0 || !is_index(name) => {
                    self.copy_file(name, data, path)?
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn copy_file(&mut self, name: &str, data: &Data, path: &Path) -> Result<(), KernelError> {
        let module = name_of_file(name);
        let plain = match &module {
            Some(_) => name.split_inclusive(".ko").next().unwrap_or(name),
            None => name,
        };
        let path = path.join(plain);
        let target = self.staged.dir.join(&path);
        let copied = self
            .copy_bytes(data, module.is_some(), &target)
            .map_err(KernelError::io(format!("unpack {}", path.display())))?;
        self.left = self.left.saturating_sub(copied);
        self.done += data.stored();
        self.report
            .bytes(self.done.min(self.total), Some(self.total));
        if let Some(module) = module {
            self.staged.count += 1;
            self.staged.by_name.insert(module, path);
        }
        Ok(())
    }

    fn copy_bytes(&self, data: &Data, packed: bool, target: &Path) -> io::Result<u64> {
        let input = data.reader(self.sources)?;
        let input = BufReader::with_capacity(64 << 10, input);
        let input: Box<dyn Read> = if packed {
            unpack(input)?
        } else {
            Box::new(input)
        };
        let mut out = File::create_new(target)?;
        io::copy(
            &mut Bounded::new(input, MODULE_LIMIT.min(self.left)),
            &mut out,
        )
    }
}

/// Makes the indexes, by the host's `depmod` or ourselves.
fn index(
    staged: &mut Staged,
    version: &str,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<(), KernelError> {
    let failed = match Run::new("depmod", cancel) {
        Ok(mut run) => {
            run.command().arg("-b").arg(&staged.root).arg(version);
            let finished = run.watch(&mut |line| {
                if let Some(line) = line {
                    report.log(line);
                }
            });
            match finished {
                Ok(end) if end.status.success() => return Ok(()),
                Ok(end) => format!("depmod failed: {}", end.tail),
                Err(RunError::Cancelled(cancelled)) => return Err(cancelled.into()),
                Err(error) => error.to_string(),
            }
        }
        Err(error) => error.to_string(),
    };
    staged.warnings.push(format!(
        "{failed}; the guest's modules have plain text indexes only (install kmod and import again)"
    ));
    text_index(staged, cancel).map_err(|error| match error {
        TextError::Cancelled(cancelled) => cancelled.into(),
        TextError::Io(source) => KernelError::io("write the module index".to_owned())(source),
    })
}

#[derive(Debug, thiserror::Error)]
enum TextError {
    #[error(transparent)]
    Cancelled(#[from] crate::progress::Cancelled),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// `modules.dep` and `modules.alias` in text: enough for busybox, and to look things up.
fn text_index(staged: &Staged, cancel: &Cancel) -> Result<(), TextError> {
    let mut infos = BTreeMap::new();
    for (name, path) in &staged.by_name {
        cancel.check()?;
        let bytes = std::fs::read(staged.dir.join(path))?;
        infos.insert(name.as_str(), modinfo(&bytes).unwrap_or_default());
    }
    let mut dep = io::BufWriter::new(File::create(staged.dir.join("modules.dep"))?);
    let mut alias = io::BufWriter::new(File::create(staged.dir.join("modules.alias"))?);
    for (name, path) in &staged.by_name {
        write!(dep, "{}:", path.display())?;
        cancel.check()?;
        // All modules below, the nearest first, as depmod writes them.
        let mut direct = |name: &str| -> Result<_, TooMany> {
            Ok(infos.get(name).map(|info: &ModInfo| info.depends.clone()))
        };
        let mut all = needs::first(name, NEEDS_LIMIT, &mut direct).unwrap_or_default();
        // Without itself. One that says it needs more than any does is left to fail.
        all.pop();
        all.reverse();
        for below in all {
            if let Some(path) = staged.by_name.get(&below) {
                write!(dep, " {}", path.display())?;
            }
        }
        writeln!(dep)?;
        for text in infos
            .get(name.as_str())
            .map_or(&[][..], |info| &info.aliases)
        {
            writeln!(alias, "alias {text} {name}")?;
        }
    }
    dep.flush()?;
    alias.flush()?;
    Ok(())
}
