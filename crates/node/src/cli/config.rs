//! `gemba config show|set|unset|check`

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::Context;
use crate::config;
use crate::error::Fail;

/// What can be done with the settings.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show all settings, or one
    Show {
        /// Only this one, as `network.site`
        key: Option<String>,
        /// Show where each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// Change a setting in config.toml
    Set {
        /// Which, as `network.site`
        key: String,
        /// Its value; several make a list, none an empty one
        #[arg(value_name = "VALUE")]
        values: Vec<String>,
    },
    /// Take a setting out of config.toml, so that its default counts again
    Unset {
        /// Which, as `network.site`
        key: String,
    },
    /// Tell whether settings, environment and swarm key let the daemon start
    Check,
}

/// Runs one of them.
///
/// # Errors
/// [`Code::Usage`](crate::error::Code::Usage) for names and values that cannot be.
pub fn run(context: &Context, command: &Command) -> Result<(), Fail> {
    context.layout.check()?;
    match command {
        Command::Show { key, origin } => show(context, key.as_deref(), *origin),
        Command::Set { key, values } => {
            config::set_in_file(&context.layout, key, values)?;
            tell(context, key, "is set")
        }
        Command::Unset { key } => {
            config::unset_in_file(&context.layout, key)?;
            tell(context, key, "has its default again")
        }
        Command::Check => check(context),
    }
}

/// Says what came of a change; that something stronger overrides it, above all.
fn tell(context: &Context, key: &str, done: &str) -> Result<(), Fail> {
    let from = context.config()?.origin(key);
    context.out.result(
        &json!({ "key": key, "origin": from.to_string() }),
        |_| match from {
            config::Origin::File | config::Origin::Default => {
                format!("{key} {done}; a running daemon takes it at its next start")
            }
            stronger => format!("{key} {done} in config.toml, but {stronger} overrides it"),
        },
    )
}

fn show(context: &Context, key: Option<&str>, with_origin: bool) -> Result<(), Fail> {
    let config = context.config()?;
    let chosen: Vec<_> = config
        .entries()
        .filter(|(name, _, _)| key.is_none_or(|key| key == *name))
        .collect();
    if let (Some(key), []) = (key, chosen.as_slice()) {
        return Err(config::unknown_key(key));
    }
    let mut object = Map::new();
    let mut lines = Vec::new();
    for (name, value, origin) in chosen {
        let shown = if with_origin {
            json!({ "value": value.to_json(), "origin": origin.to_string() })
        } else {
            value.to_json()
        };
        object.insert(name.to_owned(), shown);
        lines.push(if with_origin {
            format!("{name} = {value}  # {origin}")
        } else {
            format!("{name} = {value}")
        });
    }
    context
        .out
        .result(&Value::Object(object), |_| lines.join("\n"))
}

/// The same decision that the daemon takes at its start, without opening a socket.
fn check(context: &Context) -> Result<(), Fail> {
    let config = context.config()?;
    let network = context.layout.network(&config, false)?;
    context.layout.read_identity()?;
    let fingerprint = network.key().map(|key| key.fingerprint().to_string());
    context.out.result(
        &json!({ "ok": true, "private": network.is_private(), "fingerprint": fingerprint }),
        |_| match &fingerprint {
            Some(fingerprint) => format!("ok: private swarm {fingerprint}"),
            None => "ok: public network".to_owned(),
        },
    )
}
