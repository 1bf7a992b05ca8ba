//! A log that can't be opened for writing, as it lies there: what is certainly durable can still be read and sent.
//! Nothing is written.

use std::path::Path;

use tracing::info;

use super::recover::{self, Form, Kept, Recovered, check_sealed, list, path_of, read_all, tail_at};
use super::{LogOptions, Tail};
use crate::error::Result;
use crate::position::SegmentNo;
use crate::segment::{Item, Marks, Parser, Step};

/// The durable end. Of the open segment only what a later frame says was synced before it counts: the rest may be
/// in memory alone.
///
/// # Errors
/// As recovery: `Corrupt` when what is needed is damaged.
pub(super) fn find(o: &LogOptions) -> Result<Recovered> {
    let files = list(&o.dir, o.timeline)?;
    let sealed = files.iter().rev().find(|(_, kept)| kept.sealed()).map(|(s, kept)| (*s, *kept));
    let base = sealed.map(|(segment, kept)| check_sealed(o, segment, kept)).transpose()?;
    let (mut tail, marks) = base.as_ref().map_or((Tail::default(), Marks::default()), recover::end_of);
    let next = sealed.map_or_else(|| files.keys().next().copied(), |(s, _)| Some(s.next()));
    let open = Kept { timeline: o.timeline, form: Form::Partial };
    if let Some(segment) = next.filter(|s| files.get(s) == Some(&open)) {
        let path = path_of(o, segment, true);
        if let Some(synced) = synced_part(o, segment, &path)? {
            tail = synced;
        }
    }
    info!(end = %tail.end, "the log is read as far as it is certainly on disk");
    Ok(Recovered { current: None, created_ns: 0, prev_sha: [0; 32], tail, marks })
}

/// The end of the part of an unsealed file that its last whole frame says was synced before.
fn synced_part(o: &LogOptions, segment: SegmentNo, path: &Path) -> Result<Option<Tail>> {
    let bytes = read_all(path)?;
    let mut parser = Parser::new(o.system, o.timeline, segment);
    let (mut synced, mut ends) = (0, Vec::new());
    loop {
        let at = usize::try_from(parser.offset()).unwrap_or(usize::MAX);
        match parser.next(bytes.get(at..).unwrap_or(&[])) {
            Step::Item(Item::Frame(frame)) => {
                synced = u64::from(frame.synced);
                ends.push((parser.offset(), parser.lsn(), parser.marks()));
            }
            Step::Item(Item::Header(_)) => {}
            _ => break,
        }
    }
    let last = ends.into_iter().rev().find(|(offset, ..)| *offset <= synced);
    Ok(last.map(|(offset, lsn, marks)| tail_at(segment, offset, lsn, &marks)))
}
