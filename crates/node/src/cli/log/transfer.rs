//! `log export` and `log import`: events as files, for devices that no network reaches.

use std::io::Write as _;
use std::path::PathBuf;

use futures::StreamExt as _;

use super::super::blocks::open_input;
use super::super::output::{self, Content};
use super::super::session::{self, blocking, talk_within, url};
use super::super::{Context, interrupt};
use super::here;
use crate::content::add::Checked;
use crate::content::io_fail;
use crate::error::{Code, Fail};
use crate::log::parse_pattern;
use crate::log::transfer::EventsImported;
use crate::text;

/// What `log export` takes.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Streams or patterns; what streams say of themselves are those of $about/#
    #[arg(default_value = "#", value_name = "STREAM")]
    streams: Vec<String>,
}

/// What `log import` takes.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The file; `-` is standard input
    file: PathBuf,
}

pub(super) fn export(context: &Context, args: &ExportArgs) -> Result<(), Fail> {
    let patterns = args.streams.iter().map(|text| parse_pattern(text));
    let patterns = patterns.collect::<Result<Vec<_>, Fail>>()?;
    if output::stdout_is_terminal() {
        return Err(Fail::new(Code::Usage, "an archive is not for terminals")
            .hint("send it into a file: gemba log export 'hall-1/#' > events.car"));
    }
    let Some(daemon) = context.daemon()? else {
        let mut out = Content::new();
        here(context)?.export(&patterns, &mut out)?;
        return out.flush().map_err(io_fail);
    };
    let path = url("/v1/log/export", &[("pattern", &args.streams.join(","))]);
    talk_within(context.timeout, daemon, async |client| {
        let mut stream = client.reader(&path).await?;
        blocking(move || {
            let mut out = Content::new();
            std::io::copy(&mut stream, &mut out).map_err(io_fail)?;
            out.flush().map_err(io_fail)
        })
        .await
    })
}

pub(super) fn import(context: &Context, args: &ImportArgs) -> Result<(), Fail> {
    let mut input = open_input(&args.file)?;
    let imported: EventsImported = match context.daemon()? {
        Some(daemon) => talk_within(context.timeout, daemon, async |client| {
            let sending = client.upload("/v1/log/import", move |out| {
                std::io::copy(&mut input, out).map(drop).map_err(io_fail)
            });
            let mut lines = sending.await?;
            let mut last = None;
            while let Some(line) = lines.next().await {
                last = Some(line?);
            }
            last.ok_or_else(|| session::answer_fail("ended without a report"))
        })?,
        None => {
            interrupt::watch();
            let events = here(context)?;
            let imported = events.import(&mut Checked(input, interrupt::check_io));
            events.close();
            imported?
        }
    };
    context.out.result(&imported, |imported| {
        let foreign = match imported.foreign {
            0 => String::new(),
            some => format!(", {} passed over", text::blocks(some)),
        };
        format!(
            "{} new, {} here already{foreign}",
            text::count(imported.new, "batch", "batches"),
            imported.present
        )
    })?;
    imported.check()
}
