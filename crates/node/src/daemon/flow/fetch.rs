//! Flow 1: a DAG becomes whole on this device. `pins::Walk` names what is needed; what is here is looked up, what is not is
//! wanted from the swarm; what arrives goes to the writers and comes back durable, with its links.

use std::time::Duration;

use cid::Cid;
use gemba_block::{Block, MhCode, links};
use gemba_exchange::{SessionId, WantError};
use gemba_pins::{Kind, MissingCause, State, Walk, WalkConfig};

use super::{Ctx, why};
use crate::daemon::work::{LinkTrouble, Read, StoredBlock, is_leaf};

/// Blocks asked for at once: what Bitswap allows towards one peer. What they weigh is bounded by the exchange, in bytes.
pub const WINDOW: usize = 1024;
/// Steps of a walk over blocks that are here, before the loop looks after others.
const STEPS: usize = 2048;

/// Names a running fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FetchId(pub u64);

/// Where a fetch stands after a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// Waiting for blocks.
    Waiting,
    /// More can be done at once.
    Busy,
    /// Every block is durable.
    Whole,
    /// It can never become whole: a limit, or a block that cannot be read.
    Refused(String),
}

/// One walk and the exchange session that feeds it.
pub struct Fetch {
    /// Names it in answers of the loaders.
    pub id: FetchId,
    /// Names it in events of the exchange.
    pub session: SessionId,
    walk: Walk,
    /// When the last block became durable.
    pub advanced: Duration,
    /// What the exchange last said of a block that nobody seems to have: the block, and how many were asked.
    pub unavailable: Option<(Cid, usize)>,
}

impl Fetch {
    /// Starts a walk below `root`.
    pub fn start(
        id: FetchId,
        root: Cid,
        kind: Kind,
        session: SessionId,
        visited_key: [u8; 16],
        window: usize,
        now: Duration,
    ) -> Self {
        let walk = Walk::of_kind(
            root,
            kind,
            WalkConfig::default()
                .window(window)
                .visited_key(visited_key),
        );
        Self {
            id,
            session,
            walk,
            advanced: now,
            unavailable: None,
        }
    }

    /// It was a trial, and the disk took its blocks: it goes on as the others do.
    pub fn open_window(&mut self) {
        self.walk.set_window(WINDOW);
    }

    /// Asks for what the walk's window allows.
    pub fn pump(&mut self, ctx: &mut Ctx<'_>) -> Standing {
        let mut wanted = Vec::new();
        let mut steps = 0;
        while steps < STEPS {
            let Some(cid) = self.walk.next_need() else {
                break;
            };
            steps += 1;
            if let Some(want) = self.look_up(cid, ctx) {
                wanted.push(want);
            }
        }
        self.want(wanted, ctx);
        match self.walk.state() {
            State::Whole => Standing::Whole,
            State::Refused(cause) => Standing::Refused(cause.to_string()),
            _ if steps == STEPS => Standing::Busy,
            _ => Standing::Waiting,
        }
    }

    fn want(&mut self, cids: Vec<Cid>, ctx: &mut Ctx<'_>) {
        let mut rest = cids.as_slice();
        while !rest.is_empty() {
            match ctx.exchange.want(self.session, rest.iter().copied()) {
                Ok(()) => return,
                // The walk's window is smaller than a session; should it ever be full, the rest is asked for on a later tick.
                Err(WantError::Full { taken }) => return self.postpone(&rest[taken..]),
                Err(error) => rest = self.skip_unfetchable(rest, &error),
            }
        }
    }

    fn postpone(&mut self, cids: &[Cid]) {
        for cid in cids {
            self.walk.on_missing(
                cid,
                MissingCause::Other("the exchange session is full".into()),
            );
        }
    }

    /// A link may name a block that nobody can check, such as one with a 4-byte digest: such a DAG can never be whole.
    fn skip_unfetchable<'c>(&mut self, cids: &'c [Cid], error: &WantError) -> &'c [Cid] {
        let bad = cids
            .iter()
            .position(|cid| gemba_block::check_cid(cid).is_err());
        let Some(bad) = bad else {
            self.postpone(cids);
            return &[];
        };
        let _refused = self.walk.on_unreadable(&cids[bad], error.to_string());
        &cids[bad + 1..]
    }

    /// Answers a need from what is here; returns the block if it must be wanted from the swarm.
    fn look_up(&mut self, cid: Cid, ctx: &mut Ctx<'_>) -> Option<Cid> {
        if MhCode::from_code(cid.hash().code()) == Some(MhCode::Identity) {
            self.inline(cid);
            return None;
        }
        if ctx.arriving.get(&cid).is_some() {
            // It comes back as stored, to everybody who waits for it.
            return None;
        }
        // The pin is in the desired set before its walk begins. So a collection that reads the set later marks what is here of it, and
        // one that read it before protects what is put, read or touched since, by the guard that it took first. Hence a leaf is
        // touched: to ask for its size protects nothing.
        let here = !is_leaf(&cid) || ctx.store.touch(&cid);
        match here.then(|| ctx.store.size(&cid)).flatten() {
            None => return Some(cid),
            Some(bytes) if is_leaf(&cid) => self.have(&cid, bytes, Vec::new()),
            Some(_) => {
                if !ctx.workers.read(Read::Links(self.id, cid)) {
                    self.walk
                        .on_missing(&cid, MissingCause::Local("the read queue is full".into()));
                }
            }
        }
        None
    }

    /// An identity CID holds its block.
    fn inline(&mut self, cid: Cid) {
        let block = Block::danger_unchecked(cid, cid.hash().digest().to_vec());
        match links(&block) {
            Ok(found) => self.have(&cid, block.len() as u64, found),
            Err(e) => drop(self.walk.on_unreadable(&cid, e.to_string())),
        }
    }

    fn have(&mut self, cid: &Cid, bytes: u64, links: Vec<Cid>) {
        // A refusal is the walk's state from now on; `pump` reports it.
        let _refused = self.walk.have(cid, bytes, links);
    }

    /// A batch became durable; blocks of other operations are ignored.
    pub fn on_stored(&mut self, block: &StoredBlock, now: Duration) {
        let before = self.walk.progress().blocks_done;
        let _refused = match &block.links {
            Ok(links) => self
                .walk
                .on_block(&block.cid, block.bytes, links.iter().copied()),
            Err(reason) => self.walk.on_unreadable(&block.cid, reason.clone()),
        };
        if self.walk.progress().blocks_done > before {
            self.advanced = now;
            self.unavailable = None;
        }
    }

    /// Somebody else on this device stored this block: if the walk waits for it, it is looked up instead of fetched.
    pub fn on_put(&mut self, cid: &Cid, ctx: &mut Ctx<'_>) {
        if !self.walk.is_outstanding(cid) || ctx.arriving.get(cid).is_some() {
            return;
        }
        ctx.exchange.cancel(self.session, &[*cid]);
        let before = self.walk.progress().blocks_done;
        if let Some(gone) = self.look_up(*cid, ctx) {
            self.want(vec![gone], ctx);
        }
        if self.walk.progress().blocks_done > before {
            self.advanced = ctx.now;
            self.unavailable = None;
        }
    }

    /// A loader read the links of a block that is here.
    pub fn on_links(
        &mut self,
        cid: &Cid,
        answer: Result<(u64, Vec<Cid>), LinkTrouble>,
        ctx: &mut Ctx<'_>,
    ) {
        match answer {
            Ok((bytes, links)) => self.have(cid, bytes, links),
            Err(LinkTrouble::Unreadable(reason)) => drop(self.walk.on_unreadable(cid, reason)),
            // Removed, or damaged on disk: the swarm may have it whole.
            Err(LinkTrouble::Gone) => self.want(vec![*cid], ctx),
            Err(LinkTrouble::Store(cause)) => {
                tracing::error!(%cid, %cause, "a stored block cannot be read; asking the swarm for it");
                self.want(vec![*cid], ctx);
            }
        }
    }

    /// How far it is.
    pub fn progress(&self) -> gemba_pins::Progress {
        self.walk.progress()
    }

    /// Why it does not advance, in words.
    pub fn cause(&self, ctx: &Ctx<'_>) -> String {
        match (self.unavailable, self.lacks()) {
            (Some((cid, asked)), _) if ctx.peers > 0 => crate::text::nobody_has(&cid, asked),
            (_, Some(cid)) => format!("block {cid} does not come: {}", why::in_flow(&cid, ctx)),
            (_, None) => "waiting for the disk".to_owned(),
        }
    }

    /// The block that it waits for first.
    pub fn lacks(&self) -> Option<Cid> {
        self.unavailable
            .map(|(cid, _)| cid)
            .or_else(|| self.walk.outstanding().next().copied())
    }

    /// Blocks that could be had no more; asks for them again.
    pub fn retry_missing(&mut self) {
        self.walk.retry_missing();
    }
}
