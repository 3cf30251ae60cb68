//! Routes about the node itself: who, where, how, why, and its pins.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State as Extract};
use axum::response::Response;
use axum::{Extension, Json};
use gemba_pins::Kind;
use tokio::sync::watch;
use tokio::time::Instant;

use super::State;
use super::answer::{self, Lines, typed};
use super::types::{
    ConnectRequest, Connected, Done, Id, PinRequest, PinStatus, PingRequest, Pong, Status, Waits,
};
use crate::content::parse_cid;
use crate::daemon::{Call, Command, PAGE, Wait, ending};
use crate::error::{Code, Fail};

type Node = Extract<Arc<State>>;
type OfCall = Extension<Arc<Call>>;

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
    Ok(Json(state.handle.ask(Command::Status).await?))
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

pub(super) async fn pins(Extract(state): Node, Extension(call): OfCall) -> Response {
    answer::lines_async(&call, move |lines| async move {
        let outcome = list_pins(&state, &lines).await;
        (lines, outcome)
    })
    .await
}

/// Page by page: a million pins are not held in memory for a client that reads slowly.
async fn list_pins(state: &State, lines: &Lines) -> Result<(), Fail> {
    let mut after = None;
    loop {
        let page = state
            .handle
            .ask(|reply| Command::Pins(after, reply))
            .await?;
        for pin in &page {
            lines.send_async(pin).await?;
        }
        match page.last() {
            Some(last) if page.len() >= PAGE => after = Some(parse_cid(&last.cid)?),
            _ => return Ok(()),
        }
    }
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
        count(&state, cid, &mut status).await?;
    }
    Ok(Json(status))
}

/// Counts the blocks of a pin that is said to be whole. If it is not any more, it is fetched again.
async fn count(state: &Arc<State>, cid: cid::Cid, status: &mut PinStatus) -> Result<(), Fail> {
    let kind = if status.kind == Kind::Direct.as_str() {
        Kind::Direct
    } else {
        Kind::Recursive
    };
    let thread = state.thread().await?;
    let counting = Arc::clone(state);
    let counted = tokio::task::spawn_blocking(move || {
        let _thread = thread;
        crate::content::pins::presence(&counting.store, &cid, kind)
    });
    let presence = counted.await.map_err(|e| Fail::new(Code::Failure, e))??;
    status.blocks_done = presence.progress.blocks_done;
    status.bytes_done = presence.progress.bytes_done;
    if !presence.is_whole() {
        state
            .handle
            .ask(|reply| Command::Struck(vec![cid], reply))
            .await?;
        status.status = "pin_queued".to_owned();
        status.blocks_pending = presence.missing.len() as u64;
        status.cause = Some(format!(
            "{} of its blocks are missing or damaged on disk; they are fetched again",
            presence.missing.len()
        ));
    }
    Ok(())
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
    Extension(call): OfCall,
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
    Ok(
        answer::lines_async(&Arc::clone(&call), move |lines| async move {
            let waiting = call.waits_for(Wait::Pin(cid));
            let following = follow(&state, cid, view, patience, &lines);
            let outcome = call.within(following).await;
            drop(waiting);
            (lines, outcome.map_err(goes_on))
        })
        .await,
    )
}

async fn follow(
    state: &State,
    cid: cid::Cid,
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
            Some(at) => match tokio::time::timeout_at(at, changed).await {
                Ok(changed) => changed,
                Err(_) => {
                    let last = view.borrow().clone();
                    return Err(out_of_time(state, cid, &last, patience).await);
                }
            },
            None => changed.await,
        };
        if changed.is_err() {
            // The operation ended and its last word may not have been read yet.
            let last = view.borrow().clone();
            if last.status == "pinned" {
                return lines.send_async(&last).await;
            }
            return Err(ending());
        }
    }
}

/// The end of the daemon is not the end of a pin.
fn goes_on(fail: Fail) -> Fail {
    match fail.code {
        Code::NoDaemon => Fail::new(fail.code, "the daemon is ending; the pin stays wanted")
            .hint("it goes on when the daemon is back: start it again with `gemba daemon`"),
        _ => fail,
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

async fn out_of_time(
    state: &State,
    cid: cid::Cid,
    status: &PinStatus,
    patience: Option<Duration>,
) -> Fail {
    let (code, cause) = match &status.cause {
        Some(cause) => (Code::Timeout, cause.clone()),
        None => {
            let waits = state
                .handle
                .ask(|reply| Command::Waits(Wait::Pin(cid), reply))
                .await;
            match waits {
                Ok(waits) => (waits.code, waits.cause),
                Err(fail) => return fail,
            }
        }
    };
    let waited = patience.unwrap_or_default().as_secs_f64();
    Fail::new(
        code,
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
