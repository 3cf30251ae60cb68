//! Entries in, shards out, the root last.
//!
//! The entries are sorted by hash once; then every shard is a contiguous range of them and is written as soon as the
//! shards below it are, so that one path of nodes is in memory beside the entries themselves.

use gemba_block::Block;

use super::{HASH_MURMUR3, hash, index_at, prefix_width};
use crate::config::{Meta, Profile};
use crate::dagpb::{self, FsData, Kind, Link};
use crate::dir::{Entries, Entry};
use crate::error::ImportError;
use crate::layout::Part;

/// Writes the trie over `entries`; blocks go to `out`.
pub(crate) fn build(
    entries: &Entries,
    meta: &Meta,
    profile: &Profile,
    out: &mut dyn FnMut(Block) -> Result<(), ImportError>,
) -> Result<Part, ImportError> {
    let mut order: Vec<(u64, u32)> = (0..entries.len())
        .map(|i| (hash(entries.name_at(i)), i as u32))
        .collect();
    order.sort_unstable();
    let bits = profile.fanout().trailing_zeros();
    let mut builder = Builder {
        entries,
        profile,
        bits,
        width: prefix_width(profile.fanout()),
        out,
    };
    builder.shard(&order, 0, meta)
}

struct Builder<'a> {
    entries: &'a Entries,
    profile: &'a Profile,
    bits: u32,
    width: usize,
    out: &'a mut dyn FnMut(Block) -> Result<(), ImportError>,
}

impl Builder<'_> {
    /// One shard. Recursion is at most 64 / 3 levels deep: the hash has no more bits.
    fn shard(
        &mut self,
        range: &[(u64, u32)],
        level: u32,
        meta: &Meta,
    ) -> Result<Part, ImportError> {
        let mut slots: Vec<(u32, Part, Option<u32>)> = Vec::new();
        let mut rest = range;
        while let Some((first, _)) = rest.first() {
            let index = index_at(*first, level, self.bits).ok_or(ImportError::HamtTooDeep)?;
            let end =
                rest.partition_point(|(hash, _)| index_at(*hash, level, self.bits) == Some(index));
            let (here, behind) = rest.split_at(end);
            slots.push(match here {
                [(_, only)] => (index, self.entries.at(*only as usize).part(), Some(*only)),
                several => (
                    index,
                    self.shard(several, level + 1, &Meta::default())?,
                    None,
                ),
            });
            rest = behind;
        }
        self.close(&slots, meta)
    }

    fn close(
        &mut self,
        slots: &[(u32, Part, Option<u32>)],
        meta: &Meta,
    ) -> Result<Part, ImportError> {
        let names: Vec<Vec<u8>> = slots
            .iter()
            .map(|(index, _, entry)| {
                let mut name = format!("{index:0width$X}", width = self.width).into_bytes();
                if let Some(entry) = entry {
                    name.extend_from_slice(self.entries.name_at(*entry as usize));
                }
                name
            })
            .collect();
        let links = slots
            .iter()
            .zip(&names)
            .map(|((_, part, _), name)| Link::new(part.cid, name, part.tsize));
        let mut data = FsData::new(Kind::HamtShard);
        data.data = Some(
            bitfield(
                slots.iter().map(|(index, ..)| *index),
                self.profile.fanout(),
            )
            .into(),
        );
        data.hash_type = Some(HASH_MURMUR3);
        data.fanout = Some(u64::from(self.profile.fanout()));
        data.mode = meta.mode;
        data.mtime = meta.mtime;
        let block = self
            .profile
            .node(dagpb::encode(links, Some(&data.encode())))?;
        let below: u64 = slots.iter().map(|(_, part, _)| part.tsize).sum();
        let part = Part {
            cid: *block.cid(),
            tsize: below + block.data().len() as u64,
            content: 0,
        };
        (self.out)(block)?;
        Ok(part)
    }
}

/// The set of used indexes: bit i in byte len-1-i/8, bit i%8, leading zero bytes removed.
fn bitfield(indexes: impl Iterator<Item = u32>, fanout: u32) -> Vec<u8> {
    let len = (fanout / 8) as usize;
    let mut bytes = vec![0u8; len];
    for index in indexes {
        bytes[len - 1 - (index / 8) as usize] |= 1 << (index % 8);
    }
    let leading = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.split_off(leading)
}

impl Entry<'_> {
    fn part(&self) -> Part {
        Part {
            cid: self.cid,
            tsize: self.tsize,
            content: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zero_bytes_of_the_bitfield_are_removed() {
        assert_eq!(bitfield([0xf7].into_iter(), 256).len(), 31);
        assert_eq!(bitfield([0].into_iter(), 256), [1]);
        assert_eq!(bitfield([9, 0].into_iter(), 256), [2, 1]);
        assert_eq!(bitfield([255].into_iter(), 256)[0], 0x80);
    }
}
