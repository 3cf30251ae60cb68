//! Verification: every byte of every segment is read; every batch is decoded, hashed, its signature checked, and its link to the batch
//! before it (specs/log.md §11).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use gemba_segment::{FILE_HEADER, Gap, Reader, Step};

use crate::batch::{Batch, UnverifiedBatch};
use crate::error::LogError;
use crate::feed::{FeedId, FeedKey, Seq};
use crate::format::{BATCH, Place, TAG, Tag};
use crate::index::{Segment, frame_bytes};
use crate::log::Log;

/// Damaged places that a report lists; the rest is counted.
const MAX_LISTED: usize = 1024;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes of the log when it began.
    pub total: u64,
    /// Damaged places so far.
    pub damaged: u64,
}

/// What it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Batches that are whole.
    pub batches: u64,
    /// Their events.
    pub events: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How many damaged places there are.
    pub damaged: u64,
    /// Where. At most 1,024.
    pub places: Vec<DamagedPlace>,
    /// The caller stopped it.
    pub stopped: bool,
}

impl VerifyReport {
    /// Whether every byte is as it was written.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damaged == 0
    }
}

/// A damaged place. Its events are not served any more; [`Log::append_replica`] repairs them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedPlace {
    /// Number of the segment.
    pub segment: u32,
    /// Offset in it.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The events that stood there, if it was a batch: feed, first place, first place behind.
    pub events: Option<(FeedId, Seq, Seq)>,
    /// What is wrong.
    pub cause: &'static str,
}

/// The end of a feed as far as it was verified.
#[derive(Clone, Copy)]
struct Last {
    end: Seq,
    digest: [u8; 32],
    lamport: u64,
}

struct Run<'a> {
    log: &'a Log,
    report: VerifyReport,
    lasts: BTreeMap<FeedKey, Last>,
}

impl Log {
    /// Reads and checks everything. `progress` is asked now and then, and can stop it. Appends go on meanwhile; what they add is not looked at.
    ///
    /// # Errors
    /// What the disk answers; damage is no error.
    pub fn verify(
        &self,
        mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<VerifyReport, LogError> {
        let segments: Vec<_> = {
            let state = self.state();
            let size = |number: &u32| state.sizes.get(number).copied().unwrap_or(0);
            let segments = state.segments.iter();
            segments
                .map(|(number, segment)| (Arc::clone(segment), size(number)))
                .collect()
        };
        let total = segments.iter().map(|(_, len)| len).sum();
        let mut run = Run {
            log: self,
            report: VerifyReport::default(),
            lasts: BTreeMap::new(),
        };
        for (segment, len) in &segments {
            run.segment(segment, *len, &mut |report| {
                progress(&Progress {
                    bytes: report.bytes,
                    total,
                    damaged: report.damaged,
                })
            })?;
            if run.report.stopped {
                break;
            }
        }
        Ok(run.report)
    }
}

impl Run<'_> {
    fn segment(
        &mut self,
        segment: &Segment,
        len: u64,
        progress: &mut dyn FnMut(&VerifyReport) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        const EVERY: u64 = 1 << 20;
        let reader = self.log.reader(segment.number)?;
        let mut header = [0; FILE_HEADER];
        let read = reader
            .file()
            .read_at(&mut header, 0)
            .map_err(LogError::io)?;
        if read < FILE_HEADER || reader.identity().check(&header).is_err() {
            self.damaged(
                segment.number,
                0,
                FILE_HEADER as u64,
                None,
                "the header of the file",
            );
        }
        let there = reader.file().len().map_err(LogError::io)?;
        if there < len {
            self.gap(
                segment,
                Gap {
                    at: there,
                    len: len - there,
                },
            );
        }
        let mut walk = reader.walk(len.min(there));
        let mut told = self.report.bytes;
        self.report.bytes += FILE_HEADER as u64;
        while let Some(step) = walk.next_step().map_err(LogError::io)? {
            match step {
                Step::Gap(gap) => {
                    self.report.bytes += gap.len;
                    self.gap(segment, gap);
                }
                Step::Frame(entry, _) => {
                    self.report.bytes += entry.frame_len();
                    if entry.kind == BATCH {
                        self.batch(segment, &reader, entry.at, entry.len, &entry.tag);
                    } else if reader
                        .read(entry.at, entry.tag.len(), entry.len as usize, true)
                        .is_err()
                    {
                        self.damaged(
                            segment.number,
                            entry.at,
                            entry.frame_len(),
                            None,
                            "a part of the index",
                        );
                    }
                }
            }
            if self.report.bytes - told >= EVERY {
                told = self.report.bytes;
                if progress(&self.report).is_break() {
                    self.report.stopped = true;
                    return Ok(());
                }
            }
        }
        let _ = progress(&self.report);
        Ok(())
    }

    fn batch(&mut self, segment: &Segment, reader: &Reader, at: u64, len: u32, tag: &[u8]) {
        let Some(tag) = Tag::decode(tag) else {
            return self.damaged(
                segment.number,
                at,
                frame_bytes(len),
                None,
                "the tag of a batch",
            );
        };
        match self.check(reader, at, len, &tag) {
            Ok(batch) => {
                self.report.batches += 1;
                self.report.events += u64::from(batch.count());
                let last = Last {
                    end: batch.end(),
                    digest: tag.digest,
                    lamport: batch.lamport(),
                };
                self.lasts.insert(tag.key, last);
            }
            Err(cause) => {
                let place = (tag.key, tag.first, tag.end());
                self.bad(segment.number, at, frame_bytes(len), Some(place), cause);
            }
        }
    }

    fn check(&self, reader: &Reader, at: u64, len: u32, tag: &Tag) -> Result<Batch, &'static str> {
        let frame = reader.read(at, TAG, len as usize, true);
        let (bytes, from) = frame.map_err(|_| "the checksum of a batch")?.into_bytes();
        let bytes = bytes::Bytes::from(bytes).slice(from..);
        let batch = UnverifiedBatch::decode(bytes).map_err(|_| "the form of a batch")?;
        if *batch.digest() != tag.digest {
            return Err("the CID of a batch");
        }
        let batch = batch.verify().map_err(|_| "the signature of a batch")?;
        if batch.first() != tag.first || batch.count() != tag.count || batch.number() != tag.number
        {
            return Err("the tag of a batch");
        }
        match self.lasts.get(&tag.key) {
            Some(last) if last.end == batch.first() => {
                let follows =
                    batch.prev_digest() == Some(&last.digest) && batch.lamport() > last.lamport;
                if follows {
                    Ok(batch)
                } else {
                    Err("the link to the batch before")
                }
            }
            _ => Ok(batch),
        }
    }

    /// Bytes that are no frame: whatever the index says stood there is damaged.
    fn gap(&mut self, segment: &Segment, gap: Gap) {
        let mut found = false;
        for (key, place) in self.places(segment) {
            let at = u64::from(place.at);
            if at >= gap.at && at < gap.at + gap.len {
                found = true;
                let events = (key, place.first, place.end());
                self.bad(
                    segment.number,
                    at,
                    frame_bytes(place.len),
                    Some(events),
                    "the header of a batch",
                );
            }
        }
        if !found {
            self.damaged(
                segment.number,
                gap.at,
                gap.len,
                None,
                "bytes that are no frame",
            );
        }
    }

    /// All places of a segment. Bounded: at most 65,536 and those of one group.
    fn places(&self, segment: &Segment) -> Vec<(FeedKey, Place)> {
        let Ok(reader) = self.log.reader(segment.number) else {
            return Vec::new();
        };
        let mut places = Vec::new();
        for span in segment.spans() {
            let mut from = span.first;
            while let Ok(run) = segment.run(&reader, span.key, from) {
                let Some(last) = run.last() else { break };
                from = last.end();
                places.extend(run.into_iter().map(|place| (span.key, place)));
            }
        }
        places
    }

    /// A batch that is not served any more.
    fn bad(
        &mut self,
        segment: u32,
        offset: u64,
        len: u64,
        events: Option<(FeedKey, Seq, Seq)>,
        cause: &'static str,
    ) {
        let events = {
            let mut state = self.log.state_mut();
            if let Ok(at) = u32::try_from(offset) {
                state.mark_bad(segment, at);
            }
            events.and_then(|(key, from, to)| {
                let feed = state.feeds.get(&key)?;
                Some((feed.tip.id.clone(), from, to))
            })
        };
        self.damaged(segment, offset, len, events, cause);
    }

    fn damaged(
        &mut self,
        segment: u32,
        offset: u64,
        len: u64,
        events: Option<(FeedId, Seq, Seq)>,
        cause: &'static str,
    ) {
        self.report.damaged += 1;
        if self.report.places.len() < MAX_LISTED {
            self.report.places.push(DamagedPlace {
                segment,
                offset,
                len,
                events,
                cause,
            });
        }
    }
}
