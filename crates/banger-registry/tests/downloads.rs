//! One file from the web: what a server can do to it, and what is left then.

mod toy;

use std::io::Read as _;
use std::sync::Mutex;
use std::time::Duration;

use banger_registry::{Digest, RegistryError};
use toy::{Answer, Bench, Image, Toy, range};

const LIMIT: u64 = 8 << 20;

fn file() -> Vec<u8> {
    Image::new().large().to_vec()
}

async fn get_as(
    bench: &Bench,
    toy: &Toy,
    path: &str,
    digest: Digest,
    limit: u64,
) -> Result<Vec<u8>, RegistryError> {
    let address = format!("http://{}{path}", toy.address);
    let got = bench
        .client
        .download(
            &address,
            digest,
            limit,
            &bench.cache,
            &|_, _| {},
            &bench.cancel,
        )
        .await;
    bench.assert_blobs_are_true();
    got.map(|mut file| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("a file");
        bytes
    })
}

async fn get(bench: &Bench, toy: &Toy, of: &[u8]) -> Result<Vec<u8>, RegistryError> {
    get_as(bench, toy, "/f.tar.zst", Digest::of(of), LIMIT).await
}

#[tokio::test]
async fn a_file_comes_once_with_its_progress_and_without_a_declared_length() {
    for declared in [true, false] {
        let bytes = file();
        let served = bytes.clone();
        let toy = Toy::start(move |request| match declared {
            true => range(&served, request),
            false => range(&served, request).undeclared(),
        })
        .await;
        let bench = Bench::new();
        let seen = Mutex::new(Vec::new());
        let address = format!("http://{}/f.tar.zst?sig=secret", toy.address);
        let digest = Digest::of(&bytes);
        let note = |now, all| seen.lock().expect("the list").push((now, all));
        let _ = bench
            .client
            .download(&address, digest, LIMIT, &bench.cache, &note, &bench.cancel)
            .await
            .expect("a file");
        let all = bytes.len() as u64;
        let last = seen.lock().expect("the list").last().copied();
        assert_eq!(last, Some((all, declared.then_some(all))));
        assert_eq!(get(&bench, &toy, &bytes).await.expect("a file"), bytes);
        assert_eq!(toy.requests().len(), 1);
        assert!(toy.requests()[0].header("authorization").is_none());
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_where_it_was() {
    let bytes = file();
    let served = bytes.clone();
    let toy = Toy::start(move |request| match request.nth {
        0 => range(&served, request).cut(400_000),
        1 => Answer::new(503, ""),
        2 => range(&served, request).cut(100_000).stalling(),
        _ => range(&served, request),
    })
    .await;
    let bench = Bench::new();
    assert_eq!(get(&bench, &toy, &bytes).await.expect("a file"), bytes);
    let from: Vec<_> = toy.requests().iter().map(|r| r.from()).collect();
    assert_eq!(from, [0, 400_000, 400_000, 500_000]);
    assert_eq!(bench.parts(), 0);
}

#[tokio::test]
async fn what_is_wrong_too_long_or_short_is_never_kept() {
    let bytes = file();
    let mut wrong = bytes.clone();
    wrong[500_000] ^= 1;
    let mut longer = bytes.clone();
    longer.push(0);
    let shorter = bytes[..bytes.len() - 1].to_vec();
    for bad in [wrong, longer, shorter, Vec::new()] {
        for declared in [true, false] {
            let served = bad.clone();
            let toy = Toy::start(move |request| match declared {
                true => range(&served, request),
                false => range(&served, request).undeclared(),
            })
            .await;
            let bench = Bench::new();
            let error = get(&bench, &toy, &bytes).await.expect_err("other bytes");
            assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("/f.tar.zst"), "{error}");
            assert_eq!(bench.cache.list().expect("a list"), []);
            assert_eq!(toy.requests().len(), 1, "the same would come again");
        }
    }
    let served = bytes.clone();
    let toy = Toy::start(move |request| range(&served, request).undeclared()).await;
    let bench = Bench::new();
    let digest = Digest::of(&bytes);
    let error = get_as(&bench, &toy, "/f", digest, 100_000).await;
    let error = error.expect_err("too long");
    assert!(
        error.to_string().contains("more than 100000 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn a_part_that_another_download_spoilt_is_fetched_anew() {
    let bytes = file();
    let digest = Digest::of(&bytes);
    for part in [vec![7; 200_000], bytes[..200_000].to_vec(), bytes.clone()] {
        let served = bytes.clone();
        let toy = Toy::start(move |request| range(&served, request)).await;
        let bench = Bench::new();
        let path = bench.cache.path(digest).with_extension("part");
        std::fs::write(&path, &part).expect("a part");
        assert_eq!(get(&bench, &toy, &bytes).await.expect("a file"), bytes);
        let expected = match part.len() {
            200_000 if part[0] == 7 && part[1] == 7 => 2,
            200_000 => 1,
            _ => 0,
        };
        assert_eq!(toy.requests().len(), expected);
        assert_eq!(bench.parts(), 0);
    }
}

#[tokio::test]
async fn refusals_and_redirects_without_end_are_errors_with_a_reason() {
    let bytes = file();
    for (status, tries) in [(403, 1), (404, 1), (401, 1), (500, 4), (429, 4)] {
        let toy = Toy::start(move |_| Answer::new(status, "no")).await;
        let bench = Bench::new();
        let error = get(&bench, &toy, &bytes).await.expect_err("a refusal");
        assert!(
            matches!(error, RegistryError::Unavailable { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        let hint = error.hint().expect("a next step");
        assert!(!hint.contains("login"), "it would not help: {hint}");
        assert_eq!(toy.requests().len(), tries);
        assert_eq!(bench.cache.list().expect("a list"), []);
    }
    let toy =
        Toy::start(|request| Answer::new(302, "").with("Location", format!("{}x", request.path)))
            .await;
    let error = get(&Bench::new(), &toy, &bytes).await.expect_err("a loop");
    assert!(error.to_string().contains("leads elsewhere"), "{error}");
    assert!(toy.requests().len() < 20);

    let served = bytes.clone();
    let toy = Toy::start(move |request| match request.path.as_str() {
        "/f.tar.zst" => Answer::new(302, "").with("Location", "/elsewhere"),
        _ => range(&served, request),
    })
    .await;
    assert_eq!(
        get(&Bench::new(), &toy, &bytes).await.expect("a file"),
        bytes
    );

    for address in ["ftp://x/y", "file:///etc/passwd", "x", "", "http://"] {
        let bench = Bench::new();
        let digest = Digest::of(b"");
        let error = bench
            .client
            .download(
                address,
                digest,
                LIMIT,
                &bench.cache,
                &|_, _| {},
                &bench.cancel,
            )
            .await
            .expect_err("no address");
        assert!(
            matches!(error, RegistryError::BadReference { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn two_downloads_of_one_file_are_one_and_a_cancelled_one_ends_at_once() {
    let bytes = file();
    let served = bytes.clone();
    let toy = Toy::start(move |request| range(&served, request)).await;
    let bench = Bench::new();
    let digest = Digest::of(&bytes);
    let (one, two) = tokio::join!(
        get_as(&bench, &toy, "/a", digest, LIMIT),
        get_as(&bench, &toy, "/b", digest, LIMIT)
    );
    assert_eq!(one.expect("a file"), bytes);
    assert_eq!(two.expect("a file"), bytes);
    assert_eq!(toy.requests().len(), 1);

    let served = bytes.clone();
    let toy = Toy::start(move |request| range(&served, request).cut(1000).stalling()).await;
    let bench = Bench::new();
    let cancel = bench.cancel.clone();
    let leave = async {
        while toy.requests().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let (got, ()) = tokio::join!(get(&bench, &toy, &bytes), leave);
    assert!(matches!(got, Err(RegistryError::Cancelled)), "{got:?}");
}

#[tokio::test]
async fn a_kept_file_that_the_disk_spoilt_comes_anew() {
    let bytes = file();
    let served = bytes.clone();
    let toy = Toy::start(move |request| range(&served, request)).await;
    let bench = Bench::new();
    assert!(get(&bench, &toy, &bytes).await.expect("a file") == bytes);
    let path = bench.cache.path(Digest::of(&bytes));
    for spoil in [1_usize, bytes.len()] {
        let mut other = bytes[..spoil].to_vec();
        other[0] ^= 1;
        std::fs::write(&path, other).expect("spoilt");
        assert!(get(&bench, &toy, &bytes).await.expect("a file") == bytes);
    }
    assert_eq!(toy.requests().len(), 3);
}
