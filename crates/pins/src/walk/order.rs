//! Reading order of what is still to be asked for, kept while answers come in any order.
//!
//! A list of two kinds of entries: *links* (of one block, packed, consumed from the front) and *holes* (a block that was
//! asked for). An answer turns the hole into the links of its block, at that very place; so the first links of the list are
//! always the next in reading order.
//!
//! Where memory runs short, the last links of the list give way: the block they came from takes their place, to be asked for
//! again when its turn comes.

use super::Place;
use cid::Cid;

/// The list. Entries live in a slab and are chained by index.
#[derive(Debug)]
pub(super) struct Order {
    entries: Vec<Entry>,
    free: Vec<u32>,
    head: u32,
    tail: u32,
    /// The first entry that holds links, if it is known.
    first: Option<u32>,
    bytes: usize,
}

/// The place of a block that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot(u32);

/// Links that were not heard of before, all at the same depth: the CID of the block they came from, then theirs.
#[derive(Debug)]
pub(super) struct Links {
    packed: Vec<u8>,
    /// Where the next link begins.
    at: usize,
    depth: u32,
    /// A single block that was reported before.
    again: bool,
    /// Whether `packed` begins with the block they came from.
    from_block: bool,
}

#[derive(Debug)]
struct Entry {
    prev: u32,
    next: u32,
    links: Option<Links>,
}

const NONE: u32 = u32::MAX;

/// How many entries are looked at for one that can give way. An honest DAG has fewer that cannot: holes, and a block for each level that gave way
/// before. A hostile one must not make every answer cost a look at them all.
const MAX_LOOKED_AT: usize = 4_096;

impl Order {
    pub(super) fn new(root: &Cid) -> Self {
        let mut order = Self::empty();
        let root = Links::one(root, 0, false);
        order.bytes = root.bytes();
        order.head = order.allocate(Entry {
            prev: NONE,
            next: NONE,
            links: Some(root),
        });
        order.tail = order.head;
        order
    }

    /// The first link of the list; a hole takes its place.
    pub(super) fn take_first(&mut self) -> Option<(Cid, Place)> {
        let at = self.find_first()?;
        let links = self.links_mut(at);
        let (cid, depth, again) = (links.take(), links.depth, links.again);
        let slot = if links.is_empty() {
            self.bytes -= links.bytes();
            self.entries[at as usize].links = None;
            // What comes next is behind this entry: everything before it is holes.
            self.first = self.scan(self.entries[at as usize].next);
            at
        } else {
            self.insert_hole_before(at)
        };
        let slot = Slot(slot);
        Some((cid, Place { slot, depth, again }))
    }

    /// The first link of the list, left where it is.
    pub(super) fn first(&mut self) -> Option<Cid> {
        let at = self.find_first()?;
        Some(self.links_mut(at).peek())
    }

    /// Puts links into a hole.
    pub(super) fn fill(&mut self, slot: Slot, mut links: Links) {
        if links.is_empty() {
            return self.close(slot);
        }
        links.packed.shrink_to_fit();
        self.bytes += links.bytes();
        self.entries[slot.0 as usize].links = Some(links);
        // It may lie before or behind the first links so far.
        self.first = None;
    }

    /// Removes a hole.
    pub(super) fn close(&mut self, slot: Slot) {
        let Entry { prev, next, .. } = self.entries[slot.0 as usize];
        match prev {
            NONE => self.head = next,
            prev => self.entries[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => self.entries[next as usize].prev = prev,
        }
        self.free.push(slot.0);
    }

    /// Puts the block that the last links of the list came from into their place, if they lie behind `slot`. Returns these links,
    /// which nobody has heard of from now on.
    pub(super) fn give_way(&mut self, slot: Slot) -> Option<Vec<Cid>> {
        let mut at = self.tail;
        for _ in 0..MAX_LOOKED_AT {
            if at == slot.0 {
                break;
            }
            let entry = &mut self.entries[at as usize];
            if let Some(links) = entry.links.take_if(|links| links.from_block) {
                let (block, rest) = links.unpack();
                let again = Links::one(&block, links.depth - 1, true);
                self.bytes = self.bytes - links.bytes() + again.bytes();
                entry.links = Some(again);
                return Some(rest);
            }
            at = entry.prev;
        }
        None
    }

    /// Whether any links lie before this hole.
    pub(super) fn has_links_before(&self, slot: Slot) -> bool {
        let mut at = self.entries[slot.0 as usize].prev;
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.links.is_some() {
                return true;
            }
            at = entry.prev;
        }
        false
    }

    /// Whether every link was handed out.
    pub(super) fn is_drained(&self) -> bool {
        self.bytes == 0
    }

    /// Memory of the links, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn clear(&mut self) {
        *self = Self::empty();
    }

    fn empty() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            head: NONE,
            tail: NONE,
            first: None,
            bytes: 0,
        }
    }

    /// The first entry with links. Looked for from the head only after an answer brought links, so a long row of leaves costs one
    /// step each.
    fn find_first(&mut self) -> Option<u32> {
        if self.bytes == 0 {
            return None;
        }
        if self.first.is_none() {
            self.first = self.scan(self.head);
        }
        self.first
    }

    fn scan(&self, mut at: u32) -> Option<u32> {
        while at != NONE && self.entries[at as usize].links.is_none() {
            at = self.entries[at as usize].next;
        }
        (at != NONE).then_some(at)
    }

    fn links_mut(&mut self, at: u32) -> &mut Links {
        let links = self.entries[at as usize].links.as_mut();
        links.expect("find_first returns an entry with links")
    }

    fn insert_hole_before(&mut self, at: u32) -> u32 {
        let prev = self.entries[at as usize].prev;
        let hole = self.allocate(Entry {
            prev,
            next: at,
            links: None,
        });
        self.entries[at as usize].prev = hole;
        match prev {
            NONE => self.head = hole,
            prev => self.entries[prev as usize].next = hole,
        }
        hole
    }

    fn allocate(&mut self, entry: Entry) -> u32 {
        if let Some(at) = self.free.pop() {
            self.entries[at as usize] = entry;
            return at;
        }
        let at = u32::try_from(self.entries.len())
            .ok()
            .filter(|at| *at != NONE);
        self.entries.push(entry);
        at.expect("entries are bounded by the window, the missing and the frontier's bytes")
    }
}

impl Links {
    /// None yet, of this block, whose links lie at `depth`.
    pub(super) fn of(block: &Cid, depth: u32) -> Self {
        let mut links = Self::one(block, depth, false);
        links.at = links.packed.len();
        links.from_block = true;
        links
    }

    /// A block by itself.
    pub(super) fn one(block: &Cid, depth: u32, again: bool) -> Self {
        let mut links = Self {
            packed: Vec::new(),
            at: 0,
            depth,
            again,
            from_block: false,
        };
        links.push(block);
        links
    }

    pub(super) fn push(&mut self, cid: &Cid) {
        cid.write_bytes(&mut self.packed)
            .expect("writing to memory does not fail");
    }

    /// What they and their entry take.
    pub(super) fn bytes(&self) -> usize {
        self.packed.len() + size_of::<Entry>()
    }

    /// The block they came from, and those not yet consumed.
    pub(super) fn unpack(&self) -> (Cid, Vec<Cid>) {
        let block = read(&mut self.packed.as_slice());
        let mut rest = &self.packed[self.at..];
        let links = std::iter::from_fn(|| (!rest.is_empty()).then(|| read(&mut rest)));
        (block, links.collect())
    }

    fn take(&mut self) -> Cid {
        let mut rest = &self.packed[self.at..];
        let before = rest.len();
        let cid = read(&mut rest);
        self.at += before - rest.len();
        cid
    }

    fn peek(&self) -> Cid {
        read(&mut &self.packed[self.at..])
    }

    fn is_empty(&self) -> bool {
        self.at == self.packed.len()
    }
}

fn read(packed: &mut &[u8]) -> Cid {
    Cid::read_bytes(packed).expect("push wrote a CID here")
}
