//! Files that are written all the time: each is left alone for a while after it was read, so that reading it takes
//! only a part of the time. Pure; time comes as an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::hints::{Paths, flag};

/// The files that rest: until when, and the flags of the hints that came meanwhile.
#[derive(Debug, Default)]
pub(super) struct Resting(HashMap<Box<[u8]>, (Instant, u16)>);

impl Resting {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first of them has rested.
    pub(super) fn first(&self) -> Option<Instant> {
        self.0.values().map(|(until, _)| *until).min()
    }

    /// A file begins to rest.
    pub(super) fn put(&mut self, rel: &[u8], now: Instant, time: Duration) {
        self.0.insert(rel.into(), (now + time, 0));
    }

    /// Takes files that rest out of `paths`; those whose rest is over are added. What happens to a name does not
    /// wait: something else may stand there now.
    pub(super) fn leave(&mut self, paths: &mut Paths, now: Instant) {
        if self.0.is_empty() {
            return;
        }
        self.0.retain(|path, (until, kept)| {
            let new = paths.get(path).copied().unwrap_or(0);
            if *until > now && new & (flag::ARRIVED | flag::LEFT) == 0 {
                *kept |= new;
                return true;
            }
            *paths.entry(path.clone()).or_default() |= *kept | flag::MODIFIED;
            false
        });
        paths.retain(|path, _| !self.0.contains_key(path));
    }

    /// Ends all rests; what there is to look at.
    pub(super) fn wake(&mut self) -> impl Iterator<Item = (Box<[u8]>, u16)> {
        std::mem::take(&mut self.0).into_iter().map(|(path, (_, kept))| (path, kept | flag::MODIFIED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_millis(5);

    fn paths(of: &[(&str, u16)]) -> Paths {
        of.iter().map(|(path, flags)| (path.as_bytes().into(), *flags)).collect()
    }

    #[test]
    fn writes_wait_and_their_flags_are_kept() {
        let (mut resting, now) = (Resting::default(), Instant::now());
        resting.put(b"a", now, REST);
        let mut batch = paths(&[("a", flag::MODIFIED | flag::ATTRIB), ("b", flag::MODIFIED)]);
        resting.leave(&mut batch, now);
        assert_eq!(batch, paths(&[("b", flag::MODIFIED)]));
        assert_eq!(resting.first(), Some(now + REST));
        let mut batch = paths(&[("a", flag::CLOSED)]);
        resting.leave(&mut batch, now + REST);
        assert_eq!(batch, paths(&[("a", flag::MODIFIED | flag::ATTRIB | flag::CLOSED)]));
        assert!(resting.is_empty() && resting.first().is_none());
    }

    #[test]
    fn what_happens_to_the_name_does_not_wait() {
        for happened in [flag::CREATED, flag::REMOVED, flag::FROM, flag::TO] {
            let (mut resting, now) = (Resting::default(), Instant::now());
            resting.put(b"a", now, REST);
            resting.leave(&mut paths(&[("a", flag::ATTRIB)]), now);
            let mut batch = paths(&[("a", happened)]);
            resting.leave(&mut batch, now);
            assert_eq!(batch, paths(&[("a", happened | flag::ATTRIB | flag::MODIFIED)]));
            assert!(resting.is_empty());
        }
    }

    #[test]
    fn those_that_are_woken_say_all_that_was_heard() {
        let (mut resting, now) = (Resting::default(), Instant::now());
        resting.put(b"a", now, REST);
        resting.leave(&mut paths(&[("a", flag::ATTRIB)]), now);
        assert_eq!(resting.wake().collect::<Paths>(), paths(&[("a", flag::ATTRIB | flag::MODIFIED)]));
        assert!(resting.is_empty());
    }
}
