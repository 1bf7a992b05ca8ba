//! The units under systemd itself: process 1 of namespaces that the test makes. Where those can't be had the test says
//! so and passes; `service` shows the same with a socket of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::bed::Bed;
use crate::support::node::towline;
use crate::support::{until, within};

/// What the units need of a host; each is empty.
const TARGETS: &[&str] = &[
    "sysinit.target",
    "basic.target",
    "shutdown.target",
    "network-online.target",
    "local-fs.target",
    "timers.target",
    "multi-user.target",
];
const JOURNAL_SOCKET: &str = "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/systemd/journal/stdout\nListenDatagram=/run/systemd/journal/socket\nSocketMode=0666\n";
const JOURNAL: &str = "[Unit]\nDefaultDependencies=no\nRequires=systemd-journald.socket\n[Service]\nType=notify\nExecStart=/lib/systemd/systemd-journald\nSockets=systemd-journald.socket\nStandardOutput=null\n";

/// A booted systemd.
struct Host {
    bed: Bed,
    root: PathBuf,
    child: Child,
    /// Process 1, as this process sees it.
    init: u32,
    groups: String,
}

impl Host {
    /// `None`, and said, where it can't run.
    fn boot(name: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        let bed = Bed::new(name);
        let root = bed.path("root");
        for dir in [
            "etc/systemd/targets",
            "etc/systemd/system",
            "etc/towline",
            "srv/towline",
            "usr/local",
            "var/lib",
        ] {
            fs::create_dir_all(root.join(dir)).expect("mkdir");
        }
        for file in ["passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf"] {
            let _ = fs::copy(Path::new("/etc").join(file), root.join("etc").join(file));
        }
        let targets = root.join("etc/systemd/targets");
        let empty = "[Unit]\nDefaultDependencies=no\n";
        for target in TARGETS {
            fs::write(targets.join(target), empty).expect("write");
        }
        fs::write(targets.join("bed.target"), format!("{empty}Wants=systemd-journald.socket basic.target\n"))
            .expect("write");
        fs::write(targets.join("systemd-journald.socket"), JOURNAL_SOCKET).expect("write");
        fs::write(targets.join("systemd-journald.service"), JOURNAL).expect("write");
        let journald = "[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nRateLimitBurst=0\n";
        fs::write(root.join("etc/systemd/journald.conf"), journald).expect("write");
        let home = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut install = Command::new("sh");
        install.arg(home.join("scripts/install.sh")).args(["--program", &towline(), "--destdir"]).arg(&root);
        assert!(install.status().expect("run install.sh").success());
        prepare(&root);
        let groups = format!("towline-bed-{}-{name}", std::process::id());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh"]).arg(home.join("tests/e2e/py/systemd_bed.sh"));
        let log = File::create(bed.path("console")).expect("create");
        let child = command
            .arg(&root)
            .arg(&groups)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("start");
        let mut host = Self { bed, root, child, init: 0, groups };
        host.wait_up().then_some(host)
    }

    fn console(&self) -> String {
        fs::read_to_string(self.bed.path("console")).unwrap_or_default()
    }

    fn wait_up(&mut self) -> bool {
        until(within(30), "systemd is up", || {
            if let Some(why) =
                self.console().lines().find_map(|l| l.strip_prefix("SKIP: ").map(str::to_owned))
            {
                eprintln!("SKIPPED: systemd can't run here: {why}");
                return Ok(false);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("{status}: {}", self.console()));
            }
            let pid = self.child.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            self.init =
                children.trim().parse().map_err(|e| format!("{e}: '{children}' {}", self.console()))?;
            let out = self.run(&["systemctl", "is-active", "bed.target"]);
            let text =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            if text.trim() == "active" { Ok(true) } else { Err(text + &self.console()) }
        })
    }

    /// Runs a command on that host.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60", "nsenter", "-t", &self.init.to_string()]);
        command.args(["-m", "-p", "-C", "-i", "-u", "-n", "--"]).args(words);
        command.output().expect("run nsenter")
    }

    /// One that must go well; what it printed.
    fn ok(&self, words: &[&str]) -> String {
        let out = self.run(words);
        let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let more = || {
            let status = self.run(&["systemctl", "status", "--no-pager", "-l", "towline@*"]);
            format!(
                "{}\n{}\n{}",
                self.console(),
                String::from_utf8_lossy(&status.stdout),
                self.journal("towline@*")
            )
        };
        assert!(out.status.success(), "{words:?}: {}: {text}{error}\n{}", out.status, more());
        text.trim().to_owned()
    }

    fn journal(&self, unit: &str) -> String {
        let out = self.run(&["journalctl", "--no-pager", "-o", "json", "-u", unit]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// A property of a unit.
    fn show(&self, unit: &str, property: &str) -> String {
        self.ok(&["systemctl", "show", "--value", "-p", property, unit])
    }

    fn until_shown(&self, unit: &str, property: &str, wanted: impl Fn(&str) -> bool) {
        until(within(30), property, || {
            let now = self.show(unit, property);
            if wanted(&now) { Ok(()) } else { Err(format!("{now}\n{}", self.journal(unit))) }
        });
    }

    /// A file of that host.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console:\n{}", self.console());
        }
        // Its child, process 1, goes with it, and so does everything that runs there.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let ours =
            |dir: &walkdir::DirEntry| dir.path().components().any(|c| c.as_os_str() == self.groups.as_str());
        for _ in 0..100 {
            let walk = walkdir::WalkDir::new("/sys/fs/cgroup").contents_first(true).into_iter().flatten();
            let left: Vec<_> = walk.filter(|e| e.file_type().is_dir() && ours(e)).collect();
            if left.iter().filter(|d| fs::remove_dir(d.path()).is_err()).count() == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
    fs::write(path, text).expect("write");
}

/// A leader `app` and a follower `copy`, each with a watchdog of two seconds and failpoints in a file.
fn pair(root: &Path) {
    let listen = "127.0.0.1:7654";
    fs::create_dir_all(root.join("srv/app")).expect("mkdir");
    write(root, "srv/app/first", "one");
    std::os::unix::fs::chown(root.join("srv/app/first"), Some(1234), Some(1234)).expect("chown");
    write(
        root,
        "etc/towline/app.toml",
        &format!(
            "data = \"/srv/app\"\nstate = \"/var/lib/towline/app\"\nlisten = \"{listen}\"\nname = \"alpha\"\n"
        ),
    );
    write(
        root,
        "etc/towline/copy.toml",
        &format!(
            "data = \"/srv/towline/copy\"\nstate = \"/var/lib/towline/copy\"\nleader = \"{listen}\"\nname = \"beta\"\n"
        ),
    );
    for name in ["app", "copy"] {
        write(
            root,
            &format!("etc/systemd/system/towline@{name}.service.d/test.conf"),
            &format!(
                "[Service]\nWatchdogSec=2s\nRestartSec=100ms\nEnvironment=TOWLINE_FAILPOINTS_FILE=/etc/towline/{name}.failpoints\nLimitCORE=0\n"
            ),
        );
        write(root, &format!("etc/towline/{name}.failpoints"), "");
    }
}

#[test]
fn systemd_starts_watches_reloads_and_stops_nodes() {
    let Some(host) = Host::boot("systemd", pair) else { return };
    let (app, copy) = ("towline@app.service", "towline@copy.service");
    // Start waits for READY; the follower is filled into a directory that its sandbox lets it write.
    host.ok(&["systemctl", "start", app, copy]);
    assert_eq!(host.ok(&["systemctl", "is-active", app, copy]), "active\nactive");
    host.until_shown(app, "StatusText", |t| t.starts_with("leader, ok, 1 follower"));
    host.until_shown(copy, "StatusText", |t| t == "follower, ok, up to date");
    let first = host.at("/srv/towline/copy/first");
    assert_eq!(fs::read_to_string(&first).expect("read"), "one");
    let meta = fs::metadata(&first).expect("stat");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), 1234, "foreign owners are kept");
    // Another user's files and the control socket are what the sandbox must let through; nothing was skipped.
    let status = host.ok(&["towline", "status", "--json", "--config", "/etc/towline/copy.toml"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["apply"]["skipped_privilege"], serde_json::json!({}), "{status}");
    // The leader could not write to its data if it wanted to.
    let main = host.show(app, "MainPID");
    let out = host.run(&["nsenter", "-t", &main, "-m", "touch", "/srv/app/x"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("Read-only file system"), "{out:?}");
    // Reload waits for the answer.
    let config = fs::read_to_string(host.at("/etc/towline/app.toml")).expect("read");
    fs::write(host.at("/etc/towline/app.toml"), config + "scrub_rate = \"1M\"\n").expect("write");
    host.ok(&["systemctl", "reload", app]);
    until(within(20), "the reload is logged", || {
        let text = host.journal(app);
        if text.contains("in force: scrub_rate") { Ok(()) } else { Err(text) }
    });
    // The journal knows priorities, and has no times within the lines.
    let lines: Vec<Value> =
        host.journal(app).lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let ours: Vec<&Value> = lines.iter().filter(|l| l["_COMM"] == "towline").collect();
    assert!(!ours.is_empty());
    for line in ours {
        let text = line["MESSAGE"].as_str().expect("text");
        assert!(line["PRIORITY"] == "6" && !text.starts_with(['<', '2']) && !text.contains("INFO"), "{line}");
    }
    // An engine hangs: the watchdog ends the process, and systemd starts it again.
    fs::write(host.at("/etc/towline/app.failpoints"), "capture::before_commit=sleep:600000").expect("write");
    fs::write(host.at("/srv/app/second"), "two").expect("write");
    until(within(30), "the watchdog bites", || {
        let text = host.journal(app);
        if text.contains("no sign of life") { Ok(()) } else { Err(text) }
    });
    fs::write(host.at("/etc/towline/app.failpoints"), "").expect("write");
    host.until_shown(app, "NRestarts", |n| n != "0");
    host.until_shown(app, "ActiveState", |s| s == "active");
    until(within(30), "what it missed is replicated", || {
        fs::read_to_string(host.at("/srv/towline/copy/second")).map_err(|e| e.to_string())
    });
    // A stop is clean.
    host.ok(&["systemctl", "stop", copy, app]);
    for unit in [app, copy] {
        assert_eq!(
            (host.show(unit, "ActiveState"), host.show(unit, "Result")),
            ("inactive".into(), "success".into())
        );
    }
    // A wrong configuration is no reason to try again and again.
    fs::write(host.at("/etc/towline/app.toml"), "colour = 1\n").expect("write");
    let out = host.run(&["systemctl", "start", app]);
    assert!(!out.status.success());
    host.until_shown(app, "ActiveState", |s| s == "failed");
    assert_eq!(host.show(app, "ExecMainStatus"), "3");
}

/// The fingerprint that `towline id` prints for an instance.
fn fingerprint(host: &Host, name: &str) -> String {
    let text = host.ok(&["towline", "id", "--json", "--config", &format!("/etc/towline/{name}.toml")]);
    let value: Value = serde_json::from_str(&text).expect("JSON");
    value["fingerprint"].as_str().expect("text").to_owned()
}

#[test]
fn a_trusted_leader_and_two_followers_are_set_up_as_the_readme_says() {
    let Some(host) = Host::boot("trusted", |root| {
        let address = "10.9.9.1:7654";
        write(root, "srv/app/greeting", "hello");
        for (name, data, rest) in [
            ("alpha", "/srv/app", format!("listen = \"{address}\"")),
            ("beta", "/srv/towline/beta", format!("leader = \"{address}\"")),
            ("gamma", "/srv/towline/gamma", format!("leader = \"{address}\"")),
        ] {
            let text = format!(
                "data = \"{data}\"\nstate = \"/var/lib/towline/{name}\"\nname = \"{name}\"\n{rest}\n"
            );
            write(root, &format!("etc/towline/{name}.toml"), &text);
        }
    }) else {
        return;
    };
    // No loopback address: nothing goes in the clear.
    host.ok(&["ip", "address", "add", "10.9.9.1/32", "dev", "lo"]);
    let prints = ["alpha", "beta", "gamma"].map(|n| fingerprint(&host, n));
    let state = |name: &str| format!("/var/lib/towline/{name}");
    for (on, peer, print, role) in [
        ("alpha", "beta", &prints[1], "follower"),
        ("alpha", "gamma", &prints[2], "follower"),
        ("beta", "alpha", &prints[0], "leader"),
        ("gamma", "alpha", &prints[0], "leader"),
    ] {
        host.ok(&["towline", "trust", peer, print, "--state", &state(on), "--role", role]);
    }
    host.ok(&[
        "systemctl",
        "start",
        "towline@alpha",
        "towline@beta",
        "towline@gamma",
        "towline-check@alpha.timer",
    ]);
    host.until_shown("towline@alpha.service", "StatusText", |t| t == "leader, ok, 2 followers");
    for name in ["beta", "gamma"] {
        let path = host.at(&format!("/srv/towline/{name}/greeting"));
        until(within(30), "the greeting", || fs::read_to_string(&path).map_err(|e| e.to_string()));
    }
    // How far behind each is, with one command.
    until(within(30), "both are shown", || {
        let text = host.ok(&["towline", "status", "--config", "/etc/towline/alpha.toml"]);
        let row = |name: &str| {
            text.lines().any(|l| l.starts_with(name) && l.contains("streaming") && l.contains(" 0 B"))
        };
        if row("beta") && row("gamma") { Ok(()) } else { Err(text) }
    });
    // The check under its sandbox: well, and failed when the node is down.
    host.ok(&["systemctl", "start", "towline-check@alpha.service"]);
    host.ok(&["systemctl", "stop", "towline@alpha"]);
    let out = host.run(&["systemctl", "start", "towline-check@alpha.service"]);
    assert!(!out.status.success());
    assert_eq!(host.show("towline-check@alpha.service", "ExecMainStatus"), "3");
}
