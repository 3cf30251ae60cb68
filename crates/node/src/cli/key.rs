//! `gemba key`: the keys that names belong to.

use std::path::{Path, PathBuf};

use super::Context;
use super::session::encoded;
use crate::api::types::KeyInfo;
use crate::error::{Code, Fail};
use crate::files;
use crate::keystore::{self, Key, Keystore};
use crate::repo::Access;

/// What can be done with keys.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key, and with it a name
    New {
        /// What to call it
        label: String,
    },
    /// List the keys and their names
    Ls,
    /// Write a key into a file, secret and all
    Export {
        /// Which
        label: String,
        /// Where to [default: LABEL.key]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Take over a key from a file
    Import {
        /// What to call it
        label: String,
        /// The file that `gemba key export` or `ipfs key export` wrote
        file: PathBuf,
    },
    /// Remove a key: without a copy of it nobody can publish under its name again
    Rm {
        /// Which
        label: String,
    },
}

/// Runs one of them.
///
/// # Errors
/// What is not there, or there already; a file that is no key.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::New { label } => new(context, label),
        Command::Ls => list(context),
        Command::Export { label, output } => export(context, label, output.as_ref()),
        Command::Import { label, file } => import(context, label, file),
        Command::Rm { label } => remove(context, label),
    }
}

fn new(context: &Context, label: &str) -> Result<(), Fail> {
    let made = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.post_json(&path(label), &()).await
        })?,
        None => with_keys(context, |keys| keys.create(label))?.info(),
    };
    context
        .out
        .result(&made, |made: &KeyInfo| made.name.clone())
}

fn list(context: &Context) -> Result<(), Fail> {
    context.layout.check()?;
    for (key, _) in Keystore::of(&context.layout).keys()? {
        context
            .out
            .entry(&key.info(), |key| format!("{} {}", key.name, key.key))?;
    }
    Ok(())
}

fn export(context: &Context, label: &str, output: Option<&PathBuf>) -> Result<(), Fail> {
    context.layout.check()?;
    let secret = Keystore::of(&context.layout).secret(label)?;
    let path = output
        .cloned()
        .unwrap_or_else(|| PathBuf::from(format!("{label}.key")));
    files::write_new(&path, &secret)?;
    let written = serde_json::json!({ "key": label, "path": path.display().to_string() });
    context.out.result(&written, |_| {
        format!(
            "saved {} (mode 0600): whoever has it publishes under this name",
            crate::text::path(&path)
        )
    })
}

fn import(context: &Context, label: &str, file: &Path) -> Result<(), Fail> {
    let bytes = keystore::read_file(file)?;
    let came = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.put_bytes(&path(label), bytes.into()).await
        })?,
        None => with_keys(context, |keys| keys.import(label, &bytes))?.info(),
    };
    context
        .out
        .result(&came, |came: &KeyInfo| came.name.clone())
}

fn remove(context: &Context, label: &str) -> Result<(), Fail> {
    let gone = match context.daemon()? {
        Some(daemon) => context.talk(daemon, async |client| {
            client.delete_json(&path(label)).await
        })?,
        None => {
            let repo = context.repo(Access::Write)?;
            Keystore::of(&repo.layout).remove(label)?.info()
        }
    };
    context.out.result(&gone, |gone: &KeyInfo| {
        format!("removed {} {}", gone.name, gone.key)
    })
}

/// A change of the keystore beside no daemon: nobody else changes it meanwhile.
fn with_keys(
    context: &Context,
    work: impl FnOnce(&Keystore) -> Result<(Key, gemba_names::Keypair), Fail>,
) -> Result<Key, Fail> {
    let repo = context.repo(Access::Write)?;
    work(&Keystore::of(&repo.layout)).map(|(key, _)| key)
}

fn path(label: &str) -> String {
    format!("/v1/keys/{}", encoded(label))
}

/// The label or name that a command was given, as what the daemon understands: a name.
///
/// # Errors
/// [`Code::NotFound`].
pub(super) fn name_of(context: &Context, text: &str) -> Result<gemba_names::Name, Fail> {
    crate::names::parse(text, &Keystore::of(&context.layout)).map_err(|fail| match fail.code {
        Code::Usage => fail.hint("`gemba key ls` lists the names of this device; elsewhere `gemba name publish` prints them"),
        _ => fail,
    })
}
