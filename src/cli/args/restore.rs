//! What can be typed for `restore`.

use std::path::PathBuf;

use clap::Args;

use crate::restore::{Cloning, Line, Origin, Source, Target};

/// Flags of `restore`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Restore {
    /// An archive (file:///DIR, s3://BUCKET/PREFIX, ..., or its directory): of its backups the newest one is taken that
    /// ended at or before the target, and its log is used, too. Or one backup: the directory that holds its manifest.json, a
    /// tar, compressed with zstd or not, or `-`, a tar on standard input.
    #[arg(long, value_name = "ARCHIVE|BACKUP|-")]
    pub from: Origin,
    /// The label of a backup of the archive, instead of the newest one that fits.
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<String>,
    /// A backup that an incremental --from stands on, outside of an archive; may be repeated, in any order.
    #[arg(long, value_name = "BACKUP")]
    pub base: Vec<PathBuf>,
    /// To which state: `latest`, a time like '2026-11-24 14:05' by the clock of this machine, or with its zone like
    /// 2026-11-25T14:05:00+01:00, a position like 0/16B3748, the name of a restore point, or `exact`, the first exact cut.
    #[arg(long, value_name = "latest|TIME|LSN|NAME|exact")]
    pub target: Target,
    /// The directory that is made: new or empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Log after the backup: an archive (file:///DIR, s3://BUCKET/PREFIX, ...), a state directory, or a directory of
    /// segments; may be repeated.
    #[arg(long, value_name = "ARCHIVE|DIR")]
    pub log: Vec<Source>,
    /// Which timeline is followed, where the log branches: `latest` is the newest that the archives and state directories
    /// know, `current` is that of the backup, and a number is that one.
    #[arg(long, value_name = "latest|current|N", default_value_t = Line::Latest)]
    pub target_timeline: Line,
    /// Keep what a follower needs: `towline follower` on --out and --state goes on from there.
    #[arg(long, requires = "state", group = "node")]
    pub as_follower: bool,
    /// Begin a new timeline at the target: `towline leader` on --out and --state leads it.
    #[arg(long, requires = "state", group = "node")]
    pub as_leader: bool,
    /// The state directory of that follower, or leader: new or empty.
    #[arg(long, value_name = "DIR", requires = "node")]
    pub state: Option<PathBuf>,
    /// Make --out equal if it holds something: files that are there are compared, and only blocks that differ are written. What
    /// the backup excludes is left alone. Until it is whole it is called OUT.restoring.
    #[arg(long)]
    pub delta: bool,
    /// How a file comes there that the backup holds as a file: `auto` shares its blocks where the file system can (xfs, btrfs;
    /// one for both), `copy` writes its bytes, `clone` shares or fails.
    #[arg(long, value_name = "auto|copy|clone", default_value_t = Cloning::Auto, conflicts_with = "delta")]
    pub copy_mode: Cloning,
    /// Where the history around the target is approximate, or the log has a hole before the latest state, the last exact cut
    /// before it will do.
    #[arg(long)]
    pub allow_gap: bool,
    /// Only show what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
