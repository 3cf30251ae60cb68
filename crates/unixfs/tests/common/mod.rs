//! What the tests of this crate share: a store in memory and the vectors' inputs.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::HashMap;

use gemba_unixfs::{
    Block, BoxError, Bytes, Cid, ImportSink, Imported, Part, Profile, import_reader,
};

#[derive(Clone, Default)]
pub struct Memory {
    pub blocks: HashMap<Cid, Bytes>,
    pub entries: Vec<Imported>,
    pub batches: usize,
}

impl Memory {
    pub fn bytes(&self, cid: &Cid) -> &Bytes {
        &self.blocks[cid]
    }

    pub fn put(&mut self, block: Block) -> Cid {
        let (cid, data) = block.into_parts();
        self.blocks.insert(cid, data);
        cid
    }
}

impl ImportSink for Memory {
    fn blocks(&mut self, blocks: Vec<Block>) -> Result<(), BoxError> {
        self.batches += 1;
        self.blocks
            .extend(blocks.into_iter().map(Block::into_parts));
        Ok(())
    }

    fn entry(&mut self, entry: &Imported) {
        self.entries.push(entry.clone());
    }
}

/// `ctrN` of the vectors: N bytes of a big-endian u32 counter.
pub fn counter(len: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(len).collect()
}

pub fn import_bytes(content: &[u8], profile: &Profile, workers: usize) -> (Memory, Part) {
    let mut store = Memory::default();
    let part = import_reader(content, profile, workers, &mut store).unwrap();
    (store, part)
}

pub fn cid_of_bytes(content: &[u8], profile: &Profile, workers: usize) -> String {
    let mut drop_all = |_: Vec<Block>| Ok(());
    import_reader(content, profile, workers, &mut drop_all)
        .unwrap()
        .cid
        .to_string()
}

impl gemba_unixfs::BlockSource for Memory {
    fn get(&mut self, cid: &Cid) -> Result<Block, gemba_unixfs::SourceError> {
        gemba_unixfs::BlockSource::get(&mut self.blocks, cid)
    }
}
