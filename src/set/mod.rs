//! Backup sets, wherever they are: a directory, one tar, or objects of an archive. One way to read them, for everyone who does.
//!
//! A set is open once its manifest was found sound. A part is handed out when its size and SHA-256 are what the manifest
//! says. Of an incremental set the contents are gathered from all members of its chain, see [`gather`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::archive::{Address, Archive, names};
use crate::disk::{self, AtomicFile};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::{History, SEAL};
use crate::manifest::{self, Form, Manifest, Part, Sha};
use crate::position::Lsn;
use crate::record::Kind;
use crate::sys::{self, Root};

pub mod gather;
mod kept;
mod layers;
mod source;
mod tar;

pub use kept::{Content, Kept};
pub use source::{Member, Source, What, below, read_manifest, shown, walk};

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// Where the names of a set are.
#[derive(Debug)]
enum Place {
    /// In a directory; beneath it no symlink leads anywhere.
    Dir(Root),
    /// In a tar that is not compressed: where each file begins in it, and its length.
    Tar { file: File, path: PathBuf, files: HashMap<Vec<u8>, (u64, u64)> },
    /// Below a prefix of a bucket. Parts are fetched into the directory when they are needed.
    Objects { archive: Archive, dir: String, fetched: PathBuf },
}

/// A backup that is open.
#[derive(Debug)]
pub struct Set {
    place: Place,
    shown: String,
    manifest: Manifest,
    sha256: Sha,
}

impl Set {
    /// Opens the set at `path`: a directory, or the file of a tar. One that is compressed is unpacked as `spool`.
    ///
    /// # Errors
    /// There is none, it is not finished, or its manifest is damaged.
    pub fn open(source: &Source, spool: &Path) -> Result<Self> {
        Self::open_at(source, Some(spool))
    }

    /// The same, of a directory or a tar that is not compressed: nothing has to be written down.
    ///
    /// # Errors
    /// As there; or it is compressed.
    pub fn open_plain(source: &Source) -> Result<Self> {
        Self::open_at(source, None)
    }

    fn open_at(source: &Source, spool: Option<&Path>) -> Result<Self> {
        let place = match source {
            Source::Dir(dir) => Place::Dir(Root::open(dir).map_err(|e| Error::io("open", dir, e))?),
            tar => tar::open(tar, spool)?,
        };
        let shown = source.shown();
        let Some(kept) = place.look(manifest::NAME.as_bytes())? else {
            let text = format!(
                "there is no backup in '{shown}': {} is missing, which is written last of all; name a complete backup",
                manifest::NAME
            );
            return Err(Error::new(ErrorKind::Missing, text));
        };
        let named = |e: Error| e.wrap(&format!("'{shown}/{}'", manifest::NAME));
        let bytes = read_manifest(&mut kept.reader()).map_err(named)?;
        let sha256 = manifest::seal(&bytes).map_err(|e| named(e.into()))?;
        let manifest = Manifest::parse(&bytes).map_err(|e| named(e.into()))?;
        Ok(Self { place, shown, manifest, sha256 })
    }

    /// Opens the backup `label` of an archive, whose manifest is known. Of a bucket its parts are fetched into `fetched`.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn archived(
        address: &Address,
        archive: &Archive,
        (manifest, sha256): (Manifest, Sha),
        fetched: &Path,
    ) -> Result<Self> {
        let dir = names::backup_dir(&manifest.label);
        let shown = format!("{address}/{dir}");
        let place = match address.dir() {
            Some(root) => {
                let root = root.join(&dir);
                Place::Dir(Root::open(&root).map_err(|e| Error::io("open", &root, e))?)
            }
            None => Place::Objects { archive: archive.clone(), fetched: fetched.join(&manifest.label), dir },
        };
        Ok(Self { place, shown, manifest, sha256 })
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the last line of its manifest says.
    #[must_use]
    pub fn sha256(&self) -> Sha {
        self.sha256
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The position of its catalog.
    #[must_use]
    pub fn start(&self) -> Lsn {
        if self.manifest.form == Form::Tree { self.manifest.end } else { self.manifest.start }
    }

    /// The parts that hold log.
    pub fn log(&self) -> impl Iterator<Item = &Part> {
        self.manifest.parts.iter().filter(|p| p.name.starts_with("log/"))
    }

    /// The parts that hold contents, of form packs.
    pub fn packs(&self) -> impl Iterator<Item = &Part> {
        self.manifest.parts.iter().filter(|p| p.name.starts_with("pack-"))
    }

    /// The history of its timeline; `None`: it carries none, as that of the first one does.
    ///
    /// # Errors
    /// The part is missing, damaged, or another one's.
    pub fn history(&self) -> Result<Option<History>> {
        let Some(part) = self.manifest.history_part() else { return Ok(None) };
        let kept = self.part(&part.name)?;
        let mut bytes = Vec::new();
        let read = kept.reader().take(SEAL.most + 1).read_to_end(&mut bytes);
        read.map_err(|e| self.unreadable(&part.name, e))?;
        let bad = |why: String| self.damaged(&part.name, &format!("is not its history: {why}"));
        let history = History::decode(&bytes).map_err(|e| bad(e.to_string()))?;
        self.manifest.fits(&history).map_err(bad)?;
        Ok(Some(history))
    }

    /// A part, its size and SHA-256 found right.
    ///
    /// # Errors
    /// It is missing, or damaged.
    pub fn part(&self, name: &str) -> Result<Kept> {
        let part = self.manifest.parts.iter().find(|p| p.name == name);
        let part = part.ok_or_else(|| self.damaged(name, "is not listed"))?;
        if let Place::Objects { archive, dir, fetched } = &self.place {
            let path = fetched.join(name);
            if !path.exists() {
                self.fetch(archive, &format!("{dir}/{name}"), part, &path)?;
            }
        }
        let kept = self.place.look(name.as_bytes())?.ok_or_else(|| self.damaged(name, "is missing"))?;
        if kept.len != part.size {
            return Err(self.damaged(name, "has another size than its manifest says"));
        }
        let mut sum = Sha256::new();
        let (mut input, mut buf) = (kept.reader(), vec![0; PIECE]);
        loop {
            let n = input.read(&mut buf).map_err(|e| self.unreadable(name, e))?;
            if n == 0 {
                break;
            }
            sum.update(buf.get(..n).unwrap_or_default());
        }
        if <[u8; 32]>::from(sum.finalize()) != part.sha256.0 {
            return Err(self.damaged(name, "has another SHA-256 than its manifest says"));
        }
        Ok(kept)
    }

    fn damaged(&self, name: &str, why: &str) -> Error {
        let text = format!("the backup is damaged: '{}/{name}' {why}; take another one", self.shown);
        Error::new(ErrorKind::Corrupt, text)
    }

    fn unreadable(&self, name: &str, e: io::Error) -> Error {
        Error::io("read", format!("{}/{name}", self.shown), e)
    }

    /// Fetches a part of an archive. It gets its name when it is whole.
    fn fetch(&self, archive: &Archive, object: &str, part: &Part, to: &Path) -> Result<()> {
        let name = &part.name;
        let (Some(dir), Some(file)) = (to.parent(), to.file_name().and_then(|n| n.to_str())) else {
            return Err(self.damaged(name, "has no name"));
        };
        std::fs::create_dir_all(dir).map_err(|e| Error::io("make", dir, e))?;
        let mut input = archive.reader(object)?.ok_or_else(|| self.damaged(name, "is missing"))?;
        if input.size() != part.size {
            return Err(self.damaged(name, "has another size than its manifest says"));
        }
        let mut out = AtomicFile::create(dir, file)?;
        let mut buf = vec![0; PIECE];
        loop {
            let n = input.read(&mut buf).map_err(|e| self.unreadable(name, e))?;
            if n == 0 {
                break;
            }
            out.write_all(buf.get(..n).unwrap_or_default()).map_err(|e| Error::io("write", to, e))?;
        }
        failpoint::pass("restore::fetch").map_err(|e| Error::io("write", to, e))?;
        out.commit()
    }

    /// The file at `path` of forms that hold files; `None`: there is none.
    ///
    /// # Errors
    /// It is no regular file, or can't be opened.
    pub fn file(&self, path: &[u8]) -> Result<Option<Kept>> {
        let Some(dir) = self.manifest.form.dir() else { return Ok(None) };
        self.place.look(&[dir.as_bytes(), b"/", path].concat())
    }

    /// A directory with all segments of the set, each found right; `scratch` where there is none.
    ///
    /// # Errors
    /// A segment is missing or damaged.
    pub fn segments(&self, scratch: &Path) -> Result<PathBuf> {
        let dir = match &self.place {
            Place::Dir(root) => root.path().join(manifest::LOG),
            Place::Objects { fetched, .. } => fetched.join(manifest::LOG),
            Place::Tar { .. } => scratch.to_owned(),
        };
        for part in self.log() {
            let kept = self.part(&part.name)?;
            if matches!(self.place, Place::Tar { .. }) {
                disk::create_subdir_durable(scratch)?;
                let name = part.name.strip_prefix("log/").unwrap_or(&part.name);
                let mut out = AtomicFile::create(scratch, name)?;
                io::copy(&mut kept.reader(), &mut out)
                    .map_err(|e| Error::io("write", scratch.join(name), e))?;
                out.commit()?;
            }
        }
        Ok(dir)
    }
}

impl Place {
    /// The regular file of that name; `None`: there is none.
    fn look(&self, name: &[u8]) -> Result<Option<Kept>> {
        match self {
            Self::Dir(root) => open(root, name),
            Self::Tar { file, path, files } => {
                let Some((at, len)) = files.get(name).copied() else { return Ok(None) };
                let file = file.try_clone().map_err(|e| Error::io("open", path, e))?;
                Ok(Some(Kept { file, at, len }))
            }
            Self::Objects { fetched, .. } => {
                let root = match Root::open(fetched) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    root => root.map_err(|e| Error::io("open", fetched, e))?,
                };
                open(&root, name)
            }
        }
    }
}

/// A regular file beneath `root`; `None`: there is none of that name.
fn open(root: &Root, rel: &[u8]) -> Result<Option<Kept>> {
    let failed = |e| Error::io("open", root.join(rel), e);
    // A FIFO must not hold us up.
    let file = match root.open_beneath(rel, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, 0) {
        Ok(fd) => File::from(fd),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let stat = sys::stat_fd(&file).map_err(failed)?;
    if stat.kind != Kind::File {
        let text = format!("'{}' is no regular file; the backup is damaged", root.join(rel).display());
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(Some(Kept { file, at: 0, len: stat.size }))
}
