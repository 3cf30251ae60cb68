//! Counts, on one core: records verified a second, and how long a thousand offline publications take until each is durable in a file.
//!
//! `cargo run --release -p gemba-names --example speed`. Goals: 20,000 verifications a second; 1,000 publications within a second, of which
//! the last travels.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "it measures with the clock and prints what it measured; it is no part of the core"
)]

use gemba_names::{
    Candidate, Command, Config, Core, Input, Keypair, Name, Output, Publish, Unsigned, Wall,
};
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    time::{Duration, Instant},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let key = Keypair::generate_ed25519();
    let per_second = verify(&key)?;
    println!("records decoded and verified on one core: {per_second:.0} a second (goal 20,000)");
    let folder = std::env::temp_dir().join(format!("gemba-names-speed-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (one_by_one, writes) = publish(&key, &folder.join("one"), 1)?;
    println!(
        "1,000 offline publications, each durable before the next: {} ms, {writes} writes flushed",
        one_by_one.as_millis()
    );
    let (together, writes) = publish(&key, &folder.join("many"), 1_000)?;
    println!(
        "1,000 offline publications handed in at once: {} ms, {writes} writes flushed (goal 1,000 ms)",
        together.as_millis()
    );
    let started = Instant::now();
    let rounds = 10_000u32;
    let core = known(&key)?;
    let name = Name::of(&key.public());
    for _ in 0..rounds {
        std::hint::black_box(core.resolve(&name, Duration::ZERO));
    }
    let each = started.elapsed() / rounds;
    println!("resolve from the book: {} ns (goal 1 ms)", each.as_nanos());
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn verify(key: &Keypair) -> Result<f64, Box<dyn std::error::Error>> {
    let name = Name::of(&key.public());
    let end = Wall::from_unix(4_102_444_800, 0);
    let records: Vec<Vec<u8>> = (0..2_000)
        .map(|n| {
            Ok(Unsigned::new("/ipfs/bafkqaaa", n, end)
                .sign(key)?
                .bytes()
                .to_vec())
        })
        .collect::<Result<_, gemba_names::SignError>>()?;
    let started = Instant::now();
    let mut verified = 0u32;
    while started.elapsed() < Duration::from_secs(3) {
        for bytes in &records {
            Candidate::decode(name, bytes)?.verify()?;
            verified += 1;
        }
    }
    Ok(f64::from(verified) / started.elapsed().as_secs_f64())
}

/// A thousand publications, so many under way at a time; each row is written and flushed before it is reported durable.
fn publish(
    key: &Keypair,
    path: &std::path::Path,
    window: u64,
) -> Result<(Duration, u32), Box<dyn std::error::Error>> {
    let name = Name::of(&key.public());
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut core = Core::new(Config::default());
    let mut writes = 0;
    core.handle(
        Input::Command {
            id: 0,
            command: Command::Own(name),
        },
        Duration::ZERO,
    )?;
    serve(&mut core, key, &mut file, &mut writes)?;
    writes = 0;
    let started = Instant::now();
    let mut next = 0;
    let mut done = 0;
    while done < 1_000 {
        while next < 1_000 && next - done < window {
            next += 1;
            let publish = Publish::new(name, format!("/ipfs/bafkqaaa/{next}"));
            core.handle(
                Input::Command {
                    id: next,
                    command: Command::Publish(publish),
                },
                Duration::ZERO,
            )?;
        }
        done += serve(&mut core, key, &mut file, &mut writes)?;
    }
    let last = core
        .resolve(&name, Duration::ZERO)
        .map(|resolved| resolved.version.sequence);
    if last != Some(999) {
        return Err(format!("the last publication is not there: {last:?}").into());
    }
    Ok((started.elapsed(), writes))
}

fn known(key: &Keypair) -> Result<Core, Box<dyn std::error::Error>> {
    let name = Name::of(&key.public());
    let mut core = Core::new(Config::default());
    let mut file = tempfile(&std::env::temp_dir())?;
    core.handle(
        Input::Command {
            id: 0,
            command: Command::Own(name),
        },
        Duration::ZERO,
    )?;
    core.handle(
        Input::Command {
            id: 1,
            command: Command::Publish(Publish::new(name, "/ipfs/bafkqaaa")),
        },
        Duration::ZERO,
    )?;
    while let Some(output) = core.poll() {
        answer(&mut core, key, &mut file, output, &mut 0)?;
    }
    Ok(core)
}

fn tempfile(folder: &std::path::Path) -> std::io::Result<File> {
    let path = folder.join(format!("gemba-names-speed-{}-book", std::process::id()));
    let file = File::create(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// Answers all that the core wants; returns how many commands it reported done.
fn serve(
    core: &mut Core,
    key: &Keypair,
    file: &mut File,
    writes: &mut u32,
) -> Result<u64, Box<dyn std::error::Error>> {
    let mut done = 0;
    while let Some(output) = core.poll() {
        if let Output::Done { result, .. } = &output {
            result.as_ref().map_err(|refused| refused.to_string())?;
            done += 1;
        }
        answer(core, key, file, output, writes)?;
    }
    Ok(done)
}

fn answer(
    core: &mut Core,
    key: &Keypair,
    file: &mut File,
    output: Output,
    writes: &mut u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let input = match output {
        Output::Sign {
            ticket, unsigned, ..
        } => Input::Signed {
            ticket,
            result: unsigned.sign(key).map_err(|e| e.to_string()),
        },
        Output::Persist { ticket, value, .. } => {
            file.write_all(&value.unwrap_or_default())?;
            file.sync_data()?;
            *writes += 1;
            Input::Persisted {
                ticket,
                result: Ok(()),
            }
        }
        _ => return Ok(()),
    };
    core.handle(input, Duration::ZERO)?;
    Ok(())
}
