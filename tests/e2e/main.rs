//! What towline must survive, seen from outside: real directories, real processes, real networks.
//!
//! `TOWLINE_SOAK=1` runs the long variants; `TOWLINE_KEEP=1` keeps the directories.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "measurements and skips are printed")]

#[path = "../support/mod.rs"]
mod support;

mod apps;
mod archive;
mod basebackup;
mod basebackup_packs;
mod basebackup_tar;
mod basic;
mod cascade;
mod check;
mod clones;
mod excludes;
mod fence;
mod full;
mod garbage;
mod health;
mod limits;
mod links;
mod lost;
mod names;
mod network;
mod nightly;
mod objects;
mod order;
mod pages;
mod points;
mod privilege;
mod promote;
mod reload;
mod restore;
mod restore_chain;
mod restore_lines;
mod resync;
mod rewind;
mod rot;
mod s3;
mod scripts;
mod scrub;
mod service;
mod slots;
mod streaming;
mod strict;
mod switchover;
mod switchover_crash;
mod sync;
mod systemd;
mod trouble;
mod trust;
mod verify;
mod web;
mod writers;
