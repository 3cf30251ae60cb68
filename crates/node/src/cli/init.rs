//! `gemba init`

use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use crate::error::Fail;
use crate::repo::{InitOptions, KeyChoice, Repo};

/// What `init` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The key of the swarm to join: the file `swarm.key` of any member
    #[arg(long, value_name = "FILE")]
    swarm_key: Option<PathBuf>,
    /// Make a new key: this is the first node of a swarm
    #[arg(long, conflicts_with = "swarm_key")]
    new_swarm_key: bool,
    /// Run without a key, open to anyone
    #[arg(long, conflicts_with_all = ["swarm_key", "new_swarm_key"])]
    public_network: bool,
}

#[derive(Serialize)]
struct Made {
    id: String,
    repo: String,
    fingerprint: Option<String>,
}

/// Makes a new repository.
///
/// # Errors
/// See [`Repo::init`].
pub fn run(context: &Context, args: &Args) -> Result<(), Fail> {
    let key = match (&args.swarm_key, args.new_swarm_key) {
        (Some(file), _) => KeyChoice::Import(file.clone()),
        (None, true) => KeyChoice::New,
        (None, false) => KeyChoice::None,
    };
    let repo = Repo::init(
        context.layout.root(),
        &InitOptions {
            key,
            public_network: args.public_network,
        },
    )?;
    let network = repo.network(false).ok();
    let made = Made {
        id: repo.identity()?.public().to_peer_id().to_string(),
        repo: repo.layout.root().display().to_string(),
        fingerprint: network
            .as_ref()
            .and_then(|n| n.key())
            .map(|key| key.fingerprint().to_string()),
    };
    context.out.result(&made, |made| {
        format!("repository {}\npeer id    {}", made.repo, made.id)
    })?;
    match (&made.fingerprint, args.public_network) {
        (Some(fingerprint), _) if args.new_swarm_key => {
            context.out.text(&format!("swarm key  {fingerprint} (fingerprint)"))?;
            context.out.text(&copy_to_all(&repo.layout))
        }
        (Some(fingerprint), _) => context.out.text(&format!("swarm key  {fingerprint} (fingerprint): the same on every device of the swarm")),
        (None, true) => context.out.text("network    public: anyone may connect"),
        (None, false) => context.out.text("no swarm key yet: `gemba swarm-key new` on the first node of a swarm, `gemba swarm-key import FILE` on every other"),
    }
}

/// S0.59: people generate a key a node and wonder why nothing syncs.
pub(super) fn copy_to_all(layout: &crate::repo::Layout) -> String {
    format!(
        "copy {} to all devices of the swarm (`gemba init --swarm-key FILE` there): it must be the same file everywhere",
        layout.swarm_key().display()
    )
}
