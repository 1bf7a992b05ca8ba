//! A switchover in which somebody dies: one node leads afterwards, nothing is lost, and nobody copies anything.

use std::fs;

use crate::support::bed::soak;
use crate::support::{Node, assert_equal_within, until, within};
use crate::switchover::{Trio, on};

/// Where the leader dies, and whether the other leads then.
const LEADER: &[(&str, bool)] = &[
    ("switchover::begun=kill", false),
    ("switchover::stopped=kill", false),
    ("switchover::rested=kill", false),
    ("switchover::applied=kill", false),
    ("switchover::ready=kill", false),
    ("switchover::passed=kill", true),
    ("switchover::closed=kill", true),
    ("switchover::asked=kill", true),
    ("switchover::led=kill", true),
    ("demote::before_control=kill", true),
    ("demote::after_control=kill", true),
    ("switchover::demoted=kill", true),
];
/// Where the one that is to lead dies.
const HEIR: &[&str] = &[
    "promote::before_history=kill",
    "promote::before_control=kill",
    "promote::after_control=kill",
    "branch::seal=kill",
    "branch::after_seal=kill",
    "lines::first_commit=kill",
];

/// The trio, who leads, and how often that changed.
struct Rounds {
    trio: Trio,
    leads: usize,
    timeline: u64,
    written: usize,
}

impl Rounds {
    fn new() -> Self {
        let trio = Trio::new("switchover-crash", |t, spec| {
            let hook = |what: &str| format!("\"echo {what} $TOWLINE_REASON >> {}\"", t.path("calls"));
            let spec = spec.set("on_promote", &hook("start")).set("on_demote", &hook("stop"));
            spec.set("upstream_role", "\"leader\"").armed()
        });
        trio.streams(0);
        Self { trio, leads: 0, timeline: 1, written: 0 }
    }

    fn write(&mut self) {
        self.written += 1;
        let name = format!("entry {}", self.written);
        fs::write(self.trio.nodes[self.leads].data().join(&name), name.repeat(200)).expect("write");
    }

    /// Asks for a switchover, in which somebody dies who has to be started again.
    fn round(&mut self, armed: &[(usize, &str)], passes: bool) {
        let (from, to) = (self.leads, 1 - self.leads);
        let what = format!("{armed:?}, {} hands over", self.trio.nodes[from].spec.name);
        self.write();
        self.trio.direct(from, to);
        for (n, point) in armed {
            self.trio.nodes[*n].arm(point);
        }
        let name = self.trio.nodes[to].spec.name.clone();
        let dies: Vec<usize> = armed.iter().map(|(n, _)| *n).collect();
        let (spec, words) = (self.trio.nodes[from].spec.clone(), ["switchover", "--to", &name]);
        std::thread::scope(|s| {
            let asked = s.spawn(|| spec.ask(&words));
            for n in dies {
                let node = &mut self.trio.nodes[n];
                assert!(Node::was_killed(node.wait_end(within(20))), "{what}");
                node.arm("");
                node.restart();
            }
            let out = asked.join().expect("asked");
            let fine = passes && armed[0].0 != from;
            assert_eq!(out.status.success(), fine, "{what}: {}", String::from_utf8_lossy(&out.stderr));
        });
        if passes {
            (self.leads, self.timeline) = (to, self.timeline + 1);
        }
        self.settled(&what, passes);
    }

    fn settled(&mut self, what: &str, passed: bool) {
        let (leads, follows) = (self.leads, 1 - self.leads);
        on(&self.trio.nodes[leads], "leader", self.timeline);
        on(&self.trio.nodes[follows], "follower", self.timeline);
        self.write();
        let trio = &self.trio;
        for n in [follows, 2] {
            assert_equal_within(within(20), trio.nodes[leads].data(), trio.nodes[n].data());
            on(&trio.nodes[n], "follower", self.timeline);
            let status = trio.nodes[n].status().expect("status").0;
            let of = |key: &str| status["resync"][key].clone();
            assert_eq!((of("completed"), of("lost_logs")), (0.into(), 0.into()), "{what}: {status}");
        }
        let entries = fs::read_dir(trio.nodes[2].data()).expect("list").count();
        assert!(entries >= self.written, "{what}: {entries} of {}", self.written);
        until(within(20), "no note is left", || {
            let left = trio.nodes.iter().find(|n| n.spec.state.join("handover").exists());
            left.map_or(Ok(()), |n| Err(format!("{what}: {}", n.spec.name)))
        });
        let calls = trio.calls();
        let last = calls.lines().last().unwrap_or_default();
        // One that was promoted and died before it served has nothing to run a command for.
        assert!(passed || last == "start switchover-undone", "{what}: {calls}");
        trio.nodes.iter().for_each(Node::assert_no_panic);
    }
}

#[test]
fn one_node_leads_and_nothing_is_lost_wherever_somebody_dies() {
    let mut rounds = Rounds::new();
    let some = |n: usize| {
        if soak() {
            0..n
        } else {
            let at = fastrand::usize(..n);
            at..at + 1
        }
    };
    let (before, after): (Vec<_>, Vec<_>) = LEADER.iter().partition(|(_, passes)| !passes);
    for of in [before, after] {
        for (point, passes) in &of[some(of.len())] {
            let from = rounds.leads;
            rounds.round(&[(from, point)], *passes);
        }
    }
    for point in &HEIR[some(HEIR.len())] {
        let to = 1 - rounds.leads;
        rounds.round(&[(to, point)], true);
    }
    for point in &HEIR[some(3)] {
        let (from, to) = (rounds.leads, 1 - rounds.leads);
        let mut both = [(from, "switchover::asked=kill"), (to, *point)];
        fastrand::shuffle(&mut both);
        rounds.both(both);
    }
}

impl Rounds {
    /// Both die, and come back in this order.
    fn both(&mut self, armed: [(usize, &str); 2]) {
        let (from, to) = (self.leads, 1 - self.leads);
        self.write();
        self.trio.direct(from, to);
        for (n, point) in armed {
            self.trio.nodes[n].arm(point);
        }
        let name = self.trio.nodes[to].spec.name.clone();
        let out = self.trio.nodes[from].ask(&["switchover", "--to", &name]);
        assert!(!out.status.success());
        for (n, _) in armed {
            let node = &mut self.trio.nodes[n];
            assert!(Node::was_killed(node.wait_end(within(20))), "{armed:?}");
            node.arm("");
        }
        for (n, _) in armed {
            self.trio.nodes[n].restart();
        }
        (self.leads, self.timeline) = (to, self.timeline + 1);
        self.settled(&format!("{armed:?}"), true);
    }
}
