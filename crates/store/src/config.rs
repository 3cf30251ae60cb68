//! What an operator may choose.

/// How a block is checked when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum VerifyOnRead {
    /// Its checksum (CRC32C, about 10 GiB/s): finds what a disk does wrong.
    #[default]
    Crc,
    /// Its hash as well (0.3 to 2 GiB/s): finds also what somebody wrote into the files on purpose.
    Hash,
    /// Only that it is the right block with the right length. For readers that hash themselves.
    Off,
}

/// Settings of a store. The default fits a tablet with 1 GiB of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) pack_bytes: u64,
    pub(crate) verify_on_read: VerifyOnRead,
    pub(crate) open_packs: usize,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) reserve: Option<u64>,
    pub(crate) ballast: u64,
    pub(crate) punch_from: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pack_bytes: 256 << 20,
            verify_on_read: VerifyOnRead::Crc,
            open_packs: 64,
            max_bytes: None,
            reserve: None,
            ballast: 0,
            punch_from: 64 << 10,
        }
    }
}

/// Largest pack that can be set: offsets in the index have 40 bits, and a group may still follow.
const MAX_PACK: u64 = 1 << 39;
/// Smallest pack that a limit of bytes leads to.
const MIN_LIMITED_PACK: u64 = 1 << 20;

impl Config {
    /// Bytes after which a pack is sealed and the next one begins; 256 MiB by default, 4 KiB to 512 GiB. 65,536 frames seal it too.
    ///
    /// After an unclean stop the last pack is walked; larger packs mean a longer opening then, smaller ones more files.
    #[must_use]
    pub fn pack_bytes(mut self, bytes: u64) -> Self {
        self.pack_bytes = bytes.clamp(4 << 10, MAX_PACK);
        self
    }

    /// How a block is checked when it is read; its checksum by default.
    #[must_use]
    pub fn verify_on_read(mut self, verify: VerifyOnRead) -> Self {
        self.verify_on_read = verify;
        self
    }

    /// Most packs whose files are kept open for reading; 64 by default, at least 1. Each costs a file descriptor.
    #[must_use]
    pub fn open_packs(mut self, count: usize) -> Self {
        self.open_packs = count.max(1);
        self
    }

    /// Most bytes that the packs may take on the disk; no limit by default.
    ///
    /// A put that would go beyond it, less the [`Self::reserve`], is refused with [`crate::StoreError::NoSpace`], whatever else
    /// the disk could hold. Under a limit a pack has at most a sixteenth of it, so that compaction has room to work.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Bytes of [`Self::max_bytes`] that puts leave free for deletions and compaction; one pack by default.
    ///
    /// Less than half a pack means that a store at its limit may have to delete more before compaction finds room to copy.
    #[must_use]
    pub fn reserve(mut self, bytes: u64) -> Self {
        self.reserve = Some(bytes);
        self
    }

    /// Bytes of a file that only keeps space taken, so that deletions and compaction can still be written when something else
    /// has filled the disk; none by default. 4 MiB are room for 60,000 deletions.
    ///
    /// It is given up when such a write finds no room, and taken again when there is some. In between puts are refused.
    #[must_use]
    pub fn ballast(mut self, bytes: u64) -> Self {
        self.ballast = bytes;
        self
    }

    /// Smallest dead stretch that is punched out of a pack; 64 KiB by default, at least a page of 4 KiB. Smaller dead blocks
    /// come back when their pack is copied.
    #[must_use]
    pub fn punch_from(mut self, bytes: u64) -> Self {
        self.punch_from = bytes;
        self
    }

    /// Bytes after which a pack is sealed, with regard to the limit.
    pub(crate) fn effective_pack_bytes(&self) -> u64 {
        match self.max_bytes {
            Some(max) => self.pack_bytes.min((max / 16).max(MIN_LIMITED_PACK)),
            None => self.pack_bytes,
        }
    }

    /// The limit for everything, and the one for puts.
    pub(crate) fn limits(&self) -> Limits {
        let Some(max) = self.max_bytes else {
            return Limits::NONE;
        };
        let reserve = self.reserve.unwrap_or_else(|| self.effective_pack_bytes());
        Limits {
            all: max,
            puts: max.saturating_sub(reserve),
        }
    }
}

/// Bytes on the disk up to which something may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) all: u64,
    pub(crate) puts: u64,
}

impl Limits {
    pub(crate) const NONE: Self = Self {
        all: u64::MAX,
        puts: u64::MAX,
    };
}
