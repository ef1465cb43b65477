//! Images made of others, in a machine that runs a script or installs packages.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use banger_api::error::Code;
use banger_api::image::{Image, ImageBuildParams, OciConfig};
use banger_images::oci::{Order, Written};
use banger_images::{Cancel, Report, distribution, ext4, worker};
use banger_model::{ImageName, Size};

use super::super::own::{GivenKernel, KERNEL};
use super::super::records::ImageRecord;
use super::super::{Kind, Shelf, blocking, failures, space};
use super::build::Logged;
use super::pull::parsed_size;
use super::{Filled, bad_name, make};
use crate::failure::Failure;
use crate::ports::{Artifacts, BuildJob, BuildWork, Builder, OwnKernel, Progress};

/// Largest script, bytes.
const SCRIPT: usize = 1 << 20;

/// An image to make of another, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewDerived {
    name: ImageName,
    size: Option<Size>,
    own_kernel: Option<GivenKernel>,
    job: BuildJob,
}

impl NewDerived {
    /// Checks what a client asks for; `from` is in it.
    pub(super) fn of(params: &ImageBuildParams, from: &str) -> Result<Self, Failure> {
        let bad = |why: &str, hint: &str| Failure::new(Code::BadRequest, why).hint(hint);
        if params.suite.is_some() {
            let why = "an image is made of another or of a suite, not of both";
            return Err(bad(why, "--from IMAGE, or --suite SUITE"));
        }
        let name = params.name.as_deref().ok_or_else(|| {
            let why = "an image that is made of another needs a name";
            bad(why, "banger image build NAME --from IMAGE --script FILE")
        })?;
        let size = parsed_size(params.size.as_deref())?;
        let work = match (&params.script, &params.packages[..]) {
            (Some(_), [_, ..]) => {
                let why = "an image is made by a script or by packages, not by both";
                return Err(bad(why, "install the packages in the script"));
            }
            (None, []) if !params.docker => {
                let why =
                    "nothing would be done to the image: neither a script nor a package is named";
                return Err(bad(why, "--script FILE, or --package PACKAGE"));
            }
            (Some(script), []) if script.len() > SCRIPT => {
                let why = format!("a script of {} bytes is larger than 1 MiB", script.len());
                return Err(Failure::new(Code::TooLarge, why));
            }
            (Some(script), []) => BuildWork::Script(script.clone()),
            (None, packages) => BuildWork::Packages(checked(packages)?),
        };
        Ok(Self {
            name: bad_name(ImageName::parse(name))?,
            size,
            own_kernel: GivenKernel::of(params)?,
            job: BuildJob {
                name: name.to_owned(),
                from: from.to_owned(),
                least_disk: size,
                docker: params.docker,
                work,
            },
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Two requests of one key are the same request.
    fn key(&self) -> String {
        format!("derive\n{:?}", (self.size, &self.own_kernel, &self.job))
    }
}

/// Names of packages that are nothing else to a package manager.
fn checked(packages: &[String]) -> Result<Vec<String>, Failure> {
    if packages.len() > distribution::MAX_PACKAGES {
        let why = format!("more than {} packages", distribution::MAX_PACKAGES);
        return Err(Failure::new(Code::TooLarge, why));
    }
    match packages.iter().find(|name| !distribution::is_package(name)) {
        Some(name) => {
            let shown: String = name.chars().take(80).collect();
            let why = format!("{shown:?} is not a name of a package");
            Err(Failure::new(Code::BadName, why))
        }
        None => Ok(packages.to_vec()),
    }
}

impl Shelf {
    pub(super) async fn can_derive(&self, wanted: &NewDerived) -> Result<(), Failure> {
        self.can_make(&wanted.name).await?;
        if let Some(kernel) = wanted.own_kernel.clone() {
            blocking(move || kernel.look()).await?;
        }
        self.known(Some(&wanted.job.from), None).await
    }

    /// Makes an image of another, or joins who makes the same.
    pub(super) async fn derive_image(
        &self,
        wanted: NewDerived,
        builder: Arc<dyn Builder>,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, Failure> {
        let key = wanted.key();
        let shelf = self.clone();
        let work = |cancel, report| shelf.derive(wanted, builder, cancel, report);
        self.0.image_flights.join(&key, progress, work).await
    }

    async fn derive(
        self,
        wanted: NewDerived,
        builder: Arc<dyn Builder>,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<ImageRecord, Failure> {
        let _claim = self.claim(Kind::Image, wanted.name())?;
        // Whoever came after the last look at the name gets what is there.
        self.can_derive(&wanted).await?;
        let log = self.build_log(wanted.name());
        let logged = Arc::new(Logged::new(report, &log));
        let made = self.built(&wanted, &*builder, cancel, logged.clone()).await;
        logged.end(wanted.name(), made)
    }

    async fn built(
        &self,
        wanted: &NewDerived,
        builder: &dyn Builder,
        cancel: Cancel,
        report: Arc<Logged>,
    ) -> Result<ImageRecord, Failure> {
        let parent = self.0.images_dir.clone();
        // As it is now; the default image may have to be obtained first.
        let before = self.find_image(&wanted.job.from).await.ok();
        // Without a name, so that it is gone with us.
        let spool = tempfile::tempfile_in(&parent).map_err(|error| {
            space::failed("cannot make a file for the image".to_owned(), &error)
        })?;
        let into = spool
            .try_clone()
            .map_err(|error| Failure::internal("out of descriptors", &error))?;
        builder
            .build(&wanted.job, cancel.clone(), &*report, into)
            .await?;
        let base = match before {
            Some(base) => base,
            None => self.find_image(&wanted.job.from).await?,
        };
        let (name, size) = (wanted.name.clone(), wanted.size);
        let (given, switch) = (wanted.own_kernel.clone(), cancel.clone());
        let record = blocking(move || {
            make(&name, &parent, &*report, |dir| {
                let own_kernel = keep_kernel(&base, given.as_ref(), dir, &switch, &*report)?;
                let mut image = fill(&base, spool, dir, size, &switch, &*report)?;
                if given.is_some() {
                    image.kernel_name = None;
                }
                Ok(Filled { image, own_kernel })
            })
        })
        .await?;
        self.add_published(record, &cancel).await
    }
}

/// The kernel that an image has of its own: one that was given for it, or that
/// of the image it is made of.
fn keep_kernel(
    base: &ImageRecord,
    given: Option<&GivenKernel>,
    dir: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Option<OwnKernel>, Failure> {
    if let Some(given) = given {
        return given.keep_in(dir, cancel, report).map(Some);
    }
    if let Some(own) = &base.own_kernel {
        share(&own.dir, &dir.join(KERNEL))
            .map_err(|error| Failure::internal("cannot keep the image's own kernel", &error))?;
    }
    Ok(base.own_kernel.clone())
}

/// Writes what a machine packed into a directory, as an image that is like the
/// one it was made of.
fn fill(
    base: &ImageRecord,
    spool: File,
    dir: &Path,
    size: Option<Size>,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<Image, Failure> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid)
        .map_err(|error| Failure::internal("the host has no random numbers", &error))?;
    let order = Order {
        size_bytes: size.map(Size::bytes),
        uuid: ext4::as_uuid(uuid),
        diff_ids: None,
    };
    let written = worker::write_packed(spool, dir, &order, cancel, report)
        .map_err(|error| failures::of_packed(&error))?;
    Ok(like(&base.image, written, size))
}

/// What is said of an image that is made of another.
fn like(base: &Image, written: Written, size: Option<Size>) -> Image {
    Image {
        build_size: size.map(|size| size.to_string()),
        kernel_name: base.kernel_name.clone(),
        arch: (base.arch.clone()).or_else(|| Some(super::super::host_arch().to_owned())),
        distro: written.distro.or_else(|| base.distro.clone()),
        oci: base.oci.clone().map(|oci| OciConfig {
            // Those are of what it was made of.
            reference: String::new(),
            digest: String::new(),
            ..oci
        }),
        ..Image::default()
    }
}

/// The same files under other names: nobody writes to them.
fn share(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            share(&entry.path(), &place)?;
        } else if fs::hard_link(entry.path(), &place).is_err() {
            fs::copy(entry.path(), &place)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::build::NewBuild;
    use super::*;

    fn params() -> ImageBuildParams {
        ImageBuildParams {
            name: Some("dev".to_owned()),
            from_image: Some("base".to_owned()),
            script: Some("true".to_owned()),
            ..ImageBuildParams::default()
        }
    }

    fn refused(change: impl FnOnce(&mut ImageBuildParams)) -> Failure {
        let mut params = params();
        change(&mut params);
        NewBuild::of(&params).unwrap_err()
    }

    #[test]
    fn an_image_is_made_by_a_script_or_by_packages() {
        assert_eq!(NewBuild::of(&params()).unwrap().name(), "dev");
        let both = refused(|params| params.packages = vec!["jq".to_owned()]);
        assert_eq!(both.code, Code::BadRequest);
        let neither = refused(|params| params.script = None);
        assert_eq!(neither.code, Code::BadRequest);
        assert!(neither.hint.unwrap().contains("--script"));
        let docker = ImageBuildParams {
            script: None,
            docker: true,
            ..params()
        };
        assert!(NewBuild::of(&docker).is_ok(), "that is something to do");
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_begun() {
        let code = |change: fn(&mut ImageBuildParams)| refused(change).code;
        assert_eq!(code(|params| params.name = None), Code::BadRequest);
        assert_eq!(
            code(|params| params.name = Some("A".to_owned())),
            Code::BadName
        );
        assert_eq!(
            code(|params| params.suite = Some("trixie".to_owned())),
            Code::BadRequest
        );
        assert_eq!(
            code(|params| params.size = Some("0".to_owned())),
            Code::BadSize
        );
        assert_eq!(
            code(|params| params.script = Some("x".repeat(SCRIPT + 1))),
            Code::TooLarge
        );
        assert_eq!(code(|params| params.from_image = None), Code::BadRequest);
        let package = |name: &str| {
            let name = name.to_owned();
            refused(|params| {
                params.script = None;
                params.packages = vec![name];
            })
        };
        assert_eq!(package("--root=/").code, Code::BadName);
        assert_eq!(package("a b").code, Code::BadName);
    }

    #[test]
    fn an_image_is_like_what_it_was_made_of_but_says_itself_what_it_is() {
        let base = Image {
            id: "1".to_owned(),
            kernel_name: Some("k".to_owned()),
            distro: Some("debian bookworm".to_owned()),
            work_seed_path: Some("/seed".to_owned()),
            oci: Some(OciConfig {
                reference: "docker.io/x:1".to_owned(),
                digest: "sha256:0".to_owned(),
                env: vec!["A=b".to_owned()],
                working_dir: "/srv".to_owned(),
                entrypoint: vec!["/init".to_owned()],
                ..OciConfig::default()
            }),
            ..Image::default()
        };
        let written = Written {
            distro: Some("debian trixie".to_owned()),
            ..Written::default()
        };
        let made = like(&base, written, Size::parse("4G").ok());
        assert_eq!(
            (made.id.as_str(), made.kernel_name.as_deref()),
            ("", Some("k"))
        );
        assert_eq!(made.distro.as_deref(), Some("debian trixie"));
        assert_eq!(
            (made.build_size.as_deref(), made.work_seed_path),
            (Some("4G"), None)
        );
        let oci = made.oci.unwrap();
        assert_eq!(
            (oci.env, oci.working_dir.as_str()),
            (vec!["A=b".to_owned()], "/srv")
        );
        assert_eq!(oci.entrypoint, ["/init"]);
        assert_eq!((oci.reference, oci.digest), (String::new(), String::new()));
        let silent = like(&base, Written::default(), None);
        assert_eq!(silent.distro, base.distro);
    }

    #[test]
    fn a_kernel_is_shared_and_outlives_whom_it_was_given_to() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir_all(from.join("boot-modules")).unwrap();
        fs::write(from.join("vmlinux"), "kernel").unwrap();
        fs::write(from.join("boot-modules/order"), "virtio").unwrap();
        share(&from, &to).unwrap();
        fs::remove_dir_all(&from).unwrap();
        assert_eq!(fs::read_to_string(to.join("vmlinux")).unwrap(), "kernel");
        assert_eq!(
            fs::read_to_string(to.join("boot-modules/order")).unwrap(),
            "virtio"
        );
    }
}
