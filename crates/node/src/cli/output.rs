//! The only place that writes to standard output and standard error.
//!
//! Results go to standard output, for people or as JSON; failures and logs to standard error. A reader that goes away
//! (`gemba ls … | head`) ends the command quietly. What people read holds no control characters, whoever made it up: names, agents of
//! peers and causes come from others.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::cell::RefCell;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::error::{Code, Fail};
use crate::text;

/// Bytes gathered before they are written.
const BUFFER: usize = 64 * 1024;

/// Set when the reader of standard output went away; what fails after that is not worth a word.
static READER_IS_GONE: AtomicBool = AtomicBool::new(false);

/// Standard output.
#[derive(Debug)]
pub struct Output {
    /// Whether `--json` was given.
    pub json: bool,
    writer: RefCell<BufWriter<Stdout>>,
}

impl Output {
    /// Writes JSON, or text for people.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self {
            json,
            writer: RefCell::new(BufWriter::with_capacity(BUFFER, io::stdout())),
        }
    }

    /// One result: the object with `--json`, else the text, which is made only then. It is on its way when this returns.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn result<T: Serialize>(
        &self,
        value: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), Fail> {
        self.entry(value, people)?;
        self.flush()
    }

    /// As [`Output::result`] for one of many, which may be gathered with others.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn entry<T: Serialize>(
        &self,
        value: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), Fail> {
        let mut line = if self.json {
            serde_json::to_string(value).map_err(Fail::internal)?
        } else {
            text::printable(&people(value)).into_owned()
        };
        line.push('\n');
        self.bytes(line.as_bytes())
    }

    /// A line for people; nothing with `--json`.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn text(&self, line: &str) -> Result<(), Fail> {
        if self.json {
            return Ok(());
        }
        self.plain(&text::printable(line))
    }

    /// A line in both forms, for `-q` and the like.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn plain(&self, line: &str) -> Result<(), Fail> {
        self.bytes(line.as_bytes()).and_then(|()| self.bytes(b"\n"))
    }

    /// Content as it is.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Fail> {
        self.writer
            .borrow_mut()
            .write_all(bytes)
            .map_err(|e| stdout_fail(&e))
    }

    /// Sends what was gathered.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn flush(&self) -> Result<(), Fail> {
        self.writer
            .borrow_mut()
            .flush()
            .map_err(|e| stdout_fail(&e))
    }
}

/// Standard output as a `Write` for content, usable on any thread.
#[derive(Debug)]
pub struct Content(BufWriter<Stdout>);

impl Content {
    /// Gathers writes into large ones.
    #[must_use]
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(BUFFER, io::stdout()))
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Content {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).inspect_err(note_reader)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().inspect_err(note_reader)
    }
}

/// Whether a person reads standard output.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A word to the person beside the result.
pub fn note(line: &str) {
    eprintln!("{}", text::printable(line));
}

/// Prints a failure and gives its exit code.
#[must_use]
pub fn failed(fail: &Fail, json: bool) -> ExitCode {
    if READER_IS_GONE.load(Ordering::Relaxed) {
        return ExitCode::SUCCESS;
    }
    if json {
        eprintln!("{}", fail.to_json());
    } else {
        note(&format!("error: {}", fail.cause));
        if !fail.hint.is_empty() {
            note(&format!("hint: {}", fail.hint));
        }
    }
    ExitCode::from(fail.code.exit())
}

/// A database that is damaged makes its library panic: the command, or the daemon, ends with the cause and its exit code then.
/// In a hook, because a release build does not unwind.
pub fn end_cleanly_on_damage(json: bool) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let cause = panic.payload_as_str().unwrap_or("it contradicts itself");
        match crate::meta::fail_of_panic(cause) {
            Some(fail) => end_now(&fail, json),
            None => usual(panic),
        }
    }));
}

#[expect(
    clippy::disallowed_methods,
    reason = "the library panics and nothing of it may run again; the kernel gives the lock back"
)]
fn end_now(fail: &Fail, json: bool) -> ! {
    let _printed = failed(fail, json);
    std::process::exit(i32::from(fail.code.exit()))
}

/// Prints what is wrong with the command line, or the help that was asked for.
#[must_use]
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help and version; a reader that went away is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // The command line was not understood, so whether it asked for JSON is told by its words alone.
    if std::env::args_os()
        .skip(1)
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
    {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let cause = lines
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned();
        let hint = lines.collect::<Vec<_>>().join(" ");
        return failed(&Fail::new(Code::Usage, cause).hint(hint), true);
    }
    let _ = error.print();
    ExitCode::from(Code::Usage.exit())
}

fn stdout_fail(error: &io::Error) -> Fail {
    note_reader(error);
    Fail::new(
        Code::Failure,
        format!("standard output cannot be written: {error}"),
    )
    .hint("is it sent into a file on a disk that is full?")
}

fn note_reader(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        READER_IS_GONE.store(true, Ordering::Relaxed);
    }
}
