//! Waits: every one has a deadline and says what it waited for.

use std::time::{Duration, Instant};

/// Seconds as a duration.
pub(crate) fn within(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Polls `probe` until it gives a value. An `Err` is what is still wrong, printed at the deadline.
pub(crate) fn until<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let last = match probe() {
            Ok(value) => return value,
            Err(why) => why,
        };
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}; last seen: {last}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Asserts that `probe` stays true for `span`.
pub(crate) fn holds_for(span: Duration, what: &str, mut probe: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(why) = probe() {
            panic!("did not hold for {span:?}: {what}: {why}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
