//! What is in a directory that is to be made equal to a tree.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use super::plan::{Local, LocalEntry, LocalNode, ROOT, STAGE, parked_id};
use crate::catalog::Matcher;
use crate::error::{Error, Result};
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, Root, STAGE_DIR, Stat};

/// Tells which file of the tree an inode is, if the node knew it before.
pub(super) type Known<'a> = &'a dyn Fn(&Stat) -> Option<FileId>;

/// The names that are there, and what each inode is. Of the staging directory there may be none.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) local: Local,
    pub(super) stats: Vec<Option<Stat>>,
}

struct Scan<'a> {
    root: &'a Root,
    excluded: &'a Matcher,
    known: Known<'a>,
    out: Scanned,
    /// Inodes with more than one name.
    linked: HashMap<(u64, u64), usize>,
    /// Directories to be listed, with their paths.
    todo: Vec<(usize, Vec<u8>)>,
    device: u64,
    mount: u64,
}

/// Lists everything beneath the root but what is excluded, and what lies on other file systems.
///
/// # Errors
/// When a directory can't be listed.
pub(super) fn scan(root: &Root, excluded: &Matcher, known: Known<'_>) -> Result<Scanned> {
    let top = sys::stat_fd(root.fd()).map_err(|e| Error::io("stat", root.path(), e))?;
    let out = Scanned { local: Local::default(), stats: Vec::new() };
    let (device, mount) = (top.local.dev, top.mount);
    let mut scan =
        Scan { root, excluded, known, out, linked: HashMap::new(), todo: Vec::new(), device, mount };
    let dir = |kind| LocalNode {
        kind,
        known: None,
        rdev: 0,
        target: Box::default(),
        names: 1,
        shared: false,
        pinned: false,
    };
    scan.out.local.nodes.extend([dir(Kind::Dir), dir(Kind::Dir)]);
    scan.out.stats.extend([Some(top), None]);
    scan.todo.push((ROOT, Vec::new()));
    let mut next = 0;
    while let Some((dir, path)) = scan.todo.get_mut(next).map(|(d, p)| (*d, std::mem::take(p))) {
        next += 1;
        scan.list(dir, &path)?;
    }
    let Scan { mut out, .. } = scan;
    for (node, stat) in out.local.nodes.iter_mut().zip(&out.stats) {
        node.shared = node.kind == Kind::File && stat.is_some_and(|s| s.nlink > node.names);
    }
    Ok(out)
}

impl Scan<'_> {
    fn list(&mut self, dir: usize, path: &[u8]) -> Result<()> {
        let fd = self.root.open_dir(path).map_err(|e| Error::io("list", self.root.join(path), e))?;
        let mut names = Vec::new();
        sys::list_dir(&fd, |name, _, _| names.push(name.to_owned()))
            .map_err(|e| Error::io("list", self.root.join(path), e))?;
        for name in names {
            let name = name.to_bytes();
            let below = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let failed = |e| Error::io("look at", self.root.join(&below), e);
            let Some(stat) = sys::stat_at(&fd, name).map_err(failed)? else { continue };
            if dir == ROOT && name == STAGE_DIR {
                if stat.kind == Kind::Dir {
                    self.out.stats[STAGE] = Some(stat);
                    self.todo.push((STAGE, below));
                }
                continue;
            }
            let elsewhere = stat.local.dev != self.device || stat.mount != self.mount;
            if elsewhere || dir != STAGE && self.excluded.matches(&below) {
                self.out.local.nodes[dir].pinned = true;
                continue;
            }
            let node = self.node(&fd, dir, name, &stat).map_err(failed)?;
            self.out.local.entries.push(LocalEntry { parent: dir, name: name.into(), node });
            if stat.kind == Kind::Dir {
                self.todo.push((node, below));
            }
        }
        Ok(())
    }

    fn node(&mut self, fd: &OwnedFd, dir: usize, name: &[u8], stat: &Stat) -> std::io::Result<usize> {
        let many = stat.kind != Kind::Dir && stat.nlink > 1;
        if many && let Some(&node) = self.linked.get(&(stat.local.dev, stat.local.ino)) {
            self.out.local.nodes[node].names += 1;
            return Ok(node);
        }
        let target = if stat.kind == Kind::Symlink { sys::read_link_at(fd, name)? } else { Vec::new() };
        let parked = if dir == STAGE { parked_id(name) } else { None };
        self.out.local.nodes.push(LocalNode {
            kind: stat.kind,
            known: parked.or_else(|| (self.known)(stat)),
            rdev: stat.rdev,
            target: target.into(),
            names: 1,
            shared: false,
            pinned: false,
        });
        self.out.stats.push(Some(*stat));
        let node = self.out.local.nodes.len() - 1;
        if many {
            self.linked.insert((stat.local.dev, stat.local.ino), node);
        }
        Ok(node)
    }
}
