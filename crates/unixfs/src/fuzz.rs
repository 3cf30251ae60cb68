//! Entry points of the fuzz targets; replayed on stable by `tests/corpus.rs`.

use std::collections::VecDeque;

use crate::car::{CarStep, CarWriter, Decoder, Dups};
use crate::dagpb::{self, FsData, Link, Node};
use crate::{
    Block, Bytes, Cid, ListStep, Listing, Lookup, LookupStep, ReadError, ReadStep, Reader,
};

/// Blocks that a walk may ask for before the target gives up: a finite input must not be an endless walk.
const MAX_STEPS: usize = 4096;

/// Any bytes as a dag-pb node and as a UnixFS message. What is taken is written again with the same meaning.
pub fn dag_pb(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(node) = Node::decode(bytes.clone()) {
        assert_eq!(node.bytes(), &bytes);
        let links: Vec<Link<'_>> = node.links().collect();
        let data = node.data();
        let again = dagpb::encode(links.iter().copied(), data.as_deref());
        assert!(
            again.len() <= bytes.len(),
            "the canonical form is the shortest"
        );
        let second = Node::decode(again.clone().into()).expect("what we write is canonical");
        assert!(second.links().eq(links.iter().copied()));
        assert_eq!(second.data(), data);
        assert_eq!(
            dagpb::encode(second.links(), second.data().as_deref()),
            again
        );
        if let Some(data) = data {
            fs_data(&data);
        }
    }
    fs_data(&bytes);
}

fn fs_data(bytes: &Bytes) {
    if let Ok(data) = FsData::decode(bytes) {
        let again = FsData::decode(&data.encode().into()).expect("what we write is canonical");
        assert_eq!(again, data);
    }
}

/// Bytes as the blocks of a directory, in the order in which they are asked for: listed, and every listed name found
/// again by a lookup.
pub fn hamt(bytes: &[u8]) {
    let blocks = script(bytes);
    let Some(first) = blocks.front() else { return };
    let root = *first.cid();
    let mut names = Vec::new();
    let mut served = Vec::new();
    let mut listing = Listing::new(root);
    let mut queue = blocks;
    for _ in 0..MAX_STEPS {
        assert!(listing.upcoming(8).len() <= 8);
        match listing.poll() {
            Ok(ListStep::NeedBlock(cid)) => {
                let Some(block) = serve(&mut queue, cid) else {
                    break;
                };
                served.push(block.clone());
                if listing.block(&block).is_err() {
                    break;
                }
            }
            Ok(ListStep::Entry(entry)) => names.push(entry),
            Ok(ListStep::End) | Err(_) => break,
        }
    }
    for entry in names.iter().take(4) {
        let mut lookup = Lookup::new(root, entry.name.clone());
        let mut queue: VecDeque<Block> = served.iter().cloned().collect();
        for _ in 0..64 {
            match lookup.poll() {
                Ok(LookupStep::NeedBlock(cid)) => {
                    // The same CID may have been served with several contents: then nothing can be said.
                    let mut same = queue.iter().filter(|block| *block.cid() == cid);
                    let (Some(block), None) = (same.next().cloned(), same.next()) else {
                        break;
                    };
                    if lookup.block(&block).is_err() {
                        break;
                    }
                    queue.retain(|other| other.cid() != block.cid());
                }
                Ok(LookupStep::Found(found)) => {
                    assert_eq!(found.name, entry.name);
                    break;
                }
                Ok(LookupStep::Absent) => panic!("{:?} is listed and not found", entry.name),
                Err(_) => break,
            }
        }
    }
}

/// Bytes as the blocks of a file, in the order in which they are asked for: never more content than was served, and a
/// known size is the size.
pub fn reader(bytes: &[u8]) {
    let mut queue = script(bytes);
    let served: u64 = queue.iter().map(|block| block.data().len() as u64).sum();
    let Some(first) = queue.front() else { return };
    let mut reader = Reader::new(*first.cid(), ..);
    let mut content = 0u64;
    for _ in 0..MAX_STEPS {
        assert!(reader.upcoming(8).len() <= 8);
        match reader.poll() {
            Ok(ReadStep::NeedBlock(cid)) => {
                let Some(block) = serve(&mut queue, cid) else {
                    return;
                };
                let stranger = Block::danger_unchecked(Cid::new_v1(0x55, *cid.hash()), "x");
                if stranger.cid() != &cid {
                    assert!(matches!(
                        reader.block(&stranger),
                        Err(ReadError::WrongBlock { .. })
                    ));
                }
                if reader.block(&block).is_err() {
                    return;
                }
            }
            Ok(ReadStep::Bytes(bytes)) => {
                assert!(!bytes.is_empty());
                content += bytes.len() as u64;
                // Identity CIDs carry content of their own, at most as much as the bytes they stand in.
                assert!(content <= served * 2 + 64 * MAX_STEPS as u64);
            }
            Ok(ReadStep::End) => {
                if let Some(size) = reader.size() {
                    assert_eq!(size, content);
                }
                return;
            }
            Err(_) => return,
        }
    }
}

/// Any bytes as an archive: the same whatever the pieces, and what is taken is written and read again.
pub fn car(bytes: &[u8]) {
    let whole = decode(bytes, bytes.len().max(1));
    for piece in [1, 7, 4096] {
        let pieces = decode(bytes, piece);
        assert_eq!(whole.as_ref().ok(), pieces.as_ref().ok());
        assert_eq!(whole.as_ref().err(), pieces.as_ref().err());
    }
    let Ok((roots, blocks)) = whole else { return };
    let mut writer =
        CarWriter::new(Vec::new(), &roots, Dups::Keep).expect("a Vec takes everything");
    for block in &blocks {
        writer.write(block).expect("a Vec takes everything");
    }
    let written = writer.finish().expect("a Vec takes everything");
    let (roots_again, blocks_again) = decode(&written, 4096).expect("what we write is read");
    assert_eq!(roots_again, roots);
    // Blocks of identity CIDs are not written.
    let kept: Vec<Block> = blocks
        .into_iter()
        .filter(|block| block.cid().hash().code() != 0)
        .collect();
    assert_eq!(blocks_again, kept);
}

type Archive = (Vec<Cid>, Vec<Block>);

fn decode(bytes: &[u8], piece: usize) -> Result<Archive, crate::car::CarError> {
    let mut decoder = Decoder::new();
    let mut pieces = bytes.chunks(piece);
    let mut roots = Vec::new();
    let mut blocks = Vec::new();
    loop {
        match decoder.poll()? {
            CarStep::NeedBytes => match pieces.next() {
                Some(piece) => decoder.feed(piece),
                None => decoder.end(),
            },
            CarStep::Roots(found) => roots = found,
            CarStep::Block(block) => blocks.push(block),
            CarStep::End => return Ok((roots, blocks)),
        }
    }
}

/// Blocks from bytes: a length of two bytes, big-endian, whose top bit says raw, then the content; the last may be cut.
fn script(mut bytes: &[u8]) -> VecDeque<Block> {
    let mut blocks = VecDeque::new();
    while let [high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([high & 0x7f, *low])).min(rest.len());
        let (content, behind) = rest.split_at(length);
        let content = Bytes::copy_from_slice(content);
        let block = if high & 0x80 != 0 {
            Block::raw(content)
        } else {
            Block::dag_pb(content)
        };
        blocks.extend(block);
        bytes = behind;
    }
    blocks
}

/// The next block under whatever name is asked for: no mutation would ever find the preimage of a link.
fn serve(queue: &mut VecDeque<Block>, cid: Cid) -> Option<Block> {
    let (_, data) = queue.pop_front()?.into_parts();
    Some(Block::danger_unchecked(cid, data))
}
