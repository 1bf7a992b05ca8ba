//! `towline id` and `towline trust`: who this node is to its peers, and whom it trusts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Id, Place, Trust};
use super::{json_line, load, print};
use crate::certificate::Fingerprint;
use crate::config::Config;
use crate::control::{self, Request};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{SOCKET, StateDir};
use crate::tls::{self, Changed};
use crate::trust::{Book, Peer, Role, words};

/// How long a running daemon has to take new peers over.
const DAEMON: Duration = Duration::from_secs(30);

/// The configuration of the node, as far as it is known, and its state directory.
fn place(place: &Place) -> Result<(Config, PathBuf)> {
    let config = load(place.config.as_deref())?;
    let none = || {
        let text = "the configuration names no state directory; add the key 'state', or use --state DIR";
        Error::new(ErrorKind::Usage, text)
    };
    let dir = place.state.clone().or_else(|| config.state.clone()).ok_or_else(none)?;
    Ok((config, dir))
}

/// `towline id`.
pub(super) fn id(args: &Id) -> Result<ExitCode> {
    let (config, dir) = place(&args.place)?;
    disk::create_dir_durable(&dir)?;
    let control = StateDir::peek(&dir)?;
    let name = name(&config, control.as_ref().map(|c| c.name.as_str()))?;
    let identity = match (&config.tls_cert, &config.tls_key) {
        (Some(_), Some(_)) if args.renew => {
            let text =
                "the certificate is one of a CA (key 'tls_cert'): have that renewed, then `towline reload`";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        (Some(certificate), Some(key)) => tls::read_identity(certificate, key)?,
        _ if args.renew => tls::renew(&dir, &name, args.new_key)?,
        _ => tls::ensure(&dir, &name)?,
    };
    let system =
        control.filter(|c| c.system != crate::position::SystemId::NONE).map(|c| c.system.to_string());
    let value = json!({
        "name": name,
        "system": system,
        "fingerprint": identity.fingerprint(),
        "certificate": identity.file,
        "not_after": identity.facts.not_after,
        "days_left": identity.days_left(),
    });
    if args.json {
        return print(&json_line(&value)?);
    }
    let mut text = format!(
        "name         {name}\nsystem       {}\nfingerprint  {}\ncertificate  {}, {}\n",
        system.as_deref().unwrap_or("none yet"),
        identity.fingerprint(),
        identity.file.display(),
        match identity.days_left() {
            0.. => format!("{} days left", identity.days_left()),
            _ if config.tls_cert.is_some() => "EXPIRED: have it renewed by its CA".to_owned(),
            _ => "EXPIRED: run `towline id --renew`".to_owned(),
        },
    );
    if args.renew {
        text += if args.new_key {
            "the key is a new one: have the peers trust it, then run `towline reload`\n"
        } else {
            "the certificate is a new one of the same key: run `towline reload` if the daemon runs\n"
        };
    }
    print(&text)
}

/// The name that the node has, or will have unless it is started with another.
fn name(config: &Config, known: Option<&str>) -> Result<String> {
    match (&config.name, known) {
        (Some(name), _) => Ok(name.clone()),
        (None, Some(known)) => Ok(known.to_owned()),
        (None, None) => config.node_name(),
    }
}

/// `towline trust`.
pub(super) fn trust(args: &Trust) -> Result<ExitCode> {
    let (config, dir) = &place(&args.place)?;
    if args.list || args.remove {
        there(dir)?;
    }
    if args.list {
        return list(dir, &config.peer, args.json);
    }
    let missing = || Error::new(ErrorKind::Usage, "name the peer and its fingerprint");
    let name = args.name.as_deref().ok_or_else(missing)?;
    if !args.remove {
        disk::create_dir_durable(dir)?;
    }
    let roles = (!args.role.is_empty()).then_some(args.role.as_slice());
    let changed = if args.remove {
        tls::remove(dir, name, args.fingerprint)?
    } else {
        let fingerprint = args.fingerprint.ok_or_else(missing)?;
        agrees(config, name, fingerprint)?;
        tls::add(dir, name, fingerprint, roles)?
    };
    // A peer that was there already may not have reached the daemon yet.
    let daemon = control::call(&dir.join(SOCKET), &Request::Trust, DAEMON);
    let daemon = match daemon {
        Ok(answer) => Some(answer),
        Err(e) if e.kind() == ErrorKind::Unavailable && !dir.join(SOCKET).exists() => None,
        Err(e) if e.kind() == ErrorKind::Unavailable && e.to_string().contains("no daemon answers") => None,
        // What the daemon can't go by, its next start could not either.
        Err(e) if e.kind() == ErrorKind::Config && matches!(changed, Changed::Added) => {
            tls::remove(dir, name, args.fingerprint)?;
            return Err(e.wrap("the peer is not trusted, and nothing is changed"));
        }
        Err(e) => {
            return Err(e.wrap("the peers are changed on disk, but the daemon goes on with the old ones"));
        }
    };
    let known = daemon.as_ref().and_then(|d| d.get("peers")).and_then(Value::as_array).into_iter().flatten();
    let known = known.filter_map(Value::as_str).chain(config.peer.iter().map(|p| p.name.as_str()));
    let still = args.remove && args.fingerprint.is_none() && { known }.any(|n| n == name);
    if args.json {
        let value = json!({"name": name, "changed": word(changed), "in_force": daemon.is_some()});
        return print(&json_line(&value)?);
    }
    let mut text = match changed {
        Changed::Added => format!("'{name}' is trusted\n"),
        Changed::Roles => format!("'{name}' has other roles now\n"),
        Changed::Removed(1) => format!("'{name}' is trusted no more\n"),
        Changed::Removed(n) => format!("'{name}' is trusted no more: {n} keys\n"),
        Changed::Nothing if args.remove => {
            format!("'{name}' was not trusted by command; nothing is changed\n")
        }
        Changed::Nothing => format!("'{name}' was trusted already\n"),
    };
    text +=
        if daemon.is_some() { "in force now\n" } else { "no daemon runs here: in force at its next start\n" };
    if still {
        text += "but it is still a [[peer]] of the configuration file: take it out there, then `towline reload`\n";
    }
    print(&text)
}

fn word(changed: Changed) -> &'static str {
    match changed {
        Changed::Added => "added",
        Changed::Roles => "roles",
        Changed::Removed(_) => "removed",
        Changed::Nothing => "nothing",
    }
}

/// Nothing is listed, or taken away, where no node ever was.
fn there(dir: &Path) -> Result<()> {
    match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(
            ErrorKind::Usage,
            format!("'{}' is no directory; name the state directory of the node", dir.display()),
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::new(
            ErrorKind::Usage,
            format!("there is no state directory '{}'; name that of the node", dir.display()),
        )),
        Err(e) => Err(Error::io("look at", dir, e)),
    }
}

/// The configuration must not know the key under another name: the node could not start.
fn agrees(config: &Config, name: &str, fingerprint: Fingerprint) -> Result<()> {
    let mut peers = config.peer.clone();
    peers.push(Peer { name: name.to_owned(), fingerprint: Some(fingerprint), roles: Role::NODE.to_vec() });
    let refused =
        |text| Error::new(ErrorKind::Config, text).wrap("the peer is not trusted, and nothing is changed");
    Book::new("", peers).map_err(refused).map(|_| ())
}

fn list(dir: &Path, configured: &[Peer], json: bool) -> Result<ExitCode> {
    let by_command = tls::load_peers(dir)?.unwrap_or_default();
    let all = || {
        let each = |from: &'static str| move |p| (p, from);
        by_command.iter().map(each("command")).chain(configured.iter().map(each("config")))
    };
    if json {
        let peers: Vec<Value> = all().map(|(p, from)| told(p, from)).collect();
        return print(&json_line(&json!({ "peers": peers }))?);
    }
    let line = |(p, from): (&Peer, &str)| {
        let key = p.fingerprint.map_or_else(|| "by CA".to_owned(), |f| f.to_string());
        let from = if from == "config" { "  (configuration)" } else { "" };
        format!("{:<20} {key} {}{from}\n", p.name, words(&p.roles))
    };
    print(&all().map(line).collect::<String>())
}

fn told(peer: &Peer, from: &str) -> Value {
    let mut value = json!(peer);
    value["from"] = json!(from);
    value
}
