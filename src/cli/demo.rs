//! `towline demo`: the main job on real processes. A leader and two followers over loopback in a
//! temporary directory; a workload of creates, appends, in-place writes, renames and deletes; one
//! follower is killed and resumed, one starts late; at the end the trees are compared byte for
//! byte and the logs verified. It fails loudly if anything differs.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use walkdir::WalkDir;

use super::args::Demo;
use crate::control::{self, Request};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::log::inspect;

/// How long the followers may take to arrive at the end.
const SETTLE: Duration = Duration::from_secs(30);
/// Between two lines of the table.
const LINE_EVERY: Duration = Duration::from_millis(1000);

/// A node of the demonstration; killed when dropped, so that no process outlives it.
struct Node {
    name: &'static str,
    dir: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl Node {
    fn new(root: &Path, name: &'static str, role: &str, addr: &str, more: &[&str]) -> Result<Self> {
        let dir = root.join(name);
        fs::create_dir_all(dir.join("data")).map_err(|e| Error::io("create", &dir, e))?;
        let flag = |p: &str| dir.join(p).display().to_string();
        let mut args =
            vec![role.to_owned(), "--data".to_owned(), flag("data"), "--state".to_owned(), flag("state")];
        args.extend(["--name", name, "--log-level", "warn"].map(str::to_owned));
        args.push(if role == "leader" { "--listen" } else { "--leader" }.to_owned());
        args.push(addr.to_owned());
        args.extend(more.iter().map(|s| (*s).to_owned()));
        Ok(Self { name, dir, args, child: None })
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn start(&mut self) -> Result<()> {
        let exe = std::env::current_exe().context(|| "cannot find this program's own file")?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log.txt"))
            .map_err(|e| Error::io("open log in", &self.dir, e))?;
        let child = Command::new(exe)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context(|| format!("cannot start {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn status(&mut self) -> Option<Value> {
        self.child.as_ref()?;
        control::call(&self.dir.join("state/control.sock"), &Request::Status, Duration::from_secs(5)).ok()
    }

    /// Fails with the end of the node's log when its process has gone.
    fn check_alive(&mut self) -> Result<()> {
        let Some(child) = self.child.as_mut() else { return Ok(()) };
        let Ok(Some(status)) = child.try_wait() else { return Ok(()) };
        let log = fs::read_to_string(self.dir.join("log.txt")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        let text = format!("{} ended early ({status}); its log ends: {}", self.name, tail.join(" | "));
        Err(Error::new(ErrorKind::Unavailable, text))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The application of the demonstration, with a generator of fixed seed.
struct Workload {
    dir: PathBuf,
    random: fastrand::Rng,
    step: u64,
    counts: [u64; 5],
}

impl Workload {
    fn new(dir: PathBuf) -> Self {
        Self { dir, random: fastrand::Rng::with_seed(7), step: 0, counts: [0; 5] }
    }

    fn file(&mut self) -> PathBuf {
        let (d, f) = (self.random.u32(0..20), self.random.u32(0..40));
        self.dir.join(format!("dir{d:02}")).join(format!("file{f:02}"))
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let len = self.random.usize(1..=max);
        let word = self.random.u64(..).to_le_bytes();
        word.iter().copied().cycle().take(len).collect()
    }

    /// One step: a create, an append, an in-place write, a rename or a delete.
    fn step(&mut self) -> std::io::Result<()> {
        self.step += 1;
        let (path, other) = (self.file(), self.file());
        let kind = self.random.usize(0..10);
        fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
        fs::create_dir_all(other.parent().unwrap_or(&self.dir))?;
        let slot = match kind {
            0..=3 => {
                let data = self.bytes(60_000);
                fs::write(&path, data)?;
                0
            }
            4..=5 => {
                let data = self.bytes(3_000);
                fs::OpenOptions::new().create(true).append(true).open(&path)?.write_all(&data)?;
                1
            }
            6..=7 => {
                let big = self.dir.join("pages.db");
                let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(big)?;
                let page = self.random.u64(0..2048);
                let data = self.bytes(8192);
                file.write_all_at(&data, page * 8192)?;
                2
            }
            8 => {
                if path.exists() {
                    fs::rename(&path, &other)?;
                }
                3
            }
            _ => {
                if path.exists() {
                    fs::remove_file(&path)?;
                }
                4
            }
        };
        self.counts[slot] += 1;
        Ok(())
    }
}

/// What happens to the followers, as parts of the workload's time.
struct Script {
    kill_at: Duration,
    resume_at: Duration,
    late_at: Duration,
}

fn out(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}");
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context(|| "cannot find a free port on 127.0.0.1")?;
    let addr = listener.local_addr().context(|| "cannot find a free port on 127.0.0.1")?;
    Ok(addr.to_string())
}

/// Runs the demonstration.
///
/// # Errors
/// Anything that differs, any node that ends early.
pub(super) fn run(args: &Demo) -> Result<()> {
    let temp =
        tempfile::Builder::new().prefix("towline-demo-").tempdir().context(|| "cannot make a directory")?;
    let root = temp.path().to_owned();
    let kept = if args.keep { Some(temp.keep()) } else { None };
    let result = play(&root, args.duration.0);
    if let Some(path) = kept {
        out(&format!("kept: {}", path.display()));
    }
    result
}

fn play(root: &Path, duration: Duration) -> Result<()> {
    let addr = free_address()?;
    let mut nodes = [
        Node::new(root, "leader", "leader", &addr, &[])?,
        Node::new(root, "alpha", "follower", &addr, &[])?,
        Node::new(root, "beta", "follower", &addr, &[])?,
    ];
    let mut work = Workload::new(nodes[0].data());
    for _ in 0..200 {
        work.step().context(|| "the workload fails")?;
    }
    out(&format!("leader on {addr}, followers alpha and beta, all below {}", root.display()));
    nodes[0].start()?;
    nodes[1].start()?;
    load(&mut nodes, &mut work, duration)?;
    let counts = work.counts;
    out(&format!(
        "workload done: {} creates, {} appends, {} in-place writes, {} renames, {} deletes",
        counts[0], counts[1], counts[2], counts[3], counts[4]
    ));
    settle(&mut nodes)?;
    verify_logs(&nodes)?;
    out("demo passed: the three directories are equal and the logs verify");
    Ok(())
}

fn load(nodes: &mut [Node; 3], work: &mut Workload, duration: Duration) -> Result<()> {
    let script = Script { kill_at: duration / 4, late_at: duration / 2, resume_at: duration * 5 / 8 };
    let (begin, mut next_line) = (Instant::now(), Duration::ZERO);
    let (mut killed, mut resumed, mut late) = (false, false, false);
    out(&format!("{:>6}  {:<22} {:<34} {:<34}", "time", "leader", "alpha", "beta"));
    while begin.elapsed() < duration {
        for _ in 0..5 {
            work.step().context(|| "the workload fails")?;
        }
        std::thread::sleep(Duration::from_millis(5));
        let now = begin.elapsed();
        if !killed && now >= script.kill_at {
            killed = true;
            out("        alpha is killed with SIGKILL");
            nodes[1].kill();
        }
        if !late && now >= script.late_at {
            late = true;
            out("        beta starts, late and empty");
            nodes[2].start()?;
        }
        if !resumed && now >= script.resume_at {
            resumed = true;
            out("        alpha is started again");
            nodes[1].start()?;
        }
        if now >= next_line {
            next_line += LINE_EVERY;
            line(nodes, now);
            for node in nodes.iter_mut() {
                node.check_alive()?;
            }
        }
    }
    Ok(())
}

/// One line of the live table: positions and lag.
fn line(nodes: &mut [Node; 3], now: Duration) {
    let text = |v: &Value, p: &str| v.pointer(p).and_then(Value::as_str).unwrap_or("-").to_owned();
    let leader = nodes[0].status().map_or_else(|| "starting".to_owned(), |s| text(&s, "/log/commit"));
    let mut cells = Vec::new();
    for node in &mut nodes[1..] {
        let running = node.child.is_some();
        cells.push(match node.status() {
            None if running => "starting".to_owned(),
            None => "down".to_owned(),
            Some(s) => {
                let bytes = s.pointer("/lag/bytes").and_then(Value::as_u64).unwrap_or(0);
                let seconds = s.pointer("/lag/seconds").and_then(Value::as_f64);
                let seconds = seconds.map_or_else(|| "?".to_owned(), |s| format!("{s:.2}"));
                format!("{} lag {} kB {seconds} s", text(&s, "/apply/lsn"), bytes / 1024)
            }
        });
    }
    out(&format!("{:>5.1}s  {leader:<22} {:<34} {:<34}", now.as_secs_f64(), cells[0], cells[1]));
}

/// Waits until both followers hold the leader's directory, and compares.
fn settle(nodes: &mut [Node; 3]) -> Result<()> {
    let begin = Instant::now();
    loop {
        for node in nodes.iter_mut() {
            node.check_alive()?;
        }
        let leader = digest_tree(&nodes[0].data())?;
        let differs: Vec<String> = nodes[1..]
            .iter()
            .filter_map(|n| match digest_tree(&n.data()) {
                Ok(tree) => first_difference(&leader, &tree).map(|d| format!("{}: {d}", n.name)),
                Err(e) => Some(format!("{}: {e}", n.name)),
            })
            .collect();
        if differs.is_empty() {
            line(nodes, begin.elapsed());
            out(&format!(
                "trees equal: {} entries, {:.2} s after the last write",
                leader.len(),
                begin.elapsed().as_secs_f64()
            ));
            return Ok(());
        }
        if begin.elapsed() > SETTLE {
            let text = format!("the directories differ after {} s: {}", SETTLE.as_secs(), differs.join("; "));
            return Err(Error::new(ErrorKind::Diverged, text));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Path, and everything about it that must be equal.
type Tree = Vec<(PathBuf, String)>;

fn digest_tree(root: &Path) -> Result<Tree> {
    let mut tree = Vec::new();
    let visible =
        |e: &walkdir::DirEntry| e.depth() != 1 || e.file_name().as_encoded_bytes() != crate::sys::STAGE_DIR;
    for entry in WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(visible) {
        let entry = entry.map_err(|e| Error::new(ErrorKind::Io, format!("cannot walk: {e}")))?;
        let meta = entry.metadata().map_err(|e| Error::new(ErrorKind::Io, format!("cannot walk: {e}")))?;
        let content = if meta.is_file() {
            let bytes = fs::read(entry.path()).map_err(|e| Error::io("read", entry.path(), e))?;
            xxhash_rust::xxh3::xxh3_128(&bytes)
        } else {
            0
        };
        let size = if meta.is_file() { meta.len() } else { 0 };
        let text = format!(
            "mode {:o} owner {}:{} size {size} mtime {}.{:09} content {content:032x}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        let rel = entry.path().strip_prefix(root).unwrap_or(entry.path()).to_owned();
        tree.push((rel, text));
    }
    Ok(tree)
}

fn first_difference(a: &Tree, b: &Tree) -> Option<String> {
    for (left, right) in a.iter().zip(b) {
        if left != right {
            let (l, r) = (left.0.display(), right.0.display());
            return Some(format!("'{l}' {} here, '{r}' {} there", left.1, right.1));
        }
    }
    (a.len() != b.len()).then(|| format!("{} entries here, {} there", a.len(), b.len()))
}

fn verify_logs(nodes: &[Node; 3]) -> Result<()> {
    for node in nodes {
        let mut report = Vec::new();
        inspect::files(&[node.dir.join("state/log")])
            .and_then(|files| inspect::verify(&files, false, &mut report))
            .map_err(|e| e.wrap(&format!("log of {} does not verify", node.name)))?;
        let last = String::from_utf8_lossy(&report);
        out(&format!("log of {}: {}", node.name, last.lines().last().unwrap_or("nothing to verify")));
    }
    Ok(())
}
