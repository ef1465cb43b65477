//! What a client may ask for: sizes and counts, before anything is made.

use banger_api::error::Code;
use banger_model::name::BadName;
use banger_model::size::{Size, print};
use banger_store::StoreError;

use crate::failure::Failure;
use crate::network;
use crate::ports::Host;

/// Smallest disk of a VM, bytes.
const SMALLEST_DISK: u64 = 256 << 20;
/// Free space that a create leaves, bytes.
const SPARE: u64 = 1 << 30;

pub(super) fn bad_name(error: BadName) -> Failure {
    Failure::new(Code::BadName, error.to_string())
}

pub(super) fn vcpus(count: i64) -> Result<u32, Failure> {
    match u32::try_from(count) {
        Ok(count @ 1..=32) => Ok(count),
        _ => Err(Failure::new(
            Code::BadSize,
            format!("{count} vCPUs is not 1 to 32"),
        )),
    }
}

pub(super) fn memory(mib: i64, host: &dyn Host) -> Result<u64, Failure> {
    let most = host.memory()?.1 >> 20;
    match u64::try_from(mib) {
        Ok(mib) if (128..=most).contains(&mib) => Ok(mib),
        _ => Err(Failure::new(
            Code::BadSize,
            format!("{mib} MiB of memory is not 128 to {most}, what this host has"),
        )),
    }
}

pub(super) fn disk(what: &str, text: &str) -> Result<u64, Failure> {
    let size = Size::parse(text).map_err(|error| Failure::new(Code::BadSize, error.to_string()))?;
    if size.bytes() < SMALLEST_DISK {
        let failure = Failure::new(
            Code::BadSize,
            format!("{what} of {size} is smaller than 256M"),
        );
        let bare = text.bytes().all(|byte| byte.is_ascii_digit());
        return Err(if bare {
            failure.hint(format!("{text}G"))
        } else {
            failure
        });
    }
    // ext4 counts in blocks.
    Ok(size.bytes() / 4096 * 4096)
}

pub(super) fn grown(what: &str, text: &str, now: u64) -> Result<u64, Failure> {
    let bytes = disk(what, text)?;
    if bytes < now {
        let message = format!(
            "{what} cannot shrink from {} to {}",
            print(now),
            print(bytes)
        );
        return Err(Failure::new(Code::BadSize, message));
    }
    Ok(bytes)
}

pub(super) fn space(host: &dyn Host, state_dir: &std::path::Path) -> Result<(), Failure> {
    let free = host.free_bytes()?;
    if free < SPARE {
        let tenths = free * 10 / SPARE;
        let message = format!(
            "1G free space needed, {}.{}G left in {}",
            tenths / 10,
            tenths % 10,
            state_dir.display()
        );
        return Err(Failure::new(Code::NoSpace, message));
    }
    Ok(())
}

/// The mode of a new VM's network, of those that this build has.
pub(super) fn network(mode: &str) -> Result<String, Failure> {
    match mode {
        "auto" | "user" => Ok("user".to_owned()),
        "none" => Ok("none".to_owned()),
        "bridge" => Err(Failure::new(
            Code::Unsupported,
            format!("network mode {mode} is not there yet"),
        )
        .hint("--network user")),
        _ => Err(
            Failure::new(Code::BadRequest, format!("no network mode {mode:?}"))
                .hint("--network user or none"),
        ),
    }
}

/// Whether the guest has a way out, which neither mode leaves a choice about.
pub(super) fn nat(mode: &str, wanted: Option<bool>) -> Result<bool, Failure> {
    let has = network::has_gateway(mode);
    match wanted {
        Some(true) if !has => Err(Failure::new(
            Code::Unsupported,
            format!("network mode {mode} has no way out, so no NAT"),
        )
        .hint("--network user")),
        Some(false) if has => Err(Failure::new(
            Code::BadRequest,
            format!("network mode {mode} always has a way out"),
        )
        .hint("--network none")),
        Some(_) | None => Ok(has),
    }
}

pub(super) fn engine(name: &str) -> Result<String, Failure> {
    match name {
        "auto" | "qemu" => Ok(name.to_owned()),
        "firecracker" => Err(Failure::new(
            Code::Unsupported,
            "engine firecracker is not there yet",
        )
        .hint("--engine qemu")),
        _ => {
            Err(Failure::new(Code::BadRequest, format!("no engine {name:?}")).hint("--engine qemu"))
        }
    }
}

/// A taken name in words, anything else as it is.
pub(super) fn name_taken(error: StoreError, what: &str) -> Failure {
    match error {
        StoreError::Taken(name) => Failure::new(
            Code::AlreadyExists,
            format!("{what} {name:?} already exists"),
        )
        .hint(format!("banger vm delete {name}, or --name")),
        other => other.into(),
    }
}
