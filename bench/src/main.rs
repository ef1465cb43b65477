//! Ratios of banger against the bare engine, both measured in this run.
//!
//! `run --rm --network none -- true` is held against the same QEMU with the
//! same kernel, modules, devices and disks, booting a minimal init
//! ([`bench-init`]) to the same command and a reset. The two command lines are
//! printed: they differ only in the initramfs and in the line to the agent. The
//! same run with a network shows what a gateway costs at the start; what it is
//! worth afterwards is held against QEMU's own way out, see [`network`]. How fast an image is
//! had is held against the usual tools, see [`pull`].
//!
//! [`bench-init`]: ../bin/bench-init.rs

#![forbid(unsafe_code)]

mod bare;
mod house;
mod measure;
mod memory;
mod network;
mod pull;
mod slirp;

use anyhow::{Context, Result, ensure};

use crate::bare::Bare;
use crate::house::House;
use crate::measure::{Series, network_cost, ratios};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let rounds: usize = match words.next() {
        Some(text) => text
            .parse()
            .context("the first argument is the number of rounds")?,
        None => 9,
    };
    let section = words.next().unwrap_or_else(|| "all".to_owned());
    ensure!(
        ["all", "run", "network", "pull"].contains(&&*section),
        "the second argument is run, network or pull, not {section}"
    );
    let wanted = |name: &str| section == "all" || section == name;
    if wanted("run") {
        run(rounds)?;
    }
    if wanted("network") {
        println!("\n## network\n");
        println!("{}", network::section(rounds)?);
    }
    if wanted("pull") {
        println!("\n## pull\n");
        println!("{}", pull::section(rounds)?);
    }
    Ok(())
}

/// A whole machine for one command.
fn run(rounds: usize) -> Result<()> {
    let house = House::open()?;
    // Image, kernel and initramfs are made by the first run, which is not measured.
    house.run_true("user")?;
    house.run_true("none")?;
    let bare = Bare::like(&house)?;
    bare.run()?;

    let (mut networked, mut ours, mut theirs) = <(Series, Series, Series)>::default();
    for round in 1..=rounds {
        // Paired, so that a machine whose speed drifts does not decide.
        networked.push(house.run_true("user")?);
        ours.push(house.run_true("none")?);
        theirs.push(bare.run()?);
        eprintln!("round {round}/{rounds}");
    }

    println!("## run --rm -- true\n");
    println!("banger's engine:\n  {}\n", bare.original.join(" "));
    println!("bare engine:\n  {}\n", bare.argv.join(" "));
    println!("{}", networked.table("banger with a network, stages in ms"));
    println!("{}", ours.table("banger without one, stages in ms"));
    println!(
        "{}",
        theirs.table("bare engine, stages in ms since exec or the kernel's start")
    );
    println!(
        "{}",
        ratios("banger / bare engine", &ours.walls(), &theirs.walls())
    );
    println!(
        "{}",
        ratios(
            "with / without a network",
            &networked.walls(),
            &ours.walls()
        )
    );
    println!("{}", network_cost(&networked, &ours));
    println!("{}", house.idle()?);
    Ok(())
}
