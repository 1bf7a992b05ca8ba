//! What an incremental backup stands on: the tree and the block hashes of a backup at its end, from its own parts alone.
//!
//! A backup in form tree says them as they are. Of the other forms they are those of what was stored, some of it as it
//! was at the start and some of it later; the log in the backup is folded over them, and then they are those of the end. That
//! the digest of the last commit comes out proves them right.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use sha2::{Digest, Sha256};

use super::hashes::HashReader;
use crate::blocks::Blocks;
use crate::catalog::{Catalog, blocks_of};
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::fold::{Fold, Stored};
use crate::manifest::{self, Form, Manifest, Part, Sha};
use crate::position::FileId;
use crate::record::Kind;

/// A base at its end.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) manifest: Manifest,
    pub(super) sha256: Sha,
    pub(super) catalog: Catalog,
    pub(super) blocks: Blocks,
}

impl Base {
    /// Reads the backup whose manifest is at `path`; `scratch` becomes a directory of block hashes.
    ///
    /// # Errors
    /// What is wrong with it, by name.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self> {
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
        for part in manifest.parts.iter().filter(|p| !p.name.starts_with("pack-")) {
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
