//! `gemba daemon`

use std::io::IsTerminal as _;
use std::net::SocketAddr;

use multiaddr::Multiaddr;
use tracing_subscriber::EnvFilter;

use super::Context;
use crate::config::{self, Config};
use crate::daemon::{self, Options, Ready};
use crate::error::{Code, Fail};
use crate::repo::{Access, Purpose};

/// Worker threads of the runtime: connections decode, hash and encrypt on them.
const WORKERS: usize = 4;
/// Blocking threads: each API stream holds one.
const BLOCKING: usize = 64;
/// None of the threads recurses.
const STACK_BYTES: usize = 1024 * 1024;

/// What `daemon` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Listen here, instead of the configured addresses; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Vec<Multiaddr>,
    /// Connect to this node and keep connected, beside the configured ones; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    pub bootstrap: Vec<Multiaddr>,
    /// Do not look for other nodes by mDNS
    #[arg(long)]
    pub no_mdns: bool,
    /// Where the API listens (loopback only; port 0 picks a free one)
    #[arg(long, value_name = "ADDR")]
    pub api: Option<SocketAddr>,
    /// End when standard input closes: for programs that start a daemon of their own and may be killed
    #[arg(long)]
    pub until_stdin_closes: bool,
    /// Join the public network if there is no swarm key. The opposite of what gemba is for
    #[arg(long)]
    pub public_network: bool,
}

/// Runs the daemon until SIGTERM, SIGINT or `POST /v1/shutdown`.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(context: &Context, args: &Args) -> Result<(), Fail> {
    let repo = context.repo_for(Access::Write, Purpose::Daemon)?;
    log_to_stderr(&repo.config, context.verbose)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        repository = %repo.layout.root().display(),
        process = std::process::id(),
        "the daemon starts"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().min(WORKERS)))
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|e| Fail::resources("threads", &e))?;
    let options = Options {
        listen: args.listen.clone(),
        bootstrap: args.bootstrap.clone(),
        no_mdns: args.no_mdns,
        api: args.api,
        public_network: args.public_network,
    };
    let outcome = runtime.block_on(async {
        let stop = told_to_stop()?;
        let orphaned = orphaned(args.until_stdin_closes)?;
        let stop = async {
            tokio::select! {
                () = stop => {}
                () = orphaned => {}
            }
        };
        daemon::run(repo, options, |ready| announce(context, ready), stop).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

/// Says that everything listens: addresses first, then the word that scripts wait for.
fn announce(context: &Context, ready: &Ready) -> Result<(), Fail> {
    context.out.result(ready, |ready| {
        let mut lines = vec![format!("peer id {}", ready.id)];
        lines.extend(
            ready
                .fingerprint
                .iter()
                .map(|fingerprint| format!("swarm key {fingerprint}")),
        );
        lines.extend(
            ready
                .addresses
                .iter()
                .map(|address| format!("listening on {address}")),
        );
        lines.push(format!("api on {}", ready.api));
        lines.push("ready".to_owned());
        lines.join("\n")
    })
}

/// Until standard input closes, if that was asked for. A thread of its own: a read of standard input cannot be called off.
fn orphaned(asked: bool) -> Result<impl Future<Output = ()>, Fail> {
    let (closed, closing) = tokio::sync::oneshot::channel::<()>();
    if asked {
        let watch = move || {
            let _nothing_is_read = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ended = closed.send(());
        };
        let spawned = std::thread::Builder::new()
            .name("stdin".into())
            .spawn(watch);
        spawned.map_err(|e| Fail::resources("threads", &e))?;
        return Ok(futures::future::Either::Left(async {
            let _closed = closing.await;
        }));
    }
    Ok(futures::future::Either::Right(std::future::pending()))
}

/// Listens for SIGTERM and SIGINT from now on, so that one that comes right after `ready` is heard.
#[cfg(unix)]
pub(super) fn told_to_stop() -> Result<impl Future<Output = ()>, Fail> {
    use tokio::signal::unix::{SignalKind, signal};
    let fail = |e: std::io::Error| Fail::resources("signals", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Listens for Ctrl-C.
#[cfg(not(unix))]
pub(super) fn told_to_stop() -> Result<impl Future<Output = ()>, Fail> {
    Ok(async {
        let _no_signals = tokio::signal::ctrl_c().await;
    })
}

/// The daemon logs by its settings (`[log]`, `GEMBA_LOG`), more with `-v`.
///
/// # Errors
/// [`Code::Usage`] for a level or format that is none.
fn log_to_stderr(config: &Config, verbose: u8) -> Result<(), Fail> {
    let level = match verbose {
        0 => quiet_libraries(&level(config)?),
        1 => "info".to_owned(),
        2 => "debug".to_owned(),
        _ => "trace".to_owned(),
    };
    let format = match from_environment("GEMBA_LOG_FORMAT", "log.format")? {
        Some(format) => format,
        None => config.log.format.clone(),
    };
    let filter = EnvFilter::try_new(&level)
        .map_err(|e| Fail::new(Code::Usage, format!("log level {level:?}: {e}")))?;
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter);
    // Fails only if a subscriber is there already, which is as good.
    let _set = if format == "json" {
        subscriber.json().try_init()
    } else {
        subscriber.try_init()
    };
    Ok(())
}

/// `GEMBA_LOG`, else `RUST_LOG` if it is a filter at all (it may be meant for another program), else the setting.
fn level(config: &Config) -> Result<String, Fail> {
    if let Some(level) = from_environment("GEMBA_LOG", "log.level")? {
        return Ok(level);
    }
    let rust_log = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.trim().is_empty() && EnvFilter::try_new(text).is_ok());
    Ok(rust_log.unwrap_or_else(|| config.log.level.clone()))
}

/// A variable that stands for a setting, checked like one. An empty one is none.
fn from_environment(variable: &str, key: &str) -> Result<Option<String>, Fail> {
    let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy().into_owned();
    config::check_text(key, &text)
        .map_err(|fail| fail.during(format!("environment variable {variable}")))?;
    Ok(Some(text))
}

/// At the level `info` a node tells of itself, and its libraries only what is wrong, unless the filter names them.
fn quiet_libraries(filter: &str) -> String {
    let mut parts = filter.split(',').map(str::trim);
    let tells_info = parts.clone().any(|part| part.eq_ignore_ascii_case("info"));
    if tells_info && !parts.any(|part| part.starts_with("libp2p")) {
        // What `libp2p_kad` warns of is that no server is known yet, and `status` tells that.
        return format!("{filter},libp2p=warn,libp2p_kad=error");
    }
    filter.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_unless_asked_for() {
        for (filter, used) in [
            ("info", "info,libp2p=warn,libp2p_kad=error"),
            (
                "info,gemba_node=debug",
                "info,gemba_node=debug,libp2p=warn,libp2p_kad=error",
            ),
            ("info,libp2p_swarm=info", "info,libp2p_swarm=info"),
            ("debug", "debug"),
            ("warn", "warn"),
        ] {
            assert_eq!(quiet_libraries(filter), used);
        }
    }
}
