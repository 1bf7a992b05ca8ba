//! Death and failing disks at every named place, and at random, under load: after a restart the
//! follower converges, nothing is applied twice, and no operator helps.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "coverage is printed")]

#[path = "../support/mod.rs"]
mod support;

mod acks;
mod backup;
mod failover;
mod faults;
mod fence;
mod kills;
mod notes;
mod places;
mod resync;
mod rounds;
mod slots;
mod trust;
