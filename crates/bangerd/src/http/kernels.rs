//! `/kernels`.

use std::sync::Arc;

use banger_api::Empty;
use banger_api::endpoint::{KernelDelete, KernelImport, KernelList, KernelPull, KernelShow};
use banger_api::kernel::{
    KernelImportParams, KernelListResult, KernelPullParams, KernelShowResult,
};
use banger_api::operation::OperationResult;

use super::operations::{WAIT, accepted};
use super::routes::{Call, Routes};
use crate::artifact::NewKernel;
use crate::daemon::App;
use crate::failure::Failure;
use crate::operation::{Outcome, Subject};

pub(super) fn add(routes: Routes) -> Routes {
    routes
        .on::<KernelList, _, _>(&[], list)
        .on::<KernelPull, _, _>(&[WAIT], pull)
        .on::<KernelImport, _, _>(&[], import)
        .on::<KernelShow, _, _>(&[], show)
        .on::<KernelDelete, _, _>(&[], delete)
}

async fn list(app: Arc<App>, _: Call<Empty>) -> Result<KernelListResult, Failure> {
    Ok(KernelListResult {
        entries: app.shelf.kernels().await?,
    })
}

async fn pull(app: Arc<App>, call: Call<KernelPullParams>) -> Result<OperationResult, Failure> {
    let wanted = NewKernel::of(&call.body)?;
    app.shelf.can_pull(&wanted).await?;
    let handle = app
        .operations
        .begin("kernel.pull", Subject::default(), &call.op)
        .await?;
    let (shelf, work) = (app.shelf.clone(), handle.clone());
    app.work(handle.clone(), async move {
        let entry = shelf.pull_kernel(wanted, &work).await?;
        Ok(Outcome {
            entry: Some(entry),
            ..Outcome::default()
        })
    });
    accepted(&app, &call.query, handle.operation()).await
}

async fn import(
    app: Arc<App>,
    call: Call<KernelImportParams>,
) -> Result<KernelShowResult, Failure> {
    Ok(KernelShowResult {
        entry: app.shelf.import_kernel(call.body).await?,
    })
}

async fn show(app: Arc<App>, call: Call<Empty>) -> Result<KernelShowResult, Failure> {
    Ok(KernelShowResult {
        entry: app.shelf.kernel_shown(call.reference()).await?,
    })
}

async fn delete(app: Arc<App>, call: Call<Empty>) -> Result<Empty, Failure> {
    app.shelf.delete_kernel(call.reference()).await?;
    Ok(Empty {})
}
