//! `image`: root filesystems.

mod script;

use std::path::{Path, PathBuf};

use banger_api::Empty;
use banger_api::endpoint::{
    ImageBuild, ImageCachePrune, ImageDelete, ImageList, ImagePromote, ImagePull, ImageRegister,
    ImageShow,
};
use banger_api::error::Code;
use banger_api::image::{
    Image, ImageBuildParams, ImageCachePruneParams, ImageCachePruneResult, ImageCatalogResult,
    ImageListResult, ImagePullParams, ImageRegisterParams, ImageShowResult,
};
use clap::{ArgGroup, Args, Subcommand};

use super::list::ListFlags;
use crate::client::start::Place;
use crate::client::{At, Client};
use crate::failure::Failure;
use crate::interrupt::{Cancel, guarded};
use crate::paths::absolute;
use crate::show::progress::Progress;
use crate::show::size::{self, about};
use crate::show::table::{Table, facts};
use crate::show::{escape, short_id};
use crate::{complete, follow};

/// How references to files of this host begin.
const FILES: [&str; 2] = ["oci-layout:", "docker-archive:"];

/// What one does with images.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    List(List),
    Show(Show),
    #[command(visible_alias = "rm")]
    Delete(Delete),
    Pull(Pull),
    Register(Register),
    Promote(Promote),
    Build(Build),
    /// Downloaded layers
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Cache {
        #[command(subcommand)]
        verb: CacheVerb,
    },
}

/// What one does with downloaded layers.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheVerb {
    Prune(CachePrune),
}

/// Remove downloaded layers that no pull uses; images need them no more
#[derive(Debug, Args)]
pub(crate) struct CachePrune {
    /// Only count what would go
    #[arg(long)]
    dry_run: bool,
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

/// List images
#[derive(Debug, Args)]
pub(crate) struct List {
    /// List what can be pulled by name instead
    #[arg(long)]
    available: bool,
    #[command(flatten)]
    flags: ListFlags,
}

/// Show an image
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Image by name or id
    #[arg(value_name = "IMAGE", add = complete::images())]
    image: String,
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

/// Forget images, with their files where banger owns them
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Images by name or id
    #[arg(required = true, value_name = "IMAGE", add = complete::images())]
    images: Vec<String>,
}

/// The kernel that an image brings along.
#[derive(Debug, Args)]
pub(crate) struct KernelFlags {
    /// Kernel file of its own, vmlinux or bzImage; banger keeps a copy
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initrd file of that kernel, kept and shown
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Modules directory of that kernel, as /lib/modules/VERSION
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
}

impl KernelFlags {
    /// Kernel, initrd and modules, as the daemon can find them.
    fn paths(&self) -> Result<[Option<String>; 3], Failure> {
        let path = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        Ok([
            path(&self.kernel)?,
            path(&self.initrd)?,
            path(&self.modules)?,
        ])
    }
}

/// Fetch an image by its name in the catalog or from a registry, or take one from files
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger pull debian-trixie
  banger pull debian:bookworm
  banger pull ghcr.io/org/app@sha256:... --name app
  banger pull localhost:5000/app:dev --size 8GiB
  banger pull oci-layout:./build/app:1.0
  docker save team/app:1 -o app.tar && banger pull docker-archive:app.tar
  banger pull docker-archive:all.tar.gz:team/app:1

Names are those of: banger image list --available
Logins are those of docker: docker login REGISTRY. A path ends at its first colon.")]
pub(crate) struct Pull {
    /// Name of the catalog; image as docker spells it, by tag or digest; or oci-layout:DIR[:TAG], docker-archive:FILE[:TAG]
    #[arg(value_name = "REF")]
    reference: String,
    /// Name [default: that of the catalog, REPOSITORY-TAG, or that of the file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Kernel it boots with, by name
    #[arg(long, value_name = "KERNEL", conflicts_with_all = ["kernel", "initrd", "modules"], add = complete::kernels())]
    kernel_ref: Option<String>,
    #[command(flatten)]
    own: KernelFlags,
    /// Size of the root filesystem, like 4GiB [default: its content and half as much again]
    #[arg(long, value_name = "SIZE", value_parser = crate::show::size::parse_disk)]
    size: Option<String>,
}

/// Use an ext4 file of this host as image
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger image register --name mine --rootfs ./root.ext4
  banger image register --name mine --rootfs ./root.ext4 --kernel-ref 6.1.0-56-cloud-amd64
  banger image register --name mine --rootfs ./root.ext4 --kernel ./bzImage --modules ./6.9.1")]
pub(crate) struct Register {
    /// Name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Root filesystem, an ext4 file
    #[arg(long, value_name = "FILE")]
    rootfs: PathBuf,
    /// ext4 file with what /root holds at first
    #[arg(long, value_name = "FILE")]
    work_seed: Option<PathBuf>,
    /// Kernel it boots with, by name
    #[arg(long, value_name = "KERNEL", conflicts_with_all = ["kernel", "initrd", "modules"], add = complete::kernels())]
    kernel_ref: Option<String>,
    #[command(flatten)]
    own: KernelFlags,
}

/// Copy the files of a registered image, for banger to keep
#[derive(Debug, Args)]
pub(crate) struct Promote {
    /// Image by name or id
    #[arg(value_name = "IMAGE", add = complete::images())]
    image: String,
}

/// Build an image of another one, or from a Debian suite
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("source").args(["from", "suite"]).required(true)),
    after_help = "Examples:
  banger image build dev --from debian-bookworm --package jq --package gcc
  banger image build app --from alpine-3.20 --script ./setup.sh
  printf 'npm install -g pnpm' | banger image build web --from node-22 --script -
  banger image build ci --from debian-bookworm --docker
  banger image build --suite trixie --package openssh-client --size 8GiB dev

A script runs as root in a throw-away VM of the image, with a way out; the VM's
root becomes the new image, and the image it was made of stays as it is."
)]
pub(crate) struct Build {
    /// Name [default: debian-SUITE]
    #[arg(value_name = "NAME", required_unless_present = "suite")]
    name: Option<String>,
    /// Image it is made of, by name or id
    #[arg(long, value_name = "IMAGE", add = complete::images())]
    from: Option<String>,
    /// Debian suite
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// Program to run in it, or -
    #[arg(
        long,
        value_name = "FILE",
        requires = "from",
        conflicts_with = "packages"
    )]
    script: Option<PathBuf>,
    /// Package to add; repeats
    #[arg(long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Add Docker, of the distribution's packages
    #[arg(long)]
    docker: bool,
    /// Size of the root filesystem, like 4GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::show::size::parse_disk)]
    size: Option<String>,
    #[command(flatten)]
    own: KernelFlags,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        match self {
            Self::List(args) => args.run(place).await,
            Self::Show(args) => args.run(place).await,
            Self::Delete(args) => args.run(place).await,
            Self::Pull(args) => args.run(place).await,
            Self::Register(args) => args.run(place).await,
            Self::Promote(args) => args.run(place).await,
            Self::Build(args) => args.run(place).await,
            Self::Cache {
                verb: CacheVerb::Prune(args),
            } => args.run(place).await,
        }
    }
}

impl CachePrune {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let params = ImageCachePruneParams {
            dry_run: self.dry_run,
        };
        let client = place.reach().await?;
        let at = At::default();
        let body = client.body::<ImageCachePrune>(at, &params).await?;
        if self.json {
            return super::print_body(&body);
        }
        let done: ImageCachePruneResult = super::read(&body)?;
        let word = if done.dry_run { "would free" } else { "freed" };
        crate::show::line(&escape(&format!(
            "{word} {} across {} blob(s) in {}",
            about(done.bytes_freed),
            done.blobs_freed,
            done.cache_dir
        )))?;
        Ok(0)
    }
}

impl List {
    /// Lists.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let query: &[_] = match self.available {
            true => &[("available", "true")],
            false => &[],
        };
        let body = client
            .body::<ImageList>(At { path: &[], query }, &Empty {})
            .await?;
        if self.flags.json {
            return super::print_body(&body);
        }
        if self.available {
            let list: ImageCatalogResult = super::read(&body)?;
            return super::print_catalog(list.entries, self.flags.quiet, false);
        }
        let list: ImageListResult = super::read(&body)?;
        if self.flags.quiet {
            return super::print_text(
                &list
                    .images
                    .iter()
                    .map(|image| format!("{}\n", image.id))
                    .collect::<String>(),
            );
        }
        let mut table = Table::new(["ID", "NAME", "KIND", "SIZE", "KERNEL", "ARCH", "CREATED"]);
        for image in list.images {
            table.row([
                short_id(&image.id).to_owned(),
                image.name.clone(),
                kind(&image).to_owned(),
                image.size_bytes.map(about).unwrap_or_default(),
                kernel(&image),
                image.arch.unwrap_or_default(),
                image.created_at,
            ]);
        }
        super::print_text(&table.render())
    }
}

fn kind(image: &Image) -> &'static str {
    if image.managed {
        "managed"
    } else {
        "unmanaged"
    }
}

fn kernel(image: &Image) -> String {
    image
        .kernel_name
        .clone()
        .unwrap_or_else(|| image.kernel_path.clone())
}

impl Show {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let body = client
            .body::<ImageShow>(At::path(&[&self.image]), &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        let ImageShowResult { image } = super::read(&body)?;
        super::print_text(&facts(&[
            ("id", image.id.clone()),
            ("name", image.name.clone()),
            ("kind", kind(&image).to_owned()),
            (
                "reference",
                (image.oci.as_ref()).map_or_else(String::new, |oci| oci.reference.clone()),
            ),
            (
                "digest",
                (image.oci.as_ref()).map_or_else(String::new, |oci| oci.digest.clone()),
            ),
            ("distro", image.distro.clone().unwrap_or_default()),
            ("arch", image.arch.clone().unwrap_or_default()),
            ("size", image.size_bytes.map(about).unwrap_or_default()),
            ("kernel", kernel(&image)),
            ("initrd", image.initrd_path.clone().unwrap_or_default()),
            ("modules", image.modules_dir.clone().unwrap_or_default()),
            ("root filesystem", image.rootfs_path.clone()),
            (
                "work seed",
                image.work_seed_path.clone().unwrap_or_default(),
            ),
            ("created", image.created_at.clone()),
            ("updated", image.updated_at.clone()),
        ]))
    }
}

impl Delete {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let mut status = None;
        for reference in &self.images {
            match client.call::<ImageDelete>(&[reference], &Empty {}).await {
                Ok(gone) => crate::show::line(&escape(&gone.image.name))?,
                Err(failure) => {
                    failure.print();
                    status.get_or_insert(failure.exit);
                }
            }
        }
        Ok(status.unwrap_or(0))
    }
}

impl Pull {
    /// Pulls.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let [kernel_path, initrd_path, modules_dir] = self.own.paths()?;
        let params = ImagePullParams {
            reference: from_here(self.reference)?,
            name: self.name,
            kernel_path,
            initrd_path,
            modules_dir,
            kernel_ref: self.kernel_ref,
            // Parsed once already, with the other words.
            size_bytes: self.size.as_deref().and_then(|size| size::parse(size).ok()),
        };
        guarded(async |cancel| {
            let client = place.reach().await?;
            let begun = client.call::<ImagePull>(&[], &params).await?.operation;
            named(place, &client, &begun.id, Progress::new(), cancel).await
        })
        .await
    }
}

/// A reference as the daemon can follow it, which works in another directory.
fn from_here(reference: String) -> Result<String, Failure> {
    let split = FILES.iter().find_map(|scheme| {
        let rest = reference.strip_prefix(scheme)?;
        let end = rest.find(':').unwrap_or(rest.len());
        // Nothing is no path; the daemon says so.
        (end > 0).then(|| (scheme, rest.split_at(end)))
    });
    let Some((scheme, (path, tag))) = split else {
        return Ok(reference);
    };
    let path = absolute(Path::new(path))?;
    if path.contains(':') {
        let what = format!("{path:?} has a colon, where a path ends in {scheme}");
        return Err(Failure::new(Code::BadPath, what).hint("name it by a link without one"));
    }
    Ok(format!("{scheme}{path}{tag}"))
}

/// Follows an operation to its end and prints the image's name.
async fn named(
    place: &Place,
    client: &Client,
    operation: &str,
    mut progress: Progress,
    cancel: Cancel,
) -> Result<u8, Failure> {
    let done = follow::success(place, client, operation, &mut progress, cancel).await?;
    let name = done
        .image
        .map(|image| image.name)
        .or(done.image_name)
        .unwrap_or_default();
    crate::show::line(&escape(&name))?;
    Ok(0)
}

impl Register {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let [kernel_path, initrd_path, modules_dir] = self.own.paths()?;
        let params = ImageRegisterParams {
            name: self.name,
            rootfs_path: Some(absolute(&self.rootfs)?),
            work_seed_path: self.work_seed.as_deref().map(absolute).transpose()?,
            kernel_path,
            initrd_path,
            modules_dir,
            kernel_ref: self.kernel_ref,
            docker: false,
        };
        let client = place.reach().await?;
        let shown = client.call::<ImageRegister>(&[], &params).await?;
        crate::show::line(&escape(&shown.image.name))?;
        Ok(0)
    }
}

impl Promote {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        guarded(async |cancel| {
            let client = place.reach().await?;
            let path = [self.image.as_str()];
            let begun = client.call::<ImagePromote>(&path, &Empty {}).await?;
            named(place, &client, &begun.operation.id, Progress::new(), cancel).await
        })
        .await
    }
}

impl Build {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let idle = self.script.is_none() && self.packages.is_empty() && !self.docker;
        if self.from.is_some() && idle {
            let why = "nothing to do to the image: --script FILE, --package PACKAGE or --docker";
            return Err(Failure::usage("image build", why));
        }
        let script = self.script.as_deref().map(script::read).transpose()?;
        let [kernel_path, initrd_path, modules_dir] = self.own.paths()?;
        let params = ImageBuildParams {
            name: self.name,
            from_image: self.from,
            size: self.size,
            kernel_path,
            initrd_path,
            modules_dir,
            packages: self.packages,
            suite: self.suite,
            script,
            docker: self.docker,
        };
        guarded(async |cancel| {
            let client = place.reach().await?;
            let begun = client.call::<ImageBuild>(&[], &params).await?.operation;
            named(place, &client, &begun.id, Progress::with_log(), cancel).await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_files_are_named_from_here_and_others_left_alone() {
        let here = std::env::current_dir().unwrap();
        let here = here.display();
        for (given, meant) in [
            ("debian:12", "debian:12".to_owned()),
            ("oci-layout:", "oci-layout:".to_owned()),
            ("oci-layout::1", "oci-layout::1".to_owned()),
            ("oci-layout:/a/b:1", "oci-layout:/a/b:1".to_owned()),
            ("oci-layout:a:1", format!("oci-layout:{here}/a:1")),
            (
                "docker-archive:./a.tar:x/y:1",
                format!("docker-archive:{here}/a.tar:x/y:1"),
            ),
        ] {
            assert_eq!(from_here(given.to_owned()).unwrap(), meant);
        }
    }
}
