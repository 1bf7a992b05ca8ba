//! What can be typed about slots.

use clap::{Args, Subcommand};

use super::Ask;
use crate::position::Lsn;

/// Commands on slots.
#[derive(Debug, Subcommand)]
pub enum Slot {
    /// Print every slot: what it holds, and how much longer.
    List(Ask),
    /// Print one slot; there being none is an error.
    Show(Named),
    /// Make a slot for a follower that is yet to come.
    Create(Create),
    /// Take away the slot of a follower that does not come back.
    Drop(Named),
    /// Move a slot forward: log before the position is no longer held by it.
    Advance(Advance),
}

/// A slot.
#[derive(Debug, Args)]
pub struct Named {
    /// Name of the follower.
    pub name: String,
    /// Where the daemon is.
    #[command(flatten)]
    pub ask: Ask,
}

/// Flags of `slot create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Which.
    #[command(flatten)]
    pub slot: Named,
    /// Hold log from now on instead of from the follower's first connection on.
    #[arg(long)]
    pub reserve: bool,
}

/// Flags of `slot advance`.
#[derive(Debug, Args)]
pub struct Advance {
    /// Which.
    #[command(flatten)]
    pub slot: Named,
    /// Where to, like 0/2000000.
    pub lsn: Lsn,
}
