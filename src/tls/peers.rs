//! The peers that were trusted by command: the file `peers` of a state directory, TOML with one `[[peer]]` table each,
//! as in the configuration file. It is replaced whole and durably.

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::identity;
use crate::certificate::Fingerprint;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::trust::{Book, Peer, Role};

/// File name in a state directory.
pub const PEERS: &str = "peers";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    #[serde(default)]
    peer: Vec<Peer>,
}

/// The peers of the state directory `dir`; `None`: nobody was ever trusted by command.
///
/// # Errors
/// [`ErrorKind::Config`] for a file that is not what this module writes.
pub fn load(dir: &Path) -> Result<Option<Vec<Peer>>> {
    let path = dir.join(PEERS);
    if std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let bytes = identity::read(&path)?;
    let bad = |why: String| {
        let text = format!(
            "the peers in '{}' can't be read: {why}; correct the file, or remove it and trust the peers again",
            path.display()
        );
        Error::new(ErrorKind::Config, text)
    };
    let text = std::str::from_utf8(&bytes).map_err(|e| bad(e.to_string()))?;
    let whole: Whole = toml::from_str(text).map_err(|e| bad(e.message().to_owned()))?;
    Ok(Some(whole.peer))
}

fn store(dir: &Path, peers: &[Peer]) -> Result<()> {
    let mut text =
        "# Written by `towline trust`; peers may also stand in the configuration file.\n".to_owned();
    for peer in peers {
        let _ = write!(text, "\n[[peer]]\nname = \"{}\"\n", peer.name);
        if let Some(fingerprint) = peer.fingerprint {
            let _ = writeln!(text, "fingerprint = \"{fingerprint}\"");
        }
        let roles: Vec<String> = peer.roles.iter().map(|r| format!("\"{}\"", r.word())).collect();
        let _ = writeln!(text, "roles = [{}]", roles.join(", "));
    }
    let failed = |e| Error::io("write", dir.join(PEERS), e);
    failpoint::pass("tls::peers").map_err(failed)?;
    disk::write_owned(dir, PEERS, text.as_bytes())?;
    failpoint::pass("tls::after_peers").map_err(failed)
}

/// What a change of the peers came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// A peer was added.
    Added,
    /// A known peer has other roles now.
    Roles,
    /// It was there already, or nobody of that name was.
    Nothing,
    /// So many keys were removed.
    Removed(usize),
}

/// Trusts a key under a name, durably. `None` for the roles: those it has, or [`Role::NODE`].
///
/// # Errors
/// A name or a combination that is not allowed, or why the file can't be changed.
pub fn add(dir: &Path, name: &str, fingerprint: Fingerprint, roles: Option<&[Role]>) -> Result<Changed> {
    let _turn = identity::turn(dir)?;
    let mut peers = load(dir)?.unwrap_or_default();
    let known = peers.iter_mut().find(|p| p.name == name && p.fingerprint == Some(fingerprint));
    let changed = match (known, roles) {
        (Some(peer), Some(roles)) if peer.roles != roles => {
            peer.roles = roles.to_vec();
            Changed::Roles
        }
        (Some(_), _) => return Ok(Changed::Nothing),
        (None, roles) => {
            let roles = roles.unwrap_or(&Role::NODE).to_vec();
            peers.push(Peer { name: name.to_owned(), fingerprint: Some(fingerprint), roles });
            Changed::Added
        }
    };
    Book::new("", peers.clone()).map_err(|text| Error::new(ErrorKind::Usage, text))?;
    store(dir, &peers)?;
    Ok(changed)
}

/// Trusts nobody of that name any more, or not that key of it, durably.
///
/// # Errors
/// Why the file can't be changed.
pub fn remove(dir: &Path, name: &str, fingerprint: Option<Fingerprint>) -> Result<Changed> {
    let _turn = identity::turn(dir)?;
    let Some(mut peers) = load(dir)? else { return Ok(Changed::Nothing) };
    let before = peers.len();
    peers.retain(|p| p.name != name || fingerprint.is_some() && p.fingerprint != fingerprint);
    if peers.len() == before {
        return Ok(Changed::Nothing);
    }
    let removed = before - peers.len();
    store(dir, &peers)?;
    Ok(Changed::Removed(removed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Fingerprint = Fingerprint([7; 32]);

    #[test]
    fn peers_are_added_once_changed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(load(dir).unwrap(), None);
        assert_eq!(remove(dir, "a", None).unwrap(), Changed::Nothing);
        assert_eq!(add(dir, "a", KEY, None).unwrap(), Changed::Added);
        assert_eq!(add(dir, "a", KEY, None).unwrap(), Changed::Nothing);
        assert_eq!(add(dir, "a", KEY, Some(&[Role::Backup])).unwrap(), Changed::Roles);
        assert_eq!(add(dir, "a", KEY, None).unwrap(), Changed::Nothing, "roles are kept unless named");
        assert_eq!(add(dir, "a", Fingerprint([8; 32]), None).unwrap(), Changed::Added, "a second key");
        let e = add(dir, "b", KEY, None).unwrap_err();
        assert!(e.kind() == ErrorKind::Usage && e.to_string().contains("one name"), "{e}");
        assert!(add(dir, "../x", Fingerprint([9; 32]), None).is_err());
        let peers = load(dir).unwrap().unwrap();
        assert_eq!((peers.len(), &*peers[0].roles), (2, &[Role::Backup][..]));
        assert_eq!(remove(dir, "a", Some(KEY)).unwrap(), Changed::Removed(1));
        assert_eq!(remove(dir, "a", None).unwrap(), Changed::Removed(1));
        assert_eq!(load(dir).unwrap(), Some(Vec::new()), "that somebody was trusted once stays known");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for text in
            ["[[peer]]\nname = 3", "x", "[[peer]]\nname = \"a\"\nfingerprint = \"zz\"", "\u{1}", "a = 1"]
        {
            std::fs::write(dir.path().join(PEERS), text).unwrap();
            let e = load(dir.path()).unwrap_err();
            assert!(
                e.kind() == ErrorKind::Config && e.to_string().contains("correct the file"),
                "{text}: {e}"
            );
        }
    }
}
