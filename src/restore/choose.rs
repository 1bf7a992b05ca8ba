//! Which backup of an archive a restore begins with. Pure.

use crate::error::{Error, ErrorKind, Result};
use crate::moment::Moment;
use crate::position::Lsn;

/// Most candidates that are named.
const NAMED: usize = 10;

/// A backup of the archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    pub(super) label: String,
    pub(super) end: Lsn,
    pub(super) end_time: i64,
    /// Whether it can be read with all it stands on; otherwise why not.
    pub(super) usable: std::result::Result<(), String>,
}

/// Where a backup has to have ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Before {
    /// Anywhere.
    Any,
    /// At or before this position.
    Lsn(Lsn),
    /// At or before this time.
    Time(i64),
}

impl Before {
    fn holds(self, c: &Candidate) -> bool {
        match self {
            Self::Any => true,
            Self::Lsn(lsn) => c.end <= lsn,
            Self::Time(time) => c.end_time <= time,
        }
    }
}

/// The choice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    pub(super) index: usize,
    /// Newer ones that would have done, and why they do not.
    pub(super) passed: Vec<String>,
}

/// The newest usable one that ended before the target, or the one of the label that was named.
///
/// # Errors
/// There is none, with the names of those that there are; the one that was named can't be used.
pub(super) fn choose(
    all: &[Candidate],
    before: Before,
    named: Option<&str>,
    (target, archive): (&str, &str),
) -> Result<Choice> {
    let mut order: Vec<(usize, &Candidate)> = all.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| (b.end, b.end_time, &b.label).cmp(&(a.end, a.end_time, &a.label)));
    let refused = |text: String| Error::new(ErrorKind::Refused, text);
    if let Some(label) = named {
        let Some((index, found)) = order.iter().find(|(_, c)| c.label == label) else {
            let text = format!("there is no backup '{label}' in the archive '{archive}'; {}", names(&order));
            return Err(Error::new(ErrorKind::Missing, text));
        };
        return match &found.usable {
            Ok(()) => Ok(Choice { index: *index, passed: Vec::new() }),
            Err(why) => {
                Err(refused(format!("the backup '{label}' of the archive '{archive}' can't be used: {why}")))
            }
        };
    }
    if all.is_empty() {
        let text = format!(
            "there is no finished backup in the archive '{archive}': name one elsewhere with --from, and the archive with \
             --log"
        );
        return Err(Error::new(ErrorKind::Missing, text));
    }
    let mut passed = Vec::new();
    for (index, c) in order.iter().filter(|(_, c)| before.holds(c)) {
        match &c.usable {
            Ok(()) => return Ok(Choice { index: *index, passed }),
            Err(why) => passed.push(format!("'{}': {why}", c.label)),
        }
    }
    let text = match passed.first() {
        None => format!(
            "no backup in the archive '{archive}' ended at or before the target {target}: name a later target; {}",
            names(&order)
        ),
        Some(first) => format!(
            "no backup in the archive '{archive}' that ended at or before the target {target} can be used: {first}; {}",
            names(&order)
        ),
    };
    Err(refused(text))
}

/// Labels of the usable ones besides the one that was taken, the newest first.
pub(super) fn others(all: &[Candidate], before: Before, taken: &str) -> Vec<String> {
    let fits = |c: &&Candidate| c.usable.is_ok() && before.holds(c) && c.label != taken;
    let mut found: Vec<&Candidate> = all.iter().filter(fits).collect();
    found.sort_by(|a, b| (b.end, &b.label).cmp(&(a.end, &a.label)));
    found.into_iter().take(NAMED).map(|c| c.label.clone()).collect()
}

/// The candidates in words, the oldest first.
fn names(newest_first: &[(usize, &Candidate)]) -> String {
    if newest_first.is_empty() {
        return "there is none".to_owned();
    }
    let one = |c: &Candidate| format!("'{}' ended at {} ({})", c.label, c.end, Moment(c.end_time));
    let mut words: Vec<String> = newest_first.iter().rev().take(NAMED).map(|(_, c)| one(c)).collect();
    if let Some(more) = newest_first.len().checked_sub(NAMED).filter(|n| *n > 0) {
        words.push(format!("and {more} younger ones"));
    }
    format!("there are: {}", words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(label: &str, end: u64) -> Candidate {
        Candidate {
            label: label.to_owned(),
            end: Lsn(end),
            end_time: i64::try_from(end * 10).unwrap(),
            usable: Ok(()),
        }
    }

    fn all() -> Vec<Candidate> {
        vec![candidate("b", 20), candidate("c", 30), candidate("a", 10)]
    }

    fn pick(all: &[Candidate], before: Before, named: Option<&str>) -> Result<(String, usize)> {
        let choice = choose(all, before, named, ("T", "file:///x"))?;
        Ok((all[choice.index].label.clone(), choice.passed.len()))
    }

    #[test]
    fn the_newest_backup_that_ended_before_the_target_is_taken() {
        for (before, want) in [
            (Before::Any, "c"),
            (Before::Lsn(Lsn(30)), "c"),
            (Before::Lsn(Lsn(29)), "b"),
            (Before::Time(100), "a"),
            (Before::Time(299), "b"),
        ] {
            assert_eq!(pick(&all(), before, None).unwrap(), (want.to_owned(), 0), "{before:?}");
        }
        assert_eq!(pick(&all(), Before::Lsn(Lsn(10)), Some("c")).unwrap().0, "c", "the operator knows");
    }

    #[test]
    fn without_one_that_fits_those_that_there_are_are_named() {
        let e = pick(&all(), Before::Lsn(Lsn(9)), None).unwrap_err().to_string();
        let (a, b) = (e.find("'a' ended at 0/0000000A"), e.find("'b' ended at"));
        assert!(a.is_some() && a < b && e.contains("target T"), "{e}");
        let e = pick(&[], Before::Any, None).unwrap_err().to_string();
        assert!(e.contains("no finished backup"), "{e}");
        let e = pick(&all(), Before::Any, Some("d")).unwrap_err().to_string();
        assert!(e.contains("no backup 'd'") && e.contains("'c' ended"), "{e}");
        let many: Vec<Candidate> = (1..=15).map(|n| candidate(&format!("n{n}"), n)).collect();
        let e = pick(&many, Before::Lsn(Lsn(0)), None).unwrap_err().to_string();
        assert!(e.contains("'n10'") && !e.contains("'n11'") && e.contains("and 5 younger"), "{e}");
    }

    #[test]
    fn instead_of_a_damaged_one_those_are_named_that_would_do() {
        let mut some = all();
        assert_eq!(others(&some, Before::Any, "c"), ["b", "a"]);
        assert_eq!(others(&some, Before::Lsn(Lsn(19)), "a"), Vec::<String>::new());
        some[0].usable = Err("cut".to_owned());
        assert_eq!(others(&some, Before::Any, "c"), ["a"]);
    }

    #[test]
    fn one_that_can_not_be_used_is_passed_over_and_said() {
        let mut some = all();
        some[1].usable = Err("'x', on which 'c' stands, is missing".to_owned());
        assert_eq!(pick(&some, Before::Any, None).unwrap(), ("b".to_owned(), 1));
        assert_eq!(
            pick(&some, Before::Lsn(Lsn(25)), None).unwrap(),
            ("b".to_owned(), 0),
            "it would not have done"
        );
        let e = pick(&some, Before::Any, Some("c")).unwrap_err().to_string();
        assert!(e.contains("'x', on which 'c' stands"), "{e}");
        some.iter_mut().for_each(|c| c.usable = Err("cut".to_owned()));
        assert!(pick(&some, Before::Any, None).unwrap_err().to_string().contains("can be used: 'c': cut"));
    }
}
