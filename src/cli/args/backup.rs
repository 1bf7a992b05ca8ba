//! What can be typed about base backups.

use std::path::PathBuf;

use clap::Args;

use super::Tls;
use crate::backup::Compression;
use crate::config::{Size, Span};

/// Flags of `basebackup`.
#[derive(Debug, Args)]
pub struct BaseBackup {
    /// The node to read: a leader, or a follower.
    #[arg(long, value_name = "HOST:PORT")]
    pub leader: String,
    /// The directory that becomes the backup: new or empty. `-`: the backup is one tar stream on standard output. An address
    /// like file:///DIR or s3://BUCKET/PREFIX: it goes into that archive.
    #[arg(long, value_name = "DIR|-|URL")]
    pub out: PathBuf,
    /// Take what has changed since this backup only, as packs: its manifest, its directory, or URL#LABEL of one in an archive.
    /// It is not changed, and the new one can't be restored without it.
    #[arg(long, value_name = "MANIFEST|URL#LABEL")]
    pub incremental: Option<PathBuf>,
    /// Name of the backup; default: the time at which it begins.
    #[arg(long)]
    pub label: Option<String>,
    /// How long to wait for an exact cut, once everything else is there. Without one the backup ends on a cut of files,
    /// and the exit code is 3.
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    pub exact_timeout: Span,
    /// Take at most so many bytes a second from the node; 0: as many as come.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub max_rate: Size,
    /// Compress the stream: none, zstd, or zstd:LEVEL.
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub compress: Compression,
    /// Directory in which the log of a stream, or of a backup in an archive, waits for its turn; default: $TMPDIR, or /tmp.
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Show how far it is on standard error: a bar on a terminal, lines elsewhere.
    #[arg(long)]
    pub progress: bool,
    /// Keep what was made when the backup fails, for --resume.
    #[arg(long)]
    pub keep_partial: bool,
    /// Go on with a backup that failed with --keep-partial, or whose host did. What is there is checked again.
    #[arg(long)]
    pub resume: bool,
    /// After so long without a connection to the node the backup fails.
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    pub retry_timeout: Span,
    /// A node that sends nothing for this long is given up.
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    pub peer_timeout: Span,
    /// The name by which the node trusts this side; default: that of the state directory, or of the host.
    #[arg(long)]
    pub name: Option<String>,
    /// Directory of the key and of the peers of this side, as `towline id` and `towline trust` keep them; needed for TLS.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Configuration file: its name, state directory, peers and TLS keys count here.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keys and certificates.
    #[command(flatten)]
    pub tls: Tls,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
