//! A TCP proxy that can be told to misbehave: cut, refuse, stall without FIN, delay, throttle, flip
//! bytes and truncate. One thread per direction and connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::bed::free_port;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From the side that connected.
    Up,
    /// From the side that listens.
    Down,
}

#[derive(Default)]
struct Control {
    stop: AtomicBool,
    refuse: AtomicBool,
    stall: AtomicBool,
    delay_ms: AtomicU64,
    /// Bytes a second in each direction, 0: no limit.
    rate: AtomicU64,
    /// Flip one bit once in so many bytes going down (0: never).
    flip_every: AtomicU64,
    /// Cut a connection after so many bytes went down on it (0: never).
    truncate_after: AtomicU64,
    accepted: AtomicU64,
    flips: AtomicU64,
    truncated: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
    /// The first bytes of the first connection, for replay.
    first: Mutex<[Vec<u8>; 2]>,
}

/// The proxy; dropping it closes everything.
pub(crate) struct Proxy {
    port: u16,
    control: Arc<Control>,
}

impl Proxy {
    /// Listens on a free port for connections to `upstream` on loopback.
    pub(crate) fn to(upstream: u16) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
        let control = Arc::new(Control::default());
        let shared = control.clone();
        thread::spawn(move || accept(&listener, upstream, &shared));
        Self { port, control }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection now.
    pub(crate) fn cut(&self) {
        for s in self.control.open.lock().expect("lock").drain(..) {
            let _ = s.shutdown(Shutdown::Both);
        }
    }

    /// While on, new connections are closed at once; open ones go on.
    pub(crate) fn refuse(&self, on: bool) {
        self.control.refuse.store(on, SeqCst);
    }

    /// While on, connections stay open and no byte moves.
    pub(crate) fn stall(&self, on: bool) {
        self.control.stall.store(on, SeqCst);
    }

    /// Holds each piece back so long.
    pub(crate) fn delay(&self, ms: u64) {
        self.control.delay_ms.store(ms, SeqCst);
    }

    /// Lets so many bytes a second through, 0: all.
    pub(crate) fn throttle(&self, bytes: u64) {
        self.control.rate.store(bytes, SeqCst);
    }

    /// Flips one bit once in so many bytes going down, 0: none.
    pub(crate) fn flip(&self, every: u64) {
        self.control.flip_every.store(every, SeqCst);
    }

    /// Closes a connection after so many bytes down, 0: never.
    pub(crate) fn truncate(&self, after: u64) {
        self.control.truncate_after.store(after, SeqCst);
    }

    /// Back to an honest network.
    pub(crate) fn calm(&self) {
        self.refuse(false);
        self.stall(false);
        self.delay(0);
        self.throttle(0);
        self.flip(0);
        self.truncate(0);
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.control.accepted.load(SeqCst)
    }

    /// Bits flipped so far.
    pub(crate) fn flips(&self) -> u64 {
        self.control.flips.load(SeqCst)
    }

    /// Connections truncated so far.
    pub(crate) fn truncated(&self) -> u64 {
        self.control.truncated.load(SeqCst)
    }

    /// Bytes so far: up, down.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.control.up.load(SeqCst), self.control.down.load(SeqCst))
    }

    /// The first 64 KiB that went `way` on the first connection.
    pub(crate) fn recorded(&self, way: Way) -> Vec<u8> {
        self.control.first.lock().expect("lock")[way as usize].clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.control.stop.store(true, SeqCst);
        self.cut();
        // Wakes the acceptor.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn accept(listener: &TcpListener, upstream: u16, control: &Arc<Control>) {
    for down in listener.incoming() {
        if control.stop.load(SeqCst) {
            return;
        }
        let Ok(down) = down else { continue };
        let number = control.accepted.fetch_add(1, SeqCst);
        if control.refuse.load(SeqCst) {
            continue;
        }
        let Ok(up) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
        let _ = (down.set_nodelay(true), up.set_nodelay(true));
        let mut open = control.open.lock().expect("lock");
        for s in [&down, &up] {
            open.push(s.try_clone().expect("clone"));
        }
        drop(open);
        for (from, to, way) in [(&down, &up, Way::Up), (&up, &down, Way::Down)] {
            let (from, to) = (from.try_clone().expect("clone"), to.try_clone().expect("clone"));
            let control = control.clone();
            thread::spawn(move || {
                pump(&from, &to, way, number == 0, &control);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, way: Way, first: bool, control: &Control) {
    let mut buf = vec![0_u8; 64 << 10];
    let mut passed = 0_u64;
    let mut since_flip = 0_u64;
    while !control.stop.load(SeqCst) {
        while control.stall.load(SeqCst) && !control.stop.load(SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
        let mut n = match from.read(&mut buf) {
            Ok(0) | Err(_) => {
                // The end of a connection is not seen either while no byte moves.
                while control.stall.load(SeqCst) && !control.stop.load(SeqCst) {
                    thread::sleep(Duration::from_millis(10));
                }
                return;
            }
            Ok(n) => n,
        };
        while control.stall.load(SeqCst) && !control.stop.load(SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
        if first {
            let seen = &mut control.first.lock().expect("lock")[way as usize];
            if seen.len() < 64 << 10 {
                seen.extend_from_slice(&buf[..n]);
            }
        }
        let start = Instant::now();
        thread::sleep(Duration::from_millis(control.delay_ms.load(SeqCst)));
        let mut ends = false;
        if way == Way::Down {
            since_flip += n as u64;
            let every = control.flip_every.load(SeqCst);
            if every > 0 && since_flip >= every {
                since_flip = 0;
                buf[fastrand::usize(..n)] ^= 1 << fastrand::u8(..8);
                control.flips.fetch_add(1, SeqCst);
            }
            let after = control.truncate_after.load(SeqCst);
            if after > 0 && passed + n as u64 >= after {
                n = after.saturating_sub(passed) as usize;
                ends = true;
                control.truncated.fetch_add(1, SeqCst);
            }
        }
        if to.write_all(&buf[..n]).is_err() || ends {
            return;
        }
        passed += n as u64;
        let total = if way == Way::Up { &control.up } else { &control.down };
        total.fetch_add(n as u64, SeqCst);
        let rate = control.rate.load(SeqCst);
        if rate > 0 {
            let due = Duration::from_secs_f64(n as f64 / rate as f64);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
}

#[test]
fn the_proxy_passes_flips_truncates_and_stalls() {
    let echo = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = echo.local_addr().expect("addr").port();
    thread::spawn(move || {
        for s in echo.incoming().flatten() {
            thread::spawn(move || {
                let mut w = s.try_clone().expect("clone");
                let _ = std::io::copy(&mut &s, &mut w);
            });
        }
    });
    let proxy = Proxy::to(port);
    let ask = |bytes: &[u8], wait: u64| {
        let mut s = TcpStream::connect(("127.0.0.1", proxy.port())).expect("connect");
        s.set_read_timeout(Some(Duration::from_millis(wait))).expect("timeout");
        s.write_all(bytes).expect("write");
        let mut got = vec![0; bytes.len()];
        let mut at = 0;
        while at < got.len() {
            match s.read(&mut got[at..]) {
                Ok(0) | Err(_) => break,
                Ok(n) => at += n,
            }
        }
        got.truncate(at);
        got
    };
    assert_eq!(ask(b"hello", 2000), b"hello");
    proxy.flip(1);
    assert_ne!(ask(b"hello", 2000), b"hello");
    assert!(proxy.flips() > 0);
    proxy.calm();
    proxy.truncate(3);
    assert_eq!(ask(b"hello", 2000), b"hel");
    proxy.calm();
    proxy.stall(true);
    assert_eq!(ask(b"hello", 200), b"");
    proxy.calm();
    assert_eq!(ask(b"again", 2000), b"again");
    assert_eq!(proxy.recorded(Way::Up), b"hello");
    assert!(proxy.accepted() >= 5);
}
