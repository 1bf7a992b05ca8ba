//! The journal of a first copy: which files are whole and durable, so that a copy goes on after any break.
//!
//! Little-endian. A header, then frames; what follows the last sound frame does not count.
//!
//! | offset | size | header field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLNFILL` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 8 | system id |
//! | 20 | 8 | LSN of the snapshot |
//! | 28 | 4 | CRC32C of the 28 bytes before |
//!
//! | offset | size | frame field |
//! | --- | --- | --- |
//! | 0 | 4 | number of entries, at most [`FRAME_MAX`] |
//! | 4 | 4 | CRC32C of the number and the entries |
//! | 8 | 65 x n | entries: file id u64, content u128, device u64, inode u64, birth time (i64 s, u32 ns), change time (i64 s, u32 ns), racy u8 |

use std::collections::HashMap;
use std::path::Path;

use crate::catalog::{LocalId, Seen};
use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk::{self, SyncFile};
use crate::error::{Error, ErrorKind, Result};
use crate::position::{FileId, Lsn, SystemId};
use crate::record::Time;

/// Most entries of one frame.
const FRAME_MAX: usize = 16 << 10;
const HEADER: usize = 32;
const SEAL: Seal = Seal {
    name: "journal of a first copy",
    magic: b"TWLNFILL",
    version: Some(1),
    most: HEADER as u64,
    remedy: REMEDY,
};
const REMEDY: &str =
    "stop the node, empty its data and state directories, and start it: the copy begins anew";
const ENTRY: usize = 65;
/// Its name in the directory of the fill.
const NAME: &str = "journal";

/// A file that is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Finished {
    pub(super) id: FileId,
    /// Sum of its block hashes.
    pub(super) content: u128,
    pub(super) seen: Seen,
}

/// The journal, open for more.
#[derive(Debug)]
pub(super) struct Journal {
    file: SyncFile,
    end: u64,
}

impl Journal {
    /// Makes an empty journal durable.
    pub(super) fn create(dir: &Path, system: SystemId, snapshot: Lsn) -> Result<()> {
        disk::write_atomic(dir, NAME, &header(system, snapshot))
    }

    /// Opens the journal of a copy, cut behind its last sound frame: what it says is whole.
    pub(super) fn open(
        dir: &Path,
        system: SystemId,
        snapshot: Lsn,
    ) -> Result<(Self, HashMap<FileId, Finished>)> {
        let path = dir.join(NAME);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let of = take_header(&bytes).map_err(|why| Error::unusable(&SEAL, &path, why))?;
        if of != (system, snapshot) {
            let (path, (other, at)) = (path.display(), of);
            let text = format!(
                "'{path}' is the journal of a copy of system {other} at {at}, not of {system} at {snapshot}; {REMEDY}"
            );
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let (done, end) = replay(&bytes[HEADER..]);
        let end = (HEADER + end) as u64;
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        let mut file = SyncFile::new(file.map_err(|e| Error::io("open", &path, e))?, &path);
        file.set_len(end)?;
        file.sync_data()?;
        Ok((Self { file, end }, done))
    }

    /// Adds files durably. Their data must be durable already.
    pub(super) fn add(&mut self, files: &[Finished]) -> Result<()> {
        for part in files.chunks(FRAME_MAX) {
            let mut frame = Vec::with_capacity(8 + part.len() * ENTRY);
            frame.put_u32(u32::try_from(part.len()).unwrap_or(0));
            frame.put_u32(0);
            part.iter().for_each(|f| put(f, &mut frame));
            let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[8..]);
            frame[4..8].copy_from_slice(&crc.to_le_bytes());
            self.file.write_at(&frame, self.end)?;
            self.end += frame.len() as u64;
        }
        self.file.sync_data()
    }
}

fn header(system: SystemId, snapshot: Lsn) -> Vec<u8> {
    SEAL.encode(|out| {
        out.put_u64(system.0);
        out.put_u64(snapshot.0);
    })
}

fn take_header(bytes: &[u8]) -> std::result::Result<(SystemId, Lsn), DecodeError> {
    let mut r = SEAL.decode(bytes.get(..HEADER).ok_or(DecodeError::Short("its header"))?)?;
    Ok((SystemId(r.u64("system id")?), Lsn(r.u64("LSN of the snapshot")?)))
}

fn put(f: &Finished, out: &mut Vec<u8>) {
    out.put_u64(f.id.0);
    out.put_u128(f.content);
    out.put_u64(f.seen.local.dev);
    out.put_u64(f.seen.local.ino);
    for t in [f.seen.local.btime, f.seen.ctime] {
        out.put_i64(t.sec);
        out.put_u32(t.nsec);
    }
    out.put_u8(u8::from(f.seen.racy));
}

fn take(r: &mut Reader<'_>) -> std::result::Result<Finished, DecodeError> {
    let (id, content) = (FileId(r.u64("file id")?), r.u128("content")?);
    let (dev, ino) = (r.u64("device")?, r.u64("inode")?);
    let btime = Time { sec: r.i64("birth time")?, nsec: r.u32("birth time")? };
    let ctime = Time { sec: r.i64("change time")?, nsec: r.u32("change time")? };
    let racy = r.u8("racy")? == 1;
    Ok(Finished { id, content, seen: Seen { local: LocalId { dev, ino, btime }, ctime, racy } })
}

/// Reads frames until the first that is not sound; the bytes of those before it.
fn replay(bytes: &[u8]) -> (HashMap<FileId, Finished>, usize) {
    let (mut done, mut end) = (HashMap::new(), 0);
    while let Ok((files, len)) = frame(&bytes[end..]) {
        done.extend(files.into_iter().map(|f| (f.id, f)));
        end += len;
    }
    (done, end)
}

fn frame(bytes: &[u8]) -> std::result::Result<(Vec<Finished>, usize), DecodeError> {
    let mut r = Reader::new(bytes);
    let (n, crc) = (r.u32("entries")?, r.u32("checksum")?);
    let count = n as usize;
    if count == 0 || count > FRAME_MAX {
        return Err(DecodeError::TooLarge { what: "entries", value: u64::from(n), limit: FRAME_MAX as u64 });
    }
    let entries = r.bytes(count * ENTRY, "entries")?;
    if crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), entries) != crc {
        return Err(DecodeError::Invalid { what: "checksum", value: u64::from(crc) });
    }
    let mut r = Reader::new(entries);
    let files = (0..count).map(|_| take(&mut r)).collect::<std::result::Result<_, _>>()?;
    Ok((files, 8 + count * ENTRY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(n: u64) -> Finished {
        let local = LocalId { dev: n, ino: n + 1, btime: Time { sec: -5, nsec: 6 } };
        let seen = Seen { local, ctime: Time { sec: 7, nsec: 8 }, racy: n % 2 == 0 };
        Finished { id: FileId(n), content: u128::from(n) << 64, seen }
    }

    #[test]
    fn what_was_added_is_there_and_a_torn_frame_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (system, lsn) = (SystemId(5), Lsn(9));
        Journal::create(dir.path(), system, lsn).unwrap();
        let (mut journal, done) = Journal::open(dir.path(), system, lsn).unwrap();
        assert!(done.is_empty());
        journal.add(&[file(1), file(2)]).unwrap();
        journal.add(&(3..40_000).map(file).collect::<Vec<_>>()).unwrap();
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        let (_, done) = Journal::open(dir.path(), system, lsn).unwrap();
        assert_eq!(done.len(), 39_999);
        assert!(done.values().all(|f| *f == file(f.id.0)));
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let (mut journal, done) = Journal::open(dir.path(), system, lsn).unwrap();
        assert_eq!(done.len(), 2 + 2 * FRAME_MAX);
        journal.add(&[file(70_000)]).unwrap();
        let (_, done) = Journal::open(dir.path(), system, lsn).unwrap();
        assert_eq!(done.len(), 3 + 2 * FRAME_MAX);
        for (system, lsn) in [(SystemId(6), lsn), (system, Lsn(10))] {
            let e = Journal::open(dir.path(), system, lsn).unwrap_err();
            assert!(e.to_string().contains("is the journal of a copy of system"), "{e}");
        }
        for (bytes, what) in [(&b"TWLNFILL"[..], "ends inside its header"), (&[0; 99], "not those of")] {
            std::fs::write(&path, bytes).unwrap();
            let e = Journal::open(dir.path(), system, lsn).unwrap_err();
            assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains(what), "{e}");
        }
    }

    #[test]
    fn the_format_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        Journal::create(dir.path(), SystemId(5), Lsn(9)).unwrap();
        let (mut journal, _) = Journal::open(dir.path(), SystemId(5), Lsn(9)).unwrap();
        journal.add(&[file(2)]).unwrap();
        let mut wanted = b"TWLNFILL\x01\0\0\0\x05\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\xd9\x89\x98\xe0".to_vec();
        wanted.extend(b"\x01\0\0\0\xc7\x7a\x61\x4c\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        wanted.extend(b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\xfb\xff\xff\xff\xff\xff\xff\xff\x06\0\0\0");
        wanted.extend(b"\x07\0\0\0\0\0\0\0\x08\0\0\0\x01");
        let got = std::fs::read(dir.path().join(NAME)).unwrap();
        assert_eq!(got, wanted, "{}", got.escape_ascii());
    }

    #[test]
    fn every_flipped_byte_ends_the_journal_there() {
        let mut bytes = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        Journal::create(dir.path(), SystemId(1), Lsn(1)).unwrap();
        let (mut journal, _) = Journal::open(dir.path(), SystemId(1), Lsn(1)).unwrap();
        journal.add(&[file(1)]).unwrap();
        journal.add(&[file(2)]).unwrap();
        bytes.extend_from_slice(&std::fs::read(dir.path().join(NAME)).unwrap()[HEADER..]);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x20;
            let (done, _) = replay(&bad);
            assert_eq!(done.len(), usize::from(at >= bytes.len() / 2), "byte {at}");
        }
    }
}
