//! What a server of the DHT needs for names, as pure functions: validate, choose, put, repair. `libp2p-kad` does none of it.

use crate::{
    error::{RecordError, Refused},
    name::Name,
    record::{Content, Record},
    wall::Wall,
};
use libp2p_identity::PeerId;
use std::ops::Deref;

/// Validates the record stored or offered under `key`: the key is that of a name, the record is signed for it, its life has not ended.
///
/// # Errors
/// [`Refused::Record`] or [`Refused::Expired`].
pub fn validate(key: &[u8], value: &[u8], now: Wall) -> Result<Record, Refused> {
    let name = Name::from_routing_key(key)
        .map_err(|_| Refused::Record(RecordError::Protobuf("the key is not that of a name")))?;
    let record = Record::open(name, value).map_err(Refused::Record)?;
    if record.is_expired(now) {
        return Err(Refused::Expired(record.validity()));
    }
    Ok(record)
}

/// Which of several valid records is the newest (clause NA-7); `None` if there is none.
pub fn select(records: &[Record]) -> Option<usize> {
    (0..records.len()).reduce(|best, next| {
        if records[next].order(&records[best]).is_gt() {
            next
        } else {
            best
        }
    })
}

/// Whether a server stores the record that was put under `key`, in place of `stored` (clause NA-25). A stored one whose life has ended gives way to any.
///
/// # Errors
/// [`Refused::Older`] if the stored one is newer, besides what [`validate`] says.
pub fn accept_put(
    key: &[u8],
    value: &[u8],
    stored: Option<&[u8]>,
    now: Wall,
) -> Result<Record, Refused> {
    let record = validate(key, value, now)?;
    let stored = stored.and_then(|bytes| validate(key, bytes, now).ok());
    match stored {
        Some(stored) if record.order(&stored).is_lt() => Err(Refused::Older {
            name: record.name(),
            current: stored.sequence(),
            offered: record.sequence(),
        }),
        _ => Ok(record),
    }
}

/// Of those who answered, who has to be given the newest record: all with an older one, an invalid one (`None`), or none.
pub fn repair<T: Deref<Target = Content>>(
    best: &Record,
    answers: &[(PeerId, Option<T>)],
) -> Vec<PeerId> {
    answers
        .iter()
        .filter(|(_, answer)| answer.as_ref().is_none_or(|answer| is_behind(answer, best)))
        .map(|(peer, _)| *peer)
        .collect()
}

/// What differs only around the signed data is the same version (clause NA-8).
fn is_behind(answer: &Content, best: &Record) -> bool {
    !answer.is_same_version(best) && answer.order(best).is_lt()
}
