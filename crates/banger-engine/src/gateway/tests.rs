//! Gateways that are scripts: started, known again, ended.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A place with a program that says what it was given and stays.
struct Room {
    root: PathBuf,
    id: String,
}

impl Room {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("banger-way-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("run")).unwrap();
        // What runs a script is its interpreter, which has to be known by name.
        let shell = root.join("banger-gateway-shell");
        fs::copy("/bin/sh", &shell).unwrap();
        for pipe in ["said", "never"] {
            let path = root.join(pipe);
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        }
        let script = format!(
            "#!{}\n(echo \"$@\"; pwd; umask; env; [ -S /proc/self/fd/3 ] && [ -S /proc/self/fd/4 ] && echo both) > {1}/said\n\
             echo in the log\necho ended > {1}/said\nread x < {1}/never\n",
            shell.display(),
            root.display()
        );
        let program = root.join(PROGRAM);
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        // Tests run beside each other, and look for each other's ids.
        let letters: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
        let id = format!("{:0>64}", format!("{:x}{letters}", std::process::id()));
        Self { root, id }
    }

    fn start(&self) -> Gateway {
        let (_, line) = line().unwrap();
        let resolvers = ["127.0.0.53".parse().unwrap(), "::1".parse().unwrap()];
        start(&Plan {
            program: &self.root.join(PROGRAM),
            id: &self.id,
            line: line.as_fd(),
            run_dir: &self.root.join("run"),
            resolvers: &resolvers,
            environment: &["A=b".to_owned()],
        })
        .unwrap()
    }

    /// What it says next; waits for it.
    async fn said(&self) -> String {
        let path = self.root.join("said");
        tokio::task::spawn_blocking(move || fs::read_to_string(path).unwrap())
            .await
            .unwrap()
    }

    fn adopt(&self, facts: Option<&Facts>) -> Option<Gateway> {
        adopt(&self.id, &self.root.join("run"), facts).unwrap()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What a test that failed has left.
        for pid in find(&self.id).unwrap_or_default() {
            if let Ok(Some(pidfd)) = process::open(pid) {
                let _ = process::signal_through(&pidfd, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[tokio::test]
async fn a_gateway_is_given_its_line_and_its_socket_and_little_else() {
    let room = Room::new("given");
    let gateway = room.start();
    // Both of what it says, which a slow reader gets in one piece.
    let mut said = room.said().await;
    if !said.ends_with("ended\n") {
        said.push_str(&room.said().await);
    }
    let said = said.strip_suffix("ended\n").expect("it ends");
    let mut lines = said.lines();
    assert_eq!(
        lines.next().unwrap(),
        format!(
            "--vm {} --line 3 --control 4 --resolver 127.0.0.53 --resolver ::1",
            room.id
        )
    );
    assert_eq!(lines.next(), Some("/"));
    assert_eq!(lines.next(), Some("0077"));
    let rest: Vec<&str> = lines.filter(|line| !line.starts_with("PWD=")).collect();
    assert!(rest.contains(&"A=b") && rest.contains(&"both"), "{rest:?}");
    assert!(
        rest.iter().all(
            |line| ["PATH=/usr/bin:/bin", "A=b", "both", "OLDPWD=/"].contains(line)
                || line.starts_with("_=")
                || line.starts_with("SHLVL=")
        ),
        "{rest:?}"
    );
    let log = room.root.join("run").join(LOG);
    assert_eq!(fs::read_to_string(&log).unwrap(), "in the log\n");
    for file in [log, room.root.join("run").join(CONTROL)] {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", file.display());
    }
    let ended = gateway.ended();
    sweep(&room.id, None).await.unwrap();
    assert_eq!(ended.await, "it was killed by SIGKILL");
}

#[tokio::test]
async fn a_gateway_is_known_by_its_facts_and_otherwise_by_its_name() {
    let room = Room::new("known");
    assert!(room.adopt(None).is_none());
    let gateway = room.start();
    room.said().await;
    let facts = gateway.facts().clone();
    let kept: Facts = serde_json::from_str(&serde_json::to_string(&facts).unwrap()).unwrap();
    assert_eq!(kept, facts);

    let again = room.adopt(Some(&facts)).unwrap();
    assert_eq!(again.facts(), &facts);
    let stale = Facts {
        start_ticks: facts.start_ticks + 1,
        ..facts.clone()
    };
    let found = room.adopt(Some(&stale)).unwrap();
    assert_eq!(
        (found.facts().pid, found.facts().start_ticks),
        (facts.pid, facts.start_ticks)
    );
    let other = "f".repeat(64);
    let nothing = adopt(&other, &room.root, Some(&facts)).unwrap();
    assert!(nothing.is_none(), "the gateway of another VM");

    sweep(&other, Some(&facts)).await.unwrap();
    assert!(
        room.adopt(Some(&facts)).is_some(),
        "another's sweep spares it"
    );
    sweep(&room.id, Some(&facts)).await.unwrap();
    assert_eq!(gateway.ended().await, "it was killed by SIGKILL");
    assert_eq!(again.ended().await, "it ended");
    assert!(room.adopt(Some(&facts)).is_none());
    sweep(&room.id, Some(&facts))
        .await
        .expect("gone counts as done");
}

#[tokio::test]
async fn a_second_gateway_on_the_same_line_gets_what_the_first_did_not_take() {
    let room = Room::new("second");
    let (engine, kept) = line().unwrap();
    for byte in [b"1", b"2"] {
        rustix::io::write(&engine, byte).unwrap();
        let plan = Plan {
            program: &room.root.join(PROGRAM),
            id: &room.id,
            line: kept.as_fd(),
            run_dir: &room.root.join("run"),
            resolvers: &[],
            environment: &[],
        };
        let gateway = start(&plan).unwrap();
        room.said().await;
        sweep(&room.id, Some(gateway.facts())).await.unwrap();
        gateway.ended().await;
    }
    let mut frames = Vec::new();
    let mut frame = [0; 4];
    while let Ok(length) = rustix::io::read(&kept, &mut frame) {
        frames.push(frame[..length].to_vec());
    }
    assert_eq!(frames, [b"1", b"2"], "the line outlives who serves it");
}

#[tokio::test]
async fn a_program_that_cannot_run_is_told_as_such() {
    let room = Room::new("none");
    let (_, line) = line().unwrap();
    let error = start(&Plan {
        program: Path::new("/nonexistent/banger-gateway"),
        id: &room.id,
        line: line.as_fd(),
        run_dir: &room.root.join("run"),
        resolvers: &[],
        environment: &[],
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the gateway's process cannot execute the program"
    );
}
