//! Restore points that this leader made: the file in its state directory that keeps a name from being used twice.
//!
//! The name is written down before the point goes into the log. After a crash between the two it stays taken.
//!
//! Names that another leader of this way gave stand in the log before the branch that made this node the leader: before it
//! makes its first one, they are taken from there, as far as that log is kept. One at or behind the branch says that this was done.
//!
//! `restore-points`, little-endian: magic `TWLNPNTS`, version u32 (1), count u32, then for each point: name blob, LSN u64
//! (0: it may be in the log or not), time i64 ns since 1970; CRC32C u32 of everything before.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::capture::CaptureHandle;
use crate::codec::{DecodeError, Put, Reader, Seal};
use crate::control::{POINT_TIMEOUT, WAIT_MAX};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::log::{FrameReader, Log};
use crate::net::wall_clock;
use crate::position::Lsn;
use crate::record::{POINT_NAME_MAX, PointName, Record, Records};
use crate::segment::flags;

const FILE: &str = "restore-points";
/// The oldest names are forgotten beyond this many.
const MOST: usize = 10_000;

const SEAL: Seal = Seal {
    name: "list of restore points",
    magic: b"TWLNPNTS",
    version: Some(1),
    most: 1 << 20,
    remedy: "remove it; then names that were used before are not refused any more",
};

#[derive(Clone, PartialEq, Eq, Debug)]
struct Point {
    name: String,
    /// Zero: whether it is in the log is not known.
    lsn: Lsn,
    time: i64,
}

/// The points of one leader.
#[derive(Debug)]
pub(super) struct Points {
    state: PathBuf,
    turn: Mutex<()>,
    /// Log of which the names are not known yet.
    before: Mutex<Option<Before>>,
}

/// The log up to the branch at which this node became the leader.
#[derive(Debug)]
struct Before {
    log: Log,
    history: History,
    at: Lsn,
}

impl Before {
    /// The points in it, the oldest first.
    fn points(&self) -> Result<Vec<Point>> {
        let (system, timeline) = (self.history.system(), self.history.timeline());
        let mut reader = FrameReader::open(self.log.dir(), system, timeline, self.log.oldest()?)?;
        let mut found = Vec::new();
        while let Some(frame) = reader.next(self.at)? {
            if frame.flags & flags::ENDS == 0 || frame.flags & flags::ABORT != 0 {
                continue;
            }
            for record in Records::new(&frame.raw) {
                let Record::RestorePoint { time, name } = record?.1 else { continue };
                let name = std::str::from_utf8(name).ok().and_then(|n| n.parse::<PointName>().ok());
                found.extend(name.map(|n| Point { name: n.to_string(), lsn: frame.end, time }));
            }
        }
        Ok(found)
    }
}

impl Points {
    pub(super) fn new(state: &Path) -> Self {
        Self { state: state.to_owned(), turn: Mutex::new(()), before: Mutex::new(None) }
    }

    /// The same, of a leader whose way this is: what was made before its line began counts, too.
    #[must_use]
    pub(super) fn on_way(self, log: &Log, history: History) -> Self {
        let at = history.branches().last().map(|b| b.at);
        let before = at.map(|at| Before { log: log.clone(), history, at });
        Self { before: Mutex::new(before), ..self }
    }

    /// Takes the names of the log before this line, once.
    fn learn(&self) -> Result<()> {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = before.as_ref() else { return Ok(()) };
        self.change(|points| {
            if points.iter().any(|p| p.lsn > known.at) {
                return Ok(());
            }
            match known.points() {
                Ok(mut found) => {
                    found.retain(|f| points.iter().all(|p| p.name != f.name));
                    points.splice(..0, found);
                }
                // A damaged segment of the past is no reason to refuse a new name.
                Err(e) => tracing::warn!("restore points of former leaders may not be known: {e}"),
            }
            Ok(())
        })?;
        *before = None;
        Ok(())
    }

    /// Makes one.
    pub(super) fn make(
        &self,
        capture: &CaptureHandle,
        name: &str,
        timeout: Option<Duration>,
    ) -> Result<Value> {
        let name: PointName = name.parse().map_err(|e: String| Error::new(ErrorKind::Usage, e))?;
        let timeout = timeout.unwrap_or(POINT_TIMEOUT);
        if timeout > WAIT_MAX {
            let text = format!("{} s are too long to wait; ask for 24h at most", timeout.as_secs());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        self.learn()?;
        let time = wall_clock();
        self.change(|points| {
            if let Some(used) = points.iter().find(|p| p.name.as_bytes() == name.as_bytes()) {
                return Err(used.refusal());
            }
            points.push(Point { name: name.to_string(), lsn: Lsn::ZERO, time });
            Ok(())
        })?;
        match capture.restore_point(name, timeout) {
            Ok(lsn) => {
                self.settle(name, Some(lsn))?;
                Ok(json!({"name": name.to_string(), "lsn": lsn.to_string()}))
            }
            Err((e, certain)) => {
                if certain {
                    self.settle(name, None)?;
                }
                Err(e)
            }
        }
    }

    /// It is at `lsn`, or is not.
    fn settle(&self, name: PointName, lsn: Option<Lsn>) -> Result<()> {
        self.change(|points| {
            match lsn {
                Some(lsn) => {
                    points
                        .iter_mut()
                        .filter(|p| p.name.as_bytes() == name.as_bytes())
                        .for_each(|p| p.lsn = lsn);
                }
                None => points.retain(|p| p.name.as_bytes() != name.as_bytes()),
            }
            Ok(())
        })
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Point>) -> Result<()>) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut points = disk::read_sealed(&self.state.join(FILE), &SEAL, decode)?.unwrap_or_default();
        edit(&mut points)?;
        let old = points.len().saturating_sub(MOST);
        points.drain(..old);
        disk::write_atomic(&self.state, FILE, &encode(&points))
    }
}

impl Point {
    fn refusal(&self) -> Error {
        let text = if self.lsn == Lsn::ZERO {
            format!(
                "the name '{}' is taken: a restore point was being made of it when the node stopped, and it may be in \
                 the log; choose another name",
                self.name
            )
        } else {
            format!("there is a restore point '{}' already, at {}; choose another name", self.name, self.lsn)
        };
        Error::new(ErrorKind::Refused, text)
    }
}

fn encode(points: &[Point]) -> Vec<u8> {
    SEAL.encode(|out| {
        out.put_u32(u32::try_from(points.len()).unwrap_or(u32::MAX));
        for p in points {
            out.put_blob(p.name.as_bytes());
            out.put_u64(p.lsn.0);
            out.put_i64(p.time);
        }
    })
}

fn decode(bytes: &[u8]) -> std::result::Result<Vec<Point>, DecodeError> {
    let mut r: Reader<'_> = SEAL.decode(bytes)?;
    let count = r.u32("number of points")?;
    let mut points = Vec::new();
    for _ in 0..count {
        let name = r.blob(POINT_NAME_MAX, "name")?;
        let invalid = DecodeError::Invalid { what: "name (by its length)", value: name.len() as u64 };
        let name: PointName = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok()).ok_or(invalid)?;
        points.push(Point { name: name.to_string(), lsn: Lsn(r.u64("position")?), time: r.i64("time")? });
    }
    r.finish()?;
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_survives_and_a_damaged_one_is_named() {
        let point = |name: &str, lsn| Point { name: name.to_owned(), lsn: Lsn(lsn), time: 7 };
        let points = vec![point("a", 5), point("before-upgrade", 0)];
        let bytes = encode(&points);
        assert_eq!(decode(&bytes), Ok(points));
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 0x10;
            assert!(decode(&bad).is_err() && decode(&bytes[..i]).is_err(), "byte {i}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "x").unwrap();
        let e = Points::new(dir.path()).change(|_| Ok(())).unwrap_err();
        assert!(e.to_string().contains("restore-points") && e.to_string().contains("remove it"), "{e}");
    }

    #[test]
    fn a_name_is_taken_from_before_it_is_written_until_it_is_known_not_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let points = Points::new(dir.path());
        let name: PointName = "p".parse().unwrap();
        let known = |points: &Points| {
            let mut seen = Vec::new();
            points
                .change(|p| {
                    seen.clone_from(p);
                    Ok(())
                })
                .unwrap();
            seen
        };
        points
            .change(|p| {
                p.push(Point { name: "p".to_owned(), lsn: Lsn::ZERO, time: 1 });
                Ok(())
            })
            .unwrap();
        assert!(known(&points)[0].refusal().to_string().contains("may be in the log"));
        points.settle(name, Some(Lsn(9))).unwrap();
        assert!(known(&points)[0].refusal().to_string().contains("0/00000009"));
        points.settle(name, None).unwrap();
        assert!(known(&points).is_empty());
        let many = (0..=MOST).map(|i| Point { name: format!("p{i}"), lsn: Lsn(1), time: 0 });
        points
            .change(|p| {
                p.extend(many);
                Ok(())
            })
            .unwrap();
        let kept = known(&points);
        assert_eq!((kept.len(), kept[0].name.as_str()), (MOST, "p1"));
    }
}
