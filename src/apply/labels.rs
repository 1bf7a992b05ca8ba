//! Extended attributes and ACLs, compared with what apply gives them.
//!
//! What could not be given at all, for want of privilege or because the file system has no such thing, is no edit. Whether
//! it can is tried at the start on a file of the staging directory: reading tells "not there" and "not for you" apart
//! in some cases only.

use std::os::fd::AsFd;

use rustix::fs::{self as rfs, AtFlags, OFlags};

use crate::catalog::Inode;
use crate::sys;

/// What is said of an edit of them.
pub(super) const LABELS_CHANGED: &str = "its extended attributes or its ACL changed";
/// The file that the classes are tried on.
const PROBE: &[u8] = b"probe";
/// Of each class a name that it begins with, and what is tried: an ACL that says what a mode of 0600 says, and no
/// capabilities of a file.
const CLASSES: [(&[u8], &[u8], &[u8]); 4] = [
    (b"user.", b"user.towline", b"1"),
    (b"trusted.", b"trusted.towline", b"1"),
    (b"system.posix_acl_", b"system.posix_acl_access", &ACL),
    (
        b"security.capability",
        b"security.capability",
        &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
];
/// Version 2; of owner, group and others the tag, the permissions, and no id.
const ACL: [u8; 28] = [
    2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0xff,
    0xff, 0xff, 0xff,
];

/// Which classes of extended attributes this node can give.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Labels([bool; CLASSES.len()]);

impl Labels {
    /// Tries all of them in the staging directory. Where no file can be made none is compared until the next start.
    pub(crate) fn of(stage: impl AsFd) -> Self {
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let Ok(file) = sys::open_beneath(stage.as_fd(), PROBE, flags, 0o600) else { return Self::default() };
        let can = CLASSES.map(|(_, name, value)| sys::set_xattr_at(&file, b"", name, Some(value)).is_ok());
        // What is left goes with the staging directory.
        let _ = rfs::unlinkat(&stage, PROBE, AtFlags::empty());
        Self(can)
    }

    fn can(self, name: &[u8]) -> bool {
        CLASSES.iter().zip(self.0).any(|((class, ..), can)| can && name.starts_with(class))
    }

    /// Whether `name` in `dir` has not the extended attributes that `inode` has. What can't be read is not known
    /// to be changed.
    pub(crate) fn changed(self, dir: impl AsFd, name: &[u8], inode: &Inode<'_>) -> bool {
        let Ok(have) = sys::xattrs_at(dir, name) else { return false };
        let have = have.iter().map(|(n, v)| (&n[..], &v[..])).filter(|(n, _)| self.can(n));
        let want = inode.xattrs.iter().map(|(n, v)| (&n[..], &v[..])).filter(|(n, _)| self.can(n));
        !have.eq(want)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_are_tried_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let labels = Labels::of(&fd);
        let root = rustix::process::geteuid().is_root();
        assert!(labels.can(b"user.a"), "the file systems of the tests have them");
        assert!(!labels.can(b"security.selinux") && (root || !labels.can(b"trusted.a")));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
