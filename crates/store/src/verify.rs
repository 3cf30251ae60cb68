//! Scrubbing: every block is read and hashed; and the list of what was found damaged, by whomever.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use cid::Cid;

use crate::config::VerifyOnRead;
use crate::error::StoreError;
use crate::index::Located;
use crate::scrub::{ScrubPoint, ScrubStep};
use crate::store::Store;

/// Most damaged blocks that wait for somebody to repair them; beyond that the oldest are left to the next scrub.
const FOUND: usize = 1024;

/// Damaged blocks that nobody has asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Found(VecDeque<CorruptBlock>);

impl Found {
    pub(crate) fn push(&mut self, block: CorruptBlock) {
        if self.0.len() == FOUND {
            self.0.pop_front();
        }
        self.0.push_back(block);
    }

    pub(crate) fn take(&mut self) -> Vec<CorruptBlock> {
        std::mem::take(&mut self.0).into()
    }
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Blocks checked so far.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks in the store when the scrub began.
    pub total_blocks: u64,
    /// Damaged places found so far.
    pub corrupt: u64,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Blocks that were checked.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is damaged. A block in this list is no longer told as present, so that fetching it repairs it.
    pub corrupt: Vec<CorruptBlock>,
    /// The caller stopped it.
    pub stopped: bool,
}

/// A damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorruptBlock {
    /// The block (as raw CIDv1; the codec is not stored), if its name can still be read.
    pub cid: Option<Cid>,
    /// Number of the pack.
    pub pack: u32,
    /// Offset in the pack.
    pub offset: u64,
    /// What is wrong.
    pub cause: String,
}

impl CorruptBlock {
    /// A pack whose list of blocks the medium does not give back. Its blocks may be whole.
    pub(crate) fn unlisted(pack: u32) -> Self {
        Self {
            cid: None,
            pack,
            offset: 0,
            cause: "the disk cannot read which blocks stand there".to_owned(),
        }
    }

    /// A pack that was set aside when the store was opened.
    pub(crate) fn set_aside(pack: u32) -> Self {
        Self {
            cid: None,
            pack,
            offset: 0,
            cause: "the disk could not read this pack when the store was opened; it was set aside"
                .to_owned(),
        }
    }
}

/// A block that is to be checked.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) cid: Cid,
    pub(crate) key: Vec<u8>,
    pub(crate) located: Located,
}

impl Store {
    /// Reads and hashes every block, pack by pack, in the order of the disk. Tells its progress every 64 blocks, and
    /// stops if the answer is [`ControlFlow::Break`]. Runs beside everything else; memory: one page of names.
    ///
    /// [`Store::scrub`] does the same in steps, at a pace of the caller's, over restarts.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a pack cannot be opened or listed. Blocks that cannot be read are in the report.
    pub fn verify(
        &self,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        let total_blocks = self.stat().blocks;
        let mut scrub = self.scrub(ScrubPoint::default());
        loop {
            let step = scrub.step_of_blocks()?;
            report.checked += step.blocks;
            report.bytes += step.bytes;
            report.corrupt.extend(step.corrupt);
            let now = Progress {
                blocks: report.checked,
                bytes: report.bytes,
                total_blocks,
                corrupt: report.corrupt.len() as u64,
            };
            if step.blocks > 0 && progress(now).is_break() {
                report.stopped = true;
                return Ok(report);
            }
            if step.done {
                return Ok(report);
            }
        }
    }

    /// Checks a few blocks, half of them on a second thread: hashing is the slow part, and there are two cores.
    pub(crate) fn check(&self, targets: Vec<Target>, step: &mut ScrubStep) {
        let (left, right) = targets.split_at(targets.len() / 2);
        let check_all = |targets: &[Target]| -> Vec<Option<String>> {
            targets
                .iter()
                .map(|target| self.check_one(target))
                .collect()
        };
        let mut causes = Vec::with_capacity(targets.len());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| check_all(right));
            causes = check_all(left);
            match other.join() {
                Ok(rest) => causes.extend(rest),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        for (target, cause) in targets.iter().zip(causes) {
            step.blocks += 1;
            step.bytes += u64::from(target.located.len);
            if let Some(cause) = cause {
                step.corrupt.push(CorruptBlock {
                    cid: Some(target.cid),
                    pack: target.located.place.pack(),
                    offset: target.located.place.offset(),
                    cause,
                });
            }
        }
    }

    /// What is wrong with a block, if it still stands where it was found: one that moved meanwhile is checked at its new place.
    fn check_one(&self, target: &Target) -> Option<String> {
        let index = &self.world().index;
        let fp = index.fingerprint(&target.key);
        let read = self.read(&target.cid, &target.key, target.located, VerifyOnRead::Hash);
        if read.is_err() && index.locate(fp).map(|now| now.place) != Some(target.located.place) {
            return None;
        }
        match self.note_damage(fp, target.located, read) {
            Ok(_) => None,
            Err(StoreError::Corrupt { what, .. }) => Some(what.to_owned()),
            Err(other) => Some(other.to_string()),
        }
    }
}
