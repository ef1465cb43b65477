//! What of the root is not packed as it lies there: what a boot of ours wrote
//! into it, which the image gets back as it had it, and what is a run's only.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use banger_wire::agent::Boot;

use crate::boot::files::{self, without_ours};
use crate::boot::identity;
use crate::boot::root::Root;

/// Largest file of ours that is compared with what was written, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Seeds the random generator of one machine; many would share it.
const RANDOM_SEED: &str = "var/lib/systemd/random-seed";

/// Where the parts of the root are.
pub(super) struct Layout {
    /// The root without what is mounted below it.
    pub(super) bare: Root,
    /// The image.
    pub(super) base: Root,
    pub(super) bare_at: PathBuf,
    pub(super) base_at: PathBuf,
    /// Directories of the root, and where what they hold really is.
    pub(super) grafts: Vec<(&'static str, String)>,
}

/// Instead of what lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instead {
    /// Nothing.
    Nothing,
    /// What the image has there, if it has anything.
    Base,
    /// A file with the owner and mode of what lies there, and this content.
    Text(Vec<u8>),
    /// The directory alone.
    Empty,
    /// The directory at this place of the agent's.
    Graft(PathBuf),
}

/// By path in the archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan(BTreeMap<PathBuf, Instead>);

impl Plan {
    /// What to do with a root that was booted by this request.
    pub(super) fn of(request: &Boot, layout: &Layout) -> Self {
        let mut plan = Self::default();
        for (path, source) in &layout.grafts {
            if Path::new(source).is_dir()
                && let Some(real) = layout.real(path)
            {
                plan.0.insert(real, Instead::Graft(source.into()));
            }
        }
        if let Some(real) = layout.real("tmp") {
            plan.0.insert(real, Instead::Empty);
        }
        if let Some(real) = layout.real(RANDOM_SEED) {
            plan.0.insert(real, Instead::Base);
        }
        for (path, text) in written(request) {
            if layout
                .bare
                .read(path, MAX_FILE)
                .is_ok_and(|now| now == text.as_bytes())
                && let Some(real) = layout.real(path)
            {
                plan.0.insert(real, Instead::Base);
            }
        }
        plan.hosts(layout);
        let modules = format!("lib/modules/{}", identity::kernel_version());
        let made = ["dev", "proc", "sys", "run", "tmp", &modules];
        let grafts = layout.grafts.iter().map(|(path, _)| *path);
        let made = made
            .into_iter()
            .chain(grafts)
            .chain(request.image_cwd.as_deref());
        for path in made {
            plan.drop_made(layout, path);
        }
        plan
    }

    /// What to do at a path of the archive.
    pub(super) fn at(&self, name: &Path) -> Option<&Instead> {
        self.0.get(name)
    }

    /// Takes our lines out of the hosts file.
    fn hosts(&mut self, layout: &Layout) {
        let path = "etc/hosts";
        let text = |root: &Root| {
            let bytes = root.read(path, MAX_FILE).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (Some(now), Some(real)) = (text(&layout.bare), layout.real(path)) else {
            return;
        };
        let theirs = without_ours(&now);
        if theirs == now {
            return;
        }
        let before = without_ours(&text(&layout.base).unwrap_or_default());
        let instead = if theirs == before {
            Instead::Base
        } else {
            Instead::Text(theirs.into_bytes())
        };
        self.0.insert(real, instead);
    }

    /// Leaves out a directory that a boot makes where an image has none, if
    /// nothing came into it, and those above that were made for it.
    fn drop_made(&mut self, layout: &Layout, path: &str) {
        let Some(mut real) = layout.real(path) else {
            return;
        };
        while real.parent().is_some() {
            let text = real.to_string_lossy();
            let at = match self.at(&real) {
                Some(Instead::Graft(source)) => source.clone(),
                _ => layout.bare_at.join(&real),
            };
            let left = |entry: fs::DirEntry| {
                self.at(&real.join(entry.file_name())) != Some(&Instead::Nothing)
            };
            let empty = matches!(self.at(&real), Some(Instead::Empty))
                || fs::read_dir(at).is_ok_and(|mut found| !found.any(|one| one.is_ok_and(left)));
            if !empty || layout.base.locate(&text).is_ok() {
                return;
            }
            self.0.insert(real.clone(), Instead::Nothing);
            real.pop();
        }
    }
}

/// Files whose whole content a boot writes.
fn written(request: &Boot) -> Vec<(&'static str, String)> {
    let mut written = vec![("etc/hostname", format!("{}\n", request.hostname))];
    if !request.nameservers.is_empty() {
        let text = files::resolv_conf(&request.nameservers);
        written.push(("etc/resolv.conf", text));
    }
    if let Some(id) = &request.machine_id {
        let text = format!("{id}\n");
        // The second is a copy that some programs make.
        written.push(("var/lib/dbus/machine-id", text.clone()));
        written.push(("etc/machine-id", text));
    }
    written
}

impl Layout {
    /// Where a path of the root really is, symbolic links followed; `None`
    /// where nothing is.
    fn real(&self, path: &str) -> Option<PathBuf> {
        let place: OwnedFd = self.bare.locate(path).ok()?;
        let at = fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd())).ok()?;
        let real = at.strip_prefix(&self.bare_at).ok()?;
        (real != Path::new("")).then(|| real.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Room {
        at: PathBuf,
    }

    impl Room {
        fn new(name: &str) -> Self {
            let at =
                std::env::temp_dir().join(format!("banger-plan-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&at);
            for dir in ["bare/etc", "base/etc", "home", "data"] {
                fs::create_dir_all(at.join(dir)).unwrap();
            }
            Self {
                at: at.canonicalize().unwrap(),
            }
        }

        fn write(&self, path: &str, text: &str) {
            fs::create_dir_all(self.at.join(path).parent().unwrap()).unwrap();
            fs::write(self.at.join(path), text).unwrap();
        }

        fn dir(&self, path: &str) {
            fs::create_dir_all(self.at.join(path)).unwrap();
        }

        fn plan(&self, request: &Boot) -> Plan {
            let root = |name: &str| Root::open(self.at.join(name).to_str().unwrap()).unwrap();
            let graft = |name: &str| self.at.join(name).to_str().unwrap().to_owned();
            let layout = Layout {
                bare: root("bare"),
                base: root("base"),
                bare_at: self.at.join("bare"),
                base_at: self.at.join("base"),
                grafts: vec![("root", graft("home")), ("var/lib/docker", graft("data"))],
            };
            Plan::of(request, &layout)
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.at);
        }
    }

    fn request() -> Boot {
        serde_json::from_value(serde_json::json!({
            "hostname": "build-x", "clock_unix_ns": 0, "entropy_hex": "",
            "disks": {"root": "", "overlay": "", "work": ""},
            "nameservers": ["10.0.2.2"], "machine_id": "0123",
        }))
        .unwrap()
    }

    fn at<'p>(plan: &'p Plan, path: &str) -> Option<&'p Instead> {
        plan.at(Path::new(path))
    }

    #[test]
    fn what_the_boot_wrote_is_the_images_again_and_what_the_build_wrote_stays() {
        let room = Room::new("wrote");
        room.write("bare/etc/hostname", "build-x\n");
        room.write("bare/etc/resolv.conf", "nameserver 10.0.2.2\n");
        room.write("bare/etc/machine-id", "fedcba\n");
        room.write(
            "bare/etc/hosts",
            "127.0.0.1 localhost\n127.0.1.1\tbuild-x\t# banger\n",
        );
        room.write("base/etc/hosts", "127.0.0.1 localhost\n");
        let plan = room.plan(&request());
        assert_eq!(at(&plan, "etc/hostname"), Some(&Instead::Base));
        assert_eq!(at(&plan, "etc/resolv.conf"), Some(&Instead::Base));
        assert_eq!(at(&plan, "etc/machine-id"), None, "another id than ours");
        assert_eq!(at(&plan, "etc/hosts"), Some(&Instead::Base));
        room.write(
            "bare/etc/hosts",
            "127.0.0.1 localhost\n10.0.0.1 db\n127.0.1.1\tbuild-x\t# banger\n",
        );
        let text = b"127.0.0.1 localhost\n10.0.0.1 db\n".to_vec();
        assert_eq!(
            at(&room.plan(&request()), "etc/hosts"),
            Some(&Instead::Text(text))
        );
    }

    #[test]
    fn directories_made_for_a_boot_go_unless_the_image_had_them_or_something_came_in() {
        let room = Room::new("made");
        for dir in [
            "bare/proc",
            "bare/dev",
            "base/dev",
            "bare/tmp",
            "bare/root",
            "bare/var/lib/docker",
        ] {
            room.dir(dir);
        }
        let modules = format!("bare/lib/modules/{}", identity::kernel_version());
        room.dir(&modules);
        room.write("bare/lib/modules/mine/x.ko", "");
        let plan = room.plan(&request());
        assert_eq!(at(&plan, "proc"), Some(&Instead::Nothing));
        assert_eq!(at(&plan, "dev"), None);
        assert_eq!(at(&plan, "tmp"), Some(&Instead::Nothing));
        assert_eq!(at(&plan, "root"), Some(&Instead::Nothing));
        assert_eq!(
            at(&plan, "var"),
            Some(&Instead::Nothing),
            "only made for what is below"
        );
        assert_eq!(at(&plan, "lib/modules"), None, "somebody else's are there");
        assert_eq!(
            at(&plan, modules.strip_prefix("bare/").unwrap()),
            Some(&Instead::Nothing)
        );
        room.write("home/file", "");
        let graft = Instead::Graft(room.at.join("home"));
        assert_eq!(at(&room.plan(&request()), "root"), Some(&graft));
    }

    #[test]
    fn links_lead_to_where_things_really_are() {
        let room = Room::new("links");
        room.dir("bare/usr/lib");
        room.dir("bare/srv/home");
        symlink("/srv/home", room.at.join("bare/root")).unwrap();
        symlink("/run/resolve/stub", room.at.join("bare/etc/resolv.conf")).unwrap();
        room.dir("base/srv/home");
        let plan = room.plan(&request());
        assert_eq!(
            at(&plan, "srv/home"),
            Some(&Instead::Graft(room.at.join("home")))
        );
        assert_eq!(at(&plan, "root"), None, "the link itself is packed");
        assert_eq!(at(&plan, "etc/resolv.conf"), None, "it leads into a run");
    }
}
