//! `towline id` and `towline trust`: who this node is to its peers, and whom it trusts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Id, Trust};
use super::{json_line, load, print};
use crate::config::Config;
use crate::control::{self, Request};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{SOCKET, StateDir};
use crate::tls::{self, Changed};
use crate::trust::{Peer, words};

/// How long a running daemon has to take new peers over.
const DAEMON: Duration = Duration::from_secs(30);

/// `towline id`.
pub(super) fn id(args: &Id) -> Result<ExitCode> {
    let config = load(args.config.as_deref())?;
    let none = || {
        let text = "the configuration names no state directory; add the key 'state', or use --state DIR";
        Error::new(ErrorKind::Usage, text)
    };
    let dir: PathBuf = args.state.clone().or_else(|| config.state.clone()).ok_or_else(none)?;
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
        "name         {name}\nsystem       {}\nfingerprint  {}\ncertificate  {}, {} days left\n",
        system.as_deref().unwrap_or("none yet"),
        identity.fingerprint(),
        identity.file.display(),
        identity.days_left(),
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
    let dir = &args.state;
    if args.list {
        return list(dir, args.json);
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
        tls::add(dir, name, args.fingerprint.ok_or_else(missing)?, roles)?
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
    let still = daemon.as_ref().is_some_and(|d| {
        let names = d.get("peers").and_then(Value::as_array).into_iter().flatten();
        args.remove && args.fingerprint.is_none() && names.filter_map(Value::as_str).any(|n| n == name)
    });
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

fn list(dir: &Path, json: bool) -> Result<ExitCode> {
    let peers = tls::load_peers(dir)?.unwrap_or_default();
    if json {
        return print(&json_line(&json!({ "peers": peers }))?);
    }
    let line = |p: &Peer| {
        let key = p.fingerprint.map_or_else(|| "by CA".to_owned(), |f| f.to_string());
        format!("{:<20} {key} {}\n", p.name, words(&p.roles))
    };
    print(&peers.iter().map(line).collect::<String>())
}
