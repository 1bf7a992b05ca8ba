//! A directory that holds something is made equal to what is kept: as a resync does it, with the ranges that differ answered
//! from here.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::lay::{Layout, compare, snapshot};
use super::resync::{self, Order};
use super::target::{BATCH_BYTES, FillContext, Token, finish, local};
use crate::catalog::{Catalog, block_hashes};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{End, Ended};
use crate::position::FileId;
use crate::record::BLOCK;
use crate::set::Content;
use crate::state::{FillState, LogFate};
use crate::wire::{Encoding, Message, Outcome, Range, put_item_end, put_item_head, put_item_hole};

/// Blocks read at once: 256 KiB.
const PIECE: u64 = 16;

/// It is taken over as it is; whoever asked has named it.
pub(super) fn order() -> Order {
    Order { log: LogFate::Kept, guard: None, tangled: false, adopt: true, damaged: Vec::new() }
}

/// Makes the directory equal. It goes on where an earlier attempt broke off.
pub(super) async fn work(layout: &Arc<Layout>, context: &Arc<FillContext>, token: Token) -> Ended<()> {
    let (beginning, here) = (Arc::clone(layout), Arc::clone(context));
    let (job, todo) = local(&token, move || {
        let begun = begin(&beginning, &here)?;
        resync::shape(&here, begun, false, BATCH_BYTES)
    })
    .await?;
    let (mut job, ranges) = resync::start(job, todo, context, &token);
    let (told, mut answered) = mpsc::channel::<Result<u32>>(1);
    let (answering, catalog) = (Arc::clone(layout), Arc::clone(&job.work.catalog));
    let (lanes, guard) = (job.lanes.clone(), token.clone());
    tokio::task::spawn_blocking(move || {
        let _token = guard;
        let mut answers =
            Answers { layout: &answering, catalog: &catalog, lanes, count: 0, items: Vec::new() };
        let done = answers.run(ranges).map(|()| answers.count);
        // The one who waits may have gone by another error.
        let _ = told.blocking_send(done);
    });
    let (mut done, mut all) = (0, None);
    while all != Some(done) {
        (layout.progress)(job.progress());
        tokio::select! {
            count = answered.recv(), if all.is_none() => match count {
                Some(Ok(count)) => all = Some(count),
                Some(Err(e)) if e.kind() == ErrorKind::Cancelled => return Err(job.journal_error().await),
                Some(Err(e)) => return Err(End::Local(e)),
                None => return Err(job.journal_error().await),
            },
            batch = job.batches.recv() => match batch {
                Some(Ok(_)) => done += 1,
                Some(Err(e)) if e.kind() == ErrorKind::Cancelled => return Err(job.journal_error().await),
                Some(Err(e)) => return Err(End::Local(e)),
                None => return Err(job.journal_error().await),
            },
        }
    }
    let tally = job.work.resync.as_ref().map(|r| Arc::clone(&r.tally)).unwrap_or_default();
    let catalog = finish(job).await?;
    let (layout, context) = (Arc::clone(layout), Arc::clone(context));
    local(&token, move || {
        if layout.shelf.exact() {
            compare(&layout, &catalog)?;
        }
        resync::count(&context, &catalog, &tally);
        resync::close(&context, &catalog, layout.end)
    })
    .await
}

fn begin(layout: &Layout, context: &FillContext) -> Result<resync::Begun> {
    let control = layout.state.set_up()?;
    if let FillState::Resyncing { start, .. } = control.fill
        && start == layout.start
        && let Some(left) = resync::left(&layout.state, &control, start)
    {
        return resync::go_on(context, left);
    }
    resync::begin(context, snapshot(layout)?, (layout.system, layout.timeline, None), "the backup")
}

/// Answers what the comparing threads ask for.
struct Answers<'a> {
    layout: &'a Layout,
    catalog: &'a Catalog,
    lanes: Vec<mpsc::Sender<Message>>,
    /// Answers so far, a batch each.
    count: u32,
    items: Vec<u8>,
}

impl Answers<'_> {
    fn run(&mut self, mut ranges: mpsc::Receiver<Result<Range>>) -> Result<()> {
        while let Some(range) = ranges.blocking_recv() {
            self.range(&range?)?;
            self.send_items()?;
            self.send(Message::BatchEnd { batch: self.count })?;
            self.count += 1;
        }
        Ok(())
    }

    fn send(&self, message: Message) -> Result<()> {
        let lane = self.lanes.get(self.count as usize % self.lanes.len().max(1));
        let gone = || Error::new(ErrorKind::Cancelled, "a thread of the copy has ended");
        lane.ok_or_else(gone)?.blocking_send(message).map_err(|_| gone())
    }

    fn send_items(&mut self) -> Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        let items = std::mem::take(&mut self.items);
        let raw_len = u32::try_from(items.len()).unwrap_or(0);
        self.send(Message::FillData {
            batch: self.count,
            encoding: Encoding::Raw,
            raw_len,
            bytes: items.into(),
        })
    }

    /// What of a range differs from what is there, by the hashes of that.
    fn range(&mut self, range: &Range) -> Result<()> {
        let (Some(inode), Some(path)) = (self.catalog.get(range.id), self.catalog.path(range.id)) else {
            put_item_end(&mut self.items, range.id, Outcome::Gone, 0);
            return Ok(());
        };
        let layout = self.layout;
        let Some(mut kept) = layout.shelf.file(range.id, &path)? else {
            if layout.shelf.exact() {
                let text =
                    format!("the backup is damaged: it lacks '{}'; take another one", path.escape_ascii());
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            put_item_end(&mut self.items, range.id, Outcome::Gone, 0);
            return Ok(());
        };
        let mut at = 0;
        while at < u64::from(range.blocks) {
            let n = PIECE.min(u64::from(range.blocks) - at);
            let known = range.hashes.as_ref().map(|h| {
                let from = usize::try_from(at).unwrap_or(usize::MAX);
                h.get(from..).unwrap_or_default()
            });
            self.piece(&mut *kept, range.id, (range.first + at, n), inode.size, known)
                .map_err(|e| Error::io("read", format!("{} in the backup", path.escape_ascii()), e))?;
            self.send_items()?;
            at += n;
        }
        put_item_end(&mut self.items, range.id, Outcome::Whole, inode.size);
        Ok(())
    }

    fn piece(
        &mut self,
        kept: &mut dyn Content,
        id: FileId,
        (first, count): (u64, u64),
        size: u64,
        known: Option<&[u128]>,
    ) -> std::io::Result<()> {
        let (from, to) = (first * BLOCK, ((first + count) * BLOCK).min(size));
        let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
        // What is not kept is in the log, and until then it is zero.
        let there = usize::try_from(kept.len().saturating_sub(from)).unwrap_or(usize::MAX).min(bytes.len());
        let buf = bytes.get_mut(..there).unwrap_or_default();
        if kept.read_at(buf, from)? < there {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
        }
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        let hashes = block_hashes(self.catalog.system(), id, first, &bytes);
        for (i, (hash, data)) in hashes.zip(bytes.chunks(block)).enumerate() {
            let here = known.map_or(0, |k| k.get(i).copied().unwrap_or_default());
            if hash == here {
                continue;
            }
            let at = from + (i * block) as u64;
            if hash == 0 {
                // A hole is whole blocks, the last one of a file too.
                put_item_hole(&mut self.items, id, at, (data.len() as u64).next_multiple_of(BLOCK));
            } else {
                put_item_head(&mut self.items, id, at, u32::try_from(data.len()).unwrap_or(0));
                self.items.extend_from_slice(data);
            }
        }
        Ok(())
    }
}
