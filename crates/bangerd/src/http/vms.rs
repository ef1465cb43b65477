//! `/vms`: what clients ask of VMs, but for commands and logs.

use std::sync::Arc;
use std::time::Duration;

use banger_api::Empty;
use banger_api::endpoint::{
    VmCreate, VmDelete, VmHealth, VmKill, VmList, VmPing, VmRestart, VmSet, VmShow, VmStart,
    VmStats, VmStop,
};
use banger_api::operation::OperationResult;
use banger_api::vm::{
    State, VmCreateParams, VmHealthResult, VmKillParams, VmListResult, VmPingResult, VmSetParams,
    VmShowResult, VmStatsResult, VmStopParams,
};

use super::operations::{WAIT, accepted};
use super::query::bad;
use super::routes::{Call, Routes};
use crate::daemon::App;
use crate::failure::Failure;
use crate::vm::GRACE;

/// Longest that guest processes get to end.
const LONGEST_GRACE: Duration = Duration::from_secs(3600);

pub(super) fn add(routes: Routes) -> Routes {
    routes
        .on::<VmList, _, _>(&["state"], list)
        .on::<VmCreate, _, _>(&[WAIT], create)
        .on::<VmShow, _, _>(&[], show)
        .on::<VmSet, _, _>(&[], set)
        .on::<VmDelete, _, _>(&[WAIT, "unless_running"], delete)
        .on::<VmStart, _, _>(&[WAIT], start)
        .on::<VmRestart, _, _>(&[WAIT], restart)
        .on::<VmStop, _, _>(&[WAIT], stop)
        .on::<VmKill, _, _>(&[WAIT], kill)
        .on::<VmStats, _, _>(&[], stats)
        .on::<VmHealth, _, _>(&[], health)
        .on::<VmPing, _, _>(&[], ping)
}

async fn list(app: Arc<App>, call: Call<Empty>) -> Result<VmListResult, Failure> {
    let state = match call.query.get("state") {
        Some(name) => Some(state_of(name).ok_or_else(|| {
            bad(
                "state",
                name,
                "one of created starting running paused stopping stopped error",
            )
        })?),
        None => None,
    };
    Ok(VmListResult {
        vms: app.vms.list(state).await?,
    })
}

fn state_of(name: &str) -> Option<State> {
    serde_json::from_value(name.into()).ok()
}

async fn create(app: Arc<App>, call: Call<VmCreateParams>) -> Result<OperationResult, Failure> {
    let operation = app.vms.create(call.body, &call.op).await?;
    accepted(&app, &call.query, operation).await
}

async fn show(app: Arc<App>, call: Call<Empty>) -> Result<VmShowResult, Failure> {
    Ok(VmShowResult {
        vm: app.vms.show(call.reference()).await?,
    })
}

async fn set(app: Arc<App>, call: Call<VmSetParams>) -> Result<VmShowResult, Failure> {
    let vm = app.vms.set(&call.references[0], call.body).await?;
    Ok(VmShowResult { vm })
}

async fn delete(app: Arc<App>, call: Call<Empty>) -> Result<OperationResult, Failure> {
    let unless_running = call.query.flag("unless_running")?;
    let operation = app
        .vms
        .delete(call.reference(), unless_running, &call.op)
        .await?;
    accepted(&app, &call.query, operation).await
}

async fn start(app: Arc<App>, call: Call<Empty>) -> Result<OperationResult, Failure> {
    let operation = app.vms.start(call.reference(), &call.op).await?;
    accepted(&app, &call.query, operation).await
}

async fn restart(app: Arc<App>, call: Call<Empty>) -> Result<OperationResult, Failure> {
    let operation = app.vms.restart(call.reference(), &call.op).await?;
    accepted(&app, &call.query, operation).await
}

async fn stop(app: Arc<App>, call: Call<VmStopParams>) -> Result<OperationResult, Failure> {
    let grace = call
        .body
        .timeout_ms
        .map_or(GRACE, Duration::from_millis)
        .min(LONGEST_GRACE);
    let operation = app.vms.stop(call.reference(), grace, &call.op).await?;
    accepted(&app, &call.query, operation).await
}

async fn kill(app: Arc<App>, call: Call<VmKillParams>) -> Result<OperationResult, Failure> {
    let signal = call.body.signal.as_deref().unwrap_or("KILL");
    let operation = app.vms.kill(call.reference(), signal, &call.op).await?;
    accepted(&app, &call.query, operation).await
}

async fn stats(app: Arc<App>, call: Call<Empty>) -> Result<VmStatsResult, Failure> {
    let (vm, stats) = app.vms.stats(call.reference()).await?;
    Ok(VmStatsResult { vm, stats })
}

async fn health(app: Arc<App>, call: Call<Empty>) -> Result<VmHealthResult, Failure> {
    let (name, healthy) = app.vms.health(call.reference()).await?;
    Ok(VmHealthResult { name, healthy })
}

async fn ping(app: Arc<App>, call: Call<Empty>) -> Result<VmPingResult, Failure> {
    let (name, alive) = app.vms.ping(call.reference()).await?;
    Ok(VmPingResult { name, alive })
}
