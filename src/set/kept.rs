//! Bytes that are kept somewhere, read at any place.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use crate::sys;

/// Something kept, as bytes `at` to `at + len` of a file.
#[derive(Debug)]
pub struct Kept {
    /// Where the bytes are.
    pub file: File,
    /// The first of them.
    pub at: u64,
    /// How many.
    pub len: u64,
}

impl Kept {
    /// Reads it from its beginning on.
    #[must_use]
    pub fn reader(&self) -> KeptReader<'_> {
        KeptReader { kept: self, at: 0 }
    }

    /// The same, for someone who keeps the reader.
    #[must_use]
    pub fn into_reader(self) -> impl Read + Send + 'static {
        Owned { kept: self, at: 0 }
    }

    fn read(&self, at: &mut u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(*at)).unwrap_or(usize::MAX);
        let n = buf.len().min(left);
        let n = sys::read_at(&self.file, buf.get_mut(..n).unwrap_or_default(), self.at.saturating_add(*at))?;
        *at += n as u64;
        Ok(n)
    }
}

/// Reads what is kept.
#[derive(Debug)]
pub struct KeptReader<'a> {
    kept: &'a Kept,
    at: u64,
}

impl Read for KeptReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.kept.read(&mut self.at, buf)
    }
}

struct Owned {
    kept: Kept,
    at: u64,
}

impl Read for Owned {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.kept.read(&mut self.at, buf)
    }
}

/// The content of a file of the tree.
pub trait Content {
    /// Its bytes.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next range from `from` on, and below `size`, that may hold anything but zeros.
    ///
    /// # Errors
    /// It can't be asked.
    fn next_data(&mut self, from: u64, size: u64) -> io::Result<Option<(u64, u64)>>;

    /// Fills the buffer from byte `at` on, as far as there is something.
    ///
    /// # Errors
    /// It can't be read.
    fn read_at(&mut self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// The file that holds just this content, from its first byte on.
    fn alone(&self) -> Option<&File> {
        None
    }
}

impl Content for Kept {
    fn len(&self) -> u64 {
        self.len
    }

    fn next_data(&mut self, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
        let size = size.min(self.len);
        // Within a tar nothing is a hole.
        if self.at == 0 {
            return sys::next_data(self.file.as_fd(), from, size);
        }
        Ok((from < size).then_some((from, size)))
    }

    fn read_at(&mut self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut at = at;
        self.read(&mut at, buf)
    }

    fn alone(&self) -> Option<&File> {
        Some(&self.file).filter(|_| self.at == 0)
    }
}
