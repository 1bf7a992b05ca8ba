//! Decoders against bytes from anywhere: whatever comes, they return, with a value or an error, in bounded memory; and
//! what they accept is written back the same.
//!
//! One program holds all targets; `TOWLINE_FUZZ` names the one that runs. Most formats end in a checksum, at which random
//! bytes fail: a target looks at the bytes as they are, and again with the checksums made right.

#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(init: {
    let name = std::env::var("TOWLINE_FUZZ").unwrap_or_default();
    let found = targets::ALL.iter().find(|(n, _)| *n == name);
    let names: Vec<_> = targets::ALL.iter().map(|(n, _)| *n).collect();
    let (_, target) = found.unwrap_or_else(|| panic!("TOWLINE_FUZZ is '{name}'; it is one of {names:?}"));
    TARGET.get_or_init(|| *target);
}, |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        target(data);
    }
});
