//! The file `blocks` of a backup: the hashes of the blocks that it stores, by which an incremental backup tells what has
//! changed without reading its base.
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNHASH` |
//! | 4 | format version, 1, little-endian |
//! | .. | for each regular file that is not empty, ascending by id: id u64, count of blocks u32, count x hash u128, little-endian |
//! | 4 | CRC32C of everything before, little-endian |

use std::io::{self, Write};

use crate::blocks::Blocks;
use crate::catalog::{Catalog, Inode, blocks_of};
use crate::error::{Error, Result};
use crate::position::FileId;
use crate::record::Kind;

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"TWLNHASH";
/// The format.
const VERSION: u32 = 1;
/// Hashes looked up at once.
const RUN: u64 = 4096;

/// Writes the file.
#[derive(Debug)]
pub struct HashWriter<W> {
    out: W,
    crc: u32,
}

impl<W: Write> HashWriter<W> {
    /// Begins it.
    ///
    /// # Errors
    /// Why `out` can't be written.
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, crc: 0 };
        writer.put(&MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.out.write_all(bytes)
    }

    /// The next file; its hashes follow.
    ///
    /// # Errors
    /// As [`Self::new`]; a file of more blocks than the format has room for.
    pub fn file(&mut self, id: FileId, count: u64) -> io::Result<()> {
        let count = u32::try_from(count).map_err(|_| io::Error::other("a file has too many blocks"))?;
        self.put(&id.0.to_le_bytes())?;
        self.put(&count.to_le_bytes())
    }

    /// Hashes of that file, in order.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn hashes(&mut self, hashes: &[u128]) -> io::Result<()> {
        let bytes: Vec<u8> = hashes.iter().flat_map(|h| h.to_le_bytes()).collect();
        self.put(&bytes)
    }

    /// Ends it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.crc.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Writes the hashes that are known of all files of a tree; those of files of one block are given by `one`.
pub(super) fn write_known<W: Write>(
    out: W,
    catalog: &Catalog,
    blocks: &Blocks,
    one: &dyn Fn(&Inode<'_>) -> u128,
) -> Result<W> {
    let failed = |e: io::Error| Error::from(e).wrap("cannot write the block hashes");
    let mut writer = HashWriter::new(out).map_err(failed)?;
    let mut files: Vec<FileId> =
        catalog.inodes().filter(|i| i.kind == Kind::File && i.size > 0).map(|i| i.id).collect();
    files.sort_unstable();
    for inode in files.into_iter().filter_map(|id| catalog.get(id)) {
        let count = blocks_of(inode.size);
        writer.file(inode.id, count).map_err(failed)?;
        let mut at = 0;
        while at < count {
            let n = (count - at).min(RUN);
            let hashes = match count {
                1 => vec![one(&inode)],
                _ => blocks.get(inode.id, at, usize::try_from(n).unwrap_or(0))?,
            };
            writer.hashes(&hashes).map_err(failed)?;
            at += n;
        }
    }
    writer.finish().map_err(failed)
}
