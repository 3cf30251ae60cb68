//! The handler of one connection: reads what comes, writes what the [`Outbox`] holds. It decides nothing.

mod clock;
mod inbound;
mod outbound;
mod receive;
mod shared;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Ready, ready};
use libp2p_core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p_swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, DialUpgradeError,
    FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p_swarm::{ConnectionId, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol};

pub use clock::HandClock;
pub(crate) use clock::{Clock, Sleep};
pub(crate) use inbound::Shared;
pub(crate) use receive::Pool as ReceivePool;
pub(crate) use receive::Share;
pub(crate) use shared::{Epoch, Outbox, lock};

use crate::Time;
use crate::wire::{Received, Version};
use inbound::{Inbound, InboundError, Item};
use outbound::{Outbound, Step, version_of};

/// One connection's side of gossip.
pub struct Handler {
    connection: ConnectionId,
    shared: Shared,
    outbox: Arc<Outbox>,
    /// The peer's stream; a newer one takes its place, as at Kubo.
    inbound: Option<Inbound<Stream>>,
    outbound: Outbound<Stream>,
    /// Facts for the behaviour; at most a few a poll are added before they leave.
    facts: VecDeque<Fact>,
}

/// What a handler tells the behaviour.
#[derive(Debug)]
pub enum Fact {
    #[doc(hidden)]
    Received {
        received: Box<Received>,
        at: Time,
        /// Memory of the frames, until the behaviour took them.
        shares: Vec<Share>,
    },
    #[doc(hidden)]
    Malformed(String),
    /// The peer opened a stream to us.
    #[doc(hidden)]
    Opened,
    #[doc(hidden)]
    Stream { epoch: u64, news: News },
}

/// What happened to our stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    #[doc(hidden)]
    Opened(Version),
    #[doc(hidden)]
    Lost,
    #[doc(hidden)]
    Unsupported,
    #[doc(hidden)]
    Written,
    #[doc(hidden)]
    Expired,
    #[doc(hidden)]
    Progress,
}

/// Negotiation of a stream: the protocol list in order of preference.
#[derive(Clone, Copy, Debug)]
pub struct Protocols;

/// A stream that is not negotiated after this failed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

impl Handler {
    pub(crate) fn new(connection: ConnectionId, shared: Shared, outbox: Arc<Outbox>) -> Self {
        Self {
            connection,
            shared,
            outbox,
            inbound: None,
            outbound: Outbound::new(),
            facts: VecDeque::new(),
        }
    }

    fn on_inbound(&mut self, mut stream: Stream) {
        if !lock(&self.shared.seen).admits(self.shared.source) {
            // Dropping the stream resets it.
            return;
        }
        // Kept streams would hold every connection for ever; `connection_keep_alive` says what is worth it.
        stream.ignore_for_keep_alive();
        self.inbound = Some(Inbound::new(stream, self.shared.clone()));
        self.facts.push_back(Fact::Opened);
    }

    fn on_outbound(&mut self, mut stream: Stream, version: Version, epoch: Epoch) {
        stream.ignore_for_keep_alive();
        if self.outbound.opened(epoch, stream) {
            self.tell(epoch, News::Opened(version));
        }
    }

    fn on_open_failed(&mut self, epoch: Epoch, unsupported: bool) {
        if self.outbound.failed(epoch) {
            let news = match unsupported {
                true => News::Unsupported,
                false => News::Lost,
            };
            self.tell(epoch, news);
        }
    }

    fn tell(&mut self, epoch: Epoch, news: News) {
        self.facts.push_back(Fact::Stream { epoch, news });
    }

    fn on_ended(&mut self, error: &InboundError) {
        self.inbound = None;
        tracing::debug!(%error, "inbound gossip stream ended");
        if error.is_malformed() {
            self.facts.push_back(Fact::Malformed(error.to_string()));
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.outbox.forget(self.connection);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Fact;
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Epoch;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols, ()> {
        SubstreamProtocol::new(Protocols, ()).with_timeout(OPEN_TIMEOUT)
    }

    fn connection_keep_alive(&self) -> bool {
        self.outbox.is_busy() || self.outbound.is_writing()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Protocols, Epoch, Fact>> {
        let wanted = self.outbox.look(self.connection, cx);
        if let Some(epoch) = self.outbound.follow(wanted) {
            let protocol = SubstreamProtocol::new(Protocols, epoch).with_timeout(OPEN_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        if let Some(fact) = self.facts.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact));
        }
        if let Poll::Ready((epoch, step)) = self.outbound.poll(&self.outbox, &self.shared.clock, cx)
        {
            let news = match step {
                Step::Written => News::Written,
                Step::Expired => News::Expired,
                Step::Progress => News::Progress,
                Step::Lost => News::Lost,
            };
            let fact = Fact::Stream { epoch, news };
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact));
        }
        while let Some(inbound) = &mut self.inbound
            && let Poll::Ready(item) = inbound.poll(cx)
        {
            match item {
                Item::Received(received, at, shares) => {
                    let fact = Fact::Received {
                        received,
                        at,
                        shares,
                    };
                    return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact));
                }
                Item::Ended(error) => self.on_ended(&error),
            }
            if let Some(fact) = self.facts.pop_front() {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact));
            }
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocols, Protocols, (), Epoch>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, _version),
                ..
            }) => self.on_inbound(stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, version),
                info: epoch,
            }) => self.on_outbound(stream, version, epoch),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: epoch, error }) => {
                let unsupported = matches!(error, StreamUpgradeError::NegotiationFailed);
                self.on_open_failed(epoch, unsupported);
            }
            _ => {}
        }
    }
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handler({})", self.connection)
    }
}

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 3];

    fn protocol_info(&self) -> Self::InfoIter {
        Version::ALL.map(|version| StreamProtocol::new(version.protocol()))
    }
}

impl InboundUpgrade<Stream> for Protocols {
    type Output = (Stream, Version);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, version_of(protocol.as_ref()))))
    }
}

impl OutboundUpgrade<Stream> for Protocols {
    type Output = (Stream, Version);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, version_of(protocol.as_ref()))))
    }
}
