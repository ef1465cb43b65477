//! Logging in: docker's files, helpers good and bad, tokens of every make.

mod toy;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_registry::{Config, RegistryError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use toy::{Answer, Bench, Image, Toy, assert_image, script};

/// base64 of `u:p`.
const BASIC: &str = "Basic dTpw";

/// A docker configuration and a directory of helpers.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, config: &Value) -> Config {
        std::fs::write(self.path("config.json"), config.to_string()).expect("a config");
        Config {
            auth_file: Some(self.path("config.json")),
            // Scripts need the ordinary programs, too.
            helper_path: Some(format!("{}:/usr/bin:/bin", self.0.path().display()).into()),
            ..toy::config()
        }
    }

    fn bench(&self, config: &Value) -> Bench {
        Bench::with(self.config(config))
    }

    fn helper(&self, text: &str) {
        script(self.0.path(), "docker-credential-toy", text);
    }
}

/// Wants a name and a password.
async fn basic(image: &Image) -> Toy {
    Toy::serving(image, |r| {
        (r.header("authorization") != Some(BASIC))
            .then(|| Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"toy\""))
    })
    .await
}

/// Wants a token of `issue`, which answers requests for `/token`.
async fn tokens(
    image: &Image,
    issue: impl Fn(&toy::Request) -> Answer + Send + Sync + 'static,
    good: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Toy {
    Toy::serving(image, move |r| {
        if r.path.starts_with("/token") {
            return Some(issue(r));
        }
        let token = r
            .header("authorization")
            .and_then(|text| text.strip_prefix("Bearer "));
        if token.is_some_and(&good) {
            return None;
        }
        let host = r.header("host").expect("a host").to_owned();
        let challenge =
            format!("Bearer realm=\"http://{host}/token\",service=\"toy reg\",scope=\"x\"");
        Some(Answer::new(401, "").with("WWW-Authenticate", challenge))
    })
    .await
}

fn token(text: &str) -> Answer {
    Answer::new(200, json!({ "token": text }).to_string())
}

async fn denied(bench: &Bench, toy: &Toy) {
    let error = bench.pull(toy).await.expect_err("no login");
    assert!(
        matches!(error, RegistryError::Denied { status: 401, .. }),
        "{error}"
    );
    assert_eq!(bench.cache.list().expect("a list"), []);
}

async fn helper_error(bench: &Bench, toy: &Toy) -> String {
    let error = bench.pull(toy).await.expect_err("a bad helper");
    match error {
        RegistryError::Helper { program, why } => {
            assert_eq!(program, "docker-credential-toy");
            why
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_public_image_needs_no_login_and_runs_no_helper() {
    let image = Image::new();
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Home::new().bench(&json!({"credsStore": "missing"}));
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    assert!(
        toy.requests()
            .iter()
            .all(|r| r.header("authorization").is_none())
    );
}

#[tokio::test]
async fn an_inline_login_is_sent_when_it_is_asked_for() {
    let image = Image::new();
    let toy = basic(&image).await;
    let home = Home::new();
    let bench = home.bench(&json!({"auths": {&toy.address: {"auth": "dTpw"}}}));
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    let requests = toy.requests();
    assert_eq!(requests[0].header("authorization"), None);
    assert!(
        requests[1..]
            .iter()
            .all(|r| r.header("authorization") == Some(BASIC))
    );

    let wrong = home.bench(&json!({"auths": {&toy.address: {"auth": "dTp3"}}}));
    denied(&wrong, &toy).await;
    let other = home.bench(&json!({"auths": {"other.example": {"auth": "dTpw"}}}));
    denied(&other, &toy).await;
}

#[tokio::test]
async fn a_helper_is_asked_for_the_registry_and_believed() {
    let image = Image::new();
    let toy = basic(&image).await;
    let home = Home::new();
    home.helper(
        r#"[ "$1" = get ] || exit 9
read -r server
echo "$server" > "$(dirname "$0")/asked"
echo '{"ServerURL":"'"$server"'","Username":"u","Secret":"p"}'"#,
    );
    for config in [
        json!({"credsStore": "toy", "auths": {&toy.address: {}}}),
        json!({"credHelpers": {&toy.address: "toy"}, "credsStore": "missing"}),
    ] {
        let bench = home.bench(&config);
        assert_image(&bench.pull(&toy).await.expect("an image"), &image);
        let asked = std::fs::read_to_string(home.path("asked")).expect("it ran");
        assert_eq!(asked.trim(), toy.address);
    }
}

#[tokio::test]
async fn a_helper_that_knows_nothing_passes_the_question_on() {
    let image = Image::new();
    let toy = basic(&image).await;
    let home = Home::new();
    home.helper("echo 'credentials not found in native keychain'; exit 1");
    let auths = json!({&toy.address: {"auth": "dTpw"}});
    let bench = home.bench(&json!({"credsStore": "toy", "auths": auths}));
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    denied(&home.bench(&json!({"credsStore": "toy"})), &toy).await;
}

#[tokio::test]
async fn a_bad_helper_is_named_and_its_words_are_bounded() {
    let toy = basic(&Image::new()).await;
    let home = Home::new();
    let bench = home.bench(&json!({"credsStore": "toy"}));
    assert_eq!(helper_error(&bench, &toy).await, "is not installed");
    home.helper("printf 'locked\\033[2J'; exit 3");
    assert_eq!(helper_error(&bench, &toy).await, "failed: locked\\u{1b}[2J");
    home.helper("echo '{\"Username\":\"u\",\"Secret\":\"hunter2'");
    assert_eq!(helper_error(&bench, &toy).await, "did not answer in JSON");
    home.helper("exec cat /dev/zero");
    assert_eq!(helper_error(&bench, &toy).await, "answered too much");

    let odd = home.bench(&json!({"credsStore": "../../bin/sh"}));
    let error = odd.pull(&toy).await.expect_err("a bad name");
    assert!(error.to_string().ends_with("has no legal name"), "{error}");
}

#[tokio::test]
async fn a_helper_that_hangs_is_killed_with_its_children() {
    let toy = basic(&Image::new()).await;
    let home = Home::new();
    let pid = home.path("pid");
    home.helper(&format!("sleep 1000 & echo $! > {}; wait", pid.display()));
    let bench = home.bench(&json!({"credsStore": "toy"}));
    assert_eq!(
        helper_error(&bench, &toy).await,
        "did not answer within 0.5 s"
    );
    let pid = std::fs::read_to_string(pid).expect("it ran");
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a number"));
    let pid = pid.expect("a process");
    // Gone already, or ends now: a descriptor of a process is readable from its end on.
    if let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        let mut ended = [PollFd::new(&fd, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        // The end of a child interrupts it.
        let polled = rustix::io::retry_on_intr(|| poll(&mut ended, Some(&limit)));
        assert_eq!(polled, Ok(1), "it lives on");
    }
}

#[tokio::test]
async fn a_token_is_fetched_anonymously_or_with_the_login() {
    let image = Image::new();
    let issue = |r: &toy::Request| {
        token(match r.header("authorization") {
            Some(BASIC) => "private",
            None => "public",
            Some(_) => panic!("{r:?}"),
        })
    };
    let toy = tokens(&image, issue, |token| token == "public").await;
    let home = Home::new();
    let anonymous = home.bench(&json!({}));
    assert_image(&anonymous.pull(&toy).await.expect("an image"), &image);
    let request = toy.requests()[1].clone();
    assert_eq!(request.method, "GET");
    assert_eq!(
        request.path,
        "/token?scope=repository%3Ateam%2Fapp%3Apull&service=toy+reg"
    );
    assert_eq!(
        toy.asked(&request.path).len(),
        1,
        "one token does for all of the image"
    );

    let toy = tokens(&image, issue, |token| token == "private").await;
    denied(&home.bench(&json!({})), &toy).await;
    let login = home.bench(&json!({"auths": {&toy.address: {"auth": "dTpw"}}}));
    assert_image(&login.pull(&toy).await.expect("an image"), &image);
}

#[tokio::test]
async fn a_server_of_tokens_that_falls_silent_or_breaks_off_is_given_up() {
    let image = Image::new();
    for how in ["silent", "stalls", "breaks off"] {
        let issue = move |_: &toy::Request| match how {
            "silent" => Answer::silence(),
            "stalls" => token("public").cut(5).stalling(),
            _ => token("public").cut(5),
        };
        let toy = tokens(&image, issue, |token| token == "public").await;
        let bench = Bench::new();
        let error = bench.pull(&toy).await.expect_err(how);
        assert!(
            matches!(error, RegistryError::Unavailable { .. }),
            "{how}: {error:?}"
        );
        assert!(error.hint().is_some(), "{how}");
        assert_eq!(bench.parts(), 0, "{how}");
    }
}

#[tokio::test]
async fn a_helper_dies_with_the_pull_that_asked_it() {
    let image = Image::new();
    let toy = tokens(&image, |_| token("t"), |token| token == "t").await;
    let home = Home::new();
    let pid = home.path("pid");
    let at = pid.display();
    home.helper(&format!(
        "echo $$ > {at}.new; mv {at}.new {at}; exec sleep 600"
    ));
    let mut config = home.config(&json!({"credsStore": "toy"}));
    config.limits.helper = Duration::from_secs(600);
    let bench = Bench::with(config);
    let cancel = bench.cancel.clone();
    let given_up = async {
        while !pid.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let (pulled, ()) = tokio::join!(bench.pull(&toy), given_up);
    let error = pulled.expect_err("given up");
    assert!(matches!(error, RegistryError::Cancelled), "{error:?}");
    let process = std::fs::read_to_string(&pid).expect("its number");
    let process = std::path::Path::new("/proc").join(process.trim());
    let gone = async {
        while process.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("it ends with the pull");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let image = Image::new();
    let issue = |r: &toy::Request| {
        assert_eq!(r.method, "POST");
        assert_eq!(r.path, "/token");
        assert_eq!(r.header("authorization"), None);
        assert_eq!(
            r.body,
            "scope=repository%3Ateam%2Fapp%3Apull&service=toy+reg\
             &grant_type=refresh_token&client_id=banger&refresh_token=fresh+one"
        );
        Answer::new(200, json!({"access_token": "t"}).to_string())
    };
    let toy = tokens(&image, issue, |token| token == "t").await;
    let home = Home::new();
    home.helper(r#"echo '{"ServerURL":"","Username":"<token>","Secret":"fresh one"}'"#);
    for config in [
        json!({"credsStore": "toy"}),
        json!({"auths": {&toy.address: {"identitytoken": "fresh one", "auth": "dTpw"}}}),
    ] {
        let bench = home.bench(&config);
        assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    }

    let toy = tokens(&image, |_| Answer::new(405, ""), |_| false).await;
    denied(&home.bench(&json!({"credsStore": "toy"})), &toy).await;

    // What the token server redirects to would get the secret with the body.
    let other = tokens(&image, |_| token("t"), |_| true).await;
    let there = format!("http://{}/token", other.address);
    let away = move |_: &toy::Request| Answer::new(307, "").with("location", there.clone());
    let toy = tokens(&image, away, |_| false).await;
    let bench = home.bench(&json!({"credsStore": "toy"}));
    let error = bench.pull(&toy).await.expect_err("no token");
    assert!(!matches!(error, RegistryError::Cancelled), "{error}");
    assert!(other.requests().is_empty(), "{:?}", other.requests());
}

#[tokio::test]
async fn a_token_that_runs_out_is_renewed() {
    let image = Image::new();
    let issued = Arc::new(AtomicUsize::new(0));
    let used = AtomicUsize::new(0);
    let latest = Arc::clone(&issued);
    let issue = move |_: &toy::Request| token(&issued.fetch_add(1, Ordering::SeqCst).to_string());
    let toy = tokens(&image, issue, move |token| {
        // The first is good for one request.
        used.fetch_add(1, Ordering::SeqCst) == 0
            || (token != "0" && latest.load(Ordering::SeqCst) > 1)
    })
    .await;
    let bench = Home::new().bench(&json!({}));
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
}

#[tokio::test]
async fn a_token_server_that_fails_is_not_a_refusal() {
    let image = Image::new();
    let toy = tokens(&image, |_| Answer::new(503, ""), |_| false).await;
    let bench = Home::new().bench(&json!({}));
    let error = bench.pull(&toy).await.expect_err("no token");
    assert!(
        matches!(error, RegistryError::Unavailable { .. }),
        "{error}"
    );
    assert_eq!(
        toy.requests()
            .iter()
            .filter(|r| r.path.starts_with("/token"))
            .count(),
        4
    );

    let toy = tokens(&image, |_| Answer::new(200, "{}"), |_| false).await;
    let error = bench.pull(&toy).await.expect_err("no token");
    assert!(error.to_string().ends_with("without a token"), "{error}");
}

#[tokio::test]
async fn a_login_does_not_go_to_a_token_server_in_the_clear() {
    let image = Image::new();
    let toy = Toy::serving(&image, |_| {
        let challenge = "Bearer realm=\"http://192.0.2.1/token\"";
        Some(Answer::new(401, "").with("WWW-Authenticate", challenge))
    })
    .await;
    let bench = Home::new().bench(&json!({"auths": {&toy.address: {"auth": "dTpw"}}}));
    let error = bench.pull(&toy).await.expect_err("in the clear");
    assert!(error.to_string().ends_with("without TLS"), "{error}");
}
