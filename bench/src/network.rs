//! The way out of a guest: a VM of banger's behind its gateway, held against
//! the same machine behind QEMU's own user networking, both running at the same
//! time in a world of network namespaces, measured in turns from within.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use e2e::world::{OUTSIDE, SERVICE};
use e2e::{House, Kernel, Root, World, fixture};

use crate::bare::{engine_of, sparse_copy};
use crate::house::at_rest;
use crate::measure::pairs;
use crate::slirp::{Slirp, Twin};

/// What is measured: a title, the words for the probe around the address, and
/// whether more is better.
const MEASURES: [(&str, &str, &str, bool); 5] = [
    ("download, MiB/s", "down", "134217728", true),
    ("upload, MiB/s", "up", "67108864", true),
    ("connect, ms", "connect", "200", false),
    (
        "200 downloads of 256 KiB at once, s",
        "parallel",
        "200 262144",
        false,
    ),
    ("round trip of a byte, ms", "round-trip", "1000", false),
];

/// Measures all of it so many times and says what came out.
pub(crate) fn section(rounds: usize) -> Result<String> {
    let house = House::with(Root::Bare, Kernel::New);
    let Some(world) = World::around(&house, None) else {
        return Ok("skipped: this user may not make network namespaces".to_owned());
    };
    let twin = twin(&house, &world)?;
    let init = fixture::programs()
        .parent()
        .context("target")?
        .join("agent/bench-init");
    let gateway = house.gateways();
    let [gateway] = &gateway[..] else {
        anyhow::bail!("one gateway, not {gateway:?}");
    };
    let fresh = at_rest(gateway.pid.into())?;
    let mut slirp = Slirp::boot(&house, &world, &twin, &init)?;

    let mut text = String::new();
    writeln!(text, "banger's engine:\n  {}\n", twin.original.join(" "))?;
    writeln!(text, "with QEMU's own:\n  {}\n", slirp.argv.join(" "))?;
    writeln!(
        text,
        "  {:<34} {:>9} {:>9} {:>7} {:>7} {:>7}",
        "medians", "gateway", "slirp", "ratio", "min", "max"
    )?;
    for (title, what, numbers, more) in MEASURES {
        let line = format!("measure {what} {OUTSIDE}:{SERVICE} {numbers}");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // Both once before, so that neither meets a cold cache.
        for round in 0..=rounds {
            let pair = [world.ask(&house, "box", &line), slirp.ask(&line)?];
            if round > 0 {
                let [mine, other] = pair.map(|said| said.parse::<f64>());
                ours.push(mine?);
                theirs.push(other?);
            }
            eprintln!("{title}: round {round}/{rounds}");
        }
        let better = if more {
            "more is better"
        } else {
            "less is better"
        };
        writeln!(text, "{}  {better}", pairs(title, &ours, &theirs))?;
    }
    let after = at_rest(gateway.pid.into())?;
    writeln!(text, "\ngateway at rest, fresh: {fresh}")?;
    writeln!(text, "gateway at rest, after all of it: {after}")?;
    ensure!(house.gateways().len() == 1, "the gateway lived through it");
    Ok(text)
}

/// Starts the VM, and copies its disks for another one like it.
fn twin(house: &House, world: &World) -> Result<Twin> {
    let _ = house.banger("create --name box").ok();
    world.equip(house, "box");
    let _ = house.sh("box", "cp /root/probe /bin/probe").ok();
    let _ = house.banger("stop box").ok();
    let directory = house.dir().join("slirp");
    std::fs::create_dir_all(&directory)?;
    let mut disks = Vec::new();
    for disk in house.disks("box") {
        let copy = directory.join(disk.file_name().context("a disk has a name")?);
        sparse_copy(&disk, &copy)?;
        disks.push((disk, copy));
    }
    let _ = house.banger("start box").ok();
    let id = house.vm("box")["id"].as_str().context("an id")?.to_owned();
    Ok(Twin {
        original: engine_of(&id)?,
        directory,
        disks,
    })
}
