//! `gemba swarm-key new|show|import`

use std::path::PathBuf;

use clap::Subcommand;
use gemba_pnet::{KeyFile, Network, PolicyError, Replace, SwarmKey, Written};
use serde::Serialize;

use super::{Context, init};
use crate::error::{Code, Fail};
use crate::repo::{self, Access, Purpose};

/// What can be done with the swarm key.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new key: on the first node of a swarm only
    New {
        /// Replace the key of another swarm, which is kept as swarm.key.….old
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
        /// Replace the key of another swarm, which is kept as swarm.key.….old
        #[arg(long)]
        replace: bool,
    },
}

#[derive(Serialize)]
struct Shown {
    fingerprint: String,
    /// The key that was here before, and where it is kept now.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Replaced>,
}

#[derive(Serialize)]
struct Replaced {
    /// Null if what was there was no key.
    fingerprint: Option<String>,
    path: String,
}

/// Runs one of them.
///
/// # Errors
/// What is wrong with the key, or [`Code::Conflict`] if another one is there.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    match command {
        Command::Show => show(context),
        Command::New { replace } => {
            let _repo = context.repo_for(Access::Write, Purpose::Alone)?;
            if !replace && context.layout.swarm_key().symlink_metadata().is_ok() {
                return Err(Fail::new(Code::Conflict, format!("{} is there already", context.layout.swarm_key().display()))
                    .hint("all nodes of a swarm share one key: a new one is for the first node of a new swarm; --replace leaves the old swarm, and keeps its key beside the new one"));
            }
            let key = repo::generate_key()?;
            let written = write(context, &key, *replace)?;
            tell(context, &key, &written)?;
            context.out.text(&init::copy_to_all(&context.layout))
        }
        Command::Import { file, replace } => {
            let _repo = context.repo_for(Access::Write, Purpose::Alone)?;
            let key = KeyFile::read_for_import(file).map_err(repo::key_file_fail)?;
            let written = write(context, &key, *replace)?;
            if written == Written::AlreadyThere {
                context.out.text("this key was there already")?;
            }
            tell(context, &key, &written)
        }
    }
}

/// Shows what the node would use, by the rules it would use it by.
fn show(context: &Context) -> Result<(), Fail> {
    context.layout.check()?;
    let config = context.config()?;
    match context.layout.policy(&config).decide() {
        Ok(Network::Private(key)) => context.out.result(
            &Shown {
                fingerprint: key.fingerprint().to_string(),
                replaced: None,
            },
            |shown| shown.fingerprint.clone(),
        ),
        Ok(Network::Public(_)) | Err(PolicyError::NoKey { .. }) => Err(Fail::new(
            Code::NotFound,
            format!("there is no swarm key at {}", context.layout.swarm_key().display()),
        )
        .hint("`gemba swarm-key new` makes one on the first node of a swarm, `gemba swarm-key import FILE` takes it over on every other")),
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

/// Tells which key is here now, and which one was before: to replace one by mistake costs a device its swarm.
fn tell(context: &Context, key: &SwarmKey, written: &Written) -> Result<(), Fail> {
    let replaced = match written {
        Written::Replaced { old, kept } => Some(Replaced {
            fingerprint: old.map(|old| old.to_string()),
            path: kept.display().to_string(),
        }),
        Written::Created | Written::AlreadyThere => None,
    };
    let shown = Shown {
        fingerprint: key.fingerprint().to_string(),
        replaced,
    };
    context.out.result(&shown, |shown| {
        let mut text = format!("swarm key  {} (fingerprint)", shown.fingerprint);
        if let Some(replaced) = &shown.replaced {
            let old = replaced
                .fingerprint
                .as_deref()
                .unwrap_or("none: the file held no key");
            text.push_str(&format!(
                "\nreplaced   {old} (fingerprint), kept as {}",
                replaced.path
            ));
            text.push_str("\na device with the old key does not reach this one any more");
        }
        text
    })
}
