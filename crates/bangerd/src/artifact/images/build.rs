//! Images that are built: which way, and those of a Debian suite; and the log
//! that every build keeps.

use std::collections::VecDeque;
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
use super::super::{Kind, Shelf, blocking, failures};
use super::derive::NewDerived;
use super::pull::parsed_size;
use super::{Filled, bad_name, make};
use crate::failure::Failure;
use crate::ports::{Builder, Progress};

/// Begins the name of an image that is a Debian suite.
const SUITE_IMAGE: &str = "debian-";

/// Ends the name of a build's log, after the image's.
pub(in crate::artifact) const BUILD_LOG: &str = ".build.log";
/// Suites whose `docker.io` has Docker's command too.
const DOCKER_IN_ONE: [&str; 3] = ["buster", "bullseye", "bookworm"];
/// Largest log that is kept, bytes.
const LOG: u64 = 64 << 20;
/// Lines of it that an error tells.
const TAIL: usize = 15;

/// An image to build, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NewBuild {
    /// Of a Debian suite.
    Suite(NewImage),
    /// Of another image.
    Derived(NewDerived),
}

impl NewBuild {
    /// Checks what a client asks for.
    pub(crate) fn of(params: &ImageBuildParams) -> Result<Self, Failure> {
        match &params.from_image {
            Some(from) => NewDerived::of(params, from).map(Self::Derived),
            None => NewImage::of(params).map(Self::Suite),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Suite(wanted) => wanted.name.as_str(),
            Self::Derived(wanted) => wanted.name(),
        }
    }
}

/// An image to build of a suite, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewImage {
    pub(super) name: ImageName,
    suite: String,
    packages: Vec<String>,
    size: Option<Size>,
    /// That it boots with, by name.
    pub(super) kernel: Option<String>,
    pub(super) own_kernel: Option<GivenKernel>,
}

impl NewImage {
    fn of(params: &ImageBuildParams) -> Result<Self, Failure> {
        let suite = params.suite.clone().ok_or_else(|| {
            Failure::new(
                Code::BadRequest,
                "an image is built of a suite or of another image: none is named",
            )
            .hint("banger image build --suite bookworm, or banger image build NAME --from IMAGE")
        })?;
        if params.script.is_some() {
            let why = "a script runs in a machine of another image: none is named";
            return Err(Failure::new(Code::BadRequest, why).hint("--from IMAGE"));
        }
        let name = params
            .name
            .clone()
            .unwrap_or_else(|| format!("{SUITE_IMAGE}{suite}"));
        let size = parsed_size(params.size.as_deref())?;
        let mut packages = params.packages.clone();
        if params.docker {
            packages.push("docker.io".to_owned());
            if !DOCKER_IN_ONE.contains(&suite.as_str()) {
                packages.push("docker-cli".to_owned());
            }
        }
        packages.sort();
        packages.dedup();
        Ok(Self {
            name: bad_name(ImageName::parse(&name))?,
            suite,
            packages,
            own_kernel: GivenKernel::of(params)?,
            size,
            kernel: None,
        })
    }

    /// A suite with nothing added.
    pub(super) fn of_suite(
        name: ImageName,
        suite: &str,
        size: Option<Size>,
        kernel: Option<String>,
        own_kernel: Option<GivenKernel>,
    ) -> Self {
        Self {
            name,
            suite: suite.to_owned(),
            packages: Vec::new(),
            size,
            kernel,
            own_kernel,
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Two requests of one key are the same request.
    fn key(&self) -> String {
        format!(
            "{}\n{}\n{:?}\n{:?}\n{:?}",
            self.name,
            self.suite,
            self.packages,
            self.size,
            (&self.kernel, &self.own_kernel)
        )
    }
}

/// The suite that an image of this name is built from.
pub(super) fn suite_of(name: &str) -> Option<&str> {
    let suite = name.strip_prefix(SUITE_IMAGE)?;
    let word = !suite.is_empty() && suite.bytes().all(|byte| byte.is_ascii_lowercase());
    word.then_some(suite)
}

impl Shelf {
    /// Refuses a build that cannot succeed, before anything is begun.
    pub(crate) async fn can_build(&self, wanted: &NewBuild) -> Result<(), Failure> {
        match wanted {
            NewBuild::Suite(wanted) => {
                self.can_make(&wanted.name).await?;
                match wanted.own_kernel.clone() {
                    Some(kernel) => blocking(move || kernel.look()).await,
                    None => Ok(()),
                }
            }
            NewBuild::Derived(wanted) => self.can_derive(wanted).await,
        }
    }

    /// Builds an image, or joins who builds the same; one of another image in a
    /// machine of this builder's.
    pub(crate) async fn build_image(
        &self,
        wanted: NewBuild,
        builder: Arc<dyn Builder>,
        progress: &dyn Progress,
    ) -> Result<Image, Failure> {
        let record = match wanted {
            NewBuild::Suite(wanted) => self.fly(wanted, progress).await?,
            NewBuild::Derived(wanted) => self.derive_image(wanted, builder, progress).await?,
        };
        Ok(record.image)
    }

    /// Where the log of a build is while it runs, and after it failed.
    pub(crate) fn build_log(&self, name: &str) -> PathBuf {
        self.0.images_dir.join(format!("{name}{BUILD_LOG}"))
    }

    pub(super) async fn fly(
        &self,
        wanted: NewImage,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, Failure> {
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
        let _claim = self.claim(Kind::Image, wanted.name.as_str())?;
        // Whoever came after the last look at the name gets what is there.
        if let Ok(record) = self.find_image(wanted.name.as_str()).await {
            return Ok(record);
        }
        let log = self.build_log(wanted.name.as_str());
        let parent = self.0.images_dir.clone();
        let logged = Arc::new(Logged::new(report, &log));
        let (name, kept, switch) = (wanted.name.clone(), logged.clone(), cancel.clone());
        let made = blocking(move || {
            make(&wanted.name, &parent, &*logged, |dir| {
                fill(&wanted, dir, &switch, &*logged)
            })
        });
        let made = match made.await {
            Ok(record) => self.add_published(record, &cancel).await,
            Err(failure) => Err(failure),
        };
        kept.end(name.as_str(), made)
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
        kernel_name: wanted.kernel.clone(),
        build_size: wanted.size.map(|size| size.to_string()),
        arch: Some(built.arch),
        distro: Some(format!("{} {}", built.distro, built.suite)),
        ..Image::default()
    };
    Ok(Filled { image, own_kernel })
}

/// A report that also keeps the log in a file, and its end at hand.
pub(super) struct Logged {
    inner: Arc<dyn Report>,
    path: PathBuf,
    kept: Mutex<Kept>,
}

struct Kept {
    file: Option<File>,
    /// Whether there is a file at all.
    begun: bool,
    /// Bytes that the file may still take.
    left: u64,
    tail: VecDeque<String>,
}

impl Logged {
    pub(super) fn new(inner: Arc<dyn Report>, path: &Path) -> Self {
        // A build without a log is better than none.
        let file = File::create(path).ok();
        let kept = Kept {
            begun: file.is_some(),
            file,
            left: LOG,
            tail: VecDeque::new(),
        };
        Self {
            inner,
            path: path.to_owned(),
            kept: Mutex::new(kept),
        }
    }

    /// The build has ended. Its log stays only where it failed; then the failure says which image
    /// was built, the log's end, and where the whole of it is.
    pub(super) fn end<T>(&self, image: &str, made: Result<T, Failure>) -> Result<T, Failure> {
        let mut failure = match made {
            Err(failure) if failure.code != Code::Cancelled => failure,
            made => {
                let _ = fs::remove_file(&self.path);
                return made;
            }
        };
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        failure.message = format!("cannot build {image:?}: {}", failure.message);
        if failure.code == Code::BuildFailed {
            for line in &kept.tail {
                failure.message.push('\n');
                failure.message.push_str(line);
            }
        }
        if kept.begun {
            let whole = format!("the whole log is {}", self.path.display());
            failure.hint = Some(match failure.hint {
                Some(hint) => format!("{hint}; {whole}"),
                None => whole,
            });
        }
        Err(failure)
    }
}

impl Kept {
    fn line(&mut self, line: &str) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
        let Some(file) = &mut self.file else { return };
        let length = line.len() as u64 + 1;
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                let _ = writeln!(file, "{line}");
            }
            None => {
                let _ = writeln!(file, "(what follows was too much to keep)");
                self.file = None;
            }
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

    fn part(&self, part: &str, done: u64, total: u64) {
        self.inner.part(part, done, total);
    }

    fn log(&self, line: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.line(line);
        drop(kept);
        self.inner.log(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_kept_up_to_its_limit_and_its_end_is_at_hand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logged = Logged::new(Arc::new(banger_images::Quiet), &path);
        logged.kept.lock().unwrap().left = 12;
        for line in ["first", "second", "third"] {
            logged.log(line);
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "first\n(what follows was too much to keep)\n");
        for count in 0..TAIL {
            logged.log(&count.to_string());
        }
        let made = || Err::<(), _>(Failure::new(Code::BuildFailed, "no"));
        let failure = logged.end("dev", made()).unwrap_err();
        let mut lines = failure.message.lines();
        assert_eq!(lines.next(), Some("cannot build \"dev\": no"));
        let tail: Vec<_> = lines.collect();
        assert_eq!((tail.len(), tail[0]), (TAIL, "0"));
        assert!(failure.hint.unwrap().contains("the whole log is "));

        // A log that could not be begun is not named.
        let nowhere = dir.path().join("nothing/log");
        let logged = Logged::new(Arc::new(banger_images::Quiet), &nowhere);
        assert_eq!(logged.end("dev", made()).unwrap_err().hint, None);
        // And none is left of what was given up.
        let logged = Logged::new(Arc::new(banger_images::Quiet), &path);
        let _ = logged.end(
            "dev",
            Err::<(), _>(Failure::new(Code::Cancelled, "cancelled")),
        );
        assert!(!path.exists());
    }

    #[test]
    fn docker_of_a_suite_is_its_packages() {
        let packages = |suite: &str| {
            let params = ImageBuildParams {
                suite: Some(suite.to_owned()),
                docker: true,
                ..ImageBuildParams::default()
            };
            NewImage::of(&params).unwrap().packages
        };
        assert_eq!(packages("bookworm"), ["docker.io"]);
        assert_eq!(packages("trixie"), ["docker-cli", "docker.io"]);
    }
}
