//! What `towline status` shows. The JSON form is a contract: keys are only ever added.
//!
//! | key | meaning |
//! | --- | --- |
//! | `role`, `name`, `version`, `data` | who this is |
//! | `system`, `timeline` | what it replicates |
//! | `state` | `starting`, `filling`, `recovering`, `running`, `stopping`; `healing`: damaged log is fetched again; `stalled`: failed, tried again by itself; `corrupt`, `missing`, `diverged`, `refused`, `config`: failed, and needs help; `held`: a guard waits for `towline confirm` |
//! | `health` | `ok`; `starting`; `behind`; `paused`: stands still until `towline resume`; `cut-off`: a follower without its upstream, or whose upstream has had no news of the leader for too long; `retrying`: failed, may go away by itself; `help`: never goes on, or never catches up, without an operator |
//! | `error` | `null`, or what keeps the node from `running`: `kind`, `message`, `remedy`, `needs_help`, `since` and `next_retry` in ns since 1970 (`null`: it is not tried by time), `attempts` |
//! | `log` | `written`, `end`, `commit`, `exact`: positions; `segment`; `commit_time` in ns since 1970 |
//! | `capture` | leader only: cuts, gaps, holds, watches, what only a scan found |
//! | `apply` | follower only: `lsn`, `cut`, `state`, `paused`, local edits, skipped for lack of privilege |
//! | `upstream` | follower only: the node it follows, state of the connection, progress of a fill; `leader_silent`: seconds since that node had news of the leader, if it has none |
//! | `followers` | who is connected here: `name`, `state`, `sent`, `write`, `flush`, `apply`; as in pg_stat_replication `sync_state` (`sync`, `potential`, `quorum`, `async`) and `sync_priority`; `sync_counts`: its confirmations count now |
//! | `sync` | leader only: `policy` (empty: asynchronous), `level`, `loss` as configured; `satisfied`: enough followers count, `required` and `present` how many; `missing_since` in ns since 1970; `write`, `flush`, `apply`: positions up to which the policy has confirmed, `null`: the quorum is missing, or nobody has to confirm; `waiters`: callers of `towline wait` now; `replicated`, `local_only`, `unknown`: how those before ended; `frozen_since`: the application is frozen until the quorum is there, `freeze_error`: it should be but can't be, `override_until`: an operator lets it run, all of them or `null` |
//! | `lag` | follower only: `bytes`, and `seconds`: age of the oldest commit not yet applied, `null` when all that is known are applied and there has been no news of the leader for longer than `peer_timeout`, directly or through the upstream |
//! | `guarantee` | one sentence: what holds right now |

mod health;
mod model;
mod render;

pub use health::health;
pub use model::{Failure, Lag, LogPart, Status, SyncPart};
pub use render::render;
