//! One cause for each failed dial, accepted connection or listener, in words an operator can act on.
//!
//! The errors of libp2p reach the application flattened to `io::Error`s of kind `Other`. Here the typed error is found again by
//! walking the chain of sources.

use core::net::IpAddr;
use std::{error::Error, fmt, io, time::Duration};

use libp2p_core::transport::TransportError;
use libp2p_identity::PeerId;
use libp2p_swarm::{ConnectionDenied, DialError, ListenError};
use multiaddr::{Multiaddr, Protocol};

use crate::{
    dialer::backoff::Class,
    error::{PskError, Silence},
    foreign::OtherProtocol,
    key::Fingerprint,
    limits::{LimitExceeded, LimitKind},
    transport::SetupError,
};

/// Why a dial failed, or an incoming connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialCause {
    /// The host answers, the port does not.
    Refused,
    /// No answer at all.
    Unreachable,
    /// Connected, but no nonce came.
    NoNonce(Silence),
    /// The first 20 bytes were not what our key yields.
    WrongSwarmKey {
        /// Fingerprint of our key.
        ours: Fingerprint,
    },
    /// It went silent exactly where a peer with another key does.
    ProbablyWrongSwarmKey {
        /// Fingerprint of our key.
        ours: Fingerprint,
    },
    /// It speaks libp2p without a swarm key.
    NotPrivate,
    /// Something else than libp2p is spoken there.
    NotLibp2p(OtherProtocol),
    /// Right key, but Noise or yamux did not come about.
    SecurityFailed(String),
    /// Another peer lives at that address.
    WrongPeer {
        /// Whom the address names.
        expected: Option<PeerId>,
        /// Who answered.
        obtained: PeerId,
    },
    /// That address is our own.
    Ourselves,
    /// Not tried, because it failed a short while ago.
    BackingOff {
        /// Until the next attempt.
        retry_in: Duration,
        /// The original cause.
        because: Box<DialCause>,
    },
    /// Never tried so far, because its host was a short while ago, at an address where no member was ever found.
    HostSpared,
    /// A limit of this node.
    Limit(LimitKind),
    /// The address is not one that can be dialed.
    Malformed(String),
    /// The name has no address.
    NoSuchHost(String),
    /// No address of that peer is known.
    NoAddress,
    /// Anything else, in libp2p's words.
    Other(String),
}

impl DialCause {
    /// The cause that says most about a failed dial, if several addresses failed in different ways.
    pub fn of(error: &DialError) -> Self {
        match error {
            DialError::LocalPeerId { .. } => Self::Ourselves,
            DialError::NoAddresses => Self::NoAddress,
            DialError::WrongPeerId { obtained, address } => Self::WrongPeer {
                expected: peer_of(address),
                obtained: *obtained,
            },
            DialError::Denied { cause } => Self::of_denied(cause),
            DialError::Transport(_) => Self::per_address(error)
                .into_iter()
                .map(|(_, cause)| cause)
                .max_by_key(Self::says)
                .unwrap_or(Self::NoAddress),
            DialError::Aborted => Self::Other("the dial was aborted".into()),
            DialError::DialPeerConditionFalse(_) => {
                Self::Other("already connected, or a dial is under way".into())
            }
        }
    }

    /// The cause for each address that was tried.
    pub fn per_address(error: &DialError) -> Vec<(Multiaddr, Self)> {
        match error {
            DialError::Transport(errors) => errors
                .iter()
                .map(|(address, error)| (address.clone(), Self::of_transport(error)))
                .collect(),
            DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => {
                vec![(address.clone(), Self::of(error))]
            }
            _ => Vec::new(),
        }
    }

    /// Why an incoming connection failed.
    pub fn of_incoming(error: &ListenError) -> Self {
        match error {
            ListenError::Transport(error) => Self::of_transport(error),
            ListenError::Denied { cause } => Self::of_denied(cause),
            ListenError::LocalPeerId { .. } => Self::Ourselves,
            ListenError::WrongPeerId { obtained, .. } => Self::WrongPeer {
                expected: None,
                obtained: *obtained,
            },
            ListenError::Aborted => Self::Other("the connection was aborted".into()),
        }
    }

    /// One word for logs, metrics and JSON; stable.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NoNonce(_) => "no_nonce",
            Self::WrongSwarmKey { .. } => "wrong_swarm_key",
            Self::ProbablyWrongSwarmKey { .. } => "probably_wrong_swarm_key",
            Self::NotPrivate => "not_private",
            Self::NotLibp2p(_) => "not_libp2p",
            Self::SecurityFailed(_) => "security_failed",
            Self::WrongPeer { .. } => "wrong_peer",
            Self::Ourselves => "ourselves",
            Self::BackingOff { .. } => "backing_off",
            Self::HostSpared => "host_spared",
            Self::Limit(_) => "limit",
            Self::Malformed(_) => "malformed",
            Self::NoSuchHost(_) => "no_such_host",
            Self::NoAddress => "no_address",
            Self::Other(_) => "other",
        }
    }

    /// Whether the peer belongs to another swarm, or to none.
    pub fn is_foreign(&self) -> bool {
        self.class() == Class::Foreign
    }

    /// How long to leave it alone.
    pub fn class(&self) -> Class {
        match self {
            Self::WrongSwarmKey { .. }
            | Self::NotPrivate
            | Self::NotLibp2p(_)
            | Self::Ourselves => Class::Foreign,
            _ => Class::Transient,
        }
    }

    fn of_transport(error: &TransportError<io::Error>) -> Self {
        match error {
            TransportError::MultiaddrNotSupported(address) => Self::Malformed(format!(
                "{address} is no address that can be dialed here; TCP addresses are, such as /ip4/192.168.1.20/tcp/4001"
            )),
            TransportError::Other(error) => Self::of_io(error),
        }
    }

    /// Finds the typed error in whatever it was wrapped in.
    fn of_io(error: &io::Error) -> Self {
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<SetupError>() {
                return Self::of_setup(error);
            }
            if let Some(error) = error.downcast_ref::<PskError>() {
                return Self::of_psk(error);
            }
            // `io::Error::source` skips the error inside and goes on with that one's source.
            let inside = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
                .map(|inside| inside as &(dyn Error + 'static));
            next = inside.or_else(|| error.source());
        }
        Self::of_kind(error.kind()).unwrap_or_else(|| Self::Other(error.to_string()))
    }

    fn of_setup(error: &SetupError) -> Self {
        match error {
            SetupError::Resolve { name, .. } => Self::NoSuchHost(name.clone()),
            SetupError::Unsupported(address) => Self::Malformed(address.to_string()),
            SetupError::Connect { kind, text } | SetupError::Listen { kind, text } => {
                Self::of_kind(*kind).unwrap_or_else(|| Self::Other(text.clone()))
            }
            SetupError::ConnectTimeout(_) => Self::Unreachable,
            SetupError::Crowded => Self::Limit(LimitKind::PendingIncoming),
            SetupError::Psk(error) => Self::of_psk(error),
            SetupError::Security { .. } | SetupError::SecurityTimeout(_) => {
                Self::SecurityFailed(error.to_string())
            }
        }
    }

    fn of_psk(error: &PskError) -> Self {
        match error {
            PskError::WrongSwarmKey { ours } => Self::WrongSwarmKey { ours: *ours },
            PskError::ProbablyWrongSwarmKey { ours, .. } => {
                Self::ProbablyWrongSwarmKey { ours: *ours }
            }
            PskError::NotPrivate => Self::NotPrivate,
            PskError::NotLibp2p { spoken } => Self::NotLibp2p(*spoken),
            PskError::NoNonce { how } => Self::NoNonce(*how),
            PskError::Reflected | PskError::NoRandom => Self::SecurityFailed(error.to_string()),
            PskError::Io(kind) => {
                Self::of_kind(*kind).unwrap_or_else(|| Self::Other(error.to_string()))
            }
        }
    }

    fn of_kind(kind: io::ErrorKind) -> Option<Self> {
        use io::ErrorKind;
        match kind {
            ErrorKind::ConnectionRefused => Some(Self::Refused),
            ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable => Some(Self::Unreachable),
            _ => None,
        }
    }

    fn of_denied(cause: &ConnectionDenied) -> Self {
        if let Some(denied) = cause.downcast_ref::<BackoffActive>() {
            return Self::BackingOff {
                retry_in: denied.retry_in,
                because: Box::new(denied.because.clone()),
            };
        }
        if let Some(denied) = cause.downcast_ref::<LimitExceeded>() {
            return Self::Limit(denied.kind);
        }
        Self::Other(cause.to_string())
    }

    /// How much a cause tells: a verdict on the key beats a refusal of another address.
    fn says(&self) -> u8 {
        match self {
            Self::WrongSwarmKey { .. } => 12,
            Self::NotPrivate | Self::NotLibp2p(_) => 11,
            Self::WrongPeer { .. } => 10,
            Self::ProbablyWrongSwarmKey { .. } => 9,
            Self::SecurityFailed(_) => 8,
            Self::NoNonce(_) => 7,
            Self::Limit(_) | Self::BackingOff { .. } => 6,
            Self::Refused => 5,
            Self::NoSuchHost(_) => 4,
            Self::Unreachable => 3,
            Self::Ourselves => 2,
            Self::Malformed(_) | Self::Other(_) | Self::HostSpared => 1,
            Self::NoAddress => 0,
        }
    }
}

impl fmt::Display for DialCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str(
                "connection refused: the host answers, but nothing listens on that port; is the node running there?",
            ),
            Self::Unreachable => {
                f.write_str("no answer: check address, firewall, cable and Wi-Fi client isolation")
            }
            Self::NoNonce(how) => {
                write!(f, "{}", PskError::NoNonce { how: *how })
            }
            Self::WrongSwarmKey { ours } => {
                write!(f, "wrong swarm key: {}", PskError::WrongSwarmKey { ours: *ours })
            }
            Self::ProbablyWrongSwarmKey { ours } => write!(
                f,
                "probably a wrong swarm key: reachable, but it stopped right after the nonces (ours has the fingerprint {ours})"
            ),
            Self::NotPrivate => write!(f, "{}", PskError::NotPrivate),
            Self::NotLibp2p(spoken) => {
                write!(f, "{}", PskError::NotLibp2p { spoken: *spoken })
            }
            Self::SecurityFailed(why) => {
                write!(f, "the key matches, but the secure channel failed: {why}")
            }
            Self::WrongPeer {
                expected: Some(expected),
                obtained,
            } => write!(
                f,
                "wrong peer: expected {expected}, found {obtained} at that address; was the device re-imaged?"
            ),
            Self::WrongPeer {
                expected: None,
                obtained,
            } => write!(f, "wrong peer: found {obtained} at that address"),
            Self::Ourselves => f.write_str("that address is this node's own"),
            Self::BackingOff { retry_in, because } => write!(
                f,
                "not tried again yet (next attempt in {}), because: {because}",
                Rounded(*retry_in)
            ),
            Self::HostSpared => f.write_str(
                "only heard of, and that host was tried a short while ago: a host where no member was ever found is tried once a minute; give the address as a known peer to have it dialed sooner",
            ),
            Self::Limit(kind) => write!(
                f,
                "a limit of this node is reached ({kind}): more are turned away until some of these end; does somebody open connections in a loop?"
            ),
            Self::Malformed(what) => write!(f, "the address is not usable: {what}"),
            Self::NoSuchHost(name) => write!(f, "the name {name} has no address that the name server knows"),
            Self::NoAddress => f.write_str("no address of that peer is known"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// A wait in seconds, or in minutes when it is long.
struct Rounded(Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0);
        match seconds {
            0..120 => write!(f, "{seconds} s"),
            _ => write!(f, "{} min", seconds.div_ceil(60)),
        }
    }
}

/// The dialer said "not yet". Found inside [`ConnectionDenied`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackoffActive {
    /// Until the next attempt.
    pub retry_in: Duration,
    /// The last failure.
    pub because: DialCause,
}

impl fmt::Display for BackoffActive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { retry_in, because } = self;
        let because = Box::new(because.clone());
        write!(
            f,
            "{}",
            DialCause::BackingOff {
                retry_in: *retry_in,
                because
            }
        )
    }
}

impl Error for BackoffActive {}

/// An incoming connection that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingFailure {
    /// Where it came from.
    pub from: Multiaddr,
    /// Why it failed.
    pub cause: DialCause,
}

/// Why a listener was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenCause {
    /// Somebody else has the port.
    AddressInUse {
        /// The port.
        port: u16,
        /// The process that has it, if the system tells.
        process: Option<String>,
    },
    /// This machine has no such address.
    NotOurs {
        /// The IP address.
        ip: Option<IpAddr>,
    },
    /// Ports below 1024 need a privilege.
    NotPermitted {
        /// The port.
        port: u16,
    },
    /// The address is not one that can be listened on.
    Malformed(String),
    /// Anything else, in the system's words.
    Other(String),
}

impl ListenCause {
    /// Why listening on `address` failed.
    pub fn of(address: &Multiaddr, error: &TransportError<io::Error>) -> Self {
        let error = match error {
            TransportError::MultiaddrNotSupported(address) => {
                return Self::Malformed(address.to_string());
            }
            TransportError::Other(error) => error,
        };
        let port = port_of(address).unwrap_or(0);
        match listen_kind(error) {
            io::ErrorKind::AddrInUse => Self::AddressInUse {
                port,
                process: crate::listener_process::of_port(port),
            },
            io::ErrorKind::AddrNotAvailable => Self::NotOurs { ip: ip_of(address) },
            io::ErrorKind::PermissionDenied => Self::NotPermitted { port },
            _ => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for ListenCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressInUse {
                port,
                process: Some(process),
            } => write!(f, "address in use: port {port} is taken by {process}"),
            Self::AddressInUse {
                port,
                process: None,
            } => write!(f, "address in use: port {port} is taken by another process"),
            Self::NotOurs { ip: Some(ip) } => {
                write!(f, "this machine does not have the address {ip}")
            }
            Self::NotOurs { ip: None } => f.write_str("this machine does not have that address"),
            Self::NotPermitted { port } => {
                write!(
                    f,
                    "port {port} may not be used by this user; ports from 1024 up may"
                )
            }
            Self::Malformed(address) => {
                write!(f, "{address} is no address that can be listened on")
            }
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl Error for ListenCause {}

fn listen_kind(error: &io::Error) -> io::ErrorKind {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(SetupError::Listen { kind, .. }) = error.downcast_ref::<SetupError>() {
            return *kind;
        }
        let inside = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inside| inside as &(dyn Error + 'static));
        next = inside.or_else(|| error.source());
    }
    error.kind()
}

fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}
