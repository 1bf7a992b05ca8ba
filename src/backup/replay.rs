//! The log of a backup: from the start of its copy to the end, an exact cut if one comes in time; replayed where the form wants
//! that.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Access;
use super::source::{blocking, stopped, while_there};
use crate::apply::{Applied, Apply, ApplyCuts, ApplyHandle, ApplyOptions, ApplyPaths};
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Log, LogOptions, Tail};
use crate::net::Upstream;
use crate::position::{Cut, Lsn};
use crate::receive::{self, Progress, ReceiveContext};
use crate::slots::Slots;
use crate::state::{Control, StateDir};
use crate::sys::Root;
use crate::wire::Purpose;

/// The log seals what is older, and so does a checkpoint: neither is to happen in a backup.
const NEVER: Duration = Duration::from_secs(1 << 30);

/// Where the copy began, and where its barrier was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
}

/// What a backup tells of its progress: nobody waits for it.
#[derive(Clone, Copy, Debug)]
struct Nobody;

impl Progress for Nobody {
    fn lsn(&self) -> Lsn {
        Lsn::ZERO
    }
    fn time(&self) -> i64 {
        0
    }
    fn moves(&self) -> bool {
        false
    }
    fn delay(&self) -> Duration {
        Duration::ZERO
    }
}

/// Where the log of a backup comes from and goes to.
pub(super) struct Intake<'a> {
    pub(super) access: &'a Access,
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) state: &'a Arc<StateDir>,
    pub(super) exact_timeout: Duration,
}

impl Intake<'_> {
    fn open(&self, control: &Control) -> Result<Log> {
        Log::open_follower(LogOptions {
            dir: self.state.log(),
            system: control.system,
            timeline: control.timeline,
            segment_timeout: NEVER,
            level: 1,
        })
    }

    /// Takes log from `start` on for as long as `work` needs it.
    async fn while_taken<T>(
        &self,
        (log, start): (&Log, Lsn),
        cancel: &CancellationToken,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let taking = cancel.child_token();
        let slots = self.state.path().to_owned();
        let slots = Arc::new(blocking(move || Slots::open(&slots)).await?);
        // Dropped at the end: nobody acknowledges any more.
        let (_keeps, applied) = watch::channel(Nobody);
        let context = ReceiveContext {
            purpose: Purpose::Backup,
            sources: self.access.sources(),
            name: self.access.name.clone(),
            history: self.state.history()?,
            log: log.clone(),
            start,
            applied,
            never_counts: true,
            peer_timeout: self.access.peer_timeout,
            status: Arc::clone(self.upstream),
            below: Arc::new(Vec::new),
            slots,
        };
        let receiving = receive::run(context, taking.clone());
        let working = async {
            let done = tokio::select! {
                () = cancel.cancelled() => Err(stopped()),
                done = work => done,
            };
            taking.cancel();
            done
        };
        let both = async {
            let (received, done) = tokio::join!(receiving, working);
            received.and(done)
        };
        while_there(self.access, self.upstream, cancel, both).await
    }

    /// Takes the log and replays it into the copy in `root`. Where that came to rest, durably.
    pub(super) async fn replay(
        &self,
        root: &Arc<Root>,
        span: Span,
        cancel: &CancellationToken,
    ) -> Result<Applied> {
        let control = self.state.set_up()?;
        let log = self.open(&control)?;
        let paths = ApplyPaths {
            catalog: self.state.catalog(),
            blocks: self.state.blocks(),
            system: control.system,
            timeline: control.timeline,
        };
        let start = {
            let (root, log) = (Arc::clone(root), log.clone());
            move |cuts| {
                let (root, paths, log) = (Arc::clone(&root), paths.clone(), log.clone());
                blocking(move || Apply::start(root, paths, log, Some((span.start, span.end)), options(cuts)))
            }
        };
        let engine = RefCell::new(start(ApplyCuts::Exact).await?);
        let now = || engine.borrow().clone();
        let waiting = async {
            if !self.exact(&now(), &log, span).await? {
                // The cut that is there is a cut of files.
                rest(&now()).await?;
                let begun = start(ApplyCuts::File).await?;
                engine.replace(begun);
                stands(&now(), |a| a.consistent).await?;
            }
            rest(&now()).await
        };
        let done = self.while_taken((&log, span.start), cancel, waiting).await;
        if done.is_err() {
            // Whatever it says now: the reason is known.
            let _ = rest(&now()).await;
        }
        blocking(move || log.close()).await?;
        done
    }

    /// Waits for the directory to stand on an exact cut at the end or later; false: none came in time.
    async fn exact(&self, apply: &ApplyHandle, log: &Log, span: Span) -> Result<bool> {
        let patience = async {
            self.reached(log, span).await?;
            tokio::time::sleep(self.exact_timeout).await;
            Ok::<_, Error>(())
        };
        tokio::select! {
            biased;
            // A copy that needs no log stands at once, on whatever cut it began.
            exact = stands(apply, |a| a.consistent && is_exact(a)) => exact.map(|()| true),
            waited = patience => waited.map(|()| false),
        }
    }

    /// Takes the log, and keeps it: up to an exact cut, if one comes in time.
    pub(super) async fn collect(&self, span: Span, cancel: &CancellationToken) -> Result<Tail> {
        let control = self.state.set_up()?;
        let log = self.open(&control)?;
        let waiting = async {
            self.reached(&log, span).await?;
            let mut tail = log.subscribe();
            let exact = tail.wait_for(|t| t.exact >= span.end);
            // Without one the cut that is there counts.
            if let Ok(Err(_)) = tokio::time::timeout(self.exact_timeout, exact).await {
                return Err(log.failure().unwrap_or_else(closed));
            }
            Ok(log.tail())
        };
        let tail = self.while_taken((&log, span.start), cancel, waiting).await;
        let closing = log.clone();
        blocking(move || closing.close()).await?;
        // More may have come since; it is there, too.
        let end = log.tail().end;
        tail.map(|tail| Tail { end, ..tail })
    }

    /// Waits until all log is there that the copy needs.
    async fn reached(&self, log: &Log, span: Span) -> Result<()> {
        let there = |t: &Tail| span.end <= span.start || t.commit >= span.end;
        let there = log.subscribe().wait_for(there).await.is_ok();
        if there { Ok(()) } else { Err(log.failure().unwrap_or_else(closed)) }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Cancelled, "the log was closed")
}

/// Waits until the directory stands so.
async fn stands(apply: &ApplyHandle, so: impl Fn(&Applied) -> bool) -> Result<()> {
    let (mut applied, mut ended) = (apply.applied(), apply.ended());
    tokio::select! {
        biased;
        stands = applied.wait_for(|a| so(a)) => stands.map(drop).map_err(|_| closed()),
        _ = ended.wait_for(|e| *e) => Err(apply.failure().unwrap_or_else(closed)),
    }
}

/// Stops on a cut, everything durable.
async fn rest(apply: &ApplyHandle) -> Result<Applied> {
    let apply = apply.clone();
    blocking(move || apply.stop()).await
}

fn options(cuts: ApplyCuts) -> ApplyOptions {
    ApplyOptions {
        cuts,
        max_inexact: Duration::ZERO,
        max_inexact_bytes: 0,
        checkpoint_bytes: u64::MAX,
        checkpoint_interval: NEVER,
        scrub_interval: Duration::ZERO,
        ..ApplyOptions::default()
    }
}

/// Whether that is a state that the leader's directory had at one instant.
pub(super) fn is_exact(applied: &Applied) -> bool {
    applied.cut == Cut::Exact
}
