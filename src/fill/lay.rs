//! A first copy whose contents are here already: what a backup keeps is laid out by the threads, the journal and the end of a
//! copy that comes from an upstream; only nobody has to be asked.

use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::equal;
use super::target::{
    self, BATCH_BYTES, Begun, FillContext, Job, Received, SNAPSHOT, Token, WRITERS, batch, close, finish,
    local, prepare, take_up,
};
use super::write::Donor;
use crate::catalog::{Catalog, Inode};
use crate::checkpoint;
use crate::disk::AtomicFile;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{End, Ended, FillProgress, Sources, Upstream};
use crate::position::{FileId, Lsn, NodeId, SystemId, TimelineId};
use crate::record::{BLOCK, Kind};
use crate::set::Content;
use crate::state::{FillState, StateDir};
use crate::sys::Root;
use crate::wire::{Encoding, Message, Outcome, Purpose, put_item_end, put_item_head};

/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// Items of one message.
const FULL: usize = 256 << 10;

/// Contents that are kept.
pub trait Shelf: Send + Sync {
    /// The catalog by which they were read, as a checkpoint.
    ///
    /// # Errors
    /// Why it can't be read.
    fn catalog(&self) -> Result<Box<dyn Read + Send>>;

    /// What is kept of a file and where it is in the tree; `None`: nothing.
    ///
    /// # Errors
    /// Why it can't be read.
    fn file(&self, id: FileId, path: &[u8]) -> Result<Option<Box<dyn Content + '_>>>;

    /// Whether the contents have to be those of the catalog.
    fn exact(&self) -> bool;
}

/// Whether a file shares its blocks with what is kept of it (FICLONE), until one of them changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cloning {
    /// Where the file system can.
    #[default]
    Auto,
    /// Never: its bytes are written.
    Copy,
    /// Always, or the command fails.
    Clone,
}

impl std::str::FromStr for Cloning {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "copy" => Ok(Self::Copy),
            "clone" => Ok(Self::Clone),
            _ => Err(format!("'{}' is no way to copy: auto, copy or clone", s.escape_debug())),
        }
    }
}

impl std::fmt::Display for Cloning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Copy => "copy",
            Self::Clone => "clone",
        })
    }
}

/// What is laid out, and where.
pub struct Layout {
    /// The data directory: empty, or holding what an earlier attempt has laid out.
    pub root: Arc<Root>,
    /// The state directory, set up as a follower's.
    pub state: Arc<StateDir>,
    /// The contents.
    pub shelf: Arc<dyn Shelf>,
    /// Whose they are.
    pub system: SystemId,
    /// The timeline of the log after them.
    pub timeline: TimelineId,
    /// The position of the catalog.
    pub start: Lsn,
    /// The directory is whole once the log is replayed to here.
    pub end: Lsn,
    /// The directory holds something, which is made equal.
    pub equalize: bool,
    /// Whether files are cloned.
    pub cloning: Cloning,
    /// Told how far it is.
    pub progress: Box<dyn Fn(FillProgress) + Send + Sync>,
}

/// Lays it out; the control file says "filled" then. It goes on where an earlier attempt broke off.
///
/// # Errors
/// `Corrupt` when what is kept is not what its catalog says; this node's disk errors; `Cancelled`.
pub async fn lay(layout: Arc<Layout>, cancel: CancellationToken) -> Result<()> {
    let sources = Sources::one("-");
    let context = Arc::new(FillContext {
        purpose: Purpose::Backup,
        status: Arc::new(Upstream::new(&sources, NodeId::NONE)),
        sources,
        name: String::new(),
        root: Arc::clone(&layout.root),
        state: Arc::clone(&layout.state),
        peer_timeout: Duration::from_secs(1),
        order: layout.equalize.then(equal::order),
        report: Arc::new(Mutex::default()),
        sums: None,
    });
    // Whatever works for it holds a token.
    let (token, mut ended) = mpsc::channel::<()>(1);
    let result = tokio::select! {
        () = cancel.cancelled() => {
            Err(End::Local(Error::new(ErrorKind::Cancelled, "stopped on request; the same command goes on")))
        }
        result = either(&layout, &context, token) => result,
    };
    ended.recv().await;
    result.map_err(|end| match end {
        End::Local(e) | End::Lost(e) => e,
        End::Refused(_, reason) => Error::new(ErrorKind::Refused, reason),
    })
}

async fn either(layout: &Arc<Layout>, context: &Arc<FillContext>, token: Token) -> Ended<()> {
    if layout.equalize {
        equal::work(layout, context, token).await
    } else {
        work(layout, context, token).await
    }
}

async fn work(layout: &Arc<Layout>, context: &Arc<FillContext>, token: Token) -> Ended<()> {
    let (layout, making) = (Arc::clone(layout), Arc::clone(context));
    let beginning = Arc::clone(&layout);
    let (mut job, mut wanted) = local(&token, move || prepare(&making, begin(&beginning, &making)?)).await?;
    lend(&layout, &mut job);
    let (mut job, _) = job.start(context, token.clone());
    let mut batches: Vec<Vec<(u32, Vec<FileId>)>> = vec![Vec::new(); WRITERS];
    let mut count = 0_u32;
    while !wanted.is_empty() {
        let ids = batch(&job.work.catalog, &mut wanted, BATCH_BYTES);
        if let Some(lane) = batches.get_mut(count as usize % WRITERS) {
            lane.push((count, ids));
        }
        count += 1;
    }
    let (fails, mut failed) = mpsc::channel::<Error>(WRITERS);
    for (batches, lane) in batches.into_iter().zip(job.lanes.clone()) {
        let (shelf, catalog) = (Arc::clone(&layout.shelf), Arc::clone(&job.work.catalog));
        let (fails, token) = (fails.clone(), token.clone());
        tokio::task::spawn_blocking(move || {
            let _token = token;
            let mut feed = Feed { shelf: &*shelf, catalog: &catalog, lane, batch: 0, items: Vec::new() };
            if let Err(e) = feed.run(batches) {
                // The one who waits may have gone by another error.
                let _ = fails.blocking_send(e);
            }
        });
    }
    drop(fails);
    let (mut left, mut feeding) = (count, true);
    while left > 0 {
        (layout.progress)(job.progress());
        tokio::select! {
            e = failed.recv(), if feeding => match e {
                Some(e) => return Err(End::Local(e)),
                None => feeding = false,
            },
            done = job.batches.recv() => match done {
                Some(Ok(_)) => left -= 1,
                Some(Err(e)) if e.kind() == ErrorKind::Cancelled => return Err(job.journal_error().await),
                Some(Err(e)) => return Err(End::Local(e)),
                None => return Err(job.journal_error().await),
            },
        }
    }
    let catalog = finish(job).await?;
    let (closing, end) = (Arc::clone(context), layout.end);
    local(&token, move || {
        if layout.shelf.exact() {
            compare(&layout, &catalog)?;
        }
        close(&closing, &catalog, end)
    })
    .await
}

/// Lets the writing threads clone what is kept as a file of its own.
fn lend(layout: &Arc<Layout>, job: &mut Job) {
    if layout.cloning == Cloning::Copy {
        return;
    }
    let (keeper, catalog) = (Arc::clone(layout), Arc::clone(&job.work.catalog));
    let lend = move |id| {
        let Some(path) = catalog.path(id) else { return Ok(None) };
        let Some(content) = keeper.shelf.file(id, &path)? else { return Ok(None) };
        let alone = content.alone().map(File::try_clone).transpose();
        alone.map_err(|e| Error::io("open", format!("{} in the backup", path.escape_ascii()), e))
    };
    // Nobody else has it yet.
    if let Some(work) = Arc::get_mut(&mut job.work) {
        let always = layout.cloning == Cloning::Clone;
        work.donor = Some(Donor { lend: Box::new(lend), always, cannot: AtomicBool::new(false) });
    }
}

/// Reads the catalog, or finds what an earlier attempt has left.
fn begin(layout: &Layout, context: &FillContext) -> Result<Begun> {
    let (state, system, start) = (&layout.state, layout.system, layout.start);
    match state.set_up()?.fill {
        FillState::Copying { start: begun } if begun == start => take_up(context, system, start),
        FillState::None => target::begin(context, snapshot(layout)?, system, layout.timeline),
        _ => {
            let text = "the state directory holds another copy; take it away and begin anew";
            Err(Error::new(ErrorKind::Refused, text))
        }
    }
}

/// The catalog by which contents were read.
pub(super) fn snapshot(layout: &Layout) -> Result<Received> {
    let mut file = AtomicFile::create(&layout.state.fill(), SNAPSHOT)?;
    let path = layout.state.fill().join(SNAPSHOT);
    std::io::copy(&mut layout.shelf.catalog()?, &mut file).map_err(|e| Error::io("write", &path, e))?;
    Ok(Received::new(file, layout.start))
}

/// What was laid out has to be what the catalog says.
pub(super) fn compare(layout: &Layout, laid: &Catalog) -> Result<()> {
    let path = layout.state.fill().join(SNAPSHOT);
    let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let known = checkpoint::decode(BufReader::new(file))?;
    let differs = |i: &Inode<'_>| {
        i.kind == Kind::File && i.hashed && laid.get(i.id).is_none_or(|l| l.content != i.content)
    };
    let mut other: Vec<Vec<u8>> =
        known.inodes().filter(differs).map(|i| known.path(i.id).unwrap_or_default()).collect();
    other.sort();
    let Some(first) = other.first() else { return Ok(()) };
    let text = format!(
        "the backup is damaged: the content of '{}' is not what its catalog says ({} such files); take another backup",
        first.escape_ascii(),
        other.len()
    );
    Err(Error::new(ErrorKind::Corrupt, text))
}

/// Reads what is kept for one lane.
struct Feed<'a> {
    shelf: &'a dyn Shelf,
    catalog: &'a Catalog,
    lane: mpsc::Sender<Message>,
    batch: u32,
    items: Vec<u8>,
}

/// The other side of a lane has failed, and says so itself.
struct Closed;

impl Feed<'_> {
    fn run(&mut self, batches: Vec<(u32, Vec<FileId>)>) -> Result<()> {
        for (batch, ids) in batches {
            self.batch = batch;
            for id in ids {
                if self.file(id)?.is_err() {
                    return Ok(());
                }
            }
            if self.flush().is_err() || self.lane.blocking_send(Message::BatchEnd { batch }).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn file(&mut self, id: FileId) -> Result<std::result::Result<(), Closed>> {
        let (Some(inode), Some(path)) = (self.catalog.get(id), self.catalog.path(id)) else {
            return Ok(Ok(()));
        };
        let Some(mut kept) = self.shelf.file(id, &path)? else {
            if self.shelf.exact() {
                let text =
                    format!("the backup is damaged: it lacks '{}'; take another one", path.escape_ascii());
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            put_item_end(&mut self.items, id, Outcome::Gone, 0);
            return Ok(self.flush_full());
        };
        let size = kept.len().min(inode.size);
        let failed = |e| Error::io("read", format!("{} in the backup", path.escape_ascii()), e);
        let mut at = 0;
        while let Some((start, end)) = kept.next_data(at, size).map_err(failed)? {
            at = (start / BLOCK * BLOCK).max(at);
            let end = end.next_multiple_of(BLOCK).min(size);
            while at < end {
                let want = usize::try_from(end - at).map_or(PIECE, |n| n.min(PIECE));
                put_item_head(&mut self.items, id, at, u32::try_from(want).unwrap_or(0));
                let from = self.items.len();
                self.items.resize(from + want, 0);
                let buf = self.items.get_mut(from..).unwrap_or_default();
                let n = kept.read_at(buf, at).map_err(failed)?;
                if n < want {
                    let e =
                        std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it is shorter than it was");
                    return Err(failed(e));
                }
                at += n as u64;
                if self.flush_full().is_err() {
                    return Ok(Err(Closed));
                }
            }
        }
        put_item_end(&mut self.items, id, Outcome::Whole, size);
        Ok(self.flush_full())
    }

    fn flush_full(&mut self) -> std::result::Result<(), Closed> {
        if self.items.len() < FULL { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> std::result::Result<(), Closed> {
        if self.items.is_empty() {
            return Ok(());
        }
        let items = std::mem::take(&mut self.items);
        let raw_len = u32::try_from(items.len()).unwrap_or(0);
        let message =
            Message::FillData { batch: self.batch, encoding: Encoding::Raw, raw_len, bytes: items.into() };
        self.lane.blocking_send(message).map_err(|_| Closed)
    }
}
