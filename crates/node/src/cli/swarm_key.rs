//! `gemba swarm-key new|show|import`

use std::path::PathBuf;

use clap::Subcommand;
use gemba_pnet::{KeyFile, Replace, SwarmKey, Written};
use serde::Serialize;

use super::{Context, init};
use crate::error::{Code, Fail};
use crate::repo::{self, Access};

/// What can be done with the swarm key.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new key: on the first node of a swarm only
    New {
        /// Replace the key of another swarm
        #[arg(long)]
        replace: bool,
    },
    /// Show the key's fingerprint, equal on every member
    Show,
    /// Take over the key of the swarm to join: the file `swarm.key` of any member
    Import {
        /// The key file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Replace the key of another swarm
        #[arg(long)]
        replace: bool,
    },
}

#[derive(Serialize)]
struct Shown {
    fingerprint: String,
}

/// Runs one of them.
///
/// # Errors
/// What is wrong with the key, or [`Code::Conflict`] if another one is there.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Show => show(context),
        Command::New { replace } => {
            let _repo = context.repo(Access::Write)?;
            if !replace && context.layout.swarm_key().symlink_metadata().is_ok() {
                return Err(Fail::new(Code::Conflict, format!("{} is there already", context.layout.swarm_key().display()))
                    .hint("all nodes of a swarm share one key: a new one is for the first node of a new swarm; --replace leaves the old swarm"));
            }
            let key = repo::generate_key()?;
            write(context, &key, *replace)?;
            tell(context, &key)?;
            context.out.text(&init::copy_to_all(&context.layout))
        }
        Command::Import { file, replace } => {
            let _repo = context.repo(Access::Write)?;
            let key = KeyFile::read_for_import(file).map_err(repo::key_file_fail)?;
            match write(context, &key, *replace)? {
                Written::AlreadyThere => context.out.text("this key was there already")?,
                Written::Created | Written::Replaced => {}
            }
            tell(context, &key)
        }
    }
}

/// Shows what the node would use, by the rules it would use it by.
fn show(context: &Context) -> Result<(), Fail> {
    if !context.layout.is_initialised()? {
        context.repo(Access::Read)?;
    }
    let config = context.config()?;
    match context.layout.policy(&config).decide() {
        Ok(gemba_pnet::Network::Private(key)) => tell(context, &key),
        Ok(gemba_pnet::Network::Public(_)) => {
            Err(Fail::new(Code::NotFound, "there is no swarm key"))
        }
        Err(e @ gemba_pnet::PolicyError::NoKey { .. }) => Err(Fail::new(Code::NotFound, e)),
        Err(e) => Err(Fail::new(Code::Permission, e)),
    }
}

fn write(context: &Context, key: &SwarmKey, replace: bool) -> Result<Written, Fail> {
    let replace = if replace {
        Replace::Yes
    } else {
        Replace::Never
    };
    KeyFile::in_repo(context.layout.root())
        .write(key, replace)
        .map_err(repo::key_file_fail)
}

fn tell(context: &Context, key: &SwarmKey) -> Result<(), Fail> {
    context.out.result(
        &Shown {
            fingerprint: key.fingerprint().to_string(),
        },
        |shown| shown.fingerprint.clone(),
    )
}
