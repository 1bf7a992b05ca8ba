//! The contents of a backup as a first copy wants them: files as they are kept, or gathered out of packs.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::fill::Shelf;
use crate::manifest::{CATALOG, Form};
use crate::position::FileId;
use crate::set::gather::{Gathered, gather};
use crate::set::{Content, Set};

/// A set that holds files.
struct Files(Arc<Set>);

/// A set without, or one that stands on others.
struct Packs {
    set: Arc<Set>,
    all: Gathered,
}

/// Opens the contents of a chain.
pub(super) fn open(chain: &[Arc<Set>], scratch: &Path) -> Result<Arc<dyn Shelf>> {
    let set = chain.first().ok_or_else(|| Error::new(ErrorKind::Missing, "there is no backup"))?;
    let set = Arc::clone(set);
    if set.manifest().form != Form::Packs {
        return Ok(Arc::new(Files(set)));
    }
    std::fs::create_dir_all(scratch).map_err(|e| Error::io("make", scratch, e))?;
    let all = gather(chain, scratch)?;
    Ok(Arc::new(Packs { set, all }))
}

impl Shelf for Files {
    fn catalog(&self) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.0.part(CATALOG)?.into_reader()))
    }

    fn file(&self, _: FileId, path: &[u8]) -> Result<Option<Box<dyn Content + '_>>> {
        Ok(self.0.file(path)?.map(|kept| Box::new(kept) as Box<dyn Content>))
    }

    fn exact(&self) -> bool {
        self.0.manifest().form == Form::Tree
    }
}

impl Shelf for Packs {
    fn catalog(&self) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.set.part(CATALOG)?.into_reader()))
    }

    fn file(&self, id: FileId, _: &[u8]) -> Result<Option<Box<dyn Content + '_>>> {
        Ok(self.all.content(id)?.map(|content| Box::new(content) as Box<dyn Content + '_>))
    }

    fn exact(&self) -> bool {
        false
    }
}
