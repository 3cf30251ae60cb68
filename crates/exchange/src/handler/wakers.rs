//! Those who wait for the same thing, each once. Whoever waits keeps its [`Place`] and finds it again without a look at the others: 256 inbound
//! streams of a connection that wait and are polled cost 256 looks, and not 65,536.

use std::task::Waker;

/// Wakers by place. As many as there are who wait: who goes leaves its place to the next.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    places: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// How often all were woken: places of an earlier round are none.
    round: u64,
}

/// Where somebody waits, if it does.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<(u64, usize)>);

impl Place {
    /// Whether it waits, or was woken since.
    pub(crate) fn is_used(&self) -> bool {
        self.0.is_some()
    }
}

impl Wakers {
    /// Waits, or goes on waiting with another waker.
    pub(crate) fn wait(&mut self, place: &mut Place, waker: &Waker) {
        let at = match (place.0, self.free.pop()) {
            (Some((round, at)), free) if round == self.round => {
                self.free.extend(free);
                at
            }
            (_, Some(free)) => free,
            (_, None) => {
                self.places.push(None);
                self.places.len() - 1
            }
        };
        place.0 = Some((self.round, at));
        match &mut self.places[at] {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Does not wait any more.
    pub(crate) fn leave(&mut self, place: &mut Place) {
        if let Some((round, at)) = place.0.take()
            && round == self.round
        {
            self.places[at] = None;
            self.free.push(at);
        }
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    /// All who wait: they do not any more, and are to be woken once no lock is held.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.round += 1;
        self.free = Vec::new();
        std::mem::take(&mut self.places).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counted() -> (Arc<Count>, Waker) {
        let count = Arc::<Count>::default();
        (count.clone(), count.into())
    }

    #[test]
    fn each_waits_once_and_is_woken_once_with_its_last_waker() {
        let mut wakers = Wakers::default();
        let mut places: Vec<Place> = (0..256).map(|_| Place::default()).collect();
        let (old, first) = counted();
        let (new, second) = counted();
        for waker in [&first, &second] {
            for place in &mut places {
                wakers.wait(place, waker);
            }
            assert_eq!(wakers.places.len(), 256);
        }
        wakers.take().for_each(Waker::wake);
        assert_eq!(
            (old.0.load(Ordering::SeqCst), new.0.load(Ordering::SeqCst)),
            (0, 256)
        );
        assert!(wakers.is_empty() && wakers.take().next().is_none());
    }

    #[test]
    fn who_leaves_is_not_woken_and_leaves_its_place_to_the_next() {
        let mut wakers = Wakers::default();
        let (count, waker) = counted();
        let mut stays = Place::default();
        wakers.wait(&mut stays, &waker);
        for _ in 0..1000 {
            let mut goes = Place::default();
            wakers.wait(&mut goes, &waker);
            wakers.leave(&mut goes);
            wakers.leave(&mut goes);
        }
        assert_eq!(wakers.places.len(), 2);
        wakers.take().for_each(Waker::wake);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        // A place of a round that is over is nobody's.
        let mut other = Place::default();
        wakers.wait(&mut other, &waker);
        wakers.leave(&mut stays);
        assert!(!wakers.is_empty());
        wakers.leave(&mut other);
        assert!(wakers.is_empty());
    }
}
