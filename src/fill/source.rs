//! The sending side of a first copy: the snapshot, then contents as they are asked for.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::CopySource;
use super::read::{Packet, read_batches};
use crate::checkpoint;
use crate::codec::Put;
use crate::error::{Error, ErrorKind, Result};
use crate::log::Log;
use crate::net::{self, MessageReader, MessageWriter};
use crate::position::{FileId, Lsn};
use crate::wire::{Kind, Message, Range, SNAPSHOT_PIECE, begin, finish};

/// Threads that read contents, for each follower that is filled.
const LANES: usize = 2;
/// Requests that wait for one of these threads; a follower keeps fewer outstanding.
const REQUESTS: usize = 8;
/// Messages of content read but not yet sent, about a quarter MiB each.
const MESSAGES: usize = 32;
/// Longest wait for the commit of a snapshot to be durable.
const DURABLE: Duration = Duration::from_secs(60);
/// Longest wait for a follower to close the connection after a copy.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a first copy is served with.
pub struct Serving {
    /// Where it is read from.
    pub source: Arc<dyn CopySource>,
    /// The log that follows it; its directory also holds the snapshot while it is sent.
    pub log: Log,
    /// A sign of life is sent after this much time without any other message.
    pub keepalive: Duration,
    /// The follower holds the snapshot already.
    pub resume: bool,
}

/// Makes signs of life.
pub(super) type Alive<'a> = dyn Fn() -> Message + Sync + 'a;
/// Is told of files and bytes sent.
pub(super) type Sent<'a> = dyn Fn(u64, u64) + Sync + 'a;

/// Serves a first copy to its end. `asked` is called once the follower holds the snapshot for good, and goes on from it
/// whatever happens.
///
/// # Errors
/// The connection's, the peer's against the protocol, or this node's own while reading.
pub async fn serve<R, W>(
    reader: &mut MessageReader<R>,
    writer: &mut MessageWriter<W>,
    serving: Serving,
    alive: &Alive<'_>,
    asked: &(dyn Fn() + Sync),
    sent: &Sent<'_>,
) -> Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut out = Outgoing { writer, every: serving.keepalive, last: None, alive };
    if !serving.resume {
        send_snapshot(&mut out, &serving).await?;
    }
    let (lanes, packets) = start_lanes(&serving.source);
    let ((), (files, bytes)) =
        tokio::try_join!(hear(reader, lanes, asked), send_contents(&mut out, packets, sent))?;
    let source = Arc::clone(&serving.source);
    let end = out.while_waiting(blocking(move || source.barrier())).await?;
    out.send(&Message::FillEnd { end }.encode()).await?;
    tracing::info!("first copy sent: {files} files, {bytes} bytes; complete once replayed to {end}");
    // The follower makes the copy durable and leaves; what it still says on the way is of no interest.
    let leaving = async { while let Ok(Some(_)) = reader.next().await {} };
    let _ = tokio::time::timeout(FAREWELL, leaving).await;
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
}

/// The sending half with its signs of life.
struct Outgoing<'a, W> {
    writer: &'a mut MessageWriter<W>,
    every: Duration,
    last: Option<Instant>,
    alive: &'a Alive<'a>,
}

impl<W: AsyncWrite + Unpin> Outgoing<'_, W> {
    fn due(&self) -> Instant {
        self.last.map_or_else(Instant::now, |last| last + self.every)
    }

    async fn alive(&mut self) -> Result<()> {
        self.last = Some(Instant::now());
        self.writer.send(&(self.alive)()).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.due() <= Instant::now() {
            self.alive().await?;
        }
        self.writer.send_encoded(bytes).await
    }

    /// Awaits `work` and shows signs of life meanwhile.
    async fn while_waiting<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep_until(self.due()) => {}
            }
            self.alive().await?;
        }
    }
}

async fn send_snapshot<W: AsyncWrite + Unpin>(out: &mut Outgoing<'_, W>, serving: &Serving) -> Result<()> {
    let (source, log) = (Arc::clone(&serving.source), serving.log.clone());
    let (mut file, lsn) = out.while_waiting(blocking(move || encode_snapshot(&*source, &log))).await?;
    let (mut hash, mut offset) = (Sha256::new(), 0_u64);
    loop {
        let mut message = begin(Kind::SnapshotData, 8 + SNAPSHOT_PIECE);
        message.put_u64(offset);
        let head = message.len();
        // Just written by this node: in memory, so that no thread is changed for it.
        let mut piece = Read::by_ref(&mut file).take(SNAPSHOT_PIECE as u64);
        piece
            .read_to_end(&mut message)
            .map_err(|e| Error::io("read the snapshot in", serving.log.dir(), e))?;
        if message.len() == head {
            break;
        }
        hash.update(&message[head..]);
        offset += (message.len() - head) as u64;
        out.send(&finish(message)).await?;
    }
    tracing::info!("first copy begins: snapshot at {lsn}, {offset} bytes");
    out.send(&Message::SnapshotEnd { lsn, len: offset, sha256: hash.finalize().into() }.encode()).await
}

/// Encodes the catalog aside, so that its lock is not held while a slow line takes it.
///
/// A follower must not hold what a crash could still take from this node: the commit is awaited in its log.
fn encode_snapshot(source: &dyn CopySource, log: &Log) -> Result<(File, Lsn)> {
    let scratch = log.dir();
    let file = tempfile::tempfile_in(scratch).map_err(|e| Error::io("make a file in", scratch, e))?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    let lsn = encode_between_commits(source, &mut out)?;
    if !log.wait_durable(lsn, DURABLE)? {
        let text = "the log was not fsynced in time for a snapshot: the disk of this node's state directory is slow or \
                    fails; the follower asks again";
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    let mut file = out.into_inner().map_err(|e| Error::io("write a snapshot in", scratch, e.into_error()))?;
    file.seek(SeekFrom::Start(0)).map_err(|e| Error::io("read a snapshot in", scratch, e))?;
    Ok((file, lsn))
}

fn encode_between_commits(source: &dyn CopySource, out: &mut BufWriter<File>) -> Result<Lsn> {
    let mut result = Err(Error::new(ErrorKind::Unavailable, "the catalog was not shown"));
    // Nobody waits while it is encoded.
    source.settled(&mut |catalog| {
        result = catalog.freeze();
    });
    let frozen = result?;
    checkpoint::encode_snapshot(&frozen, out).map(|()| frozen.lsn)
}

/// A follower's wish.
pub(super) struct Request {
    pub(super) batch: u32,
    /// Percent of its time that it waited for bytes lately.
    pub(super) starved: u8,
    pub(super) what: Wanted,
}

/// What is wished for.
pub(super) enum Wanted {
    /// Whole files.
    Files(Vec<FileId>),
    /// What differs in ranges of files.
    Ranges(Vec<Range>),
}

/// Starts the threads that read. They end when the requests do, or nobody takes their packets.
fn start_lanes(source: &Arc<dyn CopySource>) -> (Vec<mpsc::Sender<Request>>, mpsc::Receiver<Result<Packet>>) {
    let (packets, queue) = mpsc::channel(MESSAGES);
    let adaptive = Arc::default();
    let lanes = (0..LANES).map(|_| {
        let (requests, wishes) = mpsc::channel(REQUESTS);
        let (source, packets, adaptive) = (Arc::clone(source), packets.clone(), Arc::clone(&adaptive));
        tokio::task::spawn_blocking(move || {
            if let Err(e) = read_batches(&source, wishes, &packets, adaptive) {
                // Nobody listens when the connection is gone; then the error does not matter either.
                let _ = packets.blocking_send(Err(e));
            }
        });
        requests
    });
    (lanes.collect(), queue)
}

fn pass_on(lanes: &[mpsc::Sender<Request>], request: Request) -> Result<()> {
    let lane = &lanes[request.batch as usize % lanes.len()];
    lane.try_send(request).map_err(|_| {
        let text = format!("the follower asked for more than {REQUESTS} batches at once");
        Error::new(ErrorKind::Corrupt, text)
    })
}

/// Takes requests until the follower has all it wants.
async fn hear<R: AsyncRead + Unpin>(
    reader: &mut MessageReader<R>,
    lanes: Vec<mpsc::Sender<Request>>,
    asked: &(dyn Fn() + Sync),
) -> Result<()> {
    loop {
        let message = reader.next().await?;
        if matches!(
            message,
            Some(Message::FillRequest { .. } | Message::RangeRequest { .. } | Message::FillDone)
        ) {
            asked();
        }
        match message {
            Some(Message::FillRequest { batch, starved, ids }) => {
                pass_on(&lanes, Request { batch, starved, what: Wanted::Files(ids) })?;
            }
            Some(Message::RangeRequest { batch, starved, ranges }) => {
                pass_on(&lanes, Request { batch, starved, what: Wanted::Ranges(ranges) })?;
            }
            Some(Message::FillDone) => return Ok(()),
            Some(Message::Ack(_)) => {}
            Some(Message::Goodbye { reason, .. }) => {
                let text = format!("the follower broke its first copy off: {reason}");
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            Some(other) => return Err(net::unexpected(&other)),
            None => {
                let text = "the follower closed the connection during its first copy";
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
        }
    }
}

/// Sends what the threads read, until they have ended.
async fn send_contents<W: AsyncWrite + Unpin>(
    out: &mut Outgoing<'_, W>,
    mut packets: mpsc::Receiver<Result<Packet>>,
    sent: &Sent<'_>,
) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    loop {
        let packet = tokio::select! {
            packet = packets.recv() => packet,
            () = tokio::time::sleep_until(out.due()) => {
                out.alive().await?;
                continue;
            }
        };
        let Some(packet) = packet.transpose()? else { return Ok((files, bytes)) };
        out.send(&packet.message).await?;
        files += packet.files;
        bytes += packet.bytes;
        sent(packet.files, packet.bytes);
    }
}
