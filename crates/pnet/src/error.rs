//! What can go wrong between the key and a secured connection, as types.

use std::{fmt, io, time::Duration};

use crate::{foreign::OtherProtocol, key::Fingerprint};

/// Why the private part of a connection's set-up failed.
///
/// Texts name the fingerprint of our own key, never the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PskError {
    /// The remote's first 20 bytes, decrypted with our key, are not the multistream header.
    #[error(
        "reachable, but it has a different or missing swarm key (ours has the fingerprint {ours})"
    )]
    WrongSwarmKey {
        /// Fingerprint of our key.
        ours: Fingerprint,
    },
    /// The remote hung up, or fell silent, between its nonce and its header. A remote that sees our wrong key does that.
    #[error(
        "reachable, but it {how} right after the nonces: probably it has a different swarm key (ours has the fingerprint {ours})"
    )]
    ProbablyWrongSwarmKey {
        /// Fingerprint of our key.
        ours: Fingerprint,
        /// What it did.
        how: Silence,
    },
    /// The remote greeted us in plain text: it has no swarm key.
    #[error("it is a libp2p node without a swarm key: not in this private swarm")]
    NotPrivate,
    /// The remote speaks another protocol.
    #[error("no libp2p node answers there (looks like {spoken}): check address and port")]
    NotLibp2p {
        /// Which one.
        spoken: OtherProtocol,
    },
    /// Connected, but no 24 bytes of nonce.
    #[error(
        "connected, but the peer {how} before its nonce: something else listens there, a node without swarm key, or an overloaded one"
    )]
    NoNonce {
        /// What it did.
        how: Silence,
    },
    /// The remote sent our own nonce back.
    #[error("the peer sent our own nonce back: a reflector, or a replay")]
    Reflected,
    /// The connection failed underneath.
    #[error("the connection failed during the nonce exchange: {0}")]
    Io(io::ErrorKind),
    /// The operating system gave no random nonce.
    #[error("the operating system gave no random bytes")]
    NoRandom,
}

/// How a peer stopped talking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It closed or reset the connection.
    HungUp,
    /// It sent nothing for this long.
    Timeout(Duration),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HungUp => f.write_str("hung up"),
            Self::Timeout(after) => write!(f, "was silent for {after:?}"),
        }
    }
}

impl From<PskError> for io::Error {
    fn from(error: PskError) -> Self {
        let kind = match error {
            PskError::Io(kind) => kind,
            PskError::NoNonce { .. } => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, error)
    }
}
