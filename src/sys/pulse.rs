//! Signs of life: an engine's thread *beats* whenever it turns its loop and whenever a call to the operating system
//! has come back, so that one that works for long is told from one that hangs. A beat costs a few nanoseconds.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The beats of the threads that [adopted](Pulse::adopt) it.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

/// The beats of all other threads.
static OTHERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static MINE: OnceCell<Pulse> = const { OnceCell::new() };
}

impl Pulse {
    /// Beats so far. Only whether the number moves means something.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// From now on the beats of this thread count here. A thread does so once; its threads of the moment may follow.
    pub fn adopt(&self) {
        // Whoever adopted another one before keeps that.
        let _ = MINE.try_with(|mine| mine.set(self.clone()));
    }
}

/// What this thread has adopted, for threads that it waits for.
#[must_use]
pub fn mine() -> Option<Pulse> {
    MINE.try_with(|mine| mine.get().cloned()).ok().flatten()
}

/// Beats of threads without a pulse of their own.
#[must_use]
pub fn others() -> u64 {
    OTHERS.load(Ordering::Relaxed)
}

/// This thread is alive.
#[inline]
pub fn beat() {
    // At the end of a thread there is nothing left to count in.
    let _ = MINE.try_with(|mine| mine.get().map_or(&OTHERS, |p| &p.0).fetch_add(1, Ordering::Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_beats_for_what_it_adopted_and_for_nobody_else() {
        let (own, other) = (Pulse::default(), Pulse::default());
        let adopted = own.clone();
        let thread = std::thread::spawn(move || {
            adopted.adopt();
            beat();
            let mine = mine().unwrap();
            std::thread::scope(|s| {
                s.spawn(|| {
                    mine.adopt();
                    beat();
                });
            });
        });
        thread.join().unwrap();
        let before = others();
        beat();
        assert!(others() > before && mine().is_none());
        assert_eq!((own.beats(), other.beats()), (2, 0));
    }
}
