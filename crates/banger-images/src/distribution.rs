//! What a Linux distribution says of itself in `os-release`, and how its package manager is
//! asked, without a person, for packages.
//!
//! Command lines only: who runs them, and where, is the caller's. Packages come without what is
//! only recommended, and what was downloaded on the way is removed again.

/// Begins no service while packages are installed: it would write the state of a machine that
/// is not the one to be. The form is that of Debian's `invoke-rc.d`.
const NO_SERVICES: &str = "test -e /usr/sbin/policy-rc.d || { \
     printf '#!/bin/sh\\n# while an image is built\\nexit 101\\n' > /usr/sbin/policy-rc.d && \
     chmod 0755 /usr/sbin/policy-rc.d; }";
const SERVICES_AGAIN: &str = "! grep -qsx '# while an image is built' /usr/sbin/policy-rc.d || \
     rm /usr/sbin/policy-rc.d";
const APT_CLEAN: &str = "apt-get clean && rm -rf /var/lib/apt/lists/*";
/// `docker-cli` is a package of its own in newer ones, and in `docker.io` before.
const APT_DOCKER: &str = "if apt-cache show docker-cli >/dev/null 2>&1; \
     then set -- \"$@\" docker-cli; fi; exec \"$@\"";
/// Fedora has packages of both names since 41; before, the first was all.
const DNF_DOCKER: &str = "if dnf -q list docker-cli >/dev/null 2>&1; \
     then set -- \"$@\" docker-cli; fi; exec \"$@\"";
/// The smallest images have a smaller one, the oldest only its ancestor.
const DNF: &str = "for tool in dnf microdnf yum; do \
     if command -v \"$tool\" >/dev/null 2>&1; then exec \"$tool\" \"$@\"; fi; done; \
     echo 'there is no dnf, microdnf or yum' >&2; exit 127";
/// 102 and 103 say that the machine, or the package manager, should be restarted.
const ZYPPER: &str =
    "zypper --non-interactive \"$@\"; s=$?; case $s in 102|103) exit 0;; esac; exit $s";
const PACMAN_CLEAN: &str = "rm -rf /var/cache/pacman/pkg/* /var/lib/pacman/sync/*";
const ENABLE_DOCKER: &str = "if command -v systemctl >/dev/null 2>&1; \
     then systemctl enable docker.service; \
     elif command -v rc-update >/dev/null 2>&1; then rc-update add docker default; fi";
/// Longest name of a package, bytes.
const NAME: usize = 256;
/// Packages in one request.
pub const MAX_PACKAGES: usize = 1024;

/// A program and its arguments.
pub type Command = Vec<String>;

/// A distribution by its own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// `debian`.
    pub id: String,
    /// Those it is like, the nearest first.
    pub like: Vec<String>,
    /// `bookworm`, or `40`; may be empty.
    pub version: String,
}

/// A package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Debian's.
    Apt,
    /// Alpine's.
    Apk,
    /// Fedora's, and that of those like it.
    Dnf,
    /// Arch's.
    Pacman,
    /// SUSE's.
    Zypper,
}

/// Nobody knows how to ask for packages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// A distribution whose package manager is not known.
    #[error(
        "{0:?} is no distribution whose package manager is known: apt, apk, dnf, pacman, zypper"
    )]
    Unknown(String),
    /// One that has no Docker of its own.
    #[error("{0:?} has no Docker among its own packages")]
    NoDocker(String),
}

impl Distribution {
    /// Reads an `os-release`; `None` where it names no distribution.
    #[must_use]
    pub fn parse(text: &str) -> Option<Distribution> {
        let value = |key: &str| {
            let line = text.lines().rev().find_map(|line| {
                line.trim_start()
                    .strip_prefix(key)
                    .and_then(|rest| rest.strip_prefix('='))
            });
            let value = line?.trim_end().trim_matches(['"', '\'']);
            let plain = |c: char| c.is_ascii_alphanumeric() || "._- ".contains(c);
            (value.len() <= 64 && value.chars().all(plain)).then(|| value.to_lowercase())
        };
        let id = value("ID").filter(|id| is_word(id))?;
        let like = value("ID_LIKE").unwrap_or_default();
        let version =
            ["VERSION_CODENAME", "VERSION_ID"].map(|key| value(key).filter(|it| is_word(it)));
        Some(Distribution {
            id,
            like: like.split_whitespace().map(str::to_owned).collect(),
            version: version.into_iter().flatten().next().unwrap_or_default(),
        })
    }

    /// `debian bookworm`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} {}", self.id, self.version)
            .trim_end()
            .to_owned()
    }

    /// Its package manager, by its own name or that of one it is like.
    #[must_use]
    pub fn manager(&self) -> Option<Manager> {
        let names = std::iter::once(&self.id).chain(&self.like);
        names.into_iter().find_map(|name| {
            Some(match name.as_str() {
                "debian" | "ubuntu" => Manager::Apt,
                "alpine" => Manager::Apk,
                "fedora" | "rhel" | "centos" | "amzn" | "rocky" | "almalinux" | "ol" => {
                    Manager::Dnf
                }
                "arch" | "archlinux" => Manager::Pacman,
                "suse" | "opensuse" | "sles" => Manager::Zypper,
                name if name.starts_with("opensuse-") => Manager::Zypper,
                _ => return None,
            })
        })
    }

    /// What installs these packages, and Docker where it is asked for; to be run one after
    /// another, each only when the one before did well.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub fn install(&self, packages: &[String], docker: bool) -> Result<Vec<Command>, InstallError> {
        let manager = self
            .manager()
            .ok_or_else(|| InstallError::Unknown(self.id.clone()))?;
        let docker = docker
            .then(|| {
                self.docker(manager)
                    .ok_or_else(|| InstallError::NoDocker(self.id.clone()))
            })
            .transpose()?;
        let wanted = packages.iter().map(String::as_str).chain(docker).collect();
        let mut steps = manager.steps(wanted, docker);
        if docker.is_some() && manager != Manager::Apt {
            // Debian's packages do so themselves.
            steps.push(shell(ENABLE_DOCKER, []));
        }
        Ok(steps)
    }

    /// The package that is Docker's engine.
    fn docker(&self, manager: Manager) -> Option<&'static str> {
        match (manager, self.id.as_str()) {
            (Manager::Apt, _) => Some("docker.io"),
            (Manager::Dnf, "fedora") => Some("moby-engine"),
            (Manager::Dnf, "amzn") => Some("docker"),
            (Manager::Dnf, _) => None,
            (Manager::Apk | Manager::Pacman | Manager::Zypper, _) => Some("docker"),
        }
    }
}

impl Manager {
    fn steps(self, packages: Vec<&str>, docker: Option<&str>) -> Vec<Command> {
        let with = |line: &str| {
            let words = line.split(' ').chain(packages.iter().copied());
            words.map(str::to_owned).collect::<Command>()
        };
        match self {
            Manager::Apt => {
                let install = with(
                    "apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold",
                );
                let install = match docker {
                    Some(_) => shell(APT_DOCKER, install.iter().map(String::as_str)),
                    None => install,
                };
                vec![
                    shell(NO_SERVICES, []),
                    ["apt-get", "update"].map(str::to_owned).to_vec(),
                    install,
                    shell(SERVICES_AGAIN, []),
                    shell(APT_CLEAN, []),
                ]
            }
            Manager::Apk => vec![with("apk add --no-cache")],
            Manager::Dnf if docker == Some("moby-engine") => {
                let install = with("dnf install -y --setopt=install_weak_deps=False");
                vec![
                    shell(DNF_DOCKER, install.iter().map(String::as_str)),
                    shell(DNF, ["clean", "all"]),
                ]
            }
            Manager::Dnf => {
                let install = with("install -y --setopt=install_weak_deps=False");
                vec![
                    shell(DNF, install.iter().map(String::as_str)),
                    shell(DNF, ["clean", "all"]),
                ]
            }
            // A part of Arch cannot be newer than the rest.
            Manager::Pacman => vec![
                with("pacman -Syu --noconfirm --needed"),
                shell(PACMAN_CLEAN, []),
            ],
            Manager::Zypper => {
                let install = with("install --no-recommends --auto-agree-with-licenses");
                vec![
                    shell(ZYPPER, ["refresh"]),
                    shell(ZYPPER, install.iter().map(String::as_str)),
                    shell(ZYPPER, ["clean", "--all"]),
                ]
            }
        }
    }
}

fn is_word(value: &str) -> bool {
    !value.is_empty() && !value.contains(' ')
}

/// A line of shell with arguments.
fn shell<'a>(script: &'a str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let words = ["sh", "-c", script, "sh"].into_iter().chain(arguments);
    words.map(str::to_owned).collect()
}

/// Whether a package manager would take this for a package and nothing else.
#[must_use]
pub fn is_package(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_graphic();
    (1..=NAME).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &str, like: &str) -> Distribution {
        Distribution::parse(&format!("ID={id}\nID_LIKE=\"{like}\"\n")).unwrap()
    }

    /// One step a line; what a shell runs is only named.
    fn shown(distribution: &Distribution, docker: bool) -> String {
        let steps = distribution.install(&["jq".to_owned(), "bc".to_owned()], docker);
        let name = |script: &str| {
            [
                (NO_SERVICES, "NO_SERVICES"),
                (SERVICES_AGAIN, "SERVICES_AGAIN"),
                (APT_CLEAN, "APT_CLEAN"),
                (APT_DOCKER, "APT_DOCKER"),
                (DNF_DOCKER, "DNF_DOCKER"),
                (DNF, "DNF"),
                (ZYPPER, "ZYPPER"),
                (PACMAN_CLEAN, "PACMAN_CLEAN"),
                (ENABLE_DOCKER, "ENABLE_DOCKER"),
            ]
            .into_iter()
            .find(|(text, _)| *text == script)
            .expect("one of ours")
            .1
        };
        let line = |step: Command| match &step[..] {
            [sh, c, script, _, rest @ ..] if sh == "sh" && c == "-c" => {
                format!("{} {}", name(script), rest.join(" "))
                    .trim_end()
                    .to_owned()
            }
            words => words.join(" "),
        };
        let lines: Vec<String> = steps.unwrap().into_iter().map(line).collect();
        lines.join("\n")
    }

    #[test]
    fn a_distribution_is_read_whatever_its_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        let debian = Distribution::parse(text).unwrap();
        assert_eq!(debian.label(), "debian bookworm");
        let leap = Distribution::parse(
            "ID='opensuse-leap'\nVERSION_ID=\"15.6\"\nID_LIKE=\"suse opensuse\"",
        )
        .unwrap();
        assert_eq!(
            (leap.label().as_str(), leap.like.len()),
            ("opensuse-leap 15.6", 2)
        );
        assert_eq!(Distribution::parse("ID=arch\n").unwrap().label(), "arch");
        for none in ["", "NAME=x", "ID=\n", "ID=\"$(reboot)\"", "XID=debian"] {
            assert_eq!(Distribution::parse(none), None, "{none}");
        }
    }

    #[test]
    fn the_package_manager_is_that_of_the_nearest_known_relative() {
        for (id, like, manager) in [
            ("debian", "", Some(Manager::Apt)),
            ("ubuntu", "debian", Some(Manager::Apt)),
            ("linuxmint", "ubuntu debian", Some(Manager::Apt)),
            ("alpine", "", Some(Manager::Apk)),
            ("fedora", "", Some(Manager::Dnf)),
            ("rocky", "rhel centos fedora", Some(Manager::Dnf)),
            ("arch", "", Some(Manager::Pacman)),
            ("manjaro", "arch", Some(Manager::Pacman)),
            ("opensuse-leap", "suse opensuse", Some(Manager::Zypper)),
            ("opensuse-tumbleweed", "", Some(Manager::Zypper)),
            ("void", "", None),
        ] {
            assert_eq!(of(id, like).manager(), manager, "{id}");
        }
        let error = of("void", "").install(&[], false).unwrap_err();
        assert!(error.to_string().contains("void"), "{error}");
    }

    #[test]
    fn every_package_manager_is_asked_in_its_own_words() {
        for (id, like, lines) in [
            (
                "debian",
                "",
                "NO_SERVICES\napt-get update\napt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold jq bc\nSERVICES_AGAIN\nAPT_CLEAN",
            ),
            ("alpine", "", "apk add --no-cache jq bc"),
            (
                "rocky",
                "rhel",
                "DNF install -y --setopt=install_weak_deps=False jq bc\nDNF clean all",
            ),
            (
                "arch",
                "",
                "pacman -Syu --noconfirm --needed jq bc\nPACMAN_CLEAN",
            ),
            (
                "sles",
                "suse",
                "ZYPPER refresh\nZYPPER install --no-recommends --auto-agree-with-licenses jq bc\nZYPPER clean --all",
            ),
        ] {
            assert_eq!(shown(&of(id, like), false), lines, "{id}");
        }
    }

    #[test]
    fn docker_is_the_distributions_own() {
        for (id, like, lines) in [
            (
                "ubuntu",
                "debian",
                "NO_SERVICES\napt-get update\nAPT_DOCKER apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold jq bc docker.io\nSERVICES_AGAIN\nAPT_CLEAN",
            ),
            (
                "alpine",
                "",
                "apk add --no-cache jq bc docker\nENABLE_DOCKER",
            ),
            (
                "fedora",
                "",
                "DNF_DOCKER dnf install -y --setopt=install_weak_deps=False jq bc moby-engine\nDNF clean all\nENABLE_DOCKER",
            ),
            (
                "amzn",
                "fedora",
                "DNF install -y --setopt=install_weak_deps=False jq bc docker\nDNF clean all\nENABLE_DOCKER",
            ),
            (
                "arch",
                "",
                "pacman -Syu --noconfirm --needed jq bc docker\nPACMAN_CLEAN\nENABLE_DOCKER",
            ),
            (
                "opensuse-leap",
                "suse",
                "ZYPPER refresh\nZYPPER install --no-recommends --auto-agree-with-licenses jq bc docker\nZYPPER clean --all\nENABLE_DOCKER",
            ),
        ] {
            assert_eq!(shown(&of(id, like), true), lines, "{id}");
        }
        let rocky = of("rocky", "rhel centos fedora").install(&[], true);
        assert_eq!(rocky, Err(InstallError::NoDocker("rocky".to_owned())));
    }

    #[test]
    fn a_shell_understands_every_line_of_ours() {
        for script in [
            NO_SERVICES,
            SERVICES_AGAIN,
            APT_CLEAN,
            APT_DOCKER,
            DNF_DOCKER,
            DNF,
            ZYPPER,
            PACMAN_CLEAN,
            ENABLE_DOCKER,
        ] {
            let read = std::process::Command::new("sh")
                .args(["-n", "-c", script])
                .status();
            assert!(read.unwrap().success(), "{script}");
        }
    }

    #[test]
    fn options_and_blanks_are_no_packages() {
        for name in [
            "jq",
            "libc6:amd64",
            "jq=1.6-2",
            "@tools",
            "python3.11",
            "perl(JSON)",
        ] {
            assert!(is_package(name), "{name}");
        }
        for name in [
            "",
            "-y",
            "--root=/",
            "a b",
            "a\nb",
            "ä",
            &"x".repeat(NAME + 1),
        ] {
            assert!(!is_package(name), "{name}");
        }
    }
}
