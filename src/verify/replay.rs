//! A check that restores: the backup becomes a directory in a scratch place, log and all, and what is there then is read and
//! compared with the tree that the log leads to. The digest of every commit on the way is compared by the replay itself.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;

use super::findings::{Class, Findings};
use super::member::{self, Role, Said};
use super::{Order, Outcome, presence};
use crate::catalog::Catalog;
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::record::Kind;
use crate::restore::{self, Target};
use crate::sys::Root;

/// Restores the backup in `dir` and compares.
///
/// # Errors
/// It can't be tried: there is no scratch place, or the backup ends on no exact cut.
pub(super) fn check(
    dir: &Path,
    manifest: &Manifest,
    order: &Order,
    findings: &Findings,
    outcome: &mut Outcome,
) -> Result<()> {
    if !manifest.exact {
        let text =
            "--replay: the end of this backup is no exact cut, so that it can't be restored without more log";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if let Some(base) = &manifest.base {
        let text = format!(
            "--replay: this backup stands on '{}': make one of them with `towline combine`, and name that",
            base.label
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let place = order.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("towline-verify-").tempdir_in(&place);
    let scratch = scratch.map_err(|e| Error::io("make a scratch directory in", &place, e))?;
    let (out, state) = (scratch.path().join("data"), scratch.path().join("state"));
    let restoring = restore::Order {
        from: restore::Origin::Path(dir.to_owned()),
        backup: None,
        bases: Vec::new(),
        logs: Vec::new(),
        target: Target::Lsn(manifest.end),
        out: out.clone(),
        line: restore::Line::Current,
        state: Some(state.clone()),
        node: None,
        delta: false,
        cloning: restore::Cloning::Auto,
        allow_gap: true,
    };
    let restored = restore::run(&restoring, &(Arc::new(|_| ()) as restore::Tell), &CancellationToken::new());
    if let Err(e) = restored {
        findings.add(Class::Replay, b"", format!("it can't be restored: {e}"));
        return Ok(());
    }
    let none = || Error::new(ErrorKind::Missing, "the restore left no catalog");
    let catalog = checkpoint::load_newest(&state.join("catalog"), manifest.system)?.ok_or_else(none)?;
    if catalog.lsn() != manifest.end {
        let text = format!("restored it is the tree as of {}, not of {}", catalog.lsn(), manifest.end);
        findings.add(Class::Replay, b"", text);
    }
    let root = Root::open(&out).map_err(|e| Error::io("open", &out, e))?;
    compare(&root, &catalog, findings, outcome);
    Ok(())
}

/// Compares what was restored, file by file.
fn compare(root: &Root, catalog: &Catalog, findings: &Findings, outcome: &mut Outcome) {
    let mut buf = Vec::new();
    for inode in catalog.inodes().filter(|i| i.kind == Kind::File && i.hashed) {
        let Some(path) = presence::paths(catalog, &inode).next() else { continue };
        if findings.stopped() {
            return;
        }
        let role = Role::Data(Some((catalog.system(), inode.id)));
        let seen = root
            .open_beneath(&path, OFlags::RDONLY, 0)
            .and_then(|fd| member::read(&path, role, inode.size, &mut std::fs::File::from(fd), &mut buf));
        match seen {
            Err(e) => findings.add(Class::Replay, &path, format!("restored it can't be read: {e}")),
            Ok(seen) if seen.len != inode.size => {
                let text = format!("restored it has {} bytes, in the tree {}", seen.len, inode.size);
                findings.add(Class::Replay, &path, text);
            }
            Ok(seen) => {
                outcome.bytes += seen.len;
                if inode.size > 0 && !matches!(seen.said, Said::Content(sum) if sum == inode.content) {
                    findings.add(Class::Replay, &path, "restored it has other content than the log leads to");
                }
            }
        }
    }
}
