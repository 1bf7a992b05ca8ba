//! What an archive asks of the place where it lies.

use std::fmt;
use std::ops::Range;

use crate::error::Result;

/// An object in a listing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// Its name, below the archive.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was made, seconds since 1970 by the store's clock.
    pub modified: i64,
}

/// What became of an object that was to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// It was made.
    Made,
    /// There is one of that name, which is as it was.
    There,
}

/// Is called with each object; whether to go on.
pub type Each<'a> = dyn FnMut(Entry) -> Result<bool> + 'a;

/// A place for objects. Every call ends after a bounded time, and may be made from several threads. What a call says
/// that it made is durable. Names are checked before they come here.
pub trait Store: Send + Sync + fmt::Debug {
    /// Makes an object of `bytes`, all or nothing, unless there is one of that name.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Put>;

    /// Puts `bytes` in the place of the object of that name.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// Begins an object that is too large for memory. It is there once it is finished, and never if it is dropped before.
    fn upload(&self, name: &str) -> Result<Box<dyn Upload>>;

    /// Bytes `range` of an object, as far as it has them; `None`: there is no such object.
    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Vec<u8>>>;

    /// The size of an object; `None`: there is no such object.
    fn size(&self, name: &str) -> Result<Option<u64>>;

    /// The objects below the directory `dir` (empty: all), ascending by name, from the first one after `after` on (empty:
    /// from the first).
    fn list(&self, dir: &str, after: &str, each: &mut Each<'_>) -> Result<()>;

    /// Removes an object. One that is not there is fine.
    fn delete(&self, name: &str) -> Result<()>;
}

/// An object that is being written.
pub trait Upload: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the object be there, in whole.
    fn finish(self: Box<Self>) -> Result<()>;
}
