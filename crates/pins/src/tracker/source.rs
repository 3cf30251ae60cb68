//! Where wishes are from: the desired set of this device, and whatever else an owner lets have a say.

use super::Target;
use crate::desired::DesiredSet;
use cid::Cid;

/// What ought to be on this device and is not whole, in the order of the CIDs.
pub trait Source {
    /// At most so many behind this one.
    fn open_after(&self, after: Option<&Cid>, at_most: usize) -> Vec<Target>;
}

impl Source for DesiredSet {
    fn open_after(&self, after: Option<&Cid>, at_most: usize) -> Vec<Target> {
        let open = self.iter_after(after).filter(|pin| !pin.complete);
        let target = |pin: &crate::Pin| Target {
            cid: pin.cid,
            id: pin.id,
            reach: pin.kind,
        };
        open.take(at_most).map(target).collect()
    }
}

/// Two sources as one. Where both want a root the first one's wish is worked for.
#[derive(Debug, Clone, Copy)]
pub struct Union<A, B>(pub A, pub B);

impl<A: Source, B: Source> Source for Union<A, B> {
    fn open_after(&self, after: Option<&Cid>, at_most: usize) -> Vec<Target> {
        let mut both = self.0.open_after(after, at_most);
        let own: std::collections::BTreeSet<Cid> = both.iter().map(|target| target.cid).collect();
        let others = self.1.open_after(after, at_most);
        both.extend(others.into_iter().filter(|other| !own.contains(&other.cid)));
        both.sort_by_key(|target| target.cid);
        both.truncate(at_most);
        both
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn open_after(&self, after: Option<&Cid>, at_most: usize) -> Vec<Target> {
        (**self).open_after(after, at_most)
    }
}
