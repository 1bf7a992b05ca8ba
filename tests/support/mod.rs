//! What the black-box suites share: temporary directories, processes that never outlive a test,
//! waits with a deadline, a hostile network, and a comparison of trees that is not towline's.

#![allow(dead_code, unused_imports, reason = "each suite uses its own part of the harness")]

pub(crate) mod archive;
pub(crate) mod backup;
pub(crate) mod bed;
pub(crate) mod load;
pub(crate) mod node;
pub(crate) mod pair;
pub(crate) mod proxy;
pub(crate) mod sets;
pub(crate) mod slot;
pub(crate) mod tree;
pub(crate) mod wait;

pub(crate) use bed::Bed;
pub(crate) use load::Load;
pub(crate) use node::{Node, Spec};
pub(crate) use pair::Pair;
pub(crate) use proxy::Proxy;
pub(crate) use tree::{assert_equal, assert_equal_within, differences};
pub(crate) use wait::{holds_for, until, within};
