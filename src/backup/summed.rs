//! What passes through is counted and summed.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use crate::manifest::Sha;

/// A writer that does so.
#[derive(Debug)]
pub(super) struct Summed<W> {
    out: W,
    sha: Sha256,
    len: u64,
}

impl<W> Summed<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, sha: Sha256::new(), len: 0 }
    }

    /// What is behind it, the bytes, and their sum.
    pub(super) fn finish(self) -> (W, u64, Sha) {
        (self.out, self.len, Sha(self.sha.finalize().into()))
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.sha.update(&buf[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
