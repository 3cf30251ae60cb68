//! A disk that plants a mistake between the log and the virtual disk.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use gemba_segment::{
    Disk, DiskFile, FILE_HEADER, FRAME_HEADER, FrameHeader, Identity, LockError, LockGuard, Mode,
    Sharing,
};
use gemba_testkit::disk::SimDisk;

/// Mistakes that a storage engine may make, planted between the log and the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Checksums of payloads are right whatever the payloads are: an engine that does not check them.
    CrcUnchecked,
    /// Acknowledged before the flush.
    NoSync,
    /// New names are not made durable.
    NoSyncDir,
    /// A failed flush is asked again, and its yes believed.
    RetrySync,
    /// Recovery trusts the kernel's cache: it flushes, but does not write the last group again.
    NoRewrite,
    /// Only the first part of a write is flushed: its end is written after the flush.
    LateTail,
}

/// A disk that plants one.
#[derive(Debug)]
pub struct Lying {
    pub sim: SimDisk,
    pub lie: Lie,
}

#[derive(Debug)]
struct LyingFile {
    file: Arc<dyn DiskFile>,
    lie: Lie,
    late: std::sync::Mutex<Option<(u64, Vec<u8>)>>,
}

impl Disk for Lying {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LyingFile {
            file: self.sim.open(path, mode)?,
            lie: self.lie,
            late: std::sync::Mutex::default(),
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.sim.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.sim.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.sim.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.lie == Lie::NoSyncDir {
            return Ok(());
        }
        self.sim.sync_dir(dir)
    }

    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
        self.sim.lock(path, sharing)
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        if self.lie != Lie::CrcUnchecked {
            return self.file.read_at(buf, at);
        }
        let mut all = vec![0; self.file.len()? as usize];
        self.file.read_at(&mut all, 0)?;
        mend(&mut all);
        let from = (at as usize).min(all.len());
        let len = buf.len().min(all.len() - from);
        buf[..len].copy_from_slice(&all[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        if self.lie == Lie::NoRewrite {
            let mut there = vec![0; all.len()];
            if self.file.read_at(&mut there, at)? == all.len() && there == all {
                return Ok(all.len());
            }
        }
        if self.lie == Lie::LateTail && all.len() > 64 {
            let (now, late) = all.split_at(all.len() - 1);
            let written = self.file.write_at(&[IoSlice::new(now)], at)?;
            *self.late.lock().unwrap() = Some((at + now.len() as u64, late.to_vec()));
            return Ok(written + 1);
        }
        self.file.write_at(bufs, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.lie {
            Lie::NoSync => Ok(()),
            Lie::RetrySync => self.file.sync_data().or_else(|_| self.file.sync_data()),
            Lie::LateTail => {
                self.file.sync_data()?;
                if let Some((at, late)) = self.late.lock().unwrap().take() {
                    self.file.write_at(&[IoSlice::new(&late)], at)?;
                }
                Ok(())
            }
            _ => self.file.sync_data(),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.file.punch(at, len)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }
}

/// Gives every frame whose header is whole the checksum that its payload has now.
fn mend(file: &mut [u8]) {
    let Some(header) = file.first_chunk::<FILE_HEADER>() else {
        return;
    };
    let mut salt = [0; 8];
    salt.copy_from_slice(&header[16..24]);
    let mut number = [0; 4];
    number.copy_from_slice(&header[24..28]);
    let identity = Identity {
        purpose: *b"GLOG",
        number: u32::from_le_bytes(number),
        salt: u64::from_le_bytes(salt),
    };
    let mut at = FILE_HEADER;
    while at < file.len() {
        let Some((mut header, tag)) = FrameHeader::decode(&identity, at as u64, &file[at..]) else {
            at += 1;
            continue;
        };
        let tag = tag.to_vec();
        let payload = at + FRAME_HEADER + tag.len();
        let end = payload + header.len as usize;
        let Some(bytes) = file.get(payload..end) else {
            return;
        };
        header.payload_crc = crc32c(bytes);
        let mended = header.encode(&identity, at as u64, &tag);
        file[at..at + FRAME_HEADER].copy_from_slice(&mended);
        at = end;
    }
}

/// CRC32C, one bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
