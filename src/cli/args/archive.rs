//! What can be typed about archives.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Commands on an archive.
#[derive(Debug, Subcommand)]
pub enum Archive {
    /// Print what it holds: backups, ranges of log, gaps between them.
    List(Which),
    /// Read every object and print what is wrong. Exit code: 0 good, 1 something is wrong.
    Verify(VerifyArchive),
    /// Remove backups that are not to be kept, and log that no kept one needs. The plan is printed first.
    Prune(Prune),
    /// Keep a backup, and what it stands on, whatever `prune` is told.
    Pin(Labelled),
    /// Take the pin away.
    Unpin(Labelled),
}

/// Which archive, and how to print.
#[derive(Debug, Args)]
pub struct Which {
    /// Address: file:///DIRECTORY or its path, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX.
    #[arg(long, value_name = "URL", required_unless_present = "config", conflicts_with = "config")]
    pub archive: Option<String>,
    /// Configuration file of a node, whose key `archive` names it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `archive verify`.
#[derive(Debug, Args)]
pub struct VerifyArchive {
    /// Read this backup only: no log, and no other backup.
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<String>,
    /// Which.
    #[command(flatten)]
    pub which: Which,
}

/// Flags of `archive prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Keep the newest N full backups, and what stands on them.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        required_unless_present = "keep_days"
    )]
    pub keep_full: Option<u64>,
    /// Keep what is needed to restore any moment of the last D days.
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u64).range(1..))]
    pub keep_days: Option<u64>,
    /// Print the plan and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// A backup in an archive.
#[derive(Debug, Args)]
pub struct Labelled {
    /// Label of the backup.
    pub label: String,
    /// Which archive.
    #[command(flatten)]
    pub which: Which,
}
