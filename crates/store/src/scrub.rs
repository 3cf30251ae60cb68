//! Scrubbing in steps: where one is, what a step finds, and how much may be done in which time.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cid::Cid;
use cid::multihash::Multihash;

use crate::error::StoreError;
use crate::format::BLOCK;
use crate::index::Place;
use crate::pages::Pages;
use crate::store::{RAW, Store};
use crate::verify::{CorruptBlock, Target};

/// Blocks that are looked up and then hashed together.
const STEP: usize = 64;

/// How far a scrub is: everything before was checked. Its text (`12:4096`) may be kept over a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScrubPoint {
    pack: u32,
    offset: u64,
}

impl fmt::Display for ScrubPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pack, self.offset)
    }
}

impl FromStr for ScrubPoint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pack, offset) = text.split_once(':').unwrap_or((text, "0"));
        Ok(Self {
            pack: pack.parse()?,
            offset: offset.parse()?,
        })
    }
}

/// What a step of a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScrubStep {
    /// Blocks that were checked.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is damaged. A block in this list counts as absent from now on, so that fetching and putting it repairs it.
    pub corrupt: Vec<CorruptBlock>,
    /// Everything was checked.
    pub done: bool,
}

/// Reads and hashes every block in the order of the disk, a step at a time, beside everything else. Blocks that compaction
/// moves meanwhile are checked where they come to stand.
#[derive(Debug)]
pub struct Scrub {
    store: Store,
    pages: Option<(u32, Pages)>,
    point: ScrubPoint,
    ahead: VecDeque<Target>,
}

impl Store {
    /// A scrub that begins, or goes on, at a point; [`ScrubPoint::default`] is the beginning.
    #[must_use]
    pub fn scrub(&self, from: ScrubPoint) -> Scrub {
        Scrub {
            store: self.clone(),
            pages: None,
            point: from,
            ahead: VecDeque::new(),
        }
    }
}

impl Scrub {
    /// How far it is.
    #[must_use]
    pub fn point(&self) -> ScrubPoint {
        self.point
    }

    /// Checks blocks of about `bytes` bytes, at least one.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a pack cannot be opened. What the medium does not give back is in the report.
    pub fn step(&mut self, bytes: u64) -> Result<ScrubStep, StoreError> {
        let mut step = ScrubStep::default();
        while step.bytes < bytes.max(1) && !step.done {
            let left = bytes.max(1) - step.bytes;
            self.group(left, &mut step)?;
        }
        Ok(step)
    }

    /// Checks up to 64 blocks, whatever their size.
    pub(crate) fn step_of_blocks(&mut self) -> Result<ScrubStep, StoreError> {
        let mut step = ScrubStep::default();
        self.group(u64::MAX, &mut step)?;
        Ok(step)
    }

    fn group(&mut self, bytes: u64, step: &mut ScrubStep) -> Result<(), StoreError> {
        let mut targets = Vec::new();
        let mut wanted = 0;
        while targets.len() < STEP && wanted < bytes {
            let Some(target) = self.next_target(step)? else {
                step.done = true;
                break;
            };
            wanted += u64::from(target.located.len).max(1);
            targets.push(target);
        }
        let last = targets.last().map(|target| target.located.place);
        self.store.check(targets, step);
        if let Some(place) = last.filter(|_| !step.done) {
            self.point = ScrubPoint {
                pack: place.pack(),
                offset: place.offset() + 1,
            };
        }
        Ok(())
    }

    /// The next block that is alive; damaged stretches on the way are reported.
    fn next_target(&mut self, step: &mut ScrubStep) -> Result<Option<Target>, StoreError> {
        loop {
            if let Some(target) = self.ahead.pop_front() {
                return Ok(Some(target));
            }
            let Some((pack, pages)) = &mut self.pages else {
                if !self.next_pack(step)? {
                    return Ok(None);
                }
                continue;
            };
            let pack = *pack;
            let page = match pages.next_page() {
                Err(StoreError::Unlisted { .. }) => {
                    step.corrupt.push(CorruptBlock::unlisted(pack));
                    None
                }
                other => other?,
            };
            let Some(page) = page else {
                self.pages = None;
                self.point = ScrubPoint {
                    pack: pack + 1,
                    offset: 0,
                };
                continue;
            };
            let from = if self.point.pack == pack {
                self.point.offset
            } else {
                0
            };
            for gap in page.gaps.iter().filter(|gap| gap.at >= from) {
                step.corrupt.push(CorruptBlock {
                    cid: None,
                    pack,
                    offset: gap.at,
                    cause: format!("{} bytes hold no whole frame", gap.len),
                });
            }
            let index = &self.store.world().index;
            for entry in page.entries {
                let place = Place::new(pack, entry.at);
                let Ok(hash) = Multihash::from_bytes(&entry.tag) else {
                    continue;
                };
                match index.locate(index.fingerprint(&entry.tag)) {
                    Some(located)
                        if located.place == place && entry.kind == BLOCK && entry.at >= from =>
                    {
                        self.ahead.push_back(Target {
                            cid: Cid::new_v1(RAW, hash),
                            key: entry.tag,
                            located,
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    fn next_pack(&mut self, step: &mut ScrubStep) -> Result<bool, StoreError> {
        let packs = &self.store.world().packs;
        while let Some(pack) = packs.first_from(self.point.pack) {
            if pack > self.point.pack {
                self.point = ScrubPoint { pack, offset: 0 };
            }
            if packs.is_aside(pack) {
                step.corrupt.push(CorruptBlock::set_aside(pack));
                self.point.pack += 1;
                continue;
            }
            match packs.pages(pack) {
                Ok(Some(pages)) => {
                    self.pages = Some((pack, pages));
                    return Ok(true);
                }
                // Removed in this moment.
                Ok(None) => self.point.pack += 1,
                Err(StoreError::Unlisted { .. }) => {
                    step.corrupt.push(CorruptBlock::unlisted(pack));
                    self.point.pack += 1;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}

/// A rate of bytes a second, for scrubs and compaction: tells when how much may be done. A value: the caller brings the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    bytes_per_second: u64,
    /// What was done is paid for at this time.
    free_at: Duration,
}

impl Pace {
    /// So many bytes a second, at least one.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Duration::ZERO,
        }
    }

    /// Whether the next step may begin.
    #[must_use]
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.free_at
    }

    /// When the next step may begin.
    #[must_use]
    pub fn due(&self) -> Duration {
        self.free_at
    }

    /// A step of so many bytes was done. Time in which nothing was done is not made up for.
    pub fn spend(&mut self, bytes: u64, now: Duration) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let took = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_at = self.free_at.max(now).saturating_add(took);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pace_is_kept_over_steps_of_any_size_and_rest_is_not_made_up_for() {
        let mut pace = Pace::new(1000);
        let mut now = Duration::from_secs(5);
        assert!(pace.is_due(now));
        for bytes in [10, 990, 500] {
            now = now.max(pace.due());
            pace.spend(bytes, now);
        }
        assert_eq!(pace.due(), Duration::from_millis(6500));
        pace.spend(1000, Duration::from_secs(60));
        assert_eq!(pace.due(), Duration::from_secs(61));
        pace.spend(u64::MAX, Duration::from_secs(61));
        assert!(!pace.is_due(Duration::from_secs(1_000_000)));
    }

    #[test]
    fn a_point_reads_back() {
        let point = ScrubPoint {
            pack: 12,
            offset: 4096,
        };
        assert_eq!(point.to_string().parse(), Ok(point));
        assert!("x:1".parse::<ScrubPoint>().is_err() && "1:".parse::<ScrubPoint>().is_err());
    }
}
