//! What is not as it should be though the node runs: each a line of `status`, and a warning of `check`.

use super::View;
use super::words::{bytes, span};

/// One thing that is said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// Its kind: what `check --accept` takes.
    pub word: &'static str,
    /// What it is, and what to do about it.
    pub text: String,
}

/// Every kind of notice.
pub const WORDS: [&str; 11] = [
    "archive-failing",
    "archive-gap",
    "gap",
    "skipped",
    "unreadable",
    "hidden",
    "unwatched",
    "edits",
    "inexact",
    "certificate",
    "follower-help",
];

/// What there is to say of a node.
#[must_use]
pub fn notices(v: View<'_>) -> Vec<Notice> {
    let mut out = Vec::new();
    let mut say = |word, text| out.push(Notice { word, text });
    if v.flag("/capture/gap_open") {
        say(
            "gap",
            "changes were missed: what differs is being looked for; until then the history is approximate"
                .into(),
        );
    }
    archive(v, &mut say);
    if v.has("/tls/warning") {
        say("certificate", v.text("/tls/warning").to_owned());
    }
    let skipped: Vec<String> = v
        .counts("/apply/skipped_privilege")
        .filter(|(_, n)| *n > 0)
        .map(|(class, n)| format!("{n} {class}"))
        .collect();
    if !skipped.is_empty() {
        let list = skipped.join(", ");
        say(
            "skipped",
            format!("kept in the catalog only, for want of privilege: {list}; run the follower as root"),
        );
    }
    let unreadable = v.text("/capture/unreadable");
    if !unreadable.is_empty() {
        say("unreadable", format!("not replicated, because it can't be read: {unreadable}"));
    }
    let hidden = v.count("/capture/hidden_processes");
    if hidden > 0 {
        let text = format!(
            "{hidden} processes may not be looked into: what they store through mappings is found by the scrub only; run \
             the leader as root or as their user"
        );
        say("hidden", text);
    }
    let unwatched = v.count("/capture/unwatched");
    if unwatched > 0 {
        let text = format!(
            "{unwatched} directories are not watched, only scanned: raise fs.inotify.max_user_watches, then `towline reload`"
        );
        say("unwatched", text);
    }
    let edits = v.count("/apply/local_edits_standing");
    if edits > 0 {
        let first = v.list("/apply/local_edits").next().map_or("", |e| e.text("/path")).to_owned();
        say(
            "edits",
            format!(
                "{edits} changes by others stand in this follower's directory, like '{first}'; undo them, or have \
                 `towline resync` put them right, and look who writes there: an application may run on this directory"
            ),
        );
    }
    let halted: Vec<&str> =
        v.list("/followers").filter(|f| f.flag("/halted")).map(|f| f.text("/name")).collect();
    if !halted.is_empty() {
        let text = format!(
            "these followers take log but show nothing new until somebody helps, diverged or changed by others: {}; see \
             `towline status` there",
            halted.join(", ")
        );
        say("follower-help", text);
    }
    let inexact = v.text("/apply/inexact");
    if !inexact.is_empty() {
        say("inexact", inexact.to_owned());
    }
    out
}

fn archive(v: View<'_>, say: &mut impl FnMut(&'static str, String)) {
    let error = v.text("/archive/error");
    if !error.is_empty() {
        let help = if v.flag("/archive/needs_help") { "NEEDS HELP" } else { "tried again by itself" };
        say("archive-failing", format!("archiving fails, {help}: {error}"));
    }
    let gaps = v.count("/archive/gaps");
    if gaps > 0 {
        let newest = v.list("/archive/gap").last();
        let range = newest
            .map_or_else(String::new, |g| format!(", the newest {} to {}", g.text("/from"), g.text("/to")));
        let text = format!(
            "the archive has {gaps} gaps{range}: take a new base backup; `towline archive list` shows what can be restored"
        );
        say("archive-gap", text);
    }
}

/// Who leads apart from this leader, in words; `None` when nobody does.
#[must_use]
pub fn split(v: View<'_>) -> Option<String> {
    let others: Vec<String> = v
        .list("/rivals")
        .map(|r| {
            let at = if r.has("/address") { format!(" at {}", r.text("/address")) } else { String::new() };
            format!(
                "'{}'{at} on timeline {} (line {})",
                r.text("/name"),
                r.count("/timeline"),
                r.text("/line")
            )
        })
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "SPLIT, two nodes lead apart from each other: this one and {}; stop the application of one of them, and `towline promote \
             --force` on the one that is to lead",
            others.join(", ")
        )
    })
}

/// What waits for an exact cut, in words; `None` when nothing does.
#[must_use]
pub fn waiting(v: View<'_>) -> Option<String> {
    let waiting = v.count("/cuts/waiting_bytes");
    (v.text("/cuts/newest") == "file").then(|| {
        let age = v.number("/cuts/exact_age").unwrap_or_default();
        format!("{} of log wait for an exact cut, for {}", bytes(waiting), span(age))
    })
}
