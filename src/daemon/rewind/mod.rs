//! Rewind: a node whose log went past the branch that another one leads from becomes a follower of that one, and nothing that it
//! held is lost without being said.
//!
//! ```text
//!  ask who leads --> note --> log what the directory holds --> in place: follower
//!       |                                    \--> follower --> bundle --> resync --> note gone
//!       \--- refused, or nothing to do: nothing was changed
//! ```
//!
//! | step | what makes it durable | dead after it |
//! | --- | --- | --- |
//! | note | the file `rewind` | it goes on, whether by the command again or by a start of the daemon; until the end the node neither leads nor serves |
//! | the rest into the log | the log, on the old line | it is looked at again |
//! | follower | the control file's role | it goes on |
//! | bundle | `lost/N` under its name | it is made anew, in its place |
//! | resync | see `fill` | it goes on |
//!
//! The steps are the same for a node that is stopped, where the command itself takes them (`oneshot`), and for a running one, in a
//! turn of its own and then in those of a follower (`turn`).

mod oneshot;
mod steps;
mod turn;

pub use oneshot::{Oneshot, rewind};
pub use turn::addresses;
pub(super) use turn::{Rewinds, answer, auto, confirm, finished, order, turn};
