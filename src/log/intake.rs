//! A follower's way in: received bytes become checked runs of whole structures.

use super::LogOptions;
use super::recover::Recovered;
use crate::error::{Error, ErrorKind, Result};
use crate::position::{Lsn, SegmentNo};
use crate::segment::{Fault, Item, Marks, Parser, Step, flags};

/// Checked whole structures of one segment, and what the log is after them.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) segment: SegmentNo,
    /// Its place in the file.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) end: Lsn,
    pub(super) marks: Marks,
    pub(super) records: u64,
    pub(super) commits: u64,
    /// Whether a change set ends in it.
    pub(super) ends: bool,
    /// The SHA-256 of the trailer at its end, if there is one.
    pub(super) trailer: Option<[u8; 32]>,
}

/// The state of what was received.
#[derive(Debug)]
pub(super) struct Intake {
    options: LogOptions,
    /// The segment that is being received; `None` between two.
    parser: Option<Parser>,
    /// The segment that comes next when there is no parser; `None` in an empty log.
    next: Option<SegmentNo>,
    /// What the next header must carry on.
    chain: Option<([u8; 32], Marks)>,
    /// The beginning of a structure.
    pending: Vec<u8>,
}

impl Intake {
    pub(super) fn new(options: &LogOptions, found: &Recovered) -> Self {
        let chain = (found.prev_sha != [0; 32]).then_some((found.prev_sha, found.marks));
        let parser = found.current.as_ref().map(|file| {
            Parser::resume(
                (options.system, options.timeline, file.segment()),
                (file.len(), file.end),
                file.marks,
                (file.records, file.commits),
            )
        });
        let next = (found.tail.offset > 0).then(|| found.tail.segment.next());
        Self { options: options.clone(), parser, next, chain, pending: Vec::new() }
    }

    /// Forgets what is incomplete; returns where the next bytes begin.
    pub(super) fn restart(&mut self) -> (SegmentNo, u64) {
        self.pending = Vec::new();
        match (&self.parser, self.next) {
            (Some(parser), _) => (parser.segment(), parser.offset()),
            (None, next) => (next.unwrap_or_default(), 0),
        }
    }

    /// Takes received bytes. The outer error: they don't continue, nothing is taken. Otherwise the
    /// run of what is whole and good, and the verdict on what comes after it.
    pub(super) fn take(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(Option<Run>, Result<()>)> {
        let mut parser = self.expect(segment, offset)?;
        let begins = parser.offset();
        let mut buf = std::mem::take(&mut self.pending);
        buf.extend_from_slice(bytes);
        let (mut at, mut ends, mut trailer) = (0, false, None);
        let verdict = loop {
            match parser.next(&buf[at..]) {
                Step::Item(item) => {
                    if let Err(fault) = self.chained(&item) {
                        break Err(fault);
                    }
                    at += item.stored();
                    match item {
                        Item::Frame(f) => ends |= f.flags & flags::ENDS != 0,
                        Item::Trailer(t) => trailer = Some(t.sha),
                        Item::Header(_) => {}
                    }
                }
                Step::More(_) => break Ok(()),
                Step::Zeros => break Err(Fault::Magic),
                Step::Bad(fault) => break Err(fault),
            }
        };
        let verdict = verdict.map_err(|fault| {
            let place = format!("received segment {:X} is bad at byte {}", segment.0, parser.offset());
            Error::new(ErrorKind::Corrupt, format!("{place}: {fault}"))
        });
        // A header that does not continue the chain was taken by the parser, but is not ours.
        let taken = at > 0;
        let run = taken.then(|| Run {
            segment,
            offset: begins,
            bytes: Vec::new(),
            end: parser.lsn(),
            marks: parser.marks(),
            records: parser.records(),
            commits: parser.commits(),
            ends,
            trailer,
        });
        if verdict.is_ok() {
            self.pending = if taken { buf[at..].to_vec() } else { std::mem::take(&mut buf) };
        }
        if let Some(sha) = trailer {
            self.chain = Some((sha, parser.marks()));
            self.next = Some(segment.next());
            self.parser = None;
        } else if taken {
            self.parser = Some(parser);
        }
        buf.truncate(at);
        Ok((run.map(|run| Run { bytes: buf, ..run }), verdict))
    }

    fn expect(&self, segment: SegmentNo, offset: u64) -> Result<Parser> {
        let held = self.pending.len() as u64;
        let (parser, wanted) = match (&self.parser, self.next) {
            (Some(p), _) => (p.clone(), (p.segment(), p.offset() + held)),
            (None, next) => {
                let next = next.unwrap_or(segment);
                (Parser::new(self.options.system, self.options.timeline, next), (next, held))
            }
        };
        if wanted == (segment, offset) {
            return Ok(parser);
        }
        let message = format!(
            "received bytes of segment {:X} from {offset}, but segment {:X} from {} comes next",
            segment.0, wanted.0.0, wanted.1
        );
        Err(Error::new(ErrorKind::Corrupt, message))
    }

    fn chained(&self, item: &Item) -> std::result::Result<(), Fault> {
        match (item, &self.chain) {
            (Item::Header(h), Some((sha, marks))) if h.prev_sha != *sha || h.marks != *marks => {
                Err(Fault::Chain)
            }
            _ => Ok(()),
        }
    }
}
