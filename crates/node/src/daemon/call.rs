//! One request to the API, as far as those who work for it must know: how long its caller waits, whether he is still there, and
//! what it waits for at this moment, so that he can be told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cid::Cid;
use libp2p_identity::PeerId;
use multiaddr::Multiaddr;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Code, Fail};

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A block that is to come from the swarm.
    Block(Cid),
    /// The pin of this root, until it is whole.
    Pin(Cid),
    /// A dial.
    Dial(Multiaddr),
    /// The answer to a ping.
    Ping(PeerId),
    /// A record of a name.
    Name(gemba_names::Name),
    /// A change of a name, or of any.
    Change(Option<gemba_names::Name>),
    /// Room in the store.
    Room,
}

/// One request. Ends (see [`Call::token`]) when the caller is gone, has his answer, or the daemon ends.
#[derive(Debug)]
pub struct Call {
    /// The caller's name for it; empty if he gave none.
    pub id: String,
    /// When the caller gives up, if he said so.
    pub patience: Option<Duration>,
    over: CancellationToken,
    ending: CancellationToken,
    waits: Mutex<Option<(Wait, Instant)>>,
}

impl Call {
    /// A request that begins now; `ending` is cancelled when the daemon ends.
    #[must_use]
    pub fn new(id: String, patience: Option<Duration>, ending: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            id,
            patience,
            over: ending.child_token(),
            ending: ending.clone(),
            waits: Mutex::default(),
        })
    }

    /// Cancelled when nobody needs the answer any more.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Notes what is waited for until the result is dropped.
    pub fn waits_for(&self, wait: Wait) -> Waiting<'_> {
        *self.waits() = Some((wait, Instant::now()));
        Waiting(self)
    }

    /// What is waited for, and for how long.
    #[must_use]
    pub fn waiting(&self) -> Option<(Wait, Duration)> {
        self.waits()
            .as_ref()
            .map(|(wait, since)| (wait.clone(), since.elapsed()))
    }

    /// Runs work until the call is over.
    ///
    /// # Errors
    /// The work's, or why the call is over.
    pub async fn within<T>(&self, work: impl Future<Output = Result<T, Fail>>) -> Result<T, Fail> {
        tokio::select! {
            biased;
            outcome = work => outcome,
            () = self.over.cancelled() => Err(self.why_over()),
        }
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// The call is over.
    pub fn check(&self) -> Result<(), Fail> {
        if self.over.is_cancelled() {
            Err(self.why_over())
        } else {
            Ok(())
        }
    }

    /// Why a call that is over is.
    #[must_use]
    pub fn why_over(&self) -> Fail {
        if self.ending.is_cancelled() {
            ending()
        } else {
            Fail::new(Code::Interrupted, "the client went away")
        }
    }

    fn waits(&self) -> std::sync::MutexGuard<'_, Option<(Wait, Instant)>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, the call waits for something.
pub struct Waiting<'a>(&'a Call);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.waits() = None;
    }
}

/// What everybody is told who asks a daemon that is ending.
pub(crate) fn ending() -> Fail {
    Fail::new(Code::NoDaemon, "the daemon is ending").hint("start it again with `gemba daemon`")
}
