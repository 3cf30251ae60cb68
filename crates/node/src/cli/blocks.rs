//! `gemba block` and `gemba dag`: content as blocks.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cid::Cid;
use clap::Subcommand;
use futures::StreamExt as _;
use gemba_block::{Block, MAX_BLOCK_BYTES};
use gemba_pins::Kind;
use ipld_core::ipld::Ipld;
use serde_json::json;

use super::output::{self, Content};
use super::progress::Progress;
use super::session::{self, Daemon, DaemonSource};
use super::{Context, interrupt};
use crate::api::types::{Done, Imported};
use crate::content::add::Checked;
use crate::content::car;
use crate::content::parse_cid;
use crate::content::{StoreSource, blocks, dag, io_fail, pins, read};
use crate::error::{Code, Fail};
use crate::meta::PinState as _;
use crate::repo::Access;
use crate::text;

/// What can be done with single blocks.
#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Print a block's bytes
    Get {
        /// The block
        cid: String,
    },
    /// Store bytes as one block
    Put {
        /// The bytes; `-` or nothing is standard input
        file: Option<PathBuf>,
        /// raw, dag-pb, dag-cbor …, or v0 for a CIDv0
        #[arg(long, value_name = "CODEC", default_value = "raw")]
        codec: String,
        /// Hash
        #[arg(long, value_name = "HASH", default_value = "sha2-256")]
        mhtype: String,
        /// Pin it
        #[arg(long)]
        pin: bool,
    },
    /// Print a block's size
    Stat {
        /// The block
        cid: String,
    },
    /// Remove blocks that no pin needs
    Rm {
        /// The blocks
        #[arg(required = true)]
        cids: Vec<String>,
    },
}

/// What can be done with linked data.
#[derive(Debug, Subcommand)]
pub enum DagCommand {
    /// Print data, or a part of it
    Get {
        /// `CID`, or a path through its fields and links
        path: String,
        /// dag-json, dag-cbor, dag-pb or raw
        #[arg(long, value_name = "CODEC", default_value = "dag-json")]
        output_codec: String,
    },
    /// Store data
    Put {
        /// The data; `-` or nothing is standard input
        file: Option<PathBuf>,
        /// How the data is written: dag-json, dag-cbor, dag-pb or raw
        #[arg(long, value_name = "CODEC", default_value = "dag-json")]
        input_codec: String,
        /// How it is stored: dag-cbor, dag-json, dag-pb or raw
        #[arg(long, value_name = "CODEC", default_value = "dag-cbor")]
        store_codec: String,
        /// Hash
        #[arg(long, value_name = "HASH", default_value = "sha2-256")]
        hash: String,
        /// Pin it; what it links to must be here or will be fetched
        #[arg(long)]
        pin: bool,
    },
    /// Write a whole DAG as a CAR archive to standard output
    Export {
        /// The root
        cid: String,
    },
    /// Store the blocks of CAR archives
    Import {
        /// The archives; `-` is standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Pin the roots
        #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
        pin_roots: bool,
    },
}

/// Runs a `block` command.
///
/// # Errors
/// [`Code::NotFound`] for blocks that are not here, [`Code::Conflict`] for pinned ones.
pub fn block(context: &Context, command: &BlockCommand) -> Result<(), Fail> {
    match command {
        BlockCommand::Get { cid } => {
            let cid = parse_cid(cid)?;
            let block = fetch(context, cid)?;
            context.out.bytes(block.data())
        }
        BlockCommand::Stat { cid } => stat(context, parse_cid(cid)?),
        BlockCommand::Put {
            file,
            codec,
            mhtype,
            pin,
        } => {
            let data = read_input(file.as_deref(), MAX_BLOCK_BYTES)?;
            let block = blocks::make(data, codec, mhtype)?;
            put(context, &block, *pin, (codec, mhtype))
        }
        BlockCommand::Rm { cids } => {
            let cids = cids
                .iter()
                .map(|cid| parse_cid(cid))
                .collect::<Result<Vec<_>, _>>()?;
            remove(context, &cids)
        }
    }
}

/// Runs a `dag` command.
///
/// # Errors
/// As [`block`], and data that its codec cannot hold.
pub fn dag(context: &Context, command: &DagCommand) -> Result<(), Fail> {
    match command {
        DagCommand::Get { path, output_codec } => {
            let codec = blocks::parse_codec(output_codec)?;
            let value = dag_value(context, path)?;
            context.out.bytes(&dag::encode(&value, codec)?)?;
            if codec == gemba_block::codec::DAG_JSON {
                context.out.bytes(b"\n")
            } else {
                Ok(())
            }
        }
        DagCommand::Put {
            file,
            input_codec,
            store_codec,
            hash,
            pin,
        } => {
            let data = read_input(file.as_deref(), 2 * MAX_BLOCK_BYTES)?;
            let (input, store) = (
                blocks::parse_codec(input_codec)?,
                blocks::parse_codec(store_codec)?,
            );
            let block = dag::put(&data, input, store, blocks::parse_hash(hash)?)?;
            put(context, &block, *pin, (store_codec, hash))
        }
        DagCommand::Export { cid } => export(context, parse_cid(cid)?),
        DagCommand::Import { files, pin_roots } => files
            .iter()
            .try_for_each(|file| import(context, file, *pin_roots)),
    }
}

fn fetch(context: &Context, cid: Cid) -> Result<Block, Fail> {
    match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            let mut source = DaemonSource::new(client);
            session::blocking(move || read::block(&mut source, &cid)).await
        }),
        None => read::block(&mut StoreSource(context.repo(Access::Read)?.store()?), &cid),
    }
}

fn stat(context: &Context, cid: Cid) -> Result<(), Fail> {
    let size = match context.daemon()? {
        Some(daemon) => {
            let answer: serde_json::Value = context.talk(daemon, async |client| {
                client.get_json(&format!("/v1/block/{cid}/stat")).await
            })?;
            answer["size"]
                .as_u64()
                .ok_or_else(|| session::answer_fail("holds no size"))?
        }
        None => blocks::size(&context.repo(Access::Read)?.store()?, &cid)?,
    };
    context
        .out
        .result(&json!({ "cid": cid.to_string(), "size": size }), |_| {
            format!("{cid} {size}")
        })
}

/// The block was made here, so both sides compute the CID, and must agree.
fn put(
    context: &Context,
    block: &Block,
    pin: bool,
    (codec, mhtype): (&str, &str),
) -> Result<(), Fail> {
    match context.daemon()? {
        Some(daemon) => {
            let pin = pin.to_string();
            let url = session::url(
                "/v1/block",
                &[("codec", codec), ("mhtype", mhtype), ("pin", &pin)],
            );
            let answer: serde_json::Value = context.talk(daemon, async |client| {
                client.put_bytes(&url, block.data().clone()).await
            })?;
            if answer["cid"] != block.cid().to_string() {
                return Err(Fail::new(
                    Code::Integrity,
                    format!(
                        "the daemon stored {} instead of {}",
                        answer["cid"],
                        block.cid()
                    ),
                ));
            }
        }
        None => {
            let repo = context.repo(Access::Write)?;
            let store = repo.store()?;
            // Held until the pin is recorded.
            let _guard = store.guard();
            let meta = Arc::new(repo.meta()?);
            blocks::put(&session::puts(&repo, &store, &meta), block)?;
            if pin {
                pins::add(&store, &meta, *block.cid(), Kind::Recursive, None)?;
            }
        }
    }
    context.out.result(
        &json!({ "cid": block.cid().to_string(), "size": block.len() }),
        |_| block.cid().to_string(),
    )
}

fn remove(context: &Context, cids: &[Cid]) -> Result<(), Fail> {
    match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            for cid in cids {
                let _done: Done = client.delete_json(&format!("/v1/block/{cid}")).await?;
            }
            Ok(())
        })?,
        None => {
            let repo = context.repo(Access::Write)?;
            let (store, meta) = (repo.store()?, repo.meta()?);
            let set = meta.pins()?;
            cids.iter()
                .try_for_each(|cid| blocks::remove(&store, &set, cid))?;
        }
    }
    cids.iter().try_for_each(|cid| {
        context
            .out
            .entry(&json!({ "cid": cid.to_string(), "removed": true }), |_| {
                format!("removed {cid}")
            })
    })
}

fn dag_value(context: &Context, path: &str) -> Result<Ipld, Fail> {
    match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            let (mut source, path) = (DaemonSource::new(client), path.to_owned());
            session::blocking(move || dag::get(&mut source, &path)).await
        }),
        None => dag::get(&mut StoreSource(context.repo(Access::Read)?.store()?), path),
    }
}

fn export(context: &Context, cid: Cid) -> Result<(), Fail> {
    if output::stdout_is_terminal() {
        return Err(
            Fail::new(Code::Usage, "an archive is not for terminals").hint(format!(
                "send it into a file: gemba dag export {cid} > {cid}.car"
            )),
        );
    }
    let Some(daemon) = context.daemon()? else {
        interrupt::watch();
        let mut store = StoreSource(context.repo(Access::Read)?.store()?);
        let mut source = read::Checked(&mut store, interrupt::check_io);
        let mut out = Content::new();
        car::export(&mut source, cid, &mut out)?;
        return out.flush().map_err(io_fail);
    };
    context.talk(daemon, async |client| {
        let mut stream = client
            .reader(&session::url(
                "/v1/dag/export",
                &[("cid", &cid.to_string())],
            ))
            .await?;
        let progress = Progress::beside_output("exporting");
        let mut out = progress.counted(Content::new());
        let writing = session::blocking(move || {
            std::io::copy(&mut stream, &mut out).map_err(io_fail)?;
            out.flush().map_err(io_fail)
        });
        let mut told = None;
        client
            .while_telling(writing, |waits| {
                progress.waiting("exporting", waits, &mut told);
            })
            .await
    })
}

fn import(context: &Context, file: &Path, pin_roots: bool) -> Result<(), Fail> {
    let imported = match context.daemon()? {
        Some(daemon) => import_through(context, daemon, file, pin_roots),
        None => import_offline(context, file, pin_roots),
    };
    let imported = imported.map_err(|fail| {
        if fail.cause.contains(&*file.to_string_lossy()) {
            fail
        } else {
            fail.during(file.display())
        }
    })?;
    context.out.result(&imported, |imported| {
        let mut lines: Vec<String> = imported
            .roots
            .iter()
            .map(|root| {
                format!(
                    "{} root {root}",
                    if pin_roots { "pinned" } else { "imported" }
                )
            })
            .collect();
        lines.push(format!(
            "{}, {}",
            text::blocks(imported.blocks),
            text::bytes(imported.bytes)
        ));
        lines.join("\n")
    })
}

fn import_offline(context: &Context, file: &Path, pin_roots: bool) -> Result<Imported, Fail> {
    interrupt::watch();
    let repo = context.repo(Access::Write)?;
    let (store, meta) = (repo.store()?, Arc::new(repo.meta()?));
    // Held until the pins are recorded.
    let _guard = store.guard();
    let mut input = Checked(open_input(file)?, interrupt::check_io);
    let progress = import_progress(file);
    let puts = session::puts(&repo, &store, &meta);
    let imported = car::import(&mut input, &puts, &mut |bytes| {
        progress.add(bytes);
        interrupt::check()
    });
    progress.finish();
    let imported = imported?;
    if pin_roots {
        for root in &imported.roots {
            pins::add(&store, &meta, *root, Kind::Recursive, None).map_err(|fail| {
                match fail.code {
                    Code::NotFound => fail.during(format!(
                        "the archive's blocks are stored, but it does not hold the whole of {root}, which is not pinned"
                    )),
                    _ => fail,
                }
            })?;
        }
    }
    Ok(Imported::from(&imported))
}

fn import_through(
    context: &Context,
    daemon: Daemon,
    file: &Path,
    pin_roots: bool,
) -> Result<Imported, Fail> {
    let mut input = open_input(file)?;
    let progress = import_progress(file);
    context.talk(daemon, async |client| {
        let bar = progress.clone();
        let url = session::url("/v1/dag/import", &[("pin_roots", &pin_roots.to_string())]);
        let mut lines = client
            .upload::<Imported, _>(&url, move |out| {
                let mut out = bar.counted(out);
                std::io::copy(&mut input, &mut out)
                    .map(drop)
                    .map_err(io_fail)
            })
            .await?;
        let mut last = None;
        while let Some(line) = lines.next().await {
            last = Some(line?);
        }
        progress.finish();
        last.ok_or_else(|| session::answer_fail("ended without a report"))
    })
}

/// Counts up to the size of the archive, if it is a file.
fn import_progress(file: &Path) -> Progress {
    let total = std::fs::metadata(file).ok().map(|metadata| metadata.len());
    Progress::bytes("importing", total.filter(|len| *len > 0))
}

pub(super) fn open_input(file: &Path) -> Result<Box<dyn Read + Send>, Fail> {
    if file == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let opened = File::open(file).map_err(|e| Fail::io(file, &e))?;
    Ok(Box::new(opened))
}

fn read_input(file: Option<&Path>, limit: usize) -> Result<Vec<u8>, Fail> {
    let file = file.unwrap_or(Path::new("-"));
    let mut data = Vec::new();
    open_input(file)?
        .take(limit as u64 + 1)
        .read_to_end(&mut data)
        .map_err(|e| Fail::io(file, &e))?;
    if data.len() > limit {
        return Err(Fail::new(
            Code::Usage,
            format!("the input is larger than a block may be ({limit} bytes)"),
        )
        .hint("`gemba add` cuts files into blocks"));
    }
    Ok(data)
}
