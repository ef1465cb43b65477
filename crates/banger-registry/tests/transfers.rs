//! What a hostile or unlucky registry can do to a transfer, and what is left of it.

mod toy;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_registry::{Digest, RegistryError, Step};
use toy::{Answer, Bench, Image, Toy, assert_image, range};

#[tokio::test]
async fn an_image_is_pulled_once_and_then_found() {
    let image = Image::new();
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Bench::new();
    let seen = Mutex::new(Vec::new());
    let pulled = bench
        .pull_as(&toy.reference(), &|step: Step| {
            seen.lock().expect("the list").push(step);
        })
        .await
        .expect("an image");
    assert_image(&pulled, &image);
    assert_eq!(bench.parts(), 0);
    let total = (image.config.len() + image.layers.iter().map(Vec::len).sum::<usize>()) as u64;
    let seen = seen.into_inner().expect("the list");
    let whole: Vec<_> = seen.iter().map(|step| step.image).collect();
    assert_eq!(whole.first().map(|count| count.done), Some(0));
    assert_eq!(whole.last().map(|count| count.done), Some(total));
    assert!(whole.iter().all(|count| count.done <= total));
    assert!(whole.iter().all(|count| count.total == total));
    // Each blob grows to its own length, and to no other's.
    for bytes in image.layers.iter().chain([&image.config]) {
        let digest = Digest::of(bytes);
        let told: Vec<_> = seen
            .iter()
            .filter_map(|step| step.blob.filter(|(of, _)| *of == digest))
            .map(|(_, count)| (count.done, count.total))
            .collect();
        let length = bytes.len() as u64;
        assert!(told.is_sorted(), "{told:?}");
        assert!(told.iter().all(|(_, all)| *all == length), "{told:?}");
        assert_eq!(told.last(), Some(&(length, length)));
    }

    let before = toy.requests().len();
    let again = bench.pull(&toy).await.expect("an image");
    assert_image(&again, &image);
    assert_eq!(again.layers, pulled.layers);
    let paths: Vec<_> = toy.requests()[before..]
        .iter()
        .map(|r| r.path.clone())
        .collect();
    assert_eq!(paths, ["/v2/team/app/manifests/1"]);
}

#[tokio::test]
async fn a_layer_that_is_there_twice_comes_once() {
    let mut image = Image::new();
    let small = image.layers[1].clone();
    image = Image::of(image.config, vec![small.clone(), small.clone(), Vec::new()]);
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Bench::new();
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    let path = format!("/v2/team/app/blobs/{}", toy::digest(&small));
    assert_eq!(toy.asked(&path).len(), 1);
}

#[tokio::test]
async fn wrong_bytes_are_never_kept() {
    let image = Image::new();
    let path = image.large_path();
    let mut wrong = image.large().to_vec();
    wrong[700_000] ^= 1;
    let bad = path.clone();
    let toy = Toy::serving(&image, move |r| (r.path == bad).then(|| range(&wrong, r))).await;
    let bench = Bench::new();
    let error = bench.pull(&toy).await.expect_err("a wrong digest");
    assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
    assert_eq!(bench.whole(image.large()), None);
    assert_eq!(bench.part(image.large()), None);
    assert_eq!(toy.asked(&path).len(), 1, "the same would come again");
}

#[tokio::test]
async fn a_short_blob_is_an_error_after_the_last_try() {
    let image = Image::new();
    for ranges in [true, false] {
        let path = image.large_path();
        let short = image.large()[..900_000].to_vec();
        let bad = path.clone();
        let toy = Toy::serving(&image, move |r| {
            (r.path == bad).then(|| match ranges {
                true => range(&short, r),
                false => Answer::new(200, short.clone()),
            })
        })
        .await;
        let bench = Bench::new();
        let error = bench.pull(&toy).await.expect_err("a short blob");
        assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
        assert_eq!(bench.part(image.large()), None);
        assert_eq!(toy.asked(&path).len(), 4);
    }
}

#[tokio::test]
async fn a_long_blob_is_refused_at_once() {
    let image = Image::new();
    for declared in [true, false] {
        let path = image.large_path();
        let mut long = image.large().to_vec();
        long.extend(std::iter::repeat_n(0, 400_000));
        let bad = path.clone();
        let toy = Toy::serving(&image, move |r| {
            (r.path == bad).then(|| match declared {
                true => Answer::new(200, long.clone()),
                false => Answer::new(200, long.clone()).undeclared(),
            })
        })
        .await;
        let bench = Bench::new();
        let error = bench.pull(&toy).await.expect_err("a long blob");
        assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
        assert_eq!(bench.part(image.large()), None);
        assert_eq!(toy.asked(&path).len(), 1);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_once_costs_only_the_rest() {
    let image = Image::new();
    let path = image.large_path();
    let half = image.large().len() / 2;
    let (bad, whole) = (path.clone(), image.clone());
    let toy = Toy::serving(&image, move |r| {
        (r.path == bad && r.nth == 0).then(|| whole.serve(r).cut(half))
    })
    .await;
    let bench = Bench::new();
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    let asked = toy.asked(&path);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].header("range"), None);
    assert_eq!(
        asked[1].header("range"),
        Some(format!("bytes={half}-").as_str())
    );
    assert_eq!(bench.parts(), 0);
}

#[tokio::test]
async fn a_connection_that_always_breaks_leaves_a_part_for_the_next_pull() {
    let image = Image::single();
    let path = image.large_path();
    let half = image.large().len() / 2;
    let (bad, whole) = (path.clone(), image.clone());
    let broken = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&broken);
    let toy = Toy::serving(&image, move |r| {
        let cut = half.saturating_sub(r.from());
        (r.path == bad && switch.load(Ordering::SeqCst)).then(|| whole.serve(r).cut(cut))
    })
    .await;
    let bench = Bench::new();
    let error = bench.pull(&toy).await.expect_err("a broken connection");
    assert!(
        matches!(error, RegistryError::Unavailable { .. }),
        "{error}"
    );
    assert_eq!(toy.asked(&path).len(), 4);
    assert_eq!(bench.part(image.large()), Some(half as u64));
    assert_eq!(bench.whole(image.large()), None);

    broken.store(false, Ordering::SeqCst);
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    let asked = toy.asked(&path);
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[4].from(), half);
    assert_eq!(bench.parts(), 0);
}

#[tokio::test]
async fn a_transfer_that_stalls_is_tried_again_and_given_up() {
    let image = Image::new();
    let path = image.large_path();
    let (bad, whole) = (path.clone(), image.clone());
    let toy = Toy::serving(&image, move |r| {
        let cut = 1000usize.saturating_sub(r.from());
        (r.path == bad).then(|| whole.serve(r).cut(cut).stalling())
    })
    .await;
    let bench = Bench::new();
    let error = bench.pull(&toy).await.expect_err("a stall");
    match &error {
        RegistryError::Unavailable { why, .. } => assert!(why.contains("nothing came"), "{why}"),
        other => panic!("{other}"),
    }
    assert_eq!(toy.asked(&path).len(), 4);
    assert_eq!(bench.part(image.large()), Some(1000));
}

#[tokio::test]
async fn whatever_falls_silent_or_breaks_off_is_given_up_and_gone_on_with() {
    let image = Image::single();
    for part in ["/manifests/", &image.large_path()] {
        for (how, words) in [
            ("silent", "nothing came"),
            ("stalls", "nothing came"),
            ("breaks off", ""),
        ] {
            let what = format!("{part} {how}");
            let (bad, whole) = (part.to_owned(), image.clone());
            let broken = Arc::new(AtomicBool::new(true));
            let switch = broken.clone();
            let toy = Toy::serving(&image, move |r| {
                let meant = r.path.contains(&bad) && switch.load(Ordering::SeqCst);
                meant.then(|| match how {
                    "silent" => Answer::silence(),
                    "stalls" => whole.serve(r).cut(10).stalling(),
                    _ => whole.serve(r).cut(10),
                })
            })
            .await;
            let bench = Bench::new();
            let error = bench.pull(&toy).await.expect_err(&what);
            match &error {
                RegistryError::Unavailable { why, .. } => {
                    assert!(why.contains(words), "{what}: {why}");
                }
                RegistryError::Damaged { .. } if words.is_empty() => {}
                other => panic!("{what}: {other}"),
            }
            assert!(error.hint().is_some(), "{what}");
            let asked = toy
                .requests()
                .iter()
                .filter(|r| r.path.contains(part))
                .count();
            assert_eq!(asked, 4, "{what}");
            bench.assert_blobs_are_true();
            broken.store(false, Ordering::SeqCst);
            assert_image(&bench.pull(&toy).await.expect(&what), &image);
        }
    }
}

#[tokio::test]
async fn a_registry_without_ranges_sends_all_of_it_again() {
    let image = Image::new();
    let path = image.large_path();
    let (bad, blob) = (path.clone(), image.large().to_vec());
    let toy = Toy::serving(&image, move |r| {
        let whole = Answer::new(200, blob.clone());
        (r.path == bad).then(|| match r.nth {
            0 => whole.cut(1_000_000),
            _ => whole,
        })
    })
    .await;
    let bench = Bench::new();
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    assert_eq!(toy.asked(&path)[1].from(), 1_000_000);
}

#[tokio::test]
async fn an_answer_with_another_range_is_not_believed() {
    let image = Image::new();
    let path = image.large_path();
    let (bad, whole) = (path.clone(), image.clone());
    let toy = Toy::serving(&image, move |r| {
        let good = whole.serve(r);
        (r.path == bad).then(|| match r.nth {
            0 => good.cut(1000),
            1 => Answer {
                headers: vec![("Content-Range".to_owned(), "bytes 0-9/1200000".to_owned())],
                ..good
            },
            _ => good,
        })
    })
    .await;
    let bench = Bench::new();
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    let from: Vec<_> = toy.asked(&path).iter().map(toy::Request::from).collect();
    assert_eq!(from, [0, 1000, 0]);
}

#[tokio::test]
async fn a_part_that_a_crash_spoilt_is_fetched_again() {
    let image = Image::new();
    let toy = Toy::serving(&image, |_| None).await;
    for spoilt in [1000, image.large().len(), image.large().len() + 10] {
        let bench = Bench::new();
        let part = bench
            .cache
            .path(Digest::of(image.large()))
            .with_extension("part");
        std::fs::write(&part, vec![0; spoilt]).expect("a part");
        assert_image(&bench.pull(&toy).await.expect("an image"), &image);
        assert_eq!(bench.parts(), 0, "{spoilt}");
    }
}

#[tokio::test]
async fn a_failing_server_is_asked_four_times() {
    let image = Image::single();
    let path = image.large_path();
    for failures in [2, 99] {
        let bad = path.clone();
        let toy = Toy::serving(&image, move |r| {
            (r.path == bad && r.nth < failures).then(|| Answer::new(500, "oh"))
        })
        .await;
        let bench = Bench::new();
        let pulled = bench.pull(&toy).await;
        match failures {
            2 => assert_image(&pulled.expect("an image"), &image),
            _ => {
                let error = pulled.expect_err("a broken server");
                assert!(
                    matches!(error, RegistryError::Unavailable { .. }),
                    "{error}"
                );
                assert!(error.to_string().ends_with("it answered 500"), "{error}");
                assert_eq!(toy.asked(&path).len(), 4);
            }
        }
        assert_eq!(bench.parts(), 0);
    }
}

#[tokio::test]
async fn a_busy_registry_gets_the_wait_it_asks_for() {
    let image = Image::new();
    let said = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull\u001b[2Jrate"}]}"#;
    let path = "/v2/team/app/manifests/1";
    for wait in ["1", "3600"] {
        let toy = Toy::serving(&image, move |r| {
            (r.path == path && r.nth == 0).then(|| {
                Answer::new(429, said)
                    .with("Retry-After", wait)
                    .with("Content-Type", "application/json")
            })
        })
        .await;
        let bench = Bench::new();
        let began = Instant::now();
        let pulled = bench.pull(&toy).await;
        if wait == "1" {
            assert_image(&pulled.expect("an image"), &image);
            assert!(began.elapsed() >= Duration::from_secs(1));
            continue;
        }
        match pulled.expect_err("an hour is too long") {
            RegistryError::RateLimited { wait, message, .. } => {
                assert_eq!(wait, Some(Duration::from_secs(3600)));
                assert_eq!(message, "pull\\u{1b}[2Jrate");
            }
            other => panic!("{other}"),
        }
        assert_eq!(toy.asked(path).len(), 1);
    }
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let bench = Bench::new();
    let toy = Toy::start(|_| Answer::new(200, "")).await;
    let reference = toy.reference();
    drop(toy);
    let error = bench
        .pull_as(&reference, &|_| {})
        .await
        .expect_err("nobody");
    assert!(
        matches!(error, RegistryError::Unavailable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_cancelled_pull_leaves_a_part_and_the_next_goes_on() {
    let image = Image::single();
    let path = image.large_path();
    let (bad, whole) = (path.clone(), image.clone());
    let toy = Toy::serving(&image, move |r| {
        (r.path == bad && r.nth == 0).then(|| whole.serve(r).cut(2_000_000).stalling())
    })
    .await;
    let mut config = toy::config();
    config.limits.stall = Duration::from_secs(600);
    let mut bench = Bench::with(config);
    let cancel = bench.cancel.clone();
    // What came last may be on its way to the disk still; what came before that is there.
    let near_the_end = 2_000_000;
    let error = bench
        .pull_as(&toy.reference(), &move |step: Step| {
            let done = step.image.done;
            if done >= near_the_end {
                cancel.cancel();
            }
        })
        .await
        .expect_err("cancelled");
    assert!(matches!(error, RegistryError::Cancelled), "{error}");
    let part = bench.part(image.large()).expect("a part");
    assert!(part > 0 && part <= 2_000_000, "{part}");

    let early = bench.pull(&toy).await.expect_err("still cancelled");
    assert!(matches!(early, RegistryError::Cancelled), "{early}");
    bench.cancel = tokio_util::sync::CancellationToken::new();
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    let from = toy.asked(&path).last().map(toy::Request::from);
    assert!(from.is_some_and(|from| from as u64 >= part), "{from:?}");
}

#[tokio::test]
async fn two_pulls_of_one_image_are_one_download() {
    let image = Image::new();
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Bench::new();
    let (one, two) = tokio::join!(bench.pull(&toy), bench.pull(&toy));
    assert_image(&one.expect("an image"), &image);
    assert_image(&two.expect("an image"), &image);
    assert_eq!(toy.asked(&image.large_path()).len(), 1);
    assert_eq!(bench.parts(), 0);
}

#[tokio::test]
async fn a_pull_may_change_threads() {
    fn may_change_threads<T: Send>(future: T) -> T {
        future
    }
    let image = Image::new();
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Bench::new();
    let pulled = may_change_threads(bench.pull(&toy)).await;
    assert_image(&pulled.expect("an image"), &image);
}

#[tokio::test]
async fn a_config_that_the_disk_spoilt_and_a_layer_that_it_cut_come_anew() {
    let image = Image::new();
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Bench::new();
    bench.pull(&toy).await.expect("an image");
    let spoil = |bytes: &[u8], other: &[u8]| {
        std::fs::write(bench.cache.path(Digest::of(bytes)), other).expect("spoilt");
    };
    let mut config = image.config.clone();
    config[0] ^= 1;
    spoil(&image.config, &config);
    spoil(image.large(), &image.large()[..1000]);
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    bench.assert_blobs_are_true();
    assert_eq!(toy.asked(&image.large_path()).len(), 2);
}
