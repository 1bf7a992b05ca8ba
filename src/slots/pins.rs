//! Log that is held for backups: in memory only, for as long as they are connected and a moment longer, in which
//! the same backup comes again to take the log after its copy.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Slots;
use crate::position::Lsn;
use crate::retention::first_needed;

/// How long log is held for a backup that is not connected any more.
const LINGER: Duration = Duration::from_secs(10);

/// What is held, by number, and until when if nobody is connected.
#[derive(Debug, Default)]
pub(super) struct Pins {
    held: BTreeMap<u64, (Lsn, Option<Instant>)>,
    count: u64,
}

impl Pins {
    /// Log from here on is held; what has lingered for long enough is let go of.
    pub(super) fn least(&mut self, now: Instant) -> Option<Lsn> {
        self.held.retain(|_, (_, until)| until.is_none_or(|t| t > now));
        self.held.values().map(|(lsn, _)| *lsn).min()
    }
}

/// A connected backup's hold on the log.
#[derive(Debug)]
pub struct Pin {
    slots: Arc<Slots>,
    number: u64,
}

impl Slots {
    /// A backup connects: log from `position` on is held for as long as the pin lives, and a moment longer. Blocks
    /// while log is removed; what was needed may be gone by then, so look again.
    #[must_use]
    pub fn pin(self: &Arc<Self>, position: Lsn) -> Pin {
        let _gate = super::lock(&self.gate);
        let mut pins = super::lock(&self.pins);
        pins.count += 1;
        let number = pins.count;
        pins.held.insert(number, (position, None));
        Pin { slots: Arc::clone(self), number }
    }
}

impl Pin {
    /// The backup has everything before `flush` durably.
    pub fn confirmed(&self, flush: Lsn) {
        let mut pins = super::lock(&self.slots.pins);
        let Some((position, _)) = pins.held.get_mut(&self.number) else { return };
        if flush <= *position {
            return;
        }
        let left = first_needed(flush) > first_needed(*position);
        *position = flush;
        drop(pins);
        if left {
            self.slots.moved.notify_one();
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.slots.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, until)) = pins.held.get_mut(&self.number) {
            *until = Some(Instant::now() + LINGER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_while_it_lives_and_a_moment_longer() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Arc::new(Slots::open(dir.path()).unwrap());
        let least = |later: Duration| slots.pins.lock().unwrap().least(Instant::now() + later);
        assert_eq!(least(Duration::ZERO), None);
        let (a, b) = (slots.pin(Lsn(100)), slots.pin(Lsn(200)));
        a.confirmed(Lsn(50));
        assert_eq!(least(Duration::from_secs(3600)), Some(Lsn(100)), "connected for however long");
        a.confirmed(Lsn(300));
        assert_eq!(least(Duration::ZERO), Some(Lsn(200)));
        drop(b);
        assert_eq!(least(LINGER / 2), Some(Lsn(200)), "it may come back");
        assert_eq!(least(2 * LINGER), Some(Lsn(300)), "it did not");
        drop(a);
        assert_eq!(least(2 * LINGER), None);
        assert!(slots.told().1.is_empty(), "a pin is no slot");
    }
}
