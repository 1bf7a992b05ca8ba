//! The stored bytes of the log as messages, piece by piece. Followers that are equally far share them: what one sender
//! has read, encoded and summed, the others find among the [`Recent`] ones and only hand to their sockets.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ServeContext;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::log::{Ahead, StoredReader, Tail};
use crate::position::{Lsn, SegmentNo, TimelineId};
use crate::wire;

/// Stored bytes read and sent at once: little is lost when a line breaks, and both ends work side by side.
const PIECE: usize = 256 << 10;
/// Pieces kept for other senders: 8 MiB. A follower further behind than that reads for itself.
const KEPT: usize = 32;

/// Stored bytes of one segment's file, encoded as a message.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) segment: SegmentNo,
    offset: u64,
    len: usize,
    pub(super) message: Vec<u8>,
}

/// How many bytes from `offset` on are one piece, when `ahead` may be read. Pieces end at the same places whoever reads
/// them, so that followers that began at different ones soon take the same.
fn cut(offset: u64, ahead: u64) -> usize {
    let to_cut = PIECE - usize::try_from(offset % PIECE as u64).unwrap_or(0);
    usize::try_from(ahead).map_or(to_cut, |ahead| ahead.min(to_cut))
}

impl Piece {
    /// Whether a sender at this position of a log that ends at `tail` takes it. One that was cut short when the log
    /// ended there is left aside once there is more than twice as much: many small messages cost more than a read.
    fn serves(&self, segment: SegmentNo, offset: u64, tail: &Tail) -> bool {
        let ahead = if segment == tail.segment { tail.offset.saturating_sub(offset) } else { u64::MAX };
        let at = self.segment == segment && self.offset == offset && segment <= tail.segment;
        at && self.len as u64 <= ahead && 2 * self.len >= cut(offset, ahead)
    }
}

/// What was read of a log last, by any sender.
#[derive(Debug, Default)]
pub struct Recent {
    pieces: Mutex<VecDeque<Arc<Piece>>>,
    senders: AtomicUsize,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Piece>>> {
        // Each critical section leaves whole pieces.
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, segment: SegmentNo, offset: u64, tail: &Tail) -> Option<Arc<Piece>> {
        self.lock().iter().rev().find(|p| p.serves(segment, offset, tail)).cloned()
    }

    /// Keeps a piece as long as others may want it.
    fn keep(&self, piece: &Arc<Piece>) {
        self.lock().push_back(Arc::clone(piece));
    }

    /// Memory for the next piece: that of one which is not kept any more, if nobody sends it.
    fn buffer(&self) -> Vec<u8> {
        // A sender that is alone keeps one, so as to have the same memory again.
        let most = if self.senders.load(Ordering::Relaxed) > 1 { KEPT } else { 1 };
        let mut pieces = self.lock();
        let mut buffer = Vec::new();
        while pieces.len() >= most {
            let oldest = pieces.pop_front().and_then(Arc::into_inner);
            buffer = oldest.map_or(buffer, |piece| piece.message);
        }
        buffer
    }

    /// Gives the memory back.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

/// The pieces that one sender sends.
pub(super) struct Pieces {
    /// `None`: a thread has it, and never gave it back.
    reader: Option<StoredReader>,
    recent: Arc<Recent>,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.recent.senders.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pieces {
    /// From byte `offset` of the file of `segment` on.
    pub(super) fn new(context: &ServeContext, segment: SegmentNo, offset: u64) -> Self {
        Self::of((context.log.dir(), context.history.timeline()), (segment, offset), &context.recent)
    }

    fn of(
        (dir, timeline): (&Path, TimelineId),
        (segment, offset): (SegmentNo, u64),
        recent: &Arc<Recent>,
    ) -> Self {
        recent.senders.fetch_add(1, Ordering::Relaxed);
        let reader = StoredReader::new(dir, timeline, segment, offset);
        Self { reader: Some(reader), recent: Arc::clone(recent) }
    }

    /// The next piece of a log that ends at `tail`; `None` at its end.
    pub(super) async fn next(&mut self, tail: &Tail) -> Result<Option<Arc<Piece>>> {
        let lost = || Error::new(ErrorKind::Io, "cannot read the log: its reader was lost");
        let mut reader = self.reader.take().ok_or_else(lost)?;
        let (segment, offset) = reader.position();
        // The segment where the follower begins may be yet to be written.
        if tail.end == Lsn::ZERO || (tail.segment < segment && offset == 0) {
            self.reader = Some(reader);
            return Ok(None);
        }
        if let Some(piece) = self.recent.find(segment, offset, tail) {
            reader.advance(piece.len as u64);
            self.reader = Some(reader);
            return Ok(Some(piece));
        }
        let (tail, buffer) = (*tail, self.recent.buffer());
        // What was just written is in memory, and a change of threads would cost more than to read it.
        let near = segment.next() >= tail.segment;
        let quick = if near {
            read(&mut reader, &tail, buffer, StoredReader::read_cached)?
        } else {
            Look::Disk(buffer)
        };
        let look = match quick {
            Look::Disk(buffer) => {
                let wait = move || {
                    let look = read(&mut reader, &tail, buffer, StoredReader::read);
                    (reader, look)
                };
                let joined = tokio::task::spawn_blocking(wait).await;
                let joined = joined.map_err(|e| Error::new(ErrorKind::Io, e.to_string()));
                let look;
                (reader, look) = joined.context(|| "cannot read the log")?;
                look?
            }
            look => look,
        };
        self.reader = Some(reader);
        let Look::Piece(piece) = look else { return Ok(None) };
        self.recent.keep(&piece);
        Ok(Some(piece))
    }
}

/// What came of looking for the next piece.
enum Look {
    Piece(Arc<Piece>),
    /// It has to be waited for.
    Disk(Vec<u8>),
    End,
}

/// Reads the next piece into `buffer`; `how` says false when that would take a while.
fn read(
    reader: &mut StoredReader,
    tail: &Tail,
    buffer: Vec<u8>,
    how: fn(&mut StoredReader, &mut [u8]) -> Result<bool>,
) -> Result<Look> {
    let Some(Ahead { segment, offset, len }) = reader.ahead(tail)? else { return Ok(Look::End) };
    let len = cut(offset, len);
    let mut whole = true;
    let message = wire::log_message(buffer, (segment, offset), len, |bytes| {
        whole = how(reader, bytes)?;
        Ok::<(), Error>(())
    })?;
    if !whole {
        return Ok(Look::Disk(message));
    }
    reader.advance(len as u64);
    Ok(Look::Piece(Arc::new(Piece { segment, offset, len, message })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(segment: u64, offset: u64) -> Tail {
        Tail { end: Lsn::FIRST, segment: SegmentNo(segment), offset, ..Tail::default() }
    }

    fn piece(segment: u64, offset: u64, len: usize) -> Piece {
        Piece { segment: SegmentNo(segment), offset, len, message: Vec::new() }
    }

    #[test]
    fn pieces_end_at_the_same_places_wherever_they_begin() {
        let size = PIECE as u64;
        for (offset, ahead, len) in [
            (0, 10, 10),
            (0, 10 * size, PIECE),
            (100, 10 * size, PIECE - 100),
            (size - 1, size, 1),
            (3 * size, 2 * size, PIECE),
            (7, u64::MAX, PIECE - 7),
        ] {
            assert_eq!(cut(offset, ahead), len, "{offset} {ahead}");
        }
    }

    #[test]
    fn a_piece_serves_those_who_are_there_as_far_as_they_know_the_log() {
        let serves = |p: &Piece, offset, t: Tail| p.serves(SegmentNo(2), offset, &t);
        let p = piece(2, 100, 50);
        assert!(serves(&p, 100, tail(2, 150)) && serves(&p, 100, tail(2, 200)));
        assert!(!serves(&p, 100, tail(2, 149)), "beyond the end that this sender knows");
        assert!(!serves(&p, 100, tail(2, 201)), "more than twice as much is there");
        assert!(!serves(&p, 100, tail(3, 0)), "the segment has ended since");
        assert!(!serves(&p, 99, tail(2, 150)) && !serves(&p, 101, tail(2, 151)), "another offset");
        assert!(!serves(&piece(3, 100, 50), 100, tail(3, 150)), "another segment");
        let full = piece(2, 0, PIECE);
        assert!(serves(&full, 0, tail(2, 1 << 30)) && serves(&full, 0, tail(9, 0)));
        assert!(!serves(&full, 0, tail(1, 1 << 30)));
    }

    #[tokio::test]
    async fn senders_that_are_equally_far_share_what_was_read_and_memory_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..40 * PIECE + 9).map(|i| (i / 7 % 251) as u8).collect();
        let file = crate::segment::file_name(TimelineId::FIRST, SegmentNo(1), true);
        std::fs::write(dir.path().join(file), &bytes).unwrap();
        let end = tail(1, bytes.len() as u64);
        let recent = Arc::new(Recent::default());
        let sender = |offset| Pieces::of((dir.path(), TimelineId::FIRST), (SegmentNo(1), offset), &recent);
        let (mut one, mut other, mut late) = (sender(0), sender(1000), sender(0));
        let mut count = 0;
        let mut sent = Vec::new();
        while let Some(first) = one.next(&end).await.unwrap() {
            let second = other.next(&end).await.unwrap().unwrap();
            assert_eq!(Arc::ptr_eq(&first, &second), count > 0, "they meet after the first cut");
            let (message, _) = wire::Message::decode(&first.message).unwrap();
            let wire::Message::Log { segment: SegmentNo(1), offset, bytes: body } = message else { panic!() };
            assert_eq!(offset, sent.len() as u64);
            sent.extend_from_slice(&body);
            count += 1;
            assert!(recent.lock().len() <= KEPT + 1);
        }
        assert!(sent == bytes && count == 41 && other.next(&end).await.unwrap().is_none());
        // One that comes later reads for itself what is kept no more.
        let mut sent = Vec::new();
        while let Some(piece) = late.next(&end).await.unwrap() {
            let (message, _) = wire::Message::decode(&piece.message).unwrap();
            let wire::Message::Log { bytes: body, .. } = message else { panic!() };
            sent.extend_from_slice(&body);
        }
        assert!(sent == bytes);
        drop((other, late));
        drop(recent.buffer());
        assert!(recent.lock().is_empty(), "a sender that is alone keeps none but its own");
        recent.clear();
    }
}
