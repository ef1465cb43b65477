//! Bytes through a command: many, of every value, in both directions, by many
//! at once.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use e2e::{House, Kernel, Root};
use sha2::{Digest, Sha256};

#[test]
fn a_hundred_megabytes_pass_unchanged_both_ways() {
    const SIZE: u64 = 100_000_000;
    let house = House::with(Root::Bare, Kernel::New);
    let _ = house.banger("create --name box --memory 512").ok();
    let blob = house.dir().join("home/blob");
    let digest = write_noise(&blob, SIZE);
    let back = house.dir().join("home/back");
    // Through a command that reads and writes at once.
    let done = house
        .call(["exec", "-i", "box", "--", "cat"])
        .input_file(&blob)
        .output_file(&back)
        .run()
        .ok();
    println!(
        "100 MB in and out at once: {:.1} s",
        done.took.as_secs_f32()
    );
    assert_eq!(digest_of(&back), digest);
    // Into the guest, and out again.
    let done = house
        .call(["exec", "-i", "box", "--", "sha256sum"])
        .input_file(&blob)
        .run()
        .ok();
    println!("100 MB in, hashed there: {:.1} s", done.took.as_secs_f32());
    assert!(done.out().starts_with(&digest), "{done}");
    let _ = house
        .call(["exec", "-i", "box", "--", "sh", "-c", "cat > /root/blob"])
        .input_file(&blob)
        .run()
        .ok();
    let done = house
        .call(["exec", "box", "--", "cat", "/root/blob"])
        .output_file(&back)
        .run()
        .ok();
    println!("100 MB out: {:.1} s", done.took.as_secs_f32());
    assert_eq!(digest_of(&back), digest);
}

#[test]
fn twenty_streams_at_once_do_not_mix() {
    let house = House::with(Root::Bare, Kernel::Old);
    let _ = house.banger("create --name box").ok();
    let calls: Vec<_> = (0..20)
        .map(|i| {
            (
                i,
                house
                    .call(["exec", "-i", "box", "--", "cat"])
                    .input(format!("{i}\n").repeat(5000))
                    .limit(Duration::from_secs(120))
                    .start(),
            )
        })
        .collect();
    for (i, live) in calls {
        assert_eq!(live.wait().ok().out(), format!("{i}\n").repeat(5000));
    }
}

/// Writes bytes of every value in no order, the same at each run.
fn write_noise(path: &Path, size: u64) -> String {
    let mut hash = Sha256::new();
    let mut file = BufWriter::new(File::create(path).expect("an own file"));
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut left = size;
    while left > 0 {
        let mut chunk = Vec::with_capacity(1 << 16);
        while chunk.len() < 1 << 16 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.extend_from_slice(&state.to_le_bytes());
        }
        chunk.truncate(usize::try_from(left.min(1 << 16)).expect("small"));
        hash.update(&chunk);
        file.write_all(&chunk).expect("space for 100 MB");
        left -= chunk.len() as u64;
    }
    file.flush().expect("space for 100 MB");
    hex(&hash.finalize())
}

fn digest_of(path: &Path) -> String {
    let mut hash = Sha256::new();
    let mut file = BufReader::new(File::open(path).expect("written by the test"));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).expect("an own file");
        if n == 0 {
            return hex(&hash.finalize());
        }
        hash.update(&buffer[..n]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
