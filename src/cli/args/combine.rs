//! What can be typed for `combine`.

use std::path::PathBuf;

use clap::Args;

use crate::combine::CopyMode;

/// Flags of `combine`.
#[derive(Debug, Args)]
pub struct Combine {
    /// The full backup, then the incremental ones that stand on it, the newest last: directories, tars that are not
    /// compressed, or file:///DIRECTORY#LABEL in an archive that is a directory. What is made is of form tar, as a directory:
    /// its files lie in `base`, as in what `basebackup --out -` streams, not in `data`.
    #[arg(value_name = "BACKUP", required = true, num_args = 2..)]
    pub members: Vec<PathBuf>,
    /// The directory that becomes the full backup: new or empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Its label; default: that of the newest member.
    #[arg(long)]
    pub label: Option<String>,
    /// How a file comes there that a member holds as a whole: `copy`; `clone`, where the file system can share blocks (xfs,
    /// btrfs); or `link`, a hard link: then both backups hold one and the same file, and whatever changes it changes both.
    #[arg(long, value_name = "copy|clone|link", default_value_t = CopyMode::Copy)]
    pub copy_mode: CopyMode,
    /// Only show what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
