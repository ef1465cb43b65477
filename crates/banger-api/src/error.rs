//! Error codes, their kinds, and what follows from a kind.

use serde::{Deserialize, Serialize};

/// Who can act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller asked for something that makes no sense.
    Invalid,
    /// What was named is not there.
    Missing,
    /// Right request, wrong moment.
    Refused,
    /// The host has no room, no tool, no hardware.
    Lacking,
    /// Us.
    Broken,
}

macro_rules! codes {
    ($($variant:ident $name:literal $kind:ident $doc:literal),* $(,)?) => {
        /// The stable name of an error.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum Code {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)*
            /// A code this build does not know.
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl Code {
            /// Every code that this build speaks.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Unknown => "unknown" }
            }

            /// Who can act on it.
            #[must_use]
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* Self::Unknown => Kind::Broken }
            }
        }
    };
}

codes! {
    BadRequest "bad_request" Invalid "The request cannot be read.",
    BadName "bad_name" Invalid "A name breaks its rule.",
    BadSize "bad_size" Invalid "A size or count is out of its range.",
    BadPath "bad_path" Invalid "A host or guest path cannot be used.",
    BadReference "bad_reference" Invalid "A reference cannot be read.",
    BadArchive "bad_archive" Invalid "An archive is not what it should be.",
    TooLarge "too_large" Invalid "More than the limit.",
    Unsupported "unsupported" Invalid "A known value that this build or host cannot do.",
    Ambiguous "ambiguous" Invalid "A reference matches several things.",
    NotFound "not_found" Missing "No such VM, image, kernel or operation.",
    NotInCatalog "not_in_catalog" Missing "No such image or kernel to fetch.",
    UnknownRoute "unknown_route" Missing "No such route.",
    CommandNotFound "command_not_found" Missing "The guest has no such command.",
    AlreadyExists "already_exists" Refused "The name is taken.",
    InUse "in_use" Refused "Something rests on it.",
    NotRunning "not_running" Refused "The VM does not run.",
    Running "running" Refused "The VM runs.",
    MustBeStopped "must_be_stopped" Refused "Only of a VM at rest.",
    Busy "busy" Refused "Something else is under way.",
    RegistryDenied "registry_denied" Refused "A registry wants another login.",
    VerifyFailed "verify_failed" Refused "A checksum or signature does not hold.",
    Unauthorized "unauthorized" Refused "Not the owner.",
    Cancelled "cancelled" Refused "Cancelled, or overtaken.",
    NoEngine "no_engine" Lacking "No usable engine.",
    NoTool "no_tool" Lacking "A host program is missing.",
    NoMemory "no_memory" Lacking "Less memory available than asked.",
    TooMany "too_many" Lacking "A limit on how many is reached.",
    Unreachable "unreachable" Lacking "A server cannot be reached.",
    GuestUnreachable "guest_unreachable" Lacking "The agent does not answer.",
    Timeout "timeout" Lacking "It took too long.",
    DaemonUnreachable "daemon_unreachable" Lacking "The daemon does not answer; made by the CLI.",
    NoSpace "no_space" Lacking "The disk is full, or nearly.",
    Internal "internal" Broken "A defect.",
    Interrupted "interrupted" Broken "Cut by an end of the daemon.",
    BuildFailed "build_failed" Broken "An image could not be built.",
    EngineFailed "engine_failed" Broken "The engine could not be started, or died.",
    GuestFailed "guest_failed" Broken "The guest did not come up.",
}

impl Code {
    /// HTTP status of a reply that carries this error.
    #[must_use]
    pub fn status(self) -> u16 {
        match self.kind() {
            Kind::Invalid => 400,
            Kind::Missing => 404,
            Kind::Refused => 409,
            Kind::Lacking if self == Self::NoSpace => 507,
            Kind::Lacking => 503,
            Kind::Broken => 500,
        }
    }

    /// Exit status of the CLI.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self.kind() {
            Kind::Invalid => 2,
            Kind::Missing => 3,
            Kind::Refused => 4,
            Kind::Lacking => 5,
            Kind::Broken => 70,
        }
    }
}

/// Body of a reply that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: Error,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Error {
    /// Its stable name.
    pub code: Code,
    /// What was being done, and to what.
    pub message: String,
    /// The next step, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The request that failed.
    #[serde(default)]
    pub op_id: String,
    /// Why, from the outer to the inner cause.
    #[serde(default)]
    pub causes: Vec<String>,
}
