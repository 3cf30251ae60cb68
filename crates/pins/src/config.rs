//! What a walk may cost, on one page.

/// Limits of one [`Walk`](crate::Walk).
///
/// Worst case of memory with the defaults: `max_blocks` × about 20 bytes of visited set (18 MiB) plus `max_frontier_bytes` (8 MiB) plus
/// `window` and `max_missing` × about 300 bytes: below 32 MiB, whatever DAG a stranger publishes (threat row P6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkConfig {
    pub(crate) window: usize,
    pub(crate) max_depth: u32,
    pub(crate) max_blocks: u64,
    pub(crate) max_bytes: u64,
    pub(crate) max_frontier_bytes: usize,
    pub(crate) max_missing: usize,
    pub(crate) visited_key: [u8; 16],
}

impl Default for WalkConfig {
    fn default() -> Self {
        Self {
            window: 256,
            max_depth: 128,
            max_blocks: 900_000,
            max_bytes: 1 << 40,
            max_frontier_bytes: 8 << 20,
            max_missing: 1_024,
            visited_key: [0; 16],
        }
    }
}

impl WalkConfig {
    /// How many blocks may be asked for and not yet answered. More hides latency (256 blocks of 1 KiB fill 2 Mbit/s at 1 s), less keeps the
    /// arrival order closer to the reading order. 0 counts as 1. Default 256: a quarter of the 1,024 wants Kubo keeps of one peer.
    ///
    /// The bytes of blocks in flight are not counted here, since a size is known only on arrival: an owner with a byte budget stops asking
    /// [`next_need`](crate::Walk::next_need) for a while.
    #[must_use]
    pub fn window(mut self, blocks: usize) -> Self {
        self.window = blocks.max(1);
        self
    }

    /// The longest path from the root, in links; the root itself is at depth 0. Default 128 (threat row X9).
    ///
    /// The walk is iterative, so a higher limit costs no stack. A DAG none of whose paths is longer than the limit is never refused, and one
    /// that holds a block all of whose paths are longer always is; between the two, the path by which a shared block was found first decides.
    #[must_use]
    pub fn max_depth(mut self, links: u32) -> Self {
        self.max_depth = links;
        self
    }

    /// Most distinct blocks of one DAG, and with them the size of the visited set: about 20 bytes each. Default 900,000, which is 225 GiB of
    /// 256 KiB blocks for 18 MiB of memory.
    #[must_use]
    pub fn max_blocks(mut self, blocks: u64) -> Self {
        self.max_blocks = blocks;
        self
    }

    /// Most bytes of blocks of one DAG. Default 1 TiB: the hard cap on disk is the store's; this one is the quota of a single pin.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Room, in bytes, for links that are known and not yet asked for; each window entry may go beyond it by some 200 bytes. Default 8 MiB:
    /// four blocks of 2 MiB that are nothing but links.
    ///
    /// A DAG walked in order needs depth × fan-out × 36 bytes, 200 KiB for a file of 1,024-way nodes; the window asks ahead and fills up to
    /// window × fan-out × 36. Where the room is full the links that are furthest are forgotten, and their block is asked for twice; so less room
    /// costs some reads and refuses nothing, down to the room that the links of a single block take.
    #[must_use]
    pub fn max_frontier_bytes(mut self, bytes: usize) -> Self {
        self.max_frontier_bytes = bytes;
        self
    }

    /// How many missing blocks are remembered with their causes before the walk stops asking for others. 0 counts as 1. Default 1,024.
    #[must_use]
    pub fn max_missing(mut self, blocks: usize) -> Self {
        self.max_missing = blocks.max(1);
        self
    }

    /// Key of the digests in the visited set. Give each process a random one: with a key that a stranger knows he could, at the price of
    /// 2^64 hashes, publish two CIDs that the walk takes for one. Default: zeros, which suits tests and DAGs of one's own.
    #[must_use]
    pub fn visited_key(mut self, key: [u8; 16]) -> Self {
        self.visited_key = key;
        self
    }
}
