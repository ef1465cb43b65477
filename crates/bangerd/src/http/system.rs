//! `/ping` and `/system`: the daemon itself.

use std::sync::Arc;

use banger_api::Empty;
use banger_api::disk::{DiskReclaimParams, DiskReport};
use banger_api::endpoint::{Disk, DiskReclaim, Doctor, Ping, Shutdown, System};
use banger_api::operation::OperationResult;
use banger_api::system::{DoctorReport, PingResult, ShutdownParams, ShutdownResult, SystemInfo};

use super::operations::{WAIT, accepted};
use super::routes::{Call, Routes};
use crate::daemon::App;
use crate::failure::Failure;
use crate::operation::{OpHandle, Outcome, Subject};

pub(super) fn add(routes: Routes) -> Routes {
    routes
        .on::<Ping, _, _>(&[], ping)
        .on::<System, _, _>(&[], system)
        .on::<Doctor, _, _>(&[], doctor)
        .on::<Disk, _, _>(&[], disk)
        .on::<DiskReclaim, _, _>(&[WAIT], reclaim)
        .on::<Shutdown, _, _>(&[], shutdown)
}

async fn ping(app: Arc<App>, _: Call<Empty>) -> Result<PingResult, Failure> {
    Ok(PingResult {
        status: "ok".to_owned(),
        pid: std::process::id(),
        web_url: None,
        version: Some(crate::VERSION.to_owned()),
        commit: Some(crate::COMMIT.to_owned()),
        built_at: Some(crate::BUILT_AT.to_owned()),
        idle: app.idle(),
    })
}

async fn system(app: Arc<App>, _: Call<Empty>) -> Result<SystemInfo, Failure> {
    let choice = app.engine.choice(app.config.engine.name()).await;
    let shown = |path: &std::path::Path| path.display().to_string();
    Ok(SystemInfo {
        pid: std::process::id(),
        socket: shown(&app.paths.socket),
        state_dir: shown(&app.paths.state),
        cache_dir: shown(&app.paths.cache),
        run_dir: shown(&app.paths.run),
        log_path: shown(&app.paths.log()),
        engine: choice.as_ref().ok().map(|choice| choice.engine.to_owned()),
        acceleration: choice
            .as_ref()
            .ok()
            .map(|choice| choice.acceleration.name().to_owned()),
        engine_reason: choice.map_or_else(|failure| failure.sentence(), |choice| choice.reason),
        vm_defaults: app.defaults.to_api(),
    })
}

async fn doctor(app: Arc<App>, _: Call<Empty>) -> Result<DoctorReport, Failure> {
    let paths = app.paths.clone();
    tokio::task::spawn_blocking(move || crate::doctor::look(&paths))
        .await
        .map_err(|error| Failure::internal("cannot look at the host", &error))
}

async fn disk(app: Arc<App>, _: Call<Empty>) -> Result<DiskReport, Failure> {
    app.disk.report().await
}

async fn reclaim(app: Arc<App>, call: Call<DiskReclaimParams>) -> Result<OperationResult, Failure> {
    let wanted = app.disk.new_reclaim(call.body, &app.operations).await?;
    let disk = app.disk.clone();
    let work = |work: OpHandle| async move {
        Ok(Outcome {
            reclaim: Some(disk.reclaim(wanted, &work).await?),
            ..Outcome::default()
        })
    };
    let begun = app.begin("disk.reclaim", Subject::default(), &call.op, work);
    let handle = begun.await?;
    accepted(&app, &call.query, handle.operation()).await
}

async fn shutdown(app: Arc<App>, call: Call<ShutdownParams>) -> Result<ShutdownResult, Failure> {
    app.end(call.body.with_vms);
    Ok(ShutdownResult {
        status: "stopping".to_owned(),
    })
}
