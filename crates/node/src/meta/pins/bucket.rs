//! A second place for pins, for tests: a bucket of objects, as S3 is one. An object a pin, under the root's name; an index that names them, which is the
//! last thing written and so makes a change true.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cid::Cid;
use gemba_pins::{DesiredSet, Pin, decode_record, encode_key, encode_record};

use super::plan::{self, Records};
use super::{Edited, PinEdit, PinRows, PinState};
use crate::error::Fail;

/// The objects by name.
type Objects = BTreeMap<String, Vec<u8>>;

/// See the module's text. Clones are the same bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bucket(Arc<Mutex<Objects>>);

/// Names the objects that count: the largest id, and for each root which of its objects is the newest.
const INDEX: &str = "index";

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Index {
    last_id: u64,
    version: u64,
    roots: BTreeMap<String, String>,
}

/// A change on its way: objects are written under new names, and nobody sees them before the index names them.
struct Change<'b> {
    objects: MutexGuard<'b, Objects>,
    index: Index,
}

impl Bucket {
    fn begin(&self) -> Change<'_> {
        let objects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = objects.get(INDEX).map(|text| serde_json::from_slice(text));
        let index = index.transpose().unwrap().unwrap_or_default();
        Change { objects, index }
    }
}

impl Change<'_> {
    fn object(&self, name: &str, cid: &Cid) -> Pin {
        decode_record(*cid, &self.objects[name]).unwrap()
    }

    fn end(mut self) {
        let index = serde_json::to_vec(&self.index).unwrap();
        self.objects.insert(INDEX.to_owned(), index);
        let named: Vec<&String> = self.index.roots.values().collect();
        self.objects
            .retain(|name, _| name == INDEX || named.contains(&name));
    }
}

impl Records for Change<'_> {
    fn get(&self, cid: &Cid) -> Result<Option<Pin>, Fail> {
        let name = self.index.roots.get(&cid.to_string());
        Ok(name.map(|name| self.object(name, cid)))
    }

    fn put(&mut self, cid: &Cid, _: Option<&Pin>, after: Option<&Pin>) -> Result<(), Fail> {
        let root = cid.to_string();
        match after {
            Some(pin) => {
                self.index.version += 1;
                let name = format!("pins/{root}/{}", self.index.version);
                self.objects.insert(name.clone(), encode_record(pin));
                self.index.roots.insert(root, name);
            }
            None => drop(self.index.roots.remove(&root)),
        }
        Ok(())
    }

    fn last_id(&self) -> u64 {
        self.index.last_id
    }

    fn set_last_id(&mut self, id: u64) {
        self.index.last_id = id;
    }
}

impl PinState for Bucket {
    fn pins(&self) -> Result<PinRows, Fail> {
        let change = self.begin();
        let pins = change.index.roots.iter().map(|(root, name)| {
            let cid: Cid = root.parse().unwrap();
            (encode_key(&cid), encode_record(&change.object(name, &cid)))
        });
        Ok(DesiredSet::load(pins).unwrap().into())
    }

    fn edit(&self, edits: &[PinEdit]) -> Result<Vec<Result<Edited, Fail>>, Fail> {
        let mut change = self.begin();
        let outcomes = edits.iter().map(|edit| plan::edit(&mut change, edit));
        let outcomes = outcomes.collect::<Result<Vec<_>, Fail>>();
        change.end();
        outcomes
    }
}
