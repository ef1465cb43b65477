//! What a registry can say instead of an image: manifests of all kinds, refusals, redirects.

mod toy;

use banger_registry::{Config, Digest, RegistryError};
use serde_json::json;
use toy::{Answer, Bench, Image, Toy, assert_image, descriptor, digest};

const MANIFEST: &str = "/v2/team/app/manifests/1";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

/// An index entry for a platform.
fn entry(bytes: &[u8], os: &str, architecture: &str) -> serde_json::Value {
    let mut entry = descriptor(OCI, bytes);
    entry["platform"] = json!({"os": os, "architecture": architecture});
    entry
}

/// A registry whose tag means these bytes, and which has the image otherwise.
async fn tagged(image: &Image, bytes: impl Into<Vec<u8>>) -> Toy {
    let bytes = bytes.into();
    Toy::serving(image, move |r| {
        (r.path == MANIFEST).then(|| Answer::new(200, bytes.clone()))
    })
    .await
}

fn index(entries: &[serde_json::Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "manifests": entries})
        .to_string()
        .into_bytes()
}

async fn unsupported(toy: &Toy) -> String {
    let bench = Bench::new();
    let error = bench.pull(toy).await.expect_err("no image");
    assert_eq!(bench.parts(), 0);
    match error {
        RegistryError::Unsupported { why, .. } => why,
        other => panic!("{other}"),
    }
}

async fn damaged(toy: &Toy) -> String {
    let bench = Bench::new();
    let error = bench.pull(toy).await.expect_err("no image");
    assert_eq!(bench.cache.list().expect("a list"), []);
    match error {
        RegistryError::Damaged { why, .. } => why,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_attestation_first_does_not_hide_the_image() {
    let image = Image::new();
    let entries = [
        entry(b"{}", "unknown", "unknown"),
        entry(b"arm", "linux", "arm64"),
        entry(&image.manifest, "linux", "amd64"),
    ];
    let toy = tagged(&image, index(&entries)).await;
    let bench = Bench::new();
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
}

#[tokio::test]
async fn an_index_without_our_platform_names_those_it_has() {
    let image = Image::new();
    let entries = [
        entry(b"{}", "unknown", "unknown"),
        entry(b"arm", "linux", "arm64"),
        entry(b"win", "windows", "amd64"),
    ];
    let why = unsupported(&tagged(&image, index(&entries)).await).await;
    assert_eq!(why, "it is for linux/arm64, windows/amd64, not linux/amd64");
}

#[tokio::test]
async fn an_index_that_leads_to_an_index_is_refused() {
    let image = Image::new();
    let inner = index(&[entry(&image.manifest, "linux", "amd64")]);
    let outer = index(&[entry(&inner, "linux", "amd64")]);
    let path = format!("/v2/team/app/manifests/{}", digest(&inner));
    let toy = Toy::serving(&image, move |r| {
        if r.path == path {
            return Some(Answer::new(200, inner.clone()));
        }
        (r.path == MANIFEST).then(|| Answer::new(200, outer.clone()))
    })
    .await;
    assert_eq!(unsupported(&toy).await, "its index leads to another index");
}

#[tokio::test]
async fn an_image_for_another_machine_costs_no_layer() {
    let config = json!({"os": "linux", "architecture": "riscv64"}).to_string();
    let image = Image::of(config.into_bytes(), Image::new().layers);
    let toy = Toy::serving(&image, |_| None).await;
    let why = unsupported(&toy).await;
    assert_eq!(why, "it is for linux/riscv64, not linux/amd64");
    assert_eq!(toy.asked(&image.large_path()).len(), 0);
}

#[tokio::test]
async fn a_huge_manifest_is_not_read_to_its_end() {
    let image = Image::new();
    for declared in [true, false] {
        let toy = Toy::serving(&image, move |r| {
            let answer = Answer::new(200, vec![b' '; 5 << 20]);
            (r.path == MANIFEST).then(|| match declared {
                true => answer,
                // It would go on for ever.
                false => answer.undeclared().stalling(),
            })
        })
        .await;
        let why = unsupported(&toy).await;
        assert_eq!(why, "its manifest has more than 4194304 bytes");
    }
}

#[tokio::test]
async fn schema_1_is_refused_with_its_name() {
    let old = json!({"schemaVersion": 1, "name": "a", "fsLayers": [], "signatures": []});
    let toy = tagged(&Image::new(), old.to_string()).await;
    let why = unsupported(&toy).await;
    assert!(why.contains("schema 1"), "{why}");
}

#[tokio::test]
async fn a_manifest_by_digest_must_have_that_digest() {
    let image = Image::new();
    let wrong = Digest::of(b"something else");
    let path = format!("/v2/team/app/manifests/{wrong}");
    let manifest = image.manifest.clone();
    let toy = Toy::serving(&image, move |r| {
        (r.path == path).then(|| Answer::new(200, manifest.clone()))
    })
    .await;
    let bench = Bench::new();
    let by = |digest: Digest| format!("{}/team/app@{digest}", toy.address);
    let reference = by(wrong).parse().expect("a reference");
    let error = bench
        .pull_as(&reference, &|_| {})
        .await
        .expect_err("no image");
    assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");

    let right = by(Digest::of(&image.manifest))
        .parse()
        .expect("a reference");
    let pulled = bench.pull_as(&right, &|_| {}).await.expect("an image");
    assert_image(&pulled, &image);
}

#[tokio::test]
async fn a_manifest_is_what_its_registry_and_its_index_say() {
    let image = Image::new();
    let manifest = image.manifest.clone();
    let toy = Toy::serving(&image, move |r| {
        (r.path == MANIFEST)
            .then(|| Answer::new(200, manifest.clone()).with("Docker-Content-Digest", digest(b"x")))
    })
    .await;
    let why = damaged(&toy).await;
    assert!(why.contains(" instead of sha256:"), "{why}");

    let mut entry = entry(&image.manifest, "linux", "amd64");
    entry["size"] = json!(17);
    let why = damaged(&tagged(&image, index(&[entry])).await).await;
    assert!(why.ends_with("bytes came instead of 17"), "{why}");

    let why = damaged(&tagged(&image, "<html>").await).await;
    assert!(why.contains("it is no manifest"), "{why}");
}

#[tokio::test]
async fn what_is_missing_or_forbidden_is_said_at_once() {
    let image = Image::single();
    for (status, on_manifest) in [
        (404, true),
        (404, false),
        (403, true),
        (401, true),
        (400, true),
    ] {
        let path = match on_manifest {
            true => MANIFEST.to_owned(),
            false => image.large_path(),
        };
        let bad = path.clone();
        let toy = Toy::serving(&image, move |r| {
            (r.path == bad).then(|| Answer::new(status, ""))
        })
        .await;
        let bench = Bench::new();
        let error = bench.pull(&toy).await.expect_err("no image");
        assert_eq!(toy.asked(&path).len(), 1, "{status}");
        assert_eq!(bench.parts(), 0);
        let shown = error.to_string();
        match (status, error) {
            (404, RegistryError::NotFound { .. }) => {
                let expected = if on_manifest {
                    "team/app:1"
                } else {
                    "blob sha256:"
                };
                assert!(shown.contains(expected), "{shown}");
            }
            (401 | 403, error @ RegistryError::Denied { .. }) => {
                assert_eq!(
                    shown,
                    format!("{} refused team/app:1 ({status})", toy.address)
                );
                let hint = error.hint().expect("a hint");
                assert_eq!(hint, format!("docker login {}", toy.address));
            }
            (400, RegistryError::Unavailable { .. }) => {}
            (_, other) => panic!("{status}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let image = Image::single();
    let path = image.large_path();
    let (bad, to) = (path.clone(), path.clone());
    let toy = Toy::serving(&image, move |r| {
        (r.path == bad).then(|| Answer::new(307, "").with("Location", to.clone()))
    })
    .await;
    let bench = Bench::new();
    let error = bench.pull(&toy).await.expect_err("a loop");
    assert!(
        matches!(error, RegistryError::Unavailable { .. }),
        "{error}"
    );
    assert_eq!(
        toy.asked(&path).len(),
        11,
        "ten redirects, and no second try"
    );
    assert_eq!(bench.parts(), 0);
}

#[tokio::test]
async fn a_redirect_to_a_place_in_the_clear_is_for_named_hosts_only() {
    let image = Image::single();
    let path = image.large_path();
    let bad = path.clone();
    let toy = Toy::serving(&image, move |r| {
        // A documentation address: nobody is there, and nobody is asked.
        let to = "http://192.0.2.1/blob?signature=secret";
        (r.path == bad).then(|| Answer::new(307, "").with("Location", to))
    })
    .await;
    let bench = Bench::new();
    let error = bench.pull(&toy).await.expect_err("in the clear");
    let mut chain = format!("{error}");
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        chain += &format!(": {next}");
        cause = next;
    }
    assert!(chain.contains("without TLS"), "{chain}");
    assert!(!chain.contains("secret"), "{chain}");
    assert_eq!(toy.asked(&path).len(), 1);
}

#[tokio::test]
async fn a_redirect_takes_the_range_along_and_leaves_the_login_behind() {
    let image = Image::new();
    let (served, bad) = (image.clone(), image.large_path());
    let store = Toy::start(move |r| {
        let blob = toy::range(served.large(), r);
        match r.nth {
            0 => blob.cut(1000),
            _ => blob,
        }
    })
    .await;
    // Another name of the same machine: another host to the client.
    let to = format!(
        "http://{}/signed?x=1",
        store.address.replace("127.0.0.1", "localhost")
    );
    let toy = Toy::serving(&image, move |r| {
        if r.header("authorization") != Some("Basic dTpw") {
            return Some(Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        (r.path == bad).then(|| Answer::new(307, "").with("Location", to.clone()))
    })
    .await;
    let logins = tempfile::tempdir().expect("a directory");
    let file = logins.path().join("config.json");
    let auths = json!({"auths": {&toy.address: {"auth": "dTpw"}}});
    std::fs::write(&file, auths.to_string()).expect("a config");
    let bench = Bench::with(Config {
        auth_file: Some(file),
        ..toy::config()
    });
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    let stored = store.requests();
    assert_eq!(stored.len(), 2);
    for request in &stored {
        assert_eq!(request.header("authorization"), None, "{request:?}");
        assert_eq!(request.header("referer"), None, "{request:?}");
    }
    assert_eq!(stored[1].from(), 1000);
}

#[tokio::test]
async fn a_refusal_of_a_redirects_host_is_no_matter_of_login() {
    let image = Image::new();
    let served = image.clone();
    let store = Toy::start(move |r| match r.nth {
        // A signed address that is out of date.
        0 => Answer::new(403, ""),
        1 => Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        _ => toy::range(served.large(), r),
    })
    .await;
    let to = format!("http://{}/signed", store.address);
    let bad = image.large_path();
    let toy = Toy::serving(&image, move |r| {
        (r.path == bad).then(|| Answer::new(307, "").with("Location", to.clone()))
    })
    .await;
    let bench = Bench::new();
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    assert_eq!(store.requests().len(), 3);
}
