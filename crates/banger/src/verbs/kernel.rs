//! `kernel`: kernels by name.

use std::path::PathBuf;

use banger_api::Empty;
use banger_api::endpoint::{KernelDelete, KernelImport, KernelList, KernelPull, KernelShow};
use banger_api::kernel::{
    KernelCatalogResult, KernelEntry, KernelImportParams, KernelListResult, KernelPullParams,
    KernelShowResult,
};
use clap::{ArgGroup, Args, Subcommand};

use crate::client::At;
use crate::client::start::Place;
use crate::failure::Failure;
use crate::interrupt::guarded;
use crate::paths::absolute;
use crate::show::escape;
use crate::show::progress::Progress;
use crate::show::size::about;
use crate::show::table::{Table, facts};
use crate::{complete, follow};

/// What one does with kernels.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    List(List),
    Show(Show),
    #[command(visible_alias = "delete")]
    Rm(Rm),
    Pull(Pull),
    Import(Import),
}

/// List kernels
#[derive(Debug, Args)]
pub(crate) struct List {
    /// List what can be pulled by name instead
    #[arg(long)]
    available: bool,
    /// Print the API's answer
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// Show a kernel
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Kernel by name
    #[arg(value_name = "KERNEL", add = complete::kernels())]
    kernel: String,
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

/// Remove kernels
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Kernels by name
    #[arg(required = true, value_name = "KERNEL", add = complete::kernels())]
    kernels: Vec<String>,
}

/// Fetch a kernel
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger kernel pull debian-cloud
  banger kernel pull debian-cloud --name today
  banger kernel pull deb:linux-image-cloud-amd64
  banger kernel pull deb:linux-image-6.12-cloud-amd64 --name new

Names are those of: banger kernel list --available")]
pub(crate) struct Pull {
    /// deb:PACKAGE, or a name of the catalog
    #[arg(value_name = "KERNEL")]
    kernel: String,
    /// Name to give it [default: that of the catalog or package]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Overwrite one of that name
    #[arg(long)]
    force: bool,
}

/// Take a kernel from files of this host
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("source").required(true),
    after_help = "Examples:
  banger kernel import mine --deb ./linux-image-6.1.0-56-cloud-amd64_6.1.172-1_amd64.deb
  banger kernel import mine --from ./build"
)]
pub(crate) struct Import {
    /// Name to give it
    #[arg(value_name = "NAME")]
    name: String,
    /// Directory with boot/ and lib/modules/
    #[arg(long, group = "source", value_name = "DIR")]
    from: Option<PathBuf>,
    /// Debian package
    #[arg(long, group = "source", value_name = "FILE")]
    deb: Option<PathBuf>,
    /// Distribution to show
    #[arg(long, value_name = "DISTRO")]
    distro: Option<String>,
    /// Architecture to show
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
}

impl Verb {
    /// Does it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        match self {
            Self::List(args) => args.run(place).await,
            Self::Show(args) => args.run(place).await,
            Self::Rm(args) => args.run(place).await,
            Self::Pull(args) => args.run(place).await,
            Self::Import(args) => args.run(place).await,
        }
    }
}

impl List {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let query: &[_] = match self.available {
            true => &[("available", "true")],
            false => &[],
        };
        let body = client
            .body::<KernelList>(At { path: &[], query }, &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        if self.available {
            let list: KernelCatalogResult = super::read(&body)?;
            return super::print_catalog(list.entries, self.quiet, true);
        }
        let list: KernelListResult = super::read(&body)?;
        if self.quiet {
            return super::print_text(
                &list
                    .entries
                    .iter()
                    .map(|entry| format!("{}\n", escape(&entry.name)))
                    .collect::<String>(),
            );
        }
        let mut table = Table::new(["NAME", "DISTRO", "ARCH", "VERSION", "SIZE", "IMPORTED"]);
        for entry in list.entries {
            table.row([
                entry.name,
                entry.distro.unwrap_or_default(),
                entry.arch.unwrap_or_default(),
                entry.kernel_version.unwrap_or_default(),
                entry.size_bytes.map(about).unwrap_or_default(),
                entry.imported_at.unwrap_or_default(),
            ]);
        }
        super::print_text(&table.render())
    }
}

impl Show {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let body = client
            .body::<KernelShow>(At::path(&[&self.kernel]), &Empty {})
            .await?;
        if self.json {
            return super::print_body(&body);
        }
        let KernelShowResult { entry } = super::read(&body)?;
        let or_empty = Option::unwrap_or_default;
        super::print_text(&facts(&[
            ("name", entry.name),
            ("distro", or_empty(entry.distro)),
            ("arch", or_empty(entry.arch)),
            ("version", or_empty(entry.kernel_version)),
            ("format", or_empty(entry.format)),
            ("size", entry.size_bytes.map(about).unwrap_or_default()),
            ("source", or_empty(entry.source)),
            ("sha256", or_empty(entry.sha256)),
            ("kernel", or_empty(entry.kernel_path)),
            ("initrd", or_empty(entry.initrd_path)),
            ("modules", or_empty(entry.modules_dir)),
            ("imported", or_empty(entry.imported_at)),
        ]))
    }
}

impl Rm {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let mut status = None;
        for name in &self.kernels {
            match client.call::<KernelDelete>(&[name], &Empty {}).await {
                Ok(_) => crate::show::line(&escape(name))?,
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
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let params = match self.kernel.strip_prefix("deb:") {
            Some("") => return Err(Failure::usage("kernel pull", "deb: lacks its package")),
            Some(package) => KernelPullParams {
                name: self.name,
                force: self.force,
                package: Some(package.to_owned()),
                entry: None,
            },
            None => {
                let (name, entry) = match self.name {
                    Some(name) => (name, Some(self.kernel)),
                    None => (self.kernel, None),
                };
                KernelPullParams {
                    name: Some(name),
                    force: self.force,
                    package: None,
                    entry,
                }
            }
        };
        guarded(async |cancel| {
            let client = place.reach().await?;
            let begun = client.call::<KernelPull>(&[], &params).await?.operation;
            let mut progress = Progress::new();
            let done = follow::success(place, &client, &begun.id, &mut progress, cancel).await?;
            match done.entry {
                Some(entry) => taken(&entry)?,
                None => crate::show::line(&escape(params.name.as_deref().unwrap_or_default()))?,
            }
            Ok(0)
        })
        .await
    }
}

impl Import {
    async fn run(self, place: &Place) -> Result<u8, Failure> {
        let path = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        let params = KernelImportParams {
            name: self.name,
            from_dir: path(&self.from)?,
            distro: self.distro,
            arch: self.arch,
            deb_path: path(&self.deb)?,
        };
        let client = place.reach().await?;
        let shown = client.call::<KernelImport>(&[], &params).await?;
        taken(&shown.entry)?;
        Ok(0)
    }
}

/// Says what a kernel is called, and what it was taken in spite of.
fn taken(entry: &KernelEntry) -> Result<(), Failure> {
    for warning in &entry.warnings {
        crate::show::warn(warning);
    }
    crate::show::line(&escape(&entry.name))
}
