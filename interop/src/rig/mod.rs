//! What the scenarios are made of: processes, nodes, networks and folders. Nothing in here judges; scenarios do.

pub(crate) mod gemba;
pub(crate) mod http;
pub(crate) mod key;
pub(crate) mod kubo;
pub(crate) mod netns;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod rng;
pub(crate) mod tree;

use crate::failure::{Failure, Outcome};
use std::time::{Duration, Instant};

/// One line of what an `add` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) cid: String,
}

/// The root of what was added.
pub(crate) fn root(entries: &[Entry]) -> &str {
    entries.last().map_or("", |entry| &entry.cid)
}

/// Asks `ready` again and again until it gives a value, at most for `limit`. Returns the value and how long it took.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Outcome<Option<T>>,
) -> Outcome<(T, Duration)> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok((value, start.elapsed()));
        }
        if start.elapsed() > limit {
            return Err(Failure::new(format!(
                "not within {:.1} s: {what}",
                limit.as_secs_f64()
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
