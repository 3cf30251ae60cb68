//! How a command comes to its data: from the daemon if one answers, else from the repository itself.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use gemba_block::Block;
use gemba_store::Store;
use gemba_unixfs::{BlockSource, SourceError};
use tracing_subscriber::EnvFilter;

use super::{Command, Context, interrupt};
use crate::client::Client;
use crate::config::{Config, Value};
use crate::content::room::{Here, Puts};
use crate::error::{Code, Fail};
use crate::meta::Meta;
use crate::repo::{Access, Purpose, Repo};

/// Whoever ends gives back what it holds, and waits no longer than this for the answer.
const LEAVING: Duration = Duration::from_secs(1);

/// A daemon that answers, and the runtime to talk to it. Neither is made for a command that finds no `api` file.
#[derive(Debug)]
pub struct Daemon {
    /// Speaks with it.
    pub client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Context {
    /// Looks for the daemon of this repository.
    ///
    /// # Errors
    /// The `api` file may not be read.
    pub fn daemon(&self) -> Result<Option<Daemon>, Fail> {
        if !self
            .layout
            .api()
            .try_exists()
            .map_err(|e| Fail::io(self.layout.api(), &e))?
        {
            return Ok(None);
        }
        let runtime = runtime()?;
        let client = runtime.block_on(Client::connect(&self.layout, self.timeout))?;
        Ok(client.map(|client| Daemon { client, runtime }))
    }

    /// The daemon, for commands that make no sense without one.
    ///
    /// # Errors
    /// [`Code::NoDaemon`], or [`Code::NotFound`] if there is not even a repository.
    pub fn require_daemon(&self) -> Result<Daemon, Fail> {
        self.layout.check()?;
        let runtime = runtime()?;
        let client = runtime.block_on(Client::require(&self.layout, self.timeout))?;
        Ok(Daemon { client, runtime })
    }

    /// The repository itself, for a command that found no daemon to do it.
    ///
    /// # Errors
    /// See [`Repo::open`].
    pub fn repo(&self, access: Access) -> Result<Repo, Fail> {
        self.repo_for(access, Purpose::Beside)
    }

    /// The repository itself, to write, for what no running daemon does.
    ///
    /// # Errors
    /// See [`Repo::open`].
    pub fn repo_for(&self, access: Access, purpose: Purpose) -> Result<Repo, Fail> {
        let mut repo = Repo::open_for(self.layout.root(), access, purpose)?;
        self.apply_flags(&mut repo.config)?;
        Ok(repo)
    }

    /// The settings, without the repository's lock.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn config(&self) -> Result<Config, Fail> {
        let mut config = Config::load(&self.layout)?;
        self.apply_flags(&mut config)?;
        Ok(config)
    }

    fn apply_flags(&self, config: &mut Config) -> Result<(), Fail> {
        match self.force_private {
            Some(force) => config.set_flag("network.force_private", Value::Bool(force)),
            None => Ok(()),
        }
    }

    /// Runs a conversation with the daemon to its end, to Ctrl-C, or to `--timeout`.
    ///
    /// # Errors
    /// Its own, [`Code::Interrupted`], or [`Code::Timeout`].
    pub fn talk<T>(
        &self,
        daemon: Daemon,
        work: impl AsyncFnOnce(&Client) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        talk_within(self.timeout, daemon, work)
    }
}

impl Context {
    /// As [`Context::talk`], for a conversation that keeps `--timeout` itself.
    ///
    /// # Errors
    /// Its own, or [`Code::Interrupted`].
    pub fn talk_without_limit<T>(
        &self,
        daemon: Daemon,
        work: impl AsyncFnOnce(&Client) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        talk_within(None, daemon, work)
    }
}

/// Writes to the store of a repository that no daemon has, and makes room in it where its limit is reached.
#[must_use]
pub fn puts(repo: &Repo, store: &Store, meta: &Arc<Meta>) -> Puts {
    let here = Here {
        store: store.clone(),
        meta: Arc::clone(meta),
        collects: repo.config.store.gc,
        check: interrupt::check,
    };
    Puts::with_room(store.clone(), Arc::new(here))
}

/// As [`Context::talk`], with a limit of its own.
///
/// # Errors
/// As [`Context::talk`].
pub fn talk_within<T>(
    limit: Option<Duration>,
    daemon: Daemon,
    work: impl AsyncFnOnce(&Client) -> Result<T, Fail>,
) -> Result<T, Fail> {
    let Daemon { client, runtime } = daemon;
    let outcome = runtime.block_on(within(limit, &client, work(&client)));
    // A blocking thread may hang in a read or a write; it ends with the process.
    runtime.shutdown_background();
    outcome
}

/// As [`talk_within`], for whoever holds something at the daemon: `leave` gives it back however the conversation ends, by Ctrl-C, SIGTERM or time, too.
pub fn talk_leaving<T>(
    limit: Option<Duration>,
    daemon: Daemon,
    work: impl AsyncFnOnce(&Client) -> Result<T, Fail>,
    leave: impl AsyncFnOnce(&Client) -> Result<(), Fail>,
) -> Result<T, Fail> {
    let Daemon { client, runtime } = daemon;
    let outcome = runtime.block_on(async {
        let outcome = tokio::select! {
            outcome = within(limit, &client, work(&client)) => outcome,
            () = terminated() => Err(interrupt::fail()),
        };
        // A daemon that does not answer is ending, or gives it back when the lease is over.
        let left = tokio::time::timeout(LEAVING, leave(&client)).await;
        outcome.and_then(|done| left.unwrap_or(Ok(())).map(|()| done))
    });
    // As above.
    runtime.shutdown_background();
    outcome
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut signals) => drop(signals.recv().await),
        // Then the signal ends the process at once.
        Err(_) => std::future::pending().await,
    }
}

async fn within<T>(
    limit: Option<Duration>,
    client: &Client,
    work: impl Future<Output = Result<T, Fail>>,
) -> Result<T, Fail> {
    let late = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    // Kept until the reason is known: with the conversation its request would be over, and the daemon could not tell what it waits for.
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err(interrupt::fail()),
        outcome = &mut work => outcome,
        () = late => Err(client.too_late(limit.unwrap_or_default()).await),
    }
}

/// The daemon said something that it does not say, or less than it should.
#[must_use]
pub fn answer_fail(cause: &str) -> Fail {
    Fail::new(Code::Failure, format!("the daemon's answer {cause}"))
        .hint("it was stopped in the middle, or is of another version than this command: look at its log, and compare `gemba --version` with the agent in `gemba id`")
}

/// Runs blocking work beside a conversation; a panic in it is a failure.
///
/// # Errors
/// The work's.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fail> + Send + 'static,
) -> Result<T, Fail> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(e) => Err(Fail::internal(format!(
            "a thread of this command ended early: {e}"
        ))),
    }
}

/// Blocks from the daemon, one request each; for commands that need a few. Use it on a blocking thread.
#[derive(Debug)]
pub struct DaemonSource {
    client: Client,
    runtime: tokio::runtime::Handle,
}

impl DaemonSource {
    /// A source of this daemon's blocks. Must be made inside the runtime.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            runtime: tokio::runtime::Handle::current(),
        }
    }
}

impl BlockSource for DaemonSource {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        let data = self
            .runtime
            .block_on(self.client.get_bytes(&format!("/v1/block/{cid}")))
            .map_err(|fail| SourceError::failed(cid, fail))?;
        Block::new(*cid, data).map_err(|e| {
            SourceError::failed(cid, Fail::new(Code::Integrity, format!("{cid}: {e}")))
        })
    }
}

/// A path of the API with its query.
#[must_use]
pub fn url(path: &str, query: &[(&str, &str)]) -> String {
    let mut url = path.to_owned();
    for (index, (key, value)) in query.iter().enumerate() {
        url.push(if index == 0 { '?' } else { '&' });
        url.push_str(key);
        url.push('=');
        url.push_str(&encoded(value));
    }
    url
}

/// Percent-encoding of everything but the unreserved characters of RFC 3986 §2.3.
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn runtime() -> Result<tokio::runtime::Runtime, Fail> {
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    built.map_err(|e| Fail::resources("threads", &e))
}

/// `-v`: the command's own log. The daemon logs by its settings.
pub(super) fn log_to_stderr(command: &Command, verbose: u8) {
    let filter = match verbose {
        _ if matches!(command, Command::Daemon(_)) => return,
        0 => return,
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(EnvFilter::new(filter));
    // Fails only if somebody has set one already, which is as good.
    let _ = subscriber.try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_carry_any_text() {
        assert_eq!(url("/v1/cat", &[]), "/v1/cat");
        assert_eq!(
            url("/v1/cat", &[("path", "bafy/a b&c=d/ä%"), ("offset", "1")]),
            "/v1/cat?path=bafy%2Fa%20b%26c%3Dd%2F%C3%A4%25&offset=1"
        );
    }
}
