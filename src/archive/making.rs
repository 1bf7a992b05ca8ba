//! Notes of the backups that are being made: by them `prune` knows what must not go before they are there.
//!
//! `making/LABEL` is made before the first object of that backup, and goes after its manifest was written, or with what a
//! failed one had put there. It holds `on LABEL`, the label of what the backup stands on, or `full`.

use super::{Archive, names};
use crate::error::Result;
use crate::manifest::check_label;

/// What the note of one that stands on another begins with.
const ON: &str = "on ";
/// The note of one that does not.
const FULL: &str = "full";
/// Most bytes of a note.
const BYTES_MAX: u64 = 256;
/// Most notes that are looked at.
const NOTES_MAX: usize = 10_000;

/// A backup that is being made, or whose making was broken off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Making {
    /// Its label.
    pub label: String,
    /// The label of what it stands on.
    pub base: Option<String>,
    /// When something of it was made last, seconds since 1970.
    pub modified: i64,
}

/// Notes that a backup begins.
///
/// # Errors
/// Why the archive can't be asked.
pub fn begin(archive: &Archive, label: &str, base: Option<&str>) -> Result<()> {
    let name = names::making(label);
    // Of one that was broken off, perhaps on another base.
    archive.delete(&name)?;
    let text = base.map_or_else(|| FULL.to_owned(), |base| format!("{ON}{base}"));
    archive.put(&name, text.as_bytes()).map(drop)
}

/// It is there, or comes to nothing.
///
/// # Errors
/// Why the archive can't be asked.
pub fn end(archive: &Archive, label: &str) -> Result<()> {
    archive.delete(&names::making(label))
}

/// All notes.
///
/// # Errors
/// Why the archive can't be asked.
pub fn all(archive: &Archive) -> Result<Vec<Making>> {
    let mut found = Vec::new();
    archive.list(names::MAKING, "", &mut |entry| {
        let label = entry.name.strip_prefix(names::MAKING).and_then(|n| n.strip_prefix('/'));
        if let Some(label) = label.filter(|l| check_label(l).is_ok()) {
            found.push(Making { label: label.to_owned(), base: None, modified: entry.modified });
        }
        Ok(found.len() < NOTES_MAX)
    })?;
    for making in &mut found {
        let text = archive.get(&names::making(&making.label), BYTES_MAX)?.unwrap_or_default();
        making.base = std::str::from_utf8(&text).ok().and_then(|t| t.strip_prefix(ON)).map(str::to_owned);
    }
    Ok(found)
}
