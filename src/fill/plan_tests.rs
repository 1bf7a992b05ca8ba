use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::position::SystemId;
use crate::record::{Attrs, Record};

const STAGE_NAME: &[u8] = b".stage";

fn name(rng: &mut fastrand::Rng) -> Vec<u8> {
    vec![b'a' + rng.u8(0..5)]
}

fn dirs(c: &Catalog) -> Vec<FileId> {
    let mut out: Vec<FileId> = c.inodes().filter(|i| i.kind == Kind::Dir).map(|i| i.id).collect();
    out.sort_unstable();
    out
}

/// Random changes of a tree, each by records as a leader writes them.
fn change(c: &mut Catalog, rng: &mut fastrand::Rng, steps: usize) {
    for _ in 0..steps {
        let all = dirs(c);
        let parent = all[rng.usize(..all.len())];
        let name = name(rng);
        let entry = c.lookup(parent, &name);
        match (rng.u8(0..6), entry) {
            (0..=2, None) => {
                let kind = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo][rng.usize(..4)];
                let id = c.next_id();
                let target: &[u8] = if kind == Kind::Symlink { &[b't', rng.u8(b'a'..=b'b')] } else { b"" };
                c.fold(&Record::Create { id, kind, attrs: Attrs::default(), rdev: 0, target }).unwrap();
                c.fold(&Record::Link { parent, name: &name, id }).unwrap();
            }
            (3, Some(id)) if c.get(id).is_some_and(|i| i.kind != Kind::Dir || c.child_count(id) == 0) => {
                c.fold(&Record::Unlink { parent, name: &name }).unwrap();
            }
            (4 | 5, Some(id)) => {
                // Another name: a hard link of a file, a rename of a directory, and of a file sometimes.
                let to = all[rng.usize(..all.len())];
                let new = [name[0], b'x'];
                let dir = c.get(id).is_some_and(|i| i.kind == Kind::Dir);
                let below = |mut d: FileId| loop {
                    if d == id {
                        return true;
                    }
                    match c.names(d).next() {
                        Some((up, _)) => d = up,
                        None => return false,
                    }
                };
                if c.lookup(to, &new).is_none() && !(dir && below(to)) {
                    if dir || rng.bool() {
                        c.fold(&Record::Unlink { parent, name: &name }).unwrap();
                    }
                    c.fold(&Record::Link { parent: to, name: &new, id }).unwrap();
                }
            }
            _ => {}
        }
        c.settle().unwrap();
    }
}

/// The catalog as a directory, of which some inodes are known, with some strangers and some things parked.
fn local(c: &Catalog, rng: &mut fastrand::Rng, known: u8) -> Local {
    let node = |kind, known, target: &[u8]| LocalNode {
        kind,
        known,
        rdev: 0,
        target: target.into(),
        names: 1,
        shared: false,
        pinned: false,
    };
    let two = vec![node(Kind::Dir, None, b""), node(Kind::Dir, None, b"")];
    let mut l = Local { nodes: two, entries: Vec::new() };
    let (mut at, mut queue, mut next) = (HashMap::from([(FileId::ROOT, ROOT)]), vec![FileId::ROOT], 0);
    while let Some(&dir) = queue.get(next) {
        next += 1;
        for (name, id) in c.children(dir) {
            let inode = c.get(id).unwrap();
            let n = *at.entry(id).or_insert_with(|| {
                let is = (rng.u8(0..100) < known).then_some(id);
                l.nodes.push(node(inode.kind, is, inode.target.unwrap_or_default()));
                l.nodes.len() - 1
            });
            l.nodes[n].names = inode.nlink;
            // Some of it was parked by a plan that was broken off.
            let parked = l.nodes[n].known.is_some() && inode.nlink == 1 && rng.u8(0..8) == 0;
            let (parent, name) = if parked {
                (STAGE, parked_name(id).into_bytes().into())
            } else {
                (at[&dir], Box::from(name))
            };
            l.entries.push(LocalEntry { parent, name, node: n });
            if inode.kind == Kind::Dir {
                queue.push(id);
            }
        }
    }
    for i in 0..rng.usize(0..4) {
        let parent = *at.values().filter(|n| l.nodes[**n].kind == Kind::Dir).min().unwrap();
        l.nodes.push(node([Kind::File, Kind::Dir][i % 2], None, b""));
        let entry = LocalEntry { parent, name: vec![b'z', b'0' + i as u8].into(), node: l.nodes.len() - 1 };
        l.entries.push(entry);
    }
    l
}

/// A directory in memory: entries by directory and name.
struct World {
    kinds: Vec<Kind>,
    entries: BTreeMap<(usize, Vec<u8>), usize>,
    is: HashMap<usize, FileId>,
}

impl World {
    fn at(&self, path: &[u8]) -> (usize, Vec<u8>) {
        let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        let last = names.pop().unwrap();
        let mut dir = ROOT;
        for n in names {
            dir = if dir == ROOT && n == STAGE_NAME { STAGE } else { self.entries[&(dir, n.to_vec())] };
            assert_eq!(self.kinds[dir], Kind::Dir);
        }
        (dir, last.to_vec())
    }

    fn put(&mut self, at: (usize, Vec<u8>), node: usize) {
        assert!(self.entries.insert(at.clone(), node).is_none(), "{at:?} is taken");
    }

    fn run(&mut self, c: &Catalog, action: &Action) {
        let place = |(dir, name): &Place| path_of(c, (*dir, name));
        let stage = |id| [STAGE_NAME, b"/", parked_name(id).as_bytes()].concat();
        match action {
            Action::Unshare { .. } => unreachable!(),
            Action::Park { path, id } => {
                let node = self.entries.remove(&self.at(path)).unwrap();
                self.put(self.at(&stage(*id)), node);
            }
            Action::Remove { path, dir } => {
                let node = self.entries.remove(&self.at(path)).unwrap();
                assert_eq!(self.kinds[node] == Kind::Dir, *dir);
                assert!(!dir || !self.entries.keys().any(|(d, _)| *d == node), "not empty");
            }
            Action::Unpark { id, at } => {
                let node = self.entries.remove(&self.at(&stage(*id))).unwrap();
                assert_eq!(self.is[&node], *id);
                self.put(self.at(&place(at)), node);
            }
            Action::MakeDir { id, at } | Action::Make { id, at } => {
                self.kinds.push(c.get(*id).unwrap().kind);
                let node = self.kinds.len() - 1;
                self.is.insert(node, *id);
                self.put(self.at(&place(at)), node);
            }
            Action::Link { id, from, at } => {
                let node = self.entries[&self.at(&place(from))];
                assert_eq!(self.is[&node], *id);
                self.put(self.at(&place(at)), node);
            }
        }
    }

    fn tree(&self) -> BTreeMap<Vec<u8>, FileId> {
        let (mut out, mut todo) = (BTreeMap::new(), vec![(ROOT, Vec::new())]);
        while let Some((dir, path)) = todo.pop() {
            for ((d, name), node) in &self.entries {
                if *d == dir {
                    let path = if path.is_empty() { name.clone() } else { [&path[..], b"/", name].concat() };
                    out.insert(path.clone(), self.is[node]);
                    if self.kinds[*node] == Kind::Dir {
                        todo.push((*node, path));
                    }
                }
            }
        }
        out
    }
}

fn tree(c: &Catalog) -> BTreeMap<Vec<u8>, FileId> {
    let all = c.ids().flat_map(|id| c.names(id).map(move |at| (path_of(c, at), id)).collect::<Vec<_>>());
    all.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn after_the_plan_a_directory_is_the_tree(seed in any::<u64>(), before in 0usize..60, since in 0usize..40, known in 0u8..=100) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut c = Catalog::new(SystemId(1), Attrs::default());
        change(&mut c, &mut rng, before);
        let there = local(&c, &mut rng, known);
        change(&mut c, &mut rng, since);
        let plan = plan(&c, &there, STAGE_NAME);
        let mut world = World {
            kinds: there.nodes.iter().map(|n| n.kind).collect(),
            entries: there.entries.iter().map(|e| ((e.parent, e.name.to_vec()), e.node)).collect(),
            is: plan.claims.iter().map(|(id, node)| (*node, *id)).collect(),
        };
        for (done, action) in plan.actions.iter().enumerate() {
            world.run(&c, action);
            // Broken off anywhere, a new look makes a plan again.
            prop_assert!(done < 1000);
        }
        prop_assert_eq!(world.tree(), tree(&c));
        prop_assert!(!world.entries.keys().any(|(d, _)| *d == STAGE), "something is left in the staging directory");
        // What was known and is still wanted was not made anew.
        for node in &there.nodes {
            if let Some(id) = node.known.filter(|id| c.contains(*id)) {
                prop_assert!(plan.claims.contains_key(&id));
            }
        }
    }
}

#[test]
fn an_equal_directory_needs_nothing_and_a_foreign_one_loses_all() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut c = Catalog::new(SystemId(1), Attrs::default());
    change(&mut c, &mut rng, 50);
    let mut there = local(&c, &mut rng, 0);
    there.entries.retain(|e| !e.name.starts_with(b"z"));
    let same = plan(&c, &there, STAGE_NAME);
    assert!(same.actions.is_empty() && same.removed == 0, "{:?}", same.actions);
    let empty = Catalog::new(SystemId(1), Attrs::default());
    let all = plan(&empty, &there, STAGE_NAME);
    assert_eq!((all.removed, all.names), (there.entries.len() as u64, there.entries.len() as u64));
    // What is left alone keeps its directory, and that is said.
    let dir = there.entries.iter().find(|e| there.nodes[e.node].kind == Kind::Dir).unwrap().clone();
    there.nodes[dir.node].pinned = true;
    assert_eq!(plan(&empty, &there, STAGE_NAME).entangled.len(), 1);
    assert!(plan(&c, &there, STAGE_NAME).entangled.is_empty());
}

#[test]
fn what_others_share_is_copied_before_it_is_written() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut c = Catalog::new(SystemId(1), Attrs::default());
    c.fold(&Record::Create {
        id: FileId(2),
        kind: Kind::File,
        attrs: Attrs::default(),
        rdev: 0,
        target: b"",
    })
    .unwrap();
    c.fold(&Record::Link { parent: FileId::ROOT, name: b"f", id: FileId(2) }).unwrap();
    c.settle().unwrap();
    let mut there = local(&c, &mut rng, 0);
    there.entries.retain(|e| *e.name == *b"f");
    there.nodes[2].shared = true;
    assert_eq!(plan(&c, &there, STAGE_NAME).actions[0], Action::Unshare { path: b"f".to_vec() });
    there.nodes[2].known = Some(FileId(2));
    assert!(!plan(&c, &there, STAGE_NAME).actions.iter().any(|a| matches!(a, Action::Unshare { .. })));
    assert_eq!(parked_id(parked_name(FileId(77)).as_bytes()), Some(FileId(77)));
    assert_eq!(parked_id(b"1"), None);
}
