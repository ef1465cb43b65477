//! A file system that fills up in the middle of a blob.
//!
//! The test runs itself once more in namespaces of its own, where it may mount a small tmpfs.

mod toy;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_registry::{Cache, Digest, RegistryError, Source, local};
use tokio_util::sync::CancellationToken;
use toy::{Bench, Image, Toy, assert_image};

const INSIDE: &str = "BANGER_TEST_SMALL_DISK";
/// The large layer does not fit in it.
const MOUNT: &str = "mount -t tmpfs -o size=800k none \"$0\" && exec \"$@\"";

#[tokio::test]
async fn a_full_disk_is_told_and_the_part_waits_for_room() {
    let Some(disk) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        return run_again_inside("a_full_disk_is_told_and_the_part_waits_for_room");
    };
    let image = Image::single();
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Bench::within(&disk, toy::config());
    let error = bench.pull(&toy).await.expect_err("a full disk");
    assert!(matches!(error, RegistryError::NoSpace { .. }), "{error}");
    let path = image.large_path();
    assert_eq!(toy.asked(&path).len(), 1, "no try makes room");
    let part = bench.part(image.large()).expect("a part");

    grow(&disk);
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    assert_eq!(toy.asked(&path)[1].from() as u64, part);
}

/// What is in files is there anew at any time: nothing waits, and the room is given back.
#[test]
fn a_disk_that_files_fill_is_told_and_gets_its_room_back() {
    let Some(disk) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        return run_again_inside("a_disk_that_files_fill_is_told_and_gets_its_room_back");
    };
    let image = Image::single();
    let layout = tempfile::tempdir().expect("a directory");
    let write = |name: &str, bytes: &[u8]| {
        let path = layout.path().join(name);
        fs::create_dir_all(path.parent().expect("it is below")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    };
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        write(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
    }
    write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let entry = toy::descriptor("x", &image.manifest);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    write("index.json", index.to_string().as_bytes());

    let spelled = format!("oci-layout:{}", layout.path().display());
    let Ok(Source::Local(source)) = spelled.parse() else {
        panic!("{spelled} is of files");
    };
    let cache = Cache::open(&disk.join("oci")).expect("a cache");
    let config = toy::config();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let cancel = CancellationToken::new();
    let pull = || {
        let (platform, limits) = (&config.platform, &config.limits);
        local::pull(&source, &cache, platform, limits, &|_| {}, &cancel)
    };
    let error = pull().expect_err("a full disk");
    assert!(matches!(error, RegistryError::NoSpace { .. }), "{error}");
    let left = cache.list().expect("a list");
    assert!(
        left.iter().all(|blob| blob.whole && blob.size < 100_000),
        "{left:?}"
    );
    grow(&disk);
    assert_image(&pull().expect("an image"), &image);
}

fn grow(disk: &Path) {
    let grown = Command::new("mount")
        .args(["-o", "remount,size=8m"])
        .arg(disk)
        .status()
        .expect("mount runs");
    assert!(grown.success());
}

fn run_again_inside(name: &str) {
    let disk = tempfile::tempdir().expect("a directory");
    let unshare = |inner: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT]);
        command
            .arg(disk.path())
            .args(inner)
            .env(INSIDE, disk.path());
        command
    };
    match unshare(&["true"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            println!(
                "skipped: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            return;
        }
        Err(cause) => {
            println!("skipped: unshare: {cause}");
            return;
        }
    }
    let me = std::env::current_exe().expect("this program");
    let me = me.to_str().expect("a path of text");
    let output = unshare(&[me, "--exact", name, "--nocapture"])
        .output()
        .expect("it ran before");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
