//! What can go wrong, by who can do something about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use gemba_segment::{ReadError, WriteError, is_full};

use crate::event::EventError;
use crate::feed::{FeedId, Seq};

/// Why a log did not open. It never refuses because of a crash, a torn file or damaged events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody else has it open.
    #[error(
        "{} is locked by {}: stop it, or let it do the work", .path.display(),
        .pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    LockHeld {
        /// The lock file.
        path: PathBuf,
        /// The process that has it, if it is known.
        pid: Option<u32>,
    },
    /// Written by a newer gemba.
    #[error("{} has log format {found}; this gemba knows formats up to {known}: use the gemba that wrote it", .path.display())]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// The `version` file is not one, and no segment tells what it should say.
    #[error("{} is damaged, and no segment of the log is whole enough to write it anew", .0.display())]
    BadVersionFile(PathBuf),
    /// A segment that belongs to another log lies among the segments.
    #[error("{} is not a segment of this log ({cause}): move it away", .path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// What its header says.
        cause: String,
    },
    /// The disk refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the disk answered.
        source: io::Error,
    },
}

/// Why a call to an open log failed. Cheap to clone: all callers of a group get the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The log's own limit is reached. Nothing of the call is stored, all else still is.
    #[error(
        "the log may take {limit} bytes and has taken {used}, so {needed} more find no room: let retention run, or raise the limit"
    )]
    NoSpace {
        /// Bytes that the call needed on the disk.
        needed: u64,
        /// Bytes that the log takes now.
        used: u64,
        /// Bytes that it may take.
        limit: u64,
    },
    /// The disk has no room. Nothing of the call is stored, all else still is; reads go on. Free some space and call again.
    #[error(
        "the disk is full ({0}): free some space; nothing of this call is stored, what was acknowledged is"
    )]
    Full(Arc<io::Error>),
    /// The disk refused. Nothing of a failed write counts as stored; reads go on.
    #[error("the disk refused: {0}")]
    Io(Arc<io::Error>),
    /// A flush failed, now or earlier. What was written since the last good one may be lost, or may not; nobody asks the disk a second
    /// time. Reads go on. Close the log and open it again: that tells what is there.
    #[error(
        "the disk failed to make events durable ({0}): check the disk, then open the log again"
    )]
    Poisoned(io::ErrorKind),
    /// The log is closed.
    #[error("the log is closed")]
    Closed,
    /// An event is not one that a log takes.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A producer's number below one that is there already, and so long ago that its place is not remembered. It was appended then, or
    /// skipped; it is not appended now.
    #[error(
        "number {seq} of producer {id} is below {known}, the oldest that is remembered: it is not appended again"
    )]
    OldProducer {
        /// The producer.
        id: String,
        /// The number that came.
        seq: u64,
        /// The oldest number whose place is known.
        known: u64,
    },
    /// Events are damaged on our disk. A replica's batch given to [`crate::Log::append_replica`] repairs them.
    #[error("events {from} to {to} of {feed:?} are damaged on disk: fetch them from a replica")]
    Damaged {
        /// The feed.
        feed: FeedId,
        /// First place that cannot be read.
        from: Seq,
        /// First place behind them.
        to: Seq,
    },
    /// Events that retention has removed, or that were never here.
    #[error("{feed:?} begins with event {low} here: earlier ones were removed, or never fetched")]
    Trimmed {
        /// The feed.
        feed: FeedId,
        /// The first place there is.
        low: Seq,
    },
    /// Nobody wrote such a feed, as far as is known here.
    #[error("{0:?} is not known here")]
    NoFeed(FeedId),
    /// A replica's batch that does not follow what is here.
    #[error(
        "the batch begins with event {got} of {feed:?}, and {want} comes next: fetch those between first"
    )]
    Gap {
        /// The feed.
        feed: FeedId,
        /// The next place here.
        want: Seq,
        /// Where the batch begins.
        got: Seq,
    },
    /// A batch that contradicts itself or its feed: its author is broken or hostile.
    #[error("the batch is not a part of {feed:?}: {why}")]
    BadChain {
        /// The feed it claims.
        feed: FeedId,
        /// What is wrong.
        why: &'static str,
    },
    /// The author has as much here as one author may have.
    #[error(
        "the author of {feed:?} has used up its {what} here: raise the quota, or let retention run"
    )]
    Quota {
        /// The feed.
        feed: FeedId,
        /// What is used up.
        what: &'static str,
    },
    /// A number has reached its end, 2^53 − 1.
    #[error("the feed is at its end: a number would go beyond 2^53 - 1")]
    Exhausted,
    /// The thread that wrote for this call died. What is stored of it is not known.
    #[error(
        "the thread that wrote for this call died; call again, with a producer's number if it must not be stored twice"
    )]
    WriterDied,
}

impl LogError {
    pub(crate) fn io(error: io::Error) -> Self {
        if is_full(&error) {
            Self::Full(Arc::new(error))
        } else {
            Self::Io(Arc::new(error))
        }
    }
}

impl From<WriteError> for LogError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Full(e) => Self::Full(Arc::new(e)),
            WriteError::Io(e) => Self::Io(Arc::new(e)),
            WriteError::Poisoned(kind) => Self::Poisoned(kind),
            other => Self::Io(Arc::new(io::Error::other(other))),
        }
    }
}

/// Why a frame was not read: damage is told apart from a disk that refuses.
#[derive(Debug)]
pub(crate) enum FrameError {
    Damaged,
    Io(io::Error),
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(e) => e.into(),
            _ => Self::Damaged,
        }
    }
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        // What the medium does not give back is damaged; so is what lies behind the end of a file that somebody cut.
        if gemba_segment::is_unreadable(&error) || error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Damaged
        } else {
            Self::Io(error)
        }
    }
}
