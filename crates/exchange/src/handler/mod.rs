//! The handler of one connection: reads, decodes and hashes what comes, writes what the [`Outbox`] holds. It decides
//! nothing about wants.

mod budget;
mod gate;
mod inbound;
mod outbound;
mod pace;
mod shared;
mod sync;
#[cfg(test)]
mod tests;
mod wakers;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Ready, ready};
use futures::stream::SelectAll;
use libp2p_core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p_swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, DialUpgradeError,
    FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p_swarm::{ConnectionId, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol};

pub(crate) use budget::{Account, Budget, Pool};
pub(crate) use gate::Gate;
pub use inbound::Worker;
pub(crate) use inbound::{Received, Shared};
pub use pace::{Carried, Meter};
pub(crate) use pace::{Pace, Ticket};
pub(crate) use shared::{Clock, Outbox};

use crate::core::{Lane, SpareStream};
use crate::wire::Version;
use inbound::{Inbound, InboundError};
use outbound::{Outbound, Step};

/// One connection's side of the exchange.
pub struct Handler {
    connection: ConnectionId,
    shared: Shared,
    inbound: SelectAll<Inbound<Stream>>,
    max_inbound: usize,
    request: Outbound<Stream>,
    response: Outbound<Stream>,
    spare: Spare,
    /// Facts for the behaviour; at most a few a poll are added before they leave.
    facts: VecDeque<Fact>,
    unsupported: bool,
}

/// The second request stream.
enum Spare {
    None,
    /// Asked of the swarm; `wanted` as long as the core did not think better of it.
    Opening {
        wanted: bool,
    },
    Open {
        stream: Stream,
        version: Version,
        /// The core knows.
        told: bool,
    },
}

/// What an outbound stream is opened for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The kept stream of a lane.
    Lane(Lane),
    /// A second request stream.
    Spare,
}

/// What a handler tells the behaviour.
#[derive(Debug)]
pub enum Fact {
    #[doc(hidden)]
    Received(ReceivedMessage),
    #[doc(hidden)]
    Malformed(String),
    #[doc(hidden)]
    TooSlow,
    #[doc(hidden)]
    RequestSent { bytes: usize },
    #[doc(hidden)]
    RequestsLost,
    #[doc(hidden)]
    SpareOpened,
    #[doc(hidden)]
    ResponseSent {
        block_bytes: usize,
        blocks: usize,
        bytes: usize,
    },
    #[doc(hidden)]
    StreamRefused,
    #[doc(hidden)]
    StreamFailed,
    #[doc(hidden)]
    WriteTimedOut,
    #[doc(hidden)]
    Unsupported,
}

/// A decoded message on its way to the behaviour.
#[derive(Debug)]
pub struct ReceivedMessage(pub(crate) Received);

/// Negotiation of a stream: the protocol list in order of preference.
#[derive(Clone, Copy, Debug)]
pub struct Protocols;

const V1_2: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
const V1_1: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.1.0");
const V1_0: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.0.0");
const BARE: StreamProtocol = StreamProtocol::new("/ipfs/bitswap");
/// A stream that is not negotiated after this failed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

impl Handler {
    pub(crate) fn new(
        connection: ConnectionId,
        shared: Shared,
        pace: Arc<Pace>,
        max_inbound: usize,
    ) -> Self {
        let ticket = Ticket::new(pace, shared.outbox.clone());
        Self {
            connection,
            shared,
            inbound: SelectAll::new(),
            max_inbound,
            request: Outbound::new(Lane::Request, None),
            response: Outbound::new(Lane::Response, Some(ticket)),
            spare: Spare::None,
            facts: VecDeque::new(),
            unsupported: false,
        }
    }

    fn on_inbound(&mut self, mut stream: Stream) {
        if self.inbound.len() >= self.max_inbound {
            // Dropping the stream resets it; the peer's sender tries again.
            self.facts.push_back(Fact::StreamRefused);
            return;
        }
        // Kept streams would hold every connection for ever; `connection_keep_alive` says what is worth it.
        stream.ignore_for_keep_alive();
        self.inbound.push(Inbound::new(stream, self.shared.clone()));
    }

    fn on_outbound(&mut self, mut stream: Stream, version: Version, purpose: Purpose) {
        stream.ignore_for_keep_alive();
        match (purpose, &self.spare) {
            (Purpose::Lane(lane), _) => self.lane(lane).opened(stream, version),
            (Purpose::Spare, Spare::Opening { wanted: true }) => {
                self.spare = Spare::Open {
                    stream,
                    version,
                    told: false,
                }
            }
            // Dropping the stream resets it.
            (Purpose::Spare, _) => self.spare = Spare::None,
        }
    }

    fn on_open_failed(&mut self, purpose: Purpose, unsupported: bool) {
        let Purpose::Lane(lane) = purpose else {
            self.spare = Spare::None;
            self.facts.push_back(Fact::StreamFailed);
            return;
        };
        if unsupported && !self.unsupported {
            self.unsupported = true;
            self.facts.push_back(Fact::Unsupported);
        }
        self.facts.push_back(Fact::StreamFailed);
        if let Some(step) = self.lane(lane).failed() {
            self.on_step(lane, step);
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut Outbound<Stream> {
        match lane {
            Lane::Request => &mut self.request,
            Lane::Response => &mut self.response,
        }
    }

    /// Fills a lane from the outbox and drives it. `Some` asks the swarm for a stream.
    fn drive(&mut self, lane: Lane, cx: &mut Context<'_>) -> Option<Lane> {
        loop {
            if self.lane(lane).is_idle() {
                let message = self.shared.outbox.pop(self.connection, lane, cx)?;
                self.lane(lane).start(message);
            }
            match self.lane(lane).poll(cx) {
                Poll::Pending => return None,
                Poll::Ready(Step::Open) => return Some(lane),
                Poll::Ready(step) => self.on_step(lane, step),
            }
            if !self.facts.is_empty() {
                // Told first: the core has the next message ready only after it knows.
                return None;
            }
        }
    }

    /// Drops what is on its way to a peer that does not read.
    fn give_up_responses(&mut self) {
        let Some(waiting) = self.shared.outbox.take_given_up(self.connection) else {
            return;
        };
        for message in self.response.give_up().into_iter().chain(waiting) {
            self.on_step(Lane::Response, Step::Lost { message });
        }
    }

    /// Does with the second request stream what the core wants. True if one is to be opened.
    fn mind_spare(&mut self) -> bool {
        match (
            self.shared.outbox.take_spare(self.connection),
            &mut self.spare,
        ) {
            (None, _) => false,
            (Some(SpareStream::Open), Spare::Opening { wanted }) => {
                *wanted = true;
                false
            }
            (Some(SpareStream::Open), _) => {
                self.spare = Spare::Opening { wanted: true };
                true
            }
            (Some(SpareStream::Drop), Spare::Opening { wanted }) => {
                *wanted = false;
                false
            }
            (Some(SpareStream::Drop), _) => {
                self.spare = Spare::None;
                false
            }
            (Some(SpareStream::Use), Spare::Opening { wanted }) => {
                *wanted = false;
                self.request.replace(None);
                false
            }
            (Some(SpareStream::Use), _) => {
                let with = match std::mem::replace(&mut self.spare, Spare::None) {
                    Spare::Open {
                        stream, version, ..
                    } => Some((stream, version)),
                    _ => None,
                };
                self.request.replace(with);
                false
            }
        }
    }

    /// The news of the second request stream, once all that came before it was read. Not while it is we who cannot read.
    fn tell_of_spare(&mut self) -> Option<Fact> {
        let Spare::Open { told, .. } = &mut self.spare else {
            return None;
        };
        if *told || self.inbound.iter().any(Inbound::waits_for_room) {
            return None;
        }
        *told = true;
        Some(Fact::SpareOpened)
    }

    fn on_step(&mut self, lane: Lane, step: Step) {
        let fact = match (lane, step) {
            (_, Step::Open) => return,
            (_, Step::TimedOut) => Fact::WriteTimedOut,
            (Lane::Request, Step::Sent { bytes, .. }) => Fact::RequestSent { bytes },
            (Lane::Request, Step::Lost { .. }) => Fact::RequestsLost,
            (Lane::Response, Step::Sent { message, bytes }) => Fact::ResponseSent {
                block_bytes: message.block_bytes(),
                blocks: message.blocks.len(),
                bytes: bytes.max(1),
            },
            (Lane::Response, Step::Lost { message }) => Fact::ResponseSent {
                block_bytes: message.block_bytes(),
                blocks: message.blocks.len(),
                bytes: 0,
            },
        };
        self.facts.push_back(fact);
    }

    fn on_item(&mut self, item: Result<Received, InboundError>) -> Option<Fact> {
        match item {
            Ok(received) => Some(Fact::Received(ReceivedMessage(received))),
            Err(error) => {
                tracing::debug!(%error, "inbound exchange stream reset");
                Some(match error {
                    InboundError::TooSlow => Fact::TooSlow,
                    error if error.is_malformed() => Fact::Malformed(error.to_string()),
                    _ => Fact::StreamFailed,
                })
            }
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.shared.outbox.forget(self.connection);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Fact;
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols, ()> {
        SubstreamProtocol::new(Protocols, ()).with_timeout(OPEN_TIMEOUT)
    }

    fn connection_keep_alive(&self) -> bool {
        self.shared.outbox.is_busy() || !self.request.is_idle() || !self.response.is_idle()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Protocols, Purpose, Fact>> {
        self.give_up_responses();
        if self.shared.outbox.take_renewed(self.connection) {
            self.response.renew();
        }
        self.response.close_old(cx);
        let purpose = match self.mind_spare() {
            true => Some(Purpose::Spare),
            false => [Lane::Request, Lane::Response]
                .into_iter()
                .find_map(|lane| self.drive(lane, cx))
                .map(Purpose::Lane),
        };
        if let Some(purpose) = purpose {
            let protocol = SubstreamProtocol::new(Protocols, purpose).with_timeout(OPEN_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        if let Some(fact) = self.facts.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact));
        }
        while let Poll::Ready(Some(item)) = self.inbound.poll_next_unpin(cx) {
            if let Some(fact) = self.on_item(item) {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact));
            }
        }
        if let Some(fact) = self.tell_of_spare() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact));
        }
        Poll::Pending
    }

    /// What was written is still told, or its credit would be lost while another connection to the peer lives on. A
    /// response that was not written is left to that connection.
    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Fact>> {
        if let Some(message) = self.response.take() {
            self.shared.outbox.give_back(message);
        }
        Poll::Ready(self.facts.pop_front())
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Protocols, Protocols, (), Purpose>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, _version),
                ..
            }) => self.on_inbound(stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, version),
                info: purpose,
            }) => self.on_outbound(stream, version, purpose),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let unsupported = matches!(error, StreamUpgradeError::NegotiationFailed);
                self.on_open_failed(info, unsupported);
            }
            _ => {}
        }
    }
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Handler({}, {} inbound)",
            self.connection,
            self.inbound.len()
        )
    }
}

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 4];

    fn protocol_info(&self) -> Self::InfoIter {
        [V1_2, V1_1, V1_0, BARE]
    }
}

impl InboundUpgrade<Stream> for Protocols {
    type Output = (Stream, Version);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, version_of(&protocol))))
    }
}

impl OutboundUpgrade<Stream> for Protocols {
    type Output = (Stream, Version);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, version_of(&protocol))))
    }
}

fn version_of(protocol: &StreamProtocol) -> Version {
    match protocol.as_ref() {
        "/ipfs/bitswap/1.2.0" => Version::V1_2,
        "/ipfs/bitswap/1.1.0" => Version::V1_1,
        _ => Version::V1_0,
    }
}
