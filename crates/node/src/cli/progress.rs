//! Progress on a terminal, and silence elsewhere.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::api::types::Waits;

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

    /// Counts bytes that go to standard output, unless that is the terminal itself.
    #[must_use]
    pub fn beside_output(doing: &str) -> Self {
        if super::output::stdout_is_terminal() {
            return Self(None);
        }
        Self::bytes(doing, None)
    }

    /// Counts what is written.
    pub fn counted<W: Write>(&self, inner: W) -> Counted<W> {
        Counted {
            inner,
            bar: self.clone(),
        }
    }

    /// Says what is waited for in the network, or what is done: the wait in the bar, its cause above it, once for each thing waited for.
    pub fn waiting(&self, doing: &str, waits: Option<&Waits>, told: &mut Option<String>) {
        let Some(waits) = waits else {
            return self.say(doing.to_owned());
        };
        self.say(format!("{doing}, waiting for {:.0} s", waits.waited_s));
        if told.as_ref() != Some(&waits.name) {
            *told = Some(waits.name.clone());
            if let Some(bar) = &self.0 {
                bar.println(&waits.cause);
            }
        }
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

/// Counts for a bar what goes through it.
#[derive(Debug)]
pub struct Counted<W> {
    inner: W,
    bar: Progress,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bar.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
