//! `gemba pin export` and `import`: the pins of a device as text (specs/pins.md §6).

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use gemba_pins::Add;

use crate::cli::Context;
use crate::cli::output::Content;
use crate::cli::session::{self, Daemon};
use crate::content::kubo_pins::{Export, Exported};
use crate::content::pin_list::{self, Report, Writer};
use crate::content::{io_fail, kubo_pins};
use crate::error::{Code, Fail};
use crate::meta::{PinEdit, PinState as _};
use crate::repo::Access;
use crate::text;

/// What writes the list.
type List<'l> = dyn FnMut(&mut dyn Write) -> Result<(), Fail> + 'l;

/// Writes the list to a file or to standard output.
pub(super) fn export(context: &Context, output: Option<&Path>) -> Result<(), Fail> {
    let target = output.map(Path::to_owned);
    listed(context, move |list| written(target.as_deref(), list))
}

/// Makes each pin at a Kubo.
pub(super) fn export_to_kubo(context: &Context, url: &str) -> Result<(), Fail> {
    let mut export = Export::to(url, context.timeout)?;
    // All pins in a file without a name: what is done with them may take hours, and nobody keeps a page of the table or a request open for so long.
    let mut file = tempfile::tempfile().map_err(io_fail)?;
    let out = file.try_clone().map_err(io_fail)?;
    listed(context, move |list| {
        let mut out = BufWriter::new(out);
        list(&mut out)?;
        out.flush().map_err(io_fail)
    })?;
    file.rewind().map_err(io_fail)?;
    pin_list::each(&mut BufReader::new(file), &mut |add| export.pin(add))?;
    let exported = export.finish();
    context.out.result(&exported, exported_text)?;
    if exported.failed == 0 {
        return Ok(());
    }
    Err(Fail::new(
        Code::Timeout,
        format!(
            "{} not made at the Kubo",
            text::count(exported.failed, "pin was", "pins were")
        ),
    )
    .hint("see that it is connected to somebody who has them, and run the same command again: it goes on with what is left"))
}

/// Has the list written, the daemon's or, without one, the repository's.
fn listed(
    context: &Context,
    write: impl FnOnce(&mut List<'_>) -> Result<(), Fail> + Send + 'static,
) -> Result<(), Fail> {
    let Some(daemon) = context.daemon()? else {
        let meta = context.repo(Access::Read)?.meta()?;
        let pins = meta.pins()?;
        return write(&mut |out| pin_list::export(&pins, out).map(drop));
    };
    context.talk(daemon, async |client| {
        let mut list = client.reader("/v1/pins/export").await?;
        session::blocking(move || {
            write(&mut |out| std::io::copy(&mut list, out).map(drop).map_err(io_fail))
        })
        .await
    })
}

fn exported_text(exported: &Exported) -> String {
    let line = format!(
        "{} made there, {} there already",
        text::count(exported.added, "pin", "pins"),
        exported.kept + exported.named + exported.widened
    );
    let mut line = with_counts(
        line,
        [
            (exported.named, "named"),
            (exported.widened, "made recursive"),
            (exported.failed, "not made"),
        ],
    );
    for failure in &exported.failures {
        line.push_str(&format!("\n  {}: {}", failure.cid, failure.cause));
    }
    line
}

/// With those that are not zero.
fn with_counts(mut line: String, counts: [(u64, &str); 3]) -> String {
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        line.push_str(&format!(", {count} {what}"));
    }
    line
}

/// A file is there whole or not at all.
fn written(target: Option<&Path>, write: &mut List<'_>) -> Result<(), Fail> {
    let Some(target) = target else {
        let mut out = Content::new();
        write(&mut out)?;
        return out.flush().map_err(io_fail);
    };
    let mut beside = target.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let outcome = File::create(&beside)
        .map_err(|e| Fail::io(&beside, &e))
        .and_then(|file| {
            let mut out = BufWriter::new(file);
            write(&mut out)?;
            let file = out.into_inner().map_err(|e| Fail::io(&beside, e.error()))?;
            file.sync_all().map_err(|e| Fail::io(&beside, &e))?;
            std::fs::rename(&beside, target).map_err(|e| Fail::io(target, &e))
        });
    if outcome.is_err() {
        // It may never have been made.
        let _gone = std::fs::remove_file(&beside);
    }
    outcome
}

/// Takes a list from a file, standard input or a Kubo.
pub(super) fn import(
    context: &Context,
    file: Option<&Path>,
    kubo: Option<&str>,
) -> Result<(), Fail> {
    let source = Source {
        file: file.map(Path::to_owned),
        kubo: kubo.map(str::to_owned),
        patience: context.timeout,
    };
    let report = match context.daemon()? {
        Some(daemon) => through(context, daemon, source)?,
        None => here(context, &source)?,
    };
    context.out.result(&report, report_text)
}

fn report_text(report: &Report) -> String {
    let line = format!(
        "{} added, {} there already",
        text::count(report.added, "pin", "pins"),
        report.kept + report.named + report.widened
    );
    let without_label = "without the label of a followed name";
    with_counts(
        line,
        [
            (report.named, "named"),
            (report.widened, "made recursive"),
            (report.labels_dropped, without_label),
        ],
    )
}

fn through(context: &Context, daemon: Daemon, source: Source) -> Result<Report, Fail> {
    // How long a Kubo may be silent is kept by whoever asks it, and says which of the two it was.
    let limit = context.timeout.filter(|_| source.kubo.is_none());
    session::talk_within(limit, daemon, async |client| {
        let mut answer = client
            .upload::<Report, _>("/v1/pins/import", move |out| source.copy(out))
            .await?;
        match answer.next().await {
            Some(report) => report,
            None => Err(session::answer_fail("ended without a report")),
        }
    })
}

/// The pins are wanted from now on; a daemon fetches what they lack.
fn here(context: &Context, source: &Source) -> Result<Report, Fail> {
    let meta = context.repo(Access::Write)?.meta()?;
    let mut take = |adds: Vec<Add>| {
        let edits: Vec<PinEdit> = adds.into_iter().map(PinEdit::Listed).collect();
        meta.edit(&edits)
    };
    if source.kubo.is_none() {
        return pin_list::import(&mut BufReader::new(source.open()?), &mut take);
    }
    // A Kubo tells as many pins as it likes: they go through a pipe, and no more of them are in memory than it holds.
    let (list, mut pipe) = std::io::pipe().map_err(io_fail)?;
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || source.copy(&mut pipe));
        let report = pin_list::import(&mut BufReader::new(list), &mut take);
        let asked = asking.join();
        let asked = asked.unwrap_or_else(|_| Err(Fail::internal("what asked the Kubo broke off")));
        // Where both failed the asking failed of a pipe that nobody reads.
        report.and_then(|report| asked.map(|()| report))
    })
}

struct Source {
    file: Option<PathBuf>,
    kubo: Option<String>,
    /// With a Kubo that is silent.
    patience: Option<Duration>,
}

impl Source {
    fn open(&self) -> Result<Box<dyn Read>, Fail> {
        Ok(match &self.file {
            Some(path) => Box::new(File::open(path).map_err(|e| Fail::io(path, &e))?),
            None => Box::new(std::io::stdin()),
        })
    }

    /// The list as text.
    fn copy(&self, out: &mut dyn Write) -> Result<(), Fail> {
        if let Some(url) = &self.kubo {
            let mut list = Writer::new(out)?;
            return kubo_pins::read(url, self.patience, &mut |cid, kind, name| {
                list.pin(cid, kind, name)
            });
        }
        std::io::copy(&mut self.open()?, out)
            .map(drop)
            .map_err(io_fail)
    }
}
