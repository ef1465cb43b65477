//! Ratios of banger against the bare engine, both measured in this run.
//!
//! `run --rm -- true` is held against the same QEMU with the same kernel,
//! modules, devices and disks, booting a minimal init ([`bench-init`]) to the
//! same command and a reset. The two command lines are printed: they differ
//! only in the initramfs and in the line to the agent.
//!
//! [`bench-init`]: ../bin/bench-init.rs

#![forbid(unsafe_code)]

mod bare;
mod house;
mod measure;

use anyhow::{Context, Result};

use crate::bare::Bare;
use crate::house::House;
use crate::measure::{Series, ratios};

fn main() -> Result<()> {
    let rounds: usize = match std::env::args().nth(1) {
        Some(text) => text
            .parse()
            .context("the argument is the number of rounds")?,
        None => 9,
    };
    let house = House::open()?;
    // Image, kernel and initramfs are made by the first run, which is not measured.
    house.run_true()?;
    let bare = Bare::like(&house)?;
    bare.run()?;

    let (mut ours, mut theirs) = (Series::default(), Series::default());
    for round in 1..=rounds {
        // Paired, so that a machine whose speed drifts does not decide.
        ours.push(house.run_true()?);
        theirs.push(bare.run()?);
        eprintln!("round {round}/{rounds}");
    }

    println!("## run --rm -- true\n");
    println!("banger's engine:\n  {}\n", bare.original.join(" "));
    println!("bare engine:\n  {}\n", bare.argv.join(" "));
    println!("{}", ours.table("banger, stages in ms"));
    println!(
        "{}",
        theirs.table("bare engine, stages in ms since exec or the kernel's start")
    );
    println!(
        "{}",
        ratios("banger / bare engine", &ours.walls(), &theirs.walls())
    );
    println!("{}", house.idle()?);
    Ok(())
}
