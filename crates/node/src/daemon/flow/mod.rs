//! The flows: what happens to a fact on its way through the node, one file a flow. Facts go up (`Found`, `Stored`), wishes
//! go down (`want`, `write`); nobody asks a neighbour a question and waits.

#[cfg(test)]
mod crashes;
pub mod dht;
pub mod disk;
pub mod fetch;
pub mod follow;
pub mod names;
pub mod peers;
pub mod pins;
pub mod pubsub;
pub mod readers;
pub mod repair;
pub mod walks;
pub mod why;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_exchange::Behaviour as Exchange;
use gemba_store::Store;

use crate::daemon::work::Workers;

/// What a flow may touch while the loop applies one action.
pub struct Ctx<'a> {
    /// Time since the daemon started.
    pub now: Duration,
    /// Where wants go.
    pub exchange: &'a mut Exchange,
    /// For look-ups in its memory; reading goes through the workers.
    pub store: &'a Store,
    /// The disk threads.
    pub workers: &'a Workers,
    /// Blocks between the network and the disk.
    pub arriving: &'a mut Arriving,
    /// Peers that can be asked.
    pub peers: usize,
    /// Who is connected, and what keeps others away.
    pub known: &'a peers::Peers,
    /// Whether the disk takes blocks.
    pub disk: &'a mut disk::Disk,
}

/// Blocks that were found and are not yet durable. Bounded by the exchange's node budget, which gets its credit back
/// only when [`Arriving::settled`] is told.
#[derive(Default)]
pub struct Arriving {
    blocks: HashMap<Cid, Bytes>,
    /// Blocks that found the write queue full; they are wanted again. Counted because it should never happen.
    pub overflows: u64,
}

impl Arriving {
    /// Takes a block from the exchange and hands it to the writers.
    pub fn take(&mut self, block: Block, exchange: &mut Exchange, workers: &Workers) {
        let (cid, bytes) = (*block.cid(), block.len());
        if self.blocks.insert(cid, block.data().clone()).is_some() {
            // A second session found it: it is with the writers already.
            exchange.release(bytes);
            return;
        }
        if !workers.write(block) {
            self.overflows += 1;
            self.blocks.remove(&cid);
            exchange.release(bytes);
        }
    }

    /// The block is durable, or lost to a failed write: either way its bytes no longer count.
    pub fn settled(&mut self, cid: &Cid, exchange: &mut Exchange) {
        if let Some(data) = self.blocks.remove(cid) {
            exchange.release(data.len());
        }
    }

    /// A block that is on its way to the disk.
    #[must_use]
    pub fn get(&self, cid: &Cid) -> Option<&Bytes> {
        self.blocks.get(cid)
    }

    /// Blocks on their way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// What they weigh.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.values().map(Bytes::len).sum()
    }

    /// Whether none is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}
