//! Plays scenarios one after the other, each in a process group of its own with a hard time limit.
//!
//! A scenario that hangs, panics or forgets a child costs only itself: when it ends, in whatever way, its whole group is killed.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::netns;
use crate::scenario::{Scenario, Stage};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Begins a line of a scenario's log that names a step.
pub(crate) const STEP: &str = "step ";

/// The first argument of the process that plays one scenario.
pub(crate) const INSIDE: &str = "--inside";

const LOG: &str = "scenario.log";
const RESULT: &str = "result.json";
/// How much of each log is shown when a scenario fails.
const TAIL_LINES: usize = 12;

/// What all scenarios of a run share.
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) kubo: PathBuf,
    pub(crate) gemba: PathBuf,
    pub(crate) seed: u64,
    pub(crate) json: bool,
    pub(crate) keep: bool,
}

struct Verdict {
    name: &'static str,
    ok: bool,
    seconds: f64,
    detail: String,
}

impl Run {
    /// Plays them all and prints the table. True if each passed.
    pub(crate) fn play(&self, scenarios: &[&'static Scenario]) -> Outcome<bool> {
        let mut verdicts = Vec::new();
        for scenario in scenarios {
            let verdict = self.play_one(scenario)?;
            if self.json {
                println!(
                    "{}",
                    json!({"scenario": verdict.name, "ok": verdict.ok, "seconds": verdict.seconds, "detail": verdict.detail})
                );
            } else {
                println!("{}", row(&verdict));
            }
            let dir = self.dir.join(scenario.name);
            if !verdict.ok {
                show_logs(&dir)?;
            } else if !self.keep {
                fs::remove_dir_all(dir)?;
            }
            verdicts.push(verdict);
        }
        let passed = verdicts.iter().filter(|verdict| verdict.ok).count();
        let failed = verdicts.len() - passed;
        if self.json {
            println!("{}", json!({"passed": passed, "failed": failed}));
        } else {
            println!(
                "\n{:<34} {:<6} {:>7}  detail",
                "scenario", "result", "seconds"
            );
            for verdict in &verdicts {
                println!("{}", row(verdict));
            }
            println!("\n{passed} passed, {failed} failed");
        }
        Ok(failed == 0)
    }

    fn play_one(&self, scenario: &'static Scenario) -> Outcome<Verdict> {
        let dir = self.dir.join(scenario.name);
        fs::create_dir_all(&dir)?;
        let log = File::create(dir.join(LOG))?;
        let begun = Instant::now();
        let child = Command::new(std::env::current_exe()?)
            .args([
                INSIDE,
                scenario.name,
                "--seed",
                &self.seed.to_string(),
                "--dir",
            ])
            .arg(&dir)
            .arg("--kubo")
            .arg(&self.kubo)
            .arg("--gemba")
            .arg(&self.gemba)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let detail = wait_and_clear(child, scenario.limit)?;
        let seconds = begun.elapsed().as_secs_f64();
        let detail = match detail {
            Err(killed) => Err(killed),
            Ok(()) => result(&dir),
        };
        Ok(match detail {
            Ok(detail) => Verdict {
                name: scenario.name,
                ok: true,
                seconds,
                detail,
            },
            Err(cause) => {
                let step = last_step(&dir).unwrap_or_default();
                Verdict {
                    name: scenario.name,
                    ok: false,
                    seconds,
                    detail: format!("{cause} (after: {step})"),
                }
            }
        })
    }
}

/// Waits for the scenario's process, kills the rest of its group and its network. The inner error says that time ran out.
fn wait_and_clear(mut child: Child, limit: Duration) -> Outcome<Result<(), String>> {
    let group = rustix::process::Pid::from_child(&child);
    let begun = Instant::now();
    let in_time = loop {
        if child.try_wait()?.is_some() {
            break true;
        }
        if begun.elapsed() > limit {
            break false;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // An error means that the group is empty already, which is what is wanted.
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    child.wait()?;
    netns::clear()?;
    Ok(if in_time {
        Ok(())
    } else {
        Err(format!("killed at its limit of {} s", limit.as_secs()))
    })
}

/// What the scenario's process left behind; none at all if it panicked.
fn result(dir: &Path) -> Result<String, String> {
    let bytes = fs::read(dir.join(RESULT)).map_err(|_| "it ended without a result".to_string())?;
    let result: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let detail = result["detail"].as_str().unwrap_or_default().to_string();
    if result["ok"] == true {
        Ok(detail)
    } else {
        Err(detail)
    }
}

/// Plays one scenario in this process and writes its result. True if it passed.
pub(crate) fn inside(scenario: &Scenario, stage: &Stage) -> Outcome<bool> {
    let played = (scenario.play)(stage);
    let result = match &played {
        Ok(detail) => json!({"ok": true, "detail": detail}),
        Err(cause) => json!({"ok": false, "detail": cause.to_string()}),
    };
    let file = stage.path(RESULT);
    fs::write(&file, result.to_string()).context(|| format!("writing {}", file.display()))?;
    Ok(played.is_ok())
}

fn row(verdict: &Verdict) -> String {
    let result = if verdict.ok { "ok" } else { "FAILED" };
    // Some details quote a node, in several lines or in colour.
    let detail: String = verdict
        .detail
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!(
        "{:<34} {result:<6} {:>7.1}  {}",
        verdict.name,
        verdict.seconds,
        detail.trim()
    )
}

fn last_step(dir: &Path) -> Option<String> {
    let log = fs::read_to_string(dir.join(LOG)).ok()?;
    log.lines()
        .rev()
        .find_map(|line| line.strip_prefix(STEP))
        .map(|step| step.trim().to_string())
}

/// The ends of all logs of a failed scenario, on standard error.
fn show_logs(dir: &Path) -> Outcome {
    let mut logs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
    logs.sort();
    ensure!(!logs.is_empty(), "{} holds no log", dir.display());
    for log in logs {
        eprintln!("--- the end of {}", log.display());
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            eprintln!("    {line}");
        }
    }
    Ok(())
}
