//! Scrubbing: every block is read and hashed.

use std::ops::ControlFlow;

use cid::Cid;
use cid::multihash::Multihash;

use crate::config::VerifyOnRead;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::index::{Located, Place};
use crate::store::Store;

/// Blocks that are looked up and then hashed before progress is told and the caller may stop.
const STEP: usize = 64;
/// The raw codec: codecs are not stored.
const RAW: u64 = 0x55;

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

/// A block that is to be checked.
struct Target {
    cid: Cid,
    key: Vec<u8>,
    located: Located,
}

impl Store {
    /// Reads and hashes every block, pack by pack, in the order of the disk. Tells its progress every 64 blocks, and
    /// stops if the answer is [`ControlFlow::Break`]. Runs beside everything else; memory: the names of one pack.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a pack cannot be opened or listed. Blocks that cannot be read are in the report.
    pub fn verify(
        &self,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        let total_blocks = self.stat().blocks;
        for pack in self.world().packs.numbers() {
            let targets = self.targets(pack, &mut report)?;
            for step in targets.chunks(STEP) {
                self.check(step, &mut report);
                let now = Progress {
                    blocks: report.checked,
                    bytes: report.bytes,
                    total_blocks,
                    corrupt: report.corrupt.len() as u64,
                };
                if progress(now).is_break() {
                    report.stopped = true;
                    return Ok(report);
                }
            }
        }
        Ok(report)
    }

    /// The live blocks of a pack; its holes go straight into the report.
    fn targets(&self, pack: u32, report: &mut VerifyReport) -> Result<Vec<Target>, StoreError> {
        let index = &self.world().index;
        let mut targets = Vec::new();
        let gaps = self
            .world()
            .packs
            .entries(pack, &mut |entry| {
                if entry.kind != BLOCK {
                    return;
                }
                let Ok(hash) = Multihash::from_bytes(&entry.tag) else {
                    return;
                };
                let place = Place::new(pack, entry.at);
                match index.locate(index.fingerprint(&entry.tag)) {
                    Some(located) if located.place == place => targets.push(Target {
                        cid: Cid::new_v1(RAW, hash),
                        key: entry.tag,
                        located,
                    }),
                    _ => {}
                }
            })
            .map_err(StoreError::io)?;
        for gap in gaps {
            report.corrupt.push(CorruptBlock {
                cid: None,
                pack,
                offset: gap.at,
                cause: format!("{} bytes hold no whole frame", gap.len),
            });
        }
        Ok(targets)
    }

    /// Checks a few blocks, half of them on a second thread: hashing is the slow part, and there are two cores.
    fn check(&self, targets: &[Target], report: &mut VerifyReport) {
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
            report.checked += 1;
            report.bytes += u64::from(target.located.len);
            if let Some(cause) = cause {
                report.corrupt.push(CorruptBlock {
                    cid: Some(target.cid),
                    pack: target.located.place.pack(),
                    offset: target.located.place.offset(),
                    cause,
                });
            }
        }
    }

    fn check_one(&self, target: &Target) -> Option<String> {
        let fp = self.world().index.fingerprint(&target.key);
        let read = self.read(
            &target.cid,
            &target.key,
            fp,
            target.located,
            VerifyOnRead::Hash,
        );
        match read {
            Ok(_) => None,
            Err(StoreError::Corrupt { what, .. }) => Some(what.to_owned()),
            Err(other) => Some(other.to_string()),
        }
    }
}
