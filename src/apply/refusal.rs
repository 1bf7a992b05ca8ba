//! The change that apply has refused to write over, remembered in the state directory.
//!
//! Recovery can't tell an edit from what an interrupted batch left, and would write over both. So what was
//! refused once stays refused, over every restart, until somebody changed it again or took it away.

use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::codec::{Put, Reader};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Time;
use crate::sys::{self, Root};

const MAGIC: [u8; 8] = *b"TWLEDIT1";
/// Most bytes of a path that are remembered.
const PATH_MAX: usize = 64 << 10;
/// Most bytes of the words about it.
const WHAT_MAX: usize = 1024;

/// Where the refusal is remembered.
#[derive(Debug)]
pub(crate) struct Refusal {
    file: PathBuf,
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
             moved, or given another mode or owner here; after anything else stop the node and empty its data and \
             state directories: it is filled anew"
        ),
    )
}

fn ctime(root: &Root, path: &[u8]) -> Option<Time> {
    let fd = root.open_beneath(path, OFlags::PATH | OFlags::NOFOLLOW, 0).ok()?;
    sys::stat_fd(fd).ok().map(|s| s.ctime)
}

impl Note {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let time = self.ctime.unwrap_or_default();
        out.put_u8(u8::from(self.ctime.is_some()));
        out.put_i64(time.sec);
        out.put_u32(time.nsec);
        out.put_blob(&self.path);
        out.put_blob(&self.what);
        let crc = crc32c::crc32c(&out);
        out.put_u32(crc);
        out
    }

    /// `None`: not written to its end, or not by this.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut r = Reader::new(body);
        if r.array::<8>("magic").ok()? != MAGIC {
            return None;
        }
        let there = r.u8("presence").ok()? == 1;
        let time = Time { sec: r.i64("change time").ok()?, nsec: r.u32("change time").ok()? };
        let path = r.blob(PATH_MAX, "path").ok()?.to_vec();
        let what = r.blob(WHAT_MAX, "words").ok()?.to_vec();
        Some(Self { ctime: there.then_some(time), path, what })
    }
}

impl Refusal {
    /// Remembered in this file.
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Remembers that the thing at `path` is refused as it is now.
    pub(crate) fn note(&self, root: &Root, path: &[u8], what: &str) -> Result<()> {
        let note = Note { ctime: ctime(root, path), path: path.to_vec(), what: what.as_bytes().to_vec() };
        let (dir, name) = (self.file.parent(), self.file.file_name().and_then(|n| n.to_str()));
        let (Some(dir), Some(name)) = (dir, name) else { return Ok(()) };
        disk::write_atomic(dir, name, &note.encode())
    }

    /// Forgets what was refused.
    pub(crate) fn clear(&self) -> Result<()> {
        if self.file.exists() { disk::remove_durable(&self.file) } else { Ok(()) }
    }

    /// Fails as before while what was refused is still as it was; else forgets it.
    pub(crate) fn check(&self, root: &Root) -> Result<()> {
        if let Some(note) = read(&self.file)?
            && ctime(root, &note.path) == note.ctime
        {
            let path = note.path.escape_ascii().to_string();
            return Err(refused(&path, &String::from_utf8_lossy(&note.what)));
        }
        self.clear()
    }
}

fn read(file: &Path) -> Result<Option<Note>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Note::decode(&bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", file, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_stays_refused_until_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("a"), "1").unwrap();
        let root = Root::open(&data).unwrap();
        let refusal = Refusal::new(dir.path().join("refused"));
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
        std::fs::write(dir.path().join("refused"), "garbage").unwrap();
        refusal.check(&root).unwrap();
        assert!(!dir.path().join("refused").exists());
        let note = Note { ctime: None, path: vec![b'x'; 300], what: b"y".to_vec() };
        assert_eq!(Note::decode(&note.encode()).as_ref(), Some(&note));
        assert!((0..note.encode().len()).all(|n| Note::decode(&note.encode()[..n]).is_none()));
    }
}
