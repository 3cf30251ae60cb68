//! Bugs that can be planted, so that tests prove that the simulator finds such ones.

/// A bug that gossip programs really had. It is in the code only with the feature `sim`, and sleeps there unless it is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[doc(hidden)]
pub enum Planted {
    /// A copy does not make its entry young again: what goes round longer than the time-to-live is new again.
    FirstSeen,
    /// An id counts as known before its signature was checked: forged bytes silence the real message.
    InsertBeforeVerify,
    /// What became too old before it was checked is sent on all the same.
    ForwardLate,
    /// What was asked for and does not come is never asked of another.
    PromiseForever,
    /// A stream that was lost is not opened again.
    NeverReopens,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::FirstSeen,
        Self::InsertBeforeVerify,
        Self::ForwardLate,
        Self::PromiseForever,
        Self::NeverReopens,
    ];
}
