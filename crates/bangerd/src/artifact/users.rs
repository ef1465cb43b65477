//! Which VM an image or kernel serves: asked in the transaction that removes
//! it, so that no VM can begin to use what is going.

use banger_api::error::Code;
use banger_store::{Connection, StoreError, images, vms};
use serde_json::Value;

use crate::failure::Failure;

/// Names of the VMs that boot this image. One whose create has not chosen yet
/// will choose what it was told, or the default.
pub(super) fn of_image(
    db: &Connection,
    id: &str,
    name: &str,
    default: Option<&str>,
) -> Result<Vec<String>, StoreError> {
    using(db, |_, record| {
        let wanted = record["wanted_image"].as_str().or(default);
        // As an image is found: by its name, or by the beginning of its id.
        let begins = |wanted: &str| wanted.len() >= 4 && id.starts_with(wanted);
        let named = wanted.is_some_and(|wanted| wanted == name || begins(wanted));
        record["image_id"] == id || (record["image_id"] == "" && named)
    })
}

/// Names of the VMs that boot this kernel.
pub(super) fn of_kernel(db: &Connection, name: &str) -> Result<Vec<String>, StoreError> {
    using(db, |spec, _| spec["kernel_name"] == name)
}

/// What anybody may yet boot this kernel for, by kind and name: VMs that do,
/// VMs whose create has not chosen, images that name it.
pub(super) fn all_of_kernel(
    db: &Connection,
    name: &str,
) -> Result<Vec<(&'static str, String)>, StoreError> {
    let vms = using(db, |spec, record| {
        spec["kernel_name"] == name || (spec["kernel_name"].is_null() && record["image_id"] == "")
    })?;
    with_images(db, name, vms)
}

/// What the removal of this kernel would break, by kind and name: VMs that boot it, images that
/// name it.
pub(super) fn resting_on_kernel(
    db: &Connection,
    name: &str,
) -> Result<Vec<(&'static str, String)>, StoreError> {
    with_images(db, name, of_kernel(db, name)?)
}

fn with_images(
    db: &Connection,
    name: &str,
    vms: Vec<String>,
) -> Result<Vec<(&'static str, String)>, StoreError> {
    let parse = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    let naming = images::list(db)?
        .into_iter()
        .filter(|row| parse(&row.record)["kernel_name"] == name);
    let vms = vms.into_iter().map(|vm| ("vm", vm));
    Ok(vms
        .chain(naming.map(|image| ("image", image.name)))
        .collect())
}

fn using(
    db: &Connection,
    uses: impl Fn(&Value, &Value) -> bool,
) -> Result<Vec<String>, StoreError> {
    let parse = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    let users = vms::all(db)?
        .into_iter()
        .filter(|vm| uses(&parse(&vm.spec), &parse(&vm.record)));
    Ok(users.map(|vm| vm.name).collect())
}

/// The refusal to touch what VMs rest on.
pub(super) fn in_use(what: &str, name: &str, vms: &[String]) -> Failure {
    let users: Vec<_> = vms.iter().map(|vm| ("vm", vm.clone())).collect();
    in_use_by(what, name, &users)
}

/// The refusal to touch what something rests on, by kind and name.
pub(super) fn in_use_by(what: &str, name: &str, users: &[(&str, String)]) -> Failure {
    let shown = users
        .iter()
        .take(3)
        .map(|(kind, user)| match *kind {
            "vm" => format!("{user:?}"),
            kind => format!("{kind} {user:?}"),
        })
        .collect::<Vec<_>>()
        .join(", ");
    let more = if users.len() > 3 { " and others" } else { "" };
    let failure = Failure::new(
        Code::InUse,
        format!("{what} {name:?} is in use by {shown}{more}"),
    );
    match users.first() {
        Some(("vm", vm)) => failure.hint(format!("banger delete {vm}")),
        Some((kind, user)) => failure.hint(format!("banger {kind} delete {user}")),
        None => failure,
    }
}
