//! The archive: sealed segments and backup sets of one system, in a directory or in a bucket of an object store.
//!
//! | name | what |
//! | --- | --- |
//! | `system.json` | whose archive it is; made first, looked at before anything else is done |
//! | `log/TTTTTTTT/NNNNNNNNNNNNNNNN-LLLLLLLL-SHA.zst` | a sealed segment as it is: timeline, number and length as upper-case hexadecimal digits, the first 16 bytes of the SHA-256 of the whole file as lower-case ones |
//! | `history/TTTTTTTT.history` | where a timeline branched off |
//! | `backup/LABEL/manifest.json`, ... | a backup set; without a manifest it is none |
//! | `making/LABEL` | that backup is being made; what it stands on is kept by `prune` |
//! | `pin/LABEL` | that backup is kept by `prune` |
//! | `tmp/` | of a directory only: what is being written; nothing in it counts |
//!
//! `system.json` is one object: `{"towline_archive":1,"system":"HEX","id":"HEX"}`; the version, the system, and a random
//! number by which a node knows its archive again.
//!
//! The name of a segment says what is in it, so a copy that is not what its name says is damaged for certain, and may be
//! replaced; of two segments with one number the second is refused. Of every other object different bytes are never put
//! in the place of what is there; the same bytes again are fine, from whomever they come.
//!
//! Calls wait for the disk or the network, each for a bounded time; an async task makes them on a thread that may wait.

use std::io::Read;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::{SegmentNo, SystemId, TimelineId};
use crate::segment::FILE_MAX;

mod address;
pub mod check;
pub mod coverage;
pub mod inventory;
mod lines;
mod local;
pub mod making;
pub mod names;
pub mod prune;
mod remote;
mod store;

pub use address::{Address, Cloud};
pub use names::SegmentName;
pub use store::{Each, Entry, Put, Store, Upload};

/// The version of the layout.
const VERSION: u32 = 1;
/// Most bytes of `system.json`.
const IDENTITY_MAX: u64 = 4 << 10;
/// Objects up to this size are put, compared and got as a whole.
pub const WHOLE_MAX: u64 = FILE_MAX;
/// Bytes read at once.
const CHUNK: u64 = 4 << 20;
/// Most copies of one segment that are looked at.
const COPIES_MAX: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Identity {
    towline_archive: u32,
    system: String,
    id: String,
}

/// An archive that is open. Clones share it.
#[derive(Clone, Debug)]
pub struct Archive {
    store: Arc<dyn Store>,
    address: String,
    system: SystemId,
    id: String,
}

/// What became of a segment that was put into the archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// It is new there.
    Made,
    /// The same bytes were there.
    There,
    /// What was there under its name was damaged, and is replaced.
    Mended,
}

/// Connects to the store at an address.
///
/// # Errors
/// What about the address, or the environment, is wrong; or that its directory is not there.
pub fn connect(address: &Address) -> Result<Arc<dyn Store>> {
    Ok(match address {
        Address::Dir(path) => Arc::new(local::Dir::open(path)?),
        Address::Bucket { cloud, bucket, prefix } => Arc::new(remote::Bucket::open(*cloud, bucket, prefix)?),
    })
}

impl Archive {
    /// Opens an archive that is there.
    ///
    /// # Errors
    /// `Missing` when there is none, and why it can't be reached or is not understood.
    pub fn open(address: &Address) -> Result<Self> {
        Self::open_in(connect(address)?, &address.to_string())
    }

    /// Opens the archive of `system`, and makes it if there is none.
    ///
    /// # Errors
    /// `Refused` when it is another system's.
    pub fn open_or_create(address: &Address, system: SystemId) -> Result<Self> {
        Self::open_or_create_in(connect(address)?, &address.to_string(), system)
    }

    /// [`open`](Self::open) on a store of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn open_in(store: Arc<dyn Store>, address: &str) -> Result<Self> {
        let bytes = store.read(names::IDENTITY, 0..IDENTITY_MAX)?.ok_or_else(|| {
            let text = format!("there is no archive at '{address}': {} is missing", names::IDENTITY);
            Error::new(ErrorKind::Missing, text)
        })?;
        let Identity { towline_archive, system, id } = serde_json::from_slice(&bytes).map_err(|e| {
            let text = format!("{} of the archive '{address}' is damaged: {e}", names::IDENTITY);
            Error::new(ErrorKind::Corrupt, text)
        })?;
        if towline_archive != VERSION {
            let text = format!(
                "the archive '{address}' has layout {towline_archive}, and this program knows {VERSION}: use the newer \
                 program that made it"
            );
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let number = u64::from_str_radix(&system, 16).ok().filter(|n| *n != 0 && system.len() == 16);
        let system = number.map(SystemId).ok_or_else(|| {
            let text =
                format!("{} of the archive '{address}' is damaged: its system is none", names::IDENTITY);
            Error::new(ErrorKind::Corrupt, text)
        })?;
        Ok(Self { store, address: address.to_owned(), system, id })
    }

    /// [`open_or_create`](Self::open_or_create) on a store of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn open_or_create_in(store: Arc<dyn Store>, address: &str, system: SystemId) -> Result<Self> {
        let found = match Self::open_in(Arc::clone(&store), address) {
            Err(e) if e.kind() == ErrorKind::Missing => {
                let identity = Identity {
                    towline_archive: VERSION,
                    system: system.to_string(),
                    id: format!("{:016x}", fastrand::u64(1..)),
                };
                let text =
                    serde_json::to_vec(&identity).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
                // Another one may have been faster; whoever it was, it is its archive.
                store.create(names::IDENTITY, &text)?;
                Self::open_in(store, address)?
            }
            found => found?,
        };
        found.belongs_to(system)?;
        Ok(found)
    }

    /// Checks that it is the archive of `system`.
    ///
    /// # Errors
    /// `Refused`, naming both.
    pub fn belongs_to(&self, system: SystemId) -> Result<()> {
        if self.system == system {
            return Ok(());
        }
        let text = format!(
            "the archive '{}' is that of system {}, not of {system}: give each system an archive of its own",
            self.address, self.system
        );
        Err(Error::new(ErrorKind::Refused, text))
    }

    /// Checks that it is there still, and the same: a file system may have been taken away from below.
    ///
    /// # Errors
    /// `Unavailable` when it is not.
    pub fn is_there(&self) -> Result<()> {
        let now = Self::open_in(Arc::clone(&self.store), &self.address).map_err(|e| match e.kind() {
            ErrorKind::Missing => e.with_kind(ErrorKind::Unavailable),
            _ => e,
        })?;
        if (now.system, &now.id) == (self.system, &self.id) {
            return Ok(());
        }
        let text = format!("the archive '{}' became another one meanwhile", self.address);
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// The system whose archive it is.
    #[must_use]
    pub fn system(&self) -> SystemId {
        self.system
    }

    /// The random number it was made with.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is, as it is printed.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Puts a small object there: new, or the same bytes again.
    ///
    /// # Errors
    /// `Refused` when there is one of that name with other bytes; it stays.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<Put> {
        check(name)?;
        if self.store.create(name, bytes)? == Put::Made {
            self.confirm(name, bytes.len())?;
            return Ok(Put::Made);
        }
        let there = self.store.read(name, 0..(bytes.len() as u64).saturating_add(1))?;
        if there.as_deref() == Some(bytes) {
            return Ok(Put::There);
        }
        let text = format!(
            "'{name}' is in the archive '{}' already, with other bytes; it is left as it is",
            self.address
        );
        Err(Error::new(ErrorKind::Refused, text))
    }

    /// What was made has to be there with its whole size.
    fn confirm(&self, name: &str, len: usize) -> Result<()> {
        let size = self.store.size(name)?;
        if size == Some(len as u64) {
            return Ok(());
        }
        let has = size.map_or_else(|| "nothing".to_owned(), |n| format!("{n} bytes"));
        let text =
            format!("the archive '{}' took '{name}' of {len} bytes, but has {has} of it", self.address);
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// Begins an object of any size.
    ///
    /// # Errors
    /// `Refused` when there is one of that name.
    pub fn upload(&self, name: &str) -> Result<Box<dyn Upload>> {
        check(name)?;
        if self.store.size(name)?.is_some() {
            let text = format!("'{name}' is in the archive '{}' already; it is left as it is", self.address);
            return Err(Error::new(ErrorKind::Refused, text));
        }
        self.store.upload(name)
    }

    /// A whole object of at most `most` bytes; `None`: it is not there.
    ///
    /// # Errors
    /// `Corrupt` when it is larger.
    pub fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        check(name)?;
        let bytes = self.store.read(name, 0..most.saturating_add(1))?;
        if bytes.as_ref().is_some_and(|b| b.len() as u64 > most) {
            let text =
                format!("'{name}' in the archive '{}' is larger than the {most} bytes allowed", self.address);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(bytes)
    }

    /// Reads an object from its beginning on; `None`: it is not there.
    ///
    /// # Errors
    /// Why the archive can't be asked.
    pub fn reader(&self, name: &str) -> Result<Option<ObjectReader>> {
        check(name)?;
        let Some(size) = self.store.size(name)? else { return Ok(None) };
        let store = Arc::clone(&self.store);
        Ok(Some(ObjectReader { store, name: name.to_owned(), size, at: 0, held: Vec::new(), used: 0 }))
    }

    /// The objects below the directory `dir`, ascending by name, from the first one after `after` on.
    ///
    /// # Errors
    /// Why the archive can't be asked, or what `each` fails with.
    pub fn list(&self, dir: &str, after: &str, each: &mut Each<'_>) -> Result<()> {
        self.store.list(dir, after, each)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn delete(&self, name: &str) -> Result<()> {
        check(name)?;
        self.store.delete(name)
    }

    /// Puts a sealed segment there. Whether the bytes are one is the caller's business.
    ///
    /// # Errors
    /// `Refused` when there is another segment of that number.
    pub fn put_segment(&self, timeline: TimelineId, segment: SegmentNo, bytes: &[u8]) -> Result<Kept> {
        let name = SegmentName::of(timeline, segment, bytes);
        let pass = |point| failpoint::pass(point).map_err(|e| Error::io("write", name.to_string(), e));
        pass("archive::before_put")?;
        let other = self.copies(timeline, segment)?.into_iter().find(|(copy, _)| *copy != name);
        if let Some((other, _)) = other.filter(|(copy, size)| *size == copy.size) {
            let text = format!(
                "the archive '{}' has another segment {:X} of timeline {timeline} than this node: '{other}' there, \
                 '{name}' here; two leaders have written to it, or the log here was begun anew",
                self.address, segment.0
            );
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let text = name.to_string();
        let kept = match self.store.create(&text, bytes)? {
            Put::Made => Kept::Made,
            Put::There if self.is_good(&name)? => Kept::There,
            Put::There => {
                self.store.replace(&text, bytes)?;
                Kept::Mended
            }
        };
        if kept != Kept::There {
            self.confirm(&text, bytes.len())?;
        }
        pass("archive::after_put")?;
        Ok(kept)
    }

    fn is_good(&self, name: &SegmentName) -> Result<bool> {
        let bytes = self.store.read(&name.to_string(), 0..name.size + 1)?;
        Ok(bytes.is_some_and(|b| name.is_of(&b)))
    }

    /// What there is of a segment: the names of its copies, and how large they are.
    ///
    /// # Errors
    /// Why the archive can't be asked.
    pub fn copies(&self, timeline: TimelineId, segment: SegmentNo) -> Result<Vec<(SegmentName, u64)>> {
        let number = names::number(timeline, segment);
        let mut found = Vec::new();
        self.list(&names::log_dir(timeline), number.trim_end_matches('-'), &mut |entry| {
            if !entry.name.starts_with(&number) {
                return Ok(false);
            }
            if let Some(name) = SegmentName::parse(&entry.name) {
                found.push((name, entry.size));
            }
            Ok(found.len() < COPIES_MAX)
        })?;
        Ok(found)
    }

    /// A sealed segment, checked against its name; `None`: it is not there.
    ///
    /// # Errors
    /// `Corrupt` when no copy is what its name says, or when two good ones differ.
    pub fn get_segment(&self, timeline: TimelineId, segment: SegmentNo) -> Result<Option<Vec<u8>>> {
        let copies = self.copies(timeline, segment)?;
        let mut good: Option<Vec<u8>> = None;
        for (name, _) in &copies {
            let Some(bytes) = self.store.read(&name.to_string(), 0..name.size + 1)? else { continue };
            if !name.is_of(&bytes) {
                continue;
            }
            if good.is_some() {
                let text = format!(
                    "the archive '{}' has two different segments {:X} of timeline {timeline}; `towline archive \
                     verify` names them",
                    self.address, segment.0
                );
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            good = Some(bytes);
        }
        if good.is_none() && !copies.is_empty() {
            let text = format!(
                "segment {:X} of timeline {timeline} in the archive '{}' is damaged: it is not what its name says",
                segment.0, self.address
            );
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(good)
    }

    /// The segments of a timeline from `from` on, ascending: name, and the size of the object.
    ///
    /// # Errors
    /// Why the archive can't be asked, or what `each` fails with.
    pub fn segments(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        each: &mut dyn FnMut(SegmentName, u64) -> Result<bool>,
    ) -> Result<()> {
        let start = names::number(timeline, from);
        self.list(&names::log_dir(timeline), start.trim_end_matches('-'), &mut |entry| {
            SegmentName::parse(&entry.name).map_or(Ok(true), |name| each(name, entry.size))
        })
    }
}

fn check(name: &str) -> Result<()> {
    if names::valid(name) {
        return Ok(());
    }
    let text = format!(
        "'{}' is no name for an object of an archive; its parts are letters, digits, '.', '_', '-' and '+'",
        name.escape_debug()
    );
    Err(Error::new(ErrorKind::Usage, text))
}

/// Reads an object piece by piece.
#[derive(Debug)]
pub struct ObjectReader {
    store: Arc<dyn Store>,
    name: String,
    size: u64,
    at: u64,
    held: Vec<u8>,
    used: usize,
}

impl ObjectReader {
    /// Bytes of the object.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.used == self.held.len() && self.at < self.size && !buf.is_empty() {
            let end = self.at.saturating_add(CHUNK).min(self.size);
            let read = self.store.read(&self.name, self.at..end).map_err(std::io::Error::other)?;
            let bytes = read.filter(|b| b.len() as u64 == end - self.at).ok_or_else(|| {
                let text = format!("'{}' in the archive became shorter while it was read", self.name);
                std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text)
            })?;
            (self.held, self.used, self.at) = (bytes, 0, end);
        }
        let n = buf.len().min(self.held.len() - self.used);
        buf[..n].copy_from_slice(&self.held[self.used..self.used + n]);
        self.used += n;
        Ok(n)
    }
}

#[cfg(test)]
mod prune_tests;
#[cfg(test)]
mod tests;
