//! The ext4 file of an image, mounted, held against the directory that `umoci unpack` makes of
//! the same image, entry by entry: kind, permissions, owner, time, device, link target, what is
//! one file under several names, attributes and access lists, content.
//!
//! Not compared: times of directories that umoci leaves to the clock (no layer names them, or a
//! whiteout came after their name), and permissions of symlinks, which nobody reads. Both sides lie on ext4, so that both can say
//! the same. The mounts are made in a mount namespace of the test's own.
#![allow(clippy::unwrap_used)]

mod image;

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use banger_images::ext4::{ROOTFS, RootFiles, SEED};
use banger_images::oci::{self, OciError, Order};
use banger_images::tree::Source;
use banger_images::{Cancel, Quiet};
use image::awkward::{ACCESS, stack};
use image::scan::{Mounted, differing, make_disk, scan, xattrs};
use image::{Entry, Pack, awkward, large, packed};

const INSIDE: &str = "BANGER_TEST_OWN_MOUNTS";
/// Room for what umoci unpacks of one image.
const ROOM: u64 = 1 << 30;

/// Runs this program's test of this name once more where it may mount; false where that
/// cannot be.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !image::has_umoci() {
        return false;
    }
    let unshare = |words: &[&OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command.args(words).env(INSIDE, "1").output().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    make_disk(&disk, 8 << 20);
    let mount = ["mount", "-o", "loop"].map(OsStr::new);
    let at = dir.path().as_os_str();
    let tried = unshare(&[&mount[..], &[disk.as_os_str(), at]].concat());
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr).into_owned();
        println!("skipped: {}", why.trim());
        return false;
    }
    let me = std::env::current_exe().unwrap();
    let words = ["--exact", test, "--nocapture"].map(OsStr::new);
    let done = unshare(&[&[me.as_os_str()][..], &words].concat());
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    false
}

/// Makes layers into the files of an image.
fn make(layers: &[Vec<u8>], dir: &Path, pack: Pack) -> Result<PathBuf, OciError> {
    fs::create_dir_all(dir).unwrap();
    let source = |layer: &Vec<u8>| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&packed(layer, pack)).unwrap();
        Source::Packed(file)
    };
    let sources = layers.iter().map(source).collect::<Vec<_>>();
    let files = RootFiles::create(dir).unwrap();
    let order = Order {
        size_bytes: None,
        uuid: [7; 16],
        diff_ids: None,
    };
    let cancel = Cancel::new().unwrap();
    oci::write(sources, &files, &order, &cancel, &Quiet).map(|_| dir.join(ROOTFS))
}

/// The same twice, checked: the same bytes, and sound.
fn write(layers: &[Vec<u8>], dir: &Path, pack: Pack) -> PathBuf {
    let [once, again] = ["once", "again"]
        .map(|name| make(layers, &dir.join(name), pack).unwrap_or_else(|error| panic!("{error}")));
    let same = Command::new("cmp").args([&once, &again]).status().unwrap();
    assert!(same.success(), "the same layers gave other bytes");
    fs::remove_dir_all(dir.join("again")).unwrap();
    let check = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(&once)
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    once
}

/// Fails unless both make the same of these layers. What the image has to be beyond that,
/// `look` says.
fn assert_same(what: &str, layers: &[Vec<u8>], look: impl Fn(&Path)) {
    assert_alike(what, layers, layers, &[], look);
}

/// The same where umoci is given other layers, or gets some paths wrong: `look` says what is
/// right there.
fn assert_alike(
    what: &str,
    layers: &[Vec<u8>],
    for_umoci: &[Vec<u8>],
    apart: &[&str],
    look: impl Fn(&Path),
) {
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let begun = i64::try_from(begun.as_secs()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    make_disk(&disk, ROOM);
    let room = Mounted::new(&disk, dir.path().join("u"), "loop");
    let bundle = room.0.join("b");
    image::umoci(for_umoci, &bundle).unwrap_or_else(|said| panic!("{what}: umoci refuses: {said}"));
    let mut theirs = scan(&bundle.join("rootfs"));

    let written = write(layers, dir.path(), Pack::Gzip);
    let image = Mounted::new(&written, dir.path().join("i"), "loop,ro");
    let mut ours = scan(&image.0);
    let differing = differing(&mut ours, &mut theirs, begun, apart);
    assert!(
        differing.is_empty(),
        "{what}: {} differ\n{}",
        differing.len(),
        differing.join("\n")
    );
    look(&image.0);
}

#[test]
fn stacks_of_layers_become_what_umoci_makes_of_them() {
    if !inside("stacks_of_layers_become_what_umoci_makes_of_them") {
        return;
    }
    for (what, layers) in awkward::stacks() {
        let layers = awkward::with_root(layers);
        let numbered = layers.iter().zip(0..);
        let bytes: Vec<_> = numbered
            .map(|(entries, number)| image::layer(entries, number))
            .collect();
        assert_same(what, &bytes, |_| {});
    }
}

#[test]
fn permissions_owners_and_attributes_are_those_of_umoci() {
    if !inside("permissions_owners_and_attributes_are_those_of_umoci") {
        return;
    }
    let layers = awkward::permissions();
    // Umoci's reader takes a value of no bytes for no attribute; GNU tar keeps it, as we do.
    let apart = ["empty"];
    assert_alike("permissions", &layers, &layers, &apart, |root| {
        let found = xattrs(&root.join("empty"));
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("user.empty".to_owned(), vec![])]
        );
    });
}

#[test]
fn access_lists_are_those_of_umoci() {
    if !inside("access_lists_are_those_of_umoci") {
        return;
    }
    let (full, layers) = (awkward::full_list(), awkward::access_lists());
    assert_same("access lists", &layers, |root| {
        assert_eq!(xattrs(&root.join("file"))[ACCESS], full);
        assert!(xattrs(&root.join("default/below")).is_empty());
    });
}

#[test]
fn devices_of_every_number_are_those_of_umoci() {
    if !inside("devices_of_every_number_are_those_of_umoci") {
        return;
    }
    let layers = awkward::devices();
    assert_same("devices", &layers, |_| {});
}

#[test]
fn long_and_odd_names_are_those_of_umoci() {
    if !inside("long_and_odd_names_are_those_of_umoci") {
        return;
    }
    assert_same("names", &large::names(), |_| {});
}

#[test]
fn times_of_five_centuries_are_those_of_umoci() {
    if !inside("times_of_five_centuries_are_those_of_umoci") {
        return;
    }
    let (times, layers) = (large::TIMES, large::times());
    // Umoci counts nanoseconds in 64 bits, which end in 2262.
    let far = ["", "d-", "l-", "p-"].map(|kind| {
        times[10..]
            .iter()
            .map(move |time| format!("{kind}{}", time.0))
    });
    let far: Vec<String> = far.into_iter().flatten().collect();
    let apart: Vec<&str> = far.iter().map(String::as_str).collect();
    assert_alike("times", &layers, &layers, &apart, |root| {
        for name in &apart {
            let stat = fs::symlink_metadata(root.join(name)).unwrap();
            let time = times.iter().find(|time| name.ends_with(time.0)).unwrap();
            assert_eq!(
                (stat.mtime(), stat.mtime_nsec()),
                (time.1, i64::from(time.2)),
                "{name}"
            );
        }
    });

    // What no file system of this kind can say becomes the nearest that it can.
    let beyond = [("early", -99_999_999_999, 7), ("late", 99_999_999_999, 7)];
    let beyond = beyond.map(|(name, seconds, nanos)| Entry::file(name, "x").at(seconds, nanos));
    let layers = stack(vec![beyond.to_vec()]);
    assert_alike("beyond", &layers, &layers, &["early", "late"], |root| {
        for (name, seconds) in [("early", -0x8000_0000), ("late", 0x3_7fff_ffff)] {
            let stat = fs::metadata(root.join(name)).unwrap();
            assert_eq!((stat.mtime(), stat.mtime_nsec()), (seconds, 0), "{name}");
        }
    });
}

#[test]
fn sparse_files_of_every_form_are_those_of_umoci_and_keep_their_holes() {
    if !inside("sparse_files_of_every_form_are_those_of_umoci_and_keep_their_holes") {
        return;
    }
    for (options, seconds) in [
        // Negative in the header itself.
        (&["--format=gnu"][..], "-86400"),
        (&["--format=pax", "--sparse-version=0.0"], "1.5"),
        (&["--format=pax", "--sparse-version=0.1"], "4102444800"),
        (&["--format=pax", "--sparse-version=1.0"], "-1.25"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let layer = [large::holey(
            dir.path(),
            &[&["-S"], options].concat(),
            seconds,
        )];
        assert!(layer[0].len() < 1 << 20, "no holes were found: {options:?}");
        // Umoci does not know the oldest form.
        let other = options[0]
            .contains("gnu")
            .then(|| [large::holey(dir.path(), options, seconds)]);
        let other = other.as_ref().unwrap_or(&layer);
        assert_alike(&format!("{options:?}"), &layer, other, &[], |root| {
            for (name, most) in [("dir/holes", 760 << 10), ("all-hole", 0), ("tail", 4096)] {
                let kept = fs::metadata(root.join(name)).unwrap().blocks() * 512;
                assert!(kept <= most, "{options:?}: {name} takes {kept} bytes");
            }
        });
    }
}

#[test]
fn a_hundred_and_twenty_seven_layers_are_those_of_umoci() {
    if !inside("a_hundred_and_twenty_seven_layers_are_those_of_umoci") {
        return;
    }
    assert_same("127 layers", &large::many(), |_| {});
}

/// On purpose not umoci's: the place where e2fsck puts what it finds is made for every ext4,
/// and what an image has there, which is what e2fsck once found on some builder's disk, is left
/// out.
#[test]
fn a_lost_and_found_of_the_image_is_left_out_at_the_top_only() {
    if !inside("a_lost_and_found_of_the_image_is_left_out_at_the_top_only") {
        return;
    }
    assert_same("lost+found", &large::found(), |root| {
        let stat = fs::metadata(root.join("lost+found")).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o700, 0));
        assert_eq!(fs::read_dir(root.join("lost+found")).unwrap().count(), 0);
        assert_eq!(fs::read(root.join("kept")).unwrap(), b"found");
    });
    let file = stack(vec![vec![Entry::file("lost+found", "x")]]);
    assert_same("a file of that name", &file, |root| {
        assert!(root.join("lost+found").is_dir());
    });
}

#[test]
fn a_path_of_4096_bytes_is_taken_and_one_more_refused() {
    let dir = tempfile::tempdir().unwrap();
    let deep = |length: usize| {
        let mut path = vec!["d".repeat(250); 16].join("/");
        path.push('/');
        path.push_str(&"e".repeat(length - path.len()));
        stack(vec![vec![Entry::file(path, "x")]])
    };
    for (length, pack) in [(4095, Pack::Zstd), (4096, Pack::No)] {
        write(&deep(length), &dir.path().join(length.to_string()), pack);
    }
    let error = make(&deep(4097), &dir.path().join("longer"), Pack::No).unwrap_err();
    assert!(error.is_of_the_image(), "{error:?}");
    let said = error.to_string();
    assert!(said.starts_with(r#"entry "dddd"#), "{said}");
    assert!(
        said.ends_with(r#"eee" of the archive: its path is too long"#),
        "{said}"
    );
    assert!(said.len() < 500, "{said}");
}

#[test]
fn attributes_of_other_systems_are_left_out_as_umoci_does() {
    if !inside("attributes_of_other_systems_are_left_out_as_umoci_does") {
        return;
    }
    let layers = stack(vec![vec![
        Entry::file("apple", "x")
            .attribute("com.apple.quarantine", "0081;0;Safari;")
            .attribute("user.kept", "k"),
        Entry::dir("odd").attribute("odd.name", vec![b'x'; 9000]),
        Entry::link("link", b'2', "apple").attribute("bare", "x"),
        Entry::file("strange", "x").attribute("system.strange", "x"),
    ]]);
    assert_same("attributes of other systems", &layers, |root| {
        let found: Vec<_> = xattrs(&root.join("apple")).into_keys().collect();
        assert_eq!(found, ["user.kept"]);
    });
}

#[test]
fn however_a_tree_is_packed_the_image_is_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut entries = vec![Entry::dir("root").mode(0o700)];
    for number in 0..300u32 {
        let data = vec![number as u8; number as usize * 331];
        entries.push(Entry::file(format!("d{}/{number}", number % 7), &data).at(1_700_000_000, 5));
        entries.push(Entry::file(format!("root/{number}"), &data));
    }
    let layers = stack(vec![entries, vec![Entry::file("d1/.wh.8", "")]]);
    let images = [Pack::No, Pack::Gzip, Pack::Zstd].map(|pack| {
        let dir = dir.path().join(format!("{pack:?}"));
        make(&layers, &dir, pack).unwrap();
        dir
    });
    for name in [ROOTFS, SEED] {
        for image in &images[1..] {
            let [first, other] = [&images[0], image].map(|dir| dir.join(name));
            let same = Command::new("cmp").args([&first, &other]).status().unwrap();
            assert!(
                same.success(),
                "{} is not {}",
                other.display(),
                first.display()
            );
        }
    }
}

/// An entry hidden from one reader and shown to another: whoever looked at the image before saw
/// another one than we write.
#[test]
fn extended_headers_hide_and_show_what_umoci_sees() {
    if !inside("extended_headers_hide_and_show_what_umoci_sees") {
        return;
    }
    let extended = |kind: u8, records: Vec<u8>| Entry {
        data: records,
        ..Entry::new("pax", kind)
    };
    let of = |name: &str, value: &[u8]| extended(b'x', image::record(name, value)).bytes();
    let file = |path: &str, data: &[u8]| Entry::file(path, data).bytes();
    let (evil, after) = (file("evil", b"x"), file("after", b"a"));
    // What each has to be, by whether "evil" is a file of it and what "f" holds.
    let cases = [
        (
            "a value with what looks like a record",
            [
                of("SCHILY.xattr.user.note", b"a\n13 path=evil\n"),
                file("f", b"f"),
            ]
            .concat(),
            (false, b"f".to_vec()),
        ),
        (
            "more content than the header says",
            [
                of("size", b"1024"),
                file("f", b""),
                evil.clone(),
                after.clone(),
            ]
            .concat(),
            (false, evil.clone()),
        ),
        (
            "less content than the header says",
            [of("size", b"0"), file("f", &evil), after.clone()].concat(),
            (true, Vec::new()),
        ),
        (
            "two names, the last one counts",
            [
                extended(
                    b'x',
                    [image::record("path", b"evil"), image::record("path", b"f")].concat(),
                )
                .bytes(),
                file("plain", b"f"),
            ]
            .concat(),
            (false, b"f".to_vec()),
        ),
    ];
    for (what, bytes, (has_evil, content)) in cases {
        let layer = image::end([Entry::dir("./").bytes(), bytes].concat());
        assert_same(what, &[layer], |root| {
            assert_eq!(root.join("evil").exists(), has_evil, "{what}");
            assert_eq!(fs::read(root.join("f")).unwrap(), content, "{what}");
            assert!(!root.join("plain").exists(), "{what}");
        });
    }
}

/// A header for all that follows names none of it.
#[test]
fn a_header_for_all_entries_changes_none() {
    let all = Entry {
        data: [
            image::record("path", b"evil"),
            image::record("size", b"0"),
            image::record("comment", b"from git archive"),
        ]
        .concat(),
        ..Entry::new("pax_global_header", b'g')
    };
    let bytes = [all.bytes(), Entry::file("f", "f").bytes()].concat();
    let dir = tempfile::tempdir().unwrap();
    let root = write(&[image::end(bytes)], dir.path(), Pack::Gzip);
    let ask = |what: &str| {
        let mut debugfs = Command::new("/usr/sbin/debugfs");
        let done = debugfs.arg("-R").arg(what).arg(&root).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    assert_eq!(ask("cat /f"), "f");
    assert!(!ask("ls -p /").contains("evil"));
}

/// umoci leaves it to the clock, so it cannot say.
#[test]
fn a_directory_keeps_the_time_it_was_given_though_names_in_it_go() {
    if !inside("a_directory_keeps_the_time_it_was_given_though_names_in_it_go") {
        return;
    }
    let first = [
        Entry::dir("d").at(1_500_000_000, 0),
        Entry::file("d/x", "x"),
    ];
    let gone = [Entry::file("d/.wh.x", "")];
    let opaque = [Entry::file("d/y", "y"), Entry::file("d/.wh..wh..opq", "")];
    let layers = [&first[..], &gone, &opaque].map(|entries| {
        let bytes = entries.iter().flat_map(Entry::bytes);
        image::end(Entry::dir("./").bytes().into_iter().chain(bytes).collect())
    });
    assert_same("names that go", &layers, |root| {
        let time = fs::metadata(root.join("d")).unwrap().mtime();
        assert_eq!(time, 1_500_000_000);
    });
}
