//! What carries the bytes below the wall: the parameter of the suites.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt,
    future::{BoxFuture, Pending},
};
use gemba_pnet::{Network, TransportConfig, transport, transport_over};
use libp2p_core::{
    Endpoint,
    muxing::StreamMuxerBox,
    transport::{
        Boxed, DialOpts, ListenerId, MemoryTransport, PortUse, Transport, TransportError,
        TransportEvent, memory::MemoryTransportError,
    },
    upgrade::Version,
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_pnet::{PnetConfig, PreSharedKey};
use multiaddr::{Multiaddr, Protocol};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

pub type Link = Boxed<(PeerId, StreamMuxerBox)>;

/// One suite, any carrier. The next one (QUIC) is a third variant with an arm in each method here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Tcp,
    Memory,
}

/// A socket of no protocol at all.
pub type RawSocket = Box<dyn Raw>;

pub trait Raw: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Raw for S {}

impl Over {
    /// Our transport into `network`.
    pub fn transport(self, keypair: &Keypair, network: &Network, config: &TransportConfig) -> Link {
        match self {
            Self::Tcp => transport(keypair, network, config).unwrap(),
            Self::Memory => {
                let carrier = MemoryTransport::new().map_err(refused);
                transport_over(carrier, keypair, network, config).unwrap()
            }
        }
    }

    /// The transport as everybody else builds it: libp2p-pnet, Noise, yamux, no key check.
    pub fn stock(self, keypair: &Keypair, psk: Option<[u8; 32]>) -> Link {
        match self {
            Self::Tcp => stock(
                libp2p_tcp::tokio::Transport::new(libp2p_tcp::Config::new().nodelay(true)),
                keypair,
                psk,
            ),
            Self::Memory => stock(MemoryTransport::new(), keypair, psk),
        }
    }

    /// Where to listen to get a free place.
    pub fn anywhere(self) -> Multiaddr {
        match self {
            Self::Tcp => "/ip4/127.0.0.1/tcp/0",
            Self::Memory => "/memory/0",
        }
        .parse()
        .unwrap()
    }

    /// An address where nobody listens, and where somebody may.
    pub async fn nowhere(self) -> Multiaddr {
        match self {
            Self::Tcp => RawListener::new(self).await.address(),
            Self::Memory => {
                let mut place = [0; 8];
                getrandom::fill(&mut place).unwrap();
                Protocol::Memory(u64::from_le_bytes(place) | 1).into()
            }
        }
    }

    /// A bare connection to `address`.
    pub async fn connect(self, address: &Multiaddr) -> io::Result<RawSocket> {
        match self {
            Self::Tcp => Ok(Box::new(
                TcpStream::connect(socket(address)).await?.compat(),
            )),
            Self::Memory => {
                let options = DialOpts {
                    role: Endpoint::Dialer,
                    port_use: PortUse::New,
                };
                let dial = MemoryTransport::new().dial(address.clone(), options);
                let dial = dial.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                Ok(Box::new(dial.await.map_err(refused)?))
            }
        }
    }
}

/// Accepts bare connections.
pub enum RawListener {
    Tcp(TcpListener),
    Memory(MemoryTransport, Multiaddr),
}

impl RawListener {
    pub async fn new(over: Over) -> Self {
        match over {
            Over::Tcp => Self::Tcp(TcpListener::bind("127.0.0.1:0").await.unwrap()),
            Over::Memory => {
                let mut transport = MemoryTransport::new();
                transport
                    .listen_on(ListenerId::next(), over.anywhere())
                    .unwrap();
                let event = poll_fn(|cx| Pin::new(&mut transport).poll(cx)).await;
                let TransportEvent::NewAddress { listen_addr, .. } = event else {
                    panic!("{event:?}")
                };
                Self::Memory(transport, listen_addr)
            }
        }
    }

    pub fn address(&self) -> Multiaddr {
        match self {
            Self::Tcp(listener) => multiaddr(listener.local_addr().unwrap()),
            Self::Memory(_, address) => address.clone(),
        }
    }

    pub async fn accept(&mut self) -> RawSocket {
        match self {
            Self::Tcp(listener) => Box::new(listener.accept().await.unwrap().0.compat()),
            Self::Memory(transport, _) => loop {
                let event = poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await;
                if let TransportEvent::Incoming { upgrade, .. } = event {
                    return Box::new(upgrade.await.unwrap());
                }
            },
        }
    }
}

pub fn socket(address: &Multiaddr) -> SocketAddr {
    let mut parts = address.iter();
    match (parts.next(), parts.next()) {
        (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) => (ip, port).into(),
        other => panic!("{other:?}"),
    }
}

pub fn multiaddr(socket: SocketAddr) -> Multiaddr {
    format!("/ip4/{}/tcp/{}", socket.ip(), socket.port())
        .parse()
        .unwrap()
}

/// A bare connection from another loopback address, as from another host.
pub async fn connect_from(source: [u8; 4], target: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(target).await
}

/// TCP that dials from one source address, as from another host.
pub struct From(pub [u8; 4]);

impl Transport for From {
    type Output = Compat<TcpStream>;
    type Error = io::Error;
    type ListenerUpgrade = Pending<io::Result<Self::Output>>;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let (source, target) = (self.0, socket(&address));
        Ok(async move { Ok(connect_from(source, target).await?.compat()) }.boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Poll::Pending
    }
}

/// In memory nobody is out of reach: whoever is not found does not listen.
fn refused(error: MemoryTransportError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, error)
}

fn stock<T>(carrier: T, keypair: &Keypair, psk: Option<[u8; 32]>) -> Link
where
    T: Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
{
    let noise = libp2p_noise::Config::new(keypair).unwrap();
    match psk {
        Some(psk) => carrier
            .and_then(move |socket, _| PnetConfig::new(PreSharedKey::new(psk)).handshake(socket))
            .upgrade(Version::V1)
            .authenticate(noise)
            .multiplex(libp2p_yamux::Config::default())
            .boxed(),
        None => carrier
            .upgrade(Version::V1)
            .authenticate(noise)
            .multiplex(libp2p_yamux::Config::default())
            .boxed(),
    }
}
