//! One operation: what is being done about one root, and the moves it can make.

use super::{Time, status::Status};
use crate::{desired::Kind, walk::Progress};
use cid::Cid;

/// Names an operation. Results of work are accepted only for the operation that is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// An operation and its root, as outputs name it and inputs give it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The root.
    pub cid: Cid,
    /// The operation.
    pub op: OpId,
}

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// Make the pin whole.
    Pin,
    /// Take the wish back.
    Unpin,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Waits for its turn.
    Queued,
    /// Under way.
    Running,
    /// Over. Such an operation is told once and not kept.
    Done,
    /// Ended with a cause; tried again.
    Failed,
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Move {
    /// Its turn has come.
    Start,
    /// It could not begin, or has to make room; that is no attempt.
    PutBack,
    /// It came to its end.
    Finish,
    /// It did not.
    Fail,
    /// It is tried again.
    Retry,
}

impl Phase {
    /// The table of all moves; `None`: there is no such move.
    #[must_use]
    pub fn after(self, step: Move) -> Option<Self> {
        match (self, step) {
            (Self::Queued, Move::Start) => Some(Self::Running),
            (Self::Running, Move::PutBack) | (Self::Failed, Move::Retry) => Some(Self::Queued),
            (Self::Running, Move::Finish) => Some(Self::Done),
            // A queued one fails when what it waits for says that it will not come, such as a disk that takes nothing.
            (Self::Running | Self::Queued, Move::Fail) => Some(Self::Failed),
            _ => None,
        }
    }

    /// The word for people and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl OpKind {
    /// The word for people and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Unpin => "unpin",
        }
    }
}

/// An operation as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Names it.
    pub ticket: Ticket,
    /// The pin it works for; 0 for an unpin.
    pub pin_id: u64,
    /// Pin or unpin.
    pub kind: OpKind,
    /// How far the pin reaches.
    pub reach: Kind,
    /// Where it stands.
    pub phase: Phase,
    /// Whether it waits for a record to be durable.
    pub recording: bool,
    /// Tries so far.
    pub attempts: u32,
    /// When it came into being.
    pub since: Time,
    /// When the last block became durable, or when it began; for a failed one, when that was.
    pub moved: Time,
    /// Why it does not advance.
    pub cause: Option<String>,
    /// When a failed one is tried again; `None`: only by hand.
    pub retry_at: Option<Time>,
    /// The block it waits for, or ended for want of.
    pub lacks: Option<Cid>,
    /// How far its walk is, or was.
    pub progress: Progress,
    /// Somebody asked for it in person.
    pub recent: bool,
    /// It failed for no fault of its own: nothing can be begun, or stored.
    pub rests: bool,
}

impl Operation {
    /// The word for it.
    #[must_use]
    pub fn status(&self) -> Status {
        match (self.kind, self.phase) {
            (OpKind::Pin, Phase::Queued) => Status::PinQueued,
            (OpKind::Pin, Phase::Running) => Status::Pinning,
            (OpKind::Pin, Phase::Failed) => Status::PinError,
            (OpKind::Pin, Phase::Done) => Status::Pinned,
            (OpKind::Unpin, Phase::Queued) => Status::UnpinQueued,
            (OpKind::Unpin, Phase::Running) => Status::Unpinning,
            (OpKind::Unpin, Phase::Failed) => Status::UnpinError,
            (OpKind::Unpin, Phase::Done) => Status::Unpinned,
        }
    }

    /// Makes a move of the table.
    pub(super) fn step(&mut self, step: Move) {
        let next = self.phase.after(step);
        debug_assert!(next.is_some(), "{:?} cannot {step:?}", self.phase);
        if let Some(next) = next {
            self.phase = next;
        }
    }

    /// Whether it is a walk that runs.
    pub(super) fn is_walking(&self) -> bool {
        self.kind == OpKind::Pin && self.phase == Phase::Running && !self.recording
    }
}
