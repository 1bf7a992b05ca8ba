//! The pages over HTTP: what each says for every role and state, what it takes of clients, and real clients of theirs:
//! promtool, Prometheus, HAProxy.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::support::bed::{Bed, free_port};
use crate::support::node::Node;
use crate::support::{Pair, Spec, until, within};

/// One request over a connection of its own: the code, the head, the body.
fn ask(port: u16, method: &str, target: &str, more: &str) -> Result<(u16, String, String), String> {
    let text = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
    raw(port, text.as_bytes())
}

fn raw(port: u16, request: &[u8]) -> Result<(u16, String, String), String> {
    let fail = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(fail)?;
    stream.set_read_timeout(Some(within(15))).map_err(fail)?;
    stream.write_all(request).map_err(fail)?;
    let mut answer = Vec::new();
    // A reset behind the answer is none of the test's business.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer}"))?;
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).ok_or_else(|| head.to_owned())?;
    Ok((code, head.to_owned(), body.to_owned()))
}

/// The pages that say 200 now, and what the others give as a reason.
fn says(port: u16) -> Result<(String, String), String> {
    let (mut yes, mut no) = (Vec::new(), Vec::new());
    for page in ["/leader", "/follower", "/follower?lag=5s", "/sync", "/healthy", "/ready"] {
        let (code, _, body) = ask(port, "GET", page, "")?;
        let value: Value = serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))?;
        assert_eq!(value["ok"], code == 200, "{page}: {code} {body}");
        if code == 200 {
            yes.push(page);
        } else {
            assert_eq!(code, 503, "{page}: {body}");
            no.push(format!("{page}: {}", value["reason"]));
        }
    }
    Ok((yes.join(" "), no.join("; ")))
}

fn wait_says(node: &Node, port: u16, want: &str) {
    until(within(20), &format!("{} says {want}", node.spec.name), || {
        let (yes, no) = says(port)?;
        if yes == want { Ok(()) } else { Err(format!("{yes}; not {no}")) }
    });
}

const LEADER: &str = "/leader /healthy /ready";
const FOLLOWER: &str = "/follower /follower?lag=5s /healthy /ready";

fn with_pages(port: u16) -> impl Fn(Spec) -> Spec {
    move |s: Spec| s.set("http", &format!("\"127.0.0.1:{port}\""))
}

#[test]
fn every_page_is_right_for_every_role_within_seconds() {
    let (l, f) = (free_port(), free_port());
    let mut pair = Pair::with(Bed::new("pages"), with_pages(l), with_pages(f));
    wait_says(&pair.leader, l, LEADER);
    wait_says(&pair.follower, f, FOLLOWER);
    // It becomes one that counts, and ceases to be.
    pair.leader.reload("synchronous_followers", "\"ANY 1 (follower)\"").expect("reload");
    wait_says(&pair.follower, f, "/follower /follower?lag=5s /sync /healthy /ready");
    pair.leader.reload("synchronous_followers", "\"\"").expect("reload");
    wait_says(&pair.follower, f, FOLLOWER);
    // Paused: it can be read, until it is too far behind for whoever asks.
    pair.follower.pause();
    fs::write(pair.data().join("a"), "1").expect("write");
    until(within(10), "it is behind for this limit", || {
        let (short, _, body) = ask(f, "GET", "/follower?lag=100ms", "")?;
        let (bytes, ..) = ask(f, "GET", "/follower?lag=1", "")?;
        let (long, ..) = ask(f, "GET", "/follower?lag=1h", "")?;
        if (short, bytes, long) == (503, 503, 200) { Ok(()) } else { Err(body) }
    });
    pair.follower.resume();
    wait_says(&pair.follower, f, FOLLOWER);
    until(within(10), "it is in step again", || match ask(f, "GET", "/follower?lag=100ms", "")? {
        (200, ..) => Ok(()),
        (_, _, body) => Err(body),
    });
    // Cut off: it can be read, but nobody knows how old that is.
    pair.leader.kill();
    wait_says(&pair.follower, f, "/follower /ready");
    assert!(ask(l, "GET", "/leader", "").is_err(), "a dead leader answers nothing");
    pair.leader.restart();
    wait_says(&pair.leader, l, LEADER);
    wait_says(&pair.follower, f, FOLLOWER);
    // It needs help: nothing is well, and nobody is sent there.
    let theirs = pair.follower.data().join("a");
    fs::write(&theirs, "mine").expect("write");
    fs::write(pair.data().join("a"), "2").expect("write");
    wait_says(&pair.follower, f, "");
    fs::write(&theirs, "1").expect("write");
    pair.follower.reload("peer_timeout", "\"3s\"").expect("reload");
    pair.equal(20);
    // The pages move by reload, and one that can't be had changes nothing.
    let moved = free_port();
    let e = pair.leader.reload("http", &format!("\"127.0.0.1:{f}\"")).expect_err("taken");
    assert!(e.contains("key 'http'"), "{e}");
    wait_says(&pair.leader, l, LEADER);
    let answer = pair.leader.reload("http", &format!("\"127.0.0.1:{moved}\"")).expect("reload");
    assert_eq!(answer["changed"][0], "http");
    wait_says(&pair.leader, moved, LEADER);
    assert!(ask(l, "GET", "/leader", "").is_err());
    pair.finish();
}

#[test]
fn when_the_synchronous_follower_stops_another_counts_within_seconds_and_pages_say_so() {
    let (a, b) = (free_port(), free_port());
    let bed = Bed::new("pages-sync");
    let leader = bed.leader("leader").set("synchronous_followers", "\"FIRST 1 (a, b)\"").start();
    let mut first = with_pages(a)(bed.follower("a", leader.spec.listen)).start();
    let second = with_pages(b)(bed.follower("b", leader.spec.listen)).start();
    let sync = |port: u16| ask(port, "GET", "/sync", "").map(|(code, _, body)| (code, body));
    let state = |name: &str| seen_state(&leader, name);
    until(within(20), "a is synchronous, b might be", || match (state("a")?, state("b")?, sync(a)?.0) {
        (x, y, 200) if x == "sync" && y == "potential" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    first.stop();
    until(within(10), "b takes its place", || match (state("b")?, sync(b)?) {
        (x, (200, body)) if x == "sync" && body.contains("count: sync") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    first.restart();
    until(within(20), "and gives it back", || match (state("a")?, sync(a)?.0, state("b")?) {
        (x, 200, y) if x == "sync" && y == "potential" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    drop(second);
}

/// A follower's place as its leader says it.
fn seen_state(leader: &Node, name: &str) -> Result<String, String> {
    let status = leader.status()?.0;
    let list = status["followers"].as_array().cloned().unwrap_or_default();
    let found = list.iter().find(|f| f["name"] == name).and_then(|f| f["sync_state"].as_str());
    found.map(str::to_owned).ok_or_else(|| format!("no {name} in {status}"))
}

#[test]
fn what_is_no_request_for_a_page_is_refused_and_clients_are_bounded() {
    let port = free_port();
    let pair = Pair::with(Bed::new("pages-bad"), with_pages(port), |s| s);
    let code = |method: &str, target: &str| ask(port, method, target, "").expect("answer");
    for target in ["/", "/lead", "/leader/", "//leader", "/metrics/x"] {
        let (status, _, body) = code("GET", target);
        assert!(status == 404 && body.contains("/follower"), "{target}: {status} {body}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE"] {
        let (status, head, _) = code(method, "/leader");
        assert!(status == 405 && head.contains("allow: GET, HEAD, OPTIONS"), "{method}: {head}");
    }
    for target in ["/follower?lag=soon", "/follower?x=1", "/leader?lag=1s"] {
        assert_eq!(code("GET", target).0, 400, "{target}");
    }
    for (method, target, want) in
        [("HEAD", "/leader", 200), ("OPTIONS", "/leader", 200), ("HEAD", "/follower", 503)]
    {
        let (status, head, body) = code(method, target);
        assert!(status == want && body.is_empty(), "{method} {target}: {head} {body}");
    }
    let (status, ..) = raw(port, b"GET /leader\r\n\r\n").expect("answer");
    assert_eq!(status, 400);
    assert_eq!(raw(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").map(|a| a.0).unwrap_or(400), 400);
    // A head that is too large; a body that nobody reads.
    let (status, ..) =
        ask(port, "GET", "/leader", &format!("X: {}\r\n", "a".repeat(20_000))).expect("answer");
    assert_eq!(status, 431);
    let (status, ..) = ask(port, "GET", "/leader", "Content-Length: 1000000000\r\n").expect("answer");
    assert_eq!(status, 200);
    // Hundreds that say nothing, or a byte at a time, keep nobody out.
    let start = Instant::now();
    let mut slow: Vec<TcpStream> =
        (0..300).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"G");
    }
    assert_eq!(code("GET", "/leader").0, 200);
    assert!(start.elapsed() < within(10), "{:?}", start.elapsed());
    // The last of them is cut off when its head does not come.
    let mut last = slow.pop().expect("connected");
    last.set_read_timeout(Some(within(30))).expect("timeout");
    let mut rest = Vec::new();
    let _ = last.read_to_end(&mut rest);
    assert!(start.elapsed() < within(25), "it was waited for {:?}", start.elapsed());
    pair.finish();
}

/// A figure by name and labels.
fn figure(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Runs a program with a text at its standard input; what it says.
fn feed(words: &[&str], text: &str) -> (bool, String) {
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", words[0]));
    child.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write");
    let out = child.wait_with_output().expect("wait");
    let said = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn figures_are_all_there_plausible_and_to_promtools_taste() {
    let (l, f, m) = (free_port(), free_port(), free_port());
    let bed = Bed::new("metrics");
    let store = bed.path("store");
    fs::create_dir(&store).expect("mkdir");
    let rules = |s: Spec| {
        let s = with_pages(l)(s).set("synchronous_followers", "\"ANY 1 (follower)\"");
        s.set("archive", &crate::support::archive::url(&store))
    };
    let pair = Pair::with(bed, rules, with_pages(f));
    let middle = with_pages(m)(pair.bed.follower("middle", pair.follower.spec.listen)).start();
    fs::write(pair.data().join("a"), vec![1; 100_000]).expect("write");
    crate::support::assert_equal_within(within(20), pair.data(), middle.data());
    until(within(15), "the leader knows of both, at rest", || {
        let text = ask(l, "GET", "/metrics", "")?.2;
        let lag = figure(&text, "towline_follower_lag_bytes{follower=\"middle\",via=\"follower\"}");
        if lag == Some(0.0) { Ok(()) } else { Err(text) }
    });
    let pages: Vec<String> =
        [l, f, m].iter().map(|p| ask(*p, "GET", "/metrics", "").expect("answer").2).collect();
    for page in &pages {
        let (fine, said) = feed(&["promtool", "check", "metrics"], page);
        assert!(fine && said.trim().is_empty(), "{said}\n{page}");
    }
    let end = figure(&pages[0], "towline_log_end_position_bytes").expect("a position");
    let table = [
        (0, "towline_health{health=\"ok\"}", 1.0..=1.0),
        (0, "towline_needs_help", 0.0..=0.0),
        (0, "towline_capture_files", 2.0..=2.0),
        (0, "towline_capture_cuts_total{cut=\"exact\"}", 1.0..=100.0),
        (0, "towline_exact_cut_age_seconds", 0.0..=5.0),
        (0, "towline_followers{state=\"streaming\"}", 1.0..=1.0),
        (0, "towline_follower_apply_position_bytes{follower=\"follower\",via=\"\"}", end..=end),
        (0, "towline_follower_lag_seconds{follower=\"middle\",via=\"follower\"}", 0.0..=0.0),
        (0, "towline_sync_satisfied", 1.0..=1.0),
        (0, "towline_follower_sync_counts{follower=\"follower\"}", 1.0..=1.0),
        (1, "towline_apply_position_bytes", end..=end),
        (1, "towline_lag_seconds", 0.0..=0.0),
        (1, "towline_upstream_connected", 1.0..=1.0),
        (2, "towline_apply_consistent", 1.0..=1.0),
    ];
    for (node, name, range) in table {
        let value = figure(&pages[node], name).unwrap_or_else(|| panic!("no {name} in\n{}", pages[node]));
        assert!(range.contains(&value), "{name} is {value}, not in {range:?}");
    }
    // Each family that is defined is printed by one of them, unless it is of what this cascade does not have.
    let source =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/metrics.rs")).expect("read");
    let source = source.split("#[cfg(test)]").next().expect("code");
    let absent = [
        "apply_skipped",
        "slot_left",
        "archive_waiting_since",
        "archive_last_time",
        "switchover_writes_stopped",
    ];
    let mut families = 0;
    for kind in ["gauge(", "counter("] {
        for (at, _) in source.match_indices(kind) {
            let rest = source[at + kind.len()..].trim_start();
            let Some(name) = rest.strip_prefix('"').and_then(|r| r.split('"').next()) else { continue };
            families += 1;
            let there = pages.iter().any(|p| p.contains(&format!("# TYPE towline_{name}")));
            assert!(there || absent.contains(&name), "nobody prints {name}");
        }
    }
    assert!(families > 60, "{families}");
    pair.finish();
}

/// A program that is ended with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(words: &[&str]) -> Program {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Program(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", words[0])))
}

#[test]
fn a_real_prometheus_scrapes_every_node() {
    let (l, f, p) = (free_port(), free_port(), free_port());
    let pair = Pair::with(Bed::new("prometheus"), with_pages(l), with_pages(f));
    let config = format!(
        "scrape_configs:\n- job_name: towline\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  static_configs:\n  - targets: \
         ['127.0.0.1:{l}', '127.0.0.1:{f}']\n"
    );
    let file = pair.bed.path("prometheus.yml");
    fs::write(&file, config).expect("write");
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let _prometheus = program(&[
        "prometheus",
        &flag("config.file", file.to_str().expect("text")),
        &flag("storage.tsdb.path", pair.bed.path("tsdb").to_str().expect("text")),
        &flag("web.listen-address", &format!("127.0.0.1:{p}")),
    ]);
    let query = |text: &str| -> Result<Vec<(String, String)>, String> {
        let (code, _, body) = ask(p, "GET", &format!("/api/v1/query?query={text}"), "")?;
        let body = body[body.find('{').unwrap_or(0)..=body.rfind('}').unwrap_or(0)].to_owned();
        let value: Value = serde_json::from_str(&body).map_err(|e| format!("{code} {e}: {body}"))?;
        let list = value["data"]["result"].as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        Ok(list.iter().map(|r| (text(&r["metric"]["instance"]), text(&r["value"][1]))).collect())
    };
    until(within(40), "both are up, and their figures are there", || {
        let up = query("up")?;
        let lag = query("towline_lag_seconds")?;
        let cuts = query("towline_capture_cuts_total")?;
        let fine = up.len() == 2 && up.iter().all(|(_, v)| v == "1");
        if fine && lag == [(format!("127.0.0.1:{f}"), "0".to_owned())] && cuts.len() == 2 {
            Ok(())
        } else {
            Err(format!("{up:?} {lag:?} {cuts:?}"))
        }
    });
    pair.finish();
}

#[test]
fn a_real_haproxy_sends_writers_to_the_leader_wherever_it_is() {
    let (l, f, o, h) = (free_port(), free_port(), free_port(), free_port());
    let mut pair = Pair::with(Bed::new("haproxy"), with_pages(l), with_pages(f));
    let config = format!(
        "defaults\n mode http\n timeout connect 1s\n timeout client 5s\n timeout server 5s\nfrontend writers\n bind \
         127.0.0.1:{h}\n default_backend leader\nbackend leader\n option httpchk\n http-check send meth OPTIONS uri \
         /leader\n http-check expect status 200\n default-server check inter 200ms fall 2 rise 1\n server a \
         127.0.0.1:{l}\n server b 127.0.0.1:{f}\n server c 127.0.0.1:{o}\n"
    );
    let file = pair.bed.path("haproxy.cfg");
    fs::write(&file, config).expect("write");
    let _haproxy = program(&["haproxy", "-db", "-f", file.to_str().expect("text")]);
    // What answers is the page of whichever node is the leader.
    let leads = |want: Option<&Node>| {
        until(within(20), "writers get to the leader", || {
            let (code, _, body) = ask(h, "GET", "/leader", "")?;
            let name = want.map(|n| n.status().map(|s| s.0["node"].clone())).transpose()?;
            let value: Value = serde_json::from_str(body.trim()).unwrap_or_default();
            let right = match &name {
                Some(name) => code == 200 && value["node"] == *name,
                None => code == 503 && value.is_null(),
            };
            if right { Ok(()) } else { Err(format!("{code} {body}")) }
        });
    };
    leads(Some(&pair.leader));
    pair.leader.stop();
    leads(None);
    let other = with_pages(o)(pair.bed.leader("other")).start();
    leads(Some(&other));
    drop(other);
    leads(None);
    pair.leader.restart();
    leads(Some(&pair.leader));
    pair.finish();
}
