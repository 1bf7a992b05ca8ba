//! Guards: what keeps capture from replicating something that is not the directory's content.

use crate::catalog::{LocalId, Matcher};
use crate::error::{Error, ErrorKind, Result};
use crate::record::EXCLUDES_MAX;
use crate::sys::{self, Root, Stat};

/// File systems whose changes make events, with whether their timestamps are fine-grained from Linux 6.13 on.
const LOCAL: &[(i64, &str, bool)] = &[
    (0xEF53, "ext4", true),
    (0x5846_5342, "xfs", true),
    (0x9123_683E, "btrfs", true),
    (0x0102_1994, "tmpfs", true),
    (0x794C_7630, "overlay", false),
    (0xF2F5_2010, "f2fs", false),
    (0x2FC1_2FC1, "zfs", false),
    (0xCA45_1A4E, "bcachefs", false),
    (0x8584_58F6, "ramfs", false),
    (0x3153_464A, "jfs", false),
];

/// File systems that are known to change without an event.
const REMOTE: &[(i64, &str)] = &[
    (0x6969, "nfs"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x517B, "smb"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0x00C3_6400, "ceph"),
    (0x5346_414F, "afs"),
    (0x7461_636F, "ocfs2"),
    (0x0116_1970, "gfs2"),
];

/// What the file system of the data directory can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fs {
    /// Its name.
    pub(super) name: &'static str,
    /// Directories may fold the case of names.
    pub(super) folds: bool,
    /// Two changes that were seen apart never have the same timestamp.
    pub(super) fine: bool,
}

/// Whether the running kernel has fine-grained timestamps.
fn fine_kernel() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (6, 13)
}

/// Checks that events can be had of the file system at the root.
///
/// # Errors
/// [`ErrorKind::Refused`] for one that is shared or stacked, unless `any` is allowed.
pub(super) fn file_system(root: &Root, any: bool) -> Result<Fs> {
    let path = root.path();
    let magic = rustix::fs::fstatfs(root.fd()).map_err(|e| Error::io("stat file system of", path, e))?.f_type;
    #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
    let magic = i64::from(magic) & 0xFFFF_FFFF;
    if let Some(&(_, name, fine)) = LOCAL.iter().find(|f| f.0 == magic) {
        if name == "tmpfs" {
            tracing::warn!(
                "'{}' is on tmpfs: writes through memory mappings are not seen there",
                path.display()
            );
        }
        let folds = matches!(name, "ext4" | "f2fs" | "tmpfs" | "bcachefs");
        return Ok(Fs { name, folds, fine: fine && fine_kernel() });
    }
    let name = REMOTE.iter().find(|f| f.0 == magic).map(|f| f.1);
    if any {
        tracing::warn!("'{}' is on a file system whose changes may make no events", path.display());
        return Ok(Fs { name: name.unwrap_or("other"), folds: true, fine: false });
    }
    let text = format!(
        "'{}' is on {} (type {magic:#x}), where changes by others make no events; run towline where the file system is local",
        path.display(),
        name.unwrap_or("an unknown file system"),
    );
    Err(Error::new(ErrorKind::Refused, text))
}

/// What has become of the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootState {
    /// It is there.
    There,
    /// It is not; the text says what is.
    Away(String),
    /// It is there again, but on a file system that was mounted anew: everything open is stale.
    Remounted,
}

/// Looks whether the path still leads to the directory that is held open.
pub(super) fn root_state(root: &Root, known: &Stat) -> RootState {
    let path = root.path();
    let shown = path.display();
    let there = match Root::open(path).and_then(|r| sys::stat_fd(r.fd())) {
        Ok(stat) => stat,
        Err(e) => {
            return RootState::Away(format!(
                "the data directory '{shown}' is gone ({e}); mount or move it back"
            ));
        }
    };
    if there.local == known.local && (there.mount == known.mount || there.mount == 0 || known.mount == 0) {
        // A removed directory that is still held has no name left.
        return match sys::stat_fd(root.fd()) {
            Ok(held) if held.nlink > 0 => RootState::There,
            Ok(_) => RootState::Away(format!("the data directory '{shown}' was removed")),
            Err(e) => RootState::Away(format!("the data directory '{shown}' can't be looked at ({e})")),
        };
    }
    if same_directory(&there.local, &known.local) {
        return RootState::Remounted;
    }
    RootState::Away(format!(
        "'{shown}' is another directory than the one replicated ({}); \
         mount or move the right one back, or begin anew with an empty state directory",
        there.local.unlike(&known.local)
    ))
}

/// Whether two looks are at the same directory; its device may be numbered anew by a mount.
pub(super) fn same_directory(a: &LocalId, b: &LocalId) -> bool {
    (a.ino, a.btime) == (b.ino, b.btime)
}

/// `FS_CASEFOLD_FL`.
const CASEFOLD: u32 = 0x4000_0000;

/// Whether names in the directory are looked up without regard to case.
pub(super) fn casefold(dir: impl std::os::fd::AsFd) -> bool {
    rustix::fs::ioctl_getflags(dir).is_ok_and(|f| f.bits() & CASEFOLD != 0)
}

/// The patterns of names that are not replicated, and what never is.
#[derive(Clone, Debug)]
pub(super) struct Excluder {
    matcher: Matcher,
    /// The patterns as they are logged.
    pub(super) text: Box<[u8]>,
}

impl Excluder {
    /// Compiles the patterns.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let text: Box<[u8]> = patterns.join("\n").into_bytes().into();
        if text.len() > EXCLUDES_MAX {
            let text = format!(
                "the exclude patterns take {} bytes, more than {EXCLUDES_MAX}; use fewer, wider ones",
                text.len()
            );
            return Err(Error::new(ErrorKind::Config, text));
        }
        Ok(Self { matcher: Matcher::new(patterns)?, text })
    }

    /// Whether the thing at `rel` is not replicated.
    pub(super) fn excludes(&self, rel: &[u8]) -> bool {
        rel == sys::STAGE_DIR || self.matcher.matches(rel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_paths_below_the_root() {
        let e = Excluder::new(&["*.tmp".into(), "/cache".into(), "a/**/x".into()]).unwrap();
        for yes in [&b"q.tmp"[..], b"d/q.tmp", b"cache", b"a/b/c/x", b".towline-stage"] {
            assert!(e.excludes(yes), "{}", yes.escape_ascii());
        }
        for no in [&b"q.tmp2"[..], b"d/cache", b"x", b"d/.towline-stage"] {
            assert!(!e.excludes(no), "{}", no.escape_ascii());
        }
        assert!(Excluder::new(&["[".into()]).is_err());
    }

    #[test]
    fn a_root_that_is_replaced_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("data"), dir.path().join("aside"));
        std::fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        let known = sys::stat_fd(root.fd()).unwrap();
        assert_eq!(root_state(&root, &known), RootState::There);
        std::fs::rename(&path, &aside).unwrap();
        assert!(matches!(root_state(&root, &known), RootState::Away(_)));
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(root_state(&root, &known), RootState::Away(t) if t.contains("another directory")));
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(root_state(&root, &known), RootState::There);
    }
}
