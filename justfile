# The single entry for people. `just` shows this list; each recipe is one or two commands that can be typed by hand.

default:
    @just --list

# What is worth running before every commit: format, lints, the workspace's own rules.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    .ci/run proto arrows cores unsafe deny limits

# All tests, the corpora of the fuzz targets included.
test:
    cargo test --workspace --locked

# All simulations in full; GEMBA_SEED=0x… repeats one run.
sim *ARGS:
    GEMBA_SIM=full cargo test --locked --profile sim -p gemba-block -p gemba-segment -p gemba-store -p gemba-unixfs -p gemba-pins -p gemba-pnet -p gemba-exchange -p gemba-gossip -p gemba-names -p gemba-log -p gemba-testkit {{ARGS}}

# Real Kubo nodes in the same private swarm; names of scenarios as arguments. Needs go, root or user namespaces.
interop *ARGS:
    interop/run {{ARGS}}

bench *ARGS:
    cargo bench --locked -p gemba-benches {{ARGS}}

# libFuzzer on nightly (cargo install cargo-fuzz); without a target it lists them.
fuzz *ARGS:
    cd fuzz && cargo +nightly fuzz {{ if ARGS == "" { "list" } else { "run " + ARGS } }}

fmt:
    cargo fmt --all

# The main job on this machine: a private swarm of real nodes, a folder to all of them, an update, a crash.
demo *ARGS:
    cargo run --release --locked --bin gemba -- demo {{ARGS}}

# Generate the Rust code of all .proto files.
proto:
    cargo xtask proto

# Render docs/LIMITS.md from docs/limits/*.json.
limits:
    cargo xtask limits

# Everything that CI runs; names of steps as arguments.
ci *ARGS:
    .ci/run {{ARGS}}
