//! Routes about the node itself: who, where, how, why, and its pins.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse as _, Response};
use gemba_pins::Kind;
use tokio::sync::watch;
use tokio::time::Instant;

use super::State;
use super::answer::{self, Lines, typed};
use super::types::{
    ConnectRequest, Connected, Done, Id, PinRequest, PinStatus, PingRequest, Pong, Status,
};
use crate::content::parse_cid;
use crate::daemon::Command;
use crate::error::{Code, Fail};

type Node = Extract<Arc<State>>;

/// Progress lines come no faster than this.
const PROGRESS: Duration = Duration::from_millis(100);
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
    let figures = state.handle.ask(Command::Metrics).await?;
    Ok(typed(
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Body::from(figures.render()),
    ))
}

pub(super) async fn id(Extract(state): Node) -> Result<Json<Id>, Fail> {
    Ok(Json(state.handle.ask(Command::Id).await?))
}

pub(super) async fn peers(Extract(state): Node) -> Result<Response, Fail> {
    let peers = state.handle.ask(Command::Peers).await?;
    Ok(
        answer::lines_blocking(move |lines| peers.iter().try_for_each(|peer| lines.send(peer)))
            .await,
    )
}

pub(super) async fn status(Extract(state): Node) -> Result<Json<Status>, Fail> {
    Ok(Json(state.handle.ask(Command::Status).await?))
}

pub(super) async fn connect(
    Extract(state): Node,
    Json(request): Json<ConnectRequest>,
) -> Result<Json<Connected>, Fail> {
    let address = request.address.parse().map_err(|e| {
        Fail::new(Code::Usage, format!("`{}` is no multiaddr: {e}", request.address))
            .hint("it looks like /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW…; `gemba id` on the other node prints its own")
    })?;
    Ok(Json(
        state
            .handle
            .ask(|reply| Command::Connect(address, reply))
            .await??,
    ))
}

pub(super) async fn ping(
    Extract(state): Node,
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
    Ok(answer::lines_async(move |lines| async move {
        let outcome = pings(&state, peer, count, &lines).await;
        (lines, outcome)
    })
    .await)
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

pub(super) async fn pins(Extract(state): Node) -> Result<Response, Fail> {
    let pins = state.handle.ask(Command::Pins).await?;
    Ok(answer::lines_blocking(move |lines| pins.iter().try_for_each(|pin| lines.send(pin))).await)
}

pub(super) async fn pin_status(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<PinStatus>, Fail> {
    let cid = parse_cid(&cid)?;
    let status = state
        .handle
        .ask(|reply| Command::PinStatus(cid, reply))
        .await?;
    let mut status = status.ok_or_else(|| not_pinned(&cid))?;
    if status.status == "pinned" && status.blocks_done == 0 {
        // Made whole by an earlier process: its blocks are counted now.
        let kind = if status.kind == Kind::Direct.as_str() {
            Kind::Direct
        } else {
            Kind::Recursive
        };
        let counted = tokio::task::spawn_blocking(move || {
            crate::content::pins::presence(&state.store, &cid, kind)
        })
        .await;
        let progress = counted.map_err(|e| Fail::new(Code::Failure, e))??.progress;
        status.blocks_done = progress.blocks_done;
        status.bytes_done = progress.bytes_done;
    }
    Ok(Json(status))
}

fn not_pinned(cid: &cid::Cid) -> Fail {
    Fail::new(Code::NotFound, format!("{cid} is not pinned")).hint("`gemba pin ls` lists the pins")
}

pub(super) async fn unpin(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<Done>, Fail> {
    let cid = parse_cid(&cid)?;
    state
        .handle
        .ask(|reply| Command::Unpin(cid, reply))
        .await??;
    Ok(Json(Done { ok: true }))
}

/// Pins, and follows the operation line by line until it is whole, stands still, or time runs out.
pub(super) async fn pin(
    Extract(state): Node,
    Json(request): Json<PinRequest>,
) -> Result<Response, Fail> {
    let cid = parse_cid(&request.cid)?;
    let kind = match request.kind.as_deref() {
        None | Some("recursive") => Kind::Recursive,
        Some("direct") => Kind::Direct,
        Some(other) => {
            return Err(
                Fail::new(Code::Usage, format!("`{other}` is no kind of pin"))
                    .hint("recursive or direct"),
            );
        }
    };
    let patience = request
        .timeout_s
        .map(Duration::try_from_secs_f64)
        .transpose();
    let patience = patience.map_err(|e| Fail::new(Code::Usage, format!("timeout_s: {e}")))?;
    let view = state
        .handle
        .ask(|reply| Command::Pin {
            cid,
            kind,
            name: request.name,
            reply,
        })
        .await??;
    Ok(answer::lines_async(move |lines| async move {
        let outcome = follow(view, patience, &lines).await;
        (lines, outcome)
    })
    .await
    .into_response())
}

async fn follow(
    mut view: watch::Receiver<PinStatus>,
    patience: Option<Duration>,
    lines: &Lines,
) -> Result<(), Fail> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        let status = view.borrow_and_update().clone();
        lines.send_async(&status).await?;
        match status.status.as_str() {
            "pinned" => return Ok(()),
            "unpinned" => {
                return Err(Fail::new(
                    Code::Conflict,
                    format!("{} was unpinned meanwhile", status.cid),
                ));
            }
            // With a deadline of its own the caller waits on: the operation is tried again meanwhile.
            "pin_error" if deadline.is_none() => return Err(stood_still(&status)),
            _ => {}
        }
        let changed = next_line(&mut view);
        let changed = match deadline {
            Some(at) => tokio::time::timeout_at(at, changed)
                .await
                .map_err(|_| out_of_time(&view.borrow(), patience))?,
            None => changed.await,
        };
        if changed.is_err() {
            // The operation ended and its last word may not have been read yet.
            let last = view.borrow().clone();
            if last.status == "pinned" {
                return lines.send_async(&last).await;
            }
            return Err(Fail::new(Code::NoDaemon, "the daemon is ending")
                .hint("the pin stays wanted; it goes on when the daemon is back"));
        }
    }
}

/// Waits for a change; for the end of the operation no longer than it takes, for mere progress at least [`PROGRESS`].
async fn next_line(view: &mut watch::Receiver<PinStatus>) -> Result<(), watch::error::RecvError> {
    let soonest = tokio::time::sleep(PROGRESS);
    tokio::pin!(soonest);
    let mut waited = false;
    let mut progressed = false;
    loop {
        tokio::select! {
            changed = view.changed() => {
                changed?;
                progressed = true;
                let ended = matches!(view.borrow().status.as_str(), "pinned" | "pin_error" | "unpinned");
                if ended || waited {
                    return Ok(());
                }
            }
            () = &mut soonest, if !waited => {
                waited = true;
                if progressed {
                    return Ok(());
                }
            }
        }
    }
}

fn stood_still(status: &PinStatus) -> Fail {
    let cause = status.cause.as_deref().unwrap_or("it does not advance");
    Fail::new(
        Code::Timeout,
        format!("{} is not whole on this device: {cause}", status.cid),
    )
    .hint(stays_wanted(status))
}

fn out_of_time(status: &PinStatus, patience: Option<Duration>) -> Fail {
    let cause = status.cause.clone().unwrap_or_else(|| {
        format!(
            "{} blocks are here, {} known ones are not yet",
            status.blocks_done, status.blocks_pending
        )
    });
    let waited = patience.unwrap_or_default().as_secs_f64();
    Fail::new(
        Code::Timeout,
        format!(
            "{} is not whole on this device after {waited} s: {cause}",
            status.cid
        ),
    )
    .hint(stays_wanted(status))
}

fn stays_wanted(status: &PinStatus) -> String {
    format!(
        "it stays wanted and the daemon tries again; `gemba why {0}` tells who was asked, `gemba pin rm {0}` gives it up",
        status.cid
    )
}
