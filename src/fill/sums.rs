//! SHA-256 of contents as they are written: whoever needs the sums of a copy need not read it again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::manifest::Sha;
use crate::position::FileId;
use crate::record::BLOCK;

/// What a hole is summed from.
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A file as it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sum {
    /// Its length in bytes.
    pub size: u64,
    /// The sum of the hashes of its blocks, by which the catalog knows the content.
    pub content: u128,
    /// SHA-256 of all its bytes.
    pub sha256: Sha,
}

/// The files that one process has written.
#[derive(Debug, Default)]
pub struct Sums(Mutex<HashMap<FileId, Sum>>);

impl Sums {
    pub(super) fn note(&self, id: FileId, sum: Sum) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sum);
    }

    /// The SHA-256 of the file, if it was written here with this length and content.
    #[must_use]
    pub fn of(&self, id: FileId, size: u64, content: u128) -> Option<Sha> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&id).filter(|s| (s.size, s.content) == (size, content)).map(|s| s.sha256)
    }
}

/// One file under way: its bytes come in order, and what is passed over is a hole.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    sha: Sha256,
    at: u64,
}

impl Tally {
    /// These bytes are at `offset`, which is not before those that came already.
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8]) {
        self.skip(offset);
        self.sha.update(bytes);
        self.at += bytes.len() as u64;
    }

    fn skip(&mut self, to: u64) {
        while self.at < to {
            let n = (to - self.at).min(BLOCK);
            self.sha.update(&ZEROS[..n as usize]);
            self.at += n;
        }
    }

    /// The file ends there.
    pub(super) fn finish(mut self, size: u64) -> Sha {
        self.skip(size);
        Sha(self.sha.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_count_as_zeros() {
        let mut tally = Tally::default();
        tally.add(0, b"ab");
        tally.add(40_000, b"c");
        let mut whole = vec![0; 100_000];
        (whole[0], whole[1], whole[40_000]) = (b'a', b'b', b'c');
        assert_eq!(tally.finish(100_000).0[..], Sha256::digest(&whole)[..]);
        assert_eq!(Tally::default().finish(0).0[..], Sha256::digest(b"")[..]);
    }

    #[test]
    fn a_sum_holds_for_the_content_that_was_written_only() {
        let (sums, sha256) = (Sums::default(), Sha([7; 32]));
        sums.note(FileId(3), Sum { size: 5, content: 9, sha256 });
        assert_eq!(sums.of(FileId(3), 5, 9), Some(sha256));
        for (id, size, content) in [(4, 5, 9), (3, 6, 9), (3, 5, 8)] {
            assert_eq!(sums.of(FileId(id), size, content), None);
        }
    }
}
