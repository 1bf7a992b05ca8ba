//! Form tree: the copy replayed to its end, a directory that an application can use as it is.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

use super::place::{Begun, Place};
use super::replay::{Intake, Span, is_exact};
use super::shelf::{Folder, copy_part, write_part};
use super::source::{blocking, stopped, while_there};
use super::stream::history;
use super::{Made, Order, Phase, Progress, hashes, sums};
use crate::apply::Applied;
use crate::blocks::Blocks;
use crate::catalog::Catalog;
use crate::checkpoint;
use crate::disk::{self, AtomicFile};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::fill::{self, FillContext, Sums};
use crate::manifest::{self, Form, Manifest};
use crate::net::{Upstream, wall_clock};
use crate::position::{Lsn, SystemId};
use crate::state::{Control, FillState, Role, StateDir};
use crate::sys::Root;
use crate::wire::Purpose;

/// Takes a backup in form tree. What was made is removed when it fails, unless it is to be kept.
///
/// # Errors
/// Whatever keeps it from being complete; [`ErrorKind::Cancelled`] when it was stopped.
pub async fn take(order: Order, progress: Progress, cancel: CancellationToken) -> Result<Made> {
    let order = Arc::new(order);
    let opening = Arc::clone(&order);
    let (place, begun) = blocking(move || open(&opening)).await?;
    let (place, making) = (Arc::new(place), Maker { order, progress, cancel, sums: Arc::default() });
    let made = making.make(&place, begun).await;
    if made.is_err() {
        let Maker { order, .. } = making;
        if order.keep_partial {
            tracing::warn!("what is there of the backup is kept; --resume goes on with it");
        } else {
            blocking(move || {
                place.discard();
                Ok(())
            })
            .await?;
        }
    }
    made
}

fn open(order: &Order) -> Result<(Place, Begun)> {
    if order.resume {
        return Place::resume(&order.out);
    }
    let begun = Begun { label: order.label.clone(), start: None };
    Ok((Place::begin(&order.out, &begun)?, begun))
}

fn pass(point: &'static str, place: &Place) -> Result<()> {
    failpoint::pass(point).map_err(|e| Error::io("make the backup in", place.dir(), e))
}

struct Maker {
    order: Arc<Order>,
    progress: Progress,
    cancel: CancellationToken,
    /// Of the files as they were copied.
    sums: Arc<Sums>,
}

impl Maker {
    async fn make(&self, place: &Arc<Place>, mut begun: Begun) -> Result<Made> {
        let data = place.dir().join(manifest::DATA);
        let (setting, name) = (Arc::clone(place), self.order.access.name.clone());
        let (root, state) = blocking(move || set_up(&setting, &data, &name)).await?;
        let upstream = self.order.access.upstream();
        let span = self.copy(&root, &state, &upstream).await?;
        pass("backup::copied", place)?;
        if begun.start.is_none_or(|(lsn, _)| lsn != span.start.0) {
            let (noting, reading) = (Arc::clone(place), Arc::clone(&state));
            begun = blocking(move || {
                let catalog = newest(&reading, reading.set_up()?.system)?;
                let begun = Begun { start: Some((span.start.0, catalog.time())), ..begun };
                noting.note(&begun).map(|()| begun)
            })
            .await?;
        }
        self.progress.enters(Phase::Log, 0, 0);
        let intake = Intake {
            access: &self.order.access,
            upstream: &upstream,
            state: &state,
            exact_timeout: self.order.exact_timeout,
        };
        let applied = intake.replay(&root, span, &self.cancel).await?;
        pass("backup::replayed", place)?;
        self.seal(place, begun, (root, state), applied).await
    }

    /// The copy, from whatever is there of it.
    async fn copy(&self, root: &Arc<Root>, state: &Arc<StateDir>, upstream: &Arc<Upstream>) -> Result<Span> {
        let access = &self.order.access;
        let context = FillContext {
            purpose: Purpose::Backup,
            sources: access.sources(),
            name: access.name.clone(),
            root: Arc::clone(root),
            state: Arc::clone(state),
            peer_timeout: access.peer_timeout,
            status: Arc::clone(upstream),
            order: None,
            report: Arc::default(),
            sums: Some(Arc::clone(&self.sums)),
        };
        self.progress.copying(upstream);
        let copying = self.cancel.child_token();
        let filling = fill::run(context, copying.clone());
        while_there(access, upstream, &copying, filling).await?;
        match state.set_up()?.fill {
            FillState::Filled { start, end } => Ok(Span { start, end }),
            _ => Err(stopped()),
        }
    }

    /// Everything else of the backup, the manifest last.
    async fn seal(
        &self,
        place: &Arc<Place>,
        begun: Begun,
        (root, state): (Arc<Root>, Arc<StateDir>),
        applied: Applied,
    ) -> Result<Made> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, place) = (Arc::clone(&stop), Arc::clone(place));
        let (progress, label) = (self.progress.clone(), self.order.label.clone());
        let sums = Arc::clone(&self.sums);
        let mut sealing = std::pin::pin!(blocking(move || {
            let sealed = Sealing { place: &place, state: &state, root: &root, sums: &sums, stop: &stopping };
            let manifest = sealed.parts(&Begun { label, ..begun }, &applied, &progress)?;
            drop(state);
            finish(&place, &manifest)?;
            progress.enters(Phase::Done, 0, 0);
            Ok(Made::of(&manifest))
        }));
        tokio::select! {
            sealed = &mut sealing => sealed,
            () = self.cancel.cancelled() => {
                stop.store(true, Ordering::Relaxed);
                sealing.await
            }
        }
    }
}

/// The two directories of a follower.
fn set_up(place: &Place, data: &Path, name: &str) -> Result<(Arc<Root>, Arc<StateDir>)> {
    let state = StateDir::open_or_create(&place.work())?;
    disk::create_subdir_durable(data)?;
    if state.control().is_none() {
        state.persist(Control::new(SystemId::NONE, Role::Follower, name, data))?;
    }
    let root = Root::open(data).map_err(|e| Error::io("open", data, e))?;
    pass("backup::begun", place)?;
    Ok((Arc::new(root), Arc::new(state)))
}

fn newest(state: &StateDir, system: SystemId) -> Result<Catalog> {
    let none = || Error::new(ErrorKind::Missing, "the catalog of the copy is gone");
    checkpoint::load_newest(&state.catalog(), system)?.ok_or_else(none)
}

/// The end of the making.
struct Sealing<'a> {
    place: &'a Place,
    state: &'a StateDir,
    root: &'a Root,
    sums: &'a Sums,
    stop: &'a AtomicBool,
}

impl Sealing<'_> {
    /// Writes the parts and the sums of the files.
    fn parts(&self, begun: &Begun, applied: &Applied, progress: &Progress) -> Result<Manifest> {
        let control = self.state.set_up()?;
        let catalog = newest(self.state, control.system)?;
        if catalog.lsn() != applied.lsn {
            let text = format!("the catalog of the copy is of {}, not of {}", catalog.lsn(), applied.lsn);
            return Err(Error::new(ErrorKind::Diverged, text));
        }
        let count = catalog.inodes().filter(|i| i.kind == crate::record::Kind::File).count() as u64;
        let total = catalog.inodes().map(|i| i.size).sum();
        progress.enters(Phase::Checking, count, total);
        let files = sums::files((self.root, self.sums), &catalog, self.stop, progress)?;
        let shelf = Folder(self.place.dir().to_owned());
        let catalog_part = write_part(&shelf, manifest::CATALOG, |out| {
            checkpoint::encode_snapshot(&catalog.freeze()?, out)
        })?;
        let blocks = Blocks::open(&self.state.blocks())?;
        let blocks_part = write_part(&shelf, manifest::BLOCKS, |out| {
            hashes::write_known(out, &catalog, &blocks, &|i| i.content).map(drop)
        })?;
        let mut parts = vec![catalog_part, blocks_part];
        if let Some((name, path)) = history(self.state, control.timeline) {
            parts.push(copy_part(&shelf, &name, &path)?);
        }
        let (start, start_time) = begun.start.unwrap_or_default();
        Ok(Manifest {
            form: Form::Tree,
            label: begun.label.clone(),
            system: control.system,
            timeline: control.timeline,
            start: Lsn(start),
            end: applied.lsn,
            start_time,
            end_time: applied.commit_time,
            exact: is_exact(applied),
            created: wall_clock(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            base: None,
            log: Vec::new(),
            parts,
            files,
        })
    }
}

/// All is durable but for the manifest: the work directory goes, then the manifest comes.
pub(super) fn finish(place: &Place, manifest: &Manifest) -> Result<()> {
    pass("backup::summed", place)?;
    place.clear_work()?;
    pass("backup::cleared", place)?;
    let mut file = AtomicFile::create(place.dir(), manifest::NAME)?;
    let path = place.dir().join(manifest::NAME);
    let mut out = BufWriter::with_capacity(256 << 10, &mut file);
    manifest.write(&mut out).and_then(|_| out.flush()).map_err(|e| Error::io("write", &path, e))?;
    drop(out);
    file.commit()
}
