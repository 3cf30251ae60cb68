//! The command line (DESIGN §5): what each command takes, and the way from its end to an exit code.

pub mod add;
pub mod blocks;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod gc;
pub mod id;
pub mod init;
pub mod interrupt;
pub mod key;
pub mod log;
pub mod name;
pub mod network;
pub mod output;
pub mod pin;
pub mod progress;
pub mod pubsub;
pub mod read;
pub mod repo;
pub mod session;
pub mod swarm_key;
pub mod why;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::error::Fail;
use crate::repo::Layout;
use output::Output;

/// The heading of the options that every command has.
const EVERYWHERE: &str = "Options of every command";

/// A private swarm for factories and device fleets.
#[derive(Debug, Parser)]
#[command(
    name = "gemba",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// The repository [default: `gemba` in the user's data directory]
    #[arg(
        long,
        global = true,
        env = "GEMBA_PATH",
        value_name = "DIR",
        help_heading = EVERYWHERE
    )]
    pub repo: Option<PathBuf>,
    /// Print JSON: one object, or one a line; commands that print content do so as ever, and their failures as JSON
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// Log to standard error; -vv says more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = EVERYWHERE)]
    pub verbose: u8,
    /// Wait for the network no longer than this: 500ms, 30s, 2m, 1h, 1d. Without it a read ends 8 s after nobody
    /// who is connected has a block, and 30 s after the last byte that came from anybody
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration, help_heading = EVERYWHERE)]
    pub timeout: Option<Duration>,
    /// Forbid the public network, as LIBP2P_FORCE_PNET=1 does
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = EVERYWHERE)]
    pub force_private: Option<bool>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new repository
    Init(init::Args),
    /// Make, show or import the key that makes the swarm private
    #[command(subcommand)]
    SwarmKey(swarm_key::Command),
    /// Run the node
    Daemon(daemon::Args),
    /// Show a whole private swarm at work on this machine
    Demo(demo::Args),
    /// Show this node's peer id and addresses
    Id,
    /// List the connected peers
    Peers,
    /// Connect to a peer
    Connect(network::ConnectArgs),
    /// Measure the round trip to a connected peer
    Ping(network::PingArgs),
    /// Show how this node is
    Status,
    /// Say whether the uplink is metered, and show what the lines may carry
    Uplink(network::UplinkArgs),
    /// Tell why a block is or is not here
    Why(why::Args),
    /// Add files and folders
    Add(add::Args),
    /// Write a file or folder to disk
    Get(read::GetArgs),
    /// Print a file
    Cat(read::CatArgs),
    /// List a folder
    Ls(read::LsArgs),
    /// Work with single blocks
    #[command(subcommand)]
    Block(blocks::BlockCommand),
    /// Work with linked data and CAR archives
    #[command(subcommand)]
    Dag(blocks::DagCommand),
    /// Say what is to be kept on this device
    #[command(subcommand)]
    Pin(pin::Command),
    /// Make and keep the keys that names belong to
    #[command(subcommand)]
    Key(key::Command),
    /// Make names point to content, and learn where they point
    #[command(subcommand)]
    Name(name::Command),
    /// Send messages to whoever reads a topic, and read them
    #[command(subcommand)]
    Pubsub(pubsub::Command),
    /// Append events to streams, read them, and work through them
    #[command(subcommand)]
    Log(log::Command),
    /// Remove every block that no pin holds, and give its space back
    Gc(gc::Args),
    /// Show or check the repository as a whole
    #[command(subcommand)]
    Repo(repo::Command),
    /// Show, change or check the settings
    #[command(subcommand)]
    Config(config::Command),
}

/// What every command is given.
#[derive(Debug)]
pub struct Context {
    /// The repository.
    pub layout: Layout,
    /// Where results go.
    pub out: Output,
    /// `--timeout`
    pub timeout: Option<Duration>,
    /// `--force-private`
    pub force_private: Option<bool>,
    /// Number of `-v`.
    pub verbose: u8,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return output::usage(&e),
    };
    let json = cli.json;
    output::end_cleanly_on_damage(json);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => output::failed(&fail, json),
    }
}

fn run(cli: Cli) -> Result<(), Fail> {
    let root = match cli.repo {
        Some(root) => root,
        None => Layout::default_root()?,
    };
    let context = Context {
        layout: Layout::new(root),
        out: Output::new(cli.json),
        timeout: cli.timeout,
        force_private: cli.force_private,
        verbose: cli.verbose,
    };
    session::log_to_stderr(&cli.command, cli.verbose);
    match cli.command {
        Command::Init(args) => init::run(&context, &args),
        Command::SwarmKey(command) => swarm_key::run(&context, &command),
        Command::Daemon(args) => daemon::run(&context, &args),
        Command::Demo(args) => demo::run(&context, &args),
        Command::Id => id::run(&context),
        Command::Peers => network::peers(&context),
        Command::Connect(args) => network::connect(&context, &args),
        Command::Ping(args) => network::ping(&context, &args),
        Command::Status => network::status(&context),
        Command::Uplink(args) => network::uplink(&context, &args),
        Command::Why(args) => why::run(&context, &args),
        Command::Add(args) => add::run(&context, &args),
        Command::Get(args) => read::get(&context, &args),
        Command::Cat(args) => read::cat(&context, &args),
        Command::Ls(args) => read::ls(&context, &args),
        Command::Block(command) => blocks::block(&context, &command),
        Command::Dag(command) => blocks::dag(&context, &command),
        Command::Pin(command) => pin::run(&context, &command),
        Command::Key(command) => key::run(&context, &command),
        Command::Name(command) => name::run(&context, &command),
        Command::Pubsub(command) => pubsub::run(&context, &command),
        Command::Log(command) => log::run(&context, &command),
        Command::Gc(args) => gc::run(&context, &args),
        Command::Repo(command) => repo::run(&context, &command),
        Command::Config(command) => config::run(&context, &command),
    }?;
    context.out.flush()
}

/// `500ms`, `30s`, `2m`, `1h`, `30d`, `1m30s`; a number alone is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: 500ms, 30s, 2m, 1h, 30d and 1m30s are");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "ms" => 0.001,
            "s" | "" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = after;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("7", 7000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "1y",
            "-1s",
            "1e3s",
            "1 s",
            "soon",
            "99999999999999999999h",
            "1..2s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
