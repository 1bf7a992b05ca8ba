//! Which of two lines is the one that counts, when two nodes of one system both lead or have led.
//!
//! The newer line counts: one that goes on from the other's, which a promotion has ended; or one that an operator forced,
//! with a number above the other's. Two promotions that know nothing of each other are apart: only an operator decides
//! between them. So is a line that a restore began from the one that it was restored from: both may go on, as where a backup
//! is tried out.

use crate::history::{History, Reason, Standing};

/// What another node's line is to the own one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rival {
    /// The own line goes on from theirs: it is the other that was left behind.
    Older,
    /// Both are on one line.
    Same,
    /// Theirs goes on from the own line: this node was left behind.
    Newer,
    /// Each goes on from a line that both know, without the other.
    Apart,
}

/// What the line that `theirs` leads to is to the one that `own` leads to; `None`: it is one of another system, and says
/// nothing.
#[must_use]
pub fn rival(own: &History, theirs: &History) -> Option<Rival> {
    if own.system() != theirs.system() {
        return None;
    }
    Some(if (own.timeline(), own.line()) == (theirs.timeline(), theirs.line()) {
        Rival::Same
    } else if overrules(theirs, own) {
        Rival::Newer
    } else if overrules(own, theirs) {
        Rival::Older
    } else {
        Rival::Apart
    })
}

/// Whether the line of `other` counts, and that of `own` does no more.
fn overrules(other: &History, own: &History) -> bool {
    if own.timeline() >= other.timeline() {
        return false;
    }
    let branch = other.branch_off(own.timeline()).filter(|_| own.leads_to(other));
    if branch.is_some_and(|b| b.reason != Reason::Restore) {
        return true;
    }
    // So many promotions have been since that where the own line ended was forgotten.
    let end = own.branches().last().map_or(crate::position::Lsn::ZERO, |b| b.at);
    if other.judge(own.timeline(), own.line(), end) == Standing::Forgotten {
        return true;
    }
    // What was forced beside the own line knew of it, or of one with a higher number.
    other.branches().iter().any(|b| {
        b.reason == Reason::Force && b.timeline > own.timeline() && own.line_of(b.timeline) != Some(b.line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{BRANCHES_MAX, Beginning};
    use crate::position::{Lsn, SystemId, TimelineId};

    fn first() -> History {
        History::first(SystemId(7))
    }

    fn child(of: &History, at: u64, line: u64) -> History {
        of.child(Beginning::sample(Lsn(at), line), TimelineId::FIRST).unwrap()
    }

    /// A line that an operator forced, who knew of numbers up to `taken`.
    fn forced(of: &History, at: u64, line: u64, taken: u32) -> History {
        let begins = Beginning { reason: Reason::Force, ..Beginning::sample(Lsn(at), line) };
        of.child(begins, TimelineId(taken)).unwrap()
    }

    #[test]
    fn which_of_two_lines_counts_as_a_table() {
        use Rival::{Apart, Newer, Older, Same};
        let (two, other) = (child(&first(), 100, 0xA), child(&first(), 120, 0xB));
        let (three, far) = (child(&two, 200, 0xC), child(&child(&two, 200, 0xC), 300, 0xD));
        // The old leader of timeline 1 is made to lead on, and knows of timeline 2.
        let back = forced(&first(), 500, 0xE, 2);
        let after = child(&back, 600, 0xF);
        for (what, own, theirs, is) in [
            ("the same, never branched", &first(), &first(), Same),
            ("the same", &two, &two, Same),
            ("a promotion", &first(), &two, Newer),
            ("two of them", &first(), &far, Newer),
            ("one of two", &two, &far, Newer),
            ("the newest, of one in between", &three, &far, Newer),
            ("two promotions apart", &two, &other, Apart),
            ("one of which went on", &other, &far, Apart),
            ("the old line is forced", &two, &back, Newer),
            ("and goes on from there", &two, &after, Newer),
            ("what was forced, of the line that it left", &first(), &back, Newer),
            ("what was forced without knowing of the third", &three, &back, Apart),
            ("a higher number alone is nothing", &back, &far, Apart),
        ] {
            assert_eq!(rival(own, theirs), Some(is), "{what}");
            let turned = match is {
                Newer => Older,
                other => other,
            };
            assert_eq!(rival(theirs, own), Some(turned), "{what}, from the other side");
        }
        // What was restored ends nothing by itself; what is forced, or promoted, does.
        let begins = Beginning { reason: Reason::Restore, ..Beginning::sample(Lsn(90), 0x20) };
        let restored = first().child(begins, TimelineId(4)).unwrap();
        assert_eq!((rival(&first(), &restored), rival(&restored, &first())), (Some(Apart), Some(Apart)));
        assert_eq!(rival(&first(), &child(&restored, 95, 0x21)), Some(Apart));
        assert_eq!(rival(&restored, &child(&restored, 95, 0x21)), Some(Newer));
        assert_eq!(rival(&first(), &forced(&restored, 95, 0x22, 5)), Some(Newer));
        // A split, and one of the two is forced: the other is left behind, and so is what it knew.
        let again = forced(&two, 300, 0x10, 2);
        assert_eq!((rival(&other, &again), rival(&again, &other)), (Some(Newer), Some(Older)));
        assert_eq!(rival(&two, &again), Some(Newer));
        assert_eq!(rival(&first(), &child(&History::first(SystemId(8)), 100, 0xA)), None, "another system");
    }

    #[test]
    fn a_line_that_was_forgotten_is_an_old_one() {
        let mut long = first();
        for n in 1..=BRANCHES_MAX as u64 + 9 {
            long = child(&long, n, n);
        }
        assert_eq!(rival(&first(), &long), Some(Rival::Newer));
        assert_eq!(rival(&long, &first()), Some(Rival::Older));
        assert_eq!(rival(&child(&first(), 1, 1), &long.newest(4)), Some(Rival::Newer));
    }
}
