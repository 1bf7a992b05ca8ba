//! One towline process under test. Everything the suites know of its command line and of its status
//! document is in this file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::bed::host_lock;
use super::{until, within};

/// The staging directory that apply keeps at the root of a follower's data directory.
pub(crate) const STAGE: &str = ".towline-stage";
/// The program under test: the one that was built with the tests, or what `TOWLINE_BIN` names.
pub(crate) fn towline() -> String {
    std::env::var("TOWLINE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_towline").to_owned())
}
/// Settings that make rare events frequent enough for a test.
const QUICK: &str = "hot_interval = \"200ms\"\npeer_timeout = \"2s\"\nsegment_timeout = \"5s\"\n";

/// How to start a node.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) data: PathBuf,
    pub(crate) state: PathBuf,
    home: PathBuf,
    /// Port of its upstream; `None` makes it a leader.
    pub(crate) upstream: Option<u16>,
    pub(crate) listen: u16,
    /// Lines of the configuration file; later lines win over earlier ones with the same key.
    config: Vec<(String, String)>,
    env: Vec<(String, String)>,
    /// Words before the program: `unshare`, `prlimit` and their like; they must exec it.
    pub(crate) prefix: Vec<String>,
    pub(crate) paused: bool,
    /// Started to lead whatever others say.
    force: bool,
    /// The address of the upstream is in the configuration file instead of on the command line.
    pub(crate) leader_in_config: bool,
    /// So is its name, so that it can be changed.
    pub(crate) name_in_config: bool,
}

impl Spec {
    pub(crate) fn new(name: &str, home: &Path, upstream: Option<u16>, listen: u16) -> Self {
        let mut spec = Self {
            name: name.to_owned(),
            data: home.join("data"),
            state: home.join("state"),
            home: home.to_owned(),
            upstream,
            listen,
            config: Vec::new(),
            env: Vec::new(),
            prefix: Vec::new(),
            paused: false,
            force: false,
            leader_in_config: false,
            name_in_config: false,
        };
        for line in QUICK.lines() {
            let (key, value) = line.split_once(" = ").expect("key = value");
            spec = spec.set(key, value);
        }
        spec
    }

    /// Sets a key of the configuration file; `value` is TOML.
    #[must_use]
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.config.retain(|(k, _)| k != key);
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }

    /// To be started as a leader that leads whatever others say.
    #[must_use]
    pub(crate) fn forced(self) -> Self {
        Self { upstream: None, force: true, ..self }
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.env.retain(|(k, _)| k != key);
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Names a file with failpoints that can be rewritten while the node runs; see [`Node::arm`].
    #[must_use]
    pub(crate) fn armed(self) -> Self {
        let file = self.failpoints();
        fs::write(&file, "").expect("write");
        self.env("TOWLINE_FAILPOINTS_FILE", file.to_str().expect("path"))
    }

    fn failpoints(&self) -> PathBuf {
        self.home.join("failpoints")
    }

    fn words(&self) -> Vec<String> {
        let path = |p: &Path| p.to_str().expect("UTF-8 path").to_owned();
        let mut out = vec![
            if self.upstream.is_some() { "follower" } else { "leader" }.to_owned(),
            "--data".into(),
            path(&self.data),
            "--state".into(),
            path(&self.state),
            "--listen".into(),
            format!("127.0.0.1:{}", self.listen),
            "--config".into(),
            path(&self.config_path()),
        ];
        if self.force {
            out.push("--force".into());
        }
        if let Some(port) = self.upstream {
            if !self.leader_in_config {
                out.extend(["--leader".into(), format!("127.0.0.1:{port}")]);
            }
            if !self.name_in_config {
                out.extend(["--name".into(), self.name.clone()]);
            }
            if self.paused {
                out.push("--paused".into());
            }
        }
        out
    }

    /// Its configuration file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.home.join("towline.toml")
    }

    /// The path of everything the process prints.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.home.join("log.txt")
    }

    /// Starts the process and waits until it answers.
    pub(crate) fn start(&self) -> Node {
        let mut node = self.spawn();
        node.wait_up();
        node
    }

    /// Starts the process. The kernel kills it when the test's thread ends, whatever happens.
    pub(crate) fn spawn(&self) -> Node {
        let _shared = host_lock(false);
        self.spawn_unlocked()
    }

    fn write_config(&self) {
        let config: String = self.config.iter().map(|(k, v)| format!("{k} = {v}\n")).collect();
        fs::write(self.config_path(), config).expect("write the configuration");
    }

    /// [`Self::spawn`] for a caller that holds the host lock alone.
    pub(crate) fn spawn_unlocked(&self) -> Node {
        self.write_config();
        let mut log = File::options().create(true).append(true).open(self.log_path()).expect("log file");
        writeln!(log, "--- start: {:?} {:?}", self.words(), self.env).expect("write");
        let mut words = vec!["setpriv".to_owned(), "--pdeathsig".into(), "KILL".into()];
        words.extend(self.prefix.iter().cloned());
        words.push(towline());
        words.extend(self.words());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(self.env.iter().cloned()).env("RUST_BACKTRACE", "1");
        if std::env::var_os("TOWLINE_LOG").is_none() {
            command.env("TOWLINE_LOG", "info");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        let child = command.spawn().expect("start setpriv towline");
        Node { spec: self.clone(), child, done: None }
    }

    /// A command that talks to the node of this state directory.
    pub(crate) fn ask(&self, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "120", &towline(), words[0], "--state"]).arg(&self.state);
        command.args(&words[1..]).output().expect("run towline")
    }

    /// Runs the start to its end: for starts that must be refused.
    pub(crate) fn refused(&self, limit: Duration) -> (ExitStatus, String) {
        let mut node = self.spawn();
        let status = node.wait_end(limit);
        (status, node.log())
    }
}

/// Where a paused follower rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) lsn: String,
    pub(crate) cut: String,
}

/// A running (or ended) process; it is killed on drop.
pub(crate) struct Node {
    pub(crate) spec: Spec,
    child: Child,
    done: Option<ExitStatus>,
}

impl Node {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.spec.data
    }

    /// Whether the process has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.done.is_none() {
            self.done = self.child.try_wait().expect("wait");
        }
        self.done
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        until(limit, &format!("{} ends", self.spec.name), || self.ended().ok_or_else(|| "still runs".into()))
    }

    fn wait_up(&mut self) {
        until(within(30), &format!("{} answers", self.spec.name), || {
            if let Some(status) = self.ended() {
                panic!("{} ended at its start: {status}\n{}", self.spec.name, self.log_tail(30));
            }
            self.status().map(|_| ())
        });
    }

    pub(crate) fn signal(&mut self, signal: nix::sys::signal::Signal) {
        if self.ended().is_none() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("pid"));
            nix::sys::signal::kill(pid, signal).expect("kill");
        }
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        self.wait_end(within(10));
    }

    /// SIGTERM: must end by itself, with success, in time.
    pub(crate) fn stop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait_end(within(20));
        assert!(status.success(), "{} after SIGTERM: {status}\n{}", self.spec.name, self.log_tail(30));
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn freeze(&mut self, on: bool) {
        use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
        self.signal(if on { SIGSTOP } else { SIGCONT });
    }

    /// Starts it again after its end.
    pub(crate) fn restart(&mut self) {
        assert!(self.ended().is_some(), "{} still runs", self.spec.name);
        *self = self.spec.start();
    }

    /// Whether it was ended by SIGKILL.
    pub(crate) fn was_killed(status: ExitStatus) -> bool {
        status.signal() == Some(9)
    }

    /// Rewrites the failpoints of a node started from [`Spec::armed`].
    pub(crate) fn arm(&self, text: &str) {
        // The file is read again when its time changes: by rename, so that it is never seen half written.
        let aside = self.spec.failpoints().with_extension("new");
        fs::write(&aside, text).expect("write");
        fs::rename(&aside, self.spec.failpoints()).expect("rename");
    }

    /// A command that talks to this node.
    pub(crate) fn ask(&self, words: &[&str]) -> Output {
        self.spec.ask(words)
    }

    /// `towline promote`, which has to go well: its answer.
    pub(crate) fn promote(&self, words: &[&str]) -> Value {
        let mut all = vec!["promote", "--json"];
        all.extend(words);
        let out = self.ask(&all);
        assert!(out.status.success(), "{all:?}: {}\n{}", String::from_utf8_lossy(&out.stderr), self.log());
        serde_json::from_slice(&out.stdout).expect("JSON")
    }

    fn asked(&self, words: &[&str]) -> Result<String, String> {
        let out = self.ask(words);
        let err = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        } else {
            Err(format!("towline {words:?}: {}: {err}", out.status))
        }
    }

    /// The status document.
    pub(crate) fn status(&self) -> Result<Status, String> {
        let text = self.asked(&["status", "--json"])?;
        serde_json::from_str(&text).map(Status).map_err(|e| format!("status is not JSON: {e}: {text}"))
    }

    /// `towline wait`: its exit code and its answer, `null` when there is none.
    pub(crate) fn wait_confirmed(&self, words: &[&str]) -> (i32, Value) {
        let mut all = vec!["wait", "--json"];
        all.extend(words);
        let out = self.ask(&all);
        (out.status.code().unwrap_or(-1), serde_json::from_slice(&out.stdout).unwrap_or_default())
    }

    /// Asserts that everything the directory holds is confirmed; by whom, and up to where.
    pub(crate) fn replicated(&self, words: &[&str]) -> (Vec<String>, String) {
        let (code, answer) = self.wait_confirmed(words);
        assert!(code == 0 && answer["result"] == "replicated", "{code} {answer}\n{}", self.log_tail(20));
        let by = answer["confirmed_by"].as_array().cloned().unwrap_or_default();
        let names = by.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        (names, answer["lsn"].as_str().unwrap_or_default().to_owned())
    }

    /// Where it answers.
    pub(crate) fn socket(&self) -> PathBuf {
        self.spec.state.join("control.sock")
    }

    /// Pauses apply; returns where it rests.
    pub(crate) fn pause(&self) -> Rest {
        self.try_pause().unwrap_or_else(|e| panic!("{e}\n{}", self.log_tail(20)))
    }

    /// [`Self::pause`] for a node that may be refused.
    pub(crate) fn try_pause(&self) -> Result<Rest, String> {
        let text = self.asked(&["pause", "--json"])?;
        let value: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        let word = |key: &str| value[key].as_str().map(str::to_owned).ok_or(format!("no {key} in {text}"));
        Ok(Rest { lsn: word("lsn")?, cut: word("cut")? })
    }

    /// Lets apply go on.
    pub(crate) fn resume(&self) {
        self.asked(&["resume"]).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Releases a held mass delete.
    pub(crate) fn confirm(&self) {
        self.asked(&["confirm"]).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Changes a key of the configuration file and has it read again; what `reload` answers.
    pub(crate) fn reload(&mut self, key: &str, value: &str) -> Result<Value, String> {
        self.spec = self.spec.clone().set(key, value);
        self.spec.write_config();
        let text = self.asked(&["reload", "--json"])?;
        serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))
    }

    /// Everything it printed.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.spec.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Fails if it ever panicked.
    pub(crate) fn assert_no_panic(&self) {
        let log = self.log();
        assert!(!log.contains("panicked at"), "{} panicked:\n{}", self.spec.name, self.log_tail(40));
    }

    /// A number of kB from /proc/PID/status, as `VmHWM` or `VmRSS`.
    pub(crate) fn memory_kb(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// The stored segments, sealed and partial, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let mut out: Vec<PathBuf> = fs::read_dir(self.spec.state.join("log"))
            .expect("list log")
            .map(|e| e.expect("entry").path())
            .filter(|p| p.file_name().is_some_and(|n| n.len() >= 24))
            .collect();
        out.sort();
        out
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = if self.ended().is_none() {
                self.status().map(|s| s.0.to_string())
            } else {
                Err("ended".into())
            };
            eprintln!("--- {} (status: {status:?}), end of its log:\n{}", self.spec.name, self.log_tail(25));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status document, read by path. A missing key is `null`, "" or 0: waits then fail by name.
#[derive(Clone, Debug)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    fn text(&self, path: &str) -> String {
        self.0.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    fn number(&self, path: &str) -> u64 {
        self.0.pointer(path).and_then(Value::as_u64).unwrap_or_default()
    }

    /// "running", "stalled", ...
    pub(crate) fn state(&self) -> String {
        self.text("/state")
    }

    /// The class of the error in force.
    pub(crate) fn error_kind(&self) -> Option<String> {
        self.0.pointer("/error/kind").and_then(Value::as_str).map(str::to_owned)
    }

    /// One word for a monitor.
    pub(crate) fn health(&self) -> String {
        self.text("/health")
    }

    /// The text of the error in force, and what to do about it.
    pub(crate) fn error_text(&self) -> (String, String) {
        (self.text("/error/message"), self.text("/error/remedy"))
    }

    /// Whether the error in force names a time since when, and one when it is tried again.
    pub(crate) fn is_dated(&self) -> bool {
        let (since, next) = (self.number("/error/since"), self.number("/error/next_retry"));
        since > 0 && next >= since && self.number("/error/attempts") > 0
    }

    /// The end of the newest exact change set in the log.
    pub(crate) fn exact(&self) -> String {
        self.text("/log/exact")
    }

    /// The end of the log.
    pub(crate) fn end(&self) -> String {
        self.text("/log/end")
    }

    /// Exact and file cuts so far.
    pub(crate) fn cuts(&self) -> (u64, u64) {
        (self.number("/capture/cuts_exact"), self.number("/capture/cuts_file"))
    }

    /// What holding the application still took.
    pub(crate) fn holds(&self) -> Holds {
        Holds {
            freezes: self.number("/capture/freezes"),
            failures: self.number("/capture/freeze_failures"),
            last_ms: self.number("/capture/freeze_last_ms"),
            longest_ms: self.number("/capture/freeze_longest_ms"),
            clones: self.number("/capture/freeze_clones"),
            read_bytes: self.number("/capture/freeze_read_bytes"),
        }
    }

    pub(crate) fn gaps(&self) -> u64 {
        self.number("/capture/gaps")
    }

    pub(crate) fn found_by_scan(&self) -> u64 {
        self.number("/capture/found_by_scan")
    }

    /// Why a mass delete is held.
    pub(crate) fn hold(&self) -> Option<String> {
        self.0.pointer("/capture/hold").and_then(Value::as_str).map(str::to_owned)
    }

    pub(crate) fn applied(&self) -> String {
        self.text("/apply/lsn")
    }

    pub(crate) fn paused(&self) -> bool {
        self.0.pointer("/apply/paused").and_then(Value::as_bool).unwrap_or_default()
    }

    pub(crate) fn apply_state(&self) -> String {
        self.text("/apply/state")
    }

    /// The address of the upstream in use.
    pub(crate) fn upstream_address(&self) -> String {
        self.text("/upstream/address")
    }

    pub(crate) fn upstream_state(&self) -> String {
        self.text("/upstream/state")
    }

    /// Why the upstream refuses this node.
    pub(crate) fn upstream_code(&self) -> String {
        self.text("/upstream/code")
    }

    /// How far behind a follower is, where that is known.
    pub(crate) fn lag_seconds(&self) -> Option<f64> {
        self.0.pointer("/lag/seconds").and_then(Value::as_f64)
    }

    /// Name, state and priority of each follower, as in pg_stat_replication.
    pub(crate) fn sync_states(&self) -> Vec<(String, String, u64)> {
        let list = self.0.pointer("/followers").and_then(Value::as_array).cloned().unwrap_or_default();
        let word = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let attached = list.iter().filter(|f| f["state"] != "away");
        attached
            .map(|f| {
                (word(f, "name"), word(f, "sync_state"), f["sync_priority"].as_u64().unwrap_or_default())
            })
            .collect()
    }

    /// A key of the part about synchronous replication.
    pub(crate) fn sync(&self, key: &str) -> Value {
        self.0["sync"][key].clone()
    }

    /// Name and state of each follower that the node knows.
    pub(crate) fn followers(&self) -> Vec<(String, String)> {
        let list = self.0.pointer("/followers").and_then(Value::as_array).cloned().unwrap_or_default();
        let word = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        list.iter().map(|f| (word(f, "name"), word(f, "state"))).collect()
    }
}

/// What a leader says of its freezes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holds {
    pub(crate) freezes: u64,
    pub(crate) failures: u64,
    pub(crate) last_ms: u64,
    pub(crate) longest_ms: u64,
    /// Files cloned meanwhile.
    pub(crate) clones: u64,
    /// Bytes of content read meanwhile.
    pub(crate) read_bytes: u64,
}

/// A position as a number.
pub(crate) fn lsn(text: &str) -> u64 {
    let (hi, lo) = text.split_once('/').unwrap_or_else(|| panic!("'{text}' is not an LSN"));
    let half = |s| u64::from_str_radix(s, 16).unwrap_or_else(|e| panic!("'{text}': {e}"));
    half(hi) << 32 | half(lo)
}

/// `towline log verify` of one file: exit status and what it said.
pub(crate) fn log_verify(segment: &Path) -> Output {
    let mut command = Command::new("prlimit");
    command.args(["--as=1073741824", "timeout", "-k", "1", "20", &towline(), "log", "verify"]);
    command.arg(segment).output().expect("run towline")
}
