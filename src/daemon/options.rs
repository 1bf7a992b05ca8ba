//! Reading the configuration again: what changed, and what it takes to bring it into force.

use std::fmt;

use serde_json::{Value, json};

use crate::config::Config;
use crate::state::Role;

/// The flags of the command line, to be put over the file whenever that is read.
pub struct Flags {
    over: Box<dyn Fn(Config) -> Config + Send + Sync>,
    reloaded: fn(&Config),
}

impl Flags {
    /// Flags as a function from the file's configuration to the one in force.
    pub fn new(over: impl Fn(Config) -> Config + Send + Sync + 'static) -> Self {
        Self { over: Box::new(over), reloaded: |_| {} }
    }

    /// What else of the process follows the configuration: called with each that has come into force.
    #[must_use]
    pub fn on_reload(self, reloaded: fn(&Config)) -> Self {
        Self { reloaded, ..self }
    }

    /// `config` is in force.
    pub(super) fn reloaded(&self, config: &Config) {
        (self.reloaded)(config);
    }

    /// The configuration in force when the file says `config`.
    #[must_use]
    pub fn over(&self, config: Config) -> Config {
        (self.over)(config)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flags")
    }
}

/// Where things are and who this is can't change under a running process.
const FIXED: &[&str] = &["data", "state", "listen"];
/// What every node takes over while it runs.
const LIVE: &[&str] = &["http", "archive"];
/// What a leader takes over while it runs.
const CAPTURE: &[&str] = &[
    "leader",
    "rescan_interval",
    "hot_interval",
    "max_cut_delay",
    "max_delete",
    "max_delete_floor",
    "exclude",
    "freeze",
    "max_freeze",
    "before_cut",
    "after_cut",
    "scrub_rate",
    "checkpoint_bytes",
    "checkpoint_interval",
    "synchronous_followers",
    "synchronous_level",
    "sync_loss",
    "sync_near",
    "sync_max_lag",
];
/// What a follower takes over while it runs.
const FOLLOWER_LIVE: &[&str] = &["apply_delay", "scrub_rate", "scrub_interval"];
/// What a follower takes over by a new turn: it comes to rest, and goes on from there.
const FOLLOWER: &[&str] = &[
    "leader",
    "upstream_role",
    "name",
    "apply_cuts",
    "max_inexact",
    "max_inexact_bytes",
    "inexact",
    "local_edits",
    "stop_at",
    "stop_action",
    "resync",
    "adopt",
    "peer_timeout",
    "checkpoint_bytes",
    "checkpoint_interval",
    "max_followers",
    "sync_candidate",
    "synchronous_level",
];
/// What means something to a leader, but only from its start on.
const LEADER_START: &[&str] = &["name", "peer_timeout", "segment_timeout", "compression", "max_followers"];

/// What either role looks up whenever it needs it.
const LOOKED_UP: &[&str] = &[
    "log_level",
    "on_promote",
    "on_demote",
    "may_lead",
    "may_lead_interval",
    "may_lead_grace",
    "auto_rewind",
    "max_slot_keep",
    "max_slot_disk",
    "keep_segments",
    "min_free_disk",
    "slot_idle_timeout",
    "max_archive_keep",
];
/// What every node takes over while it runs, without ending connections that are still allowed.
const TRUST: &[&str] = &["tls", "tls_cert", "tls_key", "tls_ca", "tls_crl", "peer"];

/// What a reload does with a key that changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// It is in force at once.
    Live,
    /// It is in force after a restart of the daemon.
    Restart,
    /// It means nothing in this role.
    Idle,
}

/// What a reload does with `key` in this role.
#[must_use]
pub fn reach(key: &str, role: Role) -> Reach {
    let (live, start) = match role {
        Role::Leader => (CAPTURE, LEADER_START),
        Role::Follower => (FOLLOWER, &[][..]),
    };
    let live = live.contains(&key) || LOOKED_UP.contains(&key) || TRUST.contains(&key) || LIVE.contains(&key);
    if live || (role == Role::Follower && FOLLOWER_LIVE.contains(&key)) {
        Reach::Live
    } else if FIXED.contains(&key) || start.contains(&key) {
        Reach::Restart
    } else {
        Reach::Idle
    }
}

/// The keys that differ between two configurations, by what becomes of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Change {
    role: Option<Role>,
    in_force: Vec<String>,
    restart: Vec<String>,
    /// Keys that mean nothing in this role.
    idle: Vec<String>,
}

impl Change {
    pub(super) fn between(old: &Config, new: &Config, role: Role) -> Self {
        let mut change = Self { role: Some(role), ..Self::default() };
        let keys = |c: &Config| serde_json::to_value(c).unwrap_or_default();
        let (old, new) = (keys(old), keys(new));
        for (key, value) in new.as_object().into_iter().flatten() {
            if old.get(key) == Some(value) {
                continue;
            }
            let list = match reach(key, role) {
                Reach::Live => &mut change.in_force,
                Reach::Restart => &mut change.restart,
                Reach::Idle => &mut change.idle,
            };
            list.push(key.clone());
        }
        change
    }

    /// The new configuration as far as it can come into force.
    pub(super) fn keep_fixed(&self, old: &Config, new: Config) -> Config {
        let mut config =
            Config { data: old.data.clone(), state: old.state.clone(), listen: old.listen.clone(), ..new };
        if self.role == Some(Role::Leader) {
            config.name.clone_from(&old.name);
            config.peer_timeout = old.peer_timeout;
            config.segment_timeout = old.segment_timeout;
            config.compression = old.compression;
            config.max_followers = old.max_followers;
        }
        config
    }

    pub(super) fn needs_turn(&self) -> bool {
        self.in_force.iter().any(|k| FOLLOWER.contains(&k.as_str()))
    }

    pub(super) fn answer(&self) -> Value {
        json!({"reloaded": true, "changed": self.in_force, "restart": self.restart, "idle": self.idle})
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = false;
        for (what, keys) in [
            ("in force", &self.in_force),
            ("in force only after a restart of the daemon", &self.restart),
            ("without meaning in this role", &self.idle),
        ] {
            if !keys.is_empty() {
                write!(f, "{}{what}: {}", if said { "; " } else { "" }, keys.join(", "))?;
                said = true;
            }
        }
        if said { Ok(()) } else { f.write_str("nothing changed") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_changes_is_said_to_be_in_force_or_not() {
        let old = Config::default();
        let mut new =
            Config::parse("leader = \"a:1\"\nlisten = \"b:1\"\nexclude = [\"x\"]\npeer_timeout = \"3s\"")
                .unwrap();
        let follower = Change::between(&old, &new, Role::Follower);
        assert_eq!(
            (&*follower.in_force, &*follower.restart),
            (&["leader".to_owned(), "peer_timeout".into()][..], &["listen".to_owned()][..])
        );
        assert_eq!(follower.idle, ["exclude"]);
        assert!(
            follower.needs_turn()
                && !Change::between(&old, &Config::parse("apply_delay = \"1h\"").unwrap(), Role::Follower)
                    .needs_turn()
                && follower.to_string().contains("restart of the daemon: listen"),
            "{follower}"
        );
        let leader = Change::between(&old, &new, Role::Leader);
        assert_eq!(
            (&*leader.in_force, &*leader.restart),
            (&["exclude".to_owned(), "leader".into()][..], &["listen".to_owned(), "peer_timeout".into()][..])
        );
        new = leader.keep_fixed(&old, new);
        assert!(new.listen.is_none() && new.peer_timeout == old.peer_timeout && new.exclude == ["x"]);
        assert_eq!(Change::between(&old, &old, Role::Leader).to_string(), "nothing changed");
    }

    #[test]
    fn trust_is_in_force_without_a_new_turn() {
        let old = Config::default();
        let new = Config::parse("tls = \"on\"\n[[peer]]\nname = \"a\"").unwrap();
        for role in [Role::Leader, Role::Follower] {
            let change = Change::between(&old, &new, role);
            assert!(change.in_force == ["peer", "tls"] && !change.needs_turn(), "{change}");
        }
    }

    #[test]
    fn every_key_has_a_place() {
        let all = serde_json::to_value(Config::default()).unwrap();
        for key in all.as_object().unwrap().keys() {
            let lists = [FIXED, LIVE, CAPTURE, FOLLOWER, FOLLOWER_LIVE, LEADER_START, LOOKED_UP, TRUST];
            assert!(lists.iter().any(|l| l.contains(&key.as_str())), "{key} is in no list");
        }
    }
}
