//! What an incremental backup stands on: the tree and the block hashes of a backup at its end, from its own parts alone.
//!
//! A backup in form tree says them as they are. Of the other forms they are those of what was stored, some of it as it
//! was at the start and some of it later; the log in the backup is folded over them, and then they are those of the end. That
//! the digest of the last commit comes out proves them right.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use sha2::{Digest, Sha256};

use super::hashes::HashReader;
use crate::archive::{Address, Archive, names};
use crate::blocks::Blocks;
use crate::catalog::{Catalog, blocks_of};
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::fold::{Fold, Stored};
use crate::manifest::{self, Form, Manifest, Part, Sha};
use crate::position::FileId;
use crate::record::Kind;

/// Where the base of an incremental backup is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Its directory, or its manifest.
    Path(PathBuf),
    /// An archive, and its label there.
    Archive(Address, String),
}

impl Origin {
    /// What was written: a path, or an address with `#` and the label behind it.
    ///
    /// # Errors
    /// In words: it is meant as an address, and is none.
    pub fn parse(path: &Path) -> std::result::Result<Self, String> {
        let Some(text) = path.to_str().filter(|t| t.contains("://")) else {
            return Ok(Self::Path(path.to_owned()));
        };
        let Some((address, label)) = text.rsplit_once('#') else {
            return Err(format!("'{text}' names an archive, and no backup in it: write {text}#LABEL"));
        };
        manifest::check_label(label)?;
        Ok(Self::Archive(address.parse()?, label.to_owned()))
    }
}

/// A base at its end.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) manifest: Manifest,
    pub(super) sha256: Sha,
    pub(super) catalog: Catalog,
    pub(super) blocks: Blocks,
}

impl Base {
    /// Reads the backup; `scratch` becomes a directory.
    ///
    /// # Errors
    /// What is wrong with it, by name.
    pub(super) fn open(origin: &Origin, scratch: &Path) -> Result<Self> {
        fs::create_dir_all(scratch).map_err(|e| Error::io("create", scratch, e))?;
        let blocks = scratch.join("blocks");
        match origin {
            Origin::Path(path) => Self::at(path, &blocks),
            Origin::Archive(address, label) => {
                let set = scratch.join("set");
                let failed =
                    |e: Error| e.wrap(&format!("the base '{label}' can't be taken from '{address}'"));
                fetch(address, label, &set).map_err(failed)?;
                let base = Self::at(&set, &blocks)?;
                if base.manifest.label != *label {
                    return Err(failed(damaged(format!("its manifest is of '{}'", base.manifest.label))));
                }
                fs::remove_dir_all(&set).map_err(|e| Error::io("remove", &set, e))?;
                Ok(base)
            }
        }
    }

    fn at(path: &Path, scratch: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join(manifest::NAME) } else { path.to_owned() };
        Self::read(&path, scratch)
            .map_err(|e| e.wrap(&format!("the base '{}' can't be stood on", path.display())))
    }

    fn read(path: &Path, scratch: &Path) -> Result<Self> {
        let size = fs::metadata(path).map_err(|e| Error::io("open", path, e))?.len();
        if size > manifest::BYTES_MAX {
            return Err(damaged(format!("its manifest has {size} bytes")));
        }
        let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let sha256 = manifest::seal(&text)?;
        let manifest = Manifest::parse(&text)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        for part in manifest.parts.iter().filter(|p| !is_content(p)) {
            check(dir, part)?;
        }
        let name = dir.join(manifest::CATALOG);
        let file = File::open(&name).map_err(|e| Error::io("open", &name, e))?;
        let mut catalog = checkpoint::decode(BufReader::new(file))?;
        let at = if manifest.form == Form::Tree { manifest.end } else { manifest.start };
        if catalog.system() != manifest.system || catalog.lsn() != at {
            return Err(damaged(format!(
                "its catalog is of system {} at {}, its manifest says {} at {at}",
                catalog.system(),
                catalog.lsn(),
                manifest.system
            )));
        }
        let blocks = Blocks::open(scratch)?;
        take_hashes(&dir.join(manifest::BLOCKS), &mut catalog, &blocks, manifest.form)?;
        blocks.flush()?;
        if manifest.form == Form::Tree || manifest.start == manifest.end {
            return Ok(Self { manifest, sha256, catalog, blocks });
        }
        drop(blocks);
        let mut fold = Fold::new(catalog, scratch)?;
        fold.blocks.set_logged(true);
        let log =
            Stored { dir: &dir.join(manifest::LOG), system: manifest.system, timeline: manifest.timeline };
        fold.replay(log, manifest.end)?;
        fold.finish_loose()?;
        let catalog = fold.catalog.read().unwrap_or_else(PoisonError::into_inner).clone();
        if catalog.lsn() != manifest.end {
            return Err(damaged(format!("its log ends at {}, not at {}", catalog.lsn(), manifest.end)));
        }
        Ok(Self { manifest, sha256, catalog, blocks: fold.blocks.clone() })
    }

    /// The hash of the only block of a file, or of the first of several.
    pub(super) fn first(&self, id: FileId) -> Result<u128> {
        let Some(inode) = self.catalog.get(id) else { return Ok(0) };
        if blocks_of(inode.size) <= 1 {
            return Ok(inode.content);
        }
        Ok(self.blocks.get(id, 0, 1)?.first().copied().unwrap_or_default())
    }
}

/// Copies a backup without its contents.
fn fetch(address: &Address, label: &str, to: &Path) -> Result<()> {
    let archive = Archive::open(address)?;
    let copy = |name: &str| {
        let object = format!("{}/{name}", names::backup_dir(label));
        let Some(mut reader) = archive.reader(&object)? else {
            let text = format!("the archive has no '{object}'; 'towline archive list' shows what there is");
            return Err(Error::new(ErrorKind::Missing, text));
        };
        let path = to.join(name);
        let mut file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        io::copy(&mut reader, &mut file).map_err(|e| Error::io("write", &path, e)).map(drop)
    };
    let log = to.join(manifest::LOG);
    fs::create_dir_all(&log).map_err(|e| Error::io("create", &log, e))?;
    copy(manifest::NAME)?;
    let path = to.join(manifest::NAME);
    let manifest = Manifest::parse(&fs::read(&path).map_err(|e| Error::io("read", &path, e))?)?;
    manifest.parts.iter().filter(|p| !is_content(p)).try_for_each(|part| copy(&part.name))
}

fn is_content(part: &Part) -> bool {
    part.name.starts_with("pack-")
}

fn damaged(why: String) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}

/// Compares a part with what the manifest says of it.
fn check(dir: &Path, part: &Part) -> Result<()> {
    let path: PathBuf = dir.join(&part.name);
    let mut file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let (mut sha, mut size, mut buf) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        let n = file.read(&mut buf).map_err(|e| Error::io("read", &path, e))?;
        if n == 0 {
            break;
        }
        sha.update(&buf[..n]);
        size += n as u64;
    }
    if size == part.size && Sha(sha.finalize().into()) == part.sha256 {
        return Ok(());
    }
    Err(damaged(format!("'{}' is not what its manifest says", path.display())))
}

/// Puts the hashes of the file into the store, and their sums into the catalog.
fn take_hashes(path: &Path, catalog: &mut Catalog, blocks: &Blocks, form: Form) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let wrong = |id: FileId| damaged(format!("'{}' does not fit the catalog: file {id}", path.display()));
    let mut reader = HashReader::new(BufReader::with_capacity(256 << 10, file)).map_err(damaged)?;
    while let Some((id, count)) = reader.file().map_err(damaged)? {
        let inode = catalog.get(id).filter(|i| i.kind == Kind::File && blocks_of(i.size) == count);
        let known = inode.map(|i| (i.content, i.hashed)).ok_or_else(|| wrong(id))?;
        let (mut at, mut sum) = (0, 0_u128);
        while at < count {
            let hashes = reader.hashes(count - at).map_err(damaged)?;
            sum = hashes.iter().fold(sum, |sum, h| sum.wrapping_add(*h));
            if count > 1 {
                blocks.set(id, at, &hashes)?;
            }
            at += hashes.len() as u64;
        }
        if form == Form::Tree && known != (sum, true) {
            return Err(wrong(id));
        }
        catalog.set_content(id, sum, true);
    }
    reader.finish().map_err(damaged)?;
    let left: Vec<FileId> =
        catalog.inodes().filter(|i| i.kind == Kind::File && i.size == 0).map(|i| i.id).collect();
    left.into_iter().for_each(|id| catalog.set_content(id, 0, true));
    Ok(())
}
