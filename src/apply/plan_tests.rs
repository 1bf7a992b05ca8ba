//! Random trees, planned from one to the other, executed on a model and on a real directory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags};

use super::*;

/// A tree: directories and files as slots. Files may have several names.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tree {
    slots: BTreeMap<Slot, FileId>,
}

/// Ids up to this are directories, the others files.
const DIRS: u64 = 12;

fn is_dir(id: FileId) -> bool {
    id.0 <= DIRS
}

impl Tree {
    fn parent(&self, dir: FileId) -> Option<FileId> {
        self.slots.iter().find(|(_, id)| **id == dir).map(|(s, _)| s.dir)
    }

    fn within(&self, inner: FileId, outer: FileId) -> bool {
        let mut at = inner;
        loop {
            if at == outer {
                return true;
            }
            match self.parent(at) {
                Some(p) => at = p,
                None => return false,
            }
        }
    }

    /// From random numbers: each directory under an earlier one of a random order, files with one to three names.
    fn random(order: &[u64], picks: &[(u64, u8, u8)]) -> Self {
        let mut tree = Self::default();
        let mut placed = vec![FileId::ROOT];
        for (&id, pick) in order.iter().zip(picks) {
            if pick.2 == 0 {
                continue;
            }
            let dir = placed[pick.0 as usize % placed.len()];
            let slot = Slot::new(dir, &[b'a' + pick.1 % 6]);
            if tree.slots.contains_key(&slot)
                || (is_dir(FileId(id)) && tree.slots.values().any(|i| i.0 == id))
            {
                continue;
            }
            tree.slots.insert(slot, FileId(id));
            if is_dir(FileId(id)) {
                placed.push(FileId(id));
            }
        }
        tree
    }

    fn live(&self) -> BTreeSet<FileId> {
        self.slots.values().copied().collect()
    }

    /// One step with the kernel's rules.
    fn run(&mut self, op: &Op) {
        match op {
            Op::Move { id, from, to, over } => {
                assert_eq!(self.slots.remove(from), Some(*id), "{op:?}");
                let old = self.slots.insert(to.clone(), *id);
                assert_eq!(old, *over, "{op:?}");
                if let Some(old) = old {
                    assert!(!is_dir(old) && !is_dir(*id) && old != *id, "{op:?}");
                }
                assert!(!is_dir(*id) || !self.loops(*id), "{op:?}");
            }
            Op::Exchange { a, at_a, b, at_b } => {
                assert!(!(is_dir(*at_a) && self.within(b.dir, *at_a)), "{op:?}");
                assert!(!(is_dir(*at_b) && self.within(a.dir, *at_b)), "{op:?}");
                assert_eq!(self.slots.insert(a.clone(), *at_b), Some(*at_a), "{op:?}");
                assert_eq!(self.slots.insert(b.clone(), *at_a), Some(*at_b), "{op:?}");
            }
            Op::Link { id, from, to } => {
                assert!(!is_dir(*id), "{op:?}");
                assert_eq!(self.slots.get(from), Some(id), "{op:?}");
                assert_eq!(self.slots.insert(to.clone(), *id), None, "{op:?}");
            }
            Op::Unlink { id, slot } => {
                assert!(!is_dir(*id), "{op:?}");
                assert_eq!(self.slots.remove(slot), Some(*id), "{op:?}");
            }
            Op::Discard { id, slot } => {
                assert_eq!(slot.dir, STAGE, "{op:?}");
                assert_eq!(self.slots.remove(slot), Some(*id), "{op:?}");
                self.drop_below(*id);
            }
        }
    }

    fn loops(&self, dir: FileId) -> bool {
        self.parent(dir).is_some_and(|p| self.within(p, dir))
    }

    fn drop_below(&mut self, dir: FileId) {
        let below: Vec<_> =
            self.slots.iter().filter(|(s, _)| s.dir == dir).map(|(s, i)| (s.clone(), *i)).collect();
        for (slot, id) in below {
            self.slots.remove(&slot);
            if is_dir(id) {
                self.drop_below(id);
            }
        }
    }

    fn path(&self, slot: &Slot) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let mut parts = vec![slot.name.clone()];
        let mut at = slot.dir;
        while at != FileId::ROOT {
            if at == STAGE {
                parts.push(b"stage"[..].into());
                break;
            }
            let (s, _) =
                self.slots.iter().find(|(_, id)| **id == at).expect("the directory stands somewhere");
            parts.push(s.name.clone());
            at = s.dir;
        }
        parts.iter().rev().map(|p| std::ffi::OsStr::from_bytes(p)).collect()
    }
}

/// The world as both trees have it.
struct Both<'a> {
    a: &'a Tree,
    changed: &'a BTreeSet<Slot>,
}

impl World for Both<'_> {
    fn is_dir(&self, id: FileId) -> bool {
        is_dir(id)
    }
    fn parent(&self, dir: FileId) -> Option<FileId> {
        self.a.slots.iter().find(|(s, id)| **id == dir && !self.changed.contains(*s)).map(|(s, _)| s.dir)
    }
    fn unchanged_name(&self, id: FileId) -> Option<Slot> {
        self.a.slots.iter().find(|(s, i)| **i == id && !self.changed.contains(*s)).map(|(s, _)| s.clone())
    }
}

/// The tree before with new things staged, and the changes; slots below a dropped directory are not mentioned.
fn changes(a: &Tree, b: &Tree) -> (Tree, Vec<Change>) {
    let mut start = a.clone();
    for id in b.live().difference(&a.live()) {
        start.slots.insert(Slot::new(STAGE, format!("new.{}", id.0).as_bytes()), *id);
    }
    let live = b.live();
    let slots: BTreeSet<Slot> = start.slots.keys().chain(b.slots.keys()).cloned().collect();
    let mut out = Vec::new();
    for slot in slots {
        let (have, want) = (start.slots.get(&slot).copied(), b.slots.get(&slot).copied());
        let below_dropped = slot.dir != FileId::ROOT && slot.dir != STAGE && !live.contains(&slot.dir);
        let needed = have.is_some_and(|id| live.contains(&id));
        if have != want && (!below_dropped || needed) {
            out.push(Change { slot, have, want });
        }
    }
    (start, out)
}

fn planned(a: &Tree, b: &Tree) -> (Tree, Vec<Change>, Vec<Op>) {
    let (start, changes) = changes(a, b);
    let changed: BTreeSet<Slot> = changes.iter().map(|c| c.slot.clone()).collect();
    let ops = plan(&changes, "p", &Both { a: &start, changed: &changed })
        .expect("two trees have a way between them");
    (start, changes, ops)
}

fn check(a: &Tree, b: &Tree) -> usize {
    let (start, changes, ops) = planned(a, b);
    let kept: HashMap<Slot, (FileId, FileId)> = changes
        .iter()
        .filter_map(|c| {
            Some((c.slot.clone(), (c.have.filter(|i| !is_dir(*i))?, c.want.filter(|i| !is_dir(*i))?)))
        })
        .collect();
    let mut now = start;
    for op in &ops {
        now.run(op);
        for (slot, (old, new)) in &kept {
            let is = now.slots.get(slot);
            assert!(is == Some(old) || is == Some(new), "{slot:?} is {is:?} after {op:?} of {ops:?}");
        }
    }
    assert_eq!(&now, b, "{ops:?}");
    ops.len()
}

/// The same on a directory of the real file system.
fn check_real(a: &Tree, b: &Tree) {
    let (start, _, ops) = planned(a, b);
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    std::fs::create_dir(root.join("stage")).unwrap();
    build(&start, root);
    let mut now = start;
    for op in &ops {
        match op {
            Op::Move { from, to, .. } => {
                std::fs::rename(root.join(now.path(from)), root.join(now.path(to))).unwrap()
            }
            Op::Exchange { a, b, .. } => rustix::fs::renameat_with(
                CWD,
                root.join(now.path(a)),
                CWD,
                root.join(now.path(b)),
                RenameFlags::EXCHANGE,
            )
            .unwrap(),
            Op::Link { from, to, .. } => {
                std::fs::hard_link(root.join(now.path(from)), root.join(now.path(to))).unwrap()
            }
            Op::Unlink { slot, .. } => std::fs::remove_file(root.join(now.path(slot))).unwrap(),
            Op::Discard { slot, id } if is_dir(*id) => {
                std::fs::remove_dir_all(root.join(now.path(slot))).unwrap()
            }
            Op::Discard { slot, .. } => std::fs::remove_file(root.join(now.path(slot))).unwrap(),
        }
        now.run(op);
    }
    std::fs::remove_dir(root.join("stage")).unwrap();
    let mut found = 0;
    for (slot, id) in &b.slots {
        let path = root.join(b.path(slot));
        if is_dir(*id) {
            assert!(path.is_dir());
        } else {
            assert_eq!(std::fs::read_to_string(path).unwrap(), id.to_string());
        }
        found += 1;
    }
    assert_eq!(walkdir::WalkDir::new(root).min_depth(1).into_iter().count(), found);
}

fn build(tree: &Tree, root: &std::path::Path) {
    let mut first: HashMap<FileId, PathBuf> = HashMap::new();
    let mut slots: Vec<_> = tree.slots.iter().map(|(s, id)| (tree.path(s), *id)).collect();
    slots.sort();
    for (path, id) in slots {
        let path = root.join(path);
        if is_dir(id) {
            std::fs::create_dir(&path).unwrap();
        } else if let Some(from) = first.get(&id) {
            std::fs::hard_link(from, &path).unwrap();
        } else {
            std::fs::write(&path, id.to_string()).unwrap();
            first.insert(id, path);
        }
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let ids: Vec<u64> = (2..=DIRS).chain(DIRS + 1..DIRS + 10).chain(DIRS + 1..DIRS + 6).collect();
    let n = ids.len();
    (Just(ids).prop_shuffle(), proptest::collection::vec((0u64..100, 0u8..6, 0u8..5), n))
        .prop_map(|(order, picks)| Tree::random(&order, &picks))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_plan_leads_from_any_tree_to_any_other(a in tree(), b in tree()) {
        check(&a, &b);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_plan_runs_on_a_real_directory(a in tree(), b in tree()) {
        check_real(&a, &b);
    }
}

fn slots(list: &[(u64, &str, u64)]) -> Tree {
    Tree { slots: list.iter().map(|(d, n, id)| (Slot::new(FileId(*d), n.as_bytes()), FileId(*id))).collect() }
}

#[test]
fn usual_changes_take_the_fewest_steps() {
    let root = FileId::ROOT.0;
    // A file replaced by rename; a directory moved; two directories swapped; two files swapped.
    assert_eq!(check(&slots(&[(root, "f", 20)]), &slots(&[(root, "f", 21)])), 1);
    assert_eq!(check(&slots(&[(root, "f", 20), (root, "d", 2)]), &slots(&[(2, "f", 20), (root, "d", 2)])), 1);
    assert_eq!(
        check(&slots(&[(root, "a", 2), (root, "b", 3)]), &slots(&[(root, "a", 3), (root, "b", 2)])),
        1
    );
    assert_eq!(
        check(&slots(&[(root, "a", 20), (root, "b", 21)]), &slots(&[(root, "a", 21), (root, "b", 20)])),
        1
    );
    // A log rotated: a.1 goes, a becomes a.1, a new a.
    let before = slots(&[(root, "a", 20), (root, "a.1", 21)]);
    let after = slots(&[(root, "a", 22), (root, "a.1", 20)]);
    assert!(check(&before, &after) <= 4);
}

#[test]
fn ancestry_may_be_turned_around() {
    let root = FileId::ROOT.0;
    // a/b/c becomes c/b/a.
    let before = slots(&[(root, "a", 2), (2, "b", 3), (3, "c", 4), (4, "f", 20)]);
    let after = slots(&[(root, "c", 4), (4, "b", 3), (3, "a", 2), (2, "f", 20)]);
    check(&before, &after);
    check_real(&before, &after);
    // A directory becomes a file of the same name and its child lives on; and back.
    let dir = slots(&[(root, "x", 2), (2, "f", 20), (2, "g", 22)]);
    let file = slots(&[(root, "x", 20)]);
    check(&dir, &file);
    check(&file, &dir);
    check_real(&dir, &file);
    check_real(&file, &dir);
}

#[test]
fn a_long_rotation_of_directories_is_linear() {
    let n = 2000_u64;
    let name = |i: u64| format!("{i:05}");
    let before: Vec<(u64, String, u64)> = (0..n).map(|i| (1, name(i), 2 + i)).collect();
    let mut after: Vec<(u64, String, u64)> = (0..n).map(|i| (1, name(i + 1), 2 + i)).collect();
    after[n as usize - 1].1 = name(0);
    struct AllDirs;
    impl World for AllDirs {
        fn is_dir(&self, _: FileId) -> bool {
            true
        }
        fn parent(&self, _: FileId) -> Option<FileId> {
            None
        }
        fn unchanged_name(&self, _: FileId) -> Option<Slot> {
            None
        }
    }
    let mut changes = Vec::new();
    for (d, name, id) in &before {
        let want = after.iter().find(|(_, n, _)| n == name).map(|(_, _, id)| FileId(*id));
        changes.push(Change { slot: Slot::new(FileId(*d), name.as_bytes()), have: Some(FileId(*id)), want });
    }
    let ops = plan(&changes, "p", &AllDirs).unwrap();
    assert_eq!(ops.len(), n as usize + 1);
}

#[test]
fn contradictions_are_named() {
    struct Flat;
    impl World for Flat {
        fn is_dir(&self, id: FileId) -> bool {
            is_dir(id)
        }
        fn parent(&self, _: FileId) -> Option<FileId> {
            None
        }
        fn unchanged_name(&self, _: FileId) -> Option<Slot> {
            None
        }
    }
    let change = |name: &str, have: Option<u64>, want: Option<u64>| Change {
        slot: Slot::new(FileId::ROOT, name.as_bytes()),
        have: have.map(FileId),
        want: want.map(FileId),
    };
    assert_eq!(plan(&[change("f", None, Some(30))], "p", &Flat), Err(PlanError::Nowhere(FileId(30))));
    assert_eq!(plan(&[change("d", None, Some(3))], "p", &Flat), Err(PlanError::Nowhere(FileId(3))));
    let twice = [change("d", None, Some(3)), change("e", None, Some(3))];
    assert_eq!(plan(&twice, "p", &Flat), Err(PlanError::TwoNames(FileId(3))));
    let inside = [
        change("d", Some(3), None),
        Change { slot: Slot::new(FileId(3), b"x"), have: None, want: Some(FileId(3)) },
    ];
    assert_eq!(plan(&inside, "p", &Flat), Err(PlanError::Loop(FileId(3))));
}
