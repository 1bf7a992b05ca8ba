//! What a start would refuse, known before anything is made on disk.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use super::follower;
use crate::config::{self, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::quiesce;
use crate::state::{Role, StateDir};
use crate::tls;

/// Whether a node could start here with this configuration, as far as it can be seen without changing anything: what
/// it does not say may yet be said by flags, and a port may be the running node's own.
///
/// # Errors
/// What a start would end with.
pub fn vet(config: &Config) -> Result<()> {
    let name = config.node_name()?;
    let known = config.state.as_deref().and_then(|dir| StateDir::peek(dir).ok().flatten());
    let wanted = if config.leader.is_some() { Role::Follower } else { Role::Leader };
    match (&config.data, &config.state) {
        (Some(data), Some(state)) => start(config, wanted, data, state)?,
        _ => addresses(config)?,
    }
    for (key, address) in [("listen", &config.listen), ("http", &config.http)] {
        let Some(address) = address else { continue };
        let address = config::address(address)?;
        // Any port will do: is it an address of this host?
        TcpListener::bind(SocketAddr::new(address.ip(), 0)).map_err(|e| {
            Error::from(e)
                .with_kind(ErrorKind::Config)
                .wrap(&format!("cannot listen on {address} (key '{key}')"))
        })?;
    }
    if known.map_or(wanted, |c| c.role) == Role::Leader {
        quiesce::vet(&config.freeze)?;
    }
    // A directory that may not be looked into is its node's matter.
    let state = config.state.as_deref().filter(|dir| std::fs::read_dir(dir).is_ok());
    tls::vet(&tls::Settings { state: state.map(Path::to_owned), ..config.tls_settings(Path::new(""), &name) })
}

fn addresses(config: &Config) -> Result<()> {
    if let Some(listen) = &config.listen {
        config::address(listen)?;
    }
    if config.leader.is_some() {
        follower::upstreams(config)?;
    }
    Ok(())
}

/// What makes a start impossible is said before anything is made on disk.
pub(super) fn start(config: &Config, wanted: Role, data: &Path, state: &Path) -> Result<()> {
    config::check_apart(data, state)?;
    // A damaged control file is named by who opens it.
    let role = StateDir::peek(state).ok().flatten().map_or(wanted, |c| c.role);
    if let Some(listen) = config.listen.as_ref().filter(|_| role == Role::Leader) {
        // One that can't find the others leads all the same.
        config::address(listen)?;
    } else if role == Role::Follower {
        addresses(config)?;
    }
    if StateDir::is_set_up(state) {
        // A directory that is not there may yet be mounted: it is waited for, and nothing is made in its place.
        return Ok(());
    }
    match wanted {
        Role::Leader if !data.is_dir() => {
            let text = format!(
                "data directory '{}' is not a directory; a leader replicates one that exists",
                data.display()
            );
            Err(Error::new(ErrorKind::Config, text))
        }
        Role::Follower if config.leader.is_none() => Err(follower::no_leader()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_start_refuses_is_refused_before() {
        let dir = tempfile::tempdir().unwrap();
        let (data, state) = (dir.path().join("data"), dir.path().join("state"));
        std::fs::create_dir(&data).unwrap();
        let vetted = |more: &str| {
            let text = format!("data = {data:?}\nstate = {state:?}\nname = \"a\"\n{more}");
            vet(&Config::parse(&text).unwrap()).map_err(|e| e.to_string())
        };
        for more in
            ["", "freeze = \"pid:/x\"", "listen = \"127.0.0.1:1\"", "leader = \"10.0.0.1:7\"", "tls = \"on\""]
        {
            assert_eq!(vetted(more), Ok(()), "{more}");
        }
        // Freezing is a leader's.
        assert_eq!(vetted("leader = \"127.0.0.1:7\"\nfreeze = \"cgroup:/nowhere\""), Ok(()));
        for (more, words) in [
            ("freeze = \"cgroup:/nowhere\"", "'/nowhere' is no cgroup with a freezer"),
            ("freeze = \"cgroup:relative\"", "'relative' is no cgroup with a freezer"),
            ("listen = \"nowhere.invalid:1\"", "'nowhere.invalid:1' is not an address"),
            ("http = \"nowhere.invalid:1\"", "'nowhere.invalid:1' is not an address"),
            ("leader = \"nowhere.invalid:1\"", "'nowhere.invalid:1' is not an address"),
            ("listen = \"203.0.113.7:7000\"", "cannot listen on 203.0.113.7:7000 (key 'listen')"),
            ("listen = \"127.0.0.1:7\"\nleader = \"127.0.0.1:7\"", "would follow itself"),
            ("tls_ca = \"/nowhere\"", "cannot read '/nowhere'"),
            ("tls_cert = \"/nowhere\"\ntls_key = \"/nowhere\"", "cannot read '/nowhere'"),
        ] {
            let e = vetted(more).unwrap_err();
            assert!(e.contains(words), "{more}: {e}");
        }
        assert!(!state.exists(), "nothing is made");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join(tls::PEERS), "garbage").unwrap();
        assert!(vetted("").unwrap_err().contains("correct the file"));
        std::fs::remove_file(state.join(tls::PEERS)).unwrap();
        std::fs::write(state.join(tls::CERTIFICATE), "x").unwrap();
        assert!(vetted("tls = \"on\"").unwrap_err().contains("is gone, and its certificate is there"));
        std::fs::remove_dir(&data).unwrap();
        assert!(vetted("").unwrap_err().contains("is not a directory; a leader replicates one that exists"));
    }
}
