//! SHA-256 of the files of a backup. Most were summed as they were written; what the log has changed since is read again, on
//! two threads, while each block is compared with what it has to be.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::Progress;
use super::source::stopped;
use crate::catalog::{Catalog, Inode, block_hashes, blocks_of};
use crate::error::{Error, ErrorKind, Result};
use crate::fill::Sums;
use crate::manifest::{File, Sha};
use crate::position::FileId;
use crate::record::{BLOCK, Kind};
use crate::sys::{self, Root};

/// Threads that read and sum.
const THREADS: usize = 2;
/// Bytes read at once: whole blocks.
const PIECE: usize = 16 * BLOCK as usize;

/// The sum of every regular file of the tree below `root`, some of which are known: one element for each of its names, ordered by
/// path.
///
/// # Errors
/// A file that is not what the catalog says, by name, or why one can't be read.
pub(super) fn files(
    (root, known): (&Root, &Sums),
    catalog: &Catalog,
    stop: &AtomicBool,
    progress: &Progress,
) -> Result<Vec<File>> {
    let ids: Vec<FileId> =
        catalog.inodes().filter(|i| i.kind == Kind::File && i.nlink > 0).map(|i| i.id).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done = Mutex::new(Vec::with_capacity(ids.len()));
    let work = || -> Result<()> {
        let (mut own, mut buf) = (Vec::new(), vec![0; PIECE]);
        while let Some(&id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let summed = sum((root, known), catalog, id, &mut buf, progress);
            own.extend(summed.inspect_err(|_| failed.store(true, Ordering::Relaxed))?);
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
        Ok(())
    };
    std::thread::scope(|scope| {
        // A panic: an error, below.
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err(Error::new(ErrorKind::Io, "a thread that sums files has panicked"));
        threads.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect::<Result<Vec<()>>>()
    })?;
    let mut files = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn sum(
    (root, known): (&Root, &Sums),
    catalog: &Catalog,
    id: FileId,
    buf: &mut [u8],
    progress: &Progress,
) -> Result<Vec<File>> {
    let names = paths(catalog, id);
    let Some((inode, first)) = catalog.get(id).zip(names.first()) else { return Ok(Vec::new()) };
    let path = || root.join(first);
    let known = known.of(id, inode.size, inode.content).filter(|_| inode.hashed);
    let access = if known.is_some() { OFlags::PATH } else { OFlags::RDONLY };
    let file =
        root.open_beneath(first, access | OFlags::NOFOLLOW, 0).map_err(|e| Error::io("open", path(), e))?;
    let stat = sys::stat_fd(&file).map_err(|e| Error::io("stat", path(), e))?;
    let (size, sha256) = match known {
        Some(sha256) => {
            progress.add(0, stat.size);
            (stat.size, Some(sha256))
        }
        None => read(&file, catalog, &inode, buf, progress).map_err(|e| Error::io("read", path(), e))?,
    };
    let Some(sha256) = sha256.filter(|_| size == inode.size) else {
        let text = format!(
            "'{}' is not what was written there: the disk, or somebody, has changed it",
            path().display()
        );
        return Err(Error::new(ErrorKind::Diverged, text));
    };
    progress.add(1, 0);
    let each = |path| File { path, id, size, mtime: stat.attrs.mtime, sha256 };
    Ok(names.into_iter().map(each).collect())
}

/// Reads a file: its length, and its sum if it holds what the catalog says.
fn read(
    file: &OwnedFd,
    catalog: &Catalog,
    inode: &Inode,
    buf: &mut [u8],
    progress: &Progress,
) -> std::io::Result<(u64, Option<Sha>)> {
    let (mut sha, mut content, mut at) = (Sha256::new(), 0_u128, 0_u64);
    loop {
        let n = sys::read_at(file, buf, at)?;
        if n == 0 {
            break;
        }
        sha.update(&buf[..n]);
        let hashes = block_hashes(catalog.system(), inode.id, at / BLOCK, &buf[..n]);
        content = hashes.fold(content, u128::wrapping_add);
        at += n as u64;
        progress.add(0, n as u64);
    }
    let right = !inode.hashed || content == inode.content || blocks_of(at) == 0;
    Ok((at, right.then(|| Sha(sha.finalize().into()))))
}

/// All names of a file, from the top of the tree, in order.
pub(super) fn paths(catalog: &Catalog, id: FileId) -> Vec<Vec<u8>> {
    let path = |(dir, name): (FileId, &[u8])| {
        let mut path = catalog.path(dir)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Some(path)
    };
    let mut paths: Vec<_> = catalog.names(id).filter_map(path).collect();
    paths.sort_unstable();
    paths
}
