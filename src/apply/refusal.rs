//! The change that apply has refused to write over, remembered in the state directory.
//!
//! Recovery can't tell an edit from what an interrupted batch left, and would write over both. So what was
//! refused once stays refused, over every restart, until somebody changed it again or took it away.
//!
//! The file, little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLEDIT1`; its last byte is the version |
//! | 8 | 1 | whether the thing was there: 0, 1 |
//! | 9 | 12 | its change time (i64 s, u32 ns); zero when it was not |
//! | 21 | blob | its path beneath the data directory |
//! | .. | blob | what was done to it, for the message |
//! | end | 4 | CRC32C of everything before |
//!
//! A blob is a u32 length and bytes.

use rustix::fs::OFlags;

use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Time;
use crate::sys::{self, Root};

const SEAL: Seal = Seal {
    name: "note of a refused edit",
    magic: b"TWLEDIT1",
    version: None,
    most: 70 << 10,
    remedy: "it is dropped; look whether this follower holds edits of yours, for they are written over",
};
/// Most bytes of a path that are remembered.
const PATH_MAX: usize = 64 << 10;
/// Most bytes of the words about it.
const WHAT_MAX: usize = 1024;

/// Where the refusal is remembered.
#[derive(Debug)]
pub(crate) struct Refusal {
    note: disk::Note,
}

/// What the thing was when it was refused: its change time, if it was there.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Note {
    ctime: Option<Time>,
    path: Vec<u8>,
    what: Vec<u8>,
}

/// The error that names the edit and what to do about it.
pub(crate) fn refused(path: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!(
            "'{path}' was changed on this follower: {what}. A follower's directory is written by \
             towline alone. Undo the change; or set local_edits = \"overwrite\", which takes back what was made, \
             moved, or given another mode, owner or attribute here, and by a resync everything else; or let `towline resync` \
             write the leader's state over it"
        ),
    )
}

fn ctime(root: &Root, path: &[u8]) -> Option<Time> {
    let fd = root.open_beneath(path, OFlags::PATH | OFlags::NOFOLLOW, 0).ok()?;
    sys::stat_fd(fd).ok().map(|s| s.ctime)
}

impl Note {
    fn encode(&self) -> Vec<u8> {
        SEAL.encode(|out| {
            let time = self.ctime.unwrap_or_default();
            out.put_u8(u8::from(self.ctime.is_some()));
            out.put_i64(time.sec);
            out.put_u32(time.nsec);
            out.put_blob(&self.path);
            out.put_blob(&self.what);
        })
    }

    fn take(mut r: Reader<'_>) -> std::result::Result<Self, DecodeError> {
        let there = r.u8("presence")? == 1;
        let time = Time { sec: r.i64("change time")?, nsec: r.u32("change time")? };
        let path = r.blob(PATH_MAX, "path")?.to_vec();
        let what = r.blob(WHAT_MAX, "words")?.to_vec();
        Ok(Self { ctime: there.then_some(time), path, what })
    }
}

impl Refusal {
    /// Remembered in this file.
    pub(crate) fn new(note: disk::Note) -> Self {
        Self { note }
    }

    /// Remembers that the thing at `path` is refused as it is now.
    pub(crate) fn note(&self, root: &Root, path: &[u8], what: &str) -> Result<()> {
        let note = Note { ctime: ctime(root, path), path: path.to_vec(), what: what.as_bytes().to_vec() };
        self.note.write(&note.encode())
    }

    /// Forgets what was refused.
    pub(crate) fn clear(&self) -> Result<()> {
        self.note.remove()
    }

    /// Fails as before while what was refused is still as it was; else forgets it.
    pub(crate) fn check(&self, root: &Root) -> Result<()> {
        if let Some(note) = self.read()?
            && ctime(root, &note.path) == note.ctime
        {
            let path = note.path.escape_ascii().to_string();
            return Err(refused(&path, &String::from_utf8_lossy(&note.what)));
        }
        self.clear()
    }

    /// A damaged note says nothing: whether the edit is still there shows when its file is changed again.
    fn read(&self) -> Result<Option<Note>> {
        match disk::read_sealed(&self.note.path(), &SEAL, |bytes| SEAL.decode(bytes).and_then(Note::take)) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!("{e}");
                Ok(None)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::ApplyPaths;

    #[test]
    fn what_was_refused_stays_refused_until_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("a"), "1").unwrap();
        let root = Root::open(&data).unwrap();
        let refusal = Refusal::new(ApplyPaths::refusal_in(dir.path()));
        let file = refusal.note.path();
        refusal.check(&root).unwrap();
        refusal.note(&root, b"a", "it was created here").unwrap();
        for _ in 0..2 {
            let e = refusal.check(&root).unwrap_err();
            assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("'a' was changed"), "{e}");
        }
        std::fs::remove_file(data.join("a")).unwrap();
        refusal.check(&root).unwrap();
        refusal.note(&root, b"a", "it was removed").unwrap();
        assert!(refusal.check(&root).is_err());
        std::fs::write(data.join("a"), "2").unwrap();
        refusal.check(&root).unwrap();
        // Garbage is no note.
        let note = Note { ctime: None, path: vec![b'x'; 300], what: b"y".to_vec() };
        let bytes = note.encode();
        assert_eq!(SEAL.decode(&bytes).and_then(Note::take).as_ref(), Ok(&note));
        for damaged in (0..bytes.len()).map(|n| &bytes[..n]).chain([&b"garbage"[..]]) {
            std::fs::write(&file, damaged).unwrap();
            refusal.check(&root).unwrap();
            assert!(!file.exists());
        }
    }

    #[test]
    fn the_format_stays_what_it_is() {
        let ctime = Some(Time { sec: 5, nsec: 6 });
        let got = Note { ctime, path: b"d/f".to_vec(), what: b"it".to_vec() }.encode();
        let wanted = b"TWLEDIT1\x01\x05\0\0\0\0\0\0\0\x06\0\0\0\x03\0\0\0d/f\x02\0\0\0it\x32\xe5\xa5\xc4";
        assert_eq!(got, wanted, "{}", got.escape_ascii());
    }
}
