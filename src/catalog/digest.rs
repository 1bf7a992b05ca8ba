//! The hashes of blocks, names and inodes, and the order-free sum over them.
//!
//! `meta` is the wrapping sum of one hash per inode, per symlink target, per extended attribute and per
//! directory entry; `content` is the wrapping sum of the contents of regular files. Equal digests at
//! equal positions mean equal trees. All hashes are XXH3-128, seeded, little-endian:
//!
//! | term | seed | bytes hashed |
//! | --- | --- | --- |
//! | inode | system + 1 | id u64, kind u8, mode u32, uid u32, gid u32, mtime i64 u32, rdev u64, size u64 (0 unless a regular file) |
//! | target | system + 2 | id u64, target |
//! | xattr | system + 3 | id u64, length of the name u64, name, value |
//! | entry | system + 4 | parent id u64, id u64, name |
//! | block | mixed from system, file id and block index | the block without its trailing zero bytes; a block of zeros hashes to 0 |

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::position::{FileId, SystemId};
use crate::record::{BLOCK, Kind, NAME_MAX};

use super::slab::Node;

/// The order-free sum over a catalog.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digest {
    /// Over names and attributes.
    pub meta: u128,
    /// Over the blocks of every file.
    pub content: u128,
}

/// Number of blocks a file of `size` bytes has.
#[must_use]
pub fn blocks_of(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}

/// One round of SplitMix64: every input bit reaches every output bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `data` without the zero bytes at its end.
fn stripped(data: &[u8]) -> &[u8] {
    let mut data = data;
    while let Some((head, tail)) = data.split_last_chunk::<64>() {
        if *tail != [0; 64] {
            break;
        }
        data = head;
    }
    let len = data.iter().rposition(|&b| b != 0).map_or(0, |p| p + 1);
    &data[..len]
}

/// The hash of block `index` of file `id`; `data` may stop anywhere after the last byte that is not zero.
#[must_use]
pub fn block_hash(system: SystemId, id: FileId, index: u64, data: &[u8]) -> u128 {
    let data = stripped(data);
    if data.is_empty() {
        return 0;
    }
    let seed = mix(mix(mix(system.0) ^ id.0) ^ index);
    // 0 is taken by blocks of zeros.
    xxh3_128_with_seed(data, seed).max(1)
}

/// The hashes of the blocks of `data`, which starts at block `first`.
pub fn block_hashes(
    system: SystemId,
    id: FileId,
    first: u64,
    data: &[u8],
) -> impl Iterator<Item = u128> + '_ {
    let blocks = data.chunks(usize::try_from(BLOCK).unwrap_or(usize::MAX));
    blocks.zip(first..).map(move |(block, index)| block_hash(system, id, index, block))
}

fn seed(system: SystemId, term: u64) -> u64 {
    system.0.wrapping_add(term)
}

pub(super) fn node_hash(system: SystemId, n: &Node) -> u128 {
    let mut b = [0_u8; 49];
    b[..8].copy_from_slice(&n.id.to_le_bytes());
    b[8] = n.kind as u8;
    b[9..13].copy_from_slice(&u32::from(n.mode).to_le_bytes());
    b[13..17].copy_from_slice(&n.uid.to_le_bytes());
    b[17..21].copy_from_slice(&n.gid.to_le_bytes());
    b[21..29].copy_from_slice(&n.mtime_sec.to_le_bytes());
    b[29..33].copy_from_slice(&n.mtime_nsec.to_le_bytes());
    b[33..41].copy_from_slice(&n.extra.as_ref().map_or(0, |e| e.rdev).to_le_bytes());
    let size = if n.kind == Kind::File { n.size } else { 0 };
    b[41..].copy_from_slice(&size.to_le_bytes());
    xxh3_128_with_seed(&b, seed(system, 1))
}

pub(super) fn target_hash(system: SystemId, id: u64, target: &[u8]) -> u128 {
    if target.is_empty() {
        return 0;
    }
    let mut b = id.to_le_bytes().to_vec();
    b.extend_from_slice(target);
    xxh3_128_with_seed(&b, seed(system, 2))
}

pub(super) fn xattr_hash(system: SystemId, id: u64, name: &[u8], value: &[u8]) -> u128 {
    let mut b = Vec::with_capacity(16 + name.len() + value.len());
    b.extend_from_slice(&id.to_le_bytes());
    b.extend_from_slice(&(name.len() as u64).to_le_bytes());
    b.extend_from_slice(name);
    b.extend_from_slice(value);
    xxh3_128_with_seed(&b, seed(system, 3))
}

pub(super) fn entry_hash(system: SystemId, parent: u64, id: u64, name: &[u8]) -> u128 {
    let mut b = [0_u8; 16 + NAME_MAX];
    b[..8].copy_from_slice(&parent.to_le_bytes());
    b[8..16].copy_from_slice(&id.to_le_bytes());
    b[16..16 + name.len()].copy_from_slice(name);
    xxh3_128_with_seed(&b[..16 + name.len()], seed(system, 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_of_a_block_do_not_count() {
        let s = SystemId(7);
        let mut data = vec![0_u8; BLOCK as usize];
        assert_eq!(block_hash(s, FileId(2), 0, &data), 0);
        assert_eq!(block_hash(s, FileId(2), 0, &[]), 0);
        for at in [0, 1, 63, 64, 65, 127, 128, 16382, 16383] {
            data.fill(0);
            data[at] = 9;
            let whole = block_hash(s, FileId(2), 0, &data);
            assert_ne!(whole, 0);
            assert_eq!(whole, block_hash(s, FileId(2), 0, &data[..=at]));
            assert_ne!(whole, block_hash(s, FileId(2), 1, &data));
            assert_ne!(whole, block_hash(s, FileId(3), 0, &data));
            assert_ne!(whole, block_hash(SystemId(8), FileId(2), 0, &data));
        }
    }

    #[test]
    fn blocks_are_counted_up() {
        assert_eq!([0, 1, BLOCK, BLOCK + 1].map(blocks_of), [0, 1, 1, 2]);
        assert_eq!(blocks_of(u64::MAX), 1 << 50);
    }
}
