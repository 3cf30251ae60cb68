//! What each input does to the operation it concerns, and who may begin.

use super::{
    Entry, Input, Move, OpId, OpKind, Operation, Outlook, Output, Phase, Target, Ticket, Time,
    TrackError, Tracker, queue,
};
use crate::{desired::Kind, walk::Progress};
use cid::Cid;
use std::collections::BTreeSet;

/// Doublings of the pause.
const DOUBLINGS: u32 = 16;
/// Operations that are told so when nothing can be begun, between two rests: the others stay queued until then.
const TOLD: usize = 64;

impl Tracker {
    pub(super) fn take(&mut self, input: Input, now: Time) -> Result<(), TrackError> {
        match input {
            Input::Pin(cid) => self.on_pin(cid),
            Input::Wanted { target, recent } => self.on_wanted(target, recent, now),
            Input::Unpin(cid) => return self.on_unpin(cid, now),
            Input::Cancel(cid) => return self.on_cancel(cid, now),
            Input::Gone(cid) => self.give_up(&cid),
            Input::Progress(ticket, progress) => self.on_progress(ticket, progress, now),
            Input::Standing {
                ticket,
                outlook,
                cause,
                lacks,
            } => self.on_standing(ticket, outlook, cause, lacks),
            Input::Whole(ticket, progress) => self.on_whole(ticket, progress, now),
            Input::Refused(ticket, cause) => self.on_refused(ticket, cause, now),
            Input::Failed {
                ticket,
                cause,
                lacks,
            } => self.on_failed(ticket, cause, lacks, now),
            Input::NotNow(ticket, cause) => self.on_not_now(ticket, cause, now),
            Input::Rest(cause) => self.on_rest(&cause, now),
            Input::Recorded(ticket, outcome) => self.on_recorded(ticket, outcome, now),
            Input::Recover(one) => return self.on_recover(one, now),
            Input::Nudge => self.retry_where(now, |op| op.retry_at.is_some()),
            Input::Here(cids) => self.on_here(cids, now),
            Input::Drawn { targets, more } => self.on_drawn(targets, more, now),
            Input::NotDrawn => self.draw.on_failed(now.saturating_add(self.config.rest)),
        }
        Ok(())
    }

    // Commands.

    /// The newer wish: a removal that waits for its next try is given up. One that is on its way to the disk is older than the record of this wish and
    /// gets there first; if it does not, it is not tried again.
    fn on_pin(&mut self, cid: Cid) {
        match self.ops.get_mut(&cid) {
            Some(entry) if entry.op.kind == OpKind::Pin => {}
            Some(entry) if entry.op.recording => entry.overtaken = true,
            Some(_) => self.give_up_removal(&cid),
            None => {}
        }
    }

    fn on_wanted(&mut self, target: Target, recent: bool, now: Time) {
        match self.ops.get_mut(&target.cid) {
            // The wish was recorded, and then taken back: the removal follows it to the disk.
            Some(entry) if entry.op.kind == OpKind::Unpin => {}
            Some(entry) if entry.op.pin_id == target.id => {
                entry.op.recent |= recent;
                let (phase, again) = (entry.op.phase, recent);
                if again && phase == Phase::Failed {
                    self.retry(target.cid, now);
                } else if again && phase == Phase::Queued {
                    self.queue_again(target.cid);
                }
            }
            Some(_) => {
                self.give_up(&target.cid);
                self.begin(target, recent, now);
            }
            None => self.begin(target, recent, now),
        }
    }

    fn on_unpin(&mut self, cid: Cid, now: Time) -> Result<(), TrackError> {
        if let Some(entry) = self.ops.get(&cid) {
            // One that was overtaken by a newer wish comes too early to take that back.
            if entry.op.kind == OpKind::Unpin && !entry.overtaken {
                if entry.op.phase == Phase::Failed {
                    self.retry(cid, now);
                }
                return Ok(());
            }
        } else if !self.has_room(true) {
            return Err(TrackError::Full(self.config.in_flight));
        }
        self.give_up(&cid);
        let target = Target {
            cid,
            id: 0,
            reach: Kind::Recursive,
        };
        self.insert(OpKind::Unpin, target, true, now);
        self.remove(cid, now);
        Ok(())
    }

    fn on_cancel(&mut self, cid: Cid, now: Time) -> Result<(), TrackError> {
        let op = self.operation(&cid).ok_or(TrackError::NoOperation(cid))?;
        match (op.kind, op.recording) {
            (OpKind::Pin, _) => self.on_unpin(cid, now),
            (OpKind::Unpin, true) => Err(TrackError::TooLate(cid)),
            (OpKind::Unpin, false) => {
                self.give_up_removal(&cid);
                Ok(())
            }
        }
    }

    fn on_recover(&mut self, one: Option<Cid>, now: Time) -> Result<(), TrackError> {
        let Some(cid) = one else {
            self.retry_where(now, |_| true);
            return Ok(());
        };
        let op = self.operation(&cid).ok_or(TrackError::NoOperation(cid))?;
        if op.phase == Phase::Failed {
            self.retry(cid, now);
        }
        Ok(())
    }

    // What a walk tells.

    fn on_progress(&mut self, ticket: Ticket, progress: Progress, now: Time) {
        let Some(entry) = self.walking(ticket) else {
            return;
        };
        if progress.blocks_done > entry.walked {
            entry.walked = progress.blocks_done;
            entry.op.moved = now;
            entry.op.cause = None;
            entry.op.lacks = None;
            entry.outlook = None;
            entry.yielded = false;
        }
        entry.op.progress = progress;
    }

    fn on_standing(&mut self, ticket: Ticket, outlook: Outlook, cause: String, lacks: Option<Cid>) {
        if let Some(entry) = self.walking(ticket) {
            entry.outlook = Some(outlook);
            entry.op.cause = Some(cause);
            entry.op.lacks = lacks;
        }
    }

    fn on_whole(&mut self, ticket: Ticket, progress: Progress, now: Time) {
        let Some(entry) = self.walking(ticket) else {
            return;
        };
        entry.op.progress = progress;
        entry.op.moved = now;
        entry.op.recording = true;
        entry.op.cause = None;
        entry.op.lacks = None;
        let id = entry.op.pin_id;
        self.walks.remove(&ticket.cid);
        self.outputs.push_back(Output::Stop(ticket));
        self.outputs.push_back(Output::Complete(ticket, id));
    }

    fn on_refused(&mut self, ticket: Ticket, cause: String, now: Time) {
        if self.walking(ticket).is_some() {
            self.fail(ticket.cid, cause, None, None, now);
        }
    }

    fn on_failed(&mut self, ticket: Ticket, cause: String, lacks: Option<Cid>, now: Time) {
        if self.walking(ticket).is_some() {
            let again = self.next_try(&ticket.cid, now);
            self.fail(ticket.cid, cause, lacks, Some(again), now);
        }
    }

    fn on_not_now(&mut self, ticket: Ticket, cause: Option<String>, now: Time) {
        let (told, again) = (self.waits.len(), now.saturating_add(self.config.rest));
        let Some(entry) = self.walking(ticket) else {
            return;
        };
        entry.op.attempts -= 1;
        match cause {
            Some(cause) => {
                entry.op.rests = true;
                self.fail(ticket.cid, cause, None, Some(again), now);
            }
            None => {
                self.walks.remove(&ticket.cid);
                self.enqueue(ticket.cid, Move::PutBack, now);
                self.held = Some(again);
            }
        }
        if told >= TOLD {
            self.held = Some(again);
        }
    }

    fn on_rest(&mut self, cause: &str, now: Time) {
        let again = now.saturating_add(self.config.rest);
        for cid in self.walks.clone() {
            if let Some(entry) = self.ops.get_mut(&cid) {
                entry.op.attempts -= 1;
                entry.op.rests = true;
                self.fail(cid, cause.to_owned(), None, Some(again), now);
            }
        }
    }

    fn on_recorded(&mut self, ticket: Ticket, outcome: Result<(), String>, now: Time) {
        let is_current = |entry: &&mut Entry| entry.op.ticket.op == ticket.op && entry.op.recording;
        let Some(entry) = self.ops.get_mut(&ticket.cid).filter(is_current) else {
            self.counts.late += 1;
            return;
        };
        entry.op.recording = false;
        match outcome {
            Ok(()) => {
                entry.op.step(Move::Finish);
                entry.op.moved = now;
                self.counts.done += 1;
                self.end(&ticket.cid);
            }
            Err(_) if entry.overtaken => self.give_up_removal(&ticket.cid),
            Err(cause) => {
                let again = self.next_try(&ticket.cid, now);
                self.fail(ticket.cid, cause, None, Some(again), now);
            }
        }
    }

    pub(super) fn on_stalled(&mut self, cid: Cid, now: Time) {
        let Some(entry) = self.ops.get(&cid) else {
            return;
        };
        let (cause, lacks) = (entry.op.cause.clone(), entry.op.lacks);
        let cause = cause.unwrap_or_else(|| "no block came".to_owned());
        let again = self.next_try(&cid, now);
        self.fail(cid, cause, lacks, Some(again), now);
    }

    fn on_here(&mut self, cids: Vec<Cid>, now: Time) {
        let here: BTreeSet<Cid> = cids.into_iter().collect();
        self.retry_where(now, |op| {
            op.retry_at.is_some() && op.lacks.is_some_and(|cid| here.contains(&cid))
        });
    }

    fn on_drawn(&mut self, targets: Vec<Target>, mut more: bool, now: Time) {
        let mut taken = None;
        for target in targets {
            if self.ops.contains_key(&target.cid) {
                self.on_wanted(target, false, now);
            } else if self.has_room(false) {
                self.begin(target, false, now);
            } else {
                more = true;
                break;
            }
            taken = Some(target.cid);
        }
        let needed = now.saturating_add(self.config.redraw);
        let compare = now.saturating_add(self.config.compare);
        self.draw.on_drawn(taken, more, (needed, compare));
    }

    // Operations come, move, and go.

    /// A new operation that waits for its turn; where there is no room it stays in the desired set.
    fn begin(&mut self, target: Target, recent: bool, now: Time) {
        if !self.has_room(recent) {
            self.draw.leave_behind();
            self.counts.put_back += 1;
            return;
        }
        self.insert(OpKind::Pin, target, recent, now);
        self.queue_again(target.cid);
        self.outputs.push_back(Output::Changed(target.cid));
    }

    fn insert(&mut self, kind: OpKind, target: Target, recent: bool, now: Time) {
        self.next_op += 1;
        self.counts.begun += 1;
        let op = Operation {
            ticket: Ticket {
                cid: target.cid,
                op: OpId(self.next_op),
            },
            pin_id: target.id,
            kind,
            reach: target.reach,
            phase: Phase::Queued,
            recording: false,
            attempts: 0,
            since: now,
            moved: now,
            cause: None,
            retry_at: None,
            lacks: None,
            progress: Progress::default(),
            recent,
            rests: false,
        };
        let entry = Entry {
            op,
            place: None,
            overtaken: false,
            walked: 0,
            yielded: false,
            outlook: None,
        };
        self.ops.insert(target.cid, entry);
    }

    /// Makes room if there is none: the failed one that is tried last gives way, and for somebody who asks in person the last in the queue.
    fn has_room(&mut self, recent: bool) -> bool {
        if self.ops.len() < self.config.in_flight {
            return true;
        }
        let is_pin = |cid: &Cid| self.ops[cid].op.kind == OpKind::Pin;
        let failed = self.waits.iter().rev().map(|(_, cid)| *cid).find(is_pin);
        let victim = failed.or_else(|| self.queue.last_of_others().filter(|_| recent));
        let Some(victim) = victim else {
            return false;
        };
        self.draw.leave_behind();
        self.counts.put_back += 1;
        self.take_out(&victim);
        self.outputs.push_back(Output::Changed(victim));
        true
    }

    /// The removal goes to the disk.
    fn remove(&mut self, cid: Cid, now: Time) {
        let Some(entry) = self.ops.get_mut(&cid) else {
            return;
        };
        entry.op.step(Move::Start);
        entry.op.recording = true;
        entry.op.attempts += 1;
        entry.op.moved = now;
        let ticket = entry.op.ticket;
        self.outputs.push_back(Output::Remove(ticket));
        self.outputs.push_back(Output::Changed(cid));
    }

    /// Ends it with a cause.
    fn fail(
        &mut self,
        cid: Cid,
        cause: String,
        lacks: Option<Cid>,
        again: Option<Time>,
        now: Time,
    ) {
        let Some(entry) = self.ops.get_mut(&cid) else {
            return;
        };
        let ticket = entry.op.ticket;
        entry.op.step(Move::Fail);
        entry.op.cause = Some(cause);
        entry.op.lacks = lacks;
        entry.op.retry_at = again;
        entry.op.moved = now;
        entry.outlook = None;
        let was_walking = self.walks.remove(&cid);
        // One that only somebody can recover waits at the end of time.
        self.waits.insert((again.unwrap_or(Time::MAX), cid));
        self.counts.failed += 1;
        if was_walking {
            self.outputs.push_back(Output::Stop(ticket));
        }
        self.outputs.push_back(Output::Changed(cid));
    }

    /// Tries a failed one now.
    fn retry(&mut self, cid: Cid, now: Time) {
        if let Some(entry) = self.ops.get(&cid) {
            let at = entry.op.retry_at.unwrap_or(Time::MAX);
            self.waits.remove(&(at, cid));
            self.enqueue(cid, Move::Retry, now);
        }
    }

    fn retry_where(&mut self, now: Time, which: impl Fn(&Operation) -> bool) {
        let is_meant = |(_, cid): &&(Time, Cid)| self.ops.get(cid).is_some_and(|e| which(&e.op));
        let meant: Vec<Cid> = self
            .waits
            .iter()
            .filter(is_meant)
            .map(|(_, c)| *c)
            .collect();
        for cid in meant {
            self.retry(cid, now);
        }
    }

    /// A pin waits for its turn; a removal needs none.
    pub(super) fn enqueue(&mut self, cid: Cid, step: Move, now: Time) {
        let Some(entry) = self.ops.get_mut(&cid) else {
            return;
        };
        entry.op.step(step);
        entry.op.retry_at = None;
        if entry.op.kind == OpKind::Unpin {
            return self.remove(cid, now);
        }
        self.queue_again(cid);
        self.outputs.push_back(Output::Changed(cid));
    }

    fn queue_again(&mut self, cid: Cid) {
        let tries = self.config.recent_tries;
        if let Some(entry) = self.ops.get_mut(&cid) {
            if let Some(place) = entry.place.take() {
                self.queue.remove(cid, place);
            }
            entry.place = Some(self.queue.push(cid, queue::is_recent(&entry.op, tries)));
        }
    }

    /// It is over, before its end.
    fn give_up(&mut self, cid: &Cid) {
        if self.ops.contains_key(cid) {
            self.counts.cancelled += 1;
            self.end(cid);
        }
    }

    /// A removal that never reached the disk. What it would have removed is in the set if it was ever there, and nowhere else: neither does it matter
    /// whether the record of a newer wish gets there.
    fn give_up_removal(&mut self, cid: &Cid) {
        self.give_up(cid);
        self.draw.leave_behind();
    }

    fn end(&mut self, cid: &Cid) {
        if let Some(entry) = self.take_out(cid) {
            self.outputs.push_back(Output::Ended(Box::new(entry.op)));
        }
    }

    /// Out of every list; what runs for it ends.
    fn take_out(&mut self, cid: &Cid) -> Option<Entry> {
        let mut entry = self.ops.remove(cid)?;
        if let Some(place) = entry.place.take() {
            self.queue.remove(*cid, place);
        }
        let at = entry.op.retry_at.unwrap_or(Time::MAX);
        self.waits.remove(&(at, *cid));
        if self.walks.remove(cid) {
            self.outputs.push_back(Output::Stop(entry.op.ticket));
        }
        Some(entry)
    }

    fn walking(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        let entry = self.ops.get_mut(&ticket.cid);
        let current = entry.filter(|e| e.op.ticket.op == ticket.op && e.op.is_walking());
        if current.is_none() {
            self.counts.late += 1;
        }
        current
    }

    // Who begins, and when.

    /// Begins what may begin, and asks for more when the queue runs low.
    pub(super) fn fill(&mut self, now: Time) {
        while self.held.is_none() && self.may_begin(now) {
            let Some(cid) = self.queue.pop() else { break };
            self.start(cid, now);
        }
        let is_low = self.queue.len() * 2 < self.config.batch;
        if is_low && let Some(after) = self.draw.ask(now) {
            self.outputs
                .push_back(Output::Draw(after, self.config.batch));
        }
    }

    fn start(&mut self, cid: Cid, now: Time) {
        let Some(entry) = self.ops.get_mut(&cid) else {
            return;
        };
        entry.place = None;
        entry.yielded = false;
        entry.op.step(Move::Start);
        entry.op.attempts = entry.op.attempts.saturating_add(1);
        entry.op.cause = None;
        entry.op.lacks = None;
        entry.op.rests = false;
        entry.walked = 0;
        entry.op.moved = now;
        let target = Target {
            cid,
            id: entry.op.pin_id,
            reach: entry.op.reach,
        };
        let ticket = entry.op.ticket;
        self.walks.insert(cid);
        self.outputs.push_back(Output::Start(ticket, target));
        self.outputs.push_back(Output::Changed(cid));
    }

    fn may_begin(&self, now: Time) -> bool {
        if self.walks.len() >= self.config.walks_standing {
            return false;
        }
        let moves = |cid: &&Cid| self.yields_at(cid).is_some_and(|at| at > now);
        self.walks.iter().filter(moves).count() < self.config.walks
    }

    /// When a walk that does not move gives its turn to another.
    pub(super) fn yields_at(&self, cid: &Cid) -> Option<Time> {
        let entry = self.ops.get(cid)?;
        Some(entry.op.moved.saturating_add(self.config.patience))
    }

    /// The same, if it has not done so yet.
    pub(super) fn next_yield(&self, cid: &Cid) -> Option<Time> {
        let has_yielded = self.ops.get(cid)?.yielded;
        self.yields_at(cid).filter(|_| !has_yielded)
    }

    /// When a walk that does not move ends.
    pub(super) fn stalls_at(&self, cid: &Cid) -> Option<Time> {
        let entry = self.ops.get(cid)?;
        let patience = match entry.outlook {
            // It keeps nobody waiting for what nobody has.
            Some(Outlook::Denied) if self.queue.len() > 0 => self.config.patience,
            Some(Outlook::Denied) => self.config.denied_stall,
            Some(Outlook::Silent) => self.config.stall,
            Some(Outlook::Busy) | None => self.config.busy_stall,
        };
        Some(entry.op.moved.saturating_add(patience))
    }

    fn next_try(&self, cid: &Cid, now: Time) -> Time {
        let attempts = self.ops.get(cid).map_or(1, |entry| entry.op.attempts);
        let doublings = attempts.saturating_sub(1).min(DOUBLINGS);
        let pause = self.config.first_pause.saturating_mul(1 << doublings);
        now.saturating_add(pause.min(self.config.longest_pause))
    }
}
