//! `gemba demo`

use std::path::PathBuf;

use super::{Context, interrupt};
use crate::demo;
use crate::error::Fail;

/// What `demo` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder to distribute [default: gemba's own sources]
    #[arg(long, value_name = "PATH")]
    pub input: Option<PathBuf>,
    /// Nodes to start, the cloud included
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub devices: usize,
}

/// Runs the demo and prints its figures.
///
/// # Errors
/// Whatever did not hold.
pub fn run(context: &Context, args: &Args) -> Result<(), Fail> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Fail::resources("threads", &e))?;
    let options = demo::Options {
        input: args.input.clone(),
        devices: args.devices,
        quiet: context.out.json,
    };
    let report = runtime.block_on(async {
        let stop = super::daemon::told_to_stop()?;
        tokio::select! {
            report = demo::run(&options) => report,
            () = stop => Err(interrupt::fail()),
        }
    })?;
    context.out.result(&report, demo::Report::table)
}
