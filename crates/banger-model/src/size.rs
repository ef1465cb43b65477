//! Sizes as users write and read them.

use std::fmt;

/// Largest size anything may have, bytes: 128 GiB.
pub const MAX: u64 = 128 << 30;

/// A size in bytes, more than 0 and at most [`MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

/// A size that cannot be read, or is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    /// Neither digits nor digits with a suffix.
    #[error("size {0:?} is not digits with K, M or G")]
    Syntax(String),
    /// Zero.
    #[error("size {0:?} is zero")]
    Zero(String),
    /// Above 128 GiB.
    #[error("size {0:?} is above 128G")]
    TooLarge(String),
}

impl Size {
    /// Takes a number of bytes; `None` for zero or more than [`MAX`].
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        (1..=MAX).contains(&bytes).then_some(Self(bytes))
    }

    /// Reads digits with an optional `K`, `M` or `G`, an optional `iB`, in any
    /// case. Bare digits are MiB.
    ///
    /// # Errors
    /// [`BadSize`].
    pub fn parse(text: &str) -> Result<Self, BadSize> {
        let shown = || text.chars().take(40).collect::<String>();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        if number.is_empty() {
            return Err(BadSize::Syntax(shown()));
        }
        let shift = match suffix.to_ascii_lowercase().as_str() {
            "" | "m" | "mib" => 20,
            "k" | "kib" => 10,
            "g" | "gib" => 30,
            _ => return Err(BadSize::Syntax(shown())),
        };
        // Digits only: what does not fit is too large, not misspelled.
        let number: u64 = number.parse().map_err(|_| BadSize::TooLarge(shown()))?;
        if number == 0 {
            return Err(BadSize::Zero(shown()));
        }
        if number > MAX >> shift {
            return Err(BadSize::TooLarge(shown()));
        }
        Ok(Self(number << shift))
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self.0))
    }
}

/// The largest exact of G, M and K, else bytes.
#[must_use]
pub fn print(bytes: u64) -> String {
    for (shift, suffix) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_users_write_them() {
        for (text, bytes) in [
            ("8", 8 << 20),
            ("8G", 8 << 30),
            ("8g", 8 << 30),
            ("8GiB", 8 << 30),
            ("512mib", 512 << 20),
            ("4K", 4096),
            ("128G", 128 << 30),
        ] {
            assert_eq!(Size::parse(text).unwrap().bytes(), bytes, "{text}");
        }
        for bad in [
            "",
            "G",
            "0",
            "0G",
            "-1",
            "+1",
            "1.5G",
            "8GB",
            "8B",
            "8 G",
            " 8",
            "8iB",
            "129G",
            "8T",
            "99999999999999999999999",
            "131073",
            "٣",
        ] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_in_units_is_read_back(bytes in 1..=MAX) {
            let kib = (bytes >> 10).max(1) << 10;
            let size = Size::from_bytes(kib).unwrap();
            prop_assert_eq!(Size::parse(&size.to_string()).unwrap(), size);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = Size::parse(&text);
        }
    }
}
