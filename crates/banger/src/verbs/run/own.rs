//! The command that an image brings along: its Entrypoint and Cmd, as docker
//! runs them.

use banger_api::error::Code;
use banger_api::image::Image;
use banger_api::vm::ExecParams;

use crate::failure::Failure;

/// An image's own command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnCommand {
    command: String,
    args: Vec<String>,
    user: Option<String>,
}

impl OwnCommand {
    /// That of an image; `args` take the place of its Cmd, where there are any.
    pub(super) fn of(image: &Image, args: &[String]) -> Result<Self, Failure> {
        let none = || {
            let what = format!("image {:?} has no command of its own", image.name);
            Failure::new(Code::CommandNotFound, what).hint(format!(
                "name one: banger run --image {} -- COMMAND",
                image.name
            ))
        };
        let oci = image.oci.as_ref().ok_or_else(none)?;
        let rest = if args.is_empty() { &oci.cmd } else { args };
        let mut words = oci.entrypoint.iter().chain(rest).cloned();
        // An empty one would be the login shell.
        let command = words.next().filter(|word| !word.is_empty());
        Ok(Self {
            command: command.ok_or_else(none)?,
            args: words.collect(),
            user: Some(oci.user.clone()).filter(|user| !user.is_empty()),
        })
    }

    /// Asks for it. A user that was named goes before the image's; where it
    /// runs is the same for all commands of an image.
    pub(super) fn put_into(self, params: &mut ExecParams) {
        params.command = self.command;
        params.args = self.args;
        params.user = params.user.take().or(self.user);
    }
}

#[cfg(test)]
mod tests {
    use banger_api::image::OciConfig;

    use super::*;

    fn words(entrypoint: &[&str], cmd: &[&str], args: &[&str]) -> Option<String> {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let oci = OciConfig {
            entrypoint: owned(entrypoint),
            cmd: owned(cmd),
            ..OciConfig::default()
        };
        let image = Image {
            oci: Some(oci),
            ..Image::default()
        };
        let args: Vec<String> = owned(args);
        let own = OwnCommand::of(&image, &args).ok()?;
        Some([vec![own.command], own.args].concat().join(" "))
    }

    #[test]
    fn arguments_follow_the_entrypoint_in_place_of_cmd() {
        for (entrypoint, cmd, args, run) in [
            (&["a", "b"][..], &["c"][..], &[][..], Some("a b c")),
            (&["a", "b"], &["c"], &["d", "e"], Some("a b d e")),
            (&[], &["c", "d"], &[], Some("c d")),
            (&[], &["c", "d"], &["e"], Some("e")),
            (&["a"], &[], &[], Some("a")),
            (&[], &[], &["e"], Some("e")),
            (&[], &[], &[], None),
            (&[""], &["x"], &[], None),
        ] {
            let expected = run.map(str::to_owned);
            assert_eq!(words(entrypoint, cmd, args), expected);
        }
        let failure = OwnCommand::of(&Image::default(), &["x".to_owned()]).unwrap_err();
        assert_eq!(failure.code, Some(Code::CommandNotFound));
    }
}
