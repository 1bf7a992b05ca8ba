//! Synchronous replication as the daemon does it: rules from the configuration, and what `status` says of them.

use crate::config::{Config, SyncLoss};
use crate::error::Result;
use crate::position::Lsn;
use crate::send::Peers;
use crate::status::SyncPart;
use crate::sync::Rules;

/// What the configuration asks for.
pub(super) fn rules(config: &Config) -> Result<Rules> {
    Ok(Rules {
        policy: config.policy()?,
        level: config.synchronous_level,
        near: config.sync_near.0,
        max_lag: config.sync_max_lag.0,
    })
}

/// Takes the configuration into force, for those that wait too.
pub(super) fn enforce(peers: &Peers, config: &Config) -> Result<()> {
    let rules = rules(config)?;
    if rules.policy.impossible() {
        tracing::warn!(
            "synchronous_followers is '{}': it asks for {} followers but names fewer; nothing is ever confirmed",
            rules.policy,
            rules.policy.count
        );
    }
    peers.set_rules(rules);
    Ok(())
}

/// The part of `status`.
pub(super) fn part(peers: &Peers, config: &Config) -> SyncPart {
    let force = peers.in_force().borrow().clone();
    let policy = &force.rules.policy;
    let [write, flush, apply] =
        peers.confirmed().map(|lsn| lsn.filter(|_| !policy.is_async()).map(|l: Lsn| l.to_string()));
    SyncPart {
        policy: policy.to_string(),
        level: force.rules.level.word(),
        loss: match config.sync_loss {
            SyncLoss::Report => "report",
            SyncLoss::Freeze => "freeze",
        },
        satisfied: force.satisfied,
        required: policy.count as u64,
        present: force.present as u64,
        missing_since: force.missing_since,
        write,
        flush,
        apply,
        waiters: peers.waiting() as u64,
        ..SyncPart::default()
    }
}

/// What holds now, to be added to the sentence about captures.
pub(super) fn guarantee(part: &SyncPart) -> String {
    match (part.policy.as_str(), part.satisfied) {
        ("", _) => "; replication is asynchronous".to_owned(),
        (policy, true) => {
            format!("; what `towline wait` says is replicated is confirmed by {policy} at {}", part.level)
        }
        (policy, false) => format!("; {policy} is not there: nothing is confirmed"),
    }
}
