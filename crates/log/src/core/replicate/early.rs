//! Batches that came before the one before them: kept a while, bounded, by author and in all (L6).

use super::{Config, Peer};
use crate::{batch::Batch, feed::Author};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Early {
    /// By the digest of the batch before.
    waiting: BTreeMap<[u8; 32], (Peer, Batch)>,
    by_author: BTreeMap<Author, usize>,
    bytes: usize,
}

impl Early {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a batch; returns how many were dropped for want of room, this one perhaps among them.
    pub(super) fn keep(&mut self, peer: Peer, batch: Batch, config: &Config) -> u64 {
        let (Some(before), size) = (batch.prev_digest().copied(), batch.bytes().len()) else {
            return 0;
        };
        // Whoever came first stays: another batch after the same one is a fork, and comes when it is asked for.
        if self.waiting.contains_key(&before) {
            return 0;
        }
        let author = batch.feed().author;
        if self.by_author.get(&author).copied().unwrap_or(0) + size
            > config.max_early_bytes_per_author
            || size > config.max_early_bytes
        {
            return 1;
        }
        let mut dropped = 0;
        while self.bytes + size > config.max_early_bytes {
            let furthest = self
                .waiting
                .iter()
                .max_by_key(|(_, (_, batch))| batch.first());
            let Some(victim) = furthest.map(|(before, _)| *before) else {
                break;
            };
            self.take(&victim);
            dropped += 1;
        }
        self.bytes += size;
        *self.by_author.entry(author).or_default() += size;
        self.waiting.insert(before, (peer, batch));
        dropped
    }

    /// The batch that follows on this one.
    pub(super) fn take(&mut self, before: &[u8; 32]) -> Option<(Peer, Batch)> {
        let (peer, batch) = self.waiting.remove(before)?;
        let (size, author) = (batch.bytes().len(), batch.feed().author);
        self.bytes -= size;
        if let Some(bytes) = self.by_author.get_mut(&author) {
            *bytes -= size;
            if *bytes == 0 {
                self.by_author.remove(&author);
            }
        }
        Some((peer, batch))
    }
}
