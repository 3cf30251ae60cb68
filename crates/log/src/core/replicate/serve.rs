//! What others ask for: one portion a turn, so that who asks for much waits longer than who asks for little.

use super::{Output, Peer, Replicate};
use crate::{
    core::Time,
    feed::Seq,
    wire::{Batches, Fetch, MAX_BATCHES, MAX_MESSAGE_BYTES, Message, Run},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Fewest bytes read in one turn; more where few feeds share an answer.
const PORTION: u64 = 32 << 10;
/// What a peer that is told "busy" waits.
const BUSY_MS: u64 = 500;

/// What is served, to all.
#[derive(Debug, Default)]
pub(super) struct Serving {
    /// Peers with something to do, each once.
    turns: VecDeque<Peer>,
    requests: BTreeMap<Peer, VecDeque<Request>>,
    loads: BTreeMap<u64, Peer>,
    /// When a peer whose budget is used up may go on.
    wake: Option<Time>,
}

#[derive(Debug)]
struct Request {
    fetch: Fetch,
    /// Place of the want in turn.
    at: usize,
    from: Seq,
    left: u64,
    runs: Vec<Run<Bytes>>,
    batches: usize,
    is_loading: bool,
}

/// What a peer may still get.
#[derive(Debug)]
pub(super) struct Served {
    credit: u64,
    since: Time,
}

impl Served {
    pub(super) fn new(burst: u64, now: Time) -> Self {
        Self {
            credit: burst,
            since: now,
        }
    }

    fn earn(&mut self, per_second: u64, burst: u64, now: Time) {
        let passed = now.saturating_sub(self.since).as_millis();
        let earned = passed.saturating_mul(u128::from(per_second)) / 1_000;
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.credit = self.credit.saturating_add(earned).min(burst);
            self.since = now;
        }
    }
}

impl Serving {
    pub(super) fn forget(&mut self, peer: Peer) {
        self.turns.retain(|turn| *turn != peer);
        self.requests.remove(&peer);
        self.loads.retain(|_, of| *of != peer);
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.wake
    }
}

impl Replicate {
    pub(super) fn on_fetch(&mut self, peer: Peer, fetch: Fetch, now: Time) {
        let most = self.config.answer_bytes.min(MAX_MESSAGE_BYTES as u64 / 2);
        let requests = self.serving.requests.entry(peer).or_default();
        if requests.len() >= self.config.max_requests_per_peer {
            self.counters.busy += 1;
            let answer = Batches {
                id: fetch.id,
                runs: Vec::new(),
                busy_ms: Some(BUSY_MS),
            };
            return self.send(peer, Message::Batches(answer));
        }
        let left = fetch.max_bytes.clamp(1, most);
        let from = fetch.wants.first().map_or(0, |want| want.from);
        requests.push_back(Request {
            fetch,
            at: 0,
            from,
            left,
            runs: Vec::new(),
            batches: 0,
            is_loading: false,
        });
        if !self.serving.turns.contains(&peer) {
            self.serving.turns.push_back(peer);
        }
        self.serve(now);
    }

    /// Reads for whoever's turn it is, as long as there is room.
    pub(super) fn serve(&mut self, now: Time) {
        self.serving.wake = None;
        for _ in 0..self.serving.turns.len() {
            if self.serving.loads.len() >= self.config.max_loads {
                return;
            }
            let Some(peer) = self.serving.turns.pop_front() else {
                return;
            };
            self.serve_one(peer, now);
        }
    }

    fn serve_one(&mut self, peer: Peer, now: Time) {
        let (per_second, burst) = (self.config.serve_per_second, self.config.serve_burst);
        let Some(remote) = self.peers.get_mut(&peer) else {
            return self.serving.forget(peer);
        };
        let Some(request) = self
            .serving
            .requests
            .get_mut(&peer)
            .and_then(VecDeque::front_mut)
        else {
            return;
        };
        if request.is_loading {
            return;
        }
        if per_second > 0 {
            remote.served.earn(per_second, burst, now);
            if remote.served.credit == 0 {
                let wake = now + Duration::from_millis(100);
                self.serving.wake = Some(self.serving.wake.map_or(wake, |at| at.min(wake)));
                self.serving.turns.push_back(peer);
                return;
            }
        }
        let Some(want) = request.fetch.wants.get(request.at) else {
            return self.answer(peer, now);
        };
        request.is_loading = true;
        let (feed, tip, from) = (want.feed.clone(), want.tip, request.from);
        let others = (request.fetch.wants.len() - request.at) as u64;
        let bytes = (request.left / others).max(PORTION).min(request.left);
        let ticket = self.number();
        self.serving.loads.insert(ticket, peer);
        self.outputs.push_back(Output::Load {
            ticket,
            feed,
            from,
            tip,
            bytes,
        });
    }

    pub(super) fn on_loaded(
        &mut self,
        ticket: u64,
        batches: Vec<Bytes>,
        more: bool,
        starts: Seq,
        now: Time,
    ) {
        let Some(peer) = self.serving.loads.remove(&ticket) else {
            return;
        };
        let size: u64 = batches.iter().map(|batch| batch.len() as u64).sum();
        self.counters.served_bytes += size;
        if let Some(remote) = self.peers.get_mut(&peer) {
            remote.served.credit = remote.served.credit.saturating_sub(size);
        }
        let Some(request) = self
            .serving
            .requests
            .get_mut(&peer)
            .and_then(VecDeque::front_mut)
        else {
            return self.serve(now);
        };
        request.is_loading = false;
        request.left = request.left.saturating_sub(size.max(1));
        request.batches += batches.len();
        let want = request.at;
        if !batches.is_empty() {
            match request.runs.last_mut().filter(|run| run.want == want) {
                Some(run) => {
                    run.batches.extend(batches);
                    run.more = more;
                }
                None => request.runs.push(Run {
                    want,
                    batches,
                    more,
                    starts,
                }),
            }
        }
        // A portion a want in turn: a long feed does not keep the short ones from coming along.
        request.at += 1;
        request.from = request
            .fetch
            .wants
            .get(request.at)
            .map_or(0, |want| want.from);
        let is_full = request.left == 0 || request.batches >= MAX_BATCHES / 2;
        if is_full || request.at >= request.fetch.wants.len() {
            self.answer(peer, now);
        } else {
            self.serving.turns.push_back(peer);
        }
        self.serve(now);
    }

    fn answer(&mut self, peer: Peer, _now: Time) {
        let Some(requests) = self.serving.requests.get_mut(&peer) else {
            return;
        };
        if let Some(request) = requests.pop_front() {
            let answer = Batches {
                id: request.fetch.id,
                runs: request.runs,
                busy_ms: None,
            };
            self.outputs.push_back(Output::Send {
                peer,
                message: Message::Batches(answer),
            });
        }
        if requests.is_empty() {
            self.serving.requests.remove(&peer);
        } else if !self.serving.turns.contains(&peer) {
            self.serving.turns.push_back(peer);
        }
    }
}
