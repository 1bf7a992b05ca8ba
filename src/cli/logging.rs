//! The log of the process, on standard error.
//!
//! | where | a line |
//! | --- | --- |
//! | a file, a terminal, a pipe | time, level, message |
//! | the journal | `<N>` with the level's syslog priority, and the message: the journal keeps time and priority itself |
//! | `--log-json` | one JSON object with `timestamp`, `level`, `target`, `message`, and what else is known; to the journal with `<N>` before it |
//!
//! Levels say who must act: `error`, an operator must, or the node stays as it is; `warn`, somebody should look, the node
//! goes on by itself; `info`, the node changed its state.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{self, Config};
use crate::error::Result;

/// Sets another filter, once the log has started.
type Refilter = Box<dyn Fn(EnvFilter) + Send + Sync>;
static REFILTER: OnceLock<Refilter> = OnceLock::new();

/// Starts the log at `level`, or at `info`.
///
/// # Errors
/// A usage error when `level` is no level and no filter.
pub(super) fn start(level: Option<&str>, json: bool) -> Result<()> {
    let filter = config::log_filter(level.unwrap_or("info"))?;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = match (json, to_journal()) {
        (true, false) => text.json().flatten_event(true).boxed(),
        (true, true) => text.json().flatten_event(true).map_event_format(Prioritized).boxed(),
        (false, false) => text.with_target(false).boxed(),
        (false, true) => {
            text.with_target(false).without_time().with_level(false).map_event_format(Prioritized).boxed()
        }
    };
    let done = tracing_subscriber::registry().with(filter).with(lines).try_init();
    // A second start can only happen in tests; the first one stays. What the command line says stays in force.
    if done.is_ok() && level.is_none() {
        let _ = REFILTER.set(Box::new(move |filter| {
            let _ = handle.reload(filter);
        }));
    }
    Ok(())
}

/// Takes the level that the configuration names into force.
pub(super) fn follow(config: &Config) {
    if let (Some(set), Ok(filter)) = (REFILTER.get(), config::log_filter(&config.log_level)) {
        set(filter);
    }
}

/// Whether standard error is the journal's: `JOURNAL_STREAM` names device and inode of its socket.
fn to_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Some((dev, ino)) = stream.to_str().and_then(|s| s.split_once(':')) else { return false };
    if std::io::stderr().is_terminal() {
        return false;
    }
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|m| dev.parse() == Ok(m.dev()) && ino.parse() == Ok(m.ino()))
}

/// The syslog priority of a level, as `<N>`.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Lines with the priority before each.
struct Prioritized<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        let priority = priority(*event.metadata().level());
        for line in text.lines() {
            writeln!(writer, "{priority}{}", line.trim_start())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_journal_gets_priorities_for_every_line_and_no_times() {
        let sink = Sink::default();
        let out = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_level(false)
            .with_writer(move || out.clone())
            .map_event_format(Prioritized)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(kind = "io", "one\ntwo");
            tracing::warn!("three");
            tracing::info!("four");
            tracing::debug!("five");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<3>one\n<3>two kind=\"io\"\n<4>three\n<6>four\n<7>five\n");
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        assert!(config::log_filter("loud").is_err_and(|e| e.to_string().contains("'loud'")));
        assert!(config::log_filter("towline::capture=debug,warn").is_ok());
        assert!(config::log_filter("towline=").is_err() && config::log_filter("").is_err());
        // The library's own parser cuts some of these within a letter.
        for text in ["le\u{33d}\u{3f2}7/l[e =", "info,\u{e4}=debug", "a[b{c}]=info", "a b=info"] {
            assert!(config::log_filter(text).is_err(), "{text}");
        }
    }
}
