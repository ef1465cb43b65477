//! What a system says of itself in `os-release`.

use crate::distribution::Distribution;

/// `debian bookworm`, `alpine 3.20`, `arch`: the system's id, and the name or number of its
/// version where there is one.
pub(crate) fn distro(file: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(file);
    Distribution::parse(&text).map(|distribution| distribution.label())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_version_are_found_and_what_is_no_plain_word_is_not() {
        for (file, expected) in [
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n",
                Some("debian bookworm"),
            ),
            ("ID='alpine'\nVERSION_ID=3.20.1", Some("alpine 3.20.1")),
            ("ID=arch\nBUILD_ID=rolling\n", Some("arch")),
            (
                "ID=fedora\nVERSION_CODENAME=\"\"\nVERSION_ID=41\n",
                Some("fedora 41"),
            ),
            ("ID=a b\n", None),
            ("ID=\u{1b}[31mred\n", None),
            ("VERSION_ID=1\n", None),
            ("", None),
        ] {
            assert_eq!(distro(file.as_bytes()).as_deref(), expected, "{file:?}");
        }
        assert_eq!(distro(b"\xff\xfe\nID=x\n").as_deref(), Some("x"));
    }
}
