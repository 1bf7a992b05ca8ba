//! How far a backup is, for those who show it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::net::Upstream;

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// Looking for the node, and taking its catalog.
    #[default]
    Connecting,
    /// Contents come in.
    Copying,
    /// Log comes in, and is replayed where the form wants that.
    Log,
    /// What was written is read and summed.
    Checking,
    /// All is there.
    Done,
}

impl Phase {
    /// For a line of progress.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Copying => "copying",
            Self::Log => "taking the log",
            Self::Checking => "checking",
            Self::Done => "done",
        }
    }
}

/// A look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "they say what they are")]
pub struct View {
    pub phase: Phase,
    pub files: u64,
    pub files_total: u64,
    pub bytes: u64,
    pub bytes_total: u64,
    /// Files and bytes that are to be copied, once that is known.
    pub estimate: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Inner {
    view: View,
    upstream: Option<Arc<Upstream>>,
}

/// How far a backup is. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Inner>>);

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands now.
    #[must_use]
    pub fn view(&self) -> View {
        let inner = self.lock();
        let mut view = inner.view;
        let fill = inner.upstream.as_ref().and_then(|u| u.status().fill);
        view.estimate = view.estimate.or(fill.as_ref().map(|fill| (fill.files_total, fill.bytes_total)));
        if let Some(fill) = fill.filter(|_| matches!(view.phase, Phase::Connecting | Phase::Copying)) {
            view = View {
                phase: Phase::Copying,
                files: fill.files,
                files_total: fill.files_total,
                bytes: fill.bytes,
                bytes_total: fill.bytes_total,
                ..view
            };
        }
        view
    }

    /// Contents come through this.
    pub(super) fn copying(&self, upstream: &Arc<Upstream>) {
        self.lock().upstream = Some(Arc::clone(upstream));
    }

    /// Something else is being done.
    pub(super) fn enters(&self, phase: Phase, files_total: u64, bytes_total: u64) {
        let view = &mut self.lock().view;
        let estimate = view.estimate.or((phase == Phase::Copying).then_some((files_total, bytes_total)));
        *view = View { phase, files: 0, files_total, bytes: 0, bytes_total, estimate };
    }

    /// So much of it is done.
    pub(super) fn add(&self, files: u64, bytes: u64) {
        let view = &mut self.lock().view;
        (view.files, view.bytes) = (view.files + files, view.bytes + bytes);
    }
}
