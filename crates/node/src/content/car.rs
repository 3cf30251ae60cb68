//! CAR archives in and out of the store.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_unixfs::car::{CarReader, Dups, MAX_HEADER_BYTES, MAX_SECTION_BYTES, export_dag};
use gemba_unixfs::{BlockSource, SourceError};

use super::room::Puts;
use super::{BATCH_BLOCKS, BATCH_BYTES, car_fail, walk_fail};
use crate::error::{Code, Fail};

/// Blocks that [`OrderedSource`] keeps for a reader that asks twice.
const KEPT: usize = 4;

/// Writes the whole DAG below `root`, each block once, depth first: what every tool reads.
///
/// # Errors
/// A block that does not come; the output's.
pub fn export(source: &mut dyn BlockSource, root: Cid, out: &mut dyn Write) -> Result<u64, Fail> {
    // Before the header: an archive of nothing is no archive.
    super::read::block(source, &root)?;
    export_dag(source, root, out, Dups::Skip).map_err(walk_fail)
}

/// Writes the DAG below `root` with every block as often as it occurs, in the order in which a folder export asks for them:
/// what [`OrderedSource`] reads.
///
/// # Errors
/// As [`export`].
pub fn export_in_order(
    source: &mut dyn BlockSource,
    root: Cid,
    out: &mut dyn Write,
) -> Result<u64, Fail> {
    export_dag(source, root, out, Dups::Keep).map_err(walk_fail)
}

/// What an import brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The roots that the archive names.
    pub roots: Vec<Cid>,
    /// Blocks in it.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Stores every block of an archive, each after its hash was checked; `each` hears of its bytes. Durable when it returns.
///
/// # Errors
/// [`Code::Integrity`] with the place of the damage; what came before it is stored.
pub fn import(
    input: &mut dyn Read,
    puts: &Puts,
    each: &mut dyn FnMut(u64) -> Result<(), Fail>,
) -> Result<Imported, Fail> {
    import_telling(input, puts, each, &mut |_| Ok(()))
}

/// As [`import`]; `stored` hears of blocks that are durable, some hundred at a time.
///
/// # Errors
/// As [`import`], and those of `stored`.
pub fn import_telling(
    input: &mut dyn Read,
    puts: &Puts,
    each: &mut dyn FnMut(u64) -> Result<(), Fail>,
    stored: &mut dyn FnMut(&[Cid]) -> Result<(), Fail>,
) -> Result<Imported, Fail> {
    let mut put = |batch: &[Block]| {
        puts.put_many(batch).map_err(|refusal| refusal.fail)?;
        let cids: Vec<Cid> = batch.iter().map(|block| *block.cid()).collect();
        stored(&cids)
    };
    let mut reader = CarReader::new(input).map_err(car_fail)?;
    let mut imported = Imported {
        roots: reader.roots().to_vec(),
        blocks: 0,
        bytes: 0,
    };
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    let mut damage = None;
    loop {
        let block = match reader.next() {
            Some(Ok(block)) => block,
            Some(Err(e)) => {
                damage = Some(car_fail(e));
                break;
            }
            None => break,
        };
        let len = block.data().len();
        imported.blocks += 1;
        imported.bytes += len as u64;
        batch_bytes += len;
        batch.push(block);
        each(len as u64)?;
        if batch.len() >= BATCH_BLOCKS || batch_bytes >= BATCH_BYTES {
            put(&batch)?;
            batch.clear();
            batch_bytes = 0;
        }
    }
    put(&batch)?;
    match damage {
        Some(fail) => Err(fail),
        None => Ok(imported),
    }
}

/// Blocks from a CAR stream for a reader that asks for them in the stream's order; what it leaves out is skipped.
///
/// Hashes are not checked again: the stream comes from the daemon of this repository, which checked them, and the token says
/// that it is this daemon. Bounded: the last four blocks are in memory.
pub struct OrderedSource<R> {
    input: BufReader<R>,
    kept: VecDeque<Block>,
}

impl<R: Read> OrderedSource<R> {
    /// Reads the header; it must name one root, which is returned.
    ///
    /// # Errors
    /// [`Code::Failure`] if the stream is no such archive or breaks off.
    pub fn new(input: R) -> Result<(Self, Cid), Fail> {
        let mut source = Self {
            input: BufReader::with_capacity(256 * 1024, input),
            kept: VecDeque::new(),
        };
        let header = source.section(MAX_HEADER_BYTES)?.ok_or_else(broken_off)?;
        let root = one_root(&header).ok_or_else(|| {
            Fail::new(
                Code::Failure,
                "the daemon's answer is no archive with one root",
            )
        })?;
        Ok((source, root))
    }

    fn next(&mut self) -> Result<Option<Block>, Fail> {
        let Some(section) = self.section(MAX_SECTION_BYTES)? else {
            return Ok(None);
        };
        let mut rest = &section[..];
        let cid = Cid::read_bytes(&mut rest).map_err(|e| {
            Fail::new(
                Code::Failure,
                format!("the daemon's answer holds no CID where one should be: {e}"),
            )
        })?;
        let data = section.slice(section.len() - rest.len()..);
        Ok(Some(Block::danger_unchecked(cid, data)))
    }

    /// One length-prefixed piece; `None` at the end of the stream.
    fn section(&mut self, limit: usize) -> Result<Option<Bytes>, Fail> {
        let Some(length) = self.length(limit)? else {
            return Ok(None);
        };
        let mut piece = vec![0; length];
        self.input.read_exact(&mut piece).map_err(stream_fail)?;
        Ok(Some(piece.into()))
    }

    fn length(&mut self, limit: usize) -> Result<Option<usize>, Fail> {
        if self.input.fill_buf().map_err(stream_fail)?.is_empty() {
            return Ok(None);
        }
        let mut length = 0usize;
        for shift in [0, 7, 14, 21] {
            let mut byte = [0];
            self.input.read_exact(&mut byte).map_err(stream_fail)?;
            length |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                if length > limit {
                    break;
                }
                return Ok(Some(length));
            }
        }
        Err(Fail::new(
            Code::Failure,
            format!("the daemon's answer has a piece of more than {limit} bytes"),
        ))
    }
}

impl<R: Read> BlockSource for OrderedSource<R> {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        if let Some(block) = self.kept.iter().find(|block| block.cid() == cid) {
            return Ok(block.clone());
        }
        loop {
            let next = self.next().map_err(|fail| SourceError::failed(cid, fail))?;
            let block = next.ok_or_else(|| SourceError::failed(cid, broken_off()))?;
            if self.kept.len() == KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back(block.clone());
            if block.cid() == cid {
                return Ok(block);
            }
        }
    }
}

/// The root of a CARv1 header: dag-cbor `{"roots": [CID], "version": 1}`.
fn one_root(header: &[u8]) -> Option<Cid> {
    match gemba_block::cbor::scan(header).ok()?.as_slice() {
        [root] => Some(*root),
        _ => None,
    }
}

/// The daemon's own failure, if the stream carries it.
fn stream_fail(error: std::io::Error) -> Fail {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => broken_off(),
        _ => super::io_fail(error),
    }
}

fn broken_off() -> Fail {
    Fail::new(
        Code::Timeout,
        "the daemon's answer broke off before everything was there",
    )
    .hint("the same command goes on from there; look at the daemon's log")
}
