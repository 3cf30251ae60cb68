//! Routes about messages by topic.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State as Extract;
use axum::response::Response;
use data_encoding::BASE64;
use futures::StreamExt as _;
use gemba_gossip::{Delivery, Message};
use serde::Deserialize;

use super::State;
use super::answer::{self, line, typed};
use super::extract::{Json, Query};
use super::types::{PubsubHealth, PubsubLine, PubsubMessage, PubsubSent, PubsubWhy};
use crate::daemon::flow::pubsub::{publish_fail, too_large, topic};
use crate::daemon::{Call, Command};
use crate::error::{Code, Fail};

type Node = Extract<Arc<State>>;
type OfCall = Extension<Arc<Call>>;

/// How long a message waits for somebody who takes it, if its sender does not say.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest that it waits.
const MOST_PATIENCE: Duration = Duration::from_secs(3600);
/// What is read of a message before it is refused. How much may be sent depends on the topic's name, so gossip has the last word.
const MOST_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
pub(super) struct TopicQuery {
    topic: String,
}

#[derive(Deserialize)]
pub(super) struct PeersQuery {
    topic: Option<String>,
}

/// The messages of a topic from now on, a line each. The answer begins when the topic is subscribed to, not with the first message.
pub(super) async fn subscribe(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<TopicQuery>,
) -> Result<Response, Fail> {
    let topic = topic(&query.topic)?;
    if state.subscriptions.available_permits() == 0 {
        return Err(too_many());
    }
    let subscription = state
        .handle
        .ask(|reply| Command::Subscribe(topic, reply))
        .await??;
    let permit = Arc::clone(&state.subscriptions)
        .try_acquire_owned()
        .map_err(|_| too_many())?;
    let over = call.token();
    let lines = subscription
        .take_until(over.cancelled_owned())
        .map(|delivery| line(&told(delivery)).map_err(std::io::Error::other));
    let end = futures::stream::once(async move {
        let _permit = permit;
        let ending = crate::daemon::ending();
        line(&ending.to_json()).map_err(std::io::Error::other)
    });
    Ok(typed(
        "application/x-ndjson",
        Body::from_stream(lines.chain(end)),
    ))
}

fn too_many() -> Fail {
    Fail::new(
        Code::Conflict,
        format!("{} subscriptions are open already", super::SUBSCRIPTIONS),
    )
    .hint("end some of them; programs on one device can share one")
}

fn told(delivery: Delivery) -> PubsubLine {
    match delivery {
        Delivery::Message(message) => PubsubLine::Message(message_line(&message)),
        Delivery::Lagged(lagged) => PubsubLine::Lagged { lagged },
    }
}

fn message_line(message: &Message) -> PubsubMessage {
    PubsubMessage {
        from: message.source.map(|peer| peer.to_string()),
        seqno: message.seqno.map(|seqno| seqno.to_string()),
        topic: message.topic.to_string(),
        data: BASE64.encode(&message.data),
    }
}

/// Sends the body as one message, and answers when neighbours took it.
pub(super) async fn publish(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<TopicQuery>,
    body: Body,
) -> Result<Json<PubsubSent>, Fail> {
    let topic = topic(&query.topic)?;
    let data = axum::body::to_bytes(body, MOST_BYTES)
        .await
        .map_err(|_| too_large(&format!("more than {MOST_BYTES}"), MOST_BYTES))?;
    let patience = call.patience.unwrap_or(PATIENCE).min(MOST_PATIENCE);
    let sent = async {
        let publishing = state
            .handle
            .ask(|reply| Command::Publish {
                topic: topic.clone(),
                data,
                patience,
                reply,
            })
            .await??;
        publishing
            .await
            .map_err(|e| publish_fail(&topic, patience, &e))
    };
    let receipt = call.within(sent).await?;
    Ok(Json(PubsubSent {
        topic: topic.to_string(),
        id: receipt.id.to_string(),
        seqno: receipt.seqno.map(|seqno| seqno.to_string()),
        peers: receipt.queued_to as u64,
        refused: receipt.refused_by as u64,
    }))
}

/// The topics that are read on this device.
pub(super) async fn topics(
    Extract(state): Node,
    Extension(call): OfCall,
) -> Result<Response, Fail> {
    let health = state.handle.ask(Command::PubsubHealth).await??;
    Ok(all(&call, health.topics).await)
}

/// Who subscribes to a topic; without one, everybody who speaks pubsub.
pub(super) async fn peers(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(query): Query<PeersQuery>,
) -> Result<Response, Fail> {
    let topic = query.topic.as_deref().map(topic).transpose()?;
    let peers = state
        .handle
        .ask(|reply| Command::PubsubPeers(topic, reply))
        .await??;
    Ok(all(&call, peers).await)
}

async fn all<T: serde::Serialize + Send + Sync + 'static>(
    call: &Arc<Call>,
    entries: Vec<T>,
) -> Response {
    answer::lines_async(call, move |lines| async move {
        for entry in &entries {
            if let Err(fail) = lines.send_async(entry).await {
                return (lines, Err(fail));
            }
        }
        (lines, Ok(()))
    })
    .await
}

/// What becomes of a topic here, and through whom.
pub(super) async fn why(
    Extract(state): Node,
    Query(query): Query<TopicQuery>,
) -> Result<Json<PubsubWhy>, Fail> {
    let topic = topic(&query.topic)?;
    let why = state.handle.ask(|reply| Command::PubsubWhy(topic, reply));
    Ok(Json(why.await??))
}

/// How pubsub fares.
pub(super) async fn health(Extract(state): Node) -> Result<Json<PubsubHealth>, Fail> {
    let mut health = state.handle.ask(Command::PubsubHealth).await??;
    let free = state.subscriptions.available_permits();
    health.readers = super::SUBSCRIPTIONS.saturating_sub(free) as u64;
    Ok(Json(health))
}
