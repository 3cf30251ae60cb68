//! The handler of one connection: one stream of messages either way. It decides nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, select};
use futures_timer::Delay;
use libp2p_core::upgrade::ReadyUpgrade;
use libp2p_swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, DialUpgradeError,
    FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p_swarm::{ConnectionId, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol};

use super::frame;
use super::outbox::Outbox;
use crate::wire::{MAX_SITE_MESSAGE_BYTES, SITE_PROTOCOL, SiteMessage};

/// A stream that is not negotiated after this failed; so did one that does not take a message.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between a stream that broke off and the next.
const PAUSE: Duration = Duration::from_secs(2);

/// What a handler tells the behaviour.
#[derive(Debug)]
pub enum Fact {
    #[doc(hidden)]
    Speaks,
    #[doc(hidden)]
    Unsupported,
    #[doc(hidden)]
    Lost,
    #[doc(hidden)]
    Malformed,
    #[doc(hidden)]
    Said(SiteMessage),
}

/// One connection's side of the site.
pub struct Handler {
    connection: ConnectionId,
    outbox: Arc<Outbox>,
    outbound: Outbound,
    /// The peer's messages; a newer stream takes the place of the older.
    inbound: Option<BoxFuture<'static, Heard>>,
    /// What was learned outside of `poll`: at most one for each stream that was opened.
    facts: VecDeque<Fact>,
}

/// Our stream.
enum Outbound {
    Closed,
    Opening,
    Idle(Stream),
    Writing(BoxFuture<'static, io::Result<Stream>>),
    /// After it broke off.
    Resting(Delay),
    Unsupported,
}

/// What came of reading: the stream and a message, or its end.
type Heard = io::Result<Option<(Stream, SiteMessage)>>;

impl Handler {
    pub(super) fn new(connection: ConnectionId, outbox: Arc<Outbox>) -> Self {
        Self {
            connection,
            outbox,
            outbound: Outbound::Closed,
            inbound: None,
            facts: VecDeque::new(),
        }
    }

    /// Opens our stream, or writes the next message to it.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        let begun = matches!(self.outbound, Outbound::Idle(_) | Outbound::Writing(_));
        if begun && self.outbox.is_overflown() {
            return Some(Step::Tell(self.rest()));
        }
        loop {
            match &mut self.outbound {
                Outbound::Closed => {
                    self.outbound = Outbound::Opening;
                    return Some(Step::Open);
                }
                Outbound::Opening | Outbound::Unsupported => return None,
                Outbound::Resting(delay) => match delay.poll_unpin(cx) {
                    Poll::Ready(()) => self.outbound = Outbound::Closed,
                    Poll::Pending => return None,
                },
                Outbound::Idle(_) => {
                    let body = self.outbox.next_message()?;
                    if let Outbound::Idle(stream) =
                        std::mem::replace(&mut self.outbound, Outbound::Closed)
                    {
                        self.outbound = Outbound::Writing(write(stream, body).boxed());
                    }
                }
                Outbound::Writing(writing) => match writing.poll_unpin(cx) {
                    Poll::Ready(Ok(stream)) => self.outbound = Outbound::Idle(stream),
                    Poll::Ready(Err(_)) => return Some(Step::Tell(self.rest())),
                    Poll::Pending => return None,
                },
            }
        }
    }

    fn rest(&mut self) -> Fact {
        self.outbound = Outbound::Resting(Delay::new(PAUSE));
        self.outbox.forget();
        Fact::Lost
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        let Poll::Ready(heard) = self.inbound.as_mut()?.poll_unpin(cx) else {
            return None;
        };
        self.inbound = None;
        match heard {
            Ok(Some((stream, message))) => {
                self.inbound = Some(read(stream).boxed());
                Some(Step::Tell(Fact::Said(message)))
            }
            Ok(None) => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Some(Step::Tell(Fact::Malformed))
            }
            Err(_) => None,
        }
    }
}

/// What the handler does next.
enum Step {
    Open,
    Tell(Fact),
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Fact;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, ()> {
        protocol()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Fact>> {
        let is_writer = self.outbox.is_writer(self.connection, cx);
        let mut step = self
            .facts
            .pop_front()
            .map(Step::Tell)
            .or_else(|| self.poll_inbound(cx));
        if is_writer {
            step = step.or_else(|| self.poll_outbound(cx));
        }
        match step {
            None => Poll::Pending,
            Some(Step::Tell(fact)) => Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact)),
            Some(Step::Open) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: protocol(),
            }),
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), ()>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: mut stream,
                ..
            }) => {
                // Kept streams would hold every connection for ever.
                stream.ignore_for_keep_alive();
                self.inbound = Some(read(stream).boxed());
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: mut stream,
                ..
            }) => {
                stream.ignore_for_keep_alive();
                self.outbound = Outbound::Idle(stream);
                self.facts.push_back(Fact::Speaks);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                if matches!(error, StreamUpgradeError::NegotiationFailed) {
                    self.outbound = Outbound::Unsupported;
                    self.facts.push_back(Fact::Unsupported);
                } else {
                    self.outbound = Outbound::Resting(Delay::new(PAUSE));
                }
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

fn protocol() -> SubstreamProtocol<ReadyUpgrade<StreamProtocol>, ()> {
    let upgrade = ReadyUpgrade::new(StreamProtocol::new(SITE_PROTOCOL));
    SubstreamProtocol::new(upgrade, ()).with_timeout(TIMEOUT)
}

async fn write(mut stream: Stream, body: Vec<u8>) -> io::Result<Stream> {
    let writing = async {
        frame::write(&mut stream, &body).await?;
        Ok(stream)
    };
    match select(std::pin::pin!(writing), Delay::new(TIMEOUT)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Waits for a message as long as it takes; one that has begun is watched by the connection's own liveness.
async fn read(mut stream: Stream) -> Heard {
    let Some(body) = frame::read(&mut stream, MAX_SITE_MESSAGE_BYTES).await? else {
        return Ok(None);
    };
    let message = SiteMessage::decode(&body).map_err(|_| frame::malformed("no message"))?;
    Ok(Some((stream, message)))
}
