//! A file system that fills up in the middle of a blob.
//!
//! The test runs itself once more in namespaces of its own, where it may mount a small tmpfs.

mod toy;

use std::path::PathBuf;
use std::process::Command;

use banger_registry::RegistryError;
use toy::{Bench, Image, Toy, assert_image};

const INSIDE: &str = "BANGER_TEST_SMALL_DISK";
const NAME: &str = "a_full_disk_is_told_and_the_part_waits_for_room";
/// The large layer does not fit in it.
const MOUNT: &str = "mount -t tmpfs -o size=800k none \"$0\" && exec \"$@\"";

#[tokio::test]
async fn a_full_disk_is_told_and_the_part_waits_for_room() {
    let Some(disk) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        return run_again_inside();
    };
    let image = Image::single();
    let toy = Toy::serving(&image, |_| None).await;
    let bench = Bench::within(&disk, toy::config());
    let error = bench.pull(&toy).await.expect_err("a full disk");
    assert!(matches!(error, RegistryError::NoSpace { .. }), "{error}");
    let path = image.large_path();
    assert_eq!(toy.asked(&path).len(), 1, "no try makes room");
    let part = bench.part(image.large()).expect("a part");

    let grown = Command::new("mount")
        .args(["-o", "remount,size=8m"])
        .arg(&disk)
        .status()
        .expect("mount runs");
    assert!(grown.success());
    assert_image(&bench.pull(&toy).await.expect("an image"), &image);
    assert_eq!(toy.asked(&path)[1].from() as u64, part);
}

fn run_again_inside() {
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
    let output = unshare(&[me, "--exact", NAME, "--nocapture"])
        .output()
        .expect("it ran before");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
