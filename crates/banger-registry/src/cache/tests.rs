use bytes::Bytes;

use super::part::LOOK_EVERY;
use super::*;

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(&dir.path().join("oci")).expect("a cache");
    (dir, cache)
}

async fn part(cache: &Cache, digest: Digest, size: u64) -> Part {
    match cache.claim(digest, None).await.expect("a claim") {
        Claim::Part(part) => part.resume(size).await.expect("what is there"),
        Claim::Whole { .. } => panic!("{digest} is whole"),
    }
}

#[tokio::test]
async fn the_disk_is_looked_at_before_the_first_byte_and_again_later() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let greedy = cache.clone().sparing(u64::MAX);
    let first = part(&greedy, digest, 5).await;
    let full = first.append(vec![Bytes::from("he")]).await;
    assert!(
        matches!(full, Err(RegistryError::NoSpace { .. })),
        "{full:?}"
    );

    let grows = part(&cache, Digest::of(b"other"), 5).await;
    let mut grows = grows.append(vec![Bytes::from("x")]).await.expect("room");
    assert_eq!(grows.look_at, LOOK_EVERY);
    grows.spare = u64::MAX;
    let mut grows = grows.append(vec![Bytes::from("y")]).await.expect("no look");
    grows.len = LOOK_EVERY;
    let full = grows.append(vec![Bytes::from("z")]).await;
    assert!(
        matches!(full, Err(RegistryError::NoSpace { .. })),
        "{full:?}"
    );
}

#[tokio::test]
async fn a_part_goes_on_where_it_was_left() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let first = part(&cache, digest, 5).await;
    let first = first.append(vec![Bytes::from("he")]).await.expect("room");
    drop(first);
    assert_eq!(cache.size(digest).expect("readable"), None);

    let second = part(&cache, digest, 5).await;
    assert_eq!(second.len(), 2);
    let second = second.append(vec![Bytes::from("llo")]).await.expect("room");
    assert_eq!(second.digest(), digest);
    drop(second.keep().await.expect("kept"));
    let list = cache.list().expect("a list");
    let [blob] = list.as_slice() else {
        panic!("{list:?}")
    };
    assert_eq!((blob.digest, blob.size, blob.whole), (digest, 5, true));
    assert_eq!(fs::read(cache.path(digest)).expect("a file"), b"hello");
    assert_eq!(cache.prune(|_| false).expect("looked at"), []);
    assert_eq!(cache.prune(|_| true).expect("pruned"), list);
    assert_eq!(cache.prune(|_| true).expect("again is harmless"), []);
    assert_eq!(cache.list().expect("a list"), []);
}

#[tokio::test]
async fn what_a_pull_reads_or_writes_is_not_pruned_and_all_else_is() {
    let (_dir, cache) = cache();
    let digests = [b"1", b"2", b"3", b"4"].map(|content| Digest::of(content));
    let [read, idle, written, left] = digests;
    let mut holds = Vec::new();
    for digest in [read, idle] {
        let part = part(&cache, digest, 1).await;
        holds.push(part.keep().await.expect("kept"));
    }
    drop(holds.pop());
    let [written_one, left_one] = [part(&cache, written, 9), part(&cache, left, 9)];
    let (written_one, left_one) = (written_one.await, left_one.await);
    let written_one = written_one
        .append(vec![Bytes::from("x")])
        .await
        .expect("room");
    drop(left_one.append(vec![Bytes::from("x")]).await.expect("room"));
    // A second reader is enough.
    let Claim::Whole { hold, .. } = cache.claim(read, None).await.expect("a claim") else {
        panic!("it is whole")
    };
    holds.clear();
    // Another name keeps the bytes where they are.
    fs::hard_link(cache.path(idle), cache.dir().join("other")).expect("a link");
    // And what is no file is left alone.
    let pipe = cache.path(Digest::of(b"pipe"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .expect("a pipe");

    let gone = cache.prune(|_| true).expect("pruned");
    let mut names: Vec<_> = gone.iter().map(|blob| (blob.digest, blob.whole)).collect();
    names.sort_unstable();
    let mut expected = [(idle, true), (left, false)];
    expected.sort_unstable();
    assert_eq!(names, expected);
    for blob in gone {
        assert_eq!(blob.frees == 0, blob.digest == idle, "{blob:?}");
    }
    assert!(pipe.exists());

    drop((hold, written_one));
    assert_eq!(cache.prune(|_| true).expect("pruned").len(), 2);
}

#[tokio::test]
async fn a_reader_of_a_blob_keeps_nobody_from_claiming_it() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let first = part(&cache, digest, 5).await;
    let mut second = Box::pin(cache.claim(digest, None));
    assert!(futures_util::poll!(&mut second).is_pending());
    let _held = first.keep().await.expect("kept");
    assert!(matches!(second.await, Ok(Claim::Whole { .. })));
}

#[tokio::test]
async fn a_blob_that_the_disk_spoilt_goes_where_somebody_looks() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let keep = async || {
        let part = part(&cache, digest, 5).await;
        let part = part.append(vec![Bytes::from("hello")]).await.expect("room");
        part.keep().await.expect("kept")
    };
    let check = || cache.check(digest, &|| false);
    assert!(!check().expect("nothing to look at"));
    let held = keep().await;
    assert!(!check().expect("looked at"), "it is right");
    let given_up = cache.check(digest, &|| true);
    assert!(matches!(given_up, Err(RegistryError::Cancelled)));
    // Somebody is wrong who says another length, and the blob is not.
    let claimed = cache.claim(digest, Some(6)).await.expect("a claim");
    assert!(matches!(claimed, Claim::Whole { size: 5, .. }));

    fs::write(cache.path(digest), b"jello").expect("spoilt");
    let claimed = cache.claim(digest, Some(5)).await.expect("a claim");
    assert!(
        matches!(claimed, Claim::Whole { .. }),
        "its length is right"
    );
    assert!(held.is_there());
    assert!(check().expect("looked at"));
    assert!(!held.is_there());
    drop((claimed, held));
    assert_eq!(cache.list().expect("a list"), []);

    drop(keep().await);
    fs::write(cache.path(digest), b"hel").expect("cut short");
    let claimed = cache.claim(digest, Some(5)).await.expect("a claim");
    assert!(matches!(claimed, Claim::Part(_)), "{claimed:?}");
}

#[tokio::test]
async fn a_part_longer_than_its_blob_is_dropped() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let first = part(&cache, digest, 9).await;
    drop(first.append(vec![Bytes::from("rubbish")]).await);
    assert_eq!(part(&cache, digest, 5).await.len(), 0);
}

#[tokio::test]
async fn the_second_claim_waits_and_finds_the_blob() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let first = part(&cache, digest, 5).await;
    let mut second = Box::pin(cache.claim(digest, None));
    let early = futures_util::poll!(&mut second);
    assert!(early.is_pending(), "the part is locked");
    let gone = cache.prune(|_| true).expect("pruned");
    assert_eq!(gone, [], "a part in work is left alone");
    let first = first
        .append(vec![Bytes::from("hello")])
        .await
        .expect("room");
    first.keep().await.expect("kept");
    match second.await.expect("a claim") {
        Claim::Whole { size, .. } => assert_eq!(size, 5),
        Claim::Part(part) => panic!("{part:?} of a whole blob"),
    }
}

#[tokio::test]
async fn a_claim_after_a_discard_is_a_fresh_part() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let first = part(&cache, digest, 5).await;
    let mut second = Box::pin(cache.claim(digest, None));
    assert!(futures_util::poll!(&mut second).is_pending());
    first.discard().expect("discarded");
    match second.await.expect("a claim") {
        Claim::Part(part) => part.discard().expect("discarded"),
        Claim::Whole { size, .. } => panic!("{size} bytes from nowhere"),
    }
    assert_eq!(cache.list().expect("a list"), []);
}

#[tokio::test]
async fn a_lock_on_a_file_that_lost_its_name_is_worth_nothing() {
    let (_dir, cache) = cache();
    let digest = Digest::of(b"hello");
    let first = part(&cache, digest, 5).await;
    let mut second = Box::pin(cache.claim(digest, None));
    assert!(futures_util::poll!(&mut second).is_pending());
    first.discard().expect("discarded");
    // Quicker than the one who waited, on a new file of the same name.
    let third = part(&cache, digest, 5).await;
    let third = third
        .append(vec![Bytes::from("hello")])
        .await
        .expect("room");
    let finish = async { third.keep().await.expect("kept") };
    let (second, _held) = tokio::join!(second, finish);
    match second.expect("a claim") {
        Claim::Whole { size, .. } => assert_eq!(size, 5),
        Claim::Part(part) => panic!("{part:?} beside another writer"),
    }
}
