//! Combining: a full backup and the incremental ones that stand on it become one full backup.
//!
//! The result is of form tar, as a directory: the files as of the start of the newest member, its catalog, its block hashes and
//! its log. Every file is compared with the block hashes of the newest while it is written. It is made as `OUT.combining`, in
//! which [`WORK`] says whose it is; without that, and with a manifest, only the name is left, and the next attempt gives it. What fails removes what it made;
//! what was killed is removed by the next attempt.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::archive::names;
use crate::backup::{HashReader, Origin, WORK};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::manifest::{self, File, Form, Manifest};
use crate::net::wall_clock;
use crate::position::FileId;
use crate::record::Kind;
use crate::restore::{chained, guard};
use crate::set::gather::{self, Gathered};
use crate::set::{Set, Source};
use crate::sys::Root;

mod write;

pub use write::CopyMode;
use write::Writer;

/// Most threads that write.
const THREADS_MAX: usize = 4;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The full backup, then the incremental ones, the newest last.
    pub members: Vec<PathBuf>,
    /// The directory that becomes the backup.
    pub out: PathBuf,
    /// Its label; that of the newest member otherwise.
    pub label: Option<String>,
    /// How a file comes there that is in one of them as a whole.
    pub mode: CopyMode,
}

/// What comes of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it; the manual page lists them")]
pub struct Plan {
    pub label: String,
    /// The members, the newest first.
    pub members: Vec<String>,
    pub start: String,
    pub end: String,
    pub exact: bool,
    pub files: u64,
    pub bytes: u64,
    pub copy_mode: CopyMode,
    pub free_bytes: u64,
    pub out: PathBuf,
}

/// Sum of the block hashes of a file.
type Sums = HashMap<FileId, u128>;

fn refused(text: String) -> Error {
    Error::new(ErrorKind::Refused, text)
}

/// Where it is made.
#[derive(Debug)]
struct Place {
    out: PathBuf,
    aside: PathBuf,
}

impl Place {
    fn new(out: &Path) -> Result<Self> {
        let out: PathBuf =
            std::path::absolute(out).map_err(|e| Error::io("find", out, e))?.components().collect();
        if out.file_name().is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("'{}' can't be made anew", out.display())));
        }
        let mut aside: OsString = out.clone().into();
        aside.push(".combining");
        Ok(Self { aside: aside.into(), out })
    }

    /// Whether it could begin.
    fn look(&self) -> Result<()> {
        let taken = |path: &Path| match fs::read_dir(path) {
            _ if path.symlink_metadata().is_ok_and(|m| m.is_symlink()) => Ok(true),
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(true),
            Err(e) => Err(Error::io("list", path, e)),
        };
        if taken(&self.out)? {
            return Err(refused(format!(
                "'{}' is not an empty directory; name a new or an empty one",
                self.out.display()
            )));
        }
        if taken(&self.aside)? && !self.aside.join(WORK).is_dir() && !self.is_whole() {
            let aside = self.aside.display();
            return Err(refused(format!("'{aside}' holds something that is of no combine; move it away")));
        }
        Ok(())
    }

    /// Whether one that was killed has left a backup that only lacks its name.
    fn is_whole(&self) -> bool {
        !self.aside.join(WORK).is_dir() && self.aside.join(manifest::NAME).is_file()
    }

    /// Whether that is there, and what would be made of `newest`.
    ///
    /// # Errors
    /// It is there, and is another one.
    fn holds(&self, newest: &Manifest, label: &str) -> Result<bool> {
        if !self.is_whole() {
            return Ok(false);
        }
        let (aside, out) = (self.aside.display(), self.out.display());
        let m = Manifest::parse(&Source::Dir(self.aside.clone()).manifest()?)?;
        let of = |m: &Manifest| (m.system, m.timeline, m.start, m.end);
        if m.base.is_some() || m.label != label || of(&m) != of(newest) {
            return Err(refused(format!(
                "'{aside}' is another combined backup, '{}' as of {}, that only lacks its name: rename it to '{out}', or \
                 remove it",
                m.label, m.end
            )));
        }
        Ok(true)
    }

    fn begin(&self) -> Result<()> {
        self.look()?;
        self.discard()?;
        disk::create_dir_durable(&self.aside)?;
        disk::create_subdir_durable(&self.aside.join(WORK))
    }

    fn discard(&self) -> Result<()> {
        match fs::remove_dir_all(&self.aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &self.aside, e)),
            _ => Ok(()),
        }
    }

    fn finish(&self, manifest: &Manifest) -> Result<()> {
        let dir = fs::File::open(&self.aside).map_err(|e| Error::io("open", &self.aside, e))?;
        rustix::fs::syncfs(&dir).map_err(|e| Error::io("sync", &self.aside, e))?;
        let pass = |point| failpoint::pass(point).map_err(|e| Error::io("complete", &self.out, e));
        pass("combine::written")?;
        let mut text = Vec::new();
        manifest.write(&mut text).map_err(|e| Error::from(e).wrap("cannot write the manifest"))?;
        disk::write_atomic(&self.aside, manifest::NAME, &text)?;
        pass("combine::sealed")?;
        let work = self.aside.join(WORK);
        fs::remove_dir_all(&work).map_err(|e| Error::io("remove", &work, e))?;
        disk::sync_dir(&self.aside)?;
        pass("combine::whole")?;
        self.name()
    }

    /// The last step.
    fn name(&self) -> Result<()> {
        disk::rename_durable(&self.aside, &self.out).map_err(|e| {
            e.wrap("the backup is whole, but can't take its name; a mount point can't be replaced")
        })
    }
}

/// The path of a member: one of an archive that is a directory lies there like any other.
fn place_of(member: &Path) -> Result<PathBuf> {
    match Origin::parse(member).map_err(|e| Error::new(ErrorKind::Usage, e))? {
        Origin::Path(path) => Ok(path),
        Origin::Archive(address, label) => match address.dir() {
            Some(dir) => Ok(dir.join(names::backup_dir(&label))),
            None => {
                let text = format!(
                    "'{}' is in a bucket, and combine reads directories and tars only: copy the objects of '{}/{}' into a \
                     directory and name that",
                    member.display(),
                    address,
                    names::backup_dir(&label)
                );
                Err(Error::new(ErrorKind::Usage, text))
            }
        },
    }
}

/// The members of a chain, opened and found to belong together, the newest first.
fn open(members: &[PathBuf]) -> Result<Vec<Arc<Set>>> {
    let Some((top, below)) = members.split_last().filter(|(_, below)| !below.is_empty()) else {
        let text = "name a full backup and at least one incremental one that stands on it, the newest last";
        return Err(Error::new(ErrorKind::Usage, text));
    };
    let below: Vec<PathBuf> = below.iter().map(|m| place_of(m)).collect::<Result<_>>()?;
    let top = Set::open_plain(&Source::at(&place_of(top)?)?)?;
    let label = top.manifest().label.clone();
    if top.manifest().base.is_none() {
        let text = format!("the last backup, '{label}', is a full one: name the newest incremental one last");
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let chain =
        chained(top, &below).map_err(|e| refused(e.to_string().replace("; name it with --base", "")))?;
    if chain.len() < members.len() {
        let used: Vec<&str> = chain.iter().map(|s| s.manifest().label.as_str()).collect();
        let text = format!(
            "the chain of '{label}' is {}, and {} backups were named: leave out those that are of no use, and name the newest last",
            used.join(", "),
            members.len()
        );
        return Err(refused(text));
    }
    Ok(chain)
}

fn plan_of(order: &Order, place: &Place, chain: &[Arc<Set>]) -> Result<Plan> {
    let newest = chain.first().ok_or_else(|| Error::new(ErrorKind::Missing, "there is no backup"))?;
    let (m, catalog) = (newest.manifest(), gather::catalog(newest)?);
    let label = order.label.clone().unwrap_or_else(|| m.label.clone());
    manifest::check_label(&label).map_err(|e| Error::new(ErrorKind::Usage, e))?;
    let files = catalog.inodes().filter(|i| i.kind == Kind::File);
    let (files, bytes) = files.fold((0, 0_u64), |(n, b), i| (n + 1, b.saturating_add(i.size)));
    let there = place.out.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    Ok(Plan {
        label,
        members: chain.iter().map(|s| s.manifest().label.clone()).collect(),
        start: m.start.to_string(),
        end: m.end.to_string(),
        exact: m.exact,
        files,
        bytes,
        copy_mode: order.mode,
        free_bytes: disk::free_bytes(there)?,
        out: place.out.clone(),
    })
}

/// Neither a member nor anything else that is kept gets something in it.
fn check_harmless(order: &Order) -> Result<()> {
    let read = order.members.iter().map(|m| Ok(("combine".to_owned(), place_of(m)?)));
    let read = read.collect::<Result<Vec<_>>>()?;
    guard::apart(&order.out, &read)?;
    guard::no_store(&order.out)?;
    guard::unused(&order.out)
}

/// Says what would be made.
///
/// # Errors
/// Whatever would refuse it.
pub fn plan(order: &Order) -> Result<Plan> {
    let place = Place::new(&order.out)?;
    place.look()?;
    check_harmless(order)?;
    let chain = open(&order.members)?;
    let plan = plan_of(order, &place, &chain)?;
    if let Some(newest) = chain.first() {
        place.holds(newest.manifest(), &plan.label)?;
    }
    Ok(plan)
}

/// Combines.
///
/// # Errors
/// A member is damaged or does not belong to the chain, the directory is not empty, disk errors. What was made is removed.
pub fn run(order: &Order) -> Result<Plan> {
    let place = Place::new(&order.out)?;
    place.look()?;
    check_harmless(order)?;
    let chain = open(&order.members)?;
    let plan = plan_of(order, &place, &chain)?;
    if let Some(newest) = chain.first()
        && place.holds(newest.manifest(), &plan.label)?
    {
        tracing::info!("'{}' is whole already and gets its name", place.aside.display());
        return place.name().map(|()| plan);
    }
    place.begin()?;
    let made = make(order, &place, &chain, &plan.label);
    let done = made.and_then(|manifest| place.finish(&manifest));
    if done.is_err()
        && place.aside.join(WORK).is_dir()
        && let Err(e) = place.discard()
    {
        tracing::warn!("what was made can't be removed: {e}");
    }
    done.map(|()| plan)
}

/// Everything but the manifest.
fn make(order: &Order, place: &Place, chain: &[Arc<Set>], label: &str) -> Result<Manifest> {
    let newest = chain.first().ok_or_else(|| Error::new(ErrorKind::Missing, "there is no backup"))?;
    let all = gather::gather(chain, &place.aside.join(WORK))?;
    let sums = sums(newest)?;
    let root = Root::open(&place.aside).map_err(|e| Error::io("open", &place.aside, e))?;
    let known = bottom_files(chain);
    let writer = Writer { root: &root, all: &all, sums: &sums, known: &known, mode: order.mode };
    writer.tree()?;
    let mut files = written(&writer, &all)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    for part in &newest.manifest().parts {
        if !part.name.starts_with("pack-") {
            writer.part(newest, part)?;
        }
    }
    let m = newest.manifest();
    let parts = m.parts.iter().filter(|p| !p.name.starts_with("pack-")).cloned().collect();
    Ok(Manifest {
        form: Form::Tar,
        label: label.to_owned(),
        created: wall_clock(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        base: None,
        parts,
        files,
        ..m.clone()
    })
}

/// What the manifest of the member at the bottom says of its files.
fn bottom_files(chain: &[Arc<Set>]) -> HashMap<FileId, manifest::Sha> {
    let files = chain.last().map(|s| s.manifest().files.iter());
    files.into_iter().flatten().map(|f| (f.id, f.sha256)).collect()
}

/// The sums of the block hashes that the newest member has.
fn sums(newest: &Set) -> Result<Sums> {
    let bad = |why: String| {
        let text = format!("the backup '{}' is damaged: {why}; take another one", newest.shown());
        Error::new(ErrorKind::Corrupt, text)
    };
    let kept = newest.part(manifest::BLOCKS)?;
    let input = io::BufReader::with_capacity(256 << 10, kept.reader());
    let mut reader = HashReader::new(input).map_err(bad)?;
    let mut sums = Sums::new();
    while let Some((id, count)) = reader.file().map_err(bad)? {
        let (mut at, mut sum) = (0, 0_u128);
        while at < count {
            let hashes = reader.hashes(count - at).map_err(bad)?;
            sum = hashes.iter().fold(sum, |sum, h| sum.wrapping_add(*h));
            at += hashes.len() as u64;
        }
        sums.insert(id, sum);
    }
    reader.finish().map_err(bad)?;
    Ok(sums)
}

/// Writes all files, on several threads.
fn written(writer: &Writer<'_>, all: &Gathered) -> Result<Vec<File>> {
    let mut ids: Vec<(u64, FileId)> =
        all.catalog().inodes().filter(|i| i.kind == Kind::File).map(|i| (i.size, i.id)).collect();
    // The largest first, so that no thread has one to itself at the end.
    ids.sort_unstable_by(|a, b| b.cmp(a));
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut files, mut buf) = (Vec::new(), Vec::new());
        while let Some((_, id)) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
            match writer.file(*id, &mut buf) {
                Ok(some) => files.extend(some),
                Err(e) => {
                    // The others end with their file.
                    next.store(ids.len(), Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
        Ok(files)
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX);
    let done: Vec<Result<Vec<File>>> = std::thread::scope(|scope| {
        // A panic: an error, below.
        let tasks: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let panicked = || Err(Error::new(ErrorKind::Io, "a thread has panicked"));
        tasks.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).collect()
    });
    let mut files = Vec::new();
    for some in done {
        files.extend(some?);
    }
    Ok(files)
}
