//! The answer to "why is this block not here": from a daemon, with the age of everything that happened, and from a store alone.

use std::time::Duration;

use cid::Cid;
use gemba_exchange::Why;
use gemba_store::Store;
use serde_json::{Value, json};

use crate::api::types::PinStatus;
use crate::text;

/// What the exchange knows of a want. Its times count from the start of the daemon, which tells nobody anything: each has its age beside it.
#[must_use]
pub fn with_ages(why: &Why, now: Duration) -> Value {
    let age = |at: Duration| milliseconds(now.saturating_sub(at));
    let mut told = json!(why);
    told["age_ms"] = age(why.since).into();
    told["retry_in_ms"] = why
        .retry_at
        .map(|at| milliseconds(at.saturating_sub(now)))
        .into();
    for (index, asked) in why.asked.iter().enumerate() {
        told["asked"][index]["age_ms"] = age(asked.at).into();
        told["asked"][index]["answer_age_ms"] = asked.answered_at.map(age).into();
    }
    told
}

/// The answer for a block that is in the store of a node that does not run; `None` if it is not there.
#[must_use]
pub fn offline(store: &Store, cid: &Cid, pin: Option<&PinStatus>) -> Option<Value> {
    let size = store.size(cid)?;
    Some(json!({
        "cid": cid.to_string(),
        "here": true,
        "bytes": size,
        "summary": format!("the block is on this device ({})", text::bytes(size)),
        "wanted": false,
        "why": null,
        "pin": pin,
        "peers": 0,
        "troubles": [],
    }))
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
