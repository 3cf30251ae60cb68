//! The packs of a store: who they are, how much of each is alive, and a bounded number of open files.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gemba_segment::{Disk, Entry, Footer, Gap, Kind, Reader, Step};

use crate::format::{self, Layout};

/// What is known about a pack.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pack {
    /// Bytes of the file up to the last whole frame.
    pub(crate) len: u64,
    /// Bytes of frames whose blocks are alive.
    pub(crate) live: u64,
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
        }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
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

    pub(crate) fn get(&self, number: u32) -> Option<Pack> {
        self.known().get(&number).cloned()
    }

    /// Records how long a pack is.
    pub(crate) fn set_len(&self, number: u32, len: u64) {
        self.known().entry(number).or_default().len = len;
    }

    /// A frame came to life or died.
    pub(crate) fn add_live(&self, number: u32, bytes: u64) {
        self.known().entry(number).or_default().live += bytes;
    }

    pub(crate) fn sub_live(&self, number: u32, bytes: u64) {
        let mut known = self.known();
        let pack = known.entry(number).or_default();
        pack.live = pack.live.saturating_sub(bytes);
    }

    /// Sum of all packs' bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.known().values().map(|pack| pack.len).sum()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.known().values().map(|pack| pack.live).sum()
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
        let file = self
            .disk
            .open(&self.path(number), gemba_segment::Mode::Read)?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        let reader = Reader::new(file, self.identity(number));
        self.keep(number, reader.clone());
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

    /// Shows every frame of a pack up to its known length, by its footer if it has one; gives its holes. For listings and
    /// scrubs; what is being appended meanwhile is not looked at.
    pub(crate) fn entries(
        &self,
        number: u32,
        visit: &mut dyn FnMut(Entry),
    ) -> io::Result<Vec<Gap>> {
        let Some(pack) = self.get(number) else {
            return Ok(Vec::new());
        };
        let reader = self.reader(number)?;
        let mut gaps = Vec::new();
        if let Some(footer) = Footer::open(reader.file(), reader.identity(), reader.file().len()?)?
        {
            footer.for_each(&mut |entry| match entry.kind {
                Kind::HOLE => gaps.push(Gap {
                    at: entry.at,
                    len: u64::from(entry.len),
                }),
                _ => visit(entry),
            })?;
            return Ok(gaps);
        }
        let mut walk = reader.walk(pack.len);
        while let Some(step) = walk.next_step()? {
            match step {
                Step::Frame(entry, _) => visit(entry),
                Step::Gap(gap) => gaps.push(gap),
            }
        }
        Ok(gaps)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u32, Pack>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, OpenPacks> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
