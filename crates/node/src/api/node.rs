//! Routes about the node itself: who, where, how, why, and its pins.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State as Extract;
use axum::response::Response;

use super::State;
use super::answer::{self, Lines, typed};
use super::extract::{Json, Path};
use super::types::{
    ConnectRequest, Connected, Done, EventCounts, Id, LineView, PingRequest, Pong, Status,
    UplinkRequest, Waits,
};
use crate::content::parse_cid;
use crate::daemon::{Call, Command, Wait};
use crate::error::{Code, Fail};

type Node = Extract<Arc<State>>;
type OfCall = Extension<Arc<Call>>;

/// The log tells its figures within this time, or they are left out.
const COUNTING: Duration = Duration::from_secs(1);
/// Between two pings of one request.
const PING_PAUSE: Duration = Duration::from_millis(200);
/// Pings of one request at most.
const PINGS: u32 = 1000;

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: the loop answers.
pub(super) async fn readyz(Extract(state): Node) -> Result<&'static str, Fail> {
    state.handle.ask(Command::Id).await?;
    Ok("ready\n")
}

pub(super) async fn metrics(Extract(state): Node) -> Result<Response, Fail> {
    let mut figures = state.handle.ask(Command::Metrics).await?;
    if let Some(counts) = event_counts(&state).await {
        figures.gauges.extend(counts.gauges());
        figures.counters.extend(counts.counters());
    }
    Ok(typed(
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Body::from(figures.render()),
    ))
}

pub(super) async fn id(Extract(state): Node) -> Result<Json<Id>, Fail> {
    Ok(Json(state.handle.ask(Command::Id).await?))
}

pub(super) async fn peers(Extract(state): Node, Extension(call): OfCall) -> Result<Response, Fail> {
    let peers = state.handle.ask(Command::Peers).await?;
    Ok(answer::lines_async(&call, move |lines| async move {
        for peer in &peers {
            if let Err(fail) = lines.send_async(peer).await {
                return (lines, Err(fail));
            }
        }
        (lines, Ok(()))
    })
    .await)
}

pub(super) async fn status(Extract(state): Node) -> Result<Json<Status>, Fail> {
    let mut status = state.handle.ask(Command::Status).await?;
    if let Some(counts) = event_counts(&state).await {
        status.events = counts;
    }
    // It needs no lock that the disk could hold up.
    let troubles = state.events.troubles(&status.events);
    if !troubles.is_empty() {
        status.health = "degraded".to_owned();
    }
    status.troubles.splice(0..0, troubles);
    Ok(Json(status))
}

/// Figures of the log; none if its disk does not let it tell in time: whoever asks how the node is must not wait for that.
async fn event_counts(state: &State) -> Option<EventCounts> {
    let events = state.events.clone();
    let counting = tokio::task::spawn_blocking(move || events.counts());
    tokio::time::timeout(COUNTING, counting).await.ok()?.ok()
}

/// Until the daemon's next start.
pub(super) async fn uplink(
    Extract(state): Node,
    Json(request): Json<UplinkRequest>,
) -> Result<Json<Vec<LineView>>, Fail> {
    let uplink = request.uplink;
    Ok(Json(
        state
            .handle
            .ask(|reply| Command::Uplink(uplink, reply))
            .await?,
    ))
}

pub(super) async fn connect(
    Extract(state): Node,
    Extension(call): OfCall,
    Json(request): Json<ConnectRequest>,
) -> Result<Json<Connected>, Fail> {
    let address: multiaddr::Multiaddr = request.address.parse().map_err(|e| {
        Fail::new(Code::Usage, format!("`{}` is no multiaddr: {e}", request.address))
            .hint("it looks like /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW…; `gemba id` on the other node prints its own")
    })?;
    let _waiting = call.waits_for(Wait::Dial(address.clone()));
    Ok(Json(
        state
            .handle
            .ask(|reply| Command::Connect(address, reply))
            .await??,
    ))
}

pub(super) async fn ping(
    Extract(state): Node,
    Extension(call): OfCall,
    Json(request): Json<PingRequest>,
) -> Result<Response, Fail> {
    let peer: libp2p_identity::PeerId = request.peer.parse().map_err(|e| {
        Fail::new(
            Code::Usage,
            format!("`{}` is no peer id: {e}", request.peer),
        )
        .hint("`gemba peers` lists the connected ones")
    })?;
    let count = request.count.clamp(1, PINGS);
    Ok(
        answer::lines_async(&Arc::clone(&call), move |lines| async move {
            let waiting = call.waits_for(Wait::Ping(peer));
            let outcome = call.within(pings(&state, peer, count, &lines)).await;
            drop(waiting);
            (lines, outcome)
        })
        .await,
    )
}

async fn pings(
    state: &State,
    peer: libp2p_identity::PeerId,
    count: u32,
    lines: &Lines,
) -> Result<(), Fail> {
    let mut pinger = state
        .handle
        .ask(|reply| Command::Pinger(peer, reply))
        .await??;
    for seq in 1..=count {
        let rtt = pinger.ping().await?;
        lines
            .send_async(&Pong {
                seq,
                rtt_ms: (rtt.as_secs_f64() * 1e6).round() / 1e3,
            })
            .await?;
        if seq < count {
            tokio::time::sleep(PING_PAUSE).await;
        }
    }
    Ok(())
}

pub(super) async fn why(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<serde_json::Value>, Fail> {
    let cid = parse_cid(&cid)?;
    Ok(Json(
        state.handle.ask(|reply| Command::Why(cid, reply)).await?,
    ))
}

pub(super) async fn shutdown(Extract(state): Node) -> Result<Json<Done>, Fail> {
    state.handle.tell(Command::Shutdown).await?;
    Ok(Json(Done { ok: true }))
}

pub(super) async fn failure(
    Extract(state): Node,
    Path(request): Path<String>,
) -> Result<Json<serde_json::Value>, Fail> {
    let fail = state
        .failures
        .of(&request)
        .ok_or_else(|| Fail::new(Code::NotFound, "no answer of that id broke off lately"))?;
    Ok(Json(fail.to_json()))
}

/// What an open request waits for.
pub(super) async fn waiting(
    Extract(state): Node,
    Path(request): Path<String>,
) -> Result<Json<Waits>, Fail> {
    let nothing = || {
        Fail::new(
            Code::NotFound,
            "no open request of that id waits for the network",
        )
    };
    let (wait, since) = state
        .calls
        .of(&request)
        .and_then(|call| call.waiting())
        .ok_or_else(nothing)?;
    let mut waits = state
        .handle
        .ask(|reply| Command::Waits(wait, reply))
        .await?;
    waits.waited_s = since.as_secs_f64();
    Ok(Json(waits))
}
