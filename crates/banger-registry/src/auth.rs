//! Logins as docker keeps them: `config.json` with inline logins and credential helpers.
//!
//! Order, as docker's: the helper of this registry (`credHelpers`), the helper of all
//! (`credsStore`), the file itself (`auths`). A helper that knows nothing passes the question on;
//! one that fails ends the pull, since going on without the login would only end in a worse
//! message. The file is read at each pull, because `docker login` may just have run.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::error::{RegistryError, plain};
use crate::helper;

/// A config with hundreds of logins is some KiB.
const FILE_LIMIT: u64 = 1 << 20;
/// The name that Docker Hub has had in configs since its first protocol.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Some writers of the file leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What proves who we are to one registry. Its debug form has no secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A name and a password.
    Login { user: String, password: String },
    /// An OAuth2 refresh token, to be exchanged.
    Identity(String),
    /// A ready bearer token.
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Login { .. } => "Login",
            Credential::Identity(_) => "Identity",
            Credential::Bearer(_) => "Bearer",
        })
    }
}

/// Where logins come from.
#[derive(Debug, Clone)]
pub(crate) struct Logins {
    /// The file; `None` when there is no home to look in.
    pub(crate) file: Option<PathBuf>,
    /// Instead of `PATH`, for helpers.
    pub(crate) search: Option<OsString>,
    /// Of a helper's run.
    pub(crate) limit: Duration,
}

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
#[must_use]
pub fn default_file() -> Option<PathBuf> {
    let named = |key| std::env::var_os(key).filter(|value| !value.is_empty());
    named("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| named("HOME").map(|home| Path::new(&home).join(".docker")))
        .map(|dir| dir.join("config.json"))
}

impl Logins {
    /// The login for a registry, as the reference names it; `None` is anonymous.
    ///
    /// # Errors
    /// [`RegistryError::Logins`] when the file cannot be used, [`RegistryError::Helper`].
    pub(crate) async fn find(&self, registry: &str) -> Result<Option<Credential>, RegistryError> {
        let Some(path) = &self.file else {
            return Ok(None);
        };
        let unusable = |why: String| RegistryError::Logins {
            path: path.clone(),
            why,
        };
        let config = match read(path) {
            Ok(Some(bytes)) => Config::parse(&bytes).map_err(unusable)?,
            Ok(None) => return Ok(None),
            Err(cause) => return Err(unusable(cause.to_string())),
        };
        if let Some(name) = config.helper(registry) {
            let server = match registry {
                "docker.io" => HUB_KEY,
                other => other,
            };
            let search = self.search.as_deref();
            if let Some(found) = helper::ask(name, server, self.limit, search).await? {
                return Ok(Some(found));
            }
        }
        config.inline(registry).map_err(unusable)
    }
}

/// The file's bytes; `None` when it is not there.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(Some(bytes))
}

/// The part of `config.json` that is about logins.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: HashMap<String, Inline>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Inline {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Config {
    fn parse(bytes: &[u8]) -> Result<Config, String> {
        // Serde's message can quote a value of the file; its place says enough.
        serde_json::from_slice(bytes).map_err(|cause| {
            format!(
                "bad JSON at line {}, column {}",
                cause.line(),
                cause.column()
            )
        })
    }

    fn helper(&self, registry: &str) -> Option<&str> {
        find(&self.cred_helpers, registry)
            .or(Some(&self.creds_store))
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    fn inline(&self, registry: &str) -> Result<Option<Credential>, String> {
        let Some(entry) = find(&self.auths, registry) else {
            return Ok(None);
        };
        if !entry.identitytoken.is_empty() {
            return Ok(Some(Credential::Identity(entry.identitytoken.clone())));
        }
        if !entry.registrytoken.is_empty() {
            return Ok(Some(Credential::Bearer(entry.registrytoken.clone())));
        }
        if entry.auth.is_empty() {
            // An empty entry is a mark that a helper has the login.
            return Ok((!entry.username.is_empty()).then(|| Credential::Login {
                user: entry.username.clone(),
                password: entry.password.clone(),
            }));
        }
        let bad = || {
            format!(
                "the login of {} is not base64 of user:password",
                plain(registry)
            )
        };
        let text = BASE64
            .decode(entry.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(bad)?;
        let (user, password) = text.split_once(':').ok_or_else(bad)?;
        Ok(Some(Credential::Login {
            user: user.to_owned(),
            // Old dockers padded it.
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// The value of a registry: under its name, else under any spelling of its host.
fn find<'m, T>(map: &'m HashMap<String, T>, registry: &str) -> Option<&'m T> {
    let exact = match registry {
        "docker.io" => HUB_KEY,
        other => other,
    };
    map.get(exact).or_else(|| {
        // In the order of their text, so that one file always means one login.
        map.iter()
            .filter(|(key, _)| host_of(key) == host_of(registry))
            .min_by_key(|(key, _)| key.as_str())
            .map(|(_, value)| value)
    })
}

/// The host in a key: `https://host/v1/`, `host:port`, `host`.
fn host_of(key: &str) -> String {
    let host = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = host.split_once('/').map_or(host, |(host, _)| host);
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Login {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes()).expect("a config")
    }

    #[test]
    fn a_login_is_found_under_every_spelling_of_its_registry() {
        // dTpwOnc= is u:p:w
        for (key, registry) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("ghcr.io", "ghcr.io"),
            ("https://ghcr.io", "ghcr.io"),
            ("https://old.example:5000/v1/", "old.example:5000"),
            ("http://LOCALHOST:5000", "localhost:5000"),
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpwOnc="}},"x":{{}}}}}}"#);
            let config = config(&json);
            assert_eq!(config.inline(registry), Ok(login("u", "p:w")), "{key}");
            assert_eq!(config.inline("other.example"), Ok(None), "{key}");
            assert_eq!(config.inline("x"), Ok(None), "{key}");
        }
        let port = config(r#"{"auths":{"h.example:1":{"auth":"dTpwOnc="}}}"#);
        assert_eq!(port.inline("h.example"), Ok(None), "a port is a registry");
    }

    #[test]
    fn helpers_and_tokens_are_read_as_docker_writes_them() {
        let config = config(
            r#"{"auths":{"a.example":{"identitytoken":"t","auth":"dTpwOnc"},
                         "b.example":{"auth":"dTpwAAA="},
                         "c.example":{"username":"u","password":"p"},
                         "d.example":{"registrytoken":"r"}},
                "credsStore":"all","credHelpers":{"e.example":"one","docker.io":"hub"},
                "HttpHeaders":{"x":"y"},"detachKeys":"ctrl-e"}"#,
        );
        assert_eq!(config.helper("e.example"), Some("one"));
        assert_eq!(config.helper("docker.io"), Some("hub"));
        assert_eq!(config.helper("f.example"), Some("all"));
        let inline = |registry| config.inline(registry).expect("a login");
        assert_eq!(inline("a.example"), Some(Credential::Identity("t".into())));
        assert_eq!(inline("b.example"), login("u", "p"));
        assert_eq!(inline("c.example"), login("u", "p"));
        assert_eq!(inline("d.example"), Some(Credential::Bearer("r".into())));
        assert_eq!(Config::default().helper("e.example"), None);
    }

    #[test]
    fn no_error_and_no_debug_form_has_a_secret() {
        let broken = Config::parse(br#"{"auths":{"a":{"auth":12345678}}}"#);
        let why = broken.err().expect("an error");
        assert!(!why.contains("1234"), "{why}");
        let odd = config(r#"{"auths":{"a.example":{"auth":"c2VjcmV0"}}}"#);
        let why = odd.inline("a.example").expect_err("no colon");
        assert!(!why.contains("c2Vj") && !why.contains("secret"), "{why}");
        let shown = format!("{:?}", login("u", "hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[tokio::test]
    async fn no_file_is_anonymous_and_a_broken_one_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut logins = Logins {
            file: Some(dir.path().join("config.json")),
            search: None,
            limit: Duration::from_secs(1),
        };
        assert_eq!(logins.find("ghcr.io").await.expect("anonymous"), None);
        std::fs::write(dir.path().join("config.json"), "{").expect("a file");
        let broken = logins.find("ghcr.io").await;
        assert!(
            matches!(broken, Err(RegistryError::Logins { .. })),
            "{broken:?}"
        );
        std::fs::write(dir.path().join("config.json"), vec![b' '; 2 << 20]).expect("a file");
        let large = logins.find("ghcr.io").await;
        assert!(
            matches!(large, Err(RegistryError::Logins { .. })),
            "{large:?}"
        );
        logins.file = Some(dir.path().to_owned());
        let odd = logins.find("ghcr.io").await;
        assert!(matches!(odd, Err(RegistryError::Logins { .. })), "{odd:?}");
    }
}
