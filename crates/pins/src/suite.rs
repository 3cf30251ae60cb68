//! What every [`Connector`] must do, as one story: whoever writes one runs it in his tests. It panics where something does not hold.

use crate::{
    Connector, Input, Kind, OpKind, Operation, Output, Phase, Target, Time, Tracker, TrackerConfig,
};
use cid::Cid;
use std::{collections::BTreeSet, time::Duration};

/// A connector in its surroundings, and a world in which blocks can be had or not.
pub trait Rig {
    /// What is tried.
    type Connector: Connector;

    /// Lends it.
    fn with<T>(
        &mut self,
        run: impl FnOnce(&mut Self::Connector, &mut <Self::Connector as Connector>::Around<'_>) -> T,
    ) -> T;

    /// The root of a DAG of several blocks, another one for each number. Nobody has it before it is provided.
    fn root(&mut self, n: u64) -> Cid;

    /// The root's own block and some of those below it can be had from now on, the others not.
    fn provide_part(&mut self, n: u64);

    /// Its blocks can be had from now on.
    fn provide(&mut self, n: u64);

    /// Time since the beginning.
    fn now(&self) -> Time;

    /// Lets some time pass, at most a tenth of a second of it.
    fn pass(&mut self);
}

/// In this suite a try without a block ends after so long.
const STALL: Duration = Duration::from_millis(800);
/// Passes that nothing needs.
const MANY: usize = 10_000;

struct Owner<'r, R> {
    rig: &'r mut R,
    tracker: Tracker,
    recorded: BTreeSet<Cid>,
    removed: BTreeSet<Cid>,
    ended: Vec<Operation>,
}

/// Runs it.
pub fn connector<R: Rig>(rig: &mut R) {
    let config = TrackerConfig::default()
        .patience(STALL / 4)
        .denied_stall(STALL)
        .stall(STALL)
        .busy_stall(STALL)
        // Long enough to see that a try has ended; another follows, for a machine under load may miss the time of one.
        .first_pause(3 * STALL)
        .longest_pause(3 * STALL);
    let mut owner = Owner {
        rig,
        tracker: Tracker::new(config),
        recorded: BTreeSet::new(),
        removed: BTreeSet::new(),
        ended: Vec::new(),
    };
    owner.what_can_be_had_becomes_whole();
    owner.what_nobody_has_ends_with_a_cause_and_is_whole_later();
    owner.what_was_ended_tells_nothing_more();
    owner.nor_does_what_was_ended_in_the_middle();
    owner.several_are_told_apart();
}

impl<R: Rig> Owner<'_, R> {
    fn what_can_be_had_becomes_whole(&mut self) {
        let root = self.rig.root(1);
        self.rig.provide(1);
        self.want(1);
        self.until("it is whole", |owner| owner.recorded.contains(&root));
        self.until("it is over", |owner| owner.tracker.is_empty());
        let op = self.ended.pop();
        let op = op.unwrap_or_else(|| panic!("no operation ended"));
        assert_eq!((op.phase, op.kind), (Phase::Done, OpKind::Pin));
        assert!(op.progress.blocks_done > 0, "{op:?}");
        // Once more it is there already.
        self.recorded.clear();
        self.want(1);
        self.until("it is whole again", |owner| owner.recorded.contains(&root));
    }

    fn what_nobody_has_ends_with_a_cause_and_is_whole_later(&mut self) {
        let root = self.rig.root(2);
        self.want(2);
        self.until("the try ends", |owner| {
            owner.phase(&root) == Some(Phase::Failed)
        });
        let cause = self
            .tracker
            .operation(&root)
            .and_then(|op| op.cause.clone());
        assert!(cause.is_some_and(|cause| !cause.is_empty()));
        assert!(!self.recorded.contains(&root), "whole without its blocks");
        self.rig.provide(2);
        self.tell(Input::Recover(Some(root)));
        self.until("it is whole", |owner| owner.recorded.contains(&root));
    }

    fn what_was_ended_tells_nothing_more(&mut self) {
        let root = self.rig.root(3);
        self.want(3);
        self.until("it runs", |owner| {
            owner.phase(&root) == Some(Phase::Running)
        });
        self.end_and_provide(3);
    }

    fn nor_does_what_was_ended_in_the_middle(&mut self) {
        let root = self.rig.root(9);
        self.rig.provide_part(9);
        self.want(9);
        self.until("some of it is here", |owner| {
            let op = owner.tracker.operation(&root);
            op.is_some_and(|op| op.phase == Phase::Running && op.progress.blocks_done > 0)
        });
        self.end_and_provide(9);
    }

    fn end_and_provide(&mut self, n: u64) {
        let root = self.rig.root(n);
        self.tell(Input::Unpin(root));
        self.until("it is removed", |owner| owner.removed.contains(&root));
        let late = self.tracker.counts().late;
        self.rig.provide(n);
        let until = self.rig.now() + 2 * STALL;
        self.until("a while", |owner| owner.rig.now() >= until);
        assert!(!self.recorded.contains(&root) && self.tracker.is_empty());
        assert_eq!(self.tracker.counts().late, late, "told after its end");
    }

    fn several_are_told_apart(&mut self) {
        let roots: Vec<Cid> = (4..8).map(|n| self.rig.root(n)).collect();
        for n in [4, 5, 7] {
            self.rig.provide(n);
        }
        (4..8).for_each(|n| self.want(n));
        self.until("all that can be", |owner| {
            [0, 1, 3]
                .iter()
                .all(|at| owner.recorded.contains(&roots[*at]))
        });
        self.until("the other one ends", |owner| {
            owner.phase(&roots[2]) == Some(Phase::Failed)
        });
        assert!(!self.recorded.contains(&roots[2]));
        self.rig.provide(6);
        self.tell(Input::Recover(None));
        self.until("the other one", |owner| owner.recorded.contains(&roots[2]));
    }

    fn phase(&self, root: &Cid) -> Option<Phase> {
        self.tracker.operation(root).map(|op| op.phase)
    }

    fn want(&mut self, n: u64) {
        let target = Target {
            cid: self.rig.root(n),
            id: n + 1,
            reach: Kind::Recursive,
        };
        let recent = true;
        self.tell(Input::Wanted { target, recent });
    }

    fn tell(&mut self, input: Input) {
        let told = self.tracker.handle(input, self.rig.now());
        assert_eq!(told, Ok(()));
        self.carry_out();
    }

    fn carry_out(&mut self) {
        let now = self.rig.now();
        let Self { rig, tracker, .. } = self;
        while let Some(output) =
            rig.with(|connector, around| tracker.poll_through(connector, around, now))
        {
            let answer = match output {
                Output::Complete(ticket, _) => {
                    self.recorded.insert(ticket.cid);
                    Input::Recorded(ticket, Ok(()))
                }
                Output::Remove(ticket) => {
                    self.removed.insert(ticket.cid);
                    Input::Recorded(ticket, Ok(()))
                }
                Output::Draw(..) => Input::Drawn {
                    targets: Vec::new(),
                    more: false,
                },
                Output::Ended(op) => {
                    self.ended.push(*op);
                    continue;
                }
                _ => continue,
            };
            let told = tracker.handle(answer, now);
            assert_eq!(told, Ok(()));
        }
    }

    fn step(&mut self) {
        let Self { rig, tracker, .. } = self;
        let (mut facts, _) = rig.with(|connector, around| connector.advance(tracker, around));
        facts.extend(rig.with(|connector, around| connector.standing(around)));
        for fact in facts {
            self.tell(fact);
        }
        self.tracker.expire(self.rig.now());
        self.carry_out();
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..MANY {
            self.step();
            if is_so(self) {
                return;
            }
            self.rig.pass();
        }
        panic!("never: {what}");
    }
}
