//! A switchover as decisions: what may stand against it, in what order its steps come, and what each failure leads to. Up to
//! the note that it is passed every failure leads back, after it forward.
//!
//! ```text
//!  checks --> application stops --> last pass --> capture rests --> applied there --> ready --> note --> led
//!     |                |                |               |                |              |        |
//!     v                v                v               v                v              v        +--> asked again, for ever
//!  nothing      started or thawed       "       "; captures again        "              "
//! ```

use crate::history::{History, LineId, Standing};
use crate::position::{Lsn, TimelineId};
use crate::wire::Step;

/// How the application is kept from writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stopper {
    /// The command `on_demote` stops it.
    Hook = 1,
    /// It is frozen.
    Freeze = 2,
    /// The operator says that it is stopped.
    Operator = 3,
}

impl Stopper {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Hook, Self::Freeze, Self::Operator];

    /// What this node stops the application with; the operator's word wins.
    ///
    /// # Errors
    /// In words: there is nothing.
    pub fn choose(stopped: bool, hook: bool, freeze: bool) -> Result<Self, String> {
        match (stopped, hook, freeze) {
            (true, ..) => Ok(Self::Operator),
            (_, true, _) => Ok(Self::Hook),
            (_, _, true) => Ok(Self::Freeze),
            _ => Err("nothing stops the application here: set on_demote to the command that does, or freeze; or stop it, and say \
                      so with --stopped"
                .to_owned()),
        }
    }
}

/// The steps on the leader, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leg {
    /// Whether anything stands against it.
    Checks,
    /// The application is being stopped.
    Stopping,
    /// Everything that the directory holds is being committed.
    LastPass,
    /// Capture comes to rest: the log is at its end.
    Resting,
    /// The other applies what there is.
    Applying,
    /// It is asked whether it is ready.
    Asking,
    /// What can't be taken back is being noted.
    Noting,
    /// The other leads, or is about to.
    Leading,
}

impl Leg {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Checks,
        Self::Stopping,
        Self::LastPass,
        Self::Resting,
        Self::Applying,
        Self::Asking,
        Self::Noting,
        Self::Leading,
    ];

    /// In a word, as `status` shows it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Checks => "checks",
            Self::Stopping => "stopping",
            Self::LastPass => "last-pass",
            Self::Resting => "resting",
            Self::Applying => "applying",
            Self::Asking => "asking",
            Self::Noting => "noting",
            Self::Leading => "leading",
        }
    }
}

/// How a step went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Went {
    /// It is done.
    Well,
    /// It failed, took too long, or was broken off.
    Wrong,
}

/// What has to be put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Back {
    /// The application was stopped, or may have been: it is started or thawed.
    pub application: bool,
    /// Capture rests, or may: it begins anew.
    pub capture: bool,
    /// The note that it is passed may be there: it is removed before anything else.
    pub note: bool,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// This step.
    Leg(Leg),
    /// The same step again.
    Again,
    /// All is put back, and this node leads on.
    Back(Back),
    /// The other leads.
    Over,
}

/// What follows from how a step went, with an application that is stopped like that.
#[must_use]
pub fn next(leg: Leg, went: Went, stopper: Stopper) -> Next {
    match (leg, went) {
        (Leg::Leading, Went::Well) => Next::Over,
        (Leg::Leading, Went::Wrong) => Next::Again,
        (leg, Went::Well) => {
            let after = Leg::ALL.into_iter().find(|l| *l > leg);
            after.map_or(Next::Over, Next::Leg)
        }
        (leg, Went::Wrong) => Next::Back(Back {
            application: leg >= Leg::Stopping && stopper != Stopper::Operator,
            capture: leg >= Leg::Resting,
            note: leg == Leg::Noting,
        }),
    }
}

/// What is known, on the leader, of the node that is to lead.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// As `status` says it: `streaming`, `filling`, `away`, ...
    pub state: String,
    /// Its directory rests until somebody helps.
    pub halted: bool,
    /// How long it holds back what it shows, seconds.
    pub delay: f64,
    /// Bytes of log that it has not applied.
    pub behind: u64,
}

/// What stands against a node as the next leader, as far as the leader knows it. `via`: the follower that it follows.
///
/// # Errors
/// In words.
pub fn vet(
    name: &str,
    own: &str,
    known: &[&str],
    found: Option<&Candidate>,
    via: Option<&str>,
    near: u64,
) -> Result<(), String> {
    if name == own {
        return Err(format!("'{name}' is this node itself, and leads already"));
    }
    let Some(c) = found else {
        return Err(match via {
            Some(via) => format!("'{name}' follows '{via}', not this node: let it follow this node first"),
            None if known.is_empty() => format!("no follower '{name}' is known here, nor any other"),
            None => format!("no follower '{name}' is known here; there are: {}", known.join(", ")),
        });
    };
    if c.state == "away" {
        return Err(format!("follower '{name}' is not connected"));
    }
    if c.state == "filling" {
        return Err(format!(
            "follower '{name}' takes its first copy, or a resync: its directory is no state of this one's yet"
        ));
    }
    if c.halted {
        return Err(format!(
            "follower '{name}' has halted: its directory diverged or was changed by others; see `towline status` there"
        ));
    }
    if c.delay > 0.0 {
        return Err(format!(
            "follower '{name}' is delayed: it holds back what it shows for {} s (apply_delay)",
            c.delay
        ));
    }
    if c.behind > near {
        return Err(format!(
            "follower '{name}' is behind: {} bytes are not applied there, more than sync_near ({near})",
            c.behind
        ));
    }
    if c.state != "streaming" {
        return Err(format!("follower '{name}' does not stream yet: it is {}", c.state));
    }
    Ok(())
}

/// How the node that is asked stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standpoint {
    /// Its first copy is complete.
    pub filled: bool,
    /// It streams from the one that asks (`Some(true)`), from another (`Some(false)`), or from nobody.
    pub follows: Option<bool>,
    /// Why its engines stand still.
    pub failure: Option<String>,
    /// Its directory was told to rest: paused, or at the target of `stop_at`.
    pub rests: bool,
    /// It is told to hold back what it shows.
    pub delayed: bool,
    /// End of its durable log, and of the last change set that may be applied there.
    pub log: (Lsn, Lsn),
    /// What its directory shows, and whether that is a cut.
    pub applied: (Lsn, bool),
}

/// Whether the node that stands so may answer yes to a step of a handover `at` a position.
///
/// # Errors
/// Why not, in words.
pub fn answer(step: Step, at: Lsn, here: &Standpoint) -> Result<(), String> {
    let no = |text: String| Err(text);
    if !here.filled {
        return no("its first copy, or a resync, is not complete".to_owned());
    }
    // Later the one that asks has closed its door: it may follow another follower meanwhile.
    if here.follows != Some(true) && step == Step::Could {
        return no("it does not stream from the node that would hand over".to_owned());
    }
    if let Some(why) = &here.failure {
        return no(format!("it is not as it should be: {why}"));
    }
    if here.rests {
        return no("it is paused, or rests at its target: `towline resume` there".to_owned());
    }
    if here.delayed {
        return no("it is delayed: apply_delay is set there".to_owned());
    }
    if step == Step::Could {
        return Ok(());
    }
    let ((end, last), (applied, cut)) = (here.log, here.applied);
    if (end, last) != (at, at) {
        return no(format!("its log ends at {end}, with a change set that ends at {last}, not at {at}"));
    }
    if applied != at || !cut {
        return no(format!("its directory stands at {applied}, not on the cut at {at}"));
    }
    Ok(())
}

/// What a note that a switchover was passed means to the node that finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is in force: this node does not lead on.
    Passed,
    /// It is of a line that this node is not on any more: it is done with.
    Done,
}

/// Whether a note about the end of a line is in force on a node of this history.
#[must_use]
pub fn found(own: &History, timeline: TimelineId, line: LineId) -> Found {
    if own.timeline() == timeline && own.line() == line { Found::Passed } else { Found::Done }
}

/// Whether the line that is handed over goes on in a history, and where it ended.
#[must_use]
pub fn goes_on(own: &History, theirs: &History, at: Lsn) -> Option<Lsn> {
    match theirs.judge(own.timeline(), own.line(), at) {
        Standing::Before(end) | Standing::Past(end) => Some(end),
        Standing::Same | Standing::Newer | Standing::Apart | Standing::Forgotten => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Beginning;
    use crate::position::SystemId;

    #[test]
    fn before_the_note_every_failure_leads_back_after_it_forward() {
        let back = |application, capture, note| Next::Back(Back { application, capture, note });
        for (leg, well, wrong) in [
            (Leg::Checks, Next::Leg(Leg::Stopping), back(false, false, false)),
            (Leg::Stopping, Next::Leg(Leg::LastPass), back(true, false, false)),
            (Leg::LastPass, Next::Leg(Leg::Resting), back(true, false, false)),
            (Leg::Resting, Next::Leg(Leg::Applying), back(true, true, false)),
            (Leg::Applying, Next::Leg(Leg::Asking), back(true, true, false)),
            (Leg::Asking, Next::Leg(Leg::Noting), back(true, true, false)),
            (Leg::Noting, Next::Leg(Leg::Leading), back(true, true, true)),
            (Leg::Leading, Next::Over, Next::Again),
        ] {
            for stopper in [Stopper::Hook, Stopper::Freeze] {
                assert_eq!(next(leg, Went::Well, stopper), well, "{leg:?}");
                assert_eq!(next(leg, Went::Wrong, stopper), wrong, "{leg:?}");
            }
            // What the operator stopped is not started for him.
            assert_eq!(next(leg, Went::Well, Stopper::Operator), well, "{leg:?}");
            let wrong = match wrong {
                Next::Back(b) => Next::Back(Back { application: false, ..b }),
                other => other,
            };
            assert_eq!(next(leg, Went::Wrong, Stopper::Operator), wrong, "{leg:?}");
        }
        let words: std::collections::BTreeSet<_> = Leg::ALL.iter().map(|l| l.word()).collect();
        assert_eq!(words.len(), Leg::ALL.len());
    }

    #[test]
    fn something_has_to_stop_the_application() {
        assert_eq!(Stopper::choose(true, true, true), Ok(Stopper::Operator));
        assert_eq!(Stopper::choose(false, true, true), Ok(Stopper::Hook));
        assert_eq!(Stopper::choose(false, false, true), Ok(Stopper::Freeze));
        assert!(Stopper::choose(false, false, false).unwrap_err().contains("--stopped"));
    }

    #[test]
    fn what_stands_against_a_follower_is_named() {
        let good = Candidate { state: "streaming".to_owned(), halted: false, delay: 0.0, behind: 10 };
        let of = |c: &Candidate| vet("b", "a", &["b", "c"], Some(c), None, 10);
        assert_eq!(of(&good), Ok(()));
        let state = |s: &str| Candidate { state: s.to_owned(), ..good.clone() };
        for (c, word) in [
            (state("away"), "not connected"),
            (state("filling"), "first copy"),
            (state("catchup"), "catchup"),
            (Candidate { halted: true, ..good.clone() }, "halted"),
            (Candidate { delay: 1.5, ..good.clone() }, "delayed"),
            (Candidate { behind: 11, ..good.clone() }, "11 bytes"),
        ] {
            let why = of(&c).unwrap_err();
            assert!(why.contains(word) && why.contains("'b'"), "{why}");
        }
        let unknown = |name, known: &[&str], via| vet(name, "a", known, None, via, 10).unwrap_err();
        assert!(unknown("a", &[], None).contains("itself"));
        assert!(unknown("x", &["b", "c"], None).contains("there are: b, c"));
        assert!(unknown("x", &[], None).contains("nor any other"));
        assert!(unknown("x", &["b"], Some("b")).contains("follows 'b'"));
    }

    fn standing() -> Standpoint {
        Standpoint {
            filled: true,
            follows: Some(true),
            failure: None,
            rests: false,
            delayed: false,
            log: (Lsn(90), Lsn(90)),
            applied: (Lsn(90), true),
        }
    }

    #[test]
    fn who_is_to_lead_answers_by_where_it_stands() {
        let ok = standing();
        for step in Step::ALL {
            assert_eq!(answer(step, Lsn(90), &ok), Ok(()), "{step:?}");
        }
        for (bad, word, could) in [
            (Standpoint { filled: false, ..standing() }, "first copy", false),
            (Standpoint { failure: Some("x".to_owned()), ..standing() }, "as it should be: x", false),
            (Standpoint { rests: true, ..standing() }, "paused", false),
            (Standpoint { delayed: true, ..standing() }, "delayed", false),
            (Standpoint { log: (Lsn(80), Lsn(80)), ..standing() }, "ends at", true),
            (Standpoint { log: (Lsn(95), Lsn(90)), ..standing() }, "ends at", true),
            (Standpoint { applied: (Lsn(80), true), ..standing() }, "stands at", true),
            (Standpoint { applied: (Lsn(90), false), ..standing() }, "stands at", true),
        ] {
            assert_eq!(answer(Step::Could, Lsn::ZERO, &bad).is_ok(), could, "{word}");
            for step in [Step::Ready, Step::Lead] {
                let why = answer(step, Lsn(90), &bad).unwrap_err();
                assert!(why.contains(word), "{why}");
            }
        }
        // Asked again after the old leader has closed its door: it streams from nobody, or from another follower.
        for follows in [None, Some(false)] {
            let alone = Standpoint { follows, ..standing() };
            assert!(answer(Step::Could, Lsn::ZERO, &alone).unwrap_err().contains("stream"));
            assert!(
                answer(Step::Ready, Lsn(90), &alone).is_ok() && answer(Step::Lead, Lsn(90), &alone).is_ok()
            );
        }
    }

    #[test]
    fn a_note_counts_for_its_line_only_and_the_line_goes_on_where_a_history_says() {
        let first = History::first(SystemId(7));
        let second = first.child(Beginning::sample(Lsn(2000), 5), TimelineId::FIRST).unwrap();
        let third = second.child(Beginning::sample(Lsn(3000), 6), TimelineId::FIRST).unwrap();
        assert_eq!(found(&first, TimelineId::FIRST, LineId::FIRST), Found::Passed);
        assert_eq!(found(&second, TimelineId::FIRST, LineId::FIRST), Found::Done);
        assert_eq!(found(&second, TimelineId(2), LineId(9)), Found::Done, "another of that number");
        assert_eq!(goes_on(&first, &first, Lsn(2000)), None);
        assert_eq!(goes_on(&first, &second, Lsn(2000)), Some(Lsn(2000)));
        assert_eq!(goes_on(&first, &third, Lsn(2000)), Some(Lsn(2000)));
        assert_eq!(goes_on(&first, &third, Lsn(2500)), Some(Lsn(2000)));
        assert_eq!(goes_on(&second, &first, Lsn(2000)), None);
        let apart = first.child(Beginning::sample(Lsn(2000), 8), TimelineId::FIRST).unwrap();
        assert_eq!(goes_on(&second, &apart, Lsn(2000)), None);
    }
}
