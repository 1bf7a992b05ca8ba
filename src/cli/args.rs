//! What can be typed, exactly as it is typed. Resolving it is [`super`]'s work.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::certificate::Fingerprint;
use crate::config::{Config, Cuts, LocalEdits, ResyncMode, Room, Size, Span, StopAction, SyncLoss};
use crate::control::PromoteTo;
use crate::quorum::Level;
use crate::session::UpstreamRole;
use crate::tls::Mode;
use crate::trust::Role;

mod archive;
mod backup;
mod combine;
mod health;
mod restore;
mod rewind;
mod slot;
mod verify;

pub use archive::{Archive, Labelled, Prune, VerifyArchive, Which};
pub use backup::BaseBackup;
pub use combine::Combine;
pub use health::{Check, Show};
pub use restore::Restore;
pub use rewind::{LostWrites, Rewind};
pub use slot::Slot;
pub use verify::Verify;

/// Physical log shipping for any data directory.
#[derive(Debug, Parser)]
#[command(name = "towline", version, about, max_term_width = 100)]
pub struct Cli {
    /// Log level: error, warn, info, debug, trace, or a filter like towline::capture=debug. Default: the key
    /// log_level of the configuration, or info.
    #[arg(long, global = true, value_name = "FILTER", env = "TOWLINE_LOG")]
    pub log_level: Option<String>,
    /// Write the log as JSON lines: timestamp, level, target, message, and what else is known.
    #[arg(long, global = true)]
    pub log_json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a leader: watch a data directory and serve its log.
    Leader(Leader),
    /// Run a follower: keep a directory the same as a leader's. An empty directory is filled first.
    Follower(Follower),
    /// Run in the role that the state directory holds; a new one takes it from the configuration.
    Run(Run),
    /// Show role, positions, lag, followers and what the guarantees are right now.
    Status(Show),
    /// One line and an exit code for cron and Nagios: 0 ok, 1 warning, 2 critical, 3 unknown.
    Check(Check),
    /// Bring the follower's directory to rest on a cut and keep it there; prints which cut.
    Pause(Ask),
    /// Go on applying after a pause.
    Resume(Ask),
    /// Commit everything the leader's directory holds now, and wait until followers have confirmed it. Exit code: 0
    /// replicated, 1 local only, 2 unknown; 10 refused, 64 wrong usage.
    Wait(WaitArgs),
    /// Make the daemon read its configuration file again.
    Reload(Ask),
    /// Show who this node is to its peers: its name, its system, the fingerprint of its key. Makes the key at first.
    Id(Id),
    /// Trust a peer by the fingerprint of its key, list the peers, or remove one. A running daemon follows at once.
    Trust(Trust),
    /// Let a frozen application run although followers are missing, or end that.
    #[command(subcommand)]
    Sync(SyncCommand),
    /// Let a mass delete through that the guard holds.
    Confirm(Ask),
    /// What followers still need of the log: show it, or change it by hand.
    #[command(subcommand)]
    Slot(Slot),
    /// Name the state the leader's directory has now, as an exact cut; `restore` and `stop_at` find it by that name.
    RestorePoint(RestorePoint),
    /// Make a directory of a backup, as it was at a target: a time, a position, a restore point, or the latest. Exit code: 0
    /// done, 1 failed, 64 wrong usage.
    Restore(Restore),
    /// Make the follower's directory equal to its upstream's now; only what differs is moved.
    Resync(Ask),
    /// Make the follower the leader of a new timeline: it replays the log it has, captures its own directory from there on,
    /// and serves the other followers. Make sure first that the old leader is down, or can't be reached by its application.
    Promote(Promote),
    /// Make a node that another one has left behind, as the old leader after a promotion, a follower of that one. What only it has
    /// is kept in a bundle; only what differs is moved. The daemon does it if it runs, else this command; it can be repeated.
    /// Exit code 0 also when there is nothing to do.
    Rewind(Rewind),
    /// Changes that were left behind by a promotion, and are kept: list them, or lay them out as files.
    #[command(subcommand)]
    LostWrites(LostWrites),
    /// Make a follower the leader and this leader its follower, on purpose and without loss: the application is stopped, the
    /// follower takes all there is, and leads; on any failure before that everything goes on as it was. Exit code: 0 done, 10 refused,
    /// 9 a node did not answer or time was over, 64 wrong usage.
    Switchover(Switchover),
    /// Take a base backup from a running node. Exit code: 0 complete, 3 complete but no exact cut, 1 failed, 64 wrong
    /// usage.
    #[command(name = "basebackup")]
    BaseBackup(Box<BaseBackup>),
    /// Make one full backup of a full one and the incremental ones that stand on it. Exit code: 0 done, 1 failed, 64 wrong
    /// usage.
    Combine(Combine),
    /// What an archive holds: list it, check it, remove what is not to be kept.
    #[command(subcommand)]
    Archive(Archive),
    /// Check a base backup, a state directory or an archive: names, sizes, SHA-256, log and catalog. All that is wrong is
    /// found in one run. Exit code: 0 good, 1 problems, 64 wrong usage.
    Verify(Verify),
    /// Print the history of the node's timeline: where it and those before it branched off, when, by whom and why.
    History(History),
    /// Read log segments offline.
    #[command(subcommand)]
    Log(LogCommand),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// A leader, two followers and a workload in a temporary directory; compares everything at the end.
    Demo(Demo),
    /// Write manual pages or shell completions. For those who package towline.
    #[command(subcommand, hide = true)]
    Generate(Generate),
    /// Thaws a frozen application when the daemon dies. Started by the daemon itself.
    #[command(hide = true)]
    ThawGuard {
        /// As the daemon passes them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Flags of a node. Each stands for the configuration key of the same name and wins over the file.
#[derive(Debug, Args, Default)]
pub struct Node {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// State directory, towline's own.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Serve followers on this address. A port of 0 takes any, which the log and `towline status` name.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Serve /metrics and the pages for load balancers on this address.
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Name of this node among its peers.
    #[arg(long)]
    pub name: Option<String>,
    /// Glob pattern of paths not to replicate; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// How to stop the application for a cut: cgroup:PATH, unit:NAME or pid:FILE.
    #[arg(long, value_name = "HOW")]
    pub freeze: Option<String>,
    /// Longest freeze.
    #[arg(long, value_name = "SPAN")]
    pub max_freeze: Option<Span>,
    /// How long a pass tries for an exact cut.
    #[arg(long, value_name = "SPAN")]
    pub max_cut_delay: Option<Span>,
    /// Time between full stat scans.
    #[arg(long, value_name = "SPAN")]
    pub rescan_interval: Option<Span>,
    /// A peer that sends nothing for this long is given up.
    #[arg(long, value_name = "SPAN")]
    pub peer_timeout: Option<Span>,
    /// A non-empty segment is sealed after this time.
    #[arg(long, value_name = "SPAN")]
    pub segment_timeout: Option<Span>,
    /// Bytes a second of background hashing.
    #[arg(long, value_name = "SIZE")]
    pub scrub_rate: Option<Size>,
    /// zstd level of the log.
    #[arg(long, value_name = "LEVEL", allow_hyphen_values = true)]
    pub compression: Option<i32>,
    /// Who has to confirm changes: 'ANY n (..)', 'FIRST n (..)', a plain list, '*'.
    #[arg(long, value_name = "POLICY")]
    pub synchronous_followers: Option<String>,
    /// What they have to have done.
    #[arg(long, value_enum)]
    pub synchronous_level: Option<Level>,
    /// What happens while too few of them are there.
    #[arg(long, value_enum)]
    pub sync_loss: Option<SyncLoss>,
    /// Segments of log that are held for a follower that is away; 0: none.
    #[arg(long, value_name = "N")]
    pub max_slot_keep: Option<u32>,
    /// Most room for log that only slots hold: a size, or a share like 25%.
    #[arg(long, value_name = "ROOM")]
    pub max_slot_disk: Option<Room>,
    /// Newest segments of log that are always kept.
    #[arg(long, value_name = "N")]
    pub keep_segments: Option<u32>,
    /// Free disk below which log that only slots hold is given up: a size, or a share like 5%; 0: never.
    #[arg(long, value_name = "ROOM")]
    pub min_free_disk: Option<Room>,
    /// The slot of a follower that is away for this long is lost; 0s: never by time.
    #[arg(long, value_name = "SPAN")]
    pub slot_idle_timeout: Option<Span>,
    /// Put sealed segments into this archive: file:///DIRECTORY, s3://BUCKET/PREFIX, gs://, az://.
    #[arg(long, value_name = "URL")]
    pub archive: Option<String>,
    /// Most room for log that waits for the archive only, like 10G or 25%.
    #[arg(long, value_name = "ROOM")]
    pub max_archive_keep: Option<Room>,
    /// Keys and certificates.
    #[command(flatten)]
    pub tls: Tls,
}

/// Flags about encryption.
#[derive(Debug, Args, Default)]
pub struct Tls {
    /// When connections between nodes are encrypted.
    #[arg(long, value_enum)]
    pub tls: Option<Mode>,
    /// Certificate of this node, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of CAs that vouch for nodes, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Revocation lists of those CAs, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_crl: Option<PathBuf>,
}

/// Which node, whether its daemon runs or not.
#[derive(Debug, Args)]
pub struct Place {
    /// State directory of the node; default: that of its configuration. Made if it has to be and is not there.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    pub state: Option<PathBuf>,
    /// Configuration file of the node.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Flags of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// State directory of the node, whether its daemon runs or not.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    pub state: Option<PathBuf>,
    /// Configuration file of the node, which names its state directory.
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    pub config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `id`.
#[derive(Debug, Args)]
pub struct Id {
    /// Which node.
    #[command(flatten)]
    pub place: Place,
    /// Make a new certificate of the same key: the fingerprint stays. `towline reload` puts it in force.
    #[arg(long)]
    pub renew: bool,
    /// With --renew: make a new key. Peers have to trust its fingerprint before `towline reload` puts it in force.
    #[arg(long, requires = "renew")]
    pub new_key: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `trust`.
#[derive(Debug, Args)]
pub struct Trust {
    /// Name of the peer: the one it is started with.
    #[arg(required_unless_present = "list")]
    pub name: Option<String>,
    /// Fingerprint of its key, as `towline id` prints it there.
    #[arg(required_unless_present_any = ["list", "remove"], conflicts_with = "list")]
    pub fingerprint: Option<Fingerprint>,
    /// Which node.
    #[command(flatten)]
    pub place: Place,
    /// What the peer is to this node; may be repeated. Default: follower and leader, so that either may lead.
    #[arg(long, value_enum, conflicts_with_all = ["list", "remove"])]
    pub role: Vec<Role>,
    /// Show the peers that were trusted by command; with --config those of the file, too.
    #[arg(long, conflicts_with_all = ["name", "remove"])]
    pub list: bool,
    /// Trust the peer no more, or only that key of it; its connection ends at once.
    #[arg(long)]
    pub remove: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of a follower.
#[derive(Debug, Args)]
pub struct Follower {
    /// Flags of every node.
    #[command(flatten)]
    pub node: Node,
    /// Address of the node to follow; several, with commas between them, are tried in turn.
    #[arg(long, value_name = "HOST:PORT,...")]
    pub leader: Option<String>,
    /// Which of them to follow.
    #[arg(long, value_enum)]
    pub upstream_role: Option<UpstreamRole>,
    /// Cuts to apply.
    #[arg(long, value_enum)]
    pub apply_cuts: Option<Cuts>,
    /// How old a commit must be before it is shown.
    #[arg(long, value_name = "SPAN")]
    pub apply_delay: Option<Span>,
    /// Stop replay there: a position, a time with its zone, `exact`, the first exact cut, or the name of a restore point.
    #[arg(long, value_name = "LSN|TIME|exact|NAME")]
    pub stop_at: Option<String>,
    /// What to do there.
    #[arg(long, value_enum)]
    pub stop_action: Option<StopAction>,
    /// All contents are compared with their hashes once in this time; 0s: never.
    #[arg(long, value_name = "SPAN")]
    pub scrub_interval: Option<Span>,
    /// What to do about changes made in this follower's directory.
    #[arg(long, value_enum)]
    pub local_edits: Option<LocalEdits>,
    /// What to do when the log does not go on at the leader: resync by itself, or wait for `towline resync`.
    #[arg(long)]
    pub resync: Option<ResyncMode>,
    /// At the first start take over what the data directory holds, and make it equal to the leader's.
    #[arg(long)]
    pub adopt: bool,
    /// Recover to a cut and stay there until `towline resume`.
    #[arg(long)]
    pub paused: bool,
}

/// Flags of `leader`.
#[derive(Debug, Args)]
pub struct Leader {
    /// Flags of every node.
    #[command(flatten)]
    pub node: Node,
    /// Lead, whatever the other nodes of the list say. If one of them was promoted, or this node is fenced, it leads on a new
    /// timeline, and the other one is fenced.
    #[arg(long)]
    pub force: bool,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// A leader leads, whatever the other nodes of the list say, as with `towline leader --force`.
    #[arg(long)]
    pub force: bool,
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Which daemon: by its state directory, its socket, or its configuration.
#[derive(Clone, Debug, Args)]
pub struct At {
    /// State directory of the daemon.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["socket", "config"])]
    pub state: Option<PathBuf>,
    /// Control socket of the daemon; default: `control.sock` in the state directory.
    #[arg(long, value_name = "PATH", conflicts_with = "state")]
    pub socket: Option<PathBuf>,
    /// Configuration file of the daemon, which names its state directory.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["state", "socket"])]
    pub config: Option<PathBuf>,
}

/// Where to reach a daemon, and how to print.
#[derive(Debug, Args)]
pub struct Ask {
    /// Which daemon.
    #[command(flatten)]
    pub at: At,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Give up after this time.
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    pub timeout: Span,
}

/// Flags of `promote`.
#[derive(Debug, Args)]
pub struct Promote {
    /// Which cut the directory is to stand on; default: exact, or newest with `apply_cuts = "file"`. What the log has after
    /// it is put aside.
    #[arg(long, value_enum)]
    pub to: Option<PromoteTo>,
    /// Only show what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Return when the node serves as the leader.
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
    /// For a leader that is fenced, or that another one leads apart from: it leads on a new timeline, with a number above all
    /// that it has heard of, and the other one is fenced. What the other one has is lost then; stop its application first.
    #[arg(long, conflicts_with = "to")]
    pub force: bool,
    /// Which daemon; the time is how long is waited.
    #[command(flatten)]
    pub ask: Ask,
}

/// Flags of `switchover`.
#[derive(Debug, Args)]
pub struct Switchover {
    /// The name of the follower that is to lead.
    #[arg(long, value_name = "NAME")]
    pub to: String,
    /// Only look whether anything stands against it.
    #[arg(long)]
    pub dry_run: bool,
    /// The application is stopped already: neither on_demote nor a freeze is needed.
    #[arg(long)]
    pub stopped: bool,
    /// Which daemon, the leader's.
    #[command(flatten)]
    pub at: At,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Put everything back when the other is not about to lead after this time.
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    pub timeout: Span,
}

/// A name, and whom to ask.
#[derive(Debug, Args)]
pub struct RestorePoint {
    /// 1 to 63 letters, digits, '.', '_' or '-', a letter first; none that was used before.
    pub name: String,
    /// Which daemon; the time is how long an exact cut is tried for.
    #[command(flatten)]
    pub ask: Ask,
}

/// Commands on an application that is frozen until followers are there.
#[derive(Debug, Subcommand)]
pub enum SyncCommand {
    /// Let it run for a time, whatever followers are there.
    Release {
        /// Which daemon.
        #[command(flatten)]
        ask: Ask,
        /// How long; default: 1h. A restart of the daemon ends it.
        #[arg(long = "for", value_name = "SPAN")]
        span: Option<Span>,
    },
    /// End the release: it is frozen again while followers are missing.
    Resume(Ask),
}

/// What to wait for, and how long.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Which daemon.
    #[command(flatten)]
    pub at: At,
    /// What followers have to have done; default: `synchronous_level` of the configuration. On a follower, what it has to
    /// have done itself; default: apply.
    #[arg(long, value_enum)]
    pub level: Option<Level>,
    /// Give up after this time: 1ms to 24h; default: 5s.
    #[arg(long, value_name = "SPAN")]
    pub timeout: Option<Span>,
    /// Who has to confirm, like 'ANY 1 (a, b)'; default: `synchronous_followers` of the configuration, and where that is
    /// empty every follower attached.
    #[arg(long = "for", value_name = "POLICY")]
    pub policy: Option<String>,
    /// Wait for this position instead of what the directory holds. On a follower: until it is there itself.
    #[arg(long, value_name = "LSN")]
    pub lsn: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Commands on segments.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Print the records of segments.
    Dump(Segments),
    /// Check checksums, the hash chain and the record grammar of segments.
    Verify(Segments),
    /// Print what takes the space in segments.
    Stat(Segments),
}

/// Segment files.
#[derive(Debug, Args)]
pub struct Segments {
    /// Segment files, or directories that hold them.
    #[arg(required = true, value_name = "SEGMENT")]
    pub segments: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Commands on the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file: prints nothing and exits 0, or names what a start on this host would refuse, and the remedy.
    Check {
        /// Configuration file.
        file: PathBuf,
    },
    /// Print the configuration in force, defaults included.
    Show {
        /// Configuration file.
        file: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What can be generated.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Manual pages.
    Man {
        /// Where to.
        dir: PathBuf,
    },
    /// Completions for bash, zsh and fish.
    Completions {
        /// Where to.
        dir: PathBuf,
    },
}

/// Flags of the demonstration.
#[derive(Debug, Args)]
pub struct Demo {
    /// How long the workload runs.
    #[arg(long, default_value = "12s", value_name = "SPAN")]
    pub duration: Span,
    /// Keep the temporary directory and print where it is.
    #[arg(long)]
    pub keep: bool,
}

fn set<T: Clone>(to: &mut T, from: Option<&T>) {
    if let Some(v) = from {
        *to = v.clone();
    }
}

fn set_some<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
    if from.is_some() {
        to.clone_from(from);
    }
}

impl Tls {
    /// Puts these flags over the file's configuration.
    pub fn over(&self, c: &mut Config) {
        set(&mut c.tls, self.tls.as_ref());
        set_some(&mut c.tls_cert, &self.tls_cert);
        set_some(&mut c.tls_key, &self.tls_key);
        set_some(&mut c.tls_ca, &self.tls_ca);
        set_some(&mut c.tls_crl, &self.tls_crl);
    }
}

impl Node {
    /// The file's configuration with these flags over it.
    pub fn over(&self, mut c: Config) -> Config {
        set_some(&mut c.data, &self.data);
        set_some(&mut c.state, &self.state);
        set_some(&mut c.listen, &self.listen);
        set_some(&mut c.http, &self.http);
        set_some(&mut c.name, &self.name);
        c.exclude.extend(self.exclude.iter().cloned());
        set(&mut c.freeze, self.freeze.as_ref());
        set(&mut c.max_freeze, self.max_freeze.as_ref());
        set(&mut c.max_cut_delay, self.max_cut_delay.as_ref());
        set(&mut c.rescan_interval, self.rescan_interval.as_ref());
        set(&mut c.peer_timeout, self.peer_timeout.as_ref());
        set(&mut c.segment_timeout, self.segment_timeout.as_ref());
        set(&mut c.scrub_rate, self.scrub_rate.as_ref());
        set(&mut c.compression, self.compression.as_ref());
        set(&mut c.synchronous_followers, self.synchronous_followers.as_ref());
        set(&mut c.synchronous_level, self.synchronous_level.as_ref());
        set(&mut c.sync_loss, self.sync_loss.as_ref());
        set(&mut c.max_slot_keep, self.max_slot_keep.as_ref());
        set(&mut c.max_slot_disk, self.max_slot_disk.as_ref());
        set(&mut c.keep_segments, self.keep_segments.as_ref());
        set(&mut c.min_free_disk, self.min_free_disk.as_ref());
        set(&mut c.slot_idle_timeout, self.slot_idle_timeout.as_ref());
        set_some(&mut c.archive, &self.archive);
        set(&mut c.max_archive_keep, self.max_archive_keep.as_ref());
        self.tls.over(&mut c);
        c
    }
}

impl Follower {
    /// The file's configuration with these flags over it.
    pub fn over(&self, c: Config) -> Config {
        let mut c = self.node.over(c);
        if self.leader.is_some() {
            c.leader.clone_from(&self.leader);
        }
        c.upstream_role = self.upstream_role.unwrap_or(c.upstream_role);
        c.apply_delay = self.apply_delay.unwrap_or(c.apply_delay);
        if self.stop_at.is_some() {
            c.stop_at.clone_from(&self.stop_at);
        }
        c.stop_action = self.stop_action.unwrap_or(c.stop_action);
        c.scrub_interval = self.scrub_interval.unwrap_or(c.scrub_interval);
        c.apply_cuts = self.apply_cuts.unwrap_or(c.apply_cuts);
        c.local_edits = self.local_edits.unwrap_or(c.local_edits);
        c.resync = self.resync.unwrap_or(c.resync);
        c.adopt |= self.adopt;
        c
    }
}
