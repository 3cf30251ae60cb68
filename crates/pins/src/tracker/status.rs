//! The word for a root, derived and never stored: from its operation if there is one, else from the desired set.

use super::op::Operation;
use crate::desired::Pin;
use std::fmt;

/// IPFS Cluster's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Every block is durable here.
    Pinned,
    /// Being made whole.
    Pinning,
    /// Wanted; its turn has not come.
    PinQueued,
    /// Wanted; the last try ended with a cause.
    PinError,
    /// Not wanted.
    Unpinned,
    /// The removal is on its way to the disk.
    Unpinning,
    /// The removal waits.
    UnpinQueued,
    /// The removal could not be recorded.
    UnpinError,
}

impl Status {
    /// Every word there is.
    pub const ALL: [Self; 8] = [
        Self::Pinned,
        Self::Pinning,
        Self::PinQueued,
        Self::PinError,
        Self::Unpinned,
        Self::Unpinning,
        Self::UnpinQueued,
        Self::UnpinError,
    ];

    /// The status of a root: of its operation, else of what the desired set says. What is desired and not whole and has no operation waits to be
    /// drawn from the set, so it is queued.
    #[must_use]
    pub fn of(pin: Option<&Pin>, op: Option<&Operation>) -> Self {
        match (op, pin) {
            (Some(op), _) => op.status(),
            (None, None) => Self::Unpinned,
            (None, Some(pin)) if pin.complete => Self::Pinned,
            (None, Some(_)) => Self::PinQueued,
        }
    }

    /// The word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Pinning => "pinning",
            Self::PinQueued => "pin_queued",
            Self::PinError => "pin_error",
            Self::Unpinned => "unpinned",
            Self::Unpinning => "unpinning",
            Self::UnpinQueued => "unpin_queued",
            Self::UnpinError => "unpin_error",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
