//! The verdict of `towline check` on a status document: pure, so that every state has a row in a table of tests.
//!
//! What is wrong is a list of problems, each with a word that does not change; the worst decides the exit code.
//!
//! | word | severity | when |
//! | --- | --- | --- |
//! | `help` | critical | the node never goes on, or never catches up, without an operator |
//! | `fenced` | critical | a leader that does not lead any more: another line goes on from its own |
//! | `vetoed` | critical | a leader that stands aside, because `may_lead` does not let it lead |
//! | `split` | critical | another node leads apart from this leader |
//! | `failed` | critical | a disk or another part failed; tried again by itself |
//! | `frozen`, `freeze` | critical | the application is frozen for want of a quorum; it should be, but can't be |
//! | `cut-off` | warning, critical when the silence is longer than the limits of the lag | no upstream, or no leader behind it |
//! | `starting`, `paused` | warning | as in `health` |
//! | `lag` | by limits | a follower is further behind; what its `apply_delay` holds back is no lag |
//! | `lag-bytes`, `exact-age`, `followers`, `slot`, `disk`, `certificate` | by limits | a figure is beyond a limit |
//! | `away` | by limits | a follower that has a slot here is not connected |
//! | `backup` | by limits | the newest base backup is too old, or none is known |
//! | `archive` | by limits | log waits for the archive for too long |
//! | `sync` | warning, with `--sync-state` critical | the quorum is missing |
//! | `released` | warning | an operator lets the application run without a quorum |
//! | `slot-lost` | warning | log that a follower needs was given up: it starts anew when it comes back |
//! | `lost-logs` | warning | a resync put log aside that the upstream has not |
//! | the words of [`super::NOTICES`] | warning | see there |

use std::fmt::Write;

use serde::Serialize;

use super::words::{bytes, plain, span};
use super::{Bounds, Free, NOTICES, View, notices, split, waiting};

/// Problems that may be known and be none: what is wrong with the node itself is not among them.
pub const ACCEPTABLE: [&str; NOTICES.len() + KNOWN.len()] = {
    let mut all = [""; NOTICES.len() + KNOWN.len()];
    let (notices, known) = all.split_at_mut(NOTICES.len());
    notices.copy_from_slice(&NOTICES);
    known.copy_from_slice(&KNOWN);
    all
};

/// Those of them that are no notices.
const KNOWN: [&str; 7] = ["paused", "starting", "sync", "released", "away", "slot-lost", "lost-logs"];

/// How bad something is. The numbers are the exit codes of a plugin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong.
    Ok = 0,
    /// Somebody should look at it.
    Warning = 1,
    /// Somebody has to.
    Critical = 2,
}

impl Severity {
    /// The word of the line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }
}

/// What the caller wants to be warned of.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Limits {
    /// Seconds of lag; on a leader of every attached follower.
    pub lag: Bounds<f64>,
    /// Bytes of lag.
    pub lag_bytes: Bounds<u64>,
    /// Seconds that commits wait for an exact cut.
    pub exact_age: Bounds<f64>,
    /// Attached followers; fewer are a problem.
    pub followers: Bounds<u64>,
    /// A missing quorum is critical, and so is a leader that asks for none.
    pub sync_state: bool,
    /// Seconds that a follower with a slot is away.
    pub away: Bounds<f64>,
    /// Bytes of log that one slot holds.
    pub slot_bytes: Bounds<u64>,
    /// Seconds since the newest base backup.
    pub backup_age: Bounds<f64>,
    /// Seconds that sealed log waits for the archive.
    pub archive_age: Bounds<f64>,
    /// Room that has to be left.
    pub free: Bounds<Free>,
    /// Days that a certificate has to be good for.
    pub certificate_days: Bounds<f64>,
    /// Words of problems that are known and are no problem.
    pub accept: Vec<String>,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Which, in a word that does not change.
    pub word: &'static str,
    /// In words for people.
    pub text: String,
}

/// One figure, as the guidelines for plugins want it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Figure {
    /// Its name.
    pub label: String,
    /// Its value; `None` where it is not known.
    pub value: Option<f64>,
    /// `s`, `B`, `%`, `c` or nothing.
    pub unit: &'static str,
    /// Range of the warning, as written.
    pub warning: String,
    /// Range of what is critical.
    pub critical: String,
}

/// What is said of a node.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Verdict {
    /// The worst of the problems.
    pub severity: Severity,
    /// What the node is and does.
    pub summary: String,
    /// What is wrong, the worst first.
    pub problems: Vec<Problem>,
    /// Figures for graphs.
    pub figures: Vec<Figure>,
}

impl Verdict {
    /// The line of a plugin.
    #[must_use]
    pub fn line(&self) -> String {
        // A bar would begin the figures.
        let clean = |t: &str| plain(t).replace('|', "/");
        let mut line = format!("TOWLINE {} - ", self.severity.word());
        for p in &self.problems {
            let _ = write!(line, "{}; ", clean(&p.text));
        }
        line += &clean(&self.summary);
        line += " |";
        for f in &self.figures {
            let _ = write!(line, " {f}");
        }
        line
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.value {
            None => write!(f, "{}=U", self.label)?,
            Some(v) if self.unit == "s" || self.unit == "%" => {
                write!(f, "{}={v:.1}{}", self.label, self.unit)?
            }
            Some(v) => write!(f, "{}={v:.0}{}", self.label, self.unit)?,
        }
        if !self.warning.is_empty() || !self.critical.is_empty() {
            write!(f, ";{};{}", self.warning, self.critical)?;
        }
        Ok(())
    }
}

/// What is said of a node that answered with `status`.
///
/// # Errors
/// In words: the answer is no status.
pub fn verdict(status: View<'_>, limits: &Limits) -> Result<Verdict, String> {
    if !matches!(status.text("/role"), "leader" | "follower") || status.text("/health").is_empty() {
        return Err("the daemon's answer is no status; is it another program?".to_owned());
    }
    let mut judge = Judge { v: status, limits, problems: Vec::new(), figures: Vec::new() };
    judge.condition();
    if status.text("/role") == "leader" {
        judge.leader();
    } else {
        judge.follower();
    }
    judge.cuts();
    judge.slots();
    judge.rooms();
    judge.archive();
    judge.backup();
    judge.certificate();
    for notice in notices(status) {
        // Said with its limits already.
        if judge.problems.iter().any(|p| p.word == notice.word && p.severity > Severity::Ok) {
            continue;
        }
        judge.problem(Severity::Warning, notice.word, notice.text);
    }
    let summary = summary(status);
    let Judge { mut problems, figures, .. } = judge;
    problems.retain(|p| p.severity > Severity::Ok && !limits.accept.iter().any(|a| a == p.word));
    problems.sort_by_key(|p| std::cmp::Reverse(p.severity));
    let severity = problems.first().map_or(Severity::Ok, |p| p.severity);
    Ok(Verdict { severity, summary, problems, figures })
}

fn summary(v: View<'_>) -> String {
    let who = format!("{} '{}' {}", v.text("/role"), v.text("/name"), v.text("/state"));
    if v.text("/role") == "leader" {
        let (here, known) = attached(v);
        return format!("{who}, {here} of {known} followers attached");
    }
    let lag = match (v.has("/lag"), v.number("/lag/seconds")) {
        (false, _) => "lag not known".to_owned(),
        (true, None) => format!("at least {} behind", bytes(v.count("/lag/bytes"))),
        (true, Some(age)) => format!("{} and {} behind", bytes(v.count("/lag/bytes")), span(age)),
    };
    format!("{who}, {lag}, upstream {}", v.text("/upstream/state"))
}

fn takes_log(f: View<'_>) -> bool {
    matches!(f.text("/state"), "catchup" | "streaming")
}

/// Followers that take log now, and those that are known.
fn attached(v: View<'_>) -> (u64, u64) {
    let here = v.list("/followers").filter(|f| takes_log(*f)).count();
    (here as u64, v.list("/followers").count() as u64)
}

struct Judge<'a> {
    v: View<'a>,
    limits: &'a Limits,
    problems: Vec<Problem>,
    figures: Vec<Figure>,
}

impl Judge<'_> {
    fn problem(&mut self, severity: Severity, word: &'static str, text: impl Into<String>) {
        self.problems.push(Problem { severity, word, text: text.into() });
    }

    fn figure(&mut self, label: &str, value: Option<f64>, unit: &'static str, ranges: (String, String)) {
        let (warning, critical) = ranges;
        self.figures.push(Figure { label: label.to_owned(), value, unit, warning, critical });
    }

    /// Nanoseconds since `path`, in seconds.
    fn since(&self, path: &str) -> Option<f64> {
        self.age(self.v.time(path))
    }

    fn age(&self, then: Option<i64>) -> Option<f64> {
        let ns = u64::try_from(self.v.time("/now")?.saturating_sub(then?)).unwrap_or(0);
        Some(std::time::Duration::from_nanos(ns).as_secs_f64())
    }

    /// What the one word of `health` means here.
    fn condition(&mut self) {
        let v = self.v;
        let message = || format!("{}: {}", v.text("/error/kind"), v.text("/error/message"));
        let health = v.text("/health");
        match health {
            "help" => {
                let text = format!(
                    "NEEDS HELP, never goes on by itself: {}; {}",
                    message(),
                    v.text("/error/remedy")
                );
                self.problem(Severity::Critical, "help", text);
            }
            "fenced" => {
                let text = format!("FENCED: {}; {}", v.text("/error/message"), v.text("/error/remedy"));
                self.problem(Severity::Critical, "fenced", text);
            }
            "vetoed" => {
                let text = format!("VETOED: {}; {}", v.text("/error/message"), v.text("/error/remedy"));
                self.problem(Severity::Critical, "vetoed", text);
            }
            "retrying" => {
                let text =
                    format!("FAILED, tried again by itself: {}; {}", message(), v.text("/error/remedy"));
                self.problem(Severity::Critical, "failed", text);
            }
            "cut-off" => self.cut_off(),
            "starting" => {
                self.problem(Severity::Warning, "starting", format!("not usable yet: {}", v.text("/state")))
            }
            "paused" => self.problem(Severity::Warning, "paused", "paused until `towline resume`"),
            _ => {}
        }
        let help = f64::from(u8::from(health == "help"));
        self.figure("help", Some(help), "", (String::new(), "0".to_owned()));
    }

    /// A copy may be as far behind as the silence is long.
    fn cut_off(&mut self) {
        let v = self.v;
        let heard = self.since("/upstream/heard").or_else(|| self.since("/upstream/since"));
        let silence = v.number("/upstream/leader_silent").or(heard);
        let severity = silence.map_or(Severity::Warning, |s| self.limits.lag.judge(|limit| s > limit));
        let mut text = format!("CUT OFF from '{}'", v.text("/upstream/address"));
        if v.has("/upstream/leader_silent") {
            text += ", which has no news of the leader";
        }
        if let Some(s) = silence {
            let _ = write!(text, " for {}", span(s));
        }
        let error = v.text("/upstream/error");
        if !error.is_empty() {
            let _ = write!(text, ": {error}");
        }
        self.problem(severity.max(Severity::Warning), "cut-off", text);
    }

    fn follower(&mut self) {
        let (v, limits) = (self.v, self.limits);
        let (age, behind) = (v.number("/lag/seconds"), v.number("/lag/bytes").map(|_| v.count("/lag/bytes")));
        if let Some(age) = age {
            // What it is told not to show yet is no lag.
            let beyond = age - v.number("/apply/delay").unwrap_or(0.0);
            self.problem(limits.lag.judge(|limit| beyond > limit), "lag", format!("{} behind", span(age)));
        }
        if let Some(behind) = behind {
            let severity = limits.lag_bytes.judge(|limit| behind > limit);
            self.problem(severity, "lag-bytes", format!("{} behind", bytes(behind)));
        }
        let lost = v.count("/resync/lost_logs");
        if lost > 0 {
            let text = format!(
                "{lost} logs hold what the upstream has not: look at them in lost/ of the state directory"
            );
            self.problem(Severity::Warning, "lost-logs", text);
        }
        self.figure("lag", age, "s", seconds(limits.lag));
        self.figure("lag_bytes", behind.map(float), "B", above(limits.lag_bytes));
        if limits.followers != Bounds::default() || v.list("/followers").next().is_some() {
            self.followers();
        }
    }

    fn leader(&mut self) {
        let (v, limits) = (self.v, self.limits);
        if let Some(text) = split(v) {
            self.problem(Severity::Critical, "split", text);
        }
        let (mut worst, mut most) = (0.0_f64, 0);
        for f in v.list("/followers").filter(|f| takes_log(*f)) {
            let (name, behind) = (f.text("/name"), f.count("/lag/bytes"));
            if let Some(age) = f.number("/lag/seconds") {
                let delay = f.number("/delay").unwrap_or(0.0);
                let severity = limits.lag.judge(|limit| age - delay > limit);
                self.problem(severity, "lag", format!("follower '{name}' is {} behind", span(age)));
                worst = worst.max(age);
            }
            let severity = limits.lag_bytes.judge(|limit| behind > limit);
            self.problem(severity, "lag-bytes", format!("follower '{name}' is {} behind", bytes(behind)));
            most = most.max(behind);
        }
        self.figure("lag", Some(worst), "s", seconds(limits.lag));
        self.figure("lag_bytes", Some(float(most)), "B", above(limits.lag_bytes));
        self.followers();
        self.synchronous();
    }

    fn followers(&mut self) {
        let (here, known) = attached(self.v);
        let severity = self.limits.followers.judge(|limit| here < limit);
        let away: Vec<&str> =
            self.v.list("/followers").filter(|f| !takes_log(*f)).map(|f| f.text("/name")).collect();
        let away = if away.is_empty() { String::new() } else { format!("; not there: {}", away.join(", ")) };
        self.problem(severity, "followers", format!("only {here} of {known} followers are attached{away}"));
        self.figure("followers", Some(float(here)), "", below(self.limits.followers));
    }

    fn synchronous(&mut self) {
        let v = self.v;
        let policy = v.text("/sync/policy");
        let wanted = if self.limits.sync_state { Severity::Critical } else { Severity::Warning };
        if policy.is_empty() {
            if self.limits.sync_state {
                let text = "no synchronous followers are asked for: set synchronous_followers";
                self.problem(Severity::Critical, "sync", text);
            }
            return;
        }
        let (present, required) = (v.count("/sync/present"), v.count("/sync/required"));
        if !v.flag("/sync/satisfied") {
            let since =
                self.since("/sync/missing_since").map(|s| format!(" for {}", span(s))).unwrap_or_default();
            let text =
                format!("QUORUM MISSING{since}: {present} of {required} of {policy} count; start the others");
            self.problem(wanted, "sync", text);
        }
        if let Some(since) = self.since("/sync/frozen_since") {
            let text = format!(
                "the application is FROZEN for {} until the quorum is back: start the followers, or let it run with \
                 `towline sync release`",
                span(since)
            );
            self.problem(Severity::Critical, "frozen", text);
        }
        let error = v.text("/sync/freeze_error");
        if !error.is_empty() {
            self.problem(Severity::Critical, "freeze", format!("the application can't be frozen: {error}"));
        }
        if v.has("/sync/override_until") {
            self.problem(
                Severity::Warning,
                "released",
                "an operator lets the application run without a quorum",
            );
        }
        self.figure("sync_present", Some(float(present)), "", (String::new(), format!("{required}:")));
    }

    fn cuts(&mut self) {
        let age = self.v.number("/cuts/exact_age");
        if let Some(age) = age {
            let severity = self.limits.exact_age.judge(|limit| age > limit);
            let text = format!(
                "{}: the application never pauses; give it a 'freeze' or before_cut",
                waiting(self.v).unwrap_or_default()
            );
            self.problem(severity, "exact-age", text);
        }
        self.figure("exact_age", age, "s", seconds(self.limits.exact_age));
        if self.v.has("/capture") {
            self.figure("gaps", Some(float(self.v.count("/capture/gaps"))), "c", Default::default());
        }
    }

    fn slots(&mut self) {
        if self.v.list("/slots").next().is_none() {
            return;
        }
        let mut most = 0;
        for slot in self.v.list("/slots") {
            let (name, held) = (slot.text("/name"), slot.count("/retained_bytes"));
            // One that is mirrored is the upstream's to report.
            if slot.text("/state") == "lost" && slot.text("/origin") != "mirrored" {
                let text = format!(
                    "slot '{name}' is LOST: the log it needs is gone, its follower has to be resynced"
                );
                self.problem(Severity::Warning, "slot-lost", text);
            }
            // One that was made by hand waits for a follower that never came; one that is lost was named.
            if matches!(slot.text("/kind"), "follower" | "copy")
                && slot.text("/origin") != "mirrored"
                && slot.text("/state") != "lost"
                && let Some(age) = self.age(slot.time("/inactive_since"))
            {
                let text = format!(
                    "follower '{name}' is away for {}: start it, or `towline slot drop {name}` if it does not come back",
                    span(age)
                );
                self.problem(self.limits.away.judge(|limit| age > limit), "away", text);
            }
            let severity = self.limits.slot_bytes.judge(|limit| held > limit);
            self.problem(severity, "slot", format!("slot '{name}' holds {} of log", bytes(held)));
            most = most.max(held);
        }
        self.figure("slot_bytes", Some(float(most)), "B", above(self.limits.slot_bytes));
    }

    fn rooms(&mut self) {
        for (which, label) in [("state", "free_state"), ("data", "free_data")] {
            let Some(room) = self.v.at(&format!("/disk/{which}")) else { continue };
            let (free, percent) =
                (room.count("/free_bytes"), room.number("/free_percent").unwrap_or_default());
            let severity = self.limits.free.judge(|limit| match limit {
                Free::Bytes(limit) => free < limit,
                Free::Percent(limit) => percent < limit,
            });
            let text =
                format!("{} ({percent:.1} %) free on the file system of the {which} directory", bytes(free));
            self.problem(severity, "disk", text);
            let in_bytes = matches!(self.limits.free.critical, Some(Free::Bytes(_)));
            let shown = self.limits.free.map(|f| match f {
                Free::Bytes(n) => format!("{n}:"),
                Free::Percent(p) => format!("{p}:"),
            });
            let ranges = (shown.warning.unwrap_or_default(), shown.critical.unwrap_or_default());
            let (value, unit) = if in_bytes { (float(free), "B") } else { (percent, "%") };
            self.figure(label, Some(value), unit, ranges);
        }
    }

    fn archive(&mut self) {
        let v = self.v;
        if !v.has("/archive") {
            return;
        }
        let (waits, fails) = (self.since("/archive/waiting_since"), self.since("/archive/failing_since"));
        // What is older than a restart is still as old as its file.
        let age = waits.unwrap_or(0.0).max(fails.unwrap_or(0.0));
        let mut text = match waits {
            Some(age) => format!(
                "{} segments ({}) wait for the archive, the oldest for {}",
                v.count("/archive/waiting"),
                bytes(v.count("/archive/waiting_bytes")),
                span(age)
            ),
            None => format!("ARCHIVING FAILS for {}", span(age)),
        };
        let error = v.text("/archive/error");
        if !error.is_empty() {
            let _ = write!(text, ": {error}");
        }
        self.problem(self.limits.archive_age.judge(|limit| age > limit), "archive", text);
        self.figure("archive_age", Some(age), "s", seconds(self.limits.archive_age));
        self.figure("archive_gaps", Some(float(v.count("/archive/gaps"))), "c", Default::default());
    }

    fn backup(&mut self) {
        if self.limits.backup_age == Bounds::default() {
            return;
        }
        let age = self.since("/backup/newest_time");
        match age {
            None => self.problem(Severity::Critical, "backup", "NO BASE BACKUP is known"),
            Some(age) => {
                let severity = self.limits.backup_age.judge(|limit| age > limit);
                self.problem(severity, "backup", format!("the newest base backup is {} old", span(age)));
            }
        }
        self.figure("backup_age", age, "s", seconds(self.limits.backup_age));
    }

    fn certificate(&mut self) {
        let Some(days) = self.v.number("/tls/days_left") else { return };
        let severity = self.limits.certificate_days.judge(|limit| days < limit);
        // The node's own words name the remedy; they don't begin as early as a limit may.
        let text = match self.v.text("/tls/warning") {
            "" => format!("the certificate is good for {days} more days"),
            warning => warning.to_owned(),
        };
        self.problem(severity, "certificate", text);
        self.figure("certificate_days", Some(days), "", below(self.limits.certificate_days));
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures for graphs")]
fn float(n: u64) -> f64 {
    n as f64
}

fn shown<T: std::fmt::Display + Copy>(b: Bounds<T>, suffix: &str) -> (String, String) {
    let text = |v: Option<T>| v.map(|v| format!("{v}{suffix}")).unwrap_or_default();
    (text(b.warning), text(b.critical))
}

/// Ranges of figures that are a problem above a limit.
fn above(b: Bounds<u64>) -> (String, String) {
    shown(b, "")
}

fn seconds(b: Bounds<f64>) -> (String, String) {
    shown(b, "")
}

/// Ranges of figures that are a problem below a limit.
fn below<T: std::fmt::Display + Copy>(b: Bounds<T>) -> (String, String) {
    shown(b, ":")
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
