//! An allocator that counts, for tests that bound memory.
//!
//! A test binary installs it, and measures a closure on its own thread:
//!
//! ```
//! use gemba_testkit::alloc::{CountingAlloc, measure};
//!
//! #[global_allocator]
//! static ALLOC: CountingAlloc = CountingAlloc;
//!
//! let (_, used) = measure(|| vec![0u8; 1000]);
//! assert!(used.total >= 1000 && used.total < 2000);
//! ```
#![allow(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; every call goes unchanged to the system's allocator"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// The system's allocator, with counters for each thread.
#[derive(Debug)]
pub struct CountingAlloc;

/// What a closure took, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Sum of all that was asked for.
    pub total: u64,
    /// The most that was held at one time, beyond what was held before.
    pub peak: u64,
    /// Calls for memory.
    pub calls: u64,
    /// What is held at the end beyond what was held before; below zero if more was given back than taken.
    pub left: i64,
}

/// Runs the closure and tells what this thread asked for meanwhile. Memory that other threads take or free is not seen.
///
/// # Panics
/// If the binary has not installed [`CountingAlloc`]: every measure would be zero and prove nothing.
pub fn measure<R>(run: impl FnOnce() -> R) -> (R, Used) {
    let before = COUNTS.get();
    drop(std::hint::black_box(Box::new(0u64)));
    assert!(
        COUNTS.get().calls > before.calls,
        "this test binary has no #[global_allocator] CountingAlloc"
    );
    let before = COUNTS.get();
    COUNTS.set(Counts {
        peak: before.live,
        ..before
    });
    let result = run();
    let after = COUNTS.get();
    COUNTS.set(Counts {
        peak: after.peak.max(before.peak),
        ..after
    });
    let used = Used {
        total: after.total - before.total,
        peak: u64::try_from(after.peak - before.live).unwrap_or_default(),
        calls: after.calls - before.calls,
        left: after.live - before.live,
    };
    (result, used)
}

#[derive(Clone, Copy)]
struct Counts {
    total: u64,
    calls: u64,
    /// May fall below zero: memory may be freed by another thread than took it.
    live: i64,
    peak: i64,
}

thread_local! {
    // Const and without a destructor, so that reading it inside the allocator neither allocates nor fails at thread exit.
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { total: 0, calls: 0, live: 0, peak: 0 }) };
}

fn took(bytes: usize) {
    let mut c = COUNTS.get();
    c.total += bytes as u64;
    c.calls += 1;
    c.live += bytes as i64;
    c.peak = c.peak.max(c.live);
    COUNTS.set(c);
}

fn freed(bytes: usize) {
    let mut c = COUNTS.get();
    c.live -= bytes as i64;
    COUNTS.set(c);
}

// SAFETY: each method passes its arguments on to `System` and returns what that returns; counting touches only a thread-local `Cell`.
unsafe impl GlobalAlloc for CountingAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are `System`'s conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Old and new are both held while `System` copies.
        took(new_size);
        freed(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}
