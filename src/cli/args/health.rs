//! What can be typed for `status` and `check`.

use clap::Args;

use crate::config::{Size, Span};
use crate::status::{ACCEPTABLE, Bounds, Free, Limits};

use super::{Ask, At};

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct Show {
    /// Where to ask.
    #[command(flatten)]
    pub ask: Ask,
    /// Look again and again, each second or at this interval: on a terminal a live page with rates, until Ctrl-C;
    /// elsewhere one block after another.
    #[arg(long, value_name = "SPAN", num_args = 0..=1, default_missing_value = "1s")]
    pub watch: Option<Span>,
}

/// Flags of `check`. Limits are WARNING,CRITICAL, the one that is reached first in front; a single value is the critical
/// one, and `off` is none.
#[derive(Debug, Args)]
pub struct Check {
    /// Which daemon.
    #[command(flatten)]
    pub at: At,
    /// Print the verdict as JSON instead of the line.
    #[arg(long)]
    pub json: bool,
    /// Give up after this time.
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    pub timeout: Span,
    /// Age of the oldest commit that is not applied; on a leader for each attached follower. What a follower holds back
    /// by its `apply_delay` is added to it, on the follower and on the leader.
    #[arg(long, value_name = "SPAN[,SPAN]", default_value = "30s,60s", value_parser = Bounds::<Span>::most)]
    pub max_lag: Bounds<Span>,
    /// Bytes of log that are not applied.
    #[arg(long, value_name = "SIZE[,SIZE]", default_value = "off", value_parser = Bounds::<Size>::most)]
    pub max_lag_bytes: Bounds<Size>,
    /// How long commits may wait for an exact cut.
    #[arg(long, value_name = "SPAN[,SPAN]", default_value = "5m,1h", value_parser = Bounds::<Span>::most)]
    pub max_exact_age: Bounds<Span>,
    /// Fewer attached followers than this are a problem.
    #[arg(long, value_name = "N[,N]", default_value = "off", value_parser = Bounds::<u64>::least)]
    pub min_followers: Bounds<u64>,
    /// A missing quorum of synchronous followers is critical instead of a warning, and so is a leader without any.
    #[arg(long)]
    pub sync_state: bool,
    /// How long a follower that has a slot here may be away: one that never comes back holds log until its slot is lost.
    #[arg(long, value_name = "SPAN[,SPAN]", default_value = "15m,24h", value_parser = Bounds::<Span>::most)]
    pub max_away: Bounds<Span>,
    /// Bytes of log that one slot may hold.
    #[arg(long, value_name = "SIZE[,SIZE]", default_value = "off", value_parser = Bounds::<Size>::most)]
    pub max_slot_bytes: Bounds<Size>,
    /// Age of the newest base backup; none at all is critical.
    #[arg(long, value_name = "SPAN[,SPAN]", default_value = "off", value_parser = Bounds::<Span>::most)]
    pub max_backup_age: Bounds<Span>,
    /// How long sealed log may wait for the archive.
    #[arg(long, value_name = "SPAN[,SPAN]", default_value = "5m,30m", value_parser = Bounds::<Span>::most)]
    pub max_archive_age: Bounds<Span>,
    /// Room that has to be left on the file systems of the state and the data directory: a size, or a share like 5%.
    #[arg(long, value_name = "ROOM[,ROOM]", default_value = "5%,2%", value_parser = Bounds::<Free>::least)]
    pub min_free_disk: Bounds<Free>,
    /// Days that the node's certificate has to be good for, if it ends.
    #[arg(long, value_name = "DAYS[,DAYS]", default_value = "30,7", value_parser = Bounds::<u32>::least)]
    pub min_certificate_days: Bounds<u32>,
    /// A problem that is known and is none here, by its word; may be repeated.
    #[arg(long, value_name = "WORD", value_parser = clap::builder::PossibleValuesParser::new(ACCEPTABLE))]
    pub accept: Vec<String>,
}

impl Check {
    /// The limits in the units of the verdict.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let seconds = |b: Bounds<Span>| b.map(|s| s.0.as_secs_f64());
        Limits {
            lag: seconds(self.max_lag),
            lag_bytes: self.max_lag_bytes.map(|s| s.0),
            exact_age: seconds(self.max_exact_age),
            followers: self.min_followers,
            sync_state: self.sync_state,
            away: seconds(self.max_away),
            slot_bytes: self.max_slot_bytes.map(|s| s.0),
            backup_age: seconds(self.max_backup_age),
            archive_age: seconds(self.max_archive_age),
            free: self.min_free_disk,
            certificate_days: self.min_certificate_days.map(f64::from),
            accept: self.accept.clone(),
        }
    }
}
