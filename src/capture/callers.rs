//! Those who wait for everything that the directory holds to be committed: whom a pass under way takes along.

use super::engine::Engine;
use super::{Request, lock};
use crate::error::Result;
use crate::position::Lsn;

impl Engine {
    /// Callers that came since the pass began are covered by it too, if its next mark is yet to be made and nothing was
    /// left out of it.
    pub(super) fn join_callers(&mut self) {
        if !self.resting.is_empty() || self.scan_wanted || self.watch.missing_count() > 0 {
            return;
        }
        {
            let mut requests = lock(&self.shared.requests);
            if requests.is_empty() || !requests.iter().all(|r| matches!(r, Request::Barrier(_))) {
                return;
            }
            self.joined += requests.len();
            self.waiting.extend(requests.drain(..).filter_map(|request| match request {
                Request::Barrier(reply) => Some(reply),
                _ => None,
            }));
        }
        self.hot.begin(&self.look);
        self.hot.poll(&self.look, &self.hints, false);
    }

    /// Answers those whom the pass has covered. Not those that joined one which turned out to need a scan, or did without
    /// directories that can't be watched: what was lost may be what they wait for. `missing`: it looked into those.
    pub(super) fn answer_those_covered(&mut self, answer: &Result<Lsn>, missing: bool) {
        let short = self.scan_wanted || (!missing && self.watch.missing_count() > 0);
        let joined = std::mem::take(&mut self.joined);
        let late = if short && answer.is_ok() { joined } else { 0 };
        let late = self.waiting.split_off(self.waiting.len().saturating_sub(late));
        self.answer(answer);
        if !late.is_empty() {
            self.waiting = late;
            self.hints.wake();
        }
    }
}
