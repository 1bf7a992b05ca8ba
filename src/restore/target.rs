//! To which state a restore goes, and where in the log that is. Pure, but for the time zone of this machine: commits in, the
//! cut or why there is none.

use std::fmt;
use std::str::FromStr;

use super::points::Seen;
use crate::apply::StopAt;
use crate::error::{Error, ErrorKind};
use crate::moment::{Moment, Wall};
use crate::position::Lsn;
use crate::record::PointName;
use crate::sys;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The last exact cut that the log leads to.
    Latest,
    /// The first exact cut of the backup.
    First,
    /// The last exact cut at or before this position.
    Lsn(Lsn),
    /// The last exact cut whose commit is not later than this, nanoseconds since 1970 by the leader's clock.
    Time(i64),
    /// The restore point of this name.
    Point(PointName),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "latest" {
            return Ok(Self::Latest);
        }
        if let Some(wall) = Wall::parse(s) {
            let (year, month, day) = wall.date;
            let at = |summer| sys::raw::local_seconds((i32::from(year), month, day), wall.clock, summer);
            return wall.instant(s, at(false), at(true)).map(|Moment(ns)| Self::Time(ns));
        }
        match s.parse() {
            Ok(StopAt::Lsn(lsn)) => Ok(Self::Lsn(lsn)),
            Ok(StopAt::Time(time)) => Ok(Self::Time(time)),
            Ok(StopAt::Exact) => Ok(Self::First),
            Ok(StopAt::Point(name)) => Ok(Self::Point(name)),
            Err(e) => Err(e.replace("exact, or", "exact, latest, or").replace(
                "a time with its zone like",
                "a time like 2026-11-25 18:30 by this machine's clock or with its zone like",
            )),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::First => f.write_str("exact"),
            Self::Lsn(lsn) => lsn.fmt(f),
            Self::Time(time) => Moment(*time).fmt(f),
            Self::Point(name) => write!(f, "restore point '{name}'"),
        }
    }
}

/// A cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Its position.
    pub lsn: Lsn,
    /// When it was committed, nanoseconds since 1970 by the leader's clock.
    pub time: i64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.lsn, Moment(self.time))
    }
}

/// One commit of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Commit {
    pub(super) at: Cut,
    pub(super) exact: bool,
    /// The restore point that is looked for.
    pub(super) point: bool,
    pub(super) gap_begins: bool,
    pub(super) gap_ends: bool,
}

/// Where the target is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Goal {
    /// The cut on which the restore ends.
    pub cut: Cut,
    /// The history around it is approximate: since when, and until when if it ended.
    pub gap: Option<(Cut, Option<Cut>)>,
}

/// The search through the commits of the log, in their order.
#[derive(Debug)]
pub(super) struct Search {
    target: Target,
    /// Before this the directory is on no cut.
    floor: Lsn,
    best: Option<Goal>,
    /// The last commit before the gap that is open.
    open: Option<Cut>,
    last: Cut,
    over: bool,
}

impl Search {
    /// The backup is whole at `base`, an exact cut or not.
    ///
    /// # Errors
    /// It is newer than the target.
    pub(super) fn new(target: Target, base: Cut, exact: bool) -> Result<Self, Error> {
        let newer = match target {
            Target::Lsn(lsn) => lsn < base.lsn,
            Target::Time(time) => time < base.time,
            Target::Latest | Target::First | Target::Point(_) => false,
        };
        if newer {
            return Err(too_new(target, base));
        }
        let best = exact.then_some(Goal { cut: base, gap: None });
        let over = exact && (target == Target::First || target == Target::Lsn(base.lsn));
        Ok(Self { target, floor: base.lsn, best, open: None, last: base, over })
    }

    /// Whether later commits change nothing.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The next commit.
    ///
    /// # Errors
    /// The backup is newer than the restore point.
    pub(super) fn commit(&mut self, c: Commit) -> Result<(), Error> {
        if self.over {
            return Ok(());
        }
        let past = match self.target {
            Target::Lsn(lsn) => c.at.lsn > lsn,
            Target::Time(time) => c.at.time > time,
            Target::Latest | Target::First | Target::Point(_) => false,
        };
        let since = if c.gap_begins { Some(self.last) } else { self.open };
        if past {
            self.over = true;
            // A gap that ends here covers a time within it, even when it is a gap between two commits.
            let timed = matches!(self.target, Target::Time(_));
            if let (Some(best), Some(since), true) = (&mut self.best, since, self.open.is_some() || timed) {
                best.gap = Some((since, c.gap_ends.then_some(c.at)));
            }
            return Ok(());
        }
        self.open = if c.gap_ends { None } else { since };
        self.last = c.at;
        if c.point && c.at.lsn < self.floor {
            return Err(too_new(self.target, Cut { lsn: self.floor, ..c.at }));
        }
        let wanted = !matches!(self.target, Target::Point(_)) || c.point;
        if c.exact && c.at.lsn >= self.floor && wanted {
            self.best = Some(Goal { cut: c.at, gap: self.open.map(|since| (since, None)) });
            self.over = c.point
                || self.target == Target::First
                || matches!(self.target, Target::Lsn(lsn) if lsn == c.at.lsn);
        } else if let (Some(best), Some(since)) = (&mut self.best, self.open) {
            // Behind the best cut so far; if nothing better comes, the target is in this gap.
            best.gap.get_or_insert((since, None));
        }
        Ok(())
    }

    /// The log is whole up to `end`: nothing behind it is at or before a position that is not.
    pub(super) fn is_whole_to(&mut self, end: Lsn) {
        self.over |= matches!(self.target, Target::Lsn(lsn) if lsn <= end && lsn >= self.floor);
    }

    /// The log is at its end; the restore points that were seen in it.
    ///
    /// # Errors
    /// It ends before the target, or there is no exact cut.
    pub(super) fn finish(self, points: &Seen) -> Result<Goal, Error> {
        let reached = match self.target {
            Target::Latest | Target::First => true,
            Target::Lsn(lsn) => self.over || self.last.lsn >= lsn,
            Target::Time(time) => self.over || self.last.time == time,
            Target::Point(_) => self.over,
        };
        let (target, last) = (self.target, self.last);
        if !reached {
            let rest = "give the rest of the log with --log";
            let text = match target {
                Target::Point(name) => format!(
                    "there is no {target} in the log from {} to {last}: {}; take one of them, or {rest}, if it is there",
                    points.from.unwrap_or(self.floor),
                    points.instead_of(name)
                ),
                Target::Time(_) => format!(
                    "log ends at {last}, target {target}: nothing was written between them as far as this log goes; {rest} \
                     if there is more, or use --target latest if that is what you want"
                ),
                _ => format!("log ends at {last}, target {target}: {rest}, or an earlier target"),
            };
            return Err(Error::new(ErrorKind::Missing, text));
        }
        self.best.ok_or_else(|| {
            let text = format!(
                "there is no exact cut from {} to the target {target}; the log ends at {last}: give more log, or another \
                 target",
                self.floor
            );
            Error::new(ErrorKind::Missing, text)
        })
    }
}

fn too_new(target: Target, base: Cut) -> Error {
    let text = format!(
        "the backup is newer than the target {target}: it is whole at {} only; take an older one",
        base.lsn
    );
    Error::new(ErrorKind::Refused, text)
}

impl Goal {
    /// The refusal of a target whose history is approximate.
    pub(super) fn refusal(&self, target: Target) -> Option<Error> {
        let (since, until) = self.gap?;
        let until = until.map_or_else(|| "the end of the log".to_owned(), |u| u.to_string());
        let text = format!(
            "from {since} to {until} the leader did not see every change, so the state at {target} is not known exactly: \
             name a target outside, or give --allow-gap to have the last exact cut before it, {}",
            self.cut
        );
        Some(Error::new(ErrorKind::Refused, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(n: u64) -> Cut {
        Cut { lsn: Lsn(n), time: i64::try_from(n * 10).unwrap() }
    }

    fn commit(n: u64) -> Commit {
        Commit { at: cut(n), exact: true, point: false, gap_begins: false, gap_ends: false }
    }

    /// The base is at 10; commits are at 20, 30 and so on.
    fn found(target: Target, commits: &[Commit]) -> Result<Goal, Error> {
        let mut search = Search::new(target, cut(10), true)?;
        for c in commits {
            search.commit(*c)?;
        }
        search.finish(&Seen::default())
    }

    fn at(target: Target, commits: &[Commit]) -> u64 {
        let goal = found(target, commits).unwrap();
        assert_eq!(goal.gap, None, "{target}");
        goal.cut.lsn.0
    }

    fn why(target: Target, commits: &[Commit]) -> String {
        match found(target, commits) {
            Err(e) => e.to_string(),
            Ok(goal) => goal.refusal(target).unwrap().to_string(),
        }
    }

    #[test]
    fn targets_are_read_and_shown() {
        for (text, want, shown) in [
            ("latest", Target::Latest, "latest"),
            ("exact", Target::First, "exact"),
            ("0/20", Target::Lsn(Lsn(32)), "0/00000020"),
            ("1970-01-01T00:00:01Z", Target::Time(1_000_000_000), "1970-01-01T00:00:01Z"),
            ("v1", Target::Point("v1".parse().unwrap()), "restore point 'v1'"),
        ] {
            assert_eq!((text.parse(), want.to_string().as_str()), (Ok(want), shown));
        }
        // What the clock shows is a time of this machine, whatever its zone.
        let Ok(Target::Time(at)) = "2026-07-24 14:05:01.5".parse() else { panic!() };
        let utc = "2026-07-24T14:05:01.5Z".parse::<Moment>().unwrap().0;
        assert!((at - utc).abs() <= 14 * 3_600_000_000_000 && (at - utc) % 60_000_000_000 == 0, "{at}");
        for bad in ["", "2026-11-25", "17:30", "Latest", "x/y"] {
            let e = bad.parse::<Target>().unwrap_err();
            assert!(e.contains(&format!("'{bad}'")), "{e}");
        }
    }

    #[test]
    fn a_restore_ends_on_the_last_exact_cut_before_the_target() {
        let file = Commit { exact: false, ..commit(30) };
        let log = [commit(20), file, commit(40)];
        for (target, want) in [
            (Target::Latest, 40),
            (Target::First, 10),
            (Target::Lsn(Lsn(10)), 10),
            (Target::Lsn(Lsn(19)), 10),
            (Target::Lsn(Lsn(20)), 20),
            (Target::Lsn(Lsn(39)), 20),
            (Target::Lsn(Lsn(40)), 40),
            (Target::Time(100), 10),
            (Target::Time(200), 20),
            (Target::Time(399), 20),
            (Target::Time(400), 40),
        ] {
            assert_eq!(at(target, &log), want, "{target}");
        }
        let name = Target::Point("p".parse().unwrap());
        assert_eq!(at(name, &[commit(20), Commit { point: true, ..commit(30) }, commit(40)]), 30);
        let mut fuzzy = Search::new(Target::Latest, cut(10), false).unwrap();
        fuzzy.commit(Commit { exact: false, ..commit(20) }).unwrap();
        assert!(fuzzy.finish(&Seen::default()).unwrap_err().to_string().contains("no exact cut"));
    }

    #[test]
    fn a_target_that_is_not_in_the_log_is_said_to_be_where_it_is() {
        let log = [commit(20), commit(40)];
        for target in [Target::Lsn(Lsn(41)), Target::Time(401)] {
            let e = why(target, &log);
            assert!(e.contains("log ends at 0/00000028") && e.contains(&format!("target {target}")), "{e}");
            let quiet = e.contains("nothing was written") && e.contains("--target latest");
            assert_eq!(quiet, matches!(target, Target::Time(_)), "{e}");
        }
        let e = why(Target::Point("p".parse().unwrap()), &log);
        assert!(e.contains("no restore point 'p' in the log from 0/0000000A to 0/00000028"), "{e}");
        // Of a position more is known: where the log is whole to, whatever was committed last.
        for (whole, found) in [(45, true), (44, true), (43, false)] {
            let mut search = Search::new(Target::Lsn(Lsn(44)), cut(10), true).unwrap();
            log.iter().for_each(|c| search.commit(*c).unwrap());
            search.is_whole_to(Lsn(whole));
            let cut = search.finish(&Seen::default()).ok().map(|g| g.cut.lsn.0);
            assert_eq!(cut, found.then_some(40), "{whole}");
        }
        for target in [Target::Lsn(Lsn(9)), Target::Time(99)] {
            assert!(why(target, &log).contains("newer than the target"), "{target}");
        }
        let mut fuzzy = Search::new(Target::Point("p".parse().unwrap()), cut(10), false).unwrap();
        let e = fuzzy.commit(Commit { point: true, ..commit(5) }).unwrap_err();
        assert!(e.to_string().contains("newer"), "{e}");
    }

    #[test]
    fn a_gap_covers_what_is_within_it() {
        let begins = Commit { exact: false, gap_begins: true, ..commit(30) };
        let ends = Commit { gap_ends: true, ..commit(50) };
        let log = [commit(20), begins, Commit { exact: false, ..commit(40) }, ends, commit(60)];
        for target in [Target::Lsn(Lsn(30)), Target::Lsn(Lsn(45)), Target::Time(301), Target::Time(499)] {
            let e = why(target, &log);
            assert!(e.contains("from 0/00000014") && e.contains("--allow-gap"), "{target}: {e}");
        }
        for (target, want) in [
            (Target::Lsn(Lsn(20)), 20),
            (Target::Lsn(Lsn(29)), 20),
            (Target::Lsn(Lsn(50)), 50),
            (Target::Time(500), 50),
            (Target::Latest, 60),
        ] {
            assert_eq!(at(target, &log), want, "{target}");
        }
        assert!(why(Target::Latest, &log[..3]).contains("the end of the log"));
        // While the leader was down: nothing is known between two commits, but every cut is good.
        let down = [commit(20), Commit { gap_begins: true, gap_ends: true, ..commit(40) }, commit(60)];
        assert!(why(Target::Time(300), &down).contains("to 0/00000028"));
        assert_eq!((at(Target::Lsn(Lsn(30)), &down), at(Target::Time(400), &down)), (20, 40));
    }
}
