//! Small layers that would become very much, and layers that are not what they say.
#![allow(clippy::unwrap_used)]

mod image;

use std::io::{self, Read, Write as _};

use banger_images::ext4::RootFiles;
use banger_images::oci::{self, OciError, Order};
use banger_images::tar::{EntryKind, Limits, Reader, Stream};
use banger_images::tree::{self, Kind, ReadError, Source, Tree};
use banger_images::{Cancel, Quiet};
use image::{Entry, Pack, end, packed};

const PACKS: [Pack; 3] = [Pack::Gzip, Pack::Zstd, Pack::No];

fn source(layer: &[u8], pack: Pack) -> Source {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&packed(layer, pack)).unwrap();
    Source::Packed(file)
}

fn merge(layers: &[Vec<u8>], pack: Pack, limits: &Limits) -> Result<Tree, ReadError> {
    let sources: Vec<_> = layers.iter().map(|layer| source(layer, pack)).collect();
    tree::from_layers(&sources, limits, &Cancel::new().unwrap(), &Quiet)
}

fn write(layer: &[u8], pack: Pack, diff_ids: Option<Vec<String>>) -> Result<(), OciError> {
    let dir = tempfile::tempdir().unwrap();
    let files = RootFiles::create(dir.path()).unwrap();
    let order = Order {
        size_bytes: None,
        uuid: [7; 16],
        diff_ids,
    };
    let cancel = Cancel::new().unwrap();
    oci::write(vec![source(layer, pack)], &files, &order, &cancel, &Quiet).map(drop)
}

fn bytes(entries: &[Entry]) -> Vec<u8> {
    entries.iter().flat_map(Entry::bytes).collect()
}

#[test]
fn layers_that_unpack_to_more_than_the_limit_are_refused_wherever_it_is() {
    const LIMIT: u64 = 16 << 20;
    let limits = Limits {
        unpacked_bytes: LIMIT,
        ..Limits::default()
    };
    let small = [Entry::file("small", "x")];
    let much = vec![0; 20 << 20];
    let record = |kind| Entry {
        data: [
            b"900009 comment=".to_vec(),
            vec![b'0'; 899_993],
            b"\n".to_vec(),
        ]
        .concat(),
        ..Entry::new("pax", kind)
    };
    let records = |kind: u8| {
        let each = [record(kind), Entry::file("file", "x")];
        (0..30).flat_map(|_| bytes(&each)).collect::<Vec<_>>()
    };
    let bombs = [
        ("a file", end(bytes(&[Entry::file("zeros", &much)]))),
        ("records", end(records(b'x'))),
        ("records of all that follow", end(records(b'g'))),
        ("what follows the end", [end(bytes(&small)), much].concat()),
    ];
    for (what, bomb) in bombs {
        for pack in [Pack::Gzip, Pack::Zstd] {
            assert!(packed(&bomb, pack).len() < 1 << 20, "{what} is small");
            let layers = [bomb.clone()];
            merge(&layers, pack, &Limits::default()).unwrap();
            let refused = merge(&layers, pack, &limits).unwrap_err();
            let said = format!("{refused:?}");
            assert!(
                said.contains("\"bytes\"") || said.contains("unpacks to more than is allowed"),
                "{what}, {pack:?}: {said}"
            );
            // All layers together.
            let half = vec![end(bytes(&small)); 2];
            let limits = Limits {
                unpacked_bytes: 2 * half[0].len() as u64 - 1,
                ..limits
            };
            assert!(merge(&half[..1], pack, &limits).is_ok());
            assert!(merge(&half, pack, &limits).is_err());
        }
    }
}

/// A PAX 1.0 sparse file with a map of so many ranges.
fn mapped(path: &str, ranges: usize) -> Vec<u8> {
    let mut map = format!("{ranges}\n");
    for range in 0..ranges {
        map.push_str(&format!("{}\n1\n", 1_000_000_000 + range * 8192));
    }
    let mut data = map.into_bytes();
    data.resize(data.len().next_multiple_of(512) + ranges, b'x');
    let records = [
        "22 GNU.sparse.major=1\n".to_owned(),
        "22 GNU.sparse.minor=0\n".to_owned(),
        "32 GNU.sparse.realsize=1100000000\n".to_owned(),
    ];
    // Their lengths are of their own making.
    let records = records.map(|record| {
        let body = record.split_once(' ').unwrap().1;
        format!("{} {body}", body.len() + 3)
    });
    bytes(&[
        Entry {
            data: records.concat().into_bytes(),
            ..Entry::new("pax", b'x')
        },
        Entry::file(path, data),
    ])
}

#[test]
fn maps_of_sparse_files_are_read_in_few_steps() {
    // Looked at again for each block, these would take minutes.
    let mut archive = Vec::new();
    for number in 0..60 {
        archive.extend(mapped(&format!("f{number}"), 9_900));
    }
    archive.extend(bytes(&[Entry::file("after", "x")]));
    let archive = end(archive);
    let mut reader = Reader::new(Stream(&archive[..]), Limits::default());
    let mut found = 0;
    while let Some(entry) = reader.next_entry().unwrap() {
        match entry.kind {
            EntryKind::Sparse { map, .. } => assert_eq!(map.len(), 9_900),
            _ => {
                assert_eq!(entry.path, b"after");
                let mut content = Vec::new();
                reader.read_to_end(&mut content).unwrap();
                assert_eq!(content, b"x");
            }
        }
        found += 1;
    }
    assert_eq!(found, 61);
}

/// Counts what is read.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1 += read as u64;
        Ok(read)
    }
}

#[test]
fn maps_without_an_end_are_given_up_early() {
    // A number that does not end, and blocks of ranges of which none is told.
    let mut number = mapped("f", 1);
    number.truncate(1536);
    let mut blocks = Entry::new("s", b'S').bytes();
    blocks[257..265].copy_from_slice(b"ustar  \0");
    blocks[482] = 1;
    blocks[483..495].copy_from_slice(b"00000001000\0");
    blocks[148..156].fill(b' ');
    let sum: u64 = blocks[..512].iter().map(|byte| u64::from(*byte)).sum();
    blocks[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut empty = [0; 512];
    empty[504] = 1;
    for (head, rest) in [(number, [b'0'; 512]), (blocks, empty)] {
        let mut counted = Counted(io::Cursor::new(head).chain(Again(rest, 0)), 0);
        let mut reader = Reader::new(Stream(&mut counted), Limits::default());
        let said = reader.next_entry().unwrap_err().to_string();
        assert!(said.contains("bytes of metadata in one entry"), "{said}");
        drop(reader);
        assert!(counted.1 < 1 << 20, "{} bytes were read", counted.1);
    }
}

/// The same block for ever.
struct Again([u8; 512], usize);

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for place in &mut *buffer {
            *place = self.0[self.1 % 512];
            self.1 += 1;
        }
        Ok(buffer.len())
    }
}

#[test]
fn a_file_whose_name_ends_like_a_directorys_keeps_its_content() {
    // Its content looks like an entry.
    let inner = Entry::file("inner", "").bytes();
    let layer = end(bytes(&[
        Entry::file("x/", &inner),
        Entry::file("old/", ""),
        Entry::file("after", "y"),
    ]));
    let tree = merge(&[layer], Pack::Gzip, &Limits::default()).unwrap();
    assert!(tree.find("inner").is_none() && tree.find("after").is_some());
    let kind = |path| tree.kind(tree.find(path).unwrap());
    assert!(matches!(kind("x"), Kind::File(data) if data.size() == 512));
    assert!(matches!(kind("old"), Kind::Directory(_)));
}

#[test]
fn entries_that_cannot_be_are_named() {
    let long = vec!["d".repeat(250); 20].join("/");
    for (entry, words) in [
        (
            Entry::file(b"dir/\xff\xfe", "x"),
            r#"entry "dir/\\xff\\xfe" of the archive: its name is not UTF-8"#,
        ),
        (
            Entry::file("fat", "x").attribute("user.large", vec![b'x'; 60_000]),
            r#"entry "fat" of the archive: an attribute is too large"#,
        ),
        (Entry::file(&long, "x"), r#"entry "dddd"#),
        (
            Entry::link("far", b'2', &long),
            r#"entry "far" of the archive: its link target is too long"#,
        ),
    ] {
        let layer = end(bytes(&[entry]));
        let refused = merge(&[layer], Pack::Gzip, &Limits::default());
        let said = refused.unwrap_err().to_string();
        assert!(said.contains(words) && said.len() < 600, "{words}: {said}");
    }
}

#[test]
fn directories_that_a_small_layer_implies_are_refused_before_they_take_memory() {
    let paths = (0..220).map(|number| format!("{number:03}/{}x", "d/".repeat(2000)));
    let entries: Vec<Entry> = paths.map(|path| Entry::file(path, "")).collect();
    let layer = end(bytes(&entries));
    assert!(packed(&layer, Pack::Gzip).len() < 50 << 10);
    let refused = write(&layer, Pack::Gzip, None).unwrap_err();
    assert!(refused.is_of_the_image(), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("too many files, directories"), "{said}");
}

#[test]
fn many_directories_are_an_image() {
    let mut entries = Vec::new();
    for number in 0..100_000 {
        let dir = format!("{}/{}", number % 300, number);
        entries.push(Entry::file(format!("{dir}/one"), "1"));
    }
    write(&end(bytes(&entries)), Pack::Gzip, None).unwrap();
}

#[test]
fn layers_that_are_not_those_of_the_config_are_refused_by_their_number() {
    let layer = end(bytes(&[Entry::file("f", "x")]));
    // What follows the end is of the layer too.
    for layer in [layer.clone(), [layer, vec![7; 300_000]].concat()] {
        let right = format!("sha256:{}", image::sum(&layer));
        let wrong = format!("sha256:{}", "0".repeat(64));
        for pack in PACKS {
            write(&layer, pack, Some(vec![right.clone()])).unwrap();
            let refused = write(&layer, pack, Some(vec![wrong.clone()])).unwrap_err();
            assert!(refused.is_of_the_image(), "{refused:?}");
            assert_eq!(
                refused.to_string(),
                format!("layer 1 unpacks to {right}, its config says {wrong}")
            );
        }
        for (ids, named) in [(vec![], 0), (vec![right.clone(); 2], 2)] {
            let refused = write(&layer, Pack::Gzip, Some(ids)).unwrap_err();
            assert!(refused.is_of_the_image(), "{refused:?}");
            assert_eq!(
                refused.to_string(),
                format!("the image has 1 layers, and its config names {named}")
            );
        }
    }
}
