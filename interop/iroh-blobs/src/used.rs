//! What this process used so far, as Linux counts it.

use crate::failure::{Context, Outcome};
use std::fs;
use std::time::Duration;

/// User and system time of all threads.
pub(crate) fn cpu() -> Outcome<Duration> {
    /// `USER_HZ`: 100 on every Linux that this runs on.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string("/proc/self/stat").context(|| "reading CPU time".into())?;
    // Fields are counted behind the program's name, which may hold blanks.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Option<Vec<u32>> = behind
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse().ok())
        .collect();
    let ticks = ticks.context(|| format!("no CPU time in {stat:?}"))?;
    Ok(TICK * ticks.iter().sum())
}

/// Peak resident memory in bytes, since the start or the last [`reset_peak`].
pub(crate) fn peak() -> Outcome<u64> {
    let status =
        fs::read_to_string("/proc/self/status").context(|| "reading the peak of memory".into())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .context(|| "no VmHWM in /proc/self/status".into())
}

/// Begins a new measurement of the peak (proc(5), `clear_refs`, value 5).
pub(crate) fn reset_peak() -> Outcome {
    fs::write("/proc/self/clear_refs", "5").context(|| "resetting the peak of memory".into())
}
