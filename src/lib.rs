//! towline: PostgreSQL-style physical log shipping for any data directory.
//!
//! A leader watches a data directory and turns its changes into a log of compressed, checksummed
//! segments; followers take the log over TCP, keep it, and replay it into directories of their own.
//!
//! # The way the data goes
//!
//! ```text
//!       leader                                                  follower
//!  application                                                 readers
//!      | writes                                                     ^
//!  data directory                                             data directory
//!      | hints, scans                                               ^ beneath-only writes
//!   capture --records--> log ==stored==> send ==TCP==> receive ==stored==> log --records--> apply
//!      |                  bytes                          bytes                       |
//!    fold: catalog, blocks       <---- acks: write, flush, apply ----          fold: catalog, blocks
//! ```
//!
//! One write, from the application to the follower's disk:
//!
//! 1. An event, a poll or a scan names the path in `capture::hints`; `capture::pass` looks there:
//!    `capture::examine` stats the name, `capture::content` reads the file between two stats and
//!    compares block hashes with [`fold`], `capture::stage` holds what was found over the catalog.
//! 2. The pass proves by a mark in the event queue and by time stamps that all it looked at is as it
//!    was at one instant; `capture::commit` turns the differences into [`record`]s and ends the change
//!    set with a commit that carries the tree digest of [`catalog`]; [`log`] compresses the
//!    frame, writes and fsyncs it, and publishes the new tail.
//! 3. [`send`] reads the stored bytes up to the tail and sends them as they are; it does not know
//!    what a record is.
//! 4. [`receive`] hands them to the follower's [`log`], which checks every frame, writes the same
//!    bytes, fsyncs, publishes its tail; the flush acknowledgement goes back.
//! 5. [`apply`] takes the complete change sets up to the newest exact cut, folds them (the digest of
//!    every commit is checked), squashes them into one net change and performs it.
//!
//! The log is the only shared state: capture does not know that followers exist, send does not know
//! records, receive does not know apply. A new follower gets its first copy by [`fill`].
//!
//! A promotion ends the line of log that a follower stands on and begins the next [`history`] has; the log across the branch is
//! one hash chain, and who follows goes over it without a copy ([`session`] decides who may). A leader that hears of a line which goes
//! on from its own is fenced; rewound, it keeps in [`lost`] what only it has, and follows.
//!
//! # Modules and floors
//!
//! A module uses lower floors, and modules of its own floor that are named before it. Floors 0 to 2
//! are pure: values in, values out, no I/O, no clock, no threads. `tests/tidy.rs` checks this table.
//!
//! | floor | modules | what they own |
//! | --- | --- | --- |
//! | 0 words | [`position`] [`codec`] [`error`] [`failpoint`] [`moment`] | LSN, timeline, ids; bounded cursors and the frame of small files; the error with its class; places where tests kill; instants as text |
//! | 1 formats | [`certificate`] [`record`] [`segment`] [`history`] [`wire`] [`manifest`] [`pack`] | what is read of a certificate; what happened to files; bytes of a segment; where timelines branched; messages between nodes; what is in a backup; its contents as they were sent |
//! | 2 decisions | [`catalog`] [`session`] [`quorum`] [`retention`] [`trust`] | the tree as a fold over records, its digest; who may stream from where; who has to confirm what; which log may go; which peer may ask what |
//! | 3 seams | [`sys`] [`disk`] [`quiesce`] [`tls`] [`net`] | safe system calls beneath the root; durable writes, small notes and the lock; holding the application still; keys, certificates and whom they prove; framed connections |
//! | 4 stores | [`log`] [`blocks`] [`fold`] [`checkpoint`] [`state`] [`lost`] [`slots`] [`archive`] [`set`] | segments on disk; block hashes; catalog and blocks kept in step; catalog files; control file; changes that were left behind; what followers still need; segments and backups elsewhere; reading a backup wherever it is |
//! | 5 engines | [`capture`] [`apply`] [`archiver`] | directory to log; log to directory; log to archive |
//! | 6 links | [`fill`] [`sync`] [`send`] [`receive`] [`backup`] [`restore`] [`verify`] [`combine`] | the first copy; waits for confirmations; serving followers; following a leader; base backups; a backup and log as a directory; checking what is kept; one full backup of a chain |
//! | 7 process | [`config`] [`control`] [`http`] [`status`] [`daemon`] | the file; the control socket; pages for load balancers and Prometheus; what status shows; wiring, signals, restarts |
//! | 8 cli | [`cli`] | commands, output, exit codes |

pub mod apply;
pub mod archive;
pub mod archiver;
pub mod backup;
pub mod blocks;
pub mod capture;
pub mod catalog;
pub mod certificate;
pub mod checkpoint;
pub mod cli;
pub mod codec;
pub mod combine;
pub mod config;
pub mod control;
pub mod daemon;
pub mod disk;
pub mod error;
pub mod failpoint;
pub mod fill;
pub mod fold;
pub mod history;
pub mod http;
pub mod log;
pub mod lost;
pub mod manifest;
pub mod moment;
pub mod net;
pub mod pack;
pub mod position;
pub mod quiesce;
pub mod quorum;
pub mod receive;
pub mod record;
pub mod restore;
pub mod retention;
pub mod segment;
pub mod send;
pub mod session;
pub mod set;
pub mod slots;
pub mod state;
pub mod status;
pub mod sync;
pub mod sys;
pub mod tls;
pub mod trust;
pub mod verify;
pub mod wire;
