//! Marks of last use on disk (specs/store.md §8): written now and then, read when the store opens, and worth nothing when
//! they are stale or damaged: a block without a mark counts as not used for the longest time.

use std::io;

use bytes::Bytes;
use gemba_segment::{Access, Entry, Frame, Reader};

use crate::error::StoreError;
use crate::format::{USES, uses_identity};
use crate::index::{Index, Place};
use crate::packs::Packs;

/// Bytes of a mark: the place and the tick.
const MARK: usize = 9;
/// Marks in a frame.
const MARKS: usize = 4096;

/// The marks of a file, in the order of places, for one pass over all packs.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    now: u8,
    source: Option<(Reader, std::vec::IntoIter<Entry>)>,
    marks: std::vec::IntoIter<(u64, u8)>,
    next: Option<(u64, u8)>,
}

impl Uses {
    /// Opens the file; nothing but a good one gives marks.
    pub(crate) fn open(packs: &Packs) -> Self {
        let mut frames = Vec::new();
        let opened = gemba_segment::open(
            packs.disk().as_ref(),
            &packs.layout().uses(),
            uses_identity(packs.store_id()),
            Access::Read,
            &mut |entry| frames.push(entry),
        );
        let Ok(opened) = opened else {
            return Self::default();
        };
        let now = frames.iter().filter_map(|frame| frame.tag.first().copied());
        let mut uses = Self {
            now: now.max().unwrap_or(0),
            source: Some((opened.reader, frames.into_iter())),
            ..Self::default()
        };
        uses.advance();
        uses
    }

    /// The tick at which they were written.
    pub(crate) fn now(&self) -> u8 {
        self.now
    }

    /// The mark of the block at this place, which lies behind all that were asked for before.
    pub(crate) fn of(&mut self, place: Place) -> u8 {
        while let Some((at, used)) = self.next {
            if at > place.raw() {
                return 0;
            }
            self.advance();
            if at == place.raw() {
                return used.min(self.now);
            }
        }
        0
    }

    fn advance(&mut self) {
        self.next = self.marks.next();
        while self.next.is_none() {
            let Some((reader, frames)) = &mut self.source else {
                return;
            };
            let frame = frames.next().filter(|frame| frame.kind == USES);
            let marks = frame.and_then(|frame| {
                reader
                    .read(frame.at, frame.tag.len(), frame.len as usize, true)
                    .ok()
            });
            let Some(marks) = marks else {
                // At the end, or damaged: what is left goes without.
                self.source = None;
                return;
            };
            self.marks = decode(marks.payload()).into_iter();
            self.next = self.marks.next();
        }
    }
}

/// Writes the marks of all blocks. A crash leaves the old file or the new one.
pub(crate) fn save(index: &Index, packs: &Packs) -> Result<(), StoreError> {
    let now = index.now();
    let marks = index.used_places();
    let (temporary, path) = (packs.layout().uses_temporary(), packs.layout().uses());
    let disk = packs.disk().as_ref();
    match disk.unlink(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io(e)),
        _ => {}
    }
    let identity = uses_identity(packs.store_id());
    let mut writer = gemba_segment::create(disk, &temporary, identity).map_err(StoreError::io)?;
    for marks in marks.chunks(MARKS) {
        writer.append(&[Frame::new(USES, vec![now], encode(marks))?])?;
    }
    if marks.is_empty() {
        writer.append(&[Frame::new(USES, vec![now], Bytes::new())?])?;
    }
    writer.close()?;
    disk.rename(&temporary, &path).map_err(StoreError::io)?;
    disk.sync_dir(&packs.layout().dir).map_err(StoreError::io)
}

fn encode(marks: &[(Place, u8)]) -> Bytes {
    let mut out = Vec::with_capacity(marks.len() * MARK);
    for (place, used) in marks {
        out.extend_from_slice(&place.raw().to_le_bytes());
        out.push(*used);
    }
    out.into()
}

fn decode(bytes: &[u8]) -> Vec<(u64, u8)> {
    let (marks, _) = bytes.as_chunks::<MARK>();
    marks
        .iter()
        .map(|mark| {
            let mut place = [0; 8];
            place.copy_from_slice(&mark[..8]);
            (u64::from_le_bytes(place), mark[8])
        })
        .collect()
}
