//! The banger daemon: owns the VMs of one user and needs no root.
//!
//! The rooms are joined in [`daemon`]; `main.rs` only reads like a summary of
//! it. What the daemon asks of the world is in `ports.rs`.

#![forbid(unsafe_code)]

mod arguments;
mod artifact;
mod build;
mod bundling;
mod config;
mod copy;
mod daemon;
mod descriptors;
mod disk;
mod doctor;
mod engine;
mod failure;
mod guest;
mod http;
mod log;
mod network;
mod operation;
mod paths;
mod ports;
mod recovery;
mod seam;
mod startup;
mod vm;

use std::io::Write;
use std::process::ExitCode;

use banger_api::system::DoctorReport;

pub use arguments::{Arguments, Errand, HELP};
pub use paths::Overrides;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit of this build, or `unknown`.
pub const COMMIT: &str = env!("BANGER_COMMIT");
/// When it was built.
pub const BUILT_AT: &str = env!("BANGER_BUILT_AT");

/// What `--version` prints.
#[must_use]
pub fn version() -> String {
    format!("bangerd v{VERSION} (commit {COMMIT}, built {BUILT_AT})")
}

/// Is the daemon, until it is told to end.
#[must_use]
pub fn serve(arguments: Arguments) -> ExitCode {
    daemon::main(arguments)
}

/// Looks at the host as the daemon of these paths would, and changes nothing.
///
/// # Errors
/// A sentence, where not even the paths are known.
pub fn doctor(overrides: &Overrides) -> Result<DoctorReport, String> {
    let uid = rustix::process::getuid().as_raw();
    let paths = paths::Paths::resolve(overrides, |name| std::env::var_os(name), uid)
        .map_err(|error| error.to_string())?;
    Ok(doctor::look(&paths))
}

/// Prints what [`doctor`] finds, as JSON.
#[must_use]
pub fn print_doctor(overrides: &Overrides) -> ExitCode {
    match doctor(overrides) {
        Ok(report) => print(&serde_json::to_string(&report).expect("a report is plain JSON")),
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the defaults of new VMs as the daemon of these paths would have them,
/// as JSON.
#[must_use]
pub fn print_vm_defaults(overrides: &Overrides) -> ExitCode {
    let uid = rustix::process::getuid().as_raw();
    let config = paths::Paths::resolve(overrides, |name| std::env::var_os(name), uid)
        .map_err(|error| error.to_string())
        .and_then(|paths| {
            config::Config::load(&paths.config_file, |name| std::env::var(name).ok())
                .map_err(|error| error.to_string())
        });
    match config {
        Ok(config) => {
            let defaults = daemon::host_defaults(&config).to_api();
            print(&serde_json::to_string(&defaults).expect("defaults are plain JSON"))
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the seams at which a test build can be cut, one a line.
#[must_use]
pub fn print_seams() -> ExitCode {
    print(&seam::all().join("\n"))
}

/// Is the confined process that writes one image, for a daemon of this same program.
#[must_use]
pub fn write_image(task: &str) -> ExitCode {
    banger_images::worker::work(task)
}

/// Makes a bundle, for `banger internal make-bundle`.
#[must_use]
pub fn make_bundle(params: &str) -> ExitCode {
    bundling::main(params)
}

/// Prints a line. A reader that left is no failure of ours.
#[must_use]
pub fn print(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::SUCCESS
}
