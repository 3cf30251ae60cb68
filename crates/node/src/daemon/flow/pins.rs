//! The pins of this device: wishes are persisted before they are told, and the tracker's operations make them true.
//!
//! [`gemba_pins::Tracker`] decides what is begun, ended, tried again and when; here its outputs become walks, sessions and edits, and what these
//! come to goes back as inputs. The desired set is in its table on disk and never in memory. Edits go there in the order in which they were
//! asked for, as many as wait in one transaction; so does the tracker's look at what is not whole, which thus sees what was wanted before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use gemba_pins::{
    Add, Connector as _, Edit, Input, Kind, Name, OpId, OpKind, Operation, Output, Phase, Pin,
    Progress, Size, Status, Target, Ticket, TrackError, Tracker, TrackerConfig,
};
use tokio::sync::{mpsc, watch};

use super::Ctx;
use super::fetch::FetchId;
use super::walks::Walks;
use crate::api::types::{PinCounts, PinStatus, Trouble};
use crate::daemon::command::Reply;
use crate::daemon::work::{LinkTrouble, StoredBlock};
use crate::error::{Code, Fail};
use crate::meta::{Edited, PinEdit, PinRows, PinState};

/// Edits that may wait for the disk; beyond it callers are refused.
const EDITS: usize = 4096;
/// Edits of one transaction.
const BATCH: usize = 512;
/// Pins in error that `status` names one by one; the others are in its count.
const TROUBLES: usize = 16;

/// The answer of the thread that persists.
pub struct Persisted {
    outcomes: Result<Vec<Result<Edited, Fail>>, Fail>,
    afters: Vec<After>,
    drawn: Option<Result<(Vec<Pin>, bool), Fail>>,
}

/// Follows a pin.
pub type View = watch::Receiver<PinStatus>;

/// What follows an edit.
enum After {
    Pinned(Reply<Result<View, Fail>>),
    /// A change that the tracker has no part in, unless something is to be fetched.
    Changed(Reply<Result<(), Fail>>),
    Listed(Reply<Vec<Result<Edited, Fail>>>, usize),
    Completed(Ticket),
    Removed(Ticket),
    /// So many; the reply follows the last one of its list.
    Struck(usize, Option<Reply<()>>),
}

/// See the module's text.
pub struct Pins {
    state: Arc<dyn PinState>,
    answers: mpsc::Sender<Persisted>,
    tracker: Tracker,
    walks: Walks,
    /// Those whom somebody follows.
    views: BTreeMap<Cid, watch::Sender<PinStatus>>,
    /// Who waits for a removal.
    removals: BTreeMap<OpId, Vec<Reply<Result<(), Fail>>>>,
    edits: VecDeque<(Vec<PinEdit>, After)>,
    draw: Option<(Option<Cid>, usize)>,
    persisting: bool,
    /// Whether a pin became whole since somebody asked. At the start all that are whole count as that.
    whole: bool,
}

impl Pins {
    /// Everything that is not whole is drawn from the table.
    pub fn new(
        state: Arc<dyn PinState>,
        answers: mpsc::Sender<Persisted>,
        visited_key: [u8; 16],
        config: TrackerConfig,
    ) -> Self {
        Self {
            state,
            answers,
            tracker: Tracker::new(config),
            walks: Walks::new(visited_key),
            views: BTreeMap::new(),
            removals: BTreeMap::new(),
            edits: VecDeque::new(),
            draw: None,
            persisting: false,
            whole: true,
        }
    }

    // What is wanted.

    /// Somebody wants a DAG. The reply follows when the wish is durable.
    pub fn pin(
        &mut self,
        (cid, kind): (Cid, Kind),
        name: Option<String>,
        reply: Reply<Result<View, Fail>>,
        now: Duration,
    ) {
        match added(cid, kind, name) {
            Ok(add) => self.want(PinEdit::Own(add), cid, reply, now),
            Err(fail) => drop(reply.send(Err(fail))),
        }
    }

    /// A follow does. What somebody pinned already keeps its name.
    pub fn pin_followed(
        &mut self,
        cid: Cid,
        label: String,
        reply: Reply<Result<View, Fail>>,
        now: Duration,
    ) {
        match added(cid, Kind::Recursive, Some(label)) {
            Ok(add) => self.want(PinEdit::Followed(add), cid, reply, now),
            Err(fail) => drop(reply.send(Err(fail))),
        }
    }

    fn want(&mut self, edit: PinEdit, cid: Cid, reply: Reply<Result<View, Fail>>, now: Duration) {
        self.tell(Input::Pin(cid), now);
        self.record_removals(now);
        self.edit(vec![edit], After::Pinned(reply), now);
    }

    /// Wants what a list names, as far as it is not wanted already. At most some hundred at a time.
    pub fn import(
        &mut self,
        adds: Vec<Add>,
        reply: Reply<Vec<Result<Edited, Fail>>>,
        now: Duration,
    ) {
        for add in &adds {
            self.tell(Input::Pin(add.cid), now);
        }
        self.record_removals(now);
        let count = adds.len();
        let edits = adds.into_iter().map(PinEdit::Listed).collect();
        self.edit(edits, After::Listed(reply, count), now);
    }

    /// Wants it no longer; a running fetch ends at once.
    pub fn unpin(&mut self, cid: Cid, reply: Reply<Result<(), Fail>>, now: Duration) {
        match self.tracker.handle(Input::Unpin(cid), now) {
            Ok(()) => self.wait_for_removal(cid, reply),
            Err(e) => drop(reply.send(Err(refused(&e)))),
        }
    }

    /// Ends what is being done about it. What was whole before is not given up that way.
    pub fn cancel(&mut self, cid: Cid, reply: Reply<Result<(), Fail>>, now: Duration) {
        let op = self.tracker.operation(&cid).map(|op| op.kind);
        if op == Some(OpKind::Pin) {
            match self.rows().and_then(|rows| rows.get(&cid)) {
                Ok(Some(pin)) if pin.lacks => {
                    let cause = format!(
                        "{cid} was whole and lacks a block that is fetched again; to cancel that would give it up"
                    );
                    return drop(
                        reply.send(Err(Fail::new(Code::Conflict, cause)
                            .hint(format!("`gemba pin rm {cid}` gives it up")))),
                    );
                }
                Ok(_) => {}
                Err(fail) => return drop(reply.send(Err(fail))),
            }
        }
        match self.tracker.handle(Input::Cancel(cid), now) {
            Ok(()) if op == Some(OpKind::Pin) => self.wait_for_removal(cid, reply),
            Ok(()) => drop(reply.send(Ok(()))),
            Err(e) => drop(reply.send(Err(refused(&e)))),
        }
    }

    fn wait_for_removal(&mut self, cid: Cid, reply: Reply<Result<(), Fail>>) {
        match self.tracker.operation(&cid) {
            Some(op) => self.removals.entry(op.ticket.op).or_default().push(reply),
            None => drop(reply.send(Err(Fail::internal("a removal without an operation")))),
        }
    }

    /// A change of the record alone; the reply follows when it is durable.
    pub fn change(&mut self, edit: PinEdit, reply: Reply<Result<(), Fail>>, now: Duration) {
        self.edit(vec![edit], After::Changed(reply), now);
    }

    /// Pins that miss a block are not whole any more; they are made whole again from the swarm.
    pub fn strike_out(&mut self, roots: Vec<Cid>, reply: Reply<()>, now: Duration) {
        if roots.is_empty() {
            let _gone = reply.send(());
            return;
        }
        let mut edits: Vec<PinEdit> = roots
            .into_iter()
            .map(|root| PinEdit::Plain(root, Edit::Incomplete))
            .collect();
        while edits.len() > BATCH {
            let rest = edits.split_off(edits.len() - BATCH);
            self.edit(rest, After::Struck(BATCH, None), now);
        }
        let count = edits.len();
        self.edit(edits, After::Struck(count, Some(reply)), now);
    }

    /// Tries again what failed: one, or all. How many operations that are.
    ///
    /// # Errors
    /// [`Code::NotFound`]: it is not wanted.
    pub fn recover(&mut self, one: Option<Cid>, now: Duration) -> Result<u64, Fail> {
        let Some(cid) = one else {
            let failed = self.failed().count() as u64;
            self.tell(Input::Recover(None), now);
            return Ok(failed);
        };
        if self.tracker.operation(&cid).is_some() {
            let failed = self.failed().any(|op| op.ticket.cid == cid);
            self.tell(Input::Recover(Some(cid)), now);
            return Ok(u64::from(failed));
        }
        match self.rows()?.get(&cid)? {
            None => Err(crate::meta::pin_fail(gemba_pins::PinError::NotPinned(cid))),
            Some(pin) => {
                self.wanted(&pin, true, now);
                Ok(u64::from(!pin.complete))
            }
        }
    }

    /// Ends what is being done to make a root whole that no record wants; whether anything was.
    ///
    /// # Errors
    /// The disk's.
    pub fn end_unwanted(&mut self, cid: &Cid, now: Duration) -> Result<bool, Fail> {
        let is_worked_for = self.is_pinning(cid) && self.rows()?.get(cid)?.is_none();
        if is_worked_for {
            self.tell(Input::Gone(*cid), now);
        }
        Ok(is_worked_for)
    }

    fn failed(&self) -> impl Iterator<Item = &Operation> {
        let all = self.tracker.operations();
        all.filter(|op| op.phase == Phase::Failed)
    }

    fn wanted(&mut self, pin: &Pin, recent: bool, now: Duration) {
        if !pin.complete {
            let target = target(pin);
            self.tell(Input::Wanted { target, recent }, now);
        }
    }

    /// Facts are never refused.
    fn tell(&mut self, input: Input, now: Duration) {
        let outcome = self.tracker.handle(input, now);
        debug_assert!(outcome.is_ok());
    }

    // What is persisted.

    fn edit(&mut self, edits: Vec<PinEdit>, after: After, now: Duration) {
        // What the tracker asks for is bounded by its operations.
        let is_own = matches!(after, After::Completed(_) | After::Removed(_));
        if self.edits.len() >= EDITS && !is_own {
            let fail = Fail::new(Code::Conflict, "too many pin changes wait for the disk")
                .hint("try again in a moment");
            let mut refused = std::iter::repeat_with(|| Err(fail.clone()));
            return self.follow_up(after, &mut refused, now);
        }
        self.edits.push_back((edits, after));
        self.persist_next();
    }

    /// One transaction at a time, with what waits; a look at the table is the last of it.
    fn persist_next(&mut self) {
        if self.persisting || (self.edits.is_empty() && self.draw.is_none()) {
            return;
        }
        let (mut edits, mut afters) = (Vec::new(), Vec::new());
        while let Some((next, _)) = self.edits.front()
            && (edits.is_empty() || edits.len() + next.len() <= BATCH)
            && let Some((next, after)) = self.edits.pop_front()
        {
            edits.extend(next);
            afters.push(after);
        }
        // Only behind everything that was wanted before it.
        let draw = self.draw.take_if(|_| self.edits.is_empty());
        self.persisting = true;
        let (state, answers) = (Arc::clone(&self.state), self.answers.clone());
        tokio::task::spawn_blocking(move || {
            let outcomes = match edits.is_empty() {
                true => Ok(Vec::new()),
                false => state.edit(&edits),
            };
            let drawn = draw.map(|(after, at_most)| {
                let rows = state.pins()?;
                rows.open_page(after.as_ref(), at_most)
            });
            let _loop_ended = answers.blocking_send(Persisted {
                outcomes,
                afters,
                drawn,
            });
        });
    }

    /// Whether an edit is on its way to the disk: what is read now may be older than what was asked for.
    pub fn is_writing(&self) -> bool {
        self.persisting || !self.edits.is_empty()
    }

    /// Edits are durable, or were refused.
    pub fn on_persisted(&mut self, persisted: Persisted, now: Duration) {
        self.persisting = false;
        let Persisted {
            outcomes,
            afters,
            drawn,
        } = persisted;
        match outcomes {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for after in afters {
                    self.follow_up(after, &mut outcomes, now);
                }
            }
            Err(fail) => {
                tracing::error!(error = %fail, "changes of the pins could not be made durable");
                let mut refused = std::iter::repeat_with(|| Err(fail.clone()));
                for after in afters {
                    self.follow_up(after, &mut refused, now);
                }
            }
        }
        match drawn {
            None => {}
            Some(Ok((pins, more))) => {
                let targets = pins.iter().map(target).collect();
                self.tell(Input::Drawn { targets, more }, now);
            }
            Some(Err(fail)) => {
                tracing::error!(error = %fail, "the pins could not be read");
                self.tell(Input::NotDrawn, now);
            }
        }
        self.persist_next();
    }

    fn follow_up(
        &mut self,
        after: After,
        outcomes: &mut dyn Iterator<Item = Result<Edited, Fail>>,
        now: Duration,
    ) {
        let mut next = || {
            let missing = || Err(Fail::internal("an edit without an outcome"));
            outcomes.next().unwrap_or_else(missing)
        };
        match after {
            After::Pinned(reply) => {
                let view = next().and_then(|edited| {
                    self.on_edited(&edited, true, now);
                    let pin = edited.after;
                    pin.map(|pin| self.view_of(&pin))
                        .ok_or_else(|| Fail::internal("a pin without a record"))
                });
                let _gone = reply.send(view);
            }
            After::Changed(reply) => {
                let done = next().map(|edited| self.on_edited(&edited, false, now));
                let _gone = reply.send(done);
            }
            After::Listed(reply, count) => {
                let outcomes: Vec<_> = (0..count).map(|_| next()).collect();
                for edited in outcomes.iter().flatten() {
                    self.on_edited(edited, false, now);
                }
                let _gone = reply.send(outcomes);
            }
            After::Completed(ticket) => self.on_completed(ticket, next(), now),
            After::Removed(ticket) => self.on_removed(ticket, next(), now),
            After::Struck(count, reply) => {
                let struck: Vec<_> = (0..count).filter_map(|_| next().ok()).collect();
                for edited in &struck {
                    self.on_edited(edited, false, now);
                }
                if let Some(reply) = reply {
                    let _gone = reply.send(());
                }
            }
        }
    }

    /// A record is durable: work for it begins.
    fn on_edited(&mut self, edited: &Edited, recent: bool, now: Duration) {
        match &edited.after {
            Some(pin) => {
                if let Some(view) = self.views.get(&pin.cid) {
                    view.send_modify(|view| view.name = name_of(pin));
                }
                self.wanted(pin, recent, now);
            }
            None if edited.before.is_some() => {
                // The end of an operation is told when it comes; one that gave way to others has none.
                let is_worked_for = self.op(&edited.cid).is_some();
                self.tell(Input::Gone(edited.cid), now);
                if !is_worked_for {
                    self.last_word(&edited.cid, Status::Unpinned);
                }
            }
            None => {}
        }
    }

    fn on_completed(&mut self, ticket: Ticket, outcome: Result<Edited, Fail>, now: Duration) {
        match outcome {
            Ok(_) => self.tell(Input::Recorded(ticket, Ok(())), now),
            // It was unpinned or widened meanwhile: whoever did that has told the tracker.
            Err(fail) if matches!(fail.code, Code::NotFound | Code::Conflict) => {
                let is_current = |op: &Operation| op.ticket == ticket;
                if self.tracker.operation(&ticket.cid).is_some_and(is_current) {
                    self.tell(Input::Gone(ticket.cid), now);
                }
            }
            Err(fail) => self.tell(Input::Recorded(ticket, Err(fail.cause)), now),
        }
    }

    fn on_removed(&mut self, ticket: Ticket, outcome: Result<Edited, Fail>, now: Duration) {
        let replies = self.removals.remove(&ticket.op).unwrap_or_default();
        let done = outcome.map(drop);
        for reply in replies {
            let _gone = reply.send(done.clone());
        }
        match done {
            Ok(()) => {
                self.tell(Input::Recorded(ticket, Ok(())), now);
            }
            Err(fail) if fail.code == Code::NotFound => {
                let is_current = |op: &Operation| op.ticket == ticket;
                if self.tracker.operation(&ticket.cid).is_some_and(is_current) {
                    self.tell(Input::Gone(ticket.cid), now);
                }
            }
            Err(fail) => self.tell(Input::Recorded(ticket, Err(fail.cause)), now),
        }
    }

    /// Follows a pin. One that is whole and needs nothing stays as it is told now.
    fn view_of(&mut self, pin: &Pin) -> View {
        let op = self.op(&pin.cid);
        let (told, is_over) = (told(pin, op), pin.complete && op.is_none());
        if is_over {
            return watch::channel(told).1;
        }
        let view = self.views.entry(pin.cid);
        let view = view.or_insert_with(|| watch::channel(told.clone()).0);
        view.send_modify(|view| *view = told);
        view.subscribe()
    }

    /// Follows a pin, whatever it is.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the disk's.
    pub fn watch(&mut self, cid: &Cid) -> Result<View, Fail> {
        match self.rows()?.get(cid)? {
            None => Err(crate::meta::pin_fail(gemba_pins::PinError::NotPinned(*cid))),
            Some(pin) => Ok(self.view_of(&pin)),
        }
    }

    // What is done.

    /// Begins, feeds and ends walks, until there is nothing more to do now. True: call again at once.
    pub fn settle(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let _fed_below = self.carry_out(ctx);
        let (facts, busy) = self.walks.advance(&self.tracker, ctx);
        self.tell_all(facts, ctx.now);
        // What begins now is fed at once.
        let begun = self.carry_out(ctx);
        busy || begun
    }

    /// Facts of walks, and what whoever follows these sees of them.
    fn tell_all(&mut self, facts: Vec<Input>, now: Duration) {
        let moved: Vec<Cid> = facts.iter().filter_map(concerned).collect();
        for fact in facts {
            self.tell(fact, now);
        }
        for cid in moved {
            self.show(&cid);
        }
    }

    /// What the tracker says. True: a walk began.
    fn carry_out(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let now = ctx.now;
        while let Some(output) = self.tracker.poll_through(&mut self.walks, ctx, now) {
            self.record(output, now);
        }
        self.walks.take_begun()
    }

    /// What was taken back before a wish is recorded before it.
    fn record_removals(&mut self, now: Duration) {
        while let Some(ticket) = self.tracker.poll_removal() {
            self.record(Output::Remove(ticket), now);
        }
    }

    /// What is to be persisted or told.
    fn record(&mut self, output: Output, now: Duration) {
        match output {
            Output::Complete(ticket, id) => {
                let op = self.tracker.operation(&ticket.cid);
                let size = op.map(|op| size(&op.progress));
                let edit = PinEdit::Plain(ticket.cid, Edit::Complete { id, size });
                self.edit(vec![edit], After::Completed(ticket), now);
            }
            Output::Remove(ticket) => {
                let edit = PinEdit::Release(ticket.cid, None);
                self.edit(vec![edit], After::Removed(ticket), now);
            }
            Output::Draw(after, at_most) => {
                self.draw = Some((after, at_most));
                self.persist_next();
            }
            Output::Changed(cid) => {
                self.log(&cid);
                self.show(&cid);
            }
            Output::Ended(op) => self.on_ended(&op),
            // For whoever walks.
            Output::Start(..) | Output::Stop(_) => {}
        }
    }

    /// Its last word goes to whoever follows it. Who waits for a removal is answered when the disk is.
    fn on_ended(&mut self, op: &Operation) {
        let cid = op.ticket.cid;
        let is_done = op.phase == Phase::Done;
        if op.kind == OpKind::Pin && is_done {
            self.whole = true;
            tracing::info!(%cid, "pinned: every block is durable");
        }
        let Some(view) = self.views.get(&cid) else {
            return;
        };
        let status = match (op.kind, is_done) {
            // Another pin of the root took its place, which may reach further.
            (OpKind::Pin, _) if self.is_pinning(&cid) => return self.show(&cid),
            (OpKind::Pin, true) => Status::Pinned,
            (OpKind::Pin, false) => Status::Unpinned,
            (OpKind::Unpin, _) => return self.on_removal_ended(&cid, is_done),
        };
        view.send_modify(|view| fill(view, op));
        self.last_word(&cid, status);
    }

    /// A newer wish may have become durable in the same transaction, and a removal that is given up leaves what it would have removed: whoever follows
    /// the root goes on with that.
    fn on_removal_ended(&mut self, cid: &Cid, is_done: bool) {
        let pin = match self.rows().and_then(|rows| rows.get(cid)) {
            Ok(Some(pin)) => pin,
            // The disk does not tell.
            Err(_) if !is_done => return,
            Ok(None) | Err(_) => return self.last_word(cid, Status::Unpinned),
        };
        let told = told(&pin, self.op(cid));
        let is_over = told.status == Status::Pinned.as_str();
        if let Some(view) = self.views.get(cid) {
            view.send_replace(told);
        }
        if is_over {
            self.last_word(cid, Status::Pinned);
        }
    }

    /// Nothing more comes for whoever follows it.
    fn last_word(&mut self, cid: &Cid, status: Status) {
        if let Some(view) = self.views.remove(cid) {
            view.send_modify(|view| {
                view.status = status.as_str().to_owned();
                view.cause = None;
            });
        }
    }

    /// Whether a pin became whole since this was asked last.
    pub fn take_whole(&mut self) -> bool {
        std::mem::take(&mut self.whole)
    }

    fn is_pinning(&self, cid: &Cid) -> bool {
        let op = self.tracker.operation(cid);
        op.is_some_and(|op| op.kind == OpKind::Pin)
    }

    fn show(&self, cid: &Cid) {
        let Some(view) = self.views.get(cid) else {
            return;
        };
        let op = self.tracker.operation(cid);
        view.send_if_modified(|view| {
            let before = view.clone();
            match op {
                Some(op) => fill(view, op),
                None => view.status = Status::PinQueued.as_str().to_owned(),
            }
            *view != before
        });
    }

    fn log(&self, cid: &Cid) {
        if let Some(op) = self.tracker.operation(cid)
            && op.phase == Phase::Failed
            && !op.rests
        {
            let cause = op.cause.as_deref().unwrap_or_default();
            tracing::warn!(%cid, %cause, attempts = op.attempts, "an operation does not advance; it is tried again");
        }
    }

    /// Tells the tracker what keeps those that stand still, and ends what stood too long. Called on the loop's tick.
    pub fn expire(&mut self, ctx: &mut Ctx<'_>) {
        self.walks.retry_missing();
        let facts = self.walks.standing(ctx);
        self.tell_all(facts, ctx.now);
        self.tracker.expire(ctx.now);
        // Whoever followed them is gone.
        self.views.retain(|_, view| view.receiver_count() > 0);
    }

    /// A new peer may have what the others had not.
    pub fn try_again(&mut self, now: Duration) {
        self.tell(Input::Nudge, now);
    }

    /// The disk takes blocks again: who rested goes on, and who tried goes on in full.
    pub fn on_disk_takes(&mut self, now: Duration) {
        self.try_again(now);
        self.walks.open_windows();
    }

    /// Blocks were stored by others on this device: walks that wait for them go on, pins that ended for want of one begin anew.
    pub fn on_put(&mut self, cids: &[Cid], ctx: &mut Ctx<'_>) {
        self.walks.on_put(cids, ctx);
        self.tell(Input::Here(cids.to_vec()), ctx.now);
    }

    /// A batch is durable.
    pub fn on_stored(&mut self, blocks: &[StoredBlock], now: Duration) {
        self.walks.on_stored(blocks, now);
    }

    /// The disk takes no blocks: whatever is being fetched rests at once, for every byte more would be lost.
    pub fn on_disk_refused(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(cause) = ctx.disk.words() {
            self.tell(Input::Rest(cause), ctx.now);
            let _begun = self.carry_out(ctx);
        }
    }

    /// Whether one waits for its turn or its next try.
    pub fn rests(&self) -> bool {
        let waits = |op: &Operation| matches!(op.phase, Phase::Queued | Phase::Failed);
        self.tracker.operations().any(waits)
    }

    /// A loader read the links of a block for a walk.
    pub fn on_links(
        &mut self,
        id: FetchId,
        cid: &Cid,
        answer: Result<(u64, Vec<Cid>), LinkTrouble>,
        ctx: &mut Ctx<'_>,
    ) {
        self.walks.on_links(id, cid, answer, ctx);
    }

    /// The exchange asked everybody for a block of this session, in vain so far.
    pub fn on_unavailable(&mut self, session: gemba_exchange::SessionId, cid: Cid, asked: usize) {
        self.walks.on_unavailable(session, cid, asked);
    }

    // What is told.

    /// What ought to be here, as it is on disk at this moment.
    ///
    /// # Errors
    /// The disk's.
    pub fn rows(&self) -> Result<PinRows, Fail> {
        self.state.pins()
    }

    /// What is being done about a root.
    pub fn op(&self, cid: &Cid) -> Option<&Operation> {
        self.tracker.operation(cid)
    }

    /// One pin; `None` if it is not wanted, or if the disk does not tell.
    pub fn status(&self, cid: &Cid) -> Option<PinStatus> {
        let pin = self.rows().and_then(|rows| rows.get(cid)).ok()??;
        Some(told(&pin, self.op(cid)))
    }

    /// Operations behind this one, at most so many.
    pub fn ops(&self, after: Option<&Cid>, at_most: usize) -> Vec<Operation> {
        let ops = self.tracker.operations_after(after);
        ops.take(at_most).cloned().collect()
    }

    /// The block that a pin's operation waits for first, or ended for want of.
    pub fn lacks(&self, root: &Cid) -> Option<Cid> {
        let op = self.tracker.operation(root)?;
        match self.walks.of(op.ticket.op) {
            Some(fetch) => fetch.lacks(),
            None => op.lacks,
        }
    }

    /// Pins that ended with a cause of their own, for `status`.
    pub fn troubles(&self, now: Duration) -> Vec<Trouble> {
        // The disk is named once in `status`, not once a pin.
        let own = self.failed().filter(|op| !op.rests);
        let told = own.filter_map(|op| {
            Some(Trouble {
                address: op.ticket.cid.to_string(),
                peer: None,
                direction: "local".to_owned(),
                kind: op.kind.as_str().to_owned(),
                cause: op.cause.clone()?,
                age_s: now.saturating_sub(op.moved).as_secs(),
                count: u64::from(op.attempts),
                retry_in_s: op.retry_at.map(|at| at.saturating_sub(now).as_secs()),
            })
        });
        told.take(TROUBLES).collect()
    }

    /// Pins by state.
    pub fn counts(&self) -> PinCounts {
        let lengths = self
            .rows()
            .and_then(|rows| Ok((rows.count()?, rows.open_len()?)));
        let (all, open) = lengths.unwrap_or_else(|fail| {
            tracing::error!(error = %fail, "the pins could not be counted");
            (0, 0)
        });
        let mut counts = PinCounts {
            pinned: all.saturating_sub(open),
            ..PinCounts::default()
        };
        let pins = self.tracker.operations();
        for op in pins.filter(|op| op.kind == OpKind::Pin) {
            match op.phase {
                Phase::Running => counts.pinning += 1,
                Phase::Failed => counts.error += 1,
                Phase::Queued | Phase::Done => {}
            }
        }
        counts.queued = open.saturating_sub(counts.pinning + counts.error);
        counts
    }

    /// What the tracker counted, for `/metrics`.
    pub fn tracked(&self) -> gemba_pins::Counts {
        self.tracker.counts()
    }
}

/// A pin as it is told: by what is being done about it, else by its record.
pub fn told(pin: &Pin, op: Option<&Operation>) -> PinStatus {
    let mut status = PinStatus {
        cid: pin.cid.to_string(),
        status: Status::of(Some(pin), op).as_str().to_owned(),
        kind: pin.kind.as_str().to_owned(),
        name: name_of(pin),
        blocks_done: pin.size.map_or(0, |size| size.blocks),
        bytes_done: pin.size.map_or(0, |size| size.bytes),
        blocks_fetched: 0,
        bytes_fetched: 0,
        blocks_pending: 0,
        attempts: 0,
        cause: None,
    };
    if let Some(op) = op {
        fill(&mut status, op);
    }
    status
}

fn name_of(pin: &Pin) -> Option<String> {
    pin.name.as_ref().map(|name| name.as_str().to_owned())
}

fn fill(status: &mut PinStatus, op: &Operation) {
    status.status = op.status().as_str().to_owned();
    status.attempts = op.attempts;
    status.cause.clone_from(&op.cause);
    let progress = &op.progress;
    status.blocks_done = progress.blocks_done;
    status.bytes_done = progress.bytes_done;
    status.blocks_fetched = progress.blocks_fetched;
    status.bytes_fetched = progress.bytes_fetched;
    status.blocks_pending = progress.pending;
}

fn size(progress: &Progress) -> Size {
    Size {
        blocks: progress.blocks_done,
        bytes: progress.bytes_done,
    }
}

fn concerned(fact: &Input) -> Option<Cid> {
    match fact {
        Input::Progress(ticket, _) | Input::Standing { ticket, .. } => Some(ticket.cid),
        _ => None,
    }
}

fn target(pin: &Pin) -> Target {
    Target {
        cid: pin.cid,
        id: pin.id,
        reach: pin.kind,
    }
}

fn added(cid: Cid, kind: Kind, name: Option<String>) -> Result<Add, Fail> {
    let name = name.map(Name::new).transpose();
    Ok(Add {
        cid,
        kind,
        name: name.map_err(|e| Fail::new(Code::Usage, e))?,
        now_ms: crate::content::pins::now_ms(),
    })
}

fn refused(error: &TrackError) -> Fail {
    match error {
        TrackError::NoOperation(_) => Fail::new(Code::NotFound, error)
            .hint("`gemba pin ops` lists what is being done; `gemba pin rm` unpins what is whole"),
        _ => Fail::new(Code::Conflict, error),
    }
}

/// For tests of the flows around this one: walks that somebody else does.
#[cfg(test)]
impl Pins {
    /// Carries out what the tracker says; `walks` are those under way.
    pub(super) fn settle_by_hand(&mut self, walks: &mut BTreeMap<OpId, Ticket>, now: Duration) {
        while let Some(output) = self.tracker.poll() {
            match output {
                Output::Start(ticket, _) => drop(walks.insert(ticket.op, ticket)),
                Output::Stop(ticket) => drop(walks.remove(&ticket.op)),
                other => self.record(other, now),
            }
        }
    }

    /// The last block of a walk is durable.
    pub(super) fn whole_by_hand(&mut self, ticket: Ticket, now: Duration) {
        self.tell_all(vec![Input::Whole(ticket, Progress::default())], now);
    }

    /// Lets time pass.
    pub(super) fn expire_by_hand(&mut self, now: Duration) {
        self.tracker.expire(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;
    use crate::meta::bucket::Bucket;
    use crate::repo::Access;

    const NOW: Duration = Duration::from_secs(1);

    /// Root, status, kind and name of each pin.
    type Told = Vec<(String, String, String, Option<String>)>;

    /// The flow over a state, with walks that end when the test says so.
    struct Flow {
        pins: Pins,
        persisted: mpsc::Receiver<Persisted>,
        walks: BTreeMap<OpId, Ticket>,
    }

    impl Flow {
        fn over(state: Arc<dyn PinState>) -> Self {
            let (answers, persisted) = mpsc::channel(16);
            Self {
                pins: Pins::new(state, answers, [0; 16], TrackerConfig::default()),
                persisted,
                walks: BTreeMap::new(),
            }
        }

        /// Until nothing is on its way to the disk.
        async fn settle(&mut self) {
            loop {
                self.pins.settle_by_hand(&mut self.walks, NOW);
                if !self.pins.persisting {
                    return;
                }
                let persisted = self.persisted.recv().await.unwrap();
                self.pins.on_persisted(persisted, NOW);
            }
        }

        async fn pin(&mut self, n: u8, kind: Kind, name: Option<&str>) {
            let (reply, done) = tokio::sync::oneshot::channel();
            let name = name.map(str::to_owned);
            self.pins.pin((cid(n), kind), name, reply, NOW);
            self.settle().await;
            done.await.unwrap().unwrap();
        }

        async fn whole(&mut self, n: u8) {
            let mut walks = self.walks.values();
            let ticket = *walks.find(|ticket| ticket.cid == cid(n)).unwrap();
            self.pins.whole_by_hand(ticket, NOW);
            self.settle().await;
        }

        /// Asks for it; the answer comes when somebody settles.
        fn ask(&mut self, n: u8) -> tokio::sync::oneshot::Receiver<Result<View, Fail>> {
            let (reply, done) = tokio::sync::oneshot::channel();
            self.pins.pin((cid(n), Kind::Recursive), None, reply, NOW);
            done
        }

        fn told(&self) -> Told {
            let rows = self.pins.rows().unwrap();
            let told = |pin: Result<Pin, Fail>| {
                let status = self.pins.status(&pin.unwrap().cid).unwrap();
                (status.cid, status.status, status.kind, status.name)
            };
            rows.iter().map(told).collect()
        }
    }

    /// A removal and a newer wish for the same root reach the disk in this order and in one transaction: the end of the older takes nothing from the newer,
    /// and says nothing to who follows it.
    #[tokio::test]
    async fn s4_22_who_follows_a_newer_wish_hears_nothing_of_the_removal_before_it() {
        let mut flow = Flow::over(Arc::new(Bucket::default()));
        flow.pin(1, Kind::Recursive, None).await;
        flow.whole(1).await;
        // It keeps the disk busy, so that the two wait for each other.
        let _other = flow.ask(2);
        let (reply, removed) = tokio::sync::oneshot::channel();
        flow.pins.unpin(cid(1), reply, NOW);
        let asked = flow.ask(1);
        flow.settle().await;
        removed.await.unwrap().unwrap();
        let view = asked.await.unwrap().unwrap();
        assert_eq!(view.borrow().status, "pinning");
        flow.whole(1).await;
        assert_eq!(view.borrow().status, "pinned");
    }

    /// The record of a direct pin that is whole, and the wish for all that is below it, reach the disk in one transaction.
    #[tokio::test]
    async fn s4_22_who_follows_a_wider_wish_hears_nothing_of_the_end_of_the_narrow_one() {
        let mut flow = Flow::over(Arc::new(Bucket::default()));
        flow.pin(1, Kind::Direct, None).await;
        let _other = flow.ask(2);
        let ticket = *flow.walks.values().next().unwrap();
        flow.pins.whole_by_hand(ticket, NOW);
        flow.pins.settle_by_hand(&mut flow.walks, NOW);
        let asked = flow.ask(1);
        flow.settle().await;
        let view = asked.await.unwrap().unwrap();
        assert_eq!(view.borrow().status, "pinning");
        flow.whole(1).await;
        assert_eq!(view.borrow().status, "pinned");
    }

    /// A state whose disk refuses when it is told to.
    #[derive(Default)]
    struct Refusing(Bucket, std::sync::atomic::AtomicBool);

    impl Refusing {
        fn refuse(&self, refuses: bool) {
            self.1.store(refuses, std::sync::atomic::Ordering::SeqCst);
        }
    }

    impl PinState for Refusing {
        fn pins(&self) -> Result<PinRows, Fail> {
            self.0.pins()
        }

        fn edit(&self, edits: &[PinEdit]) -> Result<Vec<Result<Edited, Fail>>, Fail> {
            match self.1.load(std::sync::atomic::Ordering::SeqCst) {
                true => Err(Fail::new(Code::Failure, "the disk refuses")),
                false => self.0.edit(edits),
            }
        }
    }

    #[tokio::test]
    async fn s4_22_who_follows_a_removal_that_is_given_up_hears_that_the_pin_is_there() {
        let state = Arc::new(Refusing::default());
        let mut flow = Flow::over(state.clone());
        flow.pin(1, Kind::Recursive, None).await;
        flow.whole(1).await;
        state.refuse(true);
        let (reply, removed) = tokio::sync::oneshot::channel();
        flow.pins.unpin(cid(1), reply, NOW);
        flow.settle().await;
        assert!(removed.await.unwrap().is_err());
        let view = flow.pins.watch(&cid(1)).unwrap();
        assert_eq!(view.borrow().status, "unpin_error");
        state.refuse(false);
        flow.pin(1, Kind::Recursive, None).await;
        assert_eq!(view.borrow().status, "pinned");
    }

    fn cid(n: u8) -> Cid {
        *gemba_block::Block::raw(vec![n]).unwrap().cid()
    }

    /// Wishes, names, completions, removals, what was struck out and a restart, over one state.
    async fn story(open: &dyn Fn() -> Arc<dyn PinState>) -> [Told; 2] {
        let mut flow = Flow::over(open());
        for n in 0..6 {
            flow.pin(n, Kind::Recursive, (n == 1).then_some("app"))
                .await;
        }
        flow.pin(6, Kind::Direct, None).await;
        for n in [0, 1, 2] {
            flow.whole(n).await;
        }
        let (reply, done) = tokio::sync::oneshot::channel();
        flow.pins.unpin(cid(2), reply, NOW);
        flow.settle().await;
        done.await.unwrap().unwrap();
        let (reply, done) = tokio::sync::oneshot::channel();
        flow.pins.strike_out(vec![cid(0)], reply, NOW);
        flow.settle().await;
        done.await.unwrap();
        let add = |n, name| added(cid(n), Kind::Recursive, name).unwrap();
        let (reply, done) = tokio::sync::oneshot::channel();
        let listed = vec![add(6, None), add(7, Some("listed".to_owned()))];
        flow.pins.import(listed, reply, NOW);
        flow.settle().await;
        assert!(done.await.unwrap().iter().all(Result::is_ok));
        let before = flow.told();
        // What is not whole is worked for again after a restart.
        drop(flow);
        let mut flow = Flow::over(open());
        flow.settle().await;
        while let Some(ticket) = flow.walks.values().next().copied() {
            flow.pins.whole_by_hand(ticket, NOW);
            flow.settle().await;
        }
        let after = flow.told();
        let pinned = after.iter().filter(|told| told.1 == "pinned").count();
        assert_eq!((pinned, after.len()), (7, 7));
        [before, after]
    }

    /// The daemon's flow does not know what its pins are kept in: over its own table and over a bucket of objects it comes to the same.
    #[tokio::test]
    async fn s4_22_the_flow_comes_to_the_same_over_a_second_state() {
        let dir = tempfile::tempdir().unwrap();
        Meta::create(dir.path()).unwrap();
        let meta = Arc::new(Meta::open(dir.path(), Access::Write).unwrap());
        let bucket = Arc::new(Bucket::default());
        let of_table = story(&|| meta.clone()).await;
        let of_bucket = story(&|| bucket.clone()).await;
        assert_eq!(of_table, of_bucket);
    }
}
