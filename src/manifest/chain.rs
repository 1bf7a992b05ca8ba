//! Which backups an incremental one stands on: each names the one below by label, end and the SHA-256 of its manifest. Pure.

use super::{Manifest, Sha};

/// Most members of a chain.
pub const MEMBERS_MAX: usize = 10_000;

/// What there is of a label.
#[derive(Clone, Debug)]
pub enum Found<'a> {
    /// A backup.
    Whole(&'a Manifest, Sha),
    /// Something that can't be used, and why.
    Unusable(String),
    /// Nothing.
    Missing,
}

/// Whether `found` is what `above` stands on; of a full backup always.
///
/// # Errors
/// What is wrong with the link, naming it.
pub fn link(above: &Manifest, found: &Found<'_>) -> Result<(), String> {
    let Some(base) = &above.base else { return Ok(()) };
    let (label, below) = (&above.label, &base.label);
    let (m, sha256) = match found {
        Found::Whole(m, sha256) => (m, sha256),
        Found::Unusable(why) => {
            return Err(format!("'{below}', on which '{label}' stands, is no whole backup: {why}"));
        }
        Found::Missing => return Err(format!("'{below}', on which '{label}' stands, is missing")),
    };
    if *sha256 != base.manifest_sha256 || m.label != *below {
        return Err(format!("'{below}', on which '{label}' stands, is another one than it was made on"));
    }
    if m.system != above.system {
        let (theirs, ours) = (m.system, above.system);
        return Err(format!("'{below}', on which '{label}' stands, is of system {theirs}, not of {ours}"));
    }
    if m.end != base.end || m.end > above.start {
        return Err(format!(
            "'{below}', on which '{label}' stands, ends at {}, not where the changes begin: at {}, before {}",
            m.end, base.end, above.start
        ));
    }
    Ok(())
}

/// The members below `top`, from the next one down to the full one. `find` looks for a label.
///
/// # Errors
/// The first link that is broken.
pub fn resolve<'a>(
    top: &'a Manifest,
    mut find: impl FnMut(&str) -> Found<'a>,
) -> Result<Vec<(&'a Manifest, Sha)>, String> {
    let (mut chain, mut at) = (Vec::new(), top);
    while let Some(base) = &at.base {
        let found = find(&base.label);
        link(at, &found)?;
        let Found::Whole(m, sha256) = found else { break };
        // The end of each is before the start of the one above; with equal ones it could go round for ever.
        if chain.len() >= MEMBERS_MAX {
            return Err(format!("'{}' stands on more than {MEMBERS_MAX} backups", top.label));
        }
        chain.push((m, sha256));
        at = m;
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::super::{Base, Form};
    use super::*;
    use crate::position::{Lsn, SystemId, TimelineId};

    fn backup(label: &str, at: u64, base: Option<(&str, u64)>) -> Manifest {
        Manifest {
            form: Form::Packs,
            label: label.to_owned(),
            system: SystemId(7),
            timeline: TimelineId(1),
            start: Lsn(at),
            end: Lsn(at + 5),
            start_time: 0,
            end_time: 0,
            exact: true,
            created: 0,
            program: "test".to_owned(),
            base: base.map(|(label, end)| Base {
                label: label.to_owned(),
                end: Lsn(end),
                manifest_sha256: sha(label),
            }),
            log: Vec::new(),
            parts: Vec::new(),
            files: Vec::new(),
        }
    }

    fn sha(label: &str) -> Sha {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(label.bytes()).for_each(|(to, from)| *to = from);
        Sha(bytes)
    }

    fn labels(top: &Manifest, all: &[Manifest]) -> Result<Vec<String>, String> {
        let find = |label: &str| match all.iter().find(|m| m.label == label) {
            Some(m) if m.program == "bad" => Found::Unusable("it is cut".to_owned()),
            Some(m) => Found::Whole(m, sha(&m.program.replace("test", label))),
            None => Found::Missing,
        };
        resolve(top, find).map(|c| c.iter().map(|(m, _)| m.label.clone()).collect())
    }

    #[test]
    fn a_chain_is_followed_down_to_the_full_backup() {
        let (mon, tue) = (backup("mon", 10, None), backup("tue", 20, Some(("mon", 15))));
        let wed = backup("wed", 30, Some(("tue", 25)));
        let all = [mon.clone(), tue.clone()];
        assert_eq!(labels(&wed, &all).unwrap(), ["tue", "mon"]);
        assert_eq!(labels(&mon, &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn every_broken_link_is_named() {
        let (mon, tue) = (backup("mon", 10, None), backup("tue", 20, Some(("mon", 15))));
        let wed = backup("wed", 30, Some(("tue", 25)));
        let bad = |change: &dyn Fn(&mut Manifest), of: &str| {
            let mut all = vec![mon.clone(), tue.clone()];
            all.iter_mut().filter(|m| m.label == of).for_each(change);
            labels(&wed, &all).unwrap_err()
        };
        assert_eq!(
            labels(&wed, std::slice::from_ref(&mon)).unwrap_err(),
            "'tue', on which 'wed' stands, is missing"
        );
        assert_eq!(
            labels(&wed, std::slice::from_ref(&tue)).unwrap_err(),
            "'mon', on which 'tue' stands, is missing"
        );
        assert!(bad(&|m| m.program = "bad".to_owned(), "mon").contains("no whole backup: it is cut"));
        assert!(
            bad(&|m| m.program = "other".to_owned(), "mon")
                .contains("'mon', on which 'tue' stands, is another")
        );
        assert!(bad(&|m| m.system = SystemId(8), "tue").contains("of system"));
        assert!(bad(&|m| m.end = Lsn(16), "mon").contains("ends at 0/00000010"));
        assert!(bad(&|m| m.end = Lsn(31), "tue").contains("ends at"));
        let mut round = backup("a", 10, Some(("a", 10)));
        (round.end, round.program) = (Lsn(10), "test".to_owned());
        assert!(labels(&round, std::slice::from_ref(&round)).unwrap_err().contains("more than"));
    }
}
