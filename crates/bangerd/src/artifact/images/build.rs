//! Images built from a Debian suite.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::error::Code;
use banger_api::image::{Image, ImageBuildParams};
use banger_images::suite::{self, DEFAULT_PACKAGES, SuiteSpec};
use banger_images::{Cancel, Report};
use banger_model::{ImageName, Size};

use super::super::own::GivenKernel;
use super::super::records::ImageRecord;
use super::super::{Kind, Shelf, blocking, failures, space};
use super::{Filled, bad_name, make};
use crate::failure::Failure;
use crate::ports::Progress;

/// Begins the name of an image that is a Debian suite.
const SUITE_IMAGE: &str = "debian-";

/// An image to build, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewImage {
    name: ImageName,
    suite: String,
    packages: Vec<String>,
    size: Option<Size>,
    own_kernel: Option<GivenKernel>,
}

impl NewImage {
    /// Checks what a client asks for.
    pub(crate) fn of(params: &ImageBuildParams) -> Result<Self, Failure> {
        let suite = params.suite.clone().ok_or_else(|| {
            Failure::new(
                Code::BadRequest,
                "an image is built from a suite: none is named",
            )
            .hint("banger image build --suite bookworm")
        })?;
        let name = params
            .name
            .clone()
            .unwrap_or_else(|| format!("{SUITE_IMAGE}{suite}"));
        let size = params.size.as_deref().map(Size::parse).transpose();
        let mut packages = params.packages.clone();
        packages.sort();
        packages.dedup();
        Ok(Self {
            name: bad_name(ImageName::parse(&name))?,
            suite,
            packages,
            own_kernel: GivenKernel::of(params)?,
            size: size.map_err(|error| Failure::new(Code::BadSize, error.to_string()))?,
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Two requests of one key are the same request.
    fn key(&self) -> String {
        format!(
            "{}\n{}\n{:?}\n{:?}\n{:?}",
            self.name, self.suite, self.packages, self.size, self.own_kernel
        )
    }
}

/// The suite that an image of this name is built from.
pub(crate) fn suite_of(name: &str) -> Option<&str> {
    let suite = name.strip_prefix(SUITE_IMAGE)?;
    let word = !suite.is_empty() && suite.bytes().all(|byte| byte.is_ascii_lowercase());
    word.then_some(suite)
}

/// The suite that the default image is built from where it is not here.
pub(in crate::artifact) fn obtainable(name: &str) -> Result<&str, Failure> {
    suite_of(name).ok_or_else(|| {
        Failure::new(Code::NotFound, format!("no image {name:?}"))
            .hint("banger image register, or set default_image_name")
    })
}

impl Shelf {
    /// Refuses a build that cannot succeed, before anything is begun.
    pub(crate) async fn can_build(&self, wanted: &NewImage) -> Result<(), Failure> {
        if let Some(kernel) = wanted.own_kernel.clone() {
            blocking(move || kernel.look()).await?;
        }
        self.can_make(&wanted.name).await
    }

    /// Builds an image, or joins who builds the same.
    pub(crate) async fn build_image(
        &self,
        wanted: NewImage,
        progress: &dyn Progress,
    ) -> Result<Image, Failure> {
        Ok(self.fly(wanted, progress).await?.image)
    }

    /// Where the log of a build is while it runs, and after it failed.
    pub(crate) fn build_log(&self, name: &str) -> PathBuf {
        self.0.images_dir.join(format!("{name}.build.log"))
    }

    pub(in crate::artifact) async fn obtain_default_image(
        &self,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, Failure> {
        let name = &self.0.default_image;
        let suite = obtainable(name)?;
        let wanted = NewImage {
            name: bad_name(ImageName::parse(name))?,
            suite: suite.to_owned(),
            packages: Vec::new(),
            size: None,
            own_kernel: None,
        };
        space::enough(&self.0.images_dir)?;
        self.fly(wanted, progress).await
    }

    async fn fly(&self, wanted: NewImage, progress: &dyn Progress) -> Result<ImageRecord, Failure> {
        let key = wanted.key();
        let shelf = self.clone();
        self.0
            .image_flights
            .join(&key, progress, |cancel, report| {
                shelf.build(wanted, cancel, report)
            })
            .await
    }

    async fn build(
        self,
        wanted: NewImage,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<ImageRecord, Failure> {
        let _claim = self.claim(Kind::Image, wanted.name())?;
        // Whoever came after the last look at the name gets what is there.
        if let Ok(record) = self.find_image(wanted.name()).await {
            return Ok(record);
        }
        let log = self.build_log(wanted.name());
        let parent = self.0.images_dir.clone();
        let record = blocking(move || {
            let logged = Logged::new(report, &log);
            let record = make(&wanted.name, &parent, &logged, |dir| {
                fill(&wanted, dir, &cancel, &logged)
            })?;
            let _ = fs::remove_file(&log);
            Ok(record)
        })
        .await?;
        self.add_published(record).await
    }
}

/// Builds a suite's root into a directory.
fn fill(
    wanted: &NewImage,
    dir: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Filled, Failure> {
    // First what may be refused.
    let own_kernel = match &wanted.own_kernel {
        Some(kernel) => Some(kernel.keep_in(dir, cancel, report)?),
        None => None,
    };
    let mut packages: Vec<String> = DEFAULT_PACKAGES.map(str::to_owned).to_vec();
    packages.extend(wanted.packages.iter().cloned());
    let spec = SuiteSpec {
        suite: wanted.suite.clone(),
        packages,
        size_bytes: wanted.size.map(Size::bytes),
        sync: false,
    };
    let built =
        suite::build(&spec, dir, cancel, report).map_err(|error| failures::of_suite(&error))?;
    let image = Image {
        build_size: wanted.size.map(|size| size.to_string()),
        arch: Some(built.arch),
        distro: Some(format!("{} {}", built.distro, built.suite)),
        ..Image::default()
    };
    Ok(Filled { image, own_kernel })
}

/// A report that also keeps the log in a file.
struct Logged {
    inner: Arc<dyn Report>,
    file: Mutex<Option<File>>,
}

impl Logged {
    fn new(inner: Arc<dyn Report>, path: &Path) -> Self {
        // A build without a log is better than none.
        Self {
            inner,
            file: Mutex::new(File::create(path).ok()),
        }
    }
}

impl Report for Logged {
    fn stage(&self, stage: &str, detail: &str) {
        self.inner.stage(stage, detail);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.inner.bytes(done, total);
    }

    fn log(&self, line: &str) {
        if let Some(file) = &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(file, "{line}");
        }
        self.inner.log(line);
    }
}
