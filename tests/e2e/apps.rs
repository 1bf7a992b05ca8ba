//! Real applications on the leader; their own checkers on copies of the follower's directory, taken at
//! random instants while it rests on a cut.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::backup::Backup;
use crate::support::bed::{Bed, copy_tree, free_port, nap, py, soak_or};
use crate::support::node::{STAGE, towline};
use crate::support::tree::python;
use crate::support::{Pair, Spec, until, within};

/// Copies checked per application.
fn copies() -> usize {
    soak_or(100, 20)
}

/// A leader that gives up on an exact cut soon, so that the application's bursts leave file cuts in the log, which
/// no follower may rest on.
fn impatient(name: &str) -> Pair {
    Pair::with(Bed::new(name), |s| s.set("max_cut_delay", "\"50ms\""), |s| s)
}

/// A process of the test; killed on drop.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    fn assert_alive(&mut self) {
        assert_eq!(self.0.try_wait().expect("wait"), None, "the application ended early");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn good(out: Output, what: &str) -> String {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{what}: {}\n{text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}

/// Takes copies while `app` runs, checks each, and wants the copies to move on.
fn check_copies(pair: &Pair, app: &mut Running, count: usize, mut check: impl FnMut(&Path) -> u64) {
    let mut seen = Vec::new();
    for i in 0..count {
        nap(20, 300);
        app.assert_alive();
        let rest = pair.follower.pause();
        assert_eq!(rest.cut, "exact");
        let copy = pair.bed.path(format!("copy{i}"));
        copy_tree(pair.follower.data(), &copy);
        pair.follower.resume();
        let _ = fs::remove_dir_all(copy.join(STAGE));
        seen.push(check(&copy));
        fs::remove_dir_all(&copy).expect("rm");
    }
    let (exact, file) = pair.leader.status().expect("status").cuts();
    println!(
        "{count} copies good; progress {:?} to {:?}; {exact} exact cuts, {file} file cuts",
        seen[0],
        seen[count - 1]
    );
    assert!(seen.is_sorted(), "it went backwards: {seen:?}");
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert!(distinct.len() > count / 4, "the follower hardly moved: {seen:?}");
}

/// Takes a stream from a node, unpacks it and restores that.
fn restored(pair: &Pair, port: u16, out: &Path) -> PathBuf {
    let (tar, set, data) = (pair.bed.path("b.tar"), out.join("set"), out.join("restored"));
    fs::create_dir_all(&set).expect("mkdir");
    let made = Backup::new(port, Path::new("-")).run_into(fs::File::create(&tar).expect("create").into());
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let run = |command: &mut Command, what: &str| good(command.output().expect(what), what);
    // With owners: PostgreSQL takes a directory of its own only.
    run(Command::new("tar").args(["-x", "-p", "--numeric-owner", "-f"]).arg(&tar).arg("-C").arg(&set), "tar");
    let mut restore = Command::new(towline());
    restore.args(["restore", "--target", "exact", "--from"]).arg(&set).arg("--out").arg(&data);
    run(&mut restore, "towline restore");
    fs::remove_file(&tar).expect("rm");
    data
}

/// Takes base backups while `app` runs, of the leader and the follower in turn, as directories and as streams that are
/// restored, and checks each.
fn check_backups(pair: &Pair, app: &mut Running, check: impl Fn(&Path) -> u64) {
    // The other way round for the other form.
    let nodes = [&pair.leader, &pair.follower, &pair.follower, &pair.leader];
    for (i, node) in nodes.into_iter().cycle().take(soak_or(20, 3)).enumerate() {
        nap(20, 300);
        app.assert_alive();
        let out = pair.bed.path(format!("backup{i}"));
        let (form, data) = if i % 2 == 0 {
            let manifest = Backup::new(node.spec.listen, &out).good();
            assert!(manifest.exact && manifest.end >= manifest.start);
            ("tree", out.join("data"))
        } else {
            ("tar", restored(pair, node.spec.listen, &out))
        };
        fs::set_permissions(&out, fs::Permissions::from_mode(0o755)).expect("chmod");
        println!("base backup {i}, {form}: progress {}", check(&data));
        fs::remove_dir_all(&out).expect("rm");
    }
}

fn sqlite(mode: &str) {
    let pair = impatient(&format!("sqlite-{mode}"));
    let db = pair.data().join("bank.db");
    let mut app =
        Running::start(Command::new(python()).arg(py("bank.py")).args(["run", mode]).arg(&db).arg("3600"));
    let seen = pair.follower.data().join("bank.db");
    until(within(20), "the bank opens on the follower", || {
        // The first committed state holds all accounts: wait until a copy has them.
        pair.follower.try_pause()?;
        let copy = pair.bed.path("probe");
        let _ = fs::remove_dir_all(&copy);
        if seen.exists() {
            copy_tree(pair.follower.data(), &copy);
        }
        pair.follower.resume();
        let out = Command::new(python()).arg(py("bank.py")).arg("check").arg(copy.join("bank.db")).output();
        let out = out.map_err(|e| e.to_string())?;
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    let check = |copy: &Path| -> u64 {
        Bed::python("bank.py", &["check", copy.join("bank.db").to_str().expect("path")])
            .trim()
            .parse()
            .expect("moves")
    };
    check_copies(&pair, &mut app, copies(), check);
    check_backups(&pair, &mut app, check);
    drop(app);
    pair.finish();
}

#[test]
fn sqlite_in_wal_mode() {
    sqlite("wal");
}

#[test]
fn sqlite_in_delete_mode() {
    sqlite("delete");
}

#[test]
fn git_with_commits_and_gc() {
    let pair = impatient("git");
    let repo = pair.data().join("repo");
    fs::create_dir(&repo).expect("mkdir");
    let mut app = Running::start(Command::new("sh").arg(py("git_load.sh")).arg(&repo).arg("3600"));
    let commits = |copy: &Path| -> Result<u64, String> {
        let git = |words: &[&str]| {
            let mut c = Command::new("git");
            c.env("GIT_CONFIG_GLOBAL", "/dev/null").arg("-C").arg(copy.join("repo"));
            c.args(["-c", "safe.directory=*"]).args(words).output().expect("git")
        };
        let out = git(&["fsck", "--full", "--strict"]);
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        let count = git(&["log", "-1", "--format=%s"]);
        let text = String::from_utf8_lossy(&count.stdout).into_owned();
        text.split_whitespace().last().and_then(|n| n.parse().ok()).ok_or(text)
    };
    until(within(20), "the first commit on the follower", || commits(pair.follower.data()).map(|_| ()));
    check_copies(&pair, &mut app, copies(), |copy| commits(copy).unwrap_or_else(|e| panic!("git fsck: {e}")));
    drop(app);
    // A killed git leaves children for a moment.
    std::thread::sleep(within(1));
    pair.finish();
}

fn redis(dir: &Path, port: u16) -> Running {
    let server = Running::start(
        Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--daemonize", "no"])
            .args(["--auto-aof-rewrite-percentage", "0", "--loglevel", "warning", "--logfile", ""])
            .args(["--appendfsync", "no", "--aof-load-truncated", "no"])
            .args(["--port", &port.to_string(), "--dir"])
            .arg(dir)
            .stdout(Stdio::null()),
    );
    until(within(20), "redis listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).map(|_| ()).map_err(|e| e.to_string())
    });
    server
}

/// Directories of the two servers: what lies between them keeps a copier busy between one and the other.
const REDIS: [&str; 2] = ["a", "z"];

fn check_redis(copy: &Path) -> u64 {
    let mut servers = Vec::new();
    let mut words = vec!["check".to_owned()];
    for dir in REDIS {
        let manifest = copy.join(dir).join("appendonlydir/appendonly.aof.manifest");
        // A cut is an instant at which nothing was being written: no command may be cut short.
        let out = Command::new("redis-check-aof").arg(manifest).output().expect("redis-check-aof");
        good(out, "redis-check-aof");
        let port = free_port();
        servers.push(redis(&copy.join(dir), port));
        words.push(port.to_string());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Bed::python("redis_load.py", &words).trim().parse().expect("moves")
}

#[test]
fn redis_with_an_append_only_file() {
    let pair = impatient("redis");
    let middle = pair.data().join("m");
    fs::create_dir(&middle).expect("mkdir");
    (0..1500).for_each(|i| fs::write(middle.join(format!("{i}")), "between").expect("write"));
    let mut servers = Vec::new();
    let mut words = vec![py("redis_load.py"), "load".to_owned()];
    // Both write before they answer; without a sync there are no rests in which nothing happens.
    for dir in REDIS {
        let dir = pair.data().join(dir);
        fs::create_dir(&dir).expect("mkdir");
        let port = free_port();
        servers.push(redis(&dir, port));
        words.push(port.to_string());
    }
    words.push("3600".to_owned());
    let mut app = Running::start(Command::new(python()).args(&words));
    until(within(30), "money on the follower", || {
        let mut least = u64::MAX;
        for dir in REDIS {
            let dir = pair.follower.data().join(dir).join("appendonlydir");
            let all = fs::read_dir(dir).map_err(|e| e.to_string())?;
            least = least.min(all.flatten().filter_map(|e| Some(e.metadata().ok()?.len())).sum());
        }
        if least > 20_000 { Ok(()) } else { Err(format!("{least} bytes")) }
    });
    check_copies(&pair, &mut app, copies(), check_redis);
    drop(app);
    drop(servers);
    pair.finish();
}

/// The newest server on this host, with its programs.
fn postgres_bin() -> PathBuf {
    let mut all: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .filter_map(|e| Some(e.ok()?.path().join("bin")))
        .filter(|p| p.join("pg_amcheck").exists())
        .collect();
    all.sort();
    all.pop().expect("a PostgreSQL server with pg_amcheck")
}

/// A cgroup for the server; removed on drop.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make() -> Option<Self> {
        let name = format!("towline-test-{}-{}", std::process::id(), fastrand::u32(..));
        for base in ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let path = Path::new(base).join(&name);
            if Path::new(base).join("cgroup.procs").exists() && fs::create_dir(&path).is_ok() {
                if path.join("cgroup.freeze").exists() || path.join("freezer.state").exists() {
                    return Some(Self(path));
                }
                let _ = fs::remove_dir(&path);
            }
        }
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            if self.0.join(file).exists() {
                let _ = fs::write(self.0.join(file), word);
            }
        }
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            nap(50, 100);
        }
    }
}

struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    cgroup: Option<PathBuf>,
}

impl Postgres {
    fn tool(&self, name: &str) -> Command {
        let mut c = Command::new("runuser");
        c.args(["-u", "postgres", "--"]).arg(self.bin.join(name)).current_dir("/").env("LC_ALL", "C");
        c.env("PGHOST", "/tmp").env("PGPORT", self.port.to_string()).env("PGDATABASE", "postgres");
        c
    }

    fn init(&self) {
        let out = self.tool("initdb").args(["-A", "trust", "-N", "-k", "-D"]).arg(&self.dir).output();
        good(out.expect("initdb"), "initdb");
        let settings = "shared_buffers = '16MB'\nunix_socket_directories = '/tmp'\nlisten_addresses = ''\n\
            max_wal_size = '64MB'\ncheckpoint_timeout = '30s'\nautovacuum_naptime = '2s'\nmax_connections = 20\n";
        let conf = self.dir.join("postgresql.conf");
        let old = fs::read_to_string(&conf).expect("read");
        fs::write(conf, old + settings).expect("write");
    }

    fn control(&self, words: &[&str]) {
        let log = self.dir.with_extension("pglog");
        let mut c = self.tool("pg_ctl");
        c.args(words)
            .args(["-w", "-t", "60", "-D"])
            .arg(&self.dir)
            .arg("-o")
            .arg(format!("-p {}", self.port));
        c.arg("-l").arg(&log);
        let mut shell = Command::new("sh");
        if let Some(cgroup) = &self.cgroup {
            // The server is born in its cgroup.
            shell.arg("-c").arg(format!("echo $$ > '{}/cgroup.procs' && exec \"$@\"", cgroup.display()));
        } else {
            shell.args(["-c", "exec \"$@\""]);
        }
        shell.arg("sh").arg(c.get_program()).args(c.get_args()).current_dir("/");
        shell.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        let ok = shell.status().expect("pg_ctl").success();
        assert!(ok, "pg_ctl {words:?}:\n{}", fs::read_to_string(log).unwrap_or_default());
    }

    fn sql(&self, database: &str, text: &str) -> String {
        let out = self.tool("psql").args(["-XAtqc", text, database]).output();
        good(out.expect("psql"), text).trim().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut c = self.tool("pg_ctl");
        let _ = c.args(["stop", "-m", "immediate", "-w", "-D"]).arg(&self.dir).output();
    }
}

/// The number in one of the ledger's files.
fn ledger(copy: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(copy.join(name)).expect("read the ledger");
    text.trim().parse().unwrap_or_else(|e| panic!("{name}: '{text}': {e}"))
}

/// Starts a server on a copy, asks every checker, and returns the number of transactions it holds.
fn check_postgres(bin: &Path, copy: &Path) -> u64 {
    let dir = copy.join("pg");
    let _ = fs::remove_file(dir.join("postmaster.pid"));
    let log = dir.with_extension("pglog");
    fs::write(&log, "").expect("write");
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).expect("chmod");
    let server = Postgres { bin: bin.to_owned(), dir, port: free_port(), cgroup: None };
    server.control(&["start"]);
    // What was acknowledged is there, and nothing that was not asked for yet.
    let last = |db: &str| -> u64 {
        let count =
            "select max(entry.n) = max(last.n) and count(*) = least(max(last.n), 2001) from entry, last";
        assert_eq!(server.sql(db, count), "t", "the tables of {db} disagree");
        server.sql(db, "select n from last").parse().expect("number")
    };
    let seen = [ledger(copy, "aa-begun"), last("one"), last("two"), ledger(copy, "zz-acked")];
    assert!(seen.is_sorted_by(|a, b| a >= b), "not an instant: begun, one, two, acknowledged are {seen:?}");
    assert!(seen[0] - seen[3] <= 1, "not an instant: begun, one, two, acknowledged are {seen:?}");
    healthy(&server)
}

/// Asks every checker of a running server, stops it, and has its pages summed; the transactions that it holds.
fn healthy(server: &Postgres) -> u64 {
    let out = server.tool("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed"]).output();
    good(out.expect("pg_amcheck"), "pg_amcheck");
    let sums = server.sql(
        "postgres",
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),
                (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history),
                (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
    );
    assert_eq!(sums, "t|t|t", "balances disagree");
    let count = server.sql("postgres", "select count(*) from pgbench_history").parse().expect("count");
    server.control(&["stop", "-m", "fast"]);
    let out = server.tool("pg_checksums").args(["--check", "-D"]).arg(&server.dir).output();
    good(out.expect("pg_checksums"), "pg_checksums");
    count
}

/// Starts a program inside of a cgroup.
fn start_within(cgroup: &Path, program: &str, args: &[&str]) -> Running {
    let script = format!("echo $$ > '{}/cgroup.procs' && exec \"$@\"", cgroup.display());
    Running::start(Command::new("sh").args(["-c", &script, "sh", program]).args(args))
}

#[test]
fn postgresql_under_pgbench_with_the_freeze() {
    let bin = postgres_bin();
    let Some(cgroup) = Cgroup::make() else {
        println!("skipped: no cgroup can be made on this host");
        return;
    };
    let bed = Bed::new("postgres");
    let spec = bed.leader("leader");
    let dir = spec.data.join("pg");
    fs::create_dir(&dir).expect("mkdir");
    for p in [&dir, &spec.data] {
        assert!(Command::new("chown").arg("postgres:").arg(p).status().expect("chown").success());
    }
    let server = Postgres { bin: bin.clone(), dir, port: free_port(), cgroup: Some(cgroup.0.clone()) };
    server.init();
    server.control(&["start"]);
    good(server.tool("pgbench").args(["-i", "-s", "1", "-q"]).output().expect("pgbench"), "pgbench -i");
    let port = server.port.to_string();
    let data = spec.data.to_str().expect("path").to_owned();
    let mut ledger = start_within(&cgroup.0, python(), &[&py("pg_ledger.py"), "/tmp", &port, &data, "3600"]);
    until(within(30), "the ledger is kept", || {
        let text = fs::read_to_string(spec.data.join("zz-acked")).map_err(|e| e.to_string())?;
        if text.trim().parse::<u64>().is_ok_and(|n| n > 5) { Ok(()) } else { Err(text) }
    });
    let freeze = format!("\"cgroup:{}\"", cgroup.0.display());
    let leader = spec.set("freeze", &freeze).set("max_cut_delay", "\"200ms\"").start();
    let follower = bed.follower("follower", leader.spec.listen).start();
    let pair = Pair { leader, follower, bed };
    let mut bench = Running::start(
        server
            .tool("pgbench")
            .args(["-n", "-c", "3", "-T", "3600", "-R", "80"])
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    until(within(90), "the follower is filled", || {
        let status = pair.follower.status()?;
        let here = pair.follower.data().join("pg/global/pg_control").exists();
        if here && !status.applied().is_empty() {
            pair.follower.try_pause().map(|_| ())
        } else {
            Err(status.0.to_string())
        }
    });
    pair.follower.resume();
    check_copies(&pair, &mut bench, soak_or(60, 20), |copy| {
        ledger.assert_alive();
        check_postgres(&bin, copy)
    });
    check_backups(&pair, &mut bench, |copy| check_postgres(&bin, copy));
    ledger.assert_alive();
    drop(bench);
    drop(ledger);
    let out = server.tool("psql").args(["-Xc", "checkpoint"]).output();
    good(out.expect("psql"), "the server is unharmed");
    server.control(&["stop"]);
    drop(server);
    pair.finish();
}

/// The transactions that a run of pgbench was told are committed, however it ended.
fn processed(out: &Output) -> u64 {
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find_map(|l| l.strip_prefix("number of transactions actually processed: "));
    let line = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)));
    line.split(['/', ' ']).next().and_then(|n| n.parse().ok()).expect("number")
}

#[test]
fn postgresql_under_pgbench_is_moved_by_a_switchover() {
    let bin = postgres_bin();
    let bed = Bed::new("postgres-moved");
    let (a, port) = (bed.leader("a"), free_port());
    let b = bed.follower("b", a.listen);
    let list = format!("[\"127.0.0.1:{}\", \"127.0.0.1:{}\"]", a.listen, b.listen);
    let hooked = |mut spec: Spec| {
        let dir = spec.data.join("pg");
        let control = format!("runuser -u postgres -- {}/pg_ctl -w -D {}", bin.display(), dir.display());
        let start =
            format!("cd / && {control} -o '-p {port}' -l {} start", dir.with_extension("pglog").display());
        let stop = format!("cd / && {control} -m fast stop");
        spec.leader_in_config = true;
        spec.name_in_config = true;
        let name = format!("{:?}", spec.name);
        let spec = spec.set("name", &name).set("leader", &list);
        spec.set("on_promote", &format!("{start:?}")).set("on_demote", &format!("{stop:?}"))
    };
    let (a, b) = (hooked(a), hooked(b));
    let server = |spec: &Spec| Postgres { bin: bin.clone(), dir: spec.data.join("pg"), port, cgroup: None };
    let (old, new) = (server(&a), server(&b));
    fs::create_dir(&old.dir).expect("mkdir");
    for p in [&old.dir, &a.data] {
        assert!(Command::new("chown").arg("postgres:").arg(p).status().expect("chown").success());
    }
    old.init();
    old.control(&["start"]);
    good(old.tool("pgbench").args(["-i", "-s", "1", "-q"]).output().expect("pgbench"), "pgbench -i");
    let (leader, follower) = (a.start(), b.start());
    let bench = |seconds: &str| {
        let mut c = old.tool("pgbench");
        c.args(["-n", "-c", "3", "-R", "100", "-T", seconds]).stdout(Stdio::piped()).stderr(Stdio::piped());
        c.stdin(Stdio::null()).spawn().expect("pgbench")
    };
    let running = bench("300");
    until(within(60), "it is near, and moved", || {
        let out = leader.ask(&["switchover", "--to", "b", "--json"]);
        let text = String::from_utf8_lossy(if out.status.success() { &out.stdout } else { &out.stderr });
        println!("{text}");
        if out.status.success() { Ok(()) } else { Err(text.into_owned()) }
    });
    // Its server went away, as the clients of one that is moved see it.
    let before = processed(&running.wait_with_output().expect("pgbench"));
    until(within(30), "the server runs there", || {
        let up = new.tool("pg_isready").output().map_err(|e| e.to_string())?;
        if up.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&up.stdout).into_owned()) }
    });
    let after = processed(&bench("1").wait_with_output().expect("pgbench"));
    let count = healthy(&new);
    println!("{before} transactions before, {after} after, {count} in all");
    assert!(before > 0 && after > 0 && count >= before + after, "{before} + {after}, {count} are there");
    until(within(30), "the old leader has all of it", || {
        let differing = crate::support::differences(leader.data(), follower.data());
        differing.map_or(Ok(()), Err)
    });
    let status = leader.status().expect("status").0;
    assert_eq!(
        (&status["role"], &status["resync"]["completed"]),
        (&"follower".into(), &0.into()),
        "{status}"
    );
    drop((leader, follower));
    // The old directory is a good one, too.
    old.control(&["start"]);
    assert_eq!(healthy(&old), count);
}
