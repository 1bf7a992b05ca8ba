//! The files whose content is in doubt, remembered in the state directory.
//!
//! A checkpoint takes the log that made a file doubtful out of the next recovery's reach, and what was once found
//! to be another content than was applied must never pass for good again. So doubts are written down before
//! that checkpoint, and each lasts, over every restart and whatever is configured, until the whole content was
//! compared with the hashes of its blocks.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;

use crate::codec::{Put, Reader};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::position::FileId;

const MAGIC: [u8; 8] = *b"TWLDOUB1";

/// Where doubts are remembered.
#[derive(Debug)]
pub(crate) struct Doubts {
    file: PathBuf,
    /// Something is written there.
    kept: bool,
}

/// Files to be compared: at once, and when there is time.
pub(crate) type Lists = (Vec<FileId>, VecDeque<(FileId, u64)>);

impl Doubts {
    /// Remembered in this file.
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file, kept: false }
    }

    /// What is still in doubt since an earlier start.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when that can't be told.
    pub(crate) fn load(&mut self) -> Result<Lists> {
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Lists::default()),
            Err(e) => return Err(Error::io("read", &self.file, e)),
        };
        self.kept = true;
        decode(&bytes).ok_or_else(|| {
            let text = format!(
                "'{}' is damaged: which contents of this directory are in doubt is not known any more; empty the \
                 data and state directories, to fill the follower anew",
                self.file.display()
            );
            Error::new(ErrorKind::Corrupt, text)
        })
    }

    /// Makes the doubts durable. Without any, what was remembered is forgotten.
    pub(crate) fn keep(&mut self, now: &[FileId], later: &VecDeque<(FileId, u64)>) -> Result<()> {
        if now.is_empty() && later.is_empty() {
            if self.kept {
                disk::remove_durable(&self.file)?;
                self.kept = false;
            }
            return Ok(());
        }
        let (dir, name) = (self.file.parent(), self.file.file_name().and_then(|n| n.to_str()));
        let (Some(dir), Some(name)) = (dir, name) else { return Ok(()) };
        disk::write_atomic(dir, name, &encode(now, later))?;
        self.kept = true;
        Ok(())
    }
}

fn encode(now: &[FileId], later: &VecDeque<(FileId, u64)>) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put_u64(now.len() as u64);
    for id in now.iter().chain(later.iter().map(|(id, _)| id)) {
        out.put_u64(id.0);
    }
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    out
}

fn decode(bytes: &[u8]) -> Option<Lists> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut r = Reader::new(body);
    if r.array::<8>("magic").ok()? != MAGIC {
        return None;
    }
    let first = usize::try_from(r.u64("count").ok()?).ok()?;
    let (ids, rest) = r.rest().as_chunks::<8>();
    if !rest.is_empty() || first > ids.len() {
        return None;
    }
    let mut now: Vec<FileId> = ids.iter().map(|b| FileId(u64::from_le_bytes(*b))).collect();
    let later = now.split_off(first);
    let mut known: HashSet<FileId> = HashSet::new();
    now.retain(|id| known.insert(*id));
    Some((now, later.into_iter().filter(|id| known.insert(*id)).map(|id| (id, 0)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubts_last_until_they_are_settled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("doubtful");
        assert_eq!(Doubts::new(file.clone()).load().unwrap(), Lists::default());
        let (now, later) = (vec![FileId(7), FileId(9)], VecDeque::from([(FileId(8), 3), (FileId(7), 0)]));
        Doubts::new(file.clone()).keep(&now, &later).unwrap();
        let mut again = Doubts::new(file.clone());
        assert_eq!(again.load().unwrap(), (now.clone(), VecDeque::from([(FileId(8), 0)])));
        again.keep(&[], &VecDeque::new()).unwrap();
        assert!(!file.exists());
        // Damage is no acquittal.
        let bytes = encode(&now, &later);
        assert!((0..bytes.len()).all(|n| decode(&bytes[..n]).is_none()));
        std::fs::write(&file, &bytes[1..]).unwrap();
        assert_eq!(Doubts::new(file).load().unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
