//! The nodes that a log comes through, as each tells the next.

use crate::codec::{DecodeError, Put, Reader};
use crate::position::NodeId;

/// Most nodes of a lineage. A chain of followers can't be longer, so that a circle of any length is found.
pub const LINEAGE_MAX: usize = 32;
/// Most bytes of a stored lineage.
pub(super) const LINEAGE_BYTES: usize = 1 + 8 * LINEAGE_MAX;

/// The nodes that a log comes through, the nearest first; the last one that is known need not be the leader.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lineage(Vec<NodeId>);

impl Lineage {
    /// The lineage of what `node` sends, when it takes its log from nodes of the lineage `above`. It
    /// ends where the node itself comes again, and at [`LINEAGE_MAX`].
    #[must_use]
    pub fn of(node: NodeId, above: &Self) -> Self {
        let known = |id: &NodeId| *id != NodeId::NONE;
        let rest = above.0.iter().copied().take_while(|id| *id != node);
        Self(std::iter::once(node).filter(known).chain(rest).take(LINEAGE_MAX).collect())
    }

    /// After how many other nodes `node` comes, if it does.
    #[must_use]
    pub fn place(&self, node: NodeId) -> Option<usize> {
        self.0.iter().position(|id| *id == node && node != NodeId::NONE)
    }

    /// Whether no further node may be added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.len() >= LINEAGE_MAX
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let nodes = &self.0[..self.0.len().min(LINEAGE_MAX)];
        out.put_u8(u8::try_from(nodes.len()).unwrap_or(0));
        nodes.iter().for_each(|id| out.put_u64(id.0));
    }

    pub(super) fn take(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = r.u8("count of nodes")?;
        if usize::from(count) > LINEAGE_MAX {
            let (value, limit) = (u64::from(count), LINEAGE_MAX as u64);
            return Err(DecodeError::TooLarge { what: "count of nodes", value, limit });
        }
        (0..count).map(|_| r.u64("node id").map(NodeId)).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_comes_once_and_the_end_is_bounded() {
        let leader = Lineage::of(NodeId(1), &Lineage::default());
        let first = Lineage::of(NodeId(2), &leader);
        assert_eq!(first, Lineage(vec![NodeId(2), NodeId(1)]));
        assert_eq!((first.place(NodeId(1)), first.place(NodeId(3))), (Some(1), None));
        assert_eq!(Lineage::of(NodeId(1), &first), Lineage(vec![NodeId(1), NodeId(2)]), "it ends at itself");
        // A node without an id, of an older version, is passed over and never found.
        let nameless = Lineage::of(NodeId::NONE, &first);
        assert!(nameless == first && nameless.place(NodeId::NONE).is_none());
        let mut long = leader;
        for n in 2..100 {
            assert_eq!(long.is_full(), n > LINEAGE_MAX as u64);
            long = Lineage::of(NodeId(n), &long);
            let mut bytes = Vec::new();
            long.put(&mut bytes);
            assert!(bytes.len() <= LINEAGE_BYTES);
            assert_eq!(Lineage::take(&mut Reader::new(&bytes)), Ok(long.clone()));
        }
        assert!(Lineage::take(&mut Reader::new(&[33; 300])).is_err());
    }
}
