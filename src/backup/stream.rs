//! A copy that is not replayed here: contents go to a taker as they come, then the log is collected.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::replay::{Intake, Span};
use super::source::{blocking, stopped, while_there};
use super::{Order, Phase, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::fill::{self, FillContext, Taken, Taker};
use crate::log;
use crate::manifest::{self, Form, Manifest, Range};
use crate::net::{Retry, wall_clock};
use crate::position::{Cut, Lsn, SegmentNo, SystemId, TimelineId};
use crate::segment;
use crate::state::{Control, Role, StateDir};
use crate::sys::Root;
use crate::wire::Purpose;

/// How a stream is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// By zstd at this level.
    Zstd(i32),
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            format!("'{text}' is no compression; write none, zstd, or zstd:LEVEL with a level from 1 to 19")
        };
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "zstd" => Ok(Self::Zstd(3)),
            Some(("zstd", level)) => {
                let level = level.parse().ok().filter(|l| (1..=19).contains(l) && !level.starts_with('+'));
                level.map(Self::Zstd).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// Where a stream goes.
pub(super) enum Output<W: Write> {
    Plain(W),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Output<W> {
    pub(super) fn new(out: W, compression: Compression) -> io::Result<Self> {
        let Compression::Zstd(level) = compression else { return Ok(Self::Plain(out)) };
        let mut encoder = zstd::Encoder::new(out, level)?;
        encoder.include_checksum(true)?;
        Ok(Self::Zstd(Box::new(encoder)))
    }

    /// Writes what is left.
    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(mut out) => out.flush(),
            Self::Zstd(encoder) => encoder.finish()?.flush(),
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(buf),
            Self::Zstd(encoder) => encoder.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// The end of a backup that carries its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub(super) lsn: Lsn,
    pub(super) exact: bool,
    pub(super) time: i64,
    /// The log that is there reaches so far; `start` for none.
    pub(super) log: Lsn,
}

/// A copy, and its log in the state directory.
pub(super) struct Copied<T> {
    pub(super) taken: Taken<T>,
    pub(super) end: End,
    pub(super) state: Arc<StateDir>,
}

/// Takes contents and log. `work` is an empty directory.
pub(super) async fn copy<T: Taker>(
    order: &Order,
    work: &Path,
    taker: impl FnOnce(&StateDir) -> Result<T> + Send + 'static,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Copied<T>> {
    let (access, upstream) = (&order.access, order.access.upstream());
    let (dir, name) = (work.to_owned(), access.name.clone());
    let (state, root, taker) = blocking(move || {
        let state = StateDir::open_or_create(&dir)?;
        state.persist(Control::new(SystemId::NONE, Role::Follower, &name, &dir))?;
        let root = Root::open(&dir).map_err(|e| Error::io("open", &dir, e))?;
        let taker = taker(&state)?;
        Ok((Arc::new(state), Arc::new(root), taker))
    })
    .await?;
    let context = FillContext {
        purpose: Purpose::Backup,
        sources: access.sources(),
        name: access.name.clone(),
        root,
        state: Arc::clone(&state),
        peer_timeout: access.peer_timeout,
        status: Arc::clone(&upstream),
        order: None,
        report: Arc::default(),
        sums: None,
    };
    let copying = cancel.child_token();
    let taking = async {
        let mut retry = Retry::new(&context.sources, &context.status, &copying);
        let opened = loop {
            let target = retry.begin(0);
            let opened = tokio::select! {
                () = copying.cancelled() => return Err(stopped()),
                opened = fill::open(&context, target) => opened,
            };
            match opened {
                Ok(opened) => break opened,
                Err(end) => {
                    if !retry.pause(end, 0).await? {
                        return Err(stopped());
                    }
                }
            }
        };
        tokio::select! {
            () = copying.cancelled() => Err(stopped()),
            // What has gone out can't be taken back: there is no second attempt.
            taken = opened.take(&context, taker) => taken.map_err(crate::net::End::into_error),
        }
    };
    let taken = while_there(access, &upstream, &copying, taking).await?;
    let (system, timeline, history) = (taken.system, taken.timeline, taken.history.clone());
    let changing = Arc::clone(&state);
    blocking(move || {
        changing.keep_history(&history)?;
        changing.change(|c| (c.system, c.timeline) = (system, timeline))
    })
    .await?;
    progress.enters(Phase::Log, 0, 0);
    let intake = Intake { access, upstream: &upstream, state: &state, exact_timeout: order.exact_timeout };
    let end = end(&intake, &taken, cancel).await?;
    pass("backup::collected")?;
    Ok(Copied { taken, end, state })
}

/// A place where tests kill.
pub(super) fn pass(point: &'static str) -> Result<()> {
    failpoint::pass(point).map_err(|e| Error::from(e).wrap("cannot make the backup"))
}

/// Collects the log, if any is needed.
async fn end<T>(intake: &Intake<'_>, taken: &Taken<T>, cancel: &CancellationToken) -> Result<End> {
    let catalog = &taken.catalog;
    let start = catalog.lsn();
    let exact = catalog.cut() == Cut::Exact;
    if taken.end <= start && exact {
        return Ok(End { lsn: start, exact, time: catalog.time(), log: start });
    }
    let tail = intake.collect(Span { start, end: taken.end }, cancel).await?;
    if tail.commit <= start {
        return Ok(End { lsn: start, exact, time: catalog.time(), log: start });
    }
    let exact = tail.exact >= taken.end;
    let (lsn, time) = if exact { (tail.exact, tail.exact_time) } else { (tail.commit, tail.commit_time) };
    Ok(End { lsn, exact, time, log: tail.end })
}

/// The file in the state directory that becomes the part with the history of this timeline: name and path. That of the first
/// one has none.
pub(super) fn history(state: &StateDir, timeline: TimelineId) -> Option<(String, std::path::PathBuf)> {
    let name = crate::history::file_name(timeline);
    (timeline != TimelineId::FIRST).then(|| (name.clone(), state.path().join(name)))
}

/// Names of the segments in the state directory, in order, with their paths.
pub(super) fn segments(
    state: &StateDir,
    timeline: TimelineId,
    end: &End,
    start: Lsn,
) -> Result<Vec<(String, std::path::PathBuf)>> {
    if end.log == start {
        return Ok(Vec::new());
    }
    let stored = log::stored(&state.log(), timeline)?;
    // Where the log ends with a segment, the next one may have been begun: it holds nothing yet.
    let each = stored.into_iter().filter(|s| s.segment.start() < end.log).map(|s| {
        let name = segment::file_name(timeline, s.segment, !s.sealed);
        (format!("{}/{name}", manifest::LOG), state.log().join(name))
    });
    Ok(each.collect())
}

/// The ranges of log that a backup carries: from the beginning of its first segment on.
pub(super) fn ranges(timeline: TimelineId, end: &End, start: Lsn) -> Vec<Range> {
    if end.log == start {
        return Vec::new();
    }
    let first: SegmentNo = start.segment();
    vec![Range { timeline, start: first.start(), end: end.log }]
}

/// A manifest without parts and files.
pub(super) fn manifest_of<T>(form: Form, label: &str, taken: &Taken<T>, end: &End) -> Manifest {
    Manifest {
        form,
        label: label.to_owned(),
        system: taken.system,
        timeline: taken.timeline,
        start: taken.catalog.lsn(),
        end: end.lsn,
        start_time: taken.catalog.time(),
        end_time: end.time,
        exact: end.exact,
        created: wall_clock(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        base: None,
        log: ranges(taken.timeline, end, taken.catalog.lsn()),
        parts: Vec::new(),
        files: Vec::new(),
    }
}

/// Standard output was refused what it was given.
pub(super) fn unwritable(e: io::Error) -> Error {
    if e.kind() == io::ErrorKind::BrokenPipe {
        return Error::new(ErrorKind::Io, "who reads the stream has closed it before its end");
    }
    Error::from(e).wrap("cannot write the stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_was_begun_behind_the_end_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&dir.path().join("state")).unwrap();
        let (timeline, first) = (TimelineId::FIRST, SegmentNo(7));
        std::fs::create_dir_all(state.log()).unwrap();
        for (segment, partial) in [(first, false), (first.next(), true)] {
            std::fs::write(state.log().join(segment::file_name(timeline, segment, partial)), "x").unwrap();
        }
        let at = |log| End { lsn: log, exact: true, time: 0, log };
        let names = |log: Lsn| -> Vec<String> {
            let found = segments(&state, timeline, &at(log), first.start()).unwrap();
            found.into_iter().map(|(name, _)| name).collect()
        };
        let (one, two) = (first.next().start(), Lsn(first.next().start().0 + 1));
        assert_eq!((names(first.start()).len(), names(one).len(), names(two).len()), (0, 1, 2));
        assert!(names(two)[1].ends_with(".partial"), "{:?}", names(two));
    }

    #[test]
    fn compressions_are_read_and_shown_and_bad_ones_are_refused_by_name() {
        for (text, shown) in [("none", "none"), ("zstd", "zstd:3"), ("zstd:19", "zstd:19")] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), shown);
        }
        for bad in
            ["", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:x", "zstd:+3", "none:1", "zstd:3:4"]
        {
            let said = bad.parse::<Compression>().unwrap_err();
            assert!(said.contains(&format!("'{bad}'")) && said.contains("zstd:LEVEL"), "{said}");
        }
    }
}
