//! Listing: all blocks, a bounded portion at a time, beside everything else that goes on.

use std::collections::VecDeque;

use cid::Cid;
use cid::multihash::Multihash;

use crate::error::StoreError;
use crate::format::BLOCK;
use crate::index::{Located, Place};
use crate::pages::Pages;
use crate::store::{RAW, Store};

/// A block in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// As CIDv1 of codec raw: the codec is not stored.
    pub cid: Cid,
    /// Its size in bytes.
    pub size: u64,
    /// The unit of [`Store::tick`] in which it was used last.
    pub used: u8,
}

/// Goes over all blocks in the order of the disk, holding no lock in between.
///
/// Every block that is there from beginning to end is shown, those that compaction moves meanwhile perhaps twice. Blocks that
/// come or go meanwhile may be shown or not.
#[derive(Debug)]
pub struct Keys {
    store: Store,
    /// The pack that is shown, and how far.
    pages: Option<(u32, Pages)>,
    /// Packs before this one were shown.
    next: u32,
    /// Frames of a page that are still to be looked at.
    ahead: VecDeque<(Place, Vec<u8>)>,
}

impl Store {
    /// All blocks, portion by portion.
    #[must_use]
    pub fn keys(&self) -> Keys {
        Keys {
            store: self.clone(),
            pages: None,
            next: 0,
            ahead: VecDeque::new(),
        }
    }
}

impl Keys {
    /// The next blocks, at most `limit` (and at least one); `None` at the end. Memory: one page of names, about 1 MiB.
    ///
    /// # Errors
    /// [`StoreError::Unlisted`] or [`StoreError::Io`] if a pack cannot be read; the next call goes on behind it.
    pub fn next_page(&mut self, limit: usize) -> Result<Option<Vec<Key>>, StoreError> {
        let limit = limit.max(1);
        let mut shown = Vec::new();
        while shown.len() < limit
            && let Some((tag, located)) = self.next_block()?
        {
            let Ok(hash) = Multihash::from_bytes(&tag) else {
                continue;
            };
            shown.push(Key {
                cid: Cid::new_v1(RAW, hash),
                size: u64::from(located.len),
                used: located.used,
            });
        }
        Ok((!shown.is_empty()).then_some(shown))
    }

    /// The next block that is alive, and what the index says about it.
    pub(crate) fn next_block(&mut self) -> Result<Option<(Vec<u8>, Located)>, StoreError> {
        loop {
            let Some((place, tag)) = self.ahead.pop_front() else {
                if self.load()? {
                    continue;
                }
                return Ok(None);
            };
            let index = &self.store.world().index;
            match index.locate(index.fingerprint(&tag)) {
                Some(located) if located.place == place => return Ok(Some((tag, located))),
                _ => {}
            }
        }
    }

    /// Takes in the next page; whether there was one.
    fn load(&mut self) -> Result<bool, StoreError> {
        loop {
            if let Some((pack, pages)) = &mut self.pages {
                let pack = *pack;
                let page = pages.next_page();
                if page.is_err() {
                    self.pages = None;
                }
                if let Some(page) = page? {
                    let blocks = page.entries.into_iter().filter(|entry| entry.kind == BLOCK);
                    self.ahead
                        .extend(blocks.map(|entry| (Place::new(pack, entry.at), entry.tag)));
                    return Ok(true);
                }
                self.pages = None;
                continue;
            }
            let packs = &self.store.world().packs;
            let Some(pack) = packs.first_from(self.next) else {
                return Ok(false);
            };
            self.next = pack + 1;
            // What can be seen of it counts as damaged, and is not listed.
            if packs.is_aside(pack) {
                continue;
            }
            let pages = packs.pages(pack)?;
            self.pages = pages.map(|pages| (pack, pages));
        }
    }
}
