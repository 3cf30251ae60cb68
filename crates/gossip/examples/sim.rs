//! Runs a scenario of the simulator and prints its figures.
//!
//! ```text
//! cargo run --release -p gemba-gossip --features sim --example sim -- --list
//! cargo run --release -p gemba-gossip --features sim --example sim -- large --peers 300 --seed 7 --json
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Instant;

use gemba_gossip::sim::{Plan, Report, SCENARIOS, scenario};

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some((plan, json))) => show(&plan, json),
        Ok(None) => {
            for scenario in SCENARIOS {
                println!("{:16} {}", scenario.name, scenario.about);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sim: {error}");
            eprintln!("usage: sim --list | SCENARIO [--peers N] [--seed S] [--json]");
            ExitCode::from(2)
        }
    }
}

/// The plan that is meant; none is the list.
fn parse(args: impl Iterator<Item = String>) -> Result<Option<(Plan, bool)>, String> {
    let (mut plan, mut json): (Option<Plan>, bool) = (None, false);
    let mut args = args.peekable();
    if args.peek().is_none_or(|arg| arg == "--list") {
        return Ok(None);
    }
    while let Some(arg) = args.next() {
        let mut number = |what: &str| -> Result<u64, String> {
            let text = args.next().ok_or(format!("{what} needs a number"))?;
            text.parse().map_err(|_| format!("{text} is no number"))
        };
        match (arg.as_str(), &mut plan) {
            ("--json", _) => json = true,
            ("--peers", Some(plan)) => plan.set_peers(number("--peers")? as usize),
            ("--seed", Some(plan)) => plan.seed = number("--seed")?,
            (name, None) => {
                let found = scenario(name).ok_or(format!("there is no scenario {name}"))?;
                plan = Some(found.plan());
            }
            (other, Some(_)) => return Err(format!("{other} is not understood")),
        }
    }
    match plan {
        Some(plan) => Ok(Some((plan, json))),
        None => Err("which scenario?".into()),
    }
}

fn show(plan: &Plan, json: bool) -> ExitCode {
    let begun = Instant::now();
    let report = plan.run();
    let took = begun.elapsed();
    if json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("sim: {error}"),
        }
    } else {
        print(&report);
    }
    let rate = report.steps as f64 / took.as_secs_f64();
    eprintln!("{took:.1?} for {} steps, {rate:.0} a second", report.steps);
    if report.breaches.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print(report: &Report) {
    let latency = &report.latency;
    println!(
        "{}: {} honest and {} hostile nodes, {:.0} s of virtual time, seed {}",
        report.scenario, report.honest, report.hostile, report.seconds, report.seed
    );
    println!(
        "delivered in time {:.4} % of {}; {} messages",
        report.delivery * 100.0,
        report.due,
        report.published
    );
    println!(
        "latency p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, longest {:.1} ms",
        latency.p50, latency.p99, latency.p999, latency.max
    );
    println!(
        "copies a message {:.2}, mesh {:.1}, {:.0} B a node, {:.1} % of it control{}",
        report.copies,
        report.mesh,
        report.bytes.per_node,
        report.bytes.control * 100.0,
        match report.bytes.of_flooding {
            Some(share) => format!(", {:.1} % of flooding", share * 100.0),
            None => String::new(),
        }
    );
    println!(
        "checked {} good, {} bad; shed {}, stale {}, sent on stale {}, delivered twice {}, invented {}",
        report.checked_good,
        report.checked_bad,
        report.shed,
        report.stale,
        report.stale_forwards,
        report.redelivered,
        report.invented
    );
    for (how, figures) in &report.breaks {
        println!(
            "{how:?}: {} of {} found in at most {:.1} s, {} healed in at most {:.1} s",
            figures.found, figures.count, figures.found_max, figures.healed, figures.healed_max
        );
    }
    for breach in &report.breaches {
        println!(
            "BREACH {:?} x {}: {}",
            breach.rule, breach.times, breach.first
        );
    }
}
