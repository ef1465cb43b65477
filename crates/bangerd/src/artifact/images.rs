//! Images: built from a Debian suite, registered from the host's files,
//! listed, forgotten.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::error::Code;
use banger_api::image::{Image, ImageBuildParams, ImageRegisterParams};
use banger_images::suite::{self, DEFAULT_PACKAGES, SuiteInfo, SuiteSpec};
use banger_images::{Cancel, Report};
use banger_model::{ImageName, Size};
use banger_store::images::{self, ImageRow};
use banger_store::{Connection, StoreError, Transaction};

use super::own::GivenKernel;
use super::publish::{self, Staging};
use super::records::{self, FileMark, ImageRecord};
use super::{Kind, Shelf, Unseen, blocking, failures, space, users};
use crate::failure::Failure;
use crate::operation::now;
use crate::ports::{BootImage, OwnKernel, Progress};

/// Begins the name of an image that is a Debian suite.
const SUITE_IMAGE: &str = "debian-";
/// Where an ext4 file has its magic, and what it is.
const EXT4_MAGIC: (u64, [u8; 2]) = (0x438, [0x53, 0xef]);

/// An image to build, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewImage {
    name: ImageName,
    suite: String,
    packages: Vec<String>,
    size: Option<Size>,
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
            "{}\n{}\n{:?}\n{:?}",
            self.name, self.suite, self.packages, self.size
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
pub(super) fn obtainable(name: &str) -> Result<&str, Failure> {
    suite_of(name).ok_or_else(|| {
        Failure::new(Code::NotFound, format!("no image {name:?}"))
            .hint("banger image register, or set default_image_name")
    })
}

fn bad_name<T>(parsed: Result<T, banger_model::name::BadName>) -> Result<T, Failure> {
    parsed.map_err(|error| Failure::new(Code::BadName, error.to_string()))
}

impl Shelf {
    /// Every image, by name.
    pub(crate) async fn images(&self) -> Result<Vec<Image>, Failure> {
        let rows = self.0.store.read(images::list).await?;
        rows.iter()
            .map(|row| Ok(records::image(row)?.image))
            .collect()
    }

    /// The image of this name, id, or unique beginning of an id.
    pub(crate) async fn image_shown(&self, reference: &str) -> Result<Image, Failure> {
        Ok(self.find_image(reference).await?.image)
    }

    pub(super) async fn find_image(&self, reference: &str) -> Result<ImageRecord, Failure> {
        let key = reference.to_owned();
        let rows = self
            .0
            .store
            .read(move |db| {
                if let Some(exact) = images::by_name(db, &key)? {
                    return Ok(vec![exact]);
                }
                let mut rows = images::list(db)?;
                rows.retain(|row| row.id == key || (key.len() >= 4 && row.id.starts_with(&key)));
                Ok(rows)
            })
            .await?;
        match rows.as_slice() {
            [row] => records::image(row),
            [] => {
                let shown: String = reference.chars().take(80).collect();
                let hint = match suite_of(&shown) {
                    Some(suite) => format!("banger image build --suite {suite}"),
                    None => "banger image list".to_owned(),
                };
                Err(Failure::new(Code::NotFound, format!("no image {shown:?}")).hint(hint))
            }
            several => {
                let names: Vec<&str> = several.iter().map(|row| row.name.as_str()).collect();
                Err(Failure::new(
                    Code::Ambiguous,
                    format!("{reference:?} may be any of {}", names.join(", ")),
                ))
            }
        }
    }

    /// Refuses a build that cannot succeed, before anything is begun.
    pub(crate) async fn can_build(&self, wanted: &NewImage) -> Result<(), Failure> {
        space::enough(&self.0.images_dir)?;
        let name = wanted.name.to_string();
        match self
            .0
            .store
            .read(move |db| images::by_name(db, &name))
            .await?
        {
            Some(_) => Err(already_exists(&wanted.name)),
            None => Ok(()),
        }
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

    pub(super) async fn obtain_default_image(
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
            let record = make(&wanted, &parent, &cancel, &logged)?;
            let _ = fs::remove_file(&log);
            Ok(record)
        })
        .await?;
        self.add_published(record).await
    }

    /// Writes the row of an image whose directory is in place.
    async fn add_published(&self, record: ImageRecord) -> Result<ImageRecord, Failure> {
        let place = self.0.images_dir.join(&record.image.id);
        let row = row(&record);
        match self
            .0
            .store
            .promise(move |tx| images::insert(tx, &row))
            .await
        {
            Ok(()) => {
                publish::settle(&place);
                tracing::info!(
                    image = record.image.name,
                    id = record.image.id,
                    "image added"
                );
                Ok(record)
            }
            Err(error) => {
                let _ = fs::remove_dir_all(&place);
                Err(error.into())
            }
        }
    }

    /// Takes a file of the host as an image, or updates one taken before. A
    /// kernel that is given along is made ready and kept.
    pub(crate) async fn register(&self, params: ImageRegisterParams) -> Result<Image, Failure> {
        let kernel = GivenKernel::of(&params)?;
        if let Some(kernel) = &params.kernel_ref {
            self.find_kernel(kernel).await?;
        }
        // A taken name is refused before any file is looked at.
        if let Some(name) = &params.name {
            let name = bad_name(ImageName::parse(name))?;
            self.0.store.read(move |db| replaced(db, &name)).await??;
        }
        let key = format!("register\n{params:?}");
        let wanted = blocking(move || Registered::of(&params)).await?;
        let shelf = self.clone();
        let progress = Unseen::new()?;
        // In a flight, so that a client's leaving ends it cleanly.
        let work = |cancel: Cancel, report: Arc<dyn Report>| async move {
            shelf.put_registered(wanted, kernel, cancel, report).await
        };
        Ok(self
            .0
            .image_flights
            .join(&key, &progress, work)
            .await?
            .image)
    }

    /// The kernel's directory is in place before the row that speaks of it, and
    /// the one it replaces goes after that.
    async fn put_registered(
        self,
        mut wanted: Registered,
        kernel: Option<GivenKernel>,
        cancel: Cancel,
        report: Arc<dyn Report>,
    ) -> Result<ImageRecord, Failure> {
        let _claim = self.claim(Kind::Image, wanted.name.as_str())?;
        let name = wanted.name.clone();
        let old = self.0.store.read(move |db| replaced(db, &name)).await??;
        let before = old.and_then(|old| old.own_kernel).map(|own| own.dir);
        if let Some(kernel) = kernel {
            space::enough(&self.0.images_dir)?;
            let parent = self.0.images_dir.clone();
            let own = blocking(move || kernel.make_ready(&parent, &cancel, &*report)).await?;
            wanted.own_kernel = Some(own);
        }
        let after = wanted.own_kernel.as_ref().map(|own| own.dir.clone());
        if let Some(before) = &before {
            unsettle(before)?;
        }
        let written = self
            .0
            .store
            .promise(move |tx| wanted.write(tx))
            .await
            .map_err(Failure::from)
            .and_then(|written| written);
        let (stays, goes) = match &written {
            Ok(_) => (after, before),
            Err(_) => (before, after),
        };
        if let Some(stays) = stays {
            publish::settle(&stays);
        }
        if let Some(goes) = goes {
            blocking(move || {
                remove(&goes);
                Ok(())
            })
            .await?;
            self.prune_soon();
        }
        written
    }

    /// Forgets an image and removes the files banger owns.
    pub(crate) async fn delete_image(&self, reference: &str) -> Result<Image, Failure> {
        let record = self.find_image(reference).await?;
        let _claim = self.claim(Kind::Image, &record.image.name)?;
        let kept = record.kept(&self.0.images_dir);
        let image = record.image;
        if let Some(kept) = &kept {
            unsettle(kept)?;
        }
        let (id, name) = (image.id.clone(), image.name.clone());
        let users = self
            .0
            .store
            .promise(move |tx| {
                let users = users::of_image(tx, &id, &name)?;
                if users.is_empty() {
                    images::delete(tx, &id)?;
                }
                Ok(users)
            })
            .await?;
        if !users.is_empty() {
            if let Some(kept) = &kept {
                publish::settle(kept);
            }
            return Err(users::in_use("image", &image.name, &users));
        }
        if let Some(kept) = kept {
            blocking(move || {
                remove(&kept);
                Ok(())
            })
            .await?;
            self.prune_soon();
        }
        tracing::info!(image = image.name, id = image.id, "image removed");
        Ok(image)
    }

    pub(super) async fn recover_images(&self) -> Result<(), Failure> {
        let rows = self.0.store.read(images::list).await?;
        let parent = self.0.images_dir.clone();
        let mut known = Vec::new();
        for row in &rows {
            known.extend(records::image(row)?.kept(&parent));
        }
        let unsure = blocking(move || {
            publish::sweep(&parent, |name| known.contains(&parent.join(name)))
                .map_err(|error| cannot_sweep(&parent, &error))
        })
        .await?;
        for id in unsure {
            publish::settle(&self.0.images_dir.join(id));
        }
        Ok(())
    }
}

fn unsettle(place: &Path) -> Result<(), Failure> {
    publish::unsettle(place)
        .map_err(|error| Failure::internal(format!("cannot write to {}", place.display()), &error))
}

/// Removes what no row speaks of any more.
fn remove(place: &Path) {
    if let Err(error) = fs::remove_dir_all(place)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %place.display(), %error, "left for the next start");
    }
}

pub(super) fn cannot_sweep(parent: &Path, error: &io::Error) -> Failure {
    Failure::internal(
        format!("cannot clear {} of unfinished work", parent.display()),
        error,
    )
}

fn already_exists(name: &ImageName) -> Failure {
    Failure::new(
        Code::AlreadyExists,
        format!("image \"{name}\" already exists"),
    )
    .hint(format!("banger image delete {name}, or another name"))
}

fn row(record: &ImageRecord) -> ImageRow {
    ImageRow {
        id: record.image.id.clone(),
        name: record.image.name.clone(),
        record: serde_json::to_string(record).expect("a record is plain JSON"),
    }
}

pub(super) fn new_id() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    banger_model::id::hex(&bytes)
}

/// Builds an image's directory and puts it in place, without a row yet.
fn make(
    wanted: &NewImage,
    parent: &Path,
    cancel: &Cancel,
    report: &dyn Report,
) -> Result<ImageRecord, Failure> {
    let cannot = |action: &str| {
        let what = format!("cannot {action} image \"{}\"", wanted.name);
        move |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull => Failure::new(Code::NoSpace, what).caused_by(&error),
            _ => Failure::internal(what, &error),
        }
    };
    let staging = Staging::new(parent).map_err(cannot("begin"))?;
    let mut packages: Vec<String> = DEFAULT_PACKAGES.map(str::to_owned).to_vec();
    packages.extend(wanted.packages.iter().cloned());
    let spec = SuiteSpec {
        suite: wanted.suite.clone(),
        packages,
        size_bytes: wanted.size.map(Size::bytes),
        sync: false,
    };
    let built = suite::build(&spec, staging.path(), cancel, report)
        .map_err(|error| failures::of_suite(&error))?;
    report.stage("publish", wanted.name());
    let id = new_id();
    let place = parent.join(&id);
    let record = ImageRecord {
        image: built_image(wanted, &built, id, &place, staging.path()),
        rootfs: None,
        work_seed: None,
        own_kernel: None,
    };
    let text = serde_json::to_vec_pretty(&record).expect("a record is plain JSON");
    fs::write(staging.path().join("image.json"), text).map_err(cannot("write"))?;
    staging.publish(&place).map_err(cannot("publish"))?;
    Ok(record)
}

fn built_image(
    wanted: &NewImage,
    built: &SuiteInfo,
    id: String,
    place: &Path,
    staging: &Path,
) -> Image {
    let created_at = now();
    Image {
        id,
        name: wanted.name.to_string(),
        managed: true,
        artifact_dir: Some(place.display().to_string()),
        rootfs_path: place.join("rootfs.ext4").display().to_string(),
        build_size: wanted.size.map(|size| size.to_string()),
        updated_at: created_at.clone(),
        created_at,
        arch: Some(built.arch.clone()),
        distro: Some(format!("{} {}", built.distro, built.suite)),
        size_bytes: allocated(&staging.join("rootfs.ext4")),
        ..Image::default()
    }
}

fn allocated(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.blocks() * 512)
}

/// An image as a boot needs it. Refuses files that changed since they were
/// registered: a VM's overlay rests on every block of them.
pub(super) fn boot_image(record: &ImageRecord) -> Result<BootImage, Failure> {
    let image = &record.image;
    let rootfs = PathBuf::from(&image.rootfs_path);
    let work_seed = image.work_seed_path.as_ref().map(PathBuf::from);
    verify(image, &rootfs, record.rootfs)?;
    if let Some(seed) = &work_seed {
        verify(image, seed, record.work_seed)?;
    }
    let (env, working_dir) = match &image.oci {
        Some(oci) => (
            oci.env.clone(),
            Some(oci.working_dir.clone()).filter(|dir| !dir.is_empty()),
        ),
        None => (Vec::new(), None),
    };
    Ok(BootImage {
        id: image.id.clone(),
        name: image.name.clone(),
        rootfs,
        work_seed,
        kernel_name: image.kernel_name.clone(),
        own_kernel: record.own_kernel.clone(),
        env,
        working_dir,
    })
}

fn verify(image: &Image, path: &Path, mark: Option<FileMark>) -> Result<(), Failure> {
    let hint = if image.managed {
        format!("banger image delete {}", image.name)
    } else {
        format!(
            "banger image register {} --rootfs {}",
            image.name, image.rootfs_path
        )
    };
    let now = FileMark::of(path).map_err(|error| {
        Failure::new(
            Code::InUse,
            format!(
                "{} of image {:?} cannot be read",
                path.display(),
                image.name
            ),
        )
        .caused_by(&error)
        .hint(hint.clone())
    })?;
    match mark {
        Some(mark) if mark != now => Err(Failure::new(
            Code::InUse,
            format!(
                "{} changed since image {:?} was registered",
                path.display(),
                image.name
            ),
        )
        .hint(hint)),
        _ => Ok(()),
    }
}

/// The image that a registration under this name would replace: an unmanaged
/// one that no VM has, or none.
fn replaced(
    db: &Connection,
    name: &ImageName,
) -> Result<Result<Option<ImageRecord>, Failure>, StoreError> {
    let old = match images::by_name(db, name.as_str())?
        .map(|row| records::image(&row))
        .transpose()
    {
        Ok(Some(old)) => old,
        Ok(None) => return Ok(Ok(None)),
        Err(failure) => return Ok(Err(failure)),
    };
    if old.image.managed {
        return Ok(Err(already_exists(name)));
    }
    let users = users::of_image(db, &old.image.id, &old.image.name)?;
    if users.is_empty() {
        Ok(Ok(Some(old)))
    } else {
        Ok(Err(users::in_use("image", &old.image.name, &users)))
    }
}

pub(super) fn absolute(path: &str) -> Result<PathBuf, Failure> {
    let shown: String = path.chars().take(400).collect();
    if Path::new(path).is_absolute() {
        Ok(path.into())
    } else {
        let why = format!("{shown:?} is not an absolute path");
        Err(Failure::new(Code::BadPath, why))
    }
}

/// Files of the host to take as an image, checked.
struct Registered {
    name: ImageName,
    rootfs: (PathBuf, FileMark),
    work_seed: Option<(PathBuf, FileMark)>,
    kernel_name: Option<String>,
    /// Files of a kernel, as given: kernel, initrd, modules.
    given: [Option<String>; 3],
    own_kernel: Option<OwnKernel>,
    size_bytes: Option<u64>,
}

impl Registered {
    fn of(params: &ImageRegisterParams) -> Result<Self, Failure> {
        let rootfs = params.rootfs_path.as_deref().ok_or_else(|| {
            Failure::new(Code::BadRequest, "no root file is named").hint("--rootfs FILE")
        })?;
        let rootfs = ext4_file(rootfs)?;
        let name = match &params.name {
            Some(name) => name.clone(),
            None => rootfs
                .0
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .to_lowercase(),
        };
        Ok(Self {
            name: bad_name(ImageName::parse(&name))?,
            work_seed: params
                .work_seed_path
                .as_deref()
                .map(ext4_file)
                .transpose()?,
            kernel_name: params.kernel_ref.clone(),
            given: [
                params.kernel_path.clone(),
                params.initrd_path.clone(),
                params.modules_dir.clone(),
            ],
            own_kernel: None,
            size_bytes: allocated(&rootfs.0),
            rootfs,
        })
    }

    /// Adds the image, or updates the unmanaged one of its name unless a VM
    /// has it.
    fn write(self, tx: &Transaction<'_>) -> Result<Result<ImageRecord, Failure>, StoreError> {
        let old = match replaced(tx, &self.name)? {
            Ok(old) => old,
            Err(failure) => return Ok(Err(failure)),
        };
        let path = |path: &Path| path.display().to_string();
        let [kernel_path, initrd_path, modules_dir] = self.given;
        let updated_at = now();
        let record = ImageRecord {
            image: Image {
                id: old.as_ref().map_or_else(new_id, |old| old.image.id.clone()),
                name: self.name.to_string(),
                managed: false,
                rootfs_path: path(&self.rootfs.0),
                work_seed_path: self.work_seed.as_ref().map(|(seed, _)| path(seed)),
                created_at: old
                    .as_ref()
                    .map_or(&updated_at, |old| &old.image.created_at)
                    .clone(),
                updated_at,
                kernel_path: kernel_path.unwrap_or_default(),
                initrd_path,
                modules_dir,
                kernel_name: self.kernel_name,
                size_bytes: self.size_bytes,
                ..Image::default()
            },
            rootfs: Some(self.rootfs.1),
            work_seed: self.work_seed.map(|(_, mark)| mark),
            own_kernel: self.own_kernel,
        };
        let row = row(&record);
        match old {
            Some(_) => drop(images::update(tx, &row.id, &row.record)?),
            None => images::insert(tx, &row)?,
        }
        Ok(Ok(record))
    }
}

/// A regular file of the host with an ext4 file system that it holds whole.
fn ext4_file(path: &str) -> Result<(PathBuf, FileMark), Failure> {
    let shown: String = path.chars().take(400).collect();
    let bad = |why: &str| Failure::new(Code::BadPath, format!("{shown:?} {why}"));
    absolute(path)?;
    let cannot = |error: io::Error| bad("cannot be read").caused_by(&error);
    let real = fs::canonicalize(path).map_err(cannot)?;
    if !fs::metadata(&real).map_err(cannot)?.is_file() {
        return Err(bad("is not a regular file"));
    }
    if real.to_str().is_none() {
        return Err(bad("is not UTF-8"));
    }
    let file = File::open(&real).map_err(cannot)?;
    let mut superblock = [0; 1024];
    let whole = file.read_exact_at(&mut superblock, 1024).is_ok();
    let at = usize::try_from(EXT4_MAGIC.0 - 1024).expect("inside the superblock");
    if !whole || superblock[at..at + 2] != EXT4_MAGIC.1 {
        return Err(bad("is no ext4 file system"));
    }
    let number = |at: usize| {
        let bytes = superblock[at..at + 4].try_into().expect("four bytes");
        u64::from(u32::from_le_bytes(bytes))
    };
    let mark = FileMark::of(&real).map_err(cannot)?;
    // Block sizes above 64 KiB do not exist.
    let length = 1024u64.checked_shl(number(24).min(6).try_into().expect("at most 6"));
    if length
        .and_then(|block| block.checked_mul(number(4)))
        .is_none_or(|all| all > mark.length)
    {
        return Err(bad("is shorter than its file system"));
    }
    Ok((real, mark))
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
