//! Whether fill data is compressed: decided by measuring, since nothing else knows which is the
//! narrow place, the line, the far disk or this machine's processor. Pure; time comes as an argument.
//!
//! The stream is cut into windows. While sending never waits, or the receiver is not starved (then its
//! disk is what takes time), compression can win nothing. Else one window is tried compressed, and the way that moved more content per second is kept for a
//! while that doubles each time the trial loses.

use std::time::Duration;

/// Content measured per decision.
const WINDOW: u64 = 16 << 20;
/// A window that waited for less of its time than this has nothing to win.
const STALLED: f64 = 0.2;
/// A receiver that waits for bytes for less of its time (percent) is no reason to compress.
const STARVED: u8 = 50;
/// What compression must gain to be kept.
const GAIN: f64 = 1.2;
/// Content that shrinks by less than this is not worth a trial's end.
const SHRINK: f64 = 0.9;
/// Content after which a trial is broken off if it does not shrink.
const GLANCE: u64 = 2 << 20;
/// Windows between two trials, at first and at most.
const PAUSE: (u32, u32) = (4, 256);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Raw,
    Trial,
    Kept,
}

/// The state of the decision for one connection.
#[derive(Debug)]
pub(super) struct Adaptive {
    mode: Mode,
    began: Duration,
    raw: u64,
    stored: u64,
    stalled: Duration,
    /// What the receiver said last.
    starved: u8,
    /// Content per second of the last window sent as it is.
    raw_rate: f64,
    /// Windows until something else may be tried, and how many after the next loss.
    wait: u32,
    pause: u32,
}

impl Adaptive {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            mode: Mode::Raw,
            began: now,
            raw: 0,
            stored: 0,
            stalled: Duration::ZERO,
            starved: 0,
            raw_rate: 0.0,
            wait: 0,
            pause: PAUSE.0,
        }
    }

    /// Whether the next message should be compressed.
    pub(super) fn compress(&self) -> bool {
        self.mode != Mode::Raw
    }

    /// The receiver waited for bytes for so many percent of its time lately.
    pub(super) fn starved(&mut self, percent: u8) {
        self.starved = percent;
    }

    /// A message was sent: its content, its size, how long sending it waited.
    pub(super) fn sent(&mut self, raw: usize, stored: usize, stalled: Duration, now: Duration) {
        self.raw += raw as u64;
        self.stored += stored as u64;
        self.stalled += stalled;
        let shrinks = self.stored as f64 <= self.raw as f64 * SHRINK;
        if self.mode != Mode::Raw && self.raw >= GLANCE && !shrinks {
            self.lost();
            return self.window(now);
        }
        if self.raw < WINDOW {
            return;
        }
        let seconds = now.saturating_sub(self.began).as_secs_f64().max(1e-9);
        let rate = self.raw as f64 / seconds;
        match self.mode {
            Mode::Raw => {
                self.raw_rate = rate;
                self.wait = self.wait.saturating_sub(1);
                let waits = self.stalled.as_secs_f64() > seconds * STALLED && self.starved >= STARVED;
                if self.wait == 0 && waits {
                    self.mode = Mode::Trial;
                }
            }
            Mode::Trial if rate > self.raw_rate * GAIN => {
                self.mode = Mode::Kept;
                (self.wait, self.pause) = (PAUSE.1 / 4, PAUSE.0);
            }
            Mode::Trial => self.lost(),
            Mode::Kept => {
                self.wait = self.wait.saturating_sub(1);
                if self.wait == 0 {
                    // Measured anew now and then: the line may have become wide.
                    self.mode = Mode::Raw;
                }
            }
        }
        self.window(now);
    }

    fn lost(&mut self) {
        self.mode = Mode::Raw;
        self.wait = self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }

    fn window(&mut self, now: Duration) {
        (self.raw, self.stored, self.stalled, self.began) = (0, 0, Duration::ZERO, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Sends `mib` of content that shrinks to `ratio` over a line of `line` MiB/s, compressing at `zstd` MiB/s.
    /// The share of it that was compressed.
    fn run(mib: usize, ratio: f64, line: f64, zstd: f64, starved: u8) -> f64 {
        let mut now = Duration::ZERO;
        let mut a = Adaptive::new(now);
        let mut compressed = 0;
        a.starved(starved);
        for _ in 0..mib {
            let squeeze = a.compress();
            let stored = if squeeze { (MIB as f64 * ratio.min(1.0)) as usize } else { MIB };
            let work = Duration::from_secs_f64(1.0 / if squeeze { zstd } else { 4000.0 });
            let wire = Duration::from_secs_f64(stored as f64 / MIB as f64 / line);
            now += work.max(wire);
            a.sent(MIB, stored, wire.saturating_sub(work), now);
            compressed += usize::from(squeeze);
        }
        compressed as f64 / mib as f64
    }

    #[test]
    fn a_wide_line_gets_content_as_it_is() {
        assert_eq!(run(4000, 0.3, 5000.0, 400.0, 90), 0.0);
    }

    #[test]
    fn a_line_faster_than_the_compressor_is_tried_seldom() {
        assert!(run(20_000, 0.5, 1000.0, 400.0, 90) < 0.05);
    }

    #[test]
    fn a_narrow_line_gets_it_compressed() {
        assert!(run(4000, 0.4, 100.0, 400.0, 90) > 0.9);
    }

    #[test]
    fn a_slow_disk_at_the_far_end_is_no_reason() {
        assert_eq!(run(4000, 0.3, 100.0, 400.0, 20), 0.0);
    }

    #[test]
    fn content_that_does_not_shrink_is_left_alone() {
        assert!(run(20_000, 1.0, 100.0, 400.0, 90) < 0.02);
    }
}
