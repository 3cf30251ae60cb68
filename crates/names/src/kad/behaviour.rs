//! The driver: both tables in a swarm, their events, and the time.
#![allow(
    clippy::disallowed_methods,
    reason = "a driver has the clock; the tables want it as well"
)]

use super::{
    Config, Mode,
    queue::{Job, Queue},
    search::{Get, Id, Put, Searches, Table, What},
    store::{Kept, Records, Shared, StoreCounters},
    tables::{self, LAN, Tables, WAN},
};
use crate::{core::Time, name::Name, record::Record, wall::Wall};
use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_kad::{
    Behaviour as Kad, BucketInserts, Caching, Config as KadConfig, Event as KadEvent,
    GetRecordError, GetRecordOk, Mode as KadMode, PutRecordError, QueryResult, Quorum,
    Record as Raw, RecordKey, RoutingUpdate, StoreInserts,
};
use libp2p_swarm::derive_prelude::Either;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, StreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// How long a server keeps a record that nobody puts again, and what is told to those who are given one. As Kubo.
const KEEP: Duration = Duration::from_secs(48 * 3600);
/// How often what has ended is thrown away.
const PRUNE: Duration = Duration::from_secs(60);
/// Longest message: a record and 20 peers with their addresses, of whom Kubo tells many; `libp2p-kad`'s own 16 KiB are too few.
const MAX_MESSAGE: usize = 64 * 1024;
/// Requests of one query at a time, as Go: with three, a few servers that are switched off hold up every name.
const PARALLEL: NonZeroUsize = NonZeroUsize::new(10).expect("10 is not 0");
/// Addresses that the tables add to one dial.
const MAX_DIALLED: usize = 16;

/// The route over the DHT, mounted in a swarm beside identify: whoever owns the swarm hands on what identify received ([`Dht::identified`]) and
/// what the time is ([`Dht::set_wall`]).
///
/// It runs at most [`Config::max_queries`] queries; each ends within its time with one [`Event::Got`] or [`Event::Put`].
pub struct Dht {
    local: PeerId,
    config: Config,
    both: Both,
    store: Shared,
    tables: Tables,
    queue: Queue,
    searches: Searches,
    /// What the queries of one turn brought; drained by `poll` before anything else happens.
    events: VecDeque<Event>,
    started: Instant,
    wall: (Wall, Time),
    timer: Option<(Time, Delay)>,
    pruned: Time,
    waker: Option<Waker>,
    counters: DhtCounters,
}

/// What the owner is told.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// So many servers are known: the first came, the last went, or they became twice as many as when this was said last.
    Servers(usize),
    /// A server answered to a query for a name: [`Input::Record`](crate::Input::Record) or [`Input::NoRecord`](crate::Input::NoRecord). All
    /// answers of a query come together, those with the best record first, and then its [`Event::Got`].
    Answer {
        /// The name.
        name: Name,
        /// Who answered. This device's own id where it is a server and has the record itself.
        peer: PeerId,
        /// The record, unverified.
        record: Option<Vec<u8>>,
    },
    /// A query for a name has ended: [`Input::DhtDone`](crate::Input::DhtDone).
    Got {
        /// The name.
        name: Name,
        /// How many servers have a record of it.
        outcome: Result<usize, Failed>,
    },
    /// A put has ended.
    Put {
        /// The record.
        record: Record,
        /// How many servers have taken it.
        outcome: Result<usize, Failed>,
    },
    /// A peer put a record here, which was verified and stored.
    Stored {
        /// Who.
        peer: PeerId,
        /// What.
        record: Record,
    },
}

/// Why a query brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failed {
    /// Nobody to ask.
    #[error(
        "no server of the DHT is known: connect a peer that is one (`network.dht = \"server\"`, or a Kubo)"
    )]
    NoServers,
    /// Servers are known, and none answered or took it.
    #[error("no server of the DHT answered: those that are known are switched off or refuse it")]
    NoAnswer,
    /// None answered in time.
    #[error("no server of the DHT answered within {0:?}")]
    TimedOut(Duration),
    /// Too many queries wait.
    #[error("{0} queries of the DHT wait already; it is tried again in its turn")]
    Full(usize),
    /// What this server stores is newer, so that others would refuse this one.
    #[error("this server holds a newer record, or the record is no longer valid")]
    Refused,
}

/// What happened. Numbers only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DhtCounters {
    /// Queries for names that were begun.
    pub gets: u64,
    /// Records that were put, or begun to be.
    pub puts: u64,
    /// Queries of both kinds that brought nothing.
    pub failed: u64,
    /// Of these, those that found no room to wait.
    pub overflow: u64,
    /// Requests of others.
    pub requests: u64,
    /// Servers for which there was no room in the tables.
    pub peers_refused: u64,
}

/// Kubo's two tables.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub struct Both {
    lan: Kad<Shared>,
    wan: Kad<Shared>,
}

impl std::fmt::Debug for Dht {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dht")
            .field("mode", &self.config.mode)
            .field("servers", &self.tables.len())
            .finish_non_exhaustive()
    }
}

impl Dht {
    /// Empty tables and an empty store.
    pub fn new(local: PeerId, config: Config) -> Self {
        let store = Shared::new(Records::new(local, config.store.clone()));
        let both = Both {
            lan: table(local, LAN, &store, &config),
            wan: table(local, WAN, &store, &config),
        };
        Self {
            local,
            both,
            store,
            tables: Tables::default(),
            queue: Queue::new(config.max_waiting),
            searches: Searches::default(),
            events: VecDeque::new(),
            started: Instant::now(),
            wall: (Wall::from_unix(0, 0), Time::ZERO),
            timer: None,
            pruned: Time::ZERO,
            waker: None,
            counters: DhtCounters::default(),
            config,
        }
    }

    /// What time it is at least ([`Core::wall_clock`](crate::Core::wall_clock)): nothing past its end of life is stored or served. Say it every few
    /// seconds; between, time goes on by itself.
    pub fn set_wall(&mut self, wall: Wall) {
        self.wall = (wall, self.now());
        self.set_speaker(None);
    }

    /// What identify received from a peer: he enters the tables he serves, and leaves those he serves no longer.
    pub fn identified(
        &mut self,
        peer: PeerId,
        protocols: &[StreamProtocol],
        addresses: &[Multiaddr],
    ) {
        if peer == self.local {
            return;
        }
        for (table, protocol) in [(Table::Lan, LAN), (Table::Wan, WAN)] {
            let mut addresses = tables::usable(table, addresses, self.config.max_addresses);
            if !protocols.contains(&protocol) {
                addresses.clear();
            }
            self.admit(table, peer, &addresses);
        }
        self.wake();
    }

    /// Asks for a name. Ends with [`Event::Got`].
    pub fn get(&mut self, name: Name) {
        if !self.queue.get(name) {
            let outcome = Err(self.overflow());
            self.events.push_back(Event::Got { name, outcome });
        }
        self.wake();
    }

    /// Puts a record where it belongs, or to these peers. Ends with [`Event::Put`], once for all that was asked for while it waited.
    pub fn put(&mut self, record: Record, peers: Option<Vec<PeerId>>) {
        if !self.queue.put(record.clone(), peers) {
            let outcome = Err(self.overflow());
            self.events.push_back(Event::Put { record, outcome });
        }
        self.wake();
    }

    /// The record that this server keeps of a name, unless its life has ended.
    pub fn kept_of(&self, name: &Name) -> Option<Record> {
        self.store.lock().of(name).cloned()
    }

    /// Server or client.
    pub fn mode(&self) -> Mode {
        self.config.mode
    }

    /// Servers in the tables.
    pub fn servers(&self) -> usize {
        self.tables.len()
    }

    /// Queries under way, and what waits for its turn.
    pub fn queries(&self) -> (usize, usize) {
        (self.searches.len(), self.queue.len())
    }

    /// How much is kept for others.
    pub fn kept(&self) -> Kept {
        self.store.lock().kept()
    }

    /// What happened.
    pub fn counters(&self) -> (DhtCounters, StoreCounters) {
        (self.counters, self.store.lock().counters())
    }

    fn overflow(&mut self) -> Failed {
        self.counters.overflow += 1;
        self.counters.failed += 1;
        Failed::Full(self.config.max_waiting)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    /// Whoever is heard from now on, and when.
    fn set_speaker(&self, peer: Option<PeerId>) {
        let now = self.now();
        let (wall, at) = self.wall;
        let wall = wall.plus(now.saturating_sub(at));
        self.store.lock().hear(peer, wall, now);
    }

    fn kad(&mut self, table: Table) -> &mut Kad<Shared> {
        match table {
            Table::Lan => &mut self.both.lan,
            Table::Wan => &mut self.both.wan,
        }
    }

    /// Lets a peer in under these addresses and no others, or lets him go if he has none.
    fn admit(&mut self, table: Table, peer: PeerId, addresses: &[Multiaddr]) {
        let is_in = self.tables.of(table).contains(&peer);
        if addresses.is_empty() {
            if is_in {
                self.kad(table).remove_peer(&peer);
                self.went(table, &peer);
            }
            return;
        }
        if !is_in && self.tables.of(table).len() >= self.config.max_peers {
            self.counters.peers_refused += 1;
            return;
        }
        let before = self.addresses(table, peer);
        for address in addresses {
            let update = self.kad(table).add_address(&peer, address.clone());
            if matches!(update, RoutingUpdate::Success) {
                self.came(table, peer);
            }
        }
        let told: Vec<Multiaddr> = addresses
            .iter()
            .filter_map(|a| a.clone().with_p2p(peer).ok())
            .collect();
        for old in before.iter().filter(|old| !told.contains(old)) {
            self.kad(table).remove_address(&peer, old);
        }
    }

    fn addresses(&mut self, table: Table, peer: PeerId) -> Vec<Multiaddr> {
        let bucket = self.kad(table).kbucket(peer);
        bucket
            .iter()
            .flat_map(|bucket| bucket.iter())
            .filter(|entry| *entry.node.key.preimage() == peer)
            .flat_map(|entry| entry.node.value.iter().cloned().collect::<Vec<_>>())
            .collect()
    }

    fn came(&mut self, table: Table, peer: PeerId) {
        self.tables.came(table, peer);
        self.tell_servers();
    }

    fn went(&mut self, table: Table, peer: &PeerId) {
        self.tables.went(table, peer);
        self.tell_servers();
    }

    fn tell_servers(&mut self) {
        if let Some(count) = self.tables.news() {
            self.events.push_back(Event::Servers(count));
        }
    }

    /// Ends what is at its end, and begins what waits.
    fn advance(&mut self) {
        let now = self.now();
        if now.saturating_sub(self.pruned) >= PRUNE {
            self.pruned = now;
            self.set_speaker(None);
            self.store.lock().prune(Instant::now());
        }
        while let Some((what, open)) = self.searches.ended(&self.config, now) {
            for (table, id) in open {
                if let Some(mut query) = self.kad(table).query_mut(&id) {
                    query.finish();
                }
            }
            match what {
                What::Get(get) => self.end_get(get),
                What::Put(put) => self.end_put(put),
            }
        }
        while self.searches.len() < self.config.max_queries
            && let Some(job) = self.queue.next()
        {
            match job {
                Job::Get(name) => self.begin_get(name, now),
                Job::Put(record, peers) => self.begin_put(record, peers, now),
            }
        }
    }

    fn begin_get(&mut self, name: Name, now: Time) {
        self.counters.gets += 1;
        self.set_speaker(None);
        let own = (self.config.mode == Mode::Server)
            .then(|| self.kept_of(&name))
            .flatten()
            .map(|record| (self.local, record.bytes().to_vec()));
        let key = RecordKey::from(name.routing_key());
        let open: Vec<Id> = self
            .open_tables()
            .into_iter()
            .map(|table| (table, self.kad(table).get_record(key.clone())))
            .collect();
        self.searches
            .begin(What::Get(Get::new(name, own)), open, now);
    }

    fn begin_put(&mut self, record: Record, peers: Option<Vec<PeerId>>, now: Time) {
        self.counters.puts += 1;
        self.set_speaker(None);
        let raw = self.raw(&record);
        let asked = match peers {
            Some(peers) => self.put_to(&raw, &peers),
            None => match self.put_where_it_belongs(&raw) {
                Some(asked) => asked,
                None => return self.fail_put(record, Failed::Refused),
            },
        };
        let open = asked.iter().map(|(id, _)| *id).collect();
        let put = Put {
            record,
            asked,
            stored: 0,
            timed_out: false,
        };
        self.searches.begin(What::Put(put), open, now);
    }

    /// `None` if the own store refuses it. A server keeps it, too; with nobody else known that is all.
    fn put_where_it_belongs(&mut self, raw: &Raw) -> Option<Vec<(Id, usize)>> {
        if self.config.mode == Mode::Server && self.store.lock().offer(raw.clone()).is_err() {
            return None;
        }
        let mut open = Vec::new();
        for table in self.open_tables() {
            // All of the twenty servers whose ids are closest to the name, as far as there are so many.
            let id = self.kad(table).put_record(raw.clone(), Quorum::All).ok()?;
            open.push(((table, id), libp2p_kad::K_VALUE.get()));
        }
        Some(open)
    }

    fn put_to(&mut self, raw: &Raw, peers: &[PeerId]) -> Vec<(Id, usize)> {
        let is_wan_only = |peer: &PeerId| {
            let [lan, wan] =
                [Table::Lan, Table::Wan].map(|table| self.tables.of(table).contains(peer));
            wan && !lan
        };
        let others = peers.iter().copied().filter(|peer| *peer != self.local);
        let (wan, lan): (Vec<PeerId>, Vec<PeerId>) = others.partition(is_wan_only);
        let mut open = Vec::new();
        for (table, peers) in [(Table::Lan, lan), (Table::Wan, wan)] {
            let all = peers.len();
            if all > 0 {
                let id = self
                    .kad(table)
                    .put_record_to(raw.clone(), peers.into_iter(), Quorum::All);
                open.push(((table, id), all));
            }
        }
        open
    }

    /// As `libp2p-kad` has it. Nobody is asked to keep it beyond its end of life.
    fn raw(&self, record: &Record) -> Raw {
        let (wall, at) = self.wall;
        let wall = wall.plus(self.now().saturating_sub(at));
        let left = record.validity().since(wall).min(KEEP);
        Raw {
            key: RecordKey::from(record.name().routing_key()),
            value: record.bytes().to_vec(),
            publisher: None,
            expires: Instant::now().checked_add(left),
        }
    }

    fn open_tables(&self) -> Vec<Table> {
        [Table::Lan, Table::Wan]
            .into_iter()
            .filter(|table| !self.tables.of(*table).is_empty())
            .collect()
    }

    fn end_get(&mut self, mut get: Get) {
        get.sort();
        let (name, found, silent) = (get.name, get.answers.len(), get.without.is_empty());
        let answers = get
            .answers
            .into_iter()
            .map(|(peer, record)| (peer, Some(record)));
        let without = get.without.into_iter().map(|peer| (peer, None));
        for (peer, record) in answers.chain(without) {
            self.events.push_back(Event::Answer { name, peer, record });
        }
        let outcome = if found > 0 || !silent {
            Ok(found)
        } else {
            Err(self.silence(get.timed_out, self.config.query_timeout))
        };
        self.counters.failed += u64::from(outcome.is_err());
        self.events.push_back(Event::Got { name, outcome });
    }

    fn end_put(&mut self, put: Put) {
        if put.stored == 0 {
            let cause = self.silence(put.timed_out, self.config.query_timeout * 2);
            return self.fail_put(put.record, cause);
        }
        let (record, outcome) = (put.record, Ok(put.stored));
        self.events.push_back(Event::Put { record, outcome });
    }

    fn fail_put(&mut self, record: Record, cause: Failed) {
        self.counters.failed += 1;
        let outcome = Err(cause);
        self.events.push_back(Event::Put { record, outcome });
    }

    fn silence(&self, timed_out: bool, after: Duration) -> Failed {
        match (self.tables.len(), timed_out) {
            (0, _) => Failed::NoServers,
            (_, true) => Failed::TimedOut(after),
            (_, false) => Failed::NoAnswer,
        }
    }

    // What the tables say.

    fn on_both(&mut self, event: BothEvent) {
        match event {
            BothEvent::Lan(event) => self.on_kad(Table::Lan, event),
            BothEvent::Wan(event) => self.on_kad(Table::Wan, event),
        }
    }

    fn on_kad(&mut self, table: Table, event: KadEvent) {
        match event {
            KadEvent::OutboundQueryProgressed { id, result, .. } => {
                self.on_progress((table, id), result);
            }
            KadEvent::RoutingUpdated {
                peer,
                addresses,
                old_peer,
                ..
            } => {
                if let Some(old) = old_peer {
                    self.tables.went(table, &old);
                }
                self.came(table, peer);
                let excess = addresses.len().saturating_sub(self.config.max_addresses);
                for address in addresses.iter().take(excess) {
                    self.kad(table).remove_address(&peer, address);
                }
            }
            KadEvent::InboundRequest { .. } => self.counters.requests += 1,
            // Nobody enters but by `identified`.
            KadEvent::UnroutablePeer { .. }
            | KadEvent::RoutablePeer { .. }
            | KadEvent::PendingRoutablePeer { .. }
            | KadEvent::ModeChanged { .. } => {}
        }
    }

    fn on_progress(&mut self, id: Id, result: QueryResult) {
        let now = self.now();
        match result {
            // What is kept here was said when the query began.
            QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => {
                if let Some(peer) = found.peer {
                    self.searches.on_answer(id, peer, found.record.value, now);
                }
            }
            QueryResult::GetRecord(Ok(GetRecordOk::FinishedWithNoAdditionalRecord {
                cache_candidates,
            })) => self
                .searches
                .on_got(id, cache_candidates.into_values(), false),
            QueryResult::GetRecord(Err(GetRecordError::NotFound { closest_peers, .. })) => {
                self.searches.on_got(id, closest_peers, false);
            }
            QueryResult::GetRecord(Err(GetRecordError::Timeout { .. })) => {
                self.searches.on_got(id, [], true);
            }
            QueryResult::PutRecord(Ok(_)) => self.searches.on_put(id, None, false),
            QueryResult::PutRecord(Err(PutRecordError::QuorumFailed { success, .. })) => {
                self.searches.on_put(id, Some(success.len()), false);
            }
            QueryResult::PutRecord(Err(PutRecordError::Timeout { success, .. })) => {
                self.searches.on_put(id, Some(success.len()), true);
            }
            // The refreshing of the tables.
            _ => {}
        }
    }

    /// What others put here, for the book.
    fn collect_taken(&mut self) {
        let mut store = self.store.lock();
        while let Some((peer, record)) = store.next_taken() {
            self.events.push_back(Event::Stored { peer, record });
        }
    }

    /// Wakes the swarm when a query ends by its time.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let prune = self.pruned + PRUNE;
        let due = self
            .searches
            .deadline(&self.config)
            .map_or(prune, |due| due.min(prune));
        if self.timer.as_ref().is_none_or(|(at, _)| *at != due) {
            self.timer = Some((due, Delay::new(due.saturating_sub(self.now()))));
        }
        let fired = self
            .timer
            .as_mut()
            .is_some_and(|(_, delay)| delay.poll_unpin(cx).is_ready());
        if fired {
            self.timer = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// `libp2p-kad` with everything off that would speak by itself: the book knows when what is put again.
fn table(local: PeerId, protocol: StreamProtocol, store: &Shared, config: &Config) -> Kad<Shared> {
    let mut settings = KadConfig::new(protocol);
    settings
        .set_query_timeout(config.query_timeout)
        .set_parallelism(PARALLEL)
        .set_record_ttl(Some(KEEP))
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_provider_record_ttl(Some(KEEP))
        // The store judges, and its refusal is an answer. With filtering `libp2p-kad` would say yes first.
        .set_record_filtering(StoreInserts::Unfiltered)
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_caching(Caching::Enabled { max_peers: 20 })
        .set_max_packet_size(MAX_MESSAGE)
        .set_periodic_bootstrap_interval(Some(config.refresh));
    let mut kad = Kad::with_config(local, store.clone(), settings);
    // By itself it would wait for an external address, which nobody confirms in a private network.
    kad.set_mode(Some(match config.mode {
        Mode::Server => KadMode::Server,
        Mode::Client => KadMode::Client,
    }));
    kad
}

type ToHandler = THandlerInEvent<Kad<Shared>>;

/// A refused put. `libp2p-kad` would close the stream and forget to wake it, so that whoever put waits for his own time-out. The answer that
/// there are no closer peers is none to a put: Kubo misses its record in it and fails at once, and `libp2p-kad` counts no success.
fn say_no(event: ToHandler) -> ToHandler {
    match event {
        ToHandler::Reset(request_id) => ToHandler::FindNodeRes {
            closer_peers: Vec::new(),
            request_id,
        },
        other => other,
    }
}

impl NetworkBehaviour for Dht {
    type ConnectionHandler = <Both as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.both
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let mut known = self
            .both
            .handle_pending_outbound_connection(connection, peer, addresses, role)?;
        // Servers told of others, and may tell of any number of addresses.
        known.sort_unstable();
        known.dedup();
        known.truncate(MAX_DIALLED);
        Ok(known)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.both
            .handle_established_outbound_connection(connection, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionClosed(closed) = &event
            && closed.remaining_established == 0
        {
            self.set_speaker(None);
            self.store.lock().forget(&closed.peer_id);
        }
        self.both.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.set_speaker(Some(peer));
        self.both
            .on_connection_handler_event(peer, connection, event);
        self.set_speaker(None);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        loop {
            self.advance();
            self.collect_taken();
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(event));
            }
            match self.both.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.on_both(event);
                    continue;
                }
                Poll::Ready(other) => {
                    let other = other.map_out(|_| unreachable!("events were taken above"));
                    return Poll::Ready(other.map_in(|event| match event {
                        Either::Left(event) => Either::Left(say_no(event)),
                        Either::Right(event) => Either::Right(say_no(event)),
                    }));
                }
                Poll::Pending => {}
            }
            if self.wait(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
    }
}
