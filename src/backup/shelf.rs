//! Where the parts of a backup go: a directory, or one prefix of an archive.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::summed::Summed;
use crate::archive::{Address, Archive, Upload, making, names};
use crate::disk::{self, AtomicFile};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{self, Manifest, Part, Sha};
use crate::position::SystemId;

/// Bytes that are handed on at once.
const BUFFER: usize = 256 << 10;

/// A part that is being written; it is there, durably, once it is committed.
pub(super) trait PartFile: Write + Send {
    fn commit(self: Box<Self>) -> Result<()>;
}

/// Makes parts.
pub(super) trait Shelf: Send + Sync {
    fn create(&self, name: &str) -> Result<Box<dyn PartFile>>;
}

/// Writes a whole part.
pub(super) fn write_part(
    shelf: &dyn Shelf,
    name: &str,
    write: impl FnOnce(&mut Summed<Box<dyn PartFile>>) -> Result<()>,
) -> Result<Part> {
    let mut out = Summed::new(shelf.create(name)?);
    write(&mut out)?;
    let (file, size, sha256) = out.finish();
    file.commit()?;
    Ok(Part { name: name.to_owned(), size, sha256 })
}

/// Copies a file as a part.
pub(super) fn copy_part(shelf: &dyn Shelf, name: &str, path: &Path) -> Result<Part> {
    write_part(shelf, name, |out| {
        let mut file = fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        io::copy(&mut file, out).map(drop).map_err(|e| Error::io("copy", path, e))
    })
}

/// A directory.
pub(super) struct Folder(pub(super) PathBuf);

impl Shelf for Folder {
    fn create(&self, name: &str) -> Result<Box<dyn PartFile>> {
        let (dir, file) = match name.rsplit_once('/') {
            Some((dir, file)) => (self.0.join(dir), file),
            None => (self.0.clone(), name),
        };
        disk::create_subdir_durable(&dir)?;
        Ok(Box::new(BufWriter::with_capacity(BUFFER, AtomicFile::create(&dir, file)?)))
    }
}

impl PartFile for BufWriter<AtomicFile> {
    fn commit(self: Box<Self>) -> Result<()> {
        let file =
            self.into_inner().map_err(|e| Error::from(e.into_error()).wrap("cannot write the backup"))?;
        file.commit()
    }
}

/// One prefix of an archive.
pub(super) struct Prefix {
    address: Address,
    label: String,
    opened: Mutex<Option<Arc<Objects>>>,
}

/// The archive, and what was put there.
struct Objects {
    archive: Archive,
    dir: String,
    label: String,
    /// What the backup stands on, if it is in the archive, too.
    base: Option<(String, Sha)>,
    made: Mutex<Vec<String>>,
}

impl Prefix {
    pub(super) fn new(address: Address, label: &str) -> Self {
        Self { address, label: label.to_owned(), opened: Mutex::default() }
    }

    fn objects(&self) -> Option<Arc<Objects>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the archive for a backup of this system, that stands on the one of this label and manifest.
    pub(super) fn open(&self, system: SystemId, base: Option<(&str, Sha)>) -> Result<Arc<dyn Shelf>> {
        let archive = Archive::open_or_create(&self.address, system)?;
        let dir = names::backup_dir(&self.label);
        if archive.reader(&format!("{dir}/{}", manifest::NAME))?.is_some() {
            let text = format!(
                "there is a backup '{}' in the archive '{}' already; give this one another --label",
                self.label, self.address
            );
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let mut left = false;
        archive.list(&dir, "", &mut |_| {
            left = true;
            Ok(false)
        })?;
        if left {
            let text = format!(
                "in the archive '{}' there are parts of a backup '{}' that is being made, or whose making was broken off; give \
                 this one another --label ('towline archive prune' removes what is left after two days)",
                self.address, self.label
            );
            return Err(Error::new(ErrorKind::Refused, text));
        }
        // From here on nothing goes that it stands on; what is there now stays until it is made.
        making::begin(&archive, &self.label, base.map(|b| b.0))?;
        let label = self.label.clone();
        let mut objects = Objects { archive, dir, label, base: None, made: Mutex::default() };
        if let Some((label, sha)) = base
            && objects.sha_of(label)? == Some(sha)
        {
            objects.base = Some((label.to_owned(), sha));
        }
        let objects = Arc::new(objects);
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&objects));
        Ok(Arc::new(Kept(objects)))
    }

    /// Puts the manifest there: the backup is complete.
    pub(super) fn seal(&self, manifest: &Manifest) -> Result<()> {
        let Some(objects) = self.objects() else { return Ok(()) };
        let mut text = Vec::new();
        manifest.write(&mut text).map_err(|e| Error::from(e).wrap("cannot write the manifest"))?;
        objects.complete(manifest)?;
        if let Some((label, sha)) = &objects.base
            && objects.sha_of(label)? != Some(*sha)
        {
            let text = format!(
                "the backup '{label}', on which this one stands, was removed from the archive '{}' meanwhile; stand on another one",
                self.address
            );
            return Err(Error::new(ErrorKind::Missing, text));
        }
        objects.archive.put(&format!("{}/{}", objects.dir, manifest::NAME), &text)?;
        objects.end();
        Ok(())
    }

    /// The backup failed: what was put there goes.
    pub(super) fn discard(&self) {
        let Some(objects) = self.objects() else { return };
        let made = std::mem::take(&mut *objects.made.lock().unwrap_or_else(PoisonError::into_inner));
        for name in made {
            if let Err(e) = objects.archive.delete(&name) {
                tracing::warn!("'{name}' of a backup that failed can't be removed from the archive: {e}");
                return;
            }
        }
        objects.end();
    }
}

impl Objects {
    /// What the last line of the manifest of a backup in the archive says.
    fn sha_of(&self, label: &str) -> Result<Option<Sha>> {
        let name = format!("{}/{}", names::backup_dir(label), manifest::NAME);
        Ok(self.archive.get(&name, manifest::BYTES_MAX)?.and_then(|text| manifest::seal(&text).ok()))
    }

    /// Whether every part is there: one that rested for days may have been taken for broken off.
    fn complete(&self, manifest: &Manifest) -> Result<()> {
        let mut there = HashMap::new();
        self.archive.list(&self.dir, "", &mut |entry| {
            there.insert(entry.name, entry.size);
            Ok(true)
        })?;
        let lacks = |p: &&Part| there.get(&format!("{}/{}", self.dir, p.name)) != Some(&p.size);
        let Some(part) = manifest.parts.iter().find(lacks) else { return Ok(()) };
        let text = format!(
            "'{}' of the backup was removed from the archive '{}' while it was made; begin anew",
            part.name,
            self.archive.address()
        );
        Err(Error::new(ErrorKind::Missing, text))
    }

    /// It is no longer being made.
    fn end(&self) {
        if let Err(e) = making::end(&self.archive, &self.label) {
            tracing::warn!("the note of the backup can't be removed from the archive; prune does so: {e}");
        }
    }
}

/// Its shelf.
struct Kept(Arc<Objects>);

impl Shelf for Kept {
    fn create(&self, name: &str) -> Result<Box<dyn PartFile>> {
        let name = format!("{}/{name}", self.0.dir);
        let upload = self.0.archive.upload(&name)?;
        self.0.made.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        Ok(Box::new(BufWriter::with_capacity(BUFFER, Uploading(upload))))
    }
}

struct Uploading(Box<dyn Upload>);

impl Write for Uploading {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PartFile for BufWriter<Uploading> {
    fn commit(self: Box<Self>) -> Result<()> {
        let upload =
            self.into_inner().map_err(|e| Error::from(e.into_error()).wrap("cannot write the backup"))?;
        upload.0.finish()
    }
}
