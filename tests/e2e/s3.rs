//! The archive over the S3 protocol, with a server that is not towline's: `scripts/test.sh` puts moto there and names its
//! server in `TOWLINE_S3_SERVER`. Where nobody did these tests say so and do nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use towline::archive::{Address, Archive, Kept, Put, SegmentName};
use towline::error::ErrorKind;
use towline::position::{SegmentNo, SystemId, TimelineId};

use super::nightly::night;
use super::restore::{Restore, names, note, settle};
use crate::support::archive::{archive_until, archived_all};
use crate::support::backup::Backup;
use crate::support::bed::{Bed, free_port};
use crate::support::slot::{brisk, next_segment, oldest};
use crate::support::{Proxy, assert_equal, load, until, within};

/// What the program is told of the server by the environment.
fn environment(port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ACCESS_KEY_ID", "testing".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "of-no-use".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
    ]
}

/// A server with the bucket `towline`, ended with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(bed: &Bed) -> Option<Self> {
        let Some(program) = std::env::var_os("TOWLINE_S3_SERVER").map(PathBuf::from) else {
            println!("skipped: TOWLINE_S3_SERVER names no server of the S3 protocol");
            return None;
        };
        let port = free_port();
        let log = fs::File::create(bed.path("s3.log")).expect("create");
        let child = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(log.try_clone().expect("clone"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run '{}': {e}", program.display()));
        let server = Self { child, port };
        until(within(60), "the server has a bucket", || server.request("PUT", "/towline"));
        Some(server)
    }

    fn request(&self, method: &str, path: &str) -> Result<(), String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(|e| e.to_string())?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        if answer.contains(" 200 ") { Ok(()) } else { Err(answer) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_leader_archives_to_a_bucket_and_catches_up_after_the_network_was_gone() {
    let bed = Bed::new("s3");
    let Some(server) = Server::start(&bed) else { return };
    let proxy = Proxy::to(server.port);
    let mut spec = brisk(bed.leader("leader")).set("archive", "\"s3://towline/orders\"");
    for (key, value) in environment(proxy.port()) {
        spec = spec.env(key, &value);
    }
    let mut leader = spec.start();
    for _ in 0..3 {
        next_segment(&leader);
    }
    archived_all(&leader);
    // Nobody is there, and then requests end in the middle.
    proxy.refuse(true);
    proxy.cut();
    for _ in 0..3 {
        next_segment(&leader);
    }
    let failing =
        archive_until(&leader, "fails", |a| a["state"] == "failing" && a["waiting"].as_u64() > Some(0));
    assert_eq!((&failing["needs_help"], &failing["gaps"]), (&false.into(), &0.into()), "{failing}");
    let pending = u64::from_str_radix(failing["oldest_waiting"].as_str().unwrap(), 16).unwrap();
    assert!(oldest(&leader) <= pending, "what is not archived stays");
    leader.kill();
    proxy.calm();
    proxy.truncate(300);
    leader.restart();
    next_segment(&leader);
    archive_until(&leader, "fails still", |a| a["failed"].as_u64() > Some(0));
    proxy.calm();
    let end = archived_all(&leader);
    assert_eq!((&end["gaps"], &end["error"]), (&0.into(), &serde_json::Value::Null), "{end}");
    // Backups go there, too, and stand on each other there.
    for (label, base) in [("full", None), ("more", Some("s3://towline/orders#full"))] {
        fs::write(leader.data().join(label), vec![7; 70_000]).expect("write");
        let mut backup = Backup::new(leader.spec.listen, Path::new("s3://towline/orders"));
        backup = backup.args(["--label", label]).args(base.into_iter().flat_map(|b| ["--incremental", b]));
        for (key, value) in environment(server.port) {
            backup = backup.env(key, &value);
        }
        let out = backup.run();
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    }
    leader.stop();
    // The first line of each start is the harness's.
    let text = leader.log();
    let said = text.lines().filter(|l| !l.starts_with("--- start"));
    assert!(!said.collect::<String>().contains("of-no-use"), "secrets are not printed");
    let mut verify = Command::new(crate::support::node::towline());
    verify.args(["archive", "verify", "--json", "--archive", "s3://towline/orders"]);
    verify.envs(environment(server.port));
    let out = verify.output().expect("run towline");
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(out.status.success() && found["good"] == true, "{found}");
    assert_eq!(found["log"].as_array().map(Vec::len), Some(1), "no hole: {found}");
    let on = |i: usize| (&found["backups"][i]["label"], &found["backups"][i]["base"]);
    assert_eq!((on(0).0, on(1)), (&"full".into(), (&"more".into(), &"full".into())), "{found}");
    let notes = Command::new(crate::support::node::towline())
        .args(["archive", "prune", "--dry-run", "--keep-full", "1", "--archive", "s3://towline/orders"])
        .envs(environment(server.port))
        .output();
    let text = String::from_utf8_lossy(&notes.expect("run towline").stdout).into_owned();
    assert!(text.contains("keep backup more: stands on 'full'"), "{text}");
    assert_eq!(found["log"][0]["first"], "0000000000000001", "{found}");
    leader.assert_no_panic();
}

/// The rest is said by the library itself, in a process of its own that has the environment it needs.
#[test]
fn objects_of_any_size_are_made_once_listed_by_pages_and_read_in_pieces() {
    if std::env::var_os("TOWLINE_S3_CHILD").is_some() {
        return objects();
    }
    let bed = Bed::new("s3-objects");
    let Some(server) = Server::start(&bed) else { return };
    let name = "s3::objects_of_any_size_are_made_once_listed_by_pages_and_read_in_pieces";
    let mut child = Command::new(std::env::current_exe().expect("the test itself"));
    child.args([name, "--exact", "--nocapture"]).env("TOWLINE_S3_CHILD", "1").envs(environment(server.port));
    let out = child.output().expect("run");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

fn objects() {
    let address: Address = "s3://towline/a/b".parse().expect("an address");
    let (system, t) = (SystemId(7), TimelineId(1));
    assert_eq!(Archive::open(&address).expect_err("none").kind(), ErrorKind::Missing);
    let archive = Archive::open_or_create(&address, system).expect("create");
    assert_eq!(Archive::open_or_create(&address, system).expect("open").id(), archive.id());
    assert_eq!(
        Archive::open_or_create(&address, SystemId(8)).expect_err("foreign").kind(),
        ErrorKind::Refused
    );
    assert_eq!(archive.put("backup/x/catalog", b"12").expect("put"), Put::Made);
    assert_eq!(archive.put("backup/x/catalog", b"12").expect("put"), Put::There);
    assert_eq!(archive.put("backup/x/catalog", b"13").expect_err("other").kind(), ErrorKind::Refused);
    // Several at once: one makes it, all have it.
    let made: Vec<Kept> = std::thread::scope(|s| {
        let put = || archive.put_segment(t, SegmentNo(1), b"the same").expect("put");
        let all: Vec<_> = (0..4).map(|_| s.spawn(put)).collect();
        all.into_iter().map(|h| h.join().expect("join")).collect()
    });
    assert!(made.contains(&Kept::Made) && !made.contains(&Kept::Mended), "{made:?}");
    assert_eq!(
        archive.put_segment(t, SegmentNo(1), b"not it").expect_err("other").kind(),
        ErrorKind::Refused
    );
    // One that was written in half.
    let half = SegmentName::of(t, SegmentNo(2), b"segment").to_string();
    archive.put(&half, b"seg").expect("put");
    assert_eq!(archive.get_segment(t, SegmentNo(2)).expect_err("damaged").kind(), ErrorKind::Corrupt);
    assert_eq!(archive.put_segment(t, SegmentNo(2), b"segment").expect("put"), Kept::Mended);
    assert_eq!(archive.get_segment(t, SegmentNo(2)).expect("get").as_deref(), Some(&b"segment"[..]));
    // More than a page.
    for n in 10..1_115_u64 {
        archive
            .put(&SegmentName::of(t, SegmentNo(n), &n.to_le_bytes()).to_string(), &n.to_le_bytes())
            .expect("put");
    }
    let mut seen = Vec::new();
    let each = &mut |name: SegmentName, _: u64| {
        seen.push(name.segment.0);
        Ok(true)
    };
    archive.segments(t, SegmentNo(11), each).expect("list");
    assert_eq!(seen, (11..1_115).collect::<Vec<_>>());
    // In parts; what is dropped before its end never was.
    let block: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let mut dropped = archive.upload("backup/x/pack-00001").expect("begin");
    (0..20).for_each(|_| dropped.write(&block).expect("write"));
    drop(dropped);
    assert!(archive.reader("backup/x/pack-00001").expect("look").is_none());
    let mut upload = archive.upload("backup/x/pack-00001").expect("begin");
    (0..40).for_each(|_| upload.write(&block).expect("write"));
    upload.finish().expect("finish");
    assert_eq!(archive.upload("backup/x/pack-00001").err().map(|e| e.kind()), Some(ErrorKind::Refused));
    let mut whole = Vec::new();
    archive
        .reader("backup/x/pack-00001")
        .expect("look")
        .expect("there")
        .read_to_end(&mut whole)
        .expect("read");
    assert!(whole.len() == 40 << 20 && whole.chunks(1 << 20).all(|c| c == block));
    archive.delete("backup/x/pack-00001").expect("delete");
    archive.delete("backup/x/pack-00001").expect("delete");
    // It is let go of on whatever thread.
    let shared = Arc::new(archive);
    let last = Arc::clone(&shared);
    drop(shared);
    tokio::runtime::Runtime::new().expect("runtime").block_on(async move { drop(last) });
}

#[test]
fn a_bucket_gives_the_directory_back() {
    let bed = Bed::new("s3-restore");
    let Some(server) = Server::start(&bed) else { return };
    let mut spec = brisk(bed.leader("leader")).set("archive", "\"s3://towline/back\"");
    for (key, value) in environment(server.port) {
        spec = spec.env(key, &value);
    }
    let leader = spec.start();
    load::burst(&leader.data().join("app"), 1, 80);
    settle(&leader);
    let mut backup =
        Backup::new(leader.spec.listen, Path::new("s3://towline/back")).args(["--label", "full"]);
    for (key, value) in environment(server.port) {
        backup = backup.env(key, &value);
    }
    let out = backup.run();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    load::burst(&leader.data().join("app"), 2, 80);
    let later = note(&bed, &leader, "later");
    for _ in 0..2 {
        next_segment(&leader);
    }
    archived_all(&leader);
    let out = bed.path("out");
    let restore = || {
        let mut restore = Restore::new(Path::new("s3://towline/back"), "later", &out);
        for (key, value) in environment(server.port) {
            restore = restore.env(key, &value);
        }
        restore
    };
    let killed = restore().env("TOWLINE_FAILPOINTS", "restore::fetch=kill@2").run();
    assert!(!killed.status.success(), "restore::fetch was never passed");
    let said = restore().good();
    assert!(said.contains(&later.lsn), "{said}");
    assert_equal(&later.copy, &out);
    assert!(names(&bed.path("")).iter().all(|n| !n.contains("restoring")));
}

#[test]
fn a_chain_in_a_bucket_gives_a_state_between_its_members() {
    let bed = Bed::new("s3-chain");
    let Some(server) = Server::start(&bed) else { return };
    let url = Path::new("s3://towline/chain");
    let mut spec = brisk(bed.leader("leader")).set("archive", "\"s3://towline/chain\"");
    for (key, value) in environment(server.port) {
        spec = spec.env(key, &value);
    }
    let leader = spec.start();
    let mut between = Vec::new();
    for (n, label) in ["full", "mon", "tue"].into_iter().enumerate() {
        load::burst(&leader.data().join("app"), n as u64, 60);
        fs::write(leader.data().join(label), vec![7; 90_000]).expect("write");
        settle(&leader);
        let base = n.checked_sub(1).map(|n| format!("s3://towline/chain#{}", ["full", "mon"][n]));
        let words = base.iter().flat_map(|b| ["--incremental", b]).chain(["--label", label]);
        let mut backup = Backup::new(leader.spec.listen, url).args(words);
        for (key, value) in environment(server.port) {
            backup = backup.env(key, &value);
        }
        let out = backup.run();
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
        load::burst(&leader.data().join("app"), 10 + n as u64, 60);
        between.push(note(&bed, &leader, &format!("after-{label}")));
    }
    (0..2).for_each(|_| next_segment(&leader));
    archived_all(&leader);
    let (entry, out) = (&between[1], bed.path("out"));
    let mut restore = Restore::new(url, &entry.name, &out).args(&["--json"]);
    for (key, value) in environment(server.port) {
        restore = restore.env(key, &value);
    }
    let plan: serde_json::Value = serde_json::from_str(&restore.good()).expect("JSON");
    assert_eq!((&plan["label"], &plan["chain"]), (&"mon".into(), &serde_json::json!(["full"])), "{plan}");
    assert_equal(&entry.copy, &out);
    assert!(names(&bed.path("")).iter().all(|n| !n.contains("restoring")));
}

#[test]
fn nights_into_a_bucket_are_verified_there_and_the_oldest_goes() {
    let bed = Bed::new("s3-nights");
    let Some(server) = Server::start(&bed) else { return };
    let url = "s3://towline/nights";
    let mut spec = brisk(bed.leader("leader")).set("archive", &format!("\"{url}\""));
    for (key, value) in environment(server.port) {
        spec = spec.env(key, &value);
    }
    let leader = spec.start();
    let program = PathBuf::from(crate::support::node::towline());
    let towline = |words: &[&str]| {
        let out = Command::new(&program).args(words).envs(environment(server.port)).output();
        let out = out.expect("run towline");
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let labels = || {
        let (_, text) = towline(&["archive", "list", "--json", "--archive", url]);
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let of = list["backups"].as_array().expect("a list").iter();
        (of.map(|b| b["label"].to_string()).collect::<Vec<_>>(), list["log"][0]["first"].to_string())
    };
    let run = || {
        let mut script = night(&program, Path::new(url));
        script.arg(format!("127.0.0.1:{}", leader.spec.listen)).env("KEEP", "1").env("TMPDIR", bed.path(""));
        let out = script.envs(environment(server.port)).output().expect("run");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    fs::write(leader.data().join("first"), vec![7; 90_000]).expect("write");
    assert_eq!(run(), (Some(0), String::new()), "silent when all is well");
    let first = labels();
    (0..3).for_each(|_| next_segment(&leader));
    archived_all(&leader);
    // Labels are times to the second.
    let second = until(within(20), "another second", || match run() {
        (Some(0), said) => Ok(said),
        other => Err(format!("{other:?}")),
    });
    let last = labels();
    assert_eq!((second.as_str(), first.0.len(), last.0.len()), ("", 1, 1));
    assert!(first.0 != last.0 && first.1 < last.1, "one went, and log with it: {first:?} {last:?}");
    assert_eq!(towline(&["archive", "verify", "--archive", url]).0, Some(0));
    let found = towline(&["verify", url]);
    assert!(found.0 == Some(0) && found.1.contains(": good"), "{found:?}");
}
