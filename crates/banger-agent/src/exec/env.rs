//! The environment of a command and where its program may be.

use std::collections::BTreeMap;

use super::users::User;

/// Where programs are, unless the image says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables of a command: the image's, those of user and machine over
/// them, the caller's over all.
pub(crate) fn variables(
    image: &BTreeMap<String, String>,
    user: &User,
    shell: &str,
    machine: &str,
    has_terminal: bool,
    asked: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env = image.clone();
    for (name, value) in [
        ("HOME", user.home.as_str()),
        ("USER", user.name.as_str()),
        ("LOGNAME", user.name.as_str()),
        ("SHELL", shell),
        ("BANGER_VM", machine),
    ] {
        env.insert(name.to_owned(), value.to_owned());
    }
    let term = if has_terminal {
        "xterm-256color"
    } else {
        "dumb"
    };
    for (name, value) in [("PATH", PATH), ("TERM", term), ("LANG", "C.UTF-8")] {
        env.entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    env.extend(asked.clone());
    env
}

/// The paths at which `program` may be, in order.
pub(crate) fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() {
        // Nothing has no name; a directory of PATH is not meant.
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let directories = path.split(':').filter(|directory| !directory.is_empty());
    directories
        .map(|directory| format!("{}/{program}", directory.trim_end_matches('/')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn bob() -> User {
        super::super::users::find(Some("bob"), "bob:x:7:7::/home/bob:/bin/zsh", "").unwrap()
    }

    #[test]
    fn the_caller_wins_over_the_machine_and_the_machine_over_the_image() {
        let image = map(&[
            ("HOME", "/app"),
            ("A", "image"),
            ("B", "image"),
            ("LANG", "de"),
        ]);
        let asked = map(&[("A", "asked"), ("USER", "me")]);
        let env = variables(&image, &bob(), "/bin/zsh", "box", true, &asked);
        assert_eq!(env["HOME"], "/home/bob");
        assert_eq!(env["A"], "asked");
        assert_eq!(env["B"], "image");
        assert_eq!(env["USER"], "me");
        assert_eq!(env["LANG"], "de");
        assert_eq!(env["SHELL"], "/bin/zsh");
        assert_eq!(env["BANGER_VM"], "box");
        assert_eq!(env["PATH"], PATH);
        assert_eq!(env["TERM"], "xterm-256color");
    }

    #[test]
    fn the_images_path_is_kept() {
        let env = variables(
            &map(&[("PATH", "/app/bin")]),
            &bob(),
            "",
            "box",
            false,
            &map(&[]),
        );
        assert_eq!(env["PATH"], "/app/bin");
    }

    #[test]
    fn programs_are_looked_for_along_the_path_unless_a_path_was_given() {
        assert_eq!(
            candidates("ls", "/bin:/usr/bin/:"),
            ["/bin/ls", "/usr/bin/ls"]
        );
        assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
        assert!(candidates("", "/bin").is_empty());
    }
}
