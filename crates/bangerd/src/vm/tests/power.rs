//! The power is cut at every seam, and at every seam of what comes after.

use banger_api::vm::VmCreateParams;
use banger_model::Holding;

use super::{Home, Town, op, params};
use crate::seam::power::Power;
use crate::vm::GRACE;

/// What is being done when the power goes.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Create,
    CreateOnly,
    CreateAutoRemove,
    Start,
    Stop,
    Kill,
    Restart,
    Delete,
    DeleteRunning,
}

const DEEDS: [Deed; 9] = [
    Deed::Create,
    Deed::CreateOnly,
    Deed::CreateAutoRemove,
    Deed::Start,
    Deed::Stop,
    Deed::Kill,
    Deed::Restart,
    Deed::Delete,
    Deed::DeleteRunning,
];

impl Deed {
    async fn prepare(self, home: &Home) {
        match self {
            Self::Create | Self::CreateOnly | Self::CreateAutoRemove => {}
            Self::Start | Self::Delete => {
                home.created("web").await;
            }
            Self::Stop | Self::Kill | Self::Restart | Self::DeleteRunning => {
                home.create("web").await;
            }
        }
        home.quiet().await;
    }

    async fn perform(self, home: &Home) {
        let vms = &home.vms;
        let begun = match self {
            Self::Create => vms.create(params("web"), &op()).await,
            Self::CreateOnly => {
                vms.create(
                    VmCreateParams {
                        no_start: true,
                        ..params("web")
                    },
                    &op(),
                )
                .await
            }
            Self::CreateAutoRemove => {
                vms.create(
                    VmCreateParams {
                        auto_remove: true,
                        ..params("web")
                    },
                    &op(),
                )
                .await
            }
            Self::Start => vms.start("web", &op()).await,
            Self::Stop => vms.stop("web", GRACE, &op()).await,
            Self::Kill => vms.kill("web", "KILL", &op()).await,
            Self::Restart => vms.restart("web", &op()).await,
            Self::Delete | Self::DeleteRunning => vms.delete("web", false, &op()).await,
        };
        if let Ok(begun) = begun {
            home.done(begun).await;
        }
        home.quiet().await;
    }
}

/// A town where the power went at the `cut`th seam of a deed; false where the
/// deed had ended before.
async fn cut(deed: Deed, cut: usize, skipped: Option<Holding>) -> Option<(Town, String)> {
    let town = Town::new();
    let home = town.boot(Power::new(skipped)).await;
    deed.prepare(&home).await;
    home.power.arm(Some(cut));
    let out = tokio::select! {
        biased;
        () = home.power.is_out() => true,
        () = deed.perform(&home) => false,
    };
    let seam = home.power.passed().last().cloned().unwrap_or_default();
    home.crash().await;
    out.then_some((town, seam))
}

/// Names are free again, or their VM can be used and removed, and nothing is left then.
async fn live_on(town: &Town, home: &Home) -> Vec<String> {
    if home.state("web").await.is_none() {
        home.create("web").await;
    }
    let started = home.vms.start("web", &op()).await.unwrap();
    home.succeeded(started).await;
    let gone = home.vms.delete("web", false, &op()).await.unwrap();
    home.succeeded(gone).await;
    town.leftovers(home).await
}

#[tokio::test]
async fn a_deed_cut_anywhere_leaves_nothing_behind() {
    for deed in DEEDS {
        let mut seams = 0;
        while let Some((town, seam)) = cut(deed, seams, None).await {
            let home = town.home().await;
            assert_eq!(
                town.leftovers(&home).await,
                [""; 0],
                "{deed:?} cut at {seam}"
            );
            assert_eq!(
                live_on(&town, &home).await,
                [""; 0],
                "{deed:?} cut at {seam}, later"
            );
            home.crash().await;
            seams += 1;
        }
        assert!(seams > 5, "{deed:?} has {seams} seams");
    }
}

/// Cuts a deed everywhere, and then everywhere what the next daemon does: its
/// recovery, and what an adopted VM goes on with.
async fn cut_twice(deed: Deed) {
    for at in 0.. {
        for again in 0.. {
            let Some((town, seam)) = cut(deed, at, None).await else {
                return;
            };
            let power = Power::new(None);
            power.arm(Some(again));
            let home = town.boot(power).await;
            let out = tokio::select! {
                biased;
                () = home.power.is_out() => true,
                () = home.quiet() => false,
            };
            let second = home.power.passed().last().cloned().unwrap_or_default();
            home.crash().await;
            let home = town.home().await;
            let left = town.leftovers(&home).await;
            assert_eq!(left, [""; 0], "{deed:?} cut at {seam}, then at {second}");
            home.crash().await;
            if !out {
                assert!(again > 0, "a recovery has seams");
                break;
            }
        }
    }
}

macro_rules! cut_twice {
    ($($name:ident $deed:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            cut_twice(Deed::$deed).await;
        }
    )*};
}

cut_twice! {
    a_recovery_of_a_create_cut_anywhere_is_finished_by_the_next Create
    a_recovery_of_a_start_cut_anywhere_is_finished_by_the_next Start
    a_recovery_of_a_stop_cut_anywhere_is_finished_by_the_next Stop
    a_recovery_of_a_restart_cut_anywhere_is_finished_by_the_next Restart
    a_recovery_of_a_delete_cut_anywhere_is_finished_by_the_next DeleteRunning
}

#[tokio::test]
async fn without_any_one_intent_something_is_left_behind() {
    for holding in Holding::ALL {
        let mut left = Vec::new();
        for at in 0.. {
            let Some((town, _)) = cut(Deed::Create, at, Some(holding)).await else {
                break;
            };
            let home = town.home().await;
            left.extend(town.leftovers(&home).await);
            home.crash().await;
        }
        let name = format!("{holding:?} of");
        assert!(
            left.iter()
                .any(|thing| thing.contains(&name) && thing.contains("on the host")),
            "nobody misses the intent of {holding:?}: {left:?}"
        );
    }
}

#[tokio::test]
async fn every_seam_that_is_passed_is_listed() {
    let known = crate::seam::all();
    let town = Town::new();
    let home = town.home().await;
    for deed in [
        Deed::Create,
        Deed::Restart,
        Deed::Stop,
        Deed::Start,
        Deed::DeleteRunning,
    ] {
        deed.perform(&home).await;
    }
    let passed = home.power.passed();
    assert!(passed.len() > 60, "{}", passed.len());
    for seam in passed {
        assert!(known.contains(&seam), "{seam}");
    }
}
