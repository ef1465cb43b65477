//! Which VM an image or kernel serves: asked in the transaction that removes
//! it, so that no VM can begin to use what is going.

use banger_api::error::Code;
use banger_store::{Connection, StoreError, vms};
use serde_json::Value;

use crate::failure::Failure;

/// Names of the VMs that boot this image.
pub(super) fn of_image(db: &Connection, id: &str, name: &str) -> Result<Vec<String>, StoreError> {
    using(db, |_, record| {
        let wanted = &record["wanted_image"];
        record["image_id"] == id
            // Its create has not chosen the image yet, but will choose this.
            || (record["image_id"] == "" && (wanted == id || wanted == name))
    })
}

/// Names of the VMs that boot this kernel.
pub(super) fn of_kernel(db: &Connection, name: &str) -> Result<Vec<String>, StoreError> {
    using(db, |spec, _| spec["kernel_name"] == name)
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
pub(super) fn in_use(what: &str, name: &str, users: &[String]) -> Failure {
    let vms = users
        .iter()
        .take(3)
        .map(|vm| format!("{vm:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    let more = if users.len() > 3 { " and others" } else { "" };
    let hint = format!(
        "banger delete {}",
        users.first().map_or("VM", String::as_str)
    );
    Failure::new(
        Code::InUse,
        format!("{what} {name:?} is in use by {vms}{more}"),
    )
    .hint(hint)
}
