//! Framed connections over anything that reads and writes bytes: whole messages in and out, counters,
//! silence deadlines. What they run over, plain TCP or TLS, is [`ReadSide`]'s and [`WriteSide`]'s matter.
//!
//! A peer is alive as long as bytes come from it, whatever they are: each read has the deadline, a
//! message as a whole has none, so a large message on a slow line is no dead peer. Both sides send
//! something at least every half deadline.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::wire::{Code, HEADER, Head, Hello, Kind, Message, TRAILER, Welcome};

mod ancestry;
mod link;
mod retry;
mod upstream;

pub use ancestry::Ancestry;
pub use link::{Bond, Met, ReadSide, TLS_DENIED, WriteSide, answer, meet};
pub use retry::{End, Ended, Retry, Sources, Target};
pub use upstream::{FillProgress, Upstream, UpstreamState, UpstreamStatus};

/// Longest time from the first byte of a connection to the end of hello and welcome.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest wait for a TCP connection to be made.
pub const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for a goodbye to leave.
const GOODBYE: Duration = Duration::from_secs(1);
/// Bytes read at once where messages are small.
const READ_BUFFER: usize = 32 << 10;

/// Nanoseconds since 1970 by this machine's clock.
#[must_use]
pub fn wall_clock() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// What passed over a connection.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    heard: AtomicI64,
    waited: AtomicU64,
    /// Most bytes a second to be received; 0: any.
    rate: u64,
    pace: Mutex<Option<Pace>>,
}

/// Since when so many bytes were received at the rate allowed.
#[derive(Debug)]
struct Pace {
    since: Instant,
    received: u64,
}

/// What was not used of the rate for longer than this is forfeited.
const BURST: Duration = Duration::from_secs(1);

impl Traffic {
    /// Nothing passes any more; something was last heard then, nanoseconds since 1970.
    #[must_use]
    pub fn until(heard: i64) -> Self {
        Self { heard: AtomicI64::new(heard), ..Self::default() }
    }

    /// At most so many bytes a second are received over the connection; 0: any.
    #[must_use]
    pub fn limited(rate: u64) -> Self {
        Self { rate, ..Self::default() }
    }

    /// How long to rest before more is received.
    fn rest(&self) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let (now, received) = (Instant::now(), self.bytes().0);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = pace.get_or_insert(Pace { since: now, received: 0 });
        let span = |bytes: u64| Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let due = pace.since + span(received - pace.received);
        if due + BURST < now {
            *pace = Pace { since: now - BURST, received };
        }
        due.saturating_duration_since(now)
    }

    /// Bytes received and sent.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// How long reading waited for bytes that had not come yet.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// When the last byte came, nanoseconds since 1970; 0 before the first.
    #[must_use]
    pub fn heard(&self) -> i64 {
        self.heard.load(Ordering::Relaxed)
    }
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct MessageReader<R> {
    inner: BufReader<R>,
    traffic: Arc<Traffic>,
    silence: Duration,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads messages from `inner`; a peer that sends nothing for `silence` is given up.
    pub fn new(inner: R, silence: Duration, traffic: Arc<Traffic>) -> Self {
        Self { inner: BufReader::with_capacity(READ_BUFFER, inner), traffic, silence }
    }

    /// The next message; `None` when the peer closed the connection between two messages.
    ///
    /// # Errors
    /// `Corrupt` for bytes that are no message (nothing of them is used), `Unavailable` for a peer
    /// that is silent or breaks off. Not to be called again after an error, nor after being dropped half-way.
    pub async fn next(&mut self) -> Result<Option<Message>> {
        let mut head = Vec::with_capacity(HEADER);
        if !self.fill(&mut head, HEADER).await? {
            return Ok(None);
        }
        let head: [u8; HEADER] = head.as_slice().try_into().map_err(|_| broken_off())?;
        let head = Head::decode(&head)?;
        let len = head.len + TRAILER;
        let mut body = Vec::with_capacity(len);
        if !self.fill(&mut body, len).await? {
            return Err(broken_off());
        }
        let message = head.message(body)?;
        let rest = self.traffic.rest();
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
            let waited = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
            self.traffic.waited.fetch_add(waited, Ordering::Relaxed);
        }
        Ok(Some(message))
    }

    /// The first message of a connection that came in: a hello. Nothing longer than one is waited for.
    ///
    /// # Errors
    /// As [`Self::next`]; [`ErrorKind::Refused`] when the peer begins with TLS, in the place of a hello.
    pub async fn hello(&mut self) -> Result<Hello> {
        let left = || Error::new(ErrorKind::Unavailable, "the peer left without a hello");
        let mut head = Vec::with_capacity(HEADER);
        if !self.fill(&mut head, HEADER).await? {
            return Err(left());
        }
        if head.starts_with(&[0x16, 3]) {
            let text = "the peer speaks TLS, and this node plain TCP (its tls is \"off\", or \"auto\" and nobody is trusted)";
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let head: [u8; HEADER] = head.as_slice().try_into().map_err(|_| broken_off())?;
        let head = Head::decode(&head)?;
        if !matches!(head.kind, Kind::Hello | Kind::Goodbye) {
            let text = format!("the peer began with a {:?} message in the place of a hello", head.kind);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let mut body = Vec::with_capacity(head.len + TRAILER);
        if !self.fill(&mut body, head.len + TRAILER).await? {
            return Err(broken_off());
        }
        match head.message(body)? {
            Message::Hello(hello) => Ok(hello),
            Message::Goodbye { reason, .. } => {
                let text = format!("the peer left before its hello: {}", one_line(&reason));
                Err(Error::new(ErrorKind::Unavailable, text))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Reads exactly `len` bytes into the empty `to`; false at a clean end before the first.
    async fn fill(&mut self, to: &mut Vec<u8>, len: usize) -> Result<bool> {
        while to.len() < len {
            let mut rest = (&mut self.inner).take((len - to.len()) as u64);
            let mut read = pin!(rest.read_buf(to));
            let mut since = None;
            let watched = poll_fn(|cx| {
                let polled = read.as_mut().poll(cx);
                if polled.is_pending() {
                    since.get_or_insert_with(Instant::now);
                }
                polled
            });
            let read = tokio::time::timeout(self.silence, watched).await;
            if let Some(since) = since {
                let waited = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.traffic.waited.fetch_add(waited, Ordering::Relaxed);
            }
            let n = read.map_err(|_| silent(self.silence))?.map_err(lost)?;
            if n == 0 {
                return if to.is_empty() { Ok(false) } else { Err(broken_off()) };
            }
            self.traffic.received.fetch_add(n as u64, Ordering::Relaxed);
            self.traffic.heard.store(wall_clock(), Ordering::Relaxed);
        }
        Ok(true)
    }
}

fn lost(e: io::Error) -> Error {
    // What the TLS library has to say about this is for those who program it.
    if e.kind() == io::ErrorKind::UnexpectedEof {
        return Error::new(ErrorKind::Unavailable, "connection lost: the peer closed it without a goodbye");
    }
    Error::from(e).wrap("connection lost")
}

fn broken_off() -> Error {
    Error::new(ErrorKind::Unavailable, "the peer broke the connection off inside a message")
}

fn silent(limit: Duration) -> Error {
    let text = format!("the peer sent nothing for {} ms and is taken for dead", limit.as_millis());
    Error::new(ErrorKind::Unavailable, text)
}

/// The error of a message that the protocol does not allow at this point.
#[must_use]
pub fn unexpected(message: &Message) -> Error {
    let text = format!("the peer sent a {:?} message, which has no place here", message.kind());
    Error::new(ErrorKind::Corrupt, text)
}

/// The sending half of a connection. Nothing is kept back: what is sent is handed to the operating
/// system, and a peer that does not read holds the sender up.
#[derive(Debug)]
pub struct MessageWriter<W> {
    inner: W,
    traffic: Arc<Traffic>,
}

impl<W: AsyncWrite + Unpin> MessageWriter<W> {
    /// Sends messages into `inner`.
    pub fn new(inner: W, traffic: Arc<Traffic>) -> Self {
        Self { inner, traffic }
    }

    /// Sends one message.
    pub async fn send(&mut self, message: &Message) -> Result<()> {
        self.send_encoded(&message.encode()).await
    }

    /// Sends messages that are already encoded.
    pub async fn send_encoded(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let n = self.inner.write(bytes).await.context(|| "connection lost")?;
            if n == 0 {
                return Err(Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).wrap("connection lost"));
            }
            self.traffic.sent.fetch_add(n as u64, Ordering::Relaxed);
            bytes = &bytes[n..];
        }
        self.inner.flush().await.context(|| "connection lost")
    }

    /// Says why the connection ends, if that can be said at once, and ends it.
    pub async fn goodbye(&mut self, code: Code, reason: &str) {
        let message = Message::Goodbye { code, reason: reason.to_owned() };
        let said = async {
            self.send(&message).await?;
            self.inner.shutdown().await.map_err(Error::from)
        };
        // The peer may be gone already; the goodbye is a courtesy.
        let _ = tokio::time::timeout(GOODBYE, said).await;
    }
}

/// The two halves of a connection, ready for messages.
pub type TcpHalves = (MessageReader<ReadSide>, MessageWriter<WriteSide>);

/// Prepares a TCP stream: no delay for small messages, both halves counted by `traffic`.
pub fn over_tcp(stream: TcpStream, silence: Duration, traffic: &Arc<Traffic>) -> Result<TcpHalves> {
    stream.set_nodelay(true).context(|| "cannot set up the connection")?;
    let (read, write) = stream.into_split();
    let reader = MessageReader::new(ReadSide::Plain(read), silence, Arc::clone(traffic));
    Ok((reader, MessageWriter::new(WriteSide::Plain(write), Arc::clone(traffic))))
}

/// Connects to `host:port`.
pub async fn connect(address: &str) -> Result<TcpStream> {
    let attempt = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
    let too_slow = |_| Error::new(ErrorKind::Unavailable, "no answer in time");
    let stream = attempt.map_err(too_slow).and_then(|r| r.map_err(Error::from));
    stream.map_err(|e| e.with_kind(ErrorKind::Unavailable).wrap(&format!("cannot connect to {address}")))
}

/// Says hello over a new connection and takes the answer.
pub async fn greet<R, W>(
    reader: &mut MessageReader<R>,
    writer: &mut MessageWriter<W>,
    hello: Hello,
) -> Result<Welcome>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let dialogue = async {
        writer.send(&Message::Hello(hello)).await?;
        match reader.next().await? {
            Some(Message::Welcome(welcome)) => Ok(welcome),
            Some(Message::Goodbye { reason, .. }) => {
                let text = format!("the peer said goodbye instead of welcome: {}", one_line(&reason));
                Err(Error::new(ErrorKind::Unavailable, text))
            }
            Some(other) => Err(unexpected(&other)),
            None => {
                Err(Error::new(ErrorKind::Unavailable, "the peer closed the connection without a welcome"))
            }
        }
    };
    let late = |_| Error::new(ErrorKind::Unavailable, "no welcome within the time allowed");
    tokio::time::timeout(HANDSHAKE, dialogue).await.map_err(late)?
}

/// A peer's words as one line that can't be taken for more than that.
#[must_use]
pub fn one_line(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for c in words.chars() {
        if matches!(c, '\'' | '"') { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    out
}

/// Lets one log line through per period and counts the rest.
#[derive(Debug)]
pub struct Quiet {
    period: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Quiet {
    /// One line per `period`.
    #[must_use]
    pub const fn new(period: Duration) -> Self {
        Self { period, state: Mutex::new((None, 0)) }
    }

    /// Whether to write a line now, and what to end it with: how many were left out since the last one.
    pub fn line(&self) -> Option<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| last.elapsed() < self.period) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(Instant::now());
        Some(match std::mem::take(&mut state.1) {
            0 => String::new(),
            n => format!(" ({n} more like this since the last line)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Lsn;

    fn pair(silence: Duration) -> (MessageReader<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (a, b) = tokio::io::duplex(64);
        (MessageReader::new(a, silence, Arc::default()), b)
    }

    #[test]
    fn words_of_a_peer_stay_readable_and_one_line() {
        assert_eq!(one_line("the follower's \"log\"\n\u{1b}[2J"), "the follower's \"log\"\\n\\u{1b}[2J");
    }

    #[tokio::test]
    async fn messages_arrive_whole_whatever_the_pieces() {
        let (mut reader, far) = pair(Duration::from_secs(5));
        let traffic = Arc::new(Traffic::default());
        let mut writer = MessageWriter::new(far, Arc::clone(&traffic));
        let sent = tokio::spawn(async move {
            for n in 0..50 {
                writer.send(&Message::FillEnd { end: Lsn(n) }).await.unwrap();
            }
            writer.goodbye(Code::Shutdown, "bye").await;
        });
        for n in 0..50 {
            assert_eq!(reader.next().await.unwrap(), Some(Message::FillEnd { end: Lsn(n) }));
        }
        assert!(matches!(reader.next().await.unwrap(), Some(Message::Goodbye { code: Code::Shutdown, .. })));
        assert_eq!(reader.next().await.unwrap(), None);
        sent.await.unwrap();
        assert_eq!(reader.traffic.bytes().0, traffic.bytes().1);
        assert!(reader.traffic.heard() > 0);
    }

    #[tokio::test]
    async fn silence_is_a_dead_peer_but_slow_bytes_are_not() {
        let (mut reader, mut far) = pair(Duration::from_millis(300));
        let bytes = Message::FillEnd { end: Lsn(3) }.encode();
        let feeder = tokio::spawn(async move {
            for b in bytes {
                tokio::time::sleep(Duration::from_millis(30)).await;
                far.write_all(&[b]).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(100)).await;
        });
        assert_eq!(reader.next().await.unwrap(), Some(Message::FillEnd { end: Lsn(3) }));
        let err = reader.next().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Unavailable);
        assert!(err.to_string().contains("nothing for 300 ms"), "{err}");
        feeder.abort();
    }

    #[tokio::test]
    async fn random_bytes_and_broken_messages_are_named_errors() {
        let (mut reader, mut far) = pair(Duration::from_secs(5));
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let err = reader.next().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt);
        assert!(err.to_string().contains("does not speak towline"), "{err}");

        let (mut reader, mut far) = pair(Duration::from_secs(5));
        let bytes = Message::FillEnd { end: Lsn(3) }.encode();
        far.write_all(&bytes[..10]).await.unwrap();
        drop(far);
        assert_eq!(reader.next().await.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_quiet_line_counts_what_it_left_out() {
        let quiet = Quiet::new(Duration::from_millis(30));
        assert_eq!(quiet.line().as_deref(), Some(""));
        assert_eq!((quiet.line(), quiet.line()), (None, None));
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(quiet.line().as_deref(), Some(" (2 more like this since the last line)"));
    }
}
