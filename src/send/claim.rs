//! What a follower, or a backup, that was let in needs of the log is held before it is promised.

use std::sync::Arc;

use super::ServeContext;
use crate::error::{Error, ErrorKind, Result};
use crate::log::Tail;
use crate::position::Lsn;
use crate::slots::{Hold, Kind, Pin};
use crate::wire::{Code, Decision, Hello, Purpose, Want};

/// What holds it.
pub(super) enum Held {
    /// A follower's slot.
    Slot(Hold),
    /// A backup is connected, and needs log from here on.
    Pin(Pin, Lsn),
}

/// Holds what is needed, and says whether it is still there: log may have been removed since it was
/// decided. `Err` within: what is decided instead, because there is no place for another slot.
pub(super) async fn claim(
    context: &Arc<ServeContext>,
    hello: &Hello,
    decision: &Decision,
) -> Result<std::result::Result<(Held, bool), Decision>> {
    let (context, hello, decision) = (Arc::clone(context), hello.clone(), decision.clone());
    let claiming = tokio::task::spawn_blocking(move || {
        let (position, kind) = needs(&context, &hello, &decision);
        if hello.purpose == Purpose::Backup {
            let pin = Held::Pin(context.slots.pin(position), position);
            return is_kept(&context, &hello, &decision).map(|kept| Ok((pin, kept)));
        }
        match context.slots.attach(&hello.name, position, kind).map(Held::Slot) {
            Ok(hold) => is_kept(&context, &hello, &decision).map(|kept| Ok((hold, kept))),
            Err(e) => Ok(Err(Decision::Refuse { code: Code::Busy, reason: e.to_string() })),
        }
    });
    claiming.await.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
}

fn needs(context: &ServeContext, hello: &Hello, decision: &Decision) -> (Lsn, Kind) {
    match (decision, hello.want) {
        (Decision::StreamFrom { segment, .. }, _) => (hello.flush.min(segment.end()), Kind::Follower),
        (Decision::ResumeFill, Want::ResumeFill(snapshot)) => (snapshot, Kind::Copy),
        // The snapshot that follows is taken later than this.
        _ => (from_now(context, &context.log.tail()), Kind::Copy),
    }
}

/// No snapshot that is taken from now on is older.
fn from_now(context: &ServeContext, tail: &Tail) -> Lsn {
    let catalog = context.source.catalog();
    let lsn = catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner).lsn();
    // Zero would hold nothing.
    lsn.min(tail.commit).max(Lsn(1))
}

/// Whether the log that was promised is still there.
fn is_kept(context: &ServeContext, hello: &Hello, decision: &Decision) -> Result<bool> {
    let oldest = context.log.oldest()?;
    Ok(match (decision, hello.want) {
        (Decision::StreamFrom { segment, .. }, _) => *segment >= oldest.segment(),
        (Decision::ResumeFill, Want::ResumeFill(snapshot)) => snapshot >= oldest,
        _ => true,
    })
}
