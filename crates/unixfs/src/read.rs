//! Reading a file out of its DAG, whatever the layout: blocks in, bytes out, in order.
//!
//! Nothing a node claims is believed beyond what it lets us skip: the sizes of a node must add up, and a child must
//! have the size its parent promised, or reading ends with a typed error (reliability row U3). The walk keeps one path
//! of nodes; its depth and memory are bounded.

use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_block::codec::{DAG_PB, RAW};

use crate::dagpb::{FsData, Kind, Node, WireError};
use crate::error::ReadError;
use crate::source::identity;

/// Most levels of a file. Balanced files of 2^60 bytes have 7, trickle files fewer than 60.
pub const MAX_FILE_DEPTH: usize = 256;
/// Most memory for the nodes on the path from the root to the current leaf, in bytes.
pub const MAX_PATH_BYTES: usize = 16 * 1024 * 1024;
/// Most blocks in a row without a byte of content. Sound layouts have fewer than their depth.
const MAX_BARREN: u32 = 65_536;

/// What a [`Reader`] says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// Give this block to [`Reader::block`]. Asked again until it comes.
    NeedBlock(Cid),
    /// The next bytes of the file; never empty.
    Bytes(Bytes),
    /// All bytes of the range were given.
    End,
}

/// Reads the bytes of one file, or a range of them.
///
/// `poll` until `End`; after `NeedBlock`, hand the block to `block`. After an error the reader is of no further use.
#[derive(Debug)]
pub struct Reader {
    start: u64,
    end: u64,
    /// Content position of whatever comes next.
    at: u64,
    size: Option<u64>,
    need: Option<Need>,
    stack: Vec<Frame>,
    held: usize,
    ready: Option<Bytes>,
    barren: u32,
}

#[derive(Clone, Copy, Debug)]
struct Need {
    cid: Cid,
    /// The size that the parent promised.
    promised: Option<u64>,
    depth: usize,
    root: bool,
}

/// An inner node whose children are being read.
#[derive(Debug)]
struct Frame {
    cid: Cid,
    node: Node,
    /// Content bytes per child, or empty if the node does not say.
    sizes: Vec<u64>,
    next: usize,
    /// Content position of child `next`, if known.
    next_at: Option<u64>,
    /// Where the node's content began, and what it must come to, if that can be told only at its end.
    start: u64,
    total: Option<u64>,
    depth: usize,
}

impl Reader {
    /// A reader of the file at `root`, of the given byte range. A range beyond the end reads what there is.
    pub fn new(root: Cid, range: impl RangeBounds<u64>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        Reader {
            start,
            end,
            at: 0,
            size: None,
            need: Some(Need {
                cid: root,
                promised: None,
                depth: 0,
                root: true,
            }),
            stack: Vec::new(),
            held: 0,
            ready: None,
            barren: 0,
        }
    }

    /// Size of the whole file in bytes, once its root was read and if the root says it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// What comes next. Does not block and does not change anything when a block is needed.
    ///
    /// # Errors
    /// What is wrong with the DAG, see [`ReadError`].
    pub fn poll(&mut self) -> Result<ReadStep, ReadError> {
        loop {
            if let Some(bytes) = self.ready.take() {
                return Ok(ReadStep::Bytes(bytes));
            }
            // An empty range still reads the root: a directory is refused, whatever the range.
            if self.at >= self.end && self.size_checked() {
                self.need = None;
                return Ok(ReadStep::End);
            }
            match self.need {
                Some(need) => match identity(&need.cid) {
                    Some(block) => self.block(&block)?,
                    None => return Ok(ReadStep::NeedBlock(need.cid)),
                },
                None if self.stack.is_empty() => return Ok(ReadStep::End),
                None => self.advance()?,
            }
        }
    }

    /// Takes the block that was asked for.
    ///
    /// # Errors
    /// [`ReadError::WrongBlock`] for another one, else what is wrong with the DAG.
    pub fn block(&mut self, block: &Block) -> Result<(), ReadError> {
        let need = match self.need {
            Some(need) if need.cid == *block.cid() => need,
            other => {
                let wanted = other.map(|need| need.cid);
                return Err(ReadError::wrong_block(block, wanted));
            }
        };
        self.need = None;
        self.count_barren()?;
        match need.cid.codec() {
            RAW => self.leaf(&need, block.data().clone(), None),
            DAG_PB => self.node(&need, block),
            _ => Err(ReadError::Codec {
                cid: Box::new(need.cid),
            }),
        }
    }

    /// The blocks that will be needed after the one asked for, nearest first, at most `max`: for fetching ahead.
    /// Blocks below nodes that were not read yet are unknown and missing here.
    pub fn upcoming(&self, max: usize) -> Vec<Cid> {
        let mut out = Vec::new();
        for frame in self.stack.iter().rev() {
            let mut at = frame.next_at;
            for index in frame.next..frame.node.len() {
                if out.len() >= max || at.is_some_and(|at| at >= self.end) {
                    return out;
                }
                let size = frame.sizes.get(index).copied();
                let before = at
                    .zip(size)
                    .is_some_and(|(at, size)| at.saturating_add(size) <= self.start);
                if size != Some(0) && !before {
                    out.extend(frame.node.link(index).map(|link| link.cid));
                }
                at = at.zip(size).map(|(at, size)| at.saturating_add(size));
            }
        }
        out
    }

    fn size_checked(&self) -> bool {
        self.need.is_none_or(|need| !need.root)
    }

    /// Goes to the next child that lies in the range, skipping what lies before it.
    fn advance(&mut self) -> Result<(), ReadError> {
        let Some(frame) = self.stack.last_mut() else {
            return Ok(());
        };
        let Some(link) = frame.node.link(frame.next) else {
            return self.leave();
        };
        let size = frame.sizes.get(frame.next).copied();
        frame.next += 1;
        if let Some(size) = size {
            let end = self.at.checked_add(size).ok_or(ReadError::SizeOverflow {
                cid: Box::new(frame.cid),
            })?;
            frame.next_at = Some(end);
            if size == 0 || end <= self.start {
                self.at = end;
                return Ok(());
            }
        } else {
            frame.next_at = None;
        }
        let depth = frame.depth + 1;
        if depth >= MAX_FILE_DEPTH {
            return Err(ReadError::TooDeep {
                cid: Box::new(link.cid),
                limit: MAX_FILE_DEPTH,
            });
        }
        self.need = Some(Need {
            cid: link.cid,
            promised: size,
            depth,
            root: false,
        });
        Ok(())
    }

    /// All children of the top node were read: what could not be checked before is checked now.
    fn leave(&mut self) -> Result<(), ReadError> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        self.held -= frame_bytes(&frame);
        if let Some(total) = frame.total {
            check(
                frame.cid,
                "the parent or filesize",
                Some(total),
                self.at - frame.start,
            )?;
        }
        Ok(())
    }

    fn node(&mut self, need: &Need, block: &Block) -> Result<(), ReadError> {
        let cid = need.cid;
        let wire = |source: WireError| ReadError::Wire {
            cid: Box::new(cid),
            source,
        };
        let node = Node::decode(block.data().clone()).map_err(wire)?;
        let data = FsData::decode(&node.data().unwrap_or_default()).map_err(wire)?;
        match data.kind {
            Kind::File | Kind::Raw => {}
            // boxo dagreader.go: a Metadata root stands for its first child.
            Kind::Metadata if need.root && need.depth == 0 && !node.is_empty() => {
                let child = node.link(0).map_or(cid, |link| link.cid);
                self.need = Some(Need {
                    cid: child,
                    promised: None,
                    depth: 1,
                    root: true,
                });
                return Ok(());
            }
            kind => {
                return Err(ReadError::WrongKind {
                    cid: Box::new(cid),
                    kind,
                    wanted: "a file",
                });
            }
        }
        let content = data.data.clone().unwrap_or_default();
        if node.is_empty() {
            if !data.blocksizes.is_empty() {
                return Err(ReadError::SizeCount {
                    cid: Box::new(cid),
                    links: 0,
                    sizes: data.blocksizes.len(),
                });
            }
            return self.leaf(need, content, data.filesize);
        }
        self.inner(need, node, data, content)
    }

    fn leaf(
        &mut self,
        need: &Need,
        content: Bytes,
        filesize: Option<u64>,
    ) -> Result<(), ReadError> {
        let actual = content.len() as u64;
        check(need.cid, "filesize", filesize, actual)?;
        check(need.cid, "the parent", need.promised, actual)?;
        if need.root {
            self.size = Some(actual);
        }
        self.emit(need.cid, content)
    }

    fn inner(
        &mut self,
        need: &Need,
        node: Node,
        data: FsData,
        content: Bytes,
    ) -> Result<(), ReadError> {
        let cid = need.cid;
        let own = content.len() as u64;
        let mut total = None;
        if data.blocksizes.is_empty() {
            // The children's sizes are unknown: nothing can be skipped, the sum is checked when all were read.
            if let (Some(promised), Some(filesize)) = (need.promised, data.filesize) {
                check(cid, "filesize", Some(filesize), promised)?;
            }
            total = need.promised.or(data.filesize);
        } else {
            if data.blocksizes.len() != node.len() {
                return Err(ReadError::SizeCount {
                    cid: Box::new(cid),
                    links: node.len(),
                    sizes: data.blocksizes.len(),
                });
            }
            let sum = data
                .blocksizes
                .iter()
                .try_fold(own, |sum, size| sum.checked_add(*size));
            let sum = sum.ok_or(ReadError::SizeOverflow { cid: Box::new(cid) })?;
            check(cid, "filesize", data.filesize, sum)?;
            check(cid, "the parent", need.promised, sum)?;
            if need.root {
                self.size = Some(sum);
            }
        }
        if need.root && total.is_some() {
            self.size = total;
        }
        let start = self.at;
        self.emit(cid, content)?;
        let known = !data.blocksizes.is_empty();
        let frame = Frame {
            cid,
            node,
            sizes: data.blocksizes,
            next: 0,
            next_at: known.then_some(self.at),
            start,
            total,
            depth: need.depth,
        };
        self.held += frame_bytes(&frame);
        if self.held > MAX_PATH_BYTES {
            return Err(ReadError::TooWide {
                cid: Box::new(cid),
                limit: MAX_PATH_BYTES,
            });
        }
        self.stack.push(frame);
        Ok(())
    }

    /// Passes on the part of `content` that lies in the range.
    fn emit(&mut self, cid: Cid, content: Bytes) -> Result<(), ReadError> {
        let len = content.len() as u64;
        let end = self
            .at
            .checked_add(len)
            .ok_or(ReadError::SizeOverflow { cid: Box::new(cid) })?;
        let from = self.start.clamp(self.at, end) - self.at;
        let to = self.end.clamp(self.at, end) - self.at;
        self.at = end;
        if len > 0 {
            self.barren = 0;
        }
        if from < to {
            // Both are at most the content's length, which fits a usize.
            self.ready = Some(content.slice(from as usize..to as usize));
        }
        Ok(())
    }

    fn count_barren(&mut self) -> Result<(), ReadError> {
        self.barren += 1;
        if self.barren > MAX_BARREN {
            return Err(ReadError::NoProgress {
                blocks: self.barren,
            });
        }
        Ok(())
    }
}

fn check(
    cid: Cid,
    claim: &'static str,
    claimed: Option<u64>,
    actual: u64,
) -> Result<(), ReadError> {
    match claimed {
        Some(claimed) if claimed != actual => Err(ReadError::SizeLie {
            cid: Box::new(cid),
            claim,
            claimed,
            actual,
        }),
        _ => Ok(()),
    }
}

fn frame_bytes(frame: &Frame) -> usize {
    frame.node.bytes().len() + frame.node.len() * 8 + frame.sizes.len() * 8
}
