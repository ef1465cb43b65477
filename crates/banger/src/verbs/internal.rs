//! `internal`: hidden verbs, for who maintains a catalog.
//!
//! The daemon's program does the work, without becoming a daemon: it has the
//! workshop, this one has the words.

use std::path::PathBuf;
use std::process::Stdio;

use banger_api::catalog::{BundleParams, BundleResult, BundleSource, Entry};
use banger_api::error::Code;
use clap::{ArgGroup, Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::client::start;
use crate::failure::Failure;
use crate::interrupt::{Cancel, guarded};
use crate::paths::absolute;
use crate::show::size::{about, parse, parse_disk};
use crate::show::table::facts;

/// What the maintainer of a catalog does.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a bundle, to be served and named in a catalog
    #[command(subcommand_required = true, arg_required_else_help = true)]
    MakeBundle {
        #[command(subcommand)]
        what: What,
    },
}

/// Of what a bundle is made.
#[derive(Debug, Subcommand)]
pub(crate) enum What {
    Image(Image),
    Kernel(Kernel),
}

/// Make an image's bundle of a root filesystem in a tar archive
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger internal make-bundle image --name mine --rootfs-tar root.tar -o mine.tar.zst
  docker export box | banger internal make-bundle image --name box --rootfs-tar - -o box.tar.zst

The same archive gives the same bytes.")]
pub(crate) struct Image {
    /// Archive, packed in any way; - is standard input
    #[arg(long, value_name = "FILE")]
    rootfs_tar: PathBuf,
    /// Kernel it boots with, by name
    #[arg(long, value_name = "KERNEL")]
    kernel_ref: Option<String>,
    /// Size of the root filesystem, like 4GiB [default: its content and half as much again]
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    size: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Make a kernel's bundle
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("source").required(true),
    after_help = "Examples:
  banger internal make-bundle kernel --name mine --from ./build -o mine.tar.zst
  banger internal make-bundle kernel --name mine --deb ./linux-image.deb -o mine.tar.zst

The same kernel gives the same bytes."
)]
pub(crate) struct Kernel {
    /// Directory with boot/ and lib/modules/
    #[arg(long, group = "source", value_name = "DIR")]
    from: Option<PathBuf>,
    /// Debian package
    #[arg(long, group = "source", value_name = "FILE")]
    deb: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What all bundles have.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Name in the catalog
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Distribution to show
    #[arg(long, value_name = "DISTRO")]
    distro: Option<String>,
    /// Architecture, as Debian names it [default: the kernel's, or this host's]
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Bundle to write; must not be there
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print an entry for a catalog
    #[arg(long)]
    json: bool,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self) -> Result<u8, Failure> {
        let Self::MakeBundle { what } = self;
        let (common, from) = match what {
            What::Image(args) => {
                let archive = match args.rootfs_tar.as_os_str() == "-" {
                    true => None,
                    false => Some(absolute(&args.rootfs_tar)?),
                };
                let from = BundleSource::Image {
                    rootfs_tar: archive,
                    kernel_ref: args.kernel_ref,
                    // Parsed once already, with the other words.
                    size_bytes: args.size.as_deref().and_then(|size| parse(size).ok()),
                };
                (args.common, from)
            }
            What::Kernel(args) => {
                let from = match (&args.from, &args.deb) {
                    (Some(dir), _) => BundleSource::KernelDir(absolute(dir)?),
                    (None, Some(deb)) => BundleSource::KernelDeb(absolute(deb)?),
                    (None, None) => {
                        let why = "neither --from nor --deb is given";
                        return Err(Failure::usage("internal make-bundle kernel", why));
                    }
                };
                (args.common, from)
            }
        };
        let params = BundleParams {
            out: absolute(&common.output)?,
            name: common.name,
            distro: common.distro,
            arch: common.arch,
            from,
        };
        let entry = guarded(async |cancel| make(&params, cancel).await).await?;
        print(&entry, &params.out, common.json)
    }
}

/// Has the daemon's program make it.
async fn make(params: &BundleParams, mut cancel: Cancel) -> Result<Entry, Failure> {
    let program = start::program();
    let cannot = |error: std::io::Error| {
        Failure::new(Code::NoTool, format!("cannot run {}", program.display())).because(&error)
    };
    let child = Command::new(&program)
        .arg("--make-bundle")
        .arg(serde_json::to_string(params).expect("a request is plain JSON"))
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    let output = child.wait_with_output();
    tokio::pin!(output);
    let output = tokio::select! {
        output = &mut output => output,
        () = cancel.asked() => {
            // It removes what it has made so far.
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::TERM);
            }
            output.await
        }
    };
    let output = output.map_err(cannot)?;
    match serde_json::from_slice(&output.stdout) {
        Ok(BundleResult::Made { entry, warnings }) => {
            for warning in warnings {
                crate::show::warn(&warning);
            }
            Ok(entry)
        }
        Ok(BundleResult::Failed(error)) => Err(Failure::of(error)),
        Err(error) => {
            let what = format!("{} ended early ({})", program.display(), output.status);
            Err(Failure::new(Code::Internal, what).because(&error))
        }
    }
}

fn print(entry: &Entry, out: &str, json: bool) -> Result<u8, Failure> {
    if json {
        let text = serde_json::to_string_pretty(entry).expect("an entry is plain JSON");
        crate::show::line(&text)?;
        return Ok(0);
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let size = entry.size_bytes.unwrap_or_default();
    super::print_text(&facts(&[
        ("bundle", out.to_owned()),
        ("name", entry.name.clone()),
        ("distro", text(&entry.distro)),
        ("arch", text(&entry.arch)),
        ("version", text(&entry.kernel_version)),
        ("kernel", text(&entry.kernel_ref)),
        ("size", format!("{size} ({})", about(size))),
        ("sha256", text(&entry.tarball_sha256)),
    ]))
}
