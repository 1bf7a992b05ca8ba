//! Keys, certificates, and whom they prove: what TLS is done with, kept in one place and changed as a whole.
//!
//! [`Terms`] are everything that was read at one time: this node's identity, the CAs, the peers. [`Trust`] holds the
//! terms in force and tells all connections when they change; new ones that can't be read change nothing. Which
//! connections need TLS follows from the mode:
//!
//! | `tls` | plain TCP | TLS 1.3 |
//! | --- | --- | --- |
//! | `on` | never | always |
//! | `auto` | on loopback, as long as nobody is trusted by a certificate: no peer was ever named, no CA configured | else |
//! | `off` | always, over any network | never |

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use crate::certificate::{Facts, Fingerprint};
use crate::error::{Error, ErrorKind, Result};
use crate::trust::{Ask, Book, Chain, Peer, Refusal, Role};

mod identity;
mod peers;
mod verify;

pub use identity::{CERTIFICATE, Identity, KEY, ensure, load as read_identity, renew};
pub use peers::{Changed, PEERS, add, load as load_peers, remove};
use verify::Authority;

/// A certificate that holds for less than this is warned of: thirty days.
const WARNING: i64 = 30 * DAY;
const DAY: i64 = 86_400;

/// When connections are encrypted: see the table of the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Whenever there is a network, or somebody to know.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never, over any network.
    Off,
}

/// Where everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// When connections are encrypted.
    pub mode: Mode,
    /// Certificate and key in the place of those in the state directory.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Certificates of the CAs whose word counts.
    pub ca: Option<PathBuf>,
    /// Their revocation lists.
    pub crl: Option<PathBuf>,
    /// The peers of the configuration file.
    pub peers: Vec<Peer>,
    /// The state directory; none for a node that has none, and so no key.
    pub state: Option<PathBuf>,
    /// This node's name.
    pub name: String,
}

impl Settings {
    /// Whether connections are surely encrypted, so that trouble with the own key counts.
    fn needs_key(&self, named: bool, ca: bool) -> bool {
        self.mode != Mode::Off && (self.own.is_some() || named || ca || self.mode == Mode::On)
    }
}

/// Whether everything that is there can be used. Nothing is made: a key that is missing is no mistake.
///
/// # Errors
/// What can't be used, by name.
pub fn vet(settings: &Settings) -> Result<()> {
    let Read { named, authority, .. } = Read::of(settings)?;
    let own = match (&settings.own, &settings.state) {
        (Some((certificate, key)), _) => read_identity(certificate, key).map(Some),
        (None, Some(state)) => identity::look(state),
        (None, None) => Ok(None),
    };
    match own.and_then(|own| own.as_ref().map(verify::configs).transpose()) {
        Err(e) if settings.needs_key(named, authority.is_some()) => Err(e),
        _ => Ok(()),
    }
}

/// Who is trusted, as it was read.
struct Read {
    book: Book,
    /// Somebody was named as a peer once.
    named: bool,
    authority: Option<Authority>,
}

impl Read {
    fn of(settings: &Settings) -> Result<Self> {
        let by_command = settings.state.as_deref().map(peers::load).transpose()?.flatten();
        let named = by_command.is_some() || !settings.peers.is_empty();
        let mut all = settings.peers.clone();
        for peer in by_command.into_iter().flatten() {
            if !all.contains(&peer) {
                all.push(peer);
            }
        }
        let book = Book::new(&settings.name, all).map_err(|text| Error::new(ErrorKind::Config, text))?;
        let ca = settings.ca.as_deref();
        let authority = ca.map(|ca| Authority::load(ca, settings.crl.as_deref())).transpose()?;
        Ok(Self { book, named, authority })
    }
}

struct Own {
    identity: Identity,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What is in force since it was last read.
pub struct Terms {
    settings: Settings,
    book: Book,
    /// Somebody was named as a peer once, here or in the file: plain TCP has come to its end.
    named: bool,
    authority: Option<Authority>,
    own: std::result::Result<Own, Error>,
}

impl std::fmt::Debug for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a peer showed in a handshake.
#[derive(Clone, Debug)]
pub struct Presented {
    chain: Vec<CertificateDer<'static>>,
    facts: Facts,
    serves: bool,
}

impl Presented {
    /// The certificates of a handshake. `serves`: the peer was connected to, rather than connected.
    ///
    /// # Errors
    /// There is none, or it can't be read; the handshake has seen to both.
    pub fn new(certificates: Option<&[CertificateDer<'_>]>, serves: bool) -> Result<Self> {
        let chain: Vec<_> = certificates.unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
        let none = || Error::new(ErrorKind::Refused, "the peer showed no certificate");
        let facts = Facts::of(chain.first().ok_or_else(none)?)?;
        Ok(Self { chain, facts, serves })
    }

    /// Whose key it is.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.facts.fingerprint
    }
}

/// Seconds since 1970 by this machine's clock.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

impl Terms {
    /// Reads everything. A key that is not there is made.
    ///
    /// # Errors
    /// What can't be used, by name. Trouble with the own key counts only where connections are surely encrypted.
    fn load(settings: Settings) -> Result<Self> {
        let Read { book, named, authority } = Read::of(&settings)?;
        match Own::load(&settings) {
            Err(e) if settings.needs_key(named, authority.is_some()) => Err(e),
            own => Ok(Self { settings, book, named, authority, own }),
        }
    }

    /// Whether a connection to or at this address is encrypted.
    #[must_use]
    pub fn needs_tls(&self, address: IpAddr) -> bool {
        match self.settings.mode {
            Mode::On => true,
            Mode::Off => false,
            Mode::Auto => !address.to_canonical().is_loopback() || self.named || self.authority.is_some(),
        }
    }

    /// This node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// What TLS is answered with.
    ///
    /// # Errors
    /// Why there is no key.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        self.own.as_ref().map(|o| Arc::clone(&o.server)).map_err(Clone::clone)
    }

    /// What TLS is begun with.
    ///
    /// # Errors
    /// Why there is no key.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        self.own.as_ref().map(|o| Arc::clone(&o.client)).map_err(Clone::clone)
    }

    /// What a peer may be and do here. `said`: the name it gives itself, once it did.
    ///
    /// # Errors
    /// The rule that is broken, and what to do about it.
    pub fn judge(
        &self,
        peer: &Presented,
        said: Option<&str>,
        ask: Ask,
    ) -> std::result::Result<Vec<Role>, Refusal> {
        if self.settings.mode == Mode::Off {
            // A connection from before; without TLS everybody would be let in.
            return Ok(Vec::new());
        }
        let now = now();
        let vouched = |a: &Authority| a.vouches(&peer.chain, peer.serves, now);
        let chain = self.authority.as_ref().map_or(Chain::NoCa, vouched);
        self.book.judge(&peer.facts, &chain, said, ask, now)
    }

    /// All peers.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        self.book.peers()
    }

    /// The part of `status`.
    #[must_use]
    pub fn status(&self) -> TlsStatus {
        let left = self.own.as_ref().ok().map(|o| o.identity.facts.not_after.saturating_sub(now()));
        TlsStatus {
            mode: self.settings.mode,
            fingerprint: self.own.as_ref().ok().map(|o| o.identity.fingerprint()),
            certificate: self.own.as_ref().ok().map(|o| o.identity.file.clone()),
            days_left: left.map(|l| l.div_euclid(DAY)),
            peers: self.book.peers().len(),
            ca: self.settings.ca.clone(),
            warning: self.warning(left),
        }
    }

    fn warning(&self, left: Option<i64>) -> Option<String> {
        let renew = match self.settings.own {
            Some(_) => "have it renewed by its CA, then `towline reload`",
            None => "run `towline id --renew`, then `towline reload`; its fingerprint stays",
        };
        match (left, &self.own) {
            (Some(left), _) if left < 0 => Some(format!("this node's certificate is expired; {renew}")),
            (Some(left), _) if left < WARNING => {
                Some(format!("this node's certificate expires in {} days; {renew}", left / DAY))
            }
            (_, Err(e)) => Some(e.to_string()),
            _ => None,
        }
    }
}

impl Own {
    fn load(settings: &Settings) -> Result<Self> {
        let identity = match (&settings.own, &settings.state) {
            (Some((certificate, key)), _) => read_identity(certificate, key)?,
            (None, Some(state)) => ensure(state, &settings.name)?,
            (None, None) => {
                return Err(Error::new(ErrorKind::Config, "there is no state directory for a key"));
            }
        };
        let (server, client) = verify::configs(&identity)?;
        Ok(Self { identity, server, client })
    }
}

/// What `status` says of keys and certificates.
#[derive(Clone, Debug, Serialize)]
pub struct TlsStatus {
    /// When connections are encrypted.
    pub mode: Mode,
    /// This node's key.
    pub fingerprint: Option<Fingerprint>,
    /// The file of its certificate.
    pub certificate: Option<PathBuf>,
    /// How long the certificate holds; negative once it is expired.
    pub days_left: Option<i64>,
    /// How many keys and names are trusted.
    pub peers: usize,
    /// The CAs whose word counts.
    pub ca: Option<PathBuf>,
    /// What the operator should see to.
    pub warning: Option<String>,
}

/// The terms in force; clones share them.
#[derive(Clone, Debug)]
pub struct Trust(Arc<watch::Sender<Arc<Terms>>>);

impl Default for Trust {
    /// Plain TCP for all.
    fn default() -> Self {
        let settings = Settings { mode: Mode::Off, ..Settings::default() };
        let none = Err(Error::new(ErrorKind::Config, "TLS is off"));
        let terms = Terms { settings, book: Book::default(), named: false, authority: None, own: none };
        Self(Arc::new(watch::Sender::new(Arc::new(terms))))
    }
}

impl Trust {
    /// Reads everything for the first time.
    ///
    /// # Errors
    /// What can't be used, by name.
    pub fn load(settings: Settings) -> Result<Self> {
        let terms = Terms::load(settings)?;
        say(&terms);
        Ok(Self(Arc::new(watch::Sender::new(Arc::new(terms)))))
    }

    /// Reads everything anew and puts it in force, for connections that stand too.
    ///
    /// # Errors
    /// What can't be used, by name. The old terms stay in force.
    pub fn reload(&self, settings: Settings) -> Result<()> {
        let terms = Terms::load(settings)?;
        say(&terms);
        self.0.send_replace(Arc::new(terms));
        Ok(())
    }

    /// Reads the same files anew.
    ///
    /// # Errors
    /// As [`Self::reload`].
    pub fn refresh(&self) -> Result<()> {
        self.reload(self.terms().settings.clone())
    }

    /// Tries once more for a key that could not be made or read.
    pub fn mend(&self) {
        if self.terms().own.is_err() && self.terms().settings.state.is_some() {
            // What is wrong with it is in the status, and said to whom it keeps out.
            let _ = self.refresh();
        }
    }

    /// What is in force now.
    #[must_use]
    pub fn terms(&self) -> Arc<Terms> {
        Arc::clone(&self.0.borrow())
    }

    /// To be told of new terms.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Terms>> {
        self.0.subscribe()
    }
}

fn say(terms: &Terms) {
    if terms.settings.mode == Mode::Off && (terms.named || terms.authority.is_some()) {
        tracing::warn!("tls is off: peers and CAs mean nothing, and whoever reaches the port is served");
    }
    // A command without a place for a key says so where one is needed.
    let keyed = terms.settings.state.is_some() || terms.settings.own.is_some();
    if let Some(warning) = terms.status().warning.filter(|_| keyed) {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests;
