//! The tracker's connector to a Kubo: it pins by that Kubo's RPC, and tells what comes of it. For an owner whose blocks lie in a Kubo, and who wants the wishes,
//! tries and causes of `gemba-pins` in front of it.
//!
//! A thread for each pin that is being made, which waits for the Kubo and ends with the pin. The Kubo keeps what it has pinned; [`KuboConnector::release`] lets
//! it go.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use cid::Cid;
use gemba_pins::{Begun, Connector, Input, Kind, Outlook, Progress, Target, Ticket, Tracker};
use tokio::sync::oneshot;

use super::kubo::{Rpc, RpcError, runtime};
use super::kubo_pins::{make, theirs};
use crate::error::Fail;

/// Pins that are being made at a time: a thread and a connection each.
const AT_ONCE: usize = 16;
/// Facts that may wait to be asked for. Beyond it a thread that has come to its end waits, and mere progress is left out.
const FACTS: usize = 256;
/// What gets no block for so long is told to stand still.
const PATIENT: Duration = Duration::from_secs(3);

/// See the module's text.
pub struct KuboConnector {
    url: String,
    host: String,
    running: BTreeMap<Ticket, Running>,
    tell: SyncSender<Input>,
    told: Receiver<Input>,
    patience: Duration,
}

/// A pin that is being made. Dropping it ends the request, and with it what the Kubo does for it.
struct Running {
    moved: Instant,
    _stop: oneshot::Sender<()>,
}

impl KuboConnector {
    /// To the Kubo whose RPC is at `url` (`http://127.0.0.1:5001`). Nothing is asked yet.
    ///
    /// # Errors
    /// [`Code::Usage`](crate::error::Code::Usage) for what is no such address.
    pub fn to(url: &str) -> Result<Self, Fail> {
        let host = Rpc::at(url)?.host().to_owned();
        let (tell, told) = sync_channel(FACTS);
        Ok(Self {
            url: url.to_owned(),
            host,
            running: BTreeMap::new(),
            tell,
            told,
            patience: PATIENT,
        })
    }

    /// How long a pin may get no block before it is told to stand still. 3 s by default.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How a root is pinned there. Asks, and waits for the answer.
    ///
    /// # Errors
    /// Nobody answers there, or no Kubo.
    pub fn pinned(&self, cid: &Cid) -> Result<Option<Kind>, Fail> {
        let mut rpc = Rpc::at(&self.url)?;
        let found = runtime()?.block_on(theirs(&mut rpc, cid));
        let found = found.map_err(RpcError::into_fail)?;
        Ok(found.map(|pin| pin.kind))
    }

    /// The Kubo keeps it no longer; what is not pinned stays so. Asks, and waits for the answer.
    ///
    /// # Errors
    /// Nobody answers there, or no Kubo.
    pub fn release(&self, cid: &Cid) -> Result<(), Fail> {
        let mut rpc = Rpc::at(&self.url)?;
        let path = format!("pin/rm?arg={cid}");
        match runtime()?.block_on(rpc.lines(&path, &mut |_| Ok(()))) {
            Err(RpcError::Refused(message)) if message.contains("not pinned") => Ok(()),
            outcome => outcome.map_err(RpcError::into_fail),
        }
    }
}

impl Connector for KuboConnector {
    type Around<'a> = ();

    fn begin(&mut self, ticket: Ticket, target: &Target, (): &mut ()) -> Begun {
        if self.running.len() >= AT_ONCE {
            return Begun::NotNow(None);
        }
        let (stop, stopped) = oneshot::channel();
        let (url, target, tell) = (self.url.clone(), *target, self.tell.clone());
        let thread = std::thread::Builder::new().name("kubo-pin".into());
        let began = thread.spawn(move || run(&url, ticket, &target, stopped, &tell));
        if let Err(error) = began {
            return Begun::NotNow(Some(Fail::resources("threads", &error).cause));
        }
        let running = Running {
            moved: Instant::now(),
            _stop: stop,
        };
        self.running.insert(ticket, running);
        Begun::Yes
    }

    fn end(&mut self, ticket: Ticket, (): &mut ()) {
        self.running.remove(&ticket);
    }

    fn advance(&mut self, _: &Tracker, (): &mut ()) -> (Vec<Input>, bool) {
        let mut facts = Vec::new();
        while let Ok(fact) = self.told.try_recv() {
            let (ticket, is_over) = match &fact {
                Input::Progress(ticket, _) => (*ticket, false),
                Input::Whole(ticket, _) | Input::Failed { ticket, .. } => (*ticket, true),
                _ => continue,
            };
            // What was ended says nothing more.
            let Some(running) = self.running.get_mut(&ticket) else {
                continue;
            };
            running.moved = Instant::now();
            if is_over {
                self.running.remove(&ticket);
            }
            facts.push(fact);
        }
        (facts, false)
    }

    fn standing(&mut self, (): &mut ()) -> Vec<Input> {
        let stands = |running: &Running| running.moved.elapsed() >= self.patience;
        let told = |ticket: &Ticket| Input::Standing {
            ticket: *ticket,
            outlook: Outlook::Silent,
            cause: format!("the Kubo at {} gets no block of it", self.host),
            lacks: None,
        };
        let standing = self.running.iter().filter(|(_, running)| stands(running));
        standing.map(|(ticket, _)| told(ticket)).collect()
    }
}

/// Makes it, or is stopped.
fn run(
    url: &str,
    ticket: Ticket,
    target: &Target,
    stopped: oneshot::Receiver<()>,
    tell: &SyncSender<Input>,
) {
    let mut most = 0;
    let mut on_progress = |blocks: u64| {
        if blocks > most {
            most = blocks;
            // One that finds no room is followed by others.
            let sent = tell.try_send(Input::Progress(ticket, progress(blocks)));
            let _full = matches!(sent, Err(TrySendError::Full(_)));
        }
        Ok(())
    };
    let fact = match made(url, target, stopped, &mut on_progress) {
        Ok(true) => Input::Whole(ticket, progress(most.max(1))),
        Ok(false) => return,
        Err(error) => Input::Failed {
            ticket,
            cause: error.into_fail().cause,
            lacks: None,
        },
    };
    // Refused only where nobody asks any more.
    let _nobody = tell.send(fact);
}

/// Whether it came to its end before it was stopped.
fn made(
    url: &str,
    target: &Target,
    stopped: oneshot::Receiver<()>,
    on_progress: &mut dyn FnMut(u64) -> Result<(), Fail>,
) -> Result<bool, RpcError> {
    let mut rpc = Rpc::at(url)?;
    runtime()?.block_on(async {
        tokio::select! {
            made = make_unless_there(&mut rpc, target, on_progress) => made.map(|()| true),
            _ = stopped => Ok(false),
        }
    })
}

/// A pin that is there already stays as it is: made anew, it would lose its name, and a Kubo takes it away before it looks whether it has all blocks.
async fn make_unless_there(
    rpc: &mut Rpc,
    target: &Target,
    on_progress: &mut dyn FnMut(u64) -> Result<(), Fail>,
) -> Result<(), RpcError> {
    let there = theirs(rpc, &target.cid).await?;
    let name = match there {
        Some(pin) if pin.kind == Kind::Recursive || pin.kind == target.reach => return Ok(()),
        Some(pin) => pin.name,
        None => None,
    };
    let what = (&target.cid, target.reach);
    make(rpc, what, name.as_deref(), on_progress).await
}

fn progress(blocks: u64) -> Progress {
    Progress {
        blocks_done: blocks,
        ..Progress::default()
    }
}
