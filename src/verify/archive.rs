//! An archive: every object is read, as `towline archive verify` does.

use std::path::Path;

use super::findings::{Class, Findings};
use super::{Order, Outcome};
use crate::archive::inventory::Inventory;
use crate::archive::{Address, Archive, check, names};
use crate::error::{Error, ErrorKind, Result};

/// The address that a path is, if it is one: written as one, or the directory of an archive.
///
/// # Errors
/// It is meant as an address, and is none.
pub(super) fn address(path: &Path) -> Result<Option<Address>> {
    if let Some(text) = path.to_str().filter(|t| t.contains("://")) {
        return text.parse().map(Some).map_err(|e| Error::new(ErrorKind::Usage, e));
    }
    if !path.join(names::IDENTITY).is_file() {
        return Ok(None);
    }
    let path = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
    Ok(Some(Address::Dir(path)))
}

/// Checks an archive.
pub(super) fn check(address: &Address, order: &Order, findings: Findings) -> Result<Outcome> {
    let mut outcome = Outcome::new("archive");
    let archive = Archive::open(address)?;
    let found = if order.content {
        check::verify(&archive)?
    } else {
        let inventory = Inventory::take(&archive)?;
        check::Found { inventory, ..check::Found::default() }
    };
    (outcome.files, outcome.bytes) = (found.objects, found.bytes);
    let log = &found.inventory.coverage;
    for problem in log.problems.iter().filter(|_| order.log) {
        findings.add(
            Class::Log,
            names::LOG.as_bytes(),
            format!("{}: {}", problem.span, problem.fault.words()),
        );
    }
    if order.log && log.more > 0 {
        findings.add(Class::Log, names::LOG.as_bytes(), format!("and {} more ranges", log.more));
    }
    for (timeline, text) in found.inventory.bad_histories().filter(|_| order.log) {
        findings.add(Class::History, names::history(timeline).as_bytes(), text);
    }
    outcome.strays.clone_from(&found.inventory.strays);
    outcome.strays.retain(|name| !findings.ignored(name.as_bytes()));
    for (label, text) in &found.backups {
        findings.add(Class::Backup, names::backup_dir(label).as_bytes(), text);
    }
    Ok(outcome.close(findings))
}
