//! The desired set against a plain model, with crashes between "persisted" and "applied".
#![allow(clippy::unwrap_used)]

use gemba_pins::{Add, Change, Cid, DesiredSet, Edit, Kind, Name, Pin, PinError, StaleChange};
use gemba_testkit::dag::fake_cid;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn cid(n: u8) -> Cid {
    fake_cid(0x70, u64::from(n))
}

fn add(n: u8, kind: Kind, name: Option<&str>) -> Add {
    Add {
        cid: cid(n),
        kind,
        name: name.map(|name| name.parse().unwrap()),
        now_ms: 1_000 + u64::from(n),
    }
}

/// An owner that does it right: persist, then apply.
#[derive(Default)]
struct Owner {
    table: BTreeMap<Vec<u8>, Vec<u8>>,
    set: DesiredSet,
}

impl Owner {
    fn persist(&mut self, change: &Change) {
        match change.record() {
            Some(value) => self.table.insert(change.key(), value),
            None => self.table.remove(&change.key()),
        };
    }

    fn commit(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            self.persist(&change);
            self.set.apply(change).unwrap();
        }
    }

    fn crash(&mut self) {
        self.set = DesiredSet::load(&self.table).unwrap();
    }

    fn pins(&self) -> Vec<Pin> {
        self.set.iter().cloned().collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add {
        root: u8,
        direct: bool,
        name: Option<u8>,
    },
    Remove(u8),
    /// Completes the pin as it was at some time before: its id may be out of date.
    Complete {
        root: u8,
        id: u64,
    },
    Incomplete(u8),
    Rename {
        root: u8,
        name: Option<u8>,
    },
    Crash {
        after_persist: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let root = 0u8..4;
    let name = proptest::option::of(0u8..3);
    let step = prop_oneof![
        4 => (root.clone(), any::<bool>(), name.clone()).prop_map(|(root, direct, name)| Step::Add { root, direct, name }),
        2 => root.clone().prop_map(Step::Remove),
        3 => (root.clone(), 0u64..12).prop_map(|(root, id)| Step::Complete { root, id }),
        1 => root.clone().prop_map(Step::Incomplete),
        1 => (root, name).prop_map(|(root, name)| Step::Rename { root, name }),
        1 => any::<bool>().prop_map(|after_persist| Step::Crash { after_persist }),
    ];
    proptest::collection::vec(step, 0..60)
}

fn text(name: Option<u8>) -> Option<String> {
    name.map(|n| format!("name {n}"))
}

/// kind, name, complete, id.
type Model = BTreeMap<u8, (Kind, Option<String>, bool, u64)>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// PIN-1, PIN-2, PIN-3: after every step the set is the model, and after a crash at either side of the write the set is the table.
    #[test]
    fn p2_the_set_is_the_model_and_survives_crashes(steps in steps()) {
        let mut owner = Owner::default();
        let mut model = Model::new();
        let mut crash: Option<bool> = None;
        for step in steps {
            let planned = match step.clone() {
                Step::Crash { after_persist } => {
                    crash = Some(after_persist);
                    continue;
                }
                Step::Add { root, direct, name } => {
                    let kind = if direct { Kind::Direct } else { Kind::Recursive };
                    owner.set.add(add(root, kind, text(name).as_deref()))
                }
                Step::Remove(root) => owner.set.remove(&cid(root)).map(Some),
                Step::Complete { root, id } => owner.set.complete(&cid(root), id),
                Step::Incomplete(root) => owner.set.incomplete(&cid(root)),
                Step::Rename { root, name } => owner.set.rename(&cid(root), text(name).map(|name| Name::new(name).unwrap())),
            };
            let expected = expect(&model, &step);
            prop_assert_eq!(planned.is_ok(), expected.is_some(), "{:?}: {:?}", step, planned);
            let mut takes_effect = true;
            match (crash.take(), planned) {
                (_, Err(_)) => {}
                (None, Ok(change)) => owner.commit(change),
                (Some(after_persist), Ok(change)) => {
                    takes_effect = after_persist;
                    if let Some(change) = change.filter(|_| after_persist) {
                        owner.persist(&change);
                    }
                    owner.crash();
                }
            }
            if let Some((root, after)) = expected.filter(|_| takes_effect) {
                match after {
                    Some((kind, name, complete)) => {
                        let pin = owner.set.get(&cid(root)).unwrap();
                        // A new or widened pin has an id no pin has; any other keeps its own.
                        let widened = model.get(&root).is_none_or(|old| old.0 != kind);
                        let id = if widened { pin.id } else { model[&root].3 };
                        prop_assert!(!widened || model.values().all(|other| other.3 != id));
                        model.insert(root, (kind, name, complete, id));
                    }
                    None => drop(model.remove(&root)),
                }
            }
            let said: Vec<_> = owner.set.iter().map(|p| (p.cid, p.kind, p.name.as_ref().map(Name::to_string), p.complete, p.id)).collect();
            let meant: Vec<_> = model.iter().map(|(n, (kind, name, complete, id))| (cid(*n), *kind, name.clone(), *complete, *id)).collect();
            prop_assert_eq!(said, meant);
            let reloaded = DesiredSet::load(&owner.table).unwrap();
            prop_assert_eq!(reloaded.iter().cloned().collect::<Vec<_>>(), owner.pins());
            prop_assert_eq!(owner.set.incomplete_pins().count(), model.values().filter(|pin| !pin.2).count());
        }
    }
}

/// What a step should do: `None` if it is refused, else the root and what its pin becomes.
#[allow(clippy::type_complexity, reason = "used once, read once")]
fn expect(model: &Model, step: &Step) -> Option<(u8, Option<(Kind, Option<String>, bool)>)> {
    let there = |root: &u8| model.get(root).cloned();
    Some(match step {
        Step::Crash { .. } => return None,
        Step::Add { root, direct, name } => {
            let kind = if *direct {
                Kind::Direct
            } else {
                Kind::Recursive
            };
            match there(root) {
                None => (*root, Some((kind, text(*name), false))),
                Some((Kind::Recursive, ..)) if *direct => return None,
                Some((old, old_name, complete, _)) => (
                    *root,
                    Some((kind, text(*name).or(old_name), complete && old == kind)),
                ),
            }
        }
        Step::Remove(root) => there(root).map(|_| (*root, None))?,
        Step::Complete { root, id } => {
            let (kind, name, _, current) = there(root)?;
            if current != *id {
                return None;
            }
            (*root, Some((kind, name, true)))
        }
        Step::Incomplete(root) => {
            there(root).map(|(kind, name, ..)| (*root, Some((kind, name, false))))?
        }
        Step::Rename { root, name } => there(root)
            .map(|(kind, _, complete, _)| (*root, Some((kind, text(*name), complete))))?,
    })
}

#[test]
fn pin_3_a_result_for_an_older_pin_is_void() {
    let mut owner = Owner::default();
    let change = owner.set.add(add(1, Kind::Direct, None)).unwrap();
    owner.commit(change);
    let first = owner.set.get(&cid(1)).unwrap().id;
    let change = owner.set.add(add(1, Kind::Recursive, None)).unwrap();
    owner.commit(change);
    let second = owner.set.get(&cid(1)).unwrap().id;
    assert_ne!(first, second);
    assert_eq!(
        owner.set.complete(&cid(1), first),
        Err(PinError::Superseded {
            cid: cid(1),
            id: first,
            current: second
        })
    );
    // Removed and wished anew: the old work is void too, also when the removed pin had the highest id.
    let change = owner.set.remove(&cid(1)).unwrap();
    owner.commit(Some(change));
    assert_eq!(
        owner.set.complete(&cid(1), second),
        Err(PinError::NotPinned(cid(1)))
    );
    let change = owner.set.add(add(1, Kind::Recursive, None)).unwrap();
    owner.commit(change);
    assert!(matches!(
        owner.set.complete(&cid(1), second),
        Err(PinError::Superseded { .. })
    ));
}

#[test]
fn pin_2_planning_changes_nothing_and_a_stale_plan_is_refused() {
    let mut owner = Owner::default();
    let first = owner
        .set
        .add(add(1, Kind::Recursive, Some("a")))
        .unwrap()
        .unwrap();
    let second = owner
        .set
        .add(add(1, Kind::Recursive, Some("b")))
        .unwrap()
        .unwrap();
    assert!(owner.set.is_empty());
    assert_ne!(first.after().unwrap().id, second.after().unwrap().id);
    assert_eq!((first.before(), first.cid()), (None, &cid(1)));
    owner.commit(Some(first));
    assert_eq!(owner.set.apply(second), Err(StaleChange(cid(1))));
    assert_eq!(owner.set.named("a").count(), 1);
    assert_eq!(owner.set.len(), 1);
}

#[test]
fn adding_what_is_there_is_nothing_to_persist() {
    let mut owner = Owner::default();
    let change = owner.set.add(add(1, Kind::Recursive, Some("a"))).unwrap();
    owner.commit(change);
    let id = owner.set.get(&cid(1)).unwrap().id;
    let change = owner.set.complete(&cid(1), id).unwrap();
    owner.commit(change);
    assert_eq!(owner.set.add(add(1, Kind::Recursive, None)), Ok(None));
    assert_eq!(owner.set.complete(&cid(1), id), Ok(None));
    assert_eq!(
        owner.set.rename(&cid(1), Some("a".parse().unwrap())),
        Ok(None)
    );
    assert!(owner.set.get(&cid(1)).unwrap().complete);
    let refused = owner.set.add(add(1, Kind::Direct, None)).unwrap_err();
    assert_eq!(refused, PinError::AlreadyRecursive(cid(1)));
    assert!(refused.to_string().ends_with("remove that pin first"));
}

/// An owner with more pins than memory runs the same rules against its table.
#[test]
fn an_edit_is_a_function_of_the_one_pin_it_concerns() {
    let change = Edit::Add(add(1, Kind::Recursive, None))
        .plan(cid(1), None, 41)
        .unwrap()
        .unwrap();
    let pin = change.after().unwrap().clone();
    assert_eq!((pin.id, pin.complete), (41, false));
    let change = Edit::Complete { id: 41, size: None }
        .plan(cid(1), Some(&pin), 42)
        .unwrap()
        .unwrap();
    assert!(change.after().unwrap().complete);
    assert!(
        Edit::Remove
            .plan(cid(1), Some(&pin), 42)
            .unwrap()
            .unwrap()
            .record()
            .is_none()
    );
    assert_eq!(
        Edit::Remove.plan(cid(1), None, 42),
        Err(PinError::NotPinned(cid(1)))
    );
}
