//! Reading one file of a backup: its SHA-256, and what it says, in one go.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::catalog::{Catalog, block_hashes};
use crate::checkpoint;
use crate::codec::DecodeError;
use crate::error::{self, Error};
use crate::history::{self, History};
use crate::log::inspect;
use crate::manifest::{self, Sha};
use crate::pack;
use crate::position::{FileId, SystemId};
use crate::record::BLOCK;
use crate::segment;
use crate::wire::{Item, Items};

/// Bytes read at once: whole blocks, and few enough to stay in the cache between reading and summing.
const PIECE: usize = 16 * BLOCK as usize;
/// First bytes of the file of block hashes.
const HASHES: &[u8; 8] = b"TWLNHASH";
const HASHES_VERSION: u32 = 1;

/// What a file of a backup is, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Contents; with its id where that is known.
    Data(Option<(SystemId, FileId)>),
    Catalog,
    Blocks,
    Segment,
    Pack,
    History,
}

impl Role {
    /// The role of a part.
    pub(super) fn of(name: &[u8]) -> Self {
        match name {
            _ if name == manifest::CATALOG.as_bytes() => Self::Catalog,
            _ if name == manifest::BLOCKS.as_bytes() => Self::Blocks,
            _ if name.starts_with(b"pack-") => Self::Pack,
            _ if history::parse_name(name).is_some() => Self::History,
            _ if name.strip_prefix(b"log/").is_some_and(|n| segment::parse_name(n).is_some()) => {
                Self::Segment
            }
            _ => Self::Data(None),
        }
    }
}

/// Count of blocks and their sum, of each file.
pub(super) type Known = HashMap<FileId, (u32, u128)>;

/// What a pack holds.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) system: SystemId,
    /// Files, and how often each ends here.
    pub(super) ends: HashMap<FileId, u32>,
}

/// What a file says.
#[derive(Debug)]
pub(super) enum Said {
    Nothing,
    /// The sum of its blocks' hashes.
    Content(u128),
    Catalog(Result<Box<Catalog>, String>),
    Blocks(Result<Known, String>),
    Segment(Box<inspect::Report>),
    Pack(Result<Packed, String>),
    History(Result<History, String>),
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) len: u64,
    pub(super) sha: Sha,
    pub(super) said: Said,
}

/// Sums what passes.
struct Summed<'a> {
    input: &'a mut dyn Read,
    sum: Sha256,
    len: u64,
    failed: Option<io::Error>,
}

impl Read for Summed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = match self.input.read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                // Who decodes may call it damage.
                let again = io::Error::new(e.kind(), e.to_string());
                self.failed = Some(e);
                return Err(again);
            }
            n => n?,
        };
        self.sum.update(buf.get(..n).unwrap_or_default());
        self.len += n as u64;
        Ok(n)
    }
}

/// Reads all of `input`, a file of `size` bytes called `name`.
pub(super) fn read(
    name: &[u8],
    role: Role,
    size: u64,
    input: &mut dyn Read,
    buf: &mut Vec<u8>,
) -> io::Result<Seen> {
    buf.resize(PIECE, 0);
    let mut input = Summed { input, sum: Sha256::new(), len: 0, failed: None };
    let said = said(name, role, size, &mut input, buf);
    // What the decoder did not want is summed, too.
    while input.failed.is_none() && !matches!(input.read(buf), Ok(0)) {}
    match input.failed {
        // What a decoder makes of a failed read says nothing.
        Some(e) => Err(e),
        None => Ok(Seen { len: input.len, sha: Sha(input.sum.finalize().into()), said: said? }),
    }
}

fn said(name: &[u8], role: Role, size: u64, input: &mut Summed<'_>, buf: &mut [u8]) -> io::Result<Said> {
    Ok(match role {
        Role::Data(Some((system, id))) => Said::Content(content(system, id, input, buf)?),
        Role::Data(None) => Said::Nothing,
        Role::Catalog => {
            let read = checkpoint::decode(input);
            Said::Catalog(read.map(Box::new).map_err(|e| e.to_string()))
        }
        Role::Blocks => {
            let mut buffered = io::BufReader::with_capacity(PIECE, input);
            Said::Blocks(hashes(&mut buffered, size))
        }
        Role::Segment => {
            let mut bytes = Vec::new();
            input.take(segment::FILE_MAX + 1).read_to_end(&mut bytes)?;
            let path = std::str::from_utf8(name).unwrap_or_default();
            let report =
                inspect::look_at(Path::new(path), &bytes).map_err(|e| io::Error::other(e.to_string()))?;
            Said::Segment(Box::new(report))
        }
        Role::Pack => Said::Pack(packed(input).map_err(|e| e.to_string())),
        Role::History => {
            let mut bytes = Vec::new();
            input.take(history::SEAL.most + 1).read_to_end(&mut bytes)?;
            Said::History(History::decode(&bytes).map_err(|e| e.to_string()))
        }
    })
}

/// Fills the buffer as far as there is anything.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match input.read(buf.get_mut(n..).unwrap_or_default()) {
            Ok(0) => break,
            Ok(got) => n += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

fn content(system: SystemId, id: FileId, input: &mut Summed<'_>, buf: &mut [u8]) -> io::Result<u128> {
    let (mut sum, mut block) = (0_u128, 0);
    loop {
        let n = fill(input, buf)?;
        let piece = buf.get(..n).unwrap_or_default();
        sum = block_hashes(system, id, block, piece).fold(sum, u128::wrapping_add);
        block += (n as u64).div_ceil(BLOCK);
        if n < buf.len() {
            return Ok(sum);
        }
    }
}

/// Reads the file of block hashes.
fn hashes<R: Read>(input: &mut R, size: u64) -> Result<Known, String> {
    let mut crc = 0;
    let mut left = size.checked_sub(4).ok_or("it is cut")?;
    let mut take = |input: &mut R, bytes: &mut [u8]| {
        left = left.checked_sub(bytes.len() as u64).ok_or("a file's hashes reach over its end")?;
        input.read_exact(bytes).map_err(|e| e.to_string())?;
        crc = crc32c::crc32c_append(crc, bytes);
        Ok::<u64, String>(left)
    };
    let mut head = [0; 12];
    let mut rest = take(input, &mut head)?;
    if !head.starts_with(HASHES) {
        return Err(DecodeError::Magic("file of block hashes").to_string());
    }
    let found = u32::from_le_bytes(head.last_chunk().copied().unwrap_or_default());
    if found != HASHES_VERSION {
        return Err(DecodeError::Version { found, known: HASHES_VERSION }.to_string());
    }
    let (mut known, mut last) = (Known::new(), FileId(0));
    while rest > 0 {
        let (mut id, mut count) = ([0; 8], [0; 4]);
        take(input, &mut id)?;
        rest = take(input, &mut count)?;
        let (id, count) = (FileId(u64::from_le_bytes(id)), u32::from_le_bytes(count));
        if id <= last {
            return Err(format!("file {id} stands behind file {last}"));
        }
        last = id;
        let mut sum = 0_u128;
        for _ in 0..count {
            let mut hash = [0; 16];
            rest = take(input, &mut hash)?;
            sum = sum.wrapping_add(u128::from_le_bytes(hash));
        }
        known.insert(id, (count, sum));
    }
    let mut stored = [0; 4];
    input.read_exact(&mut stored).map_err(|e| e.to_string())?;
    let stored = u32::from_le_bytes(stored);
    if stored == crc { Ok(known) } else { Err(DecodeError::Checksum { stored, computed: crc }.to_string()) }
}

/// Reads a pack: frames, items, and which files they are of.
fn packed(input: &mut Summed<'_>) -> error::Result<Packed> {
    let mut reader = pack::Reader::new(io::BufReader::with_capacity(PIECE, input))?;
    let mut found = Packed { system: reader.system(), ends: HashMap::new() };
    let mut unpacker = pack::Unpacker::default();
    while let Some(frame) = reader.next()? {
        let at = frame.at;
        for item in Items::new(unpacker.items(&frame)?) {
            let item = item.map_err(|e| Error::from(e).wrap(&format!("at byte {at}")))?;
            match item {
                Item::End { id, .. } => *found.ends.entry(id).or_default() += 1,
                Item::Data { id, .. } | Item::Hole { id, .. } => drop(found.ends.entry(id).or_default()),
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::HashWriter;

    fn look(role: Role, bytes: &[u8]) -> Seen {
        read(b"x", role, bytes.len() as u64, &mut &bytes[..], &mut Vec::new()).unwrap()
    }

    fn hashes_of(bytes: &[u8]) -> Result<Known, String> {
        match look(Role::Blocks, bytes).said {
            Said::Blocks(known) => known,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn block_hashes_are_read_as_they_are_written_and_every_damage_is_found() {
        let mut out = HashWriter::new(Vec::new()).unwrap();
        out.file(FileId(3), 2).unwrap();
        out.hashes(&[7, u128::MAX]).unwrap();
        out.file(FileId(9), 1).unwrap();
        out.hashes(&[5]).unwrap();
        let whole = out.finish().unwrap();
        let known = hashes_of(&whole).unwrap();
        assert_eq!(known, Known::from([(FileId(3), (2, 6)), (FileId(9), (1, 5))]));
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            hashes_of(&bad).expect_err(&format!("byte {at}"));
            hashes_of(&whole[..at]).expect_err(&format!("cut at {at}"));
        }
        let seen = look(Role::Blocks, &whole);
        assert_eq!((seen.len, seen.sha), (whole.len() as u64, Sha(Sha256::digest(&whole).into())));
    }

    #[test]
    fn a_count_that_reaches_over_the_end_asks_for_nothing() {
        let mut bytes = b"TWLNHASH\x01\0\0\0".to_vec();
        bytes.extend_from_slice(&2_u64.to_le_bytes());
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        assert!(hashes_of(&bytes).unwrap_err().contains("reach over its end"));
    }

    #[test]
    fn content_is_summed_by_blocks_whatever_the_reads() {
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = buf.len().min(777).min(self.0.len());
                buf[..n].copy_from_slice(&self.0[..n]);
                self.0 = &self.0[n..];
                Ok(n)
            }
        }
        let (system, id) = (SystemId(5), FileId(2));
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i / 100) as u8).collect();
            let want = block_hashes(system, id, 0, &bytes).fold(0, u128::wrapping_add);
            let mut buf = Vec::new();
            let seen =
                read(b"x", Role::Data(Some((system, id))), len as u64, &mut Slow(&bytes), &mut buf).unwrap();
            assert!(matches!(seen.said, Said::Content(sum) if sum == want), "{len}: {:?}", seen.said);
        }
    }

    #[test]
    fn an_error_of_reading_is_no_damage() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(5))
            }
        }
        for role in [Role::Catalog, Role::Blocks, Role::Segment, Role::Pack, Role::History, Role::Data(None)]
        {
            let e = read(b"x", role, 100, &mut Fails, &mut Vec::new()).unwrap_err();
            assert_eq!(e.raw_os_error(), Some(5), "{role:?}");
        }
    }
}
