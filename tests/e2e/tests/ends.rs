//! Every root on every kernel, ended in every way: the disks are clean, what
//! was written is there, and it starts again.

use std::time::{Duration, Instant};

use e2e::{House, Kernel, Root, disk, wait};

/// An emulated systemd on a busy machine takes its time.
const BOOT: Duration = Duration::from_secs(300);

macro_rules! table {
    ($($name:ident $root:ident $kernel:ident;)*) => { $(
        #[test]
        fn $name() {
            every_end(Root::$root, Kernel::$kernel);
        }
    )* };
}

table! {
    a_bare_root_on_the_old_kernel_survives_every_end Bare Old;
    a_bare_root_on_the_new_kernel_survives_every_end Bare New;
    busybox_on_the_old_kernel_survives_every_end Busybox Old;
    busybox_on_the_new_kernel_survives_every_end Busybox New;
    openrc_on_the_old_kernel_survives_a_stop_and_a_reboot Openrc Old;
    openrc_on_the_new_kernel_survives_every_end Openrc New;
    systemd_252_on_the_old_kernel_survives_every_end Bookworm Old;
    systemd_252_on_the_new_kernel_survives_every_end Bookworm New;
    systemd_257_on_the_old_kernel_survives_a_stop_and_a_reboot Trixie Old;
    systemd_257_on_the_new_kernel_survives_every_end Trixie New;
}

/// One VM through all ends; each begins where the one before has left it. The slowest roots meet
/// all of them on one kernel only: how a guest ends is its init's doing more than its kernel's.
fn every_end(root: Root, kernel: Kernel) {
    let all = kernel == Kernel::New || !matches!(root, Root::Openrc | Root::Trixie);
    let house = House::with(root, kernel);
    if !house.go_offline() {
        println!("this user may not make a network namespace: booted online");
    }
    let base = e2e::fixture::root(root);
    let base_before = stamp(&base);
    let memory = if root.has_systemd() { "512" } else { "256" };
    let mut row = Row {
        house: &house,
        root,
        kernel,
        written: Vec::new(),
        clock: Instant::now(),
    };
    let _ = house
        .call(["create", "--name", "box", "--memory", memory])
        .run()
        .ok();
    row.is_up("create");

    row.write("before-stop");
    let _ = house.banger("stop box --timeout 60s").ok();
    assert_eq!(house.state_of("box"), "stopped");
    row.disks_are_clean("stop");

    if all {
        row.starts();
        row.write("before-kill");
        let _ = house.sh("box", "sync").ok();
        let _ = house.banger("kill box").ok();
        assert_eq!(house.state_of("box"), "stopped");
        for file in house.disks("box") {
            disk::assert_recoverable(&file, house.dir());
        }
        row.note("kill");

        row.starts();
        row.write("before-poweroff");
        row.type_inside("poweroff");
        wait::until_true("a power-off inside is a clean end", BOOT, || {
            house.state_of("box") == "stopped"
        });
        row.disks_are_clean("poweroff");
    }

    row.starts();
    let running = Instant::now();
    row.write("before-reboot");
    let boot_id = house.boot_id("box");
    // A reboot within ten seconds counts as a crash; a later one boots again.
    let uptime = Duration::from_secs(11);
    wait::pause(uptime.saturating_sub(running.elapsed()));
    row.type_inside("reboot");
    wait::until_true("a reboot inside boots again", BOOT, || {
        let record = house.vm("box");
        let id = record["runtime"]["boot_id"]
            .as_str()
            .unwrap_or("")
            .to_owned();
        assert_ne!(record["state"], "error", "{record}");
        record["state"] == "running" && !id.is_empty() && id != boot_id
    });
    row.is_up("reboot");
    assert_ne!(house.boot_id("box"), boot_id);
    row.all_written_is_there();
    let _ = house.banger("stop box --timeout 60s").ok();
    row.disks_are_clean("stop after reboot");
    assert_eq!(stamp(&base), base_before, "the image is never written");
    disk::assert_clean(&base);
}

fn stamp(path: &std::path::Path) -> (u64, std::time::SystemTime) {
    let meta = std::fs::metadata(path).expect("the image is there");
    (
        meta.len(),
        meta.modified().expect("a file system with times"),
    )
}

struct Row<'a> {
    house: &'a House,
    root: Root,
    kernel: Kernel,
    written: Vec<String>,
    clock: Instant,
}

impl Row<'_> {
    fn note(&mut self, what: &str) {
        println!(
            "{} {}: {what} after {:.1} s",
            self.root.name(),
            self.kernel.name(),
            self.clock.elapsed().as_secs_f32()
        );
        self.clock = Instant::now();
    }

    fn starts(&mut self) {
        self.clock = Instant::now();
        let _ = self.house.call(["start", "box"]).limit(BOOT).run().ok();
        self.is_up("start");
        self.all_written_is_there();
    }

    /// Running, healthy, and what its init says of itself.
    fn is_up(&mut self, after: &str) {
        let house = self.house;
        let _ = house
            .call(["wait", "box", "--for", "healthy", "--timeout", "290s"])
            .limit(BOOT)
            .run()
            .ok();
        assert_eq!(house.state_of("box"), "running");
        assert!(
            house
                .banger("exec box -- uname -r")
                .ok()
                .line()
                .starts_with(self.kernel.version())
        );
        let init = house.banger("exec box -- cat /proc/1/comm").ok().line();
        match self.root {
            Root::Bare => {}
            Root::Busybox => {
                assert_eq!(init, "init");
                wait::until_true("inittab is worked through", Duration::from_secs(20), || {
                    house.banger("exec box -- test -e /run/init-was-here").code == 0
                });
            }
            Root::Openrc => {
                assert_eq!(init, "init");
                // One command that waits inside: asking again and again from
                // here would take the emulated processor from what is awaited.
                let reached =
                    "until [ \"$(rc-status -r)\" = default ]; do sleep 2; done; rc-status -r";
                let argv = [
                    "exec",
                    "box",
                    "--timeout",
                    "290s",
                    "--",
                    "sh",
                    "-c",
                    reached,
                ];
                assert_eq!(house.call(argv).limit(BOOT).run().ok().line(), "default");
            }
            Root::Bookworm | Root::Trixie => {
                assert_eq!(init, "systemd");
                let state = house.banger("exec box -- systemctl is-system-running --wait");
                let failed = house
                    .banger("exec box -- systemctl --failed --no-legend")
                    .out();
                assert_eq!(state.line(), "running", "{failed}");
            }
        }
        let found = self.clock.elapsed();
        println!(
            "{} {}: up after {after}: {:.1} s",
            self.root.name(),
            self.kernel.name(),
            found.as_secs_f32()
        );
    }

    /// A file on each disk.
    fn write(&mut self, name: &str) {
        let script =
            format!("echo {name} > /root/{name}; mkdir -p /srv; echo {name} > /srv/{name}");
        let _ = self.house.sh("box", &script).ok();
        self.written.push(name.to_owned());
    }

    fn all_written_is_there(&self) {
        for name in &self.written {
            let found = self
                .house
                .sh("box", &format!("cat /root/{name} /srv/{name}"))
                .ok()
                .out();
            assert_eq!(found, format!("{name}\n{name}\n"), "written {name}");
        }
    }

    fn disks_are_clean(&mut self, end: &str) {
        for file in self.house.disks("box") {
            disk::assert_clean(&file);
        }
        self.note(end);
    }

    /// What a person types inside. The connection may break before its end.
    fn type_inside(&mut self, verb: &str) {
        self.note("up");
        // With no init but banger's there is nobody to ask politely.
        let command: &[&str] = if self.root == Root::Bare {
            &[verb, "-f"]
        } else {
            &[verb]
        };
        let done = self
            .house
            .call(["exec", "box", "--"].iter().chain(command))
            .run();
        // Its end may be seen or not; that it could not begin may not.
        assert!(done.code != 126 && done.code != 127, "{done}");
    }
}
