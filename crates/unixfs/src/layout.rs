//! The balanced layout: leaves in, nodes out, the root last (specs/unixfs.md §3).
//!
//! A level keeps the children of its one open node and closes it only when a further child comes, so that the last
//! node of each level is closed by `finish` and a full root stays the root. Memory: levels × max links.

use cid::Cid;
use gemba_block::{Block, BlockError};

use crate::config::{Meta, Profile};
use crate::dagpb::{self, FsData, Kind, Link, Node};
use crate::leaf::Leaf;

/// A finished part of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its root.
    pub cid: Cid,
    /// Size of all its blocks in bytes, a block that occurs twice counted twice: what a link's Tsize says.
    pub tsize: u64,
    /// Bytes of content; 0 for directories and symlinks.
    pub content: u64,
}

/// The layout of one file.
#[derive(Default)]
pub(crate) struct Layout {
    /// `levels[0]` holds leaves.
    levels: Vec<Vec<Part>>,
    /// The first leaf waits: if it stays the only one it is the root, and may still take attributes.
    first: Option<Leaf>,
}

impl Layout {
    /// Takes the next leaf; finished blocks go to `out`.
    pub(crate) fn push(
        &mut self,
        leaf: Leaf,
        profile: &Profile,
        out: &mut Vec<Block>,
    ) -> Result<(), BlockError> {
        if self.levels.is_empty() {
            let Some(first) = self.first.take() else {
                self.first = Some(leaf);
                return Ok(());
            };
            self.levels.push(Vec::new());
            self.push_leaf(first, profile, out)?;
        }
        self.push_leaf(leaf, profile, out)
    }

    /// Closes the file. A file without leaves is the caller's mistake and is given an empty one by it.
    pub(crate) fn finish(
        mut self,
        meta: &Meta,
        profile: &Profile,
        out: &mut Vec<Block>,
    ) -> Result<Part, BlockError> {
        if let Some(leaf) = self.first.take() {
            return finish_single(leaf, meta, profile, out);
        }
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            let attributes = if top { *meta } else { Meta::default() };
            let children = std::mem::take(&mut self.levels[level]);
            let part = close(&children, &attributes, profile, out)?;
            if top {
                return Ok(part);
            }
            // May open a further level, if the one above is full; then that one is the top.
            self.push_at(level + 1, part, profile, out)?;
            level += 1;
        }
    }

    fn push_leaf(
        &mut self,
        leaf: Leaf,
        profile: &Profile,
        out: &mut Vec<Block>,
    ) -> Result<(), BlockError> {
        let part = leaf_part(&leaf);
        out.push(leaf.block);
        self.push_at(0, part, profile, out)
    }

    fn push_at(
        &mut self,
        mut level: usize,
        mut part: Part,
        profile: &Profile,
        out: &mut Vec<Block>,
    ) -> Result<(), BlockError> {
        loop {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let children = &mut self.levels[level];
            if children.len() < profile.links_per_node() {
                children.push(part);
                return Ok(());
            }
            let full = std::mem::replace(children, vec![part]);
            part = close(&full, &Meta::default(), profile, out)?;
            level += 1;
        }
    }
}

/// Encodes an inner node over `children`.
fn close(
    children: &[Part],
    meta: &Meta,
    profile: &Profile,
    out: &mut Vec<Block>,
) -> Result<Part, BlockError> {
    let mut data = FsData::new(Kind::File);
    data.blocksizes = children.iter().map(|child| child.content).collect();
    let content = children.iter().map(|child| child.content).sum();
    data.filesize = Some(content);
    data.mode = meta.mode;
    data.mtime = meta.mtime;
    let links = children
        .iter()
        .map(|child| Link::new(child.cid, b"", child.tsize));
    let block = profile.node(dagpb::encode(links, Some(&data.encode())))?;
    let below: u64 = children.iter().map(|child| child.tsize).sum();
    let part = Part {
        cid: *block.cid(),
        tsize: below + block.data().len() as u64,
        content,
    };
    out.push(block);
    Ok(part)
}

/// A file of one leaf: the leaf is the root. Attributes need a dag-pb leaf, which the profile saw to.
fn finish_single(
    leaf: Leaf,
    meta: &Meta,
    profile: &Profile,
    out: &mut Vec<Block>,
) -> Result<Part, BlockError> {
    if meta.is_empty() {
        let part = leaf_part(&leaf);
        out.push(leaf.block);
        return Ok(part);
    }
    let node = Node::decode(leaf.block.data().clone()).expect("leaves are framed by us");
    let mut data =
        FsData::decode(&node.data().unwrap_or_default()).expect("leaves are framed by us");
    data.mode = meta.mode;
    data.mtime = meta.mtime;
    let block = profile.node(dagpb::encode(std::iter::empty(), Some(&data.encode())))?;
    let part = Part {
        cid: *block.cid(),
        tsize: block.data().len() as u64,
        content: leaf.content,
    };
    out.push(block);
    Ok(part)
}

fn leaf_part(leaf: &Leaf) -> Part {
    Part {
        cid: *leaf.block.cid(),
        tsize: leaf.block.data().len() as u64,
        content: leaf.content,
    }
}
