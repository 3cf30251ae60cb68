//! What a log may take, and what it trades.

/// Settings of a log. The default is fit for a tablet of 1 GB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Bytes after which a segment is full and the next one begins. Retention gives space back by whole segments; an unclean stop costs
    /// reading one of them at the next start. Default 64 MiB (a guess: 0.3 s on a slow disk); 4 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// Bytes that the log may take on the disk, without its reserve; appends beyond fail with [`crate::LogError::NoSpace`]. Default 8 GiB.
    pub max_bytes: u64,
    /// Bytes that are kept taken, so that a full disk still closes and seals in order. Default 16 MiB (reliability table, L13).
    pub reserve: u64,
    /// Bytes that the feeds of one other author may take. Default 1 GiB.
    pub author_bytes: u64,
    /// Feeds that one other author may have here, forks included. Default 256 (a guess).
    pub author_feeds: usize,
    /// Feeds in all, own ones and forks included; about 0.3 KiB of memory each. Default 4,096; at most 16,384.
    pub max_feeds: usize,
    /// Producers whose numbers are remembered, about 0.3 KiB of memory each; the one that was quiet longest is forgotten first, and a
    /// retry of its would be appended twice. Default 4,096; at most 16,384.
    pub max_producers: usize,
    /// Events of the fast class that wait for the next write; the oldest are dropped beyond. Default 8,192.
    pub fast_events: usize,
    /// Their bytes. Default 4 MiB.
    pub fast_bytes: usize,
    /// Whether batches are compressed where that makes them smaller. Default yes.
    pub compress: bool,
    /// What is checked when a batch is read from our own disk.
    pub check: ReadCheck,
    /// Files that are kept open for reading. Default 16.
    pub open_files: usize,
    /// The least epoch that a feed of ours begins. Default 0; of a copy, what [`crate::Log::begin_epochs_at`] was given. If it was drawn, those that begin are, too.
    pub least_epoch: u64,
}

/// What is checked when a batch is read from our own disk. It was checked in full before it was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadCheck {
    /// Checksums: what a disk does is found.
    #[default]
    Crc,
    /// Also the CID.
    Hash,
    /// Also the signature: what somebody with access to the disk does is found.
    Signature,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_bytes: 8 << 30,
            reserve: 16 << 20,
            author_bytes: 1 << 30,
            author_feeds: 256,
            max_feeds: 4096,
            max_producers: 4096,
            fast_events: 8192,
            fast_bytes: 4 << 20,
            compress: true,
            check: ReadCheck::Crc,
            open_files: 16,
            least_epoch: 0,
        }
    }
}

impl Config {
    /// See [`Config::segment_bytes`].
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// See [`Config::max_bytes`].
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// See [`Config::reserve`].
    #[must_use]
    pub fn reserve(mut self, bytes: u64) -> Self {
        self.reserve = bytes;
        self
    }

    /// See [`Config::author_bytes`] and [`Config::author_feeds`].
    #[must_use]
    pub fn quota(mut self, bytes: u64, feeds: usize) -> Self {
        self.author_bytes = bytes;
        self.author_feeds = feeds;
        self
    }

    /// See [`Config::max_producers`].
    #[must_use]
    pub fn max_producers(mut self, producers: usize) -> Self {
        self.max_producers = producers;
        self
    }

    /// See [`Config::fast_events`] and [`Config::fast_bytes`].
    #[must_use]
    pub fn fast(mut self, events: usize, bytes: usize) -> Self {
        self.fast_events = events;
        self.fast_bytes = bytes;
        self
    }

    /// See [`Config::compress`].
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    /// See [`Config::check`].
    #[must_use]
    pub fn check(mut self, check: ReadCheck) -> Self {
        self.check = check;
        self
    }

    /// See [`Config::least_epoch`].
    #[must_use]
    pub fn least_epoch(mut self, epoch: u64) -> Self {
        self.least_epoch = epoch;
        self
    }

    /// The settings within their limits.
    pub(crate) fn bounded(mut self) -> Self {
        self.segment_bytes = self.segment_bytes.clamp(4 << 10, 1 << 30);
        self.max_feeds = self.max_feeds.clamp(1, 16_384);
        self.max_producers = self.max_producers.clamp(1, 16_384);
        self.open_files = self.open_files.max(1);
        self
    }
}
