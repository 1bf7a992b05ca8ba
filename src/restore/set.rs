//! A backup set in a directory, read beneath it: no symlink in it leads anywhere.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::fill::{Kept, Shelf};
use crate::manifest::{self, Form, Manifest, Part};
use crate::position::Lsn;
use crate::record::Kind;
use crate::sys::{self, Root};

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// A backup that is open.
#[derive(Debug)]
pub struct Set {
    root: Root,
    manifest: Manifest,
}

/// Whether there is something at `dir` that may be a set.
#[must_use]
pub fn is_set(dir: &Path) -> bool {
    dir.join(manifest::NAME).symlink_metadata().is_ok()
}

impl Set {
    /// Opens the set in `dir`.
    ///
    /// # Errors
    /// There is none, its manifest is damaged, or it is of a form that can't be restored from a directory.
    pub fn open(dir: &Path) -> Result<Self> {
        let root = Root::open(dir).map_err(|e| Error::io("open", dir, e))?;
        let Some(mut file) = open(&root, manifest::NAME.as_bytes())? else {
            let text = format!(
                "there is no backup in '{}': {} is missing, which is written last of all; name the directory of a complete \
                 backup",
                dir.display(),
                manifest::NAME
            );
            return Err(Error::new(ErrorKind::Missing, text));
        };
        let path = dir.join(manifest::NAME);
        let size = file.metadata().map_err(|e| Error::io("stat", &path, e))?.len();
        if size > manifest::BYTES_MAX {
            let text = format!("'{}' has {size} bytes, more than a manifest has", path.display());
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(manifest::BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", &path, e))?;
        let manifest =
            Manifest::parse(&bytes).map_err(|e| Error::from(e).wrap(&format!("'{}'", path.display())))?;
        if manifest.form == Form::Packs {
            let text = format!("'{}' is a backup of form packs: restore it from its archive", dir.display());
            return Err(Error::new(ErrorKind::Refused, text));
        }
        Ok(Self { root, manifest })
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.root.path()
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

    /// A part, its size and SHA-256 found right.
    ///
    /// # Errors
    /// It is missing, or damaged.
    pub fn part(&self, name: &str) -> Result<File> {
        let path = self.path_of(name);
        let damaged = |why: &str| {
            let text = format!("the backup is damaged: '{}' {why}; take another one", path.display());
            Error::new(ErrorKind::Corrupt, text)
        };
        let part =
            self.manifest.parts.iter().find(|p| p.name == name).ok_or_else(|| damaged("is not listed"))?;
        let mut file = open(&self.root, name.as_bytes())?.ok_or_else(|| damaged("is missing"))?;
        let failed = |e| Error::io("read", &path, e);
        if file.metadata().map_err(failed)?.len() != part.size {
            return Err(damaged("has another size than its manifest says"));
        }
        let (mut sum, mut buf) = (Sha256::new(), vec![0; PIECE]);
        loop {
            let n = file.read(&mut buf).map_err(failed)?;
            if n == 0 {
                break;
            }
            sum.update(buf.get(..n).unwrap_or_default());
        }
        if <[u8; 32]>::from(sum.finalize()) != part.sha256.0 {
            return Err(damaged("has another SHA-256 than its manifest says"));
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(file)
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

/// A regular file beneath `root`; `None`: there is none of that name.
fn open(root: &Root, rel: &[u8]) -> Result<Option<File>> {
    let failed = |e| Error::io("open", root.join(rel), e);
    // A FIFO must not hold us up.
    let file = match root.open_beneath(rel, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, 0) {
        Ok(fd) => File::from(fd),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if sys::stat_fd(&file).map_err(failed)?.kind != Kind::File {
        let text = format!("'{}' is no regular file; the backup is damaged", root.join(rel).display());
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(Some(file))
}

impl Shelf for Set {
    fn catalog(&self) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.part(manifest::CATALOG)?))
    }

    fn file(&self, path: &[u8]) -> Result<Option<Kept>> {
        let dir = self.manifest.form.dir().unwrap_or(manifest::DATA).as_bytes();
        let Some(file) = open(&self.root, &[dir, b"/", path].concat())? else { return Ok(None) };
        let len = file.metadata().map_err(|e| Error::io("stat", self.root.join(path), e))?.len();
        Ok(Some(Kept { file, at: 0, len }))
    }

    fn exact(&self) -> bool {
        self.manifest.form == Form::Tree
    }
}
