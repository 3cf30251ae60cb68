//! Export and import: feeds as a CAR file of version 1, which Kubo's `dag import` takes too (specs/log.md §12).

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use cid::Cid;

use crate::batch::{Batch, MAX_BATCH_BYTES};
use crate::cbor::{LIST, MAP, Reader, UNSIGNED, digest_of, put_head, put_link, put_text};
use crate::error::LogError;
use crate::feed::FeedId;
use crate::log::{Head, Log};
use crate::writer::Op;

/// Bytes of a batch's CID.
const CID_BYTES: usize = 36;
/// Most bytes of a header that is read.
const MAX_HEADER: u64 = 1 << 20;
/// Roots of a file that is written, 41 bytes each: with all heads of a large plant the header would be longer than what is read.
const MAX_ROOTS: usize = 16_384;
/// Batches that are appended at once.
const TOGETHER: usize = 64;
/// Their bytes.
const TOGETHER_BYTES: usize = 4 << 20;

/// What was exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Feeds, branches included.
    pub feeds: u64,
    /// Batches.
    pub batches: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Batches that were new.
    pub new: u64,
    /// Batches that were here.
    pub present: u64,
    /// Blocks that are no batches; they are passed over.
    pub foreign: u64,
    /// Batches that were refused, and why the first of them was.
    pub refused: u64,
    /// The reason.
    pub why: Option<String>,
}

/// Why an export or import ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The file could not be read or written.
    #[error("the file: {0}")]
    File(#[from] io::Error),
    /// Not a CAR file, or a damaged one. What came before is kept.
    #[error("not a CAR file of version 1, or damaged: {0}")]
    Car(&'static str),
    /// The log refused.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Log {
    /// Writes all batches of these feeds and their branches to a CAR file, whose roots are the heads, the first 16,384 of them.
    ///
    /// # Errors
    /// See [`TransferError`]. Damaged events end the export; verify and repair first.
    pub fn export(&self, feeds: &[FeedId], to: &mut dyn Write) -> Result<Exported, TransferError> {
        let heads = self.heads();
        let feeds: BTreeSet<&FeedId> = feeds.iter().collect();
        let mut heads: Vec<&Head> = heads
            .iter()
            .filter(|head| feeds.contains(&head.feed))
            .collect();
        // What branches off comes behind what it branches off from.
        heads.sort_by_key(|head| (&head.feed, head.branch.is_some(), head.low));
        let mut done = Exported::default();
        let header = header(heads.iter().filter_map(|head| digest_of(&head.cid)));
        put_section(to, &[&header], &mut done)?;
        for head in heads {
            done.feeds += 1;
            let mut cursor = match &head.branch {
                Some(branch) => self.branch_cursor(&head.feed, branch, head.low),
                None => self.cursor(&head.feed, head.low),
            };
            while cursor.position() < head.next
                && let Some(block) = cursor.next_block()?
            {
                put_section(to, &[&block.cid().to_bytes(), block.data()], &mut done)?;
                done.batches += 1;
            }
        }
        Ok(done)
    }

    /// Takes the batches of a CAR file, each after it was verified. Own feeds among them are taken as they are, and go on in new epochs.
    ///
    /// # Errors
    /// See [`TransferError`]; what came before is kept, and an import may be repeated.
    pub fn import(&self, from: &mut dyn Read) -> Result<Imported, TransferError> {
        let Some(header) = take_section(from, MAX_HEADER)? else {
            return Err(TransferError::Car("it is empty"));
        };
        check_header(&header)?;
        let (mut done, mut together) = (Imported::default(), Vec::new());
        let walked = self.take_sections(from, &mut together, &mut done);
        // Those before the place where the file is cut or damaged are kept, whoever began with them.
        self.take_all(together, &mut done)?;
        walked.map(|()| done)
    }

    /// Takes a file in to its end; what was not appended yet is left in `together`.
    fn take_sections(
        &self,
        from: &mut dyn Read,
        together: &mut Vec<Batch>,
        done: &mut Imported,
    ) -> Result<(), TransferError> {
        let mut bytes = 0;
        let most = (128 + MAX_BATCH_BYTES.max(gemba_block::MAX_BLOCK_BYTES)) as u64;
        while let Some(section) = take_section(from, most)? {
            let mut rest = section.as_slice();
            let cid = Cid::read_bytes(&mut rest)
                .map_err(|_| TransferError::Car("a section has no CID"))?;
            let at = section.len() - rest.len();
            let is_ours = digest_of(&cid).is_some() && at == CID_BYTES;
            let batch = is_ours.then(|| Batch::decode(bytes::Bytes::from(section).slice(at..)));
            match batch {
                Some(Ok(batch)) if batch.cid() == cid => {
                    bytes += batch.bytes().len();
                    together.push(batch);
                }
                Some(Ok(_)) => return Err(TransferError::Car("a block is not what its CID names")),
                _ => done.foreign += 1,
            }
            if together.len() == TOGETHER || bytes >= TOGETHER_BYTES {
                self.take_all(std::mem::take(together), done)?;
                bytes = 0;
            }
        }
        Ok(())
    }

    fn take_all(&self, batches: Vec<Batch>, done: &mut Imported) -> Result<(), TransferError> {
        let ops = batches
            .into_iter()
            .map(|batch| Op::Replica(Box::new(batch), true));
        for result in self.submit(ops.collect()) {
            match result {
                Ok(appended) if appended.present => done.present += 1,
                Ok(_) => done.new += 1,
                Err(
                    error @ (LogError::BadChain { .. }
                    | LogError::Gap { .. }
                    | LogError::Quota { .. }
                    | LogError::Trimmed { .. }),
                ) => {
                    done.refused += 1;
                    done.why.get_or_insert(error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn header(roots: impl Iterator<Item = [u8; 32]>) -> Vec<u8> {
    let roots: Vec<_> = roots.take(MAX_ROOTS).collect();
    let mut out = Vec::new();
    put_head(&mut out, MAP, 2);
    put_text(&mut out, "roots");
    put_head(&mut out, LIST, roots.len() as u64);
    roots.iter().for_each(|root| put_link(&mut out, root));
    put_text(&mut out, "version");
    put_head(&mut out, UNSIGNED, 1);
    out
}

/// The roots are the writer's hint; only the version must be right.
fn check_header(header: &[u8]) -> Result<(), TransferError> {
    let wrong = |_| TransferError::Car("its header is not one of version 1");
    gemba_block::cbor::scan(header)
        .map_err(|_| TransferError::Car("its header is not dag-cbor"))?;
    let version = [0x67, b'v', b'e', b'r', b's', b'i', b'o', b'n', 1];
    let mut reader = Reader::new(header);
    reader.map().map_err(wrong)?;
    if header.windows(version.len()).any(|bytes| bytes == version) {
        Ok(())
    } else {
        Err(TransferError::Car("its header is not one of version 1"))
    }
}

fn put_section(to: &mut dyn Write, parts: &[&[u8]], done: &mut Exported) -> io::Result<()> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut varint = Vec::new();
    let mut left = len as u64;
    while left >= 0x80 {
        varint.push(left as u8 | 0x80);
        left >>= 7;
    }
    varint.push(left as u8);
    to.write_all(&varint)?;
    parts.iter().try_for_each(|part| to.write_all(part))?;
    done.bytes += (varint.len() + len) as u64;
    Ok(())
}

/// The next section, of at most so many bytes; `None` at the end of the file.
fn take_section(from: &mut dyn Read, most: u64) -> Result<Option<Vec<u8>>, TransferError> {
    let mut len = 0;
    for i in 0.. {
        let mut byte = [0];
        match from.read(&mut byte) {
            Ok(0) if i == 0 => return Ok(None),
            Ok(0) => return Err(TransferError::Car("it ends within a length")),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        }
        if i > 4 {
            return Err(TransferError::Car("a length is too long"));
        }
        len |= u64::from(byte[0] & 0x7f) << (7 * i);
        if byte[0] < 0x80 {
            break;
        }
    }
    if len > most {
        return Err(TransferError::Car(
            "a section is longer than a block may be",
        ));
    }
    let mut section = Vec::new();
    // Read as it comes: what is not there is not allocated.
    let read = from.take(len).read_to_end(&mut section)?;
    if (read as u64) < len {
        return Err(TransferError::Car("it ends within a section"));
    }
    Ok(Some(section))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A plant of 300 devices with a hundred streams each: what is written is read again.
    #[test]
    fn a_header_of_any_number_of_feeds_is_read() {
        for feeds in [0, 1, 16_384, 30_000] {
            let mut file = Vec::new();
            let header = header((0..feeds).map(|_| [7; 32]));
            put_section(&mut file, &[&header], &mut Exported::default()).unwrap();
            let read = take_section(&mut file.as_slice(), MAX_HEADER).unwrap();
            check_header(&read.unwrap()).unwrap();
        }
    }
}
