//! The nodes that follow a receiver, directly and through others, as it tells the node it follows.
//!
//! | size | field |
//! | --- | --- |
//! | 2 | count, at most [`BELOW_MAX`] |
//! | per node 1 | depth: 0 follows the receiver itself, n+1 follows the last node of depth n before it |
//! | 4+n | state: a word of at most 16 letters and `-` |
//! | 4+n | name, at most [`super::NAME_MAX`] letters, digits, `.`, `_` and `-` |
//! | 8 | sent |
//! | 8 | write |
//! | 8 | flush |
//! | 8 | apply |
//! | 8 | bytes of log between the receiver's end and apply |
//! | 8 | nanoseconds of lag, all ones where it is not known |
//! | 8 | nanoseconds since the node was last heard |

use super::hello::{clip, text};
use super::{LINEAGE_MAX, NAME_MAX};
use crate::codec::{DecodeError, Put, Reader};
use crate::position::Lsn;

/// Most nodes told of at once: more than a leader serves by default, few enough for one small message.
pub const BELOW_MAX: usize = 128;
/// Most bytes of a state's word.
pub(super) const STATE_MAX: usize = 16;
/// Most bytes of a stored list.
pub(super) const BELOW_BYTES: usize = 2 + BELOW_MAX * (1 + 4 + STATE_MAX + 4 + NAME_MAX + 7 * 8);
/// Stands for a lag that is not known.
const UNKNOWN: u64 = u64::MAX;

/// A node below the one that tells of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Below {
    /// How many nodes are between it and the one that tells.
    pub depth: u8,
    /// What its connection is about, as a word of `status`.
    pub state: String,
    /// Its name.
    pub name: String,
    /// Log handed to TCP.
    pub sent: Lsn,
    /// Log in its operating system.
    pub write: Lsn,
    /// Log durable there.
    pub flush: Lsn,
    /// Log visible in its directory.
    pub apply: Lsn,
    /// Bytes it is behind the node that it follows.
    pub lag_bytes: u64,
    /// Age of the oldest commit that it has not applied, ns by the leader's clock; `None`: not known.
    pub lag: Option<u64>,
    /// Time since it was last heard, ns.
    pub silent: u64,
}

pub(super) fn put(nodes: &[Below], out: &mut Vec<u8>) {
    let nodes = &nodes[..nodes.len().min(BELOW_MAX)];
    out.put_u16(u16::try_from(nodes.len()).unwrap_or(0));
    for n in nodes {
        out.put_u8(n.depth);
        out.put_blob(clip(&n.state, STATE_MAX));
        out.put_blob(clip(&n.name, NAME_MAX));
        for v in [n.sent.0, n.write.0, n.flush.0, n.apply.0, n.lag_bytes, n.lag.unwrap_or(UNKNOWN), n.silent]
        {
            out.put_u64(v);
        }
    }
}

pub(super) fn take(r: &mut Reader<'_>) -> Result<Vec<Below>, DecodeError> {
    let count = usize::from(r.u16("count of nodes")?);
    if count > BELOW_MAX {
        let (value, limit) = (count as u64, BELOW_MAX as u64);
        return Err(DecodeError::TooLarge { what: "count of nodes", value, limit });
    }
    let mut nodes: Vec<Below> = Vec::with_capacity(count);
    for _ in 0..count {
        let depth = r.u8("depth")?;
        // Each step down is one, so that a list is a tree; a chain is as long as a lineage may be.
        let deepest = nodes.last().map_or(0, |n| usize::from(n.depth) + 1);
        if usize::from(depth) > deepest.min(LINEAGE_MAX) {
            return Err(DecodeError::Invalid { what: "depth", value: u64::from(depth) });
        }
        let state = word(r.blob(STATE_MAX, "state")?, "state")?;
        let name = word(r.blob(NAME_MAX, "name")?, "name")?;
        let (sent, write) = (Lsn(r.u64("sent")?), Lsn(r.u64("write")?));
        let (flush, apply) = (Lsn(r.u64("flush")?), Lsn(r.u64("apply")?));
        let (lag_bytes, lag, silent) = (r.u64("lag bytes")?, r.u64("lag")?, r.u64("silence")?);
        let lag = Some(lag).filter(|l| *l != UNKNOWN);
        nodes.push(Below { depth, state, name, sent, write, flush, apply, lag_bytes, lag, silent });
    }
    Ok(nodes)
}

/// What is shown as it was received: letters, digits, `.`, `_`, `-`, and not nothing.
fn word(bytes: &[u8], what: &'static str) -> Result<String, DecodeError> {
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    if bytes.is_empty() || !bytes.iter().all(fine) {
        return Err(DecodeError::Invalid { what, value: bytes.len() as u64 });
    }
    text(bytes, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(depth: u8, name: &str) -> Below {
        Below {
            depth,
            state: "streaming".to_owned(),
            name: name.to_owned(),
            lag: Some(3),
            ..Below::default()
        }
    }

    fn round(nodes: &[Below]) -> Result<Vec<Below>, DecodeError> {
        let mut bytes = Vec::new();
        put(nodes, &mut bytes);
        assert!(bytes.len() <= BELOW_BYTES);
        take(&mut Reader::new(&bytes))
    }

    #[test]
    fn a_list_is_a_tree_of_bounded_size_and_its_words_can_be_shown() {
        let tree = [node(0, "a"), node(1, "b"), node(2, "c"), node(1, "d"), node(0, "e")];
        assert_eq!(round(&tree).unwrap(), tree);
        let unknown = [Below { lag: None, ..node(0, "a") }];
        assert_eq!(round(&unknown).unwrap(), unknown);
        assert!(round(&[node(1, "a")]).is_err() && round(&[node(0, "a"), node(2, "b")]).is_err());
        for bad in ["", "a b", "a\x1b[2J", "a\n"] {
            assert!(round(&[node(0, bad)]).is_err(), "{bad:?}");
            assert!(round(&[Below { state: bad.to_owned(), ..node(0, "a") }]).is_err(), "{bad:?}");
        }
        let chain: Vec<Below> = (0..40).map(|d| node(d, "x")).collect();
        assert!(round(&chain).is_err() && round(&chain[..=LINEAGE_MAX]).is_ok());
        let long = "n".repeat(NAME_MAX);
        assert_eq!(round(&vec![node(0, &long); 1000]).unwrap().len(), BELOW_MAX);
        assert!(take(&mut Reader::new(&[129, 0])).is_err());
    }
}
