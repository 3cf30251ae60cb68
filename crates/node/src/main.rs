//! `gemba`

/// The system's allocator keeps what a burst of peers has freed; this one gives it back within seconds.
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    gemba_node::cli::main()
}
