//! The node that is to lead, asked by the leader that it follows: one question, one answer. What to answer is not this
//! module's matter.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::door::Seat;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, HANDSHAKE, MessageReader, MessageWriter};
use crate::wire::{Handover, Heir, Hello, Message};

/// Longest time that an answer may take: whether the node may lead is asked by a command.
const ANSWER: Duration = Duration::from_secs(60);

/// An answer in the making.
pub type HeirAnswer = Pin<Box<dyn Future<Output = Heir> + Send>>;
/// What answers a leader that would hand over: who asks, and what.
pub type HeirDesk = Arc<dyn Fn(Hello, Handover) -> HeirAnswer + Send + Sync>;

/// Takes the question behind a hello that was let in, and answers it.
pub(super) async fn attend<R, W>(
    (mut reader, mut writer): (MessageReader<R>, MessageWriter<W>),
    hello: Hello,
    address: String,
    desk: HeirDesk,
    seat: Seat,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let unseated = seat.taken_away();
    let answered = async {
        let late = |_| Error::new(ErrorKind::Unavailable, "no question within the time allowed");
        let question = tokio::time::timeout(HANDSHAKE, reader.next()).await.map_err(late)??;
        let question = match question {
            Some(Message::Handover(question)) => question,
            // It wanted to know who is here.
            Some(Message::Goodbye { .. }) | None => return Ok(()),
            Some(other) => return Err(net::unexpected(&other)),
        };
        let late = |_| Error::new(ErrorKind::Unavailable, "no answer within the time allowed");
        let heir = tokio::time::timeout(ANSWER, desk(hello.clone(), question)).await.map_err(late)?;
        writer.send(&Message::Heir(heir)).await
    };
    let answered: Result<()> = tokio::select! {
        () = unseated.cancelled() => return,
        answered = answered => answered,
    };
    if let Err(e) = answered {
        let name = hello.name.escape_debug();
        tracing::debug!("a handover asked for by '{name}' at {address}: {}", net::one_line(&e.to_string()));
    }
}

/// A desk for tests of something else.
#[cfg(test)]
pub(crate) fn nobody() -> HeirDesk {
    Arc::new(|_, _| Box::pin(async { Heir::no("nobody is asked here") }))
}
