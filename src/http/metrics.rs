//! `/metrics`: a status document as figures for Prometheus. What a node has no value for is left out, so that nothing
//! is ever shown that was not looked at.
//!
//! Names begin with `towline_` and end with their unit. `follower` is a follower's name; `via` names the nodes between
//! it and this one, `/` between them.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use serde_json::Value;

use crate::status::{HEALTHS, View};

/// Content type of [`Format::Open`].
const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Most followers, slots and their like that are shown: each is a series in somebody's database.
const ROWS: usize = 256;
/// How figures are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    Open,
    /// Prometheus' text format 0.0.4.
    Plain,
}

impl Format {
    /// The one that a request accepts: OpenMetrics where it is named, else what every scraper reads.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::Open } else { Self::Plain }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Open => OPEN,
            Self::Plain => prometheus_text::CONTENT_TYPE,
        }
    }
}

type Labels = Vec<(&'static str, String)>;
type Samples = Vec<(Labels, f64)>;

/// One family of figures.
pub(super) struct Family {
    /// Its name without prefix and unit.
    pub(super) name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    read: fn(View<'_>) -> Samples,
}

/// Writes all figures of a status document.
///
/// # Errors
/// Never for a text in memory.
pub(super) fn page(status: Value, format: Format) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("towline");
    registry.register_collector(Box::new(Figures(status)));
    let mut out = String::new();
    match format {
        Format::Open => text::encode(&mut out, &registry)?,
        Format::Plain => prometheus_text::encode(&mut out, &registry)?,
    }
    Ok(out)
}

#[derive(Debug)]
struct Figures(Value);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in families() {
            let samples = (family.read)(View(&self.0));
            if samples.is_empty() {
                continue;
            }
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), family.kind)?;
            for (labels, value) in samples.into_iter().take(ROWS) {
                if labels.is_empty() {
                    write(&mut metric, family.kind, value)?;
                } else {
                    write(&mut metric.encode_family(&labels)?, family.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(to: &mut MetricEncoder<'_>, kind: MetricType, value: f64) -> Result<(), std::fmt::Error> {
    match kind {
        MetricType::Counter => to.encode_counter::<Labels, f64, f64>(&value, None),
        _ => to.encode_gauge(&value),
    }
}

fn gauge(
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    read: fn(View<'_>) -> Samples,
) -> Family {
    Family { name, help, unit, kind: MetricType::Gauge, read }
}

fn counter(
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    read: fn(View<'_>) -> Samples,
) -> Family {
    Family { name, help, unit, kind: MetricType::Counter, read }
}

/// Every family there is.
pub(super) fn families() -> Vec<Family> {
    let mut all = node();
    all.extend(log());
    all.extend(capture());
    all.extend(apply());
    all.extend(followers());
    all.extend(synchronous());
    all.extend(retention());
    all.extend(archive());
    all
}

const NO: Option<Unit> = None;
const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);

fn node() -> Vec<Family> {
    vec![
        gauge("node_info", NO, "Who the node is; always 1.", |v| {
            let label = |key: &'static str| (key, v.text(&format!("/{key}")).to_owned());
            vec![(["name", "role", "system", "version"].map(label).to_vec(), 1.0)]
        }),
        gauge("timeline", NO, "The epoch of the node's log.", |v| number(v, "/timeline")),
        gauge("start_time", SECONDS, "When the process began, since 1970.", |v| time(v, "/started")),
        gauge("health", NO, "1 for the word of the node's health, 0 for the others.", |v| {
            let is = |word: &str| f64::from(u8::from(v.text("/health") == word));
            HEALTHS.iter().map(|word| (vec![("health", (*word).to_owned())], is(word))).collect()
        }),
        gauge("needs_help", NO, "1 while the node never goes on by itself.", |v| {
            one(f64::from(u8::from(v.text("/health") == "help")))
        }),
        gauge(
            "fenced",
            NO,
            "1 for a leader that does not lead any more: another line goes on from its own.",
            |v| one(f64::from(u8::from(v.has("/fence")))),
        ),
        gauge("rivals", NO, "Nodes that lead apart from this leader.", |v| {
            one(v.list("/rivals").map(|_| 1.0).sum())
        }),
        gauge("disk_free", BYTES, "Room on the file system of a directory.", |v| rooms(v, "/free_bytes")),
        gauge("disk_size", BYTES, "Size of the file system of a directory.", |v| rooms(v, "/size_bytes")),
        gauge(
            "certificate_remaining",
            SECONDS,
            "How long the node's certificate holds; negative: it is expired.",
            |v| scaled(v, "/tls/days_left", 86_400.0),
        ),
    ]
}

fn log() -> Vec<Family> {
    vec![
        gauge("log_written_position", BYTES, "Position up to which log is handed to the file system.", |v| {
            position(v, "/log/written")
        }),
        gauge("log_end_position", BYTES, "Position up to which log is durable.", |v| position(v, "/log/end")),
        gauge("log_commit_position", BYTES, "End of the last complete change set.", |v| {
            position(v, "/log/commit")
        }),
        gauge("log_exact_position", BYTES, "End of the last change set with an exact cut.", |v| {
            position(v, "/log/exact")
        }),
        gauge("log_commit_time", SECONDS, "When the last change set was committed, since 1970.", |v| {
            time(v, "/log/commit_time")
        }),
        gauge(
            "exact_cut_age",
            SECONDS,
            "Age of the oldest commit that waits for an exact cut; 0 when none does.",
            |v| number(v, "/cuts/exact_age"),
        ),
        gauge("exact_cut_waiting", BYTES, "Log that waits for an exact cut.", |v| {
            number(v, "/cuts/waiting_bytes")
        }),
        gauge(
            "lag",
            SECONDS,
            "Age of the oldest commit that this follower has not applied; absent while unknown.",
            |v| number(v, "/lag/seconds"),
        ),
        gauge("lag", BYTES, "Log of the leader that this follower has not applied.", |v| {
            number(v, "/lag/bytes")
        }),
    ]
}

fn capture() -> Vec<Family> {
    vec![
        counter("capture_cuts", NO, "Change sets since the start, by how good their cut is.", |v| {
            ["exact", "file"]
                .into_iter()
                .flat_map(|cut| labelled(v, &format!("/capture/cuts_{cut}"), "cut", cut))
                .collect()
        }),
        counter("capture_gaps", NO, "Times that changes were missed and had to be looked for.", |v| {
            number(v, "/capture/gaps")
        }),
        gauge("capture_gap_open", NO, "1 while missed changes are looked for.", |v| {
            flag(v, "/capture/gap_open")
        }),
        counter("capture_events", NO, "Events of the kernel.", |v| number(v, "/capture/events")),
        counter("capture_overflows", NO, "Times that the kernel's queue of events overflowed.", |v| {
            number(v, "/capture/overflows")
        }),
        counter("capture_found_by_scan", NO, "Changes that only a scan found.", |v| {
            number(v, "/capture/found_by_scan")
        }),
        gauge("capture_files", NO, "Files and directories of the tree.", |v| number(v, "/capture/files")),
        gauge("capture_unhashed_files", NO, "Files whose content was not read yet.", |v| {
            number(v, "/capture/unhashed_files")
        }),
        gauge("capture_watched_directories", NO, "Directories that are watched.", |v| {
            number(v, "/capture/watches")
        }),
        gauge("capture_unwatched_directories", NO, "Directories that only scans see.", |v| {
            number(v, "/capture/unwatched")
        }),
        gauge("capture_hidden_processes", NO, "Programs whose mappings may not be looked at.", |v| {
            number(v, "/capture/hidden_processes")
        }),
        gauge("capture_held", NO, "1 while a guard holds until an operator confirms.", |v| {
            if v.has("/capture") { one(f64::from(u8::from(v.has("/capture/hold")))) } else { Vec::new() }
        }),
        counter("freezes", NO, "Times that the application was held still for a cut.", |v| {
            number(v, "/capture/freezes")
        }),
        counter("freeze_failures", NO, "Times that it could not be.", |v| {
            number(v, "/capture/freeze_failures")
        }),
        gauge("freeze_last", SECONDS, "How long the last freeze took.", |v| {
            scaled(v, "/capture/freeze_last_ms", 1e-3)
        }),
        gauge("freeze_longest", SECONDS, "How long the longest freeze since the start took.", |v| {
            scaled(v, "/capture/freeze_longest_ms", 1e-3)
        }),
    ]
}

fn apply() -> Vec<Family> {
    vec![
        gauge("apply_position", BYTES, "Position that the directory shows.", |v| position(v, "/apply/lsn")),
        gauge("apply_paused", NO, "1 while the directory stands still on request.", |v| {
            flag(v, "/apply/paused")
        }),
        gauge("apply_consistent", NO, "1 when the directory is usable.", |v| flag(v, "/apply/consistent")),
        counter("apply_commits", NO, "Change sets applied since the start.", |v| number(v, "/apply/commits")),
        counter("apply_records", NO, "Records folded since the start.", |v| number(v, "/apply/records")),
        gauge("apply_skipped", NO, "What is in the catalog only for want of privilege, by class.", |v| {
            let each = v.counts("/apply/skipped_privilege");
            each.map(|(class, n)| (vec![("class", class.to_owned())], float(n))).collect()
        }),
        counter("apply_local_edits", NO, "Changes by others seen in the directory since the start.", |v| {
            number(v, "/apply/local_edits_total")
        }),
        gauge("apply_local_edits_standing", NO, "Those that the last look at the directory met.", |v| {
            number(v, "/apply/local_edits_standing")
        }),
        gauge("upstream_connected", NO, "1 while log comes in.", |v| {
            let streams = v.text("/upstream/state") == "streaming";
            if v.has("/upstream") { one(f64::from(u8::from(streams))) } else { Vec::new() }
        }),
        gauge("upstream_failed_attempts", NO, "Attempts to connect since the last that went well.", |v| {
            number(v, "/upstream/attempts")
        }),
        gauge("upstream_heard_time", SECONDS, "When the upstream was last heard, since 1970.", |v| {
            time(v, "/upstream/heard")
        }),
        counter("resyncs", NO, "Resyncs completed since the start.", |v| number(v, "/resync/completed")),
        gauge("resync_received", BYTES, "Content that the last resync moved.", |v| {
            number(v, "/resync/received_bytes")
        }),
        counter(
            "repaired_files",
            NO,
            "Files that were not what was applied, and were put right since the start.",
            |v| number(v, "/resync/repaired_files"),
        ),
        gauge("lost_logs", NO, "Logs kept aside because they hold what the upstream has not.", |v| {
            number(v, "/resync/lost_logs")
        }),
        gauge("fill_copied", BYTES, "Content that a first copy has brought.", |v| {
            number(v, "/upstream/fill/bytes")
        }),
        gauge("fill_size", BYTES, "Content that a first copy has to bring.", |v| {
            number(v, "/upstream/fill/bytes_total")
        }),
    ]
}

fn followers() -> Vec<Family> {
    vec![
        gauge("followers", NO, "Followers of this node, by state.", |v| {
            let states = ["connecting", "filling", "resyncing", "catchup", "streaming", "away"];
            let count = |state: &str| v.list("/followers").filter(|f| f.text("/state") == state).count();
            states.iter().map(|s| (vec![("state", (*s).to_owned())], float(count(s) as u64))).collect()
        }),
        gauge("follower_connected", NO, "1 while a follower takes log.", |v| {
            cascade(v, |f| Some(f64::from(u8::from(matches!(f.text("/state"), "catchup" | "streaming")))))
        }),
        gauge("follower_sent_position", BYTES, "Log handed to TCP.", |v| cascade(v, |f| at(f, "/sent"))),
        gauge("follower_write_position", BYTES, "Log in a follower's operating system.", |v| {
            cascade(v, |f| at(f, "/write"))
        }),
        gauge("follower_flush_position", BYTES, "Log durable on a follower.", |v| {
            cascade(v, |f| at(f, "/flush"))
        }),
        gauge("follower_apply_position", BYTES, "Log visible in a follower's directory.", |v| {
            cascade(v, |f| at(f, "/apply"))
        }),
        gauge("follower_lag", BYTES, "Log that a follower has not applied.", |v| {
            cascade(v, |f| f.number("/lag/bytes"))
        }),
        gauge("follower_lag", SECONDS, "Age of the oldest commit that a follower has not applied.", |v| {
            cascade(v, |f| f.number("/lag/seconds"))
        }),
        counter("follower_sent", BYTES, "Sent to a follower over its present connection.", |v| {
            direct(v, |f| f.number("/bytes_sent"))
        }),
        counter("follower_received", BYTES, "Received from a follower over its present connection.", |v| {
            direct(v, |f| f.number("/bytes_received"))
        }),
    ]
}

fn synchronous() -> Vec<Family> {
    fn asked(v: View<'_>, read: fn(View<'_>) -> Samples) -> Samples {
        if v.text("/sync/policy").is_empty() { Vec::new() } else { read(v) }
    }
    vec![
        gauge("sync_satisfied", NO, "1 while the synchronous followers that are needed are there.", |v| {
            asked(v, |v| flag(v, "/sync/satisfied"))
        }),
        gauge("sync_required", NO, "Followers that have to confirm.", |v| {
            asked(v, |v| number(v, "/sync/required"))
        }),
        gauge("sync_present", NO, "Followers whose confirmations count.", |v| {
            asked(v, |v| number(v, "/sync/present"))
        }),
        gauge("sync_waiters", NO, "Callers of towline wait.", |v| number(v, "/sync/waiters")),
        counter("sync_waits", NO, "Calls of towline wait, by how they ended.", |v| {
            ["replicated", "local_only", "unknown"]
                .into_iter()
                .flat_map(|result| labelled(v, &format!("/sync/{result}"), "result", result))
                .collect()
        }),
        counter("switchovers", NO, "Switchovers from this node since the start, by how they ended.", |v| {
            ["completed", "undone"]
                .into_iter()
                .map(|result| {
                    let n = v.number(&format!("/switchover/{result}")).unwrap_or(0.0);
                    (vec![("result", result.to_owned())], n)
                })
                .collect()
        }),
        gauge("switchover_writes_stopped", SECONDS, "How long the last switchover kept writes away.", |v| {
            number(v, "/switchover/last/writes_stopped_seconds")
        }),
        gauge("sync_frozen", NO, "1 while the application is frozen for want of a quorum.", |v| {
            asked(v, |v| one(f64::from(u8::from(v.has("/sync/frozen_since")))))
        }),
        gauge("follower_sync_counts", NO, "1 while a follower's confirmations count.", |v| {
            direct(v, |f| f.has("/sync_counts").then(|| f64::from(u8::from(f.flag("/sync_counts")))))
        }),
    ]
}

fn retention() -> Vec<Family> {
    fn slots(v: View<'_>, read: impl Fn(View<'_>) -> Option<f64>) -> Samples {
        let each =
            v.list("/slots").filter_map(|s| Some((vec![("slot", s.text("/name").to_owned())], read(s)?)));
        each.collect()
    }
    vec![
        gauge("slot_active", NO, "1 while the follower of a slot is connected.", |v| {
            slots(v, |s| s.has("/active").then(|| f64::from(u8::from(s.flag("/active")))))
        }),
        gauge(
            "slot_left",
            BYTES,
            "Log that can be written before a slot is lost, where a number ends it.",
            |v| slots(v, |s| s.number("/bytes_left")),
        ),
        gauge("slot_lost", NO, "1 when log that the follower of a slot needs is gone.", |v| {
            slots(v, |s| Some(f64::from(u8::from(s.text("/state") == "lost"))))
        }),
        gauge("slot_retained", BYTES, "Log that a slot holds.", |v| {
            slots(v, |s| s.number("/retained_bytes"))
        }),
    ]
}

fn archive() -> Vec<Family> {
    vec![
        counter("archive_segments", NO, "Segments that the archive confirmed since the start.", |v| {
            number(v, "/archive/archived")
        }),
        counter("archive_stored", BYTES, "Bytes put into the archive since the start.", |v| {
            number(v, "/archive/archived_bytes")
        }),
        counter("archive_failures", NO, "Attempts to archive that failed since the start.", |v| {
            number(v, "/archive/failed")
        }),
        gauge("archive_failing", NO, "1 while archiving fails.", |v| {
            if v.has("/archive") { one(f64::from(u8::from(v.has("/archive/error")))) } else { Vec::new() }
        }),
        gauge("archive_waiting_segments", NO, "Sealed segments that wait for the archive.", |v| {
            number(v, "/archive/waiting")
        }),
        gauge("archive_waiting", BYTES, "What they take on disk.", |v| number(v, "/archive/waiting_bytes")),
        gauge("archive_waiting_since", SECONDS, "When the oldest of them was sealed, since 1970.", |v| {
            time(v, "/archive/waiting_since")
        }),
        gauge("archive_last_time", SECONDS, "When the archive last confirmed a segment, since 1970.", |v| {
            time(v, "/archive/last_time")
        }),
        counter("archive_gaps", NO, "Ranges of log that the archive lacks for good.", |v| {
            number(v, "/archive/gaps")
        }),
    ]
}

#[allow(clippy::cast_precision_loss, reason = "figures for graphs")]
fn float(n: u64) -> f64 {
    n as f64
}

fn one(value: f64) -> Samples {
    vec![(Vec::new(), value)]
}

fn number(v: View<'_>, path: &str) -> Samples {
    v.number(path).map_or_else(Vec::new, one)
}

fn scaled(v: View<'_>, path: &str, by: f64) -> Samples {
    v.number(path).map_or_else(Vec::new, |n| one(n * by))
}

fn labelled(v: View<'_>, path: &str, key: &'static str, label: &str) -> Samples {
    v.number(path).map(|n| (vec![(key, label.to_owned())], n)).into_iter().collect()
}

fn flag(v: View<'_>, path: &str) -> Samples {
    if v.has(path) { one(f64::from(u8::from(v.flag(path)))) } else { Vec::new() }
}

/// Seconds since 1970.
fn time(v: View<'_>, path: &str) -> Samples {
    #[allow(clippy::cast_precision_loss, reason = "microseconds are enough")]
    v.time(path).map_or_else(Vec::new, |ns| one(ns as f64 / 1e9))
}

/// A position; zero is none.
fn at(v: View<'_>, path: &str) -> Option<f64> {
    v.lsn(path).filter(|lsn| *lsn > 0).map(float)
}

fn position(v: View<'_>, path: &str) -> Samples {
    at(v, path).map_or_else(Vec::new, one)
}

fn rooms(v: View<'_>, key: &str) -> Samples {
    let each = ["state", "data"].into_iter();
    each.flat_map(|dir| labelled(v, &format!("/disk/{dir}{key}"), "directory", dir)).collect()
}

/// A figure of each follower of this node.
fn direct(v: View<'_>, read: impl Fn(View<'_>) -> Option<f64>) -> Samples {
    let each =
        v.list("/followers").filter_map(|f| Some((vec![("follower", f.text("/name").to_owned())], read(f)?)));
    each.collect()
}

/// A figure of each node below this one.
fn cascade(v: View<'_>, read: impl Fn(View<'_>) -> Option<f64>) -> Samples {
    fn walk(v: View<'_>, via: &str, read: &dyn Fn(View<'_>) -> Option<f64>, out: &mut Samples) {
        for f in v.list("/followers") {
            let name = f.text("/name");
            if let Some(value) = read(f) {
                out.push((vec![("follower", name.to_owned()), ("via", via.to_owned())], value));
            }
            let via = if via.is_empty() { name.to_owned() } else { format!("{via}/{name}") };
            walk(f, &via, read, out);
        }
    }
    let mut out = Vec::new();
    walk(v, "", &read, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({"role": "leader", "name": "a\"b", "health": "ok", "timeline": 1, "started": 5_000_000_000_i64,
            "capture": {"cuts_exact": 7, "cuts_file": 0, "gap_open": false, "hold": null},
            "log": {"end": "0/00000010"},
            "followers": [{"name": "f", "state": "streaming", "apply": "0/00000000", "flush": "0/0000000F", "lag": {"bytes": 1, "seconds": null},
                "bytes_sent": 44, "followers": [{"name": "g", "state": "away", "lag": {"bytes": 2, "seconds": 0.5}}]}]})
    }

    #[test]
    fn both_formats_hold_what_is_known_and_nothing_else() {
        let plain = page(sample(), Format::Plain).unwrap();
        let open = page(sample(), Format::Open).unwrap();
        for line in [
            "# TYPE towline_capture_cuts_total counter",
            "towline_capture_cuts_total{cut=\"exact\"} 7",
            "towline_health{health=\"ok\"} 1",
            "towline_health{health=\"help\"} 0",
            "towline_start_time_seconds 5",
            "towline_log_end_position_bytes 16",
            "towline_follower_flush_position_bytes{follower=\"f\",via=\"\"} 15",
            "towline_follower_lag_seconds{follower=\"g\",via=\"f\"} 0.5",
            "towline_follower_sent_bytes_total{follower=\"f\"} 44",
            "towline_followers{state=\"away\"} 0",
        ] {
            assert!(plain.lines().any(|l| l.trim_end_matches(".0") == line), "{line}\n{plain}");
        }
        assert!(plain.contains("name=\"a\\\"b\"") && !plain.contains("# EOF"), "{plain}");
        for absent in
            ["towline_lag_seconds", "follower_apply_position", "lag_seconds{follower=\"f\"", "sync_"]
        {
            assert!(!plain.contains(absent), "{absent}\n{plain}");
        }
        assert!(open.contains("# TYPE towline_capture_cuts counter") && open.ends_with("# EOF\n"), "{open}");
        assert!(open.contains("# UNIT towline_log_end_position_bytes bytes"), "{open}");
        assert_eq!(
            Format::accepted("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
            Format::Open
        );
        assert_eq!(Format::accepted("*/*"), Format::Plain);
    }

    #[test]
    fn names_are_unique_and_series_are_bounded() {
        let name = |f: &Family| format!("{}_{}", f.name, f.unit.as_ref().map_or("", Unit::as_str));
        let mut names: Vec<String> = families().iter().map(name).collect();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        let crowd: Vec<Value> =
            (0..1000).map(|n| json!({"name": format!("f{n}"), "state": "away", "bytes_sent": 1})).collect();
        let text = page(json!({"followers": crowd}), Format::Plain).unwrap();
        assert_eq!(text.matches("\ntowline_follower_sent_bytes_total{").count(), ROWS);
    }
}
