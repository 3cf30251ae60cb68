//! The walk that makes a DAG whole.
//!
//! It is driven: [`Walk::next_need`] names a block, the owner gets it from wherever it is (store or swarm), makes it
//! durable, and reports it with its links. It holds no block, no clock and no peer. It is iterative and remembers, of each block
//! it has heard of, a 16-byte digest; of the links not yet asked for, their bytes; nothing else.
//!
//! Needs come in *reading order*: parents before children, the first link first, even when answers arrive in another
//! order, so that a file arrives roughly from its beginning, and what waits stays near depth × fan-out.
//!
//! Where the waiting links would take more memory than allowed, those that are last in reading order are forgotten, and the
//! block that holds them is asked for once more when its turn comes; it is stored by then.

mod order;
mod visited;

use crate::{
    WalkConfig,
    desired::Kind,
    error::{MissingCause, WalkError},
};
use cid::Cid;
use order::{Links, Order, Slot};
use std::collections::BTreeMap;
use visited::Visited;

/// A walk over one DAG. See the module's text, and the crate's example.
#[derive(Debug)]
pub struct Walk {
    root: Cid,
    kind: Kind,
    config: WalkConfig,
    visited: Visited,
    order: Order,
    outstanding: BTreeMap<Cid, Place>,
    missing: BTreeMap<Cid, (Place, MissingCause)>,
    refused: Option<WalkError>,
    /// The waiting links have reached their limit, and have not yet fallen to half of it.
    squeezed: bool,
    /// Blocks that were reported and must be asked for once more.
    again: u64,
    progress: Progress,
}

/// Where a walk stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Blocks are outstanding or still to be asked for.
    Walking,
    /// Everything that could be had is here, and [`Walk::missing`] names the rest with its causes. [`Walk::retry_missing`] goes on.
    Missing,
    /// Every block was reported.
    Whole,
    /// The DAG goes beyond a limit or cannot be read. The walk is over.
    Refused(WalkError),
}

/// How far a walk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks reported, here already or fetched.
    pub blocks_done: u64,
    /// Their bytes.
    pub bytes_done: u64,
    /// Of these, blocks that had to be fetched.
    pub blocks_fetched: u64,
    /// Their bytes.
    pub bytes_fetched: u64,
    /// Blocks that are known to belong to the DAG and not yet reported: outstanding, missing, and not yet asked for. Grows while folders and
    /// inner nodes arrive.
    pub pending: u64,
    /// Asked for and not answered.
    pub outstanding: u64,
    /// Reported missing.
    pub missing: u64,
    /// Blocks whose waiting links were forgotten for want of memory, so that they are asked for twice.
    pub asked_again: u64,
    /// Reports of blocks that were not outstanding: doubles, late answers, strangers. They change nothing.
    pub ignored: u64,
}

impl Walk {
    /// A walk over everything below `root`.
    pub fn new(root: Cid, config: WalkConfig) -> Self {
        Self::of_kind(root, Kind::Recursive, config)
    }

    /// The walk a pin of `kind` needs; a direct one is done with the root's block.
    pub fn of_kind(root: Cid, kind: Kind, config: WalkConfig) -> Self {
        let mut visited = Visited::new(config.visited_key);
        visited.insert(&root);
        let order = Order::new(&root);
        Self {
            root,
            kind,
            visited,
            order,
            outstanding: BTreeMap::new(),
            missing: BTreeMap::new(),
            refused: None,
            squeezed: false,
            again: 0,
            progress: Progress::default(),
            config,
        }
    }

    /// The next block to get, or `None`: the window is full, answers must come first, or the walk is over ([`state`](Self::state) tells).
    /// Poll it again after every report.
    ///
    /// The owner looks into its store first and calls [`have`](Self::have) if the block is there; so a walk after a restart fetches nothing twice.
    /// A block of codec raw has no links: its size is all that need be known. An identity CID carries its block within itself.
    pub fn next_need(&mut self) -> Option<Cid> {
        let full = self.outstanding.len() >= self.config.window
            || self.missing.len() >= self.config.max_missing;
        if full || self.refused.is_some() {
            return None;
        }
        if self.is_held_back() {
            return None;
        }
        let (cid, place) = self.order.take_first()?;
        self.outstanding.insert(cid, place);
        Some(cid)
    }

    /// A block that was fetched is durable: `bytes` long, with these links in the order of the block.
    ///
    /// Reports may come in any order; those of blocks that are not outstanding are ignored and counted. `links` is read no further than the
    /// limits allow.
    ///
    /// # Errors
    /// [`WalkError`] if a limit is passed: the walk is over, and says so from now on.
    pub fn on_block(
        &mut self,
        cid: &Cid,
        bytes: u64,
        links: impl IntoIterator<Item = Cid>,
    ) -> Result<(), WalkError> {
        if self.report(cid, bytes, links)? {
            self.progress.blocks_fetched += 1;
            self.progress.bytes_fetched = self.progress.bytes_fetched.saturating_add(bytes);
        }
        Ok(())
    }

    /// A block was here already. Otherwise as [`on_block`](Self::on_block).
    ///
    /// # Errors
    /// As [`on_block`](Self::on_block).
    pub fn have(
        &mut self,
        cid: &Cid,
        bytes: u64,
        links: impl IntoIterator<Item = Cid>,
    ) -> Result<(), WalkError> {
        self.report(cid, bytes, links).map(drop)
    }

    /// A block could not be had. The walk goes on with the others; a later report of the block is welcome.
    pub fn on_missing(&mut self, cid: &Cid, cause: MissingCause) {
        match self.outstanding.remove(cid) {
            Some(place) => drop(self.missing.insert(*cid, (place, cause))),
            None => self.progress.ignored += 1,
        }
    }

    /// A block is here, matches its hash, and cannot be read as its codec says: no walk can ever make this DAG whole.
    ///
    /// # Errors
    /// Always [`WalkError::Unreadable`], unless the block is none of those asked for.
    pub fn on_unreadable(&mut self, cid: &Cid, reason: impl Into<String>) -> Result<(), WalkError> {
        if self.claim(cid).is_none() {
            return self.ignore();
        }
        Err(self.refuse(WalkError::Unreadable {
            cid: *cid,
            reason: reason.into(),
        }))
    }

    /// How many blocks may be asked for at once, from now on.
    pub fn set_window(&mut self, blocks: usize) {
        self.config.window = blocks.max(1);
    }

    /// Asks for the missing blocks once more, each at its old place in the order. Returns how many there were.
    pub fn retry_missing(&mut self) -> usize {
        let missing = std::mem::take(&mut self.missing);
        let count = missing.len();
        for (cid, (place, _)) in missing {
            let again = Links::one(&cid, place.depth, place.again);
            self.order.fill(place.slot, again);
        }
        count
    }

    /// Where the walk stands.
    pub fn state(&self) -> State {
        match &self.refused {
            Some(cause) => State::Refused(cause.clone()),
            None if self.is_done() => State::Whole,
            None if self.is_stuck() => State::Missing,
            None => State::Walking,
        }
    }

    /// Whether every block of the DAG was reported. Now, and not before, the owner may record the pin as complete.
    pub fn is_done(&self) -> bool {
        let waits = !self.outstanding.is_empty() || !self.missing.is_empty();
        self.refused.is_none() && self.order.is_drained() && !waits
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress {
            pending: self.known() + self.again - self.progress.blocks_done,
            outstanding: self.outstanding.len() as u64,
            missing: self.missing.len() as u64,
            ..self.progress
        }
    }

    /// The blocks asked for and not answered: what to cancel when the walk is dropped.
    pub fn outstanding(&self) -> impl ExactSizeIterator<Item = &Cid> {
        self.outstanding.keys()
    }

    /// Whether this block was asked for and not answered.
    pub fn is_outstanding(&self, cid: &Cid) -> bool {
        self.outstanding.contains_key(cid)
    }

    /// The missing blocks and why.
    pub fn missing(&self) -> impl ExactSizeIterator<Item = (&Cid, &MissingCause)> {
        self.missing.iter().map(|(cid, (_, cause))| (cid, cause))
    }

    /// Where it began.
    pub fn root(&self) -> &Cid {
        &self.root
    }

    /// Memory of the links that wait to be asked for, in bytes: what [`max_frontier_bytes`](WalkConfig::max_frontier_bytes) bounds.
    pub fn frontier_memory(&self) -> usize {
        self.order.bytes()
    }

    /// Memory of the waiting links and the visited set together, in bytes, within a few per cent.
    pub fn memory(&self) -> usize {
        self.order.bytes() + self.visited.memory()
    }

    /// Takes a report. `true`: the block was waited for, and is reported for the first time.
    fn report(
        &mut self,
        cid: &Cid,
        bytes: u64,
        links: impl IntoIterator<Item = Cid>,
    ) -> Result<bool, WalkError> {
        let Some(place) = self.claim(cid) else {
            return self.ignore().map(|()| false);
        };
        if place.again {
            self.again -= 1;
        } else {
            self.count(bytes)?;
        }
        let mut links = links.into_iter().peekable();
        if self.kind == Kind::Direct || links.peek().is_none() {
            self.order.close(place.slot);
        } else if self.is_squeezed() && !self.outstanding.is_empty() {
            // There is little room, and another may come before it in reading order: not even looked at.
            self.put_back(cid, place);
        } else {
            match self.unseen(cid, place.depth + 1, links) {
                Ok(links) => self.fill(cid, place, links)?,
                Err(cause) => return Err(self.refuse(cause)),
            }
        }
        Ok(!place.again)
    }

    fn count(&mut self, bytes: u64) -> Result<(), WalkError> {
        let (done, limit) = (&mut self.progress, self.config.max_bytes);
        done.blocks_done += 1;
        done.bytes_done = done.bytes_done.saturating_add(bytes);
        if done.bytes_done > limit {
            return Err(self.refuse(WalkError::TooManyBytes { limit }));
        }
        Ok(())
    }

    /// Puts a block's links into its place. Where memory is short, links further on give way; then, if anything can go on
    /// without this block, it does; a block that is first and does not fit even alone ends the walk.
    fn fill(&mut self, cid: &Cid, place: Place, links: Links) -> Result<(), WalkError> {
        let limit = self.config.max_frontier_bytes;
        while self.order.bytes() + links.bytes() > limit {
            self.squeezed = true;
            let Some(forgotten) = self.order.give_way(place.slot) else {
                break;
            };
            self.forget(&forgotten);
            self.again += 1;
            self.progress.asked_again += 1;
        }
        if self.order.bytes() + links.bytes() <= limit {
            self.order.fill(place.slot, links);
            return Ok(());
        }
        if !self.order.has_links_before(place.slot) {
            return Err(self.refuse(WalkError::TooWide { cid: *cid, limit }));
        }
        self.forget(&links.unpack().1);
        self.put_back(cid, place);
        Ok(())
    }

    /// A block that will be asked for once more, at its place.
    fn put_back(&mut self, cid: &Cid, place: Place) {
        self.again += 1;
        self.progress.asked_again += 1;
        let again = Links::one(cid, place.depth, true);
        self.order.fill(place.slot, again);
    }

    /// Links will be heard of anew when their block is asked for once more.
    fn forget(&mut self, links: &[Cid]) {
        for link in links {
            self.visited.remove(link);
        }
    }

    /// While memory is short, blocks that may have links are asked for one at a time. Leaves add nothing.
    fn is_held_back(&mut self) -> bool {
        self.is_squeezed()
            && !self.outstanding.is_empty()
            && self.order.first().is_some_and(|cid| cid.codec() != RAW)
    }

    fn is_squeezed(&mut self) -> bool {
        self.squeezed &= self.order.bytes() > self.config.max_frontier_bytes / 2;
        self.squeezed
    }

    /// Those of a block's links that were never heard of, each once, packed.
    fn unseen(
        &mut self,
        parent: &Cid,
        depth: u32,
        links: impl IntoIterator<Item = Cid>,
    ) -> Result<Links, WalkError> {
        let mut unseen = Links::of(parent, depth);
        for link in links {
            if !self.visited.insert(&link) {
                continue;
            }
            if depth > self.config.max_depth {
                return Err(WalkError::TooDeep {
                    cid: link,
                    limit: self.config.max_depth,
                });
            }
            if self.known() > self.config.max_blocks {
                return Err(WalkError::TooManyBlocks {
                    limit: self.config.max_blocks,
                });
            }
            unseen.push(&link);
            // Nothing gives so much way: an iterator without end stops here.
            if unseen.bytes() > self.config.max_frontier_bytes {
                return Err(WalkError::TooWide {
                    cid: *parent,
                    limit: self.config.max_frontier_bytes,
                });
            }
        }
        Ok(unseen)
    }

    /// Takes a block out of those that are waited for.
    fn claim(&mut self, cid: &Cid) -> Option<Place> {
        self.outstanding
            .remove(cid)
            .or_else(|| self.missing.remove(cid).map(|(place, _)| place))
    }

    fn ignore(&mut self) -> Result<(), WalkError> {
        self.progress.ignored += 1;
        Ok(())
    }

    /// Ends the walk and gives back what it held.
    fn refuse(&mut self, cause: WalkError) -> WalkError {
        self.order.clear();
        self.outstanding.clear();
        self.missing.clear();
        self.refused = Some(cause.clone());
        cause
    }

    fn is_stuck(&self) -> bool {
        let room = self.missing.len() < self.config.max_missing;
        !self.missing.is_empty()
            && self.outstanding.is_empty()
            && (self.order.is_drained() || !room)
    }

    fn known(&self) -> u64 {
        self.visited.len()
    }
}

/// Where in the order a block's links will go, and how deep the block lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    slot: Slot,
    depth: u32,
    /// The block was reported before, and its links were forgotten.
    again: bool,
}

/// Multicodec code of blocks that have no links.
const RAW: u64 = 0x55;
