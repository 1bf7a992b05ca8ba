//! A leader that was left behind becomes a follower, in place where its log allows that: nothing of its line lies past the
//! branch, so its catalog and its log are a follower's, and it goes over the branch as a follower does, without a copy.
//!
//! Whoever calls has seen to it that the log says all that the directory holds: what an application wrote and nobody logged is
//! an edit of a follower's directory.

use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::history::History;
use crate::log::{Log, LogOptions, Tail};
use crate::position::Lsn;
use crate::session::{Rival, rival};
use crate::state::{FillState, Role, StateDir};

/// How a node gets onto the line of another history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Its log is on that way: it follows as it is.
    InPlace,
    /// Its log goes on past the last position that both have, if that is known: what comes after it is left behind, and the
    /// directory is made equal to the new leader's.
    Rewind(Option<Lsn>),
}

/// How a node of the way `own`, whose log ends at `end`, gets onto the way `next`. Pure.
///
/// # Errors
/// `next` is of another system, or older: nobody goes back to a line that was left.
pub(crate) fn way(own: &History, end: Lsn, next: &History) -> Result<Way> {
    let refused = |text: String| Err(Error::new(ErrorKind::Refused, text));
    match rival(own, next) {
        None => {
            return refused(format!(
                "that node is of system {}, this one of system {}: name the leader of this system",
                next.system(),
                own.system()
            ));
        }
        Some(Rival::Same) => return Ok(Way::InPlace),
        Some(Rival::Older) => {
            return refused(format!(
                "that node is on timeline {}, an older one than this node's {}: it was left behind itself; name the node that leads",
                next.timeline(),
                own.timeline()
            ));
        }
        Some(Rival::Newer | Rival::Apart) => {}
    }
    // A line that was forced leaves another one before its end.
    match next.end_of(own.timeline()).filter(|_| own.leads_to(next)) {
        Some(branch) if end <= branch => Ok(Way::InPlace),
        Some(branch) => Ok(Way::Rewind(Some(branch))),
        None => Ok(Way::Rewind(own.common(next).map(|(_, at)| at))),
    }
}

/// Makes the leader of this state directory, whose engines have stopped, a follower on the way to `next`, if its log is on that
/// way; else nothing is changed. Done again it changes nothing.
///
/// # Errors
/// `next` is no line to go to, or why what is here can't be read, or the change not be made durable.
pub(crate) fn demote(state: &StateDir, next: &History) -> Result<Way> {
    let (control, own) = (state.set_up()?, state.history()?);
    let tail = log_tail(state)?;
    if let Way::Rewind(at) = way(&own, tail.end, next)? {
        return Ok(Way::Rewind(at));
    }
    let catalog = checkpoint::load_newest(&state.catalog(), control.system)?;
    // A follower knows the content of every file; the catalog of the first scan of a leader does not.
    let Some(catalog) = catalog.filter(|c| c.unhashed() == 0 && c.lsn() <= tail.end) else {
        return Ok(Way::Rewind(Some(tail.end)));
    };
    if control.role == Role::Leader {
        pass(state, "demote::before_control")?;
        state.change(|c| {
            (c.role, c.fill, c.clean) = (Role::Follower, FillState::Done, false);
            c.applied = catalog.lsn();
        })?;
        tracing::warn!(
            "this node is a follower from here on: its log ends at {}, and goes on on timeline {}",
            tail.end,
            next.timeline()
        );
    }
    pass(state, "demote::after_control")?;
    state.unfence()?;
    Ok(Way::InPlace)
}

fn pass(state: &StateDir, point: &'static str) -> Result<()> {
    failpoint::pass(point).map_err(|e| Error::io("change", state.path(), e))
}

/// Where the log of a node at rest ends. It is opened as a follower's: nothing is added to it.
pub(super) fn log_tail(state: &StateDir) -> Result<Tail> {
    let control = state.set_up()?;
    let log = Log::open_follower(LogOptions {
        dir: state.log(),
        system: control.system,
        timeline: control.timeline,
        segment_timeout: std::time::Duration::from_secs(60),
        level: 1,
    })?;
    let tail = log.tail();
    log.close()?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::history::Beginning;
    use crate::position::{Cut, SystemId, TimelineId};
    use crate::record::{Attrs, Record};
    use crate::segment::flags;
    use crate::state::Control;

    fn child(of: &History, at: u64, line: u64) -> History {
        of.child(Beginning::sample(Lsn(at), line), TimelineId::FIRST).unwrap()
    }

    #[test]
    fn only_a_log_that_ends_at_or_before_the_branch_stays_as_it_is() {
        let one = History::first(SystemId(7));
        let (two, other) = (child(&one, 2000, 0xA), child(&one, 1800, 0xB));
        let three = child(&two, 3000, 0xC);
        let go = |own: &History, end, next: &History| way(own, Lsn(end), next).map_err(|e| e.to_string());
        assert_eq!(go(&one, 2000, &two), Ok(Way::InPlace));
        assert_eq!(go(&one, 1500, &three), Ok(Way::InPlace));
        assert_eq!(go(&two, 9000, &two), Ok(Way::InPlace), "the same line");
        assert_eq!(go(&one, 2001, &two), Ok(Way::Rewind(Some(Lsn(2000)))));
        assert_eq!(go(&one, 2500, &three), Ok(Way::Rewind(Some(Lsn(2000)))));
        assert_eq!(go(&other, 1900, &two), Ok(Way::Rewind(Some(Lsn(1800)))), "two promotions");
        assert_eq!(go(&three, 3100, &other), Ok(Way::Rewind(Some(Lsn(1800)))), "whatever the numbers are");
        assert!(go(&two, 2500, &one).unwrap_err().contains("an older one"));
        assert!(go(&one, 1, &History::first(SystemId(8))).unwrap_err().contains("of system"));
    }

    /// A leader's state directory at rest, whose log ends with an empty change set.
    fn leader(dir: &std::path::Path, unhashed: bool) -> (StateDir, Lsn) {
        let state = StateDir::open_or_create(dir).unwrap();
        state.persist(Control::new(SystemId(7), Role::Leader, "l", std::path::Path::new("/d"))).unwrap();
        let log = Log::open_leader(LogOptions {
            dir: state.log(),
            system: SystemId(7),
            timeline: TimelineId::FIRST,
            segment_timeout: std::time::Duration::from_secs(60),
            level: 1,
        })
        .unwrap();
        let mut raw = Vec::new();
        let (meta, content) = (0, 0);
        let commit =
            crate::record::Commit { cut: Cut::Exact, partial: false, time: 1, meta, content, inodes: 1 };
        Record::Commit(commit).encode(&mut raw);
        let (_, end) = log.append(raw, flags::STARTS | flags::ENDS | flags::EXACT).unwrap();
        assert!(log.wait_durable(end, std::time::Duration::from_secs(10)).unwrap());
        log.close().unwrap();
        let mut catalog = Catalog::new(SystemId(7), Attrs::default());
        if unhashed {
            let (id, kind) = (catalog.next_id(), crate::record::Kind::File);
            let create = Record::Create { id, kind, attrs: Attrs::default(), rdev: 0, target: b"" };
            catalog.fold(&create).unwrap();
            catalog.fold(&Record::Link { parent: crate::position::FileId::ROOT, name: b"f", id }).unwrap();
            catalog.fold(&Record::Truncate { id, size: 5 }).unwrap();
            catalog.settle().unwrap();
            catalog.set_content(id, 0, false);
        }
        catalog.set_position(end, Cut::Exact, 1);
        checkpoint::prepare_catalog(&state.catalog(), &catalog).unwrap().finish().unwrap();
        (state, end)
    }

    #[test]
    fn a_leader_becomes_a_follower_once_and_only_where_nothing_of_its_line_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (state, end) = leader(dir.path(), false);
        let one = History::first(SystemId(7));
        let before = state.control();
        assert_eq!(demote(&state, &child(&one, end.0 - 1, 9)).unwrap(), Way::Rewind(Some(Lsn(end.0 - 1))));
        assert_eq!(state.control(), before, "nothing was changed");
        for _ in 0..2 {
            assert_eq!(demote(&state, &child(&one, end.0, 9)).unwrap(), Way::InPlace);
            let now = state.control().unwrap();
            assert_eq!(
                (now.role, now.fill, now.timeline),
                (Role::Follower, FillState::Done, TimelineId::FIRST)
            );
            assert_eq!(now.applied, end);
        }
        let (dir, next) = (tempfile::tempdir().unwrap(), child(&one, end.0, 9));
        let (state, end) = leader(dir.path(), true);
        assert_eq!(demote(&state, &next).unwrap(), Way::Rewind(Some(end)), "not all of it was read yet");
        assert_eq!(state.control().unwrap().role, Role::Leader);
    }
}
