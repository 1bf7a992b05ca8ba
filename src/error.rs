//! The one error type that crosses modules, classified by what the operator does next.
//!
//! A propagator adds context with [`Context`]; the consumer logs. Small enums
//! live beside code that branches on them and convert into this one.

use std::fmt;
use std::io;
use std::path::Path;

use crate::codec::{DecodeError, Seal};

/// Classes of failure. Each has its own exit code, listed in `towline(1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A command or its input was wrong. Correct the command. Exit 64.
    Usage,
    /// The configuration is wrong. Correct the file. Exit 3.
    Config,
    /// The operating system refused a file operation. Look at the named path; the daemon retries. Exit 4.
    Io,
    /// The disk (or a quota) is full. Free space; the daemon goes on by itself. Exit 5.
    DiskFull,
    /// Stored or received bytes are damaged. Fetch a good copy; replay stops. Exit 6.
    Corrupt,
    /// Log or files that are needed are not there. Fill or resync the follower. Exit 7.
    Missing,
    /// Two nodes that should hold the same do not. Resync the follower. Exit 8.
    Diverged,
    /// A peer or another process cannot be reached or did not answer. The daemon retries. Exit 9.
    Unavailable,
    /// A peer said no, or the directory is not what it should be. Read the reason. Exit 10.
    Refused,
    /// Another process holds the state directory. Stop it first. Exit 11.
    Locked,
    /// A guard holds until the operator confirms. Exit 12.
    Held,
    /// The work was stopped on request. Exit 13.
    Cancelled,
}

impl ErrorKind {
    /// Every class.
    pub const ALL: [Self; 12] = [
        Self::Usage,
        Self::Config,
        Self::Io,
        Self::DiskFull,
        Self::Corrupt,
        Self::Missing,
        Self::Diverged,
        Self::Unavailable,
        Self::Refused,
        Self::Locked,
        Self::Held,
        Self::Cancelled,
    ];

    /// The process exit code of this class.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Config => 3,
            Self::Io => 4,
            Self::DiskFull => 5,
            Self::Corrupt => 6,
            Self::Missing => 7,
            Self::Diverged => 8,
            Self::Unavailable => 9,
            Self::Refused => 10,
            Self::Locked => 11,
            Self::Held => 12,
            Self::Cancelled => 13,
        }
    }

    /// A stable word for logs and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Config => "config",
            Self::Io => "io",
            Self::DiskFull => "disk-full",
            Self::Corrupt => "corrupt",
            Self::Missing => "missing",
            Self::Diverged => "diverged",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Locked => "locked",
            Self::Held => "held",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether a daemon should try again by itself, after a pause.
    #[must_use]
    pub fn retries(self) -> bool {
        matches!(self, Self::Io | Self::DiskFull | Self::Unavailable)
    }
}

/// An error with its class, and its causes as text, outermost first.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    os: Option<i32>,
}

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A new error. The message names the input, the rule and the remedy.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), os: None }
    }

    /// An operating-system error met while doing `verb` to `path`.
    pub fn io(verb: &str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let path = path.as_ref().display().to_string();
        Self::from(source.into()).wrap(&format!("cannot {verb} '{}'", path.escape_debug()))
    }

    /// What is wrong with the sealed file at `path`, and what to do about it.
    pub fn unusable(seal: &Seal, path: impl AsRef<Path>, why: DecodeError) -> Self {
        let path = path.as_ref().display().to_string();
        let (name, path) = (seal.name, path.escape_debug());
        let text = match why {
            DecodeError::Version { .. } => {
                format!("{name} '{path}' can't be read: {why}; run the newer program that wrote it")
            }
            _ => format!("{name} '{path}' is damaged: {why}; {}", seal.remedy),
        };
        Self { message: text, ..why.into() }
    }

    /// The class.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The errno, where an operating-system call was the cause.
    #[must_use]
    pub fn os(&self) -> Option<i32> {
        self.os
    }

    /// The same error seen from further out.
    #[must_use]
    pub fn wrap(mut self, context: &str) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The same error in another class.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.kind.word(), self.message)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        use nix::errno::Errno;
        let os = e.raw_os_error();
        let kind = match os.map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => ErrorKind::DiskFull,
            _ => match e.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::TimedOut => ErrorKind::Unavailable,
                _ => ErrorKind::Io,
            },
        };
        Self { kind, message: e.to_string(), os }
    }
}

impl From<DecodeError> for Error {
    fn from(e: DecodeError) -> Self {
        let kind =
            if matches!(e, DecodeError::Version { .. }) { ErrorKind::Refused } else { ErrorKind::Corrupt };
        Self::new(kind, e.to_string())
    }
}

/// Adds a present-tense phrase to an error on its way out.
pub trait Context<T> {
    /// The phrase is built only when there is an error.
    fn context<S: AsRef<str>>(self, phrase: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: AsRef<str>>(self, phrase: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into().wrap(phrase().as_ref()))
    }
}

/// Levenshtein distance, for "did you mean".
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_its_own_class_and_is_retried() {
        let e = Error::io("write", "/x", io::Error::from_raw_os_error(28));
        assert_eq!(e.kind(), ErrorKind::DiskFull);
        assert!(e.kind().retries());
        assert!(e.to_string().starts_with("cannot write '/x': "), "{e}");
    }
}
