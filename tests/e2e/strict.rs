//! Strict mode: the application stands still while the followers are missing that have to confirm what it writes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::bed::is_root;
use crate::support::{Bed, Node, Spec, holds_for, until, within};

/// An application that writes the time into a file, over and over.
struct App {
    child: Child,
    file: PathBuf,
}

impl App {
    fn start(dir: &Path) -> Self {
        let file = dir.join("clock");
        let script = "while :; do date +%s%N > $0.new; mv $0.new $0; done";
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "/bin/sh", "-c", script]).arg(&file).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Self { child: command.spawn().expect("start the application"), file }
    }

    /// What it wrote last, ns since 1970.
    fn clock(&self) -> u128 {
        fs::read_to_string(&self.file).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    }

    fn runs(&self) {
        let before = self.clock();
        until(within(20), "the application writes", || {
            let now = self.clock();
            if now > before { Ok(()) } else { Err(now.to_string()) }
        });
    }

    /// It stands, and has for a while.
    fn stands(&self) {
        let mut before = self.clock();
        until(within(20), "the application stands still", || {
            let last = std::mem::replace(&mut before, self.clock());
            std::thread::sleep(Duration::from_millis(200));
            if self.clock() == before && last == before { Ok(()) } else { Err("it writes".to_owned()) }
        });
        holds_for(Duration::from_millis(700), "it stands still", || {
            if self.clock() == before { Ok(()) } else { Err("it wrote".to_owned()) }
        });
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // What it has started may be stopped, too.
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("pid"));
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn sync(node: &Node, key: &str) -> Value {
    node.status().map(|s| s.sync(key)).unwrap_or_default()
}

fn frozen(node: &Node, want: bool) {
    until(within(20), &format!("status says frozen: {want}"), || {
        let since = node.status()?.sync("frozen_since");
        if since.is_null() == want { Err(since.to_string()) } else { Ok(()) }
    });
}

fn strict(bed: &Bed, freeze: &str) -> Node {
    strict_with(bed, freeze, |s| s)
}

fn strict_with(bed: &Bed, freeze: &str, more: impl FnOnce(Spec) -> Spec) -> Node {
    let leader = more(bed.leader("leader").armed());
    let leader = leader.set("synchronous_followers", "\"ANY 1 (a, b)\"").set("sync_loss", "\"freeze\"");
    leader.set("freeze", &format!("\"{freeze}\"")).set("max_cut_delay", "\"100ms\"").start()
}

#[test]
fn writes_wait_for_followers_and_every_way_out_thaws() {
    let bed = Bed::new("strict");
    let (data, pid) = (bed.leader("leader").data, bed.path("pid"));
    let app = App::start(&data);
    fs::write(&pid, app.child.id().to_string()).expect("write");
    app.runs();
    // From the start on: nobody is there.
    let mut leader = strict(&bed, &format!("pid:{}", pid.display()));
    frozen(&leader, true);
    app.stands();
    let well = |node: &Node, want: &str| {
        until(within(20), &format!("it is {want}"), || {
            let status = node.status()?;
            if status.health() == want { Ok(()) } else { Err(status.0.to_string()) }
        });
    };
    well(&leader, "frozen");
    let check = leader.ask(&["check", "--min-free-disk", "off"]);
    let line = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.code() == Some(2) && line.contains("`towline sync release`"), "{line}");
    assert_eq!(sync(&leader, "satisfied"), json!(false));
    // Passes over the directory, made by others' changes too, thaw nothing.
    fs::write(data.join("other"), "x").expect("write");
    assert_eq!(leader.wait_confirmed(&["--timeout", "1s"]).0, 1);
    app.stands();
    let mut follower = bed.follower("a", leader.spec.listen).start();
    frozen(&leader, false);
    app.runs();
    well(&leader, "ok");
    leader.replicated(&["--timeout", "30s"]);
    // The follower dies: the application's last write is not long after that was noticed.
    follower.kill();
    frozen(&leader, true);
    app.stands();
    let noticed = left_at(&leader.log());
    let late = Duration::from_nanos(u64::try_from(app.clock().saturating_sub(noticed)).unwrap_or(u64::MAX));
    println!("the last write came {late:?} after the follower was seen to be gone");
    assert!(late < Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 100 }), "{late:?}");
    // An operator lets it run, and takes that back.
    say(&leader, &["release", "--for", "1h"]);
    frozen(&leader, false);
    app.runs();
    assert!(sync(&leader, "override_until").as_i64() > Some(0));
    well(&leader, "degraded");
    say(&leader, &["resume"]);
    frozen(&leader, true);
    app.stands();
    assert!(sync(&leader, "override_until").is_null());
    // A release ends by itself.
    say(&leader, &["release", "--for", "1s"]);
    frozen(&leader, false);
    frozen(&leader, true);
    // An empty list, and an application that is not to be frozen.
    leader.reload("synchronous_followers", "\"\"").expect("reload");
    frozen(&leader, false);
    app.runs();
    leader.reload("synchronous_followers", "\"a\"").expect("reload");
    frozen(&leader, true);
    leader.reload("sync_loss", "\"report\"").expect("reload");
    frozen(&leader, false);
    app.runs();
    assert_eq!(run_sync(&leader, &["release"]), 10);
    leader.reload("sync_loss", "\"freeze\"").expect("reload");
    frozen(&leader, true);
    // The daemon is killed: thawed. It comes back: frozen. It stops: thawed.
    leader.kill();
    app.runs();
    leader.restart();
    frozen(&leader, true);
    app.stands();
    leader.stop();
    app.runs();
    leader.assert_no_panic();
}

/// When the leader saw a follower leave, ns since 1970: the time of its line.
fn left_at(log: &str) -> u128 {
    let line = log.lines().rfind(|l| l.contains("follower 'a'") && l.contains("left")).expect("a line");
    let stamp = line.split_whitespace().next().expect("a time");
    let out = Command::new("date").args(["+%s%N", "-d", stamp]).output().expect("date");
    String::from_utf8_lossy(&out.stdout).trim().parse().expect("a number")
}

fn run_sync(node: &Node, words: &[&str]) -> i32 {
    let mut command = Command::new(crate::support::node::towline());
    command.arg("sync").args(words).arg("--state").arg(&node.spec.state);
    command.status().expect("run").code().unwrap_or(-1)
}

fn say(node: &Node, words: &[&str]) {
    assert_eq!(run_sync(node, words), 0, "{words:?}");
}

/// A cgroup with an application in it: without followers it stands, and runs when the daemon is killed.
fn freezes(group: Option<Group>, by_unit: bool) {
    let Some(group) = group else {
        println!("skipped: no such cgroup with a freezer can be made here");
        return;
    };
    let bed = Bed::new("strict-cgroup");
    let data = bed.leader("leader").data;
    let app = App::start(&data);
    fs::write(group.0.join("cgroup.procs"), app.child.id().to_string()).expect("enter");
    app.runs();
    let mut leader = if by_unit {
        // It answers what systemd answers of a running unit.
        let bin = bed.path("bin");
        fs::create_dir(&bin).expect("mkdir");
        let name = group.0.file_name().and_then(|n| n.to_str()).expect("name");
        let script = format!("#!/bin/sh\ncase $* in *' -- app.service') echo /{name};; esac\n");
        fs::write(bin.join("systemctl"), script).expect("write");
        fs::set_permissions(bin.join("systemctl"), PermissionsExt::from_mode(0o755)).expect("chmod");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        strict_with(&bed, "unit:app.service", |s| s.env("PATH", &path))
    } else {
        strict(&bed, &format!("cgroup:{}", group.0.display()))
    };
    frozen(&leader, true);
    app.stands();
    let _follower = bed.follower("b", leader.spec.listen).start();
    frozen(&leader, false);
    app.runs();
    leader.reload("synchronous_followers", "\"nobody\"").expect("reload");
    frozen(&leader, true);
    app.stands();
    leader.kill();
    app.runs();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_nanos();
    assert!(app.clock().abs_diff(now) < 60_000_000_000);
}

#[test]
fn a_cgroup_is_frozen_without_followers_and_thawed_when_the_daemon_is_killed() {
    freezes(Group::first(&[V1]), false);
}

#[test]
fn a_cgroup_of_the_second_version_is_frozen_likewise() {
    freezes(Group::first(&V2), false);
}

#[test]
fn a_unit_is_frozen_by_its_cgroup() {
    freezes(Group::first(&V2).or_else(|| Group::first(&[V1])), true);
}

/// Where cgroups are, and the knob of those that can be frozen.
type Place = (&'static str, &'static str);
const V1: Place = ("/sys/fs/cgroup/freezer", "freezer.state");
const V2: [Place; 2] = [("/sys/fs/cgroup", "cgroup.freeze"), ("/sys/fs/cgroup/unified", "cgroup.freeze")];

/// A cgroup of this test.
struct Group(PathBuf);

impl Group {
    fn first(places: &[Place]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let name = format!("towline-test-{}-{}", std::process::id(), fastrand::u32(..));
        for (root, knob) in places {
            let path = Path::new(root).join(&name);
            if Path::new(root).exists() && fs::create_dir(&path).is_ok() {
                if path.join(knob).exists() {
                    return Some(Self(path));
                }
                let _ = fs::remove_dir(&path);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for (knob, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            if self.0.join(knob).exists() {
                let _ = fs::write(self.0.join(knob), word);
            }
        }
        // Its processes are about to end; the empty group goes with the last of them.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
