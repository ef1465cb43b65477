//! `/kernels`.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use banger_api::Empty;
use banger_api::endpoint::{
    Endpoint, KernelDelete, KernelImport, KernelList, KernelPull, KernelShow,
};
use banger_api::kernel::{
    KernelImportParams, KernelListResult, KernelPullParams, KernelShowResult,
};
use banger_api::operation::OperationResult;
use http::Request;

use super::operations::{WAIT, accepted};
use super::reply;
use super::routes::{Call, Routes, read_body};
use crate::daemon::App;
use crate::failure::Failure;
use crate::operation::{OpHandle, Outcome, Subject};

pub(super) fn add(routes: Routes) -> Routes {
    routes
        .raw(KernelList::METHOD, KernelList::PATH, &["available"], list)
        .on::<KernelPull, _, _>(&[WAIT], pull)
        .on::<KernelImport, _, _>(&[], import)
        .on::<KernelShow, _, _>(&[], show)
        .on::<KernelDelete, _, _>(&[], delete)
}

async fn list(app: Arc<App>, call: Call<Request<Body>>) -> Result<Response, Failure> {
    let Empty {} = read_body(call.body.into_body()).await?;
    if call.query.flag("available")? {
        return Ok(reply::json(200, &app.shelf.available_kernels().await?));
    }
    let entries = app.shelf.kernels().await?;
    Ok(reply::json(200, &KernelListResult { entries }))
}

async fn pull(app: Arc<App>, call: Call<KernelPullParams>) -> Result<OperationResult, Failure> {
    let wanted = app.shelf.wanted_kernel(&call.body).await?;
    app.shelf.can_pull(&wanted).await?;
    let shelf = app.shelf.clone();
    let work = |work: OpHandle| async move {
        let entry = shelf.pull_kernel(wanted, &work).await?;
        Ok(Outcome {
            entry: Some(entry),
            ..Outcome::default()
        })
    };
    let begun = app.begin("kernel.pull", Subject::default(), &call.op, work);
    let handle = begun.await?;
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
