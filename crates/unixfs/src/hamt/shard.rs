//! One node of a trie, checked once and then trusted.

use bytes::Bytes;
use cid::Cid;

use super::{HASH_MURMUR3, HamtError, hash, index_at, prefix_width};
use crate::config::MAX_FANOUT;
use crate::dagpb::{FsData, Node};

/// Where in a trie a shard lies: how many levels down, and the hash bits that led there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Fanout of the root; all shards have the same.
    fanout: Option<u32>,
    level: u32,
    /// The bits of the path so far, in the low end.
    path: u64,
}

impl Place {
    pub(crate) const ROOT: Place = Place {
        fanout: None,
        level: 0,
        path: 0,
    };
}

/// A shard whose bitfield, link names and entries' places are known to be right.
#[derive(Debug)]
pub(crate) struct Shard {
    node: Node,
    place: Place,
    bits: u32,
    width: usize,
}

/// What a slot of a shard holds.
pub(crate) enum Slot {
    /// An entry of the directory.
    Entry {
        name: Bytes,
        cid: Cid,
        tsize: Option<u64>,
    },
    /// A further shard.
    Shard { cid: Cid, place: Place },
}

impl Shard {
    pub(crate) fn new(node: Node, data: &FsData, place: Place) -> Result<Self, HamtError> {
        let hash_type = data.hash_type.unwrap_or_default();
        if hash_type != HASH_MURMUR3 {
            return Err(HamtError::HashType(hash_type));
        }
        let fanout = checked_fanout(data.fanout.unwrap_or_default())?;
        if let Some(root) = place.fanout
            && root != fanout
        {
            return Err(HamtError::FanoutChanged {
                shard: fanout,
                root,
            });
        }
        let place = Place {
            fanout: Some(fanout),
            ..place
        };
        let shard = Shard {
            node,
            place,
            bits: fanout.trailing_zeros(),
            width: prefix_width(fanout),
        };
        shard.check(data.data.as_deref().unwrap_or_default(), fanout)?;
        Ok(shard)
    }

    pub(crate) fn len(&self) -> usize {
        self.node.len()
    }

    /// The slot at a link position below `len`.
    pub(crate) fn slot(&self, position: usize) -> Option<Slot> {
        let link = self.node.link(position)?;
        let name = self.node.name(position)?;
        let index = self.index(&name).ok()?;
        Some(if name.len() == self.width {
            Slot::Shard {
                cid: link.cid,
                place: self.below(index),
            }
        } else {
            Slot::Entry {
                name: name.slice(self.width..),
                cid: link.cid,
                tsize: link.tsize,
            }
        })
    }

    /// The slot that a lookup of `name` leads to.
    pub(crate) fn find(&self, name: &[u8]) -> Result<Option<Slot>, HamtError> {
        let index = index_at(hash(name), self.place.level, self.bits).ok_or(HamtError::TooDeep)?;
        let position = (0..self.node.len()).find(|position| {
            self.node
                .link(*position)
                .is_some_and(|link| self.index(link.name()) == Ok(index))
        });
        Ok(position.and_then(|position| self.slot(position)))
    }

    fn check(&self, bitfield: &[u8], fanout: u32) -> Result<(), HamtError> {
        if bitfield.len() > (fanout / 8) as usize {
            return Err(HamtError::Bitfield);
        }
        let set: u32 = bitfield.iter().map(|byte| byte.count_ones()).sum();
        if set as usize != self.node.len() {
            return Err(HamtError::Bitfield);
        }
        let mut last = None;
        for link in self.node.links() {
            let name = link.name();
            let index = self.index(name)?;
            if last.is_some_and(|last| last >= index) {
                return Err(HamtError::LinkName);
            }
            last = Some(index);
            let byte = bitfield
                .len()
                .checked_sub(1 + (index / 8) as usize)
                .ok_or(HamtError::Bitfield)?;
            if bitfield[byte] & (1 << (index % 8)) == 0 {
                return Err(HamtError::Bitfield);
            }
            if name.len() > self.width {
                self.check_place(&name[self.width..], index)?;
            } else if index_at(0, self.place.level + 1, self.bits).is_none() {
                return Err(HamtError::TooDeep);
            }
        }
        Ok(())
    }

    /// An entry must lie on the path that its hash takes, or a listing would show what no lookup finds.
    fn check_place(&self, name: &[u8], index: u32) -> Result<(), HamtError> {
        let used = (self.place.level + 1) * self.bits;
        let path = hash(name)
            .checked_shr(64u32.saturating_sub(used))
            .unwrap_or_default();
        if path != self.below(index).path {
            return Err(HamtError::Misplaced);
        }
        Ok(())
    }

    fn index(&self, name: &[u8]) -> Result<u32, HamtError> {
        let digits = name.get(..self.width).ok_or(HamtError::LinkName)?;
        let mut index = 0u32;
        for digit in digits {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'A'..=b'F' => digit - b'A' + 10,
                _ => return Err(HamtError::LinkName),
            };
            index = index << 4 | u32::from(value);
        }
        if index >= 1 << self.bits {
            return Err(HamtError::LinkName);
        }
        Ok(index)
    }

    fn below(&self, index: u32) -> Place {
        Place {
            fanout: self.place.fanout,
            level: self.place.level + 1,
            path: self.place.path << self.bits | u64::from(index),
        }
    }
}

fn checked_fanout(fanout: u64) -> Result<u32, HamtError> {
    let narrow = u32::try_from(fanout).map_err(|_| HamtError::Fanout(fanout))?;
    if !(8..=MAX_FANOUT).contains(&narrow) || !narrow.is_power_of_two() {
        return Err(HamtError::Fanout(fanout));
    }
    Ok(narrow)
}
