//! The patterns of names that are not replicated. The leader records them in the log, so that every node
//! knows which names are nobody's business.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::error::{Error, ErrorKind, Result};

/// The patterns of names that are not replicated, with the version of the list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Excludes {
    /// Grows with every change of the list; 0 is the empty list of a new system.
    pub version: u64,
    /// Newline-separated patterns.
    pub patterns: Box<[u8]>,
}

impl Excludes {
    /// The patterns, ready to be asked.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]: a leader checks its patterns before it records them.
    pub fn matcher(&self) -> Result<Matcher> {
        let text = String::from_utf8_lossy(&self.patterns);
        let patterns: Vec<String> = text.lines().map(str::to_owned).collect();
        Matcher::new(&patterns)
            .map_err(|e| e.with_kind(ErrorKind::Corrupt).wrap("patterns recorded in the log"))
    }
}

/// Patterns, ready to be asked.
#[derive(Clone, Debug)]
pub struct Matcher {
    set: GlobSet,
}

impl Matcher {
    /// Compiles the patterns. Each is matched against the path below the root; `*` matches slashes too.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the pattern that is none.
    pub fn new(patterns: &[String]) -> Result<Self> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            if pattern.contains('\n') {
                let text = format!("exclude pattern '{}' holds a line break", pattern.escape_debug());
                return Err(Error::new(ErrorKind::Config, text));
            }
            let glob = Glob::new(pattern.trim_start_matches('/')).map_err(|e| {
                Error::new(ErrorKind::Config, format!("exclude pattern '{pattern}' is not a glob: {e}"))
            })?;
            set.add(glob);
        }
        let set = set
            .build()
            .map_err(|e| Error::new(ErrorKind::Config, format!("the exclude patterns are too many: {e}")))?;
        Ok(Self { set })
    }

    /// Whether the thing at `rel` is not replicated. What is in an excluded directory is not asked about.
    #[must_use]
    pub fn matches(&self, rel: &[u8]) -> bool {
        !self.set.is_empty() && self.set.is_match(Path::new(OsStr::from_bytes(rel)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_patterns_match_as_configured_ones_do() {
        let patterns = ["*.tmp".to_owned(), "/cache".into(), "a/**/x".into()];
        let recorded = Excludes { version: 1, patterns: patterns.join("\n").into_bytes().into() };
        for m in [Matcher::new(&patterns).unwrap(), recorded.matcher().unwrap()] {
            for yes in [&b"q.tmp"[..], b"d/q.tmp", b"cache", b"a/b/c/x"] {
                assert!(m.matches(yes), "{}", yes.escape_ascii());
            }
            for no in [&b"q.tmp2"[..], b"d/cache", b"x", b""] {
                assert!(!m.matches(no), "{}", no.escape_ascii());
            }
        }
        assert!(!Excludes::default().matcher().unwrap().matches(b"anything"));
        assert_eq!(Matcher::new(&["[".into()]).unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(Matcher::new(&["a\nb".into()]).unwrap_err().kind(), ErrorKind::Config);
    }
}
