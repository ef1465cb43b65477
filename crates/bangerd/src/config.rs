//! `config.toml`: reads it, checks every value, and says where each default
//! of a new VM comes from.
//!
//! A bad value ends the daemon with file, line and key; a key nobody knows, or
//! one whose feature is not built yet, is only a warning.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::system::VmDefault;
use banger_model::Size;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tracing_subscriber::filter::LevelFilter;

/// Largest configuration file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Keys that belong to features to come: known, and without effect.
const LATER: &[&str] = &[
    "jailer_bin",
    "jailer_enabled",
    "jailer_chroot_base",
    "ssh_key_path",
    "bridge_name",
    "bridge_ip",
    "cidr",
    "tap_pool_size",
    "default_dns",
    "dns_listen",
    "file_sync",
];

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why.
        why: String,
    },
    /// A value breaks its rule.
    #[error("{}:{line}: {key}: {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Dotted.
        key: String,
        /// What it must be.
        why: String,
    },
    /// A variable of the environment breaks its rule.
    #[error("{variable}: {why}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What it must be.
        why: String,
    },
}

/// Which engine new starts take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum EngineChoice {
    /// The first that fits.
    #[default]
    Auto,
    /// Firecracker or nothing.
    Firecracker,
    /// QEMU or nothing.
    Qemu,
}

impl EngineChoice {
    /// The name users see.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        }
    }
}

/// What the owner set; everything else is the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// What is logged.
    pub(crate) log_level: LevelFilter,
    /// Engine of VMs that name none.
    pub(crate) engine: EngineChoice,
    /// `auto user bridge none`: mode of VMs that name none.
    pub(crate) network_mode: String,
    /// Instead of the one on `PATH`.
    pub(crate) firecracker_bin: Option<PathBuf>,
    /// Instead of the one on `PATH`.
    pub(crate) qemu_bin: Option<PathBuf>,
    /// Image of VMs that name none.
    pub(crate) default_image_name: String,
    /// Kernel of VMs that name none, and whose image names none.
    pub(crate) default_kernel_name: Option<String>,
    /// Catalog of the owner, over the built-in one.
    pub(crate) catalog_path: Option<PathBuf>,
    /// Registries that speak without TLS, as host or host:port.
    pub(crate) insecure_registries: Vec<String>,
    /// VMs untouched for longer are stopped; none when zero.
    pub(crate) auto_stop_stale_after: Duration,
    /// How often live VMs are measured; at least 1 s.
    pub(crate) stats_poll_interval: Duration,
    /// Mask systemd units without a function in a VM.
    pub(crate) trim_systemd: bool,
    /// Virtual CPUs of VMs that name none.
    pub(crate) vcpu: Option<u32>,
    /// Memory of VMs that name none, MiB.
    pub(crate) memory_mib: Option<u64>,
    /// Work disk of VMs that name none, bytes.
    pub(crate) disk_size: Option<u64>,
    /// System overlay of VMs that name none, bytes.
    pub(crate) system_overlay_size: Option<u64>,
    /// What was in the file and had no effect; logged once.
    pub(crate) warnings: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: LevelFilter::INFO,
            engine: EngineChoice::Auto,
            network_mode: "auto".to_owned(),
            firecracker_bin: None,
            qemu_bin: None,
            default_image_name: "debian-bookworm".to_owned(),
            default_kernel_name: None,
            catalog_path: None,
            insecure_registries: Vec::new(),
            auto_stop_stale_after: Duration::ZERO,
            stats_poll_interval: Duration::from_secs(10),
            trim_systemd: true,
            vcpu: None,
            memory_mib: None,
            disk_size: None,
            system_overlay_size: None,
            warnings: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the file, if there is one, and the environment over it.
    pub(crate) fn load(
        path: &Path,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let read_error = |cause| ConfigError::Read {
            path: path.to_owned(),
            cause,
        };
        let mut config = match std::fs::metadata(path) {
            Ok(found) if found.len() > MAX_FILE => {
                return Err(read_error(io::Error::other("larger than 1 MiB")));
            }
            Ok(_) => Self::parse(path, &std::fs::read_to_string(path).map_err(read_error)?)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(read_error(error)),
        };
        if let Some(level) = env("BANGER_LOG_LEVEL").filter(|level| !level.is_empty()) {
            config.log_level = log_level(&level).map_err(|why| ConfigError::Environment {
                variable: "BANGER_LOG_LEVEL",
                why,
            })?;
        }
        Ok(config)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line_of = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
        let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(span.start)),
            why: error.message().to_owned(),
        })?;
        let mut config = Self::default();
        for (key, value) in flatten(document.get_ref()) {
            let line = line_of(value.span().start);
            match config.set(&key, value.get_ref()) {
                Ok(Known::Set) => {}
                Ok(Known::Later) => config.warnings.push(format!(
                    "{}:{line}: {key} has no effect in this version",
                    path.display()
                )),
                Ok(Known::Never) => {
                    config
                        .warnings
                        .push(format!("{}:{line}: unknown key {key}", path.display()));
                }
                Err(why) => {
                    return Err(ConfigError::Value {
                        path: path.to_owned(),
                        line,
                        key,
                        why,
                    });
                }
            }
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<Known, String> {
        match key {
            "log_level" => self.log_level = log_level(text(value)?)?,
            "engine" => {
                self.engine = match text(value)? {
                    "auto" => EngineChoice::Auto,
                    "firecracker" => EngineChoice::Firecracker,
                    "qemu" => EngineChoice::Qemu,
                    _ => return Err("must be auto, firecracker or qemu".to_owned()),
                }
            }
            "network.mode" => match text(value)? {
                mode @ ("auto" | "user" | "bridge" | "none") => {
                    mode.clone_into(&mut self.network_mode)
                }
                _ => return Err("must be auto, user, bridge or none".to_owned()),
            },
            "firecracker_bin" => self.firecracker_bin = Some(file(value)?),
            "qemu_bin" => self.qemu_bin = Some(file(value)?),
            "default_image_name" => self.default_image_name = name(value)?,
            "default_kernel_name" => self.default_kernel_name = Some(name(value)?),
            "catalog_path" => self.catalog_path = Some(file(value)?),
            "insecure_registries" => self.insecure_registries = hosts(value)?,
            "auto_stop_stale_after" => self.auto_stop_stale_after = duration(value)?,
            "stats_poll_interval" => {
                self.stats_poll_interval = duration(value)?;
                if self.stats_poll_interval < Duration::from_secs(1) {
                    return Err("must be at least 1s".to_owned());
                }
            }
            "trim_systemd" => self.trim_systemd = boolean(value)?,
            "vm_defaults.vcpu" => {
                let count = integer(value)?;
                self.vcpu = Some(
                    u32::try_from(count)
                        .ok()
                        .filter(|count| (1..=32).contains(count))
                        .ok_or("must be 1 to 32")?,
                );
            }
            "vm_defaults.memory_mib" => {
                let mib = integer(value)?;
                self.memory_mib = Some(
                    u64::try_from(mib)
                        .ok()
                        .filter(|mib| *mib >= 128)
                        .ok_or("must be at least 128")?,
                );
            }
            "vm_defaults.disk_size" => self.disk_size = Some(disk(value)?),
            "vm_defaults.system_overlay_size" => self.system_overlay_size = Some(disk(value)?),
            _ if LATER.contains(&key) => return Ok(Known::Later),
            _ => return Ok(Known::Never),
        }
        Ok(Known::Set)
    }

    /// Defaults of new VMs on this host.
    pub(crate) fn defaults(&self, cpus: u32, host_memory_mib: u64) -> Defaults {
        // Where the host is so small that the share is below the builtin, the
        // builtin holds: a guest needs that much to be of use.
        let pick = |set: Option<u64>, auto: u64, builtin: u64| match set {
            Some(value) => (value, "config"),
            None if auto > builtin => (auto, "auto"),
            None => (builtin, "builtin"),
        };
        let disk = |set: Option<u64>| match set {
            Some(value) => (value, "config"),
            None => (8 << 30, "builtin"),
        };
        Defaults {
            vcpu: pick(self.vcpu.map(u64::from), u64::from(cpus / 4).min(4), 2),
            memory_mib: pick(self.memory_mib, (host_memory_mib / 8).min(8 << 10), 2 << 10),
            disk_size: disk(self.disk_size),
            system_overlay_size: disk(self.system_overlay_size),
        }
    }
}

/// Defaults of new VMs, each with its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// Virtual CPUs.
    pub(crate) vcpu: (u64, &'static str),
    /// MiB.
    pub(crate) memory_mib: (u64, &'static str),
    /// Bytes.
    pub(crate) disk_size: (u64, &'static str),
    /// Bytes.
    pub(crate) system_overlay_size: (u64, &'static str),
}

impl Defaults {
    /// As clients see them.
    pub(crate) fn to_api(self) -> Vec<VmDefault> {
        let row = |field: &str, value: String, origin: &str| VmDefault {
            field: field.to_owned(),
            value,
            origin: origin.to_owned(),
        };
        vec![
            row("vcpu", self.vcpu.0.to_string(), self.vcpu.1),
            row(
                "memory_mib",
                self.memory_mib.0.to_string(),
                self.memory_mib.1,
            ),
            row(
                "disk_size",
                banger_model::size::print(self.disk_size.0),
                self.disk_size.1,
            ),
            row(
                "system_overlay_size",
                banger_model::size::print(self.system_overlay_size.0),
                self.system_overlay_size.1,
            ),
        ]
    }
}

enum Known {
    Set,
    Later,
    Never,
}

/// Every value with its dotted key; arrays stay whole, since only features to
/// come have any.
fn flatten<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(String, &'a Spanned<DeValue<'i>>)> {
    let mut found = Vec::new();
    let mut open: Vec<(String, &DeTable<'i>)> = vec![(String::new(), table)];
    while let Some((prefix, table)) = open.pop() {
        for (key, value) in table {
            let key = format!("{prefix}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) if !LATER.contains(&key.as_str()) => {
                    open.push((format!("{key}."), inner));
                }
                _ => found.push((key, value)),
            }
        }
    }
    found.sort_by_key(|(_, value)| value.span().start);
    found
}

fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        _ => Err("must be a text in quotes".to_owned()),
    }
}

fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err("must be true or false".to_owned()),
    }
}

fn integer(value: &DeValue<'_>) -> Result<i64, String> {
    match value {
        DeValue::Integer(value) => i64::from_str_radix(value.as_str(), value.radix())
            .map_err(|_| "is too large".to_owned()),
        _ => Err("must be a whole number".to_owned()),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "debug" => Ok(LevelFilter::DEBUG),
        "info" => Ok(LevelFilter::INFO),
        "warn" => Ok(LevelFilter::WARN),
        "error" => Ok(LevelFilter::ERROR),
        _ => Err("must be debug, info, warn or error".to_owned()),
    }
}

fn name(value: &DeValue<'_>) -> Result<String, String> {
    match text(value)? {
        "" => Err("must not be empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn hosts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let rule = || "must be a list of host or host:port".to_owned();
    let DeValue::Array(values) = value else {
        return Err(rule());
    };
    let host = |value: &Spanned<DeValue<'_>>| {
        let host = text(value.get_ref()).map_err(|_| rule())?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(fits) {
            return Err(rule());
        }
        Ok(host.to_ascii_lowercase())
    };
    values.iter().map(host).collect()
}

fn file(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let text = text(value)?;
    if let Some(below) = text.strip_prefix("~/") {
        let home = std::env::home_dir().ok_or("there is no home directory")?;
        return Ok(home.join(below));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("must be absolute or begin with ~/".to_owned())
    }
}

fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    match text(value)? {
        "0" => Ok(Duration::ZERO),
        text => humantime::parse_duration(text)
            .map_err(|_| "must be a duration like 2h30m, in quotes".to_owned()),
    }
}

/// A disk size: a text like `8G`, or bare MiB.
fn disk(value: &DeValue<'_>) -> Result<u64, String> {
    let bytes = match value {
        DeValue::Integer(_) => size(&integer(value)?.to_string())?,
        _ => size(text(value)?)?,
    };
    if bytes < 256 << 20 {
        Err("must be 256M to 128G".to_owned())
    } else {
        Ok(bytes)
    }
}

fn size(text: &str) -> Result<u64, String> {
    Size::parse(text)
        .map(Size::bytes)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/c.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_that_acts_is_read() {
        let config = parse(
            r#"
            log_level = "debug"
            engine = "qemu"
            qemu_bin = "/opt/qemu"
            default_image_name = "mine"
            default_kernel_name = "6.1"
            catalog_path = "/srv/catalog.json"
            insecure_registries = ["Registry.lan:5000", "10.0.0.1"]
            auto_stop_stale_after = "2h30m"
            stats_poll_interval = "5s"
            trim_systemd = false
            [network]
            mode = "none"
            [vm_defaults]
            vcpu = 3
            memory_mib = 512
            disk_size = "4G"
            system_overlay_size = 1024
            "#,
        )
        .unwrap();
        let expected = Config {
            log_level: LevelFilter::DEBUG,
            engine: EngineChoice::Qemu,
            network_mode: "none".to_owned(),
            firecracker_bin: None,
            qemu_bin: Some("/opt/qemu".into()),
            default_image_name: "mine".to_owned(),
            default_kernel_name: Some("6.1".to_owned()),
            catalog_path: Some("/srv/catalog.json".into()),
            insecure_registries: vec!["registry.lan:5000".to_owned(), "10.0.0.1".to_owned()],
            auto_stop_stale_after: Duration::from_secs(9000),
            stats_poll_interval: Duration::from_secs(5),
            trim_systemd: false,
            vcpu: Some(3),
            memory_mib: Some(512),
            disk_size: Some(4 << 30),
            system_overlay_size: Some(1 << 30),
            warnings: Vec::new(),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_bad_value_is_named_by_file_line_and_key() {
        for (text, expected) in [
            (
                "insecure_registries = [\"http://x\"]",
                "/c.toml:1: insecure_registries: must be a list of host or host:port",
            ),
            (
                "\nengine = \"xen\"\n",
                "/c.toml:2: engine: must be auto, firecracker or qemu",
            ),
            ("engine = 3", "/c.toml:1: engine: must be a text in quotes"),
            (
                "[vm_defaults]\nvcpu = 33",
                "/c.toml:2: vm_defaults.vcpu: must be 1 to 32",
            ),
            (
                "[vm_defaults]\nvcpu = 0",
                "/c.toml:2: vm_defaults.vcpu: must be 1 to 32",
            ),
            (
                "vm_defaults.disk_size = 8",
                "/c.toml:1: vm_defaults.disk_size: must be 256M to 128G",
            ),
            (
                "stats_poll_interval = \"1ms\"",
                "/c.toml:1: stats_poll_interval: must be at least 1s",
            ),
            (
                "qemu_bin = \"qemu\"",
                "/c.toml:1: qemu_bin: must be absolute or begin with ~/",
            ),
            (
                "catalog_path = \"c.json\"",
                "/c.toml:1: catalog_path: must be absolute or begin with ~/",
            ),
            (
                "trim_systemd = 1",
                "/c.toml:1: trim_systemd: must be true or false",
            ),
            (
                "network.mode = \"host\"",
                "/c.toml:1: network.mode: must be auto, user, bridge or none",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_file_that_is_not_toml_is_named_with_its_line() {
        let error = parse("engine = \"auto\"\nlog_level = = 1\n").unwrap_err();
        assert!(error.starts_with("/c.toml:2: "), "{error}");
    }

    #[test]
    fn unknown_and_later_keys_are_warnings_with_their_line() {
        let config =
            parse("colour = 1\n[network]\nspeed = 2\n[[file_sync]]\nhost = \"~/x\"\n").unwrap();
        assert_eq!(
            config.warnings,
            [
                "/c.toml:1: unknown key colour",
                "/c.toml:3: unknown key network.speed",
                "/c.toml:4: file_sync has no effect in this version",
            ]
        );
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.toml");
        let env = |level: &'static str| move |_: &str| Some(level.to_owned());
        assert_eq!(Config::load(&path, |_| None).unwrap(), Config::default());
        std::fs::write(&path, "log_level = \"error\"").unwrap();
        assert_eq!(
            Config::load(&path, |_| None).unwrap().log_level,
            LevelFilter::ERROR
        );
        assert_eq!(
            Config::load(&path, env("debug")).unwrap().log_level,
            LevelFilter::DEBUG
        );
        let error = Config::load(&path, env("loud")).unwrap_err().to_string();
        assert_eq!(
            error,
            "BANGER_LOG_LEVEL: must be debug, info, warn or error"
        );
    }

    #[test]
    fn defaults_come_from_config_then_the_host_then_the_builtin() {
        let config = Config::default();
        let small = config.defaults(2, 4096);
        assert_eq!(
            (small.vcpu, small.memory_mib),
            ((2, "builtin"), (2048, "builtin"))
        );
        let large = config.defaults(64, 512 << 10);
        assert_eq!(
            (large.vcpu, large.memory_mib),
            ((4, "auto"), (8192, "auto"))
        );
        let middle = config.defaults(12, 32 << 10);
        assert_eq!(
            (middle.vcpu, middle.memory_mib),
            ((3, "auto"), (4096, "auto"))
        );
        let set = Config {
            vcpu: Some(1),
            ..Config::default()
        }
        .defaults(64, 1 << 20);
        assert_eq!(set.vcpu, (1, "config"));
        assert_eq!(set.disk_size, (8 << 30, "builtin"));
    }
}
