//! Debian's docker-registry on loopback, and images made for it of root file systems.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::run::{Call, Live};
use crate::{House, am_root, census, wait};

const TOOLS: [&str; 4] = ["docker-registry", "skopeo", "umoci", "htpasswd"];

/// A registry with its own directory; ends when it is dropped.
pub struct Registry {
    /// `127.0.0.1:PORT`.
    pub at: String,
    dir: PathBuf,
    login: Option<(String, String)>,
    _server: Live,
}

impl Registry {
    /// Starts it in a new directory; with a user and a password it is for that user only.
    /// `None` where a tool for it is missing, or images cannot be made as they are.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(dir: &Path, login: Option<(&str, &str)>) -> Option<Self> {
        let missing = TOOLS.iter().find(|tool| census::which(tool).is_none());
        if missing.is_some() || !am_root() {
            return None;
        }
        fs::create_dir_all(dir).expect("an own directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .expect("loopback has a free port")
            .port();
        let at = format!("127.0.0.1:{port}");
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": dir.join("store")}},
            "http": {"addr": at},
        });
        if let Some((user, password)) = login {
            let users = Call::new("htpasswd", ["-Bbn", user, password]).run().ok();
            fs::write(dir.join("users"), users.out()).expect("an own file");
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": dir.join("users")}});
        }
        // JSON is YAML.
        let file = dir.join("config.yml");
        fs::write(&file, config.to_string()).expect("an own file");
        let server = Call::new("docker-registry", ["serve".as_ref(), file.as_os_str()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .start();
        wait::until_true("the registry answers", Duration::from_secs(60), || {
            TcpStream::connect(&at).is_ok()
        });
        Some(Self {
            at,
            dir: dir.to_owned(),
            login: login.map(|(user, password)| (user.to_owned(), password.to_owned())),
            _server: server,
        })
    }

    /// Makes an image with a shell script in an empty directory, which leaves it there as
    /// `image:1` in an OCI layout, and pushes it; what it is called. The layout stays.
    ///
    /// # Panics
    /// When the script or the push fails.
    #[track_caller]
    pub fn push(&self, name: &str, script: &str) -> String {
        let dir = self.dir.join("images").join(name);
        fs::create_dir_all(&dir).expect("an own directory");
        // What it mounts goes with it.
        let words = ["--mount", "--propagation", "private", "sh", "-ec", script];
        let _ = Call::new("unshare", words).within(&dir).run().ok();
        let reference = format!("{}/team/{name}:1", self.at);
        let target = format!("docker://{reference}");
        let mut words = vec!["copy", "-q", "--dest-tls-verify=false"];
        let login = self.login.as_ref();
        let login = login.map(|(user, password)| format!("--dest-creds={user}:{password}"));
        words.extend(login.as_deref());
        words.extend(["oci:image:1", &target]);
        let _ = Call::new("skopeo", words).within(&dir).run().ok();
        reference
    }

    /// Lets who lives in a house log in.
    ///
    /// # Panics
    /// When there is no login, or the file cannot be written.
    pub fn log_in(&self, house: &House) {
        let (user, password) = self.login.as_ref().expect("it is for a user");
        let docker = house.dir().join("home/.docker");
        fs::create_dir_all(&docker).expect("an own directory");
        let secret = format!("{user}:{password}");
        let secret = Call::new("base64", ["-w0"]).input(secret).run().ok();
        let logins = json!({"auths": {&self.at: {"auth": secret.line()}}});
        fs::write(docker.join("config.json"), logins.to_string()).expect("an own file");
    }

    /// The directory in which an image was made.
    #[must_use]
    pub fn made_in(&self, name: &str) -> PathBuf {
        self.dir.join("images").join(name)
    }
}

/// A script for [`Registry::push`]: the whole of an ext4 file as one layer, with what else umoci
/// is to say of the image.
#[must_use]
pub fn of_root(rootfs: &Path, config: &str) -> String {
    format!(
        "mkdir mnt\n\
         mount -o loop,ro {0} mnt\n\
         trap 'umount mnt' EXIT\n\
         tar --create --file layer.tar --xattrs --numeric-owner --directory mnt \
             --exclude=./lost+found .\n\
         umoci init --layout image\n\
         umoci new --image image:1\n\
         umoci raw add-layer --image image:1 layer.tar\n\
         umoci config --image image:1 --architecture amd64 {config}\n\
         rm layer.tar\n",
        rootfs.display()
    )
}
