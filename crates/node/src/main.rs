//! `gemba`
fn main() -> std::process::ExitCode {
    gemba_node::cli::main()
}
