//! The catalog.

use crate::record::Time;

/// Which local inode a file is: enough to tell it again after a crash, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct LocalId {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Birth time; zero where the file system has none.
    pub btime: Time,
}
