//! The client: which peer is asked for which want, and what happens when it does not deliver.
//!
//! A want goes through these phases: *queued* (nothing under way), *searching* (everybody was asked whether they have
//! it), *fetching* (one peer was asked for it), *unavailable* (all said no, or nothing). [`Client::place`] is the one
//! place that decides the next step of a want; it is called whenever an answer, a time-out or room arrives.
//!
//! Here are the owner's commands. Facts come in through `connections` and `answers`, time through `clock`; `place` decides,
//! with `mates` where devices of a site share wants; `bookkeeping` keeps what follows from every change.

mod answers;
mod bookkeeping;
mod clock;
mod connections;
mod downs;
mod mates;
mod peer;
mod place;
mod recent;
mod relief;
mod remote;
mod session;
mod spare;
mod want;
mod why;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use gemba_block::{Cid, check_cid};
use libp2p_identity::PeerId;

pub use session::{AskPolicy, AskTest, SessionOptions};
pub use why::{Answer, Asked, WaitingFor, Why};

use super::site::Site;
use super::{Output, PeerKey, SessionId, Time};
use crate::config::{Config, Line, LineBudget};
use crate::error::{TooManySessions, WantError};
use crate::metrics::Counters;
use crate::wire::Message;
use downs::Downs;
use peer::Peer;
use recent::Recent;
use session::Session;
use want::Want;

type Out = VecDeque<Output>;

pub(super) struct Client {
    config: Config,
    peers: BTreeMap<PeerKey, Peer>,
    sessions: BTreeMap<SessionId, Session>,
    wants: HashMap<Cid, Want>,
    /// Searching and unavailable wants in order: what a new peer is asked for.
    open: BTreeMap<u64, Cid>,
    /// Unavailable wants by the time of their next round.
    retry: BTreeSet<(Time, u64)>,
    /// Peers whose wantlist changed.
    changed: BTreeSet<PeerKey>,
    /// Sessions whose pending wants may find room.
    stirred: BTreeSet<SessionId>,
    recent: Recent,
    downs: Downs,
    site: Option<Site>,
    /// When whose turn which want is may be looked at again, and whether that is due.
    turns_at: Time,
    turns_due: bool,
    expected: usize,
    found: usize,
    paused: bool,
    next_session: u64,
    /// Numbers wants and asks.
    next: u64,
    ticked: Time,
}

impl Client {
    pub(super) fn new(config: Config) -> Self {
        Self {
            site: config.site.clone().map(Site::new),
            downs: Downs::new(&config),
            config,
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            wants: HashMap::new(),
            open: BTreeMap::new(),
            retry: BTreeSet::new(),
            changed: BTreeSet::new(),
            stirred: BTreeSet::new(),
            recent: Recent::default(),
            turns_at: Time::ZERO,
            turns_due: false,
            expected: 0,
            found: 0,
            paused: false,
            next_session: 0,
            next: 0,
            ticked: Time::ZERO,
        }
    }

    pub(super) fn open_session(
        &mut self,
        options: SessionOptions,
    ) -> Result<SessionId, TooManySessions> {
        if self.sessions.len() >= self.config.sessions {
            return Err(TooManySessions(self.sessions.len()));
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(id, Session::new(options));
        Ok(id)
    }

    pub(super) fn want(
        &mut self,
        id: SessionId,
        cids: impl IntoIterator<Item = Cid>,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) -> Result<(), WantError> {
        self.begin_root(id, now);
        let mut result = Ok(());
        for (taken, cid) in cids.into_iter().enumerate() {
            result = self.want_one(id, cid, taken, now);
            if result.is_err() {
                break;
            }
        }
        self.stirred.insert(id);
        self.stir(now, counters, out);
        result
    }

    fn want_one(
        &mut self,
        id: SessionId,
        cid: Cid,
        taken: usize,
        now: Time,
    ) -> Result<(), WantError> {
        let session = self
            .sessions
            .get_mut(&id)
            .ok_or(WantError::UnknownSession(id))?;
        check_fetchable(&cid)?;
        if session.wants.contains(&cid) {
            return Ok(());
        }
        if session.wants.len() >= self.config.session_wants {
            return Err(WantError::Full { taken });
        }
        session.wants.insert(cid);
        match self.wants.get_mut(&cid) {
            // Another session wants it too; a policy that allows more peers may find it sooner.
            Some(want) => want.sessions.push(id),
            None => {
                session.pending.push_back(cid);
                let seq = self.number();
                self.wants.insert(cid, Want::new(seq, id, now));
            }
        }
        Ok(())
    }

    pub(super) fn room(&self, id: SessionId) -> usize {
        self.sessions.get(&id).map_or(0, |s| {
            self.config.session_wants.saturating_sub(s.wants.len())
        })
    }

    pub(super) fn cancel(
        &mut self,
        id: SessionId,
        cids: &[Cid],
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let gone: HashSet<Cid> = cids
            .iter()
            .filter(|cid| session.wants.remove(*cid))
            .copied()
            .collect();
        session.pending.retain(|cid| !gone.contains(cid));
        // In the caller's order: what follows must not depend on a hash.
        for cid in cids.iter().filter(|cid| gone.contains(*cid)) {
            self.leave(cid, id);
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    pub(super) fn close_session(
        &mut self,
        id: SessionId,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let mut cids: Vec<Cid> = session.wants.iter().copied().collect();
        cids.sort_by_key(|cid| self.wants.get(cid).map(|w| w.seq));
        self.cancel(id, &cids, now, counters, out);
        self.end_root(id);
        self.sessions.remove(&id);
    }

    pub(super) fn set_policy(
        &mut self,
        id: SessionId,
        policy: AskPolicy,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.policy = policy;
        let open: Vec<Cid> = self.open.values().copied().collect();
        for cid in open {
            self.place(&cid, now, counters, out);
        }
        self.stirred.insert(id);
        self.stir(now, counters, out);
    }

    pub(super) fn release(
        &mut self,
        bytes: usize,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        self.found = self.found.saturating_sub(bytes);
        if self.paused && self.found < self.config.node_bytes / 4 * 3 {
            self.paused = false;
            // Nobody could deliver in the meantime.
            for peer in self.peers.values_mut() {
                peer.progress = now;
            }
            out.push_back(Output::Pause(false));
        }
        self.stir_all();
        self.stir(now, counters, out);
    }

    pub(super) fn set_budget(
        &mut self,
        line: Line,
        budget: LineBudget,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        self.downs.set(line, budget.down, now);
        self.stir_all();
        self.stir(now, counters, out);
    }

    pub(super) fn next_request(&mut self) -> Option<(PeerId, Message)> {
        while let Some(key) = self.changed.pop_first() {
            if let Some(peer) = self.peers.get_mut(&key)
                && let Some(message) = peer.remote.take()
            {
                return Some((peer.id, message));
            }
        }
        None
    }

    pub(super) fn is_busy(&self, key: PeerKey) -> bool {
        self.peers
            .get(&key)
            .is_some_and(|p| p.blocks > 0 || p.haves > 0)
    }

    pub(super) fn owed_blocks(&self, key: PeerKey) -> usize {
        self.peers.get(&key).map_or(0, |p| p.blocks)
    }

    pub(super) fn wants(&self) -> usize {
        self.wants.len()
    }

    pub(super) fn expected_bytes(&self) -> usize {
        self.expected
    }

    pub(super) fn found_bytes(&self) -> usize {
        self.found
    }
}

fn check_fetchable(cid: &Cid) -> Result<(), WantError> {
    if cid.hash().code() == 0 {
        return Err(WantError::Identity);
    }
    Ok(check_cid(cid)?)
}
