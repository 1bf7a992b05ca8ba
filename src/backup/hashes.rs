//! The file `blocks` of a backup: the hashes of the blocks that it stores, by which an incremental backup tells what has
//! changed without reading its base.
//!
//! Of form tree they are those of the end. Of the other forms they become so only once the log of the backup is folded over them:
//! by what was stored alone, a block that the log changes and that was changed back since would count as unchanged.
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `TWLNHASH` |
//! | 4 | format version, 1, little-endian |
//! | .. | for each regular file that is not empty, ascending by id: id u64, count of blocks u32, count x hash u128, little-endian |
//! | 4 | CRC32C of everything before, little-endian |

use std::io::{self, Read, Write};

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

/// What reading says, with its errors in words.
type Said<T> = std::result::Result<T, String>;

/// Reads the file, in order. Every error is in words.
#[derive(Debug)]
pub struct HashReader<R> {
    input: R,
    crc: u32,
    /// Bytes read ahead: the checksum can't be told from a file's id before the end is seen.
    ahead: [u8; 4],
    last: FileId,
    left: u64,
}

impl<R: Read> HashReader<R> {
    /// Begins it.
    ///
    /// # Errors
    /// It is none, of another version, or can't be read.
    pub fn new(mut input: R) -> Said<Self> {
        let mut head = [0; 12];
        input.read_exact(&mut head).map_err(|e| format!("cannot read the block hashes: {e}"))?;
        if head[..8] != MAGIC {
            return Err("the block hashes have another magic".to_owned());
        }
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if version != VERSION {
            return Err(format!("the block hashes are of version {version}, this program knows {VERSION}"));
        }
        let mut reader = Self { input, crc: crc32c::crc32c(&head), ahead: [0; 4], last: FileId(0), left: 0 };
        let mut ahead = [0; 4];
        reader.input.read_exact(&mut ahead).map_err(|_| cut())?;
        reader.ahead = ahead;
        Ok(reader)
    }

    /// Takes bytes, four behind what was read.
    fn take(&mut self, to: &mut [u8]) -> Said<()> {
        let n = to.len();
        let mut joined = self.ahead.to_vec();
        joined.resize(n + 4, 0);
        self.input.read_exact(&mut joined[4..]).map_err(|_| cut())?;
        to.copy_from_slice(&joined[..n]);
        self.ahead.copy_from_slice(&joined[n..]);
        self.crc = crc32c::crc32c_append(self.crc, to);
        Ok(())
    }

    fn at_end(&mut self) -> Said<Option<u8>> {
        let mut one = [0];
        match self.input.read(&mut one) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(one[0])),
            Err(e) => Err(format!("cannot read the block hashes: {e}")),
        }
    }

    /// The next file and how many hashes it has; `None`: there is no other.
    ///
    /// # Errors
    /// Files are not in order, or it can't be read.
    pub fn file(&mut self) -> Said<Option<(FileId, u64)>> {
        if self.left > 0 {
            return Err("hashes were left".to_owned());
        }
        let Some(byte) = self.at_end()? else { return Ok(None) };
        // The byte belongs behind what is ahead.
        let [a, b, c, d] = self.ahead;
        let mut rest = [0; 11];
        self.input.read_exact(&mut rest).map_err(|_| cut())?;
        let mut head = [0; 12];
        head[..4].copy_from_slice(&[a, b, c, d]);
        head[4] = byte;
        head[5..].copy_from_slice(&rest[..7]);
        self.ahead.copy_from_slice(&rest[7..]);
        self.crc = crc32c::crc32c_append(self.crc, &head);
        let (id, count) = head.split_at(8);
        let id = FileId(u64::from_le_bytes(id.try_into().map_err(|_| cut())?));
        let count = u64::from(u32::from_le_bytes(count.try_into().map_err(|_| cut())?));
        if id <= self.last || count == 0 {
            return Err(format!("the block hashes of file {id} are out of order"));
        }
        (self.last, self.left) = (id, count);
        Ok(Some((id, count)))
    }

    /// The next hashes of that file, at most `most` and 4096.
    ///
    /// # Errors
    /// It can't be read.
    pub fn hashes(&mut self, most: u64) -> Said<Vec<u128>> {
        let n = most.min(self.left).min(RUN);
        let mut bytes = vec![0; usize::try_from(n).unwrap_or(0) * 16];
        self.take(&mut bytes)?;
        self.left -= n;
        let hash = |c: &[u8]| c.try_into().map(u128::from_le_bytes).unwrap_or_default();
        Ok(bytes.chunks_exact(16).map(hash).collect())
    }

    /// The checksum, after the last file.
    ///
    /// # Errors
    /// It is not that of what was read.
    pub fn finish(self) -> Said<()> {
        let stored = u32::from_le_bytes(self.ahead);
        if stored == self.crc {
            return Ok(());
        }
        Err(format!("the checksum of the block hashes is {:08x}, and {stored:08x} is said", self.crc))
    }
}

fn cut() -> String {
    "the block hashes break off".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_every_flipped_byte_is_found() {
        let mut writer = HashWriter::new(Vec::new()).unwrap();
        writer.file(FileId(3), 1).unwrap();
        writer.hashes(&[7]).unwrap();
        writer.file(FileId(9), 5000).unwrap();
        let many: Vec<u128> = (0..5000).collect();
        writer.hashes(&many).unwrap();
        let bytes = writer.finish().unwrap();
        let read = |bytes: &[u8]| -> Said<Vec<(u64, Vec<u128>)>> {
            let mut reader = HashReader::new(bytes)?;
            let mut out = Vec::new();
            while let Some((id, count)) = reader.file()? {
                let mut all = Vec::new();
                while (all.len() as u64) < count {
                    all.extend(reader.hashes(count)?);
                }
                out.push((id.0, all));
            }
            reader.finish()?;
            Ok(out)
        };
        assert_eq!(read(&bytes).unwrap(), [(3, vec![7]), (9, many)]);
        for at in (0..200).chain(bytes.len() - 200..bytes.len()) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(read(&bad).is_err(), "byte {at}");
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
