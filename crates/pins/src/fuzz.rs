//! Entry points of the fuzz targets, replayed on stable by this crate's tests. Not part of the API.

use crate::{DesiredSet, decode_key, decode_record, encode_key, encode_record};

/// `data`: one byte length of the key, the key, the value.
///
/// What is read must be written back byte for byte, and a set loaded from it must hold exactly that pin.
pub fn record(data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else {
        return;
    };
    let Some((key, value)) = rest.split_at_checked(usize::from(len)) else {
        return;
    };
    let Ok(cid) = decode_key(key) else { return };
    assert_eq!(encode_key(&cid), key);
    let Ok(pin) = decode_record(cid, value) else {
        return;
    };
    assert_eq!(encode_record(&pin), value);
    let set = DesiredSet::load([(key, value)]).expect("key and value were read above");
    assert_eq!(set.get(&cid), Some(&pin));
}
