//! What is known of archiving: counters, what waits, what is wrong. Read by `status`, `check`, metrics and the clean-up.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::archive::Kept;
use crate::error::{Error, ErrorKind};
use crate::net::wall_clock;
use crate::position::{SegmentNo, TimelineId};
use crate::retention::Stored;
use crate::segment;

/// Most gaps that are named; of more, the newest.
const GAPS: usize = 16;

/// Log that was removed before it was archived, or is damaged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Gap {
    /// First segment.
    pub first: String,
    /// Last segment.
    pub last: String,
    /// LSN of its start and end.
    pub from: String,
    /// See `from`.
    pub to: String,
}

/// What `status` shows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the table in `status` describes the keys")]
pub struct Report {
    pub address: String,
    pub state: &'static str,
    pub archived: u64,
    pub archived_bytes: u64,
    pub failed: u64,
    pub last: Option<String>,
    pub last_time: Option<i64>,
    pub oldest_waiting: Option<String>,
    pub waiting_since: Option<i64>,
    pub waiting: u64,
    pub waiting_bytes: u64,
    pub error: Option<String>,
    pub needs_help: bool,
    pub failing_since: Option<i64>,
    pub attempts: u64,
    pub next_retry: Option<i64>,
    pub gaps: u64,
    pub gap: Vec<Gap>,
}

#[derive(Debug, Default)]
struct Inner {
    report: Report,
    /// The archive has everything before; zero while that is not known.
    unarchived: SegmentNo,
    learned: bool,
}

/// The state of archiving; empty while a node archives nothing.
#[derive(Debug, Default)]
pub struct Board {
    inner: Mutex<Option<Inner>>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Option<Inner>> {
        // A panic elsewhere does not make plain values wrong.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, f: impl FnOnce(&mut Inner)) {
        if let Some(inner) = &mut *self.lock() {
            f(inner);
        }
    }

    /// Archiving is to begin: from now on all log is held until it is known what is archived.
    pub fn hold(&self, address: &str) {
        self.lock().get_or_insert_with(|| Inner {
            report: Report { address: address.to_owned(), state: "opening", ..Report::default() },
            ..Inner::default()
        });
    }

    /// Nothing is archived any more.
    pub fn clear(&self) {
        *self.lock() = None;
    }

    /// What there is to show; `None`: nothing is archived here.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.lock().as_ref().map(|i| i.report.clone())
    }

    /// The first segment that the archive has not confirmed; `None`: nothing is archived here.
    #[must_use]
    pub fn unarchived(&self) -> Option<SegmentNo> {
        self.lock().as_ref().map(|i| i.unarchived)
    }

    pub(super) fn begin(&self, address: &str) {
        self.hold(address);
        self.change(|i| {
            (i.unarchived, i.learned) = (SegmentNo(0), false);
            let r = &mut i.report;
            if r.address != address {
                *r = Report { address: address.to_owned(), ..Report::default() };
            }
            r.state = "opening";
        });
    }

    pub(super) fn learned(&self) {
        self.change(|i| i.learned = true);
    }

    pub(super) fn waiting(&self, waiting: &[Stored], since: Option<SystemTime>) {
        let ns = |t: SystemTime| {
            t.duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_nanos()).ok()).unwrap_or(0)
        };
        self.change(|i| {
            let r = &mut i.report;
            r.waiting = waiting.len() as u64;
            r.waiting_bytes = waiting.iter().fold(0, |sum, s| sum.saturating_add(s.bytes));
            r.oldest_waiting = waiting.first().map(|s| format!("{:016X}", s.segment.0));
            r.waiting_since = waiting.first().and(since).map(ns);
            if let Some(first) = waiting.first().filter(|_| i.learned) {
                i.unarchived = first.segment;
            }
        });
    }

    pub(super) fn working(&self, _next: SegmentNo) {
        self.change(|i| {
            if i.report.error.is_none() {
                i.report.state = "archiving";
            }
        });
    }

    /// Everything before `open` is archived.
    pub(super) fn idle(&self, open: SegmentNo) {
        self.change(|i| i.unarchived = open);
        self.works();
        self.change(|i| i.report.state = "idle");
    }

    pub(super) fn archived(&self, timeline: TimelineId, segment: SegmentNo, bytes: u64, kept: Kept) {
        if kept == Kept::Mended {
            tracing::warn!(
                "segment {:X} in the archive was damaged; it is replaced by the good one",
                segment.0
            );
        }
        self.works();
        self.change(|i| {
            i.unarchived = segment.next();
            let r = &mut i.report;
            r.archived += 1;
            if kept != Kept::There {
                r.archived_bytes = r.archived_bytes.saturating_add(bytes);
            }
            r.last = Some(segment::file_name(timeline, segment, false));
            r.last_time = Some(wall_clock());
        });
    }

    /// Says so if it was failing.
    fn works(&self) {
        let mut said = None;
        self.change(|i| {
            let r = &mut i.report;
            said = r.error.take().map(|_| (r.attempts, r.waiting, r.address.clone()));
            (r.needs_help, r.failing_since, r.attempts, r.next_retry) = (false, None, 0, None);
            r.state = "archiving";
        });
        if let Some((attempts, waiting, address)) = said {
            tracing::info!(
                "archiving to '{address}' works again after {attempts} failures; {waiting} segments wait"
            );
        }
    }

    pub(super) fn fail(&self, e: &Error, pause: Duration) {
        let now = wall_clock();
        let text = e.to_string();
        let mut news = None;
        self.change(|i| {
            let r = &mut i.report;
            r.failed += 1;
            r.attempts += 1;
            r.state = "failing";
            r.needs_help = !e.kind().retries();
            r.failing_since.get_or_insert(now);
            let pause = i64::try_from(pause.as_nanos()).unwrap_or(i64::MAX);
            r.next_retry = Some(now.saturating_add(pause));
            let known = r.error.replace(text.clone());
            // Words of a store may hold numbers that are others each time.
            news = (known.is_none()).then(|| (r.address.clone(), r.waiting));
        });
        if let Some((address, waiting)) = news {
            tracing::warn!(
                kind = e.kind().word(),
                "archiving to '{address}' fails: {text}; it is tried again, {waiting} segments wait and are held within \
                 max_archive_keep"
            );
        }
    }

    pub(super) fn gap(&self, timeline: TimelineId, (first, last): (SegmentNo, SegmentNo)) {
        tracing::warn!(
            "the archive has a gap: segments {:X} to {:X} of timeline {timeline} ({} to {}) were removed before they were \
             archived; a new base backup makes what comes after it restorable",
            first.0,
            last.0,
            first.start(),
            last.end()
        );
        self.note_gap(first, last);
    }

    pub(super) fn damaged(&self, timeline: TimelineId, segment: SegmentNo, e: &Error) {
        tracing::error!(
            kind = ErrorKind::Corrupt.word(),
            "segment {:X} of timeline {timeline} is not archived: {e}; the archive has a gap there",
            segment.0
        );
        self.note_gap(segment, segment);
    }

    fn note_gap(&self, first: SegmentNo, last: SegmentNo) {
        let hex = |s: SegmentNo| format!("{:016X}", s.0);
        self.change(|i| {
            let r = &mut i.report;
            r.gaps += 1;
            if r.gap.len() == GAPS {
                r.gap.remove(0);
            }
            let (from, to) = (first.start().to_string(), last.end().to_string());
            r.gap.push(Gap { first: hex(first), last: hex(last), from, to });
        });
    }
}
