//! The answer as a value. What the keys mean stands in the table of [`super`].

use serde::Serialize;
use serde_json::Value;

use crate::slots::SlotStatus;

/// The whole answer.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct Status {
    pub role: &'static str,
    pub name: String,
    pub version: &'static str,
    pub data: String,
    pub listen: Option<String>,
    pub system: String,
    pub timeline: u32,
    pub node: String,
    pub started: i64,
    pub now: i64,
    pub state: String,
    pub health: &'static str,
    pub error: Option<Failure>,
    pub fence: Option<Value>,
    pub rivals: Vec<Value>,
    pub log: Option<LogPart>,
    pub cuts: Option<CutsPart>,
    pub capture: Option<Value>,
    pub apply: Option<Value>,
    pub upstream: Option<Value>,
    pub resync: Option<Value>,
    pub followers: Vec<Value>,
    pub backups: Vec<Value>,
    pub slots: Vec<SlotStatus>,
    pub archive: Option<Value>,
    pub lag: Option<Lag>,
    pub sync: Option<SyncPart>,
    pub switchover: Option<Value>,
    pub disk: DiskPart,
    pub tls: Option<Value>,
    pub guarantee: String,
}

/// What keeps the node from running.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct Failure {
    pub kind: &'static str,
    pub message: String,
    pub remedy: &'static str,
    pub needs_help: bool,
    pub since: i64,
    pub attempts: u64,
    pub next_retry: Option<i64>,
}

/// Positions of the node's own log.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct LogPart {
    pub written: String,
    pub end: String,
    pub commit: String,
    pub exact: String,
    pub segment: String,
    pub commit_time: i64,
}

/// Synchronous replication on a leader.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct SyncPart {
    pub policy: String,
    pub level: &'static str,
    pub loss: &'static str,
    pub satisfied: bool,
    pub required: u64,
    pub present: u64,
    pub missing_since: Option<i64>,
    pub write: Option<String>,
    pub flush: Option<String>,
    pub apply: Option<String>,
    pub waiters: u64,
    pub replicated: u64,
    pub local_only: u64,
    pub unknown: u64,
    pub frozen_since: Option<i64>,
    pub freeze_error: Option<String>,
    pub override_until: Option<i64>,
}

/// How good the newest cuts in the log are.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct CutsPart {
    pub newest: &'static str,
    pub exact_time: i64,
    pub exact_age: f64,
    pub waiting_bytes: u64,
}

/// Room on the file systems that the node writes to.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct DiskPart {
    pub state: Option<Room>,
    pub data: Option<Room>,
}

/// Room on a file system.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct Room {
    pub free_bytes: u64,
    pub size_bytes: u64,
    pub free_percent: f64,
}

/// How far behind a follower is.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the table of the module describes the keys")]
pub struct Lag {
    pub bytes: u64,
    pub seconds: Option<f64>,
}
