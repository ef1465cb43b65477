//! Bytes as an archive of images, and members of any kind put together to one: an error, or blobs
//! that are what they are called. Nothing half-made is left in either case.
#![no_main]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;

use banger_registry::{Cache, Digest, Limits, Platform, Source, local};
use libfuzzer_sys::fuzz_target;
use rustix::fs::MemfdFlags;
use tokio_util::sync::CancellationToken;

/// Names that lead to each other, to themselves, and out.
const NAMES: [&str; 12] = [
    "manifest.json", "./manifest.json", "c", "l", "a/l", "b/l", "../a/l", "../l", "/l", "a", "a/../l", "",
];
const KINDS: &[u8; 8] = b"00120525";

struct House {
    cache: Cache,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

fn house() -> &'static House {
    static HOUSE: OnceLock<House> = OnceLock::new();
    HOUSE.get_or_init(|| {
        // In memory, where syncing costs nothing.
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        House {
            cache: Cache::open(dir.path()).expect("a cache"),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime"),
            _dir: dir,
        }
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((&form, data)) = data.split_first() else { return };
    let archive = match form % 4 {
        0 => data.to_vec(),
        _ => members(data, form & 4 != 0),
    };
    let archive = if form % 4 == 3 { gzip(&archive) } else { archive };
    let house = house();
    let file = rustix::fs::memfd_create("archive", MemfdFlags::CLOEXEC).expect("memory");
    let mut file = File::from(file);
    file.write_all(&archive).expect("memory");
    let spelled = format!("docker-archive:/proc/self/fd/{}", file.as_raw_fd());
    let Ok(Source::Local(source)) = spelled.parse() else {
        panic!("{spelled} is a path");
    };
    let platform = Platform {
        architecture: "amd64".to_owned(),
        variant: None,
    };
    let limits = Limits {
        document: 64 << 10,
        image: 4 << 20,
        members: 1000,
        names: 64 << 10,
        ..Limits::default()
    };
    let inside = house.runtime.enter();
    let cancel = CancellationToken::new();
    let pulled = local::pull(&source, &house.cache, &platform, &limits, &|_| {}, &cancel);
    drop(inside);
    if let Ok(pulled) = pulled {
        assert_eq!(pulled.layers.len(), pulled.manifest.layers.len());
        for (path, layer) in pulled.layers.iter().zip(&pulled.manifest.layers) {
            let bytes = fs::read(path).expect("a layer");
            assert_eq!((Digest::of(&bytes), bytes.len() as u64), (layer.digest, layer.size));
        }
        assert_eq!(Digest::of(&pulled.config_json), pulled.manifest.config.digest);
    }
    for blob in house.cache.list().expect("a list") {
        assert!(blob.whole, "a part was left");
        let bytes = fs::read(house.cache.path(blob.digest)).expect("a blob");
        assert_eq!(Digest::of(&bytes), blob.digest);
    }
    drop(house.cache.prune(|_| true).expect("own files"));
});

/// An archive of members that the data names: kind, name, target, length, content. With `image`
/// a right manifest and config of all files is put behind them.
fn members(mut data: &[u8], image: bool) -> Vec<u8> {
    let mut tar = Vec::new();
    let (mut names, mut digests) = (Vec::new(), Vec::new());
    while let Some((head, rest)) = data.split_first_chunk::<4>() {
        let name = NAMES[usize::from(head[1]) % NAMES.len()];
        let target = NAMES[usize::from(head[2]) % NAMES.len()];
        let (content, rest) = rest.split_at(usize::from(head[3]).min(rest.len()));
        data = rest;
        let kind = KINDS[usize::from(head[0]) % KINDS.len()];
        let content = if kind == b'0' { content } else { &[] };
        let packed = if head[0] & 0x40 == 0 { content.to_vec() } else { gzip(content) };
        member(&mut tar, kind, name, target, &packed);
        if kind != b'5' {
            names.push(format!("{name:?}"));
            digests.push(format!("\"{}\"", Digest::of(content)));
        }
    }
    if image {
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":[{}]}}}}"#,
            digests.join(",")
        );
        let manifest = format!(r#"[{{"Config":"config","Layers":[{}]}}]"#, names.join(","));
        member(&mut tar, b'0', "config", "", config.as_bytes());
        member(&mut tar, b'0', "manifest.json", "", manifest.as_bytes());
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn member(tar: &mut Vec<u8>, kind: u8, name: &str, target: &str, content: &[u8]) {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0000000000\0000000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast())
        .read_to_end(&mut packed)
        .expect("memory");
    packed
}
