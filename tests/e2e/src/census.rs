//! What exists on the host because of one house: processes, cgroups, mounts,
//! files and rows. Two censuses are compared; what the second has more was
//! left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// A process of a house.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its arguments, joined by spaces.
    pub command: String,
    /// File name of its executable.
    pub program: String,
}

/// What there is, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Processes but the daemon, without their ids.
    pub processes: BTreeSet<String>,
    /// Directories of cgroups named after a VM.
    pub cgroups: BTreeSet<String>,
    /// Mounts and kept namespaces below the house.
    pub mounts: BTreeSet<String>,
    /// Files and sockets but logs, the database and the cache.
    pub files: BTreeSet<String>,
    /// Rows but finished operations.
    pub rows: BTreeSet<String>,
}

impl Census {
    /// What this one has and the other has not, by kind.
    #[must_use]
    pub fn more_than(&self, other: &Self) -> Vec<String> {
        let mut more = Vec::new();
        for (kind, mine, theirs) in [
            ("process", &self.processes, &other.processes),
            ("cgroup", &self.cgroups, &other.cgroups),
            ("mount", &self.mounts, &other.mounts),
            ("file", &self.files, &other.files),
            ("row", &self.rows, &other.rows),
        ] {
            more.extend(
                mine.difference(theirs)
                    .map(|what| format!("{kind}: {what}")),
            );
        }
        more
    }

    /// Differences in both directions.
    #[must_use]
    pub fn differs_from(&self, before: &Self) -> Vec<String> {
        let left = self
            .more_than(before)
            .into_iter()
            .map(|w| format!("left behind {w}"));
        let lost = before
            .more_than(self)
            .into_iter()
            .map(|w| format!("lost {w}"));
        left.chain(lost).collect()
    }
}

/// Processes that mention the directory in their environment, arguments,
/// executable, working directory or standard output, or one of the VMs in
/// their arguments; not this process.
#[must_use]
pub fn processes(dir: &Path, ids: &BTreeSet<String>) -> Vec<Process> {
    let needle = dir.to_string_lossy().into_owned();
    let me = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == me {
            continue;
        }
        let at = entry.path();
        let command = fs::read(at.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command)
            .replace('\0', " ")
            .trim_end()
            .to_owned();
        let environment = fs::read(at.join("environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        let link = |name: &str| fs::read_link(at.join(name)).unwrap_or_default();
        let executable = link("exe");
        let is_ours = command.contains(&needle)
            || environment.contains(&needle)
            || executable.starts_with(dir)
            || link("cwd").starts_with(dir)
            // All that tells of a gateway: its log, or where it forbids to be
            // read, the VM that it names.
            || link("fd/1").starts_with(dir)
            || ids.iter().any(|id| command.contains(id.as_str()));
        if is_ours {
            let word = command.split(' ').next().unwrap_or_default();
            let program = executable
                .file_name()
                .or(Path::new(word).file_name())
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            found.push(Process {
                pid,
                command,
                program,
            });
        }
    }
    found.sort();
    found
}

/// Directories of cgroups whose name holds one of the ids.
#[must_use]
pub fn cgroups(ids: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if ids.is_empty() {
        return found;
    }
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in text.lines() {
        let (before, after) = line.split_once(" - ").unwrap_or((line, ""));
        if after.starts_with("cgroup2 ")
            && let Some(at) = before.split(' ').nth(4)
        {
            walk_cgroups(Path::new(at), ids, &mut found);
        }
    }
    found
}

fn walk_cgroups(dir: &Path, ids: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if ids.iter().any(|id| name.contains(&id[..12.min(id.len())])) {
            found.insert(entry.path().display().to_string());
        }
        walk_cgroups(&entry.path(), ids, found);
    }
}

/// Mounts on, or of, something below the directory.
#[must_use]
pub fn mounts(dir: &Path) -> BTreeSet<String> {
    let needle = dir.to_string_lossy().into_owned();
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter(|l| l.contains(&needle))
        .map(str::to_owned)
        .collect()
}

/// Files below a directory, as paths from it, but logs, database, cache.
#[must_use]
pub fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk_files(dir, dir, &mut found);
    found
}

/// Files of a cache that are none which it is for.
#[must_use]
pub fn strangers(cache: &Path) -> BTreeSet<String> {
    let is_hash = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let is_known = |file: &String| match file.split('/').collect::<Vec<_>>()[..] {
        _ if file.ends_with('/') => true,
        // apt's own order.
        ["apt", ..] | ["engines", _] | ["oci", "blobs", "lock"] => true,
        ["initramfs", name] => is_hash(name),
        ["oci", "blobs", "sha256", name] => is_hash(name.trim_end_matches(".part")),
        _ => false,
    };
    let strange = files(cache).into_iter().filter(|file| !is_known(file));
    strange.map(|file| format!("cache/{file}")).collect()
}

fn walk_files(root: &Path, dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_log = path.extension().is_some_and(|e| e == "log") || name.contains(".log.");
        if is_log || name.starts_with("state.db") {
            continue;
        }
        let shown = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .display()
            .to_string();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.insert(format!("{shown}/"));
            walk_files(root, &path, found);
        } else {
            found.insert(shown);
        }
    }
}

/// Rows of the database: of VMs the identity, of operations the unfinished,
/// of the ledger all but its facts, of other tables everything.
#[must_use]
pub fn rows(database: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Some(connection) = open(database) else {
        return found;
    };
    for table in names(
        &connection,
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    ) {
        if table == "meta" {
            continue;
        }
        let columns = names(
            &connection,
            &format!("SELECT name FROM pragma_table_info('{table}')"),
        );
        let wanted: Vec<&str> = match table.as_str() {
            "vms" => vec!["id", "name"],
            "operations" => vec!["id"],
            "ledger" => columns
                .iter()
                .map(String::as_str)
                .filter(|c| !matches!(*c, "seq" | "facts"))
                .collect(),
            _ => columns.iter().map(String::as_str).collect(),
        };
        let condition = if table == "operations" {
            "done_at IS NULL"
        } else {
            "1"
        };
        let query = format!(
            "SELECT {} FROM {table} WHERE {condition}",
            wanted.join(", ")
        );
        let mut statement = connection
            .prepare(&query)
            .unwrap_or_else(|e| panic!("{query}: {e}"));
        let mut rows = statement.query([]).expect("no parameters");
        while let Some(row) = rows.next().expect("a readable database") {
            let cells: Vec<String> = (0..wanted.len())
                .map(|i| cell(row.get_ref(i).expect("a selected column")))
                .collect();
            found.insert(format!("{table}: {}", cells.join(" | ")));
        }
    }
    found
}

/// Ids of all VMs that the database knows, gone ones from its operations.
#[must_use]
pub fn vm_ids(database: &Path) -> BTreeSet<String> {
    let Some(connection) = open(database) else {
        return BTreeSet::new();
    };
    let mut ids: BTreeSet<String> = names(&connection, "SELECT id FROM vms")
        .into_iter()
        .collect();
    ids.extend(names(
        &connection,
        "SELECT vm_id FROM operations WHERE vm_id IS NOT NULL",
    ));
    ids.retain(|id| id.len() >= 12);
    ids
}

fn open(database: &Path) -> Option<Connection> {
    if !database.exists() {
        return None;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    // A database left by a daemon that was killed still has its log beside
    // it, which a reader may have to replay.
    let connection = Connection::open_with_flags(database, flags).ok()?;
    connection
        .busy_timeout(std::time::Duration::from_secs(5))
        .ok()?;
    Some(connection)
}

fn names(connection: &Connection, query: &str) -> Vec<String> {
    let Ok(mut statement) = connection.prepare(query) else {
        return Vec::new();
    };
    let Ok(rows) = statement.query_map([], |row| row.get::<_, String>(0)) else {
        return Vec::new();
    };
    rows.flatten().collect()
}

fn cell(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "-".to_owned(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(n) => n.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

/// Where a program would be found by PATH.
#[must_use]
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}
