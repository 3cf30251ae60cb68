//! Driver: names to addresses, and connects of the carrier (TCP) with a deadline of our own.
//!
//! Names go through the operating system's resolver, so `/etc/hosts`, a plant's own DNS and Android work, and no public resolver is
//! ever asked on our account. `/dnsaddr` is not spoken: it exists to find public bootstrap nodes.

use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use libp2p_core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use multiaddr::{Multiaddr, Protocol};
use tokio::time::timeout;

use crate::{TransportConfig, stage::Stage, transport::SetupError};

/// A carrier of bytes with name look-up and typed errors.
pub(crate) struct Connect<T> {
    /// Shared with dials that still resolve a name.
    carrier: Arc<Mutex<T>>,
    config: TransportConfig,
}

impl<T> Connect<T> {
    pub(crate) fn new(carrier: T, config: TransportConfig) -> Self {
        Self {
            carrier: Arc::new(Mutex::new(carrier)),
            config,
        }
    }
}

type BoxDial<O> = Pin<Box<dyn Future<Output = Result<O, SetupError>> + Send>>;

impl<T> Transport for Connect<T>
where
    T: Transport<Error = io::Error> + Send + Unpin + 'static,
    T::Dial: Send,
    T::Output: Send,
    T::ListenerUpgrade: Send + 'static,
{
    type Output = T::Output;
    type Error = SetupError;
    type ListenerUpgrade = BoxDial<T::Output>;
    type Dial = BoxDial<T::Output>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        lock(&self.carrier)
            .listen_on(id, address)
            .map_err(|error| error.map(SetupError::from_listen))
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        lock(&self.carrier).remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let connect = self.config.connect;
        let entered = self.config.stages.enter(&address, Stage::Connect);
        let Some(name) = first_name(&address) else {
            let dial = lock(&self.carrier)
                .dial(address, options)
                .map_err(|error| error.map(SetupError::from_connect))?;
            return Ok(Box::pin(async move {
                let _entered = entered;
                match timeout(connect, dial).await {
                    Ok(connected) => connected.map_err(SetupError::from_connect),
                    Err(_) => Err(SetupError::ConnectTimeout(connect)),
                }
            }));
        };
        if name.family == Family::Unsupported {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        let (carrier, limit) = (self.carrier.clone(), self.config.max_addresses_per_name);
        Ok(Box::pin(async move {
            let _entered = entered;
            let mut last = SetupError::Resolve {
                name: name.text.clone(),
                kind: io::ErrorKind::NotFound,
            };
            let found = match timeout(connect, resolve(&name)).await {
                Ok(found) => found?,
                Err(_) => {
                    return Err(SetupError::Resolve {
                        name: name.text,
                        kind: io::ErrorKind::TimedOut,
                    });
                }
            };
            for ip in found.into_iter().take(limit) {
                let Some(address) = address.replace(0, |_| Some(Protocol::from(ip))) else {
                    continue;
                };
                // The lock is released before the connect is awaited.
                let dial = lock(&carrier).dial(address, options);
                last = match dial {
                    Ok(dial) => match timeout(connect, dial).await {
                        Ok(Ok(connected)) => return Ok(connected),
                        Ok(Err(error)) => SetupError::from_connect(error),
                        Err(_) => SetupError::ConnectTimeout(connect),
                    },
                    Err(TransportError::Other(error)) => SetupError::from_connect(error),
                    Err(TransportError::MultiaddrNotSupported(address)) => {
                        SetupError::Unsupported(address)
                    }
                };
            }
            Err(last)
        }))
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let mut carrier = lock(&self.carrier);
        Pin::new(&mut *carrier).poll(cx).map(|event| {
            event
                .map_upgrade(|upgrade| {
                    Box::pin(async { upgrade.await.map_err(SetupError::from_connect) })
                        as BoxDial<_>
                })
                .map_err(SetupError::from_listen)
        })
    }
}

/// A panic elsewhere while the lock was held leaves the transport usable: it has no invariant across calls.
fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Name {
    text: String,
    family: Family,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
    Unsupported,
}

fn first_name(address: &Multiaddr) -> Option<Name> {
    let (text, family) = match address.iter().next()? {
        Protocol::Dns(name) => (name.into_owned(), Family::Any),
        Protocol::Dns4(name) => (name.into_owned(), Family::V4),
        Protocol::Dns6(name) => (name.into_owned(), Family::V6),
        Protocol::Dnsaddr(name) => (name.into_owned(), Family::Unsupported),
        _ => return None,
    };
    Some(Name { text, family })
}

async fn resolve(name: &Name) -> Result<Vec<IpAddr>, SetupError> {
    let found = tokio::net::lookup_host((name.text.as_str(), 0))
        .await
        .map_err(|error| SetupError::Resolve {
            name: name.text.clone(),
            kind: error.kind(),
        })?;
    Ok(found
        .map(|socket| socket.ip())
        .filter(|ip| match name.family {
            Family::Any => true,
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
            Family::Unsupported => false,
        })
        .collect())
}
