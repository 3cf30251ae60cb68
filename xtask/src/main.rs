//! `cargo xtask <command>`: what CI proves about this workspace, and the two generators (protobuf code, `docs/LIMITS.md`).
//!
//! Each command looks at files and at cargo's own view of the graph, changes nothing unless its purpose is to generate, and ends with
//! either one summary line or the list of findings and exit code 1. No command needs a tool besides cargo and rustfmt.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for people at a terminal

mod arrows;
mod cores;
mod demands;
mod deny;
mod limits;
mod packages;
mod proto;
mod rust;
mod spdx;
mod unsafe_code;
mod workspace;

use std::process::ExitCode;

use workspace::Workspace;

/// What a command found: a summary line, or everything that is wrong.
pub(crate) type Outcome = Result<String, Vec<String>>;

const USAGE: &str = "\
usage: cargo xtask <command>

  proto [--check]    generate the Rust code of every .proto below crates/*/src; --check only compares
  arrows             crates depend on each other only along DESIGN's arrows; cores stand without tokio and libp2p-swarm
  cores              no clock, thread, file, socket, random source or unbounded queue in core modules
  unsafe             `unsafe` only in the files that are allowed to have it
  deny               licences, sources and bans of deny.toml against the locked graph
  deny --ignored     the advisory ids that deny.toml ignores, one a line
  packages           metadata, README, CHANGELOG of every crate that is published
  packages --list    the names of those crates, one a line
  limits [--check]   render docs/LIMITS.md from docs/limits/*.json; --check only compares
  demands            every id in docs/closed.txt is carried by a test
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let workspace = Workspace::find();
    let outcome = match words.as_slice() {
        ["proto"] => proto::write(&workspace),
        ["proto", "--check"] => proto::check(&workspace),
        ["arrows"] => arrows::check(&workspace),
        ["cores"] => cores::check(&workspace),
        ["unsafe"] => unsafe_code::check(&workspace),
        ["deny"] => deny::check(&workspace),
        ["deny", "--ignored"] => deny::ignored_advisories(&workspace),
        ["packages"] => packages::check(&workspace),
        ["packages", "--list"] => packages::list(&workspace),
        ["limits"] => limits::write(&workspace),
        ["limits", "--check"] => limits::check(&workspace),
        ["demands"] => demands::check(&workspace),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    report(words[0], outcome)
}

fn report(command: &str, outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(findings) => {
            for finding in &findings {
                eprintln!("xtask {command}: {finding}");
            }
            eprintln!("xtask {command}: {} to mend", findings.len());
            ExitCode::FAILURE
        }
    }
}
