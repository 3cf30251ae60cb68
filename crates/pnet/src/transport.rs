//! Driver: the one way to a transport, from a carrier of bytes (TCP) to a secured and multiplexed connection.
//!
//! Order: carrier, key, multistream, Noise, yamux. Each stage has a deadline of its own, because a stall that ends in somebody else's
//! general time-out has lost its cause.

use std::{fmt, io, pin::pin, sync::Arc, time::Duration};

use futures::{
    AsyncRead, AsyncWrite,
    future::{Either, select},
};
use libp2p_core::{
    Endpoint,
    connection::ConnectedPoint,
    muxing::StreamMuxerBox,
    transport::{Boxed, Transport},
    upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
};
use libp2p_identity::{Keypair, PeerId};
use multiaddr::Multiaddr;
use multistream_select::{
    Negotiated, NegotiationError, Version, dialer_select_proto, listener_select_proto,
};
use tokio::time::{Instant, timeout};

use crate::{
    TransportConfig,
    connect::Connect,
    error::{PskError, Silence},
    key::SwarmKey,
    line::{self, Metered},
    muxer::Muxer,
    policy::Network,
    stage::{Entered, Stage},
    stream::{PskStream, Side},
};

const NOISE: &str = "/noise";
const YAMUX: &str = "/yamux/1.0.0";

/// The transport into `network`: dials and listens on `/ip4|ip6|dns|dns4|dns6/…/tcp/PORT`.
///
/// [`transport_over`] is the same over another carrier. There is no other constructor, and a [`Network`] is only to be had with a key or by asking for the public network in so many
/// words. Its errors are read with [`DialCause`](crate::DialCause). Needs a running tokio runtime when it is polled.
pub fn transport(
    keypair: &Keypair,
    network: &Network,
    config: &TransportConfig,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, BuildError> {
    let tcp = libp2p_tcp::tokio::Transport::new(libp2p_tcp::Config::new().nodelay(true));
    let lines = config.lines.clone();
    let tcp = tcp.map(move |socket, point| {
        if lines.of(point.get_remote_address()).slow {
            line::bound(&socket.0);
        }
        socket
    });
    transport_over(tcp, keypair, network, config)
}

/// The transport into `network` over something else than TCP that carries bytes in order: a serial line, a tunnel, memory.
///
/// Everything above it is the same: key, deadlines, Noise, the bounded muxer and the typed errors. Host names in front of an
/// address are resolved as for TCP; all other addresses are the carrier's. Its `io::Error`s are told by their kind: what nobody
/// listens to is `ConnectionRefused`, what does not answer is `TimedOut`.
pub fn transport_over<C>(
    carrier: C,
    keypair: &Keypair,
    network: &Network,
    config: &TransportConfig,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, BuildError>
where
    C: Transport<Error = io::Error> + Send + Unpin + 'static,
    C::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    C::Dial: Send + 'static,
    C::ListenerUpgrade: Send + 'static,
{
    let setup = Arc::new(Setup {
        key: network.key().cloned(),
        noise: libp2p_noise::Config::new(keypair)?,
        config: config.clone(),
    });
    Ok(Connect::new(carrier, config.clone())
        .and_then(move |socket, point| async move { setup.run(socket, &point).await })
        .map_err(|error| SetupFailure(error.into_inner()))
        .boxed())
}

/// The node's identity key cannot be used with Noise.
#[derive(Debug, thiserror::Error)]
#[error("the identity key cannot sign a Noise handshake: {0}")]
pub struct BuildError(#[from] libp2p_noise::Error);

/// Why a connection was not made, by stage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The name has no address, or the resolver did not answer.
    #[error("the name {name} was not resolved: {kind}")]
    Resolve {
        /// The host name.
        name: String,
        /// The resolver's error.
        kind: io::ErrorKind,
    },
    /// An address of this kind cannot be dialed.
    #[error("addresses such as {0} are not supported")]
    Unsupported(Multiaddr),
    /// TCP, or what is in its place, said no.
    #[error("connect failed: {text}")]
    Connect {
        /// What kind of no.
        kind: io::ErrorKind,
        /// In the system's words.
        text: String,
    },
    /// TCP, or what is in its place, said nothing.
    #[error("no answer for {0:?}")]
    ConnectTimeout(Duration),
    /// A listener could not be made, or broke.
    #[error("listen failed: {text}")]
    Listen {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// In the system's words.
        text: String,
    },
    /// The wall: nonce or key.
    #[error(transparent)]
    Psk(#[from] PskError),
    /// The key matched (or there is none), but Noise or the muxer did not come about.
    #[error("{stage} failed: {text}")]
    Security {
        /// Which protocol.
        stage: &'static str,
        /// What it said.
        text: String,
    },
    /// It took longer than others while too many were being set up at once.
    #[error("it gave way to others: too many incoming connections were being set up")]
    Crowded,
    /// The key matched (or there is none), then it took too long.
    #[error("the connection was not secured within {0:?}")]
    SecurityTimeout(Duration),
}

impl SetupError {
    pub(crate) fn from_connect(error: io::Error) -> Self {
        Self::Connect {
            kind: error.kind(),
            text: error.to_string(),
        }
    }

    pub(crate) fn from_listen(error: io::Error) -> Self {
        Self::Listen {
            kind: error.kind(),
            text: error.to_string(),
        }
    }

    fn security(stage: &'static str) -> impl Fn(&dyn fmt::Display) -> Self {
        move |error| Self::Security {
            stage,
            text: error.to_string(),
        }
    }
}

/// What the transport's `io::Error` holds.
///
/// It has the typed error as its *source*, so that the type is found even when other transports have wrapped this one: their wrappers
/// (`Either`) hand out the sources of an error and hide the error itself.
#[derive(Debug)]
struct SetupFailure(SetupError);

impl fmt::Display for SetupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SetupFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Everything that happens to a connected socket.
struct Setup {
    key: Option<SwarmKey>,
    noise: libp2p_noise::Config,
    config: TransportConfig,
}

impl Setup {
    /// Who dials us may have to give way to others.
    async fn run<S>(
        &self,
        socket: S,
        point: &ConnectedPoint,
    ) -> Result<(PeerId, StreamMuxerBox), SetupError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if let ConnectedPoint::Dialer { .. } = point {
            return self.set_up(socket, point).await;
        }
        let place = self.config.crowd.enter();
        let (set_up, gives_way) = (pin!(self.set_up(socket, point)), pin!(place.gives_way()));
        match select(set_up, gives_way).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => Err(SetupError::Crowded),
        }
    }

    async fn set_up<S>(
        &self,
        socket: S,
        point: &ConnectedPoint,
    ) -> Result<(PeerId, StreamMuxerBox), SetupError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let line = self.config.lines.of(point.get_remote_address());
        let (socket, slow) = (Metered::new(socket, line.meter), line.slow);
        let side = side(point);
        let clock = Clock::start(point, &self.config);
        match &self.key {
            Some(key) => {
                self.run_private(socket, key, (side, slow), point, &clock)
                    .await
            }
            None => {
                let _entered = self.enter(point, Stage::Secure);
                let security = clock.left_of(self.config.security);
                within(security, self.secure(socket, side, slow)).await
            }
        }
    }

    async fn run_private<S>(
        &self,
        socket: S,
        key: &SwarmKey,
        (side, slow): (Side, bool),
        point: &ConnectedPoint,
        clock: &Clock,
    ) -> Result<(PeerId, StreamMuxerBox), SetupError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let nonces = self.enter(point, Stage::Nonce);
        let nonce = clock.left_of(self.config.nonce);
        let stream = PskStream::handshake(socket, key, side, nonce).await?;
        drop(nonces);
        let _entered = self.enter(point, Stage::Secure);
        let outcome = stream.outcome();
        let security = clock.left_of(self.config.security);
        let secured = within(security, self.secure(stream, side, slow)).await;
        match outcome.get() {
            // Whatever the layers above made of it, this is the cause.
            Some(Err(cause)) => Err(SetupError::Psk(cause)),
            Some(Ok(())) => secured,
            // The remote has not said 20 bytes. A remote with another key that waits for more of our garbage looks like this.
            None => secured.map_err(|_| {
                SetupError::Psk(outcome.blame(PskError::ProbablyWrongSwarmKey {
                    ours: key.fingerprint(),
                    how: Silence::Timeout(security),
                }))
            }),
        }
    }

    /// Only dials are asked after: whoever comes to us waits on his side.
    fn enter(&self, point: &ConnectedPoint, stage: Stage) -> Option<Entered> {
        match point {
            ConnectedPoint::Dialer { address, .. } => {
                Some(self.config.stages.enter(address, stage))
            }
            ConnectedPoint::Listener { .. } => None,
        }
    }

    async fn secure<S>(
        &self,
        stream: S,
        side: Side,
        slow: bool,
    ) -> Result<(PeerId, StreamMuxerBox), SetupError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (peer, stream) = secured(self.noise.clone(), stream, side).await?;
        let config = &self.config;
        let muxer = Muxer::new(stream, side, config.max_streams, &config.receive, slow);
        Ok((peer, StreamMuxerBox::new(muxer)))
    }
}

type Secured<S> = Negotiated<libp2p_noise::Output<Negotiated<S>>>;

/// Noise, and yamux agreed upon.
pub(crate) async fn secured<S>(
    noise: libp2p_noise::Config,
    stream: S,
    side: Side,
) -> Result<(PeerId, Secured<S>), SetupError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = negotiate(stream, side, NOISE).await?;
    let secured = match side {
        Side::Dialer => noise.upgrade_outbound(stream, NOISE).await,
        Side::Listener => noise.upgrade_inbound(stream, NOISE).await,
    };
    let (peer, stream) = secured.map_err(|error| SetupError::security("noise")(&error))?;
    Ok((peer, negotiate(stream, side, YAMUX).await?))
}

/// What an incoming connection has left of its time.
struct Clock {
    ends: Option<Instant>,
}

impl Clock {
    fn start(point: &ConnectedPoint, config: &TransportConfig) -> Self {
        let ends = match point {
            ConnectedPoint::Listener { .. } => Instant::now().checked_add(config.incoming),
            ConnectedPoint::Dialer { .. } => None,
        };
        Self { ends }
    }

    /// How long a stage may take that has `deadline` by itself.
    fn left_of(&self, deadline: Duration) -> Duration {
        let left = self
            .ends
            .map(|ends| ends.saturating_duration_since(Instant::now()));
        left.map_or(deadline, |left| left.min(deadline))
    }
}

async fn within<O>(
    deadline: Duration,
    stage: impl Future<Output = Result<O, SetupError>>,
) -> Result<O, SetupError> {
    timeout(deadline, stage)
        .await
        .unwrap_or(Err(SetupError::SecurityTimeout(deadline)))
}

async fn negotiate<S>(
    stream: S,
    side: Side,
    protocol: &'static str,
) -> Result<Negotiated<S>, SetupError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let agreed = match side {
        Side::Dialer => dialer_select_proto(stream, [protocol], Version::V1).await,
        Side::Listener => listener_select_proto(stream, [protocol]).await,
    };
    match agreed {
        Ok((_, stream)) => Ok(stream),
        Err(NegotiationError::Failed) => Err(SetupError::Security {
            stage: "negotiation",
            text: format!("the peer does not speak {protocol}"),
        }),
        Err(error) => Err(SetupError::security("negotiation")(&error)),
    }
}

/// The rule of libp2p's own upgrades: who dials speaks first, unless the roles are swapped for a simultaneous open.
fn side(point: &ConnectedPoint) -> Side {
    match point {
        ConnectedPoint::Dialer {
            role_override: Endpoint::Dialer,
            ..
        } => Side::Dialer,
        ConnectedPoint::Dialer { .. } | ConnectedPoint::Listener { .. } => Side::Listener,
    }
}
