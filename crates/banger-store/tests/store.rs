//! The store on real files.

#![allow(clippy::unwrap_used)]

use std::fs;

use banger_model::{Exit, Goal, Holding, Phase, VmId};
use banger_store::operations::OpRow;
use banger_store::vms::VmRow;
use banger_store::{OpenError, Store, StoreError, ledger, operations, schema_version, vms};

fn vm(byte: u8, name: &str) -> VmRow {
    VmRow {
        id: VmId::from_random([byte; 32]),
        name: name.into(),
        phase: Phase::Stopped,
        goal: Goal::Down,
        last_exit: None,
        spec: "{}".into(),
        record: "{}".into(),
        created_at: "2026-01-01T00:00:00Z".into(),
        updated_at: "2026-01-01T00:00:00Z".into(),
    }
}

async fn add(store: &Store, vm: VmRow) -> Result<(), StoreError> {
    store.write(move |tx| vms::insert(tx, &vm)).await
}

#[tokio::test]
async fn rows_come_back_as_they_went_after_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = Store::open(&path).unwrap();
    let mut web = vm(0xab, "web");
    add(&store, web.clone()).await.unwrap();
    web.phase = Phase::Running;
    web.goal = Goal::Up;
    web.last_exit = Some(Exit::Error("no \"luck\"".into()));
    let row = web.clone();
    store
        .promise(move |tx| vms::update(tx, &row))
        .await
        .unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.read(vms::all).await.unwrap(), [web]);
}

#[tokio::test]
async fn a_name_is_taken_once_and_a_failed_job_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    add(&store, vm(1, "web")).await.unwrap();
    let (other, op) = (vm(2, "web"), op("op-1", None));
    let failed = store
        .write(move |tx| {
            operations::put(tx, &op)?;
            vms::insert(tx, &other)
        })
        .await;
    assert!(matches!(failed, Err(StoreError::Taken(name)) if name == "web"));
    assert!(
        store
            .read(|db| operations::list(db, false))
            .await
            .unwrap()
            .is_empty()
    );
    let id = vm(1, "web").id;
    store.write(move |tx| vms::delete(tx, &id)).await.unwrap();
    add(&store, vm(2, "web")).await.unwrap();
}

#[tokio::test]
async fn a_reference_is_a_name_first_then_an_id_then_a_beginning_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    add(&store, vm(0xaa, "web")).await.unwrap();
    add(&store, vm(0xbb, "aaaa")).await.unwrap();
    let found = async |reference: &str| {
        let reference = reference.to_owned();
        let rows = store
            .read(move |db| vms::find(db, &reference))
            .await
            .unwrap();
        rows.into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    assert_eq!(found("web").await, ["web"]);
    assert_eq!(found("aaaa").await, ["aaaa"]);
    assert_eq!(found("aaaaa").await, ["web"]);
    assert_eq!(found(&"b".repeat(64)).await, ["aaaa"]);
    for none in ["aaa", "", "%", "AAAAA", "aaaab", "'; --"] {
        assert!(found(none).await.is_empty(), "{none}");
    }
}

#[tokio::test]
async fn the_ledger_keeps_order_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    let id = VmId::from_random([3; 32]);
    let owner = id.clone();
    store
        .promise(move |tx| {
            for holding in Holding::ALL {
                ledger::intend(tx, &owner, holding, None)?;
                ledger::settle(tx, &owner, holding, Some("{}"))?;
            }
            // In doubt again, at the same place.
            ledger::intend(tx, &owner, Holding::Overlay, None)?;
            ledger::strike(tx, &owner, Holding::RunDir)?;
            // What is not written down is not settled either.
            ledger::settle(tx, &owner, Holding::RunDir, None)
        })
        .await
        .unwrap();
    let entries = store.read(move |db| ledger::of(db, &id)).await.unwrap();
    let found: Vec<_> = entries
        .iter()
        .map(|entry| (entry.holding, entry.settled))
        .collect();
    assert_eq!(
        found,
        [
            (Holding::Directory, true),
            (Holding::Overlay, false),
            (Holding::WorkDisk, true),
            (Holding::Cgroup, true),
            (Holding::Gateway, true),
            (Holding::Engine, true),
        ]
    );
}

fn op(id: &str, done_at: Option<i64>) -> OpRow {
    OpRow {
        id: id.into(),
        kind: "vm.create".into(),
        vm_id: None,
        done_at,
        record: "{}".into(),
    }
}

#[tokio::test]
async fn operations_end_once_and_are_forgotten_by_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    for row in [
        op("op-1", None),
        op("op-2", Some(10)),
        op("op-2", None),
        op("op-3", Some(20)),
    ] {
        store
            .write(move |tx| operations::put(tx, &row))
            .await
            .unwrap();
    }
    let ids = async |running| {
        let rows = store
            .read(move |db| operations::list(db, running))
            .await
            .unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(false).await, ["op-3", "op-2", "op-1"]);
    assert_eq!(ids(true).await, ["op-1"]);
    store.write(|tx| operations::prune(tx, 15)).await.unwrap();
    assert_eq!(ids(false).await, ["op-3", "op-1"]);
}

fn refused(name: &str, content: &[u8]) -> OpenError {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    fs::write(&path, content).unwrap();
    let Err(error) = Store::open(&path) else {
        panic!("{name} was opened")
    };
    assert_eq!(fs::read(&path).unwrap(), content, "{name} was changed");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "{name} left files"
    );
    assert!(error.to_string().contains("state.db"), "{error}");
    error
}

/// A sound database, as one file.
fn sound() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = Store::open(&path).unwrap();
    let done = tokio::runtime::Runtime::new().unwrap();
    // Its threads have begun to work when this is over.
    done.block_on(store.checkpoint());
    drop(store);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
    // More than the room that is kept: no page is free.
    for n in 0..100 {
        let text = "x".repeat(20_000);
        db.execute("INSERT INTO meta VALUES (?, ?)", (n.to_string(), text))
            .unwrap();
    }
    db.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(db);
    fs::read(&path).unwrap()
}

#[test]
fn a_damaged_foreign_or_newer_database_is_named_and_left_unchanged() {
    let sound = sound();
    assert!(matches!(
        refused("text", b"not a database at all"),
        OpenError::Damaged { .. }
    ));
    let mut broken = sound.clone();
    let third = broken.len() / 3;
    broken[third..third * 2].fill(0xee);
    assert!(matches!(
        refused("garbage inside", &broken),
        OpenError::Damaged { .. }
    ));
    let cut = &sound[..sound.len() / 2];
    assert!(matches!(
        refused("half a file", cut),
        OpenError::Damaged { .. }
    ));
    let mut newer = sound.clone();
    let version = u32::try_from(schema_version() + 1).unwrap();
    newer[60..64].copy_from_slice(&version.to_be_bytes());
    assert!(matches!(refused("newer", &newer), OpenError::Newer { .. }));
    let mut foreign = sound;
    foreign[68..72].copy_from_slice(b"else");
    assert!(matches!(
        refused("foreign", &foreign),
        OpenError::Damaged { .. }
    ));
}

#[test]
fn an_absent_or_empty_file_becomes_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    fs::write(&path, "").unwrap();
    drop(Store::open(&path).unwrap());
    assert!(Store::open(&dir.path().join("none/state.db")).is_err());
}
