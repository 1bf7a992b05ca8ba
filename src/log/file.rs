//! The segment file that is being written, on a leader and on a follower alike.
//!
//! While it is open it is called `.partial` and is longer than its content: space is allocated
//! ahead, so that a sync need not write a new size each time; where small pieces are appended it is also written
//! ahead, with zeros: what a sync writes there for the first time is a change of the file system's own records
//! (ext4 and xfs keep which blocks were written), and costs its journal a commit each time. Sealing cuts it to its length, syncs
//! it and takes `.partial` off its name.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::disk::{self, SyncFile};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::segment::{self, FILE_MAX, Marks, TRAILER_LEN, Trailer};

/// Space allocated for a new file. A quiet directory seals a small segment every minute.
const ALLOCATE_FIRST: u64 = 1 << 20;
/// Space allocated each time the file grows out of what it has.
const ALLOCATE_STEP: u64 = 4 << 20;

/// Appends of less than this are followed by [`ZERO_AHEAD`] zeros when they come to what was not written before.
const SMALL_APPEND: usize = 16 << 10;
/// A multiple of the block size of any file system: those zeros are in the same write, and the same sync.
const ZERO_AHEAD: u64 = 128 << 10;

/// The open end of the log.
#[derive(Debug)]
pub(super) struct SegmentFile {
    file: SyncFile,
    dir: PathBuf,
    timeline: TimelineId,
    segment: SegmentNo,
    len: u64,
    synced: u64,
    allocated: u64,
    /// Up to here the file was written, by data or zeros.
    written: u64,
    /// A piece and zeros behind it.
    ahead: Vec<u8>,
    sha: Sha256,
    /// Whether the file's name may not be durable yet.
    new_name: bool,
    /// LSN after the last frame written.
    pub(super) end: Lsn,
    /// The marks there.
    pub(super) marks: Marks,
    /// Records written.
    pub(super) records: u64,
    /// Commits written.
    pub(super) commits: u64,
}

impl SegmentFile {
    /// Creates the file of `segment`, empty. `end` and `marks` are those of the log before it.
    pub(super) fn create(dir: &Path, timeline: TimelineId, segment: SegmentNo, marks: Marks) -> Result<Self> {
        let path = dir.join(segment::file_name(timeline, segment, true));
        failpoint::pass("log::new_segment").map_err(|e| Error::io("create", &path, e))?;
        Self::create_at(dir, &path, timeline, segment, marks)
    }

    /// Creates it under another name, for recovery, which renames it.
    pub(super) fn create_at(
        dir: &Path,
        path: &Path,
        timeline: TimelineId,
        segment: SegmentNo,
        marks: Marks,
    ) -> Result<Self> {
        let mut file = SyncFile::create(path)?;
        file.allocate(0, ALLOCATE_FIRST)?;
        Ok(Self {
            file,
            dir: dir.to_owned(),
            timeline,
            segment,
            len: 0,
            synced: 0,
            allocated: ALLOCATE_FIRST,
            written: 0,
            ahead: Vec::new(),
            sha: Sha256::new(),
            new_name: true,
            end: segment.start(),
            marks,
            records: 0,
            commits: 0,
        })
    }

    /// The segment.
    pub(super) fn segment(&self) -> SegmentNo {
        self.segment
    }

    /// Bytes written.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that are durable.
    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// Appends whole structures.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        failpoint::pass("log::append").map_err(|e| Error::io("write", self.file.path(), e))?;
        let end = self.len + bytes.len() as u64;
        if end > FILE_MAX {
            return Err(Error::new(ErrorKind::Corrupt, format!("{} outgrows a segment", self.name())));
        }
        if end > self.allocated {
            let allocated = (end + ALLOCATE_STEP).min(FILE_MAX);
            self.file.allocate(self.allocated, allocated)?;
            self.allocated = allocated;
        }
        if bytes.len() < SMALL_APPEND && end > self.written {
            // No further than what is allocated: zeros must not be what finds the disk full.
            let until = (end + ZERO_AHEAD).next_multiple_of(ZERO_AHEAD).min(self.allocated).max(end);
            self.ahead.clear();
            self.ahead.extend_from_slice(bytes);
            self.ahead.resize(usize::try_from(until - self.len).unwrap_or(bytes.len()), 0);
            self.file.write_at(&self.ahead, self.len)?;
            self.written = until;
        } else {
            self.file.write_at(bytes, self.len)?;
            self.written = self.written.max(end);
        }
        self.sha.update(bytes);
        self.len = end;
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.synced == self.len {
            return Ok(());
        }
        failpoint::pass("log::sync").map_err(|e| Error::io("sync", self.file.path(), e))?;
        self.file.sync_data()?;
        if self.new_name {
            disk::sync_dir(&self.dir)?;
            self.new_name = false;
        }
        self.synced = self.len;
        Ok(())
    }

    /// Leader: writes the trailer and gives the file its final name. Returns its SHA-256 and length.
    pub(super) fn seal(self, system: crate::position::SystemId) -> Result<([u8; 32], u64)> {
        let trailer = Trailer {
            end: self.end,
            records: self.records,
            commits: self.commits,
            marks: self.marks,
            sha: [0; 32],
        };
        let head = trailer.encode_head(system, self.timeline, self.segment);
        self.finish(&head, None)
    }

    /// Follower: writes the trailer as it came, when the file is what it says.
    pub(super) fn seal_stored(self, bytes: &[u8], sha: [u8; 32]) -> Result<([u8; 32], u64)> {
        self.finish(&bytes[..TRAILER_LEN - sha.len()], Some(sha))
    }

    fn finish(mut self, head: &[u8], expected: Option<[u8; 32]>) -> Result<([u8; 32], u64)> {
        let path = self.file.path().to_owned();
        failpoint::pass("log::seal").map_err(|e| Error::io("seal", &path, e))?;
        self.sha.update(head);
        let sha: [u8; 32] = self.sha.finalize_reset().into();
        if expected.is_some_and(|e| e != sha) {
            let message = format!(
                "{}: {}; fetch a good copy of it from another node",
                self.name(),
                segment::Fault::Sha
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let trailer = [head, &sha].concat();
        self.file.write_at(&trailer, self.len)?;
        self.len += trailer.len() as u64;
        self.file.set_len(self.len)?;
        self.file.sync_data()?;
        let sealed = self.dir.join(segment::file_name(self.timeline, self.segment, false));
        disk::rename_durable(&path, &sealed)?;
        failpoint::pass("log::after_seal").map_err(|e| Error::io("seal", &sealed, e))?;
        Ok((sha, self.len))
    }

    /// Recovery: makes the copy durable under its own name.
    pub(super) fn adopt(&mut self) -> Result<()> {
        self.sync()?;
        let path = self.dir.join(segment::file_name(self.timeline, self.segment, true));
        disk::rename_durable(self.file.path(), &path)?;
        self.file.renamed(&path);
        Ok(())
    }

    fn name(&self) -> String {
        format!("'{}'", self.file.path().display())
    }
}
