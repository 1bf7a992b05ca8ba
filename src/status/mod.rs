//! What `towline status` shows. The JSON form is a contract: keys are only ever added, and each stands in the table
//! below, which a test compares with what live nodes print. `X[].` is each item of the list `X`; what has no value
//! is `null`. Positions are texts like `0/1000000`; times are nanoseconds since 1970.
//!
//! | key | meaning |
//! | --- | --- |
//! | `role` | `leader` or `follower` |
//! | `name` | the node's name among its peers |
//! | `version` | of the program |
//! | `data` | the data directory |
//! | `listen` | where followers are served, with the port that was taken; `null`: nowhere, or not yet |
//! | `system` | what it replicates |
//! | `timeline` | the epoch of its log |
//! | `node` | its id, made once |
//! | `started` | when the process began |
//! | `now` | the node's clock |
//! | `state` | `starting`, `filling`, `resyncing`, `recovering`, `running`, `stopping`; `healing`: damaged log is fetched again; `handing-over`: this node has handed over, and leads no more, until the other leads; `stalled`: failed, tried again by itself; `corrupt`, `missing`, `diverged`, `refused`, `config`: failed, and needs help; `held`: a guard waits for `towline confirm`; `fenced`: a leader that does not lead any more, because another line goes on from its own, see `fence`; `vetoed`: one that stands aside, because `may_lead` does not let it lead |
//! | `health` | `ok`; `starting`; `behind`; `delayed`: shows what `apply_delay` allows; `paused`: stands still until `towline resume`; `degraded`: a leader with fewer followers than have to confirm, or that can't freeze the application as it should; `frozen`: the application stands still until they are back, see `sync`; `cut-off`: a follower without its upstream, or whose upstream has had no news of the leader for too long; `retrying`: failed, may go away by itself; `help`: never goes on, or never catches up, without an operator; `fenced`, `vetoed`: as the state; `split`: a leader, and another node leads apart from it, see `rivals` |
//! | `error` | what keeps the node from `running` |
//! | `error.kind` | its class, as in the exit codes |
//! | `error.message` | what it is |
//! | `error.remedy` | what to do about it |
//! | `error.needs_help` | whether it stays until somebody does something |
//! | `error.since` | when it began |
//! | `error.attempts` | how often it was tried again |
//! | `error.next_retry` | when it is tried next; `null`: it is not tried by time |
//! | `fence` | leader only: why it does not lead any more |
//! | `fence.since` | when it heard of the newer line |
//! | `fence.timeline`, `fence.by` | the timeline that goes on in its place, and who began that |
//! | `fence.branch` | where the own timeline ended on the way to it; `null`: not known |
//! | `fence.heard_from` | the node that told of it |
//! | `fence.address` | where the node that leads answers, if that is known |
//! | `fence.demoted` | whether `on_demote` has run to its end |
//! | `rivals` | leader only: nodes that lead apart from it, on a line that does not go on from its own, nor that from it |
//! | `rivals[].name`, `rivals[].address` | which; the address is `null` for one that came by itself |
//! | `rivals[].timeline`, `rivals[].line`, `rivals[].since` | its timeline, which line of that number, and since when it is known |
//! | `log` | the node's own log |
//! | `log.written` | end of what is handed to the file system |
//! | `log.end` | end of what is durable |
//! | `log.commit` | end of the last complete change set |
//! | `log.exact` | end of the last one with an exact cut |
//! | `log.segment` | the newest segment |
//! | `log.commit_time` | when `log.commit` was made, by the leader's clock |
//! | `cuts` | how good the newest cuts in the log are |
//! | `cuts.newest` | `exact`, or `file`: commits wait for an exact cut |
//! | `cuts.exact_time` | when the newest exact cut was, by the leader's clock |
//! | `cuts.exact_age` | seconds since the oldest commit that waits for an exact cut; 0 when none does, however long ago the newest was |
//! | `cuts.waiting_bytes` | bytes of log that wait for one |
//! | `capture` | leader only: what capture did since the process began, and sees |
//! | `capture.cuts_exact`, `capture.cuts_file` | change sets by cut |
//! | `capture.last_exact`, `capture.last_exact_time` | position and time of the last exact one |
//! | `capture.gaps` | times that changes were missed and had to be looked for |
//! | `capture.gap_open` | whether that is going on |
//! | `capture.found_by_scan` | changes that only a scan found |
//! | `capture.unstable` | files that changed while they were read |
//! | `capture.events` | events of the kernel |
//! | `capture.overflows` | times its queue overflowed |
//! | `capture.watches`, `capture.unwatched` | directories watched, and those that only scans see |
//! | `capture.hot_files`, `capture.hot_dropped` | files polled, and those that were too many for that |
//! | `capture.hidden_processes` | programs whose mappings may not be looked at |
//! | `capture.unhashed_files` | files whose content was not read yet |
//! | `capture.other_file_systems` | mounts below, which are left out |
//! | `capture.files` | files and directories of the tree |
//! | `capture.freezes`, `capture.freeze_failures` | times the application was held still, and failed to be |
//! | `capture.freeze_last_ms`, `capture.freeze_longest_ms` | how long the last and the longest took |
//! | `capture.freeze_clones` | files cloned meanwhile |
//! | `capture.freeze_read_bytes` | bytes read meanwhile |
//! | `capture.unreadable` | a path that can't be read |
//! | `capture.refused` | a path that is not replicated, and why |
//! | `capture.hold` | what a guard holds |
//! | `capture.hold_since` | since when |
//! | `capture.hold_deletes` | whether `towline confirm` lets it through |
//! | `apply` | follower only: the directory |
//! | `apply.lsn` | what it shows |
//! | `apply.cut` | `exact` or `file` |
//! | `apply.consistent` | whether it is usable |
//! | `apply.state` | `recovering`, `filling`, `idle`, `applying`, `paused`, `stopped`, `failed` |
//! | `apply.paused` | whether a pause was asked for |
//! | `apply.delay` | seconds that a commit waits before it is shown |
//! | `apply.stop_at` | the target at which replay stops |
//! | `apply.stopped` | the position where it stopped, once the target is reached |
//! | `apply.checkpoint`, `apply.checkpoints` | the newest durable checkpoint, and how many since the start |
//! | `apply.commits`, `apply.records`, `apply.batches` | change sets, records and steps since the start |
//! | `apply.inexact` | why it stands still, when exact cuts stay away for longer than allowed |
//! | `apply.inexact_applied` | file cuts that were applied for that reason |
//! | `apply.redone`, `apply.scanned` | bytes of log redone and entries looked at at the start |
//! | `apply.suspects` | files redone after a crash that are still to be compared |
//! | `apply.skipped_privilege` | what is in the catalog only for want of privilege: how many by class |
//! | `apply.local_edits_total`, `apply.local_edits_repaired` | changes by others seen and put right since the start |
//! | `apply.local_edits_standing` | those that the last round of the patrol met |
//! | `apply.scrub` | the comparison of contents with their hashes, since the process began |
//! | `apply.scrub.files`, `apply.scrub.bytes`, `apply.scrub.passes` | files compared, bytes read, whole passes |
//! | `apply.scrub.began` | when the pass under way began |
//! | `apply.scrub.last_full` | when the last whole pass ended |
//! | `apply.scrub.skipped` | files passed over: edited here, or changed too often |
//! | `apply.scrub.mismatches` | files whose content is not what was applied, though their stamps are |
//! | `apply.scrub.damaged` | the first of them |
//! | `apply.scrub.damaged[].path`, `apply.scrub.damaged[].count`, `apply.scrub.damaged[].blocks` | which, how many of its blocks of 16 KiB, and which first |
//! | `apply.patrols` | rounds of the patrol |
//! | `apply.local_edits` | the first of them |
//! | `apply.local_edits[].path`, `apply.local_edits[].what` | which, and what is different |
//! | `upstream` | follower only: the node it follows |
//! | `upstream.addresses` | where it may be |
//! | `upstream.wanted_role` | what is asked for there: `any`, `leader`, `follower` |
//! | `upstream.address`, `upstream.name` | where it is, and its name |
//! | `upstream.state` | `connecting`, `filling`, `streaming`, `refused`, `resync` |
//! | `upstream.protocol` | the version spoken with it |
//! | `upstream.code` | why it refuses |
//! | `upstream.error` | what ended the last attempt |
//! | `upstream.attempts`, `upstream.since`, `upstream.next_retry` | failed attempts, since when, and when the next is made |
//! | `upstream.end`, `upstream.commit`, `upstream.exact` | its positions |
//! | `upstream.heard` | when it was last heard |
//! | `upstream.leader_silent` | seconds since it had news of the leader, if it has none |
//! | `upstream.sync_state` | this node's place among the synchronous followers, as the upstream last said |
//! | `upstream.sync_counts` | whether its confirmations count now |
//! | `upstream.fill` | progress of the first copy |
//! | `upstream.fill.files`, `upstream.fill.files_total` | regular files |
//! | `upstream.fill.bytes`, `upstream.fill.bytes_total` | their content |
//! | `upstream.tls`, `upstream.fingerprint` | whether the connection is encrypted, and whose key the upstream has |
//! | `resync` | follower only: resyncs |
//! | `resync.cause` | why one is wanted or under way |
//! | `resync.completed` | those completed since the start |
//! | `resync.removed` | names that the last one removed |
//! | `resync.differing` | files of which something differed |
//! | `resync.received_bytes`, `resync.zeroed_bytes` | content of them that came, and that was made zero |
//! | `resync.read_bytes` | bytes read here to be compared |
//! | `resync.wire_bytes` | bytes over the connection, in both directions |
//! | `resync.took_ms` | how long it took |
//! | `resync.repaired_files`, `resync.repaired_bytes` | files that were not what was applied, and what of them was replaced, since the start |
//! | `resync.repaired` | their names, the newest last |
//! | `resync.lost_logs`, `resync.lost_bytes` | logs put aside in `lost/` of the state directory, because they hold what the upstream has not |
//! | `followers` | who is connected here, or was |
//! | `followers[].name`, `followers[].address` | who, and from where |
//! | `followers[].state` | `connecting`, `filling`, `catchup`, `streaming`, `away` |
//! | `followers[].sent`, `followers[].write`, `followers[].flush`, `followers[].apply` | its positions |
//! | `followers[].apply_time` | when the commit at `apply` was made |
//! | `followers[].connected`, `followers[].heard` | when it came, and when it was last heard |
//! | `followers[].bytes_received`, `followers[].bytes_sent` | over this connection |
//! | `followers[].filled_files`, `followers[].filled_bytes` | sent by a first copy over it |
//! | `followers[].halted` | whether its directory has diverged, or was changed by others, and rests until somebody helps there |
//! | `followers[].reason` | why it left |
//! | `followers[].sync_state` | as in pg_stat_replication: `sync`, `potential`, `quorum`, `async` |
//! | `followers[].sync_priority` | its place in the list of synchronous followers, from 1; 0: it is not there |
//! | `followers[].sync_counts` | whether its confirmations count now, at the level in force |
//! | `followers[].tls`, `followers[].fingerprint` | whether its connection is encrypted, and whose key it has |
//! | `followers[].roles` | what it is trusted as, over an encrypted connection |
//! | `followers[].delay` | seconds that a commit waits there before it is shown (its `apply_delay`); `null`: it did not say |
//! | `followers[].lag` | how far behind it is; `null` before it said where it stands |
//! | `followers[].lag.sent_bytes`, `followers[].lag.write_bytes`, `followers[].lag.flush_bytes` | bytes of log that have not come so far |
//! | `followers[].lag.bytes` | bytes of log that its directory does not show |
//! | `followers[].lag.seconds` | age of the oldest commit that its directory does not show, by the leader's clock; 0 when there is none |
//! | `followers[].followers` | the nodes that follow it, as it tells every half `peer_timeout`: `name`, `state`, positions, `heard`, `lag`, `followers` |
//! | `backups` | the backups that are taken here now; they are no followers |
//! | `backups[].name`, `backups[].address` | who takes it, and from where |
//! | `backups[].state` | `connecting`, `copying`, `log`: it takes the log that makes its copy whole |
//! | `backups[].files`, `backups[].bytes` | files and bytes of content sent over this connection |
//! | `backups[].files_total`, `backups[].bytes_total` | how many there were when it began; 0 while it takes log |
//! | `backups[].position` | log is held for it from here on |
//! | `backups[].connected`, `backups[].heard` | when it came, and when it was last heard |
//! | `backups[].bytes_sent` | over this connection |
//! | `backups[].tls`, `backups[].fingerprint`, `backups[].roles` | as of followers |
//! | `slots` | what is remembered of each follower that was ever here, and what log it holds |
//! | `slots[].name` | the follower |
//! | `slots[].kind` | `follower`; `copy`: a first copy or a resync is not complete; `manual`: made by hand, and not used yet |
//! | `slots[].origin` | `own`; `mirrored`: the upstream's |
//! | `slots[].state` | as PostgreSQL's `wal_status`: `reserved`, `extended`, `unreserved`, `lost`; `null`: it reserves nothing yet |
//! | `slots[].reason` | why it is unreserved or lost: `slot_keep`, `disk`, `idle`, `removed` |
//! | `slots[].position` | log from here on is needed |
//! | `slots[].retained_bytes` | what it holds on disk that would be removed otherwise |
//! | `slots[].bytes_left` | log that can be written before `max_slot_keep` is reached, as PostgreSQL's `safe_wal_size`; below zero: it is exceeded; `null`: that is no matter, because its follower is connected, nothing is held, or the node itself needs the log from there on and keeps it whatever the limit says |
//! | `slots[].active`, `slots[].inactive_since` | whether its follower is connected, and since when it is not |
//! | `archive` | leader with an archive only: sealed log on its way there |
//! | `archive.address` | where it is |
//! | `archive.state` | `opening`, `archiving`, `idle`: nothing waits; `failing` |
//! | `archive.archived`, `archive.archived_bytes` | segments confirmed since the start, those found there included, and the bytes put there |
//! | `archive.failed` | attempts that failed since the start |
//! | `archive.last`, `archive.last_time` | the last segment confirmed, and when |
//! | `archive.waiting`, `archive.waiting_bytes` | sealed segments that the archive has not confirmed, and what they take on disk |
//! | `archive.oldest_waiting`, `archive.waiting_since` | the first of them, and when it was sealed |
//! | `archive.error` | why archiving fails |
//! | `archive.needs_help` | whether that stays until somebody does something |
//! | `archive.failing_since`, `archive.attempts`, `archive.next_retry` | since when, how often it was tried, and when it is tried next |
//! | `archive.gaps` | ranges of log that the archive lacks for good, as far as this process has met them |
//! | `archive.gap` | the newest of them |
//! | `archive.gap[].first`, `archive.gap[].last` | the first and the last segment |
//! | `archive.gap[].from`, `archive.gap[].to` | where it begins and ends |
//! | `sync` | leader only: synchronous replication |
//! | `sync.policy` | who has to confirm; empty: nobody |
//! | `sync.level`, `sync.loss` | as configured |
//! | `sync.satisfied` | whether enough followers count |
//! | `sync.required`, `sync.present` | how many have to, and do |
//! | `sync.missing_since` | since when there are too few |
//! | `sync.write`, `sync.flush`, `sync.apply` | up to where the policy has confirmed at each level; `null`: the quorum is missing, or nobody has to confirm |
//! | `sync.waiters` | callers of `towline wait` whose change is durable here and not confirmed yet |
//! | `sync.replicated`, `sync.local_only`, `sync.unknown` | how those before ended |
//! | `sync.frozen_since` | the application is frozen until the quorum is there |
//! | `sync.freeze_error` | why it should be but can't be |
//! | `sync.override_until` | until when an operator lets it run |
//! | `switchover` | switchovers from this node since the process began; `null`: there was none |
//! | `switchover.under_way` | the one that is under way |
//! | `switchover.under_way.to`, `switchover.under_way.address` | who is to lead, and where |
//! | `switchover.under_way.step` | `checks`, `stopping`, `last-pass`, `resting`, `applying`, `asking`, `noting`: all is put back if it fails; `leading`: the other leads, or is asked until it does |
//! | `switchover.under_way.since` | when it began |
//! | `switchover.completed`, `switchover.undone` | how many there were, and how many were put back |
//! | `switchover.last` | the last one that was completed |
//! | `switchover.last.to`, `switchover.last.address`, `switchover.last.timeline`, `switchover.last.at` | who leads since, where, on which timeline and from where on |
//! | `switchover.last.when`, `switchover.last.writes_stopped_seconds` | when the application was stopped, and for how long nothing could be written |
//! | `switchover.last.switched` | `true` |
//! | `lag` | follower only |
//! | `lag.bytes` | bytes of the leader's log that the directory does not show |
//! | `lag.seconds` | age of the oldest commit not yet applied; `null` when all that is known are applied and there has been no news of the leader for longer than `peer_timeout`, directly or through the upstream |
//! | `disk` | room on the file systems of the two directories; `null` where it can't be asked for |
//! | `disk.state`, `disk.data` | `free_bytes`, `size_bytes`, `free_percent` |
//! | `tls` | keys and certificates |
//! | `tls.mode` | as configured: `auto`, `on`, `off` |
//! | `tls.fingerprint` | of this node's key |
//! | `tls.certificate`, `tls.days_left` | the file of its certificate, and how many days that holds; negative: it is expired |
//! | `tls.peers`, `tls.ca` | how many peers are trusted, and by which CAs others |
//! | `tls.warning` | what to see to soon |
//! | `guarantee` | one sentence: what holds right now |

mod bounds;
mod check;
mod health;
mod model;
mod notices;
mod rates;
mod render;
mod slots;
mod view;
mod words;

pub use bounds::{Bounds, Free};
pub use check::{ACCEPTABLE, Figure, Limits, Problem, Severity, Verdict, verdict};
pub use health::{HEALTHS, health};
pub use model::{CutsPart, DiskPart, Failure, Lag, LogPart, Room, Status, SyncPart};
pub use notices::{Notice, WORDS as NOTICES, notices, split, waiting};
pub use rates::{Rates, rates};
pub use render::{render, render_with};
pub use slots::render_slots;
pub use view::View;
pub use words::{bytes, plain, span};
