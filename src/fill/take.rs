//! A first copy that is written nowhere by this module: the tree, then what was asked for, handed on as it comes.
//!
//! Who takes it says, once the tree is known, what is to be asked for and in which order. Batches are asked for in
//! that order, and their answers may come side by side: how much of them at most is a rule of [`Window`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::target::{FillContext, Hunger, hear, hello_of, receive};
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::net::{self, End, Ended, MessageReader, MessageWriter, Met, Target, Traffic, UpstreamState};
use crate::position::{FileId, Lsn, SystemId, TimelineId};
use crate::wire::{Ack, Code, Decision, Message, Range, Welcome};

/// Batches asked for but not taken yet.
const OUTSTANDING: usize = 3;
/// Content that may be on its way behind the first of them.
const BEHIND: u64 = 16 << 20;
/// Messages received but not taken yet.
const MESSAGES: usize = 16;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Whole files, at most [`BATCH_IDS`](crate::wire::BATCH_IDS).
    Files(Vec<FileId>),
    /// What differs in ranges of files.
    Ranges(Vec<Range>),
}

/// Something asked for at once, and the bytes of content that it may bring.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "said above")]
pub struct Batch {
    pub wish: Wish,
    pub bytes: u64,
}

/// Who takes what comes.
pub trait Taker: Send + 'static {
    /// The tree: what to ask for.
    fn begin(&mut self, catalog: &Arc<Catalog>) -> Result<Vec<Batch>>;

    /// Contents of a batch: a fill-data message as it came.
    fn data(&mut self, message: Message) -> Result<()>;

    /// A batch has ended. The batches that are taken, as far as no later one can be waited for instead.
    fn batch_end(&mut self, batch: u32) -> Result<Vec<u32>>;
}

/// What was taken.
#[derive(Debug)]
#[allow(missing_docs, reason = "they say what they are")]
pub struct Taken<T> {
    pub taker: T,
    pub catalog: Arc<Catalog>,
    pub system: SystemId,
    pub timeline: TimelineId,
    /// Where that and those before it branched off.
    pub history: History,
    /// Replay to here makes it whole.
    pub end: Lsn,
}

/// What is on its way.
#[derive(Debug, Default)]
struct Window(BTreeMap<u32, u64>);

impl Window {
    /// Whether a batch of so many bytes may be asked for: one alone of any size, others behind the first only as far as
    /// they can be held until it has ended.
    fn has_room(&self, bytes: u64) -> bool {
        let behind: u64 = self.0.values().skip(1).sum();
        self.0.is_empty() || self.0.len() < OUTSTANDING && behind.saturating_add(bytes) <= BEHIND
    }
}

/// A connection over which a copy can be taken.
#[derive(Debug)]
pub struct Opened {
    met: Met,
    traffic: Arc<Traffic>,
}

/// Connects, and agrees on a first copy.
pub async fn open(context: &FillContext, target: Target<'_>) -> Ended<Opened> {
    let control = context.state.set_up().map_err(End::Local)?;
    let mut hello = hello_of(context, &control);
    hello.wants = target.wants;
    let traffic = context.status.traffic();
    let trust = context.status.trust();
    let met = net::meet(target.address, trust, context.peer_timeout, &traffic, hello).await?;
    context.status.welcomed(&met.welcome, target.wants)?;
    match met.welcome.decision.clone() {
        Decision::Fill => {}
        Decision::Refuse { code, reason } => return Err(End::Refused(code, reason)),
        Decision::Resync { reason } => return Err(End::Refused(Code::Resync, reason)),
        _ => {
            let text = "the upstream decided on something that was not asked for";
            return Err(End::Lost(Error::new(ErrorKind::Corrupt, text)));
        }
    }
    context.status.connected(&met.welcome.name, UpstreamState::Filling);
    context.status.showed(met.bond.fingerprint());
    Ok(Opened { met, traffic })
}

impl Opened {
    /// Takes the copy.
    pub async fn take<T: Taker>(self, context: &FillContext, taker: T) -> Ended<Taken<T>> {
        let Met { mut reader, mut writer, welcome, mut bond } = self.met;
        tokio::select! {
            taken = taking(context, &self.traffic, (&mut reader, &mut writer), &welcome, taker) => taken,
            end = Met::revoked(&mut bond, &welcome.name) => Err(end),
        }
    }
}

async fn taking<R, W, T>(
    context: &FillContext,
    traffic: &Traffic,
    (reader, writer): (&mut MessageReader<R>, &mut MessageWriter<W>),
    welcome: &Welcome,
    mut taker: T,
) -> Ended<Taken<T>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    T: Taker,
{
    let mut received = receive(reader, context).await?;
    let system = welcome.system;
    let (mut taker, catalog, batches) = local(move || {
        let catalog = Arc::new(received.decode(system)?);
        let batches = taker.begin(&catalog)?;
        Ok((taker, catalog, batches))
    })
    .await?;
    let (messages, mut queue) = mpsc::channel(MESSAGES);
    let (said, done) = mpsc::channel(OUTSTANDING + 1);
    let working = tokio::task::spawn_blocking(move || {
        while let Some(message) = queue.blocking_recv() {
            let taken = match message {
                Message::FillData { .. } => taker.data(message).map(|()| Vec::new())?,
                Message::BatchEnd { batch } => taker.batch_end(batch)?,
                _ => break,
            };
            for batch in taken {
                // Nobody listens when the connection is gone; then the queue ends.
                let _ = said.blocking_send(batch);
            }
        }
        Ok(taker)
    });
    let moved = {
        let asking = ask(writer, context, traffic, batches, done, messages.clone());
        let hearing = hear(reader, &context.status, vec![messages]);
        tokio::try_join!(hearing, asking)
    };
    // Its queue has ended; whatever it writes to is its own until it has.
    let worked = working.await.unwrap_or_else(|e| Err(Error::new(ErrorKind::Io, e.to_string())));
    let taker =
        worked.map_err(|e| if e.kind() == ErrorKind::Corrupt { End::Lost(e) } else { End::Local(e) })?;
    let (end, ()) = moved?;
    let history = way_of(welcome)?;
    Ok(Taken { taker, catalog, system, timeline: welcome.timeline, history, end })
}

async fn local<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Ended<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|e| Err(Error::new(ErrorKind::Io, e.to_string()))).map_err(End::Local)
}

/// Asks for all batches, and ends the taker's work once they are taken. Shows signs of life all the while.
async fn ask<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    context: &FillContext,
    traffic: &Traffic,
    batches: Vec<Batch>,
    mut done: mpsc::Receiver<u32>,
    messages: mpsc::Sender<Message>,
) -> Ended<()> {
    let half = context.peer_timeout / 2;
    let (mut batches, mut window) = (batches.into_iter().peekable(), Window::default());
    let (mut next, mut hunger, mut due) = (0_u32, Hunger::new(traffic), Instant::now() + half);
    loop {
        while let Some(batch) = batches.next_if(|b| window.has_room(b.bytes)) {
            let starved = hunger.since_last(traffic);
            window.0.insert(next, batch.bytes);
            writer.send(&batch.wish.request(next, starved)).await?;
            next = next.wrapping_add(1);
        }
        if window.0.is_empty() {
            break;
        }
        tokio::select! {
            taken = done.recv() => match taken {
                Some(batch) => {
                    window.0.remove(&batch);
                }
                // The taker has failed, and says why.
                None => return Err(End::Local(Error::new(ErrorKind::Cancelled, "what came is not taken any more"))),
            },
            () = tokio::time::sleep_until(due) => {
                writer.send(&Message::Ack(Ack::default())).await?;
                due = Instant::now() + half;
            }
        }
    }
    writer.send(&Message::FillDone).await?;
    // Ends the taker's work; it listens until then.
    let _ = messages.send(Message::FillDone).await;
    Ok(())
}

impl Wish {
    fn request(self, batch: u32, starved: u8) -> Message {
        match self {
            Self::Files(ids) => Message::FillRequest { batch, starved, ids },
            Self::Ranges(ranges) => Message::RangeRequest { batch, starved, ranges },
        }
    }
}

/// The way of the upstream's log: the copy stands on it.
pub(super) fn way_of(welcome: &Welcome) -> Ended<History> {
    match &welcome.history {
        Some(history) => Ok(history.clone()),
        None if welcome.timeline == TimelineId::FIRST => Ok(History::first(welcome.system)),
        None => {
            let reason = format!(
                "the upstream is on timeline {} and does not say where that branched off",
                welcome.timeline
            );
            Err(End::Refused(Code::WrongTimeline, reason))
        }
    }
}
