//! A file that keeps space taken, for the day on which the disk is full: given up, it makes room for what closes and seals a log.

use std::io::{self, IoSlice};
use std::path::PathBuf;

use gemba_segment::{Disk, Mode};

/// Bytes written at a time.
const PART: usize = 256 << 10;

/// The file, and whether it keeps its space now.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    is_there: bool,
}

impl Reserve {
    /// Takes the space, as far as there is any; a log opens without it all the same.
    pub(crate) fn new(disk: &dyn Disk, path: PathBuf, bytes: u64) -> Self {
        let mut reserve = Self {
            path,
            bytes,
            is_there: false,
        };
        reserve.is_there = bytes > 0 && reserve.fill(disk).is_ok();
        reserve
    }

    /// Gives the space back to the disk.
    pub(crate) fn give_up(&mut self, disk: &dyn Disk) {
        if !std::mem::take(&mut self.is_there) {
            return;
        }
        let emptied = disk.open(&self.path, Mode::Write);
        let emptied = emptied.and_then(|file| file.set_len(0).and_then(|()| file.sync_data()));
        // If this fails too, so will what it was to make room for, and that says why.
        drop(emptied);
    }

    fn fill(&self, disk: &dyn Disk) -> io::Result<()> {
        let file = disk.open(&self.path, Mode::Create)?;
        let mut at = file.len()?;
        let zeros = vec![0; PART];
        while at < self.bytes {
            let part = (self.bytes - at).min(PART as u64) as usize;
            match file.write_at(&[IoSlice::new(&zeros[..part])], at) {
                Ok(0) => {
                    let _ = file.set_len(0);
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(written) => at += written as u64,
                Err(e) => {
                    let _ = file.set_len(0);
                    return Err(e);
                }
            }
        }
        file.sync_data()
    }
}
