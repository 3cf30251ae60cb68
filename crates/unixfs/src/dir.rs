//! Directories: entries in, one basic node or a HAMT out (specs/unixfs.md §4, §5).

use bytes::Bytes;
use cid::Cid;
use gemba_block::{Block, MAX_BLOCK_BYTES};

use crate::config::{Estimation, Meta, Profile};
use crate::dagpb::{self, FsData, Kind, Link};
use crate::error::ImportError;
use crate::hamt;
use crate::layout::Part;

/// One entry of a directory under construction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) cid: Cid,
    pub(crate) tsize: u64,
}

/// The entries of one directory, packed: about 60 bytes plus the name each, so that a million fit a small device.
#[derive(Default)]
pub(crate) struct Entries {
    /// Per entry: tsize, name length, CID length (u64, u32, u8), CID, name.
    arena: Vec<u8>,
    offsets: Vec<usize>,
}

impl Entries {
    fn push(&mut self, name: &[u8], cid: &Cid, tsize: u64) {
        self.offsets.push(self.arena.len());
        self.arena.extend_from_slice(&tsize.to_le_bytes());
        // A name is at most one block long, a CID at most 100 bytes.
        self.arena
            .extend_from_slice(&(name.len() as u32).to_le_bytes());
        self.arena.push(cid.encoded_len() as u8);
        cid.write_bytes(&mut self.arena)
            .expect("writing to a Vec cannot fail");
        self.arena.extend_from_slice(name);
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    pub(crate) fn at(&self, index: usize) -> Entry<'_> {
        let (head, rest) = self.arena[self.offsets[index]..].split_at(13);
        let mut tsize = [0; 8];
        tsize.copy_from_slice(&head[..8]);
        let mut name_len = [0; 4];
        name_len.copy_from_slice(&head[8..12]);
        let (mut cid, rest) = rest.split_at(usize::from(head[12]));
        let name = &rest[..u32::from_le_bytes(name_len) as usize];
        let cid = Cid::read_bytes(&mut cid).expect("written by push");
        Entry {
            name,
            cid,
            tsize: u64::from_le_bytes(tsize),
        }
    }

    /// The name alone: sorting compares millions of them.
    pub(crate) fn name_at(&self, index: usize) -> &[u8] {
        let entry = &self.arena[self.offsets[index]..];
        let mut name_len = [0; 4];
        name_len.copy_from_slice(&entry[8..12]);
        let start = 13 + usize::from(entry[12]);
        &entry[start..start + u32::from_le_bytes(name_len) as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry<'_>> + Clone {
        (0..self.len()).map(|index| self.at(index))
    }
}

/// A directory under construction.
///
/// Entries may come in any order. Whether it becomes a HAMT is decided by the whole set, as Kubo's result is.
pub(crate) struct DirBuilder {
    entries: Entries,
    meta: Meta,
    /// Size by the profile's estimation, without the Data field.
    links_size: u64,
}

impl DirBuilder {
    pub(crate) fn new(meta: Meta) -> Self {
        DirBuilder {
            entries: Entries::default(),
            meta,
            links_size: 0,
        }
    }

    pub(crate) fn add(
        &mut self,
        name: &[u8],
        part: &Part,
        profile: &Profile,
    ) -> Result<(), ImportError> {
        check_name(name)?;
        let size = match profile.threshold().1 {
            Estimation::Links => name.len() + part.cid.encoded_len(),
            Estimation::Block => dagpb::encoded_link_len(&Link::new(part.cid, name, part.tsize)),
        };
        self.links_size += size as u64;
        self.entries.push(name, &part.cid, part.tsize);
        Ok(())
    }

    /// Closes the directory; blocks go to `out` as they are made.
    pub(crate) fn finish(
        self,
        profile: &Profile,
        out: &mut dyn FnMut(Block) -> Result<(), ImportError>,
    ) -> Result<Part, ImportError> {
        let order = self.sorted()?;
        let data = self.data();
        if self.is_large(&data, profile) {
            return hamt::build::build(&self.entries, &self.meta, profile, out);
        }
        let entries = &self.entries;
        let links = order.iter().map(|index| {
            let entry = entries.at(*index as usize);
            Link::new(entry.cid, entry.name, entry.tsize)
        });
        let block = profile.node(dagpb::encode(links, Some(&data)))?;
        let below: u64 = entries.iter().map(|entry| entry.tsize).sum();
        let part = Part {
            cid: *block.cid(),
            tsize: below + block.data().len() as u64,
            content: 0,
        };
        out(block)?;
        Ok(part)
    }

    /// Positions in the order of the names' bytes; two equal names are refused.
    fn sorted(&self) -> Result<Vec<u32>, ImportError> {
        let mut order: Vec<u32> = (0..self.entries.len() as u32).collect();
        let name = |index: u32| self.entries.name_at(index as usize);
        if !order.is_sorted_by(|a, b| name(*a) <= name(*b)) {
            order.sort_by(|a, b| name(*a).cmp(name(*b)));
        }
        for pair in order.windows(2) {
            if name(pair[0]) == name(pair[1]) {
                return Err(ImportError::DuplicateName(lossy(name(pair[0]))));
            }
        }
        Ok(order)
    }

    fn data(&self) -> Vec<u8> {
        let mut data = FsData::new(Kind::Directory);
        data.mode = self.meta.mode;
        data.mtime = self.meta.mtime;
        data.encode()
    }

    /// boxo io/directory.go: larger than the threshold becomes a HAMT, equal stays basic. With the threshold off, a
    /// node that no block can hold still becomes one.
    fn is_large(&self, data: &[u8], profile: &Profile) -> bool {
        let (threshold, estimation) = profile.threshold();
        let size = match estimation {
            Estimation::Links => self.links_size,
            Estimation::Block => self.links_size + dagpb::encoded_data_len(data) as u64,
        };
        let limit = if threshold == 0 {
            MAX_BLOCK_BYTES as u64
        } else {
            threshold
        };
        size > limit
    }
}

/// Encodes a symlink: always dag-pb, no filesize, no mode (boxo unixfs.SymlinkData).
pub(crate) fn symlink(
    target: &[u8],
    meta: &Meta,
    profile: &Profile,
) -> Result<(Block, Part), ImportError> {
    let mut data = FsData::new(Kind::Symlink);
    data.data = Some(Bytes::copy_from_slice(target));
    data.mtime = meta.mtime;
    let block = profile.node(dagpb::encode(std::iter::empty(), Some(&data.encode())))?;
    let part = Part {
        cid: *block.cid(),
        tsize: block.data().len() as u64,
        content: 0,
    };
    Ok((block, part))
}

/// A name that a file system could hold too: what we write, everybody can export.
pub(crate) fn check_name(name: &[u8]) -> Result<(), ImportError> {
    let bad = name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|byte| matches!(byte, b'/' | 0));
    if bad {
        return Err(ImportError::BadName(lossy(name)));
    }
    Ok(())
}

pub(crate) fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
