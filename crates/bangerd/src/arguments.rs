//! The command line of the daemon. People meet `banger`; this is read by it,
//! by tests and by service managers.

use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::paths::Overrides;

/// What `--help` prints.
pub const HELP: &str = "\
bangerd: the banger daemon. Started by banger when it is needed.

Usage: bangerd [OPTIONS]

  --socket PATH     listen here
  --state DIR       keep state here
  --config FILE     read this configuration
  --startup-fd N    write \"ready\" or a JSON error to this descriptor
  --doctor-json     look at the host, print a report, start nothing
  --defaults-json   print the defaults of new VMs, start nothing
  --list-seams      print where tests may cut the power
  --version         print version, commit and build time
  --help            print this
";

/// What this process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Errand {
    /// Be the daemon.
    #[default]
    Serve,
    /// Print what doctor finds, as JSON.
    Doctor,
    /// Print the defaults of new VMs, as JSON.
    VmDefaults,
    /// Print the names of the seams.
    ListSeams,
    /// Write one image from descriptors, confined.
    WriteImage,
    /// Make a bundle of files of this host.
    MakeBundle,
    /// Print version, commit and build time.
    Version,
    /// Print the options.
    Help,
}

/// The command line, read.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// What to do.
    pub errand: Errand,
    /// Places that are moved.
    pub overrides: Overrides,
    /// Where the starter waits for a word.
    pub startup_fd: Option<RawFd>,
    /// What to write an image from.
    pub image_task: String,
    /// The bundle to make, as JSON.
    pub bundle: String,
}

impl Arguments {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// A sentence for whoever typed them.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut read = Self::default();
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            let Some(argument) = argument.to_str().map(str::to_owned) else {
                return Err(format!("argument {argument:?} is not UTF-8"));
            };
            let (flag, inline) = match argument.split_once('=') {
                Some((flag, value)) => (flag, Some(OsString::from(value))),
                None => (argument.as_str(), None),
            };
            let mut value = || match inline.clone().or_else(|| rest.next()) {
                Some(value) if !value.is_empty() => Ok(value),
                _ => Err(format!("{flag} needs a value")),
            };
            match flag {
                "--socket" => read.overrides.socket = Some(value()?.into()),
                "--state" => read.overrides.state = Some(value()?.into()),
                "--config" => read.overrides.config = Some(value()?.into()),
                "--startup-fd" => {
                    let number = value()?;
                    let number = number.to_str().and_then(|text| text.parse().ok());
                    read.startup_fd = Some(number.ok_or("--startup-fd needs a number")?);
                }
                // Not for people: the daemon starts itself so.
                "--write-image" => {
                    let task = value()?;
                    read.image_task = task.to_string_lossy().into_owned();
                    read.errand = Errand::WriteImage;
                }
                // Nor this: `banger internal make-bundle` is.
                "--make-bundle" => {
                    read.bundle = value()?.to_string_lossy().into_owned();
                    read.errand = Errand::MakeBundle;
                }
                "--doctor-json" => read.errand = Errand::Doctor,
                "--defaults-json" => read.errand = Errand::VmDefaults,
                "--list-seams" => read.errand = Errand::ListSeams,
                "--version" | "-V" => read.errand = Errand::Version,
                "--help" | "-h" => read.errand = Errand::Help,
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, String> {
        Arguments::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn values_follow_their_flag_or_an_equals_sign() {
        let read = parse(&["--socket", "/s", "--state=/st", "--startup-fd", "7"]).unwrap();
        assert_eq!(read.errand, Errand::Serve);
        assert_eq!(read.overrides.socket, Some("/s".into()));
        assert_eq!(read.overrides.state, Some("/st".into()));
        assert_eq!(read.startup_fd, Some(7));
        assert_eq!(parse(&["--version"]).unwrap().errand, Errand::Version);
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (arguments, expected) in [
            (&["--sock"][..], "unknown argument --sock"),
            (&["--socket"], "--socket needs a value"),
            (&["--socket="], "--socket needs a value"),
            (&["--startup-fd", "x"], "--startup-fd needs a number"),
        ] {
            assert_eq!(parse(arguments).unwrap_err(), expected);
        }
    }
}
