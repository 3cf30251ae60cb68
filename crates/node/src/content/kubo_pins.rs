//! The pins of a Kubo, by its RPC: `pin/ls` of recursive and of direct pins, with their names, a line at a time; and back, by `pin/add`.

use std::time::{Duration, Instant};

use cid::Cid;
use gemba_pins::{Add, Kind};
use serde::{Deserialize, Serialize};

use super::kubo::{Rpc, RpcError, quoted, runtime};
use crate::error::{Code, Fail};

/// A pin for which a Kubo gets no block for so long is left, and told, unless the caller has another patience.
const STALL: Duration = Duration::from_secs(60);
/// Pins of an export that could not be told one by one.
const TOLD: usize = 16;

/// What is told of a pin.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    #[serde(default)]
    cid: String,
    #[serde(default)]
    name: String,
}

/// What is told of one that is made.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Added {
    #[serde(default)]
    progress: u64,
    #[serde(default)]
    pins: Option<Vec<String>>,
}

/// What is done with each pin: root, kind, name.
type Take<'t> = dyn FnMut(&str, Kind, Option<&str>) -> Result<(), Fail> + 't;

/// Hands on each pin of the Kubo whose RPC is at `url` (`http://127.0.0.1:5001`): root, kind, name. It may be silent for a minute, or for as long as `patience`.
///
/// # Errors
/// [`Code::Usage`] for what is no such address; [`Code::Failure`] if nobody answers, or the answer is none of a Kubo or is cut short.
pub fn read(url: &str, patience: Option<Duration>, take: &mut Take<'_>) -> Result<(), Fail> {
    let mut rpc = asked(url, patience)?;
    runtime()?.block_on(async {
        for kind in [Kind::Recursive, Kind::Direct] {
            let listed = list(&mut rpc, kind, take).await;
            listed.map_err(|fail| fail.during(format!("the pins of Kubo at {}", rpc.host())))?;
        }
        Ok(())
    })
}

fn asked(url: &str, patience: Option<Duration>) -> Result<Rpc, Fail> {
    let rpc = Rpc::at(url)?;
    Ok(match patience {
        Some(patience) => rpc.patience(patience),
        None => rpc,
    })
}

async fn list(rpc: &mut Rpc, kind: Kind, take: &mut Take<'_>) -> Result<(), Fail> {
    let path = format!(
        "pin/ls?type={}&names=true&stream=true&quiet=false",
        kind.as_str()
    );
    let mut each = |line: &[u8]| {
        let pin = pin_of(line)?;
        let name = Some(pin.name.as_str()).filter(|name| !name.is_empty());
        take(&pin.cid, kind, name)
    };
    let listed = rpc.lines(&path, &mut each).await;
    listed.map_err(RpcError::into_fail)
}

fn pin_of(line: &[u8]) -> Result<Line, Fail> {
    let told: Line = serde_json::from_slice(line)
        .map_err(|e| Fail::new(Code::Failure, format!("its answer is no list of pins: {e}")))?;
    if told.cid.is_empty() {
        return Err(Fail::new(Code::Failure, "its answer is no list of pins")
            .hint("Kubo lists them one by one since 0.29"));
    }
    Ok(told)
}

/// What an export to a Kubo came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Pins that were not there.
    pub added: u64,
    /// That were there, or more than that, and stay as they are.
    pub kept: u64,
    /// That were there without a name, and have ours now.
    pub named: u64,
    /// That were direct there, and are recursive now.
    pub widened: u64,
    /// That could not be made; the first of them in `failures`.
    pub failed: u64,
    /// Why, of the first 16 of them.
    pub failures: Vec<Failure>,
}

/// A pin that could not be made at the Kubo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The root.
    pub cid: String,
    /// Why.
    pub cause: String,
}

/// Makes pins at a Kubo, one after the other. It takes nothing away there, and one that cannot be made keeps none of the others.
pub struct Export {
    rpc: Rpc,
    runtime: tokio::runtime::Runtime,
    stall: Duration,
    report: Exported,
}

impl Export {
    /// To the Kubo whose RPC is at `url`. A pin for which it gets no block for as long as `stall` is left.
    ///
    /// # Errors
    /// [`Code::Usage`] for what is no such address.
    pub fn to(url: &str, stall: Option<Duration>) -> Result<Self, Fail> {
        Ok(Self {
            rpc: asked(url, stall)?,
            runtime: runtime()?,
            stall: stall.unwrap_or(STALL),
            report: Exported::default(),
        })
    }

    /// One more.
    ///
    /// # Errors
    /// Nobody answers there. That it refuses this one, or does not get its blocks, is in the report.
    pub fn pin(&mut self, add: &Add) -> Result<(), Fail> {
        let Self {
            rpc,
            runtime,
            stall,
            report,
        } = self;
        let (count, its_name) = match runtime.block_on(theirs(rpc, &add.cid)) {
            Err(error) => return self.on_error(add, error),
            Ok(None) => (&mut report.added, None),
            Ok(Some(pin)) if pin.kind == Kind::Direct && add.kind == Kind::Recursive => {
                (&mut report.widened, pin.name)
            }
            Ok(Some(pin)) if pin.name.is_none() && add.name.is_some() && pin.kind == add.kind => {
                (&mut report.named, None)
            }
            Ok(Some(_)) => {
                report.kept += 1;
                return Ok(());
            }
        };
        let (mut most, mut moved, mut is_left) = (0, Instant::now(), false);
        let mut on_progress = |blocks| {
            if blocks > most {
                (most, moved) = (blocks, Instant::now());
            }
            match moved.elapsed() < *stall {
                true => Ok(()),
                false => {
                    is_left = true;
                    Err(no_block(*stall))
                }
            }
        };
        // Made anew without a name it would lose its own.
        let name = its_name.or_else(|| add.name.as_ref().map(|name| name.as_str().to_owned()));
        let what = (&add.cid, add.kind);
        match runtime.block_on(make(rpc, what, name.as_deref(), &mut on_progress)) {
            Ok(()) => {
                *count += 1;
                Ok(())
            }
            Err(RpcError::Failed(fail)) if is_left => {
                self.fail(&add.cid, fail.cause);
                Ok(())
            }
            Err(error) => self.on_error(add, error),
        }
    }

    fn on_error(&mut self, add: &Add, error: RpcError) -> Result<(), Fail> {
        match error {
            RpcError::Refused(cause) | RpcError::BrokeOff(cause) => self.fail(&add.cid, cause),
            // It is not there any more, or was none: that holds for all further ones, too.
            RpcError::Failed(fail) => {
                let doing = format!("pins for Kubo at {}", self.rpc.host());
                return Err(fail.during(doing));
            }
        }
        Ok(())
    }

    fn fail(&mut self, cid: &Cid, cause: String) {
        self.report.failed += 1;
        if self.report.failures.len() < TOLD {
            let cid = cid.to_string();
            self.report.failures.push(Failure { cid, cause });
        }
    }

    /// What came of it.
    #[must_use]
    pub fn finish(self) -> Exported {
        self.report
    }
}

/// A pin of the Kubo.
pub(super) struct Theirs {
    pub(super) kind: Kind,
    pub(super) name: Option<String>,
}

/// How a root is pinned there.
pub(super) async fn theirs(rpc: &mut Rpc, cid: &Cid) -> Result<Option<Theirs>, RpcError> {
    for kind in [Kind::Recursive, Kind::Direct] {
        let path = format!(
            "pin/ls?arg={cid}&type={}&names=true&stream=true&quiet=false",
            kind.as_str()
        );
        let mut found = None;
        let mut each = |line: &[u8]| {
            found = Some(pin_of(line)?.name);
            Ok(())
        };
        match rpc.lines(&path, &mut each).await {
            Ok(()) => {}
            Err(RpcError::Refused(message)) if message.contains("not pinned") => {}
            Err(other) => return Err(other),
        }
        if let Some(name) = found {
            let name = Some(name).filter(|name| !name.is_empty());
            return Ok(Some(Theirs { kind, name }));
        }
    }
    Ok(None)
}

/// Has it pinned there. It tells every half second how many blocks it has got.
pub(super) async fn make(
    rpc: &mut Rpc,
    (cid, kind): (&Cid, Kind),
    name: Option<&str>,
    on_progress: &mut dyn FnMut(u64) -> Result<(), Fail>,
) -> Result<(), RpcError> {
    let is_recursive = kind == Kind::Recursive;
    let mut path = format!("pin/add?arg={cid}&recursive={is_recursive}&progress=true");
    if let Some(name) = name {
        path.push_str(&format!("&name={}", quoted(name)));
    }
    let mut done = false;
    let mut each = |line: &[u8]| {
        let told: Added = serde_json::from_slice(line)
            .map_err(|e| Fail::new(Code::Failure, format!("its answer is none of a pin: {e}")))?;
        done |= told.pins.is_some_and(|pins| !pins.is_empty());
        on_progress(told.progress)
    };
    rpc.lines(&path, &mut each).await?;
    if !done {
        return Err(Fail::new(Code::Failure, "its answer ended before it was pinned").into());
    }
    Ok(())
}

fn no_block(stall: Duration) -> Fail {
    Fail::new(
        Code::Timeout,
        format!(
            "it got no block of it for {} s: is it connected to somebody who has it?",
            stall.as_secs_f64()
        ),
    )
}
