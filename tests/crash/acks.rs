//! What `towline wait` called replicated is where it said, whoever dies.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rounds::minutes;
use crate::support::{Bed, Node, assert_equal_within, until, within};

/// Services that write and wait at once.
const SERVICES: u64 = 3;

/// A change that was called replicated.
#[derive(Clone, Debug)]
struct Acked {
    /// Below the data directory; its content is the same text.
    path: PathBuf,
    by: Vec<String>,
}

/// Services that write a file, wait for it, and note what they were told.
struct Services {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    acked: Arc<Mutex<Vec<Acked>>>,
    others: Arc<AtomicU64>,
}

impl Services {
    fn start(leader: &Node, round: u32) -> Self {
        let (stop, acked, others) = (Arc::default(), Arc::default(), Arc::default());
        let mut services = Self { stop, acked, others, threads: Vec::new() };
        for service in 0..SERVICES {
            let dir = PathBuf::from(format!("r{round}s{service}"));
            let (data, socket) = (leader.data().to_owned(), leader.socket());
            let (stop, acked) = (Arc::clone(&services.stop), Arc::clone(&services.acked));
            let others = Arc::clone(&services.others);
            services.threads.push(std::thread::spawn(move || {
                // The end of the daemon ends it.
                let _ = serve(&data, &dir, &socket, &stop, &acked, &others);
            }));
        }
        services
    }

    fn end(self) -> (Vec<Acked>, u64) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a service");
        }
        let acked = self.acked.lock().expect("lock").clone();
        (acked, self.others.load(Ordering::SeqCst))
    }
}

fn serve(
    data: &Path,
    dir: &Path,
    socket: &Path,
    stop: &AtomicBool,
    acked: &Mutex<Vec<Acked>>,
    others: &AtomicU64,
) -> std::io::Result<()> {
    fs::create_dir_all(data.join(dir))?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(within(30)))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let wait = json!({"command": "wait", "timeout": "2s"});
    for n in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let path = dir.join(n.to_string());
        fs::write(data.join(&path), path.to_str().unwrap_or_default())?;
        stream.write_all(format!("{wait}\n").as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        if answer["result"] == "replicated" {
            let by = answer["confirmed_by"].as_array().cloned().unwrap_or_default();
            let by: Vec<String> = by.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            assert!(!by.is_empty(), "{answer}");
            acked.lock().expect("lock").push(Acked { path, by });
        } else {
            others.fetch_add(1, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// Which of those that `node` confirmed are not in its directory.
fn missing(node: &Node, name: &str, acked: &[Acked]) -> Vec<PathBuf> {
    let its = acked.iter().filter(|a| a.by.iter().any(|n| n == name));
    let there = |a: &&Acked| {
        fs::read(node.data().join(&a.path)).is_ok_and(|c| Some(&*c) == a.path.to_str().map(str::as_bytes))
    };
    its.filter(|a| !there(a)).map(|a| a.path.clone()).collect()
}

fn streaming(leader: &Node) {
    until(within(60), "both followers stream", || {
        let list = leader.status()?.followers();
        if list.len() == 2 && list.iter().all(|f| f.1 == "streaming") {
            Ok(())
        } else {
            Err(format!("{list:?}"))
        }
    });
}

/// Rounds until `end`, at least `least`: load, then leader and one follower killed, then a look at both followers.
fn rounds(level: &str, least: u32, end: Instant) {
    let bed = Bed::new(&format!("acks-{level}"));
    let leader = bed.leader("leader").set("synchronous_followers", "\"ANY 1 (a, b)\"");
    let mut leader = leader.set("synchronous_level", &format!("\"{level}\"")).start();
    // The files do not depend on each other: each cut shows what was confirmed.
    let follower = |name: &str| bed.follower(name, leader.spec.listen).set("apply_cuts", "\"file\"").start();
    let mut followers = [follower("a"), follower("b")];
    let (mut round, mut total, mut rest) = (0, 0, 0);
    while round < least || Instant::now() < end {
        round += 1;
        streaming(&leader);
        let services = Services::start(&leader, round);
        std::thread::sleep(Duration::from_millis(fastrand::u64(200..2000)));
        let victim = fastrand::usize(..2);
        let names = ["a", "b"];
        if fastrand::bool() {
            followers[victim].kill();
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
            leader.kill();
        } else {
            leader.kill();
            followers[victim].kill();
        }
        let (acked, others) = services.end();
        (total, rest) = (total + acked.len(), rest + others);
        let survivor = 1 - victim;
        let there = |node: &Node, name: &str| {
            until(within(30), &format!("round {round}: {name} has what it confirmed at {level}"), || {
                let missing = missing(node, name, &acked);
                if missing.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{missing:?} of {} changes", acked.len()))
                }
            });
        };
        if level == "apply" {
            let missing = missing(&followers[survivor], names[survivor], &acked);
            assert!(missing.is_empty(), "round {round}: applied at once, but {missing:?} is not there");
        }
        there(&followers[survivor], names[survivor]);
        // The other one alone, without the leader: what it said is on its disk.
        followers[victim].restart();
        there(&followers[victim], names[victim]);
        leader.restart();
        for service in 0..SERVICES {
            let _ = fs::remove_dir_all(leader.data().join(format!("r{round}s{service}")));
        }
        for follower in &followers {
            assert_equal_within(within(60), leader.data(), follower.data());
        }
    }
    println!(
        "{round} rounds at {level}: {total} changes confirmed, all of them there; {rest} waits were not"
    );
    assert!(total > 0, "nothing was ever confirmed");
    for node in followers.iter().chain([&leader]) {
        node.assert_no_panic();
    }
}

#[test]
fn what_was_confirmed_is_flushed_there() {
    rounds("flush", 2, Instant::now());
}

#[test]
fn what_was_confirmed_is_applied_there() {
    rounds("apply", 2, Instant::now());
}

#[test]
fn soak_acks() {
    // Half of the time for each; without a soak the other two are enough.
    if std::env::var_os("TOWLINE_SOAK_MINUTES").is_some() {
        rounds("flush", 1, Instant::now() + minutes() / 2);
        rounds("apply", 1, Instant::now() + minutes() / 2);
    }
}
