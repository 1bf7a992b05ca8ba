//! Which followers count, by how far behind they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::peers::{PeerState, Peers, Session};
use crate::log::{Gaps, Tail};
use crate::position::{Lsn, NodeId};
use crate::quorum::Level;
use crate::slots::Absent;
use crate::sync::{Rules, Wait};
use crate::wire::{ACK_APPLIES, ACK_HALTED, ACK_NEVER, Ack};

struct Bed {
    peers: Arc<Peers>,
    tail: watch::Sender<Tail>,
}

impl Bed {
    fn new(policy: &str, level: Level, near: u64, max_lag: u64) -> Self {
        let bed = Self { peers: Arc::new(Peers::default()), tail: watch::Sender::new(Tail::default()) };
        bed.peers.serve(bed.tail.subscribe(), Gaps::default());
        bed.peers.set_rules(Rules { policy: policy.parse().unwrap(), level, near, max_lag });
        bed
    }

    fn join(&self, name: &str) -> Session {
        let node = NodeId(u64::from(name.as_bytes()[0]));
        self.peers.join(name, node, "1:1", &Arc::default()).unwrap()
    }

    fn end(&self, lsn: u64) {
        self.tail.send_replace(Tail { end: Lsn(lsn), ..Tail::default() });
    }

    fn satisfied(&self) -> bool {
        self.peers.in_force().borrow().satisfied
    }

    fn words(&self) -> Vec<String> {
        self.peers
            .list()
            .iter()
            .map(|f| format!("{} {} {}", f.name, f.sync_state.word(), f.sync_counts))
            .collect()
    }
}

fn ack(flush: u64, apply: u64) -> Ack {
    let (write, flush, apply) = (Lsn(flush), Lsn(flush), Lsn(apply));
    Ack { write, flush, apply, apply_time: 0, flags: Some(ACK_APPLIES), delay: None }
}

#[test]
fn a_newcomer_counts_once_it_streams_and_is_close_and_then_for_as_long_as_it_streams() {
    let bed = Bed::new("a", Level::Flush, 100, 0);
    bed.end(1000);
    let session = bed.join("a");
    session.state(PeerState::Catchup);
    session.ack(&ack(1000, 1000));
    assert!(!bed.satisfied(), "it takes old log still");
    session.ack(&ack(800, 800));
    session.state(PeerState::Streaming);
    assert!(!bed.satisfied() && bed.words() == ["a potential false"]);
    session.ack(&ack(900, 800));
    assert!(bed.satisfied() && bed.words() == ["a sync true"]);
    bed.end(9000);
    session.ack(&ack(901, 800));
    assert!(bed.satisfied(), "behind again, but it counts");
    drop(session);
    assert!(!bed.satisfied());
    let again = bed.join("a");
    again.state(PeerState::Streaming);
    again.ack(&ack(901, 800));
    assert!(!bed.satisfied(), "a new connection begins anew");
}

#[test]
fn one_that_is_stuck_is_replaced_and_returns_once_it_has_caught_up() {
    let bed = Bed::new("FIRST 1 (a, b)", Level::Apply, 100, 500);
    bed.end(1000);
    let (a, b) = (bed.join("a"), bed.join("b"));
    for session in [&a, &b] {
        session.state(PeerState::Streaming);
        session.ack(&ack(1000, 1000));
    }
    assert_eq!(bed.words(), ["a sync true", "b potential true"]);
    // It goes on writing, and applies nothing.
    bed.end(1600);
    b.ack(&ack(1600, 1600));
    a.ack(&ack(1600, 1000));
    assert_eq!(bed.words(), ["a potential false", "b sync true"]);
    a.ack(&ack(1600, 1200));
    assert_eq!(bed.words(), ["a potential false", "b sync true"], "not close yet");
    a.ack(&ack(1600, 1500));
    assert_eq!(bed.words(), ["a sync true", "b potential true"]);
}

#[test]
fn a_rest_and_a_word_never_to_count_are_taken_from_the_ack() {
    let bed = Bed::new("ANY 1 (*)", Level::Apply, 100, 0);
    let session = bed.join("a");
    session.state(PeerState::Streaming);
    session.ack(&ack(5, 5));
    assert!(bed.satisfied());
    session.ack(&Ack { flags: Some(0), ..ack(5, 5) });
    assert!(!bed.satisfied());
    // An older version can't say: its positions do.
    session.ack(&Ack { flags: None, ..ack(5, 5) });
    assert!(bed.satisfied());
    session.ack(&Ack { flags: Some(ACK_APPLIES | ACK_NEVER), ..ack(5, 5) });
    assert!(!bed.satisfied() && bed.words() == ["a async false"]);
}

#[tokio::test]
async fn a_caller_is_answered_by_the_ack_and_gone_with_its_ticket() {
    let bed = Bed::new("a", Level::Flush, 100, 0);
    let session = bed.join("a");
    session.state(PeerState::Streaming);
    session.ack(&ack(5, 5));
    let wait = Wait { lsn: Lsn(7), ..Wait::default() };
    let mut ticket = bed.peers.wait_for(wait.clone()).unwrap();
    session.ack(&ack(6, 6));
    assert_eq!(bed.peers.waiting(), 1);
    session.ack(&ack(7, 6));
    assert_eq!(ticket.confirmed().await.unwrap().by, ["a"]);
    let other = bed.peers.wait_for(Wait { lsn: Lsn(99), ..wait }).unwrap();
    assert_eq!(bed.peers.waiting(), 1);
    drop(other);
    assert_eq!(bed.peers.waiting(), 0);
}

#[test]
fn who_was_here_before_a_restart_is_away_since_then() {
    let peers = Arc::new(Peers::default());
    let join = |name: &str| peers.join(name, NodeId(1), "1:1", &Arc::default()).unwrap();
    let here = join("a");
    let absent = |name: &str| Absent { name: name.to_owned(), position: Lsn(7), since: 5 };
    peers.remember([absent("a"), absent("b")]);
    let list = peers.survey(9);
    assert_eq!(list[0].state, PeerState::Connecting, "it came meanwhile");
    let b = &list[1];
    assert_eq!((b.state, b.heard, b.flush, b.lag), (PeerState::Away, 5, Lsn(7), None));
    let b = join("b");
    assert_eq!(peers.list()[1].state, PeerState::Connecting);
    drop((here, b));
}

#[test]
fn a_follower_says_that_its_directory_waits_for_help() {
    let bed = Bed::new("", Level::Flush, 0, 0);
    let session = bed.join("a");
    session.ack(&Ack { flags: Some(ACK_HALTED), ..ack(5, 5) });
    assert!(bed.peers.list()[0].halted);
    session.ack(&ack(5, 5));
    assert!(!bed.peers.list()[0].halted, "it was helped");
}

#[test]
fn positions_are_printed_as_status_prints_them() {
    let peers = Arc::new(Peers::default());
    let s = peers.join("a", NodeId(1), "1", &Arc::default()).unwrap();
    s.ack(&Ack { flush: Lsn(0x1_0000_0002), ..Ack::default() });
    let json = serde_json::to_value(&peers.list()[0]).unwrap();
    assert_eq!(json["flush"], "1/00000002");
    assert_eq!(json["state"], "connecting");
}

#[test]
fn a_drain_waits_for_those_that_take_log() {
    let peers = Arc::new(Peers::default());
    let s = peers.join("a", NodeId(1), "1", &Arc::default()).unwrap();
    assert!(peers.all_flushed(Lsn(5)));
    s.state(PeerState::Catchup);
    assert!(!peers.all_flushed(Lsn(5)));
    s.ack(&Ack { flush: Lsn(5), ..Ack::default() });
    assert!(peers.all_flushed(Lsn(5)));
}

#[test]
fn log_that_is_published_while_callers_wait_holds_up_nobody() {
    let bed = Bed::new("ANY 1 (a)", Level::Flush, 0, 0);
    let (peers, mut tail) = (Arc::clone(&bed.peers), bed.tail.subscribe());
    let stop = Arc::new(AtomicBool::new(false));
    let until = |stop: &Arc<AtomicBool>, mut work: Box<dyn FnMut() + Send>| {
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                work();
            }
        })
    };
    let waiting = Arc::clone(&bed.peers);
    let threads = [
        until(&stop, Box::new(move || bed.end(7))),
        until(&stop, Box::new(move || _ = peers.hear(&mut tail))),
        until(&stop, Box::new(move || drop(waiting.wait_for(Wait { lsn: Lsn(7), ..Wait::default() })))),
    ];
    std::thread::sleep(std::time::Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        assert!(std::time::Instant::now() < end, "they hold each other up");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
