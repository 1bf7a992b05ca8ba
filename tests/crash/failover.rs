//! Rounds of failover: load on the leader, which dies, is cut off, frozen or stopped; the follower that is furthest is promoted; the
//! old leader comes back, is fenced, and rewound. After each round the three trees are equal, what was confirmed is there, and what
//! was not is there or in a bundle: every change is accounted for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rounds::minutes;
use crate::support::bed::nap;
use crate::support::node::{lsn, towline};
use crate::support::{Bed, Load, Node, Proxy, Spec, assert_equal_within, until, within};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Services that write and wait at once.
const SERVICES: usize = 2;

/// A change that a service made: a file whose content is its path.
#[derive(Clone, Debug)]
struct Change {
    path: PathBuf,
    confirmed: bool,
}

/// Services that write to a directory and wait for each change, and go on writing when nobody answers any more.
struct Services {
    stop: Arc<AtomicBool>,
    confirmed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    made: Arc<Mutex<Vec<Change>>>,
}

impl Services {
    fn start(node: &Node, tag: &str) -> Self {
        let mut all = Self {
            stop: Arc::default(),
            confirmed: Arc::default(),
            threads: Vec::new(),
            made: Arc::default(),
        };
        for n in 0..SERVICES {
            let (data, socket) = (node.data().to_owned(), node.socket());
            let (stop, confirmed, made) =
                (Arc::clone(&all.stop), Arc::clone(&all.confirmed), Arc::clone(&all.made));
            let dir = PathBuf::from(format!("{tag}-{n}"));
            all.threads.push(std::thread::spawn(move || {
                fs::create_dir_all(data.join(&dir)).expect("mkdir");
                let mut line = ask(&socket).ok();
                for n in 0_u64.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let path = dir.join(n.to_string());
                    fs::write(data.join(&path), content(&path)).expect("write");
                    let answer = line.as_mut().map(wait);
                    let replicated = matches!(&answer, Some(Ok(v)) if v["result"] == "replicated");
                    if !matches!(answer, Some(Ok(_))) {
                        line = None;
                        nap(10, 30);
                    }
                    confirmed.fetch_add(u64::from(replicated), Ordering::SeqCst);
                    made.lock().expect("lock").push(Change { path, confirmed: replicated });
                }
            }));
        }
        all
    }

    fn end(self) -> Vec<Change> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a service");
        }
        self.made.lock().expect("lock").clone()
    }
}

fn content(path: &Path) -> String {
    path.to_string_lossy().repeat(20)
}

fn ask(socket: &Path) -> std::io::Result<BufReader<UnixStream>> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(within(5)))?;
    Ok(BufReader::new(stream))
}

/// Waits for what was written: the answer.
fn wait(line: &mut BufReader<UnixStream>) -> std::io::Result<Value> {
    let wait = json!({"command": "wait", "timeout": "1s"});
    line.get_mut().write_all(format!("{wait}\n").as_bytes())?;
    let mut answer = String::new();
    line.read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Three nodes, each of which reaches each other over a line of its own.
struct Ring {
    nodes: Vec<Node>,
    /// From whom, to whom, and the line.
    lines: Vec<(usize, usize, Proxy)>,
}

impl Ring {
    fn start(bed: &Bed) -> Self {
        let mut specs: Vec<Spec> = NAMES.iter().map(|n| bed.leader(n)).collect();
        let ports: Vec<u16> = specs.iter().map(|s| s.listen).collect();
        let mut lines = Vec::new();
        for from in 0..NAMES.len() {
            for to in (0..NAMES.len()).filter(|to| *to != from) {
                lines.push((from, to, Proxy::to(ports[to])));
            }
        }
        for (n, spec) in specs.iter_mut().enumerate() {
            let list: Vec<String> = lines
                .iter()
                .filter(|(from, ..)| *from == n)
                .map(|(.., proxy)| format!("127.0.0.1:{}", proxy.port()))
                .collect();
            *spec = spec
                .clone()
                .set("leader", &format!("\"{}\"", list.join(",")))
                .set("name", &format!("\"{}\"", spec.name))
                .set("upstream_role", "\"leader\"")
                .set("synchronous_followers", "\"ANY 1 (a, b, c)\"")
                .set("apply_cuts", "\"file\"")
                .set("max_delete", "100")
                .set("peer_timeout", "\"2s\"")
                .set("segment_timeout", "\"1s\"")
                .set("checkpoint_interval", "\"1s\"");
            (spec.leader_in_config, spec.name_in_config) = (true, true);
            if n > 0 {
                spec.upstream = Some(ports[0]);
            }
        }
        let nodes = specs.iter().map(Spec::start).collect();
        Self { nodes, lines }
    }

    /// Nothing passes between this node and the others, in either direction, or all does again.
    fn cut_off(&self, node: usize, on: bool) {
        for (.., proxy) in self.lines.iter().filter(|(from, to, _)| *from == node || *to == node) {
            proxy.refuse(on);
            proxy.stall(on);
            if on {
                proxy.cut();
            }
        }
    }

    /// Both others follow it.
    fn leads(&self, leader: usize) {
        until(within(60), &format!("both follow {}", NAMES[leader]), || {
            let status = self.nodes[leader].status()?;
            let list = status.followers();
            if status.0["role"] == "leader" && list.len() == 2 && list.iter().all(|f| f.1 == "streaming") {
                Ok(())
            } else {
                Err(format!("{list:?}; {}", status.0))
            }
        });
    }

    /// Of the others, the one whose log is furthest.
    fn best(&self, leader: usize) -> usize {
        let end = |n: &usize| {
            let status = self.nodes[*n].status().expect("status");
            (status.0["timeline"].as_u64(), lsn(&status.end()))
        };
        (0..NAMES.len()).filter(|n| *n != leader).max_by_key(end).expect("two others")
    }
}

fn promote(node: &Node) {
    let out = node.ask(&["promote", "--to", "newest", "--wait", "--timeout", "60s", "--json"]);
    assert!(out.status.success(), "promote: {}\n{}", String::from_utf8_lossy(&out.stderr), node.log());
}

/// The leader is lost in one way or another; a word for it.
fn lose(ring: &mut Ring, leader: usize) -> &'static str {
    match fastrand::u32(..8) {
        0..=3 => {
            ring.nodes[leader].kill();
            "killed"
        }
        4 | 5 => {
            ring.cut_off(leader, true);
            "cut off"
        }
        6 => {
            ring.nodes[leader].freeze(true);
            "frozen"
        }
        _ => {
            ring.nodes[leader].stop();
            "stopped"
        }
    }
}

/// It comes back, and leads no more.
fn come_back(ring: &mut Ring, old: usize, how: &str) {
    match how {
        "cut off" => ring.cut_off(old, false),
        "frozen" => ring.nodes[old].freeze(false),
        _ => ring.nodes[old].restart(),
    }
    until(within(60), "the old leader is fenced", || {
        let status = ring.nodes[old].status()?;
        if status.state() == "fenced" { Ok(()) } else { Err(status.0.to_string()) }
    });
}

/// The command that rewinds the node of this state directory, whether it runs or not.
fn rewinding(node: &Node) -> Command {
    let mut command = Command::new(towline());
    command.args(["rewind", "--json", "--state"]).arg(&node.spec.state);
    command.arg("--config").arg(node.spec.config_path()).stdin(Stdio::null());
    command
}

fn rewound(node: &Node) {
    let out = rewinding(node).output().expect("run");
    assert!(out.status.success(), "rewind: {}\n{}", String::from_utf8_lossy(&out.stderr), node.log());
}

/// Starts it, and lets it die after a moment.
fn cut_short(node: &mut Node, daemon_too: bool) {
    let quiet = || Stdio::null();
    let mut asked = rewinding(node).stdout(quiet()).stderr(quiet()).spawn().expect("start");
    nap(5, 400);
    if daemon_too {
        node.kill();
    } else {
        let _ = asked.kill();
    }
    let _ = asked.wait();
}

/// The old leader becomes a follower; a word for how.
fn rewind(node: &mut Node) -> &'static str {
    match fastrand::u32(..4) {
        0 => {
            node.reload("auto_rewind", "true").expect("reload");
            until(within(60), "it rewinds itself", || {
                let status = node.status()?;
                if status.0["role"] == "follower" { Ok(()) } else { Err(status.0.to_string()) }
            });
            node.reload("auto_rewind", "false").expect("reload");
            "by itself"
        }
        1 => {
            rewound(node);
            "asked"
        }
        2 => {
            cut_short(node, true);
            node.restart();
            rewound(node);
            "asked, and killed meanwhile"
        }
        _ => {
            node.stop();
            for _ in 0..fastrand::u32(..3) {
                cut_short(node, false);
            }
            rewound(node);
            node.restart();
            "while it was stopped"
        }
    }
}

/// What the bundles of all nodes lay out; they are removed.
fn laid_out(bed: &Bed, ring: &Ring) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for node in &ring.nodes {
        let lost = node.spec.state.join("lost");
        for bundle in fs::read_dir(&lost).into_iter().flatten().flatten() {
            let out = bed.path(format!("export-{}", fastrand::u64(..)));
            let mut command = Command::new(towline());
            command.args(["lost-writes", "export"]).arg(bundle.path()).arg("--out").arg(&out);
            let said = command.output().expect("run");
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            fs::remove_dir_all(bundle.path()).expect("remove");
            all.push(out);
        }
    }
    all
}

/// Where each change is: in the tree, or, if nobody was told that it is confirmed, in a bundle. How many are in bundles only.
fn account(round: u32, changes: &[Change], tree: &Path, bundles: &[PathBuf]) -> usize {
    let holds =
        |dir: &Path, path: &Path| fs::read(dir.join(path)).is_ok_and(|c| c == content(path).as_bytes());
    let mut left = 0;
    for change in changes {
        if holds(tree, &change.path) {
            continue;
        }
        assert!(
            !change.confirmed,
            "round {round}: {} was confirmed, and is not there",
            change.path.display()
        );
        let kept = bundles.iter().any(|b| holds(&b.join("files"), &change.path));
        assert!(kept, "round {round}: {} is neither there nor in a bundle", change.path.display());
        left += 1;
    }
    left
}

/// What all rounds came to.
#[derive(Default)]
struct Totals {
    changes: usize,
    confirmed: usize,
    left: usize,
    ways: BTreeMap<&'static str, u32>,
}

/// One round: the leader is lost and comes back. Who leads after it.
fn round(bed: &Bed, ring: &mut Ring, leader: usize, n: u32, totals: &mut Totals) -> usize {
    ring.leads(leader);
    let load = |node: &Node| {
        let pace = Duration::from_micros(fastrand::u64(500..3000));
        Load::start(&node.data().join("app"), fastrand::u64(..), pace)
    };
    let (old, services) =
        (load(&ring.nodes[leader]), Services::start(&ring.nodes[leader], &format!("r{n}old")));
    nap(300, 1500);
    let how = lose(ring, leader);
    nap(0, 300);
    let next = ring.best(leader);
    promote(&ring.nodes[next]);
    let (new, others) = (load(&ring.nodes[next]), Services::start(&ring.nodes[next], &format!("r{n}new")));
    nap(300, 1500);
    come_back(ring, leader, how);
    // The application of the old leader is stopped now.
    old.finish();
    let mut changes = services.end();
    let way = rewind(&mut ring.nodes[leader]);
    nap(0, 500);
    new.finish();
    changes.extend(others.end());
    ring.leads(next);
    for other in (0..NAMES.len()).filter(|other| *other != next) {
        assert_equal_within(within(60), ring.nodes[next].data(), ring.nodes[other].data());
    }
    let bundles = laid_out(bed, ring);
    let left = account(n, &changes, ring.nodes[next].data(), &bundles);
    let confirmed = changes.iter().filter(|c| c.confirmed).count();
    println!(
        "round {n}: {} {how}, {} leads, rewound {way}; {} changes, {confirmed} confirmed, {left} in bundles",
        NAMES[leader],
        NAMES[next],
        changes.len()
    );
    totals.changes += changes.len();
    totals.confirmed += confirmed;
    totals.left += left;
    for word in [how, way] {
        *totals.ways.entry(word).or_default() += 1;
    }
    for n in bundles {
        fs::remove_dir_all(n).expect("remove");
    }
    for entry in fs::read_dir(ring.nodes[next].data()).expect("list").flatten() {
        if entry.file_name() != "app" {
            fs::remove_dir_all(entry.path()).expect("remove");
        }
    }
    next
}

fn rounds(least: u32, end: Instant) {
    let bed = Bed::new("failover");
    let mut ring = Ring::start(&bed);
    let (mut leader, mut n, mut totals) = (0, 0, Totals::default());
    while n < least || Instant::now() < end {
        n += 1;
        leader = round(&bed, &mut ring, leader, n, &mut totals);
    }
    let histories: Vec<_> = ring.nodes.iter().map(|node| node.ask(&["history", "--json"]).stdout).collect();
    assert!(histories.iter().all(|h| *h == histories[0]), "one history everywhere");
    println!(
        "{n} rounds: {} changes, {} confirmed and all of them there, {} in bundles only; {:?}",
        totals.changes, totals.confirmed, totals.left, totals.ways
    );
    assert!(totals.confirmed > 0, "nothing was ever confirmed");
    ring.nodes.iter().for_each(Node::assert_no_panic);
}

#[test]
fn every_change_is_accounted_for_when_leaders_are_lost() {
    rounds(2, Instant::now());
}

#[test]
fn soak_failover() {
    if std::env::var_os("TOWLINE_SOAK_MINUTES").is_some() {
        rounds(1, Instant::now() + minutes());
    }
}
