//! Who may do what: peers, their roles, and the judgement of a certificate and a request. Pure: no I/O, no clock.
//!
//! | role | what a peer with it may ask here |
//! | --- | --- |
//! | `follower` | log, a first copy, a resync |
//! | `backup` | a backup: a copy of the directory and the log that makes it whole; it never counts as a follower |
//! | `monitor` | status |
//! | `admin` | everything that the roles above may |
//! | `leader` | nothing; this node takes log, copies and resyncs from it |
//!
//! A peer is known by the key of its certificate, pinned with its name, or by a certificate of the configured CA that
//! carries its name. A pinned name belongs to its keys alone: no certificate of a CA stands for it. A name may have
//! several keys, so that a key can be changed without a gap.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::certificate::{Facts, Fingerprint};
use crate::session::valid_name;
use crate::wire::Code;

/// Most peers of a node.
pub const PEERS_MAX: usize = 1024;
const DAY: i64 = 86_400;

/// What a peer is to this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It may follow this node.
    Follower,
    /// This node may follow it.
    Leader,
    /// It may take backups.
    Backup,
    /// It may ask for status.
    Monitor,
    /// It may ask for everything.
    Admin,
}

impl Role {
    /// A node of the same system, whichever of the two leads: what a peer is unless roles are named.
    pub const NODE: [Self; 2] = [Self::Follower, Self::Leader];

    /// As it is written in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::Leader => "leader",
            Self::Backup => "backup",
            Self::Monitor => "monitor",
            Self::Admin => "admin",
        }
    }

    /// Whether a peer of this role may have that.
    #[must_use]
    pub fn may(self, ask: Ask) -> bool {
        match self {
            Self::Follower => matches!(ask, Ask::Stream | Ask::Fill | Ask::Resync | Ask::Backup),
            Self::Backup => ask == Ask::Backup,
            Self::Monitor => ask == Ask::Status,
            Self::Admin => ask != Ask::Lead,
            Self::Leader => ask == Ask::Lead,
        }
    }
}

/// What is asked for, or, with the last, what the peer is relied on for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Log.
    Stream,
    /// A first copy.
    Fill,
    /// Blocks that make a directory equal to this node's.
    Resync,
    /// A backup.
    Backup,
    /// Status.
    Status,
    /// To send this node its log.
    Lead,
}

impl Ask {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Stream, Self::Fill, Self::Resync, Self::Backup, Self::Status, Self::Lead];

    fn words(self) -> &'static str {
        match self {
            Self::Stream => "to stream log",
            Self::Fill => "to take a first copy",
            Self::Resync => "to resync",
            Self::Backup => "to take a backup",
            Self::Status => "to ask for status",
            Self::Lead => "to be followed",
        }
    }

    /// The role that is meant for it.
    fn role(self) -> Role {
        match self {
            Self::Stream | Self::Fill | Self::Resync => Role::Follower,
            Self::Backup => Role::Backup,
            Self::Status => Role::Monitor,
            Self::Lead => Role::Leader,
        }
    }
}

fn node_roles() -> Vec<Role> {
    Role::NODE.to_vec()
}

/// One peer, as a `[[peer]]` table says it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name: the only one it may say hello or welcome under.
    pub name: String,
    /// Its key. Without one it needs a certificate of the CA with its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// What it is to this node: a follower and a leader unless said otherwise.
    #[serde(default = "node_roles")]
    pub roles: Vec<Role>,
}

/// Words for a list of roles.
#[must_use]
pub fn words(roles: &[Role]) -> String {
    roles.iter().map(|r| r.word()).collect::<Vec<_>>().join(", ")
}

/// Why a peer is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Which rule.
    pub code: Code,
    /// In words that hold on either side.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Whether a CA vouches for a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chain {
    /// No CA is configured.
    NoCa,
    /// It does.
    Good,
    /// It does not.
    Bad(String),
}

/// All that this node knows of its peers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Book {
    own: String,
    peers: Vec<Peer>,
}

impl Book {
    /// The peers of the node `own`.
    ///
    /// # Errors
    /// In words: a name that is not allowed, a peer without a role, a key with two names, or too many peers.
    pub fn new(own: &str, peers: Vec<Peer>) -> Result<Self, String> {
        if peers.len() > PEERS_MAX {
            return Err(format!("{} peers are trusted, more than {PEERS_MAX}; remove some", peers.len()));
        }
        for (i, peer) in peers.iter().enumerate() {
            if !valid_name(&peer.name) {
                return Err(format!(
                    "the peer name '{}' is not allowed; use 1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit",
                    peer.name.escape_debug()
                ));
            }
            if peer.roles.is_empty() {
                return Err(format!("peer '{}' has no role; name one, or leave 'roles' out", peer.name));
            }
            let other = |p: &&Peer| p.fingerprint.is_some() && p.fingerprint == peer.fingerprint;
            if let Some(p) = peers[..i].iter().find(other).filter(|p| p.name != peer.name) {
                return Err(format!(
                    "the key {} is trusted as '{}' and as '{}'; a key has one name: remove one of the two",
                    peer.fingerprint.map(|f| f.to_string()).unwrap_or_default(),
                    p.name,
                    peer.name
                ));
            }
        }
        Ok(Self { own: own.to_owned(), peers })
    }

    /// All peers.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// What the holder of a certificate may be and do here, or why not. `said`: the name it gives itself, once it did.
    ///
    /// # Errors
    /// The rule that is broken, and what to do about it.
    pub fn judge(
        &self,
        facts: &Facts,
        chain: &Chain,
        said: Option<&str>,
        ask: Ask,
        now: i64,
    ) -> Result<Vec<Role>, Refusal> {
        let pins: Vec<&Peer> =
            self.peers.iter().filter(|p| p.fingerprint == Some(facts.fingerprint)).collect();
        let name = pins.first().map(|p| p.name.as_str());
        if name.is_none() && *chain != Chain::Good && self.in_force(facts, now) {
            return Err(self.stranger(facts, chain, said, ask));
        }
        if name.is_none() && *chain == Chain::NoCa {
            return Err(self.stranger(facts, chain, said, ask));
        }
        self.check_time(facts, name.or(said), name.is_some(), now)?;
        let Some(said) = said else { return Ok(Vec::new()) };
        let roles = match name {
            Some(name) if name == said => {
                let mut roles: Vec<Role> = pins.iter().flat_map(|p| p.roles.iter().copied()).collect();
                roles.sort_unstable();
                roles.dedup();
                roles
            }
            Some(name) => return Err(self.other_name(said, &format!("is trusted as '{name}'"), name)),
            None => self.certified(facts, said)?,
        };
        if roles.iter().any(|r| r.may(ask)) {
            return Ok(roles);
        }
        let reason = format!(
            "'{}' trusts '{said}' as {}, which is not enough {}: that needs the role {role}; if it is meant to, run on the \
             host of '{}': towline trust {said} {} --state DIR --role {role}",
            self.own,
            words(&roles),
            ask.words(),
            self.own,
            facts.fingerprint,
            role = ask.role().word(),
        );
        Err(Refusal { code: Code::NotAllowed, reason })
    }

    fn in_force(&self, facts: &Facts, now: i64) -> bool {
        (facts.not_before..=facts.not_after).contains(&now)
    }

    fn stranger(&self, facts: &Facts, chain: &Chain, said: Option<&str>, ask: Ask) -> Refusal {
        let own = &self.own;
        let print = facts.fingerprint;
        let (why, remedy) = match chain {
            Chain::Bad(why) => (
                format!(" (nor does the CA vouch for it: {why})"),
                "have the CA give it another one, or pin its key: ",
            ),
            _ => (String::new(), ""),
        };
        let (who, name) = match said.filter(|n| valid_name(n)) {
            Some(name) => (format!("of '{name}'"), name),
            None => ("of the node it connected to".to_owned(), "NAME"),
        };
        let reason = format!(
            "'{own}' does not trust the certificate {who}, {print}{why}; {remedy}compare it with `towline id` there, then run on \
             the host of '{own}': towline trust {name} {print} --state DIR --role {}",
            ask.role().word()
        );
        Refusal { code: Code::Untrusted, reason }
    }

    fn check_time(&self, facts: &Facts, who: Option<&str>, pinned: bool, now: i64) -> Result<(), Refusal> {
        if self.in_force(facts, now) {
            return Ok(());
        }
        let who = who.map_or_else(|| "of the node it connected to".to_owned(), |n| format!("of '{n}'"));
        let (what, since, remedy) = if now > facts.not_after {
            // A node renews its own certificates only.
            let remedy = if pinned {
                "renew it there (`towline id --renew`, or by its CA, then `towline reload`)"
            } else {
                "have it renewed by its CA, then run `towline reload` there"
            };
            ("expired", now - facts.not_after, remedy)
        } else {
            ("holds only from a later time on, by", facts.not_before - now, "one of the two clocks is wrong")
        };
        let ago = if now > facts.not_after { " ago" } else { "" };
        let reason = format!(
            "the certificate {who}, {}, {what} {}{ago} by the clock of '{}'; {remedy}, or set the clock right",
            facts.fingerprint,
            span(since),
            self.own
        );
        Err(Refusal { code: Code::Expired, reason })
    }

    fn other_name(&self, said: &str, why: &str, right: &str) -> Refusal {
        let reason = format!(
            "the node calls itself '{}', but its certificate {why} at '{}'; give it the name '{right}' (key 'name'), or \
             trust its key under the other name",
            said.escape_debug(),
            self.own
        );
        Refusal { code: Code::Identity, reason }
    }

    /// The roles of the holder of a CA's certificate.
    fn certified(&self, facts: &Facts, said: &str) -> Result<Vec<Role>, Refusal> {
        if !facts.names.iter().any(|n| n == said) {
            let names = facts.names.join("', '");
            let right = facts.names.first().map_or("a name of its certificate", String::as_str);
            return Err(self.other_name(said, &format!("is for '{names}'"), right));
        }
        let listed = self.peers.iter().filter(|p| p.name == said);
        let mut roles = Vec::new();
        for peer in listed {
            if peer.fingerprint.is_some() {
                let why = format!("{} is not the key that this name is pinned to", facts.fingerprint);
                return Err(self.other_name(said, &why, "it has"));
            }
            roles.extend(peer.roles.iter().copied());
        }
        Ok(if roles.is_empty() { node_roles() } else { roles })
    }
}

/// Seconds as days or hours.
fn span(seconds: i64) -> String {
    if seconds >= 2 * DAY { format!("{} days", seconds / DAY) } else { format!("{} h", seconds / 3600) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Fingerprint = Fingerprint([1; 32]);
    const OTHER: Fingerprint = Fingerprint([2; 32]);

    fn facts(fingerprint: Fingerprint, names: &[&str]) -> Facts {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        Facts { fingerprint, names, not_before: 1000, not_after: 2_000_000 }
    }

    fn peer(name: &str, fingerprint: Option<Fingerprint>, roles: &[Role]) -> Peer {
        Peer { name: name.to_owned(), fingerprint, roles: roles.to_vec() }
    }

    fn word(result: Result<Vec<Role>, Refusal>) -> String {
        match result {
            Ok(roles) => words(&roles),
            Err(refusal) => format!("{:?}", refusal.code),
        }
    }

    #[test]
    fn what_each_role_may_ask_as_a_table() {
        use Ask::{Backup, Fill, Lead, Resync, Status, Stream};
        let table: [(Role, &[Ask]); 5] = [
            (Role::Follower, &[Stream, Fill, Resync, Backup]),
            (Role::Backup, &[Backup]),
            (Role::Monitor, &[Status]),
            (Role::Admin, &[Stream, Fill, Resync, Backup, Status]),
            (Role::Leader, &[Lead]),
        ];
        for (role, may) in table {
            for ask in Ask::ALL {
                assert_eq!(role.may(ask), may.contains(&ask), "{role:?} {ask:?}");
            }
        }
        for ask in Ask::ALL {
            assert!(ask.role().may(ask), "the role that is named for {ask:?} suffices");
        }
    }

    #[test]
    fn the_judgement_as_a_table() {
        use Role::{Backup, Follower, Leader, Monitor};
        let book = Book::new(
            "here",
            vec![
                peer("a", Some(KEY), &[Follower]),
                peer("m", Some(Fingerprint([3; 32])), &[Monitor]),
                peer("listed", None, &[Backup]),
                peer("two", Some(Fingerprint([4; 32])), &[Follower]),
                peer("two", Some(Fingerprint([5; 32])), &[Leader]),
            ],
        )
        .unwrap();
        let (no, good, bad) = (Chain::NoCa, Chain::Good, Chain::Bad("unknown issuer".to_owned()));
        let key = |n: u8| Fingerprint([n; 32]);
        let table = [
            ("pinned", key(1), &no, Some("a"), Ask::Stream, 5000, "follower"),
            ("pinned, not yet named", key(1), &no, None, Ask::Stream, 5000, ""),
            ("pinned, another name", key(1), &good, Some("b"), Ask::Stream, 5000, "Identity"),
            ("pinned, expired", key(1), &no, Some("a"), Ask::Stream, 2_000_001, "Expired"),
            ("pinned, last second", key(1), &no, Some("a"), Ask::Stream, 2_000_000, "follower"),
            ("pinned, too early", key(1), &no, None, Ask::Stream, 999, "Expired"),
            ("pinned, as an upstream", key(1), &no, Some("a"), Ask::Lead, 5000, "NotAllowed"),
            ("a monitor that wants log", key(3), &no, Some("m"), Ask::Stream, 5000, "NotAllowed"),
            ("a monitor that wants a copy", key(3), &no, Some("m"), Ask::Fill, 5000, "NotAllowed"),
            ("the old key of a name", key(4), &no, Some("two"), Ask::Stream, 5000, "follower"),
            ("the new key of a name", key(5), &no, Some("two"), Ask::Lead, 5000, "leader"),
            ("unknown", key(9), &no, Some("a"), Ask::Stream, 5000, "Untrusted"),
            ("unknown, not yet named", key(9), &no, None, Ask::Lead, 5000, "Untrusted"),
            ("unknown, long expired", key(9), &no, Some("x"), Ask::Stream, 2_000_001, "Untrusted"),
            ("of another CA", key(9), &bad, Some("n1"), Ask::Stream, 5000, "Untrusted"),
            ("of the CA", key(9), &good, Some("n1"), Ask::Stream, 5000, "follower, leader"),
            ("of the CA, its other name", key(9), &good, Some("listed"), Ask::Backup, 5000, "backup"),
            ("a backup that would follow", key(9), &good, Some("listed"), Ask::Fill, 5000, "NotAllowed"),
            (
                "of the CA, listed without the role",
                key(9),
                &good,
                Some("listed"),
                Ask::Stream,
                5000,
                "NotAllowed",
            ),
            ("of the CA, expired", key(9), &bad, Some("n1"), Ask::Stream, 2_000_001, "Expired"),
            ("of the CA, a name not its own", key(9), &good, Some("n2"), Ask::Stream, 5000, "Identity"),
            ("of the CA, a pinned name", key(9), &good, Some("a"), Ask::Stream, 5000, "Identity"),
        ];
        for (what, key, chain, said, ask, now, want) in table {
            let facts = facts(key, &["n1", "listed", "a"]);
            assert_eq!(word(book.judge(&facts, chain, said, ask, now)), want, "{what}");
        }
    }

    #[test]
    fn a_refusal_says_which_command_cures_it_and_where() {
        let book = Book::new("here", vec![peer("a", Some(KEY), &[Role::Monitor])]).unwrap();
        let unknown =
            book.judge(&facts(OTHER, &[]), &Chain::NoCa, Some("copy"), Ask::Stream, 5000).unwrap_err();
        let command =
            format!("on the host of 'here': towline trust copy {OTHER} --state DIR --role follower");
        assert!(unknown.reason.ends_with(&command), "{unknown}");
        let role = book.judge(&facts(KEY, &[]), &Chain::NoCa, Some("a"), Ask::Stream, 5000).unwrap_err();
        assert!(role.reason.contains("as monitor") && role.reason.ends_with("--role follower"), "{role}");
        let evil =
            book.judge(&facts(OTHER, &[]), &Chain::NoCa, Some("$(rm)"), Ask::Stream, 5000).unwrap_err();
        assert!(!evil.reason.contains("$("), "what a stranger says is no part of a command: {evil}");
        assert!(evil.reason.len() < crate::wire::REASON_MAX);
    }

    #[test]
    fn the_remedy_for_an_expired_certificate_is_one_that_works_there() {
        let book = Book::new("here", vec![peer("a", Some(KEY), &[Role::Follower])]).unwrap();
        let bad = Chain::Bad("a certificate of its chain is expired".to_owned());
        let judge = |key, chain: &Chain, name, now| {
            book.judge(&facts(key, &["n1"]), chain, Some(name), Ask::Stream, now).unwrap_err().reason
        };
        let own = judge(KEY, &Chain::NoCa, "a", 2_000_001);
        assert!(own.contains("`towline id --renew`"), "{own}");
        for (now, words) in [
            (2_000_001, "have it renewed by its CA, then run `towline reload` there"),
            (5000, "its chain is expired); have the CA give it another one, or pin its key: compare"),
        ] {
            let by_ca = judge(OTHER, &bad, "n1", now);
            assert!(by_ca.contains(words) && !by_ca.contains("--renew"), "{by_ca}");
        }
    }

    #[test]
    fn a_book_that_contradicts_itself_is_refused() {
        for (peers, word) in [
            (vec![peer("a", Some(KEY), &[Role::Admin]), peer("b", Some(KEY), &[Role::Admin])], "one name"),
            (vec![peer("a b", Some(KEY), &[Role::Admin])], "letters"),
            (vec![peer("a", Some(KEY), &[])], "no role"),
            (vec![peer("a", None, &[Role::Admin]); PEERS_MAX + 1], "more than"),
        ] {
            let text = Book::new("here", peers).unwrap_err();
            assert!(text.contains(word), "{text}");
        }
    }
}
