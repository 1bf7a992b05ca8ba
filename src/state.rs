//! The state directory and its control file: who this node is, and how far its promises go.
//!
//! | path | content |
//! | --- | --- |
//! | `lock` | held by the running process, its pid inside |
//! | `control` | the control file below |
//! | `control.sock` | the control socket |
//! | `log/` | segments |
//! | `catalog/` | checkpoints |
//! | `blocks/` | block hashes of files of more than one block |
//! | `fill/` | an unfinished first copy or resync |
//! | `NNNNNNNN.history` | where timeline N and those before it branched off: see [`crate::history`] |
//! | `rewind` | a rewind that is under way: see [`Rewinding`] |
//! | `lost/` | logs that were put aside, because they hold what the upstream has not: see [`crate::lost`] |
//! | `promoted` | the command of a promotion is yet to be run: the number of the timeline |
//! | `hold` | a mass delete is held: how many names there were, in decimal digits |
//! | `refused-edit`, `doubtful-files` | what a follower remembers of edits of its directory |
//! | `slots` | what followers still need: see [`crate::slots`] |
//! | `node.key`, `node.crt`, `trust.lock`, `peers` | who this node is to its peers, and who they are: see [`crate::tls`] |
//! | `mark/` | files whose writes mark the event queue |
//!
//! Control file, little-endian, replaced as a whole and durably before anything it says is acted on:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TWLNCTRL` |
//! | 8 | 4 | format version, 2; a file of version 1 has no node id and is read |
//! | 12 | 8 | system id |
//! | 20 | 1 | role: 1 leader, 2 follower |
//! | 21 | 4 | timeline |
//! | 25 | 1 | fill: 0 none, 1 copying, 2 filled, 3 done, 4 resyncing |
//! | 26 | 16 | fill start and end LSN; resyncing: start, and what becomes of the log, u64: 0 kept, 1 removed, 2 put aside |
//! | 42 | 28 | data directory's device u64, inode u64, birth time (i64 s, u32 ns); zero before it is known |
//! | 70 | 8 | follower: applied LSN of the last clean rest; leader: a position that its log has reached |
//! | 78 | 1 | clean stop |
//! | 79 | 8 | created, ns since 1970 |
//! | 87 | 8 | version of the exclude patterns in force |
//! | 95 | 8 | node id: random, made once |
//! | 103 | blob | name, at most 63 bytes |
//! | .. | blob | data directory's path, at most 4095 bytes |
//! | end | 4 | CRC32C of everything before |

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::catalog::LocalId;
use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, NodeId, SystemId, TimelineId};
use crate::record::Time;

mod fence;
mod handover;
mod histories;
mod rewind;

pub use fence::Fence;
pub use handover::{Handover, Stage};
pub use histories::history;
pub use rewind::Rewinding;

/// File name of the control socket.
pub const SOCKET: &str = "control.sock";
const CONTROL: &str = "control";
const SEAL: Seal = Seal {
    name: "control file",
    magic: b"TWLNCTRL",
    version: Some(2),
    most: 8 << 10,
    remedy: "put it back from a backup, or begin with an empty state directory",
};
/// The first version with a node id.
const VERSION_NODE: u32 = 2;
const NAME_MAX: usize = 63;
const PATH_MAX: usize = 4095;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It watches its directory and writes the log.
    Leader,
    /// It takes the log from an upstream and writes its directory.
    Follower,
}

impl Role {
    /// `leader` or `follower`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
        }
    }
}

/// How far the first copy of a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillState {
    /// Nothing was copied yet.
    None,
    /// A copy that began at `start` is under way; the directory is not usable.
    Copying {
        /// LSN of the snapshot.
        start: Lsn,
    },
    /// The directory is being made equal to the snapshot at `start`, and is not usable.
    Resyncing {
        /// LSN of the snapshot.
        start: Lsn,
        /// What becomes of the log.
        log: LogFate,
    },
    /// Everything was copied; the directory is usable once replayed to `end`.
    Filled {
        /// LSN of the snapshot.
        start: Lsn,
        /// Replay to here makes it consistent.
        end: Lsn,
    },
    /// The copy is consistent (or the node never needed one).
    Done,
}

/// What becomes of the log that a follower holds when its directory is resynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFate {
    /// It goes on: it is a prefix of the upstream's.
    Kept,
    /// It is merely old: it is removed.
    Removed,
    /// It holds what the upstream has not: it is put aside.
    Aside,
}

/// The control file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// What is replicated; none before the first copy.
    pub system: SystemId,
    /// The role; it wins over the command line.
    pub role: Role,
    /// The timeline the log is on.
    pub timeline: TimelineId,
    /// Progress of the first copy.
    pub fill: FillState,
    /// Identity of the data directory, to tell a vanished or replaced one.
    pub data_local: Option<LocalId>,
    /// Where a follower's directory stood at its last clean stop; a position that a leader's log has reached.
    pub applied: Lsn,
    /// Whether the last stop was clean.
    pub clean: bool,
    /// When the state directory was made, ns since 1970.
    pub created: i64,
    /// Version of the exclude patterns that the log last carried; 0 before there were any.
    pub excludes: u64,
    /// Made once with the state directory; see [`StateDir::node`]. None in a file of version 1.
    pub node: NodeId,
    /// The node's name.
    pub name: String,
    /// The data directory.
    pub data_path: PathBuf,
}

impl Control {
    /// A new node.
    #[must_use]
    pub fn new(system: SystemId, role: Role, name: &str, data: &Path) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            system,
            role,
            timeline: TimelineId::FIRST,
            fill: if role == Role::Leader { FillState::Done } else { FillState::None },
            data_local: None,
            applied: Lsn::ZERO,
            clean: false,
            created: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            excludes: 0,
            node: NodeId(fastrand::u64(1..)),
            name: name.to_owned(),
            data_path: data.to_owned(),
        }
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        SEAL.encode(|out| self.put(out))
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.system.0);
        out.put_u8(match self.role {
            Role::Leader => 1,
            Role::Follower => 2,
        });
        out.put_u32(self.timeline.0);
        let (fill, start, end) = match self.fill {
            FillState::None => (0, Lsn::ZERO, Lsn::ZERO),
            FillState::Copying { start } => (1, start, Lsn::ZERO),
            FillState::Filled { start, end } => (2, start, end),
            FillState::Done => (3, Lsn::ZERO, Lsn::ZERO),
            FillState::Resyncing { start, log } => (4, start, Lsn(log as u64)),
        };
        out.put_u8(fill);
        out.put_u64(start.0);
        out.put_u64(end.0);
        let local = self.data_local.unwrap_or_default();
        out.put_u64(local.dev);
        out.put_u64(local.ino);
        out.put_i64(local.btime.sec);
        out.put_u32(local.btime.nsec);
        out.put_u64(self.applied.0);
        out.put_u8(u8::from(self.clean));
        out.put_i64(self.created);
        out.put_u64(self.excludes);
        out.put_u64(self.node.0);
        out.put_blob(self.name.as_bytes());
        out.put_blob(self.data_path.as_os_str().as_bytes());
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Names the field that breaks the table of the module.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        SEAL.decode_old(bytes).and_then(|(version, body)| Self::take(version, body))
    }

    fn take(version: u32, mut r: Reader<'_>) -> std::result::Result<Self, DecodeError> {
        let system = SystemId(r.u64("system id")?);
        let role = match r.u8("role")? {
            1 => Role::Leader,
            2 => Role::Follower,
            v => return Err(DecodeError::Invalid { what: "role", value: u64::from(v) }),
        };
        let timeline = TimelineId(r.u32("timeline")?);
        let (fill, start, end) = (r.u8("fill")?, Lsn(r.u64("fill start")?), Lsn(r.u64("fill end")?));
        let fill = match fill {
            0 => FillState::None,
            1 => FillState::Copying { start },
            2 => FillState::Filled { start, end },
            3 => FillState::Done,
            4 => FillState::Resyncing {
                start,
                log: match end.0 {
                    0 => LogFate::Kept,
                    1 => LogFate::Removed,
                    2 => LogFate::Aside,
                    value => return Err(DecodeError::Invalid { what: "fate of the log", value }),
                },
            },
            v => return Err(DecodeError::Invalid { what: "fill", value: u64::from(v) }),
        };
        let local = LocalId {
            dev: r.u64("device")?,
            ino: r.u64("inode")?,
            btime: Time { sec: r.i64("birth time")?, nsec: r.u32("birth time")? },
        };
        let control = Self {
            system,
            role,
            timeline,
            fill,
            data_local: (local != LocalId::default()).then_some(local),
            applied: Lsn(r.u64("applied")?),
            clean: match r.u8("clean")? {
                0 => false,
                1 => true,
                v => return Err(DecodeError::Invalid { what: "clean", value: u64::from(v) }),
            },
            created: r.i64("created")?,
            excludes: r.u64("version of patterns")?,
            node: if version < VERSION_NODE { NodeId::NONE } else { NodeId(r.u64("node id")?) },
            name: text(r.blob(NAME_MAX, "name")?)?.to_owned(),
            data_path: PathBuf::from(std::ffi::OsString::from_vec(r.blob(PATH_MAX, "data path")?.to_vec())),
        };
        r.finish()?;
        Ok(control)
    }
}

/// A name is text: nothing else was ever written.
fn text(name: &[u8]) -> std::result::Result<&str, DecodeError> {
    std::str::from_utf8(name).map_err(|e| {
        let byte = name.get(e.valid_up_to()).copied().unwrap_or_default();
        DecodeError::Invalid { what: "a byte of the name", value: u64::from(byte) }
    })
}

/// An open state directory. While it lives, no other process can open it.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    control: Mutex<Option<Control>>,
    /// Device and inode of the directory, and of those in it that a generation works with.
    identity: Identity,
    parts: Mutex<[Identity; PARTS.len()]>,
    _lock: disk::DirLock,
}

/// Device and inode.
type Identity = (u64, u64);

/// What can't be made again: positions and file ids that others have seen are known only from there.
const PARTS: [&str; 2] = ["log", "catalog"];

impl StateDir {
    /// Opens the directory, making it (mode 0700) if need be, and takes its lock.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] when another process holds it, [`ErrorKind::Corrupt`] when the control file is
    /// damaged, [`ErrorKind::Missing`] when it is not there but what it describes is.
    pub fn open_or_create(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
        refuse_headless(&path)?;
        disk::create_dir_durable(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))
            .map_err(|e| Error::io("restrict", &path, e))?;
        let lock = disk::lock_dir(&path)?;
        let control = disk::read_sealed(&path.join(CONTROL), &SEAL, Control::decode)?;
        // Later an empty one in its place would look like a log that nobody has seen yet.
        let young = control.as_ref().is_none_or(|c| {
            matches!(c.fill, FillState::None | FillState::Copying { .. } | FillState::Resyncing { .. })
        });
        for sub in PARTS.iter().filter(|_| young).chain(&["blocks", "fill"]) {
            disk::create_dir_durable(&path.join(sub))?;
        }
        let identity = lock.identity()?;
        let parts = Mutex::new([(0, 0); PARTS.len()]);
        Ok(Self { path, control: Mutex::new(control), identity, parts, _lock: lock })
    }

    /// The control file in `path` as it is now, whoever holds the directory; `None` before the node was set up.
    ///
    /// # Errors
    /// It is damaged, or can't be read.
    pub fn peek(path: &Path) -> Result<Option<Control>> {
        disk::read_sealed(&path.join(CONTROL), &SEAL, Control::decode)
    }

    /// Whether there is a control file in `path`: the directory was given a role before.
    #[must_use]
    pub fn is_set_up(path: &Path) -> bool {
        std::fs::symlink_metadata(path.join(CONTROL)).is_ok()
    }

    /// Takes log and catalog as they are now for those that must stay until the next call.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when one of them, or the state directory itself, is not there.
    pub fn settle(&self) -> Result<()> {
        self.check_self()?;
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, known) in PARTS.iter().zip(parts.iter_mut()) {
            *known = self.part(name)?;
        }
        Ok(())
    }

    /// Checks that the directory is still the one this process began with, and has its parts. A control file
    /// that was removed is written again: its content is in memory, and who it speaks of is still here.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`], naming what is gone.
    pub fn check(&self) -> Result<()> {
        self.check_self()?;
        let parts = *self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, known) in PARTS.iter().zip(parts) {
            if self.part(name)? != known {
                return Err(gone(&self.path.join(name), "is not the one that this node works with any more"));
            }
        }
        let file = self.path.join(CONTROL);
        let guard = self.guard();
        if let Some(control) = guard.as_ref()
            && std::fs::symlink_metadata(&file).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        {
            tracing::warn!("control file '{}' was removed; it is written again", file.display());
            disk::write_atomic(&self.path, CONTROL, &control.encode())?;
        }
        Ok(())
    }

    fn check_self(&self) -> Result<()> {
        match identity(&self.path) {
            Some(now) if now == self.identity => Ok(()),
            Some(_) => Err(gone(&self.path, "is not the one that this node was started with")),
            None => Err(gone(&self.path, "is gone")),
        }
    }

    fn part(&self, name: &str) -> Result<Identity> {
        let path = self.path.join(name);
        identity(&path).ok_or_else(|| gone(&path, "is gone"))
    }

    fn guard(&self) -> MutexGuard<'_, Option<Control>> {
        // A panic elsewhere does not make the value wrong.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control file's content; `None` before the node was first set up.
    #[must_use]
    pub fn control(&self) -> Option<Control> {
        self.guard().clone()
    }

    /// The control file's content.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] before the node was set up.
    pub fn set_up(&self) -> Result<Control> {
        self.control().ok_or_else(|| {
            let text = format!(
                "'{}' has no control file yet; start 'towline leader' or 'towline follower' on it first",
                self.path.display()
            );
            Error::new(ErrorKind::Missing, text)
        })
    }

    /// Writes a new content durably; it is in force when this returns `Ok`.
    pub fn persist(&self, control: Control) -> Result<()> {
        self.check_self()?;
        let mut guard = self.guard();
        disk::write_atomic(&self.path, CONTROL, &control.encode())?;
        *guard = Some(control);
        Ok(())
    }

    /// Changes the content durably.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] before the node was set up, or why it can't be written.
    pub fn change(&self, edit: impl FnOnce(&mut Control)) -> Result<()> {
        let mut control = self.set_up()?;
        edit(&mut control);
        self.persist(control)
    }

    /// Who this node is among all others, whatever they are called. A copy of the state directory is another node:
    /// the id in the control file counts together with the identity of the directory.
    ///
    /// # Errors
    /// When the directory can't be looked at, or the id of an older version's control file can't be made up for.
    pub fn node(&self) -> Result<NodeId> {
        if self.control().is_some_and(|c| c.node == NodeId::NONE) {
            self.change(|c| c.node = NodeId(fastrand::u64(1..)))?;
        }
        let meta = std::fs::metadata(&self.path).map_err(|e| Error::io("stat", &self.path, e))?;
        let born = meta.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let mut place = Vec::with_capacity(32);
        place.put_u64(self.control().map_or(0, |c| c.node.0));
        place.put_u64(meta.ino());
        place.put_u128(born.unwrap_or_default().as_nanos());
        Ok(NodeId(xxhash_rust::xxh3::xxh3_64(&place).max(1)))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Segments.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }
    /// Block hashes.
    #[must_use]
    pub fn blocks(&self) -> PathBuf {
        self.path.join("blocks")
    }
    /// Checkpoints.
    #[must_use]
    pub fn catalog(&self) -> PathBuf {
        self.path.join("catalog")
    }
    /// The first copy while it is under way.
    #[must_use]
    pub fn fill(&self) -> PathBuf {
        self.path.join("fill")
    }
    /// Logs that were put aside.
    #[must_use]
    pub fn lost(&self) -> PathBuf {
        self.path.join("lost")
    }
    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir).map(|m| (m.dev(), m.ino()))
}

fn gone(path: &Path, how: &str) -> Error {
    let text = format!(
        "'{}' {how}; mount it or move it back, and the node goes on; put a copy back from a backup only while \
         the node is stopped",
        path.display()
    );
    Error::new(ErrorKind::Missing, text)
}

/// A log or a catalog without a control file belongs to a node; another one made over it would ruin both.
fn refuse_headless(path: &Path) -> Result<()> {
    if StateDir::is_set_up(path) {
        return Ok(());
    }
    let control = path.join(CONTROL);
    for part in PARTS.map(|p| path.join(p)) {
        if std::fs::read_dir(&part).is_ok_and(|mut entries| entries.next().is_some()) {
            let text = format!(
                "control file '{}' is missing, but '{}' holds files of a node; put it back, or name an empty state \
                 directory to begin anew",
                control.display(),
                part.display()
            );
            return Err(Error::new(ErrorKind::Missing, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Control {
        let mut c = Control::new(SystemId(7), Role::Follower, "f1", Path::new("/srv/\u{e9}"));
        c.created = 1_700_000_000;
        c.node = NodeId(0x0102_0304_0506_0708);
        c.fill = FillState::Filled { start: Lsn(5), end: Lsn(9) };
        c.data_local = Some(LocalId { dev: 1, ino: 2, btime: Time { sec: 3, nsec: 4 } });
        c
    }

    #[test]
    fn the_control_file_survives_and_every_damage_is_named() {
        let bytes = sample().encode();
        assert_eq!(Control::decode(&bytes), Ok(sample()));
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 0x10;
            assert!(Control::decode(&bad).is_err(), "byte {i}");
            assert!(Control::decode(&bytes[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_refused_for_it_would_grow_when_it_is_written_again() {
        let mut bytes = sample().encode();
        let at = bytes.windows(2).position(|w| w == b"f1").unwrap();
        bytes[at] = 0x94;
        let body = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..body]).to_le_bytes();
        bytes[body..].copy_from_slice(&crc);
        let refused = DecodeError::Invalid { what: "a byte of the name", value: 0x94 };
        assert_eq!(Control::decode(&bytes), Err(refused));
    }

    #[test]
    fn what_is_wrong_with_a_control_file_is_said_with_its_path_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(CONTROL);
        let mut newer = sample().encode();
        newer.truncate(newer.len() - 4);
        newer[8] = 9;
        let crc = crc32c::crc32c(&newer);
        newer.put_u32(crc);
        let whole = sample().encode();
        let cases: [(&[u8], ErrorKind, &str, &str); 5] = [
            (b"", ErrorKind::Corrupt, "ends inside magic", "put it back"),
            (b"something else", ErrorKind::Corrupt, "not those of a control file", "put it back"),
            (&whole[..whole.len() - 1], ErrorKind::Corrupt, "its checksum is", "put it back"),
            (&[b' '; 9000], ErrorKind::Corrupt, "its size is 9000", "put it back"),
            (&newer, ErrorKind::Refused, "its format is version 9", "run the newer program"),
        ];
        for (bytes, kind, what, remedy) in cases {
            std::fs::write(&file, bytes).unwrap();
            let e = StateDir::open_or_create(dir.path()).unwrap_err();
            let text = e.to_string();
            assert_eq!(e.kind(), kind, "{e}");
            assert!(text.contains(&file.display().to_string()), "{e}");
            assert!(text.contains(what) && text.contains(remedy), "{e}");
        }
    }

    #[test]
    fn the_control_files_of_both_versions_are_read() {
        let v2 = include_bytes!("../tests/fixtures/v2/control");
        assert_eq!(Control::decode(v2), Ok(sample()));
        assert_eq!(sample().encode(), v2);
        let v1 = Control::decode(include_bytes!("../tests/fixtures/v1/control"));
        assert_eq!(v1, Ok(Control { node: NodeId::NONE, ..sample() }));
        let mut later = v2[..v2.len() - 4].to_vec();
        later[8] = 3;
        later.put_u32(crc32c::crc32c(&later.clone()));
        assert!(Control::decode(&later).unwrap_err().to_string().contains("version"));
    }

    #[test]
    fn a_node_keeps_its_id_and_a_copy_of_its_directory_is_another_node() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("state"), dir.path().join("copy"));
        let state = StateDir::open_or_create(&path).unwrap();
        state.persist(Control { node: NodeId::NONE, ..sample() }).unwrap();
        let id = state.node().unwrap();
        assert_ne!(state.control().unwrap().node, NodeId::NONE, "made up for");
        drop(state);
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let moved = StateDir::open_or_create(&dir.path().join("moved")).unwrap();
        assert_eq!(moved.node().unwrap(), id);
        let copied = StateDir::open_or_create(&copy).unwrap();
        copied.persist(moved.control().unwrap()).unwrap();
        assert_ne!(copied.node().unwrap(), id);
    }

    #[test]
    fn a_second_process_is_refused_and_a_stale_lock_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open_or_create(&path).unwrap();
        let e = first.change(|_| ()).unwrap_err();
        assert!(e.kind() == ErrorKind::Missing && e.to_string().contains("start 'towline leader'"), "{e}");
        first.persist(sample()).unwrap();
        assert_eq!(StateDir::open_or_create(&path).unwrap_err().kind(), ErrorKind::Locked);
        drop(first);
        let again = StateDir::open_or_create(&path).unwrap();
        assert_eq!(again.control(), Some(sample()));
    }

    #[test]
    fn a_directory_that_goes_away_or_is_another_one_is_noticed_and_nothing_is_made_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("state"), dir.path().join("aside"));
        let state = StateDir::open_or_create(&path).unwrap();
        state.persist(sample()).unwrap();
        state.settle().unwrap();
        state.check().unwrap();
        std::fs::remove_file(path.join(CONTROL)).unwrap();
        state.check().unwrap();
        assert_eq!(Control::decode(&std::fs::read(path.join(CONTROL)).unwrap()), Ok(sample()));
        for what in ["", "log", "catalog"] {
            let is = path.join(what);
            std::fs::rename(&is, &aside).unwrap();
            assert_eq!(state.check().unwrap_err().kind(), ErrorKind::Missing, "{what}");
            assert_eq!(state.settle().unwrap_err().kind(), ErrorKind::Missing, "{what}");
            assert!(!is.exists());
            std::fs::create_dir(&is).unwrap();
            assert_eq!(state.check().unwrap_err().kind(), ErrorKind::Missing, "{what}");
            if what.is_empty() {
                assert_eq!(state.persist(sample()).unwrap_err().kind(), ErrorKind::Missing);
                assert_eq!(std::fs::read_dir(&is).unwrap().count(), 0);
            }
            std::fs::remove_dir(&is).unwrap();
            std::fs::rename(&aside, &is).unwrap();
            state.check().unwrap();
        }
        drop(state);
        // Nor does the next start make a log that is not there.
        std::fs::remove_dir(path.join("log")).unwrap();
        let state = StateDir::open_or_create(&path).unwrap();
        assert!(state.settle().unwrap_err().to_string().contains("log' is gone"));
    }

    #[test]
    fn a_log_without_a_control_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        std::fs::write(dir.path().join("log/x"), "x").unwrap();
        let e = StateDir::open_or_create(dir.path()).unwrap_err();
        assert!(e.kind() == ErrorKind::Missing && e.to_string().contains("control' is missing"), "{e}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
    }
}
