//! A network in memory with hosts that have IP addresses, for tests in virtual time (`#[tokio::test(start_paused = true)]`): nothing
//! takes longer than its timers say, and every connect is written down.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Ready, ready},
};
use gemba_pnet::{TransportConfig, transport_over};
use libp2p_core::{
    Endpoint,
    muxing::StreamMuxerBox,
    transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{Config, NetworkBehaviour, Swarm};
use multiaddr::Multiaddr;
use tokio::{io::DuplexStream, sync::mpsc, time::Instant};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::{multiaddr, private, socket};

/// Connections that a host has not taken yet.
const BACKLOG: usize = 1024;
/// What the network carries of one connection before the reader has to read, in bytes.
const PIPE: usize = 64 * 1024;

pub type Socket = Compat<DuplexStream>;
/// Who came from where.
type Arrival = (Socket, SocketAddr);
type Stranger = Box<dyn Fn(SocketAddr) -> BoxFuture<'static, io::Result<Socket>> + Send + Sync>;

#[derive(Clone)]
pub struct Lan(Arc<Hub>);

struct Hub {
    start: Instant,
    hosts: Mutex<HashMap<SocketAddr, mpsc::Sender<Arrival>>>,
    dials: Mutex<Vec<(SocketAddr, Duration)>>,
    /// What a host does that is no member.
    stranger: Stranger,
}

impl Lan {
    /// Where nobody listens, `stranger` answers.
    pub fn new(
        stranger: impl Fn(SocketAddr) -> BoxFuture<'static, io::Result<Socket>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Hub {
            start: Instant::now(),
            hosts: Mutex::default(),
            dials: Mutex::default(),
            stranger: Box::new(stranger),
        }))
    }

    /// Every connect so far: to whom and when.
    pub fn dials(&self) -> Vec<(SocketAddr, Duration)> {
        self.0.dials.lock().unwrap().clone()
    }

    pub async fn connect(&self, from: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
        let now = self.0.start.elapsed();
        self.0.dials.lock().unwrap().push((to, now));
        let host = self.0.hosts.lock().unwrap().get(&to).cloned();
        let Some(host) = host else {
            return (self.0.stranger)(to).await;
        };
        let (near, far) = pipe();
        host.try_send((far, from))
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(near)
    }

    /// A node with this address.
    pub fn swarm<B: NetworkBehaviour>(
        &self,
        ip: impl Into<IpAddr>,
        config: &TransportConfig,
        behaviour: impl FnOnce(&Keypair) -> B,
    ) -> Swarm<B> {
        self.swarm_on(Config::with_tokio_executor(), ip, config, behaviour)
    }

    /// A node with this address whose connections are driven as `executor` says.
    pub fn swarm_on<B: NetworkBehaviour>(
        &self,
        executor: Config,
        ip: impl Into<IpAddr>,
        config: &TransportConfig,
        behaviour: impl FnOnce(&Keypair) -> B,
    ) -> Swarm<B> {
        let keypair = Keypair::generate_ed25519();
        let transport = transport_over(self.host(ip), &keypair, &private(1), config).unwrap();
        let behaviour = behaviour(&keypair);
        Swarm::new(
            transport,
            behaviour,
            keypair.public().to_peer_id(),
            executor.with_idle_connection_timeout(Duration::from_secs(3600)),
        )
    }

    /// A connection from this address, without a swarm.
    pub async fn link(
        &self,
        ip: impl Into<IpAddr>,
        to: SocketAddr,
    ) -> io::Result<(PeerId, StreamMuxerBox)> {
        let (keypair, config) = (Keypair::generate_ed25519(), TransportConfig::default());
        let mut link = transport_over(self.host(ip), &keypair, &private(1), &config).unwrap();
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        link.dial(multiaddr(to), options).unwrap().await
    }

    fn host(&self, ip: impl Into<IpAddr>) -> Host {
        Host {
            lan: self.clone(),
            ip: ip.into(),
            dialed: 0,
            listeners: Vec::new(),
            told: VecDeque::new(),
        }
    }
}

/// Both ends of a connection.
pub fn pipe() -> (Socket, Socket) {
    let (near, far) = tokio::io::duplex(PIPE);
    (near.compat(), far.compat())
}

struct Host {
    lan: Lan,
    ip: IpAddr,
    dialed: u16,
    listeners: Vec<(ListenerId, SocketAddr, mpsc::Receiver<Arrival>)>,
    told: VecDeque<(ListenerId, Multiaddr)>,
}

impl Transport for Host {
    type Output = Socket;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Socket>>;
    type Dial = BoxFuture<'static, io::Result<Socket>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let here = socket(&address);
        assert_eq!(here.ip(), self.ip);
        self.lan.0.hosts.lock().unwrap().insert(here, sender);
        self.listeners.push((id, here, receiver));
        self.told.push_back((id, address));
        Ok(())
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        self.dialed = self.dialed.wrapping_add(1);
        let from = SocketAddr::new(self.ip, 20_000 + self.dialed % 40_000);
        let (lan, to) = (self.lan.clone(), socket(&address));
        Ok(async move { lan.connect(from, to).await }.boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        if let Some((listener_id, listen_addr)) = self.told.pop_front() {
            return Poll::Ready(TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            });
        }
        for (listener_id, here, receiver) in &mut self.listeners {
            if let Poll::Ready(Some((stream, from))) = receiver.poll_recv(cx) {
                return Poll::Ready(TransportEvent::Incoming {
                    listener_id: *listener_id,
                    upgrade: ready(Ok(stream)),
                    local_addr: multiaddr(*here),
                    send_back_addr: multiaddr(from),
                });
            }
        }
        Poll::Pending
    }
}
