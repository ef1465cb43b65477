//! Verbs on several VMs: duplicates dropped, all at once, told in the order
//! given, the good ones done, the status that of the first failure.

use std::collections::HashSet;
use std::pin::pin;

use banger_api::endpoint::VmShow;
use banger_api::operation::Operation;
use banger_api::vm::VmRecord;
use futures_util::StreamExt;
use futures_util::stream;

use crate::client::start::Place;
use crate::client::{At, Client};
use crate::failure::Failure;
use crate::interrupt::{Cancel, guarded};
use crate::show::progress::Progress;
use crate::{follow, show};

/// Connections one command opens at most; the daemon takes 512 from all.
const AT_ONCE: usize = 64;

/// One VM as the user named it.
pub(crate) struct Target {
    /// The reference.
    pub(crate) reference: String,
    /// The VM, where it had to be looked up.
    pub(crate) vm: Option<VmRecord>,
}

impl Target {
    /// What to put into the path.
    pub(crate) fn path(&self) -> &str {
        self.vm.as_ref().map_or(&self.reference, |vm| &vm.id)
    }
}

/// Looks up what the references mean and drops those that mean the same VM.
/// With one reference there is nothing to drop, and the daemon looks it up
/// anyway; `always` asks nevertheless.
pub(crate) async fn targets(
    client: &Client,
    references: &[String],
    always: bool,
) -> Vec<Result<Target, Failure>> {
    let mut seen = HashSet::new();
    let references: Vec<&String> = references
        .iter()
        .filter(|reference| seen.insert(*reference))
        .collect();
    if let ([only], false) = (&references[..], always) {
        return vec![Ok(Target {
            reference: (*only).clone(),
            vm: None,
        })];
    }
    let lookups = references.into_iter().map(async |reference| {
        let shown = client.get::<VmShow>(At::path(&[reference])).await?;
        Ok(Target {
            reference: reference.clone(),
            vm: Some(shown.vm),
        })
    });
    let mut ids = HashSet::new();
    let mut found: Vec<Result<Target, Failure>> =
        stream::iter(lookups).buffered(AT_ONCE).collect().await;
    found.retain(|target| match target {
        Ok(Target { vm: Some(vm), .. }) => ids.insert(vm.id.clone()),
        _ => true,
    });
    found
}

/// Begins an operation for each target, follows all, prints one name (or
/// whole id) a line for each that succeeded.
pub(crate) async fn operate(
    place: &Place,
    client: &Client,
    targets: Vec<Result<Target, Failure>>,
    quiet: bool,
    begin: impl AsyncFn(&Target) -> Result<Operation, Failure>,
) -> Result<u8, Failure> {
    guarded(async |cancel| {
        let alone = targets.len() == 1;
        let begin = &begin;
        let works = targets.into_iter().map(|target| {
            let cancel = cancel.clone();
            async move {
                let target = target?;
                let operation = begin(&target).await?;
                let operation = finish(place, client, operation, alone, cancel).await?;
                Ok((target, operation))
            }
        });
        let mut ends = pin!(stream::iter(works).buffered(AT_ONCE));
        let mut status = None;
        while let Some(end) = ends.next().await {
            match end {
                Ok((target, operation)) => show::line(&told(&target, &operation, quiet))?,
                Err(failure) => {
                    let failure: Failure = failure;
                    failure.print();
                    status.get_or_insert(failure.exit);
                }
            }
        }
        Ok(status.unwrap_or(0))
    })
    .await
}

/// As [`operate`], for what is done when it is answered.
pub(crate) async fn call(
    targets: Vec<Result<Target, Failure>>,
    quiet: bool,
    change: impl AsyncFn(&Target) -> Result<VmRecord, Failure>,
) -> Result<u8, Failure> {
    let change = &change;
    let works = targets
        .into_iter()
        .map(async |target| change(&target?).await);
    let mut ends = pin!(stream::iter(works).buffered(AT_ONCE));
    let mut status = None;
    while let Some(end) = ends.next().await {
        match end {
            Ok(vm) => show::line(&show::escape(if quiet { &vm.id } else { &vm.name }))?,
            Err(failure) => {
                failure.print();
                status.get_or_insert(failure.exit);
            }
        }
    }
    Ok(status.unwrap_or(0))
}

async fn finish(
    place: &Place,
    client: &Client,
    operation: Operation,
    drawn: bool,
    cancel: Cancel,
) -> Result<Operation, Failure> {
    if operation.done {
        return if operation.success {
            Ok(operation)
        } else {
            Err(Failure::of_operation(&operation))
        };
    }
    let mut progress = if drawn {
        Progress::new()
    } else {
        Progress::hidden()
    };
    follow::success(place, client, &operation.id, &mut progress, cancel).await
}

/// The line that says a verb has been done to this VM.
fn told(target: &Target, operation: &Operation, quiet: bool) -> String {
    let record = operation.vm.as_ref().or(target.vm.as_ref());
    let (id, name) = (
        operation
            .vm_id
            .as_deref()
            .or(record.map(|vm| vm.id.as_str())),
        operation
            .vm_name
            .as_deref()
            .or(record.map(|vm| vm.name.as_str())),
    );
    let wanted = if quiet { id } else { name };
    show::escape(wanted.unwrap_or(&target.reference))
}
