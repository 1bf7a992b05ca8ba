//! Connections that are plain TCP or TLS 1.3, whichever the terms in force demand, and what binds them to a peer.
//!
//! Plain connections are read and written as before; each is told apart from an encrypted one by a branch. Below TLS
//! there is a buffer for reading: the library asks for 4 KiB at a time, and a record has 16 KiB.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio_rustls::rustls::{AlertDescription, Error as TlsError};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{
    CONNECT, End, Ended, HANDSHAKE, MessageReader, MessageWriter, TcpHalves, Traffic, connect, greet,
    one_line,
};
use crate::certificate::Fingerprint;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::tls::{Presented, Terms, Trust};
use crate::trust::{Ask, Refusal, Role};
use crate::wire::{Code, Hello, Welcome};

/// Bytes read at once from the network below TLS: some records.
const ENCRYPTED_BUFFER: usize = 128 << 10;
/// Most bytes that TLS keeps of what is written before the network takes them: a piece of log as one write.
const WRITE_BUFFER: usize = 512 << 10;
/// A connection that stands is judged anew after this time, in which a certificate may have expired.
const JUDGED_ANEW: Duration = Duration::from_secs(600);
/// First byte of a TLS record that begins a handshake. No hello of ours begins with it: it would be the lowest byte of
/// its length.
const TLS_HANDSHAKE: u8 = 0x16;
/// What a plain port answers to TLS: a record of TLS that says "access denied" (RFC 8446, 5.1 and 6).
pub const TLS_DENIED: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 49];

type Encrypted = TlsStream<BufReader<TcpStream>>;

/// The receiving half of a connection.
#[derive(Debug)]
pub enum ReadSide {
    /// Plain TCP.
    Plain(OwnedReadHalf),
    /// TLS.
    Tls(ReadHalf<Encrypted>),
}

/// The sending half of a connection.
#[derive(Debug)]
pub enum WriteSide {
    /// Plain TCP.
    Plain(OwnedWriteHalf),
    /// TLS.
    Tls(WriteHalf<Encrypted>),
}

impl AsyncRead for ReadSide {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_read(cx, buf),
            Self::Tls(half) => Pin::new(half).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for WriteSide {
    fn poll_write(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_write(cx, buf),
            Self::Tls(half) => Pin::new(half).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_flush(cx),
            Self::Tls(half) => Pin::new(half).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_shutdown(cx),
            Self::Tls(half) => Pin::new(half).poll_shutdown(cx),
        }
    }
}

/// What a connection rests on: who the peer is, and the terms under which it is let in.
#[derive(Debug)]
pub struct Bond {
    trust: Trust,
    changes: watch::Receiver<Arc<Terms>>,
    /// `None`: plain TCP.
    shown: Option<Presented>,
    /// The end of the connection whose address says whether TLS is needed.
    at: IpAddr,
}

impl Bond {
    fn new(trust: &Trust, shown: Option<Presented>, at: IpAddr) -> Self {
        Self { trust: trust.clone(), changes: trust.subscribe(), shown, at }
    }

    /// The peer's key; `None` for plain TCP.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.shown.as_ref().map(Presented::fingerprint)
    }

    /// Whether the connection is encrypted, the peer's key, and its roles as `status` shows them.
    #[must_use]
    pub fn shown(&self, roles: Vec<Role>) -> (bool, Option<Fingerprint>, Vec<Role>) {
        (self.shown.is_some(), self.fingerprint(), roles)
    }

    /// What the peer that calls itself `said` may be and do here, by the terms now in force; no roles for plain TCP.
    ///
    /// # Errors
    /// The rule that is broken, and what to do about it.
    pub fn judge(&self, said: Option<&str>, ask: Ask) -> std::result::Result<Vec<Role>, Refusal> {
        let terms = self.trust.terms();
        match &self.shown {
            Some(shown) => terms.judge(shown, said, ask),
            None if terms.needs_tls(self.at) => Err(plain_refused(&terms)),
            None => Ok(Vec::new()),
        }
    }

    /// Waits until the terms change, or a certificate may have expired, so that the peer is no longer let in.
    pub async fn revoked(&mut self, said: &str, ask: Ask) -> Refusal {
        loop {
            // The terms live as long as `self`, so that a change is the only thing that ends this.
            let _ = tokio::time::timeout(JUDGED_ANEW, self.changes.changed()).await;
            if let Err(refusal) = self.judge(Some(said), ask) {
                return refusal;
            }
        }
    }
}

fn plain_refused(terms: &Terms) -> Refusal {
    let reason = format!(
        "'{}' takes TLS only, and this connection is plain TCP; set tls = \"on\" on the other side, and have the two trust \
         each other (`towline id`, `towline trust`)",
        terms.name()
    );
    Refusal { code: Code::Tls, reason }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.code, refusal.reason)
    }
}

fn halves(stream: Encrypted, silence: Duration, traffic: &Arc<Traffic>) -> TcpHalves {
    let (read, write) = tokio::io::split(stream);
    let reader = MessageReader::new(ReadSide::Tls(read), silence, Arc::clone(traffic));
    (reader, MessageWriter::new(WriteSide::Tls(write), Arc::clone(traffic)))
}

/// A connection to the node at `address`, whose certificate, if it has to show one, is trusted.
async fn dial(
    address: &str,
    trust: &Trust,
    silence: Duration,
    traffic: &Arc<Traffic>,
) -> Ended<(TcpHalves, Bond)> {
    let stream = connect(address).await?;
    let at = stream.peer_addr().context(|| "connection lost")?.ip();
    let terms = trust.terms();
    if !terms.needs_tls(at) {
        return Ok((super::over_tcp(stream, silence, traffic)?, Bond::new(trust, None, at)));
    }
    let config = terms.client().map_err(|e| End::Local(e.wrap("TLS is needed, but this node has no key")))?;
    stream.set_nodelay(true).context(|| "cannot set up the connection")?;
    let stream = BufReader::with_capacity(ENCRYPTED_BUFFER, stream);
    // The certificate is judged by its key and the node's name; what the address is called does not count.
    let anyone = ServerName::IpAddress(at.into());
    let shaking = tokio::time::timeout(CONNECT, TlsConnector::from(config).connect(anyone, stream));
    let late = |_| Error::new(ErrorKind::Unavailable, "no TLS handshake within the time allowed");
    let mut stream: Encrypted = shaking.await.map_err(late)?.map_err(|e| not_tls(&e))?.into();
    if let TlsStream::Client(client) = &mut stream {
        client.get_mut().1.set_buffer_limit(Some(WRITE_BUFFER));
    }
    let shown = Presented::new(stream.get_ref().1.peer_certificates(), true)?;
    let bond = Bond::new(trust, Some(shown), at);
    let (reader, mut writer) = halves(stream, silence, traffic);
    if let Err(refusal) = bond.judge(None, Ask::Lead) {
        writer.goodbye(refusal.code, &refusal.reason).await;
        return Err(refusal.into());
    }
    Ok(((reader, writer), bond))
}

/// What a failed handshake tells of the other side.
fn not_tls(e: &io::Error) -> End {
    match e.get_ref().and_then(|e| e.downcast_ref::<TlsError>()) {
        Some(TlsError::AlertReceived(AlertDescription::AccessDenied)) => {
            let text = "the node there takes plain TCP only; set its tls to \"on\", or to \"auto\" and let it trust this node \
                        (`towline trust`); or write tls = \"off\" on this side too";
            End::Refused(Code::Tls, text.to_owned())
        }
        Some(TlsError::InvalidMessage(_)) => {
            let text =
                "what answers there does not speak TLS; is it a node with tls = \"off\", or the right port?";
            End::Refused(Code::Tls, text.to_owned())
        }
        Some(other) => {
            let text = format!("the TLS handshake failed: {}", one_line(&other.to_string()));
            End::Lost(Error::new(ErrorKind::Unavailable, text))
        }
        None if e.kind() == io::ErrorKind::UnexpectedEof => {
            let text = "the connection was closed in the TLS handshake; an older towline, or one with tls = \"off\", does so, \
                        and a busy one";
            End::Lost(Error::new(ErrorKind::Unavailable, text))
        }
        None => End::Lost(Error::new(ErrorKind::Unavailable, format!("the TLS handshake failed: {e}"))),
    }
}

/// A node that was connected to and has answered.
#[derive(Debug)]
pub struct Met {
    /// From it.
    pub reader: MessageReader<ReadSide>,
    /// To it.
    pub writer: MessageWriter<WriteSide>,
    /// Its answer.
    pub welcome: Welcome,
    /// Who it is, and that it may be followed.
    pub bond: Bond,
}

impl Met {
    /// Waits until the node may no longer be followed.
    pub async fn revoked(bond: &mut Bond, name: &str) -> End {
        bond.revoked(name, Ask::Lead).await.into()
    }
}

/// Connects to the node at `address`, says hello, and takes its answer. What it says counts only if it may be followed.
pub async fn meet(
    address: &str,
    trust: &Trust,
    silence: Duration,
    traffic: &Arc<Traffic>,
    hello: Hello,
) -> Ended<Met> {
    let ((mut reader, mut writer), bond) = dial(address, trust, silence, traffic).await?;
    let welcome = greet(&mut reader, &mut writer, hello).await?;
    if let Err(refusal) = bond.judge(Some(&welcome.name), Ask::Lead) {
        writer.goodbye(refusal.code, &refusal.reason).await;
        return Err(refusal.into());
    }
    Ok(Met { reader, writer, welcome, bond })
}

/// Takes a connection that came in, as far as messages can pass. It has to be judged when its hello is there.
pub async fn answer(
    stream: TcpStream,
    trust: &Trust,
    silence: Duration,
    traffic: &Arc<Traffic>,
) -> Result<(TcpHalves, Bond)> {
    let at = stream.local_addr().context(|| "connection lost")?.ip();
    let terms = trust.terms();
    if !terms.needs_tls(at) || !begins_tls(&stream).await? {
        return Ok((super::over_tcp(stream, silence, traffic)?, Bond::new(trust, None, at)));
    }
    stream.set_nodelay(true).context(|| "cannot set up the connection")?;
    let stream = BufReader::with_capacity(ENCRYPTED_BUFFER, stream);
    let shaking = TlsAcceptor::from(terms.server()?).accept(stream);
    let late = |_| Error::new(ErrorKind::Unavailable, "no TLS handshake within the time allowed");
    let shaken = tokio::time::timeout(HANDSHAKE, shaking).await.map_err(late)?;
    let mut stream: Encrypted = shaken.map_err(|e| failed_handshake(&e))?.into();
    if let TlsStream::Server(server) = &mut stream {
        server.get_mut().1.set_buffer_limit(Some(WRITE_BUFFER));
    }
    let shown = Presented::new(stream.get_ref().1.peer_certificates(), false)?;
    Ok((halves(stream, silence, traffic), Bond::new(trust, Some(shown), at)))
}

/// Whether the first byte that comes is one of TLS.
async fn begins_tls(stream: &TcpStream) -> Result<bool> {
    let mut first = [0];
    let n = stream.peek(&mut first).await.context(|| "connection lost")?;
    if n == 0 {
        return Err(Error::new(ErrorKind::Unavailable, "the peer left without a word"));
    }
    Ok(first[0] == TLS_HANDSHAKE)
}

fn failed_handshake(e: &io::Error) -> Error {
    let text = match e.get_ref().and_then(|e| e.downcast_ref::<TlsError>()) {
        Some(TlsError::NoCertificatesPresented) => {
            "the peer has no certificate; a towline that speaks TLS has one".to_owned()
        }
        _ => format!("the TLS handshake failed: {}", one_line(&e.to_string())),
    };
    Error::new(ErrorKind::Refused, text)
}
