//! Where batches stand in a segment: in memory while it is written to, in pages of the segment itself when it is full
//! (specs/log.md §6.3). So memory does not grow with the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock};

use gemba_segment::{FRAME_HEADER, FrameHeader, Reader};

use crate::error::FrameError;
use crate::feed::{FeedKey, Seq};
use crate::format::{
    BATCH, NAME_ENTRIES, NAME_ENTRY, NAMES, PAGE, PAGE_ENTRIES, PAGE_ENTRY, Place, Span, TAG, Tag,
    Take, Trailer,
};

/// A segment as far as readers need it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) index: Index,
}

#[derive(Debug)]
pub(crate) enum Index {
    /// Of a segment that is written to, or that has no whole index of its own.
    Resident(RwLock<Resident>),
    /// Of a full one.
    Paged(Paged),
}

/// All places in memory: about 60 bytes a batch.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    feeds: BTreeMap<FeedKey, Vec<Place>>,
    names: BTreeSet<(u64, u32)>,
    entries: u32,
}

/// What is kept of a full segment's index: 60 bytes a feed.
#[derive(Debug)]
pub(crate) struct Paged {
    pub(crate) trailer: Trailer,
    /// Sorted by key.
    pub(crate) spans: Vec<Span>,
}

/// The part of a digest that the index by digest has.
pub(crate) fn short(digest: &[u8; 32]) -> u64 {
    let mut short = [0; 8];
    short.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(short)
}

impl Resident {
    pub(crate) fn insert(&mut self, tag: &Tag, at: u32, len: u32) {
        let place = Place {
            first: tag.first,
            count: tag.count,
            at,
            len,
            time: tag.time,
        };
        let places = self.feeds.entry(tag.key).or_default();
        let after = places.partition_point(|other| other.first <= place.first);
        places.insert(after, place);
        self.names.insert((short(&tag.digest), at));
        self.entries += 1;
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// The pages of both indexes, and the spans.
    pub(crate) fn pages(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<Span>) {
        let mut spans = Vec::with_capacity(self.feeds.len());
        let mut from = 0;
        for (key, places) in &self.feeds {
            let mut span = span_of(*key, places);
            span.from = from;
            from += span.entries;
            spans.push(span);
        }
        let places: Vec<_> = self.feeds.values().flatten().collect();
        let pages = places.chunks(PAGE_ENTRIES).map(|chunk| {
            let mut page = Vec::with_capacity(chunk.len() * PAGE_ENTRY);
            chunk.iter().for_each(|place| place.put(&mut page));
            page
        });
        let names: Vec<_> = self.names.iter().collect();
        let names = names.chunks(NAME_ENTRIES).map(|chunk| {
            let mut page = Vec::with_capacity(chunk.len() * NAME_ENTRY);
            for (short, at) in chunk {
                page.extend_from_slice(&short.to_le_bytes());
                page.extend_from_slice(&at.to_le_bytes());
            }
            page
        });
        (pages.collect(), names.collect(), spans)
    }
}

fn span_of(key: FeedKey, places: &[Place]) -> Span {
    Span {
        key,
        first: places.first().map_or(0, |place| place.first),
        end: places.iter().map(Place::end).max().unwrap_or(0),
        from: 0,
        entries: places.len() as u32,
        bytes: places.iter().map(|place| frame_bytes(place.len)).sum(),
        time: places.iter().map(|place| place.time).max().unwrap_or(0),
    }
}

/// Bytes on disk of a batch of so many bytes.
pub(crate) fn frame_bytes(len: u32) -> u64 {
    gemba_segment::frame_len(TAG, len as usize)
}

impl Segment {
    pub(crate) fn resident(number: u32, resident: Resident) -> Self {
        Self {
            number,
            index: Index::Resident(RwLock::new(resident)),
        }
    }

    /// What it has of a feed.
    pub(crate) fn span(&self, key: FeedKey) -> Option<Span> {
        match &self.index {
            Index::Resident(resident) => {
                let resident = resident.read().unwrap_or_else(PoisonError::into_inner);
                resident.feeds.get(&key).map(|places| span_of(key, places))
            }
            Index::Paged(paged) => {
                let found = paged.spans.binary_search_by(|span| span.key.cmp(&key));
                found.ok().map(|at| paged.spans[at])
            }
        }
    }

    /// What it has of every feed.
    pub(crate) fn spans(&self) -> Vec<Span> {
        match &self.index {
            Index::Resident(resident) => {
                let resident = resident.read().unwrap_or_else(PoisonError::into_inner);
                let feeds = resident.feeds.iter();
                feeds.map(|(key, places)| span_of(*key, places)).collect()
            }
            Index::Paged(paged) => paged.spans.clone(),
        }
    }

    /// Places of a feed from the first on that ends behind `seq`: at most a page of them, none if there is none.
    pub(crate) fn run(
        &self,
        reader: &Reader,
        key: FeedKey,
        seq: Seq,
    ) -> Result<Vec<Place>, FrameError> {
        match &self.index {
            Index::Resident(resident) => {
                let resident = resident.read().unwrap_or_else(PoisonError::into_inner);
                let places = resident.feeds.get(&key).map_or(&[][..], Vec::as_slice);
                let from = places.partition_point(|place| place.end() <= seq);
                Ok(places[from..].iter().take(PAGE_ENTRIES).copied().collect())
            }
            Index::Paged(paged) => match self.span(key) {
                Some(span) => paged.run(reader, &span, seq),
                None => Ok(Vec::new()),
            },
        }
    }

    /// Offsets at which a batch with this digest may stand.
    pub(crate) fn named(&self, reader: &Reader, digest: &[u8; 32]) -> Result<Vec<u32>, FrameError> {
        let short = short(digest);
        match &self.index {
            Index::Resident(resident) => {
                let resident = resident.read().unwrap_or_else(PoisonError::into_inner);
                let found = resident.names.range((short, 0)..=(short, u32::MAX));
                Ok(found.map(|(_, at)| *at).collect())
            }
            Index::Paged(paged) => paged.named(reader, short),
        }
    }
}

impl Paged {
    fn run(&self, reader: &Reader, span: &Span, seq: Seq) -> Result<Vec<Place>, FrameError> {
        let (mut low, mut high) = (span.from as usize, (span.from + span.entries) as usize);
        let mut page = (usize::MAX, Vec::new());
        while low < high {
            let middle = low + (high - low) / 2;
            self.load(reader, middle, &mut page)?;
            match page.1[middle % PAGE_ENTRIES].end() <= seq {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let end = (span.from + span.entries) as usize;
        if low == end {
            return Ok(Vec::new());
        }
        self.load(reader, low, &mut page)?;
        let upto = (end - low / PAGE_ENTRIES * PAGE_ENTRIES).min(page.1.len());
        Ok(page.1[low % PAGE_ENTRIES..upto].to_vec())
    }

    /// Makes `page` the one that holds the entry.
    fn load(
        &self,
        reader: &Reader,
        entry: usize,
        page: &mut (usize, Vec<Place>),
    ) -> Result<(), FrameError> {
        let number = entry / PAGE_ENTRIES;
        if page.0 == number {
            return Ok(());
        }
        let bytes = self.page(
            reader,
            PAGE,
            self.trailer.pages_at,
            number,
            PAGE_ENTRIES,
            PAGE_ENTRY,
        )?;
        let mut take = Take(&bytes);
        let places = std::iter::from_fn(|| Place::take(&mut take)).collect();
        *page = (number, places);
        Ok(())
    }

    fn named(&self, reader: &Reader, short: u64) -> Result<Vec<u32>, FrameError> {
        let pages = (self.trailer.entries as usize).div_ceil(NAME_ENTRIES);
        let mut found = Vec::new();
        let (mut low, mut high) = (0, pages);
        while low < high {
            let middle = low + (high - low) / 2;
            let names = self.names(reader, middle)?;
            match names.last() {
                Some((last, _)) if *last < short => low = middle + 1,
                _ => high = middle,
            }
        }
        for page in low..pages {
            let names = self.names(reader, page)?;
            let from = names.partition_point(|(name, _)| *name < short);
            let equal = names[from..].iter().take_while(|(name, _)| *name == short);
            found.extend(equal.map(|(_, at)| *at));
            if names.last().is_some_and(|(last, _)| *last > short) {
                break;
            }
        }
        Ok(found)
    }

    fn names(&self, reader: &Reader, page: usize) -> Result<Vec<(u64, u32)>, FrameError> {
        let bytes = self.page(
            reader,
            NAMES,
            self.trailer.names_at,
            page,
            NAME_ENTRIES,
            NAME_ENTRY,
        )?;
        let mut take = Take(&bytes);
        Ok(std::iter::from_fn(|| Some((take.u64()?, take.u32()?))).collect())
    }

    /// Payload of a page, whose length follows from its place: all but the last are full.
    fn page(
        &self,
        reader: &Reader,
        kind: gemba_segment::Kind,
        from: u64,
        page: usize,
        entries: usize,
        entry: usize,
    ) -> Result<Vec<u8>, FrameError> {
        let full = gemba_segment::frame_len(0, entries * entry);
        let left = (self.trailer.entries as usize).saturating_sub(page * entries);
        let at = from + page as u64 * full;
        let frame = reader.read(at, 0, left.min(entries) * entry, true)?;
        if frame.kind != kind {
            return Err(FrameError::Damaged);
        }
        Ok(frame.payload().to_vec())
    }
}

/// The tag of the batch at an offset.
pub(crate) fn tag_at(reader: &Reader, at: u32) -> Result<(Tag, u32), FrameError> {
    let mut bytes = [0; FRAME_HEADER + TAG];
    let mut read = 0;
    while read < bytes.len() {
        match reader
            .file()
            .read_at(&mut bytes[read..], u64::from(at) + read as u64)?
        {
            0 => return Err(FrameError::Damaged),
            more => read += more,
        }
    }
    let header = FrameHeader::decode(reader.identity(), u64::from(at), &bytes);
    match header.filter(|(header, _)| header.kind == BATCH) {
        Some((header, tag)) => Ok((Tag::decode(tag).ok_or(FrameError::Damaged)?, header.len)),
        None => Err(FrameError::Damaged),
    }
}

/// Bytes that are read at once where batches are small and stand close together.
const WINDOW: u64 = 256 << 10;

/// A batch as it was read: its tag and bytes.
pub(crate) type Read = Result<(Tag, bytes::Bytes), FrameError>;

/// Reads batches that stand at these places, in as few calls as that takes; gives tag and bytes of each. The checksums are checked.
/// `upto` bytes, and at least one batch.
pub(crate) fn read_places(
    reader: &Reader,
    places: &[Place],
    upto: u64,
    take: &mut dyn FnMut(&Place, Read),
) {
    let mut left = places;
    let mut done = 0;
    while let Some(first) = left.first() {
        if done > 0 && done + u64::from(first.len) > upto {
            return;
        }
        let from = u64::from(first.at);
        let mut end = from + frame_bytes(first.len);
        let mut taken = 1;
        done += u64::from(first.len);
        for next in &left[1..] {
            let (at, len) = (u64::from(next.at), frame_bytes(next.len));
            let is_near = at >= end && at - end <= 4096 + len;
            if !is_near || at + len - from > WINDOW || done + u64::from(next.len) > upto {
                break;
            }
            end = at + len;
            done += u64::from(next.len);
            taken += 1;
        }
        let window = read_window(reader, from, end);
        for place in &left[..taken] {
            let batch = match &window {
                Ok(window) => batch_in(reader, window, from, place),
                // Perhaps only a part of the window cannot be read.
                Err(_) => read_window(
                    reader,
                    u64::from(place.at),
                    u64::from(place.at) + frame_bytes(place.len),
                )
                .and_then(|window| batch_in(reader, &window, u64::from(place.at), place)),
            };
            take(place, batch);
        }
        left = &left[taken..];
    }
}

fn read_window(reader: &Reader, from: u64, end: u64) -> Result<bytes::Bytes, FrameError> {
    let mut bytes = vec![0; (end - from) as usize];
    let mut read = 0;
    while read < bytes.len() {
        match reader
            .file()
            .read_at(&mut bytes[read..], from + read as u64)
        {
            Ok(0) => return Err(FrameError::Damaged),
            Ok(more) => read += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(bytes.into())
}

fn batch_in(reader: &Reader, window: &bytes::Bytes, from: u64, place: &Place) -> Read {
    let at = (u64::from(place.at) - from) as usize;
    let decoded = FrameHeader::decode(reader.identity(), u64::from(place.at), &window[at..]);
    let (header, tag) = decoded.ok_or(FrameError::Damaged)?;
    let payload = at + FRAME_HEADER + TAG;
    let end = payload + place.len as usize;
    let is_it = header.kind == BATCH && header.len == place.len && end <= window.len();
    if !is_it || crc32c::crc32c(&window[payload..end]) != header.payload_crc {
        return Err(FrameError::Damaged);
    }
    let tag = Tag::decode(tag).ok_or(FrameError::Damaged)?;
    Ok((tag, window.slice(payload..end)))
}
