//! One generation of a follower: the first copy if there is none, then apply, receive, and serving onward.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::port::Port;
use super::resync::{self, Cause, TOO_OFTEN};
use super::show::{cuts_part, log_part};
use super::source::{FollowerSource, Source};
use super::{
    Engine, FAILURE_LOOK, Node, archived, blocking, bounded_stop, cleanup, lines, rewind, until_failure,
};
use crate::apply::{
    self, Applied, Apply, ApplyCuts, ApplyHandle, ApplyOptions, ApplyPaths, Inexact, LocalEdits,
};
use crate::config::{self, Config, Cuts, ResyncMode, StopAction};
use crate::error::{Error, ErrorKind, Result};
use crate::fill;
use crate::history::History;
use crate::log::{Log, LogOptions};
use crate::net::{Ancestry, Sources, Upstream, UpstreamStatus};
use crate::position::Lsn;
use crate::quorum::Level;
use crate::receive::{self, Progress};
use crate::state::{Control, FillState};
use crate::status::{Failure, Lag, Status};
use crate::sys::{self, Root};
use crate::wire::{Code, Purpose};

/// The engines of a follower. During the first copy there are only the last two.
#[derive(Clone)]
pub(crate) struct Follower {
    apply: Option<ApplyHandle>,
    log: Option<Log>,
    upstream: Arc<Upstream>,
    peer_timeout: Duration,
}

impl Progress for Applied {
    fn lsn(&self) -> Lsn {
        self.lsn
    }
    fn time(&self) -> i64 {
        self.commit_time
    }
    fn moves(&self) -> bool {
        self.moves
    }
    fn halted(&self) -> bool {
        self.halted
    }
    fn delay(&self) -> Duration {
        self.delay
    }
}

/// The nodes to follow, checked before anything is tried there. This node's own address is left out of a list, so that all
/// nodes may have the same one.
///
/// # Errors
/// [`ErrorKind::Config`]: there is none to follow.
pub(super) fn upstreams(config: &Config) -> Result<Sources> {
    let mut sources = config.sources().ok_or_else(no_leader)?;
    let own = config.listen.as_deref().map(config::address).transpose()?;
    let several = sources.addresses.len() > 1;
    let mut others = Vec::new();
    for address in sources.addresses {
        match config::address(&address) {
            Ok(resolved) if own == Some(resolved) => continue,
            Ok(_) => {}
            // What has no address today may have one when it is needed.
            Err(e) if several => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
        others.push(address);
    }
    if others.is_empty() {
        let text = format!(
            "this node would follow itself: {} is where it listens; name its leader instead",
            config.listen.as_deref().unwrap_or_default()
        );
        return Err(Error::new(ErrorKind::Config, text));
    }
    sources.addresses = others;
    Ok(sources)
}

pub(super) fn no_leader() -> Error {
    Error::new(ErrorKind::Usage, "no leader is given; use --leader HOST:PORT or the key 'leader'")
}

/// Runs until the stop is asked for (`Ok`) or something fails.
pub(crate) async fn generation(node: &Arc<Node>, stop: &CancellationToken) -> Result<()> {
    let config = node.config();
    let sources = upstreams(&config)?;
    let name = node.name();
    if node.state.control().is_some_and(|c| c.name != name) {
        let node = Arc::clone(node);
        blocking(move || node.state.change(|c| c.name = name)).await?;
    }
    let root = Arc::new(Root::open(&node.data).map_err(|e| apply::gone(&node.data, &e))?);
    let upstream = Arc::new(Upstream::new(&sources, node.id).trusting(node.trust.clone()));
    node.port.open(&config, upstream.ancestry(), Some(Arc::clone(&upstream))).await?;
    let mut follower = Follower { apply: None, log: None, upstream, peer_timeout: config.peer_timeout.0 };
    node.archiving.board.clear();
    node.set_engine(Some(Engine::Follower(follower.clone())));
    let fill = node.state.set_up()?.fill;
    let order = rewind::order(node, fill)?.or_else(|| node.resyncs.order(&config, fill));
    if order.is_some() || !matches!(fill, FillState::Filled { .. } | FillState::Done) {
        copy(node, &config, sources.clone(), Arc::clone(&root), &follower.upstream, order, stop).await?;
        sys::raw::give_back_memory();
        if stop.is_cancelled() {
            return Ok(());
        }
    }
    let (starter, started, clock) = (Arc::clone(node), Arc::clone(&root), follower.upstream.ancestry());
    let (apply, log, start) = blocking(move || start_apply(&starter, started, clock)).await?;
    (follower.apply, follower.log) = (Some(apply.clone()), Some(log.clone()));
    node.set_engine(Some(Engine::Follower(follower.clone())));
    node.phase("recovering");
    let control = node.state.set_up()?;
    // A log that begins anew may not reach yet what others have from here.
    if !matches!(control.fill, FillState::Filled { .. }) {
        serve(node, &control, &apply, &log, Arc::clone(&root)).await;
    }
    let cancel = stop.child_token();
    let cleaning = cleanup::start(node, &log);
    let applied = apply.applied();
    let result = follow(node, &config, sources, &follower, &apply, &log, start, cancel.clone()).await;
    cancel.cancel();
    cleaning.stop().await;
    bounded_stop("stop apply", move || apply.stop().map(|_| ())).await;
    bounded_stop("close the log", move || log.close()).await;
    match result? {
        Some(next) => {
            let applied = applied.borrow().lsn;
            lines::go_over(node, next, applied).await
        }
        None => Ok(()),
    }
}

/// Sends log onward from now on, and first copies.
async fn serve(node: &Arc<Node>, control: &Control, apply: &ApplyHandle, log: &Log, root: Arc<Root>) {
    let history = match node.state.history() {
        Ok(history) => history,
        Err(e) => return tracing::error!("{}: followers are not served: {e}", control.name),
    };
    if let Some(desk) = node.port.serve(node, log, history, Source::new(root)).await {
        desk.supply(FollowerSource(apply.clone()));
    }
}

/// Fills an empty directory, or makes one that holds something equal to the upstream's.
async fn copy(
    node: &Arc<Node>,
    config: &Config,
    sources: Sources,
    root: Arc<Root>,
    upstream: &Arc<Upstream>,
    order: Option<fill::Order>,
    stop: &CancellationToken,
) -> Result<()> {
    let context = fill::FillContext {
        purpose: Purpose::Follow,
        sources,
        name: node.name(),
        root,
        state: Arc::clone(&node.state),
        peer_timeout: config.peer_timeout.0,
        status: Arc::clone(upstream),
        order,
        report: Arc::clone(&node.resyncs.report),
        sums: None,
    };
    let (noting, context) = (Arc::clone(node), Arc::new(context));
    let (looking, damage) = (Arc::clone(&context), Arc::clone(&context));
    if blocking(move || fill::resyncs(&looking)).await? {
        node.phase("resyncing");
        // What is downstream may hold log that is about to go here.
        node.port.turn_away(node, "this node is made equal to its upstream; it is tried again").await;
        blocking(move || damage.order.as_ref().map_or(Ok(()), |o| resync::note_damage(&noting, o))).await?;
    } else {
        node.phase("filling");
        node.port.halt(node, "this node takes its own first copy; it is tried again").await;
    }
    fill::run(context, stop.child_token()).await?;
    if !stop.is_cancelled() {
        node.resyncs.done();
        rewind::finished(node)?;
    }
    Ok(())
}

/// Opens the log of the node's line, and says where apply keeps what it knows.
pub(super) fn stores(node: &Node, config: &Config, control: &Control) -> Result<(Log, ApplyPaths)> {
    let (system, timeline) = (control.system, control.timeline);
    lines::settle(&node.state)?;
    let log = Log::open_follower(LogOptions {
        dir: node.state.log(),
        system,
        timeline,
        segment_timeout: config.segment_timeout.0,
        level: config.compression,
    })?;
    let paths = ApplyPaths { catalog: node.state.catalog(), blocks: node.state.blocks(), system, timeline };
    Ok((log, paths))
}

/// Opens the log and starts apply. The LSN is where an empty log begins.
fn start_apply(node: &Arc<Node>, root: Arc<Root>, clock: Ancestry) -> Result<(ApplyHandle, Log, Lsn)> {
    let (config, control) = (node.config(), node.state.set_up()?);
    let (log, paths) = stores(node, &config, &control)?;
    let filled = match control.fill {
        FillState::Filled { start, end } => Some((start, end)),
        _ => None,
    };
    let mut options = options(&config);
    options.paused = node.paused.load(Ordering::SeqCst);
    options.clock = clock;
    options.stop_at = node.passed.ahead(config.stop_target()?)?;
    let apply = Apply::start(root, paths, log.clone(), filled, options)?;
    let start = filled.map_or_else(|| apply.applied().borrow().lsn, |(start, _)| start);
    Ok((apply, log, start))
}

pub(super) fn options(config: &Config) -> ApplyOptions {
    ApplyOptions {
        cuts: match config.apply_cuts {
            Cuts::Exact => ApplyCuts::Exact,
            Cuts::File => ApplyCuts::File,
        },
        max_inexact: config.max_inexact.0,
        max_inexact_bytes: config.max_inexact_bytes.0,
        inexact: match config.inexact {
            config::Inexact::Report => Inexact::Report,
            config::Inexact::Apply => Inexact::Apply,
        },
        local_edits: match config.local_edits {
            config::LocalEdits::Refuse => LocalEdits::Refuse,
            config::LocalEdits::Overwrite => LocalEdits::Overwrite,
        },
        checkpoint_bytes: config.checkpoint_bytes.0,
        checkpoint_interval: config.checkpoint_interval.0,
        paused: false,
        delay: config.apply_delay.0,
        stop_at: None,
        clock: Ancestry::default(),
        scrub_rate: config.scrub_rate.0,
        scrub_interval: config.scrub_interval.0,
        repairs: config.resync == ResyncMode::Auto,
    }
}

/// Receives, and watches the engines.
#[allow(clippy::too_many_arguments, reason = "one call site; they are the parts of one generation")]
async fn follow(
    node: &Arc<Node>,
    config: &Config,
    sources: Sources,
    follower: &Follower,
    apply: &ApplyHandle,
    log: &Log,
    start: Lsn,
    cancel: CancellationToken,
) -> Result<Option<History>> {
    let control = node.state.set_up()?;
    let history = node.state.history()?;
    let context = receive::ReceiveContext {
        purpose: Purpose::Follow,
        sources,
        name: node.name(),
        history,
        log: log.clone(),
        start,
        applied: apply.applied(),
        never_counts: !config.sync_candidate,
        peer_timeout: config.peer_timeout.0,
        status: Arc::clone(&follower.upstream),
        below: {
            let node = Arc::clone(node);
            Arc::new(move || node.port.below())
        },
        slots: Arc::clone(&node.slots),
    };
    let mut receiving = pin!(receive::run(context, cancel.clone()));
    let failed = until_failure(node, &cancel, || log.failure().or_else(|| apply.failure()));
    let usable = note_usable(node, apply, log, &control);
    let apart = until_apart(&follower.upstream, config.resync == ResyncMode::Auto);
    let mut apart = pin!(after_a_look(apart, apply, control.fill));
    let mut noting = pin!(note_commits(node, log));
    let target = end_at_target(node, config, apply);
    let e = tokio::select! {
        never = target => return never.map(|()| None),
        r = &mut receiving => return r,
        r = usable => return r.map(|()| None),
        never = &mut noting => match never {},
        cause = &mut apart => {
            let upstream = follower.upstream.status().history;
            if !archived::rejoin(node, config, log, start, (&cause, upstream), &cancel).await {
                node.resyncs.want(cause);
            }
            return Ok(None);
        }
        e = failed => e,
    };
    let e = match e.map(|e| repair(node, config, apply, e)) {
        Some(Ok(cause)) => {
            node.resyncs.want(cause);
            return Ok(None);
        }
        other => other.and_then(std::result::Result::err),
    };
    match e {
        // The newest data is safe in this node's log, whatever keeps it out of the directory.
        Some(e)
            if matches!(e.kind(), ErrorKind::Refused | ErrorKind::Diverged) && log.failure().is_none() =>
        {
            // But nobody is filled from the directory.
            node.port.fail(node, &e).await;
            tokio::select! {
                r = &mut receiving => r,
                never = &mut noting => match never {},
                () = node.stand_still(e) => Ok(None),
                e = until_failure(node, &cancel, || log.failure()) => e.map_or(Ok(None), Err),
            }
        }
        other => other.map_or(Ok(None), Err),
    }
}

/// Waits until the upstream says that this node's log does not go on there any more.
async fn until_apart(upstream: &Upstream, auto: bool) -> Cause {
    if !auto {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(FAILURE_LOOK).await;
        let status = upstream.status();
        let cause =
            status.code.and_then(|c| Cause::of_refusal(c, status.error.as_deref().unwrap_or_default()));
        if let Some(cause) = cause {
            return cause;
        }
    }
}

/// Before a directory that was whole is made equal to another state apply looks at it as it is: an edit that is refused is
/// not written over.
async fn after_a_look(apart: impl Future<Output = Cause>, apply: &ApplyHandle, fill: FillState) -> Cause {
    let cause = apart.await;
    if fill != FillState::Done {
        return cause;
    }
    loop {
        match apply.failure() {
            Some(e) if e.kind() == ErrorKind::Refused => return std::future::pending().await,
            None if !apply.applied().borrow().consistent => tokio::time::sleep(FAILURE_LOOK).await,
            _ => return cause,
        }
    }
}

/// What is wrong with the directory, if it is repaired by itself; else what failed, and why that is not repaired.
fn repair(node: &Node, config: &Config, apply: &ApplyHandle, e: Error) -> Result<Cause> {
    let auto = e.kind() == ErrorKind::Diverged && config.resync == ResyncMode::Auto;
    match apply.damage().filter(|_| auto) {
        Some(files) if node.resyncs.may_repair(Instant::now()) => Ok(Cause::of_damage(files, &e.to_string())),
        Some(_) => Err(e.wrap(TOO_OFTEN)),
        None => Err(e),
    }
}

/// Remembers when commits were made, for the lag of those that follow this node.
async fn note_commits(node: &Node, log: &Log) -> Infallible {
    let mut tail = log.subscribe();
    loop {
        node.port.peers().hear(&mut tail);
        if tail.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Where the target says so, the process ends once it is reached.
async fn end_at_target(node: &Arc<Node>, config: &Config, apply: &ApplyHandle) -> Result<()> {
    let mut reached = apply.reached();
    if reached.wait_for(|r| *r).await.is_ok() && config.stop_action == StopAction::Exit {
        tracing::info!(lsn = %apply.applied().borrow().lsn, "the target is reached: stopping");
        node.stop.cancel();
    }
    std::future::pending().await
}

/// Once the directory stands on a cut the node runs; of a first copy the control file then says that it is whole.
async fn note_usable(node: &Arc<Node>, apply: &ApplyHandle, log: &Log, control: &Control) -> Result<()> {
    let mut applied = apply.applied();
    if applied.wait_for(|a| a.consistent).await.is_err() {
        return std::future::pending().await;
    }
    if let FillState::Filled { .. } = control.fill {
        let changing = Arc::clone(node);
        blocking(move || changing.state.change(|c| c.fill = FillState::Done)).await?;
        tracing::info!("the directory is complete and consistent");
        serve(node, control, apply, log, apply.root()).await;
    }
    node.phase("running");
    std::future::pending().await
}

impl Follower {
    pub(super) fn log(&self) -> Option<Log> {
        self.log.clone()
    }

    /// The log and what applies it, once they are there.
    pub(super) fn stand(&self) -> Option<(Log, ApplyHandle)> {
        self.log.clone().zip(self.apply.clone())
    }

    /// The node that it follows.
    pub(super) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// How far the leader's log was heard to go.
    pub(super) fn known_end(&self) -> Lsn {
        self.upstream.status().end
    }

    /// What apply has counted, if it was there.
    pub(super) fn counts(&self) -> Option<Value> {
        self.apply.as_ref().and_then(|a| serde_json::to_value(a.stats()).ok())
    }

    /// Signs of life of apply and of the log's writer, as far as they are there.
    pub(super) fn probe(&self) -> Vec<u64> {
        let apply = self.apply.as_ref().and_then(ApplyHandle::probe);
        apply.into_iter().chain(self.log.as_ref().and_then(Log::probe)).collect()
    }

    /// Waits until this node itself has everything before `lsn`, at this level.
    pub(super) async fn reaches(&self, lsn: Lsn, level: Level) -> Result<()> {
        let (Some(apply), Some(log)) = (&self.apply, &self.log) else {
            let text = "the first copy is under way; try again when status says running";
            return Err(Error::new(ErrorKind::Unavailable, text));
        };
        let (mut tail, mut written, mut applied) =
            (log.subscribe(), log.subscribe_written(), apply.applied());
        let failed = || log.failure().or_else(|| (level == Level::Apply).then(|| apply.failure()).flatten());
        let open = match level {
            Level::Write => written.wait_for(|w| *w >= lsn).await.is_ok(),
            Level::Flush => tail.wait_for(|t| t.end >= lsn || failed().is_some()).await.is_ok(),
            Level::Apply => {
                let there = |a: &Applied| a.consistent && a.lsn >= lsn;
                applied.wait_for(|a| there(a) || failed().is_some()).await.is_ok()
            }
        };
        match failed() {
            Some(e) => Err(e),
            None if open => Ok(()),
            None => Err(Error::new(ErrorKind::Unavailable, "the node stops")),
        }
    }

    /// The refusal of the upstream, if it refuses.
    pub(super) fn refused_with(&self) -> Option<Code> {
        self.upstream.status().code
    }

    pub(crate) fn pause(&self, pause: bool) -> Result<Value> {
        let Some(apply) = &self.apply else {
            let text = "the first copy is under way: there is no cut to rest on yet; try again when status says running";
            return Err(Error::new(ErrorKind::Unavailable, text));
        };
        let at = if pause {
            apply.pause()?
        } else {
            apply.resume();
            *apply.applied().borrow()
        };
        if pause && !at.consistent {
            let text =
                "the first copy is not replayed to its end yet: the directory is no cut; try again later";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok(json!({"lsn": at.lsn.to_string(), "cut": at.cut.to_string(), "paused": pause}))
    }

    /// Whether the directory rests on the target of `stop_at`.
    pub(crate) fn is_stopped(&self) -> bool {
        self.apply.as_ref().is_some_and(|a| *a.reached().borrow())
    }

    /// Takes over what needs no new turn.
    pub(crate) fn reload(&self, config: &Config) {
        if let Some(apply) = &self.apply {
            apply.set_delay(config.apply_delay.0);
            apply.set_scrub(config.scrub_rate.0, config.scrub_interval.0);
        }
    }

    /// How far the directory is behind; `None` while there is none.
    pub(crate) fn lag(&self) -> Option<Lag> {
        let (apply, log) = (self.apply.as_ref()?, self.log.as_ref()?);
        let (_, seconds) = self.upstream.lag(self.peer_timeout);
        // What is in the own log and not shown is behind, whoever is silent.
        let end = self.upstream.status().end.max(log.tail().end);
        let applied = *apply.applied().borrow();
        Some(Lag { bytes: log.gaps().between(applied.lsn, end), seconds })
    }

    pub(crate) fn fill_status(&self, port: &Port, status: &mut Status) {
        let upstream = self.upstream.status();
        status.upstream = serde_json::to_value(&upstream).ok();
        // What an operator has to look at here comes first.
        let own = status.error.as_ref().is_some_and(|e| e.needs_help);
        if let Some((state, failure)) = refusal(&upstream).filter(|_| !own) {
            state.clone_into(&mut status.state);
            status.error = Some(failure);
        }
        let (Some(apply), Some(log)) = (&self.apply, &self.log) else {
            "the directory is being filled and is not usable".clone_into(&mut status.guarantee);
            return;
        };
        let applied = *apply.applied().borrow();
        let mut value = serde_json::to_value(apply.stats()).unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            map.insert("lsn".to_owned(), json!(applied.lsn.to_string()));
            map.insert("cut".to_owned(), json!(applied.cut.to_string()));
            map.insert("consistent".to_owned(), json!(applied.consistent));
        }
        status.apply = Some(value);
        status.log = Some(log_part(log));
        status.cuts = cuts_part(log, port);
        status.lag = self.lag();
        status.guarantee = if applied.consistent {
            format!("the directory stands on or moves between {} cuts of the leader's", applied.cut)
        } else {
            "the first copy waits for the log that makes it consistent; the directory is not usable"
                .to_owned()
        };
    }
}

/// The upstream says no, and time alone won't change that: what `status` says about it.
fn refusal(upstream: &UpstreamStatus) -> Option<(&'static str, Failure)> {
    let code = upstream.code.filter(|c| !c.passes())?;
    let kind = match code {
        Code::Resync => ErrorKind::Missing,
        Code::Diverged => ErrorKind::Diverged,
        _ => ErrorKind::Refused,
    };
    let failure = Failure {
        kind: kind.word(),
        message: match (upstream.addresses.as_slice(), upstream.error.as_deref().unwrap_or("refused")) {
            ([_], why) if code == Code::UpstreamRole => {
                format!("no {} to follow: {}: {why}", upstream.wanted_role, upstream.address)
            }
            ([_], why) => format!("{}: {why}", upstream.address),
            (_, why) if code == Code::UpstreamRole => format!("no {} to follow: {why}", upstream.wanted_role),
            (_, why) => why.to_owned(),
        },
        remedy: match code {
            Code::Version => "update the older of the two nodes; the node goes on by itself",
            Code::Name => {
                "give this node another name and start it again; or stop the other node of that name, and it goes on by \
                 itself"
            }
            Code::Circle => {
                "point one node of the circle at the leader (key 'leader', then `towline reload`); the others go on by \
                 themselves"
            }
            Code::UpstreamRole => {
                "name a node of that role in the key 'leader', or ask for another with 'upstream_role', then `towline \
                 reload`; the node goes on by itself when one of those named has it"
            }
            Code::Untrusted => {
                "make sure that the fingerprint is the right node's, and run the command that the message ends with; the \
                 node goes on by itself"
            }
            Code::Expired => {
                "renew the certificate that the message names, or set the clocks right; the node goes on by itself"
            }
            Code::NotAllowed => {
                "give the peer that the message names the role it needs (`towline trust`); the node goes on by itself"
            }
            Code::Identity => {
                "start the node under the name that its key is trusted as (key 'name'), or trust its key under the other"
            }
            Code::Tls => {
                "bring the key 'tls' of the two nodes into line, then `towline reload` or a restart; the node goes on by \
                 itself"
            }
            Code::WrongSystem | Code::Protocol => {
                "point the node at its own leader (key 'leader', then `towline reload`); or stop it, empty its data \
                 and state directories, and start it: it is filled from this one"
            }
            Code::WrongTimeline => {
                "name the node that leads now in the key 'leader', then `towline reload`; if this node is on the line that was \
                 left, `towline resync` makes it equal to its upstream"
            }
            Code::Resync | Code::Diverged => {
                "`towline resync` makes this node equal to its upstream again; with resync = \"auto\" that is done by itself"
            }
            _ => "stop the node, empty its data and state directories, and start it: it is filled anew",
        },
        needs_help: true,
        since: upstream.since,
        attempts: upstream.attempts,
        next_retry: Some(upstream.next_retry),
    };
    Some((kind.word(), failure))
}
