//! The files whose content is in doubt, remembered in the state directory.
//!
//! A checkpoint takes the log that made a file doubtful out of the next recovery's reach, and what was once found
//! to be another content than was applied must never pass for good again. So doubts are written down before
//! that checkpoint, and each lasts, over every restart and whatever is configured, until the whole content was
//! compared with the hashes of its blocks.
//!
//! The file, little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLDOUB1`; its last byte is the version |
//! | 8 | 8 | number of files to compare at once |
//! | 16 | 8 x n | file ids: those to compare at once, then those to compare when there is time |
//! | end | 4 | CRC32C of everything before |

use std::collections::{HashSet, VecDeque};

use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk::{self, Note};
use crate::error::Result;
use crate::position::FileId;

const SEAL: Seal = Seal {
    name: "list of doubtful files",
    magic: b"TWLDOUB1",
    version: None,
    // A hundred million files.
    most: 800 << 20,
    remedy: "which contents of this follower are in doubt is not known any more: empty its data and state \
             directories, and it is filled anew",
};

/// Where doubts are remembered.
#[derive(Debug)]
pub(crate) struct Doubts {
    note: Note,
}

/// Files to be compared: at once, and when there is time.
pub(crate) type Lists = (Vec<FileId>, VecDeque<(FileId, u64)>);

impl Doubts {
    /// Remembered in this file.
    pub(crate) fn new(note: Note) -> Self {
        Self { note }
    }

    /// What is still in doubt since an earlier start.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::error::ErrorKind::Corrupt) when that can't be told.
    pub(crate) fn load(&self) -> Result<Lists> {
        Ok(disk::read_sealed(&self.note.path(), &SEAL, |bytes| SEAL.decode(bytes).and_then(take))?
            .unwrap_or_default())
    }

    /// Makes the doubts durable. Without any, what was remembered is forgotten.
    pub(crate) fn keep(&self, now: &[FileId], later: &VecDeque<(FileId, u64)>) -> Result<()> {
        if now.is_empty() && later.is_empty() {
            return self.note.remove();
        }
        self.note.write(&encode(now, later))
    }
}

/// The files in doubt that the state directory of a node remembers.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::error::ErrorKind::Corrupt) when that can't be told.
pub fn doubtful(state: &std::path::Path) -> Result<Vec<FileId>> {
    let (now, later) = Doubts::new(super::ApplyPaths::doubts_in(state)).load()?;
    Ok(now.into_iter().chain(later.into_iter().map(|(id, _)| id)).collect())
}

/// Remembers that the content of these files was found to be another than was applied: none of them counts
/// as good before it was compared.
pub fn damaged(state: &std::path::Path, ids: &[FileId]) -> Result<()> {
    let doubts = Doubts::new(super::ApplyPaths::doubts_in(state));
    let (mut now, mut later) = doubts.load()?;
    later.retain(|(id, _)| !ids.contains(id));
    now.extend(ids.iter().filter(|id| !now.contains(id)).copied().collect::<Vec<_>>());
    doubts.keep(&now, &later)
}

/// Forgets what was in doubt or refused: everything was compared with the leader since.
pub fn acquit(state: &std::path::Path) -> Result<()> {
    super::refusal::Refusal::new(super::ApplyPaths::refusal_in(state)).clear()?;
    Doubts::new(super::ApplyPaths::doubts_in(state)).keep(&[], &VecDeque::new())
}

fn encode(now: &[FileId], later: &VecDeque<(FileId, u64)>) -> Vec<u8> {
    SEAL.encode(|out| {
        out.put_u64(now.len() as u64);
        for id in now.iter().chain(later.iter().map(|(id, _)| id)) {
            out.put_u64(id.0);
        }
    })
}

fn take(mut r: Reader<'_>) -> std::result::Result<Lists, DecodeError> {
    let first = r.u64("number of files")?;
    let (ids, rest) = r.rest().as_chunks::<8>();
    if !rest.is_empty() {
        return Err(DecodeError::Trailing(rest.len()));
    }
    let first = usize::try_from(first).ok().filter(|n| *n <= ids.len()).ok_or(DecodeError::TooLarge {
        what: "number of files",
        value: first,
        limit: ids.len() as u64,
    })?;
    let mut now: Vec<FileId> = ids.iter().map(|b| FileId(u64::from_le_bytes(*b))).collect();
    let later = now.split_off(first);
    let mut known: HashSet<FileId> = HashSet::new();
    now.retain(|id| known.insert(*id));
    Ok((now, later.into_iter().filter(|id| known.insert(*id)).map(|id| (id, 0)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::ApplyPaths;
    use crate::error::ErrorKind;

    #[test]
    fn doubts_last_until_they_are_settled() {
        let dir = tempfile::tempdir().unwrap();
        let doubts = Doubts::new(ApplyPaths::doubts_in(dir.path()));
        let file = doubts.note.path();
        assert_eq!(doubts.load().unwrap(), Lists::default());
        let (now, later) = (vec![FileId(7), FileId(9)], VecDeque::from([(FileId(8), 3), (FileId(7), 0)]));
        doubts.keep(&now, &later).unwrap();
        assert_eq!(doubts.load().unwrap(), (now.clone(), VecDeque::from([(FileId(8), 0)])));
        doubts.keep(&[], &VecDeque::new()).unwrap();
        assert!(!file.exists());
        // Damage is no acquittal.
        let bytes = encode(&now, &later);
        for damaged in (0..bytes.len()).map(|n| &bytes[..n]).chain([&bytes[1..]]) {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(doubts.load().unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let more = SEAL.encode(|out| out.put_u64(1));
        assert!(SEAL.decode(&more).and_then(take).is_err());
    }

    #[test]
    fn the_format_stays_what_it_is() {
        let got = encode(&[FileId(7)], &VecDeque::from([(FileId(8), 3)]));
        let wanted = b"TWLDOUB1\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\xf0\x79\x04\x71";
        assert_eq!(got, wanted, "{}", got.escape_ascii());
    }
}
