//! One generation of a leader: recover the catalog, watch the directory, serve followers.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::permit::{self, Asks};
use super::points::Points;
use super::port::Port;
use super::show::{cuts_part, log_part};
use super::source::{LeaderSource, Source};
use super::sync;
use super::{
    Engine, Node, archiving, blocking, bounded_stop, cleanup, fenced, force, lines, promote, recover, rivals,
    switchover, until_failure,
};
use crate::capture::{Capture, CaptureHandle, CaptureOptions};
use crate::config::Config;
use crate::control::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::fold::Fold;
use crate::log::{Log, LogOptions};
use crate::net::Ancestry;
use crate::position::Lsn;
use crate::quiesce::Freezer;
use crate::send;
use crate::state::Control;
use crate::status::Status;
use crate::sys::Root;

/// How long a barrier asked for over the control socket may take.
const BARRIER_MAX: Duration = Duration::from_secs(60);

/// The engines of a leader.
#[derive(Clone)]
pub(crate) struct Leader {
    capture: CaptureHandle,
    log: Log,
    points: Arc<Points>,
}

/// One turn of a node whose role is to lead, until the stop is asked for (`Ok`) or something fails. It opens for business
/// only if no other line is known to go on from its own.
pub(super) async fn turn(node: &Arc<Node>, stop: &CancellationToken) -> Result<()> {
    let config = node.config();
    node.port.open(&config, Ancestry::leader(node.id), None).await?;
    sync::enforce(node.port.peers(), &config)?;
    if node.promotion.is_forced() {
        return force::turn(node, stop).await;
    }
    let leads_all_the_same = node.force.swap(false, Ordering::SeqCst);
    let state = Arc::clone(node);
    let (own, fence) =
        blocking(move || Ok((state.state.history()?, fenced::in_force(&state.state)?))).await?;
    node.rivals.lead(own);
    node.rivals.fenced(None);
    let fence = match fence {
        Some(fence) if !leads_all_the_same => return fenced::turn(node, fence, stop).await,
        fence => fence,
    };
    let asked = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        asked = permit::ask(node, Asks::Start) => asked,
    };
    if let Err(e) = asked {
        // A force is no permission, and is not remembered until there is one.
        if let Some(fence) = fence {
            tracing::error!("this node is not forced to lead: {e}");
            return fenced::turn(node, fence, stop).await;
        }
        permit::begin(node, &e).await;
        return permit::turn(node, stop).await;
    }
    permit::granted(node);
    if fence.is_some() {
        return force::turn(node, stop).await;
    }
    if node.promotion.took_over() {
        return generation(node, stop).await;
    }
    node.port.halt(node, "this node asks the others whether one of them leads").await;
    let told = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        told = rivals::first(node) => told?,
    };
    match told {
        Some(_) if leads_all_the_same => force::turn(node, stop).await,
        Some(told) => fenced::begin(node, told).await,
        None => generation(node, stop).await,
    }
}

/// Leads until the stop is asked for (`Ok`), something fails, or another line goes on from this node's.
async fn generation(node: &Arc<Node>, stop: &CancellationToken) -> Result<()> {
    let config = node.config();
    let control = node.state.set_up()?;
    let starter = Arc::clone(node);
    let (root, log, fold) = match blocking(move || recovered(&starter)).await {
        Ok(recovered) => recovered,
        Err(e) => {
            serve_failed(node, &control, &e).await;
            return Err(e);
        }
    };
    // What is in the log is good, whatever becomes of the directory.
    node.slots.lead();
    let desk = node.port.serve(node, &log, node.state.history()?, Source::new(Arc::clone(&root))).await;
    // Before any log is removed.
    let archiving = archiving::start(node, &log);
    let cleaning = cleanup::start(node, &log);
    let (starter, recorded) = (Arc::clone(node), log.clone());
    let starting = blocking(move || {
        Capture::start(
            root,
            fold,
            recorded,
            starter.state.path(),
            options(&starter.config(), &starter.freezer),
        )
    });
    let mut ends = pin!(stands_down(node));
    let mut starting = pin!(starting);
    // The first scan may take its time.
    let (capture, mut down) = tokio::select! {
        capture = &mut starting => (capture?, None),
        down = &mut ends => (starting.await?, Some(down)),
    };
    let result = match down {
        Some(_) => Ok(()),
        None => {
            let points = Points::new(node.state.path()).on_way(&log, node.state.history()?);
            let engine = Leader { capture: capture.clone(), log: log.clone(), points: Arc::new(points) };
            node.set_engine(Some(Engine::Leader(engine)));
            if let Some(desk) = desk {
                desk.supply(LeaderSource(capture.clone()));
            }
            node.phase("running");
            promote::hook(node);
            switchover::put_back(node).await;
            switchover::runs(node);
            if let Some(listen) = &config.listen {
                tracing::info!("leader of system {} serves followers on {listen}", control.system);
            }
            tokio::select! {
                failed = until_failure(node, stop, || capture.failure().or_else(|| log.failure())) => failed.map_or(Ok(()), Err),
                never = note_segments(node, &log) => match never {},
                conducted = switchover::conduct(node, &capture, &log) => conducted,
                ended = &mut ends => {
                    down = Some(ended);
                    Ok(())
                }
            }
        }
    };
    let stays = result.is_ok() && down.is_none() && node.stop.is_cancelled();
    let result = result.and(down.unwrap_or(Ok(())));
    switchover::ends(node).await;
    // The last pass is committed while followers are still connected, then they get a moment to take it.
    let ending = capture.clone();
    bounded_stop("stop capture", move || ending.stop()).await;
    if stays {
        // Followers take the end of the segment meanwhile.
        archiving.finish(node, &log).await;
        drain(&log, node.port.peers()).await;
        node.port.close().await;
    }
    cleaning.stop().await;
    archiving.stop().await;
    let end = log.tail().end;
    bounded_stop("close the log", move || log.close()).await;
    let noted = note_reached(node, end).await;
    result.and(noted)
}

/// Watches whether this node still is to lead. When it is no more nobody is served any more, and the application is stopped,
/// before this returns.
async fn stands_down(node: &Arc<Node>) -> Result<()> {
    tokio::select! {
        never = rivals::watch(node) => match never {},
        told = node.rivals.newer() => fenced::begin(node, told).await,
        why = permit::lost(node) => {
            permit::begin(node, &why).await;
            Ok(())
        }
    }
}

/// Keeps in the control file how far the log came, so that a log cut short behind our back is noticed.
async fn note_reached(node: &Arc<Node>, end: Lsn) -> Result<()> {
    let node = Arc::clone(node);
    blocking(move || {
        let known = node.state.control().map_or(Lsn::ZERO, |c| c.applied);
        if end > known { node.state.change(|c| c.applied = end) } else { Ok(()) }
    })
    .await
}

/// Notes the first position of every segment that the log reaches.
async fn note_segments(node: &Arc<Node>, log: &Log) -> Infallible {
    let mut tail = log.subscribe();
    let mut noted = Lsn::ZERO;
    loop {
        let end = node.port.peers().hear(&mut tail).end;
        if end.segment() > noted.segment() || noted <= Lsn::FIRST && end > noted {
            // The note is a guard against accidents: what keeps it from being written is shown by what fails next.
            match note_reached(node, end).await {
                Ok(()) => noted = end,
                Err(e) => tracing::warn!("how far the log came can't be noted: {e}"),
            }
        }
        if tail.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Gives connected followers up to two seconds to confirm the end of the log.
async fn drain(log: &Log, peers: &send::Peers) {
    let end = log.tail().end;
    for _ in 0..100 {
        if peers.all_flushed(end) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends what there is of a log that can't be opened for writing, if nothing is served yet.
async fn serve_failed(node: &Arc<Node>, control: &Control, why: &Error) {
    if !why.kind().retries() || node.port.serves() {
        return;
    }
    let (opener, why, reached) = (Arc::clone(node), why.clone(), control.applied);
    let opened = blocking(move || {
        let root = Root::open(&opener.data).map_err(|e| Error::io("open data directory", &opener.data, e))?;
        let log = Log::open_failed(log_options(&opener, &opener.config())?, &why)?;
        Ok((Source::new(Arc::new(root)), log))
    });
    match opened.await {
        Ok((source, log)) if log.tail().end >= reached.max(Lsn::FIRST) => match node.state.history() {
            Ok(history) => drop(node.port.serve(node, &log, history, source).await),
            Err(e) => tracing::warn!("nor can the log be served to followers: {e}"),
        },
        Ok(_) => {}
        Err(e) => tracing::warn!("nor can the log be read for followers: {e}"),
    }
}

fn log_options(node: &Node, config: &Config) -> Result<LogOptions> {
    let control = node.state.set_up()?;
    Ok(LogOptions {
        dir: node.state.log(),
        system: control.system,
        timeline: control.timeline,
        segment_timeout: config.segment_timeout.0,
        level: config.compression,
    })
}

/// The directory, the log, and the catalog that the log leads to.
fn recovered(node: &Arc<Node>) -> Result<(Arc<Root>, Log, Fold)> {
    let root = Arc::new(Root::open(&node.data).map_err(|e| Error::io("open data directory", &node.data, e))?);
    let history = lines::settle(&node.state)?;
    let options = log_options(node, &node.config())?;
    let (system, timeline) = (options.system, options.timeline);
    let log = Log::open_leader(options)?;
    let mut fold = recover::leader_fold(&node.state, system, timeline, &log)?;
    lines::begin(&history, &log, &mut fold)?;
    Ok((root, log, fold))
}

/// The options of capture, from the configuration.
pub(crate) fn options(config: &Config, freezer: &Arc<Freezer>) -> CaptureOptions {
    CaptureOptions {
        rescan_interval: config.rescan_interval.0,
        max_cut_delay: config.max_cut_delay.0,
        max_delete_percent: config.max_delete,
        max_delete_min: config.max_delete_floor,
        excludes: config.exclude.clone(),
        hot_interval: config.hot_interval.0,
        freeze: config.freeze.clone(),
        freezer: Some(Arc::clone(freezer)),
        max_freeze: config.max_freeze.0,
        before_cut: config.before_cut.clone(),
        after_cut: config.after_cut.clone(),
        scrub_rate: config.scrub_rate.0,
        checkpoint_bytes: config.checkpoint_bytes.0,
        checkpoint_interval: config.checkpoint_interval.0,
    }
}

impl Leader {
    /// Why capture is held, if it is.
    pub(super) fn hold(&self) -> Option<String> {
        self.capture.stats().hold
    }

    /// Files whose content was not read yet.
    pub(super) fn unread(&self) -> u64 {
        self.capture.stats().unhashed_files
    }

    pub(super) fn log(&self) -> Log {
        self.log.clone()
    }

    pub(crate) fn request(&self, request: &Request) -> Result<Value> {
        match request {
            Request::Confirm => {
                // Given before anything is held it would let the next mass delete through unseen.
                let stats = self.capture.stats();
                match stats.hold {
                    None => Ok(json!({"confirmed": false})),
                    Some(_) if stats.hold_deletes => {
                        self.capture.confirm();
                        Ok(json!({"confirmed": true}))
                    }
                    Some(hold) => {
                        let text = format!(
                            "only a mass delete can be confirmed; what is held is another matter: {hold}"
                        );
                        Err(Error::new(ErrorKind::Refused, text))
                    }
                }
            }
            Request::RestorePoint { name, timeout } => {
                self.points.make(&self.capture, name, timeout.map(|t| t.0))
            }
            _ => Ok(json!({"lsn": self.capture.barrier(BARRIER_MAX)?.to_string()})),
        }
    }

    /// Signs of life of capture and of the log's writer.
    pub(super) fn probe(&self) -> Vec<u64> {
        [self.capture.probe(), self.log.probe()].into_iter().flatten().collect()
    }

    /// The LSN of a commit that covers everything the directory holds now.
    pub(super) async fn cover(&self) -> Result<Lsn> {
        self.capture.cover().await
    }

    /// Waits until everything before `lsn` is durable here.
    pub(super) async fn durable(&self, lsn: Lsn) -> Result<()> {
        let mut tail = self.log.subscribe();
        let there =
            tail.wait_for(|t| t.end >= lsn || self.log.failure().is_some()).await.map(|t| t.end >= lsn);
        match (there, self.log.failure()) {
            (Ok(true), _) => Ok(()),
            (_, Some(e)) => Err(e),
            _ => Err(Error::new(ErrorKind::Unavailable, "the log was closed")),
        }
    }

    pub(crate) fn reload(&self, config: &Config, freezer: &Arc<Freezer>) {
        self.capture.reload(options(config, freezer));
    }

    /// What capture has counted.
    pub(super) fn counts(&self) -> Value {
        serde_json::to_value(self.capture.stats()).unwrap_or_default()
    }

    pub(crate) fn fill_status(&self, port: &Port, status: &mut Status) {
        let stats = self.capture.stats();
        let value = serde_json::to_value(&stats).unwrap_or_default();
        if let Some(hold) = value.get("hold").and_then(Value::as_str) {
            "held".clone_into(&mut status.state);
            status.error.get_or_insert_with(|| crate::status::Failure {
                kind: "held",
                message: hold.to_owned(),
                remedy: if stats.hold_deletes {
                    super::trouble::remedy(ErrorKind::Held, crate::state::Role::Leader)
                } else {
                    "bring the directory back that the message names; what was missed meanwhile is found then"
                },
                needs_help: true,
                since: stats.hold_since,
                attempts: 1,
                next_retry: None,
            });
        }
        status.capture = Some(value);
        status.log = Some(log_part(&self.log));
        status.cuts = cuts_part(&self.log, port);
        "watching: each commit is an exact or a file cut of the directory; followers apply exact cuts"
            .clone_into(&mut status.guarantee);
    }
}
