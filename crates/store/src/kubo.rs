//! Import of a Kubo repository's blocks (flatfs: one file a block), straight from its files: it is only read, and need not run.
//!
//! Every block is hashed before it is taken. A file that is none, or that is damaged, is told with its reason and left out; it
//! keeps nothing else from being taken. Pins and settings of that repository are not looked at.

use std::fs::{self, File, ReadDir};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use cid::Cid;
use cid::multibase::Base;
use cid::multihash::Multihash;
use gemba_block::{Block, BlockError, CidError, MAX_BLOCK_BYTES};

use crate::error::StoreError;
use crate::store::{PutReport, RAW, Store};

/// Files that a step looks at, at most: what bounds a step over damaged ones.
const FILES: usize = 1024;
/// How names of blocks end.
const SUFFIX: &str = ".data";
/// Says how the blocks are spread over folders; every flatfs has one.
const SHARDING: &str = "SHARDING";

/// Goes over the blocks of a Kubo repository once.
#[derive(Debug)]
pub struct KuboImport {
    /// Folders that are still to be listed, the next one last.
    shards: Vec<PathBuf>,
    all_shards: usize,
    files: Option<(PathBuf, ReadDir)>,
}

/// What a step of an import did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct KuboStep {
    /// Files that were looked at.
    pub files: u64,
    /// What became of the blocks.
    pub put: PutReport,
    /// Files that were left out; at most 1,024 in a step.
    pub skipped: Vec<SkippedFile>,
    /// How far the import is, in thousandths of the repository's folders.
    pub thousandths: u16,
    /// Everything was looked at.
    pub done: bool,
}

/// A file that was left out of an import.
#[derive(Debug)]
#[non_exhaustive]
pub struct SkippedFile {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: SkipReason,
}

/// Why a file was left out of an import.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkipReason {
    /// Its name is no base32 of a multihash or a CID, with `.data` behind.
    #[error("its name is not that of a block")]
    Name,
    /// A folder, a link, or something stranger.
    #[error("it is not a file")]
    NotAFile,
    /// More than 2 MiB.
    #[error("it has {0} bytes; a block may have 2097152 at most")]
    TooLarge(u64),
    /// A hash function that is not taken.
    #[error(transparent)]
    Hash(CidError),
    /// It is damaged: the repository has lost this block.
    #[error("its bytes do not hash to its name: it is damaged")]
    WrongBytes,
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
}

/// Why an import cannot begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KuboError {
    /// There are no blocks that lie in files.
    #[error(
        "{} holds no blocks in files (no blocks/SHARDING): give the folder of a Kubo repository, usually ~/.ipfs. What lies in \
         another datastore than flatfs comes over as CAR: `ipfs dag export`, then `gemba dag import`", .0.display()
    )]
    NoFlatfs(PathBuf),
    /// A folder of the repository cannot be listed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The store did not take the blocks.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KuboImport {
    /// Begins at a repository (`~/.ipfs`), or at its folder `blocks`. Nothing there is ever written or locked; blocks that a
    /// running Kubo adds or removes meanwhile may be seen or not.
    ///
    /// # Errors
    /// [`KuboError::NoFlatfs`] and [`KuboError::Io`].
    pub fn open(repo: impl AsRef<Path>) -> Result<Self, KuboError> {
        let repo = repo.as_ref();
        let dir = [repo.join("blocks"), repo.to_path_buf()]
            .into_iter()
            .find(|dir| dir.join(SHARDING).is_file())
            .ok_or_else(|| KuboError::NoFlatfs(repo.to_path_buf()))?;
        let mut shards = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| io_error(&dir, e))? {
            let entry = entry.map_err(|e| io_error(&dir, e))?;
            // `.temp` holds what is being written; the files beside the folders are no blocks.
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !is_hidden && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                shards.push(entry.path());
            }
        }
        shards.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self {
            all_shards: shards.len(),
            shards,
            files: None,
        })
    }

    /// Takes blocks of about `bytes` bytes over, durable when it returns. Memory: those bytes and one block.
    ///
    /// Nothing pins what is taken: hold a [`crate::Guard`] until it is pinned.
    ///
    /// # Errors
    /// [`KuboError::Io`] if a folder cannot be listed, [`KuboError::Store`]. What the failed step would have taken is not looked at
    /// again: begin once more, blocks that are there already cost no writing.
    pub fn step(&mut self, store: &Store, bytes: usize) -> Result<KuboStep, KuboError> {
        let (mut step, batch) = self.gather(bytes)?;
        step.put = store.put_many(&batch)?;
        Ok(step)
    }

    /// As [`Self::step`], and takes nothing: `put` tells what would be new here.
    ///
    /// # Errors
    /// [`KuboError::Io`].
    pub fn dry_step(&mut self, store: &Store, bytes: usize) -> Result<KuboStep, KuboError> {
        let (mut step, batch) = self.gather(bytes)?;
        for block in &batch {
            if store.has(block.cid()) {
                step.put.present += 1;
            } else {
                step.put.new += 1;
                step.put.bytes += block.len() as u64;
            }
        }
        Ok(step)
    }

    /// Reads and hashes blocks of about `bytes` bytes.
    fn gather(&mut self, bytes: usize) -> Result<(KuboStep, Vec<Block>), KuboError> {
        let mut step = KuboStep::default();
        let (mut batch, mut size) = (Vec::new(), 0);
        while size < bytes.max(1) && step.files < FILES as u64 {
            let Some(path) = self.next_file()? else {
                step.done = true;
                break;
            };
            step.files += 1;
            match read_block(&path) {
                Ok(block) => {
                    size += block.len();
                    batch.push(block);
                }
                Err(reason) => step.skipped.push(SkippedFile { path, reason }),
            }
        }
        let ahead = self.shards.len() + usize::from(self.files.is_some());
        let passed = (self.all_shards - ahead) * 1000;
        step.thousandths = passed.checked_div(self.all_shards).unwrap_or(1000) as u16;
        Ok((step, batch))
    }

    fn next_file(&mut self) -> Result<Option<PathBuf>, KuboError> {
        loop {
            if let Some((dir, files)) = &mut self.files {
                match files.next() {
                    Some(Ok(entry)) => return Ok(Some(entry.path())),
                    Some(Err(e)) => {
                        let error = io_error(dir, e);
                        self.files = None;
                        return Err(error);
                    }
                    None => self.files = None,
                }
            }
            let Some(dir) = self.shards.pop() else {
                return Ok(None);
            };
            let files = fs::read_dir(&dir).map_err(|e| io_error(&dir, e))?;
            self.files = Some((dir, files));
        }
    }
}

/// The block in a file, checked.
fn read_block(path: &Path) -> Result<Block, SkipReason> {
    let name = path.file_name().and_then(|name| name.to_str());
    let hash = name.and_then(hash_of_name).ok_or(SkipReason::Name)?;
    // Not opened before it is known to be a file: opening a pipe would wait for ever.
    let meta = fs::symlink_metadata(path).map_err(SkipReason::Unreadable)?;
    if !meta.is_file() {
        return Err(SkipReason::NotAFile);
    }
    if meta.len() > MAX_BLOCK_BYTES as u64 {
        return Err(SkipReason::TooLarge(meta.len()));
    }
    let mut data = Vec::with_capacity(meta.len() as usize);
    let file = File::open(path).map_err(SkipReason::Unreadable)?;
    file.take(MAX_BLOCK_BYTES as u64 + 1)
        .read_to_end(&mut data)
        .map_err(SkipReason::Unreadable)?;
    let size = data.len() as u64;
    Block::new(Cid::new_v1(RAW, hash), data).map_err(|e| match e {
        BlockError::Cid(e) => SkipReason::Hash(e),
        BlockError::TooLarge(_) => SkipReason::TooLarge(size),
        _ => SkipReason::WrongBytes,
    })
}

/// The multihash that a file name tells: since Kubo 0.12 the name is the multihash, before it was the CID. No multihash that is
/// taken begins with 1, as CIDv1 does; a CIDv0 is a multihash.
fn hash_of_name(name: &str) -> Option<Multihash<64>> {
    let key = Base::Base32Upper.decode(name.strip_suffix(SUFFIX)?).ok()?;
    if key.first() == Some(&1) {
        return Cid::try_from(&key[..]).ok().map(|cid| *cid.hash());
    }
    Multihash::from_bytes(&key).ok()
}

fn io_error(path: &Path, source: io::Error) -> KuboError {
    KuboError::Io {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Names out of real repositories: of the empty folder that each has, of a multihash, and of a CIDv1 from before Kubo 0.12.
    #[test]
    fn s4_23_both_names_that_kubo_gave_its_files_tell_the_multihash() {
        let empty_folder = [0x0a, 0x02, 0x08, 0x01];
        let hash = *Block::dag_pb(empty_folder.to_vec()).unwrap().cid().hash();
        let name = "CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y.data";
        assert_eq!(hash_of_name(name), Some(hash));
        // As some file systems of memory cards give it back.
        assert_eq!(hash_of_name(&name.to_lowercase()), Some(hash));
        let cid = Cid::new_v1(RAW, hash).to_bytes();
        let old = format!("{}.data", Base::Base32Upper.encode(cid));
        assert!(old.starts_with("AFKREI"));
        assert_eq!(hash_of_name(&old), Some(hash));
        for bad in [
            "",
            ".data",
            "CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y",
            "CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX.data",
            "put-123456.data",
            "AFKREI.data",
        ] {
            assert_eq!(hash_of_name(bad), None, "{bad}");
        }
    }
}
