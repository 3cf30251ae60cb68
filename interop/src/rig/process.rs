//! Child processes: a command that has to end in time, and a daemon that has to end when its owner is dropped.
//!
//! Every child stays in the process group of its scenario, so the runner's last `kill` of that group leaves nothing behind.

use crate::failure::{Context, Failure, Outcome, fail};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a command ended, with all that it said.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) wall: Duration,
    shown: String,
}

impl Finished {
    /// Whether it ended with 0.
    pub(crate) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// The standard output as text, if the command ended with 0.
    pub(crate) fn ok(self) -> Outcome<String> {
        String::from_utf8(self.ok_bytes()?).map_err(Failure::from)
    }

    /// The standard output as it is, if the command ended with 0.
    pub(crate) fn ok_bytes(self) -> Outcome<Vec<u8>> {
        if !self.succeeded() {
            fail!(
                "`{}` ended with {}: {}",
                self.shown,
                code(self.code),
                self.stderr.trim()
            );
        }
        Ok(self.stdout)
    }
}

fn code(code: Option<i32>) -> String {
    code.map_or("a signal".into(), |code| format!("exit code {code}"))
}

/// A command that runs while the scenario does something else.
pub(crate) struct Running {
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    start: Instant,
    shown: String,
}

/// Starts a command with no standard input and both outputs collected.
pub(crate) fn start(command: &mut Command) -> Outcome<Running> {
    start_with(command, Stdio::null())
}

/// The same with this standard input.
pub(crate) fn start_with(command: &mut Command, input: impl Into<Stdio>) -> Outcome<Running> {
    let shown = show(command);
    let start = Instant::now();
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| shown.clone())?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    Ok(Running {
        child,
        stdout,
        stderr,
        start,
        shown,
    })
}

/// Runs a command to its end; one that is not done within `limit` is killed and is a failure.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Outcome<Finished> {
    start(command)?.finish(limit)
}

impl Running {
    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> Outcome<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for the end, at most for `limit` from now.
    pub(crate) fn finish(mut self, limit: Duration) -> Outcome<Finished> {
        let Some(status) = wait(&mut self.child, limit)? else {
            self.child.kill()?;
            self.child.wait()?;
            let stderr = join(self.stderr);
            fail!(
                "`{}` did not end within {:.1} s: {}",
                self.shown,
                limit.as_secs_f64(),
                String::from_utf8_lossy(&stderr).trim()
            );
        };
        let wall = self.start.elapsed();
        Ok(Finished {
            code: status.code(),
            stdout: join(self.stdout),
            stderr: String::from_utf8_lossy(&join(self.stderr)).into_owned(),
            wall,
            shown: self.shown,
        })
    }
}

/// Polls for the end of a child; `None` when the limit passed first. The first polls are dense so that short commands are
/// timed to a fraction of a millisecond.
fn wait(child: &mut Child, limit: Duration) -> Outcome<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let elapsed = start.elapsed();
        if elapsed > limit {
            return Ok(None);
        }
        std::thread::sleep(
            (elapsed / 100).clamp(Duration::from_micros(200), Duration::from_millis(10)),
        );
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A read error ends the collection just as the end of the pipe does; what was read is still shown.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn join(thread: JoinHandle<Vec<u8>>) -> Vec<u8> {
    thread.join().unwrap_or_default()
}

fn show(command: &Command) -> String {
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    command
        .get_args()
        .fold(name, |line, arg| line + " " + &arg.to_string_lossy())
}

/// A command inside a network namespace, or here when none is given.
pub(crate) fn command(program: &Path, netns: Option<&str>) -> Command {
    match netns {
        None => Command::new(program),
        Some(name) => {
            // `ip netns exec` replaces itself with the program, so the child's process id is the program's.
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(program);
            command
        }
    }
}

/// A long-running node. Its output goes to a log file; it is killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
    /// Where this run's output begins: the log is kept over restarts.
    from: u64,
}

/// What a process used so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time together.
    pub(crate) cpu: Duration,
    /// Peak resident memory in bytes since the start or the last [`Daemon::reset_peak`].
    pub(crate) peak: u64,
    /// Resident memory now, in bytes.
    pub(crate) resident: u64,
}

impl Daemon {
    pub(crate) fn spawn(name: &str, command: &mut Command, log: &Path) -> Outcome<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let from = out.metadata()?.len();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context(|| format!("starting {name}"))?;
        Ok(Self {
            child,
            name: name.into(),
            log: log.into(),
            from,
        })
    }

    /// Waits until a line of the log is `needle`; a daemon that ends before that is a failure that shows its last line.
    pub(crate) fn wait_for(&mut self, needle: &str, limit: Duration) -> Outcome<String> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait()?;
            let log = self.log_text()?;
            if let Some(line) = log.lines().find(|line| line.trim() == needle) {
                return Ok(line.into());
            }
            let last = log.lines().last().unwrap_or("(no output)");
            if let Some(status) = ended {
                fail!(
                    "{} ended ({status}) before it said \"{needle}\"; its last line: {last}",
                    self.name
                );
            }
            if start.elapsed() > limit {
                fail!(
                    "{} did not say \"{needle}\" within {:.1} s; its last line: {last}",
                    self.name,
                    limit.as_secs_f64()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that this run has written so far.
    pub(crate) fn log_text(&self) -> Outcome<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Power cut as seen by the others: no time to say anything.
    pub(crate) fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Orderly end: SIGTERM, then wait.
    pub(crate) fn terminate(&mut self, limit: Duration) -> Outcome<ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        wait(&mut self.child, limit)?.context(|| {
            format!(
                "{} did not end within {:.1} s of SIGTERM",
                self.name,
                limit.as_secs_f64()
            )
        })
    }

    /// Time and memory of this process alone.
    pub(crate) fn usage(&self) -> Outcome<Usage> {
        let pid = self.child.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |field: &str| {
            let line = status.lines().find(|line| line.starts_with(field))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        Ok(Usage {
            cpu: cpu_time(&format!("/proc/{pid}/stat"), [11, 12])?,
            peak: kib("VmHWM:").context(|| format!("no VmHWM of {}", self.name))? * 1024,
            resident: kib("VmRSS:").context(|| format!("no VmRSS of {}", self.name))? * 1024,
        })
    }

    /// Begins a new measurement of the peak (proc(5), `clear_refs`, value 5).
    pub(crate) fn reset_peak(&self) -> Outcome {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")
            .context(|| format!("resetting the peak of {}", self.name))
    }

    /// How many TCP connections were begun in this process's network namespace (RFC 4022, `tcpActiveOpens`).
    pub(crate) fn active_opens(&self) -> Outcome<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", self.child.id()))?;
        let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (
            rows.next().unwrap_or_default(),
            rows.next().unwrap_or_default(),
        );
        let at = names.split(' ').position(|name| name == "ActiveOpens");
        at.and_then(|at| values.split(' ').nth(at)?.parse().ok())
            .context(|| "no ActiveOpens in /proc/net/snmp".into())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of all children that this process has waited for.
pub(crate) fn cpu_of_finished_children() -> Outcome<Duration> {
    cpu_time("/proc/self/stat", [13, 14])
}

/// Two tick counters of a stat file, added. Fields are counted behind the program's name, which may hold blanks.
fn cpu_time(stat: &str, fields: [usize; 2]) -> Outcome<Duration> {
    /// `USER_HZ`: 100 on every Linux that gemba runs on.
    const TICK: Duration = Duration::from_millis(10);
    let text = std::fs::read_to_string(stat)?;
    let behind = text.rsplit(')').next().unwrap_or_default();
    let values: Vec<&str> = behind.split_whitespace().collect();
    let mut ticks = 0u32;
    for field in fields {
        ticks += values
            .get(field)
            .and_then(|v| v.parse::<u32>().ok())
            .context(|| format!("field {field} of {stat}"))?;
    }
    Ok(TICK * ticks)
}
