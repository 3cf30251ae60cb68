//! What a transaction changed and has not written yet: savepoints for stores that have none of their own.

use std::collections::BTreeMap;

/// Changes over something that can be read; a key with no value is deleted.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    done: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Since the savepoint: what each key was before it, if it was changed before.
    undo: BTreeMap<Vec<u8>, Option<Option<Vec<u8>>>>,
}

impl Overlay {
    /// The change of this key, if there is one.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&Vec<u8>>> {
        self.done.get(key).map(Option::as_ref)
    }

    pub(super) fn put(&mut self, key: &[u8], value: Option<&[u8]>) {
        let before = self.done.insert(key.to_vec(), value.map(<[u8]>::to_vec));
        if !self.undo.contains_key(key) {
            self.undo.insert(key.to_vec(), before);
        }
    }

    pub(super) fn savepoint(&mut self) {
        self.undo.clear();
    }

    pub(super) fn rollback(&mut self) {
        for (key, before) in std::mem::take(&mut self.undo) {
            match before {
                Some(value) => drop(self.done.insert(key, value)),
                None => drop(self.done.remove(&key)),
            }
        }
    }

    /// The changes from this key on, in order.
    pub(super) fn from<'a>(
        &'a self,
        first: &[u8],
    ) -> impl Iterator<Item = (&'a Vec<u8>, Option<&'a Vec<u8>>)> + use<'a> {
        self.done
            .range(first.to_vec()..)
            .map(|(key, value)| (key, value.as_ref()))
    }

    pub(super) fn into_changes(self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        self.done
    }
}

/// The rows of `base`, which begin at the right place and are in order, with the changes over them.
pub(super) fn merged(
    mut base: BTreeMap<Vec<u8>, Vec<u8>>,
    overlay: &Overlay,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    for (key, value) in overlay.from(after.unwrap_or(prefix)) {
        if !key.starts_with(prefix) {
            break;
        }
        if after.is_some_and(|after| key.as_slice() <= after) {
            continue;
        }
        match value {
            Some(value) => drop(base.insert(key.clone(), value.clone())),
            None => drop(base.remove(key)),
        }
    }
    base.into_iter().take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_undoes_one_event_and_nothing_before_it() {
        let mut overlay = Overlay::default();
        overlay.put(b"a", Some(b"1"));
        overlay.put(b"b", Some(b"1"));
        overlay.savepoint();
        overlay.put(b"a", Some(b"2"));
        overlay.put(b"a", None);
        overlay.put(b"c", Some(b"2"));
        overlay.rollback();
        assert_eq!(overlay.get(b"a"), Some(Some(&b"1".to_vec())));
        assert_eq!(overlay.get(b"b"), Some(Some(&b"1".to_vec())));
        assert_eq!(overlay.get(b"c"), None);
        overlay.rollback();
        assert_eq!(
            overlay.get(b"a"),
            Some(Some(&b"1".to_vec())),
            "twice is once"
        );
    }
}
