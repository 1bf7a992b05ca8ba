use super::*;
use serde_json::{Value, json};

const SECOND: i64 = 1_000_000_000;

fn limits() -> Limits {
    Limits {
        lag: Bounds { warning: Some(30.0), critical: Some(60.0) },
        lag_bytes: Bounds { warning: None, critical: Some(1 << 20) },
        exact_age: Bounds { warning: Some(300.0), critical: Some(3600.0) },
        free: Bounds { warning: Some(Free::Percent(5.0)), critical: Some(Free::Percent(2.0)) },
        archive_age: Bounds { warning: Some(300.0), critical: Some(1800.0) },
        ..Limits::default()
    }
}

fn room(percent: f64) -> Value {
    json!({"free_bytes": 1000, "size_bytes": 2000, "free_percent": percent})
}

fn leader() -> Value {
    json!({"role": "leader", "name": "a", "state": "running", "health": "ok", "now": 1000 * SECOND, "error": null,
        "capture": {"gaps": 3, "gap_open": false}, "cuts": {"newest": "exact", "exact_age": 0.0, "waiting_bytes": 0},
        "disk": {"state": room(50.0), "data": room(50.0)},
        "followers": [follower_row("b", "streaming", 0, 0.0), follower_row("c", "away", 9 << 20, 900.0)]})
}

fn follower_row(name: &str, state: &str, bytes: u64, seconds: f64) -> Value {
    json!({"name": name, "state": state, "lag": {"bytes": bytes, "seconds": seconds}})
}

fn follower() -> Value {
    json!({"role": "follower", "name": "b", "state": "running", "health": "ok", "now": 1000 * SECOND, "error": null,
        "apply": {"paused": false, "skipped_privilege": {"owner": 0}, "local_edits": []}, "lag": {"bytes": 0, "seconds": 0.0},
        "upstream": {"address": "h:1", "state": "streaming", "heard": 999 * SECOND, "leader_silent": null},
        "disk": {"state": room(50.0), "data": room(50.0)}, "followers": []})
}

fn with(mut v: Value, path: &str, value: Value) -> Value {
    let (parent, key) = path.rsplit_once('/').unwrap();
    v.pointer_mut(parent).unwrap()[key] = value;
    v
}

fn all(v: Value, changes: &[(&str, Value)]) -> Value {
    changes.iter().fold(v, |v, (path, value)| with(v, path, value.clone()))
}

/// Severity, the words of the problems, and the line.
fn judged(v: &Value, limits: &Limits) -> (Severity, String, String) {
    let verdict = verdict(View(v), limits).unwrap();
    let words: Vec<&str> = verdict.problems.iter().map(|p| p.word).collect();
    (verdict.severity, words.join(" "), verdict.line())
}

#[test]
fn every_health_of_both_roles_has_its_exit_code() {
    use Severity::{Critical, Ok, Warning};
    let error = |kind: &str| json!({"kind": kind, "message": "m", "remedy": "r"});
    let health = |v: Value, state: &str, health: &str, e: Value| {
        all(v, &[("/state", json!(state)), ("/health", json!(health)), ("/error", e)])
    };
    let none = Value::Null;
    let mut table = Vec::new();
    for base in [leader(), follower()] {
        table.push((health(base.clone(), "running", "ok", none.clone()), Ok, ""));
        for state in [
            "starting",
            "filling",
            "recovering",
            "healing",
            "promoting",
            "handing-over",
            "rewinding",
            "stopping",
        ] {
            table.push((health(base.clone(), state, "starting", none.clone()), Warning, "starting"));
        }
        for kind in ["corrupt", "missing", "diverged", "refused", "config", "held"] {
            table.push((health(base.clone(), kind, "help", error(kind)), Critical, "help"));
        }
        table.push((health(base.clone(), "stalled", "retrying", error("disk-full")), Critical, "failed"));
    }
    table.push((health(leader(), "fenced", "fenced", error("refused")), Critical, "fenced"));
    table.push((health(leader(), "vetoed", "vetoed", error("refused")), Critical, "vetoed"));
    let apart = json!([{"name": "b", "address": null, "timeline": 2, "line": "0a", "since": 1}]);
    table.push((
        with(health(leader(), "running", "split", none.clone()), "/rivals", apart),
        Critical,
        "split",
    ));
    table.push((health(follower(), "running", "behind", none.clone()), Ok, ""));
    table.push((health(follower(), "running", "paused", none.clone()), Warning, "paused"));
    table.push((health(follower(), "running", "cut-off", none), Warning, "cut-off"));
    for (v, severity, words) in table {
        let (s, w, line) = judged(&v, &limits());
        assert_eq!((s, w.as_str()), (severity, words), "{line}");
        assert!(
            line.starts_with(&format!("TOWLINE {} - ", severity.word())) && line.contains(" | help="),
            "{line}"
        );
        assert_eq!(line.contains("NEEDS HELP"), words == "help", "{line}");
        assert_eq!(line.contains("help=1;;0"), words == "help", "{line}");
        assert!(!line.contains('\n') && line.matches('|').count() == 1, "{line}");
    }
}

#[test]
fn limits_are_a_warning_first_and_critical_then() {
    use Severity::{Critical, Ok, Warning};
    let l = |s: f64, b: u64| json!({"seconds": s, "bytes": b});
    let cut = |heard: i64| vec![("/health", json!("cut-off")), ("/upstream/heard", json!(heard * SECOND))];
    let table: Vec<(Value, Severity, &str)> = vec![
        (with(follower(), "/lag", l(30.0, 0)), Ok, ""),
        (with(follower(), "/lag", l(30.1, 0)), Warning, "lag"),
        (with(follower(), "/lag", l(60.1, 0)), Critical, "lag"),
        (
            all(
                follower(),
                &[("/apply/delay", json!(60.0)), ("/lag", l(89.0, 0)), ("/health", json!("delayed"))],
            ),
            Ok,
            "",
        ),
        (all(follower(), &[("/apply/delay", json!(60.0)), ("/lag", l(91.0, 0))]), Warning, "lag"),
        (with(follower(), "/lag", l(1.0, (1 << 20) + 1)), Critical, "lag-bytes"),
        (all(follower(), &cut(990)), Warning, "cut-off"),
        (all(follower(), &cut(900)), Critical, "cut-off"),
        (with(leader(), "/followers", json!([follower_row("b", "catchup", 0, 31.0)])), Warning, "lag"),
        (all(leader(), &[("/followers/0/delay", json!(60.0)), ("/followers/0/lag", l(89.0, 0))]), Ok, ""),
        (
            all(leader(), &[("/followers/0/delay", json!(60.0)), ("/followers/0/lag", l(91.0, 0))]),
            Warning,
            "lag",
        ),
        (
            with(leader(), "/followers", json!([follower_row("b", "catchup", 2 << 20, 1.0)])),
            Critical,
            "lag-bytes",
        ),
        (with(leader(), "/cuts", json!({"newest": "file", "exact_age": 299.0})), Ok, ""),
        (with(leader(), "/cuts", json!({"newest": "file", "exact_age": 301.0})), Warning, "exact-age"),
        (with(leader(), "/cuts", json!({"newest": "file", "exact_age": 9999.0})), Critical, "exact-age"),
        (with(leader(), "/disk/data", room(4.0)), Warning, "disk"),
        (with(leader(), "/disk/state", room(1.9)), Critical, "disk"),
        (with(leader(), "/disk/state", Value::Null), Ok, ""),
        (with(follower(), "/resync", json!({"lost_logs": 1})), Warning, "lost-logs"),
        (with(leader(), "/capture/gap_open", json!(true)), Warning, "gap"),
        (with(follower(), "/apply/skipped_privilege", json!({"owner": 2})), Warning, "skipped"),
        (with(follower(), "/apply/local_edits_standing", json!(1)), Warning, "edits"),
        (with(follower(), "/apply/inexact", json!("no cut")), Warning, "inexact"),
        (with(leader(), "/slots", json!([{"name": "c", "state": "lost"}])), Warning, "slot-lost"),
    ];
    for (v, severity, words) in table {
        let (s, w, line) = judged(&v, &limits());
        assert_eq!((s, w.as_str()), (severity, words), "{line}");
    }
    // What is known is accepted by its word, and by no other.
    let skipped = with(follower(), "/apply/skipped_privilege", json!({"owner": 2}));
    let accept = |word: &str| Limits { accept: vec![word.to_owned()], ..limits() };
    assert_eq!(judged(&skipped, &accept("skipped")).0, Ok);
    assert_eq!(judged(&skipped, &accept("gap")).0, Warning);
}

#[test]
fn what_is_asked_for_and_not_known_is_critical_and_said_plainly() {
    use Severity::{Critical, Ok, Warning};
    let ask = |edit: fn(&mut Limits)| {
        let mut l = limits();
        edit(&mut l);
        l
    };
    let backup = ask(|l| l.backup_age = Bounds { warning: None, critical: Some(3600.0) });
    let (s, w, line) = judged(&leader(), &backup);
    assert!(s == Critical && w == "backup" && line.contains("NO BASE BACKUP is known"), "{line}");
    let known = with(leader(), "/backup", json!({"newest_time": 10 * SECOND}));
    assert_eq!(judged(&known, &backup).0, Ok);
    let sync = ask(|l| l.sync_state = true);
    let (s, _, line) = judged(&leader(), &sync);
    assert!(s == Critical && line.contains("no synchronous followers are asked for"), "{line}");
    let missing = json!({"policy": "ANY 1 (b)", "satisfied": false, "present": 0, "required": 1, "missing_since": 990 * SECOND});
    let missing = with(leader(), "/sync", missing);
    assert_eq!((judged(&missing, &sync).0, judged(&missing, &limits()).0), (Critical, Warning));
    assert!(judged(&missing, &sync).2.contains("QUORUM MISSING for 10.0 s: 0 of 1"));
    let frozen = with(missing, "/sync/frozen_since", json!(995 * SECOND));
    let (_, words, line) = judged(&frozen, &limits());
    assert!(
        words.starts_with("frozen") && line.contains("or let it run with `towline sync release`"),
        "{line}"
    );
    let two = ask(|l| l.followers = Bounds { warning: Some(2), critical: Some(1) });
    let (s, w, line) = judged(&leader(), &two);
    assert!(s == Warning && w == "followers" && line.contains("not there: c"), "{line}");
    assert!(line.contains(" followers=1;2:;1:"), "{line}");
    let tls = with(leader(), "/tls", json!({"days_left": 5, "warning": "it ends soon"}));
    let days = ask(|l| l.certificate_days = Bounds { warning: Some(30.0), critical: Some(7.0) });
    assert_eq!((judged(&tls, &days).0, judged(&tls, &limits()).0), (Critical, Warning));
    assert_eq!(judged(&tls, &days).1, "certificate", "once");
    let expired = with(leader(), "/tls", json!({"days_left": -1, "warning": "it is expired; renew it"}));
    let line = judged(&expired, &days).2;
    assert!(line.contains("it is expired; renew it") && !line.contains("-1 more"), "{line}");
    let slots = with(leader(), "/slots", json!([{"name": "c", "state": "extended", "retained_bytes": 4096}]));
    let most = ask(|l| l.slot_bytes = Bounds { warning: Some(1), critical: Some(1 << 20) });
    assert_eq!((judged(&slots, &most).0, judged(&slots, &limits()).0), (Warning, Ok));
}

#[test]
fn a_follower_that_is_away_for_long_is_a_problem_though_nobody_counts_followers() {
    use Severity::{Critical, Ok, Warning};
    let limits = Limits { away: Bounds { warning: Some(60.0), critical: Some(600.0) }, ..limits() };
    let at = |changes: &[(&str, Value)]| {
        let slot = json!({"name": "c", "kind": "follower", "origin": "own", "state": "reserved", "active": false,
            "inactive_since": 900 * SECOND});
        judged(&all(with(leader(), "/slots", json!([slot])), changes), &limits)
    };
    let (severity, word, line) = at(&[]);
    assert!(
        severity == Warning && word == "away" && line.contains("'c' is away for 100.0 s: start it"),
        "{line}"
    );
    assert!(line.contains("`towline slot drop c`"), "{line}");
    assert_eq!(at(&[("/slots/0/inactive_since", json!(300 * SECOND))]).0, Critical);
    for (path, value) in [
        ("/slots/0/inactive_since", json!(950 * SECOND)),
        ("/slots/0/inactive_since", Value::Null),
        ("/slots/0/kind", json!("manual")),
        ("/slots/0/origin", json!("mirrored")),
    ] {
        assert_eq!(at(&[(path, value)]).0, Ok, "{path}");
    }
    assert_eq!(at(&[("/slots/0/state", json!("lost"))]).1, "slot-lost", "once");
    assert_eq!(at(&[("/slots/0/kind", json!("copy"))]).1, "away");
}

#[test]
fn a_follower_that_has_diverged_is_named_by_its_leader() {
    let (severity, word, line) = judged(&with(leader(), "/followers/0/halted", json!(true)), &limits());
    assert!(severity == Severity::Warning && word == "follower-help", "{line}");
    assert!(line.contains("changed by others: b; see `towline status` there"), "{line}");
}

#[test]
fn every_notice_may_be_accepted_and_nothing_that_is_wrong_with_the_node_itself() {
    assert!(NOTICES.iter().all(|n| ACCEPTABLE.contains(n)));
    assert!(["paused", "away", "lost-logs"].iter().all(|n| ACCEPTABLE.contains(n)));
    assert!(["help", "failed", "frozen", "lag", ""].iter().all(|n| !ACCEPTABLE.contains(n)));
}

#[test]
fn the_line_is_one_that_plugins_may_print() {
    let (_, _, line) = judged(&leader(), &limits());
    let want = "TOWLINE OK - leader 'a' running, 1 of 2 followers attached | help=0;;0 lag=0.0s;30;60 lag_bytes=0B;;1048576 \
        followers=1 exact_age=0.0s;300;3600 gaps=3c free_state=50.0%;5:;2: free_data=50.0%;5:;2:";
    assert_eq!(line, want);
    let odd = all(
        follower(),
        &[
            ("/health", json!("help")),
            ("/error", json!({"kind": "refused", "message": "a|b\nc\u{1b}", "remedy": "r"})),
            ("/lag", Value::Null),
        ],
    );
    let (_, _, line) = judged(&odd, &limits());
    assert!(line.contains("refused: a/b c ; r") && line.contains("lag=U;30;60"), "{line}");
    assert!(verdict(View(&json!({"status": "up"})), &limits()).is_err());
}

#[test]
fn log_that_waits_for_the_archive_is_a_problem_by_its_age_and_gaps_are_said() {
    let at = |changes: &[(&str, Value)]| {
        let archive = json!({"address": "s3://b", "state": "idle", "waiting": 0, "waiting_bytes": 0, "gaps": 0, "error": null});
        judged(&all(with(leader(), "/archive", archive), changes), &limits())
    };
    assert_eq!(at(&[]).0, Severity::Ok);
    let waits =
        |s: i64| [("/archive/waiting", json!(2)), ("/archive/waiting_since", json!((1000 - s) * SECOND))];
    assert_eq!(at(&waits(200)).1, "");
    assert_eq!((at(&waits(400)).0, at(&waits(400)).1.as_str()), (Severity::Warning, "archive"));
    let old = [
        ("/now", json!(9000 * SECOND)),
        ("/archive/failing_since", json!(7000 * SECOND)),
        ("/archive/error", json!("no room")),
    ];
    let (severity, words, line) = at(&old);
    assert_eq!((severity, words.as_str()), (Severity::Critical, "archive archive-failing"));
    assert!(line.contains("ARCHIVING FAILS for 33m") && line.contains("no room"), "{line}");
    let gap = json!([{"first": "3", "last": "4", "from": "0/3000000", "to": "0/5000000"}]);
    let (severity, words, line) = at(&[("/archive/gaps", json!(1)), ("/archive/gap", gap)]);
    assert_eq!((severity, words.as_str()), (Severity::Warning, "archive-gap"));
    assert!(line.contains("0/3000000 to 0/5000000") && line.contains("archive_gaps=1c"), "{line}");
}
