//! What a caller of the exchange can do wrong.

use crate::SessionId;

/// Why a want was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WantError {
    /// The session was closed or never opened.
    #[error("{0} is not open")]
    UnknownSession(SessionId),
    /// The session holds as many wants as its limit allows; the first `taken` of this call were taken.
    #[error(
        "the session is full: {taken} wants were taken, the rest was refused; wait for blocks to arrive"
    )]
    Full {
        /// How many of the call's CIDs were taken.
        taken: usize,
    },
    /// The block of this CID cannot be fetched; those before it were taken.
    #[error("this CID cannot be fetched: {0}")]
    Cid(#[from] gemba_block::CidError),
    /// An identity CID holds its own data.
    #[error("an identity CID holds its own data, nobody needs to be asked")]
    Identity,
}

/// Too many sessions are open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} sessions are open, more are not allowed: close finished ones")]
pub struct TooManySessions(pub usize);
