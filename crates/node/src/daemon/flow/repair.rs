//! Blocks that were found damaged on disk, by whoever read them: they are fetched again from the swarm and stored anew.
//!
//! The store counts a damaged block as absent, so that storing it again repairs it. Nothing is awaited: the reader that came upon it
//! helps itself, and what nobody has at the moment stays wanted until somebody does, or until a scrub takes over.

use std::collections::BTreeMap;
use std::time::Duration;

use cid::Cid;
use gemba_exchange::{SessionId, SessionOptions};

use super::Ctx;
use crate::api::types::Trouble;
use crate::text;

/// Damaged blocks that are wanted at a time. The victim is the newest: it is counted, and comes back when it is read again.
const WANTED: usize = 1024;

/// What is being repaired.
#[derive(Default)]
pub struct Repair {
    session: Option<SessionId>,
    wanted: BTreeMap<Cid, Found>,
    /// Blocks repaired since the daemon started.
    pub repaired: u64,
    /// Damaged blocks that found the list full.
    pub overflows: u64,
}

struct Found {
    cause: String,
    at: Duration,
}

impl Repair {
    /// Somebody read a block and it was damaged.
    pub fn on_damaged(&mut self, cid: Cid, cause: String, ctx: &mut Ctx<'_>) {
        // Repaired in the meantime, or on its way.
        if ctx.store.has(&cid) || self.wanted.contains_key(&cid) {
            return;
        }
        if self.wanted.len() >= WANTED {
            self.overflows += 1;
            return;
        }
        tracing::error!(%cid, %cause, "a block is damaged on disk; it is fetched again from the swarm");
        self.wanted.insert(cid, Found { cause, at: ctx.now });
        self.want(ctx);
    }

    /// Blocks are durable, whoever brought them.
    pub fn on_stored<'c>(&mut self, cids: impl Iterator<Item = &'c Cid>, ctx: &mut Ctx<'_>) {
        if self.wanted.is_empty() {
            return;
        }
        for cid in cids {
            if self.wanted.remove(cid).is_some() {
                self.repaired += 1;
                tracing::info!(%cid, "a damaged block was repaired");
            }
        }
        self.end_if_done(ctx);
    }

    /// A scrub went over everything: what pins need of it they fetch themselves, and the rest is gone.
    pub fn on_scrubbed(&mut self, ctx: &mut Ctx<'_>) {
        self.wanted.clear();
        self.end_if_done(ctx);
    }

    /// Asks again for what arrived and could not be stored. Called on the loop's tick.
    pub fn expire(&mut self, ctx: &mut Ctx<'_>) {
        if !self.wanted.is_empty() && ctx.disk.refuses().is_none() {
            self.want(ctx);
        }
    }

    fn want(&mut self, ctx: &mut Ctx<'_>) {
        let session = match self.session {
            Some(session) => session,
            // Refused only while readers hold all sessions; tried again on the next tick.
            None => match ctx.exchange.open_session(SessionOptions::default()) {
                Ok(session) => *self.session.insert(session),
                Err(_) => return,
            },
        };
        let open: Vec<Cid> = self
            .wanted
            .keys()
            .filter(|cid| ctx.arriving.get(cid).is_none())
            .copied()
            .collect();
        // Every one of them was stored once, so none is refused for its kind; wanting twice is wanting once.
        if let Err(error) = ctx.exchange.want(session, open) {
            tracing::warn!(%error, "damaged blocks cannot be asked for");
        }
    }

    fn end_if_done(&mut self, ctx: &mut Ctx<'_>) {
        if self.wanted.is_empty()
            && let Some(session) = self.session.take()
        {
            ctx.exchange.close_session(session);
        }
    }

    /// What is wrong with a block on disk, as long as nobody has brought it.
    pub fn damage(&self, cid: &Cid) -> Option<&str> {
        self.wanted.get(cid).map(|found| found.cause.as_str())
    }

    /// Damaged blocks that nobody has brought yet.
    pub fn open(&self) -> usize {
        self.wanted.len()
    }

    /// For `status`.
    pub fn trouble(&self, now: Duration) -> Option<Trouble> {
        let (cid, found) = self.wanted.iter().max_by_key(|(_, found)| found.at)?;
        let count = self.wanted.len() as u64;
        Some(Trouble {
            address: cid.to_string(),
            peer: None,
            direction: "local".to_owned(),
            kind: "damaged_block".to_owned(),
            cause: format!(
                "{} damaged on disk and wanted from the swarm; the last one that was found: {}. Run `gemba repo verify` and look at the disk",
                text::count(count, "block is", "blocks are"),
                found.cause
            ),
            age_s: now.saturating_sub(found.at).as_secs(),
            count,
            retry_in_s: None,
        })
    }
}
