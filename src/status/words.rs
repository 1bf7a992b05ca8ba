//! Numbers as people read them.

/// Bytes with a binary unit: `0 B`, `812 B`, `3.4 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A span of time: `0.0 s`, `12.3 s`, `4m 10s`, `3h 2m`, `5d 1h`.
#[must_use]
pub fn span(seconds: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float is cut off at its bounds"
    )]
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..120 => format!("{:.1} s", seconds.max(0.0)),
        120..7200 => format!("{}m {}s", whole / 60, whole % 60),
        7200..172_800 => format!("{}h {}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// `text` on one line, without what a terminal would act on.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_that_fit() {
        let table =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), (1_048_575, "1.0 MiB")];
        for (n, text) in table {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        for (s, text) in
            [(0.0, "0.0 s"), (-3.0, "0.0 s"), (119.96, "120.0 s"), (130.0, "2m 10s"), (7200.0, "2h 0m")]
        {
            assert_eq!(span(s), text);
        }
        assert_eq!(span(200_000.0), "2d 7h");
        assert_eq!(plain("a\x1b[2Jb\n"), "a [2Jb ");
    }
}
