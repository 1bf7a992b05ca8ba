//! Who gets in, who is told why not, and what strangers at the door cost the others.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bed::{Bed, is_root, soak_or};
use crate::support::node::towline;
use crate::support::proxy::Way;
use crate::support::{Node, Pair, Proxy, Spec, assert_equal_within, load, until, within};

/// Most resident memory, in kB, whoever stands at the door.
const MEMORY_KB: u64 = 300 << 10;

fn command(words: &[&str]) -> Output {
    Command::new(towline()).args(words).output().expect("run towline")
}

fn done(words: &[&str]) -> String {
    let out = command(words);
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{words:?}: {said}{why}");
    said.into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// The fingerprint of a node, before its first start or later.
pub(crate) fn key_of(spec: &Spec) -> String {
    let id: Value =
        serde_json::from_str(&done(&["id", "--json", "--state", text(&spec.state)])).expect("JSON");
    id["fingerprint"].as_str().expect("a fingerprint").to_owned()
}

/// One of the two commands.
fn trusts(spec: &Spec, name: &str, key: &str, role: &str) {
    done(&["trust", name, key, "--state", text(&spec.state), "--role", role]);
}

fn refused(node: &Node, code: &str, words: &[&str]) {
    until(within(30), &format!("{} is refused as {code}", node.spec.name), || {
        let status = node.status()?;
        let (message, remedy) = status.error_text();
        let said = words.iter().all(|w| message.contains(w)) && !remedy.is_empty();
        if status.upstream_code() == code && status.state() == "refused" && status.health() == "help" && said
        {
            Ok(())
        } else {
            Err(status.0.to_string())
        }
    });
}

fn streams(node: &Node) {
    until(within(30), &format!("{} streams over TLS", node.spec.name), || {
        let status = node.status()?;
        let tls = status.0.pointer("/upstream/tls") == Some(&Value::Bool(true));
        if tls && status.upstream_state() == "streaming" { Ok(()) } else { Err(status.0.to_string()) }
    });
}

/// What the leader says of a follower.
fn entry(leader: &Node, name: &str) -> Value {
    let status = leader.status().expect("status");
    let list = status.0["followers"].as_array().cloned().unwrap_or_default();
    list.into_iter().find(|f| f["name"] == name).unwrap_or_default()
}

#[test]
fn two_commands_make_a_pair_trust_each_other() {
    let bed = Bed::new("trust-pair");
    let leader = bed.leader("leader").set("name", "\"alpha\"");
    let proxy = Proxy::to(leader.listen);
    let follower = bed.follower("beta", proxy.port());
    let (alpha, beta) = (key_of(&leader), key_of(&follower));
    assert_eq!(key_of(&leader), alpha, "made once");
    trusts(&leader, "beta", &beta, "follower");
    trusts(&follower, "alpha", &alpha, "leader");
    let (leader, follower) = (leader.start(), follower.start());
    assert_eq!(key_of(&leader.spec), alpha, "while it runs, too");
    fs::write(leader.data().join("a"), "content that nobody on the way may read ".repeat(100))
        .expect("write");
    assert_equal_within(within(20), leader.data(), follower.data());
    streams(&follower);
    let (seen, status) = (entry(&leader, "beta"), follower.status().expect("status"));
    assert_eq!((&seen["tls"], seen["fingerprint"].as_str()), (&Value::Bool(true), Some(&*beta)), "{seen}");
    assert_eq!(seen["roles"], serde_json::json!(["follower"]));
    assert_eq!(status.0["upstream"]["fingerprint"].as_str(), Some(&*alpha));
    assert!(status.0["tls"]["days_left"].as_i64() > Some(3600), "{}", status.0["tls"]);
    let on_the_way = [proxy.recorded(Way::Up), proxy.recorded(Way::Down)].concat();
    for word in [&b"nobody on the way"[..], b"alpha", b"beta"] {
        assert!(!on_the_way.windows(word.len()).any(|w| w == word), "in the clear: {word:?}");
    }
    for node in [&leader, &follower] {
        let secret = fs::read_to_string(node.spec.state.join("node.key")).expect("read");
        let shown = [
            node.log(),
            node.status().expect("status").0.to_string(),
            done(&["status", "--state", text(&node.spec.state)]),
            fs::read_to_string(format!("/proc/{}/cmdline", node.pid())).expect("cmdline"),
            done(&["trust", "--list", "--state", text(&node.spec.state)]),
        ];
        for line in secret.lines().filter(|l| !l.starts_with("---")) {
            assert!(shown.iter().all(|s| !s.contains(line)), "the key is shown");
        }
        let mode = fs::metadata(node.spec.state.join("node.key")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    Pair { leader, follower, bed }.finish();
}

/// Makes the certificate of a node one that was valid until 2021.
fn expire(spec: &Spec) {
    let pem = fs::read_to_string(spec.state.join("node.key")).expect("read");
    let key = rcgen::KeyPair::from_pem(&pem).expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let certificate = params.self_signed(&key).expect("signed");
    fs::write(spec.state.join("node.crt"), certificate.pem()).expect("write");
}

#[test]
fn whom_a_node_does_not_serve_it_tells_by_which_rule() {
    let bed = Bed::new("refusals");
    let leader = bed.leader("leader").set("name", "\"alpha\"").set("tls", "\"on\"");
    let alpha = key_of(&leader);
    let foreign = bed.leader("foreign").start();
    let ready = |name: &str, as_name: Option<&str>, role: &str| {
        let spec = bed.follower(name, leader.listen).set("tls", "\"on\"");
        let key = key_of(&spec);
        if let Some(as_name) = as_name {
            trusts(&leader, as_name, &key, role);
        }
        trusts(&spec, "alpha", &alpha, "leader");
        spec
    };
    let unknown = ready("unknown", None, "");
    let misnamed = ready("misnamed", Some("another"), "follower");
    let monitor = ready("monitor", Some("monitor"), "monitor");
    let expired = ready("expired", Some("expired"), "follower");
    expire(&expired);
    let plain = ready("plain", Some("plain"), "follower").set("tls", "\"off\"");
    // It holds the system of somebody else.
    let mut wrong = bed.follower("wrong", foreign.spec.listen);
    let mut filled = wrong.start();
    until(within(20), "filled", || match filled.status()?.state().as_str() {
        "running" => Ok(()),
        other => Err(other.to_owned()),
    });
    filled.stop();
    trusts(&leader, "wrong", &key_of(&wrong), "follower");
    trusts(&wrong, "alpha", &alpha, "leader");
    wrong.upstream = Some(leader.listen);
    let leader = leader.start();
    let here = |command: &str| format!("towline trust {command} --state DIR");
    let command = here(&format!("unknown {}", key_of(&unknown)));
    let [unknown, misnamed, monitor, expired, plain, wrong] =
        [unknown, misnamed, monitor, expired, plain, wrong].map(|s| s.start());
    refused(&unknown, "untrusted", &["'alpha' does not trust", &command]);
    refused(&misnamed, "identity", &["'misnamed'", "trusted as 'another'"]);
    refused(&monitor, "not-allowed", &["as monitor", "--role follower"]);
    refused(&expired, "expired", &["expired", "towline id --renew"]);
    refused(&plain, "tls", &["takes TLS only", "tls = \"on\""]);
    refused(&wrong, "wrong-system", &["system"]);
    // Each is cured by what it says.
    trusts(&leader.spec, "unknown", &key_of(&unknown.spec), "follower");
    done(&["id", "--renew", "--state", text(&expired.spec.state)]);
    done(&["reload", "--state", text(&expired.spec.state)]);
    done(&[
        "trust",
        "monitor",
        &key_of(&monitor.spec),
        "--state",
        text(&leader.spec.state),
        "--role",
        "follower",
    ]);
    for node in [&unknown, &expired, &monitor] {
        streams(node);
    }
    assert!(leader.log().contains("was refused"), "the leader's log names them");
    leader.assert_no_panic();
}

#[test]
fn whom_a_node_follows_has_to_be_trusted_for_that() {
    let bed = Bed::new("impostor");
    let leader = bed.leader("leader").set("name", "\"alpha\"").set("tls", "\"on\"");
    let other = bed.leader("other").set("tls", "\"off\"").start();
    let alpha = key_of(&leader);
    let ready = |name: &str, upstream: u16, as_name: &str, role: &str| {
        let spec = bed.follower(name, upstream).set("tls", "\"on\"");
        trusts(&leader, name, &key_of(&spec), "follower");
        if !as_name.is_empty() {
            trusts(&spec, as_name, &alpha, role);
        }
        spec
    };
    let none = ready("none", leader.listen, "", "");
    let role = ready("role", leader.listen, "alpha", "follower");
    let name = ready("name", leader.listen, "omega", "leader");
    let plain = ready("plain", other.spec.listen, "alpha", "leader");
    let leader = leader.start();
    let [none, role, name, plain] = [none, role, name, plain].map(|s| s.start());
    refused(&none, "untrusted", &["'none' does not trust", &alpha, "--role leader"]);
    refused(&role, "not-allowed", &["as follower", "--role leader"]);
    refused(&name, "identity", &["'alpha'", "trusted as 'omega'"]);
    refused(&plain, "tls", &["plain TCP", "tls"]);
    let held: usize = [&none, &role, &name, &plain]
        .iter()
        .map(|n| fs::read_dir(n.data()).expect("list").filter(|e| e.is_ok()).count())
        .sum();
    assert_eq!(held, 0, "nothing was taken from any of them");
    trusts(&none.spec, "alpha", &alpha, "leader");
    streams(&none);
    // An upstream whose certificate is expired is refused by name, and warned of where it runs.
    let mut leader = leader;
    leader.stop();
    expire(&leader.spec);
    let own = done(&["id", "--state", text(&leader.spec.state)]);
    assert!(own.contains("EXPIRED: run `towline id --renew`"), "{own}");
    let leader = leader.spec.start();
    refused(&none, "expired", &["expired", "towline id --renew"]);
    let status = leader.status().expect("status");
    let warned = status.0["tls"]["warning"].as_str().unwrap_or_default().to_owned();
    assert!(warned.contains("is expired") && status.0["tls"]["days_left"].as_i64() < Some(0), "{warned}");
}

/// A CA in a file, and what it signs.
struct Authority(rcgen::Issuer<'static, rcgen::KeyPair>, PathBuf);

impl Authority {
    fn new(dir: &Path) -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("params");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let file = dir.join("ca.pem");
        fs::write(&file, params.self_signed(&key).expect("signed").pem()).expect("write");
        Self(rcgen::Issuer::new(params, key), file)
    }

    /// Gives a node a certificate under a name; what its configuration says of it.
    fn sign(&self, spec: Spec, name: &str, serial: u64) -> Spec {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("params");
        params.serial_number = Some(serial.into());
        params.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        let home = spec.state.parent().expect("home").to_owned();
        let (cert, secret) = (home.join("ca.crt"), home.join("ca.key"));
        fs::write(&cert, certificate.pem()).expect("write");
        fs::write(&secret, key.serialize_pem()).expect("write");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
        spec.set("tls_cert", &format!("{cert:?}"))
            .set("tls_key", &format!("{secret:?}"))
            .set("tls_ca", &format!("{:?}", self.1))
    }

    fn revoke(&self, serial: u64, file: &Path) {
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2054, 1, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: rcgen::date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        fs::write(file, params.signed_by(&self.0).expect("signed").pem().expect("pem")).expect("write");
    }
}

#[test]
fn a_ca_vouches_for_nodes_by_their_names_until_it_takes_that_back() {
    let bed = Bed::new("ca");
    let ca = Authority::new(&bed.path(""));
    let leader = ca.sign(bed.leader("leader").set("name", "\"alpha\""), "alpha", 1);
    let (good, bad) = (bed.follower("good", leader.listen), bed.follower("bad", leader.listen));
    let (good, bad) = (ca.sign(good, "good", 2), ca.sign(bad, "good", 3));
    let mut leader = leader.start();
    let (good, bad) = (good.start(), bad.start());
    refused(&bad, "identity", &["'bad'", "is for 'good'"]);
    streams(&good);
    fs::write(leader.data().join("a"), "1").expect("write");
    assert_equal_within(within(20), leader.data(), good.data());
    let list = bed.path("crl.pem");
    ca.revoke(2, &list);
    leader.reload("tls_crl", &format!("{list:?}")).expect("reload");
    refused(&good, "untrusted", &["revoked"]);
}

#[test]
fn peers_and_keys_change_while_streams_go_on() {
    let bed = Bed::new("trust-reload");
    let leader = bed.leader("leader").set("name", "\"alpha\"");
    let alpha = key_of(&leader);
    let follower = |name: &str| {
        let spec = bed.follower(name, leader.listen);
        trusts(&leader, name, &key_of(&spec), "follower");
        trusts(&spec, "alpha", &alpha, "leader");
        spec
    };
    let (a, b) = (follower("a"), follower("b"));
    let c = bed.follower("c", leader.listen);
    trusts(&c, "alpha", &alpha, "leader");
    let state = text(&leader.state).to_owned();
    let leader = leader.start();
    let [a, b, c] = [a, b, c].map(|s| s.start());
    [&a, &b].into_iter().for_each(streams);
    let since = |name: &str| entry(&leader, name)["connected"].as_i64().expect("connected");
    let (since_a, since_b) = (since("a"), since("b"));
    // One is added, the leader's certificate is renewed.
    refused(&c, "untrusted", &["'alpha' does not trust"]);
    trusts(&leader.spec, "c", &key_of(&c.spec), "follower");
    streams(&c);
    let file = fs::read(leader.spec.state.join("node.crt")).expect("read");
    done(&["id", "--renew", "--state", &state]);
    assert!(fs::read(leader.spec.state.join("node.crt")).expect("read") != file);
    done(&["reload", "--state", &state]);
    // What can't be read changes nothing, and is said.
    let peers = leader.spec.state.join("peers");
    let good = fs::read(&peers).expect("read");
    fs::write(&peers, "[[peer]]\nname = \"a\"\nfingerprint = \"what?\"\n").expect("write");
    let out = command(&["reload", "--state", &state]);
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && why.contains("peers") && why.contains("fingerprint"), "{why}");
    fs::write(leader.data().join("x"), "goes on").expect("write");
    for node in [&a, &b, &c] {
        assert_equal_within(within(20), leader.data(), node.data());
    }
    fs::write(&peers, good).expect("write");
    assert_eq!((since("a"), since("b")), (since_a, since_b), "no stream was dropped");
    // One is removed: its stream ends, the others' go on.
    done(&["trust", "--remove", "b", "--state", &state]);
    refused(&b, "untrusted", &["'alpha' does not trust"]);
    fs::write(leader.data().join("y"), "without b").expect("write");
    for node in [&a, &c] {
        assert_equal_within(within(20), leader.data(), node.data());
    }
    assert_eq!(since("a"), since_a);
    assert!(!b.data().join("y").exists());
    // Both ways work: now it stands in the configuration file, under the other key that the command does not know.
    let list = format!("[{{ name = \"b\", fingerprint = \"{}\", roles = [\"follower\"] }}]", key_of(&b.spec));
    let mut leader = leader;
    let answer = leader.reload("peer", &list).expect("reload");
    assert_eq!(answer["changed"], serde_json::json!(["peer"]), "{answer}");
    streams(&b);
    assert_eq!(entry(&leader, "a")["connected"].as_i64(), Some(since_a));
}

/// Starts a leader and a follower of it at an address that is not loopback, in a network of their own.
fn beyond_loopback(bed: &Bed, round: &str, flags: &str) -> (std::process::Child, PathBuf, PathBuf) {
    let home = bed.path(round);
    fs::create_dir_all(home.join("app")).expect("mkdir");
    let script = format!(
        "ip link set lo up && ip addr add 10.77.0.1/32 dev lo || exit 77\n\
         cd {home}\n\
         {program} leader --data app --state l --listen 10.77.0.1:7654 --name alpha {flags} >l.txt 2>&1 &\n\
         {program} follower --data copy --state f --leader 10.77.0.1:7654 --name beta {flags} >f.txt 2>&1 &\n\
         wait",
        home = text(&home),
        program = format_args!("setpriv --pdeathsig KILL {}", towline()),
    );
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "--kill-child", "--fork", "sh", "-c", &script]);
    let child = command.stdin(Stdio::null()).spawn().expect("unshare");
    (child, home.join("l"), home.join("f"))
}

fn status_of(state: &Path) -> Result<Value, String> {
    let out = command(&["status", "--json", "--state", text(state)]);
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    serde_json::from_slice(&out.stdout).map_err(|e| format!("{e}: {why}"))
}

#[test]
fn plain_tcp_leaves_the_machine_only_when_that_is_written_out() {
    if !is_root() {
        println!("skipped: needs root for a network of its own");
        return;
    }
    let bed = Bed::new("beyond");
    let upstream = |state: &Path, key: &str, want: &str| {
        until(within(20), &format!("upstream.{key} is {want}"), || {
            let status = status_of(state)?;
            let is = status["upstream"][key].to_string();
            if is == want { Ok(()) } else { Err(status.to_string()) }
        });
    };
    // Nobody is trusted yet, and nothing is written out: TLS it is.
    let (mut child, leader, follower) = beyond_loopback(&bed, "auto", "");
    upstream(&follower, "code", "\"untrusted\"");
    let key = |state: &Path| {
        let id: Value = serde_json::from_str(&done(&["id", "--json", "--state", text(state)])).expect("JSON");
        id["fingerprint"].as_str().expect("a fingerprint").to_owned()
    };
    done(&["trust", "beta", &key(&follower), "--state", text(&leader)]);
    done(&["trust", "alpha", &key(&leader), "--state", text(&follower)]);
    upstream(&follower, "state", "\"streaming\"");
    upstream(&follower, "tls", "true");
    let _ = child.kill();
    let _ = child.wait();
    let (mut child, _, follower) = beyond_loopback(&bed, "off", "--tls off");
    upstream(&follower, "state", "\"streaming\"");
    upstream(&follower, "tls", "false");
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends one byte of a good handshake a second to each, until they are all closed; how long that took.
fn drip(port: u16, count: usize) -> Duration {
    let start = Instant::now();
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7];
    let mut open: Vec<TcpStream> =
        (0..count).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    for stream in &open {
        stream.set_nonblocking(true).expect("nonblocking");
    }
    for byte in hello.into_iter().cycle() {
        open.retain_mut(|s| {
            let closed = match s.read(&mut [0; 64]) {
                Ok(n) => n == 0,
                Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
            };
            !closed && s.write_all(&[byte]).is_ok()
        });
        if open.is_empty() || start.elapsed() > within(60) {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    start.elapsed()
}

#[test]
fn strangers_at_the_door_cost_good_peers_nothing() {
    // The strangers need descriptors too, all in this process.
    let files = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(files).expect("getrlimit");
    nix::sys::resource::setrlimit(files, most.min(8192), most).expect("setrlimit");
    let bed = Bed::new("strangers");
    let leader = bed.leader("leader").set("name", "\"alpha\"");
    let alpha = key_of(&leader);
    let [good, late] = ["good", "late"].map(|name| {
        let spec = bed.follower(name, leader.listen);
        trusts(&leader, name, &key_of(&spec), "follower");
        trusts(&spec, "alpha", &alpha, "leader");
        spec
    });
    let mut leader = leader.start();
    let good = good.start();
    streams(&good);
    let since = entry(&leader, "good")["connected"].clone();
    let port = leader.spec.listen;
    let slow = std::thread::spawn(move || drip(port, 12));
    let silent: Vec<TcpStream> =
        (0..1000).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    assert!(silent.len() > 900, "{} connections", silent.len());
    let noise = std::thread::spawn(move || {
        for i in 0..soak_or(3000, 300) {
            let Ok(mut s) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let mut bytes: Vec<u8> =
                std::iter::repeat_with(|| fastrand::u8(..)).take(fastrand::usize(1..3000)).collect();
            if i % 2 == 0 {
                let head = [0x16, 3, fastrand::u8(..4), fastrand::u8(..), fastrand::u8(..)];
                bytes.splice(..bytes.len().min(5), head);
            }
            let _ = s.write_all(&bytes);
            let _ = s.set_read_timeout(Some(Duration::from_millis(2)));
            let _ = s.read(&mut [0; 512]);
        }
    });
    // Meanwhile the good ones are served, and one more comes.
    load::burst(&leader.data().join("app"), 1, 50);
    assert_equal_within(within(15), leader.data(), good.data());
    let late = late.start();
    streams(&late);
    load::burst(&leader.data().join("app"), 2, 50);
    for node in [&good, &late] {
        assert_equal_within(within(15), leader.data(), node.data());
    }
    let open = fs::read_dir(format!("/proc/{}/fd", leader.pid())).expect("fds").count();
    assert!(open < 300, "{open} descriptors are open");
    noise.join().expect("noise");
    // Whole handshakes have a deadline, however often a byte comes.
    let took = slow.join().expect("slow");
    assert!(took < within(25), "a byte a second kept a connection for {took:?}");
    for mut s in silent.into_iter().rev().take(5) {
        s.set_read_timeout(Some(within(20))).expect("timeout");
        let end = s.read(&mut [0; 64]);
        assert!(!matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "kept: {end:?}");
    }
    assert_eq!(entry(&leader, "good")["connected"], since, "its stream was never dropped");
    let lines = leader.log().lines().filter(|l| l.contains("connection closed")).count();
    assert!(lines < 20, "{lines} lines about strangers");
    let peak = leader.memory_kb("VmHWM");
    assert!(leader.ended().is_none() && peak < MEMORY_KB, "{peak} kB");
    leader.assert_no_panic();
}

#[test]
fn a_peer_that_the_configuration_contradicts_is_not_written_down() {
    let bed = Bed::new("trust-twice");
    let key = key_of(&bed.follower("other", 1));
    let spec = bed.leader("leader");
    let peer = format!("[{{ name = \"here\", fingerprint = \"{key}\" }}]");
    let mut leader = spec.set("peer", &peer).start();
    let state = text(&leader.spec.state).to_owned();
    let out = command(&["trust", "there", &key, "--state", &state]);
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && why.contains("nothing is changed"), "{why}");
    assert!(!done(&["trust", "--list", "--state", &state]).contains("there"));
    done(&["reload", "--state", &state]);
    leader.stop();
    // Without the daemon the file says the same.
    let file = bed.path("leader").join("towline.toml");
    let file = ["--config", text(&file), "--state", &state];
    let ask = |words: &[&str]| command(&[words, &file].concat());
    let out = ask(&["trust", "there", &key]);
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && why.contains("as 'here' and as 'there'"), "{why}");
    assert!(ask(&["trust", "more", &key_of(&bed.follower("more", 1))]).status.success());
    let list = String::from_utf8_lossy(&ask(&["trust", "--list"]).stdout).into_owned();
    let has = |l: &str, name: &str, end: &str| l.starts_with(name) && l.ends_with(end);
    let (of_file, told) = ("leader  (configuration)", "leader");
    assert!(
        list.lines().any(|l| has(l, "here ", of_file)) && list.lines().any(|l| has(l, "more ", told)),
        "{list}"
    );
    let json: Value = serde_json::from_slice(&ask(&["trust", "--list", "--json"]).stdout).expect("JSON");
    let from: Vec<_> = json["peers"].as_array().expect("a list").iter().map(|p| &p["from"]).collect();
    assert_eq!(from, ["command", "config"]);
    let still = String::from_utf8_lossy(&ask(&["trust", "--remove", "here"]).stdout).into_owned();
    assert!(still.contains("still a [[peer]] of the configuration file"), "{still}");
    // Where no node is, there is nothing to list.
    for (dir, words) in
        [("/nonexistent", "there is no state directory '/nonexistent'"), (file[1], "is no directory")]
    {
        for ask in [&["--list"][..], &["--remove", "x"]] {
            let out = command(&[&["trust", "--state", dir], ask].concat());
            let why = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.code() == Some(64) && why.contains(words), "{why}");
        }
    }
    leader.restart();
    until(within(20), "it is well", || {
        let status = leader.status()?;
        if status.health() == "ok" { Ok(()) } else { Err(status.0.to_string()) }
    });
}
