//! Lines of log: who may follow whom over a promotion. Log of an older line, or of one that is not on the way, is never taken.

use super::{Here, common_version};
use crate::history::{Branch, History, Standing};
use crate::position::Lsn;
use crate::wire::{Code, Hello, VERSION_LINES, Want};

/// Whether the follower's log is on the way of this node's.
pub(super) fn judge(hello: &Hello, here: &Here) -> Result<(), (Code, String)> {
    if hello.want == Want::Handover {
        // Nothing is sent; how the two lines stand to each other is what it wants to know.
        return Ok(());
    }
    let (theirs, own) = (hello.timeline, here.history.timeline());
    let standing = here.history.judge(theirs, hello.line, hello.flush);
    let anew = hello.want == Want::Fill;
    let knows = common_version(hello.versions).is_some_and(|v| v >= VERSION_LINES);
    match standing {
        Standing::Same => Ok(()),
        Standing::Newer => {
            let reason = format!(
                "this node is on timeline {own}, an older one than the follower's {theirs}: it was left behind by a promotion, and \
                 nobody takes log from it; make it follow the new leader"
            );
            Err((Code::WrongTimeline, reason))
        }
        // Who asks for everything gets rid of what it has.
        _ if anew && knows => Ok(()),
        Standing::Before(_) if knows => Ok(()),
        Standing::Before(_) => {
            let reason = format!(
                "the follower is on timeline {theirs}, this node on timeline {own}, and its program is too old to follow over a \
                 promotion; update it"
            );
            Err((Code::WrongTimeline, reason))
        }
        Standing::Past(branch) => {
            let reason = format!(
                "timeline {theirs} ended at {branch} on the way to this node's timeline {own}, and the follower's log goes on to {}: \
                 what it has past the branch was left behind by the promotion; it has to be rewound (`towline resync` there)",
                hello.flush
            );
            Err((if knows { Code::Diverged } else { Code::WrongTimeline }, reason))
        }
        Standing::Apart => {
            let reason = format!(
                "the follower's timeline {theirs} (line {}) is not on the way to this node's timeline {own} (line {}): two nodes were \
                 promoted apart from each other; decide which of them leads, and resync the other and those that follow it",
                hello.line,
                here.history.line()
            );
            Err((Code::WrongTimeline, reason))
        }
        Standing::Forgotten => {
            let reason = format!(
                "the follower's timeline {theirs} is too old: this node, on timeline {own}, does not remember where it ended; \
                 resync the follower"
            );
            Err((Code::Diverged, reason))
        }
    }
}

/// What a receiver makes of the line of the node that welcomed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Course {
    /// They are on the same line: it follows.
    Along,
    /// Its own line ends at this branch, which it has not passed: it follows to there, and then on the next line.
    Over(Branch),
    /// Its log passed this branch, but its directory did not: it gives up the log past it, and goes on on the next line.
    Back(Branch),
}

/// Whether a receiver whose way is `own`, whose log ends at `flush` and whose directory stands at `applied`, may take log from a node of the way `theirs`.
/// The sender decides too; but no log of an older or another line is ever taken, whatever a sender says.
///
/// # Errors
/// Why not.
pub fn course(own: &History, flush: Lsn, applied: Lsn, theirs: &History) -> Result<Course, (Code, String)> {
    let (mine, other) = (own.timeline(), theirs.timeline());
    match theirs.judge(mine, own.line(), flush) {
        Standing::Same => Ok(Course::Along),
        Standing::Before(_) => Ok(theirs.branch_off(mine).cloned().map_or(Course::Along, Course::Over)),
        Standing::Newer => {
            let reason = format!(
                "the upstream is on timeline {other}, an older one than this node's {mine}: it was left behind by a promotion; \
                 name the node that leads in the key 'leader'"
            );
            Err((Code::WrongTimeline, reason))
        }
        Standing::Past(branch) if applied <= branch => match theirs.branch_off(mine) {
            Some(branch) => Ok(Course::Back(branch.clone())),
            None => Ok(Course::Along),
        },
        Standing::Past(branch) => {
            let reason = format!(
                "this node's log on timeline {mine} goes on to {flush} and its directory to {applied}, past the branch at {branch} from which the upstream's \
                 timeline {other} comes; it has to be rewound"
            );
            Err((Code::Diverged, reason))
        }
        Standing::Apart => {
            let reason = format!(
                "the upstream's timeline {other} (line {}) does not come from this node's timeline {mine} (line {}): two nodes were \
                 promoted apart from each other; decide which of them leads, and resync the other and those that follow it",
                theirs.line(),
                own.line()
            );
            Err((Code::WrongTimeline, reason))
        }
        Standing::Forgotten => {
            let reason = format!(
                "timeline {mine} of this node is too old for the upstream, which is on {other}; resync this node"
            );
            Err((Code::Diverged, reason))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{HASH, hello, here, word};
    use super::*;
    use crate::history::{Beginning, LineId};
    use crate::position::{SystemId, TimelineId};
    use crate::session::{Proof, decide};

    pub(in crate::session) const LINE: LineId = LineId(0xA1);

    fn child(of: &History, at: u64, line: u64) -> History {
        let begins = Beginning::sample(Lsn(at), line);
        of.child(begins, TimelineId::FIRST).unwrap()
    }

    fn first() -> History {
        History::first(SystemId(7))
    }

    /// Timeline 2 of system 7, from 2000 on.
    pub(in crate::session) fn second() -> History {
        child(&first(), 2000, LINE.0)
    }

    #[test]
    fn a_follower_of_an_older_line_follows_if_it_is_not_past_the_branch() {
        let on = |timeline, line, flush| Hello {
            timeline: TimelineId(timeline),
            line: LineId(line),
            flush: Lsn(flush),
            ..hello()
        };
        for (what, hello, want) in [
            ("before the branch", on(1, 0, 1500), "stream 3 77"),
            ("at the branch", on(1, 0, 2000), "stream 3 77"),
            ("past it", on(1, 0, 2001), "Diverged"),
            ("an older program", Hello { versions: (1, 5), ..on(1, 0, 1500) }, "WrongTimeline"),
            ("an older program past it", Hello { versions: (1, 5), ..on(1, 0, 2001) }, "WrongTimeline"),
            ("the line of another promotion", on(2, 0xB1, 1500), "WrongTimeline"),
            ("a newer line", on(3, 0xA2, 4000), "WrongTimeline"),
            ("past it, and wants all", Hello { want: Want::Fill, ..on(1, 0, 2001) }, "fill"),
            ("apart, and wants all", Hello { want: Want::Fill, ..on(2, 0xB1, 2001) }, "fill"),
            ("newer, and wants all", Hello { want: Want::Fill, ..on(3, 0xB1, 2001) }, "WrongTimeline"),
            (
                "half filled from the old line",
                Hello { want: Want::ResumeFill(Lsn(1000)), ..on(1, 0, 0) },
                "fill",
            ),
        ] {
            assert_eq!(word(&decide(&hello, &here(), Proof::Hash(HASH))), want, "{what}");
        }
        assert_eq!(word(&decide(&on(1, 0, 1500), &here(), Proof::Hash([1; 32]))), "Diverged", "other bytes");
        assert_eq!(word(&decide(&on(1, 0, 1500), &here(), Proof::Gone)), "resync");
    }

    #[test]
    fn a_receiver_takes_nothing_of_an_older_or_another_line_whatever_the_sender_says() {
        let (two, other) = (second(), child(&first(), 1800, 0xB1));
        let three = child(&two, 3000, 0xA2);
        let go = |own: &History, flush, applied, theirs: &History| {
            course(own, Lsn(flush), Lsn(applied), theirs).map_err(|(code, _)| code)
        };
        assert_eq!(go(&two, 5000, 5000, &two), Ok(Course::Along));
        let branch = two.branches()[0].clone();
        assert_eq!(go(&first(), 2000, 1900, &two), Ok(Course::Over(branch.clone())));
        // One line at a time.
        assert_eq!(go(&first(), 1500, 1500, &three), Ok(Course::Over(branch.clone())));
        assert_eq!(go(&first(), 2500, 2000, &two), Ok(Course::Back(branch)));
        assert_eq!(go(&first(), 2500, 2001, &two), Err(Code::Diverged));
        assert_eq!(go(&two, 2500, 2500, &first()), Err(Code::WrongTimeline), "older");
        assert_eq!(go(&two, 2500, 2500, &other), Err(Code::WrongTimeline), "another promotion");
        assert_eq!(go(&other, 1500, 1500, &three), Err(Code::WrongTimeline));
        let (_, why) = course(&two, Lsn(1), Lsn(1), &first()).unwrap_err();
        assert!(why.contains("timeline 1, an older one than this node's 2"), "{why}");
    }
}
