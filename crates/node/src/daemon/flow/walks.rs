//! The tracker's connector to this device: walks over the store, and sessions of the exchange that bring what they lack.

use std::collections::BTreeMap;
use std::time::Duration;

use cid::Cid;
use gemba_exchange::{SessionId, SessionOptions};
use gemba_pins::{Begun, Connector, Input, OpId, Operation, Outlook, Target, Ticket, Tracker};

use super::Ctx;
use super::disk::{Leave, TRIAL_WINDOW};
use super::fetch::{Fetch, FetchId, Standing, WINDOW};
use crate::daemon::work::{LinkTrouble, StoredBlock};

/// A wait that is longer than this is told to whoever follows the operation.
const PATIENT: Duration = Duration::from_secs(3);

/// The walks under way.
pub struct Walks {
    fetches: BTreeMap<OpId, (Ticket, Fetch)>,
    visited_key: [u8; 16],
    begun: bool,
}

impl Walks {
    /// None is under way.
    pub fn new(visited_key: [u8; 16]) -> Self {
        Self {
            fetches: BTreeMap::new(),
            visited_key,
            begun: false,
        }
    }

    /// Whether one began since this was asked last.
    pub fn take_begun(&mut self) -> bool {
        std::mem::take(&mut self.begun)
    }

    /// Blocks that could be had no more are asked for again.
    pub fn retry_missing(&mut self) {
        self.running().for_each(Fetch::retry_missing);
    }

    /// The disk takes blocks again: who tried goes on in full.
    pub fn open_windows(&mut self) {
        self.running().for_each(Fetch::open_window);
    }

    /// Blocks were stored by others on this device.
    pub fn on_put(&mut self, cids: &[Cid], ctx: &mut Ctx<'_>) {
        for fetch in self.running() {
            cids.iter().for_each(|cid| fetch.on_put(cid, ctx));
        }
    }

    /// A batch is durable.
    pub fn on_stored(&mut self, blocks: &[StoredBlock], now: Duration) {
        for fetch in self.running() {
            for block in blocks {
                fetch.on_stored(block, now);
            }
        }
    }

    /// A loader read the links of a block for a walk.
    pub fn on_links(
        &mut self,
        id: FetchId,
        cid: &Cid,
        answer: Result<(u64, Vec<Cid>), LinkTrouble>,
        ctx: &mut Ctx<'_>,
    ) {
        if let Some((_, fetch)) = self.fetches.get_mut(&OpId(id.0)) {
            fetch.on_links(cid, answer, ctx);
        }
    }

    /// The exchange asked everybody for a block of this session, in vain so far.
    pub fn on_unavailable(&mut self, session: SessionId, cid: Cid, asked: usize) {
        if let Some(fetch) = self.running().find(|fetch| fetch.session == session) {
            fetch.unavailable = Some((cid, asked));
        }
    }

    /// The walk of an operation.
    pub fn of(&self, op: OpId) -> Option<&Fetch> {
        self.fetches.get(&op).map(|(_, fetch)| fetch)
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Fetch> {
        self.fetches.values_mut().map(|(_, fetch)| fetch)
    }
}

impl Connector for Walks {
    type Around<'a> = Ctx<'a>;

    fn begin(&mut self, ticket: Ticket, target: &Target, ctx: &mut Ctx<'_>) -> Begun {
        let under_way: Vec<Cid> = self
            .fetches
            .values()
            .map(|(ticket, _)| ticket.cid)
            .collect();
        let leave = ctx
            .disk
            .leave(ticket.cid, |cid| under_way.contains(cid), ctx.now);
        if leave == Leave::Wait {
            return Begun::NotNow(ctx.disk.words());
        }
        let options = SessionOptions::default().with_root(ticket.cid);
        // Refused only while readers hold all sessions.
        let Ok(session) = ctx.exchange.open_session(options) else {
            return Begun::NotNow(None);
        };
        let window = if leave == Leave::Try {
            TRIAL_WINDOW
        } else {
            WINDOW
        };
        let (id, key) = (FetchId(ticket.op.0), self.visited_key);
        let fetch = Fetch::start(id, ticket.cid, target.reach, session, key, window, ctx.now);
        self.fetches.insert(ticket.op, (ticket, fetch));
        self.begun = true;
        Begun::Yes
    }

    fn end(&mut self, ticket: Ticket, ctx: &mut Ctx<'_>) {
        if let Some((_, fetch)) = self.fetches.remove(&ticket.op) {
            ctx.exchange.close_session(fetch.session);
        }
    }

    fn advance(&mut self, tracker: &Tracker, ctx: &mut Ctx<'_>) -> (Vec<Input>, bool) {
        let (mut facts, mut busy) = (Vec::new(), false);
        for (ticket, fetch) in self.fetches.values_mut() {
            let standing = fetch.pump(ctx);
            let op = tracker.operation(&ticket.cid);
            if op.is_some_and(|op| op.progress != fetch.progress()) {
                facts.push(Input::Progress(*ticket, fetch.progress()));
            }
            match standing {
                // Said at once, before anybody's patience is at its end.
                Standing::Waiting if op.is_some_and(|op: &Operation| op.cause.is_none()) => {
                    facts.extend(denied(*ticket, fetch));
                }
                Standing::Waiting => {}
                Standing::Busy => busy = true,
                Standing::Whole => facts.push(Input::Whole(*ticket, fetch.progress())),
                Standing::Refused(cause) => {
                    tracing::warn!(cid = %ticket.cid, %cause, "this DAG cannot be pinned");
                    facts.push(Input::Refused(*ticket, cause));
                }
            }
        }
        (facts, busy)
    }

    fn standing(&mut self, ctx: &mut Ctx<'_>) -> Vec<Input> {
        let mut facts = Vec::new();
        for (ticket, fetch) in self.fetches.values_mut() {
            if ctx.now.saturating_sub(fetch.advanced) < PATIENT {
                continue;
            }
            facts.push(Input::Standing {
                ticket: *ticket,
                outlook: outlook(fetch, ctx),
                cause: fetch.cause(ctx),
                lacks: fetch.lacks(),
            });
        }
        facts
    }
}

/// What keeps a walk that stands still.
fn outlook(fetch: &Fetch, ctx: &Ctx<'_>) -> Outlook {
    if fetch.unavailable.is_some() || ctx.peers == 0 {
        return Outlook::Denied;
    }
    let silent = |silence: Duration| silence >= ctx.now.saturating_sub(fetch.advanced);
    if ctx.exchange.silence().is_none_or(silent) {
        Outlook::Silent
    } else {
        Outlook::Busy
    }
}

fn denied(ticket: Ticket, fetch: &Fetch) -> Option<Input> {
    let (cid, asked) = fetch.unavailable?;
    Some(Input::Standing {
        ticket,
        outlook: Outlook::Denied,
        cause: format!("so far {}", crate::text::nobody_has(&cid, asked)),
        lacks: Some(cid),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gemba_block::Block;
    use gemba_exchange::Behaviour as Exchange;
    use gemba_pins::suite::{Rig, connector};
    use gemba_store::Store;
    use tokio::sync::mpsc;

    use super::*;
    use crate::content::room::Puts;
    use crate::daemon::flow::Arriving;
    use crate::daemon::flow::disk::Disk;
    use crate::daemon::flow::peers::Peers;
    use crate::daemon::work::{Done, Workers};
    use crate::log::Events;
    use crate::repo::Repo;

    /// A device with its store and its disk threads, and nobody connected.
    struct Device {
        walks: Walks,
        exchange: Exchange,
        store: Store,
        workers: Workers,
        done: mpsc::Receiver<Done>,
        arriving: Arriving,
        peers: Peers,
        disk: Disk,
        now: Duration,
        _dir: tempfile::TempDir,
    }

    impl Device {
        fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let repo = Repo::init(&dir.path().join("repo"), &Default::default()).unwrap();
            let (store, events) = (repo.store().unwrap(), Events::open(&repo).unwrap());
            let (tell, done) = mpsc::channel(64);
            let puts = Puts::new(store.clone());
            let workers = Workers::start(&store, &Arc::clone(events.log()), &puts, &tell);
            Self {
                walks: Walks::new([7; 16]),
                exchange: Exchange::new(gemba_exchange::Config::default()),
                store,
                workers: workers.unwrap(),
                done,
                arriving: Arriving::default(),
                peers: Peers::default(),
                disk: Disk::default(),
                now: Duration::ZERO,
                _dir: dir,
            }
        }
    }

    /// A root with three leaves below it.
    fn dag(n: u64) -> Vec<Block> {
        let leaf = |at| Block::raw(format!("{n} {at}").into_bytes()).unwrap();
        let leaves = [leaf(0), leaf(1), leaf(2)];
        let links = leaves
            .iter()
            .map(|leaf| gemba_unixfs::dagpb::Link::new(*leaf.cid(), b"", leaf.len() as u64));
        let root = Block::dag_pb(gemba_unixfs::dagpb::encode(links, None)).unwrap();
        std::iter::once(root).chain(leaves).collect()
    }

    impl Device {
        fn put(&mut self, blocks: &[Block]) {
            self.store.put_many(blocks).unwrap();
            let cids: Vec<Cid> = blocks.iter().map(|block| *block.cid()).collect();
            self.with(|walks, ctx| walks.on_put(&cids, ctx));
        }
    }

    impl Rig for Device {
        type Connector = Walks;

        fn with<T>(&mut self, run: impl FnOnce(&mut Walks, &mut Ctx<'_>) -> T) -> T {
            let mut ctx = Ctx {
                now: self.now,
                exchange: &mut self.exchange,
                store: &self.store,
                workers: &self.workers,
                arriving: &mut self.arriving,
                peers: 0,
                known: &self.peers,
                disk: &mut self.disk,
            };
            run(&mut self.walks, &mut ctx)
        }

        fn root(&mut self, n: u64) -> Cid {
            *dag(n)[0].cid()
        }

        fn provide_part(&mut self, n: u64) {
            self.put(&dag(n)[..2]);
        }

        fn provide(&mut self, n: u64) {
            self.put(&dag(n));
        }

        fn now(&self) -> Duration {
            self.now
        }

        fn pass(&mut self) {
            self.now += Duration::from_millis(20);
            // The threads take their time, which costs some and proves nothing.
            std::thread::sleep(Duration::from_millis(1));
            while let Ok(done) = self.done.try_recv() {
                if let Done::Links(id, cid, answer) = done {
                    self.with(|walks, ctx| walks.on_links(id, &cid, answer, ctx));
                }
            }
        }
    }

    #[test]
    fn s1_3_the_connector_of_the_daemon_passes_the_suite() {
        connector(&mut Device::start());
    }
}
