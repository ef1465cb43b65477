//! Images and registries that want the host no good: each is refused with its reason, leaves
//! nothing behind, and the daemon goes on.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::archive::{Entry, gzip, tar};
use e2e::toy::{Answer, Asked, Gate, Image, Toy};
use e2e::{Census, House};
use serde_json::{Value, json};

/// Pulls by the daemon's own interface: the finished operation.
fn pull(house: &House, reference: &str, name: &str) -> Value {
    let body = json!({"ref": reference, "name": name});
    let reply = house.api("POST", "/v1/images/pull", Some(&body));
    assert_eq!(reply.status, 202, "{:?}", reply.body);
    let id = reply.body["operation"]["id"].as_str().expect("an id");
    let path = format!("/v1/operations/{id}?wait=50s");
    let mut shown = house.api("GET", &path, None).body;
    if shown["operation"]["done"] == false {
        shown = house.api("GET", &path, None).body;
    }
    assert_eq!(shown["operation"]["done"], true, "{shown}");
    shown["operation"].clone()
}

/// Fails unless the pull is refused like this, with a next step, and nothing is left of it.
#[track_caller]
fn refused(house: &House, before: &Census, reference: &str, code: &str, words: &str) -> String {
    let done = pull(house, reference, "hostile");
    assert_eq!(done["success"], false, "{done}");
    assert_eq!(done["error_code"], code, "{done}");
    let error = done["error"].as_str().unwrap_or_default();
    assert!(error.contains(words), "no {words:?} in {error:?}");
    // What was killed may take a moment to be gone.
    house.assert_as_before(before, Duration::from_secs(10));
    assert_eq!(house.api("GET", "/v1/ping", None).status, 200);
    let hint = done["hint"].as_str().unwrap_or_default();
    assert!(!hint.is_empty(), "no hint: {done}");
    hint.to_owned()
}

/// The same of what is wrong inside an image.
#[track_caller]
fn refused_inside(house: &House, before: &Census, reference: &str, words: &str) {
    let hint = refused(house, before, reference, "bad_archive", words);
    assert!(hint.contains("the fault is in the image itself"), "{hint}");
}

/// A house whose daemon runs.
fn house() -> (House, Census) {
    let house = House::new();
    let _ = house.banger("list").ok();
    let before = house.census();
    (house, before)
}

fn good() -> Image {
    Image::of(vec![gzip(&tar(&[Entry::file("good", "good")]))])
}

/// The daemon is as well as ever.
#[track_caller]
fn assert_well(house: &House, toy: &Toy) {
    let done = pull(house, &toy.put("good", good()), "good");
    assert_eq!(done["success"], true, "{done}");
    let _ = house.banger("image rm good").ok();
}

#[test]
fn archives_that_lie_are_refused_by_the_name_of_their_entry() {
    let (house, before) = house();
    let toy = Toy::start(|_| None);
    let long = "x".repeat(256);
    let file = |path: &str| Entry::file(path, "x");
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        (
            "../../up\\\" of the archive: its path leads upwards",
            vec![file("../../up")],
        ),
        (
            "a/../../b\" of the archive: its path leads upwards",
            vec![file("a/../../b")],
        ),
        (
            "hidden\" of the archive: its path leads upwards",
            vec![file("plain").record("path", "../hidden")],
        ),
        (
            "a hard link to nothing",
            vec![Entry::link("h", "/etc/passwd", true)],
        ),
        (
            "its path leads upwards",
            vec![Entry::link("h", "../../etc/passwd", true)],
        ),
        (
            "a hard link to a directory",
            vec![Entry::of("d/", b'5'), Entry::link("h", "d", true)],
        ),
        (
            "below something that is not a directory",
            vec![file("f"), file("f/x")],
        ),
        (
            "too many symbolic links",
            vec![
                Entry::link("a", "b", false),
                Entry::link("b", "a", false),
                file("a/x"),
            ],
        ),
        ("zero byte", vec![file("plain").record("path", "a\0b")]),
        (
            r#"entry "dir/\\xff\\xfe" of the archive: its name is not UTF-8"#,
            vec![Entry::file(b"dir/\xff\xfe", "x")],
        ),
        (
            r#"entry "l" of the archive: its link target is not UTF-8"#,
            vec![Entry::link("l", b"\xff", false)],
        ),
        (
            r#"/end" of the archive: its path is too long"#,
            vec![file("plain").record("path", format!("{}end", "d/".repeat(2100)))],
        ),
        (
            "its name is too long",
            vec![file("plain").record("path", &long)],
        ),
        ("damaged number", vec![file("f").record("size", "-1")]),
        (
            "damaged number",
            vec![file("f").record("uid", "99999999999999999999")],
        ),
        ("damaged time", vec![file("f").record("mtime", "soon")]),
        (
            r#"entry "f" of the archive: an attribute is too large for the file system"#,
            vec![file("f").record("SCHILY.xattr.user.large", vec![b'x'; 60_000])],
        ),
        (
            "namespace that is not known",
            vec![file("f").record("SCHILY.xattr.user.", "x")],
        ),
        (
            "a damaged access list",
            vec![file("f").record("SCHILY.xattr.system.posix_acl_access", "x")],
        ),
        ("a whiteout of nothing", vec![file("d/.wh...")]),
        ("of a kind that is not known", vec![Entry::of("odd", b'Q')]),
        (
            "the root must be a directory",
            vec![file("./").record("path", ".")],
        ),
        // Sizes that are not there, or are more than there may be.
        ("too many bytes", vec![file("bomb").declare(1 << 40)]),
        (
            "too many bytes",
            vec![file("bomb").record("size", u64::MAX.to_string())],
        ),
        ("ends early", vec![file("cut").declare(1 << 30)]),
        (
            "sparse map",
            vec![
                file("s")
                    .record("GNU.sparse.major", "0")
                    .record("GNU.sparse.minor", "1")
                    .record("GNU.sparse.name", "s")
                    .record("GNU.sparse.size", "100")
                    .record("GNU.sparse.map", "0,5,3,5"),
            ],
        ),
    ];
    for (number, (words, entries)) in cases.iter().enumerate() {
        for packed in [
            gzip(&tar(entries)),
            zstd::encode_all(&tar(entries)[..], 1).expect("memory"),
        ] {
            let reference = toy.put(&format!("case-{number}"), Image::of(vec![packed]));
            let words = words.replace("\\\"", "\"");
            refused_inside(&house, &before, &reference, &words);
        }
    }
    // What is no archive at all.
    let half = gzip(&tar(&[Entry::file("x", vec![7; 100_000])]));
    let half = half[..half.len() / 2].to_vec();
    // A frame whose window is as large as the format allows.
    let window = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8][..], &[1, 0, 0]].concat();
    for (tag, layer, words) in [
        ("noise", vec![1; 5000], "the archive is damaged at byte 0"),
        ("half", half, "incomplete deflate stream"),
        ("window", window, "Frame requires too much memory"),
    ] {
        let reference = toy.put(tag, Image::of(vec![layer]));
        refused_inside(&house, &before, &reference, words);
    }
    assert_well(&house, &toy);
}

#[test]
fn names_that_lead_out_of_an_image_stay_inside() {
    let (house, before) = house();
    let toy = Toy::start(|_| None);
    let outside = house.dir().join("home");
    let target = outside.to_str().expect("a path is text").to_owned();
    let up = format!("{}{target}", "../".repeat(20));
    let layers = [
        tar(&[
            Entry::file(format!("{target}/absolute"), "1"),
            Entry::link("by-name", &target, false),
            Entry::file("by-name/through", "2"),
            Entry::link("upwards", &up, false),
            Entry::file("upwards/through-up", "3"),
        ]),
        tar(&[
            Entry::file("by-name/later", "4"),
            Entry::file("by-name/.wh.through", ""),
        ]),
    ];
    let layers = layers.iter().map(|layer| gzip(layer)).collect();
    let done = pull(&house, &toy.put("inside", Image::of(layers)), "inside");
    assert_eq!(done["success"], true, "{done}");
    assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0);
    let shown = house.banger("image show inside --json").ok().json();
    let rootfs = shown["image"]["rootfs_path"].as_str().expect("a path");
    e2e::disk::assert_clean(Path::new(rootfs));
    for (name, text) in [("absolute", "1"), ("through-up", "3"), ("later", "4")] {
        let cat = format!("cat {target}/{name}");
        let done = e2e::Call::new("debugfs", ["-R", &cat, rootfs]).run().ok();
        assert_eq!(done.out(), text, "{name}");
    }
    let _ = house.banger("image rm inside").ok();
    assert!(house.census().more_than(&before).is_empty());
}

#[test]
fn a_million_empty_entries_are_an_image_and_two_millions_and_one_are_not() {
    let (house, before) = house();
    let toy = Toy::start(|_| None);
    let many = |count: usize| {
        let mut layer = Vec::with_capacity(count * 512 + 1024);
        for number in 0..count {
            let path = format!("d{}/{number}", number / 1000);
            layer.extend(e2e::archive::header(path.as_bytes(), b'0', 0, b""));
        }
        layer.resize(layer.len() + 1024, 0);
        Image::of(vec![gzip(&layer)])
    };
    let done = pull(&house, &toy.put("million", many(1_000_000)), "million");
    assert_eq!(done["success"], true, "{done}");
    let _ = house.banger("image rm million").ok();
    let reference = toy.put("more", many(2_000_001));
    refused_inside(&house, &before, &reference, "too many entries");
    assert_well(&house, &toy);
}

#[test]
fn registries_that_fail_or_lie_are_told_apart() {
    let (house, before) = house();
    let noise: Vec<u8> = (0..500_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let image = Image::of(vec![gzip(&tar(&[Entry::file("noise", noise)]))]);
    let (blob, layer) = (image.layer_path(0), image.layers[0].clone());
    let manifest = |tag: &str| format!("/v2/team/app/manifests/{tag}");
    let of_blob = move |asked: &Asked, answer: &dyn Fn(&Asked) -> Answer| {
        (asked.path == blob).then(|| answer(asked))
    };
    let json = "Content-Type: application/json";
    type Other = Box<dyn Fn(&Asked) -> Option<Answer> + Send + Sync>;
    let status = |status: u16, line: &'static str, said: &'static str| -> Other {
        Box::new(move |asked| {
            let answer = Answer::new(status, said).with(json).with(line);
            asked.path.contains("/manifests/").then_some(answer)
        })
    };
    let (wrong, short, long, cut) = (layer.clone(), layer.clone(), layer.clone(), layer.clone());
    let blobs: [Other; 4] = {
        let [a, b, c, d] = [of_blob.clone(), of_blob.clone(), of_blob.clone(), of_blob];
        [
            Box::new(move |asked| {
                a(asked, &|_| {
                    let mut wrong = wrong.clone();
                    wrong[1000] ^= 1;
                    Answer::new(200, wrong)
                })
            }),
            Box::new(move |asked| b(asked, &|_| Answer::new(200, &short[..short.len() - 1]))),
            Box::new(move |asked| c(asked, &|_| Answer::new(200, [&long[..], b"more"].concat()))),
            // Half of what is left, each time.
            Box::new(move |asked| {
                d(asked, &|asked| {
                    let answer = e2e::toy::part(&cut, asked.from);
                    let half = answer.body.len() / 2;
                    answer.cut(half)
                })
            }),
        ]
    };
    let [wrong, short, long, cut] = blobs;
    let huge: Other = Box::new(|asked| {
        let huge = || Answer::new(200, vec![b' '; 5 << 20]);
        asked.path.contains("/manifests/").then(huge)
    });
    let around: Other = Box::new(|asked| {
        let again = Answer::new(307, "").with(format!("Location: {}", asked.path));
        asked.path.contains("/manifests/").then_some(again)
    });
    let cases: Vec<(&str, &str, &str, Other)> = vec![
        (
            "verify_failed",
            "is damaged: it is sha256:",
            "try again; if it stays so",
            wrong,
        ),
        (
            "verify_failed",
            "bytes came instead of",
            "try again; if it stays so",
            short,
        ),
        (
            "verify_failed",
            "has more than",
            "try again; if it stays so",
            long,
        ),
        (
            "unreachable",
            "cannot fetch blob",
            "it goes on with what came already",
            cut,
        ),
        (
            "unsupported",
            "its manifest has more than 4194304 bytes",
            "of at most 512 layers and 128G",
            huge,
        ),
        (
            "unreachable",
            "redirected more than 10 times",
            "is 127.0.0.1",
            around,
        ),
        (
            "registry_denied",
            "(401)",
            "docker login 127.0.0.1",
            status(401, "X: y", "{}"),
        ),
        (
            "registry_denied",
            "(403)",
            "docker login 127.0.0.1",
            status(403, "X: y", "{}"),
        ),
        (
            "unreachable",
            "takes no more requests for now: slow down",
            "try again in 3600 s",
            status(
                429,
                "Retry-After: 3600",
                r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
            ),
        ),
        (
            "unreachable",
            "it answered 500",
            "try again later",
            status(500, "X: y", "{}"),
        ),
        (
            "unreachable",
            "it answered 503",
            "try again later",
            status(503, "X: y", "{}"),
        ),
        (
            "not_found",
            "has no",
            "check the name and the tag; if it is private: docker login 127.0.0.1",
            status(404, "X: y", "{}"),
        ),
    ];
    for (code, words, hint, other) in cases {
        let toy = Toy::start(other);
        let reference = toy.put("1", image.clone());
        let said = refused(&house, &before, &reference, code, words);
        assert!(
            said.contains(hint),
            "{code} {words}: no {hint:?} in {said:?}"
        );
        if code != "verify_failed" && !words.contains("blob") {
            assert!(!toy.asked(&manifest("1")).is_empty());
        }
        assert_whole(&house, words.contains("cannot fetch blob"));
    }
    assert_well(&house, &Toy::start(|_| None));
}

#[test]
fn a_registry_that_falls_silent_is_given_up_and_gone_on_with() {
    let house = House::new();
    house.set_env("BANGER_PULL_STALL_MS", "700");
    let _ = house.banger("list").ok();
    let before = house.census();
    let noise: Vec<u8> = (0..500_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let image = Image::of(vec![gzip(&tar(&[Entry::file("noise", noise)]))]);
    let (path, layer) = (image.layer_path(0), image.layers[0].clone());
    let (gate, silent) = (Gate::default(), Arc::new(AtomicBool::new(true)));
    let toy = {
        let (path, gate, silent) = (path.clone(), gate.clone(), Arc::clone(&silent));
        Toy::start(move |asked| {
            let held = asked.path == path && silent.load(Ordering::SeqCst);
            held.then(|| {
                let answer = e2e::toy::part(&layer, asked.from);
                let half = answer.body.len() / 2;
                answer.held(half, &gate)
            })
        })
    };
    let reference = toy.put("1", image);
    let words = "nothing came for 0.7 s";
    let hint = refused(&house, &before, &reference, "unreachable", words);
    assert!(hint.contains("goes on with what came"), "{hint}");
    let tries = toy.asked(&path).len();
    assert_eq!(tries, 4, "each went on where the one before was");
    silent.store(false, Ordering::SeqCst);
    gate.open();
    let done = pull(&house, &reference, "hostile");
    assert_eq!(done["success"], true, "{done}");
    let froms: Vec<usize> = toy.asked(&path).iter().map(|asked| asked.from).collect();
    assert!(froms.is_sorted() && froms[tries] > froms[0], "{froms:?}");
    let _ = house.banger("image rm hostile").ok();
}

#[test]
fn a_registry_without_tls_is_spoken_to_when_the_owner_says_so() {
    let Some(address) = own_address() else {
        e2e::skip!("this host has no address but loopback");
    };
    let toy = Toy::start_on(address, |_| None);
    let reference = toy.put("good", good());
    let (house, before) = house();
    let words = "it does not speak TLS";
    let hint = refused(&house, &before, &reference, "unreachable", words);
    let entry = format!("insecure_registries = [{:?}]", toy.at);
    assert!(hint.contains(&entry), "{hint}");
    let manifest = "/v2/team/app/manifests/good";
    assert!(
        toy.asked(manifest).is_empty(),
        "nothing was asked in the clear"
    );

    house.stop_daemon();
    house.configure(&format!("{entry}\n{}", House::configuration()));
    let _ = house.banger("list").ok();
    assert_well(&house, &toy);
    assert_eq!(toy.asked(manifest).len(), 1);
}

/// An address of this host which is not loopback's.
fn own_address() -> Option<IpAddr> {
    e2e::census::which("ip")?;
    let words = ["-4", "-o", "addr", "show", "scope", "global", "up"];
    let shown = e2e::Call::new("ip", words).run().ok().out();
    let after = shown.split_whitespace().skip_while(|word| *word != "inet");
    after
        .skip(1)
        .find_map(|word| word.split('/').next()?.parse().ok())
}

#[test]
fn a_proxy_of_the_environment_is_asked_for_what_is_elsewhere() {
    let there = "http://registry.invalid";
    let image = good();
    let toy = {
        let image = image.clone();
        Toy::start(move |asked| {
            let path = asked.path.strip_prefix(there)?.to_owned();
            Some(image.serve(&Asked {
                path,
                ..asked.clone()
            }))
        })
    };
    let house = House::new();
    house.configure(&format!(
        "insecure_registries = [\"registry.invalid\"]\n{}",
        House::configuration()
    ));
    house.set_env("NO_PROXY", "");
    let _ = house.banger("list").ok();
    let before = house.census();
    let reference = "registry.invalid/team/app:1";
    let hint = refused(&house, &before, reference, "unreachable", "cannot connect");
    for words in ["is registry.invalid spelled right", "HTTPS_PROXY"] {
        assert!(hint.contains(words), "no {words:?} in {hint}");
    }
    house.stop_daemon();
    house.set_env("HTTP_PROXY", &format!("http://{}", toy.at));
    let _ = house.banger("list").ok();
    let done = pull(&house, reference, "proxied");
    assert_eq!(done["success"], true, "{done}");
    let asked = toy.asked(&format!("{there}{}", image.layer_path(0)));
    assert_eq!(asked.len(), 1);
    let _ = house.banger("image rm proxied").ok();
}

/// The cache has no blob whose name is a lie, and parts only where a transfer broke off.
#[track_caller]
fn assert_whole(house: &House, parts: bool) {
    let blobs = house.cache().join("oci/blobs/sha256");
    for entry in fs::read_dir(blobs).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().expect("a name is text");
        if name.ends_with(".part") {
            assert!(parts, "{name} is left");
            fs::remove_file(entry.path()).expect("an own file");
        } else {
            let bytes = fs::read(entry.path()).expect("an own file");
            assert_eq!(e2e::toy::digest(&bytes), format!("sha256:{name}"));
        }
    }
}

#[test]
fn a_credential_helper_that_hangs_is_given_up_and_named() {
    let house = House::new();
    let bin = house.dir().join("home/bin");
    fs::create_dir_all(&bin).expect("an own directory");
    let helper = bin.join("docker-credential-stuck");
    fs::write(&helper, "#!/bin/sh\nexec sleep 1000\n").expect("an own file");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("an own file");
    let docker = house.dir().join("home/.docker");
    fs::create_dir_all(&docker).expect("an own directory");
    fs::write(docker.join("config.json"), r#"{"credsStore":"stuck"}"#).expect("an own file");
    let path = std::env::var("PATH").unwrap_or_default();
    house.set_env("PATH", &format!("{}:{path}", bin.display()));
    let _ = house.banger("list").ok();
    let before = house.census();
    let toy = Toy::start(|asked| {
        let login = || Answer::new(401, "").with("WWW-Authenticate: Basic realm=\"toy\"");
        asked.path.ends_with("/private").then(login)
    });
    let reference = toy.put("private", good());
    let hint = refused(
        &house,
        &before,
        &reference,
        "registry_denied",
        "credential helper docker-credential-stuck did not answer within 10 s",
    );
    assert!(hint.contains("docker-credential-stuck list"), "{hint}");
    assert_well(&house, &toy);
}
