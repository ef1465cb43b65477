//! Names that users give. A value of these types obeys its rule; nothing else
//! can be made into a path, a hostname or a row.

use std::fmt;

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} name {name:?} is not {rule}")]
pub struct BadName {
    /// What was to be named.
    pub what: &'static str,
    /// The offending name, cut to 80 characters.
    pub name: String,
    /// The rule, in words.
    pub rule: &'static str,
}

macro_rules! names {
    ($($(#[$doc:meta])* $type:ident $what:literal $rule:literal $check:path;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(String);

        impl $type {
            /// Takes a name that obeys the rule.
            ///
            /// # Errors
            /// [`BadName`] with the rule in words.
            pub fn parse(name: &str) -> Result<Self, BadName> {
                if $check(name) {
                    Ok(Self(name.to_owned()))
                } else {
                    Err(BadName { what: $what, name: name.chars().take(80).collect(), rule: $rule })
                }
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// Name of a VM, which is also its hostname: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
    VmName "VM" "1 to 63 of a-z, 0-9 and -, with no - at the ends" is_vm_name;
    /// Name of an image: `[a-z0-9][a-z0-9._-]{0,127}`.
    ImageName "image" "1 to 128 of a-z, 0-9, ., _ and -, beginning with a letter or digit" is_image_name;
    /// Name of a kernel: that of an image with capitals and `+`, which Debian's
    /// backported kernels have in their versions, and no `..`.
    KernelName "kernel" "1 to 128 of A-Z, a-z, 0-9, ., _, + and -, beginning with a letter or digit, without \"..\"" is_kernel_name;
}

fn is_vm_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_image_name(name: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=128).contains(&name.len())
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(|b| first(b) || b"._-".contains(&b))
}

fn is_kernel_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_name_is_a_hostname_label() {
        for good in ["a", "0", "box", "a-b", "a--b", &"x".repeat(63)] {
            assert!(VmName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "Box",
            "a_b",
            "a.b",
            "ä",
            "a b",
            "a/b",
            &"x".repeat(64),
            "a\n",
        ] {
            assert!(VmName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn images_and_kernels_never_lead_out_of_their_directory() {
        for good in ["debian-bookworm", "a.b_c-d", "6"] {
            assert!(ImageName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "A", "a/b", &"x".repeat(129)] {
            assert!(ImageName::parse(bad).is_err(), "{bad}");
        }
        assert!(KernelName::parse("6.1.0-56-cloud-amd64").is_ok());
        assert!(KernelName::parse("Linux").is_ok());
        for bad in ["", "..", "a..b", "/a", "a/../b", ".a"] {
            assert!(KernelName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_huge_bad_name_is_cut_in_the_error() {
        let error = VmName::parse(&"Ä".repeat(5000)).unwrap_err();
        assert_eq!(error.name.chars().count(), 80);
    }
}
