//! Readers: `cat`, `get`, `ls`, `dag export` over content that may have to be fetched first.
//!
//! A reader runs on a blocking thread and asks for one block after another; what it will need next it says ahead, so that
//! the exchange is busy while the reader writes. Blocks it fetches are stored like any other.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_exchange::{SessionId, SessionOptions};
use gemba_store::Store;
use gemba_unixfs::{BlockSource, SourceError};

use super::Ctx;
use crate::daemon::command::{Command, Handle, ReaderId, Reply};
use crate::error::{Code, Fail};

/// Readers at the same time; each holds a blocking thread.
const OPEN: usize = 32;
/// Blocks that one reader may have said ahead.
const AHEAD: usize = 64;
/// A block that does not come for so long ends the read with a cause.
const STALL: Duration = Duration::from_secs(30);
/// The same when every connected peer has said that it has not got the block.
const NOBODY_HAS_IT: Duration = Duration::from_secs(8);

/// The loop's side of all readers.
#[derive(Default)]
pub struct Readers {
    next: u64,
    open: BTreeMap<ReaderId, Reader>,
}

struct Reader {
    session: SessionId,
    waiting: BTreeMap<Cid, (Reply<Result<Bytes, Fail>>, Duration)>,
    unavailable: BTreeMap<Cid, usize>,
}

impl Readers {
    /// A session for a new reader.
    pub fn open(&mut self, ctx: &mut Ctx<'_>) -> Result<ReaderId, Fail> {
        if self.open.len() >= OPEN {
            return Err(
                Fail::new(Code::Conflict, format!("{OPEN} readers are open already"))
                    .hint("wait until one of them is done"),
            );
        }
        self.next += 1;
        let session = ctx.exchange.open_session(SessionOptions::default());
        let session =
            session.map_err(|e| Fail::new(Code::Conflict, e).hint("try again in a moment"))?;
        self.open.insert(
            ReaderId(self.next),
            Reader {
                session,
                waiting: BTreeMap::new(),
                unavailable: BTreeMap::new(),
            },
        );
        Ok(ReaderId(self.next))
    }

    /// The reader will want these soon.
    pub fn prefetch(&mut self, id: ReaderId, cids: Vec<Cid>, ctx: &mut Ctx<'_>) {
        let Some(reader) = self.open.get(&id) else {
            return;
        };
        let absent = cids
            .into_iter()
            .take(AHEAD)
            .filter(|cid| ctx.store.size(cid).is_none() && ctx.arriving.get(cid).is_none());
        let absent: Vec<Cid> = absent.collect();
        // Only ahead of time: what is refused here is asked for, and its cause told, when the reader comes to it.
        let _ahead_of_time = ctx.exchange.want(reader.session, absent);
    }

    /// The reader wants this one now.
    pub fn fetch(
        &mut self,
        id: ReaderId,
        cid: Cid,
        reply: Reply<Result<Bytes, Fail>>,
        ctx: &mut Ctx<'_>,
    ) {
        let Some(reader) = self.open.get_mut(&id) else {
            return drop(reply.send(Err(Fail::new(Code::Failure, "the reader is closed"))));
        };
        if let Some(data) = ctx.arriving.get(&cid) {
            return drop(reply.send(Ok(data.clone())));
        }
        match ctx.exchange.want(reader.session, [cid]) {
            Ok(()) => drop(reader.waiting.insert(cid, (reply, ctx.now))),
            Err(error) => drop(reply.send(Err(Fail::new(
                Code::Failure,
                format!("block {cid} cannot be fetched: {error}"),
            )))),
        }
    }

    /// The exchange found a block for a session.
    pub fn on_found(&mut self, session: SessionId, block: &Block) {
        for reader in self
            .open
            .values_mut()
            .filter(|reader| reader.session == session)
        {
            if let Some((reply, _)) = reader.waiting.remove(block.cid()) {
                let _gone = reply.send(Ok(block.data().clone()));
            }
        }
    }

    /// The exchange asked everybody for a block, in vain so far.
    pub fn on_unavailable(&mut self, session: SessionId, cid: Cid, asked: usize) {
        for reader in self
            .open
            .values_mut()
            .filter(|reader| reader.session == session)
        {
            if reader.waiting.contains_key(&cid) {
                reader.unavailable.insert(cid, asked);
            }
        }
    }

    /// Ends what waited too long.
    pub fn expire(&mut self, ctx: &mut Ctx<'_>) {
        for reader in self.open.values_mut() {
            let due: Vec<Cid> = reader
                .waiting
                .iter()
                .filter(|(cid, (_, since))| reader.is_due(cid, *since, ctx))
                .map(|(cid, _)| *cid)
                .collect();
            for cid in due {
                let asked = reader.unavailable.remove(&cid);
                let Some((reply, _)) = reader.waiting.remove(&cid) else {
                    continue;
                };
                ctx.exchange.cancel(reader.session, &[cid]);
                let _gone = reply.send(Err(not_found(&cid, asked, ctx.peers)));
            }
        }
    }

    /// The reader is done; what it had asked for is cancelled.
    pub fn close(&mut self, id: ReaderId, ctx: &mut Ctx<'_>) {
        if let Some(reader) = self.open.remove(&id) {
            ctx.exchange.close_session(reader.session);
        }
    }
}

impl Reader {
    fn is_due(&self, cid: &Cid, since: Duration, ctx: &Ctx<'_>) -> bool {
        let limit = if ctx.peers == 0 || self.unavailable.contains_key(cid) {
            NOBODY_HAS_IT
        } else {
            STALL
        };
        ctx.now.saturating_sub(since) >= limit
    }
}

fn not_found(cid: &Cid, asked: Option<usize>, peers: usize) -> Fail {
    match (asked, peers) {
        (_, 0) => Fail::new(
            Code::NotFound,
            format!("block {cid} is not on this device, and no peer is connected"),
        )
        .hint("`gemba connect MULTIADDR`, and `gemba status` for what keeps peers away"),
        (Some(asked), _) => Fail::new(
            Code::NotFound,
            match asked {
                0 => format!("block {cid} is not on this device, and nobody could be asked"),
                1 => format!(
                    "block {cid} is not on this device, and the only peer asked does not have it"
                ),
                _ => format!(
                    "block {cid} is not on this device, and none of the {asked} peers asked has it"
                ),
            },
        )
        .hint(format!("`gemba why {cid}` tells who was asked")),
        (None, _) => Fail::new(
            Code::Timeout,
            format!(
                "block {cid} did not arrive in {} s; {} connected",
                STALL.as_secs(),
                crate::text::peers(peers as u64)
            ),
        )
        .hint(format!("`gemba why {cid}` tells what is waited for")),
    }
}

/// The reader's side: a block source for the synchronous functions of `content`.
pub struct FetchSource {
    store: Store,
    handle: Handle,
    id: Option<ReaderId>,
}

impl FetchSource {
    /// A source that reads the store and falls back to the swarm.
    #[must_use]
    pub fn new(store: Store, handle: Handle) -> Self {
        Self {
            store,
            handle,
            id: None,
        }
    }

    fn block(&mut self, cid: &Cid) -> Result<Bytes, Fail> {
        if let Some(data) = self
            .store
            .get(cid)
            .map_err(|e| crate::repo::store_fail(&e))?
        {
            return Ok(data);
        }
        let id = self.open()?;
        self.handle
            .ask_blocking(|reply| Command::Fetch(id, *cid, reply))?
    }

    fn ahead(&mut self, cids: &[Cid]) -> Result<(), Fail> {
        let absent: Vec<Cid> = cids
            .iter()
            .filter(|cid| !self.store.has(cid))
            .copied()
            .collect();
        if absent.is_empty() {
            return Ok(());
        }
        let id = self.open()?;
        self.handle.tell_blocking(Command::Prefetch(id, absent))
    }

    fn open(&mut self) -> Result<ReaderId, Fail> {
        if let Some(id) = self.id {
            return Ok(id);
        }
        let id = self.handle.ask_blocking(Command::OpenReader)??;
        self.id = Some(id);
        Ok(id)
    }
}

impl BlockSource for FetchSource {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        let data = self
            .block(cid)
            .map_err(|fail| SourceError::failed(cid, fail))?;
        // The store compared its checksum, or the exchange hashed it as it came.
        Ok(Block::danger_unchecked(*cid, data))
    }

    fn prefetch(&mut self, cids: &[Cid]) {
        // A daemon that is ending says so when the block itself is asked for.
        let _ending = self.ahead(cids);
    }
}

impl Drop for FetchSource {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let _ending = self.handle.tell_blocking(Command::CloseReader(id));
        }
    }
}
