//! What can be typed for `rewind` and `lost-writes`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::Span;

/// Flags of `rewind`.
#[derive(Debug, Args)]
pub struct Rewind {
    /// State directory of the node, whether its daemon runs or not.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    pub state: Option<PathBuf>,
    /// Configuration file of the node. Without one a node that is stopped is found by --state alone.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The node that leads, or several with commas between; default: those of the key `leader`. One that follows it will do.
    #[arg(long, value_name = "HOST:PORT")]
    pub leader: Option<String>,
    /// Data directory of a node that is stopped; default: the one that it ran with.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Only show what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Half of the directory, or more, is gone, or what can't be logged may go, and that is as it should be.
    #[arg(long)]
    pub confirm: bool,
    /// How long a running daemon is waited for; it goes on after that.
    #[arg(long, value_name = "SPAN", default_value = "24h")]
    pub timeout: Span,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Commands about changes that were left behind.
#[derive(Debug, Subcommand)]
pub enum LostWrites {
    /// Show the bundles that the node has kept.
    List {
        /// State directory of the node, whether its daemon runs or not.
        #[arg(long, value_name = "DIR", required_unless_present = "config")]
        state: Option<PathBuf>,
        /// Configuration file of the node, which names its state directory.
        #[arg(long, value_name = "FILE", conflicts_with = "state")]
        config: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lay out every file of a bundle that was created or changed, as the log tells it: whole, or the stretches that changed.
    Export {
        /// The directory of the bundle, or its number in the state directory.
        #[arg(value_name = "BUNDLE|N")]
        bundle: String,
        /// State directory of the node, for a number.
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
        /// Configuration file of the node, which names its state directory.
        #[arg(long, value_name = "FILE", conflicts_with = "state")]
        config: Option<PathBuf>,
        /// The directory that is made, new or empty: the files are below `files` in it, and `list.txt` says what they are.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Fill the rest of files of which only stretches are known from this directory.
        #[arg(long, value_name = "DIR")]
        over: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}
