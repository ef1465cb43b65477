//! Bundles: made, taken, and refused.
#![allow(clippy::unwrap_used)]

mod maker;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_images::bundle::{self, BundleError, Manifest};
use banger_images::{Cancel, Quiet, ext4};
use maker::Tar;
use sha2::{Digest as _, Sha256};
use tar_core::EntryType;

const MANIFEST: &[u8] = br#"{"name":"box","distro":"debian","arch":"amd64","kernel_ref":"k"}"#;
const VERSION: &str = "6.9.1-x";

fn packed(tar: File) -> File {
    let mut out = tempfile::tempfile().unwrap();
    zstd::stream::copy_encode(tar, &mut out, 1).unwrap();
    out
}

fn packed_bytes(plain: &[u8]) -> File {
    let mut out = tempfile::tempfile().unwrap();
    zstd::stream::copy_encode(plain, &mut out, 1).unwrap();
    out
}

fn sha(file: &File) -> bundle::Sha {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Sha256::digest(&bytes).into()
}

/// A small file system, as bytes.
fn rootfs() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let tree = banger_images::tree::Tree::new();
    let options = ext4::ImageOptions {
        size_bytes: 16 << 20,
        label: None,
        uuid: Some([7; 16]),
        epoch: 0,
        read_only: true,
        sync: false,
    };
    use ext4::RootfsWriter as _;
    ext4::InProcess
        .write(&tree, &[], &path, &options, &Cancel::new().unwrap(), &Quiet)
        .unwrap();
    fs::read(path).unwrap()
}

fn files_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Unpacks as an image; what failed has left nothing.
fn image(
    file: &File,
    expected: Option<&bundle::Sha>,
) -> Result<(Manifest, PathBuf, tempfile::TempDir), BundleError> {
    let dest = tempfile::tempdir().unwrap();
    let manifest =
        bundle::unpack_image(file, expected, dest.path(), &Cancel::new().unwrap(), &Quiet)
            .inspect_err(|_| assert!(files_in(dest.path()).is_empty()))?;
    let path = dest.path().join("rootfs.ext4");
    Ok((manifest, path, dest))
}

fn refused(tar: File) -> String {
    let error = image(&packed(tar), None).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

fn regular(tar: &mut Tar, path: &str, data: &[u8]) {
    tar.add(path, EntryType::Regular, data, |_| {});
}

#[test]
fn an_image_is_its_one_file_with_its_holes() {
    let rootfs = rootfs();
    for lead in ["", "./"] {
        let mut tar = Tar::new();
        if !lead.is_empty() {
            tar.add("./", EntryType::Directory, b"", |_| {});
        }
        regular(&mut tar, &format!("{lead}rootfs.ext4"), &rootfs);
        regular(&mut tar, &format!("{lead}manifest.json"), MANIFEST);
        let file = packed(tar.finish());
        let (manifest, path, _dest) = image(&file, Some(&sha(&file))).unwrap();
        assert_eq!(manifest.kernel_ref.as_deref(), Some("k"));
        assert!(fs::read(&path).unwrap() == rootfs);
        let stat = fs::metadata(&path).unwrap();
        assert!(
            stat.blocks() * 512 < stat.len() / 4,
            "{} blocks",
            stat.blocks()
        );
    }
}

#[test]
fn an_image_that_was_packed_with_holes_is_the_same() {
    let rootfs = rootfs();
    // The first block and the last 8 KiB, in the form that GNU tar writes.
    let end = rootfs.len() as u64;
    let map = [(0, 4 << 20), (end - (8 << 10), 8 << 10)];
    let kept = |from: u64, length: u64| &rootfs[from as usize..(from + length) as usize];
    let stored: Vec<u8> = map
        .iter()
        .flat_map(|(at, length)| kept(*at, *length))
        .copied()
        .collect();
    let mut holey = vec![0; rootfs.len()];
    for (at, length) in map {
        holey[at as usize..(at + length) as usize].copy_from_slice(kept(at, length));
    }
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    tar.add("rootfs.ext4", EntryType::Regular, &stored, |entry| {
        let map = map.map(|(offset, length)| tar_core::SparseEntry { offset, length });
        entry.sparse(&map, end);
    });
    let (_, path, _dest) = image(&packed(tar.finish()), None).unwrap();
    assert!(fs::read(path).unwrap() == holey);
}

#[test]
fn an_image_that_is_not_exactly_two_good_members_is_refused_by_name() {
    let rootfs = rootfs();
    let with = |more: &dyn Fn(&mut Tar)| {
        let mut tar = Tar::new();
        regular(&mut tar, "manifest.json", MANIFEST);
        regular(&mut tar, "rootfs.ext4", &rootfs);
        more(&mut tar);
        refused(tar.finish())
    };
    for path in [
        "../evil",
        "/etc/passwd",
        "a/../../b",
        "extra",
        "rootfs.ext4/x",
    ] {
        let text = with(&|tar| regular(tar, path, b"x"));
        assert!(text.contains(path) && text.contains("no place"), "{text}");
    }
    let text = with(&|tar| regular(tar, "./rootfs.ext4", &rootfs));
    assert!(
        text.contains("rootfs.ext4") && text.contains("twice"),
        "{text}"
    );
    let text = with(&|tar| regular(tar, "manifest.json", MANIFEST));
    assert!(text.contains("twice"), "{text}");
    let text = with(&|tar| {
        tar.add("dev", EntryType::Char, b"", |entry| {
            entry.device(1, 3).unwrap();
        });
    });
    assert!(text.contains("dev of the bundle"), "{text}");

    for (kind, target) in [
        (EntryType::Symlink, "/etc/passwd"),
        (EntryType::Symlink, "../../x"),
        (EntryType::Link, "/etc/passwd"),
        (EntryType::Link, "manifest.json"),
    ] {
        let mut tar = Tar::new();
        regular(&mut tar, "manifest.json", MANIFEST);
        tar.add("rootfs.ext4", kind, b"", |entry| {
            entry.link_name(target);
        });
        regular(&mut tar, "rootfs.ext4", &rootfs);
        let text = refused(tar.finish());
        assert!(text.contains("not a regular file"), "{text}");
    }

    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    assert!(refused(tar.finish()).contains("no rootfs.ext4"));
    let mut tar = Tar::new();
    regular(&mut tar, "rootfs.ext4", &rootfs);
    assert!(refused(tar.finish()).contains("no manifest.json"));
    assert!(refused(Tar::new().finish()).contains("no rootfs.ext4"));
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", &vec![b' '; 65 << 10]);
    assert!(refused(tar.finish()).contains("larger than 64 KiB"));
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", b"{");
    assert!(refused(tar.finish()).contains("cannot be read"));

    for (bytes, why) in [
        (&b"no file system"[..], "is no ext4"),
        (&rootfs[..8 << 20], "is shorter than its file system"),
        (&[][..], "is no ext4"),
    ] {
        let mut tar = Tar::new();
        regular(&mut tar, "rootfs.ext4", bytes);
        regular(&mut tar, "manifest.json", MANIFEST);
        assert!(refused(tar.finish()).contains(why));
    }
}

#[test]
fn more_than_any_bundle_has_is_refused_before_it_is_unpacked() {
    let mut tar = Tar::new();
    for _ in 0..1000 {
        tar.add("./", EntryType::Directory, b"", |_| {});
    }
    assert!(refused(tar.finish()).contains("too many entries"));

    let dest = tempfile::tempdir().unwrap();
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    for index in 0..100_001 {
        regular(&mut tar, &format!("{index}"), b"");
    }
    let error = kernel_error(&packed(tar.finish()), dest.path());
    assert!(error.contains("too many entries"), "{error}");

    // A header that promises more than any disk has; nothing comes after it.
    let mut tar = Tar::new();
    tar.add("rootfs.ext4", EntryType::Regular, b"", |entry| {
        entry.size(200 << 30).unwrap();
    });
    assert!(refused(tar.finish()).contains("too many bytes"));
    let mut tar = Tar::new();
    tar.add("vmlinux", EntryType::Regular, b"", |entry| {
        entry.size(20 << 30).unwrap();
    });
    let error = kernel_error(&packed(tar.finish()), dest.path());
    assert!(error.contains("too many bytes"), "{error}");

    // A bomb: a gibibyte of zeros for a few bytes each. Its holes cost nothing.
    let mut bomb = Vec::new();
    let mut head = Tar::new();
    head.add("rootfs.ext4", EntryType::Regular, b"", |entry| {
        entry.size(1 << 30).unwrap();
    });
    head.finish().read_to_end(&mut bomb).unwrap();
    bomb.truncate(512);
    let mut file = tempfile::tempfile().unwrap();
    let mut encoder = zstd::Encoder::new(&mut file, 1).unwrap();
    encoder.write_all(&bomb).unwrap();
    std::io::copy(&mut std::io::repeat(0).take((1 << 30) + 1024), &mut encoder).unwrap();
    encoder.finish().unwrap();
    let error = image(&file, None).unwrap_err().to_string();
    assert!(error.contains("is no ext4"), "{error}");
}

#[test]
fn a_bundle_that_is_cut_or_changed_is_told_as_damaged() {
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    regular(&mut tar, "rootfs.ext4", &rootfs());
    let file = packed(tar.finish());
    let good = sha(&file);
    let length = file.metadata().unwrap().len();
    let check = |file: &File| match image(file, Some(&good)) {
        Err(BundleError::Damaged { .. }) => {}
        other => panic!("{other:?}"),
    };
    // After the archive's end, in the middle, at the beginning; then cut.
    file.write_all_at(b"x", length).unwrap();
    check(&file);
    file.set_len(length).unwrap();
    image(&file, Some(&good)).unwrap();
    for at in [length / 2, 0] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
        check(&file);
        file.write_all_at(&byte, at).unwrap();
    }
    for cut in [length - 1, length / 2, 100, 0] {
        file.set_len(cut).unwrap();
        check(&file);
        assert!(image(&file, None).is_err(), "{cut} bytes");
    }
    let error = image(&packed_bytes(b"not a tar at all"), None).unwrap_err();
    assert!(matches!(error, BundleError::Archive(_)), "{error:?}");
    let mut plain = Tar::new();
    regular(&mut plain, "manifest.json", MANIFEST);
    let error = image(&plain.finish(), None).unwrap_err();
    assert!(matches!(error, BundleError::NotZstd), "{error:?}");
}

#[test]
fn a_cancelled_bundle_leaves_nothing() {
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    regular(&mut tar, "rootfs.ext4", &rootfs());
    let file = packed(tar.finish());
    let dest = tempfile::tempdir().unwrap();
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let error = bundle::unpack_image(&file, None, dest.path(), &cancel, &Quiet).unwrap_err();
    assert!(error.is_cancelled(), "{error:?}");
    let error = bundle::import_kernel(&file, None, dest.path(), &cancel, &Quiet).unwrap_err();
    assert!(error.is_cancelled(), "{error:?}");
    assert!(files_in(dest.path()).is_empty());
}

/// An ELF by its first bytes, which says its version.
fn vmlinux() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0".to_vec();
    elf.resize(64, 0);
    elf[18] = 0x3e;
    elf.extend_from_slice(format!("Linux version {VERSION} \0").as_bytes());
    elf
}

const MODULES: [&str; 5] = [
    "virtio_blk",
    "ext4",
    "overlay",
    "virtio_console",
    "virtio_mmio",
];

/// What every kernel's bundle here begins with.
fn kernel_tar() -> Tar {
    let mut tar = Tar::new();
    let manifest = format!(r#"{{"name":"k","distro":"mine","kernel_version":"{VERSION}"}}"#);
    regular(&mut tar, "manifest.json", manifest.as_bytes());
    regular(&mut tar, "vmlinux", &vmlinux());
    regular(&mut tar, "modules/modules.builtin", b"kernel/x.ko\n");
    for module in MODULES {
        regular(
            &mut tar,
            &format!("modules/kernel/{module}.ko"),
            b"not really",
        );
    }
    tar
}

fn kernel_error(file: &File, dest: &Path) -> String {
    let error = bundle::import_kernel(file, None, dest, &Cancel::new().unwrap(), &Quiet);
    assert!(files_in(dest).is_empty());
    error.unwrap_err().to_string()
}

#[test]
fn a_kernel_is_taken_with_what_is_inside_of_its_bundle() {
    let mut tar = kernel_tar();
    regular(&mut tar, "initrd.img", b"an initrd");
    // Passed over, kept, and kept.
    tar.add("modules/pipe", EntryType::Fifo, b"", |_| {});
    tar.add("modules/disk", EntryType::Block, b"", |entry| {
        entry.device(8, 0).unwrap();
    });
    tar.add("modules/latest", EntryType::Symlink, b"", |entry| {
        entry.link_name("../modules/kernel");
    });
    tar.add("modules/kernel/also.ko", EntryType::Link, b"", |entry| {
        entry.link_name("modules/kernel/ext4.ko");
    });
    let file = packed(tar.finish());
    let dest = tempfile::tempdir().unwrap();
    let (info, manifest) = bundle::import_kernel(
        &file,
        Some(&sha(&file)),
        dest.path(),
        &Cancel::new().unwrap(),
        &Quiet,
    )
    .unwrap();
    assert_eq!(
        (info.version.as_str(), info.arch.as_str()),
        (VERSION, "amd64")
    );
    assert_eq!(info.distro.as_deref(), Some("mine"));
    assert_eq!(manifest.name, "k");
    assert!(info.has_initrd && info.has_modules);
    assert_eq!(fs::read(dest.path().join("vmlinux")).unwrap(), vmlinux());
    assert_eq!(
        files_in(dest.path()),
        ["boot-modules", "initrd.img", "modules.ext4", "vmlinux"]
    );
}

#[test]
fn a_kernel_whose_bundle_leads_out_or_boots_nothing_is_refused() {
    let dest = tempfile::tempdir().unwrap();
    let with = |more: &dyn Fn(&mut Tar)| {
        let mut tar = kernel_tar();
        more(&mut tar);
        kernel_error(&packed(tar.finish()), dest.path())
    };
    for path in ["../evil", "/etc/cron.d/x", "modules/../../x", "a/../b"] {
        let text = with(&|tar| regular(tar, path, b"x"));
        assert!(text.contains("leads out"), "{path}: {text}");
    }
    for (kind, target) in [
        (EntryType::Symlink, "/usr/src/linux"),
        (EntryType::Symlink, "../../x"),
        (EntryType::Link, "/etc/shadow"),
        (EntryType::Link, "../x"),
    ] {
        let text = with(&|tar| {
            tar.add("modules/build", kind, b"", |entry| {
                entry.link_name(target);
            });
        });
        assert!(text.contains("leads out"), "{target}: {text}");
    }
    let text = with(&|tar| {
        tar.add("down", EntryType::Symlink, b"", |entry| {
            entry.link_name("modules");
        });
        regular(tar, "down/x", b"x");
    });
    assert!(text.contains("no directory"), "{text}");
    let text = with(&|tar| regular(tar, "vmlinux/x", b"x"));
    assert!(text.contains("no directory"), "{text}");
    let text = with(&|tar| {
        tar.add("link", EntryType::Link, b"", |entry| {
            entry.link_name("nowhere");
        });
    });
    assert!(text.contains("link to nothing"), "{text}");
    let text = with(&|tar| regular(tar, "./vmlinux", b"x"));
    assert!(text.contains("twice"), "{text}");
    let text = with(&|tar| regular(tar, "./manifest.json", b"{}"));
    assert!(text.contains("twice"), "{text}");
    let text = with(&|tar| regular(tar, &format!("modules/{}", "n".repeat(256)), b"x"));
    assert!(text.contains("too long"), "{text}");

    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    let text = kernel_error(&packed(tar.finish()), dest.path());
    assert!(text.contains("no vmlinux"), "{text}");
    let mut tar = Tar::new();
    regular(&mut tar, "vmlinux", &vmlinux());
    let text = kernel_error(&packed(tar.finish()), dest.path());
    assert!(text.contains("no manifest.json"), "{text}");
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    regular(&mut tar, "vmlinux", b"no kernel");
    let _ = kernel_error(&packed(tar.finish()), dest.path());
    // Without one of the drivers that every VM needs.
    let mut tar = Tar::new();
    regular(&mut tar, "manifest.json", MANIFEST);
    regular(&mut tar, "vmlinux", &vmlinux());
    regular(&mut tar, "modules/modules.builtin", b"kernel/x.ko\n");
    regular(&mut tar, "modules/kernel/ext4.ko", b"not really");
    let text = kernel_error(&packed(tar.finish()), dest.path());
    assert!(text.contains("has no driver for"), "{text}");
}

#[test]
fn a_root_that_is_bundled_is_the_same_bytes_each_time_and_comes_out_again() {
    let place = tempfile::tempdir().unwrap();
    let mut tar = Tar::new();
    tar.add("etc/", EntryType::Directory, b"", |_| {});
    regular(&mut tar, "etc/hostname", b"box\n");
    tar.add("bin/sh", EntryType::Symlink, b"", |entry| {
        entry.link_name("/bin/busybox");
    });
    let plain = tar.finish();
    let manifest = Manifest::parse(MANIFEST).unwrap();
    let cancel = Cancel::new().unwrap();
    let make = |archive: File, name: &str, size| {
        let out = place.path().join(name);
        bundle::write_image(archive, &manifest, size, &out, &cancel, &Quiet).map(|made| (made, out))
    };
    let (made, out) = make(plain.try_clone().unwrap(), "a", Some(300 << 20)).unwrap();
    // Both read it by the one cursor.
    (&plain).rewind().unwrap();
    let zst = packed(plain);
    (&zst).rewind().unwrap();
    let (again, other) = make(zst, "b", Some(300 << 20)).unwrap();
    assert_eq!(made, again, "however its archive was packed");
    assert_eq!(fs::read(&out).unwrap(), fs::read(other).unwrap());
    let file = File::open(&out).unwrap();
    assert_eq!(made.size_bytes, file.metadata().unwrap().len());
    assert!(
        made.size_bytes < 1 << 20,
        "{} bytes of next to nothing",
        made.size_bytes
    );
    let (read, path, _dest) = image(&file, Some(&made.sha256)).unwrap();
    assert_eq!(read, manifest);
    assert_eq!(fs::metadata(&path).unwrap().len(), 300 << 20);
    let fsck = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        fsck.status.success(),
        "{}",
        String::from_utf8_lossy(&fsck.stdout)
    );

    // A name that is taken stays with who has it, and what is no archive leaves nothing.
    let error = make(File::open("/dev/null").unwrap(), "a", None).unwrap_err();
    assert!(matches!(error, BundleError::Io { .. }), "{error:?}");
    let mut nonsense = tempfile::tempfile().unwrap();
    nonsense.write_all(&[b'x'; 2000]).unwrap();
    nonsense.rewind().unwrap();
    make(nonsense, "c", None).unwrap_err();
    let error = make(File::open("/dev/null").unwrap(), "c", None).unwrap_err();
    assert!(matches!(error, BundleError::Empty), "{error:?}");
    assert_eq!(files_in(place.path()), ["a", "b"]);
}

#[test]
fn a_kernel_that_is_bundled_comes_out_as_it_would_have_been_imported() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    let modules = from.join("lib/modules").join(VERSION);
    fs::create_dir_all(modules.join("kernel")).unwrap();
    fs::create_dir_all(from.join("boot")).unwrap();
    for module in MODULES {
        fs::write(modules.join(format!("kernel/{module}.ko")), b"not really").unwrap();
    }
    fs::write(modules.join("modules.builtin"), "kernel/x.ko\n").unwrap();
    fs::write(modules.join("modules.dep"), "made anew\n").unwrap();
    std::os::unix::fs::symlink("/usr/src/linux", modules.join("build")).unwrap();
    fs::write(
        from.join("boot").join(format!("vmlinux-{VERSION}")),
        vmlinux(),
    )
    .unwrap();
    fs::write(
        from.join("boot").join(format!("config-{VERSION}")),
        "CONFIG_X=y\n",
    )
    .unwrap();
    fs::write(
        from.join("boot").join(format!("initramfs-{VERSION}")),
        "initrd",
    )
    .unwrap();
    let cancel = Cancel::new().unwrap();
    let manifest = Manifest {
        name: "mine".to_owned(),
        ..Manifest::default()
    };
    let make = |name: &str| {
        let out = place.path().join(name);
        bundle::write_kernel(&from, false, &manifest, &out, &cancel, &Quiet).unwrap()
    };
    let made = make("a");
    assert_eq!(made, make("b"));
    assert_eq!(made.manifest.kernel_version.as_deref(), Some(VERSION));
    assert_eq!(made.manifest.arch.as_deref(), Some("amd64"));
    assert_eq!(files_in(place.path()), ["a", "b", "from"]);

    let taken = tempfile::tempdir().unwrap();
    let file = File::open(place.path().join("a")).unwrap();
    let (info, _) =
        bundle::import_kernel(&file, Some(&made.sha256), taken.path(), &cancel, &Quiet).unwrap();
    let direct = tempfile::tempdir().unwrap();
    let expected =
        banger_images::kernel::import_dir(&from, direct.path(), &cancel, &Quiet).unwrap();
    assert_eq!(info.version, expected.version);
    assert_eq!(info.sha256, expected.sha256);
    assert_eq!(info.drivers, expected.drivers);
    assert_eq!(files_in(taken.path()), files_in(direct.path()));

    // One that nobody could boot is not bundled.
    fs::remove_file(modules.join("kernel/ext4.ko")).unwrap();
    let out = place.path().join("c");
    bundle::write_kernel(&from, false, &manifest, &out, &cancel, &Quiet).unwrap_err();
    assert_eq!(files_in(place.path()), ["a", "b", "from"]);
}
