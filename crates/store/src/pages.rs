//! The frames of one pack in bounded portions: by its footer, or by a walk where it has none.

use std::io;

use crate::error::StoreError;
use crate::index::MAX_OFFSET;
use gemba_segment::{Entry, Footer, FooterPage, Gap, Kind, Reader, Step, Walk};

/// Frames that a walk shows at a time; a part of a footer has about as many.
const WALK_PAGE: usize = 4096;
/// What an entry costs to read, besides its tag: a frame's header.
const ENTRY_COST: u64 = 28;

/// Goes over a pack once. Frames that are appended meanwhile are not shown.
#[derive(Debug)]
pub(crate) struct Pages {
    pack: u32,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Footer(Footer, FooterPage),
    Walk(Box<Walk>),
}

/// Some frames, in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Entry>,
    /// Stretches that hold no whole frame, and that are not unfinished puts.
    pub(crate) gaps: Vec<Gap>,
    /// About how many bytes were read for it.
    pub(crate) cost: u64,
}

impl Pages {
    pub(crate) fn new(pack: u32, reader: Reader, len: u64) -> Result<Self, StoreError> {
        let file = reader.file();
        let footer = file
            .len()
            .and_then(|len| Footer::open(file, reader.identity(), len));
        let source = match footer.map_err(|e| StoreError::listing(pack, e))? {
            Some(footer) => {
                let first = footer.first_page();
                Source::Footer(footer, first)
            }
            None => Source::Walk(Box::new(reader.walk(len))),
        };
        Ok(Self { pack, source })
    }

    pub(crate) fn next_page(&mut self) -> Result<Option<Page>, StoreError> {
        let pack = self.pack;
        self.read().map_err(|e| StoreError::listing(pack, e))
    }

    fn read(&mut self) -> io::Result<Option<Page>> {
        let mut page = Page::default();
        match &mut self.source {
            Source::Footer(footer, at) => {
                let Some((entries, next)) = footer.page(*at)? else {
                    return Ok(None);
                };
                *at = next;
                for entry in entries {
                    page.add(entry);
                }
            }
            Source::Walk(walk) => {
                let mut steps = 0;
                while steps < WALK_PAGE
                    && let Some(step) = walk.next_step()?
                {
                    steps += 1;
                    match step {
                        Step::Frame(entry, _) => page.add(entry),
                        Step::Gap(gap) => page.gaps.push(gap),
                    }
                }
                if steps == 0 {
                    return Ok(None);
                }
            }
        }
        Ok(Some(page))
    }
}

impl Page {
    fn add(&mut self, entry: Entry) {
        self.cost += ENTRY_COST + entry.tag.len() as u64;
        match entry.kind {
            Kind::HOLE => self.gaps.push(Gap {
                at: entry.at,
                len: u64::from(entry.len),
            }),
            kind if kind.is_internal() || entry.at >= MAX_OFFSET => {}
            _ => self.entries.push(entry),
        }
    }
}
