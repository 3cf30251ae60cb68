//! The handler of one connection: one stream of messages either way, and a few short ones for questions. It decides nothing.

mod frame;
mod outbox;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{BoxFuture, Either, Ready, ready, select};
use futures::stream::FuturesUnordered;
use futures::{AsyncWriteExt as _, FutureExt as _, StreamExt as _};
use futures_timer::Delay;
use libp2p_core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p_swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, DialUpgradeError,
    FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p_swarm::{ConnectionId, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol};

pub(crate) use outbox::Outbox;

use crate::name::Name;
use crate::wire::fetch::{self, Answer};
use crate::wire::{self, Message};

/// A stream that is not negotiated after this failed; a question that is not answered, too; so is a message that is not taken.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between a stream that broke off and the next.
const PAUSE: Duration = Duration::from_secs(5);
/// Questions that are asked at a time.
const ASKING: usize = 4;
/// Questions that are answered at a time; more are reset.
const ANSWERING: usize = 8;

/// Where the answer to a question goes.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Option<Vec<u8>>>);

impl Reply {
    /// Answers with a record, or that there is none.
    pub fn send(self, record: Option<Vec<u8>>) {
        // Whoever asked may be gone.
        let _ = self.0.send(record);
    }
}

/// What a handler tells the behaviour.
#[derive(Debug)]
pub enum Fact {
    #[doc(hidden)]
    Speaks,
    #[doc(hidden)]
    Lost,
    #[doc(hidden)]
    Malformed,
    #[doc(hidden)]
    Message(Message),
    #[doc(hidden)]
    Asked(Name, Reply),
    #[doc(hidden)]
    Fetched(Name, Answer),
}

/// One connection's side of names.
pub struct Handler {
    connection: ConnectionId,
    outbox: Arc<Outbox>,
    push: Push,
    /// The peer's messages; a newer stream takes the place of the older.
    inbound: Option<BoxFuture<'static, Heard>>,
    /// Questions whose streams are being opened.
    opening: usize,
    asking: FuturesUnordered<BoxFuture<'static, (Name, Answer)>>,
    answering: FuturesUnordered<BoxFuture<'static, Answering>>,
    /// Facts that were learned outside of `poll`: at most one for each stream that was opened.
    facts: VecDeque<Fact>,
}

/// Our stream of messages.
enum Push {
    Closed,
    Opening,
    Idle(Stream),
    Writing(BoxFuture<'static, io::Result<Stream>>),
    /// After it broke off.
    Resting(Delay),
    /// The peer does not speak the protocol.
    Unsupported,
}

/// What came of reading: the stream and a message, or its end.
type Heard = io::Result<Option<(Stream, Message)>>;

/// What came of a step towards an answer: the question and where it came from, until it is answered.
type Answering = Option<(Stream, Name)>;

/// What an outgoing stream is for.
#[derive(Debug)]
pub enum Purpose {
    #[doc(hidden)]
    Push,
    #[doc(hidden)]
    Ask(Name),
}

/// The protocols that one stream may be negotiated for.
#[derive(Debug, Clone, Copy)]
pub enum Protocols {
    #[doc(hidden)]
    Both,
    #[doc(hidden)]
    One(Protocol),
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    #[doc(hidden)]
    Push,
    #[doc(hidden)]
    Fetch,
}

impl Handler {
    pub(crate) fn new(connection: ConnectionId, outbox: Arc<Outbox>) -> Self {
        Self {
            connection,
            outbox,
            push: Push::Closed,
            inbound: None,
            opening: 0,
            asking: FuturesUnordered::new(),
            answering: FuturesUnordered::new(),
            facts: VecDeque::new(),
        }
    }

    /// Opens our stream, or writes the next message to it.
    fn poll_push(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        loop {
            match &mut self.push {
                Push::Closed => {
                    self.push = Push::Opening;
                    return Some(Step::Open(Purpose::Push));
                }
                Push::Opening | Push::Unsupported => return None,
                Push::Resting(delay) => match delay.poll_unpin(cx) {
                    Poll::Ready(()) => self.push = Push::Closed,
                    Poll::Pending => return None,
                },
                Push::Idle(_) => {
                    let body = self.outbox.next_message()?;
                    if let Push::Idle(stream) = std::mem::replace(&mut self.push, Push::Closed) {
                        self.push = Push::Writing(within(write_message(stream, body)).boxed());
                    }
                }
                Push::Writing(writing) => match writing.poll_unpin(cx) {
                    Poll::Ready(Ok(stream)) => self.push = Push::Idle(stream),
                    Poll::Ready(Err(_)) => return Some(Step::Tell(self.rest())),
                    Poll::Pending => return None,
                },
            }
        }
    }

    fn rest(&mut self) -> Fact {
        self.push = Push::Resting(Delay::new(PAUSE));
        self.outbox.forget_messages();
        Fact::Lost
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        let Poll::Ready(heard) = self.inbound.as_mut()?.poll_unpin(cx) else {
            return None;
        };
        self.inbound = None;
        match heard {
            Ok(Some((stream, message))) => {
                self.inbound = Some(read_message(stream).boxed());
                Some(Step::Tell(Fact::Message(message)))
            }
            Ok(None) => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Some(Step::Tell(Fact::Malformed))
            }
            Err(_) => None,
        }
    }

    fn poll_questions(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        if let Poll::Ready(Some((name, answer))) = self.asking.poll_next_unpin(cx) {
            return Some(Step::Tell(Fact::Fetched(name, answer)));
        }
        while let Poll::Ready(Some(step)) = self.answering.poll_next_unpin(cx) {
            if let Some((stream, name)) = step {
                let (reply, answer) = oneshot::channel();
                self.answering
                    .push(bounded_answer(answer_question(stream, answer)));
                return Some(Step::Tell(Fact::Asked(name, Reply(reply))));
            }
        }
        None
    }

    fn next_question(&mut self) -> Option<Step> {
        if self.opening + self.asking.len() >= ASKING {
            return None;
        }
        let name = self.outbox.next_question()?;
        self.opening += 1;
        Some(Step::Open(Purpose::Ask(name)))
    }

    fn on_inbound(&mut self, mut stream: Stream, protocol: Protocol) {
        // Kept streams would hold every connection for ever.
        stream.ignore_for_keep_alive();
        match protocol {
            Protocol::Push => self.inbound = Some(read_message(stream).boxed()),
            Protocol::Fetch if self.answering.len() < ANSWERING => {
                self.answering.push(bounded_answer(read_question(stream)));
            }
            // Dropping the stream resets it.
            Protocol::Fetch => {}
        }
    }

    fn on_outbound(&mut self, mut stream: Stream, purpose: Purpose) {
        stream.ignore_for_keep_alive();
        match purpose {
            Purpose::Push => {
                self.push = Push::Idle(stream);
                self.facts.push_back(Fact::Speaks);
            }
            Purpose::Ask(name) => {
                self.opening = self.opening.saturating_sub(1);
                let asking = within(ask(stream, name));
                self.asking
                    .push(async move { (name, asking.await.unwrap_or(Answer::Error)) }.boxed());
            }
        }
    }

    fn on_open_failed(&mut self, purpose: Purpose, unsupported: bool) {
        match purpose {
            Purpose::Push if unsupported => self.push = Push::Unsupported,
            Purpose::Push => self.push = Push::Resting(Delay::new(PAUSE)),
            Purpose::Ask(name) => {
                self.opening = self.opening.saturating_sub(1);
                self.facts.push_back(Fact::Fetched(name, Answer::Error));
            }
        }
    }
}

/// What the handler does next.
enum Step {
    Open(Purpose),
    Tell(Fact),
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Fact;
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols, ()> {
        SubstreamProtocol::new(Protocols::Both, ()).with_timeout(TIMEOUT)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Protocols, Purpose, Fact>> {
        let is_writer = self.outbox.is_writer(self.connection, cx);
        let mut step = self
            .facts
            .pop_front()
            .map(Step::Tell)
            .or_else(|| self.poll_inbound(cx))
            .or_else(|| self.poll_questions(cx));
        if is_writer {
            step = step
                .or_else(|| self.poll_push(cx))
                .or_else(|| self.next_question());
        }
        match step {
            None => Poll::Pending,
            Some(Step::Tell(fact)) => Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(fact)),
            Some(Step::Open(purpose)) => {
                let protocol = match purpose {
                    Purpose::Push => Protocol::Push,
                    Purpose::Ask(_) => Protocol::Fetch,
                };
                let protocol =
                    SubstreamProtocol::new(Protocols::One(protocol), purpose).with_timeout(TIMEOUT);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
        }
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
                protocol: (stream, protocol),
                ..
            }) => self.on_inbound(stream, protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info: purpose,
            }) => self.on_outbound(stream, purpose),
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: purpose,
                error,
            }) => {
                let unsupported = matches!(error, StreamUpgradeError::NegotiationFailed);
                self.on_open_failed(purpose, unsupported);
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

async fn write_message(mut stream: Stream, body: Vec<u8>) -> io::Result<Stream> {
    frame::write(&mut stream, &body).await?;
    Ok(stream)
}

/// Waits for a message as long as it takes; one that has begun is read by the connection's own liveness.
async fn read_message(mut stream: Stream) -> Heard {
    let Some(body) = frame::read(&mut stream, wire::MAX_MESSAGE_BYTES).await? else {
        return Ok(None);
    };
    let message = Message::decode(&body).map_err(|_| frame::malformed("no message"))?;
    Ok(Some((stream, message)))
}

/// One request, half-closed behind it, and one answer (wire clause 06).
async fn ask(mut stream: Stream, name: Name) -> io::Result<Answer> {
    frame::write(&mut stream, &fetch::encode_request(&name)).await?;
    // Our half of the stream.
    stream.close().await?;
    let body = frame::read(&mut stream, fetch::MAX_BYTES).await?;
    let body = body.unwrap_or_default();
    fetch::decode_answer(&body).map_err(|_| frame::malformed("no answer"))
}

async fn read_question(mut stream: Stream) -> io::Result<Answering> {
    let body = frame::read(&mut stream, fetch::MAX_BYTES).await?;
    match fetch::decode_request(&body.unwrap_or_default()) {
        Ok(name) => Ok(Some((stream, name))),
        // Something else than a name, which nobody here has.
        Err(_) => {
            frame::write(&mut stream, &fetch::encode_answer(&Answer::NotFound)).await?;
            stream.close().await?;
            Ok(None)
        }
    }
}

async fn answer_question(
    mut stream: Stream,
    answer: oneshot::Receiver<Option<Vec<u8>>>,
) -> io::Result<Answering> {
    let answer = match answer.await.unwrap_or_default() {
        Some(record) => Answer::Record(record),
        None => Answer::NotFound,
    };
    frame::write(&mut stream, &fetch::encode_answer(&answer)).await?;
    stream.close().await?;
    Ok(None)
}

fn bounded_answer(
    work: impl Future<Output = io::Result<Answering>> + Send + 'static,
) -> BoxFuture<'static, Answering> {
    let work = within(work);
    async move { work.await.unwrap_or_default() }.boxed()
}

/// The work, or an error when it takes too long.
async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match select(std::pin::pin!(work), Delay::new(TIMEOUT)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        match self {
            Self::Both => vec![Protocol::Push.id(), Protocol::Fetch.id()],
            Self::One(protocol) => vec![protocol.id()],
        }
        .into_iter()
    }
}

impl Protocol {
    fn id(self) -> StreamProtocol {
        StreamProtocol::new(match self {
            Self::Push => wire::PROTOCOL,
            Self::Fetch => fetch::PROTOCOL,
        })
    }

    fn of(id: &StreamProtocol) -> Self {
        if id.as_ref() == wire::PROTOCOL {
            Self::Push
        } else {
            Self::Fetch
        }
    }
}

impl InboundUpgrade<Stream> for Protocols {
    type Output = (Stream, Protocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, id: StreamProtocol) -> Self::Future {
        ready(Ok((stream, Protocol::of(&id))))
    }
}

impl OutboundUpgrade<Stream> for Protocols {
    type Output = (Stream, Protocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, id: StreamProtocol) -> Self::Future {
        ready(Ok((stream, Protocol::of(&id))))
    }
}
