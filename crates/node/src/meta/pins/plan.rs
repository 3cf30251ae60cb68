//! What a change of a pin means, whatever the pins are kept in.

use cid::Cid;
use gemba_pins::{Add, Change, Edit, Kind, Name, Pin, PinError, Size};

use super::{Edited, PinEdit, pin_fail};
use crate::error::{Code, Fail};
use crate::names::follows;

/// The records of one transaction.
pub(super) trait Records {
    /// The pin of this root.
    fn get(&self, cid: &Cid) -> Result<Option<Pin>, Fail>;
    /// Writes what it is from now on, or removes it; and the largest id that was given.
    fn put(&mut self, cid: &Cid, before: Option<&Pin>, after: Option<&Pin>) -> Result<(), Fail>;
    /// The largest id that was ever given.
    fn last_id(&self) -> u64;
    /// A larger one was.
    fn set_last_id(&mut self, id: u64);
}

/// The root and what is to be done to its record, or why it cannot be.
type Planned = Result<(Cid, Vec<Step>), Fail>;

/// Plans and writes. What cannot be is the inner error; the outer one is the disk's.
pub(super) fn edit(
    records: &mut dyn Records,
    edit: &PinEdit,
) -> Result<Result<Edited, Fail>, Fail> {
    let (cid, steps) = match steps(records, edit)? {
        Ok(steps) => steps,
        Err(fail) => return Ok(Err(fail)),
    };
    let before = records.get(&cid)?;
    let mut after = before.clone();
    for step in steps {
        let step = match step {
            Step::Edit(edit) => edit,
            Step::Complete(size) => Edit::Complete {
                id: after.as_ref().map_or(0, |pin| pin.id),
                size,
            },
        };
        match plan(records, cid, step, after.as_ref()) {
            Ok(Some(change)) => after = change.after().cloned(),
            Ok(None) => {}
            Err(e) => return Ok(Err(pin_fail(e))),
        }
    }
    if before != after {
        records.put(&cid, before.as_ref(), after.as_ref())?;
    }
    Ok(Ok(Edited { cid, before, after }))
}

fn plan(
    records: &mut dyn Records,
    cid: Cid,
    edit: Edit,
    current: Option<&Pin>,
) -> Result<Option<Change>, PinError> {
    let is_add = matches!(edit, Edit::Add(_));
    let fresh = match records.last_id().checked_add(1) {
        Some(fresh) => fresh,
        None if is_add => return Err(PinError::IdsUsedUp),
        None => records.last_id(),
    };
    let change = edit.plan(cid, current, fresh)?;
    let is_given = |change: &Change| change.after().is_some_and(|pin| pin.id == fresh);
    if change.as_ref().is_some_and(is_given) {
        records.set_last_id(fresh);
    }
    Ok(change)
}

/// What an edit means for the pin as it is.
fn steps(records: &dyn Records, edit: &PinEdit) -> Result<Planned, Fail> {
    Ok(Ok(match edit {
        PinEdit::Plain(cid, edit) => (*cid, vec![Step::Edit(edit.clone())]),
        PinEdit::Own(add) => (add.cid, own(records, add)?),
        PinEdit::Whole(add, size) => {
            let mut steps = own(records, add)?;
            steps.push(Step::Complete(*size));
            (add.cid, steps)
        }
        PinEdit::Measured(cid, id, size) => {
            let pin = records.get(cid)?;
            let (id, size) = (*id, Some(*size));
            // Struck out meanwhile it stays so.
            let is_meant = pin.is_some_and(|pin| pin.complete && pin.id == id);
            let complete = Step::Edit(Edit::Complete { id, size });
            (*cid, is_meant.then_some(complete).into_iter().collect())
        }
        PinEdit::Followed(add) => {
            let is_there = records.get(&add.cid)?.is_some();
            let name = add.name.clone().filter(|_| !is_there);
            (add.cid, vec![Step::add(add, name, add.kind)])
        }
        PinEdit::Listed(add) => (add.cid, listed(records, add)?),
        PinEdit::Release(cid, holder) => match release(records, cid, holder.as_deref())? {
            Ok(steps) => (*cid, steps),
            Err(fail) => return Ok(Err(fail)),
        },
        PinEdit::Replace(old, new, holder) => {
            if !records.get(new)?.is_some_and(|pin| pin.complete) {
                let cause = format!("{new} is not whole, so {old} stays pinned");
                return Ok(Err(Fail::new(Code::Conflict, cause)
                    .hint("run the update again: it goes on where it was")));
            }
            match release(records, old, holder.as_deref())? {
                Ok(steps) => (*old, steps),
                Err(fail) => return Ok(Err(fail)),
            }
        }
    }))
}

fn own(records: &dyn Records, add: &Add) -> Result<Vec<Step>, Fail> {
    let current = records.get(&add.cid)?;
    let label = current.and_then(|pin| pin.name);
    let is_label = label.is_some_and(|label| follows::is_label(label.as_str()));
    let mut steps = Vec::new();
    if is_label && add.name.is_none() {
        steps.push(Step::Edit(Edit::Rename(None)));
    }
    steps.push(Step::add(add, add.name.clone(), add.kind));
    Ok(steps)
}

fn listed(records: &dyn Records, add: &Add) -> Result<Vec<Step>, Fail> {
    let Some(current) = records.get(&add.cid)? else {
        return Ok(vec![Step::add(add, add.name.clone(), add.kind)]);
    };
    let name = add.name.clone().filter(|_| current.name.is_none());
    let kind = match current.kind {
        Kind::Recursive => Kind::Recursive,
        Kind::Direct => add.kind,
    };
    Ok(vec![Step::add(add, name, kind)])
}

fn release(
    records: &dyn Records,
    cid: &Cid,
    holder: Option<&str>,
) -> Result<Result<Vec<Step>, Fail>, Fail> {
    let Some(holder) = holder else {
        return Ok(Ok(vec![Step::Edit(Edit::Remove)]));
    };
    let label = records.get(cid)?.and_then(|pin| pin.name);
    if label.is_some_and(|label| follows::is_label(label.as_str())) {
        return Ok(Err(follows::held(cid, holder)));
    }
    let label = match Name::new(holder) {
        Ok(label) => label,
        Err(e) => return Ok(Err(Fail::new(Code::Failure, e))),
    };
    Ok(Ok(vec![Step::Edit(Edit::Rename(Some(label)))]))
}

enum Step {
    Edit(Edit),
    /// Whatever id it has by then.
    Complete(Option<Size>),
}

impl Step {
    fn add(add: &Add, name: Option<Name>, kind: Kind) -> Self {
        Self::Edit(Edit::Add(Add {
            name,
            kind,
            ..add.clone()
        }))
    }
}
