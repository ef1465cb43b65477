//! The mounts that make the root: image below, overlay disk above, and what is
//! bound into it. Their directories in the agent's own file system are named
//! here and nowhere else.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use banger_wire::agent::serial;
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::disks::{self, Devices, Drive};
use super::root::Root;
use super::{BootError, Warnings, copy, identity};

/// The assembled root.
pub(crate) const ROOT: &str = "/mnt/root";
/// The image, read-only.
pub(crate) const BASE: &str = "/mnt/base";
/// The overlay disk.
pub(crate) const OVERLAY: &str = "/mnt/overlay";
/// The work disk.
pub(crate) const WORK: &str = "/mnt/work";
/// The kernel's modules.
pub(crate) const MODULES: &str = "/mnt/modules";

/// Directory on the work disk that is the guest's `/root`.
const HOME: &str = "/mnt/work/root";
/// Where that directory is filled before it takes its name.
const HOME_BEFORE: &str = "/mnt/work/.root.filling";
/// Data of container engines, whose own overlays cannot stack on ours: they
/// get directories of the overlay disk itself.
const DATA: [&str; 3] = ["var/lib/docker", "var/lib/containerd", "var/lib/containers"];

fn mount_at(
    what: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), BootError> {
    let failed = |cause| BootError::Mount {
        what: what.to_owned(),
        target: target.to_owned(),
        cause,
    };
    let data = std::ffi::CString::new(data).map_err(|error| failed(error.into()))?;
    mount(what, target, kind, flags, Some(data.as_c_str())).map_err(|error| failed(error.into()))
}

fn directory(path: &str) -> Result<(), BootError> {
    fs::create_dir_all(path).map_err(|error| BootError::Prepare(path.to_owned(), error))
}

fn drive(name: &str) -> String {
    format!("/dev/{name}")
}

/// Mounts the image aside before it is asked for; gives its device. What does
/// not mount is tried again, and told, when it is asked for.
pub(super) fn mount_early(drives: &[Drive]) -> Option<String> {
    let image = drives.iter().find(|drive| drive.serial == serial::ROOT)?;
    directory(BASE).ok()?;
    mount_read_only(&image.name, BASE, None).ok()?;
    Some(image.name.clone())
}

/// Mounts a drive that is never written, not even by a journal; `mounted` is
/// the device that is there already.
fn mount_read_only(device: &str, target: &str, mounted: Option<&str>) -> Result<(), BootError> {
    if mounted == Some(device) {
        return Ok(());
    }
    if mounted.is_some() {
        unmount(target, UnmountFlags::empty())
            .map_err(|error| BootError::Prepare(target.to_owned(), error.into()))?;
    }
    mount_at(&drive(device), target, "ext4", MountFlags::RDONLY, "noload")
}

/// Mounts the image aside.
pub(super) fn mount_base(devices: &Devices, mounted: Option<&str>) -> Result<(), BootError> {
    for path in [ROOT, BASE, OVERLAY, WORK, MODULES] {
        directory(path)?;
    }
    mount_read_only(&devices.root, BASE, mounted)
}

/// Mounts the overlay disk aside and grows it if it became larger.
pub(super) fn mount_overlay(devices: &Devices, warnings: &mut Warnings) -> Result<(), BootError> {
    let device = drive(&devices.overlay);
    mount_at(&device, OVERLAY, "ext4", MountFlags::empty(), "")?;
    let grown = disks::grow(&devices.overlay, OVERLAY);
    warnings.note("growing the overlay disk", grown);
    Ok(())
}

/// Mounts the work disk aside, grows it if it became larger, and fills it
/// from the image when asked and still empty.
pub(super) fn mount_work(
    devices: &Devices,
    fill: bool,
    warnings: &mut Warnings,
) -> Result<(), BootError> {
    mount_at(&drive(&devices.work), WORK, "ext4", MountFlags::empty(), "")?;
    warnings.note("growing the work disk", disks::grow(&devices.work, WORK));
    let prepare = |error| BootError::Prepare(HOME.to_owned(), error);
    if !fill && gather_home(Path::new(WORK)).map_err(prepare)? {
        return Ok(());
    }
    if Path::new(HOME).exists() {
        return Ok(());
    }
    // Filled under another name: cut short, it is filled again.
    let _ = fs::remove_dir_all(HOME_BEFORE);
    fs::create_dir(HOME_BEFORE).map_err(prepare)?;
    let image = Root::open(BASE).and_then(|image| image.open_in("root", OFlags::DIRECTORY, 0));
    match image {
        Ok(home) => {
            let home = Root::mount_path(&home);
            let (home, before) = (Path::new(&home), Path::new(HOME_BEFORE));
            if fill {
                warnings.note("filling /root", copy::tree(home, before));
            }
            imitate(home, before).map_err(prepare)?;
        }
        // No home in the image: one of its own.
        Err(_) => {
            fs::set_permissions(HOME_BEFORE, fs::Permissions::from_mode(0o700)).map_err(prepare)?
        }
    }
    fs::rename(HOME_BEFORE, HOME).map_err(prepare)
}

/// A disk may have begun as a seed whose top is the home itself, and not a
/// directory that holds it: then everything goes into one. Whether it did; cut
/// short, it is gone on with.
fn gather_home(disk: &Path) -> io::Result<bool> {
    let (home, before) = (disk.join("root"), disk.join(".root.filling"));
    let mut names = Vec::new();
    for entry in fs::read_dir(disk)? {
        let name = entry?.file_name();
        if name != "lost+found" && name != ".root.filling" {
            names.push(name);
        }
    }
    let begun = before.exists();
    if !begun && names.iter().all(|name| name == "root") {
        return Ok(false);
    }
    if !begun {
        fs::create_dir(&before)?;
    }
    imitate(disk, &before)?;
    // What is called as the home itself goes first: left alone it would pass
    // for the home.
    names.sort_by_key(|name| name != "root");
    for name in names {
        fs::rename(disk.join(&name), before.join(&name))?;
    }
    fs::rename(before, home)?;
    Ok(true)
}

/// Mounts the kernel's modules aside; whether there are any.
pub(super) fn mount_modules(devices: &Devices, warnings: &mut Warnings) -> bool {
    let Some(device) = &devices.modules else {
        return false;
    };
    let mounted = mount_read_only(device, MODULES, None);
    warnings.note("kernel modules", mounted).is_some()
}

/// Mounts the overlay and the file systems that every guest has.
pub(super) fn mount_root() -> Result<Root, BootError> {
    let upper = format!("{OVERLAY}/upper");
    let work = format!("{OVERLAY}/work");
    if !Path::new(&upper).exists() {
        // The root directory itself is the upper one: it starts as the image's.
        directory(&upper)?;
        imitate(Path::new(BASE), Path::new(&upper))
            .map_err(|error| BootError::Prepare(upper.clone(), error))?;
    }
    directory(&work)?;
    let options = format!(
        "lowerdir={BASE},upperdir={upper},workdir={work},\
         redirect_dir=on,metacopy=on,index=on,xino=on"
    );
    mount_at("overlay", ROOT, "overlay", MountFlags::empty(), &options)?;
    let root = Root::open(ROOT).map_err(|error| BootError::Prepare(ROOT.to_owned(), error))?;
    for (name, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("run", 0o755),
        ("tmp", 0o777),
    ] {
        // The namespace's mounts go by path: a link there could lead them out.
        real_directory(name, mode).map_err(|error| BootError::NotDirectory(name, error))?;
    }
    mount_at(
        "tmpfs",
        &format!("{ROOT}/run"),
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=0755",
    )?;
    Ok(root)
}

fn real_directory(name: &str, mode: u32) -> io::Result<()> {
    let path = Path::new(ROOT).join(name);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(&path)?;
            // Set after: the mode of creation is subject to the umask.
            let sticky = if name == "tmp" { 0o1000 } else { 0 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | sticky))
        }
        Err(error) => Err(error),
    }
}

/// Owner and mode of one directory for another.
fn imitate(model: &Path, copy: &Path) -> io::Result<()> {
    let model = fs::metadata(model)?;
    std::os::unix::fs::chown(copy, Some(model.uid()), Some(model.gid()))?;
    fs::set_permissions(copy, fs::Permissions::from_mode(model.mode() & 0o7777))
}

/// Binds the work disk's home over the root's `/root`.
pub(super) fn bind_work(root: &Root) -> Result<(), BootError> {
    let home = root
        .make_dirs("root", 0o700)
        .map_err(|error| BootError::NotDirectory("root", error))?;
    bind_over(HOME, &home, "root")
}

/// Puts the kernel's modules where `modprobe` looks.
pub(super) fn bind_modules(root: &Root, warnings: &mut Warnings) {
    let path = format!("lib/modules/{}", identity::kernel_version());
    let bind = || -> Result<(), BootError> {
        let place = root
            .make_dirs(&path, 0o755)
            .map_err(|error| BootError::Prepare(format!("/{path}"), error))?;
        bind_over(MODULES, &place, &path)
    };
    warnings.note("kernel modules", bind());
}

/// Binds directories of the overlay disk over those that cannot be on the
/// overlay.
pub(super) fn bind_data(root: &Root, warnings: &mut Warnings) {
    for path in DATA {
        let source = data_of(path);
        let bind = || -> Result<(), BootError> {
            let prepare = |error| BootError::Prepare(format!("/{path}"), error);
            let place = root.make_dirs(path, 0o755).map_err(prepare)?;
            if !Path::new(&source).exists() {
                let before = format!("{source}.filling");
                let _ = fs::remove_dir_all(&before);
                directory(&before)?;
                let image = Root::mount_path(&place);
                copy::tree(Path::new(&image), Path::new(&before)).map_err(prepare)?;
                imitate(Path::new(&image), Path::new(&before)).map_err(prepare)?;
                fs::rename(&before, &source).map_err(prepare)?;
            }
            bind_over(&source, &place, path)
        };
        warnings.note("container data", bind());
    }
}

/// Directories of the root that are other ones bound over it: their paths in
/// the root, and what is bound there.
pub(crate) fn grafts() -> Vec<(&'static str, String)> {
    let data = DATA.iter().map(|path| (*path, data_of(path)));
    std::iter::once(("root", HOME.to_owned()))
        .chain(data)
        .collect()
}

fn data_of(path: &str) -> String {
    format!("{OVERLAY}/data/{}", path.replace('/', "-"))
}

fn bind_over(source: &str, place: &std::os::fd::OwnedFd, name: &str) -> Result<(), BootError> {
    mount_bind(source, Root::mount_path(place).as_str()).map_err(|error| BootError::Mount {
        what: source.to_owned(),
        target: format!("/{name}"),
        cause: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_seed_that_is_the_home_itself_is_gathered_into_one() {
        let disk = tempfile::tempdir().unwrap();
        let disk = disk.path();
        for dir in ["lost+found", "root", "src"] {
            fs::create_dir(disk.join(dir)).unwrap();
        }
        fs::write(disk.join(".profile"), "x").unwrap();
        fs::set_permissions(disk, fs::Permissions::from_mode(0o710)).unwrap();
        assert!(gather_home(disk).unwrap());
        assert_eq!(names(disk), ["lost+found", "root"]);
        assert_eq!(names(&disk.join("root")), [".profile", "root", "src"]);
        let mode = fs::metadata(disk.join("root")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o710);
        assert!(!gather_home(disk).unwrap(), "once");
    }

    #[test]
    fn a_gathering_cut_short_is_gone_on_with() {
        let disk = tempfile::tempdir().unwrap();
        let disk = disk.path();
        fs::create_dir_all(disk.join(".root.filling/root")).unwrap();
        fs::write(disk.join(".root.filling/first"), "x").unwrap();
        fs::write(disk.join("second"), "x").unwrap();
        assert!(gather_home(disk).unwrap());
        assert_eq!(names(disk), ["root"]);
        assert_eq!(names(&disk.join("root")), ["first", "root", "second"]);
    }

    #[test]
    fn a_disk_with_a_home_or_with_nothing_is_left_alone() {
        let disk = tempfile::tempdir().unwrap();
        let disk = disk.path();
        assert!(!gather_home(disk).unwrap());
        fs::create_dir_all(disk.join("root/deep")).unwrap();
        fs::create_dir(disk.join("lost+found")).unwrap();
        assert!(!gather_home(disk).unwrap());
        assert_eq!(names(disk), ["lost+found", "root"]);
    }
}
