//! Ctrl-C: long work looks at a flag between two steps and ends cleanly, with exit code 130.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Code, Fail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Time for an orderly end. After it the process ends anyway: a read of standard input may wait for ever.
const GRACE: Duration = Duration::from_secs(1);

/// Begins to listen. From now on Ctrl-C does not kill the process at once: what runs long must call [`check`].
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (ready, listening) = sync_channel(1);
        let spawned = std::thread::Builder::new()
            .name("interrupt".into())
            .spawn(move || listen(&ready));
        // Without the thread Ctrl-C kills the process, which is as safe and less polite.
        if spawned.is_ok() {
            let _ = listening.recv();
        }
    });
}

fn listen(ready: &SyncSender<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
    else {
        return;
    };
    runtime.block_on(async {
        let Ok(mut interrupts) = signal(SignalKind::interrupt()) else {
            return;
        };
        let _ = ready.send(());
        interrupts.recv().await;
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    std::thread::sleep(GRACE);
    end_now();
}

#[expect(
    clippy::disallowed_methods,
    reason = "the main thread hangs in a read that no signal ends; the kernel gives its lock back"
)]
fn end_now() -> ! {
    std::process::exit(i32::from(Code::Interrupted.exit()))
}

/// Whether to go on.
///
/// # Errors
/// [`Code::Interrupted`] after Ctrl-C.
pub fn check() -> Result<(), Fail> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err(fail())
    } else {
        Ok(())
    }
}

/// The same fact for code that knows only I/O errors.
///
/// # Errors
/// After Ctrl-C. Not of the kind `Interrupted`, which `std` repeats without a word.
pub fn check_io() -> std::io::Result<()> {
    check().map_err(std::io::Error::other)
}

/// What an interrupted command ends with.
#[must_use]
pub fn fail() -> Fail {
    Fail::new(Code::Interrupted, "interrupted")
        .hint("what was stored stays; the same command goes on from there")
}
