//! `bangerd --make-bundle`: makes a bundle of files of this host and prints
//! its entry for a catalog. Starts nothing, needs no daemon, keeps nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use banger_api::catalog::{BundleParams, BundleResult, BundleSource, Entry};
use banger_api::error::Code;
use banger_images::bundle::{self, Made, Manifest};
use banger_images::{Cancel, Quiet};
use banger_model::{ImageName, KernelName};
use tokio::signal::unix::{SignalKind, signal};

use crate::artifact::failures::of_bundle;
use crate::artifact::host_arch;
use crate::failure::Failure;

/// Makes what the JSON asks for. An interrupt ends it, and leaves nothing.
pub(crate) fn main(params: &str) -> ExitCode {
    let result = match make(params) {
        Ok((entry, warnings)) => BundleResult::Made { entry, warnings },
        Err(failure) => BundleResult::Failed(failure.to_api("")),
    };
    let code = match &result {
        BundleResult::Made { .. } => ExitCode::SUCCESS,
        BundleResult::Failed(error) => ExitCode::from(error.code.exit()),
    };
    let _ = crate::print(&serde_json::to_string(&result).expect("a result is plain JSON"));
    code
}

fn make(params: &str) -> Result<(Entry, Vec<String>), Failure> {
    let params: BundleParams = serde_json::from_str(params).map_err(|error| {
        Failure::new(Code::BadRequest, "cannot read what bundle to make").caused_by(&error)
    })?;
    let setup = |error: io::Error| Failure::internal("cannot begin", &error);
    let cancel = Cancel::new().map_err(setup)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(setup)?;
    runtime.block_on(async {
        let mut ends = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ]
        .map(signal)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(setup)?;
        let switch = cancel.clone();
        let mut work = tokio::task::spawn_blocking(move || bundle_of(&params, &switch));
        let any = futures_util::future::select_all(ends.iter_mut().map(|end| Box::pin(end.recv())));
        let done = tokio::select! {
            done = &mut work => done,
            _ = any => {
                cancel.cancel();
                work.await
            }
        };
        done.unwrap_or_else(|error| Err(Failure::internal("the work broke off", &error)))
    })
}

fn bundle_of(params: &BundleParams, cancel: &Cancel) -> Result<(Entry, Vec<String>), Failure> {
    let mut manifest = Manifest {
        name: params.name.clone(),
        distro: params.distro.clone(),
        arch: params.arch.clone(),
        ..Manifest::default()
    };
    let bad_name =
        |error: banger_model::name::BadName| Failure::new(Code::BadName, error.to_string());
    let out = Path::new(&params.out);
    let (kind, made) = match &params.from {
        BundleSource::Image {
            rootfs_tar,
            kernel_ref,
            size_bytes,
        } => {
            ImageName::parse(&params.name).map_err(bad_name)?;
            if let Some(kernel) = kernel_ref {
                KernelName::parse(kernel).map_err(bad_name)?;
            }
            manifest.kernel_ref.clone_from(kernel_ref);
            manifest.arch.get_or_insert_with(|| host_arch().to_owned());
            let archive = open(rootfs_tar.as_deref())?;
            let made = bundle::write_image(archive, &manifest, *size_bytes, out, cancel, &Quiet);
            ("image", made)
        }
        BundleSource::KernelDir(from) | BundleSource::KernelDeb(from) => {
            KernelName::parse(&params.name).map_err(bad_name)?;
            let is_deb = matches!(params.from, BundleSource::KernelDeb(_));
            let from = Path::new(from);
            let made = bundle::write_kernel(from, is_deb, &manifest, out, cancel, &Quiet);
            ("kernel", made)
        }
    };
    let Made {
        sha256,
        size_bytes,
        manifest,
        warnings,
    } = made.map_err(|error| of_bundle(&error))?;
    let entry = Entry {
        kind: Some(kind.to_owned()),
        name: manifest.name,
        distro: manifest.distro,
        arch: manifest.arch,
        kernel_version: manifest.kernel_version,
        kernel_ref: manifest.kernel_ref,
        tarball_url: Some(format!("file://{}", params.out)),
        tarball_sha256: Some(banger_model::id::hex(&sha256)),
        size_bytes: Some(size_bytes),
        ..Entry::default()
    };
    Ok((entry, warnings))
}

/// The archive of a root filesystem; standard input where no path is given.
fn open(path: Option<&str>) -> Result<File, Failure> {
    let opened = match path {
        Some(path) => File::open(path),
        None => io::stdin().as_fd().try_clone_to_owned().map(File::from),
    };
    opened.map_err(|error| {
        let what = format!("cannot open {}", path.unwrap_or("standard input"));
        Failure::new(Code::BadPath, what).caused_by(&error)
    })
}
