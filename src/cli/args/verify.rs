//! What can be typed about checking what is kept.

use std::path::PathBuf;

use clap::Args;

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// A base backup: its directory, a tar of it (zstd or not), or - for a tar on standard input; a state directory; or an
    /// archive: its address, like s3://bucket/prefix, or its directory.
    #[arg(value_name = "BACKUP|STATE|ARCHIVE")]
    pub path: PathBuf,
    /// End after the first problem.
    #[arg(long, short = 'e')]
    pub exit_on_error: bool,
    /// A path below it of which nothing is to be heard, like data/notes; may be repeated.
    #[arg(long, short = 'i', value_name = "PATH")]
    pub ignore: Vec<PathBuf>,
    /// Compare names, kinds and sizes only: nothing but the manifest is read.
    #[arg(long, short = 's')]
    pub no_content: bool,
    /// Don't look into the log.
    #[arg(long, short = 'n')]
    pub no_log: bool,
    /// Restore the backup into a scratch directory, when nothing else is wrong with it, and compare what is there then with the
    /// tree that its log leads to. Needs as much room as the data, and the backup as a directory.
    #[arg(long, conflicts_with_all = ["no_content", "no_log"])]
    pub replay: bool,
    /// Where the scratch directory is made; default: TMPDIR, or /tmp.
    #[arg(long, value_name = "DIR", requires = "replay")]
    pub scratch: Option<PathBuf>,
    /// Print problems only.
    #[arg(long, short = 'q', conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
