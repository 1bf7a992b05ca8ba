//! A directory that holds something is made equal, through the real sender.

use super::*;
use crate::error::ErrorKind;
use crate::state::LogFate;

fn order() -> Order {
    Order { log: LogFate::Kept, guard: Some((50, 10)), tangled: false, adopt: true, damaged: Vec::new() }
}

impl Follower {
    async fn resync(&self, upstream: &str, order: Order) -> Result<Report> {
        let context = FillContext { order: Some(order), ..self.context(upstream) };
        let report = run(context, CancellationToken::new()).await;
        report.map(|()| self.report.lock().unwrap().clone())
    }

    fn catalog(&self) -> Catalog {
        checkpoint::load_newest(&self.state.catalog(), SYSTEM).unwrap().unwrap()
    }

    /// As a node that was filled: its log is replayed to the end.
    async fn filled(source: Arc<Still>) -> (Self, Leader) {
        let leader = lead(source).await;
        let f = Self::new();
        f.fill(&leader.address).await.unwrap();
        f.state.change(|c| c.fill = FillState::Done).unwrap();
        (f, leader)
    }
}

/// Copies a tree as `cp -a` does.
fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(done.success());
}

/// Changes contents, names, kinds and attributes.
fn disturb(dir: &Path) {
    let at = |p: &str| dir.join(p);
    let large = std::fs::File::options().write(true).open(at("a/b/c/large")).unwrap();
    large.write_all_at(b"another", 77 * BLOCK).unwrap();
    std::fs::rename(at("a/b/more"), at("moved")).unwrap();
    std::fs::rename(at("a/b/c"), at("c elsewhere")).unwrap();
    std::fs::remove_file(at("empty")).unwrap();
    std::fs::create_dir(at("empty")).unwrap();
    std::fs::write(at("empty/stranger"), "s").unwrap();
    std::fs::write(at("zeros"), vec![7; 50_000]).unwrap();
    std::fs::set_permissions(at("a/block"), std::fs::Permissions::from_mode(0o611)).unwrap();
    let sparse = std::fs::File::options().write(true).open(at("sparse")).unwrap();
    sparse.write_all_at(&noise(40_000, 9), 10 << 20).unwrap();
    sparse.set_len((96 << 20) + 5).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_holds_is_made_equal_and_only_what_differs_moves() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let (f, _leader) = Follower::filled(Arc::new(still(dir.path()))).await;
    disturb(&f.data());
    let source = Arc::new(still(dir.path()));
    let leader = lead(source.clone()).await;
    let report = f.resync(&leader.address, order()).await.unwrap();
    assert_same(dir.path(), &f.data());
    assert_eq!(f.fill_state(), FillState::Filled { start: Lsn::FIRST, end: Lsn(Lsn::FIRST.0 + 500) });
    assert_eq!(f.catalog().digest(), source.catalog.read().unwrap().digest());
    assert!(f.catalog().inodes().all(|i| i.seen.is_some()));
    assert!(!f.data().join(".towline-stage").exists());
    // One block of the large file; the files that were moved are found again.
    assert!(report.received_bytes <= 2 * BLOCK, "{report:?}");
    assert!(report.zeroed_bytes >= 40_000 && report.completed == 1, "{report:?}");
    // Everything is known now: the next one reads nothing and touches nothing.
    f.state.change(|c| c.fill = FillState::Done).unwrap();
    let ctime = |p: &str| std::fs::metadata(f.data().join(p)).unwrap().ctime_nsec();
    let before = [ctime("a/block"), ctime("a/b/c/large"), ctime("a")];
    let report = f.resync(&leader.address, order()).await.unwrap();
    assert_eq!((report.read_bytes, report.received_bytes, report.removed), (0, 0, 0), "{report:?}");
    assert_eq!([ctime("a/block"), ctime("a/b/c/large"), ctime("a")], before);
    assert_eq!(f.catalog().digest(), source.catalog.read().unwrap().digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_seeded_is_adopted_by_its_paths_alone() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let source = Arc::new(still(dir.path()));
    let leader = lead(source.clone()).await;
    let f = Follower::new();
    copy(dir.path(), &f.data());
    disturb(&f.data());
    let e = f.fill(&leader.address).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Refused && e.to_string().contains("--adopt"), "{e}");
    let report = f.resync(&leader.address, Order { guard: None, ..order() }).await.unwrap();
    assert_same(dir.path(), &f.data());
    assert_eq!(f.catalog().digest(), source.catalog.read().unwrap().digest());
    assert_eq!(f.state.control().unwrap().system, SYSTEM);
    // What was renamed here is another file to one who knows paths only.
    assert!(report.received_bytes < (3 << 20) + (512 << 10) && report.read_bytes > 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_masses_is_held_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("one"), "1").unwrap();
    let leader = lead(Arc::new(still(dir.path()))).await;
    let f = Follower::new();
    for n in 0..20 {
        std::fs::write(f.data().join(format!("f{n}")), "x").unwrap();
    }
    let before = tree(&f.data());
    let e = f.resync(&leader.address, order()).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Held && e.to_string().contains("20 of the 20 names"), "{e}");
    assert!(tree(&f.data()) == before && f.fill_state() == FillState::None);
    f.resync(&leader.address, Order { guard: None, ..order() }).await.unwrap();
    assert_same(dir.path(), &f.data());
}

#[tokio::test(flavor = "multi_thread")]
async fn links_from_outside_are_not_written_through() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("f"), noise(100_000, 1)).unwrap();
    std::fs::write(outside.path().join("f"), noise(100_000, 2)).unwrap();
    let leader = lead(Arc::new(still(dir.path()))).await;
    let f = Follower::new();
    std::fs::hard_link(outside.path().join("f"), f.data().join("f")).unwrap();
    f.resync(&leader.address, order()).await.unwrap();
    assert_same(dir.path(), &f.data());
    assert_eq!(std::fs::read(outside.path().join("f")).unwrap(), noise(100_000, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_read_whatever_its_times_say_and_named() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let source = Arc::new(still(dir.path()));
    let (f, leader) = Follower::filled(source.clone()).await;
    let catalog = f.catalog();
    let id = catalog.resolve(b"a/b/c/large").unwrap();
    let path = f.data().join("a/b/c/large");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"rot", 5 * BLOCK).unwrap();
    // As if the disk had done it: the times are what they were.
    let mut seen = catalog.get(id).unwrap().seen.unwrap();
    let attrs = catalog.get(id).unwrap().attrs;
    let mtime = std::time::UNIX_EPOCH + Duration::new(attrs.mtime.sec as u64, attrs.mtime.nsec);
    file.set_modified(mtime).unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    seen.ctime = Time { sec: meta.ctime(), nsec: meta.ctime_nsec() as u32 };
    let mut catalog = catalog;
    catalog.set_seen(id, Some(seen));
    checkpoint::prepare_catalog(&f.state.catalog(), &catalog).unwrap().finish().unwrap();
    // Nobody sees it by stat.
    let report = f.resync(&leader.address, order()).await.unwrap();
    assert_eq!((report.read_bytes, report.received_bytes), (0, 0));
    f.state.change(|c| c.fill = FillState::Done).unwrap();
    crate::apply::damaged(f.state.path(), &[id]).unwrap();
    let report = f.resync(&leader.address, Order { damaged: vec![id], ..order() }).await.unwrap();
    assert_same(dir.path(), &f.data());
    assert_eq!((report.repaired_files, report.repaired_bytes), (1, BLOCK), "{report:?}");
    assert_eq!(report.repaired, ["a/b/c/large"]);
    assert!(report.read_bytes <= 4 << 20, "only that file is read: {report:?}");
    assert!(crate::apply::doubtful(f.state.path()).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_edited_and_nobody_had_noted_is_named_too_and_what_is_only_behind_is_not() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    std::fs::write(dir.path().join("newer"), noise(50_000, 1)).unwrap();
    let (f, leader) = Follower::filled(Arc::new(still(dir.path()))).await;
    drop(leader);
    let file = std::fs::File::options().write(true).open(f.data().join("a/b/c/large")).unwrap();
    file.write_all_at(b"edit", 5 * BLOCK).unwrap();
    std::fs::write(dir.path().join("newer"), noise(50_000, 2)).unwrap();
    let leader = lead(Arc::new(still(dir.path()))).await;
    let report = f.resync(&leader.address, order()).await.unwrap();
    assert_same(dir.path(), &f.data());
    assert_eq!((report.differing, report.repaired), (2, vec!["a/b/c/large".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_that_breaks_off_goes_on_and_believes_only_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    for n in 0..40 {
        std::fs::write(dir.path().join(format!("n{n}")), noise(300_000, n)).unwrap();
    }
    let source = Arc::new(still(dir.path()));
    let leader = lead(source.clone()).await;
    let f = Follower::new();
    copy(dir.path(), &f.data());
    for n in 0..40 {
        let file = std::fs::File::options().write(true).open(f.data().join(format!("n{n}"))).unwrap();
        file.write_all_at(&noise(100_000, 1000 + n), 0).unwrap();
    }
    disturb(&f.data());
    let bytes = Arc::new(Mutex::new(600_000));
    let through = cutter(leader.address.clone(), Arc::clone(&bytes)).await;
    let report = f.resync(&through, Order { guard: None, ..order() }).await.unwrap();
    assert_same(dir.path(), &f.data());
    assert_eq!(f.catalog().digest(), source.catalog.read().unwrap().digest());
    // No connection lets all of it through; what the last one asked for was the rest.
    assert!(report.completed == 1 && report.received_bytes < 600_000, "{report:?}");
    assert_eq!(std::fs::read_dir(f.state.fill()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_meanwhile_at_the_leader_is_reported_for_the_log() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path());
    let source = Arc::new(still(dir.path()));
    let (f, leader) = Follower::filled(source.clone()).await;
    disturb(&f.data());
    // Since the catalog: one file shrank, one block is another, one file is gone.
    std::fs::write(dir.path().join("zeros"), "short").unwrap();
    let large = std::fs::File::options().write(true).open(dir.path().join("a/b/c/large")).unwrap();
    large.write_all_at(b"newer", 77 * BLOCK).unwrap();
    f.resync(&leader.address, order()).await.unwrap();
    let mismatches = source.mismatches.lock().unwrap();
    let id = source.catalog.read().unwrap().resolve(b"a/b/c/large").unwrap();
    assert_eq!(mismatches.get(&id), Some(&vec![77]));
    drop(mismatches);
    let got = std::fs::read(f.data().join("a/b/c/large")).unwrap();
    assert_eq!(got, std::fs::read(dir.path().join("a/b/c/large")).unwrap());
    assert_eq!(std::fs::metadata(f.data().join("zeros")).unwrap().len(), 100_000);
}
