//! A file that keeps space taken, for the day on which something else has filled the disk: giving it up makes room for the
//! deletions and the compaction that make more.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use gemba_segment::{Disk, Mode, is_full};

/// Bytes written at a time.
const PART: usize = 256 << 10;

/// The file, and whether it keeps its space now.
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    bytes: u64,
    /// Why it keeps none: the disk was full.
    missing: Option<Arc<io::Error>>,
}

impl Ballast {
    /// Takes the space, as far as there is any; a store opens without it all the same.
    pub(crate) fn new(disk: &dyn Disk, path: PathBuf, bytes: u64) -> Self {
        let mut ballast = Self {
            path,
            bytes,
            missing: None,
        };
        if let Err(e) = ballast.fill(disk) {
            tracing::warn!(error = %e, "no space could be kept for deletions on a full disk");
            // Only a full disk is a reason to refuse puts: any other will tell them by itself.
            ballast.missing = is_full(&e).then(|| Arc::new(e));
        }
        ballast
    }

    /// Takes the space again if it was given up; the reason if there is still none.
    pub(crate) fn regain(&mut self, disk: &dyn Disk) -> Option<Arc<io::Error>> {
        if self.missing.is_some() {
            match self.fill(disk) {
                Err(e) if is_full(&e) => {}
                _ => self.missing = None,
            }
        }
        self.missing.clone()
    }

    /// Gives the space back to the disk; whether there was any.
    pub(crate) fn give_up(&mut self, disk: &dyn Disk) -> bool {
        if self.bytes == 0 || self.missing.is_some() {
            return false;
        }
        let emptied = disk
            .open(&self.path, Mode::Write)
            .and_then(|file| file.set_len(0).and_then(|()| file.sync_data()));
        self.missing = Some(Arc::new(io::ErrorKind::StorageFull.into()));
        emptied.is_ok()
    }

    /// Writes zeros up to the size; on failure what was written is given back at once.
    fn fill(&self, disk: &dyn Disk) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let file = disk.open(&self.path, Mode::Create)?;
        let mut at = file.len()?;
        if at >= self.bytes {
            return Ok(());
        }
        let zeros = vec![0; PART];
        while at < self.bytes {
            let part = (self.bytes - at).min(PART as u64) as usize;
            match file.write_at(&[IoSlice::new(&zeros[..part])], at) {
                Ok(0) => {
                    let _ = file.set_len(0);
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(n) => at += n as u64,
                Err(e) => {
                    let _ = file.set_len(0);
                    return Err(e);
                }
            }
        }
        file.sync_data()
    }
}
