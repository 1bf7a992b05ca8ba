//! Where the history files of a state directory are: beside the log, one for each timeline from 2 on.
//!
//! The control file says which timeline the node is on; it is written after the file of that timeline. So a file of a
//! higher one is what a promotion left that did not come to its end, and counts for nothing.

use std::io;
use std::path::Path;

use super::{Control, FillState, Role, StateDir};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::{self, Beginning, Branch, History, Reason, SEAL};
use crate::position::TimelineId;

/// The history of the timeline that `control` is on, from the state directory `path`, whoever holds it.
///
/// # Errors
/// [`ErrorKind::Missing`] when the file is not there, [`ErrorKind::Corrupt`] when it is damaged or another one's.
pub fn history(path: &Path, control: &Control) -> Result<History> {
    let first = History::first(control.system);
    if control.timeline == first.timeline() {
        return Ok(first);
    }
    let file = path.join(history::file_name(control.timeline));
    let Some(found) = disk::read_sealed(&file, &SEAL, History::decode)? else {
        let text =
            format!("'{}' is missing, but the node is on that timeline; {}", file.display(), SEAL.remedy);
        return Err(Error::new(ErrorKind::Missing, text));
    };
    if (found.system(), found.timeline()) == (control.system, control.timeline) {
        return Ok(found);
    }
    let text = format!(
        "'{}' is the history of timeline {} of system {}, not of timeline {} of system {}; {}",
        file.display(),
        found.timeline(),
        found.system(),
        control.timeline,
        control.system,
        SEAL.remedy
    );
    Err(Error::new(ErrorKind::Corrupt, text))
}

impl StateDir {
    /// The history of the timeline that this node is on.
    ///
    /// # Errors
    /// As [`history`], or when the node was not set up.
    pub fn history(&self) -> Result<History> {
        history(self.path(), &self.set_up()?)
    }

    /// Puts the file of a history there, durably; a leftover of its name is replaced. Nothing follows from it until the
    /// control file is on that timeline.
    ///
    /// # Errors
    /// Why it can't be written.
    pub fn keep_history(&self, history: &History) -> Result<()> {
        if history.timeline() == TimelineId::FIRST {
            return Ok(());
        }
        let name = history::file_name(history.timeline());
        disk::write_atomic(self.path(), &name, &history.encode())
    }

    /// Makes the node of this directory the leader of a new timeline, whose number is above the node's and above `taken`: its
    /// history, then role and timeline in the control file. What is in the directories counts up to the branch; the tree of
    /// the newest checkpoint has to be at or before it. The leader's first start ends the log there.
    ///
    /// # Errors
    /// Why that can't be made durable; what counts then is what the control file says.
    pub fn begin_line(&self, begins: Beginning, taken: TimelineId) -> Result<History> {
        let at = begins.at;
        let history = self.history()?.child(begins, taken)?;
        let pass = |point| failpoint::pass(point).map_err(|e| Error::io("change", self.path(), e));
        pass("promote::before_history")?;
        self.keep_history(&history)?;
        if history.branches().last().is_some_and(|b| b.reason != Reason::Restore) {
            self.promotions().write(history.timeline().to_string().as_bytes())?;
        }
        pass("promote::before_control")?;
        self.change(|c| {
            (c.role, c.fill) = (Role::Leader, FillState::Done);
            (c.timeline, c.applied) = (history.timeline(), at);
        })?;
        pass("promote::after_control")?;
        Ok(history)
    }

    /// The note that the command of a promotion is yet to be run: the file `promoted`, which holds the number of the timeline.
    fn promotions(&self) -> disk::Note {
        disk::Note::new(self.path(), "promoted", ["promote::note", "promote::after_note", "promote::forget"])
    }

    /// The branch of the promotion that made this node a leader and whose command was not run to its end, if there is one.
    ///
    /// # Errors
    /// What is there can't be read.
    pub fn promoted(&self) -> Result<Option<Branch>> {
        let note = self.promotions().path();
        let timeline = match std::fs::read_to_string(&note) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &note, e)),
        };
        let leads = self.control().is_some_and(|c| c.role == Role::Leader);
        let branch = if leads { self.history()?.branches().last().cloned() } else { None };
        Ok(branch.filter(|b| b.timeline.to_string() == timeline))
    }

    /// The command of the promotion was run, or there is none.
    ///
    /// # Errors
    /// Why that can't be made durable: it is run again by the next start.
    pub fn forget_promotion(&self) -> Result<()> {
        self.promotions().remove()
    }

    /// Removes what promotions left that did not come to their end.
    ///
    /// # Errors
    /// Why the directory can't be listed, or a file not removed.
    pub fn drop_unfinished_histories(&self) -> Result<()> {
        let now = self.set_up()?.timeline;
        let failed = |e: io::Error| Error::io("list", self.path(), e);
        for entry in std::fs::read_dir(self.path()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let newer = history::parse_name(name.as_encoded_bytes()).filter(|t| *t > now);
            if let Some(timeline) = newer {
                tracing::info!(
                    "a promotion to timeline {timeline} did not come to its end; nothing is left of it"
                );
                disk::remove_durable(&self.path().join(name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::LineId;
    use crate::position::{Lsn, SystemId};

    fn first_branch() -> Beginning {
        Beginning::sample(Lsn(99), 3)
    }

    fn second(system: u64) -> History {
        History::first(SystemId(system)).child(first_branch(), TimelineId::FIRST).unwrap()
    }

    #[test]
    fn the_history_is_that_of_the_control_file_and_leftovers_count_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(dir.path()).unwrap();
        let control = Control::new(SystemId(7), Role::Follower, "f", Path::new("/d"));
        state.persist(control.clone()).unwrap();
        assert_eq!(state.history().unwrap(), History::first(SystemId(7)));
        let file = dir.path().join("00000002.history");
        state.keep_history(&second(7)).unwrap();
        assert_eq!(state.history().unwrap(), History::first(SystemId(7)), "the control file decides");
        state.drop_unfinished_histories().unwrap();
        assert!(!file.exists());
        state.change(|c| c.timeline = TimelineId(2)).unwrap();
        let missing = state.history().unwrap_err();
        assert!(missing.kind() == ErrorKind::Missing && missing.to_string().contains("00000002.history"));
        state.keep_history(&second(8)).unwrap();
        let other = state.history().unwrap_err();
        assert!(
            other.kind() == ErrorKind::Corrupt && other.to_string().contains("0000000000000008"),
            "{other}"
        );
        state.keep_history(&second(7)).unwrap();
        state.drop_unfinished_histories().unwrap();
        assert_eq!(state.history().unwrap(), second(7));
        let begins = Beginning { at: Lsn(150), line: LineId(4), ..first_branch() };
        let third = state.begin_line(begins, TimelineId(7)).unwrap();
        assert_eq!((third.timeline(), state.history().unwrap() == third), (TimelineId(8), true));
        let control = state.control().unwrap();
        assert_eq!(
            (control.role, control.timeline, control.applied),
            (Role::Leader, TimelineId(8), Lsn(150))
        );
        // Without its history there is no line.
        std::fs::create_dir(dir.path().join("00000009.history")).unwrap();
        let begins = Beginning { at: Lsn(200), line: LineId(5), ..first_branch() };
        state.begin_line(begins, TimelineId::FIRST).unwrap_err();
        assert_eq!((state.control().unwrap(), state.history().unwrap()), (control, third));
        state.change(|c| c.timeline = TimelineId(2)).unwrap();
        std::fs::write(&file, b"TWLNHIST").unwrap();
        let damaged = state.history().unwrap_err();
        assert!(
            damaged.kind() == ErrorKind::Corrupt && damaged.to_string().contains("from the archive"),
            "{damaged}"
        );
    }
}
