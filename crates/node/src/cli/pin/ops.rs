//! `gemba pin ops`, `wait`, `cancel`, `recover`, `sync`, `update`: what is being done about pins. A daemon does it, so these need one, but for what is
//! whole already.

use cid::Cid;
use futures::StreamExt as _;
use gemba_pins::Name;
use hyper::Method;
use serde_json::json;

use super::{follow, state, status_of};
use crate::api::types::{Done, PinOp, PinStatus, PinSync, PinUpdate, Recovered};
use crate::cli::Context;
use crate::cli::session::{self, Daemon};
use crate::content::{pin_sync, pins};
use crate::error::{Code, Fail};
use crate::meta::{PinEdit, PinState as _};
use crate::names::follows;
use crate::repo::Access;
use crate::text;

/// Lists the operations of the daemon; without one there are none.
pub(super) fn list(context: &Context) -> Result<(), Fail> {
    let Some(daemon) = context.daemon()? else {
        return Ok(());
    };
    context.talk(daemon, async |client| {
        let mut lines = client
            .lines::<(), PinOp>(Method::GET, "/v1/pins/ops", None)
            .await?;
        while let Some(line) = lines.next().await {
            context.out.entry(&line?, op_text)?;
        }
        Ok(())
    })
}

fn op_text(op: &PinOp) -> String {
    let mut line = format!(
        "{} {} {}: {}, {}, {}, for {} s",
        op.cid,
        op.kind,
        op.phase,
        text::count(u64::from(op.attempts), "attempt", "attempts"),
        text::blocks(op.blocks_done),
        text::bytes(op.bytes_done),
        op.age_s,
    );
    if let Some(cause) = &op.cause {
        line.push_str(&format!("\n  {cause}"));
    }
    if let Some(seconds) = op.retry_in_s {
        line.push_str(&format!("\n  tried again in {seconds} s"));
    }
    line
}

/// Waits until each is whole.
pub(super) fn wait(context: &Context, cids: &[Cid]) -> Result<(), Fail> {
    for cid in cids {
        let status = match context.daemon()? {
            Some(daemon) => wait_through(context, daemon, cid)?,
            None => whole_here(context, cid)?,
        };
        context.out.entry(&status, |status: &PinStatus| {
            format!("{} {}", status.cid, state(&status.status))
        })?;
    }
    Ok(())
}

fn wait_through(context: &Context, daemon: Daemon, cid: &Cid) -> Result<PinStatus, Fail> {
    let seconds = context.timeout.map(|limit| limit.as_secs_f64().to_string());
    let query: Vec<(&str, &str)> = seconds
        .iter()
        .map(|seconds| ("timeout_s", seconds.as_str()))
        .collect();
    let path = session::url(&format!("/v1/pins/{cid}/wait"), &query);
    follow::<()>(context, daemon, "waiting", (Method::GET, &path), None)
}

/// Without a daemon nothing changes, so there is nothing to wait for.
fn whole_here(context: &Context, cid: &Cid) -> Result<PinStatus, Fail> {
    let status = super::offline_status(&context.repo(Access::Read)?, cid)?;
    if status.status == "pinned" {
        return Ok(status);
    }
    let cause = status.cause.unwrap_or_default();
    Err(
        Fail::new(Code::NoDaemon, format!("{cid} is not whole: {cause}"))
            .hint("start one with `gemba daemon`, then wait"),
    )
}

/// Ends what is being done about each.
pub(super) fn cancel(context: &Context, cids: &[Cid]) -> Result<(), Fail> {
    let daemon = required(context)?;
    context.talk(daemon, async |client| {
        for cid in cids {
            let path = format!("/v1/pins/{cid}/cancel");
            let _done: Done = client.post_json(&path, &json!({})).await?;
            let told = json!({ "cid": cid.to_string(), "status": "cancelled" });
            context.out.entry(&told, |_| format!("cancelled {cid}"))?;
        }
        Ok(())
    })
}

/// Tries again what failed.
pub(super) fn recover(context: &Context, cids: &[Cid]) -> Result<(), Fail> {
    let daemon = required(context)?;
    let recovered = context.talk(daemon, async |client| {
        let mut recovered = 0;
        let one = |cid: &Cid| format!("/v1/pins/{cid}/recover");
        let paths: Vec<String> = match cids {
            [] => vec!["/v1/pins/recover".to_owned()],
            _ => cids.iter().map(one).collect(),
        };
        for path in paths {
            let answer: Recovered = client.post_json(&path, &json!({})).await?;
            recovered += answer.recovered;
        }
        Ok(recovered)
    })?;
    context.out.result(&Recovered { recovered }, |answer| {
        let count = text::count(answer.recovered, "operation is", "operations are");
        format!("{count} tried again")
    })
}

/// Compares each with the store.
pub(super) fn sync(context: &Context, cids: &[Cid]) -> Result<(), Fail> {
    for cid in cids {
        let told: PinSync = match context.daemon()? {
            Some(daemon) => context.talk(daemon, async |client| {
                let path = format!("/v1/pins/{cid}/sync");
                client.post_json(&path, &json!({})).await
            })?,
            None => {
                let repo = context.repo(Access::Write)?;
                pin_sync::without_daemon(&repo.store()?, &repo.meta()?, cid)?
            }
        };
        context.out.entry(&told, sync_text)?;
    }
    Ok(())
}

fn sync_text(told: &PinSync) -> String {
    let done = match told.done.as_str() {
        "struck_out" => ": it is fetched again",
        "recorded" => ": it is recorded now",
        "tried_again" => ": it is tried now",
        "ended" => ": that ended",
        _ => "",
    };
    format!(
        "{} {}: {}{done} ({}, {} here)",
        told.cid,
        state(&told.status),
        told.found,
        text::blocks(told.blocks_here),
        text::bytes(told.bytes_here)
    )
}

fn required(context: &Context) -> Result<Daemon, Fail> {
    context.daemon()?.ok_or_else(|| {
        Fail::new(
            Code::NoDaemon,
            "no daemon runs, so nothing is being done about pins",
        )
        .hint("start one with `gemba daemon`; `gemba pin rm` gives a pin up without one")
    })
}

/// Replaces a pin by a newer one.
pub(super) fn update(
    context: &Context,
    old: Cid,
    new: Cid,
    (name, keep): (Option<String>, bool),
) -> Result<(), Fail> {
    let done = match context.daemon()? {
        Some(daemon) => {
            let request = PinUpdate {
                to: new.to_string(),
                name,
                keep,
                timeout_s: context.timeout.map(|limit| limit.as_secs_f64()),
            };
            let path = format!("/v1/pins/{old}/update");
            follow(
                context,
                daemon,
                "updating",
                (Method::POST, &path),
                Some(&request),
            )?
        }
        None => update_here(context, old, new, (name, keep))?,
    };
    let released = (old != new && !keep).then(|| old.to_string());
    let told = json!({
        "cid": done.cid, "status": done.status, "name": done.name, "released": released,
        "blocks_done": done.blocks_done, "bytes_done": done.bytes_done,
        "blocks_fetched": done.blocks_fetched, "bytes_fetched": done.bytes_fetched,
    });
    context.out.result(&told, |_| {
        let end = released.map_or(String::new(), |old| format!(", {old} released"));
        format!(
            "pinned {} ({}, {} fetched){end}",
            done.cid,
            text::blocks(done.blocks_done),
            text::bytes(done.bytes_fetched)
        )
    })
}

/// Where the newer one is whole already.
fn update_here(
    context: &Context,
    old: Cid,
    new: Cid,
    (name, keep): (Option<String>, bool),
) -> Result<PinStatus, Fail> {
    let repo = context.repo(Access::Write)?;
    let (store, meta) = (repo.store()?, repo.meta()?);
    let older = meta.pins()?.get(&old)?;
    let older = older.ok_or_else(|| crate::meta::pin_fail(gemba_pins::PinError::NotPinned(old)))?;
    let (kind, name) = pins::updated(&older, name)?;
    let name = name.map(Name::new).transpose();
    let name = name.map_err(|e| Fail::new(Code::Usage, e))?;
    let (pin, progress) = pins::add(&store, &meta, new, kind, name)?;
    if old != new && !keep {
        let holder = follows::holder(&meta, &old)?;
        meta.edit_one(PinEdit::Replace(old, new, holder))?;
    }
    Ok(status_of(&pin, "pinned", progress, None))
}
