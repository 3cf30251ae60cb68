//! The allocator counts what its thread takes, holds and frees.

use gemba_testkit::alloc::{CountingAlloc, measure};
use std::hint::black_box;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

#[test]
fn peak_is_what_is_held_at_one_time_and_total_is_the_sum() {
    let ((), used) = measure(|| {
        for _ in 0..10 {
            drop(black_box(vec![0u8; 1_000]));
        }
    });
    assert_eq!((used.total, used.peak, used.calls), (10_000, 1_000, 10));
}

#[test]
fn measures_nest_and_earlier_memory_does_not_count() {
    let held = black_box(vec![0u8; 50_000]);
    let (inner, outer) = measure(|| {
        drop(black_box(vec![0u8; 3_000]));
        measure(|| drop(black_box(vec![0u8; 100]))).1
    });
    assert_eq!(
        (inner.peak, outer.peak, outer.total),
        (100, 3_000, 3_100 + 8)
    );
    drop(held);
}

#[test]
fn memory_that_is_kept_is_in_the_peak() {
    let (kept, used) = measure(|| (0..4).map(|_| vec![0u8; 1_000]).collect::<Vec<_>>());
    assert!(used.peak >= 4_000, "{used:?}");
    drop(kept);
}
