//! Readers: `cat`, `get`, `ls`, `dag export` over content that may have to be fetched first.
//!
//! A reader runs on a blocking thread and asks for one block after another; what it will need next it says ahead, so that
//! the exchange is busy while the reader writes. Blocks it fetches are stored like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_exchange::{SessionId, SessionOptions};
use gemba_store::{Store, StoreError};
use gemba_unixfs::{BlockSource, SourceError};
use tokio::sync::oneshot;

use super::Ctx;
use super::why;
use crate::config::Reads;
use crate::daemon::call::{Call, Wait, ending};
use crate::daemon::command::{Command, Fetched, Handle, ReaderId, Reply};
use crate::error::{Code, Fail};

/// Readers at the same time; each holds a blocking thread.
const OPEN: usize = 32;
/// Blocks that one reader may have said ahead.
const AHEAD: usize = 64;
/// What a caller waits is not cancelled at the very moment when his patience ends: that is when he asks why nothing came.
const GRACE: Duration = Duration::from_secs(1);

/// The loop's side of all readers.
pub struct Readers {
    times: Reads,
    next: u64,
    open: BTreeMap<ReaderId, Reader>,
}

struct Reader {
    session: SessionId,
    /// When its caller gives up, if he said so; then that alone counts.
    deadline: Option<Duration>,
    waiting: BTreeMap<Cid, (Reply<Result<Fetched, Fail>>, Duration)>,
    /// Of those, the ones that everybody who is connected has denied.
    unavailable: BTreeSet<Cid>,
}

impl Readers {
    /// None is open.
    #[must_use]
    pub fn new(times: Reads) -> Self {
        Self {
            times,
            next: 0,
            open: BTreeMap::new(),
        }
    }

    /// A session for a new reader, whose caller waits so long.
    pub fn open(
        &mut self,
        patience: Option<Duration>,
        ctx: &mut Ctx<'_>,
    ) -> Result<ReaderId, Fail> {
        if self.open.len() >= OPEN {
            return Err(Fail::new(
                Code::Conflict,
                format!("{OPEN} reads that wait for other nodes are open already"),
            )
            .hint("wait until one of them is done; what is on this device is read all the same"));
        }
        self.next += 1;
        let session = ctx.exchange.open_session(SessionOptions::default());
        let session =
            session.map_err(|e| Fail::new(Code::Conflict, e).hint("try again in a moment"))?;
        self.open.insert(
            ReaderId(self.next),
            Reader {
                session,
                deadline: patience
                    .map(|patience| ctx.now.saturating_add(patience).saturating_add(GRACE)),
                waiting: BTreeMap::new(),
                unavailable: BTreeSet::new(),
            },
        );
        Ok(ReaderId(self.next))
    }

    /// The reader will want these soon.
    pub fn prefetch(&mut self, id: ReaderId, cids: Vec<Cid>, ctx: &mut Ctx<'_>) {
        let Some(reader) = self.open.get(&id) else {
            return;
        };
        if ctx.disk.refuses().is_some() {
            // What comes before it is asked for would be lost, and fetched again.
            return;
        }
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
        reply: Reply<Result<Fetched, Fail>>,
        ctx: &mut Ctx<'_>,
    ) {
        let Some(reader) = self.open.get_mut(&id) else {
            return drop(reply.send(Err(Fail::new(Code::Failure, "the reader is closed"))));
        };
        if let Some(data) = ctx.arriving.get(&cid) {
            return drop(reply.send(Ok(Fetched::Bytes(data.clone()))));
        }
        if ctx.store.touch(&cid) {
            // It came between the reader's look and this one, and stays under the reader's guard. Not `has`, which knows a block
            // that is just being deleted.
            return drop(reply.send(Ok(Fetched::Here)));
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
        for reader in self.of(session) {
            reader.unavailable.remove(block.cid());
            if let Some((reply, _)) = reader.waiting.remove(block.cid()) {
                let _gone = reply.send(Ok(Fetched::Bytes(block.data().clone())));
            }
        }
    }

    /// Blocks were stored by others on this device.
    pub fn on_put(&mut self, cids: &[Cid], ctx: &mut Ctx<'_>) {
        for reader in self.open.values_mut() {
            if reader.waiting.is_empty() {
                continue;
            }
            for cid in cids {
                if let Some((reply, _)) = reader.waiting.remove(cid) {
                    reader.unavailable.remove(cid);
                    ctx.exchange.cancel(reader.session, &[*cid]);
                    let _gone = reply.send(Ok(Fetched::Here));
                }
            }
        }
    }

    /// The exchange asked everybody for a block, in vain so far.
    pub fn on_unavailable(&mut self, session: SessionId, cid: Cid) {
        for reader in self.of(session) {
            if reader.waiting.contains_key(&cid) {
                reader.unavailable.insert(cid);
            }
        }
    }

    fn of(&mut self, session: SessionId) -> impl Iterator<Item = &mut Reader> {
        self.open
            .values_mut()
            .filter(move |reader| reader.session == session)
    }

    /// Ends what waited too long, and what nobody waits for any more.
    pub fn expire(&mut self, ctx: &mut Ctx<'_>) {
        let times = self.times;
        for reader in self.open.values_mut() {
            let over: Vec<(Cid, Option<Code>)> = reader
                .waiting
                .iter()
                .filter_map(|(cid, (reply, since))| {
                    let code = reader.is_due(cid, *since, &times, ctx);
                    (code.is_some() || reply.is_closed()).then_some((*cid, code))
                })
                .collect();
            for (cid, code) in over {
                reader.unavailable.remove(&cid);
                let Some((reply, _)) = reader.waiting.remove(&cid) else {
                    continue;
                };
                let fail = code.map(|code| not_found(&cid, code, ctx));
                ctx.exchange.cancel(reader.session, &[cid]);
                if let Some(fail) = fail {
                    let _gone = reply.send(Err(fail));
                }
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
    /// Whether to give up on a block, and as what.
    fn is_due(&self, cid: &Cid, since: Duration, times: &Reads, ctx: &Ctx<'_>) -> Option<Code> {
        if let Some(deadline) = self.deadline {
            return (ctx.now >= deadline).then_some(Code::Timeout);
        }
        let waited = ctx.now.saturating_sub(since);
        if ctx.peers == 0 || self.unavailable.contains(cid) {
            return (waited >= times.nobody_has_it).then_some(Code::NotFound);
        }
        let silent = ctx.exchange.silence().is_none_or(|s| s >= times.silence);
        let late = waited >= times.longest || (waited >= times.silence && silent);
        late.then_some(Code::Timeout)
    }
}

fn not_found(cid: &Cid, code: Code, ctx: &Ctx<'_>) -> Fail {
    let cause = why::in_flow(cid, ctx);
    Fail::new(
        code,
        format!("block {cid} is not on this device, and does not come: {cause}"),
    )
    .hint(why::hint(cid, ctx.peers))
}

/// The reader's side: a block source for the synchronous functions of `content`. Used on a blocking thread of the runtime.
pub struct FetchSource {
    store: Store,
    handle: Handle,
    call: Arc<Call>,
    id: Option<ReaderId>,
}

impl FetchSource {
    /// A source that reads the store and falls back to the swarm, for as long as the call lasts.
    #[must_use]
    pub fn new(store: Store, handle: Handle, call: Arc<Call>) -> Self {
        Self {
            store,
            handle,
            call,
            id: None,
        }
    }

    fn block(&mut self, cid: &Cid) -> Result<Bytes, Fail> {
        // A block that came while it was asked for is read once more. Gone again and again means that somebody deletes it.
        let mut guard = None;
        for _ in 0..3 {
            let damaged = match self.store.get(cid) {
                Ok(Some(data)) => return Ok(data),
                Ok(None) => None,
                Err(e) => Some(self.on_damaged(cid, &e)?),
            };
            // What comes meanwhile, by whatever way, is not collected before it is read.
            guard.get_or_insert_with(|| self.store.guard());
            match self.fetch(cid) {
                Ok(Fetched::Bytes(data)) => return Ok(data),
                Ok(Fetched::Here) => {}
                Err(fail) => return Err(worse(damaged, fail)),
            }
        }
        Err(Fail::new(
            Code::Conflict,
            format!("block {cid} was stored and is gone again"),
        )
        .hint("something removes blocks at this moment; try again"))
    }

    /// The swarm may have whole what is damaged here.
    fn on_damaged(&self, cid: &Cid, error: &StoreError) -> Result<Fail, Fail> {
        let fail = crate::repo::store_fail(error);
        if !matches!(error, StoreError::Corrupt { .. }) {
            return Err(fail);
        }
        self.handle
            .tell_blocking(Command::Damaged(*cid, fail.cause.clone()))?;
        Ok(fail)
    }

    fn fetch(&mut self, cid: &Cid) -> Result<Fetched, Fail> {
        self.call.check()?;
        let id = self.open()?;
        let (reply, answer) = oneshot::channel();
        self.handle.tell_blocking(Command::Fetch(id, *cid, reply))?;
        let _waiting = self.call.waits_for(Wait::Block(*cid));
        let answer = async { answer.await.map_err(|_| ending())? };
        tokio::runtime::Handle::current().block_on(self.call.within(answer))
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
        let patience = self.call.patience;
        let id = self
            .handle
            .ask_blocking(|reply| Command::OpenReader(patience, reply))??;
        self.id = Some(id);
        Ok(id)
    }
}

/// A damaged block that nobody else has is damage, and the reason why nobody brings it stands beside it.
fn worse(damaged: Option<Fail>, fail: Fail) -> Fail {
    match damaged {
        Some(damaged) if matches!(fail.code, Code::NotFound | Code::Timeout) => Fail {
            code: damaged.code,
            cause: format!("{}; {}", damaged.cause, fail.cause),
            hint: damaged.hint,
        },
        _ => fail,
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
