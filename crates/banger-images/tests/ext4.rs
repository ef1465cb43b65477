//! Images written here, judged by `e2fsck` and read back by another implementation's tools.
#![allow(clippy::unwrap_used)]

mod maker;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use banger_images::ext4::{self, ImageOptions, InProcess, RootfsWriter as _};
use banger_images::tar::Limits;
use banger_images::tree::Source;
use banger_images::{Cancel, Quiet, tree};
use maker::Tar;
use tar_core::{EntryType, SparseEntry};

fn fsck(image: &Path) {
    let output = Command::new("/usr/sbin/e2fsck")
        .args(["-fn"])
        .arg(image)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        image.display(),
        String::from_utf8_lossy(&output.stdout)
    );
}

fn debugfs(image: &Path, command: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", command])
        .arg(image)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn options(size_bytes: u64) -> ImageOptions {
    ImageOptions {
        size_bytes,
        label: Some("test".to_owned()),
        uuid: Some([7; 16]),
        epoch: 1_700_000_000,
        read_only: false,
        sync: false,
    }
}

fn write(tar: std::fs::File, image: &Path, size: Option<u64>) {
    let cancel = Cancel::new().unwrap();
    let tree = tree::from_tar(&tar, 0, &Limits::default(), &cancel, &Quiet).unwrap();
    let size = size.unwrap_or_else(|| ext4::roomy_size(&tree));
    InProcess
        .write(
            &tree,
            &[Source::Plain(tar)],
            image,
            &options(size),
            &cancel,
            &Quiet,
        )
        .unwrap();
}

#[test]
fn empty_disks_of_every_size_are_clean_and_small() {
    let dir = tempfile::tempdir().unwrap();
    for mib in [256, 257, 1000, 8192, 65_536, 131_072] {
        let path = dir.path().join("disk");
        let began = Instant::now();
        ext4::empty(&path, mib << 20, "overlay", None, false).unwrap();
        let took = began.elapsed();
        use std::os::unix::fs::MetadataExt as _;
        let stat = std::fs::metadata(&path).unwrap();
        eprintln!("{mib} MiB: {took:?}, {} KiB allocated", stat.blocks() / 2);
        assert_eq!(stat.len(), mib << 20);
        assert!(
            stat.blocks() * 512 < 16 << 20,
            "{mib} MiB allocates {} KiB",
            stat.blocks() / 2
        );
        fsck(&path);
        let stats = debugfs(&path, "stats -h");
        assert!(stats.contains("Reserved block count:     0"), "{stats}");
    }
}

#[test]
fn a_last_group_too_short_for_anything_is_left_out_of_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut sizes = vec![3 * (128 << 20) + 4096, 27 * (128 << 20) + 4096];
    for spans in [1u64, 2, 3, 31] {
        let more = [4096, 1 << 20, 3 << 20, 6 << 20, 8 << 20, 9 << 20];
        sizes.extend(more.map(|more| spans * (2 << 30) + more));
    }
    for bytes in sizes {
        ext4::empty(&path, bytes, "overlay", None, false)
            .unwrap_or_else(|e| panic!("{bytes}: {e}"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
        fsck(&path);
        let left_out = bytes - held(&path);
        assert!(left_out < 8 << 20, "{bytes}: {left_out} bytes are not used");
    }
}

/// Bytes of the file system.
fn held(image: &Path) -> u64 {
    let stats = debugfs(image, "stats -h");
    let line = stats.lines().find(|line| line.starts_with("Block count:"));
    let blocks = line.unwrap().split_whitespace().last().unwrap();
    blocks.parse::<u64>().unwrap() * 4096
}

#[test]
fn roots_of_sizes_with_a_short_last_group_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    for count in [3, 100_000] {
        let mut tar = Tar::new();
        for file in 0..count {
            let path = format!("{}/{file}", file / 1000);
            tar.add(&path, EntryType::Regular, b"x", |_| {});
        }
        let tar = tar.finish();
        for spans in [1, 3] {
            for more in [4096, 1 << 20, 3 << 20, 6 << 20] {
                let size = spans * (2 << 30) + more;
                write(tar.try_clone().unwrap(), &image, Some(size));
                assert_eq!(std::fs::metadata(&image).unwrap().len(), size);
                fsck(&image);
            }
        }
        // Group 3 has a copy of the superblock.
        let (groups, more) = (128 << 20, 4096);
        let short = if count == 3 {
            3 * groups + more
        } else {
            9 * groups + more
        };
        write(tar.try_clone().unwrap(), &image, Some(short));
        fsck(&image);
    }
}

#[test]
fn a_size_that_is_too_small_is_told_with_one_that_does() {
    let cancel = Cancel::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let map = (0..2000).map(|n| SparseEntry {
        offset: n * 10_000 + 4090,
        length: 12,
    });
    let map: Vec<SparseEntry> = map.collect();
    type Fill = Box<dyn Fn(&mut Tar)>;
    let trees: [(&str, Fill); 6] = [
        ("nothing", Box::new(|_| {})),
        (
            "one large",
            Box::new(|tar| tar.add("f", EntryType::Regular, &vec![1; 300 << 20], |_| {})),
        ),
        (
            "small files",
            Box::new(|tar| {
                for n in 0..60_000 {
                    tar.add(
                        &format!("{}/{n}", n % 100),
                        EntryType::Regular,
                        b"x",
                        |_| {},
                    );
                }
            }),
        ),
        (
            "long names",
            Box::new(|tar| {
                for n in 0..20_000 {
                    tar.add(&format!("d/{n:0>250}"), EntryType::Regular, b"", |_| {});
                }
            }),
        ),
        (
            "long links and attributes",
            Box::new(|tar| {
                for n in 0..20_000 {
                    tar.add(&format!("l{n}"), EntryType::Symlink, b"", |e| {
                        e.link_name("t".repeat(60 + n % 1000));
                    });
                    tar.add(&format!("x{n}"), EntryType::Regular, b"", |e| {
                        e.add_pax("SCHILY.xattr.user.a", vec![b'a'; 200]);
                    });
                }
            }),
        ),
        (
            "pieces of files",
            Box::new(move |tar| {
                for n in 0..20 {
                    tar.add(&format!("{n}"), EntryType::Regular, &[7; 24_000], |e| {
                        e.sparse(&map, 1 << 30);
                    });
                }
            }),
        ),
    ];
    for (what, fill) in trees {
        let mut tar = Tar::new();
        fill(&mut tar);
        let tar = tar.finish();
        let tree = tree::from_tar(&tar, 0, &Limits::default(), &cancel, &Quiet).unwrap();
        let sources = [Source::Plain(tar)];
        let least = ext4::least_size(&tree, false);
        let mut size = least;
        let mut told = 0;
        // What is told does, however little was asked for; and not much less would.
        while size > 4096 {
            let options = options(size);
            let made = InProcess.write(&tree, &sources, &image, &options, &cancel, &Quiet);
            match made {
                Ok(()) => fsck(&image),
                Err(ext4::WriteError::TooSmall {
                    bytes,
                    least: needed,
                }) => {
                    assert_eq!((bytes, needed), (size, least), "{what}");
                    told += 1;
                }
                Err(other) => panic!("{what} in {size}: {other}"),
            }
            assert!(size < least || told == 0, "{what}: {least} do not do");
            if told == 0 && size + (40 << 20) < least / 4 * 3 {
                panic!("{what}: {least} are far more than {size}, which do");
            }
            size = size / 7 * 6 / 4096 * 4096;
        }
        assert!(told > 0, "{what}");
    }
}

#[test]
fn content_of_most_of_the_largest_disk_gets_no_more_than_the_largest_disk() {
    let sparse = |gib: u64| {
        let mut tree = tree::Tree::new();
        let kind = tree::Kind::File(tree::Data::Host {
            path: "/none".into(),
            size: gib << 30,
        });
        tree.make("f", tree::Meta::root(0o644, 0), kind).unwrap();
        tree
    };
    assert_eq!(ext4::roomy_size(&sparse(100)), ext4::MAX_DISK_BYTES);
    let too_much = sparse(128);
    let dir = tempfile::tempdir().unwrap();
    let made = InProcess.write(
        &too_much,
        &[],
        &dir.path().join("image"),
        &options(ext4::roomy_size(&too_much)),
        &Cancel::new().unwrap(),
        &Quiet,
    );
    let error = made.unwrap_err().to_string();
    assert!(
        error.starts_with("the files do not fit into 128G"),
        "{error}"
    );
}

#[test]
fn a_disk_of_an_impossible_size_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    for bytes in [0, (256 << 20) - 1, (128 << 30) + 1, u64::MAX] {
        assert!(matches!(
            ext4::empty(&path, bytes, "x", None, false),
            Err(ext4::WriteError::Size { .. })
        ));
        assert!(!path.exists());
    }
}

#[test]
fn a_disk_file_grows_and_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    ext4::empty(&path, 256 << 20, "work", None, true).unwrap();
    ext4::grow_file(&path, 1 << 30).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
    assert!(ext4::grow_file(&path, 512 << 20).is_err());
    fsck(&path);
    let grown = Command::new("/usr/sbin/resize2fs")
        .arg(&path)
        .output()
        .unwrap();
    assert!(grown.status.success());
    fsck(&path);
}

#[test]
fn a_torture_tar_comes_through_whole() {
    let mut tar = Tar::new();
    tar.add("./", EntryType::Directory, b"", |e| {
        e.mode(0o755).unwrap();
    });
    tar.add("lost+found/", EntryType::Directory, b"", |_| {});
    tar.add("lost+found/mine", EntryType::Regular, b"x", |_| {});
    tar.add("empty", EntryType::Regular, b"", |_| {});
    tar.add("setuid", EntryType::Regular, b"#!", |e| {
        e.mode(0o4755).unwrap();
    });
    tar.add("none", EntryType::Regular, b"x", |e| {
        e.mode(0).unwrap();
    });
    tar.add("owner", EntryType::Regular, b"x", |e| {
        e.uid(4_294_967_294).unwrap().gid(70_000).unwrap();
    });
    tar.add("before", EntryType::Regular, b"x", |e| {
        e.add_pax("mtime", "-100.25");
    });
    tar.add("long-ago", EntryType::Regular, b"x", |e| {
        e.add_pax("mtime", "-99999999999");
    });
    tar.add("far-off", EntryType::Regular, b"x", |e| {
        e.add_pax("mtime", "99999999999");
    });
    tar.add("nanos", EntryType::Regular, b"x", |e| {
        e.add_pax("mtime", "1700000000.123456789");
    });
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0x0a, b'=', 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0,
    ];
    tar.add("capable", EntryType::Regular, b"x", |e| {
        e.add_pax("SCHILY.xattr.security.capability", capability);
    });
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    tar.add("acl", EntryType::Regular, b"x", |e| {
        e.add_pax("SCHILY.xattr.system.posix_acl_access", acl);
    });
    tar.add("forty", EntryType::Regular, b"x", |e| {
        for i in 0..40 {
            e.add_pax(&format!("SCHILY.xattr.user.a{i}"), vec![i; 40]);
        }
    });
    tar.add("big-xattr", EntryType::Regular, b"x", |e| {
        e.add_pax("SCHILY.xattr.user.big", vec![9; 3000]);
    });
    tar.add("fast", EntryType::Symlink, b"", |e| {
        e.link_name("setuid").mode(0o644).unwrap();
    });
    tar.add("slow", EntryType::Symlink, b"", |e| {
        e.link_name("x/".repeat(2000));
    });
    tar.add("fifo", EntryType::Fifo, b"", |_| {});
    tar.add("null", EntryType::Char, b"", |e| {
        e.device(1, 3).unwrap();
    });
    tar.add("disk", EntryType::Block, b"", |e| {
        e.device(4095, 1_048_575).unwrap();
    });
    for i in 0..70 {
        tar.add(&format!("links/{i}"), EntryType::Link, b"", |e| {
            e.link_name("setuid");
        });
    }
    tar.add("links/symlink", EntryType::Link, b"", |e| {
        e.link_name("fast");
    });
    tar.add("links/device", EntryType::Link, b"", |e| {
        e.link_name("null");
    });
    tar.add(&"n".repeat(255), EntryType::Regular, b"x", |_| {});
    tar.add("new\nline", EntryType::Regular, b"x", |_| {});
    tar.add("emoji-😀", EntryType::Regular, b"x", |_| {});
    tar.add("nf-\u{e9}", EntryType::Regular, b"c", |_| {});
    tar.add("nf-e\u{301}", EntryType::Regular, b"d", |_| {});
    tar.add(
        &format!("{}deep", "d/".repeat(60)),
        EntryType::Regular,
        b"deep",
        |_| {},
    );
    for i in 0..3000 {
        tar.add(&format!("many/{i}"), EntryType::Regular, &[], |_| {});
    }
    for i in 0..500 {
        tar.add(&format!("dirs/{i}/"), EntryType::Directory, b"", |_| {});
    }
    let odd: Vec<u8> = (0..100_001u32).map(|i| (i % 251) as u8).collect();
    tar.add("odd-size", EntryType::Regular, &odd, |_| {});
    // One GiB, three pieces of it there, none of them on a block's edge.
    let map = [
        SparseEntry {
            offset: 5,
            length: 10,
        },
        SparseEntry {
            offset: 8190,
            length: 20,
        },
        SparseEntry {
            offset: (1 << 30) - 7,
            length: 7,
        },
    ];
    let pieces = b"0123456789abcdefghijklmnopqrstABCDEFG";
    tar.add("sparse", EntryType::Regular, pieces, |e| {
        e.sparse(&map, 1 << 30);
    });
    tar.add("hole", EntryType::Regular, b"", |e| {
        e.sparse(&[], 1 << 20);
    });
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    write(tar.finish(), &image, None);
    fsck(&image);

    let stat = |path: &str| debugfs(&image, &format!("stat \"{path}\""));
    assert!(stat("/setuid").contains("Mode:  04755") && stat("/setuid").contains("Links: 71"));
    assert!(stat("/none").contains("Mode:  0000"));
    // debugfs shows owners as signed numbers.
    assert!(
        stat("/owner").contains("User:    -2") && stat("/owner").contains("Group: 70000"),
        "{}",
        stat("/owner")
    );
    assert!(
        stat("/before").contains("mtime: 0xffffff9b"),
        "{}",
        stat("/before")
    );
    assert!(
        stat("/nanos").contains("mtime: 0x6553f100:1d6f3454"),
        "{}",
        stat("/nanos")
    );
    assert!(stat("/fast").contains("Mode:  0777"));
    assert!(stat("/null").contains("character special") && stat("/null").contains("Links: 2"));
    assert!(stat("/disk").contains("4095:1048575"), "{}", stat("/disk"));
    assert!(stat("/fifo").contains("FIFO"));
    assert!(stat("/hole").contains("Size: 1048576") && stat("/hole").contains("Blockcount: 0"));
    assert!(
        stat("/sparse").contains("Size: 1073741824") && stat("/sparse").contains("Blockcount: 32"),
        "{}",
        stat("/sparse")
    );
    let raw = debugfs(&image, "ea_get -x /capable security.capability");
    assert!(raw.contains("01 00 00 02 00 20 0a 3d"), "{raw}");
    assert!(debugfs(&image, "ea_list /forty").contains("user.a39"));
    assert!(!debugfs(&image, "ls /lost+found").contains("mine"));
    assert_eq!(
        debugfs(&image, &format!("cat /{}deep", "d/".repeat(60))),
        "deep"
    );
    let out = dir.path().join("odd");
    debugfs(&image, &format!("dump /odd-size {}", out.display()));
    assert!(std::fs::read(&out).unwrap() == odd);
    debugfs(&image, &format!("dump /sparse {}", out.display()));
    let mut got = vec![0; 20];
    let file = std::fs::File::open(&out).unwrap();
    use std::os::unix::fs::FileExt as _;
    file.read_exact_at(&mut got, 0).unwrap();
    assert_eq!(&got, b"\0\0\0\0\x000123456789\0\0\0\0\0");
    file.read_exact_at(&mut got, 8190).unwrap();
    assert_eq!(&got, b"abcdefghijklmnopqrst");
    file.read_exact_at(&mut got[..7], (1 << 30) - 7).unwrap();
    assert_eq!(&got[..7], b"ABCDEFG");
}

#[test]
fn what_cannot_be_stored_is_refused_by_name() {
    let too_large = |e: &mut tar_core::builder::EntryBuilder| {
        e.add_pax("SCHILY.xattr.user.big", vec![9; 5000]);
    };
    let mut tar = Tar::new();
    tar.add("dir/fat", EntryType::Regular, b"x", too_large);
    let cancel = Cancel::new().unwrap();
    let error = tree::from_tar(&tar.finish(), 0, &Limits::default(), &cancel, &Quiet).unwrap_err();
    assert!(error.to_string().contains("dir/fat"), "{error}");

    let mut tar = Tar::new();
    tar.add("x", EntryType::Regular, &[1; 3000], |_| {});
    let cut = tar.finish();
    cut.set_len(2000).unwrap();
    let error = tree::from_tar(&cut, 0, &Limits::default(), &cancel, &Quiet).unwrap_err();
    assert!(error.to_string().contains("ends early"), "{error}");

    let mut tar = Tar::new();
    for i in 0..10 {
        tar.add(&format!("{i}"), EntryType::Regular, b"", |_| {});
    }
    let few = Limits {
        entries: 9,
        ..Limits::default()
    };
    assert!(tree::from_tar(&tar.finish(), 0, &few, &cancel, &Quiet).is_err());
}

#[test]
fn a_tree_that_does_not_fit_fails_and_leaves_no_image() {
    let mut tar = Tar::new();
    tar.add("big", EntryType::Regular, &vec![1; 40 << 20], |_| {});
    let tar = tar.finish();
    let cancel = Cancel::new().unwrap();
    let tree = tree::from_tar(&tar, 0, &Limits::default(), &cancel, &Quiet).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let error = InProcess
        .write(
            &tree,
            &[Source::Plain(tar)],
            &image,
            &options(32 << 20),
            &cancel,
            &Quiet,
        )
        .unwrap_err();
    assert!(
        matches!(error, ext4::WriteError::TooSmall { .. }),
        "{error:?}"
    );
    assert!(!image.exists());
}

#[test]
fn an_image_of_nothing_but_empty_files_is_sound_or_refused() {
    // More than sixteen block groups, whose inode tables lie together.
    let mut tar = Tar::new();
    for file in 0..400_000 {
        let path = format!("{}/{file}", file / 1000);
        tar.add(&path, EntryType::Regular, b"", |_| {});
    }
    let tar = tar.finish();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    write(tar.try_clone().unwrap(), &image, None);
    fsck(&image);
    let groups = std::fs::metadata(&image).unwrap().len() >> 27;
    assert!(groups > 16, "{groups}");

    let cancel = Cancel::new().unwrap();
    let tree = tree::from_tar(&tar, 0, &Limits::default(), &cancel, &Quiet).unwrap();
    let (sources, options) = ([Source::Plain(tar)], options(1 << 30));
    let refused = InProcess.write(&tree, &sources, &image, &options, &cancel, &Quiet);
    let error = refused.unwrap_err().to_string();
    assert!(
        error.contains("the files do not fit into 1G: they need "),
        "{error}"
    );
    assert!(!image.exists());
}

#[test]
fn the_same_tree_gives_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let images = ["a", "b"].map(|name| {
        let mut tar = Tar::new();
        for i in 0..50 {
            tar.add(
                &format!("d{}/f{i}", i % 7),
                EntryType::Regular,
                &[i; 5000],
                |_| {},
            );
        }
        let path = dir.path().join(name);
        write(tar.finish(), &path, Some(64 << 20));
        std::fs::read(path).unwrap()
    });
    assert!(images[0] == images[1]);
}

/// A generator that needs no crate and repeats itself from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn random_trees_of_random_sizes_are_clean() {
    let dir = tempfile::tempdir().unwrap();
    let seeds: Vec<u64> = match std::env::var("BANGER_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=25).collect(),
    };
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut tar = Tar::new();
        let mut files = vec!["f0".to_owned()];
        tar.add("f0", EntryType::Regular, b"first", |_| {});
        for i in 1..random.below(400) + 2 {
            let depth = random.below(5);
            let mut path = String::new();
            for _ in 0..depth {
                path.push_str(&format!("d{}/", random.below(4)));
            }
            path.push_str(&"n".repeat(usize::try_from(random.below(40)).unwrap()));
            path.push_str(&i.to_string());
            let size = usize::try_from(random.below(20_000)).unwrap();
            match random.below(12) {
                0 => tar.add(&path, EntryType::Directory, b"", |_| {}),
                1 => tar.add(&path, EntryType::Symlink, b"", |e| {
                    e.link_name("y".repeat(1 + size % 4000));
                }),
                2 => tar.add(&path, EntryType::Fifo, b"", |_| {}),
                3 => {
                    let target =
                        files[usize::try_from(random.below(files.len() as u64)).unwrap()].clone();
                    tar.add(&path, EntryType::Link, b"", |e| {
                        e.link_name(target);
                    });
                }
                4 => {
                    let offset = random.below(1 << 24);
                    let map = [SparseEntry {
                        offset,
                        length: size as u64,
                    }];
                    let whole = offset + size as u64 + random.below(9000);
                    tar.add(&path, EntryType::Regular, &vec![3; size], |e| {
                        e.sparse(&map, whole);
                    });
                }
                5 => tar.add(&path, EntryType::Regular, b"x", |e| {
                    e.add_pax("SCHILY.xattr.user.v", vec![1; size % 3800]);
                }),
                _ => {
                    tar.add(&path, EntryType::Regular, &vec![5; size], |_| {});
                    files.push(path);
                }
            }
        }
        let image = dir.path().join("image");
        let size = (64 << 20) + random.below(1 << 30) / 4096 * 4096;
        eprintln!("seed {seed}");
        write(tar.finish(), &image, Some(size));
        fsck(&image);
    }
}

#[test]
fn a_cancelled_write_leaves_no_image() {
    let mut tar = Tar::new();
    tar.add("big", EntryType::Regular, &vec![1; 1 << 20], |_| {});
    let tar = tar.finish();
    let cancel = Cancel::new().unwrap();
    let tree = tree::from_tar(&tar, 0, &Limits::default(), &cancel, &Quiet).unwrap();
    cancel.cancel();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let error = InProcess
        .write(
            &tree,
            &[Source::Plain(tar)],
            &image,
            &options(64 << 20),
            &cancel,
            &Quiet,
        )
        .unwrap_err();
    assert!(matches!(error, ext4::WriteError::Cancelled(_)), "{error:?}");
    assert!(!image.exists());
}

#[test]
fn what_is_in_the_home_of_root_becomes_a_seed_too() {
    let mut tar = Tar::new();
    let directory = |tar: &mut Tar, path: &str, mode| {
        tar.add(path, EntryType::Directory, b"", |e| {
            e.mode(mode).unwrap();
        });
    };
    directory(&mut tar, "etc", 0o755);
    directory(&mut tar, "root", 0o2710);
    tar.add("root/.ssh", EntryType::Directory, b"", |e| {
        e.mode(0o700).unwrap();
        e.add_pax("mtime", "1500000000.5");
    });
    let release = b"ID=debian\nVERSION_CODENAME=bookworm\n";
    tar.add("etc/os-release", EntryType::Regular, release, |_| {});
    tar.add("etc/outside", EntryType::Regular, b"shared", |e| {
        e.mode(0o640).unwrap().uid(5).unwrap();
    });
    let long = vec![7; 3 << 20];
    tar.add("root/long", EntryType::Regular, &long, |_| {});
    tar.add("root/empty", EntryType::Regular, b"", |_| {});
    tar.add("root/.ssh/key", EntryType::Regular, b"secret", |e| {
        e.mode(0o600).unwrap();
        e.add_pax("SCHILY.xattr.user.kind", "test");
        e.add_pax("mtime", "1600000000.123456789");
    });
    tar.add("root/inside", EntryType::Link, b"", |e| {
        e.link_name("etc/outside");
    });
    tar.add("root/link", EntryType::Symlink, b"", |e| {
        e.link_name("long");
    });
    let tar = tar.finish();
    let cancel = Cancel::new().unwrap();
    let layers = [Source::Packed(tar)];
    let tree = tree::from_layers(&layers, &Limits::default(), &cancel, &Quiet).unwrap();
    let written = || {
        let dir = tempfile::tempdir().unwrap();
        let files = ext4::RootFiles::create(dir.path()).unwrap();
        let root = ext4::write_root(&tree, &layers, &files, &options(1 << 30), &cancel, &Quiet);
        let root = root.unwrap();
        assert!(root.seed);
        assert_eq!(root.os_release.as_deref(), Some(&release[..]));
        dir
    };
    let dir = written();
    fsck(&dir.path().join(ext4::ROOTFS));
    let seed = dir.path().join(ext4::SEED);
    fsck(&seed);
    for (command, expected) in [
        ("stat /root", "Mode:  02710"),
        ("stat /root/.ssh/key", "Mode:  0600"),
        ("ea_list /root/.ssh/key", "user.kind"),
        ("stat /root/.ssh/key", "mtime: 0x5f5e1000:1d6f3454"),
        ("stat /root/.ssh", "mtime: 0x59682f00:77359400"),
        ("stat /root/long", "mtime: 0x6553f100"),
        ("stat /root/link", "mtime: 0x6553f100"),
        ("stat /root", "mtime: 0x6553f100"),
        ("cat /root/.ssh/key", "secret"),
        ("cat /root/inside", "shared"),
        ("stat /root/inside", "User:     5"),
        ("stat /root/link", "Fast link dest: \"long\""),
        ("stat /root/long", "Size: 3145728"),
        ("stat /root/empty", "Size: 0"),
        ("ls -p /", "/root/"),
    ] {
        let said = debugfs(&seed, command);
        assert!(said.contains(expected), "{command}: {said}");
    }
    assert!(!debugfs(&seed, "ls -p /").contains("etc"));
    let out = dir.path().join("long");
    debugfs(&seed, &format!("dump /root/long {}", out.display()));
    assert!(std::fs::read(out).unwrap() == long);
    // As a work disk it is grown by far, and has room for files then.
    let disk = dir.path().join("disk");
    std::fs::copy(&seed, &disk).unwrap();
    ext4::grow_file(&disk, 8 << 30).unwrap();
    let grown = Command::new("/usr/sbin/resize2fs").arg(&disk).output();
    assert!(grown.unwrap().status.success());
    fsck(&disk);
    let stats = debugfs(&disk, "stats -h");
    let inodes = stats.lines().find_map(|line| {
        line.strip_prefix("Inode count:")
            .map(|count| count.trim().parse::<u64>().unwrap())
    });
    assert!(inodes.unwrap() >= 500_000, "{stats}");
    let again = written();
    for name in [ext4::ROOTFS, ext4::SEED] {
        let bytes = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert!(bytes(dir.path()) == bytes(again.path()), "{name}");
    }
}

#[test]
fn a_home_with_nothing_in_it_is_no_seed() {
    let mut tar = Tar::new();
    tar.add("root", EntryType::Directory, b"", |_| {});
    let tar = tar.finish();
    let cancel = Cancel::new().unwrap();
    let tree = tree::from_tar(&tar, 0, &Limits::default(), &cancel, &Quiet).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = ext4::RootFiles::create(dir.path()).unwrap();
    let sources = [Source::Plain(tar)];
    let root = ext4::write_root(&tree, &sources, &files, &options(1 << 30), &cancel, &Quiet);
    assert_eq!(root.unwrap(), ext4::Root::default());
}
