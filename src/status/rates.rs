//! Bytes a second between two looks at a node.

use std::collections::BTreeMap;
use std::time::Duration;

use super::View;

/// Bytes a second since the look before.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    /// Log that was added.
    pub log: Option<u64>,
    /// Sent to each follower.
    pub followers: BTreeMap<String, u64>,
}

/// What changed between two looks that are `apart`. A counter that went back, as over a new connection, has no rate.
#[must_use]
pub fn rates(before: View<'_>, now: View<'_>, apart: Duration) -> Rates {
    let ms = u64::try_from(apart.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = |old: u64, new: u64| Some(new.checked_sub(old)?.saturating_mul(1000) / ms);
    let log = before.lsn("/log/end").zip(now.lsn("/log/end")).and_then(|(old, new)| rate(old, new));
    let old: BTreeMap<&str, u64> =
        before.list("/followers").map(|f| (f.text("/name"), f.count("/bytes_sent"))).collect();
    let each = now.list("/followers").filter_map(|f| {
        let (name, sent) = (f.text("/name"), f.count("/bytes_sent"));
        Some((name.to_owned(), rate(*old.get(name)?, sent)?))
    });
    Rates { log, followers: each.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rates_are_per_second_and_none_over_a_new_connection() {
        let look = |end: &str, a: u64, b: u64| json!({"log": {"end": end}, "followers": [{"name": "a", "bytes_sent": a}, {"name": "b", "bytes_sent": b}]});
        let (old, new) = (look("0/1000", 100, 500), look("0/3000", 300, 20));
        let r = rates(View(&old), View(&new), Duration::from_millis(500));
        assert_eq!(r.log, Some(2 * 0x2000));
        assert_eq!(r.followers, BTreeMap::from([("a".to_owned(), 400)]));
    }
}
