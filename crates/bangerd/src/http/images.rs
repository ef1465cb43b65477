//! `/images`.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use banger_api::Empty;
use banger_api::endpoint::{
    Endpoint, ImageBuild, ImageCachePrune, ImageDelete, ImageList, ImagePromote, ImagePull,
    ImageRegister, ImageShow,
};
use banger_api::error::Code;
use banger_api::image::{
    Image, ImageBuildParams, ImageCachePruneParams, ImageCachePruneResult, ImageListResult,
    ImagePullParams, ImageRegisterParams, ImageShowResult,
};
use banger_api::operation::OperationResult;
use http::Request;

use super::operations::{WAIT, accepted};
use super::reply;
use super::routes::{Call, Routes, read_body};
use crate::artifact::NewBuild;
use crate::build;
use crate::daemon::App;
use crate::failure::Failure;
use crate::operation::{OpHandle, Outcome, Subject};

pub(super) fn add(routes: Routes) -> Routes {
    routes
        .raw(ImageList::METHOD, ImageList::PATH, &["available"], list)
        .on::<ImageRegister, _, _>(&[], register)
        .on::<ImagePull, _, _>(&[WAIT], pull)
        .on::<ImageBuild, _, _>(&[WAIT], build_image)
        .on::<ImagePromote, _, _>(&[WAIT], promote)
        .on::<ImageCachePrune, _, _>(&[], prune)
        .on::<ImageShow, _, _>(&[], show)
        .on::<ImageDelete, _, _>(&[], delete)
}

async fn list(app: Arc<App>, call: Call<Request<Body>>) -> Result<Response, Failure> {
    let Empty {} = read_body(call.body.into_body()).await?;
    if call.query.flag("available")? {
        return Ok(reply::json(200, &app.shelf.available_images().await?));
    }
    let images = app.shelf.images().await?;
    Ok(reply::json(200, &ImageListResult { images }))
}

async fn register(
    app: Arc<App>,
    call: Call<ImageRegisterParams>,
) -> Result<ImageShowResult, Failure> {
    Ok(ImageShowResult {
        image: app.shelf.register(call.body).await?,
    })
}

async fn pull(app: Arc<App>, call: Call<ImagePullParams>) -> Result<OperationResult, Failure> {
    let wanted = app.shelf.wanted_image(&call.body).await?;
    app.shelf.can_obtain(&wanted).await?;
    let subject = Subject {
        vm: None,
        image: Some((String::new(), wanted.name().to_owned())),
    };
    let shelf = app.shelf.clone();
    let log = wanted
        .is_built()
        .then(|| shelf.build_log(wanted.name()).display().to_string());
    let work = move |work: OpHandle| {
        work.edit(|operation| operation.build_log_path = log);
        async move { made(&work, shelf.obtain_image(wanted, &work).await) }
    };
    let handle = app.begin("image.pull", subject, &call.op, work).await?;
    accepted(&app, &call.query, handle.operation()).await
}

async fn build_image(
    app: Arc<App>,
    call: Call<ImageBuildParams>,
) -> Result<OperationResult, Failure> {
    let wanted = NewBuild::of(&call.body)?;
    app.shelf.can_build(&wanted).await?;
    let subject = Subject {
        vm: None,
        image: Some((String::new(), wanted.name().to_owned())),
    };
    let log = app.shelf.build_log(wanted.name()).display().to_string();
    let shelf = app.shelf.clone();
    let builder = build::in_vms(&app.vms);
    let work = move |work: OpHandle| {
        work.edit(|operation| operation.build_log_path = Some(log));
        async move { made(&work, shelf.build_image(wanted, builder, &work).await) }
    };
    let handle = app.begin("image.build", subject, &call.op, work).await?;
    accepted(&app, &call.query, handle.operation()).await
}

/// What came of an image that may have been built: its log stays only where that failed.
fn made(work: &OpHandle, image: Result<Image, Failure>) -> Result<Outcome, Failure> {
    if !matches!(&image, Err(failure) if failure.code != Code::Cancelled) {
        work.edit(|operation| operation.build_log_path = None);
    }
    Ok(Outcome {
        image: Some(image?),
        ..Outcome::default()
    })
}

async fn promote(app: Arc<App>, call: Call<Empty>) -> Result<OperationResult, Failure> {
    let image = app.shelf.can_promote(call.reference()).await?;
    let subject = Subject {
        vm: None,
        image: Some((image.id.clone(), image.name)),
    };
    let shelf = app.shelf.clone();
    let work = move |work: OpHandle| async move {
        let image = shelf.promote(&image.id, &work).await?;
        Ok(Outcome {
            image: Some(image),
            ..Outcome::default()
        })
    };
    let handle = app.begin("image.promote", subject, &call.op, work).await?;
    accepted(&app, &call.query, handle.operation()).await
}

async fn prune(
    app: Arc<App>,
    call: Call<ImageCachePruneParams>,
) -> Result<ImageCachePruneResult, Failure> {
    app.shelf.prune_blobs(call.body.dry_run).await
}

async fn show(app: Arc<App>, call: Call<Empty>) -> Result<ImageShowResult, Failure> {
    Ok(ImageShowResult {
        image: app.shelf.image_shown(call.reference()).await?,
    })
}

async fn delete(app: Arc<App>, call: Call<Empty>) -> Result<ImageShowResult, Failure> {
    Ok(ImageShowResult {
        image: app.shelf.delete_image(call.reference()).await?,
    })
}
