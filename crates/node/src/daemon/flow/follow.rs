//! A name changes and this device follows it: fetch what is missing, every block durable, then the pointer moves, then the old version is released.
//!
//! One step at a time for each name, each after the one before it is durable: the row names the target → the target is pinned → it is whole → the book's
//! pointer moves ([`Command::Complete`]) → the row names what is kept → what no row names is released. A newer version in the middle begins
//! anew at the first step, and what was fetched for the older one is released when the newer one is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cid::Cid;
use gemba_names::{Command, Done, Event, Name, Resolved};
use tokio::sync::{oneshot, watch};

use super::names::Names;
use super::pins::Pins;
use crate::api::types::{FollowStatus, PinStatus, Trouble};
use crate::daemon::command::Reply;
use crate::error::{Code, Fail};
use crate::meta::Row;
use crate::names::follows::{self, Follow, Kept, label};
use crate::names::root_of;

/// Names that a device can follow at a time: each has its pins, its topic and its row.
const FOLLOWS: usize = 256;
/// After a step that failed.
const PAUSE: Duration = Duration::from_secs(10);

/// What can be asked.
pub enum Ask {
    /// Follow a name, keeping so many versions.
    Add(Name, usize, Reply<Result<FollowStatus, Fail>>),
    /// Follow it no longer, and release what was kept of it.
    Remove(Name, Reply<Result<FollowStatus, Fail>>),
    /// Go back to an earlier version.
    RollBack(Name, Option<u64>, Reply<Result<FollowStatus, Fail>>),
    /// How one of them is.
    Status(Name, Reply<Result<FollowStatus, Fail>>),
    /// How all are.
    List(Reply<Vec<FollowStatus>>),
}

/// See the module's text.
pub struct Follows {
    open: BTreeMap<Name, Open>,
    /// Pins of follows that no row needs are looked for at the start, and whenever a row let go of something.
    sweep: bool,
    /// What rows need and no pin holds is looked for at the start.
    restore: bool,
    bugs: Bugs,
}

/// Wrong orders that tests plant, to prove that the power cuts find them (`crashes.rs`). There are none outside of tests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bugs {
    #[cfg(test)]
    planted: Option<Planted>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Planted {
    /// The pointer moves when the version is wanted, not when it is whole.
    PointerBeforeWhole,
    /// What the pointer points to is released when a newer version is wanted.
    OldReleasedFirst,
}

impl Bugs {
    #[cfg(test)]
    fn has(self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    #[cfg(not(test))]
    fn has(self, _: Planted) -> bool {
        false
    }
}

/// A followed name.
struct Open {
    follow: Follow,
    step: Step,
    /// What it points to may be another version than the one that is here or on its way.
    dirty: bool,
    /// Why the last step failed, and when the next is.
    failed: Option<(String, Duration)>,
    /// Who waits for the row to be durable.
    waiting: Vec<Reply<Result<FollowStatus, Fail>>>,
    /// How the newest version that became whole since the start was come by.
    last: Option<PinStatus>,
}

/// What is waited for.
enum Step {
    Idle,
    /// The row is on its way to the disk, and what follows it.
    Saving(Saved, Then),
    /// The wish for the target is.
    Pinning(oneshot::Receiver<Result<watch::Receiver<PinStatus>, Fail>>),
    /// The target is being fetched.
    Fetching(watch::Receiver<PinStatus>),
    /// The pointer moves to a version.
    Moving(oneshot::Receiver<Result<Done, Fail>>, Kept),
}

type Saved = oneshot::Receiver<Result<(), Fail>>;

/// What follows a row that is durable.
enum Then {
    /// The next step towards the target, if there is one.
    GoOn,
    /// The pointer goes back.
    GoBack(Kept),
    /// Nothing: the name is followed no longer.
    Forget,
}

impl Follows {
    /// What was followed before.
    #[must_use]
    pub fn new(stored: Vec<(Name, Follow)>) -> Self {
        let open = |(name, follow)| {
            let open = Open {
                follow,
                step: Step::Idle,
                dirty: true,
                failed: None,
                waiting: Vec::new(),
                last: None,
            };
            (name, open)
        };
        Self {
            open: stored.into_iter().map(open).collect(),
            sweep: true,
            restore: true,
            bugs: Bugs::default(),
        }
    }

    /// With a bug.
    #[cfg(test)]
    pub(super) fn plant(&mut self, bug: Option<Planted>) {
        self.bugs = Bugs { planted: bug };
    }

    /// The names, for the book.
    pub fn names(&self) -> impl Iterator<Item = Name> + '_ {
        self.open.keys().copied()
    }

    /// Whether a name is followed.
    #[must_use]
    pub fn contains(&self, name: &Name) -> bool {
        self.open.contains_key(name)
    }

    /// Which follow needs a root, if one does.
    #[must_use]
    pub fn holder(&self, root: &Cid) -> Option<Name> {
        let holds = |open: &Open| open.follow.roots().any(|held| held == *root);
        let mut open = self.open.iter();
        open.find(|(_, open)| holds(open)).map(|(name, _)| *name)
    }

    /// What the book tells.
    pub fn on_event(&mut self, event: &Event) {
        if let Event::Changed { now, .. } = event
            && let Some(open) = self.open.get_mut(&now.name)
        {
            open.dirty = true;
        }
    }

    /// Answers what can be asked, or begins it.
    pub fn on_ask(&mut self, ask: Ask, names: &mut Names, now: Duration) {
        match ask {
            Ask::Add(name, keep, reply) => self.add(name, keep, reply, names, now),
            Ask::Remove(name, reply) => self.remove(name, reply, names, now),
            Ask::RollBack(name, to, reply) => self.roll_back(name, to, reply, names, now),
            Ask::Status(name, reply) => drop(reply.send(self.status(&name, names, now))),
            Ask::List(reply) => {
                let all = self.open.iter();
                let told = all.map(|(name, open)| told(name, open, names, now));
                let _gone = reply.send(told.collect());
            }
        }
    }

    fn status(&self, name: &Name, names: &Names, now: Duration) -> Result<FollowStatus, Fail> {
        let open = self
            .open
            .get(name)
            .ok_or_else(|| follows::not_followed(name))?;
        Ok(told(name, open, names, now))
    }

    fn add(
        &mut self,
        name: Name,
        keep: usize,
        reply: Reply<Result<FollowStatus, Fail>>,
        names: &mut Names,
        now: Duration,
    ) {
        if !self.open.contains_key(&name) && self.open.len() >= FOLLOWS {
            let fail = Fail::new(
                Code::Conflict,
                format!("{FOLLOWS} names are followed already"),
            );
            let fail = fail.hint("`gemba name follow rm` ends one that is no longer needed");
            return drop(reply.send(Err(fail)));
        }
        let open = self.open.entry(name).or_insert_with(|| Open {
            follow: Follow::new(keep),
            step: Step::Idle,
            dirty: true,
            failed: None,
            waiting: Vec::new(),
            last: None,
        });
        open.follow.keep = keep;
        open.follow.trim();
        open.dirty = true;
        open.waiting.push(reply);
        names.follow(name, now);
        // Whatever is under way goes on behind the row, which names it.
        open.save(&name, Then::GoOn, names);
    }

    fn remove(
        &mut self,
        name: Name,
        reply: Reply<Result<FollowStatus, Fail>>,
        names: &mut Names,
        now: Duration,
    ) {
        let Some(open) = self.open.get_mut(&name) else {
            return drop(reply.send(Err(follows::not_followed(&name))));
        };
        open.waiting.push(reply);
        names.unfollow(name, now);
        open.write(follows::gone(&name), Then::Forget, names);
    }

    fn roll_back(
        &mut self,
        name: Name,
        to: Option<u64>,
        reply: Reply<Result<FollowStatus, Fail>>,
        names: &mut Names,
        now: Duration,
    ) {
        let leaves = |open: &&mut Open| matches!(open.step, Step::Saving(_, Then::Forget));
        let Some(open) = self.open.get_mut(&name).filter(|open| !leaves(open)) else {
            return drop(reply.send(Err(follows::not_followed(&name))));
        };
        let back = match open.follow.earlier(&name, to) {
            Ok(back) => back,
            Err(fail) => return drop(reply.send(Err(fail))),
        };
        let newest = names.newest(&name, now);
        let newest = newest.map_or(back.sequence, |newest| newest.version.sequence);
        open.follow.go_back(&back, newest);
        open.waiting.push(reply);
        open.save(&name, Then::GoBack(back), names);
    }

    /// Takes the next step of each name that can. True: something was asked of book or pins.
    pub fn settle(&mut self, names: &mut Names, pins: &mut Pins, now: Duration) -> bool {
        if std::mem::take(&mut self.restore) {
            self.pin_again(pins, now);
        }
        let mut moved = false;
        let mut gone = Vec::new();
        for (name, open) in &mut self.open {
            while let Some(next) = open.advance(name, (&mut *names, &mut *pins), self.bugs, now) {
                moved = true;
                match next {
                    Next::Step(step) => open.step = step,
                    Next::LetGo(step) => {
                        open.step = step;
                        self.sweep = true;
                    }
                    Next::Forget => {
                        gone.push(*name);
                        open.step = Step::Idle;
                        break;
                    }
                }
            }
        }
        for name in gone {
            self.sweep = true;
            if let Some(open) = self.open.remove(&name) {
                let told = told(&name, &open, names, now);
                for reply in open.waiting {
                    let _gone = reply.send(Ok(told.clone()));
                }
            }
        }
        // Not while an edit is on its way: what somebody just made his own still has the label of its follow in the table.
        if self.sweep && !pins.is_writing() {
            self.sweep = false;
            self.release(names, pins, now);
        }
        moved
    }

    /// Wants what rows name and no pin holds, as a pin that was removed behind the daemon's back: it is fetched again.
    fn pin_again(&self, pins: &mut Pins, now: Duration) {
        let rows = match pins.rows() {
            Ok(rows) => rows,
            Err(fail) => {
                return tracing::error!(error = %fail, "the pins of follows could not be read");
            }
        };
        for (name, open) in &self.open {
            for kept in &open.follow.versions {
                if matches!(rows.get(&kept.root), Ok(None)) {
                    tracing::warn!(root = %kept.root, %name, "a version that is kept was not pinned: it is wanted again");
                    let _nobody = pin(name, kept.root, pins, now);
                }
            }
        }
    }

    /// Releases the pins of follows that no row needs any more, and no pointer.
    fn release(&self, names: &Names, pins: &mut Pins, now: Duration) {
        let mut needed = follows::needed(self.open.values().map(|open| &open.follow));
        // It may be behind its row after a rollback that was cut off, until it is moved again.
        let pointed = self
            .open
            .keys()
            .filter_map(|name| names.complete(name, now));
        needed.extend(pointed.filter_map(|whole| root_of(&whole.version.value).ok()));
        if self.bugs.has(Planted::OldReleasedFirst) {
            let target_or_none = |root: &Cid, open: &Open| {
                let target = open.follow.target.as_ref();
                target.is_none_or(|target| target.root == *root)
            };
            needed.retain(|root| self.open.values().all(|open| target_or_none(root, open)));
        }
        let labelled = pins.rows().and_then(|rows| rows.named_like(follows::LABEL));
        let labelled = labelled.unwrap_or_else(|fail| {
            tracing::error!(error = %fail, "the pins of follows could not be read; what none needs stays for now");
            Vec::new()
        });
        let idle: BTreeSet<Cid> = labelled
            .into_iter()
            .filter(|(label, root)| follows::is_label(label) && !needed.contains(root))
            .map(|(_, root)| root)
            .collect();
        for root in idle {
            let (reply, _nobody) = oneshot::channel();
            pins.unpin(root, reply, now);
        }
    }

    /// What an operator should look at.
    #[must_use]
    pub fn troubles(&self, now: Duration) -> Vec<Trouble> {
        let told = self.open.iter().filter_map(|(name, open)| {
            let (cause, again) = open.failed.as_ref()?;
            Some(Trouble {
                address: format!("/ipns/{name}"),
                peer: None,
                direction: "local".to_owned(),
                kind: "follow".to_owned(),
                cause: cause.clone(),
                age_s: 0,
                count: 1,
                retry_in_s: Some(again.saturating_sub(now).as_secs()),
            })
        });
        told.collect()
    }
}

/// What comes of a step.
enum Next {
    Step(Step),
    /// Something may be released.
    LetGo(Step),
    Forget,
}

impl Open {
    /// Has the row written, and then the rest done.
    fn save(&mut self, name: &Name, then: Then, names: &mut Names) {
        match self.follow.row(name) {
            Ok(row) => self.write(row, then, names),
            Err(fail) => self.fail(fail, Duration::ZERO),
        }
    }

    fn write(&mut self, row: Row, then: Then, names: &mut Names) {
        self.step = Step::Saving(names.write(row), then);
    }

    fn fail(&mut self, fail: Fail, now: Duration) {
        self.failed = Some((fail.cause.clone(), now + PAUSE));
        self.dirty = true;
        for reply in self.waiting.drain(..) {
            let _gone = reply.send(Err(fail.clone()));
        }
    }

    /// The next step, if what is waited for has come.
    fn advance(
        &mut self,
        name: &Name,
        (names, pins): (&mut Names, &mut Pins),
        bugs: Bugs,
        now: Duration,
    ) -> Option<Next> {
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Idle => self.consider(name, true, names, now).map(Next::Step),
            Step::Saving(mut saved, then) => match saved.try_recv() {
                Ok(Ok(())) => Some(self.after_row(name, then, names, pins, now)),
                Ok(Err(fail)) => {
                    // The row is still there, so it is followed still.
                    if matches!(then, Then::Forget) {
                        names.follow(*name, now);
                    }
                    self.fail(fail, now);
                    None
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.step = Step::Saving(saved, then);
                    None
                }
                Err(oneshot::error::TryRecvError::Closed) => self.lost(),
            },
            Step::Pinning(mut wish) => match wish.try_recv() {
                // The older target, if there was one, is released now.
                Ok(Ok(view)) => Some(Next::LetGo(Step::Fetching(view))),
                Ok(Err(fail)) => {
                    self.fail(fail, now);
                    None
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.step = Step::Pinning(wish);
                    None
                }
                Err(oneshot::error::TryRecvError::Closed) => self.lost(),
            },
            Step::Fetching(view) => {
                if let Some(step) = self.consider(name, false, names, now) {
                    return Some(Next::Step(step));
                }
                let whole =
                    view.borrow().status == "pinned" || bugs.has(Planted::PointerBeforeWhole);
                match self.follow.target.clone().filter(|_| whole) {
                    Some(target) => {
                        self.last = Some(view.borrow().clone());
                        Some(Next::Step(move_to(name, target, false, names, now)))
                    }
                    // Its pin was taken away from under it: it is wanted again.
                    None if view.has_changed().is_err() => self.lost(),
                    None => {
                        self.step = Step::Fetching(view);
                        None
                    }
                }
            }
            Step::Moving(mut moving, version) => match moving.try_recv() {
                Ok(Ok(_)) => {
                    self.failed = None;
                    self.follow.arrived(version);
                    self.dirty = true;
                    self.save(name, Then::GoOn, names);
                    let step = std::mem::replace(&mut self.step, Step::Idle);
                    Some(Next::Step(step))
                }
                Ok(Err(fail)) => {
                    self.fail(fail, now);
                    None
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.step = Step::Moving(moving, version);
                    None
                }
                Err(oneshot::error::TryRecvError::Closed) => self.lost(),
            },
        }
    }

    /// Whoever was asked answers no more: begins anew.
    fn lost(&mut self) -> Option<Next> {
        self.dirty = true;
        None
    }

    fn after_row(
        &mut self,
        name: &Name,
        then: Then,
        names: &mut Names,
        pins: &mut Pins,
        now: Duration,
    ) -> Next {
        match then {
            Then::Forget => return Next::Forget,
            Then::GoBack(version) => {
                return Next::LetGo(move_to(name, version, true, names, now));
            }
            Then::GoOn => {}
        }
        let told = told(name, self, names, now);
        for reply in self.waiting.drain(..) {
            let _gone = reply.send(Ok(told.clone()));
        }
        match &self.follow.target {
            Some(target) => Next::Step(Step::Pinning(pin(name, target.root, pins, now))),
            None => Next::LetGo(Step::Idle),
        }
    }

    /// The book may have lost the pointer with a damaged row, and a rollback may have been cut off before it moved; what is kept tells where it belongs.
    fn point_again(&self, name: &Name, names: &mut Names, now: Duration) -> Option<Step> {
        let present = self.follow.present()?.clone();
        names.newest(name, now)?;
        let pointed = names.complete(name, now);
        let is_there = |whole: &Resolved| whole.version == present.version();
        let rollback = pointed.is_some();
        let is_right = pointed.as_ref().is_some_and(is_there);
        (!is_right).then(|| move_to(name, present, rollback, names, now))
    }

    /// Begins anew if the name points to a version that is neither here nor on its way.
    fn consider(
        &mut self,
        name: &Name,
        idle: bool,
        names: &mut Names,
        now: Duration,
    ) -> Option<Step> {
        if let Some((_, again)) = &self.failed
            && now < *again
        {
            return None;
        }
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.failed = None;
        // What was on its way before the start, or before something failed.
        let rests = idle && self.follow.target.is_some();
        let newest = names.newest(name, now);
        let wanted = newest.filter(|newest| self.follow.wants(&newest.version));
        let is_new = match wanted.map(|newest| Kept::of(&newest.version)) {
            Some(Ok(target)) => {
                self.follow.target = Some(target);
                true
            }
            // One that cannot be kept holds up nothing that was on its way.
            Some(Err(cause)) => {
                self.failed = Some((cause, now + PAUSE));
                false
            }
            None => false,
        };
        if !is_new && !rests {
            return match idle {
                true => self.point_again(name, names, now),
                false => None,
            };
        }
        self.save(name, Then::GoOn, names);
        Some(std::mem::replace(&mut self.step, Step::Idle))
    }
}

fn move_to(name: &Name, version: Kept, rollback: bool, names: &mut Names, now: Duration) -> Step {
    let (reply, moving) = oneshot::channel();
    let command = Command::Complete {
        name: *name,
        version: version.version(),
        rollback,
    };
    names.run_for(command, reply, now);
    Step::Moving(moving, version)
}

/// Wants a root under the label of the follow; one that somebody pinned already keeps his label.
fn pin(
    name: &Name,
    root: Cid,
    pins: &mut Pins,
    now: Duration,
) -> oneshot::Receiver<Result<watch::Receiver<PinStatus>, Fail>> {
    let (reply, wish) = oneshot::channel();
    pins.pin_followed(root, label(name), reply, now);
    wish
}

fn told(name: &Name, open: &Open, names: &Names, now: Duration) -> FollowStatus {
    let (newest, whole) = (names.newest(name, now), names.complete(name, now));
    let mut told = open.follow.told(name, newest.as_ref(), whole.as_ref());
    let pin = match &open.step {
        Step::Fetching(view) => Some(view.borrow().clone()),
        // Figures of an older version say nothing of the one on its way.
        _ => {
            let of = open
                .follow
                .target
                .as_ref()
                .map(|target| target.root.to_string());
            let last = open.last.clone();
            last.filter(|last| of.is_none_or(|root| root == last.cid))
        }
    };
    if let Some(pin) = pin {
        told.blocks_done = pin.blocks_done;
        told.bytes_done = pin.bytes_done;
        told.blocks_fetched = pin.blocks_fetched;
        told.bytes_fetched = pin.bytes_fetched;
        told.blocks_pending = pin.blocks_pending;
        told.cause = pin.cause.or(told.cause);
    }
    if let Some((cause, _)) = &open.failed {
        told.status = "error".to_owned();
        told.cause = Some(cause.clone());
    }
    told
}
