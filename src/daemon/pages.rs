//! The address of the pages over HTTP: opened at the start, and another one by a reload.

use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Node, lock, show};
use crate::config;
use crate::error::Result;
use crate::http;
use crate::sys::vital;

/// What serves pages now.
#[derive(Default)]
pub(super) struct Pages {
    open: Mutex<Option<Opened>>,
}

struct Opened {
    address: String,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Pages {
    /// Serves pages on this address from now on, and on no other. Whoever asks at the old one is answered until the
    /// new one is open.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Config`] when the address can't be had; then nothing changes.
    pub(super) async fn set(&self, node: &Arc<Node>, address: Option<&str>) -> Result<()> {
        if lock(&self.open).as_ref().map(|o| o.address.as_str()) == address {
            return Ok(());
        }
        let opened = match address {
            None => None,
            Some(address) => {
                let listener = http::open(config::address(address)?).await?;
                if let Ok(at) = listener.local_addr() {
                    tracing::info!("pages are served on http://{at}/");
                }
                let (cancel, node) = (CancellationToken::new(), Arc::clone(node));
                let source: http::Source = Arc::new(move || Box::pin(show::shown(Arc::clone(&node))));
                let task = tokio::spawn(vital::task(
                    "the pages over HTTP",
                    http::serve(listener, source, cancel.clone()),
                ));
                Some(Opened { address: address.to_owned(), cancel, task })
            }
        };
        let old = std::mem::replace(&mut *lock(&self.open), opened);
        if let Some(old) = old {
            old.cancel.cancel();
            let _ = old.task.await;
        }
        Ok(())
    }
}
