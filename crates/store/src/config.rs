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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pack_bytes: 256 << 20,
            verify_on_read: VerifyOnRead::Crc,
            open_packs: 64,
        }
    }
}

/// Largest pack that can be set: offsets in the index have 40 bits, and a group may still follow.
const MAX_PACK: u64 = 1 << 39;

impl Config {
    /// Bytes after which a pack is sealed and the next one begins; 256 MiB by default, 4 KiB to 512 GiB.
    ///
    /// After an unclean stop the last pack is walked: larger packs mean a longer opening then (about 1 s a GiB of small
    /// blocks on an SSD), smaller ones more files.
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
}
