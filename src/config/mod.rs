//! The configuration file: one TOML file per node, read once and resolved into the option
//! structs of the engines. Unknown keys are refused with the line and the nearest valid name;
//! the same names serve as command-line flags where a command takes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::apply::StopAt;
use crate::archive::Address;
use crate::error::{Error, ErrorKind, Result};
use crate::net::Sources;
use crate::quorum::{Level, Policy};
use crate::session::UpstreamRole;
use crate::tls::{self, Mode};
use crate::trust::{Book, Peer};

mod mistakes;
mod rules;
mod units;

pub use rules::{address, check_address, check_apart, check_name, is_within, log_filter};
use rules::{check_exclude, check_upstreams, one_or_more, upstreams};
pub use units::{Room, Size, Span};

/// Most bytes of a configuration file.
const FILE_MAX: u64 = 1 << 20;
/// More followers than that are followers of followers.
const MAX_FOLLOWERS: usize = 10_000;
/// With less than this a second a scrub never ends.
const SCRUB_RATE_LEAST: u64 = 4 << 10;

/// Which cuts a follower's directory moves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cuts {
    /// Only states that the leader's directory really had.
    Exact,
    /// Every commit: for applications whose files don't depend on each other.
    File,
}

/// What a follower does when exact cuts stay away for longer than `max_inexact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Inexact {
    /// Say so in the status and go on waiting.
    Report,
    /// Say so and apply the newest cut of files.
    Apply,
}

/// What a follower does at the target of `stop_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StopAction {
    /// Stays there, and takes log, until it is told to go on.
    Pause,
    /// The process ends, with exit code 0.
    Exit,
}

/// What a follower does about a change somebody made in its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LocalEdits {
    /// Stop replay and name the path.
    Refuse,
    /// Report it and write the leader's state over it.
    Overwrite,
}

/// What happens while fewer followers count than have to confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SyncLoss {
    /// It is said; callers that wait for confirmations wait.
    Report,
    /// The application is frozen until they are there again.
    Freeze,
}

/// What a follower does when its log does not go on at the upstream any more, or its directory is not what was
/// applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ResyncMode {
    /// It is made equal to the upstream again; only what differs is moved.
    Auto,
    /// It says so and waits for `towline resync`.
    Ask,
}

/// Everything a node can be told. Each field is a key of the file; see `towline config show`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory to replicate (leader) or to keep the same (follower).
    pub data: Option<PathBuf>,
    /// towline's own directory; never inside the data directory.
    pub state: Option<PathBuf>,
    /// Address to serve followers on. A port of 0 takes any, which the log and `towline status` name.
    pub listen: Option<String>,
    /// Address of the node to follow, or several that are tried in turn, as a list or with commas between them. Its
    /// presence makes a new node a follower. The same list on all nodes is simplest: a node leaves its own address out, and one
    /// that leads asks the others whether one of them was promoted.
    #[serde(deserialize_with = "one_or_more")]
    pub leader: Option<String>,
    /// Which of them to follow: `any`, the `leader` only, `follower`s only, or `prefer-follower`.
    pub upstream_role: UpstreamRole,
    /// Name of this node among its peers. Default: the host's name.
    pub name: Option<String>,
    /// Level of the log: `error`, `warn`, `info`, `debug` or `trace`, or filters like
    /// `info,towline::capture=debug`. The flag `--log-level` and `TOWLINE_LOG` win over it.
    pub log_level: String,
    /// Cuts that a follower applies.
    pub apply_cuts: Cuts,
    /// How long a follower waits for an exact cut while others stand in its log; 0s: for ever.
    pub max_inexact: Span,
    /// How much log may wait for an exact cut on a follower; 0: any.
    pub max_inexact_bytes: Size,
    /// What a follower does after that: `report`, or `apply` the newest cut of files.
    pub inexact: Inexact,
    /// How old a commit must be before a follower shows it; its log comes at once all the same.
    pub apply_delay: Span,
    /// Where a follower stops replay: a position, a time with its zone, `exact`, the first exact cut, or the
    /// name of a restore point.
    pub stop_at: Option<String>,
    /// What it does there: `pause` until `towline resume`, or `exit` with 0.
    pub stop_action: StopAction,
    /// What to do about changes made in a follower's directory.
    pub local_edits: LocalEdits,
    /// Whether a follower that can't go on is resynced by itself: `auto`, or `ask` to wait for `towline resync`.
    pub resync: ResyncMode,
    /// At its first start a follower takes over what its data directory holds, and makes it equal to the leader's.
    pub adopt: bool,
    /// A peer that sends nothing for this long is given up.
    pub peer_timeout: Span,
    /// A non-empty segment is sealed after this time.
    pub segment_timeout: Span,
    /// zstd level of the log, -7 to 19.
    pub compression: i32,
    /// Time between full stat scans on the leader, jittered.
    pub rescan_interval: Span,
    /// Time between looks at files whose changes cause no event.
    pub hot_interval: Span,
    /// How long a pass tries for an exact cut.
    pub max_cut_delay: Span,
    /// A pass that deletes more than this share of the entries, in percent, is held.
    pub max_delete: u8,
    /// The guard above applies from this many entries.
    pub max_delete_floor: u64,
    /// Glob patterns of paths, relative to the data directory, that are not replicated.
    pub exclude: Vec<String>,
    /// How to stop the application for a cut: `cgroup:PATH`, `unit:NAME` or `pid:FILE`; empty: never.
    pub freeze: String,
    /// Longest freeze.
    pub max_freeze: Span,
    /// Shell command run before a cut that needs quiet.
    pub before_cut: Option<String>,
    /// Shell command run after it, whatever happened.
    pub after_cut: Option<String>,
    /// Shell command run when this node was promoted and serves; it has a minute. `TOWLINE_NAME`, `TOWLINE_TIMELINE` and
    /// `TOWLINE_BRANCH` say who leads now, and since where; `TOWLINE_REASON` is `promotion`, `switchover`, `force`, or `allowed` for a
    /// leader that stood aside, ran `on_demote`, and may lead again, and `switchover-undone` for one that ran it for a switchover,
    /// and leads on.
    pub on_promote: Option<String>,
    /// Shell command run when this node, as a leader, has to stop leading, before its log ends: it stops the application. It has
    /// a minute. `TOWLINE_NAME`, `TOWLINE_REASON` (`fenced`, `vetoed`; `switchover`, before the other leads), `TOWLINE_TIMELINE`,
    /// `TOWLINE_BRANCH` and `TOWLINE_NEW_LEADER` say who leads, and since where. One that failed is run again by the next start,
    /// but for a switchover, which is undone then.
    pub on_demote: Option<String>,
    /// Shell command that knows whether this node may lead: exit code 0 is a yes. It is asked before a promotion, before a leader
    /// opens for business, and while it leads; `TOWLINE_NAME`, `TOWLINE_SYSTEM`, `TOWLINE_TIMELINE` and `TOWLINE_ASKS`
    /// (`promote`, `start`, `lead`, `switchover`) say who asks, and why.
    pub may_lead: Option<String>,
    /// Time between two questions of a leader, and the longest one may take.
    pub may_lead_interval: Span,
    /// A leader whose last yes is older than this stands aside, after the next answer that is no yes.
    pub may_lead_grace: Span,
    /// A leader that another one has left behind becomes a follower of that one by itself, as with `towline rewind`.
    pub auto_rewind: bool,
    /// Bytes a second of background hashing and scrubbing.
    pub scrub_rate: Size,
    /// A follower compares all contents with their hashes once in this time; 0s: never.
    pub scrub_interval: Span,
    /// Log between two checkpoints.
    pub checkpoint_bytes: Size,
    /// Time between two checkpoints, when something changed.
    pub checkpoint_interval: Span,
    /// Most followers served at once.
    pub max_followers: usize,
    /// Address to serve `/metrics` and the pages for load balancers on; they only read, and hold no secret. A port of
    /// 0 takes any, which the log names.
    pub http: Option<String>,
    /// Who has to confirm changes, as PostgreSQL's `synchronous_standby_names`: `ANY n (..)`, `FIRST n (..)`, a plain list,
    /// `*`; empty: replication is asynchronous.
    pub synchronous_followers: String,
    /// What they have to have done: `write`, `flush` or `apply`.
    pub synchronous_level: Level,
    /// What happens while too few of them are there: `report`, or `freeze` the application, named by `freeze`.
    pub sync_loss: SyncLoss,
    /// How many bytes of log a newcomer may be behind to begin to count.
    pub sync_near: Size,
    /// One that counts and is further behind at the level is passed over until it has caught up; 0: never.
    pub sync_max_lag: Size,
    /// Whether this node, as a follower, may count for its leader.
    pub sync_candidate: bool,
    /// Segments of log past its position that are held for a follower that is away; 0: none.
    pub max_slot_keep: u32,
    /// Most room that log may take which only slots hold: a size, or a share of the state directory's file system.
    pub max_slot_disk: Room,
    /// Newest segments of log that are always kept, whoever needs them.
    pub keep_segments: u32,
    /// With less free disk than this, a size or a share, log that only slots hold is given up, the oldest first; 0:
    /// never.
    pub min_free_disk: Room,
    /// The slot of a follower that is away for this long is lost; 0s: never by time.
    pub slot_idle_timeout: Span,
    /// Where a leader puts its sealed segments, and where a node finds log that its leader no longer has:
    /// `file:///DIRECTORY`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`. Endpoint and credentials
    /// come from the environment, by the usual variables.
    pub archive: Option<String>,
    /// Most room that log may take which waits for the archive only: a size, or a share of the state directory's file
    /// system. Beyond it the oldest goes, and is a gap.
    pub max_archive_keep: Room,
    /// When connections between nodes are encrypted. Plain TCP leaves the machine only with `off`.
    pub tls: Mode,
    /// Certificate of this node, PEM, with the chain to its CA; default: `node.crt` in the state directory.
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM, mode 0600; default: `node.key` in the state directory.
    pub tls_key: Option<PathBuf>,
    /// Certificates of CAs, PEM: a node whose certificate one of them signed, and that carries its name, is trusted.
    pub tls_ca: Option<PathBuf>,
    /// Revocation lists of those CAs, PEM.
    pub tls_crl: Option<PathBuf>,
    /// The peers that this node trusts, beside those of `towline trust`.
    pub peer: Vec<Peer>,
}

impl Default for Config {
    fn default() -> Self {
        let span = |s| Span(Duration::from_secs(s));
        Self {
            data: None,
            state: None,
            listen: None,
            leader: None,
            upstream_role: UpstreamRole::Any,
            name: None,
            log_level: "info".to_owned(),
            apply_cuts: Cuts::Exact,
            max_inexact: span(300),
            max_inexact_bytes: Size(1 << 30),
            inexact: Inexact::Report,
            apply_delay: span(0),
            stop_at: None,
            stop_action: StopAction::Pause,
            local_edits: LocalEdits::Refuse,
            resync: ResyncMode::Auto,
            adopt: false,
            peer_timeout: span(10),
            segment_timeout: span(60),
            compression: 1,
            rescan_interval: span(3600),
            hot_interval: span(1),
            max_cut_delay: span(1),
            max_delete: 50,
            max_delete_floor: 1000,
            exclude: Vec::new(),
            freeze: String::new(),
            max_freeze: Span(Duration::from_millis(500)),
            before_cut: None,
            after_cut: None,
            on_promote: None,
            on_demote: None,
            may_lead: None,
            may_lead_interval: span(5),
            may_lead_grace: span(15),
            auto_rewind: false,
            scrub_rate: Size(32 << 20),
            scrub_interval: span(24 * 3600),
            checkpoint_bytes: Size(256 << 20),
            checkpoint_interval: span(300),
            max_followers: 64,
            http: None,
            synchronous_followers: String::new(),
            synchronous_level: Level::Flush,
            sync_loss: SyncLoss::Report,
            sync_near: Size(16 << 20),
            sync_max_lag: Size(0),
            sync_candidate: true,
            max_slot_keep: 64,
            max_slot_disk: Room::Percent(25),
            keep_segments: 8,
            min_free_disk: Room::Percent(5),
            slot_idle_timeout: span(168 * 3600),
            archive: None,
            max_archive_keep: Room::Percent(25),
            tls: Mode::Auto,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            tls_crl: None,
            peer: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] with the line, the key and the nearest valid name.
    pub fn load(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path)
            .map_err(|e| Error::io("read configuration", path, e).with_kind(ErrorKind::Config))?;
        if !meta.is_file() {
            let text = format!("configuration '{}' is not a regular file; name a TOML file", path.display());
            return Err(Error::new(ErrorKind::Config, text));
        }
        if meta.len() > FILE_MAX {
            let text = format!(
                "configuration '{}' is larger than {FILE_MAX} bytes; is it the right file?",
                path.display()
            );
            return Err(Error::new(ErrorKind::Config, text));
        }
        let text = fs::read_to_string(path)
            .map_err(|e| Error::io("read configuration", path, e).with_kind(ErrorKind::Config))?;
        Self::parse(&text).map_err(|e| e.wrap(&format!("configuration '{}'", path.display())))
    }

    /// Parses and validates the text of a file.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self =
            toml::from_str(text).map_err(|e| Error::new(ErrorKind::Config, mistakes::explain(text, e)))?;
        config.check()?;
        Ok(config)
    }

    /// Checks what single values can't show.
    pub fn check(&self) -> Result<()> {
        let bad = |text: String| Err(Error::new(ErrorKind::Config, text));
        if !(1..=100).contains(&self.max_delete) {
            return bad(format!("max_delete is {}; it is a share in percent, 1 to 100", self.max_delete));
        }
        if !(-7..=19).contains(&self.compression) {
            return bad(format!("compression is {}; zstd levels go from -7 to 19", self.compression));
        }
        for (key, value, least) in [
            ("peer_timeout", self.peer_timeout, 100),
            ("segment_timeout", self.segment_timeout, 100),
            ("hot_interval", self.hot_interval, 10),
            ("rescan_interval", self.rescan_interval, 100),
            ("checkpoint_interval", self.checkpoint_interval, 100),
            ("max_cut_delay", self.max_cut_delay, 1),
            ("max_freeze", self.max_freeze, 1),
            ("may_lead_interval", self.may_lead_interval, 100),
        ] {
            if value.0 < Duration::from_millis(least) {
                return bad(format!("{key} is {value}; the least is {least}ms"));
            }
        }
        if self.may_lead_grace.0 < self.may_lead_interval.0 {
            let text = format!(
                "may_lead_grace is {}, less than may_lead_interval, {}; a leader would stand aside before it could ask again",
                self.may_lead_grace, self.may_lead_interval
            );
            return bad(text);
        }
        if self.checkpoint_bytes.0 == 0 {
            return bad("checkpoint_bytes is 0; the least is 1, and 256M is usual".to_owned());
        }
        self.stop_target()?;
        if !(1..=MAX_FOLLOWERS).contains(&self.max_followers) {
            let given = self.max_followers;
            return bad(format!(
                "max_followers is {given}; it goes from 1, the least (leave 'listen' out to serve nobody), to {MAX_FOLLOWERS}"
            ));
        }
        if self.scrub_rate.0 < SCRUB_RATE_LEAST {
            let text = "scrub_rate is {}; the least is 4k a second ('scrub_interval = \"0s\"' ends the scrub of a follower)";
            return bad(text.replace("{}", &self.scrub_rate.to_string()));
        }
        log_filter(&self.log_level)?;
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        if let (Some(data), Some(state)) = (&self.data, &self.state) {
            check_apart(data, state)?;
        }
        let freeze_ok = self.freeze.is_empty()
            || ["cgroup:", "unit:", "pid:"]
                .iter()
                .any(|p| self.freeze.strip_prefix(p).is_some_and(|r| !r.is_empty()));
        if !freeze_ok {
            return bad(format!("freeze is '{}'; write cgroup:PATH, unit:NAME or pid:FILE", self.freeze));
        }
        self.policy()?;
        if self.sync_loss == SyncLoss::Freeze && self.freeze.is_empty() {
            return bad("sync_loss is freeze, but nothing says what is to be frozen; set freeze to cgroup:PATH, unit:NAME or pid:FILE".to_owned());
        }
        for pattern in &self.exclude {
            check_exclude(pattern)?;
        }
        if let Some(listen) = &self.listen {
            check_address("listen", listen, 0)?;
        }
        if let Some(http) = &self.http {
            check_address("http", http, 0)?;
        }
        if let Some(leader) = &self.leader {
            check_upstreams(leader)?;
        }
        self.check_archive()?;
        self.check_tls()
    }

    /// Where a follower stops replay.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what is no target.
    pub fn stop_target(&self) -> Result<Option<StopAt>> {
        let parsed = self.stop_at.as_deref().map(str::parse).transpose();
        parsed.map_err(|e| Error::new(ErrorKind::Config, format!("stop_at: {e}")))
    }

    /// The nodes to follow, if any are given.
    #[must_use]
    pub fn sources(&self) -> Option<Sources> {
        let addresses = upstreams(self.leader.as_deref()?).map(str::to_owned).collect();
        Some(Sources { addresses, role: self.upstream_role })
    }

    /// Who has to confirm changes.
    pub fn policy(&self) -> Result<Policy> {
        let parsed = self.synchronous_followers.parse::<Policy>();
        parsed.map_err(|e| Error::new(ErrorKind::Config, format!("synchronous_followers: {e}")))
    }

    /// Where the archive is, if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what is no address.
    pub fn archive_address(&self) -> Result<Option<Address>> {
        let parsed = self.archive.as_deref().map(str::parse).transpose();
        parsed.map_err(|e: String| Error::new(ErrorKind::Config, format!("archive: {e}")))
    }

    fn check_archive(&self) -> Result<()> {
        let Some(address) = self.archive_address()? else { return Ok(()) };
        let Some(dir) = address.dir() else { return Ok(()) };
        for (of, own) in [("data", &self.data), ("state", &self.state)] {
            if own.as_ref().is_some_and(|own| check_apart(own, dir).is_err()) {
                let text = format!(
                    "archive: '{}' and the {of} directory lie within each other; give the archive a directory of its own",
                    dir.display()
                );
                return Err(Error::new(ErrorKind::Config, text));
            }
        }
        Ok(())
    }

    /// What keys, certificates and peers are read from, for the node `name` with the state directory `state`.
    #[must_use]
    pub fn tls_settings(&self, state: &Path, name: &str) -> tls::Settings {
        tls::Settings {
            mode: self.tls,
            own: self.tls_cert.clone().zip(self.tls_key.clone()),
            ca: self.tls_ca.clone(),
            crl: self.tls_crl.clone(),
            peers: self.peer.clone(),
            state: Some(state.to_owned()),
            name: name.to_owned(),
        }
    }

    fn check_tls(&self) -> Result<()> {
        let bad = |text: String| Err(Error::new(ErrorKind::Config, text));
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let text =
                "tls_cert and tls_key belong together; give both, or none for those in the state directory";
            return bad(text.to_owned());
        }
        if self.tls_crl.is_some() && self.tls_ca.is_none() {
            return bad("tls_crl without tls_ca means nothing; name the CA whose lists these are".to_owned());
        }
        Book::new("", self.peer.clone()).map_err(|text| Error::new(ErrorKind::Config, text)).map(|_| ())
    }

    /// The node's name: as configured, or the host's.
    pub fn node_name(&self) -> Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        check_name(&name)?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_key() {
        let e = Config::parse("peer_timeout = \"5s\"\n\nsegment_timout = \"5s\"\n").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Config);
        let text = e.to_string();
        assert!(text.contains("line 3") && text.contains("did you mean 'segment_timeout'?"), "{text}");
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_rule() {
        for (text, word) in [
            ("max_delete = 0", "percent"),
            ("compression = 40", "zstd"),
            ("name = \"a b\"", "letters"),
            ("freeze = \"yes\"", "cgroup:PATH"),
            ("log_level = \"loud\"", "debug or trace"),
            ("peer_timeout = \"5\"", "duration"),
            ("scrub_rate = \"5x\"", "size"),
            ("data = \"/a\"\nstate = \"/a/b\"", "within"),
            ("archive = \"/mnt/a\"", "file:///DIRECTORY"),
            ("data = \"/a\"\narchive = \"file:///a/b\"", "archive: '/a/b' and the data directory"),
            ("max_archive_keep = \"200%\"", "share"),
            ("exclude = [\"[\"]", "pattern: error parsing glob '['"),
            ("exclude = [\"a[\"]", "write it like"),
            ("exclude = [\"\"]", "matches nothing"),
            ("exclude = [\"/\"]", "matches nothing"),
            ("exclude = [\"a/../b\"]", "matches nothing"),
            ("exclude = [\"cache/\"]", "matches nothing"),
            ("listen = \"foo\"", "HOST:PORT"),
            ("http = \"9100\"", "http is '9100'; write HOST:PORT"),
            ("listen = \":99999\"", "HOST:PORT"),
            ("listen = \"\"", "HOST:PORT"),
            ("leader = \"127.0.0.1:0\"", "port of 1"),
            ("leader = \"a:1,\"", "HOST:PORT"),
            ("leader = []", "HOST:PORT"),
            ("leader = [\"a:1\", \"b:2\", \"a:1\"]", "twice"),
            ("stop_at = \"tomorrow\"", "2026-11-25T17:30:00Z"),
            ("stop_action = \"halt\"", "exit"),
            ("apply_delay = \"1\"", "duration"),
            ("leader = 7", "string"),
            ("upstream_role = \"primary\"", "prefer-follower"),
            ("rescan_interval = \"0s\"", "least"),
            ("checkpoint_interval = \"0s\"", "least"),
            ("checkpoint_bytes = \"0\"", "least"),
            ("may_lead_interval = \"10ms\"", "least"),
            ("may_lead_grace = \"4s\"", "before it could ask again"),
            ("max_followers = 0", "least"),
            ("max_followers = 2305843009213693952", "10000"),
            ("scrub_rate = \"0\"", "least"),
            ("name = \"_x\"", "the first a letter or digit"),
            ("name = \"-x\"", "the first a letter or digit"),
            ("synchronous_followers = \"ANY a\"", "character 5"),
            ("synchronous_level = \"on\"", "write"),
            ("sync_loss = \"freeze\"", "set freeze to"),
            ("max_slot_keep = -1", "whole number"),
            ("max_slot_disk = \"101%\"", "0% to 100%"),
            ("min_free_disk = \"few\"", "a share of the disk, like 5%"),
            ("slot_idle_timeout = \"1d\"", "duration"),
            ("tls = \"maybe\"", "maybe"),
            ("tls_cert = \"/x\"", "belong together"),
            ("tls_crl = \"/x\"", "tls_ca"),
            ("[[peer]]\nname = \"a\"\nfingerprint = \"1\"", "64 hexadecimal digits"),
            ("[[peer]]\nname = \"a\"\nroles = [\"king\"]", "king"),
            ("[[peer]]\nname = \"a\"\nroles = []", "no role"),
        ] {
            let e = Config::parse(text).unwrap_err().to_string();
            assert!(e.contains(word), "{text}: {e}");
        }
    }

    #[test]
    fn directories_within_each_other_are_seen_through_links_and_before_they_exist() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        fs::create_dir(at("app")).unwrap();
        std::os::unix::fs::symlink("app", at("lnk")).unwrap();
        for state in
            ["app/st", "lnk/st", "lnk/a/b/st", "x/../app/st", "lnk/../app/st", "./app/./st", "app", ""]
        {
            assert!(check_apart(&at("app"), &at(state)).is_err(), "{state}");
            assert!(check_apart(&at(state), &at("app")).is_err(), "{state} as data");
        }
        for state in ["st", "app2", "lnk/../st", "app/../st", "x/st"] {
            assert!(check_apart(&at("app"), &at(state)).is_ok(), "{state}");
        }
    }

    #[test]
    fn a_pipe_is_no_configuration_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Config::load(&pipe).unwrap_err().to_string().contains("regular file"));
    }

    #[test]
    fn the_shown_configuration_is_read_back() {
        let shown = toml::to_string(&Config::default()).unwrap();
        let back = Config::parse(&shown).unwrap();
        assert_eq!(toml::to_string(&back).unwrap(), shown);
        assert_eq!("90m".parse::<Span>().unwrap().to_string(), "90m");
        assert_eq!("3072k".parse::<Size>().unwrap().to_string(), "3M");
    }

    #[test]
    fn upstreams_are_a_list_or_have_commas_between_them() {
        for text in ["leader = \"a:1, b:2\"", "leader = [\"a:1\", \"b:2\"]"] {
            let config = Config::parse(&format!("{text}\nupstream_role = \"prefer-follower\"")).unwrap();
            let sources = config.sources().unwrap();
            assert_eq!(
                (&*sources.addresses, sources.role.to_string()),
                (&["a:1".to_owned(), "b:2".into()][..], "prefer-follower".to_owned())
            );
        }
        assert_eq!(Config::default().sources(), None);
    }
}
