//! iroh-blobs, measured by its own small program (`interop/iroh-blobs`), which is a workspace of its own and built by hand.
//!
//! It is no node with commands: one process serves what it imported, another fetches that once. Both tell what they used.

use super::{Files, LIMIT, SMALL_FILES, SMALL_SIZE, Samples, mib, write_out};
use crate::failure::{Context, Outcome, ensure, fail};
use crate::rig::process::run as run_command;
use crate::rig::until;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The name of the pair.
pub(super) const NAME: &str = "iroh-blobs";
/// The variable that names the program. Without it nothing of iroh-blobs is measured.
pub(super) const PROGRAM: &str = "GEMBA_IROH_BLOBS";

/// The program, if the environment names one.
pub(super) fn program() -> Outcome<Option<PathBuf>> {
    let Some(given) = std::env::var_os(PROGRAM).filter(|given| !given.is_empty()) else {
        return Ok(None);
    };
    let program = PathBuf::from(given);
    ensure!(
        program.is_file(),
        "{PROGRAM}={} is no program",
        program.display()
    );
    Ok(Some(program))
}

/// One round: the big file, then the folder as one collection.
pub(super) fn round(program: &Path, home: &Path, files: &Files, samples: &mut Samples) -> Outcome {
    let small = (SMALL_FILES * SMALL_SIZE) as u64;
    let (add, fetch) = ("add 1 GiB", "fetch and pin 1 GiB");
    one(
        program,
        &home.join("big"),
        &files.big,
        super::BIG,
        [add, fetch],
        samples,
    )?;
    let (add, fetch) = ("add 2000 × 1 KiB", "fetch and pin 2000 × 1 KiB");
    one(
        program,
        &home.join("small"),
        &files.folder,
        small,
        [add, fetch],
        samples,
    )
}

fn one(
    program: &Path,
    home: &Path,
    from: &Path,
    bytes: u64,
    [add, fetch]: [&'static str; 2],
    samples: &mut Samples,
) -> Outcome {
    fs::create_dir_all(home)?;
    write_out(&samples.dir)?;
    let server = Server::start(program, home, from)?;
    let imported = &server.imported;
    ensure!(
        whole(imported, "bytes")? == bytes,
        "iroh-blobs imported {imported} in place of {bytes} bytes"
    );
    samples.push(
        add,
        NAME,
        &[
            ("wall_ms", seconds(imported, "seconds")?),
            ("synced_ms", seconds(imported, "synced_seconds")?),
            ("daemon_cpu_ms", seconds(imported, "cpu_seconds")?),
            ("daemon_peak_mib", peak(imported)?),
        ],
    );
    write_out(&samples.dir)?;
    let mut command = Command::new(program);
    command.args(["fetch", &server.ticket, "--store"]);
    command.arg(home.join("sink"));
    let fetched = parse(run_command(&mut command, LIMIT)?.ok()?.trim())?;
    // A collection has two blobs of its own.
    ensure!(
        whole(&fetched, "bytes")? >= bytes,
        "iroh-blobs fetched {fetched} in place of {bytes} bytes"
    );
    let served = server.end()?;
    samples.push(
        fetch,
        NAME,
        &[
            ("wall_ms", seconds(&fetched, "seconds")?),
            ("synced_ms", seconds(&fetched, "synced_seconds")?),
            ("source_cpu_ms", seconds(&served, "cpu_seconds")?),
            ("sink_cpu_ms", seconds(&fetched, "cpu_seconds")?),
            ("source_peak_mib", peak(&served)?),
            ("sink_peak_mib", peak(&fetched)?),
        ],
    );
    Ok(())
}

/// The serving process. Its standard input is held open until its end; it is killed when dropped.
struct Server {
    child: Child,
    out: PathBuf,
    ticket: String,
    imported: Value,
}

impl Server {
    /// Starts it and waits until it has imported `from` and serves it.
    fn start(program: &Path, home: &Path, from: &Path) -> Outcome<Self> {
        let (out, log) = (home.join("source.out"), home.join("source.log"));
        let child = Command::new(program)
            .arg("serve")
            .arg(from)
            .arg("--store")
            .arg(home.join("source"))
            .stdin(Stdio::piped())
            .stdout(File::create(&out)?)
            .stderr(File::create(&log)?)
            .spawn()
            .context(|| format!("starting {NAME}"))?;
        let mut server = Self {
            child,
            out,
            ticket: String::new(),
            imported: Value::Null,
        };
        let (lines, _) = until("iroh-blobs serves", LIMIT, || {
            let lines = server.lines()?;
            if lines.len() >= 2 {
                return Ok(Some(lines));
            }
            if let Some(status) = server.child.try_wait()? {
                let log = fs::read_to_string(&log)?;
                fail!(
                    "iroh-blobs ended ({status}) before it served: {}",
                    log.trim()
                );
            }
            Ok(None)
        })?;
        server.ticket.clone_from(&lines[0]);
        server.imported = parse(&lines[1])?;
        Ok(server)
    }

    /// Ends it; what it used while it served.
    fn end(mut self) -> Outcome<Value> {
        drop(self.child.stdin.take());
        let (status, _) = until("iroh-blobs ends", Duration::from_secs(20), || {
            Ok(self.child.try_wait()?)
        })?;
        ensure!(status.success(), "iroh-blobs ended with {status}");
        let lines = self.lines()?;
        parse(
            lines
                .get(2)
                .context(|| "iroh-blobs did not tell what it used".into())?,
        )
    }

    /// The whole lines that it has printed so far.
    fn lines(&self) -> Outcome<Vec<String>> {
        let text = fs::read_to_string(&self.out)?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().map(String::from).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Outcome<Value> {
    serde_json::from_str(line).context(|| format!("iroh-blobs printed {line:?}"))
}

/// A field in bytes.
fn whole(report: &Value, field: &str) -> Outcome<u64> {
    report[field]
        .as_u64()
        .context(|| format!("no whole number {field:?} in {report}"))
}

/// A field in seconds, as milliseconds.
fn seconds(report: &Value, field: &str) -> Outcome<f64> {
    let seconds = report[field]
        .as_f64()
        .context(|| format!("no number {field:?} in {report}"))?;
    Ok((seconds * 1e5).round() / 100.0)
}

fn peak(report: &Value) -> Outcome<f64> {
    Ok(mib(whole(report, "rss_max_bytes")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "both are exact")]
    fn a_report_is_read_in_the_units_of_the_rows() {
        let report = parse(r#"{"seconds":1.5,"rss_max_bytes":2097152}"#).unwrap();
        assert_eq!(seconds(&report, "seconds").unwrap(), 1500.0);
        assert_eq!(peak(&report).unwrap(), 2.0);
        assert!(seconds(&report, "synced_seconds").is_err());
        assert!(parse("blob…").is_err());
    }
}
