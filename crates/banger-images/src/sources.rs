//! The host's package sources, and which of them are Debian's own archives.
//!
//! Owns reading both formats of `sources.list` and telling Debian from third parties: an entry
//! of anybody else never leaves here, since it would enter an image or break its build. Also
//! the part of the host's apt configuration that says how to reach an archive.

use std::path::{Path, PathBuf};

use crate::deb::Control;
use crate::process::Run;
use crate::progress::Cancel;

/// More entries than any host has.
const ENTRY_LIMIT: usize = 1024;
const FILE_LIMIT: u64 = 1 << 20;
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One archive, suite by suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Without a slash at its end.
    pub uri: String,
    /// `bookworm-updates`.
    pub suite: String,
    /// `main`, …
    pub components: Vec<String>,
    /// Key file, or fingerprints.
    pub signed_by: Option<String>,
    /// Said to need no signature.
    pub trusted: bool,
}

impl Entry {
    /// The entry in one line, as apt and mmdebstrap read it.
    #[must_use]
    pub fn line(&self) -> String {
        let mut options = Vec::new();
        if let Some(keys) = &self.signed_by {
            options.push(format!("signed-by={keys}"));
        }
        if self.trusted {
            options.push("trusted=yes".to_owned());
        }
        let options = if options.is_empty() {
            String::new()
        } else {
            format!("[{}] ", options.join(" "))
        };
        format!(
            "deb {options}{}/ {} {}",
            self.uri,
            self.suite,
            self.components.join(" ")
        )
    }

    /// Whether it is an archive of security updates.
    #[must_use]
    pub fn is_security(&self) -> bool {
        self.suite.ends_with("-security")
            || self.suite.ends_with("/updates")
            || self.path().contains("debian-security")
    }

    fn path(&self) -> &str {
        let rest = self
            .uri
            .split_once("://")
            .map_or(self.uri.as_str(), |(_, rest)| rest);
        rest.find('/').map_or("", |at| &rest[at..])
    }

    /// Whether it is one of Debian's archives, or a mirror of one. `lists` is where apt keeps
    /// what it fetched: the archive's own word counts most. Otherwise keys of Debian do, or,
    /// where none are named, the layout of a mirror.
    fn is_debian(&self, lists: &Path) -> bool {
        if let Some(origin) = self.origin(lists) {
            return origin == "Debian" || origin == "Debian Backports";
        }
        if let Some(keys) = &self.signed_by {
            return keys.contains("debian-archive");
        }
        let mut parts = self.path().split('/').filter(|part| !part.is_empty()).rev();
        let last = parts.next().unwrap_or_default();
        // Snapshots have the time after the archive's name.
        let archive = if last.starts_with("20") && last.ends_with('Z') {
            parts.next().unwrap_or_default()
        } else {
            last
        };
        ["debian", "debian-security"].contains(&archive)
            && self.components.iter().any(|component| component == "main")
    }

    /// `Origin` of the `Release` file that apt fetched for this entry, if it is there.
    fn origin(&self, lists: &Path) -> Option<String> {
        let rest = self.uri.split_once("://")?.1;
        let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let name = format!("{rest}/dists/{}", self.suite)
            .replace('_', "%5f")
            .replace('/', "_");
        ["InRelease", "Release"].iter().find_map(|kind| {
            let text = read_small(&lists.join(format!("{name}_{kind}")))?;
            let start = text.find("Origin:")?;
            let line = text[start..].lines().next()?;
            Some(line.strip_prefix("Origin:")?.trim().to_owned())
        })
    }

    /// Without a user's name and password.
    #[must_use]
    pub fn without_credentials(&self) -> Entry {
        let mut entry = self.clone();
        if let Some((scheme, rest)) = self.uri.split_once("://") {
            let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            if let Some((_, host)) = host.rsplit_once('@') {
                entry.uri = format!("{scheme}://{host}{path}");
            }
        }
        entry
    }
}

fn read_small(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(FILE_LIMIT)
        .read_to_end(&mut text)
        .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The host's entries that are Debian's.
#[must_use]
pub fn of_host() -> Vec<Entry> {
    of_directory(Path::new("/etc/apt"), Path::new("/var/lib/apt/lists"))
}

/// The same, with apt's directories elsewhere.
#[must_use]
pub fn of_directory(etc: &Path, lists: &Path) -> Vec<Entry> {
    let mut files = vec![etc.join("sources.list")];
    let mut more: Vec<PathBuf> = std::fs::read_dir(etc.join("sources.list.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    more.sort();
    files.extend(more);
    let mut entries = Vec::new();
    for file in files {
        let Some(text) = read_small(&file) else {
            continue;
        };
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("list") => entries.extend(parse_list(&text)),
            Some("sources") => entries.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    entries.truncate(ENTRY_LIMIT);
    let mut kept: Vec<Entry> = Vec::new();
    for entry in entries {
        if entry.is_debian(lists) && !kept.contains(&entry) {
            kept.push(entry);
        }
    }
    kept
}

/// One-line format: `deb [options] uri suite component...`.
fn parse_list(text: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next()?.trim();
            let rest = line.strip_prefix("deb")?;
            if !rest.starts_with([' ', '\t', '[']) {
                return None;
            }
            let rest = rest.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(inner) => inner.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let option = |name: &str| {
                options.split_whitespace().find_map(|option| {
                    let (key, value) = option.split_once('=')?;
                    key.trim_end_matches('+')
                        .eq_ignore_ascii_case(name)
                        .then(|| value.trim_matches('"').to_owned())
                })
            };
            make(
                uri,
                suite,
                words.map(str::to_owned).collect(),
                option("signed-by"),
                option("trusted").as_deref() == Some("yes"),
            )
        })
        .collect()
}

/// Paragraphs of fields.
fn parse_deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for paragraph in paragraphs(text) {
        let control = Control::parse(&paragraph);
        let words = |field: &str| -> Vec<String> {
            let value = control.get(field).unwrap_or_default();
            value.split_whitespace().map(str::to_owned).collect()
        };
        let off = control.get("enabled").is_some_and(|value| {
            ["no", "false", "0", "off"].contains(&value.to_ascii_lowercase().as_str())
        });
        if off || !words("types").contains(&"deb".to_owned()) {
            continue;
        }
        // A key written out in the file is not a path, and cannot go on one line.
        let keys = control
            .get("signed-by")
            .filter(|value| !value.contains('\n') && !value.contains("BEGIN PGP"))
            .map(|value| value.split_whitespace().collect::<Vec<_>>().join(","));
        let trusted = control.get("trusted").is_some_and(|value| value == "yes");
        for uri in words("uris") {
            for suite in words("suites") {
                entries.extend(make(
                    &uri,
                    &suite,
                    words("components"),
                    keys.clone(),
                    trusted,
                ));
            }
        }
    }
    entries
}

/// Cuts at empty lines; comments are lines of neither side.
fn paragraphs(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    for line in text.lines() {
        if line.trim().is_empty() {
            out.push(String::new());
        } else if !line.trim_start().starts_with('#')
            && let Some(last) = out.last_mut()
        {
            last.push_str(line);
            last.push('\n');
        }
    }
    out.retain(|paragraph| !paragraph.is_empty());
    out
}

/// An entry whose every word is plain, or none.
fn make(
    uri: &str,
    suite: &str,
    components: Vec<String>,
    signed_by: Option<String>,
    trusted: bool,
) -> Option<Entry> {
    let plain = |text: &str| {
        !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || "[]\"'".contains(c))
    };
    let known = [
        "http://", "https://", "mirror", "file:", "copy:", "ftp://", "tor+", "cdrom:",
    ]
    .iter()
    .any(|scheme| uri.starts_with(scheme));
    let words = [uri, suite]
        .into_iter()
        .chain(components.iter().map(String::as_str));
    // A disc cannot be asked for more packages, and a flat archive has no suites.
    if !known || uri.starts_with("cdrom:") || suite.ends_with('/') || components.is_empty() {
        return None;
    }
    let fits = words.chain(signed_by.as_deref()).all(plain);
    fits.then(|| Entry {
        uri: uri.trim_end_matches('/').to_owned(),
        suite: suite.to_owned(),
        components,
        signed_by,
        trusted,
    })
}

/// Entries for a suite, from those of the host: its mirrors, keys and components, with the
/// suite's name put in and updates and security added. Empty when the host has no archive of
/// Debian proper.
#[must_use]
pub fn for_suite(host: &[Entry], suite: &str) -> Vec<Entry> {
    let Some(main) = host.iter().find(|entry| !entry.is_security()) else {
        return Vec::new();
    };
    let with_suite = |entry: &Entry, suite: String| Entry {
        suite,
        components: vec!["main".to_owned()],
        ..entry.clone()
    };
    let mut entries = vec![with_suite(main, suite.to_owned())];
    // Unstable has neither: everything goes into it directly.
    if matches!(suite, "sid" | "unstable" | "experimental") {
        return entries;
    }
    entries.push(with_suite(main, format!("{suite}-updates")));
    let security = host.iter().find(|entry| entry.is_security()).cloned();
    let security = security.unwrap_or_else(|| Entry {
        uri: if main.uri.contains("://deb.debian.org/") {
            format!("{}-security", main.uri)
        } else {
            "http://security.debian.org/debian-security".to_owned()
        },
        ..main.clone()
    });
    entries.push(with_suite(&security, format!("{suite}-security")));
    // Without keys named, apt takes those of the host; the archive's own are the right ones.
    for entry in &mut entries {
        if entry.signed_by.is_none() && !entry.trusted && Path::new(KEYRING).exists() {
            entry.signed_by = Some(KEYRING.to_owned());
        }
    }
    entries
}

/// The host's apt settings about reaching archives: proxies, time-outs, checks of dates. Lines
/// of an `apt.conf`; empty when the host has no apt.
#[must_use]
pub fn transport_settings(cancel: &Cancel) -> Vec<String> {
    let Ok(mut run) = Run::new("apt-config", cancel) else {
        return Vec::new();
    };
    run.command().arg("dump");
    let Ok(finished) = run.quietly() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&finished.stdout)
        .lines()
        .filter(|line| {
            let name = line.split([' ', ':']).next().unwrap_or_default();
            let key = line
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase();
            name.eq_ignore_ascii_case("Acquire")
                && !key.ends_with("::")
                && [
                    "http",
                    "https",
                    "ftp",
                    "socks",
                    "retries",
                    "check-",
                    "min-valid",
                    "max-valid",
                    "force",
                    "proxy",
                    "queue-mode",
                ]
                .iter()
                .any(|lead| {
                    key.strip_prefix("acquire::")
                        .is_some_and(|rest| rest.starts_with(lead))
                })
                && line.ends_with("\";")
                && !line.ends_with(" \"\";")
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(files: &[(&str, &str)]) -> Vec<String> {
        let etc = tempfile::tempdir().unwrap();
        std::fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            std::fs::write(etc.path().join(name), text).unwrap();
        }
        of_directory(etc.path(), &etc.path().join("lists"))
            .iter()
            .map(Entry::line)
            .collect()
    }

    #[test]
    fn only_archives_of_debian_are_taken() {
        let found = entries(&[
            (
                "sources.list",
                "# comment\ndeb http://deb.debian.org/debian bookworm main contrib # why\ndeb-src http://deb.debian.org/debian bookworm main\ndeb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian bookworm stable\ndeb https://download.docker.com/linux/debian bookworm stable\n",
            ),
            (
                "sources.list.d/google-cloud.list",
                "deb https://packages.cloud.google.com/apt cloud-sdk-bookworm main\n",
            ),
            (
                "sources.list.d/pg.list",
                "deb http://apt.postgresql.org/pub/repos/apt bookworm-pgdg main\n",
            ),
            (
                "sources.list.d/node.sources",
                "Types: deb\nURIs: https://deb.nodesource.com/node_20.x\nSuites: nodistro\nComponents: main\nSigned-By: /usr/share/keyrings/nodesource.gpg\n",
            ),
            (
                "sources.list.d/wine.sources",
                "Types: deb\nURIs: https://dl.winehq.org/wine-builds/debian\nSuites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/winehq-archive.key\n",
            ),
            (
                "sources.list.d/off.sources",
                "Enabled: no\nTypes: deb\nURIs: http://x.org/debian\nSuites: bookworm\nComponents: main\n",
            ),
            (
                "sources.list.d/old.bak",
                "deb http://y.org/debian bookworm main\n",
            ),
            (
                "sources.list.d/debian.sources",
                "Types: deb deb-src\n# http://snapshot\nURIs: http://mirror.example/debian-security/\nSuites: bookworm-security\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb-src\nURIs: http://z.org/debian\nSuites: bookworm\nComponents: main\n",
            ),
        ]);
        assert_eq!(
            found,
            [
                "deb http://deb.debian.org/debian/ bookworm main contrib",
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian-security/ bookworm-security main",
            ]
        );
    }

    #[test]
    fn the_archives_own_word_counts_most() {
        let etc = tempfile::tempdir().unwrap();
        std::fs::write(etc.path().join("sources.list"), "deb http://a.example/strange bookworm main\ndeb http://b.example/debian bookworm main\n").unwrap();
        std::fs::write(
            etc.path()
                .join("a.example_strange_dists_bookworm_InRelease"),
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nLabel: Debian\n",
        )
        .unwrap();
        std::fs::write(
            etc.path().join("b.example_debian_dists_bookworm_Release"),
            "Origin: Somebody\n",
        )
        .unwrap();
        let found = of_directory(etc.path(), etc.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].uri, "http://a.example/strange");
    }

    #[test]
    fn a_suite_takes_the_hosts_mirrors_and_keys() {
        let host = parse_list(
            "deb [signed-by=/k] http://m.example/debian bookworm main contrib\ndeb [signed-by=/k] http://m.example/debian bookworm-updates main\ndeb [signed-by=/s] http://s.example/debian-security bookworm-security main\n",
        );
        let lines: Vec<String> = for_suite(&host, "trixie").iter().map(Entry::line).collect();
        assert_eq!(
            lines,
            [
                "deb [signed-by=/k] http://m.example/debian/ trixie main",
                "deb [signed-by=/k] http://m.example/debian/ trixie-updates main",
                "deb [signed-by=/s] http://s.example/debian-security/ trixie-security main",
            ]
        );
        assert_eq!(
            for_suite(&host[..1], "trixie")[2].uri,
            "http://security.debian.org/debian-security"
        );
        assert_eq!(for_suite(&host, "sid").len(), 1);
        assert!(for_suite(&[], "trixie").is_empty());
    }

    #[test]
    fn credentials_stay_on_the_host() {
        let entry = &parse_list("deb https://user:pass@m.example/debian bookworm main")[0];
        assert_eq!(entry.without_credentials().uri, "https://m.example/debian");
    }
}
