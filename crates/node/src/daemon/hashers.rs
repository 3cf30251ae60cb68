//! Threads that decode and hash what arrives, so that one core decrypts a connection while another one hashes its blocks.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use gemba_exchange::Worker;

use crate::error::{Code, Fail};

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that may wait; beyond it the connection's own task does the work, which slows that connection down.
const QUEUE: usize = 64;
/// More than the cores of a small device would only take turns.
const THREADS: usize = 4;
/// Hashing holds no deep stacks.
const STACK_BYTES: usize = 256 * 1024;

/// Starts the threads; they end when the exchange drops its worker.
///
/// # Errors
/// The operating system gives no thread.
pub(super) fn start() -> Result<Worker, Fail> {
    let (jobs, queue) = sync_channel::<Job>(QUEUE);
    let queue = Arc::new(Mutex::new(queue));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS));
    for n in 0..threads {
        let queue = Arc::clone(&queue);
        std::thread::Builder::new()
            .name(format!("hasher-{n}"))
            .stack_size(STACK_BYTES)
            .spawn(move || work(&queue))
            .map_err(|e| Fail::new(Code::Failure, format!("cannot start a hashing thread: {e}")))?;
    }
    Ok(Arc::new(move |job| submit(&jobs, job)))
}

fn submit(jobs: &SyncSender<Job>, job: Job) {
    use std::sync::mpsc::TrySendError::{Disconnected, Full};
    if let Err(Full(job) | Disconnected(job)) = jobs.try_send(job) {
        job();
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}
