//! Looks at the host and says what works, what works with less, and what will
//! not work. Changes nothing and starts nothing but, for its version, an
//! engine's program.

use std::fs;
use std::io;
use std::path::Path;

use banger_api::system::{DoctorReport, DoctorRow, DoctorStatus};
use banger_engine::kvm::{self, KvmSetting};
use banger_engine::{AnyEngine, Choice, ChooseError, Wish};
use banger_images::sources;
use banger_store::{images, kernels, look as read_only, schema_version, vms};

use crate::artifact::{
    ImageRecord, find_agent, host_arch, image_record, image_source, is_staging, space,
};
use crate::config::{Config, ConfigError};
use crate::daemon::{engine_settings, host_defaults};
use crate::network;
use crate::paths::Paths;

/// Every finding, in the order it is printed.
pub(crate) fn look(paths: &Paths) -> DoctorReport {
    let config = Config::load(&paths.config_file, |name| std::env::var(name).ok());
    let usable = config.as_ref().ok().cloned().unwrap_or_default();
    let store = Stored::look(paths);
    // A cache that is not there: what is learned of engines is not kept.
    let settings = engine_settings(Path::new("/nonexistent"), &usable);
    let wish = settings.wish;
    let engines = AnyEngine::new(settings);
    let chosen = engines.choose(wish);
    let rows = vec![
        architecture(),
        version(),
        acceleration(),
        qemu(engines.choose(Wish::Qemu)),
        engine(chosen.as_ref()),
        channel(chosen.as_ref()),
        agent(),
        way_out(&usable),
        state(paths, &store),
        free_space(paths),
        reflink(paths),
        image(&usable, &store),
        kernel(&usable, &store),
        work_seed(&store),
        defaults(&usable),
        configuration(paths, &config),
        tools(),
        leftovers(paths, &store),
    ];
    DoctorReport { rows }
}

fn row<const N: usize>(status: DoctorStatus, title: &str, details: [&str; N]) -> DoctorRow {
    let details = details.iter().map(|detail| (*detail).to_owned()).collect();
    DoctorRow {
        status,
        title: title.to_owned(),
        details,
    }
}

fn pass<const N: usize>(title: &str, details: [&str; N]) -> DoctorRow {
    row(DoctorStatus::Pass, title, details)
}

fn warn<const N: usize>(title: &str, details: [&str; N]) -> DoctorRow {
    row(DoctorStatus::Warn, title, details)
}

fn fail<const N: usize>(title: &str, details: [&str; N]) -> DoctorRow {
    row(DoctorStatus::Fail, title, details)
}

fn architecture() -> DoctorRow {
    match host_arch() {
        arch @ "amd64" => pass("architecture", [arch]),
        arch => fail("architecture", [arch, "only amd64 hosts in this version"]),
    }
}

fn version() -> DoctorRow {
    pass("version", [&crate::version()])
}

fn acceleration() -> DoctorRow {
    match kvm::usable(kvm_setting()) {
        Ok(()) => pass("kvm", ["usable"]),
        Err(why) => {
            let mut found = warn(
                "kvm",
                [&why.to_string(), "VMs are emulated, 5 to 20 times slower"],
            );
            found.details.extend(why.hint().map(str::to_owned));
            found
        }
    }
}

fn kvm_setting() -> KvmSetting {
    KvmSetting::from_value(std::env::var("BANGER_KVM").ok().as_deref())
}

/// Whether QEMU could be taken; whether it must is the next row's word.
fn qemu(found: Result<Choice, ChooseError>) -> DoctorRow {
    match found {
        Ok(choice) => pass(
            "qemu",
            [&choice.version, &choice.program.display().to_string()],
        ),
        Err(error) => {
            let mut found = warn("qemu", [&error.to_string()]);
            found.details.extend(error.hint());
            found
        }
    }
}

fn channel(engine: Result<&Choice, &ChooseError>) -> DoctorRow {
    match engine {
        Ok(choice) => {
            let what = format!("a virtio-serial port of {}", choice.engine);
            pass("channel", [&what, "commands need no network"])
        }
        Err(_) => fail("channel", ["no engine, so no way to a guest"]),
    }
}

fn engine(found: Result<&Choice, &ChooseError>) -> DoctorRow {
    match found {
        Ok(choice) => {
            let acceleration = choice.acceleration.name();
            let what = format!("{} {} with {acceleration}", choice.engine, choice.version);
            pass("engine", [&what, &choice.reason])
        }
        Err(error) => {
            let mut found = fail("engine", [&error.to_string()]);
            found.details.extend(error.hint());
            found
        }
    }
}

fn agent() -> DoctorRow {
    match find_agent() {
        Ok(path) => pass("agent", [&path.display().to_string()]),
        Err(failure) => {
            let mut found = fail("agent", [&failure.sentence()]);
            found.details.extend(failure.hint);
            found
        }
    }
}

/// How guests of VMs that name no mode get out.
fn way_out(config: &Config) -> DoctorRow {
    match config.network_mode.as_str() {
        "none" => return pass("network", ["none, unless a VM asks for one"]),
        "bridge" => {
            return fail(
                "network",
                [
                    "bridge is not in this version",
                    "set network.mode to user or none",
                ],
            );
        }
        _ => {}
    }
    let gateway = match network::find_gateway() {
        Ok(path) => path.display().to_string(),
        Err(failure) => {
            let mut found = fail("network", [&failure.sentence()]);
            found.details.extend(failure.hint);
            return found;
        }
    };
    let mut found = pass(
        "network",
        [
            "user: each guest goes out through a gateway of its own",
            &gateway,
        ],
    );
    let resolvers = network::resolvers_now();
    if resolvers.is_empty() {
        found.status = DoctorStatus::Warn;
        found.details.push(format!(
            "{} names no resolver, so guests cannot look names up",
            network::RESOLV_CONF
        ));
    } else {
        let names: Vec<String> = resolvers.iter().map(ToString::to_string).collect();
        found
            .details
            .push(format!("resolvers {}", names.join(", ")));
    }
    if !may_ping() {
        found.details.push(
            "guests cannot ping beyond their gateway: this host lets this user's group send no \
             echo requests (sysctl net.ipv4.ping_group_range)"
                .to_owned(),
        );
    }
    found
}

/// Whether the kernel gives this user's group sockets for echo requests.
fn may_ping() -> bool {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap_or_default();
    let mut ends = text.split_ascii_whitespace().map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return false;
    };
    let mut groups = rustix::process::getgroups().unwrap_or_default();
    groups.push(rustix::process::getegid());
    groups
        .iter()
        .any(|group| (first..=last).contains(&group.as_raw()))
}

/// What the database says, read without changing it.
struct Stored {
    verdict: Result<Option<i64>, String>,
    images: Vec<ImageRecord>,
    kernels: Vec<String>,
    vms: Vec<String>,
}

impl Stored {
    fn look(paths: &Paths) -> Self {
        let mut found = Self {
            verdict: Ok(None),
            images: Vec::new(),
            kernels: Vec::new(),
            vms: Vec::new(),
        };
        let database = paths.database();
        match fs::metadata(&database) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
            Err(error) => {
                found.verdict = Err(format!("cannot read {}: {error}", database.display()));
                return found;
            }
            Ok(_) => {}
        }
        let read = || -> Result<i64, String> {
            let say = |error: &dyn std::error::Error| format!("{}: {error}", database.display());
            let db = read_only(&database).map_err(|error| say(&error))?;
            let schema: i64 = db
                .pragma_query_value(None, "user_version", |row| row.get(0))
                .map_err(|error| say(&error))?;
            if schema > schema_version() {
                return Err(format!(
                    "{} has schema {schema}, this build knows up to {}",
                    database.display(),
                    schema_version()
                ));
            }
            Ok(schema)
        };
        match read() {
            Ok(schema) => found.verdict = Ok(Some(schema)),
            Err(why) => {
                found.verdict = Err(why);
                return found;
            }
        }
        if let Ok(db) = read_only(&database) {
            let rows = images::list(&db).unwrap_or_default();
            found.images = rows
                .iter()
                .filter_map(|row| image_record(row).ok())
                .collect();
            let rows = kernels::list(&db).unwrap_or_default();
            found.kernels = rows.into_iter().map(|row| row.name).collect();
            let rows = vms::all(&db).unwrap_or_default();
            found.vms = rows.into_iter().map(|row| row.id.to_string()).collect();
        }
        found
    }
}

fn state(paths: &Paths, store: &Stored) -> DoctorRow {
    let place = paths.state.display().to_string();
    match &store.verdict {
        Ok(None) => pass("state", [&place, "nothing yet"]),
        Ok(Some(schema)) => pass("state", [&place, &format!("schema {schema}")]),
        Err(why) => fail("state", [why]),
    }
}

/// The nearest directory above that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
}

fn free_space(paths: &Paths) -> DoctorRow {
    let place = existing(&paths.state);
    match space::free_bytes(place) {
        Ok(free) => {
            let text = format!("{} MiB free below {}", free >> 20, paths.state.display());
            match space::enough(place, place) {
                Ok(()) => pass("space", [&text]),
                Err(failure) => fail("space", [&text, &failure.message]),
            }
        }
        Err(error) => warn("space", [&format!("{}: {error}", place.display())]),
    }
}

fn reflink(paths: &Paths) -> DoctorRow {
    // File systems that can share extents between files.
    const SHARING: [(u64, &str); 3] = [
        (0x9123_683e, "btrfs"),
        (0x5846_5342, "xfs"),
        (0xca45_1a4e, "bcachefs"),
    ];
    let found = rustix::fs::statfs(existing(&paths.state)).ok();
    let kind = found.and_then(|found| u64::try_from(found.f_type).ok());
    match SHARING.iter().find(|(magic, _)| Some(*magic) == kind) {
        Some((_, name)) => pass("reflink", [&format!("{name} may share copies")]),
        None => pass(
            "reflink",
            ["not on this file system: disks are copied, which takes longer"],
        ),
    }
}

fn image(config: &Config, store: &Stored) -> DoctorRow {
    let name = &config.default_image_name;
    if store.images.iter().any(|found| found.image.name == *name) {
        return pass("image", [&format!("{name} is here")]);
    }
    match image_source(config.catalog_path.as_deref(), name) {
        // Nothing of a catalog with a fault is used.
        Err(failure) => fail("image", [&failure.message, "catalog_path"]),
        Ok(Some(source)) => pass(
            "image",
            [&format!("{name} is not here; the first run {source}")],
        ),
        Ok(None) => fail(
            "image",
            [
                &format!("{name} is not here"),
                "banger image register, or set default_image_name",
            ],
        ),
    }
}

fn kernel(config: &Config, store: &Stored) -> DoctorRow {
    match &config.default_kernel_name {
        Some(name) if store.kernels.contains(name) => pass("kernel", [&format!("{name} is here")]),
        Some(name) => fail(
            "kernel",
            [
                &format!("{name} is not here"),
                "banger kernel list, or change default_kernel_name",
            ],
        ),
        None if store.kernels.is_empty() => pass(
            "kernel",
            ["none is here; the first run fetches Debian's with apt"],
        ),
        None => pass("kernel", [&store.kernels.join(", ")]),
    }
}

fn work_seed(store: &Stored) -> DoctorRow {
    let mut found = pass("work seed", []);
    for ImageRecord { image, .. } in &store.images {
        let Some(seed) = &image.work_seed_path else {
            continue;
        };
        if Path::new(seed).is_file() {
            found.details.push(format!("{seed} of {}", image.name));
        } else {
            found.status = DoctorStatus::Warn;
            found
                .details
                .push(format!("{seed} of {} is gone", image.name));
        }
    }
    if found.details.is_empty() {
        let none = "no image has one: the first boot fills /root from the image";
        found.details.push(none.to_owned());
    }
    found
}

fn defaults(config: &Config) -> DoctorRow {
    let mut found = pass("VM defaults", []);
    found.details = host_defaults(config)
        .to_api()
        .into_iter()
        .map(|default| format!("{} {} ({})", default.field, default.value, default.origin))
        .collect();
    found
}

fn configuration(paths: &Paths, config: &Result<Config, ConfigError>) -> DoctorRow {
    let file = paths.config_file.display().to_string();
    match config {
        Err(error) => {
            let mut found = fail("config", [&error.to_string()]);
            let cause = std::error::Error::source(error).map(ToString::to_string);
            found.details.extend(cause);
            found
        }
        Ok(config) if !config.warnings.is_empty() => {
            let mut found = warn("config", []);
            found.details.clone_from(&config.warnings);
            found
        }
        Ok(_) if paths.config_file.exists() => pass("config", [&file]),
        Ok(_) => pass(
            "config",
            [&format!("{file} is not there; every key has its default")],
        ),
    }
}

fn tools() -> DoctorRow {
    // What each is for, and the package it comes from.
    const TOOLS: [(&str, &str, &str); 3] = [
        ("apt-get", "fetch kernels", "apt"),
        ("mmdebstrap", "build images", "mmdebstrap"),
        ("e2fsck", "check disks", "e2fsprogs"),
    ];
    let mut found = pass("tools", []);
    let mut miss = |what: &str, why: &str, package: &str| {
        found.status = DoctorStatus::Warn;
        found.details.push(format!(
            "{what} is missing, cannot {why}: sudo apt install {package}"
        ));
    };
    for (tool, why, package) in TOOLS {
        if !installed(tool) {
            miss(tool, why, package);
        }
    }
    if !rustix::process::getuid().is_root() {
        if !installed("newuidmap") {
            miss("newuidmap", "build images as this user", "uidmap");
        }
        if !has_subordinate_ids() {
            found.status = DoctorStatus::Warn;
            found.details.push(
                "no subordinate ids for this user in /etc/subuid, cannot build images: \
                 sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
                    .to_owned(),
            );
        }
    }
    if sources::for_suite(&sources::of_host(), "stable").is_empty() {
        found.status = DoctorStatus::Warn;
        let why = "apt's sources name no archive of Debian, cannot fetch its packages: \
                   banger pull debian:stable, banger kernel import NAME --deb FILE";
        found.details.push(why.to_owned());
    }
    if found.details.is_empty() {
        found.details.push("none is missing".to_owned());
    }
    found
}

/// Whether a program can be found; tools of administrators are not on every
/// user's PATH.
fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(tool).is_file())
}

fn has_subordinate_ids() -> bool {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    ["/etc/subuid", "/etc/subgid"].iter().all(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split(':').next())
            .any(|who| who == uid || name.as_deref() == Some(who))
    })
}

/// Directories that no row knows.
fn leftovers(paths: &Paths, store: &Stored) -> DoctorRow {
    let mut found = pass("leftovers", []);
    let images_dir = paths.images();
    let kept: Vec<_> = store
        .images
        .iter()
        .flat_map(|record| record.kept(&images_dir))
        .collect();
    let images: Vec<&str> = kept
        .iter()
        .filter_map(|kept| kept.file_name()?.to_str())
        .collect();
    let kernels: Vec<&str> = store.kernels.iter().map(String::as_str).collect();
    let vms: Vec<&str> = store.vms.iter().map(String::as_str).collect();
    for (parent, known) in [
        (images_dir, images),
        (paths.kernels(), kernels),
        (paths.vms(), vms),
    ] {
        for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if directory && !is_staging(&name) && !known.contains(&name.as_str()) {
                found.status = DoctorStatus::Warn;
                found
                    .details
                    .push(format!("{} belongs to nothing", entry.path().display()));
            }
        }
    }
    if found.details.is_empty() {
        found.details.push("none".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(place: &Path) -> Paths {
        Paths {
            state: place.join("state"),
            config_file: place.join("config.toml"),
            cache: place.join("cache"),
            run: place.join("run"),
            socket: place.join("run/bangerd.sock"),
        }
    }

    fn status(report: &DoctorReport, title: &str) -> (DoctorStatus, String) {
        let row = report.rows.iter().find(|row| row.title == title).unwrap();
        (row.status, row.details.join("\n"))
    }

    #[test]
    fn every_part_that_a_vm_rests_on_has_its_row() {
        let place = tempfile::tempdir().unwrap();
        let report = look(&paths(place.path()));
        let titles: Vec<&str> = report.rows.iter().map(|row| row.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "architecture",
                "version",
                "kvm",
                "qemu",
                "engine",
                "channel",
                "agent",
                "network",
                "state",
                "space",
                "reflink",
                "image",
                "kernel",
                "work seed",
                "VM defaults",
                "config",
                "tools",
                "leftovers",
            ]
        );
        assert!(report.rows.iter().all(|row| !row.details.is_empty()));
        let defaults = status(&report, "VM defaults").1;
        assert!(defaults.contains("disk_size 8G (builtin)"), "{defaults}");
    }

    #[test]
    fn without_an_engine_there_is_no_channel() {
        let place = tempfile::tempdir().unwrap();
        let paths = paths(place.path());
        fs::write(&paths.config_file, "qemu_bin = \"/nosuch/qemu\"").unwrap();
        let report = look(&paths);
        assert_eq!(status(&report, "qemu").0, DoctorStatus::Warn);
        for title in ["engine", "channel"] {
            assert_eq!(status(&report, title).0, DoctorStatus::Fail, "{title}");
        }
    }

    #[test]
    fn a_default_image_that_can_be_had_is_no_fault() {
        let place = tempfile::tempdir().unwrap();
        let paths = paths(place.path());
        let catalog = place.path().join("catalog.json");
        let found = |name: &str, entries: &str| {
            let config = format!(
                "default_image_name = {name:?}\ncatalog_path = {:?}\n",
                catalog.display().to_string()
            );
            fs::write(&paths.config_file, config).unwrap();
            let text = format!("{{\"version\": 1, \"entries\": [{entries}]}}");
            fs::write(&catalog, text).unwrap();
            status(&look(&paths), "image")
        };
        let ours = "{\"name\": \"ours\", \"recipe\": \"registry.lan/app:1\"}";
        for (name, says) in [
            ("debian-bookworm", "builds it from Debian's bookworm"),
            ("debian-slim", "pulls docker.io/library/debian:stable-slim"),
            ("debian-sid", "builds it from Debian's sid"),
            ("ours", "pulls registry.lan/app:1"),
        ] {
            let (verdict, details) = found(name, ours);
            assert_eq!(verdict, DoctorStatus::Pass, "{name}: {details}");
            assert!(details.contains(says), "{name}: {details}");
        }
        for (name, entries, says) in [
            ("nosuch", ours, "nosuch is not here"),
            ("ours", "7", "catalog.json"),
        ] {
            let (verdict, details) = found(name, entries);
            assert_eq!(verdict, DoctorStatus::Fail, "{name}: {details}");
            assert!(details.contains(says), "{name}: {details}");
        }
    }

    #[test]
    fn doctor_of_a_fresh_host_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let report = look(&paths(place.path()));
        assert_eq!(status(&report, "state").0, DoctorStatus::Pass);
        assert_eq!(status(&report, "leftovers").0, DoctorStatus::Pass);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_state_a_bad_config_and_a_stray_directory_are_found() {
        let place = tempfile::tempdir().unwrap();
        let paths = paths(place.path());
        paths.make_state().unwrap();
        paths.make_rooms().unwrap();
        fs::write(paths.database(), "this is no database at all").unwrap();
        fs::write(&paths.config_file, "engine = 7").unwrap();
        fs::create_dir(paths.kernels().join("stray")).unwrap();
        let report = look(&paths);
        assert_eq!(status(&report, "state").0, DoctorStatus::Fail);
        let (verdict, details) = status(&report, "config");
        assert_eq!(verdict, DoctorStatus::Fail);
        assert!(details.contains("config.toml:1: engine"), "{details}");
        let (verdict, details) = status(&report, "leftovers");
        assert_eq!(verdict, DoctorStatus::Warn);
        assert!(details.contains("kernels/stray"), "{details}");
    }

    #[test]
    fn a_sound_state_is_read_without_a_trace() {
        let place = tempfile::tempdir().unwrap();
        let paths = paths(place.path());
        paths.make_state().unwrap();
        paths.make_rooms().unwrap();
        drop(banger_store::Store::open(&paths.database()).unwrap());
        // The threads of a store end on their own; then its log can go.
        let closed = |mode: &str| {
            let db = banger_store::Connection::open(paths.database()).unwrap();
            db.pragma_update(None, "journal_mode", mode).is_ok()
        };
        while !closed("DELETE") {
            std::thread::yield_now();
        }
        let before = names(&paths.state);
        let report = look(&paths);
        let (verdict, details) = status(&report, "state");
        assert_eq!(verdict, DoctorStatus::Pass);
        assert!(
            details.contains(&format!("schema {}", schema_version())),
            "{details}"
        );
        assert_eq!(names(&paths.state), before);
    }

    fn names(place: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = fs::read_dir(place)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    }
}
