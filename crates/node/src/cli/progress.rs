//! Progress on a terminal, and silence elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on standard error if that is a terminal.
#[derive(Clone, Debug)]
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// Counts bytes up to `total`, or without end in sight.
    #[must_use]
    pub fn bytes(doing: &str, total: Option<u64>) -> Self {
        let template = match total {
            Some(_) => {
                "{msg} {bytes:>10} of {total_bytes:10} [{wide_bar}] {bytes_per_sec:>12} {eta:>4}"
            }
            None => "{msg} {bytes:>10} {bytes_per_sec:>12} {elapsed:>4}",
        };
        Self::new(doing, total, template)
    }

    /// Counts blocks up to `total`.
    #[must_use]
    pub fn blocks(doing: &str, total: Option<u64>) -> Self {
        let template = match total {
            Some(_) => "{msg} {pos:>10} of {len:10} blocks [{wide_bar}] {eta:>4}",
            None => "{msg} {pos:>10} blocks {elapsed:>4}",
        };
        Self::new(doing, total, template)
    }

    /// Shows nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether anything would be shown.
    #[must_use]
    pub fn is_shown() -> bool {
        std::io::stderr().is_terminal()
    }

    fn new(doing: &str, total: Option<u64>, template: &str) -> Self {
        if !Self::is_shown() {
            return Self(None);
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(doing.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(Some(bar))
    }

    /// So many more.
    pub fn add(&self, amount: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(amount);
        }
    }

    /// So many by now.
    pub fn set(&self, amount: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(amount);
        }
    }

    /// The end turned out to be here.
    pub fn set_total(&self, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
        }
    }

    /// What is being done, in some words.
    pub fn say(&self, doing: String) {
        if let Some(bar) = &self.0 {
            bar.set_message(doing);
        }
    }

    /// Takes the bar away, so that a result can be printed.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }

    /// Does something that prints while the bar is away.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
