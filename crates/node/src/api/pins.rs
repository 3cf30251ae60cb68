//! Routes of the pins: what is wanted on this device, what is being done about it, and lists of it.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State as Extract};
use axum::response::Response;
use gemba_pins::{Kind, Operation, Pin, Size, Status};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::State;
use super::answer::{self, Lines};
use super::extract::{Json, Path, Query};
use super::types::{Done, PinOp, PinRequest, PinStatus, PinSync, PinUpdate, Recovered};
use crate::content::pin_sync::{self, Heal};
use crate::content::{self, parse_cid, pin_list};
use crate::daemon::flow::pins::told;
use crate::daemon::{Call, Command, PAGE, Wait, ending};
use crate::error::{Code, Fail};

type Node = Extract<Arc<State>>;
type OfCall = Extension<Arc<Call>>;

/// Whoever waits longer waits for ever; and a time beyond what a clock can show would end the daemon.
const MOST_PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Progress lines come no faster than this.
const PROGRESS: Duration = Duration::from_millis(100);

/// Which pins to list.
#[derive(Deserialize)]
pub(super) struct Listed {
    /// Those of this name.
    name: Option<String>,
}

pub(super) async fn list(
    Extract(state): Node,
    Extension(call): OfCall,
    Query(of): Query<Listed>,
) -> Response {
    answer::lines_blocking(&Arc::clone(&state), &call, move |lines| {
        list_pins(&state, &of, lines)
    })
    .await
}

/// How pins are: page by page, for a million of them are not held in memory for a client that reads slowly.
fn list_pins(state: &State, of: &Listed, lines: &Lines) -> Result<(), Fail> {
    let rows = state.handle.ask_blocking(Command::DesiredSet)??;
    if let Some(name) = &of.name {
        let roots = rows.named(name)?;
        for roots in roots.chunks(PAGE) {
            let pins = roots.iter().filter_map(|root| rows.get(root).transpose());
            tell_page(state, &pins.collect::<Result<Vec<_>, _>>()?, lines)?;
        }
        return Ok(());
    }
    let mut after = None;
    loop {
        let page = rows.page(after.as_ref(), PAGE)?;
        tell_page(state, &page, lines)?;
        match page.last() {
            Some(last) if page.len() >= PAGE => after = Some(last.cid),
            _ => return Ok(()),
        }
    }
}

fn tell_page(state: &State, page: &[Pin], lines: &Lines) -> Result<(), Fail> {
    let roots: Vec<cid::Cid> = page.iter().map(|pin| pin.cid).collect();
    let ops = state
        .handle
        .ask_blocking(|reply| Command::OpsOf(roots, reply))?;
    let now = state.handle.ask_blocking(Command::DesiredSet)??;
    for (pin, op) in page.iter().zip(&ops) {
        // What was not whole and has no operation may have become whole, or may have been released, since the page was read.
        let newer = match op {
            None if !pin.complete => now.get(&pin.cid)?,
            _ => Some(pin.clone()),
        };
        if let Some(pin) = newer {
            lines.send(&told(&pin, op.as_ref()))?;
        }
    }
    Ok(())
}

pub(super) async fn status(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<PinStatus>, Fail> {
    let cid = parse_cid(&cid)?;
    // What is being done first: what ends after that is whole, or not there, in the record that is read then.
    let ops = state
        .handle
        .ask(|reply| Command::OpsOf(vec![cid], reply))
        .await?;
    let op = ops.into_iter().next().flatten();
    let rows = state.handle.ask(Command::DesiredSet).await??;
    let read = tokio::task::spawn_blocking(move || rows.get(&cid)).await;
    let pin = read.map_err(|e| Fail::new(Code::Failure, e))??;
    let pin = pin.ok_or_else(|| not_pinned(&cid))?;
    let mut status = told(&pin, op.as_ref());
    if status.status == "pinned" && pin.size.is_none() {
        // Nobody has counted it yet: what is added is whole from the first moment, and older programs wrote no size.
        count(&state, &pin, &mut status).await?;
    }
    Ok(Json(status))
}

/// Counts the blocks of a pin that is said to be whole. If it is not any more, it is fetched again.
async fn count(state: &Arc<State>, pin: &Pin, status: &mut PinStatus) -> Result<(), Fail> {
    let (cid, kind) = (pin.cid, pin.kind);
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
        return Ok(());
    }
    let size = Size {
        blocks: presence.progress.blocks_done,
        bytes: presence.progress.bytes_done,
    };
    state
        .handle
        .ask(|reply| Command::Measured(cid, pin.id, size, reply))
        .await?
        // Unpinned meanwhile, or not written: it is counted again when somebody asks.
        .unwrap_or_else(|fail| tracing::debug!(%cid, error = %fail, "a size was not recorded"));
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
    let patience = seconds(request.timeout_s)?;
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
            let following = follow(&state, cid, view, Patience::of(patience), &lines);
            let outcome = call.within(following).await;
            drop(waiting);
            (lines, outcome.map_err(goes_on))
        })
        .await,
    )
}

fn seconds(timeout_s: Option<f64>) -> Result<Option<Duration>, Fail> {
    let patience = timeout_s.map(Duration::try_from_secs_f64).transpose();
    let patience = patience.map_err(|e| Fail::new(Code::Usage, format!("timeout_s: {e}")))?;
    Ok(patience.map(|patience| patience.min(MOST_PATIENCE)))
}

/// How long a caller follows a pin.
#[derive(Clone, Copy)]
struct Patience {
    time: Option<Duration>,
    /// Also past a try that failed.
    waits_on: bool,
}

impl Patience {
    fn of(time: Option<Duration>) -> Self {
        Self {
            time,
            waits_on: false,
        }
    }
}

async fn follow(
    state: &State,
    cid: cid::Cid,
    mut view: watch::Receiver<PinStatus>,
    patience: Patience,
    lines: &Lines,
) -> Result<(), Fail> {
    let deadline = patience.time.map(|patience| Instant::now() + patience);
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
            "pin_error" if deadline.is_none() && !patience.waits_on => {
                return Err(stood_still(&status));
            }
            _ => {}
        }
        let changed = next_line(&mut view);
        let changed = match deadline {
            Some(at) => match tokio::time::timeout_at(at, changed).await {
                Ok(changed) => changed,
                Err(_) => {
                    let last = view.borrow().clone();
                    return Err(out_of_time(state, cid, &last, patience.time).await);
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

// What is being done.

/// Which pin to follow, and for how long.
#[derive(Deserialize)]
pub(super) struct WaitFor {
    timeout_s: Option<f64>,
}

/// Follows a pin until it is whole, past tries that fail.
pub(super) async fn wait(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(cid): Path<String>,
    Query(wait): Query<WaitFor>,
) -> Result<Response, Fail> {
    let cid = parse_cid(&cid)?;
    let patience = Patience {
        time: seconds(wait.timeout_s)?,
        waits_on: true,
    };
    let view = state
        .handle
        .ask(|reply| Command::WatchPin(cid, reply))
        .await??;
    Ok(
        answer::lines_async(&Arc::clone(&call), move |lines| async move {
            let waiting = call.waits_for(Wait::Pin(cid));
            let outcome = call
                .within(follow(&state, cid, view, patience, &lines))
                .await;
            drop(waiting);
            (lines, outcome.map_err(goes_on))
        })
        .await,
    )
}

/// Operations, page by page.
pub(super) async fn ops(Extract(state): Node, Extension(call): OfCall) -> Response {
    answer::lines_blocking(&Arc::clone(&state), &call, move |lines| {
        let mut after = None;
        loop {
            let (page, now) = state
                .handle
                .ask_blocking(|reply| Command::Ops(after, reply))?;
            for op in &page {
                lines.send(&PinOp::of(op, now))?;
            }
            match page.last() {
                Some(last) if page.len() >= PAGE => after = Some(last.ticket.cid),
                _ => return Ok(()),
            }
        }
    })
    .await
}

pub(super) async fn cancel(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<Done>, Fail> {
    let cid = parse_cid(&cid)?;
    state
        .handle
        .ask(|reply| Command::Cancel(cid, reply))
        .await??;
    Ok(Json(Done { ok: true }))
}

/// Tries one again, or all that failed; the answer does not wait for what comes of it.
async fn recover(state: &State, one: Option<cid::Cid>) -> Result<Json<Recovered>, Fail> {
    let recovered = state
        .handle
        .ask(|reply| Command::Recover(one, reply))
        .await??;
    Ok(Json(Recovered { recovered }))
}

pub(super) async fn recover_one(
    Extract(state): Node,
    Path(cid): Path<String>,
) -> Result<Json<Recovered>, Fail> {
    recover(&state, Some(parse_cid(&cid)?)).await
}

pub(super) async fn recover_all(Extract(state): Node) -> Result<Json<Recovered>, Fail> {
    recover(&state, None).await
}

/// Looks at one pin against the store now, reads every block of it, tells what it found, and begins to heal what is not so. It does not wait for what
/// comes of it.
pub(super) async fn sync(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(cid): Path<String>,
) -> Result<Json<PinSync>, Fail> {
    let cid = parse_cid(&cid)?;
    let Some(pin) = record_of(&state, cid).await? else {
        return end_unwanted(&state, cid).await;
    };
    let thread = state.thread().await?;
    let (looking, kind) = (Arc::clone(&state), pin.kind);
    let here = tokio::task::spawn_blocking(move || {
        let _thread = thread;
        // A large pin takes minutes, which nobody is to spend for a client that is gone or while the daemon ends.
        content::pins::inspect(&looking.store, &cid, kind, || call.check())
    });
    let here = here.await.map_err(|e| Fail::new(Code::Failure, e))??;
    let is_same = |now: &Pin| now.id == pin.id && now.complete == pin.complete;
    if !record_of(&state, cid).await?.as_ref().is_some_and(is_same) {
        return Err(pin_sync::changed(&cid));
    }
    match pin_sync::heal(&pin, &here) {
        Heal::Nothing => {}
        Heal::StrikeOut => {
            let struck = |reply| Command::Struck(vec![cid], reply);
            state.handle.ask(struck).await?;
        }
        // The walk of the pin finds that everything is here, and records it.
        Heal::Record | Heal::TryAgain => {
            let again = |reply| Command::Recover(Some(cid), reply);
            let _tried: u64 = state.handle.ask(again).await??;
        }
    }
    let op = operation_of(&state, cid).await?;
    let after = record_of(&state, cid).await?;
    let status = Status::of(after.as_ref(), op.as_ref());
    Ok(Json(pin_sync::told(&pin, &here, status.as_str())))
}

async fn record_of(state: &Arc<State>, cid: cid::Cid) -> Result<Option<Pin>, Fail> {
    let rows = state.handle.ask(Command::DesiredSet).await??;
    let read = tokio::task::spawn_blocking(move || rows.get(&cid)).await;
    read.map_err(|e| Fail::new(Code::Failure, e))?
}

async fn operation_of(state: &State, cid: cid::Cid) -> Result<Option<Operation>, Fail> {
    let ask = |reply| Command::OpsOf(vec![cid], reply);
    Ok(state.handle.ask(ask).await?.into_iter().next().flatten())
}

/// Nobody wants it. If it is being worked for all the same, that ends.
async fn end_unwanted(state: &State, cid: cid::Cid) -> Result<Json<PinSync>, Fail> {
    let ended = state
        .handle
        .ask(|reply| Command::EndUnwanted(cid, reply))
        .await??;
    if !ended {
        return Err(not_pinned(&cid));
    }
    Ok(Json(PinSync {
        cid: cid.to_string(),
        found: "it was worked for, and nobody wants it".to_owned(),
        done: "ended".to_owned(),
        status: Status::Unpinned.as_str().to_owned(),
        blocks_here: 0,
        bytes_here: 0,
        missing: 0,
    }))
}

/// Pins the newer of two versions, follows that until it is whole, and then releases the older one. Whoever goes away in between leaves both pinned.
pub(super) async fn update(
    Extract(state): Node,
    Extension(call): OfCall,
    Path(old): Path<String>,
    Json(request): Json<PinUpdate>,
) -> Result<Response, Fail> {
    let (old, new) = (parse_cid(&old)?, parse_cid(&request.to)?);
    let patience = Patience::of(seconds(request.timeout_s)?);
    let rows = state.handle.ask(Command::DesiredSet).await??;
    let read = tokio::task::spawn_blocking(move || rows.get(&old)).await;
    let older = read.map_err(|e| Fail::new(Code::Failure, e))??;
    let older = older.ok_or_else(|| not_pinned(&old))?;
    let (kind, name) = content::pins::updated(&older, request.name)?;
    let view = state
        .handle
        .ask(|reply| Command::Pin {
            cid: new,
            kind,
            name,
            reply,
        })
        .await??;
    Ok(
        answer::lines_async(&Arc::clone(&call), move |lines| async move {
            let waiting = call.waits_for(Wait::Pin(new));
            let updating = async {
                follow(&state, new, view, patience, &lines).await?;
                if old == new || request.keep {
                    return Ok(());
                }
                let replace = |reply| Command::Replace(old, new, reply);
                state.handle.ask(replace).await?
            };
            let outcome = call.within(updating).await;
            drop(waiting);
            (lines, outcome.map_err(goes_on))
        })
        .await,
    )
}

// Lists.

pub(super) async fn export(
    Extract(state): Node,
    Extension(call): OfCall,
) -> Result<Response, Fail> {
    let rows = state.handle.ask(Command::DesiredSet).await??;
    Ok(answer::bytes_blocking(
        "application/x-ndjson",
        "pin export",
        &call,
        Arc::clone(&state),
        move |out| pin_list::export(&rows, out).map(drop),
    )
    .await)
}

pub(super) async fn import(
    Extract(state): Node,
    Extension(call): OfCall,
    request: Request,
) -> Response {
    let body = super::content::body_reader(request.into_body(), Arc::clone(&call));
    let of = Arc::clone(&state);
    answer::lines_of_upload(&of, &call, answer::status_of_upload, move |lines| {
        let mut take = |adds| {
            state
                .handle
                .ask_blocking(|reply| Command::Import(adds, reply))
        };
        let report = pin_list::import(&mut std::io::BufReader::new(body), &mut take)?;
        lines.send(&report)
    })
    .await
}
