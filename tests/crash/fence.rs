//! A leader that was left behind: death at each step of its fence. Whatever it dies of, it never opens for business again,
//! and the command that stops its application has run to its end.

use std::fs;

use crate::support::{Bed, Node, assert_equal_within, until, within};

/// The places that the test of this file kills at.
pub(crate) const POINTS: [&str; 6] = [
    "fence::before_note",
    "fence::after_note",
    "fence::before_demote",
    "fence::after_demote",
    "fence::turn",
    "fence::before_remove",
];

fn is(node: &Node, state: &str) {
    until(within(30), &format!("{} is {state}", node.spec.name), || {
        let status = node.status()?;
        if status.state() == state { Ok(()) } else { Err(status.0.to_string()) }
    });
}

#[test]
fn a_fence_survives_death_at_each_of_its_steps() {
    let bed = Bed::new("kill-fence");
    let hook = bed.path("demoted");
    let spec = bed.leader("a").armed().set("name", "\"a\"").set("peer_timeout", "\"1s\"");
    let spec = spec.set("on_demote", &format!("\"echo x >> {}\"", hook.display()));
    let b = bed.follower("b", spec.listen).set("peer_timeout", "\"1s\"");
    let mut a = spec.set("leader", &format!("\"127.0.0.1:{}\"", b.listen)).start();
    let mut b = b.start();
    fs::write(a.data().join("one"), "1").expect("write");
    assert_equal_within(within(20), a.data(), b.data());
    for (round, point) in (0..).zip(&POINTS[..5]) {
        a.freeze(true);
        let out = b.ask(if round == 0 { &["promote", "--wait"] } else { &["promote", "--wait", "--force"] });
        assert!(out.status.success(), "{point}: {}", String::from_utf8_lossy(&out.stderr));
        let _ = fs::remove_file(&hook);
        a.arm(&format!("{point}=kill"));
        a.freeze(false);
        assert!(Node::was_killed(a.wait_end(within(30))), "{point}");
        // What is written now is never anybody else's.
        fs::write(a.data().join(format!("left behind {round}")), "x").expect("write");
        for _ in 0..2 {
            a.arm("");
            a.restart();
            is(&a, "fenced");
            until(within(20), "on_demote is done", || {
                let status = a.status()?.0;
                if status["fence"]["demoted"] == true { Ok(()) } else { Err(status.to_string()) }
            });
            let runs = fs::read_to_string(&hook).expect("read").lines().count();
            let most = if *point == "fence::after_demote" { 2 } else { 1 };
            assert!((1..=most).contains(&runs), "{point}: run {runs} times");
            a.kill();
        }
        assert!(!b.data().join(format!("left behind {round}")).exists());
        // The lead is taken back, so that it can be lost again.
        a.restart();
        is(&a, "fenced");
        let last = "fence::before_remove";
        a.arm(&format!("{last}=kill"));
        let _ = a.ask(&["promote", "--force", "--wait"]);
        assert!(Node::was_killed(a.wait_end(within(30))), "{last}");
        a.arm("");
        a.restart();
        is(&a, "running");
        is(&b, "fenced");
    }
    b.stop();
    a.stop();
}
