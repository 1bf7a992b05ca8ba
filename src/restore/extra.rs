//! What a directory that is made equal holds and its backup does not: it goes.

use std::collections::HashMap;
use std::path::Path;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::position::FileId;
use crate::record::Kind;
use crate::sys::{self, Root, STAGE_DIR};

/// Most names that are told.
const TOLD: usize = 5;

/// How many names there are, and the first few.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Extra {
    pub(super) count: u64,
    pub(super) first: Vec<String>,
}

/// Looks for names in `dir` that are not in the backup, nor excluded by it.
///
/// # Errors
/// A directory can't be listed.
pub(super) fn find(dir: &Path, catalog: &Catalog) -> Result<Extra> {
    let root = Root::open(dir).map_err(|e| Error::io("open", dir, e))?;
    let excluded = catalog.excludes().matcher()?;
    let mut extra = Extra::default();
    let mut open = vec![(Vec::new(), Some(FileId::ROOT))];
    while let Some((path, known)) = open.pop() {
        let failed = |e| Error::io("list", root.join(&path), e);
        let fd = root.open_dir(&path).map_err(failed)?;
        let mut names: Vec<Vec<u8>> = Vec::new();
        sys::list_dir(&fd, |name, _, _| names.push(name.to_bytes().to_vec())).map_err(failed)?;
        names.sort_unstable();
        let there: HashMap<&[u8], FileId> = known.into_iter().flat_map(|id| catalog.children(id)).collect();
        let mut below = Vec::new();
        for name in names {
            let at = if path.is_empty() { name.clone() } else { [&path[..], &name].join(&b'/') };
            let id = there.get(&name[..]).copied();
            if id.is_none() && (at == STAGE_DIR || excluded.matches(&at)) {
                continue;
            }
            if id.is_none() {
                extra.count += 1;
                if extra.first.len() < TOLD {
                    extra.first.push(crate::set::shown(&at));
                }
            }
            let stat = sys::stat_at(&fd, &name).map_err(failed)?;
            if stat.is_some_and(|s| s.kind == Kind::Dir) {
                let dir = id.filter(|id| catalog.get(*id).is_some_and(|i| i.kind == Kind::Dir));
                below.push((at, dir));
            }
        }
        // The first one next.
        open.extend(below.into_iter().rev());
    }
    Ok(extra)
}
