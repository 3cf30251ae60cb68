//! Scenarios with real gemba and Kubo daemons in one private swarm, and the numbers of both side by side.
//!
//! `interop/run` is the way in: it builds the programs and cuts the network off before it starts this one. Nothing of gemba
//! is linked here; it is driven through its command line, as its users drive it. (`peer.rs` and `connector.rs` are programs of their own.)
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is what this program is for"
)]

mod failure;
mod measure;
mod rig;
mod runner;
mod scenario;
mod scenarios;

use failure::{Context, Outcome, ensure, fail};
use scenario::{Scenario, Stage};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: interop/run [--list] [--json] [--keep] [--seed N] [SCENARIO…]     all scenarios if none is named
       interop/run --measure [--runs N] [--pairs NAME,NAME]              numbers of gemba and Kubo side by side";

fn main() -> ExitCode {
    match Arguments::parse(std::env::args().skip(1)).and_then(|arguments| arguments.obey()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("interop: {failure}");
            ExitCode::from(2)
        }
    }
}

#[derive(Default)]
struct Arguments {
    names: Vec<String>,
    inside: Option<String>,
    dir: Option<PathBuf>,
    kubo: Option<PathBuf>,
    gemba: Option<PathBuf>,
    seed: Option<u64>,
    runs: Option<usize>,
    pairs: Option<String>,
    list: bool,
    json: bool,
    keep: bool,
    measure: bool,
}

impl Arguments {
    fn parse(mut from: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut this = Self::default();
        while let Some(argument) = from.next() {
            let mut value = || {
                from.next()
                    .context(|| format!("{argument} needs a value\n{USAGE}"))
            };
            match argument.as_str() {
                "--list" => this.list = true,
                "--json" => this.json = true,
                "--keep" => this.keep = true,
                "--measure" => this.measure = true,
                "--seed" => this.seed = Some(value()?.parse()?),
                "--runs" => this.runs = Some(value()?.parse()?),
                "--pairs" => this.pairs = Some(value()?),
                "--dir" => this.dir = Some(value()?.into()),
                "--kubo" => this.kubo = Some(value()?.into()),
                "--gemba" => this.gemba = Some(value()?.into()),
                runner::INSIDE => this.inside = Some(value()?),
                option if option.starts_with('-') => fail!("no option {option}\n{USAGE}"),
                name => this.names.push(name.into()),
            }
        }
        Ok(this)
    }

    fn obey(self) -> Outcome<bool> {
        if self.list {
            for scenario in scenarios::ALL {
                println!("{:<34} {}", scenario.name, scenario.about);
            }
            return Ok(true);
        }
        let program = |given: Option<PathBuf>, name: &str| {
            let path = given
                .context(|| format!("--{name} PROGRAM is missing; start this by interop/run"))?;
            ensure!(path.is_file(), "{} is no program", path.display());
            Outcome::Ok(path)
        };
        let (kubo, gemba) = (program(self.kubo, "kubo")?, program(self.gemba, "gemba")?);
        let seed = self.seed.unwrap_or(1);
        let dir = self
            .dir
            .context(|| "--dir FOLDER is missing; start this by interop/run".into())?;
        if let Some(name) = self.inside {
            return runner::inside(find(&name)?, &Stage::new(&dir, &kubo, &gemba, seed));
        }
        if self.measure {
            let runs = self.runs.unwrap_or(3);
            return measure::run(
                &Stage::new(&dir, &kubo, &gemba, seed),
                runs,
                self.pairs.as_deref(),
            )
            .map(|()| true);
        }
        let mut chosen: Vec<&'static Scenario> = self
            .names
            .iter()
            .map(|name| find(name))
            .collect::<Outcome<_>>()?;
        if chosen.is_empty() {
            chosen = scenarios::ALL.iter().collect();
        }
        runner::Run {
            dir,
            kubo,
            gemba,
            seed,
            json: self.json,
            keep: self.keep,
        }
        .play(&chosen)
    }
}

fn find(name: &str) -> Outcome<&'static Scenario> {
    scenarios::ALL
        .iter()
        .find(|scenario| scenario.name == name)
        .context(|| format!("no scenario {name:?}; see --list"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for scenario in scenarios::ALL {
            assert!(
                std::ptr::eq(find(scenario.name).unwrap(), scenario),
                "{} is there twice",
                scenario.name
            );
        }
        assert!(find("nothing").is_err());
    }

    #[test]
    fn options_without_their_value_and_unknown_ones_are_refused() {
        let parse = |words: &[&str]| Arguments::parse(words.iter().map(|w| w.to_string()));
        assert!(parse(&["--seed"]).is_err());
        assert!(parse(&["--sed", "1"]).is_err());
        let arguments = parse(&["--json", "fingerprint", "--seed", "7"]).unwrap();
        assert!(arguments.json && arguments.names == ["fingerprint"] && arguments.seed == Some(7));
    }
}
