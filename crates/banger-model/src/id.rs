//! Ids: of VMs (and images), and of operations.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An id that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id")]
pub struct BadId;

/// Id of a VM: 64 hex digits. The keys of everything it holds come from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(String);

impl VmId {
    /// An id of 32 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(hex(&bytes))
    }

    /// Reads 64 lower-case hex digits.
    ///
    /// # Errors
    /// [`BadId`].
    pub fn parse(text: &str) -> Result<Self, BadId> {
        (text.len() == 64 && is_hex(text))
            .then(|| Self(text.to_owned()))
            .ok_or(BadId)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 32 digits: the machine id of its guest, the same at every start.
    #[must_use]
    pub fn machine_id(&self) -> &str {
        &self.0[..32]
    }
}

impl TryFrom<String> for VmId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        Self::parse(&text)
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        id.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Id of a request, and of the operation it began: `op-` and 12 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OpId(String);

impl OpId {
    /// An id of 6 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 6]) -> Self {
        Self(format!("op-{}", hex(&bytes)))
    }

    /// Reads `op-` and 12 lower-case hex digits.
    ///
    /// # Errors
    /// [`BadId`].
    pub fn parse(text: &str) -> Result<Self, BadId> {
        match text.strip_prefix("op-") {
            Some(digits) if digits.len() == 12 && is_hex(digits) => Ok(Self(text.to_owned())),
            _ => Err(BadId),
        }
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for OpId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        Self::parse(&text)
    }
}

impl From<OpId> for String {
    fn from(id: OpId) -> Self {
        id.0
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lower-case hex digits of bytes.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(nibble.into(), 16).expect("a nibble is a hex digit"));
            }
            text
        })
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = VmId::from_random([0xa5; 32]);
        assert_eq!(id.as_str(), "a5".repeat(32));
        assert_eq!(VmId::parse(id.as_str()), Ok(id.clone()));
        assert_eq!(id.machine_id().len(), 32);
        let op = OpId::from_random([0, 1, 2, 253, 254, 255]);
        assert_eq!(op.as_str(), "op-000102fdfeff");
        assert_eq!(OpId::parse(op.as_str()), Ok(op));
    }

    #[test]
    fn nothing_else_is_an_id() {
        for bad in [
            "",
            "op-",
            "op-00",
            "op-00010203040G",
            "op-000102FDFEFF",
            "000102fdfeff",
        ] {
            assert!(OpId::parse(bad).is_err(), "{bad}");
        }
        for bad in [
            "",
            "ab",
            &"A5".repeat(32),
            &"../".repeat(21),
            &"a5".repeat(33),
        ] {
            assert!(VmId::parse(bad).is_err(), "{bad}");
        }
    }
}
