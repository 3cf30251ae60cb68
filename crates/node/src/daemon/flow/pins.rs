//! The pins of this device: the desired set, persisted before it is told, and the operations that make it true.
//!
//! Only what is in flight is in memory beside the set. A pin is `pinned` when its completeness is on disk, which is written
//! after its last block is durable. What cannot advance ends with a cause, stays wanted and is tried again: after a pause,
//! and at once when a peer connects.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use gemba_exchange::SessionOptions;
use gemba_pins::{Add, Change, DesiredSet, Edit, Kind, Name, Pin};
use tokio::sync::{mpsc, watch};

use super::Ctx;
use super::disk::{Leave, TRIAL_WINDOW};
use super::fetch::{Fetch, FetchId, Standing, WINDOW};
use crate::api::types::{PinCounts, PinStatus, Trouble};
use crate::daemon::command::{PAGE, Reply};
use crate::daemon::work::{LinkTrouble, StoredBlock};
use crate::error::{Code, Fail};
use crate::meta::Meta;

/// Walks that run at the same time; more would only share the same line.
const RUNNING: usize = 4;
/// Edits that may wait for the disk; beyond it callers are refused.
const EDITS: usize = 4096;
/// Operations whose last word is remembered.
const FINISHED: usize = 4096;
/// No block for so long, and no byte of anything: the operation ends with a cause.
const STALL: Duration = Duration::from_secs(60);
/// No block for so long, though bytes arrive, on a slow line for others perhaps.
const LONG_STALL: Duration = Duration::from_secs(300);
/// The same when every connected peer has said that it has not got the block.
const NOBODY_HAS_IT: Duration = Duration::from_secs(15);
/// A wait that is longer than this is told to whoever follows the operation.
const PATIENT: Duration = Duration::from_secs(3);
/// Pins in error that `status` names one by one; the others are in its count.
const TROUBLES: usize = 16;
/// How often a pin that rests because of the disk asks whether it may go on.
const REST: Duration = Duration::from_secs(1);
/// First pause before the next try; doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause before the next try.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The answer of the thread that persists.
pub struct Persisted {
    change: Option<Change>,
    outcome: Result<(), Fail>,
    after: After,
}

/// What follows an edit.
enum After {
    Pinned(Cid, Reply<Result<watch::Receiver<PinStatus>, Fail>>),
    Unpinned(Cid, Reply<Result<(), Fail>>),
    Renamed(Cid, Reply<Result<(), Fail>>),
    Completed(Cid),
    /// The reply follows the last one of its list.
    Struck(Cid, Option<Reply<()>>),
}

struct Op {
    pin_id: u64,
    kind: Kind,
    phase: Phase,
    attempts: u32,
    /// When the cause of the last end was seen, and the block that was waited for.
    ended: Option<(Duration, Option<Cid>)>,
    view: watch::Sender<PinStatus>,
}

enum Phase {
    Queued,
    Running(Box<Fetch>),
    /// Whole; the record is on its way to the disk.
    Completing,
    /// Ended with a cause; tried again at that time.
    Waiting(Duration),
}

/// See the module's text.
pub struct Pins {
    set: DesiredSet,
    meta: Arc<Meta>,
    answers: mpsc::Sender<Persisted>,
    edits: VecDeque<(Cid, Edit, After)>,
    persisting: bool,
    ops: BTreeMap<Cid, Op>,
    /// The last word of operations that made a pin whole in this process; older ones are counted when asked for.
    finished: BTreeMap<Cid, PinStatus>,
    next_fetch: u64,
    visited_key: [u8; 16],
}

impl Pins {
    /// The persisted set; every pin that is not complete is queued.
    pub fn new(
        set: DesiredSet,
        meta: Arc<Meta>,
        answers: mpsc::Sender<Persisted>,
        visited_key: [u8; 16],
    ) -> Self {
        let mut pins = Self {
            ops: BTreeMap::new(),
            finished: BTreeMap::new(),
            meta,
            answers,
            edits: VecDeque::new(),
            persisting: false,
            next_fetch: 0,
            visited_key,
            set,
        };
        let open: Vec<Pin> = pins.set.incomplete_pins().cloned().collect();
        for pin in open {
            pins.queue(&pin);
        }
        pins
    }

    /// Wants a DAG. The reply follows when the wish is durable.
    pub fn pin(
        &mut self,
        cid: Cid,
        kind: Kind,
        name: Option<String>,
        reply: Reply<Result<watch::Receiver<PinStatus>, Fail>>,
    ) {
        let name = match name.map(Name::new).transpose() {
            Ok(name) => name,
            Err(e) => return drop(reply.send(Err(Fail::new(Code::Usage, e)))),
        };
        let add = Add {
            cid,
            kind,
            name,
            now_ms: wall_clock_ms(),
        };
        self.edit(cid, Edit::Add(add), After::Pinned(cid, reply));
    }

    /// Gives a pin another name, or none. The reply follows when that is durable.
    pub fn rename(&mut self, cid: Cid, name: Option<String>, reply: Reply<Result<(), Fail>>) {
        match name.map(Name::new).transpose() {
            Ok(name) => self.edit(cid, Edit::Rename(name), After::Renamed(cid, reply)),
            Err(e) => drop(reply.send(Err(Fail::new(Code::Usage, e)))),
        }
    }

    /// Wants it no longer; a running fetch ends at once.
    pub fn unpin(&mut self, cid: Cid, reply: Reply<Result<(), Fail>>, ctx: &mut Ctx<'_>) {
        self.end_op(&cid, ctx, "unpinned", None);
        self.edit(cid, Edit::Remove, After::Unpinned(cid, reply));
    }

    fn edit(&mut self, cid: Cid, edit: Edit, after: After) {
        if self.edits.len() >= EDITS {
            return refuse(
                after,
                &Fail::new(Code::Conflict, "too many pin changes wait for the disk")
                    .hint("try again in a moment"),
            );
        }
        self.edits.push_back((cid, edit, after));
        self.persist_next();
    }

    /// One edit at a time goes to the disk: each is planned against what the one before it made true.
    fn persist_next(&mut self) {
        while !self.persisting {
            let Some((cid, edit, after)) = self.edits.pop_front() else {
                return;
            };
            let change = match plan(&mut self.set, cid, edit) {
                Ok(change) => change,
                Err(e) => {
                    refuse(after, &pin_fail(&e));
                    continue;
                }
            };
            self.persisting = true;
            let (meta, answers) = (Arc::clone(&self.meta), self.answers.clone());
            tokio::task::spawn_blocking(move || {
                let outcome = change.as_ref().map_or(Ok(()), |change| meta.apply(change));
                let _loop_ended = answers.blocking_send(Persisted {
                    change,
                    outcome,
                    after,
                });
            });
        }
    }

    /// An edit is durable, or was refused by the disk.
    pub fn on_persisted(&mut self, persisted: Persisted, ctx: &mut Ctx<'_>) {
        self.persisting = false;
        let Persisted {
            change,
            outcome,
            after,
        } = persisted;
        match outcome {
            Err(fail) => self.not_persisted(after, &fail, ctx),
            Ok(()) => {
                if let Some(change) = change
                    && let Err(stale) = self.set.apply(change)
                {
                    tracing::error!(error = %stale, "the pin set changed while an edit was on its way to the disk");
                }
                self.follow_up(after, ctx);
            }
        }
        self.persist_next();
    }

    fn not_persisted(&mut self, after: After, fail: &Fail, ctx: &mut Ctx<'_>) {
        tracing::error!(error = %fail, "a change of the pins could not be made durable");
        if let After::Completed(cid) = &after {
            self.pause(*cid, fail.cause.clone(), ctx);
        }
        refuse(after, fail);
    }

    fn follow_up(&mut self, after: After, ctx: &mut Ctx<'_>) {
        match after {
            After::Pinned(cid, reply) => {
                let Some(pin) = self.set.get(&cid).cloned() else {
                    return;
                };
                let _gone = reply.send(Ok(self.view_of(&pin)));
            }
            After::Unpinned(cid, reply) => {
                self.finished.remove(&cid);
                self.end_op(&cid, ctx, "unpinned", None);
                let _gone = reply.send(Ok(()));
            }
            After::Renamed(cid, reply) => {
                self.show_name(&cid);
                let _gone = reply.send(Ok(()));
            }
            After::Struck(cid, reply) => {
                self.finished.remove(&cid);
                if let Some(pin) = self.set.get(&cid).cloned()
                    && !pin.complete
                    && !self.ops.contains_key(&cid)
                {
                    self.queue(&pin);
                }
                if let Some(reply) = reply {
                    let _gone = reply.send(());
                }
            }
            After::Completed(cid) => {
                if let Some(op) = self.ops.remove(&cid) {
                    self.remember(&cid, &op);
                    op.view.send_modify(|view| view.status = "pinned".into());
                    tracing::info!(%cid, "pinned: every block is durable");
                }
            }
        }
    }

    /// What is told of a pin has its name in it.
    fn show_name(&mut self, cid: &Cid) {
        let pin = self.set.get(cid);
        let name = pin.and_then(|pin| pin.name.as_ref());
        let name = name.map(|name| name.as_str().to_owned());
        if let Some(last) = self.finished.get_mut(cid) {
            last.name.clone_from(&name);
        }
        if let Some(op) = self.ops.get(cid) {
            op.view.send_modify(|view| view.name = name);
        }
    }

    fn remember(&mut self, cid: &Cid, op: &Op) {
        if self.finished.len() >= FINISHED {
            self.finished.pop_first();
        }
        let mut last = op.view.borrow().clone();
        last.status = "pinned".into();
        last.cause = None;
        self.finished.insert(*cid, last);
    }

    fn whole(&self, pin: &Pin) -> PinStatus {
        self.finished
            .get(&pin.cid)
            .cloned()
            .unwrap_or_else(|| status_of(pin, "pinned"))
    }

    /// The view that follows a pin; starts its operation if it is not whole.
    fn view_of(&mut self, pin: &Pin) -> watch::Receiver<PinStatus> {
        if pin.complete {
            return watch::channel(self.whole(pin)).1;
        }
        if let Some(op) = self.ops.get_mut(&pin.cid) {
            if op.pin_id == pin.id {
                if matches!(op.phase, Phase::Waiting(_)) {
                    op.phase = Phase::Queued;
                    op.view
                        .send_modify(|view| view.status = "pin_queued".into());
                }
                return op.view.subscribe();
            }
            self.ops.remove(&pin.cid);
        }
        self.queue(pin)
    }

    fn queue(&mut self, pin: &Pin) -> watch::Receiver<PinStatus> {
        let (view, receiver) = watch::channel(status_of(pin, "pin_queued"));
        let op = Op {
            pin_id: pin.id,
            kind: pin.kind,
            phase: Phase::Queued,
            attempts: 0,
            ended: None,
            view,
        };
        self.ops.insert(pin.cid, op);
        receiver
    }

    /// Starts what may start, asks for what is needed, ends what is whole or stands still. True: call again at once.
    pub fn settle(&mut self, ctx: &mut Ctx<'_>) -> bool {
        self.start_queued(ctx);
        let mut busy = false;
        let mut ended = Vec::new();
        for (cid, op) in &mut self.ops {
            let Phase::Running(fetch) = &mut op.phase else {
                continue;
            };
            let standing = fetch.pump(ctx);
            show(op);
            match standing {
                Standing::Waiting => {}
                Standing::Busy => busy = true,
                ended_now => ended.push((*cid, ended_now)),
            }
        }
        for (cid, standing) in ended {
            self.end(cid, standing, ctx);
        }
        busy
    }

    fn end(&mut self, cid: Cid, standing: Standing, ctx: &mut Ctx<'_>) {
        let Some(op) = self.ops.get_mut(&cid) else {
            return;
        };
        if let Phase::Running(fetch) = &op.phase {
            ctx.exchange.close_session(fetch.session);
        }
        match standing {
            Standing::Refused(cause) => {
                tracing::warn!(%cid, %cause, "this DAG cannot be pinned");
                op.phase = Phase::Waiting(Duration::MAX);
                op.ended = Some((ctx.now, None));
                fail_view(op, cause);
            }
            _ => {
                op.phase = Phase::Completing;
                let id = op.pin_id;
                self.edit(cid, Edit::Complete { id }, After::Completed(cid));
            }
        }
    }

    fn start_queued(&mut self, ctx: &mut Ctx<'_>) {
        let running = self
            .ops
            .values()
            .filter(|op| matches!(op.phase, Phase::Running(_)))
            .count();
        let mut room = RUNNING.saturating_sub(running);
        let mut under_way: Vec<Cid> = self
            .ops
            .iter()
            .filter(|(_, op)| matches!(op.phase, Phase::Running(_)))
            .map(|(cid, _)| *cid)
            .collect();
        for (cid, op) in &mut self.ops {
            let due = match op.phase {
                Phase::Queued => true,
                Phase::Waiting(at) => at <= ctx.now,
                _ => false,
            };
            if room == 0 || !due {
                continue;
            }
            let leave = ctx.disk.leave(*cid, |cid| under_way.contains(cid), ctx.now);
            if leave == Leave::Wait {
                rest(op, ctx);
                continue;
            }
            // Refused only while readers hold all sessions; tried again on the next tick.
            let Ok(session) = ctx
                .exchange
                .open_session(SessionOptions::default().with_root(*cid))
            else {
                return;
            };
            room -= 1;
            under_way.push(*cid);
            self.next_fetch += 1;
            op.attempts += 1;
            let fetch = Fetch::start(
                FetchId(self.next_fetch),
                *cid,
                op.kind,
                session,
                self.visited_key,
                if leave == Leave::Try {
                    TRIAL_WINDOW
                } else {
                    WINDOW
                },
                ctx.now,
            );
            op.phase = Phase::Running(Box::new(fetch));
            op.view.send_modify(|view| {
                view.status = "pinning".into();
                view.attempts = op.attempts;
            });
        }
    }

    /// Ends what stood still too long. Called on the loop's tick.
    pub fn expire(&mut self, ctx: &mut Ctx<'_>) {
        let still: Vec<(Cid, String)> = self
            .ops
            .iter()
            .filter_map(|(cid, op)| Some((*cid, stalled(op, ctx)?)))
            .collect();
        for (cid, cause) in still {
            tracing::warn!(%cid, %cause, "pinning does not advance; it stays wanted and is tried again");
            self.pause(cid, cause, ctx);
        }
        for op in self.ops.values_mut() {
            if let Phase::Running(fetch) = &mut op.phase {
                fetch.retry_missing();
                let waits = ctx.now.saturating_sub(fetch.advanced) >= PATIENT;
                fetch.told = waits.then(|| fetch.cause(ctx));
            }
        }
    }

    fn pause(&mut self, cid: Cid, cause: String, ctx: &mut Ctx<'_>) {
        let Some(op) = self.ops.get_mut(&cid) else {
            return;
        };
        let mut lacks = None;
        if let Phase::Running(fetch) = &op.phase {
            lacks = fetch.lacks();
            ctx.exchange.close_session(fetch.session);
        }
        op.ended = Some((ctx.now, lacks));
        let pause = FIRST_PAUSE
            .saturating_mul(1 << op.attempts.min(6))
            .min(LONGEST_PAUSE);
        op.phase = Phase::Waiting(ctx.now.saturating_add(pause));
        fail_view(op, cause);
    }

    fn end_op(&mut self, cid: &Cid, ctx: &mut Ctx<'_>, status: &str, cause: Option<String>) {
        let Some(op) = self.ops.remove(cid) else {
            return;
        };
        if let Phase::Running(fetch) = &op.phase {
            ctx.exchange.close_session(fetch.session);
        }
        op.view.send_modify(|view| {
            view.status = status.into();
            view.cause = cause;
        });
    }

    /// A new peer may have what the others had not.
    pub fn try_again(&mut self) {
        for op in self.ops.values_mut() {
            requeue(op);
        }
    }

    /// The disk takes blocks again: who rested goes on, and who tried goes on in full.
    pub fn on_disk_takes(&mut self) {
        self.try_again();
        self.running().for_each(Fetch::open_window);
    }

    /// Blocks were stored by others on this device: walks that wait for them go on, pins that ended for want of one begin anew.
    pub fn on_put(&mut self, cids: &[Cid], ctx: &mut Ctx<'_>) {
        for op in self.ops.values_mut() {
            let lacked = op.ended.and_then(|(_, lacks)| lacks);
            match &mut op.phase {
                Phase::Running(fetch) => cids.iter().for_each(|cid| fetch.on_put(cid, ctx)),
                Phase::Waiting(_) if lacked.is_some_and(|cid| cids.contains(&cid)) => requeue(op),
                _ => {}
            }
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

    /// The disk takes no blocks: whatever is being fetched rests at once, for every byte more would be lost.
    pub fn on_disk_refused(&mut self, ctx: &mut Ctx<'_>) {
        for op in self.ops.values_mut() {
            if matches!(op.phase, Phase::Running(_)) {
                rest(op, ctx);
            }
        }
    }

    /// Whether one waits for its turn or its next try.
    pub fn rests(&self) -> bool {
        let waits = |op: &Op| matches!(op.phase, Phase::Queued | Phase::Waiting(_));
        self.ops.values().any(waits)
    }

    /// A loader read the links of a block for a walk.
    pub fn on_links(
        &mut self,
        id: FetchId,
        cid: &Cid,
        answer: Result<(u64, Vec<Cid>), LinkTrouble>,
        ctx: &mut Ctx<'_>,
    ) {
        if let Some(fetch) = self.running().find(|fetch| fetch.id == id) {
            fetch.on_links(cid, answer, ctx);
        }
    }

    /// The exchange asked everybody for a block of this session, in vain so far.
    pub fn on_unavailable(&mut self, session: gemba_exchange::SessionId, cid: Cid, asked: usize) {
        if let Some(fetch) = self.running().find(|fetch| fetch.session == session) {
            fetch.unavailable = Some((cid, asked));
        }
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Fetch> {
        self.ops.values_mut().filter_map(|op| match &mut op.phase {
            Phase::Running(fetch) => Some(&mut **fetch),
            _ => None,
        })
    }

    /// Pins that miss a block are not whole any more; they are made whole again from the swarm.
    pub fn strike_out(&mut self, mut roots: Vec<Cid>, reply: Reply<()>) {
        let Some(last) = roots.pop() else {
            let _gone = reply.send(());
            return;
        };
        for root in roots {
            self.edit(root, Edit::Incomplete, After::Struck(root, None));
        }
        self.edit(last, Edit::Incomplete, After::Struck(last, Some(reply)));
    }

    /// What ought to be here.
    pub fn desired(&self) -> &DesiredSet {
        &self.set
    }

    /// One pin; `None` if it is not wanted.
    pub fn status(&self, cid: &Cid) -> Option<PinStatus> {
        let pin = self.set.get(cid)?;
        Some(
            self.ops
                .get(cid)
                .map_or_else(|| self.whole(pin), |op| op.view.borrow().clone()),
        )
    }

    /// The block that a pin's operation waits for first, or ended for want of.
    pub fn lacks(&self, root: &Cid) -> Option<Cid> {
        let op = self.ops.get(root)?;
        match &op.phase {
            Phase::Running(fetch) => fetch.lacks(),
            _ => op.ended?.1,
        }
    }

    /// Pins behind `after` in the order of their CIDs, at most a page of them.
    pub fn list(&self, after: Option<&Cid>) -> Vec<PinStatus> {
        self.set
            .iter_after(after)
            .take(PAGE)
            .filter_map(|pin| self.status(&pin.cid))
            .collect()
    }

    /// Pins that ended with a cause of their own, for `status`.
    pub fn troubles(&self, now: Duration) -> Vec<Trouble> {
        let told = self.ops.iter().filter_map(|(cid, op)| {
            let Phase::Waiting(at) = op.phase else {
                return None;
            };
            let (ended, _) = op.ended?;
            Some(Trouble {
                address: cid.to_string(),
                peer: None,
                direction: "local".to_owned(),
                kind: "pin".to_owned(),
                cause: op.view.borrow().cause.clone()?,
                age_s: now.saturating_sub(ended).as_secs(),
                count: u64::from(op.attempts),
                retry_in_s: (at != Duration::MAX).then(|| at.saturating_sub(now).as_secs()),
            })
        });
        told.take(TROUBLES).collect()
    }

    /// Pins by state.
    pub fn counts(&self) -> PinCounts {
        let mut counts = PinCounts {
            pinned: (self.set.len() - self.ops.len().min(self.set.len())) as u64,
            ..PinCounts::default()
        };
        for op in self.ops.values() {
            match op.phase {
                Phase::Queued => counts.queued += 1,
                Phase::Running(_) | Phase::Completing => counts.pinning += 1,
                Phase::Waiting(_) => counts.error += 1,
            }
        }
        counts
    }
}

/// The cause, if the operation stood still for too long.
fn stalled(op: &Op, ctx: &Ctx<'_>) -> Option<String> {
    let Phase::Running(fetch) = &op.phase else {
        return None;
    };
    let still = ctx.now.saturating_sub(fetch.advanced);
    let late = if fetch.unavailable.is_some() || ctx.peers == 0 {
        still >= NOBODY_HAS_IT
    } else {
        let silent = ctx
            .exchange
            .silence()
            .is_none_or(|silence| silence >= STALL);
        still >= LONG_STALL || (still >= STALL && silent)
    };
    late.then(|| fetch.cause(ctx))
}

/// Puts an operation to rest because the disk takes no blocks. That is no attempt that failed.
fn rest(op: &mut Op, ctx: &mut Ctx<'_>) {
    let was_running = if let Phase::Running(fetch) = &op.phase {
        ctx.exchange.close_session(fetch.session);
        true
    } else {
        false
    };
    let again = ctx.now.saturating_add(REST);
    let told = matches!(op.phase, Phase::Waiting(_)) && !was_running;
    op.phase = Phase::Waiting(again);
    if !told && let Some(cause) = ctx.disk.words() {
        // The disk is named once in `status`, not once a pin.
        op.ended = None;
        fail_view(op, cause);
    }
}

/// An operation that waits for its next try has it now.
fn requeue(op: &mut Op) {
    if matches!(op.phase, Phase::Waiting(at) if at != Duration::MAX) {
        op.phase = Phase::Queued;
        op.view
            .send_modify(|view| view.status = "pin_queued".into());
    }
}

fn show(op: &Op) {
    let Phase::Running(fetch) = &op.phase else {
        return;
    };
    let progress = fetch.progress();
    op.view.send_if_modified(|view| {
        let cause = fetch.told.clone().or_else(|| {
            fetch
                .unavailable
                .map(|(cid, asked)| format!("so far {}", crate::text::nobody_has(&cid, asked)))
        });
        let changed = view.blocks_done != progress.blocks_done
            || view.blocks_pending != progress.pending
            || view.cause != cause;
        view.blocks_done = progress.blocks_done;
        view.bytes_done = progress.bytes_done;
        view.blocks_fetched = progress.blocks_fetched;
        view.bytes_fetched = progress.bytes_fetched;
        view.blocks_pending = progress.pending;
        view.cause = cause;
        changed
    });
}

fn fail_view(op: &Op, cause: String) {
    op.view.send_modify(|view| {
        view.status = "pin_error".into();
        view.attempts = op.attempts;
        view.cause = Some(cause);
    });
}

fn status_of(pin: &Pin, status: &str) -> PinStatus {
    PinStatus {
        cid: pin.cid.to_string(),
        status: status.to_owned(),
        kind: pin.kind.as_str().to_owned(),
        name: pin.name.as_ref().map(|name| name.as_str().to_owned()),
        blocks_done: 0,
        bytes_done: 0,
        blocks_fetched: 0,
        bytes_fetched: 0,
        blocks_pending: 0,
        attempts: 0,
        cause: None,
    }
}

fn refuse(after: After, fail: &Fail) {
    match after {
        After::Pinned(_, reply) => drop(reply.send(Err(fail.clone()))),
        After::Unpinned(_, reply) | After::Renamed(_, reply) => drop(reply.send(Err(fail.clone()))),
        After::Struck(_, reply) => {
            if let Some(reply) = reply {
                let _gone = reply.send(());
            }
        }
        After::Completed(cid) => {
            tracing::debug!(%cid, error = %fail, "a pin went away before it was whole");
        }
    }
}

fn pin_fail(error: &gemba_pins::PinError) -> Fail {
    use gemba_pins::PinError as E;
    let code = match error {
        E::NotPinned(_) => Code::NotFound,
        _ => Code::Conflict,
    };
    Fail::new(code, error)
}

/// For display only, never for order.
fn wall_clock_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// What an edit means for the set as it is now.
fn plan(
    set: &mut DesiredSet,
    cid: Cid,
    edit: Edit,
) -> Result<Option<Change>, gemba_pins::PinError> {
    match edit {
        Edit::Add(add) => set.add(add),
        Edit::Complete { id } => set.complete(&cid, id),
        Edit::Incomplete => set.incomplete(&cid),
        Edit::Rename(name) => set.rename(&cid, name),
        _ => set.remove(&cid).map(Some),
    }
}
