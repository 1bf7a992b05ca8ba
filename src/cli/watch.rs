//! `towline status --watch`: the page again and again, with bytes a second.
//!
//! On a terminal it is a screen of its own, which is left, and the terminal as it was, whatever ends the program:
//! Ctrl-C, TERM, a closed terminal. Elsewhere each look is a block of its own, as JSON a line.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::args::Show;
use crate::control::{self, Request};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::status::{View, plain, rates, render_with, span};

/// The shortest interval.
const LEAST: Duration = Duration::from_millis(100);
/// A screen of its own, without the cursor; and the other way round.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the corner above; what is left of a line; what is left of the screen.
const HOME: &str = "\x1b[H";
const LINE_END: &str = "\x1b[K\r\n";
const REST: &str = "\x1b[J";

pub(super) fn run(args: &Show, every: Duration) -> Result<ExitCode> {
    let every = every.max(LEAST);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "cannot start the runtime")?;
    let result = runtime.block_on(watch(args, every));
    // A look that hangs is not waited for.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

async fn watch(args: &Show, every: Duration) -> Result<()> {
    let listen = |kind| signal(kind).context(|| "cannot listen to signals");
    let (mut int, mut term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut hup = listen(SignalKind::hangup())?;
    let looks = async {
        let mut screen = Screen::open()?;
        let mut before: Option<(Value, Instant)> = None;
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (socket, timeout) = (super::socket(&args.ask.at)?, args.ask.timeout.0);
            let look = tokio::task::spawn_blocking(move || control::call(&socket, &Request::Status, timeout));
            let look = look.await.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
            let at = Instant::now();
            let text = match &look {
                _ if args.ask.json => json_line(&look),
                Ok(status) => {
                    let rates = before.as_ref().map(|(old, then)| rates(View(old), View(status), at - *then));
                    render_with(status, Some(&rates.unwrap_or_default()), screen.columns())
                }
                Err(e) => format!("towline: {e}\n"),
            };
            if !screen.show(&text, every, args.ask.json)? {
                return Ok(());
            }
            before = look.ok().map(|status| (status, at));
        }
    };
    tokio::select! {
        ended = looks => ended,
        _ = int.recv() => Ok(()),
        _ = term.recv() => Ok(()),
        _ = hup.recv() => Ok(()),
    }
}

fn json_line(look: &Result<Value>) -> String {
    match look {
        Ok(status) => format!("{status}\n"),
        Err(e) => format!("{}\n", serde_json::json!({"error": e.to_string(), "kind": e.kind().word()})),
    }
}

/// Where the page is shown. A screen of a terminal is left when this is dropped.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn open() -> Result<Self> {
        let screen = Self { terminal: std::io::stdout().is_terminal() };
        if screen.terminal {
            put(ENTER)?;
        }
        Ok(screen)
    }

    /// How wide a page may be; elsewhere than on a terminal any width will do.
    fn columns(&self) -> Option<usize> {
        self.terminal.then(|| size().0)
    }

    /// Shows a page; false when nobody reads any more.
    fn show(&mut self, text: &str, every: Duration, json: bool) -> Result<bool> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        if self.terminal {
            let head = format!("every {}, {}; Ctrl-C ends it\n\n", span(every.as_secs_f64()), clock(now));
            return put(&frame(&(head + text), size()));
        }
        if json {
            return put(text);
        }
        put(&format!("--- {}\n{text}\n", clock(now)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            let _ = put(LEAVE);
        }
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let size = size.map(|s| (usize::from(s.ws_col), usize::from(s.ws_row)));
    size.filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or((80, 24))
}

/// The page as it is drawn: over the one before, cut off at the edges.
fn frame(text: &str, (columns, rows): (usize, usize)) -> String {
    let mut out = HOME.to_owned();
    for line in text.lines().take(rows.saturating_sub(1)) {
        out.extend(plain(line).chars().take(columns));
        out += LINE_END;
    }
    out + REST
}

/// Time of day, UTC.
fn clock(now: Duration) -> String {
    let s = now.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", s / 3600, s / 60 % 60, s % 60)
}

/// Writes to standard output; false when its reader is gone.
fn put(text: &str) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context(|| "cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_off_at_the_edges_of_the_terminal() {
        let page = frame("abcdef\nx\nlast\x1b[2J\nnever", (4, 4));
        assert_eq!(page, "\x1b[Habcd\x1b[K\r\nx\x1b[K\r\nlast\x1b[K\r\n\x1b[J");
        assert_eq!(clock(Duration::from_secs(86_400 + 3_661)), "01:01:01 UTC");
    }
}
