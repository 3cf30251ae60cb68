//! The packs of a store: who they are, how much of each is alive, and a bounded number of open files.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gemba_segment::{Disk, Mode, Reader};

use crate::error::StoreError;
use crate::format::{self, Layout};
use crate::pages::Pages;

/// Bytes of an entry in a footer besides its tag (specs/segment.md §6).
const FOOTER_ENTRY: u64 = 14;

/// What is known about a pack.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pack {
    /// Bytes of the file up to the last whole frame, or to its end if it has a footer.
    pub(crate) len: u64,
    /// Bytes of frames whose blocks are alive.
    pub(crate) live: u64,
    /// Bytes of all frames that hold blocks, dead ones too.
    pub(crate) blocks: u64,
    /// Bytes of all frames: blocks and tombstones.
    pub(crate) frames: u64,
    /// How many they are.
    pub(crate) count: u64,
    /// Bytes of `len` that take no space: holes that were punched.
    pub(crate) holes: u64,
    /// Bytes that its footer will take.
    pub(crate) footer: u64,
    /// Nothing is appended any more.
    pub(crate) closed: bool,
    /// Has a footer.
    pub(crate) sealed: bool,
    /// Frames of it were lost, which was reported: it stays as evidence until somebody says otherwise.
    pub(crate) damaged: bool,
    /// Holds frames of a kind that this version does not know.
    pub(crate) strange: bool,
    /// The disk could not read it when the store was opened: it is left as it is.
    pub(crate) aside: bool,
    /// What was dead when holes were punched last, or when it turned out that there is nothing to punch.
    pub(crate) punched_at: u64,
    /// What was alive when a compaction had to leave something behind.
    pub(crate) stuck_at: Option<u64>,
}

impl Pack {
    /// Bytes that it takes on the disk.
    pub(crate) fn on_disk(&self) -> u64 {
        self.len.saturating_sub(self.holes)
    }

    /// Bytes that it takes on the disk once it has its footer: what counts for a limit.
    pub(crate) fn used(&self) -> u64 {
        let footer = if self.sealed { 0 } else { self.footer };
        self.on_disk() + footer
    }

    /// Bytes of frames whose blocks are gone.
    pub(crate) fn dead(&self) -> u64 {
        self.blocks.saturating_sub(self.live)
    }

    /// Bytes of frames on the disk. Footers are left out where it is decided what to copy: a copy has one too, and what is not
    /// smaller afterwards would be copied for ever.
    pub(crate) fn weight(&self) -> u64 {
        self.frames.saturating_sub(self.holes)
    }
}

#[derive(Debug)]
pub(crate) struct Packs {
    disk: Arc<dyn Disk>,
    layout: Layout,
    store_id: u64,
    known: Mutex<BTreeMap<u32, Pack>>,
    open: Mutex<OpenPacks>,
    open_limit: usize,
    opened: AtomicU64,
    last_aside: AtomicU32,
}

#[derive(Debug, Default)]
struct OpenPacks {
    readers: HashMap<u32, (Reader, u64)>,
    /// Counts uses, for finding the one that was used least recently.
    clock: u64,
}

impl Packs {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        layout: Layout,
        store_id: u64,
        open_limit: usize,
    ) -> Self {
        Self {
            disk,
            layout,
            store_id,
            known: Mutex::default(),
            open: Mutex::default(),
            open_limit,
            opened: AtomicU64::new(0),
            last_aside: AtomicU32::new(0),
        }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn store_id(&self) -> u64 {
        self.store_id
    }

    pub(crate) fn path(&self, number: u32) -> PathBuf {
        self.layout.pack(number)
    }

    pub(crate) fn identity(&self, number: u32) -> gemba_segment::Identity {
        format::identity(self.store_id, number)
    }

    /// Numbers of all packs, ascending.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.known().keys().copied().collect()
    }

    /// The first pack from this number on.
    pub(crate) fn first_from(&self, number: u32) -> Option<u32> {
        self.known()
            .range(number..)
            .next()
            .map(|(number, _)| *number)
    }

    /// The pack with the largest number. Its number is never given up, so that no number is used twice.
    pub(crate) fn last(&self) -> Option<u32> {
        self.known().last_key_value().map(|(number, _)| *number)
    }

    pub(crate) fn get(&self, number: u32) -> Option<Pack> {
        self.known().get(&number).cloned()
    }

    /// A pack that was begun is set aside.
    pub(crate) fn set_aside(&self, number: u32, pack: Pack) {
        self.last_aside.fetch_max(number, Ordering::Relaxed);
        self.note(number, |known| {
            *known = Pack {
                aside: true,
                ..pack
            }
        });
    }

    /// The largest number of a pack that was set aside; 0 if none was. What stands before it may have been deleted, or put again, by frames
    /// that nobody can read now, and that count again when the pack comes back.
    pub(crate) fn last_aside(&self) -> u32 {
        self.last_aside.load(Ordering::Relaxed)
    }

    /// Whether a pack was set aside when the store was opened.
    pub(crate) fn is_aside(&self, number: u32) -> bool {
        self.known().get(&number).is_some_and(|pack| pack.aside)
    }

    /// Whether one of the packs with smaller numbers was.
    pub(crate) fn is_any_aside_before(&self, number: u32) -> bool {
        self.known().range(..number).any(|(_, pack)| pack.aside)
    }

    pub(crate) fn all(&self) -> Vec<(u32, Pack)> {
        let known = self.known();
        known
            .iter()
            .map(|(number, pack)| (*number, pack.clone()))
            .collect()
    }

    /// A pack comes in, or is begun once more under the number of one that never held anything.
    pub(crate) fn begin(&self, number: u32) {
        self.known().insert(number, Pack::default());
    }

    /// Changes what is known of a pack that has not been removed meanwhile.
    pub(crate) fn note(&self, number: u32, change: impl FnOnce(&mut Pack)) {
        if let Some(pack) = self.known().get_mut(&number) {
            change(pack);
        }
    }

    /// Records how long a pack is.
    pub(crate) fn set_len(&self, number: u32, len: u64) {
        self.note(number, |pack| pack.len = len);
    }

    /// The frame of a block that is alive was written.
    pub(crate) fn add_block(&self, number: u32, bytes: u64) {
        self.note(number, |pack| {
            pack.blocks += bytes;
            pack.live += bytes;
        });
    }

    /// A frame was found when the store opened.
    pub(crate) fn found(&self, number: u32, tag: usize, frame_len: u64, is_block: bool) {
        self.note(number, |pack| {
            pack.footer += FOOTER_ENTRY + tag as u64;
            pack.frames += frame_len;
            pack.count += 1;
            if is_block {
                pack.blocks += frame_len;
                pack.live += frame_len;
            }
        });
    }

    /// The block of a frame is gone, or stands elsewhere.
    pub(crate) fn sub_live(&self, number: u32, bytes: u64) {
        self.note(number, |pack| pack.live = pack.live.saturating_sub(bytes));
    }

    /// Frames were written, with tags and payloads of these lengths.
    pub(crate) fn add_frames(&self, number: u32, frames: impl Iterator<Item = (usize, u64)>) {
        let (mut footer, mut bytes, mut count) = (0, 0, 0);
        for (tag, len) in frames {
            count += 1;
            footer += FOOTER_ENTRY + tag as u64;
            bytes += len;
        }
        self.note(number, |pack| {
            pack.footer += footer;
            pack.frames += bytes;
            pack.count += count;
        });
    }

    /// A pack has its footer, and is so long with it.
    pub(crate) fn sealed(&self, number: u32, len: u64) {
        self.note(number, |pack| {
            pack.len = len;
            pack.closed = true;
            pack.sealed = true;
        });
    }

    /// Sum of all packs' bytes on the disk, footers that are still to be written included.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.known().values().map(Pack::used).sum()
    }

    /// A pack's file is gone for sure.
    pub(crate) fn forget(&self, number: u32) {
        self.known().remove(&number);
        self.open().readers.remove(&number);
    }

    /// How often a file was opened for reading since the store was.
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// The reading side of a pack; opens its file if it is not open, and closes the one used least recently for it.
    pub(crate) fn reader(&self, number: u32) -> io::Result<Reader> {
        let mut open = self.open();
        open.clock += 1;
        let clock = open.clock;
        if let Some((reader, used)) = open.readers.get_mut(&number) {
            *used = clock;
            return Ok(reader.clone());
        }
        drop(open);
        let file = self.disk.open(&self.path(number), Mode::Read)?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        let reader = Reader::new(file, self.identity(number));
        self.keep(number, reader.clone());
        // Removed while it was opened: an open file would keep its space. Whoever forgets it afterwards closes it.
        if self.get(number).is_none() {
            self.open().readers.remove(&number);
        }
        Ok(reader)
    }

    /// Keeps an open file for later reads.
    pub(crate) fn keep(&self, number: u32, reader: Reader) {
        let mut open = self.open();
        if open.readers.len() >= self.open_limit && !open.readers.contains_key(&number) {
            let oldest = open
                .readers
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(number, _)| *number);
            if let Some(oldest) = oldest {
                open.readers.remove(&oldest);
            }
        }
        let clock = open.clock;
        open.readers.insert(number, (reader, clock));
    }

    /// The frames of a pack up to its length of this moment, page by page. For listings, scrubs and compaction.
    pub(crate) fn pages(&self, number: u32) -> Result<Option<Pages>, StoreError> {
        let Some(pack) = self.get(number) else {
            return Ok(None);
        };
        match self.reader(number) {
            Ok(reader) => Pages::new(number, reader, pack.len).map(Some),
            // Removed since it was looked up.
            Err(_) if self.get(number).is_none() => Ok(None),
            Err(e) => Err(StoreError::listing(number, e)),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u32, Pack>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, OpenPacks> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
